//! What befalls machines: a daemon that is away while a guest boots, and a disk that is full. One guest serves all checks.

use anyhow::{Result, ensure};
use testkit::Nuee;

use crate::virtual_machine::Lab;

/// Size of the disk. Units: MiB.
const DISK_MIB: u32 = 160;

#[test]
fn a_guest_outlives_an_absent_daemon_and_a_full_disk() -> Result<()> {
    let lab = Lab::new()?;
    let nuee = &lab.nuee;
    move_disks(nuee, DISK_MIB)?;
    nuee.nuee(&["volume", "create", "data", "--size", "64Mi"])?.success()?;
    lab.machine("web", "image: tiny, cpus: 1, memory: 128Mi, keyPairs: [me], disks: [{volume: data}]")?;
    is_asked_again(&lab)?;
    fills(&lab)?;

    nuee.kubectl(&["delete", "vm,volumes,snapshots,backups,diskimages", "--all", "--timeout=60s"])?.success()?;
    nuee.eventually("no layer is left", || Ok(layers(nuee)?.is_empty()))?;
    nuee.eventually("no copy is left", || Ok(nuee.run("ls", &[&place(nuee, "exports")])?.text().is_empty()))?;
    for directory in ["exports", "disks"] {
        nuee.run("umount", &[&place(nuee, directory)])?.success()?;
    }
    lab.nuee.finish()
}

/// A place in the data directory.
pub fn place(nuee: &Nuee, name: &str) -> String {
    nuee.data().join(name).display().to_string()
}

/// Layers, by the files that hold them, as the daemon sees them.
fn layers(nuee: &Nuee) -> Result<Vec<String>> {
    let found = nuee.run("find", &[&place(nuee, "disks/layers"), "-type", "f"])?.success()?;
    Ok(found.stdout.lines().filter(|line| !line.ends_with(".json")).map(str::to_owned).collect())
}

/// Puts what guests write to on a small disk of its own, of so many MiB.
pub fn move_disks(nuee: &Nuee, mib: u32) -> Result<()> {
    nuee.kill_daemon()?;
    let (disks, exports, aside) = (place(nuee, "disks"), place(nuee, "exports"), place(nuee, "aside"));
    std::fs::rename(&disks, &aside)?;
    std::fs::create_dir_all(&disks)?;
    std::fs::create_dir_all(&exports)?;
    let size = format!("size={mib}m");
    nuee.run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &disks])?.success()?;
    nuee.run("cp", &["-a", &format!("{aside}/."), &disks])?.success()?;
    let within = format!("{disks}/exports");
    nuee.run("mkdir", &[&within])?.success()?;
    nuee.run("mount", &["--bind", &within, &exports])?.success()?;
    std::fs::remove_dir_all(&aside)?;
    nuee.up()
}

/// The daemon dies while the guest boots: there is nobody to ask for an address or a key when it comes to that. It asks again.
fn is_asked_again(lab: &Lab) -> Result<()> {
    let nuee = &lab.nuee;
    nuee.eventually("its hypervisor runs", || {
        let pid = lab.get("web", ".status.pid")?;
        Ok(!pid.is_empty() && pid != "0")
    })?;
    let uid = lab.get("web", ".metadata.uid")?;
    nuee.kill_daemon()?;
    let console = nuee.data().join("guests").join(uid).join("console.log");
    nuee.eventually("the guest has booted without it", || {
        Ok(std::fs::read_to_string(&console).unwrap_or_default().contains("nuee test guest ready: guest"))
    })?;
    nuee.up()?;
    lab.ready("web")?;
    let address = lab.get("web", ".status.addresses[0].ip")?;
    nuee.eventually("it has its key and its name", || Ok(lab.try_ssh(&address, "22", "hostname")?.text() == "web"))
}

fn fills(lab: &Lab) -> Result<()> {
    let nuee = &lab.nuee;
    let address = lab.get("web", ".status.addresses[0].ip")?;
    lab.ssh(&address, "mke2fs -q /dev/vdb && mkdir -p /srv && mount /dev/vdb /srv && echo kept > /srv/file && sync")?;
    let before = layers(nuee)?.len();
    let filler = place(nuee, "disks/filler");
    nuee.run("dd", &["if=/dev/zero", &format!("of={filler}"), "bs=64k"])?.failure(1, "No space left")?;
    let line = "(dd if=/dev/urandom of=/srv/big bs=1M count=24 && sync && md5sum < /srv/big > /srv/sum && sync && touch /run/done) >/dev/null 2>&1 &";
    lab.ssh(&address, line)?;

    // The guest stands still, and says so.
    let ready = ".status.conditions[?(@.type==\"Ready\")]";
    nuee.eventually("the machine says that it waits", || Ok(lab.get("web", &format!("{ready}.reason"))? == "NoSpace"))?;
    ensure!(lab.get("web", &format!("{ready}.message"))?.contains("no space on the machine"));
    // A new daemon knows it too.
    nuee.kill_daemon()?;
    nuee.up()?;
    nuee.eventually("the machine says so still", || Ok(lab.get("web", &format!("{ready}.status"))? == "False"))?;

    // Whatever is to be made now is not there, says why, and leaves nothing.
    lab.machine("other", "image: tiny, cpus: 1, memory: 64Mi")?;
    nuee.eventually("another machine says why it does not start", || {
        Ok(lab.get("other", ".status.message")?.contains("No space left on device"))
    })?;
    ensure!(lab.get("other", &format!("{ready}.status"))? == "False");
    let objects = "apiVersion: nuee.dev/v1\nkind: Snapshot\nmetadata: {name: s}\nspec: {virtualMachine: web}\n---\n\
        apiVersion: nuee.dev/v1\nkind: Backup\nmetadata: {name: b}\nspec: {virtualMachine: web}\n---\n\
        apiVersion: nuee.dev/v1\nkind: Volume\nmetadata: {name: v}\nspec: {mode: Block, size: 16Mi}\n";
    nuee.apply(objects)?.success()?;
    let field = |object: &str, path: &str| -> Result<String> {
        let asked = ["get", object, "-o", &format!("jsonpath={{.status.{path}}}")];
        Ok(nuee.kubectl(&asked)?.success()?.text().to_owned())
    };
    for object in ["snapshot/s", "backup/b", "volume/v"] {
        nuee.eventually(&format!("{object} says why it is not there"), || {
            Ok(field(object, "message")?.contains("No space left on device"))
        })?;
        ensure!(field(object, "phase")? != "Ready", "{object} is half made, and said to be ready");
    }
    ensure!(field("snapshot/s", "readyToUse")? != "true");
    let resize = "{\"spec\":{\"size\":\"96Mi\"}}";
    nuee.kubectl(&["patch", "volume", "data", "--type=merge", "-p", resize])?.success()?;
    nuee.nuee(&["vm", "save", "web", "half"])?.failure(1, "No space left on device")?;
    ensure!(layers(nuee)?.len() == before, "{:?}", layers(nuee)?);
    // What is not wanted any more goes, though nothing can be written.
    nuee.kubectl(&["delete", "vm/other", "backup/b", "--timeout=60s"])?.success()?;

    // There is room again: everything goes on by itself.
    nuee.run("rm", &[&filler])?.success()?;
    nuee.eventually("the machine goes on", || Ok(lab.get("web", &format!("{ready}.status"))? == "True"))?;
    nuee.eventually("what the guest wrote is written", || {
        Ok(lab.try_ssh(&address, "22", "test -e /run/done")?.status == 0)
    })?;
    lab.ssh(&address, "umount /srv && echo 3 > /proc/sys/vm/drop_caches && mount /dev/vdb /srv")?;
    ensure!(lab.ssh(&address, "cat /srv/file")? == "kept");
    lab.ssh(&address, "md5sum < /srv/big | cmp - /srv/sum")?;
    for object in ["snapshot/s", "volume/v"] {
        nuee.eventually(&format!("{object} is made after all"), || Ok(field(object, "phase")? == "Ready"))?;
    }
    nuee.eventually("the volume has grown", || Ok(field("volume/data", "sizeBytes")? == (96 << 20).to_string()))?;
    nuee.eventually("the guest sees it", || {
        Ok(lab.ssh(&address, "lsblk -bdno SIZE /dev/vdb")?.trim() == (96 << 20).to_string())
    })
}

#[test]
fn what_a_guest_does_not_let_go_of_is_told_once_and_a_volume_is_free_when_it_is_off() -> Result<()> {
    let lab = Lab::new()?;
    let nuee = &lab.nuee;
    // Without ACPI it does not hear that a device is to go.
    let deaf = "{\"spec\":{\"commandLine\":\"console=ttyS0 quiet panic=1 no_timer_check acpi=off\"}}";
    nuee.kubectl(&["patch", "diskimage", "tiny", "--type=merge", "-p", deaf])?.success()?;
    nuee.nuee(&["volume", "create", "data", "--size", "16Mi"])?.success()?;
    let side = "apiVersion: nuee.dev/v1\nkind: Network\nmetadata: {name: side}\nspec: {name: side, driver: bridge}\n";
    nuee.apply(side)?.success()?;
    let with =
        "image: tiny, memory: 96Mi, stopTimeoutSeconds: 1, disks: [{volume: data}], interfaces: [{}, {network: side}]";
    lab.machine("deaf", with)?;
    lab.ready("deaf")?;
    let less = "{\"spec\":{\"disks\":[],\"interfaces\":[{}]}}";
    nuee.kubectl(&["patch", "vm", "deaf", "--type=merge", "-p", less])?.success()?;
    let condition = |kind: &str| lab.get("deaf", &format!(".status.conditions[?(@.type==\"{kind}\")].message"));
    for (kind, what) in [("DisksAttached", "volume data"), ("InterfacesAttached", "the interface on side")] {
        let told = format!("the guest does not let go of {what}; it is asked again");
        nuee.eventually(&told, || Ok(condition(kind)? == told))?;
    }
    nuee.eventually("it is told of", || Ok(events(nuee)?.len() >= 2))?;
    nuee.nuee(&["vm", "stop", "deaf"])?.success()?;
    nuee.eventually("the volume is free", || {
        let user = nuee.kubectl(&["get", "volume", "data", "-o", "jsonpath={.status.attachedTo.name}"])?.success()?;
        Ok(user.text().is_empty())
    })?;
    assert_eq!(events(nuee)?, ["1", "1"]);
    nuee.kubectl(&["delete", "vm,volumes,diskimages", "--all", "--timeout=60s"])?.success()?;
    lab.nuee.finish()
}

/// How often each thing was told that a machine does not have as it is wished.
fn events(nuee: &Nuee) -> Result<Vec<String>> {
    let told =
        nuee.kubectl(&["get", "events", "--field-selector=reason=CannotAttach", "-o", "jsonpath={.items[*].count}"])?;
    Ok(told.success()?.text().split_whitespace().map(str::to_owned).collect())
}
