//! Faults that strike at random instants of a live migration, by pre-copy or by post-copy: either daemon or either hypervisor is killed, or
//! the cable is cut. Afterwards there is one guest, on the machine that its object names, with all that it was told is written, and nothing of
//! it on the other. What was decided stays so, whatever strikes: a guest that lacks a part of its memory then starts anew from its disks.
//! `NUEE_MIGRATION_FAULT_SEED` repeats a run, `NUEE_MIGRATION_FAULT_ROUNDS` makes it longer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest_faults::hypervisors;
use crate::join::{field, ready};
use crate::journal::{Journal, Random, rounds, spawn};
use crate::migration::{BOOT, Lab};
use crate::migration_postcopy::{BUSY, QUIET, migrate};

/// How often the guest is moved, in a test among others.
const ROUNDS_DEFAULT: usize = 3;
/// A fault strikes within this time, from when it is counted. Units: milliseconds.
const FAULT_WITHIN_MS: u64 = 6000;
/// The same, from the decision on.
const FAULT_AFTER_DECISION_MS: u64 = 3000;
/// Of so many moves one is by post-copy.
const WAYS: u64 = 2;
/// Carried per second.
const BANDWIDTH: &str = "16Mi";
/// The cable stays cut for so long at most. Units: milliseconds.
const CUT_MS: u64 = 3000;
/// How often a migration may be waited for, where a silent machine must first be given up.
const PATIENCE: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    FirstDaemon,
    SecondDaemon,
    BothDaemons,
    /// One of the hypervisors that are there.
    Hypervisor,
    Cable,
}

const FAULTS: [Fault; 7] = [
    Fault::None,
    Fault::FirstDaemon,
    Fault::SecondDaemon,
    Fault::BothDaemons,
    Fault::Hypervisor,
    Fault::Hypervisor,
    Fault::Cable,
];

/// A move, and what strikes it.
#[derive(Clone, Copy, Debug)]
struct Blow {
    fault: Fault,
    post_copy: bool,
    /// The delay is counted from the decision, not from the start.
    late: bool,
    delay: Duration,
    chance: u64,
}

impl Blow {
    fn random(random: &mut Random) -> Self {
        let post_copy = random.below(WAYS) == 0;
        let late = post_copy && random.below(2) == 0;
        let within = if late { FAULT_AFTER_DECISION_MS } else { FAULT_WITHIN_MS };
        let (fault, delay) = (random.choose(&FAULTS), Duration::from_millis(random.below(within)));
        Self { fault, post_copy, late, delay, chance: random.below(CUT_MS) }
    }
}

#[test]
fn faults_at_random_instants_of_a_migration_leave_one_guest() -> Result<()> {
    let mut random = Random::seeded("NUEE_MIGRATION_FAULT_SEED");
    let lab = Lab::new(&[("data", "16Mi")])?;
    lab.guest_says("true")?;
    let mut journal = Journal::default();
    for round in 0..rounds("NUEE_MIGRATION_FAULT_ROUNDS", ROUNDS_DEFAULT) {
        let blow = Blow::random(&mut random);
        println!("round {round}: {blow:?}");
        let outcome = move_it(&lab, &mut journal, round, blow).and_then(|decided| check(&lab, &journal, decided));
        outcome.with_context(|| {
            let told = lab.first().kubectl(&["get", "vm,volumes,migrations", "-o", "yaml"]);
            format!(
                "{blow:?}\n{}\n{}\nsecond: {}",
                told.map_or_else(|error| error.to_string(), |told| told.stdout),
                lab.first().log_end(),
                lab.pool.machines[1].log_end()
            )
        })?;
    }
    println!("restarted {} times", field(lab.first(), &["vm", "web"], ".status.restartCount")?);
    println!("{} entries acknowledged", journal.count());
    ensure!(journal.count() > 0, "nothing was written that could have been lost");
    lab.first().kubectl(&["delete", "vm", "web", "--timeout=60s"])?.success()?;
    lab.first().kubectl(&["delete", "volumes,diskimages", "--all", "--timeout=60s"])?.success()?;
    lab.first().eventually("no hypervisor is left", || Ok(lab.hypervisors() == 0))?;
    lab.pool.finish()
}

/// Moves the guest; to where it was decided that it goes, if that was seen before the fault.
fn move_it(lab: &Lab, journal: &mut Journal, round: usize, blow: Blow) -> Result<Option<&'static str>> {
    let first = lab.first();
    let target = if field(first, &["vm", "web"], ".spec.nodeName")? == "n1" { "n2" } else { "n1" };
    let name = format!("m{round}");
    if blow.post_copy {
        lab.guest_says(&format!("[ -e /run/busy/on ] || {{ {BUSY}; }}"))?;
    }
    let mut session = spawn(lab.ssh(&Journal::writer("data")))?;
    let (pipes, heard) = (session.pipes()?, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| journal.write(pipes, &heard));
        let moved = first
            .eventually("the guest writes", || Ok(heard.load(Ordering::Relaxed) || writing.is_finished()))
            .and_then(|()| match blow.post_copy {
                true => migrate(lab, &name, target, BANDWIDTH),
                false => lab.start_migration(&name, target, BANDWIDTH),
            })
            .and_then(|()| {
                let decided = if blow.late { is_decided(lab, &name, target)? } else { None };
                std::thread::sleep(blow.delay);
                strike(lab, blow)?;
                is_over(lab, &name)?;
                Ok(decided)
            });
        session.end();
        let written = writing.join().map_err(|_| anyhow::anyhow!("the journal panicked"))?;
        written.and(moved)
    })
}

/// Waits until a move is decided, or over without that.
fn is_decided(lab: &Lab, name: &str, target: &'static str) -> Result<Option<&'static str>> {
    let mut decided = None;
    let seen = || {
        lab.first().eventually("the move is decided, or over", || {
            let node = field(lab.first(), &["vm", "web"], ".spec.nodeName")?;
            decided = (node == target).then_some(target);
            Ok(decided.is_some() || matches!(lab.phase(name)?.as_str(), "Succeeded" | "Failed" | "Cancelled"))
        })
    };
    patiently(seen)?;
    Ok(decided)
}

fn strike(lab: &Lab, blow: Blow) -> Result<()> {
    let (first, second) = (lab.first(), &lab.pool.machines[1]);
    let chance = blow.chance;
    match blow.fault {
        Fault::None => Ok(()),
        Fault::FirstDaemon => first.kill_daemon().and_then(|()| first.up()),
        Fault::SecondDaemon => second.kill_daemon().and_then(|()| second.up()),
        Fault::BothDaemons => {
            second.kill_daemon()?;
            first.kill_daemon()?;
            first.up()?;
            second.up()
        }
        Fault::Hypervisor => {
            let found = hypervisors(&lab.uid);
            let index = usize::try_from(chance).unwrap_or(0) % found.len().max(1);
            let Some(pid) = found.get(index) else { return Ok(()) };
            first.run("kill", &["-9", &pid.to_string()]).map(drop)
        }
        Fault::Cable => {
            lab.pool.plug(2, false)?;
            std::thread::sleep(Duration::from_millis(chance));
            lab.pool.plug(2, true)
        }
    }
}

fn is_over(lab: &Lab, name: &str) -> Result<()> {
    patiently(|| {
        lab.first().eventually("the migration is over", || {
            Ok(matches!(lab.phase(name)?.as_str(), "Succeeded" | "Failed" | "Cancelled"))
        })
    })
}

/// Waits for longer than anything else takes.
fn patiently(mut wait: impl FnMut() -> Result<()>) -> Result<()> {
    for _ in 1..PATIENCE {
        if wait().is_ok() {
            return Ok(());
        }
    }
    wait()
}

fn check(lab: &Lab, journal: &Journal, decided: Option<&str>) -> Result<()> {
    let first = lab.first();
    ready(first, "node/n2")?;
    let mut why = String::new();
    first
        .eventually("there is one guest, and its status is true", || {
            let (pid, phase) =
                (field(first, &["vm", "web"], ".status.pid")?, field(first, &["vm", "web"], ".status.phase")?);
            let found = hypervisors(&lab.uid);
            why = format!("{phase}, process {pid}; there are {found:?}");
            Ok(phase == "Running" && found.len() == 1 && found[0].to_string() == pid)
        })
        .with_context(|| why.clone())?;
    // One whose hypervisor was killed boots anew.
    let waited = first.kubectl(&["wait", "--for=condition=Ready", "vm/web", BOOT])?;
    waited.success().with_context(|| why.clone())?;
    journal.check(&lab.guest_says(&journal.reader("data"))?)?;
    let node = field(first, &["vm", "web"], ".spec.nodeName")?;
    ensure!(decided.is_none_or(|decided| decided == node), "it is on {node}, and was to be on {decided:?}");
    lab.guest_says(QUIET)?;
    first.eventually("the volume is with its machine", || {
        Ok(field(first, &["volume", "data"], ".spec.nodeName")? == node
            && field(first, &["volume", "data"], ".status.movedTo")?.is_empty())
    })?;
    ensure!(field(first, &["volume", "data"], ".status.attachedTo.uid")? == lab.uid);
    let volume = field(first, &["volume", "data"], ".metadata.uid")?;
    for (index, machine) in lab.pool.machines.iter().enumerate() {
        let is_here = node == format!("n{}", index + 1);
        let mut left = String::new();
        machine
            .eventually("it is on one machine alone", || {
                let data = machine.data().display().to_string();
                let line = format!(
                    "ls -d {data}/run/guests/{0} {data}/guests/{0} 2>/dev/null; \
                     grep -l -e {0} -e {volume} {data}/disks/layers/*.json 2>/dev/null; true",
                    lab.uid
                );
                left = machine.run("sh", &["-c", &line])?.success()?.stdout;
                Ok(if is_here { left.lines().count() >= 4 } else { left.is_empty() })
            })
            .with_context(|| format!("machine n{}, of {node}: {left}", index + 1))?;
    }
    Ok(())
}
