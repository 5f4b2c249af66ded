//! Runs nft(8): the only place in this crate that starts a process. It gets its script, and leaves its complaints, in files in memory:
//! nothing that it does, or does not do, holds its caller up for longer than [`TIMEOUT`].

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Error, Result};

/// How much of nft's complaints to keep. Units: bytes.
const COMPLAINT_BYTES_MAX: usize = 2048;
/// How long one run may take. Rulesets of ten thousands of rules take seconds; all changes of the network wait meanwhile.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long one that is killed may take to end, before a thread is left to wait for it.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);
/// How often to look whether it has ended, where the kernel does not tell (before 5.3).
const LOOK: Duration = Duration::from_millis(5);

/// Applies a script as one transaction.
///
/// Errors: nft refuses it; or does not end in time, when nobody knows whether it was applied.
pub(crate) fn apply(script: &str) -> Result<()> {
    run(Command::new("nft").args(["-f", "-"]), script, TIMEOUT)
}

fn run(command: &mut Command, script: &str, timeout: Duration) -> Result<()> {
    let failed = |error: io::Error| Error::Nft(format!("cannot run nft (package nftables): {error}"));
    let mut input = in_memory(c"nft-script").map_err(failed)?;
    input.write_all(script.as_bytes()).and_then(|()| input.rewind()).map_err(failed)?;
    let mut complaints = in_memory(c"nft-complaints").map_err(failed)?;
    let errors = complaints.try_clone().map_err(failed)?;
    let mut child = command.stdin(input).stdout(Stdio::null()).stderr(errors).spawn().map_err(failed)?;
    match wait(&mut child, timeout) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(_)) => Err(Error::Nft(read_complaint(&mut complaints).map_err(failed)?)),
        Ok(None) => {
            end(child);
            Err(Error::Nft(format!("it did not end within {} s, and was killed", timeout.as_secs_f32())))
        }
        Err(error) => {
            end(child);
            Err(failed(error))
        }
    }
}

fn in_memory(name: &std::ffi::CStr) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?))
}

fn read_complaint(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(COMPLAINT_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits for its end; `None` when that does not come in time.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).ok();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        match &process {
            Some(process) => wait_until_readable(process, left)?,
            None => std::thread::sleep(left.min(LOOK)),
        }
    }
}

fn wait_until_readable(descriptor: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Kills it. One that is stuck in the kernel ends when that lets go of it, and is waited for by a thread of its own.
fn end(mut child: Child) {
    // It has ended by itself if this fails.
    let _ = child.kill();
    if !matches!(wait(&mut child, KILL_TIMEOUT), Ok(Some(_))) {
        std::thread::spawn(move || child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than a pipe holds.
    const LARGE: usize = 1 << 20;
    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    fn check(shell: &str, script: &str, timeout: Duration) -> std::result::Result<(), String> {
        run(Command::new("sh").args(["-c", shell]), script, timeout).map_err(|error| error.to_string())
    }

    #[test]
    fn one_that_freezes_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let shell = format!("echo $$ > {}; kill -STOP $$", file.display());
        // It may be killed before it has frozen, or has said who it is.
        let said = check(&shell, &"x".repeat(LARGE), Duration::from_millis(500)).unwrap_err();
        assert_eq!(said, "nft: it did not end within 0.5 s, and was killed");
        if let Ok(pid) = std::fs::read_to_string(&file).unwrap_or_default().trim().parse() {
            let pid = Pid::from_raw(pid).unwrap();
            assert_eq!(rustix::process::test_kill_process(pid), Err(Errno::SRCH));
        }
    }

    #[test]
    fn it_may_read_as_it_likes_and_complain_at_length() {
        assert_eq!(check("exit 0", &"x".repeat(LARGE), LONG), Ok(()), "it reads nothing");
        assert_eq!(check("[ $(wc -c) = 1048576 ]", &"x".repeat(LARGE), LONG), Ok(()));
        assert_eq!(check("[ $(wc -c < /dev/stdin) = 5 ]", "table", LONG), Ok(()), "as nft opens it");
        let said = check("tr '\\0' x < /dev/zero | head -c 200000 >&2; exit 1", "", LONG).unwrap_err();
        assert_eq!(said, format!("nft: {}", "x".repeat(COMPLAINT_BYTES_MAX)));
    }
}
