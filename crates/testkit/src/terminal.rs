//! A program on a terminal of its own, as a person has it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::pty::{Winsize, openpty};

use crate::PATIENCE;

/// How often the screen is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The program and the master's side of its terminal.
pub struct Terminal {
    child: Child,
    master: File,
    /// Keeps the terminal open, so that its size can be changed by its name.
    slave: OwnedFd,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts `command` as the leader of a session on a new terminal.
    pub fn start(command: &Command, rows: u16, columns: u16) -> Result<Self> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).context("cannot open a terminal")?;
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        session.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let end = || pair.slave.try_clone().map(Stdio::from);
        let child = session.stdin(end()?).stdout(end()?).stderr(end()?).spawn().context("cannot run setsid")?;
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (shown, mut reader) = (screen.clone(), File::from(pair.master.try_clone()?));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends when the last user of the slave has gone (EIO), which is no error here.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                shown.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        Ok(Self { child, master: File::from(pair.master), slave: pair.slave, screen })
    }

    /// Everything that was shown so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Types.
    pub fn send(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes()).context("cannot type")
    }

    /// Waits until this text was shown.
    pub fn until(&self, text: &str) -> Result<()> {
        let begun = Instant::now();
        while !self.screen().contains(text) {
            if begun.elapsed() > PATIENCE {
                bail!("{text:?} was never shown, but:\n{}", self.screen());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Changes the size, as a window manager does: the program is told by SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", self.slave.as_fd().as_raw_fd()))?;
        let status = Command::new("stty")
            .arg("-F")
            .arg(path)
            .args(["rows", &rows.to_string(), "cols", &columns.to_string()])
            .status()
            .context("cannot run stty")?;
        if status.success() { Ok(()) } else { bail!("stty failed") }
    }

    /// Waits for the end of the program; its exit code.
    pub fn wait(&mut self) -> Result<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            if begun.elapsed() > PATIENCE {
                bail!("it does not end; on the screen:\n{}", self.screen());
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that has ended already is no failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
