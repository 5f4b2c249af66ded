//! Defaults of an OCI specification as Docker sets them, and checks of what must never reach the OCI runtime.

pub mod seccomp;
pub mod users;

pub use seccomp::default_profile;

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount, MountBuilder,
    PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
};

use crate::{Error, Result};

/// Docker's default capabilities.
const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Every capability but those that older kernels do not know.
const ALL_CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Paths that a container must not read. Docker's list.
pub const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

/// Paths that a container must not write. Docker's list.
pub const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Docker's default capabilities.
pub fn default_capabilities() -> Capabilities {
    DEFAULT_CAPABILITIES.into_iter().collect()
}

/// What `--privileged` and `CAP_ALL` mean: all that this kernel knows.
pub fn all_capabilities() -> Capabilities {
    let last: usize = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(40);
    let newest = [(38, Capability::Perfmon), (39, Capability::Bpf), (40, Capability::CheckpointRestore)];
    let unknown: HashSet<Capability> =
        newest.into_iter().filter(|(number, _)| *number > last).map(|(_, capability)| capability).collect();
    ALL_CAPABILITIES.into_iter().filter(|capability| !unknown.contains(capability)).collect()
}

/// Of all capabilities those that this process has itself: others it cannot give away.
pub fn own_capabilities() -> Capabilities {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let own = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()).unwrap_or(u64::MAX);
    let all = all_capabilities();
    ALL_CAPABILITIES
        .into_iter()
        .enumerate()
        .filter(|(number, capability)| own >> number & 1 == 1 && all.contains(capability))
        .map(|(_, capability)| capability)
        .collect()
}

/// A process other than root keeps capabilities only as a bound, as with Docker.
pub fn drop_effective_capabilities(process: &mut Process) {
    if let Some(mut capabilities) = process.capabilities().clone() {
        capabilities.set_effective(None);
        capabilities.set_permitted(None);
        capabilities.set_inheritable(None);
        capabilities.set_ambient(None);
        process.set_capabilities(Some(capabilities));
    }
}

fn invalid(error: oci_spec::OciSpecError) -> Error {
    Error::Invalid(error.to_string())
}

/// A mount of any kind.
pub fn mount(
    kind: &str,
    source: impl Into<PathBuf>,
    destination: impl Into<PathBuf>,
    options: &[&str],
) -> Result<Mount> {
    MountBuilder::default()
        .typ(kind)
        .source(source)
        .destination(destination)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
        .map_err(invalid)
}

/// A directory or file of the machine in the container, such as `/etc/hosts`.
pub fn bind(source: impl Into<PathBuf>, destination: impl Into<PathBuf>, read_only: bool) -> Result<Mount> {
    mount("bind", source, destination, &["rbind", "rprivate", if read_only { "ro" } else { "rw" }])
}

/// Memory as a file system. `size_bytes` 0 leaves the kernel's half of the memory.
pub fn tmpfs(destination: impl Into<PathBuf>, size_bytes: u64, mode: u32) -> Result<Mount> {
    let (size, mode) = (format!("size={size_bytes}"), format!("mode={mode:o}"));
    let mut options = vec!["nosuid", "nodev", "noexec", mode.as_str()];
    if size_bytes > 0 {
        options.push(&size);
    }
    mount("tmpfs", "tmpfs", destination, &options)
}

/// A limit of a process, such as `RLIMIT_NOFILE`.
pub fn resource_limit(kind: PosixRlimitType, soft: u64, hard: u64) -> Result<PosixRlimit> {
    PosixRlimitBuilder::default().typ(kind).soft(soft).hard(hard).build().map_err(invalid)
}

/// The mounts of every container.
pub fn default_mounts(shm_size_bytes: u64) -> Result<Vec<Mount>> {
    let shm = format!("size={shm_size_bytes}");
    Ok(vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"])?,
        mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"])?,
        mount("cgroup", "cgroup", "/sys/fs/cgroup", &["ro", "nosuid", "noexec", "nodev"])?,
        mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("tmpfs", "shm", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm])?,
    ])
}

/// Which devices a container may use: none but the harmless ones, though it may make nodes of any. Docker's list.
pub fn default_device_rules() -> Result<Vec<LinuxDeviceCgroup>> {
    let character = |major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::C).access(access);
        if let Some(major) = major {
            rule = rule.major(major);
        }
        if let Some(minor) = minor {
            rule = rule.minor(minor);
        }
        rule.build().map_err(invalid)
    };
    let mut rules = vec![
        LinuxDeviceCgroupBuilder::default()
            .allow(false)
            .typ(LinuxDeviceType::A)
            .access("rwm")
            .build()
            .map_err(invalid)?,
        character(None, None, "m")?,
        LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::B).access("m").build().map_err(invalid)?,
    ];
    // null, zero, full, random, urandom, tty, console, ptmx, and the terminals of /dev/pts.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(character(Some(major), Some(minor), "rwm")?);
    }
    rules.push(character(Some(136), None, "rwm")?);
    Ok(rules)
}

/// A rule that allows one device.
pub fn allow_device(block: bool, major: i64, minor: i64, access: &str) -> Result<LinuxDeviceCgroup> {
    LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(if block { LinuxDeviceType::B } else { LinuxDeviceType::C })
        .major(major)
        .minor(minor)
        .access(access)
        .build()
        .map_err(invalid)
}

/// A whole specification with Docker's defaults: capabilities, seccomp, paths, mounts, devices, namespaces of its own.
/// The caller changes what its container wants otherwise.
pub fn default_spec(rootfs: &Path, args: Vec<String>) -> Result<Spec> {
    let capabilities = default_capabilities();
    let bounded = LinuxCapabilitiesBuilder::default()
        .bounding(capabilities.clone())
        .effective(capabilities.clone())
        .permitted(capabilities.clone())
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()
        .map_err(invalid)?;
    let process = ProcessBuilder::default()
        .args(args)
        .cwd("/")
        .env(vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()])
        .capabilities(bounded)
        .rlimits(Vec::new())
        .no_new_privileges(false)
        .build()
        .map_err(invalid)?;
    let kinds = [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Cgroup,
    ];
    let namespaces: Vec<_> = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build().map_err(invalid))
        .collect::<Result<_>>()?;
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .masked_paths(MASKED_PATHS.map(str::to_owned).to_vec())
        .readonly_paths(READONLY_PATHS.map(str::to_owned).to_vec())
        .seccomp(seccomp::default_profile(&capabilities)?)
        .resources(LinuxResourcesBuilder::default().devices(default_device_rules()?).build().map_err(invalid)?)
        .build()
        .map_err(invalid)?;
    SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(rootfs).readonly(false).build().map_err(invalid)?)
        .process(process)
        .mounts(default_mounts(64 << 20)?)
        .linux(linux)
        .build()
        .map_err(invalid)
}

/// Joins or leaves a namespace: with `path` the container enters that one, without it gets one of its own, and `None`
/// for the whole leaves it in the machine's.
pub fn set_namespace(spec: &mut Spec, kind: LinuxNamespaceType, namespace: Option<Option<PathBuf>>) -> Result<()> {
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut list = linux.namespaces().clone().unwrap_or_default();
    list.retain(|entry| entry.typ() != kind);
    if let Some(path) = namespace {
        let mut entry = LinuxNamespaceBuilder::default().typ(kind);
        if let Some(path) = path {
            entry = entry.path(path);
        }
        list.push(entry.build().map_err(invalid)?);
    }
    linux.set_namespaces(Some(list));
    Ok(())
}

/// Sets `NAME=value` in an environment; without `=` the name is removed.
pub fn set_variable(environment: &mut Vec<String>, variable: String) {
    let name = variable.split('=').next().unwrap_or_default().to_owned();
    environment.retain(|entry| entry.split('=').next() != Some(name.as_str()));
    if variable.contains('=') {
        environment.push(variable);
    }
}

/// Refuses what no OCI runtime should see.
pub fn check(spec: &Spec) -> Result<()> {
    let process =
        spec.process().as_ref().ok_or_else(|| Error::Invalid("the specification has no process".to_owned()))?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::Invalid("no command specified".to_owned()));
    }
    check_working_directory(&process.cwd().to_string_lossy())
}

/// Refuses working directories that are not absolute, or lead through a process' descriptors: the way out of
/// CVE-2024-21626.
pub fn check_working_directory(directory: &str) -> Result<()> {
    let refused = |why: &str| Err(Error::Invalid(format!("working directory {directory:?} {why}")));
    if !directory.starts_with('/') {
        return Err(Error::Invalid("OCI runtime exec failed: exec failed: Cwd must be an absolute path".to_owned()));
    }
    if directory.contains('\0') {
        return refused("holds a zero byte");
    }
    // `..` is refused below /proc and /dev as well: after a magic link it leads elsewhere than it looks.
    let mut parts: Vec<&std::ffi::OsStr> = Vec::new();
    for component in Path::new(directory).components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::ParentDir if parts.first().is_some_and(|part| *part == "proc" || *part == "dev") => {
                return refused("leads back out of /proc or /dev");
            }
            Component::ParentDir => {
                parts.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let leads_through_process = parts.first().is_some_and(|part| *part == "proc")
        && parts
            .iter()
            .skip(2)
            .any(|part| ["fd", "cwd", "root", "exe", "map_files", "task"].iter().any(|name| part == name));
    let leads_through_dev =
        parts.first().is_some_and(|part| *part == "dev") && parts.get(1).is_some_and(|part| *part == "fd");
    if leads_through_process || leads_through_dev {
        return refused("leads through a process' descriptors");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_through_descriptors_are_refused() {
        for bad in [
            "/proc/self/fd/7",
            "/proc/self/fd/7/../../..",
            "//proc//self/./fd/9/x",
            "/x/../proc/1/root",
            "/proc/thread-self/fd/8",
            "/proc/self/task/1/fd/8",
            "/dev/fd/3",
            "relative",
            "",
        ] {
            assert!(check_working_directory(bad).is_err(), "{bad}");
        }
        for good in ["/", "/srv/www", "/proc", "/proc/sys"] {
            check_working_directory(good).unwrap();
        }
    }

    #[test]
    fn variables_replace_and_remove() {
        let mut environment = vec!["A=1".to_owned(), "B=2".to_owned()];
        set_variable(&mut environment, "A=3".to_owned());
        set_variable(&mut environment, "B".to_owned());
        assert_eq!(environment, ["A=3"]);
    }

    #[test]
    fn the_default_specification_is_complete() {
        let spec = default_spec(Path::new("/rootfs"), vec!["true".to_owned()]).unwrap();
        check(&spec).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.masked_paths().as_ref().unwrap().len(), MASKED_PATHS.len());
        assert!(linux.seccomp().is_some());
    }
}
