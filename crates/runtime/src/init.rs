//! Process 1 of a container that asked for one (`docker run --init`): starts the program, passes signals on, collects
//! orphans, ends as the program ends. And process 1 of a pod, which only collects orphans.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys;

/// Runs as process 1; `args` are the program and its arguments, with or without a leading `--`.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // The loader that may have started us has given its own name to the process.
    let _ = nix::sys::prctl::set_name(c"docker-init");
    let mut args = args.into_iter().skip_while(|word| word == "--");
    let Some(program) = args.next() else { return ExitCode::from(127) };
    // Everything is taken by waiting for it.
    let signals = SigSet::all();
    if signals.thread_block().is_err() {
        return ExitCode::from(126);
    }
    // A group of its own, so that the terminal's Ctrl-C does not reach it twice.
    let mut command = Command::new(&program);
    command.args(args).process_group(0);
    sys::unblock_before_exec(&mut command);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
            return ExitCode::from(code);
        }
    };
    let Ok(pid) = i32::try_from(child.id()).map(Pid::from_raw) else { return ExitCode::from(126) };
    // Without a terminal there is no foreground to give.
    let _ = nix::unistd::tcsetpgrp(std::io::stdin(), pid);
    loop {
        if let Some(code) = collect(pid) {
            return ExitCode::from(code);
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD | Signal::SIGTTIN | Signal::SIGTTOU) | Err(_) => {}
            Ok(signal) => {
                // It may have ended; that is collected next.
                let _ = crate::processes::kill(child.id(), signal as i32);
            }
        }
    }
}

/// Runs as process 1 of a namespace that others join: collects orphans until it is killed.
pub fn pause() -> ExitCode {
    let _ = nix::sys::prctl::set_name(c"pause");
    // Nobody in the namespace can end it: what is blocked is taken by waiting, and ignored.
    let signals = SigSet::all();
    if signals.thread_block().is_err() {
        return ExitCode::from(126);
    }
    loop {
        // No process has the number 0.
        collect(Pid::from_raw(0));
        if signals.wait().is_err() {
            return ExitCode::from(126);
        }
    }
}

/// Collects whatever has ended; the exit code when the program is among it.
fn collect(program: Pid) -> Option<u8> {
    let mut code = None;
    loop {
        let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, status),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => continue,
        };
        if pid == program {
            code = Some(u8::try_from(status & 0xff).unwrap_or(u8::MAX));
        }
    }
}
