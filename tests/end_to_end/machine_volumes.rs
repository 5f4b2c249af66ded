//! Disks of virtual machines as objects: volumes that come, grow and go while the guest runs, snapshots, and what is made from them.
//! One guest serves all checks, since each costs a boot.

use anyhow::{Context, Result};
use testkit::Nuee;

use crate::virtual_machine::Lab;

struct Disks {
    lab: Lab,
    address: String,
}

impl Disks {
    /// A machine `db` that has the volume `data` from its first start.
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let text = "apiVersion: nuee.dev/v1\nkind: VirtualMachine\nmetadata: {name: db}\n\
            spec: {image: tiny, cpus: 1, memory: 128Mi, keyPairs: [me], disks: [{volume: data}]}\n---\n\
            apiVersion: nuee.dev/v1\nkind: Volume\nmetadata: {name: data}\nspec: {mode: Block, size: 64Mi}\n";
        lab.nuee.apply(text)?.success()?;
        lab.ready("db")?;
        let address = lab.get("db", ".status.addresses[0].ip")?;
        Ok(Self { lab, address })
    }

    fn ssh(&self, line: &str) -> Result<String> {
        self.lab.ssh(&self.address, line)
    }

    /// The guest's device of a volume, by its serial number, from which udev makes `/dev/disk/by-id`.
    fn device(&self, serial: &str) -> Result<String> {
        self.ssh(&format!(
            "for d in /sys/block/vd*; do if [ \"$(cat $d/serial)\" = {serial} ]; then echo /dev/${{d##*/}}; fi; done"
        ))
    }

    /// The same, once the guest has found it.
    fn found(&self, serial: &str) -> Result<String> {
        let mut device = String::new();
        self.lab.nuee.eventually(&format!("the guest finds {serial}"), || {
            device = self.device(serial)?;
            Ok(!device.is_empty())
        })?;
        Ok(device)
    }

    fn nuee(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.lab.nuee.nuee(arguments)?.success()?.text().to_owned())
    }

    fn field(&self, object: &str, path: &str) -> Result<String> {
        let asked = ["get", object, "-o", &format!("jsonpath={{{path}}}")];
        Ok(self.lab.nuee.kubectl(&asked)?.success()?.text().to_owned())
    }

    fn volume(&self, name: &str, spec: &str) -> Result<testkit::Output> {
        let text = format!("apiVersion: nuee.dev/v1\nkind: Volume\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n");
        self.lab.nuee.apply(&text)
    }
}

#[test]
fn disks_of_a_machine_are_objects() -> Result<()> {
    let disks = Disks::new()?;
    come_and_go(&disks)?;
    outlive_everything(&disks)?;
    are_kept_and_cloned(&disks)?;
    are_not_torn(&disks)?;
    are_no_directories(&disks)?;
    are_carried_away(&disks)?;

    // Deleted, nothing of them is left.
    let nuee = &disks.lab.nuee;
    nuee.kubectl(&["delete", "vm", "--all", "--timeout=60s"])?.success()?;
    nuee.kubectl(&["delete", "volumes", "--all", "--timeout=60s"])?.success()?;
    nuee.kubectl(&["delete", "snapshots,diskimages", "--all", "--timeout=60s"])?.success()?;
    let layers = nuee.data().join("disks/layers");
    nuee.eventually("no layer is left", || Ok(std::fs::read_dir(&layers)?.next().is_none()))?;
    disks.lab.nuee.finish()
}

fn come_and_go(disks: &Disks) -> Result<()> {
    let nuee = &disks.lab.nuee;
    nuee.kubectl(&["wait", "--for=condition=DisksAttached", "vm/db", "--timeout=60s"])?.success()?;
    let device = disks.found("data")?;
    assert!(device.starts_with("/dev/vd"), "{device}");
    disks.ssh(&format!(
        "mke2fs -q {device} && mkdir -p /srv && mount {device} /srv && echo first > /srv/file && sync"
    ))?;
    assert_eq!(disks.field("volume/data", ".status.attachedTo.virtualMachine")?, "db");

    // Another comes while it runs, with bounds.
    assert_eq!(disks.nuee(&["volume", "create", "logs", "--size", "32Mi", "--iops", "500"])?, "logs");
    disks.nuee(&["vm", "attach", "db", "logs"])?;
    disks.found("logs")?;
    nuee.nuee(&["vm", "attach", "db", "logs"])?.failure(1, "already")?;
    let listed = disks.nuee(&["volume", "ls"])?;
    assert!(listed.lines().any(|line| line.starts_with("logs") && line.contains(" db ")), "{listed}");

    // It grows while it is used, and never shrinks.
    nuee.kubectl(&["patch", "volume", "data", "--type=merge", "-p", "{\"spec\":{\"size\":\"96Mi\"}}"])?.success()?;
    nuee.eventually("the guest sees the new size", || {
        Ok(disks.ssh(&format!("lsblk -bdno SIZE {device}"))?.trim() == (96 << 20).to_string())
    })?;
    let shrink = ["patch", "volume", "data", "--type=merge", "-p", "{\"spec\":{\"size\":\"64Mi\"}}"];
    nuee.kubectl(&shrink)?.failure(1, "a disk never shrinks")?;
    assert_eq!(disks.ssh("cat /srv/file")?, "first");

    // It is one machine's at a time; the other says why it does not run.
    disks.lab.machine("other", "image: tiny, cpus: 1, memory: 64Mi, disks: [{volume: data}]")?;
    nuee.eventually("the second machine says why it does not run", || {
        Ok(disks.lab.get("other", ".status.message")?.contains("volume data is attached to virtual machine db"))
    })?;
    nuee.kubectl(&["delete", "vm", "other", "--timeout=60s"])?.success()?;
    assert_eq!(disks.field("volume/data", ".status.attachedTo.virtualMachine")?, "db");

    // Deleted while it is attached, it waits until it is detached.
    nuee.kubectl(&["delete", "volume", "logs", "--wait=false"])?.success()?;
    nuee.eventually("the volume says why it is there still", || {
        Ok(disks.field("volume/logs", ".status.message")?.contains("attached to virtual machine db"))
    })?;
    disks.nuee(&["vm", "detach", "db", "logs"])?;
    assert_eq!(disks.device("logs")?, "");
    nuee.kubectl(&["wait", "--for=delete", "volume/logs", "--timeout=60s"])?.success()?;

    // What makes no sense is refused, or said.
    for (spec, word) in [
        ("mode: Block", "spec.size"),
        ("size: 1Gi", "spec.size"),
        ("mode: Block, size: 17Ti", "spec.size"),
        ("mode: Block, size: 1Gi, limits: {iops: 0}", "spec.limits.iops"),
        ("mode: Block, source: {snapshot: a, volume: b}", "spec.source"),
    ] {
        disks.volume("x", spec)?.failure(1, word)?;
    }
    let twice = "{\"spec\":{\"disks\":[{\"volume\":\"data\"},{\"volume\":\"data\"}]}}";
    nuee.kubectl(&["patch", "vm", "db", "--type=merge", "-p", twice])?.failure(1, "Duplicate value")?;
    let missing = "{\"spec\":{\"disks\":[{\"volume\":\"data\"},{\"volume\":\"nowhere\"}]}}";
    nuee.kubectl(&["patch", "vm", "db", "--type=merge", "-p", missing])?.success()?;
    nuee.eventually("the machine says what is missing", || {
        let path = ".status.conditions[?(@.type==\"DisksAttached\")].message";
        Ok(disks.lab.get("db", path)?.contains("volume nowhere not found"))
    })?;
    disks.nuee(&["vm", "detach", "db", "nowhere"])?;
    nuee.kubectl(&["wait", "--for=condition=DisksAttached", "vm/db", "--timeout=60s"])?.success()?;
    let explained = nuee.kubectl(&["explain", "volume.spec.limits"])?.success()?.stdout;
    assert!(explained.contains("bytesPerSecond"), "{explained}");
    Ok(())
}

fn outlive_everything(disks: &Disks) -> Result<()> {
    let nuee = &disks.lab.nuee;
    disks.nuee(&["volume", "create", "later", "--size", "32Mi"])?;
    disks.nuee(&["vm", "attach", "db", "later"])?;
    // The sleeping guest finds what it had, though the one disk came while it ran.
    disks.ssh("echo second > /srv/file && sync; sleep 1000 >/dev/null 2>&1 & echo")?;
    disks.nuee(&["vm", "suspend", "db"])?;
    nuee.eventually("it sleeps", || Ok(disks.lab.get("db", ".status.phase")? == "Suspended"))?;
    disks.nuee(&["vm", "start", "db"])?;
    disks.lab.ready("db")?;
    assert_eq!(disks.ssh("pidof sleep >/dev/null && cat /srv/file")?, "second");
    disks.found("later")?;

    // The daemon dies: guest and disks go on, and are taken over.
    nuee.kill_daemon()?;
    disks.ssh("echo third > /srv/file && sync")?;
    nuee.up()?;
    disks.nuee(&["vm", "detach", "db", "later"])?;
    assert_eq!(disks.device("later")?, "");

    // The hypervisor dies: what was synced is there.
    let pid = disks.lab.get("db", ".status.pid")?;
    nuee.run("kill", &["-9", &pid])?.success()?;
    nuee.eventually("the guest is started again", || {
        let now = disks.lab.get("db", ".status.pid")?;
        Ok(now != pid && now != "0" && disks.lab.get("db", ".status.phase")? == "Running")
    })?;
    disks.lab.ready("db")?;
    let device = disks.found("data")?;
    assert_eq!(disks.ssh(&format!("mount {device} /srv && cat /srv/file"))?, "third");
    Ok(())
}

fn are_kept_and_cloned(disks: &Disks) -> Result<()> {
    let nuee = &disks.lab.nuee;
    disks.ssh("echo kept > /srv/file && sync")?;
    assert_eq!(disks.nuee(&["snapshot", "create", "monday", "--volume", "data"])?, "monday");
    assert_eq!(disks.field("snapshot/monday", ".status.readyToUse")?, "true");
    assert_eq!(disks.field("snapshot/monday", ".status.sizeBytes")?, (96 << 20).to_string());
    disks.ssh("echo changed > /srv/file && sync")?;
    disks.nuee(&["volume", "create", "again", "--from-snapshot", "monday"])?;
    disks.nuee(&["volume", "create", "twin", "--from-volume", "data"])?;
    nuee.nuee(&["volume", "create", "small", "--from-snapshot", "monday", "--size", "1Mi"])?
        .failure(1, "cannot hold")?;

    // What was made from it lives on without it.
    disks.nuee(&["snapshot", "rm", "monday"])?;
    for (name, text) in [("again", "kept"), ("twin", "changed")] {
        disks.nuee(&["vm", "attach", "db", name])?;
        let device = disks.found(name)?;
        let seen = disks.ssh(&format!("mkdir -p /{name} && mount {device} /{name} && cat /{name}/file"))?;
        assert_eq!(seen, text, "{name}");
    }
    // And they are apart.
    disks.ssh("echo other > /again/file && sync")?;
    assert_eq!(disks.ssh("cat /srv/file /twin/file")?, "changed\nchanged");
    disks.ssh("umount /again /twin")?;
    disks.nuee(&["vm", "detach", "db", "twin"])?;

    // All disks of a machine at one instant.
    assert_eq!(disks.nuee(&["vm", "snapshot", "db", "all"])?, "all");
    assert_eq!(disks.field("snapshot/all", ".status.disks[*].name")?, "root data again");
    nuee.nuee(&["volume", "create", "which", "--from-snapshot", "all"])?.failure(1, "name one of root, data, again")?;
    disks.nuee(&["volume", "create", "root-copy", "--from-snapshot", "all", "--disk", "root"])?;
    assert!(disks.nuee(&["snapshot", "ls"])?.contains("vm/db"));
    let table = nuee.kubectl(&["get", "snapshots"])?.success()?.stdout;
    assert!(table.contains("MACHINE") && table.contains("true"), "{table}");

    // Without a guest it goes the same way.
    disks.nuee(&["snapshot", "create", "still", "--volume", "twin"])?;
    disks.nuee(&["volume", "grow", "twin", "128Mi"])?;
    disks.nuee(&["vm", "attach", "db", "twin"])?;
    let device = disks.found("twin")?;
    assert_eq!(disks.ssh(&format!("lsblk -bdno SIZE {device}"))?.trim(), (128 << 20).to_string());
    assert_eq!(disks.ssh(&format!("mount {device} /twin && cat /twin/file"))?, "changed");
    Ok(())
}

/// The daemon dies in the middle of whatever is done with a disk; afterwards it is done, once.
fn are_not_torn(disks: &Disks) -> Result<()> {
    let nuee = &disks.lab.nuee;
    let killed = || nuee.kill_daemon().and_then(|()| nuee.up());
    disks.nuee(&["volume", "create", "torn", "--size", "32Mi", "--no-wait"])?;
    disks.nuee(&["vm", "attach", "db", "torn", "--no-wait"])?;
    killed()?;
    let device = disks.found("torn")?;
    disks
        .ssh(&format!("mke2fs -q {device} && mkdir -p /torn && mount {device} /torn && echo 0 > /torn/file && sync"))?;
    for round in ["0", "1", "2", "3"] {
        disks.ssh(&format!("echo {round} > /torn/file && sync"))?;
        let text = format!(
            "apiVersion: nuee.dev/v1\nkind: Snapshot\nmetadata: {{name: torn-{round}}}\nspec: {{volume: torn}}\n"
        );
        nuee.apply(&text)?.success()?;
        killed()?;
        let ready =
            ["wait", "--for=jsonpath={.status.readyToUse}=true", &format!("snapshot/torn-{round}"), "--timeout=60s"];
        nuee.kubectl(&ready)?.success()?;
    }
    disks.nuee(&["volume", "create", "mended", "--from-snapshot", "torn-1"])?;
    disks.nuee(&["vm", "attach", "db", "mended"])?;
    let copy = disks.found("mended")?;
    let seen = disks.ssh(&format!("mkdir -p /mended && mount {copy} /mended && cat /mended/file /torn/file"))?;
    assert_eq!(seen, "1\n3");
    disks.ssh("umount /mended /torn")?;
    for name in ["mended", "torn"] {
        disks.nuee(&["vm", "detach", "db", name, "--no-wait"])?;
        killed()?;
        nuee.eventually(&format!("{name} is given back"), || {
            Ok(disks.field(&format!("volume/{name}"), ".status.attachedTo")?.is_empty())
        })?;
        assert_eq!(disks.device(name)?, "");
    }
    Ok(())
}

/// Docker shows them, and keeps its hands off.
fn are_no_directories(disks: &Disks) -> Result<()> {
    let nuee = &disks.lab.nuee;
    let listed = nuee.docker(&["volume", "ls"])?.success()?.stdout;
    assert!(listed.lines().any(|line| line.starts_with("block") && line.ends_with("data")), "{listed}");
    nuee.docker(&["run", "--rm", "-v", "data:/x", "busybox:test", "true"])?
        .failure(125, "disk for virtual machines")?;
    nuee.docker(&["volume", "rm", "data"])?.failure(1, "in use")?;
    nuee.docker(&["volume", "prune", "-af"])?.success()?;
    nuee.kubectl(&["get", "volume", "root-copy"])?.success().context("an unused disk is pruned")?;
    Ok(())
}

/// A backup is one file, the next holds what changed, and another Nuée makes the machine of them.
fn are_carried_away(disks: &Disks) -> Result<()> {
    let nuee = &disks.lab.nuee;
    let file = |name: &str| nuee.files().join(name).display().to_string();
    let (full, changes, third) = (file("full.vm"), file("changes.vm"), file("third.vm"));
    let (damaged, fourth) = (file("damaged.vm"), file("fourth.vm"));
    disks.ssh("echo backed > /srv/file; dd if=/dev/urandom of=/srv/noise bs=64k count=16 2>/dev/null; sync")?;
    let said = disks.nuee(&["vm", "backup", "db", "-o", &full])?;
    assert!(said.contains("disk root") && said.contains("disk data") && said.contains("kernel"), "{said}");
    nuee.nuee(&["vm", "backup", "db", "-o", &full])?.failure(1, "never overwritten")?;
    nuee.nuee(&["vm", "backup", "nobody", "-o", &changes])?.failure(1, "nobody not found")?;
    assert!(disks.nuee(&["vm", "backup", "verify", &full])?.contains("is whole"));
    assert!(nuee.kubectl(&["get", "backups", "-o", "name"])?.success()?.text().is_empty());
    nuee.eventually("the copies are gone", || Ok(std::fs::read_dir(nuee.data().join("exports"))?.count() == 0))?;

    // What was written since, also zeros; the daemon dies in between.
    disks.ssh(
        "echo later > /srv/file; dd if=/dev/zero of=/srv/noise bs=64k seek=4 count=4 conv=notrunc 2>/dev/null; sync",
    )?;
    nuee.kill_daemon()?;
    nuee.up()?;
    let sum = disks.ssh("md5sum < /srv/noise")?;
    let said = disks.nuee(&["vm", "backup", "db", "-o", &changes, "--incremental-from", &full])?;
    assert!(said.lines().any(|line| line.contains("disk data") && line.contains("changes")), "{said}");
    let size = |path: &str| std::fs::metadata(path).map(|found| found.len());
    assert!(size(&changes)? < size(&full)? / 2, "{} of {}", size(&changes)?, size(&full)?);

    // A snapshot in between changes nothing about that.
    disks.nuee(&["snapshot", "create", "between", "--volume", "data"])?;
    disks.ssh("echo last > /srv/file; sync")?;
    let said = disks.nuee(&["vm", "backup", "db", "-o", &third, "--incremental-from", &changes])?;
    assert!(said.lines().any(|line| line.contains("disk data") && line.contains("changes")), "{said}");
    // Written after it, so not in it.
    disks.ssh("echo too late > /srv/file; sync")?;

    let other = disks.lab.of(Nuee::start(env!("CARGO_BIN_EXE_nuee"))?);
    other.nuee.nuee(&["vm", "restore", &third, "--base", &changes])?.failure(1, "is needed too")?;
    let mut bytes = std::fs::read(&full)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes)?;
    other.nuee.nuee(&["vm", "restore", &damaged])?.failure(1, "its digest does not match")?;
    other.nuee.nuee(&["vm", "backup", "verify", &damaged])?.failure(1, "its digest does not match")?;
    let made = other.nuee.kubectl(&["get", "vm,volumes,diskimages", "-o", "name"])?.success()?;
    assert!(made.text().is_empty(), "{}", made.text());
    other
        .nuee
        .nuee(&["vm", "restore", &third, "--base", &full, "--base", &changes, "--name", "db-again"])?
        .success()?;
    other.nuee.nuee(&["vm", "restore", &full, "--name", "db-again"])?.failure(1, "already")?;
    assert_eq!(std::fs::read_dir(other.nuee.data().join("uploads"))?.count(), 0, "nothing of the way is left");
    other.ready("db-again")?;
    let restored = Disks { address: other.get("db-again", ".status.addresses[0].ip")?, lab: other };
    let device = restored.found("db-again-data")?;
    let seen =
        restored.ssh(&format!("mkdir -p /srv && mount {device} /srv && cat /srv/file && md5sum < /srv/noise"))?;
    assert_eq!(seen, format!("last\n{sum}"));
    restored.lab.nuee.kubectl(&["delete", "vm", "--all", "--timeout=60s"])?.success()?;
    restored.lab.nuee.finish()?;

    // Nobody knows what was written when the guest has ended: the next backup is whole, and says so.
    disks.nuee(&["vm", "stop", "db"])?;
    nuee.eventually("it is off", || Ok(disks.lab.get("db", ".status.phase")? == "Stopped"))?;
    let said = disks.nuee(&["vm", "backup", "db", "-o", &fourth, "--incremental-from", &third])?;
    assert!(said.contains("data is whole: the machine does not run"), "{said}");
    assert!(disks.nuee(&["vm", "backup", "verify", &fourth])?.contains("disk data"));
    Ok(())
}
