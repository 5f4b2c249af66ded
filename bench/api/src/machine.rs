//! Processes that are measured: each in the namespaces of this bench, ended with it.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Set once this program runs in its own namespaces.
const INSIDE: &str = "NUEE_BENCH_INSIDE";
/// How long a server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs this program again in network and mount namespaces of its own, unless that has happened.
pub fn enter_namespaces() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let error = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(error).context("cannot run unshare (util-linux); be root")
}

/// A server of ours; ends when dropped.
pub struct Server {
    child: Child,
    /// Its data directory.
    pub data: PathBuf,
    down: Option<PathBuf>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(program) = &self.down {
            let _outcome = Command::new(program)
                .args(["down", "--all", "--data-dir"])
                .arg(&self.data)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// A whole Nuée: `nuee up` on an empty directory.
    pub fn nuee(program: &Path, data: &Path) -> Result<Server> {
        let mut command = Command::new(program);
        command.arg("up").arg("--data-dir").arg(data);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start nuee")?;
        let server = Server { child, data: data.to_owned(), down: Some(program.to_owned()) };
        server.wait_for("nuee is ready", || {
            let text = std::fs::read_to_string(data.join("status.json")).unwrap_or_default();
            let state: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            Ok(state["ready"] == true)
        })?;
        Ok(server)
    }

    /// The API alone: this program's `serve`.
    pub fn api(data: &Path) -> Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.arg("serve").arg(data).spawn().context("cannot start the API")?;
        let server = Server { child, data: data.to_owned(), down: None };
        server.wait_for("the API serves", || Ok(data.join("ready").exists()))?;
        Ok(server)
    }

    /// Debian's etcd on free ports; the URL for its clients.
    pub fn etcd(data: &Path) -> Result<(Server, String)> {
        let port = || -> Result<u16> { Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()) };
        let (client, peer) = (format!("http://127.0.0.1:{}", port()?), format!("http://127.0.0.1:{}", port()?));
        let mut command = Command::new("etcd");
        command.args(["--name", "one", "--data-dir"]).arg(data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("one={peer}")]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.context("cannot start etcd (Debian's etcd-server)")?;
        Ok((Server { child, data: data.to_owned(), down: None }, client))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory. Units: KiB.
    pub fn resident_kib(&self) -> u64 {
        resident_kib(self.pid())
    }

    fn wait_for(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !holds()? {
            if began.elapsed() > START_TIMEOUT {
                bail!("not within {} s: {what}", START_TIMEOUT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Resident memory of a process. Units: KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// Processor time of a process, of all its threads. Units: seconds.
pub fn processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<f64>().ok()).sum();
    ticks / 100.0
}
