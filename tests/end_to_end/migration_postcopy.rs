//! Post-copy: a guest that changes its memory faster than it is carried goes on on the other machine before all of it is there; and when the
//! rest cannot come, it starts anew there from its disks, once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testkit::{Nuee, Output};

use crate::join::field;
use crate::migration::{Lab, Session, check_log};

/// Carried per second; the guest below writes several times as much, also where every instruction is translated.
const BANDWIDTH: &str = "8Mi";
/// With this it takes many seconds for the rest to come.
const SLOW: &str = "4Mi";
/// How long a guest may take until it runs in part: its disk and two passes over its memory come first, or a minute of them.
const IN_PART_TIMEOUT: Duration = Duration::from_secs(300);
/// What a machine notes when it runs a guest that it has not all of.
const RUNS_IN_PART: &str = "the rest of its memory is to come";
/// Writes over 64 MiB of memory until [`QUIET`], by one process for all of it; what it counts shows whether its memory came along.
pub const BUSY: &str = "mkdir -p /run/busy && mount -t tmpfs -o size=80m none /run/busy && dd if=/dev/urandom of=/run/busy/one bs=1M count=1 && \
    touch /run/busy/on && (i=0; while [ -e /run/busy/on ]; do cat $(seq 64 | sed s,.*,/run/busy/one,) 1<> /run/busy/all; \
    i=$((i+1)); echo $i > /run/busy/rounds; done) > /dev/null 2>&1 < /dev/null & \
    while [ ! -e /run/busy/rounds ]; do sleep 1; done";

/// Ends [`BUSY`], and leaves nothing of it.
pub const QUIET: &str = "rm -f /run/busy/on; while grep -q ' /run/busy ' /proc/mounts; do umount /run/busy 2>/dev/null || sleep 1; done; rm -rf /run/busy";

pub fn migrate(lab: &Lab, name: &str, to: &str, bandwidth: &str) -> Result<()> {
    let text = format!(
        "apiVersion: nuee.dev/v1\nkind: Migration\nmetadata: {{name: {name}}}\nspec: {{virtualMachine: web, targetNode: {to}, \
         bandwidth: {bandwidth}, postCopy: true}}\n"
    );
    lab.first().apply(&text)?.success().map(drop)
}

/// Waits until a machine runs a guest that it has not all of, and looks often: it takes some seconds for all to be there.
fn runs_in_part(machine: &Nuee) -> Result<()> {
    let begun = Instant::now();
    while !std::fs::read_to_string(machine.data().join("nuee.log"))?.contains(RUNS_IN_PART) {
        ensure!(begun.elapsed() < IN_PART_TIMEOUT, "it never ran in part: {}", machine.log_end());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Effective capabilities of the guest's hypervisor, once its host tells of it.
fn capabilities(lab: &Lab) -> Result<String> {
    let mut found = String::new();
    lab.first().eventually("its host tells of its process", || {
        let pid = field(lab.first(), &["vm", "web"], ".status.pid")?;
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
        found = line.unwrap_or_default().trim().to_owned();
        Ok(!found.is_empty())
    })?;
    Ok(found.trim_start_matches('0').to_owned())
}

#[test]
fn a_guest_that_is_too_busy_moves_by_post_copy_and_starts_anew_when_the_rest_is_lost() -> Result<()> {
    let lab = Lab::new(&[])?;
    let (first, second) = (lab.first(), &lab.pool.machines[1]);
    lab.guest_says("rm -f /root/log; touch /run/same")?;
    lab.guest_says(BUSY)?;
    let mut session = Session::open(&lab, "/root/log")?;
    session.say_one()?;

    // Called off when it stands still with a part there, and the store decides: it goes on where it was.
    lab.hold_decisions()?;
    session.talk_during(|| {
        migrate(&lab, "called-off", "n2", BANDWIDTH)?;
        lab.reaches("called-off", "Handover")?;
        let cancel = ["patch", "migration", "called-off", "--type=merge", "-p", "{\"spec\":{\"cancel\":true}}"];
        first.kubectl(&cancel)?.success()?;
        lab.reaches("called-off", "Cancelled")?;
        lab.let_decide()?;
        first.eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))
    })?;
    assert_eq!(field(first, &["vm", "web"], ".spec.nodeName")?, "n1");

    // It would never be done otherwise.
    session.talk_during(|| {
        migrate(&lab, "there", "n2", BANDWIDTH)?;
        // Its phase may pass before anybody sees it.
        runs_in_part(second)?;
        lab.reaches("there", "Succeeded")
    })?;
    first.eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))?;
    assert_eq!(field(first, &["vm", "web"], ".spec.nodeName")?, "n2");
    check_log(&lab, &session)?;
    // The file that it counts in is empty for an instant.
    let rounds = || -> Result<u64> { Ok(lab.guest_says("cat /run/busy/rounds")?.trim().parse().unwrap_or(0)) };
    let before = rounds()?;
    first.eventually("what ran in it goes on", || Ok(rounds()? > before))?;
    // Where a right is needed to wait for memory, its hypervisor has that one alone.
    let needed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|text| text.trim() == "0");
    assert_eq!(capabilities(&lab)?, if needed { "80000" } else { "" });

    // The target's agent dies while it lacks a part.
    lose_the_rest(&lab, &mut session, ("n1", first))?;
    lab.pool.finish()
}

#[test]
fn when_the_agent_that_has_the_rest_dies_the_guest_starts_anew_on_the_target_alone() -> Result<()> {
    let lab = Lab::new(&[])?;
    lab.guest_says("rm -f /root/log; touch /run/same")?;
    lab.guest_says(BUSY)?;
    let mut session = Session::open(&lab, "/root/log")?;
    session.say_one()?;
    lose_the_rest(&lab, &mut session, ("n2", &lab.pool.machines[1]))?;
    lab.pool.finish()
}

/// Moves the guest, and kills the first machine's daemon, and with it the API, when the target runs it in part: the daemon of either the
/// target or the source.
fn lose_the_rest(lab: &Lab, session: &mut Session, (to, target): (&str, &Nuee)) -> Result<()> {
    let first = lab.first();
    session.talk_during(|| Ok(()))?;
    migrate(lab, "lost", to, SLOW)?;
    // Nothing that takes time between the two: the rest is on its way.
    runs_in_part(target)?;
    first.kill_daemon()?;
    first.up()?;
    lab.reaches("lost", "Failed")?;
    let said = field(first, &["migration", "lost"], ".status.message")?;
    ensure!(said.contains("anew from its disks"), "{said}");
    first.eventually("it counts as crashed", || Ok(field(first, &["vm", "web"], ".status.restartCount")? == "1"))?;
    assert_eq!(field(first, &["vm", "web"], ".spec.nodeName")?, to);
    first.eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))?;
    // It boots, which may take more than one round.
    let anew =
        || first.eventually("it has started anew", || Ok(Output::of(lab.ssh("[ ! -e /run/same ]"))?.status == 0));
    anew().or_else(|_| anew())?;
    check_log(lab, session)
}
