//! Faults that strike at random instants of whatever is done with a machine: the daemon or its hypervisor is killed, or its disk is full.
//! Afterwards there is one guest with all that it was told is written, what was asked for is done or said not to be, and nothing is left
//! over. `NUEE_FAULT_SEED` repeats a run, `NUEE_FAULT_ROUNDS` makes it longer.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::Census;

use crate::journal::{Journal, Mark, Random, rounds, spawn};
use crate::virtual_machine::Lab;
use crate::vm_faults::{move_disks, place};

/// How often something is done, in a test among others.
const ROUNDS_DEFAULT: usize = 3;
/// A fault strikes within this time. Units: milliseconds.
const FAULT_WITHIN_MS: u64 = 1500;
/// Size of the disk. Units: MiB.
const DISK_MIB: u32 = 320;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Snapshot,
    Revert,
    Attach,
    Grow,
    Suspend,
    Pause,
    Stop,
    Restart,
    Save,
    Backup,
    Neighbour,
}

const DEEDS: [Deed; 11] = [
    Deed::Snapshot,
    Deed::Revert,
    Deed::Attach,
    Deed::Grow,
    Deed::Suspend,
    Deed::Pause,
    Deed::Stop,
    Deed::Restart,
    Deed::Save,
    Deed::Backup,
    Deed::Neighbour,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Daemon,
    Hypervisor,
    Both,
    FullDisk,
}

/// The daemon is in the middle of more than the others.
const FAULTS: [Fault; 7] =
    [Fault::None, Fault::Daemon, Fault::Daemon, Fault::Daemon, Fault::Hypervisor, Fault::Both, Fault::FullDisk];

struct Storm {
    lab: Lab,
    uid: String,
    address: String,
    before: Census,
    journal: Journal,
    /// Size of the volume. Units: MiB.
    size_mib: u64,
    /// The second volume is attached.
    has_more: bool,
    restarts: i64,
    reverts: i64,
}

#[test]
fn faults_at_random_instants_lose_double_and_leak_nothing() -> Result<()> {
    let mut random = Random::seeded("NUEE_FAULT_SEED");
    let mut storm = Storm::new()?;
    for round in 0..rounds("NUEE_FAULT_ROUNDS", ROUNDS_DEFAULT) {
        let (deed, fault) = (random.choose(&DEEDS), random.choose(&FAULTS));
        let delay = Duration::from_millis(random.below(FAULT_WITHIN_MS));
        println!("round {round}: {deed:?}, {fault:?} after {delay:?}");
        let outcome = storm.round(round, deed, fault, delay).and_then(|()| storm.check());
        outcome.with_context(|| {
            let told = storm.lab.nuee.kubectl(&["get", "vm,volumes,snapshots", "-o", "yaml"]);
            format!(
                "{deed:?}, {fault:?} after {delay:?}\n{}\n{}",
                told.map_or_else(|error| error.to_string(), |told| told.stdout),
                storm.lab.nuee.log_end()
            )
        })?;
    }
    println!("{} entries acknowledged", storm.journal.count());
    ensure!(storm.journal.count() > 0, "nothing was written that could have been lost");
    storm.end()
}

/// What a deed needs to know of the time before.
struct Begun {
    round: usize,
    deed: Deed,
    mark: Mark,
}

impl Storm {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let nuee = &lab.nuee;
        move_disks(nuee, DISK_MIB)?;
        nuee.nuee(&["volume", "create", "data", "--size", "16Mi"])?.success()?;
        nuee.nuee(&["volume", "create", "more", "--size", "8Mi"])?.success()?;
        lab.machine(
            "web",
            "image: tiny, cpus: 1, memory: 128Mi, keyPairs: [me], stopTimeoutSeconds: 20, disks: [{volume: data}]",
        )?;
        lab.ready("web")?;
        let (uid, address) = (lab.get("web", ".metadata.uid")?, lab.get("web", ".status.addresses[0].ip")?);
        lab.ssh(&address, "true")?;
        let before = Census::take(nuee)?;
        let journal = Journal::default();
        Ok(Self { lab, uid, address, before, journal, size_mib: 16, has_more: false, restarts: 0, reverts: 0 })
    }

    fn round(&mut self, round: usize, deed: Deed, fault: Fault, delay: Duration) -> Result<()> {
        if deed == Deed::Revert {
            // Whatever is written from here on goes.
            self.lab.nuee.nuee(&["vm", "snapshot", "web", "back"])?.success()?;
        }
        let begun = Begun { round, deed, mark: self.journal.mark() };
        let manifest = self.wish(&begun);
        let mut session = spawn(self.lab.ssh_command(&self.address, "22", &Journal::writer("data")))?;
        let (pipes, heard) = (session.pipes()?, AtomicBool::new(false));
        let (lab, uid, journal) = (&self.lab, self.uid.as_str(), &mut self.journal);
        let struck = std::thread::scope(|scope| {
            let writing = scope.spawn(|| journal.write(pipes, &heard));
            let writes = || Ok(heard.load(Ordering::Relaxed) || writing.is_finished());
            let settled = lab
                .nuee
                .eventually("the guest writes", writes)
                .and_then(|()| {
                    // It may not be heard; it is said again afterwards.
                    let asking = scope.spawn(|| say(lab, &manifest));
                    std::thread::sleep(delay);
                    let struck = strike(lab, uid, fault);
                    let _answer = asking.join();
                    struck
                })
                .and_then(|()| lab.nuee.eventually("it is heard", || say(lab, &manifest)))
                .and_then(|()| settle(lab, uid, &begun, fault, self.size_mib, self.has_more));
            session.end();
            let written = writing.join().map_err(|_| anyhow::anyhow!("the journal panicked"))?;
            settled.and(written)
        });
        struck?;
        self.follow_up(&begun)
    }

    /// What is to be true, as objects; it can be said again.
    fn wish(&mut self, begun: &Begun) -> Vec<Vec<String>> {
        let round = begun.round;
        let patch = |object: &str, spec: String| {
            ["patch", object, "--type=merge", "-p", &format!("{{\"spec\":{spec}}}")].map(str::to_owned).to_vec()
        };
        let machine = |spec: String| vec![patch("vm/web", spec)];
        let object = |kind: &str, spec: String| {
            vec![vec![
                "apply".to_owned(),
                format!("apiVersion: nuee.dev/v1\nkind: {kind}\nmetadata: {{name: x{round}}}\nspec: {{{spec}}}\n"),
            ]]
        };
        match begun.deed {
            Deed::Snapshot => object("Snapshot", "virtualMachine: web".into()),
            Deed::Save => object("DiskImage", "source: {virtualMachine: web}".into()),
            Deed::Backup => object("Backup", "virtualMachine: web".into()),
            Deed::Neighbour => object("VirtualMachine", "image: tiny, cpus: 1, memory: 64Mi".into()),
            Deed::Revert => {
                self.reverts += 1;
                machine(format!("{{\"revertSnapshot\":\"back\",\"revertRequest\":{}}}", self.reverts))
            }
            Deed::Restart => {
                self.restarts += 1;
                machine(format!("{{\"restartRequest\":{}}}", self.restarts))
            }
            Deed::Attach => {
                self.has_more = !self.has_more;
                let more = if self.has_more { ",{\"volume\":\"more\"}" } else { "" };
                machine(format!("{{\"disks\":[{{\"volume\":\"data\"}}{more}]}}"))
            }
            Deed::Grow => {
                self.size_mib += 1;
                vec![patch("volume/data", format!("{{\"size\":\"{}Mi\"}}", self.size_mib))]
            }
            Deed::Suspend => machine("{\"desired\":\"Suspended\"}".into()),
            Deed::Pause => machine("{\"desired\":\"Paused\"}".into()),
            Deed::Stop => machine("{\"desired\":\"Stopped\"}".into()),
        }
    }

    /// Looks at what was made, and takes it away.
    fn follow_up(&mut self, begun: &Begun) -> Result<()> {
        let (nuee, name) = (&self.lab.nuee, format!("x{}", begun.round));
        match begun.deed {
            Deed::Revert => {
                self.journal.revert(&begun.mark);
                nuee.nuee(&["snapshot", "rm", "back"])?.success()?;
            }
            Deed::Snapshot => {
                nuee.nuee(&["volume", "create", "then", "--from-snapshot", &name, "--disk", "data"])?.success()?;
                nuee.nuee(&["vm", "attach", "web", "then"])?.success()?;
                let mut found = String::new();
                nuee.eventually("the guest finds what was kept", || {
                    found = self.lab.ssh(&self.address, &self.journal.reader("then"))?;
                    Ok(!found.is_empty() || begun.mark.is_in("").is_ok())
                })?;
                begun.mark.is_in(&found).context("in the snapshot")?;
                nuee.nuee(&["vm", "detach", "web", "then"])?.success()?;
                nuee.kubectl(&["delete", "volume/then", "--timeout=60s"])?.success()?;
                nuee.nuee(&["snapshot", "rm", &name])?.success()?;
            }
            Deed::Save => nuee.kubectl(&["delete", "diskimage", &name, "--timeout=60s"])?.success().map(drop)?,
            Deed::Backup => nuee.kubectl(&["delete", "backup", &name, "--timeout=60s"])?.success().map(drop)?,
            Deed::Neighbour => nuee.kubectl(&["delete", "vm", &name, "--timeout=60s"])?.success().map(drop)?,
            _ => {}
        }
        Ok(())
    }

    /// What must hold whenever nothing is going on.
    fn check(&self) -> Result<()> {
        let (lab, nuee) = (&self.lab, &self.lab.nuee);
        let mut why = String::new();
        nuee.eventually("there is one guest, and its status is true", || {
            let (pid, phase) = (lab.get("web", ".status.pid")?, lab.get("web", ".status.phase")?);
            let found = hypervisors(&self.uid);
            why = format!("{phase}, process {pid}; there are {found:?}");
            Ok(phase == "Running" && found.len() == 1 && found[0].to_string() == pid)
        })
        .with_context(|| why.clone())?;
        let found = lab.ssh(&self.address, &self.journal.reader("data"))?;
        self.journal.check(&found)?;
        let attached = nuee.kubectl(&[
            "get",
            "volumes",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name}={.status.attachedTo.uid} {end}",
        ])?;
        let attached = attached.success()?.text().to_owned();
        let more = if self.has_more { self.uid.as_str() } else { "" };
        ensure!(attached.trim() == format!("data={0} more={more}", self.uid), "{attached}");
        let mut left = Vec::new();
        nuee.eventually("nothing is left over", || {
            left = Census::take(nuee)?.beyond(&self.before);
            left.extend(self.strays()?);
            Ok(left.is_empty())
        })
        .with_context(|| format!("left over: {left:#?}"))
    }

    /// Files that belong to nothing.
    fn strays(&self) -> Result<Vec<String>> {
        let nuee = &self.lab.nuee;
        let uids =
            nuee.kubectl(&["get", "vm,volumes,snapshots,diskimages", "-o", "jsonpath={.items[*].metadata.uid}"])?;
        let uids: BTreeSet<String> = uids.success()?.text().split_whitespace().map(str::to_owned).collect();
        // On a disk that only the daemon's own mount namespace has.
        let read = |line: String| -> Result<String> { Ok(nuee.run("sh", &["-c", &line])?.success()?.stdout) };
        let mut strays = Vec::new();
        let layers = place(nuee, "disks/layers");
        let records = read(format!("for f in {layers}/*.json; do echo $(basename $f .json) $(cat $f); done"))?;
        let mut parents = BTreeSet::new();
        let mut known = Vec::new();
        for line in records.lines() {
            // One that goes meanwhile is listed and has no record.
            let Some((id, record)) = line.split_once(' ') else { continue };
            let record: serde_json::Value = serde_json::from_str(record)?;
            parents.extend(record["parent"].as_str().map(str::to_owned));
            known.push((id.to_owned(), record["owner"].as_str().map(str::to_owned)));
        }
        for (id, owner) in &known {
            match owner {
                Some(owner) if !uids.contains(owner) => strays.push(format!("layer {id} of {owner}")),
                None if !parents.contains(id) => strays.push(format!("layer {id} of nobody")),
                _ => {}
            }
        }
        let files = read(format!("ls {layers} | grep -v json$"))?;
        let named: BTreeSet<String> = known.iter().map(|(id, _)| format!("{id}.qcow2")).collect();
        strays.extend(files.lines().filter(|file| !named.contains(*file)).map(|file| format!("file {file}")));
        for (directory, expected) in [
            ("guests", self.uid.as_str()),
            ("run/guests", &self.uid),
            ("exports", ""),
            ("uploads", ""),
            ("fetched", ""),
        ] {
            let found = read(format!("ls {} 2>/dev/null | grep -v json$; true", place(nuee, directory)))?;
            strays.extend(found.lines().filter(|name| *name != expected).map(|name| format!("{directory}/{name}")));
        }
        let own = read(format!("ls {}", place(nuee, &format!("guests/{}", self.uid))))?;
        let is_odd = |name: &&str| {
            matches!(*name, "sleep" | "revert.json") || name.ends_with(".part") || name.ends_with(".waking")
        };
        let odd = own.lines().filter(is_odd);
        strays.extend(odd.map(|name| format!("guests/…/{name}")));
        Ok(strays)
    }

    fn end(self) -> Result<()> {
        let nuee = &self.lab.nuee;
        nuee.kubectl(&["delete", "vm,volumes,snapshots,diskimages", "--all", "--timeout=60s"])?.success()?;
        let layers = place(nuee, "disks/layers");
        nuee.eventually("no layer is left", || Ok(nuee.run("ls", &[&layers])?.text().is_empty()))?;
        ensure!(hypervisors(&self.uid).is_empty());
        for directory in ["exports", "disks"] {
            nuee.run("umount", &[&place(nuee, directory)])?.success()?;
        }
        self.lab.nuee.finish()
    }
}

/// Processes of the machine's hypervisor.
pub fn hypervisors(uid: &str) -> Vec<u32> {
    let found = testkit::processes(uid).into_iter();
    found
        .filter(|(_, line)| line.starts_with("qemu-system") || line.contains("/qemu-system"))
        .map(|(pid, _)| pid)
        .collect()
}

/// Says to the API what is wished; whether it was heard.
fn say(lab: &Lab, wishes: &[Vec<String>]) -> Result<bool> {
    for wish in wishes {
        let words: Vec<&str> = wish.iter().map(String::as_str).collect();
        let answer = match words.as_slice() {
            ["apply", manifest] => lab.nuee.apply(manifest)?,
            words => lab.nuee.kubectl(words)?,
        };
        if answer.status != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Strikes, and puts right what does not come right by itself.
fn strike(lab: &Lab, uid: &str, fault: Fault) -> Result<()> {
    let nuee = &lab.nuee;
    let hypervisor = || -> Result<()> {
        for pid in hypervisors(uid) {
            nuee.run("kill", &["-9", &pid.to_string()])?;
        }
        Ok(())
    };
    match fault {
        Fault::None => Ok(()),
        Fault::Daemon => nuee.kill_daemon().and_then(|()| nuee.up()),
        Fault::Hypervisor => hypervisor(),
        Fault::Both => nuee.kill_daemon().and_then(|()| hypervisor()).and_then(|()| nuee.up()),
        Fault::FullDisk => {
            let filler = place(nuee, "disks/filler");
            nuee.run("dd", &["if=/dev/zero", &format!("of={filler}"), "bs=64k"])?;
            std::thread::sleep(Duration::from_secs(2));
            nuee.run("rm", &[&filler])?.success().map(drop)
        }
    }
}

/// Waits until what was asked for is done, or said not to be, and has the machine run again.
fn settle(lab: &Lab, uid: &str, begun: &Begun, fault: Fault, size_mib: u64, has_more: bool) -> Result<()> {
    let (nuee, name) = (&lab.nuee, format!("x{}", begun.round));
    let field = |object: &str, path: &str| -> Result<String> {
        let asked = ["get", object, "-o", &format!("jsonpath={{{path}}}")];
        Ok(nuee.kubectl(&asked)?.success()?.text().to_owned())
    };
    let is = |object: &str, path: &str, wanted: &[&str]| {
        nuee.eventually(&format!("{path} of {object} is {wanted:?}"), || {
            Ok(wanted.contains(&field(object, path)?.as_str()))
        })
    };
    let made = |object: &str| match fault {
        Fault::None | Fault::Daemon => is(object, ".status.phase", &["Ready"]),
        // Said to be none, it is gone when its object is.
        _ => is(object, ".status.phase", &["Ready", "Failed"]),
    };
    match begun.deed {
        Deed::Snapshot => is(&format!("snapshot/{name}"), ".status.readyToUse", &["true"])?,
        Deed::Save => made(&format!("diskimage/{name}"))?,
        Deed::Backup => made(&format!("backup/{name}"))?,
        Deed::Neighbour => {}
        Deed::Grow => is("volume/data", ".status.sizeBytes", &[&(size_mib << 20).to_string()])?,
        Deed::Attach => is("volume/more", ".status.attachedTo.uid", &[if has_more { uid } else { "" }])?,
        Deed::Revert => is("vm/web", ".status.observedRevert", &[&field("vm/web", ".spec.revertRequest")?])?,
        Deed::Restart => is("vm/web", ".status.observedRestart", &[&field("vm/web", ".spec.restartRequest")?])?,
        Deed::Suspend => match fault {
            Fault::None => is("vm/web", ".status.phase", &["Suspended"])?,
            // One that was killed while its memory was written has none to wake with; one that has no room for it runs on, and so does
            // one whose hypervisor still writes for the last daemon.
            _ => is("vm/web", ".status.phase", &["Suspended", "Stopped", "Running"])?,
        },
        Deed::Pause => is("vm/web", ".status.phase", &["Paused"])?,
        Deed::Stop => {
            is("vm/web", ".status.phase", &["Stopped"])?;
            ensure!(hypervisors(uid).is_empty(), "it is said to be off, and runs");
        }
    }
    nuee.kubectl(&["patch", "vm/web", "--type=merge", "-p", "{\"spec\":{\"desired\":\"Running\"}}"])?.success()?;
    is("vm/web", ".status.phase", &["Running"])?;
    lab.ready("web")
}
