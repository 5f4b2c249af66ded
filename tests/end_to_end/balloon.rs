//! Memory goes between guests: an idle one makes room for one that would not fit, and gets back what it needs.

use anyhow::{Context, Result, ensure};
use testkit::Nuee;

use crate::virtual_machine::Lab;

const MIB: i64 = 1 << 20;
/// What is left of the machine beside the guest and what asks for the rest of it. Units: MiB.
const LEFT: i64 = 40;

fn bytes(lab: &Lab, name: &str, path: &str) -> Result<i64> {
    let text = lab.get(name, path)?;
    Ok(if text.is_empty() { 0 } else { text.parse().with_context(|| format!("{path} of {name}: {text}"))? })
}

/// A pod that asks for so much memory and uses none of it.
fn asks(nuee: &Nuee, name: &str, mib: i64) -> Result<()> {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, \
         image: \"busybox:test\", command: [sleep, \"6000\"], resources: {{requests: {{memory: {mib}Mi}}}}}}]}}\n"
    );
    nuee.apply(&text)?.success().map(drop)
}

#[test]
fn an_idle_guest_makes_room_and_one_in_need_gets_memory() -> Result<()> {
    let lab = Lab::new()?;
    let nuee = &lab.nuee;
    lab.machine("idle", "image: tiny, memory: 320Mi, memoryMinimum: 64Mi, keyPairs: [me]")?;
    lab.ready("idle")?;
    let address = lab.get("idle", ".status.addresses[0].ip")?;
    nuee.eventually("the guest says what it uses", || Ok(bytes(&lab, "idle", ".status.memoryUsed")? > 0))?;

    // A pod that asks for all but a little and uses nothing.
    let allocatable =
        nuee.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].status.allocatable.memory}"])?.success()?;
    let all = api::quantity::whole(allocatable.text()).context("no allocatable memory")?;
    asks(nuee, "filler", all / MIB - 320 - LEFT)?;
    nuee.kubectl(&["wait", "--for=condition=Ready", "pod/filler", "--timeout=60s"])?.success()?;

    // One from which nothing may be taken does not come in by itself; the idle one makes room.
    lab.machine("late", "image: tiny, memory: 160Mi")?;
    lab.ready("late")?;
    let (left, used) = (bytes(&lab, "idle", ".status.memoryBytes")?, bytes(&lab, "idle", ".status.memoryUsed")?);
    ensure!(left <= (320 + LEFT - 160) * MIB, "it has {} MiB left", left / MIB);
    ensure!(left >= used + 32 * MIB, "it has {} MiB left and uses {}", left / MIB, used / MIB);
    // What the guest itself finds free is no more than that.
    let available: i64 = lab.ssh(&address, "sed -n 's/MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?.parse()?;
    ensure!(available * 1024 <= left, "the guest has {available} KiB available");

    // What no memory is left for does not come in, and takes none.
    asks(nuee, "too-much", 300)?;
    nuee.eventually("the third one is refused", || {
        let events = nuee.kubectl(&["get", "events", "--field-selector", "involvedObject.name=too-much"])?.success()?;
        Ok(events.stdout.contains("Insufficient memory"))
    })?;
    ensure!(bytes(&lab, "idle", ".status.memoryBytes")? == left, "memory was taken for what does not fit");

    // The idle one needs more than it was left with: nothing in it dies, and the pool gives it what it needs.
    let fill = "mount -t tmpfs -o size=100% none /mnt && dd if=/dev/zero of=/mnt/x bs=1M count=200 2>/dev/null && ls -l /mnt/x | wc -l";
    assert_eq!(lab.ssh(&address, &format!("mkdir -p /mnt; {fill}"))?, "1");
    nuee.eventually("it is given what it needs", || Ok(bytes(&lab, "idle", ".status.memoryBytes")? >= 300 * MIB))?;
    assert!(!lab.ssh(&address, "dmesg")?.contains("Out of memory"));

    for name in ["idle", "late"] {
        nuee.kubectl(&["delete", "vm", name, "--timeout=60s"])?.success()?;
    }
    nuee.kubectl(&["delete", "pod", "filler", "too-much", "--timeout=60s"])?.success()?;
    lab.nuee.finish()
}
