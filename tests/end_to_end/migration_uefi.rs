//! A machine that boots by UEFI: what its firmware remembers is there after each move, sleep and start.

use anyhow::{Result, ensure};

use crate::join::field;
use crate::migration::{BOOT, Lab};

/// Sets a variable of the firmware that lasts. Source: Linux, Documentation/filesystems/efivarfs.rst
const REMEMBER: &str = "v=/mnt/Nuee-5ad0c0de-0000-4000-8000-000000000001; modprobe efivarfs; mount -t efivarfs efivarfs /mnt && \
    printf '\\007\\000\\000\\000kept' > $v; umount /mnt; touch /run/same";
const RECALL: &str = "modprobe efivarfs; mount -t efivarfs efivarfs /mnt && tail -c 4 /mnt/Nuee-*; umount /mnt; \
    [ ! -e /run/same ] || echo ' by the same'";

fn is_kept(lab: &Lab, expected: &str) -> Result<()> {
    let said = lab.guest_says(RECALL)?;
    ensure!(said.trim() == expected, "{said:?} instead of {expected:?}");
    Ok(())
}

#[test]
fn what_the_firmware_of_a_machine_remembers_moves_and_sleeps_with_it() -> Result<()> {
    let lab = Lab::new(&[])?;
    let first = lab.first();
    let patch = |spec: &str| -> Result<()> {
        let patch = format!("{{\"spec\":{spec}}}");
        first.kubectl(&["patch", "vm", "web", "--type=merge", "-p", &patch])?.success().map(drop)
    };
    let starts = || -> Result<()> {
        first.nuee(&["vm", "stop", "web"])?.success()?;
        first.eventually("it is off", || Ok(field(first, &["vm", "web"], ".status.phase")? == "Stopped"))?;
        first.nuee(&["vm", "start", "web"])?.success()?;
        first.kubectl(&["wait", "--for=condition=Ready", "vm/web", BOOT])?.success().map(drop)
    };
    patch("{\"boot\":\"Uefi\"}")?;
    starts()?;
    lab.guest_says(REMEMBER)?;
    is_kept(&lab, "kept by the same")?;

    // What it says counts from its next start on.
    patch("{\"boot\":\"Bios\"}")?;
    first.nuee(&["vm", "migrate", "web", "--to", "n2"])?.success()?;
    is_kept(&lab, "kept by the same")?;
    first.nuee(&["vm", "migrate", "web", "--to", "n1", "--post-copy"])?.success()?;
    is_kept(&lab, "kept by the same")?;
    first.nuee(&["vm", "suspend", "web"])?.success()?;
    first.eventually("it sleeps", || Ok(field(first, &["vm", "web"], ".status.phase")? == "Suspended"))?;
    first.nuee(&["vm", "start", "web"])?.success()?;
    is_kept(&lab, "kept by the same")?;

    patch("{\"boot\":\"Uefi\"}")?;
    starts()?;
    is_kept(&lab, "kept")?;
    // A new disk begins with nothing remembered.
    first.nuee(&["vm", "rebuild", "web"])?.success()?;
    first.eventually("it is rebuilt", || {
        let told = field(first, &["vm", "web"], ".status.observedRebuild")?;
        Ok(told == "1" && field(first, &["vm", "web"], ".status.phase")? == "Running")
    })?;
    first.kubectl(&["wait", "--for=condition=Ready", "vm/web", BOOT])?.success()?;
    is_kept(&lab, "")?;
    lab.pool.finish()
}
