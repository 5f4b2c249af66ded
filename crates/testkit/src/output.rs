//! What a program said.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Output and exit code of a program that ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The program and its arguments.
    pub line: String,
    /// Exit code; -1 when a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Runs a command to its end.
    pub fn of(command: Command) -> Result<Self> {
        Self::fed(command, b"")
    }

    /// Runs a command to its end, with this as its standard input.
    pub fn fed(mut command: Command, input: &[u8]) -> Result<Self> {
        let line = format!("{command:?}");
        command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {line}"))?;
        let stdin = child.stdin.take();
        let input = input.to_owned();
        let feeder = std::thread::spawn(move || match stdin {
            // The program may end without reading everything; that is its business.
            Some(mut stdin) => stdin.write_all(&input).is_ok(),
            None => true,
        });
        let output = child.wait_with_output().with_context(|| format!("cannot wait for {line}"))?;
        if feeder.join().is_err() {
            bail!("the input of {line} could not be written");
        }
        Ok(Self {
            line,
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The output, when the program succeeded.
    pub fn success(self) -> Result<Self> {
        if self.status != 0 {
            bail!("{} failed ({})\nstdout: {}\nstderr: {}", self.line, self.status, self.stdout, self.stderr);
        }
        Ok(self)
    }

    /// The output, when the program failed with this code and this text in what it said.
    pub fn failure(self, status: i32, text: &str) -> Result<Self> {
        if self.status != status || !(self.stderr.contains(text) || self.stdout.contains(text)) {
            bail!(
                "{} should fail with {status} and say {text:?}, but: {}\nstdout: {}\nstderr: {}",
                self.line,
                self.status,
                self.stdout,
                self.stderr
            );
        }
        Ok(self)
    }

    /// Standard output without white space at its ends.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }
}
