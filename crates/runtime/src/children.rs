//! Children of this process, by their numbers: a look at one, the wait for one that was killed, its burial.

use std::time::{Duration, Instant};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// Pause between two looks at one that was killed.
const PAUSE: Duration = Duration::from_millis(1);

/// How a child is, without reaping it. Errors: there is no such child.
pub(crate) fn look(pid: u32) -> nix::Result<WaitStatus> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(Pid::from_raw(pid.cast_signed())), flags)
}

/// Waits for a child that was killed, so that it says and holds nothing more; whether it has ended. It is not reaped.
pub(crate) fn wait_for_end(pid: u32, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while look(pid) == Ok(WaitStatus::StillAlive) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

/// Reaps a child that has ended, before anybody else does.
pub(crate) fn reap(pid: u32) {
    // An error means that it is gone already.
    let _ = waitpid(Pid::from_raw(pid.cast_signed()), Some(WaitPidFlag::WNOHANG));
}
