//! `nuee doctor`: what this machine offers, and how to mend what is missing. Each check is one row.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use hypervisor::qemu::vsock::{DEVICE, Device};
use serde::Serialize;

use crate::command::{DataDirectory, Format, Output};
use crate::config::Config;
use crate::instance::Instance;

/// Flags of `nuee doctor`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    data: DataDirectory,
    #[command(flatten)]
    output: Output,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Missing,
}

/// What a check found.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<&'static str>,
}

/// A check: its name, how to mend what it finds, and the look itself.
type Row = (&'static str, &'static str, fn(&Config, bool) -> (Verdict, String));

const CHECKS: &[Row] = &[
    ("root", "run it as root: sudo nuee up", |_, _| root()),
    ("kernel", "use Linux 5.11 or newer", |_, _| kernel()),
    ("cgroups", "mount cgroup v2 at /sys/fs/cgroup (systemd does), or the v1 controllers below it", |_, _| cgroups()),
    ("overlayfs", "modprobe overlay", |_, _| filesystem("overlay")),
    ("network namespaces", "use a kernel with CONFIG_NET_NS", |_, _| exists("/proc/self/ns/net")),
    ("user namespaces", "use a kernel with CONFIG_USER_NS", |_, _| exists("/proc/self/ns/user")),
    ("seccomp", "use a kernel with CONFIG_SECCOMP_FILTER", |_, _| exists("/proc/sys/kernel/seccomp/actions_avail")),
    ("OCI runtime", "apt-get install --no-install-recommends crun", |_, _| program(&["crun", "runc"])),
    ("nft", "apt-get install --no-install-recommends nftables", |_, _| program(&["nft"])),
    ("bridged packets", "modprobe br_netfilter, for security groups", |_, _| bridged_packets()),
    ("open files", "raise the limit: LimitNOFILE=65536 in the unit, or ulimit -n 65536", |_, _| open_files()),
    ("kubernetes port", "stop what listens there, or set kubernetesListen in config.yaml", |config, running| {
        port(config.kubernetes_listen, running)
    }),
    ("registry port", "stop what listens there, or set registryListen in config.yaml", |config, running| {
        config.registry_listen.map_or((Verdict::Ok, "not served".into()), |address| port(address, running))
    }),
    ("QEMU", "apt-get install --no-install-recommends qemu-system-x86 qemu-utils, for virtual machines", |_, _| {
        match program(&["qemu-system-x86_64"]) {
            (Verdict::Ok, _) => match program(&["qemu-img"]) {
                (Verdict::Ok, found) => (Verdict::Ok, found),
                (_, text) => (Verdict::Warning, text),
            },
            (_, text) => (Verdict::Warning, text),
        }
    }),
    (
        "virtual machines",
        "enable virtualisation in the firmware; without it virtual machines will be emulated and not isolated",
        |_, _| guests(),
    ),
    (
        "post-copy",
        "sysctl vm.unprivileged_userfaultfd=1; without it no virtual machine can be moved to this machine by post-copy",
        |_, _| match hypervisor::qemu::faults::check() {
            Ok(()) => (Verdict::Ok, "virtual machines can be moved to this machine by post-copy".into()),
            Err(why) => (Verdict::Warning, why),
        },
    ),
    ("vsock", "modprobe vhost_vsock; without it no virtual machine with spec.vsock starts here", |_, _| vsock()),
];

/// Looks at everything; exit code 1 when something needed is missing.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let instance = Instance::new(&arguments.data.path)?;
    let file = instance.path("config.yaml");
    let config = if file.exists() { Config::load(&file)? } else { Config::default() };
    let running = instance.daemon_pid().is_some();
    let findings: Vec<Finding> = CHECKS
        .iter()
        .map(|(check, mend, look)| {
            let (verdict, detail) = look(&config, running);
            Finding { check, verdict, detail, mend: (verdict != Verdict::Ok).then_some(*mend) }
        })
        .collect();
    match arguments.output.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Format::Text => print(&findings),
    }
    let missing = findings.iter().any(|finding| finding.verdict == Verdict::Missing);
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(findings: &[Finding]) {
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Warning => "warning",
            Verdict::Missing => "MISSING",
        };
        println!("{mark}  {:<19} {}", finding.check, finding.detail);
        if let Some(mend) = finding.mend {
            println!("         {:<19} -> {mend}", "");
        }
    }
}

fn bridged_packets() -> (Verdict, String) {
    match Path::new("/proc/sys/net/bridge").is_dir() {
        true => (Verdict::Ok, "pass the rules of security groups".into()),
        false => (Verdict::Warning, "pass by the rules: workloads that name a security group are refused".into()),
    }
}

fn root() -> (Verdict, String) {
    let user = nix::unistd::geteuid();
    if user.is_root() {
        (Verdict::Ok, "running as root".into())
    } else {
        (Verdict::Missing, format!("running as user {user}"))
    }
}

fn kernel() -> (Verdict, String) {
    let release =
        nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = release.split(['.', '-']).filter_map(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 11) { (Verdict::Ok, release) } else { (Verdict::Missing, format!("{release} is too old")) }
}

fn cgroups() -> (Verdict, String) {
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let needed = ["cpu", "memory", "pids"];
    if needed.iter().all(|name| v2.split_whitespace().any(|one| one == *name)) {
        return (Verdict::Ok, format!("v2 with {}", v2.trim()));
    }
    let v1: Vec<&str> = needed.into_iter().filter(|name| Path::new("/sys/fs/cgroup").join(name).is_dir()).collect();
    match v1.len() {
        3 => (Verdict::Ok, "v1 with cpu, memory, pids".into()),
        _ => (
            Verdict::Missing,
            format!("controllers found: {}", if v1.is_empty() { v2.trim().to_owned() } else { v1.join(", ") }),
        ),
    }
}

fn filesystem(name: &str) -> (Verdict, String) {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some(name)) {
        (Verdict::Ok, "known to the kernel".into())
    } else {
        (Verdict::Missing, "not known to the kernel".into())
    }
}

fn exists(path: &str) -> (Verdict, String) {
    if Path::new(path).exists() { (Verdict::Ok, "there".into()) } else { (Verdict::Missing, format!("no {path}")) }
}

fn program(names: &[&str]) -> (Verdict, String) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<_> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/sbin".into(), "/sbin".into(), "/usr/local/sbin".into()]);
    for name in names {
        if let Some(found) = directories.iter().map(|directory| directory.join(name)).find(|file| file.is_file()) {
            return (Verdict::Ok, found.display().to_string());
        }
    }
    (Verdict::Missing, format!("not found: {}", names.join(", ")))
}

fn open_files() -> (Verdict, String) {
    /// Enough for a thousand containers at a handful of descriptors each.
    const WANTED: u64 = 16_384;
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    let verdict = if limit >= WANTED { Verdict::Ok } else { Verdict::Warning };
    (verdict, format!("at most {limit}"))
}

fn port(address: SocketAddr, running: bool) -> (Verdict, String) {
    if running {
        return (Verdict::Ok, format!("{address} is ours"));
    }
    match TcpListener::bind(address) {
        Ok(_) => (Verdict::Ok, format!("{address} is free")),
        Err(error) => (Verdict::Missing, format!("{address}: {error}")),
    }
}

fn vsock() -> (Verdict, String) {
    match Device::open(Path::new(DEVICE)) {
        Ok(_) => (Verdict::Ok, "programs here can reach virtual machines without a network".into()),
        Err(error) => (Verdict::Warning, error.to_string()),
    }
}

/// Runs a probe guest: a device that opens proves nothing.
fn guests() -> (Verdict, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let verdict = match runtime {
        Ok(runtime) => runtime.block_on(hypervisor::qemu::probe::run()),
        Err(error) => return (Verdict::Warning, error.to_string()),
    };
    match verdict.acceleration {
        hypervisor::Acceleration::Hardware => (Verdict::Ok, verdict.reason),
        hypervisor::Acceleration::Emulation => {
            (Verdict::Warning, format!("{}: guests are emulated, and not isolated", verdict.reason))
        }
    }
}
