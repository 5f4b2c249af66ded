//! Starts a whole Nuée in network and mount namespaces of its own, points real clients at it, and checks at the end that nothing
//! is left behind. Tests that use it run side by side.

mod census;
pub mod fuzzing;
mod images;
mod leftovers;
mod output;
mod pool;
mod space;
mod terminal;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub use census::{Census, command_lines, processes};
pub use output::Output;
pub use pool::Pool;
pub use space::Space;
pub use terminal::Terminal;

/// How long [`Nuee::eventually`] waits for what must become true.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// So many of a container's last lines are told of when it does not.
const LINES_TOLD: &str = "10";
/// How often it looks.
const LOOK: Duration = Duration::from_millis(50);

/// A Nuée of one test.
pub struct Nuee {
    space: Space,
    program: PathBuf,
    directory: tempfile::TempDir,
}

impl Nuee {
    /// Starts one with an empty data directory; returns when it is ready.
    pub fn start(program: &str) -> Result<Self> {
        let nuee = Self::prepare(program)?;
        nuee.up()?;
        Ok(nuee)
    }

    /// Makes the namespaces and the data directory, and starts nothing.
    pub fn prepare(program: &str) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("nuee-test-").tempdir().context("cannot make a data directory")?;
        Ok(Self { space: Space::new()?, program: program.into(), directory })
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A directory for the test's own files.
    pub fn files(&self) -> &Path {
        self.directory.path()
    }

    /// The namespaces.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Starts the daemon; returns when it is ready.
    pub fn up(&self) -> Result<()> {
        self.nuee(&["up", "--detach"])?.success().map(drop)
    }

    /// Runs `nuee` on this data directory.
    pub fn nuee(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.space.command(&self.program);
        command.args(arguments);
        match arguments.first() {
            Some(&("up" | "down" | "status" | "doctor" | "join" | "leave" | "token")) => {
                command.arg("--data-dir").arg(self.data());
            }
            // Not all of their words take the flag.
            Some(&("vm" | "image" | "volume" | "snapshot")) => {
                command.env("NUEE_DATA_DIR", self.data());
            }
            _ => {}
        }
        Output::of(command)
    }

    /// What `nuee status -o json` says.
    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.nuee(&["status", "-o", "json"])?.stdout)?)
    }

    /// The daemon's process.
    pub fn pid(&self) -> Result<i32> {
        let pid = self.status()?["pid"].as_i64().context("the daemon does not run")?;
        Ok(i32::try_from(pid)?)
    }

    /// Kills the daemon as a crash would, and waits until it is gone.
    pub fn kill_daemon(&self) -> Result<()> {
        let pid = self.pid()?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        self.eventually("the daemon is gone", || Ok(self.status()?["pid"].is_null()))
    }

    /// The real docker client, pointed here.
    pub fn docker(&self, arguments: &[&str]) -> Result<Output> {
        Output::of(self.docker_command(arguments))
    }

    /// The same, for tests that feed it or read it as it goes.
    pub fn docker_command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.space.command("docker");
        command.arg("--host").arg(format!("unix://{}", self.data().join("docker.sock").display()));
        command.env("DOCKER_CONFIG", self.directory.path().join("docker-config"));
        command.env("DOCKER_BUILDKIT", "0");
        command.args(arguments);
        command
    }

    /// The real kubectl, pointed here.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Output> {
        Output::of(self.kubectl_command(arguments))
    }

    /// The same, for tests that feed it or read it as it goes.
    pub fn kubectl_command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.space.command("kubectl");
        command.env("KUBECONFIG", self.data().join("kubeconfig"));
        command.env("KUBECACHEDIR", self.directory.path().join("kube-cache"));
        command.args(arguments);
        command
    }

    /// `kubectl apply -f -` of this text.
    pub fn apply(&self, manifest: &str) -> Result<Output> {
        Output::fed(self.kubectl_command(&["apply", "-f", "-"]), manifest.as_bytes())
    }

    /// Any program, in the namespaces.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.space.command(program);
        command.args(arguments);
        Output::of(command)
    }

    /// Fetches a page by curl in the namespaces, until it is there.
    pub fn fetch(&self, url: &str) -> Result<String> {
        let mut last = String::new();
        self.eventually(&format!("{url} answers"), || {
            let output = self.run("curl", &["--silent", "--show-error", "--fail", "--max-time", "5", url])?;
            let fine = output.status == 0;
            last = output.stdout;
            Ok(fine)
        })?;
        Ok(last)
    }

    /// Builds the image `busybox:test` (every applet of Debian's static busybox) and `web:test` (a page on port 80) by `docker build`.
    pub fn build_images(&self) -> Result<()> {
        images::build(self)
    }

    /// Waits until the test holds; an error of the test itself ends the wait.
    pub fn eventually(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let begun = Instant::now();
        while !holds().with_context(|| format!("while waiting until {what}"))? {
            if begun.elapsed() > PATIENCE {
                bail!("not within {} s: {what}\n{}\n{}", PATIENCE.as_secs(), self.log_end(), self.workloads());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The end of the daemon's log.
    pub fn log_end(&self) -> String {
        let text = std::fs::read_to_string(self.data().join("nuee.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("end of nuee.log:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    }

    /// What runs and what it says, for who reads of a failed test.
    fn workloads(&self) -> String {
        let said = |output: Result<Output>| output.map(|output| output.stdout + &output.stderr).unwrap_or_default();
        let kinds = "pods,virtualmachines,migrations";
        let mut text =
            said(self.kubectl(&["get", kinds, "--all-namespaces", "--output=wide", "--request-timeout=10s"]));
        // Without a daemon the client would only say so, again and again.
        if self.pid().is_ok() {
            text.push_str(&said(self.docker(&["ps", "--all"])));
            let ids = self.docker(&["ps", "--all", "--quiet"]).map(|output| output.stdout).unwrap_or_default();
            for id in ids.lines() {
                let last = said(self.docker(&["logs", "--tail", LINES_TOLD, id]));
                text.push_str(&format!("{id} says:\n{last}"));
            }
        }
        text
    }

    /// Stops everything and fails if anything is left behind.
    pub fn finish(self) -> Result<()> {
        self.nuee(&["down", "--all"])?.success()?;
        leftovers::check(&self)
    }
}

impl Drop for Nuee {
    fn drop(&mut self) {
        // A test that failed comes here without `finish`: clean up, and report nothing over its own error.
        if self.data().exists() {
            let _outcome = self.nuee(&["down", "--all"]);
        }
    }
}
