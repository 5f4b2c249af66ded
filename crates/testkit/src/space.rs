//! Network and mount namespaces of one test, held open by a process that does nothing.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// The namespaces; they end with the last process in them.
pub struct Space {
    holder: Child,
}

impl Space {
    /// New namespaces, with the loopback interface up.
    pub fn new() -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c"])
            .arg("ip link set lo up && echo up && exec cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare (util-linux)")?;
        let stdout = holder.stdout.take().context("unshare has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "up" {
            bail!("cannot make namespaces; tests must be run by root, with iproute2 and util-linux");
        }
        Ok(Self { holder })
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--target", &self.holder.id().to_string(), "--"]).arg(program);
        command
    }

    /// The process that holds them open.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // Closing its input ends it; waiting leaves no zombie.
        drop(self.holder.stdin.take());
        let _status = self.holder.wait();
    }
}
