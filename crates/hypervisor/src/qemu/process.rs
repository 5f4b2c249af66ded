//! Finding a guest's process, and ending it. A process id alone may be somebody else's by now: its start time goes along.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{OFlag, openat};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use super::launch::PID_FILE;
use crate::error::{Error, Result};

/// Where the start time stands after the name. `Source:` proc_pid_stat(5), field 22.
const START_TIME_AFTER_NAME: usize = 19;
/// How long a killed process may take to go (its memory is freed first).
const KILL_PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(2);

/// A process, told apart from later ones with its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    started: u64,
}

fn start_time(pid: i32) -> io::Result<(char, u64)> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

fn parse(text: &str) -> io::Result<(char, u64)> {
    let after = text.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let state = after.chars().next().unwrap_or('?');
    let time = after.split(' ').nth(START_TIME_AFTER_NAME).and_then(|word| word.parse().ok());
    time.map(|time| (state, time)).ok_or_else(|| io::Error::other("no start time"))
}

/// What stands in the file about a process; `proc` is the open `/proc`, for who cannot see it by its path any more.
pub(super) fn record(proc: &fs::File, pid: i32) -> io::Result<String> {
    let path = format!("{pid}/stat");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut text = String::new();
    fs::File::from(openat(proc, path.as_str(), flags, Mode::empty())?).read_to_string(&mut text)?;
    Ok(format!("{pid} {}", parse(&text)?.1))
}

impl Process {
    /// The process that a run directory speaks of, when it is alive.
    pub(super) fn of(run_dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(run_dir.join(PID_FILE)).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let process = Self { pid: pid.parse().ok().filter(|pid| *pid > 1)?, started: started.parse().ok()? };
        process.is_alive().then_some(process)
    }

    /// Whether it is there still, and no zombie.
    pub(super) fn is_alive(self) -> bool {
        start_time(self.pid).is_ok_and(|(state, started)| started == self.started && !matches!(state, 'Z' | 'X'))
    }

    /// Ends it; returns when it is gone.
    pub(super) async fn kill(self) -> Result<()> {
        if self.is_alive() {
            match kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => return Err(Error::io("kill", format!("/proc/{}", self.pid))(error.into())),
            }
        }
        let deadline = tokio::time::Instant::now() + KILL_PATIENCE;
        while self.is_alive() {
            if tokio::time::Instant::now() > deadline {
                return Err(Error::Timeout("the end of a guest's process".into()));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_mistaken_for_another_with_its_id() {
        let directory = tempfile::tempdir().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        fs::write(directory.path().join(PID_FILE), record(&fs::File::open("/proc").unwrap(), own).unwrap()).unwrap();
        assert_eq!(Process::of(directory.path()).map(|process| process.pid), Some(own));
        fs::write(directory.path().join(PID_FILE), format!("{own} 1")).unwrap();
        assert_eq!(Process::of(directory.path()), None);
    }
}
