//! A `Container`'s spec as a [`Launch`]. Pure: everything that was found on the machine is given.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use api::container::ContainerSpec;
use node::patience;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use crate::error::{Error, Result};
use crate::hands::{self, Found};
use crate::launch::{Bounds, DeviceRate, Launch, MountPoint, Namespace, RateKind, capabilities};

/// What was found and made for one start.
#[derive(Debug, Default)]
pub struct Findings {
    /// Root file system.
    pub rootfs: PathBuf,
    /// User.
    pub user: Found,
    /// Network namespace.
    pub network: Namespace,
    /// Process namespace.
    pub pid: Namespace,
    /// IPC namespace.
    pub ipc: Namespace,
    /// Where the shared memory of a shared IPC namespace lies.
    pub shared_memory: Option<PathBuf>,
    /// Mounts: the user's, and the files under /etc.
    pub mounts: Vec<MountPoint>,
    /// Devices.
    pub devices: Vec<(LinuxDevice, String)>,
    /// Host name in force.
    pub hostname: String,
    /// What comes before the command to run it under an init; usually nothing.
    pub init_command: Vec<String>,
    /// Variables that links give.
    pub link_environment: Vec<String>,
    /// Bounds on devices.
    pub device_rates: Vec<DeviceRate>,
}

/// Period when a quota comes from a number of CPUs. Units: microseconds.
const CPU_PERIOD_US: i64 = 100_000;

/// Builds the launch. `default_pids` is the bound on tasks of a container that asks for none; 0 means none.
///
/// Errors: a setting that makes no sense.
pub fn launch(spec: &ContainerSpec, found: Findings, default_pids: i64) -> Result<Launch> {
    let security = &spec.security;
    hands::check_working_directory(&spec.working_directory)?;
    let mut identity = found.user.identity.clone();
    identity.groups.extend(runtime::spec::users::find_groups(&found.rootfs, &security.groups)?);
    let mut environment = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    environment.push(format!("HOSTNAME={}", found.hostname));
    if spec.terminal {
        environment.push("TERM=xterm".to_owned());
    }
    environment.extend(found.link_environment);
    for variable in &spec.environment {
        set_variable(&mut environment, variable);
    }
    if !environment.iter().any(|v| v.starts_with("HOME=")) {
        environment.push(format!("HOME={}", if found.user.home.is_empty() { "/" } else { &found.user.home }));
    }
    let mut command = spec.command.clone();
    command.splice(0..0, found.init_command);
    let texts = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let mut rlimits: Vec<_> = spec.ulimits.iter().map(|u| (u.name.clone(), u.soft, u.hard)).collect();
    rlimits.dedup_by(|a, b| a.0 == b.0);
    Ok(Launch {
        command,
        environment,
        working_directory: spec.working_directory.clone(),
        identity,
        terminal: spec.terminal,
        rootfs: found.rootfs,
        read_only_root: security.read_only_root,
        hostname: found.hostname,
        domainname: spec.domainname.clone(),
        mounts: found.mounts,
        shm_size_bytes: spec.shm_size_bytes,
        network: found.network,
        pid: found.pid,
        without_shm: security.ipc_mode == "none",
        ipc: found.ipc,
        shared_memory: found.shared_memory,
        host_cgroups: security.cgroup_mode == "host",
        uts: if security.uts_mode == "host" { Namespace::Host } else { Namespace::Private },
        capabilities: capabilities(&security.capabilities_add, &security.capabilities_drop),
        privileged: security.privileged,
        no_new_privileges: security.no_new_privileges,
        seccomp: hands::seccomp(&security.seccomp)?,
        devices: found.devices,
        masked_paths: security.masked_paths.clone().unwrap_or_else(|| texts(&runtime::spec::MASKED_PATHS)),
        readonly_paths: security.readonly_paths.clone().unwrap_or_else(|| texts(&runtime::spec::READONLY_PATHS)),
        bounds: Bounds { device_rates: found.device_rates, ..bounds(spec, default_pids) },
        rlimits,
        sysctls: spec.sysctls.clone(),
        oom_score_adj: Some(security.oom_score_adj),
    })
}

/// The bounds of a spec; those on devices come from the machine. `default_pids` as in [`launch`].
pub fn bounds(spec: &ContainerSpec, default_pids: i64) -> Bounds {
    let resources = &spec.resources;
    let by_number = resources.nano_cpus > 0;
    // Docker's rule: a memory bound without a swap bound allows as much swap again.
    let swap = match (resources.memory_bytes, resources.memory_swap_bytes) {
        (memory, 0) if memory > 0 => memory.saturating_mul(2),
        (_, swap) => swap,
    };
    Bounds {
        cpu_shares: resources.cpu_shares,
        cpu_quota_us: if by_number {
            resources.nano_cpus / (1_000_000_000 / CPU_PERIOD_US)
        } else {
            resources.cpu_quota_us
        },
        cpu_period_us: if by_number { CPU_PERIOD_US } else { resources.cpu_period_us },
        cpuset: resources.cpuset_cpus.clone(),
        memory_nodes: resources.cpuset_mems.clone(),
        memory_bytes: resources.memory_bytes,
        memory_swap_bytes: swap,
        memory_reservation_bytes: resources.memory_reservation_bytes,
        pids: if resources.pids_limit == 0 { default_pids } else { resources.pids_limit },
        block_weight: resources.block_weight,
        oom_kill_disable: resources.oom_kill_disable,
        memory_swappiness: resources.memory_swappiness,
        device_rates: Vec::new(),
    }
}

/// Sets `NAME=value`; a bare `NAME` removes it, as with Docker.
fn set_variable(environment: &mut Vec<String>, variable: &str) {
    let name = variable.split('=').next().unwrap_or_default();
    let position = environment.iter().position(|v| v.split('=').next() == Some(name));
    match (position, variable.contains('=')) {
        (Some(at), true) => variable.clone_into(&mut environment[at]),
        (Some(at), false) => drop(environment.remove(at)),
        (None, true) => environment.push(variable.to_owned()),
        (None, false) => {}
    }
}

/// Number of a signal, from a name with or without `SIG`, or a number; `None` when there is none of that name.
pub fn signal(text: &str) -> Option<i32> {
    let text = text.trim().to_uppercase();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

/// Devices, and bounds on the rates of some.
type Devices = (Vec<(LinuxDevice, String)>, Vec<DeviceRate>);

/// The devices that a spec names; all of the machine for a container that may do everything.
///
/// Errors: one is not there, or does not answer.
pub async fn named_devices(spec: &ContainerSpec) -> Result<Devices> {
    let rates = spec.resources.device_rates.iter().map(|rate| rate.path.as_str());
    let mut about: Vec<&str> = spec.security.devices.iter().map(String::as_str).chain(rates).collect();
    if spec.security.privileged {
        about.push("/dev");
    }
    if about.is_empty() {
        return Ok(Devices::default());
    }
    let (about, wanted) = (about.join(", "), spec.clone());
    let look = move || {
        let devices = find_devices(&wanted)?;
        Ok::<_, Error>((devices, wanted.resources.device_rates.iter().map(device_rate).collect::<Result<_>>()?))
    };
    patience::ask(about, look).await?
}

/// Blocking, for as long as the file systems like that the spec names.
fn find_devices(spec: &ContainerSpec) -> Result<Vec<(LinuxDevice, String)>> {
    let named = spec.security.devices.iter().map(|text| devices(text)).collect::<Result<Vec<_>>>()?;
    let mut devices: Vec<_> = named.into_iter().flatten().collect();
    if spec.security.privileged {
        for path in machine_devices(Path::new("/dev")) {
            let taken = devices.iter().any(|(device, _)| *device.path() == path);
            // One that vanishes meanwhile is no reason not to start.
            if !taken && let Ok(found) = device(&path.to_string_lossy()) {
                devices.push(found);
            }
        }
    }
    Ok(devices)
}

/// A bound on the rate of a block device of the machine.
///
/// Errors: there is no such device.
fn device_rate(wanted: &api::container::DeviceRate) -> Result<DeviceRate> {
    let kind = match wanted.kind.as_str() {
        "readBytes" => RateKind::ReadBytes,
        "writeBytes" => RateKind::WriteBytes,
        "readOperations" => RateKind::ReadOperations,
        "writeOperations" => RateKind::WriteOperations,
        other => return Err(Error::Invalid(format!("unknown kind of device rate: {other}"))),
    };
    let meta = std::fs::metadata(&wanted.path).map_err(|error| Error::Invalid(format!("{}: {error}", wanted.path)))?;
    if !meta.file_type().is_block_device() {
        return Err(Error::Invalid(format!("{} is not a block device", wanted.path)));
    }
    let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    Ok(DeviceRate { kind, major: major.into(), minor: minor.into(), rate: wanted.rate })
}

/// Device nodes below a directory.
fn devices_below(directory: &Path) -> Vec<PathBuf> {
    /// Deeper than any machine's.
    const DEPTH: usize = 8;
    fn walk(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth < DEPTH {
                walk(&entry.path(), depth + 1, found);
            } else if kind.is_block_device() || kind.is_char_device() {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    walk(directory, 0, &mut found);
    found.sort();
    found
}

/// Device nodes below a directory, but for those that each container has of its own.
fn machine_devices(directory: &Path) -> Vec<PathBuf> {
    /// Terminals, memory and queues belong to a container; a console is given to it.
    const OWN: [&str; 8] = ["pts", "shm", "mqueue", "fd", "console", "ptmx", "tty", "core"];
    let mut found = devices_below(directory);
    let own = |path: &PathBuf| {
        let first = path.strip_prefix(directory).ok().and_then(|rest| rest.components().next());
        first.is_some_and(|first| OWN.iter().any(|name| first.as_os_str() == *name))
    };
    found.retain(|path| !own(path));
    found
}

/// The devices that `host[:container[:permissions]]` means: one, or all below a directory.
///
/// Errors: none is there.
fn devices(text: &str) -> Result<Vec<(LinuxDevice, String)>> {
    let (host, inner, access) = device_parts(text);
    if !Path::new(host).is_dir() {
        return device(text).map(|one| vec![one]);
    }
    // The directory itself may be a link.
    let directory = std::fs::canonicalize(host).map_err(Error::io("look at", Path::new(host)))?;
    let below = |path: PathBuf| {
        let inside = Path::new(inner).join(path.strip_prefix(&directory).ok()?);
        // One that vanishes meanwhile is no reason not to start.
        device(&format!("{}:{}:{access}", path.display(), inside.display())).ok()
    };
    let found: Vec<_> = devices_below(&directory).into_iter().filter_map(below).collect();
    if found.is_empty() {
        return device(text).map(|one| vec![one]);
    }
    Ok(found)
}

/// Path on the machine, path in the container, permissions.
fn device_parts(text: &str) -> (&str, &str, &str) {
    let mut parts = text.split(':');
    let host = parts.next().unwrap_or_default();
    match (parts.next(), parts.next()) {
        (Some(path), Some(access)) => (host, path, access),
        (Some(second), None) if second.starts_with('/') => (host, second, "rwm"),
        (Some(access), None) => (host, host, access),
        _ => (host, host, "rwm"),
    }
}

/// A device of the machine, from `host[:container[:permissions]]`.
pub fn device(text: &str) -> Result<(LinuxDevice, String)> {
    let (host, inner, access) = device_parts(text);
    let problem = |why: String| {
        Error::Invalid(format!("error gathering device information while adding custom device \"{host}\": {why}"))
    };
    if access.is_empty() || !access.chars().all(|c| matches!(c, 'r' | 'w' | 'm')) {
        return Err(Error::Invalid(format!("invalid device mode: {access}")));
    }
    let meta = std::fs::metadata(host).map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        problem(if missing { "no such file or directory".to_owned() } else { error.to_string() })
    })?;
    let kind = match meta.file_type() {
        t if t.is_block_device() => LinuxDeviceType::B,
        t if t.is_char_device() => LinuxDeviceType::C,
        _ => return Err(problem("not a device node".to_owned())),
    };
    let mut device = LinuxDevice::default();
    device
        .set_path(inner.into())
        .set_typ(kind)
        .set_major(i64::from(libc::major(meta.rdev())))
        .set_minor(i64::from(libc::minor(meta.rdev())))
        .set_file_mode(Some(meta.mode() & 0o7777))
        .set_uid(Some(meta.uid()))
        .set_gid(Some(meta.gid()));
    Ok((device, access.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Machine;
    use api::container::{Resources, Ulimit};

    fn check(spec: ContainerSpec) -> serde_json::Value {
        let found = Findings { hostname: "abc".into(), rootfs: "/nonexistent".into(), ..Findings::default() };
        let launch = launch(&spec, found, 7).unwrap();
        serde_json::to_value(launch.specification(&Machine { capabilities: u64::MAX }).unwrap()).unwrap()
    }

    #[test]
    fn the_environment_has_dockers_order_and_defaults() {
        let spec = ContainerSpec {
            environment: vec!["A=1".into(), "PATH=/bin".into(), "B=2".into(), "A=3".into(), "B".into()],
            terminal: true,
            ..ContainerSpec::default()
        };
        assert_eq!(
            check(spec)["process"]["env"],
            serde_json::json!(["PATH=/bin", "HOSTNAME=abc", "TERM=xterm", "A=3", "HOME=/"])
        );
    }

    #[test]
    fn bounds_become_cgroup_settings() {
        let resources =
            Resources { nano_cpus: 500_000_000, memory_bytes: 64 << 20, pids_limit: 10, ..Resources::default() };
        let value = check(ContainerSpec { resources, ..ContainerSpec::default() });
        let resources = &value["linux"]["resources"];
        assert_eq!(resources["cpu"], serde_json::json!({"quota": 50_000, "period": 100_000}));
        assert_eq!(resources["memory"], serde_json::json!({"limit": 64 << 20, "swap": 128 << 20}));
        assert_eq!(resources["pids"], serde_json::json!({"limit": 10}));
        let pids = |pids_limit: i64| {
            let resources = Resources { pids_limit, block_weight: 300, ..Resources::default() };
            check(ContainerSpec { resources, ..ContainerSpec::default() })["linux"]["resources"].clone()
        };
        assert_eq!(pids(0)["pids"], serde_json::json!({"limit": 7}), "the machine's own");
        assert_eq!(pids(-1).get("pids"), None, "none at all");
        assert_eq!(pids(0)["blockIO"]["weight"], 300);
    }

    #[test]
    fn ulimits_are_passed_on_and_minus_one_means_none() {
        let ulimits = vec![Ulimit { name: "nofile".into(), soft: 100, hard: -1 }];
        let value = check(ContainerSpec { ulimits, ..ContainerSpec::default() });
        assert_eq!(
            value["process"]["rlimits"],
            serde_json::json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": u64::MAX}])
        );
    }

    #[test]
    fn devices_are_read_from_the_machine() {
        let (device, access) = device("/dev/null:/dev/zilch:rw").unwrap();
        assert_eq!(
            (device.path().display().to_string(), device.major(), device.minor(), access),
            ("/dev/zilch".into(), 1, 3, "rw".into())
        );
        assert!(super::device("/etc/passwd").is_err());
        assert!(super::device("/dev/null:/x:q").is_err());
    }
}
