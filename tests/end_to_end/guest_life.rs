//! What a machine can become: rebuilt, rescued, bounded, larger; and what it learns without a network. One guest serves all checks, since
//! each costs a boot.

use anyhow::{Context, Result};

use crate::virtual_machine::Lab;

/// The guest reads so much from its disk, past every cache. Units: KiB.
const READ_KIB: u32 = 4096;

struct Pet {
    lab: Lab,
    address: String,
}

impl Pet {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let text = "apiVersion: nuee.dev/v1\nkind: VirtualMachine\nmetadata: {name: pet}\n\
            spec: {image: tiny, cpus: 1, memory: 224Mi, memoryMaximum: 480Mi, keyPairs: [me], disks: [{volume: data}],\n\
            \x20 configDrive: NoCloud, userData: \"#!/bin/sh\\necho told > /told\\n\"}\n---\n\
            apiVersion: nuee.dev/v1\nkind: Volume\nmetadata: {name: data}\nspec: {mode: Block, size: 32Mi}\n";
        lab.nuee.apply(text)?.success()?;
        lab.ready("pet")?;
        let address = lab.get("pet", ".status.addresses[0].ip")?;
        Ok(Self { lab, address })
    }

    fn ssh(&self, line: &str) -> Result<String> {
        self.lab.ssh(&self.address, line)
    }

    fn vm(&self, arguments: &[&str]) -> Result<()> {
        let arguments: Vec<&str> = ["vm"].iter().chain(arguments).copied().collect();
        self.lab.nuee.nuee(&arguments)?.success().map(drop)
    }

    fn is(&self, path: &str, wanted: &str) -> Result<()> {
        self.lab.nuee.eventually(&format!("{path} is {wanted:?}"), || Ok(self.lab.get("pet", path)? == wanted))
    }

    /// It knows its name, and has run its user data.
    fn is_told(&self) -> Result<()> {
        self.lab
            .nuee
            .eventually("its user data has run", || Ok(self.ssh("hostname; cat /told 2>&1; true")? == "pet\ntold"))
    }

    /// Memory that the guest's kernel manages. Units: MiB.
    fn memory(&self) -> Result<u32> {
        let kib = self.ssh("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
        Ok(kib.trim().parse::<u32>().with_context(|| kib.clone())? / 1024)
    }

    /// How long the guest takes to read from its disk, by its own clock. Units: hundredths of a second.
    fn reads(&self) -> Result<u32> {
        let line = format!(
            "echo 3 > /proc/sys/vm/drop_caches; a=$(cut -d' ' -f1 /proc/uptime | tr -d .); \
             dd if=/dev/vda of=/dev/null bs=64k count={} skip=64 2>/dev/null; \
             b=$(cut -d' ' -f1 /proc/uptime | tr -d .); echo $((b-a))",
            READ_KIB / 64
        );
        let text = self.ssh(&line)?;
        text.trim().parse().with_context(|| text.clone())
    }

    fn patch(&self, spec: &str) -> Result<testkit::Output> {
        self.lab.nuee.kubectl(&["patch", "vm", "pet", "--type=merge", "-p", &format!("{{\"spec\":{spec}}}")])
    }
}

#[test]
fn a_machine_is_bounded_grown_rebuilt_and_rescued() -> Result<()> {
    let pet = Pet::new()?;
    learns_from_its_drive(&pet)?;
    holds_still(&pet)?;
    is_bounded(&pet)?;
    grows(&pet)?;
    is_rebuilt(&pet)?;
    is_rescued(&pet)?;
    let nuee = &pet.lab.nuee;
    nuee.kubectl(&["delete", "vm", "pet", "--timeout=60s"])?.success()?;
    nuee.kubectl(&["delete", "volumes,diskimages", "--all", "--timeout=60s"])?.success()?;
    let layers = nuee.data().join("disks/layers");
    nuee.eventually("no layer is left", || Ok(std::fs::read_dir(&layers)?.next().is_none()))?;
    pet.lab.nuee.finish()
}

/// The form of NoCloud; that of OpenStack is shown where there is nothing else to learn from, in `vm_networks.rs`.
fn learns_from_its_drive(pet: &Pet) -> Result<()> {
    pet.is_told()?;
    let uid = pet.lab.get("pet", ".metadata.uid")?;
    assert!(pet.ssh("cat /run/seed/meta-data")?.contains(&format!("instance-id: \"{uid}\"")));
    // Both forms of names, and root alone reads it.
    let drive = pet.ssh("sed -n 's/^\\([^ ]*\\) .run.seed .*/\\1/p' /proc/mounts")?;
    let look = format!(
        "ls -l /run/seed | sed 's/ .* / /' | tail -n +2; umount /run/seed; mount -t iso9660 -o ro,norock {drive} /run/seed; ls /run/seed"
    );
    let names = ["meta-data", "network-config", "user-data"];
    let modes = names.map(|name| format!("-r-------- {name}")).join("\n");
    assert_eq!(pet.ssh(&look)?, format!("{modes}\n{}", names.join("\n")));
    let look = format!("mount -t iso9660 -o ro {drive} /mnt; grep -c macaddress /mnt/network-config; umount /mnt");
    assert_eq!(pet.ssh(&look)?, "1");
    assert_eq!(pet.ssh(&format!("dd if=/dev/zero of={drive} bs=512 count=1 2>/dev/null && echo written; true"))?, "");
    Ok(())
}

/// What the guest has not written yet is in a snapshot all the same, since its agent has it written first.
fn holds_still(pet: &Pet) -> Result<()> {
    let nuee = &pet.lab.nuee;
    nuee.eventually("its agent runs", || Ok(!pet.ssh("cat /run/qemu-ga.pid 2>/dev/null; true")?.is_empty()))?;
    pet.ssh("echo unwritten > /unwritten")?;
    pet.vm(&["snapshot", "pet", "one"])?;
    let quiesced = nuee.kubectl(&["get", "snapshot", "one", "-o", "jsonpath={.status.quiesced}"])?.success()?;
    assert_eq!(quiesced.text(), "true");
    assert_eq!(pet.ssh("cat /run/freezes; echo goes on > /goes-on; cat /goes-on")?, "freeze\nthaw\ngoes on");
    nuee.nuee(&["volume", "create", "then", "--from-snapshot", "one", "--disk", "root"])?.success()?;
    pet.vm(&["attach", "pet", "then"])?;
    let find = "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = then ] && echo /dev/${d##*/}2; done; true";
    nuee.eventually("the guest finds the volume", || Ok(!pet.ssh(find)?.is_empty()))?;
    // Without its journal: what is there was there.
    assert_eq!(pet.ssh(&format!("mount -o ro,noload $({find}) /mnt; cat /mnt/unwritten; umount /mnt"))?, "unwritten");
    pet.vm(&["detach", "pet", "then"])?;
    let file = nuee.files().join("pet.vm").display().to_string();
    pet.vm(&["backup", "pet", "-o", &file])?;
    assert_eq!(pet.ssh("wc -l < /run/freezes")?.trim(), "4");

    // The daemon is killed while the guest holds still: the next one lets it go on.
    let run = nuee.data().join("run/guests").join(pet.lab.get("pet", ".metadata.uid")?);
    nuee.kill_daemon()?;
    let freeze = "import socket, os, sys; os.chdir(sys.argv[1]); s = socket.socket(socket.AF_UNIX); s.connect('agent.sock'); \
        open('still', 'w').close(); s.sendall(b'{\"execute\": \"guest-fsfreeze-freeze\"}\\n'); print(s.recv(100))";
    let frozen = nuee.run("python3", &["-c", freeze, &run.display().to_string()])?.success()?.text().to_owned();
    assert!(frozen.contains("return"), "{frozen}");
    nuee.up()?;
    assert_eq!(pet.ssh("echo thawed > /thawed; cat /thawed")?, "thawed");
    nuee.eventually("nothing says that it holds still", || Ok(!run.join("still").exists()))?;
    nuee.kubectl(&["delete", "snapshot", "one", "--timeout=60s"])?.success().map(drop)
}

fn is_bounded(pet: &Pet) -> Result<()> {
    pet.patch("{\"diskLimits\":{\"iops\":0}}")?.failure(1, "spec.diskLimits.iops")?;
    pet.patch("{\"diskLimits\":{\"bytesPerSecond\":\"1Mi\"}}")?.success()?;
    // Four seconds' worth, of which one or so may come at once. A machine under load only makes it longer.
    pet.lab.nuee.eventually("its disk is bounded", || Ok(pet.reads()? >= 250))?;
    // The bound outlives the daemon, and its end too.
    pet.lab.nuee.kill_daemon()?;
    pet.lab.nuee.up()?;
    assert!(pet.reads()? >= 250);
    pet.patch("{\"diskLimits\":null}")?.success()?;
    pet.lab.nuee.eventually("its disk is free again", || Ok(pet.reads()? < 250))
}

fn grows(pet: &Pet) -> Result<()> {
    let mib = |count: u64| (count << 20).to_string();
    let pid = pet.lab.get("pet", ".status.pid")?;
    let before = pet.memory()?;
    pet.patch("{\"memoryMaximum\":\"64Mi\"}")?.failure(1, "spec.memoryMaximum")?;
    pet.vm(&["resize", "pet", "--memory", "416Mi"])?;
    pet.is(".status.memoryBytes", &mib(416))?;
    let grown = pet.memory()?;
    assert!(grown >= before + 180, "{before} MiB, then {grown}");
    // It can be used, and is there still when the daemon is killed and when the guest has slept.
    let fill = "mount -t tmpfs -o size=200m big /mnt && dd if=/dev/zero of=/mnt/file bs=1M count=180 2>/dev/null; du -m /mnt/file | cut -f1";
    assert_eq!(pet.ssh(fill)?, "180");
    pet.lab.nuee.kill_daemon()?;
    pet.lab.nuee.up()?;
    pet.vm(&["suspend", "pet"])?;
    pet.is(".status.phase", "Suspended")?;
    // As a daemon leaves it that is killed before it has told: what lies on the disk says that it sleeps.
    pet.lab
        .nuee
        .kubectl(&[
            "patch",
            "vm/pet",
            "--subresource=status",
            "--type=merge",
            "-p",
            "{\"status\":{\"phase\":\"Stopping\"}}",
        ])?
        .success()?;
    pet.lab.nuee.kill_daemon()?;
    pet.lab.nuee.up()?;
    pet.is(".status.phase", "Suspended")?;
    // Killed while the guest wakes: wherever that was, it is woken anew or goes on.
    pet.vm(&["start", "pet"])?;
    pet.lab.nuee.kill_daemon()?;
    pet.lab.nuee.up()?;
    pet.is(".status.phase", "Running")?;
    assert_eq!(pet.ssh("du -m /mnt/file | cut -f1; umount /mnt")?, "180");
    assert!(pet.memory()? >= before + 180);
    // What it does not need any more it gives back.
    pet.vm(&["resize", "pet", "--memory", "224Mi"])?;
    pet.lab.nuee.eventually("it gave memory back", || Ok(pet.memory()? < grown - 100))?;
    assert_ne!(pid, "0");
    Ok(())
}

fn is_rebuilt(pet: &Pet) -> Result<()> {
    let nuee = &pet.lab.nuee;
    let find = "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = data ] && echo /dev/${d##*/}; done; true";
    pet.ssh(&format!(
        "d=$({find}); mke2fs -q $d; mount $d /mnt; echo volume > /mnt/file; umount /mnt; echo old > /old; sync"
    ))?;
    let place = pet.lab.get("pet", ".status.addresses[0]")?;
    pet.vm(&["save", "pet", "template"])?;
    pet.patch("{\"image\":\"template\"}")?.failure(1, "needs a new spec.rebuildRequest")?;

    // A new disk, and all else as it was.
    pet.vm(&["rebuild", "pet"])?;
    pet.is(".status.observedRebuild", "1")?;
    pet.lab.ready("pet")?;
    assert_eq!(pet.lab.get("pet", ".status.addresses[0]")?, place);
    pet.is_told()?;
    assert_eq!(pet.ssh("ls /old 2>/dev/null; true")?, "");
    assert_eq!(pet.ssh(&format!("mount $({find}) /mnt; cat /mnt/file; umount /mnt"))?, "volume");

    // It is done once, whoever is killed.
    pet.ssh("echo new > /new; sync")?;
    nuee.kill_daemon()?;
    nuee.up()?;
    pet.lab.ready("pet")?;
    assert_eq!(pet.ssh("cat /new")?, "new");

    // From another image, asked for while the daemon is away and while the machine is off.
    pet.vm(&["stop", "pet"])?;
    pet.is(".status.phase", "Stopped")?;
    pet.vm(&["rebuild", "pet", "--image", "template"])?;
    nuee.kill_daemon()?;
    nuee.up()?;
    pet.vm(&["start", "pet"])?;
    pet.is(".status.observedRebuild", "2")?;
    pet.lab.ready("pet")?;
    assert_eq!(pet.ssh("cat /old; ls /new 2>/dev/null; true")?, "old");
    assert_eq!(pet.lab.get("pet", ".spec.image")?, "template");

    // An image that is not there takes nothing away, and ends nothing.
    let pid = pet.lab.get("pet", ".status.pid")?;
    pet.vm(&["rebuild", "pet", "--image", "nowhere"])?;
    nuee.eventually("the machine says what is missing", || {
        Ok(pet.lab.get("pet", ".status.message")?.contains("disk image nowhere not found"))
    })?;
    assert_eq!(pet.lab.get("pet", ".status.observedRebuild")?, "2");
    assert_eq!(pet.lab.get("pet", ".status.pid")?, pid);
    pet.vm(&["rebuild", "pet", "--image", "tiny"])?;
    pet.is(".status.observedRebuild", "4")?;
    pet.lab.ready("pet")
}

fn is_rescued(pet: &Pet) -> Result<()> {
    let nuee = &pet.lab.nuee;
    pet.ssh("echo mine > /mine; sync")?;
    pet.vm(&["rescue", "pet", "--image", "template"])?;
    pet.is(".status.rescueImage", "template")?;
    pet.lab.ready("pet")?;
    // It runs from the rescue image, and its own disk is the second one.
    assert_eq!(pet.ssh("ls /mine 2>/dev/null; cat /old; cat /sys/block/vdb/serial")?, "old\nroot");
    assert_eq!(pet.ssh("mount /dev/vdb2 /mnt && cat /mnt/mine && echo mended > /mnt/mended; umount /mnt")?, "mine");
    nuee.nuee(&["vm", "rebuild", "pet"])?.failure(1, "rescued")?;
    nuee.nuee(&["vm", "rescue", "pet"])?.failure(1, "is being rescued")?;
    nuee.kill_daemon()?;
    nuee.up()?;
    pet.is(".status.rescueImage", "template")?;
    // A crash meanwhile leads back into the rescue, with what was done there.
    pet.ssh("echo kept > /kept; sync")?;
    let pid = pet.lab.get("pet", ".status.pid")?;
    nuee.run("kill", &["-9", &pid])?.success()?;
    nuee.eventually("it is started again", || {
        let now = pet.lab.get("pet", ".status.pid")?;
        Ok(now != pid && now != "0" && pet.lab.get("pet", ".status.phase")? == "Running")
    })?;
    assert_eq!(pet.ssh("cat /kept")?, "kept");

    pet.vm(&["unrescue", "pet"])?;
    pet.is(".status.rescueImage", "")?;
    pet.lab.ready("pet")?;
    assert_eq!(pet.ssh("cat /mine /mended; cat /sys/block/vda/serial")?, "mine\nmended\nroot");
    nuee.nuee(&["vm", "unrescue", "pet"])?.failure(1, "not being rescued")?;
    // The disk of the rescue is gone.
    let records = nuee.run("sh", &["-c", &format!("cat {}/disks/layers/*.json", nuee.data().display())])?;
    assert!(!records.success()?.stdout.contains("rescue-"));
    Ok(())
}
