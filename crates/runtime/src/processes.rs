//! What `/proc` says about processes: identity, names, tables, network counters.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use node::{NetworkStatistics, ProcessTable};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub(crate) use crate::sys::kill;

/// Ticks per second of `/proc/<pid>/stat`.
const TICKS_PER_SECOND: u64 = 100;
/// Longest command line that is shown.
const COMMAND_MAX_BYTES: u64 = 4_096;

/// When a process was started, in ticks since boot: with the number, it identifies a process over the reuse of numbers.
/// `None` when there is none, or only its zombie.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    let fields = stat_fields(pid)?;
    (fields.first().map(String::as_str) != Some("Z")).then_some(())?;
    fields.get(19)?.parse().ok()
}

/// Waits until a process has ended, at most so long.
pub(crate) fn wait_for_end(pid: u32, patience: Duration) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let patience = Timespec::try_from(patience).ok();
    // Whether it ended or the time did, the caller looks again.
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], patience.as_ref());
}

/// The fields of `/proc/<pid>/stat` from the third (state) on; the second may hold spaces and parentheses.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Names of processes, by number; those that are gone are left out.
pub fn names(pids: &[u32]) -> BTreeMap<u32, String> {
    pids.iter()
        .filter_map(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some((*pid, name.trim_end().to_owned()))
        })
        .collect()
}

/// The columns of `ps -ef` for these processes.
pub fn table(pids: &[u32]) -> ProcessTable {
    let titles = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"].map(str::to_owned).to_vec();
    ProcessTable { titles, processes: pids.iter().filter_map(|pid| row(*pid)).collect() }
}

fn row(pid: u32) -> Option<Vec<String>> {
    let fields = stat_fields(pid)?;
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.to_owned();
    let seconds = (number(11)? + number(12)?) / TICKS_PER_SECOND;
    let age_s = uptime_s()?.saturating_sub(number(19)? / TICKS_PER_SECOND);
    let used_percent = (seconds * 100).checked_div(age_s).unwrap_or(0).min(99);
    let parent = number(1)?;
    Some(vec![
        user,
        pid.to_string(),
        parent.to_string(),
        used_percent.to_string(),
        start_text(age_s),
        terminal_text(number(4)?),
        format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60),
        command(pid),
    ])
}

/// Hour and minute (UTC) at which a process of this age was started.
fn start_text(age_s: u64) -> String {
    let started = crate::state::now_ns() / 1_000_000_000 - i64::try_from(age_s).unwrap_or(0);
    let second = started.rem_euclid(86_400);
    format!("{:02}:{:02}", second / 3_600, second / 60 % 60)
}

/// Name of a controlling terminal from its device number.
fn terminal_text(device: u64) -> String {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => "?".to_owned(),
    }
}

fn uptime_s() -> Option<u64> {
    std::fs::read_to_string("/proc/uptime").ok()?.split('.').next()?.parse().ok()
}

fn command(pid: u32) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(format!("/proc/{pid}/cmdline")) {
        // The process itself says where its command line ends (prctl(2), `PR_SET_MM_MAP`), as far as it has memory.
        let _ = file.take(COMMAND_MAX_BYTES).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ");
    if !text.is_empty() {
        return text;
    }
    names(&[pid]).remove(&pid).map_or_else(String::new, |name| format!("[{name}]"))
}

/// Counters of the interfaces that a process sees, without the loopback.
pub(crate) fn network_statistics(pid: u32) -> BTreeMap<String, NetworkStatistics> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    parse_network(&text)
}

fn parse_network(text: &str) -> BTreeMap<String, NetworkStatistics> {
    text.lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let counters: Vec<u64> = counters.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let figures = NetworkStatistics {
                received_bytes: *counters.first()?,
                received_packets: *counters.get(1)?,
                sent_bytes: *counters.get(8)?,
                sent_packets: *counters.get(9)?,
            };
            (name.trim() != "lo").then(|| (name.trim().to_owned(), figures))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        assert!(start_ticks(std::process::id()).is_some());
        assert_eq!(start_ticks(u32::MAX), None);
    }

    #[test]
    fn our_own_row_has_our_name() {
        let table = table(&[std::process::id()]);
        assert_eq!(table.titles.len(), table.processes[0].len());
        assert!(table.processes[0][7].contains("runtime"));
    }

    #[test]
    fn counters_of_interfaces_are_read() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 0 0 0 0 0 0 30 4 0 0 0 0 0 0\n";
        let found = parse_network(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found["eth0"].received_bytes, found["eth0"].sent_packets), (10, 4));
    }
}
