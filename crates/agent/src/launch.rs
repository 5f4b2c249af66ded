//! One process to launch in a container, in plain terms, and its OCI specification. Containers, pods and build steps all
//! become a [`Launch`]. Pure but for facts about the machine, which are given. Source: OCI runtime specification 1.2.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use api::container::ALL_CAPABILITIES;
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxBlockIo, LinuxCapabilities, LinuxCpu, LinuxDevice, LinuxDeviceCgroup,
    LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxPids, LinuxResources, LinuxSeccomp,
    LinuxThrottleDeviceBuilder, Mount, PosixRlimit, PosixRlimitType, Process, Root, Spec, User,
};

/// Where a namespace comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Namespace {
    /// A new one.
    #[default]
    Private,
    /// The machine's own.
    Host,
    /// An existing one.
    Path(PathBuf),
}

/// What the container sees mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A host path.
    Bind {
        /// Absolute path on the host.
        source: PathBuf,
        /// Mount propagation; empty means `rprivate`.
        propagation: String,
    },
    /// A host path without what is mounted below it.
    BindAlone {
        /// Absolute path on the host.
        source: PathBuf,
        /// Mount propagation; empty means `rprivate`.
        propagation: String,
    },
    /// Memory.
    Tmpfs {
        /// Bound; 0 means none. Units: bytes.
        size_bytes: i64,
        /// Mode bits.
        mode: u32,
        /// Further options, over the usual ones.
        options: Vec<String>,
    },
    /// Any file system, as mount(8) takes it.
    FileSystem {
        /// Its type, `nfs`.
        kind: String,
        /// Device or server.
        source: String,
        /// Options.
        options: Vec<String>,
    },
}

/// Whether a mount can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It can.
    Writable,
    /// It cannot; what is mounted below it may be.
    ReadOnly,
    /// Neither it can, nor what is mounted below it.
    ReadOnlyThroughout,
}

impl Access {
    /// What can be written, or not; what is mounted below it is left as it is.
    #[must_use]
    pub fn read_only(wanted: bool) -> Self {
        if wanted { Self::ReadOnly } else { Self::Writable }
    }

    /// As the OCI runtime takes it. One that does not know `rro` still follows `ro`.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Writable => &["rw"],
            Self::ReadOnly => &["ro"],
            Self::ReadOnlyThroughout => &["ro", "rro"],
        }
    }
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Absolute path in the container.
    pub target: String,
    /// What is there.
    pub place: Place,
    /// Whether it can be written.
    pub access: Access,
}

/// Which system calls are allowed.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Seccomp {
    /// The usual list.
    #[default]
    Standard,
    /// All.
    Unconfined,
    /// This list.
    Profile(Box<LinuxSeccomp>),
}

/// Bounds; 0 means none (−1 where said).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bounds {
    /// Relative weight.
    pub cpu_shares: i64,
    /// CFS quota.
    pub cpu_quota_us: i64,
    /// CFS period.
    pub cpu_period_us: i64,
    /// CPUs it may use.
    pub cpuset: String,
    /// Memory nodes it may use.
    pub memory_nodes: String,
    /// Memory.
    pub memory_bytes: i64,
    /// Memory and swap; −1 means no bound on swap.
    pub memory_swap_bytes: i64,
    /// Soft memory bound.
    pub memory_reservation_bytes: i64,
    /// Tasks; −1 means none, as 0 does.
    pub pids: i64,
    /// Weight of block input and output.
    pub block_weight: u16,
    /// Do not kill when memory runs out.
    pub oom_kill_disable: bool,
    /// How readily memory is swapped out, 0 to 100.
    pub memory_swappiness: Option<u8>,
    /// Bounds on block devices.
    pub device_rates: Vec<DeviceRate>,
}

/// What of a block device is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateKind {
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WriteBytes,
    /// Read operations.
    ReadOperations,
    /// Write operations.
    WriteOperations,
}

/// A bound on the rate of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRate {
    /// What is bounded.
    pub kind: RateKind,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Units: per second.
    pub rate: u64,
}

impl Bounds {
    /// As the OCI specification has them, without devices.
    #[must_use]
    pub fn resources(&self) -> LinuxResources {
        let bounds = self;
        let positive = |value: i64| (value > 0).then_some(value);
        let unsigned = |value: i64| u64::try_from(value).ok().filter(|v| *v > 0);
        let mut cpu = LinuxCpu::default();
        cpu.set_shares(unsigned(bounds.cpu_shares))
            .set_quota(positive(bounds.cpu_quota_us))
            .set_period(unsigned(bounds.cpu_period_us))
            .set_cpus((!bounds.cpuset.is_empty()).then(|| bounds.cpuset.clone()))
            .set_mems((!bounds.memory_nodes.is_empty()).then(|| bounds.memory_nodes.clone()));
        let mut memory = LinuxMemory::default();
        memory
            .set_limit(positive(bounds.memory_bytes))
            .set_reservation(positive(bounds.memory_reservation_bytes))
            .set_swap(positive(bounds.memory_swap_bytes).or((bounds.memory_swap_bytes == -1).then_some(-1)))
            .set_swappiness(bounds.memory_swappiness.map(u64::from))
            .set_disable_oom_killer(bounds.oom_kill_disable.then_some(true));
        let mut resources = LinuxResources::default();
        resources.set_cpu(Some(cpu)).set_memory(Some(memory)).set_block_io(self.block_io()).set_pids(
            positive(bounds.pids).map(|limit| {
                let mut pids = LinuxPids::default();
                pids.set_limit(limit);
                pids
            }),
        );
        resources
    }

    fn block_io(&self) -> Option<LinuxBlockIo> {
        let rates = &self.device_rates;
        let of = |kind: RateKind| {
            let chosen = rates.iter().filter(|rate| rate.kind == kind).map(|rate| {
                LinuxThrottleDeviceBuilder::default().major(rate.major).minor(rate.minor).rate(rate.rate).build()
            });
            Some(chosen.flatten().collect::<Vec<_>>()).filter(|list| !list.is_empty())
        };
        let mut block = LinuxBlockIo::default();
        block
            .set_throttle_read_bps_device(of(RateKind::ReadBytes))
            .set_throttle_write_bps_device(of(RateKind::WriteBytes))
            .set_throttle_read_iops_device(of(RateKind::ReadOperations))
            .set_throttle_write_iops_device(of(RateKind::WriteOperations));
        let weight = Some(self.block_weight).filter(|weight| *weight != 0);
        block.set_weight(weight);
        (!rates.is_empty() || weight.is_some()).then_some(block)
    }
}

/// A numeric user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// A process in a container.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Absolute path; empty means `/`.
    pub working_directory: String,
    /// Who it is.
    pub identity: Identity,
    /// With a terminal.
    pub terminal: bool,
    /// Root file system on the host.
    pub rootfs: PathBuf,
    /// Root file system not writable.
    pub read_only_root: bool,
    /// Host name; unused with the machine's or a given UTS namespace.
    pub hostname: String,
    /// NIS domain name.
    pub domainname: String,
    /// Mounts beside the usual ones, in order.
    pub mounts: Vec<MountPoint>,
    /// Size of /dev/shm; 0 means 64 MiB.
    pub shm_size_bytes: i64,
    /// Network namespace.
    pub network: Namespace,
    /// Process namespace.
    pub pid: Namespace,
    /// IPC namespace.
    pub ipc: Namespace,
    /// Without /dev/shm.
    pub without_shm: bool,
    /// The /dev/shm of whoever the IPC namespace is shared with; `None`: one of its own, or the machine's.
    pub shared_memory: Option<PathBuf>,
    /// See the machine's control groups.
    pub host_cgroups: bool,
    /// UTS namespace.
    pub uts: Namespace,
    /// Capabilities by name, with or without `CAP_`.
    pub capabilities: BTreeSet<String>,
    /// Everything allowed.
    pub privileged: bool,
    /// No gain of privileges by execve.
    pub no_new_privileges: bool,
    /// System calls.
    pub seccomp: Seccomp,
    /// Devices beside the usual ones, with their permissions (`rwm`).
    pub devices: Vec<(LinuxDevice, String)>,
    /// Paths made unreadable.
    pub masked_paths: Vec<String>,
    /// Paths made unwritable.
    pub readonly_paths: Vec<String>,
    /// Bounds.
    pub bounds: Bounds,
    /// Resource limits: name without `RLIMIT_`, soft, hard; −1 means none.
    pub rlimits: Vec<(String, i64, i64)>,
    /// Kernel settings.
    pub sysctls: BTreeMap<String, String>,
    /// OOM score adjustment.
    pub oom_score_adj: Option<i32>,
}

/// The default capabilities with some added and some dropped; `ALL` works in both lists.
#[must_use]
pub fn capabilities(add: &[String], drop: &[String]) -> BTreeSet<String> {
    let plain = |name: &String| name.to_uppercase().trim_start_matches("CAP_").to_owned();
    let (add, drop): (Vec<_>, Vec<_>) = (add.iter().map(plain).collect(), drop.iter().map(plain).collect());
    let all = |list: &[String]| list.iter().any(|n| n == "ALL");
    let base: &[&str] = match (all(&add), all(&drop)) {
        (true, _) => &ALL_CAPABILITIES,
        (false, true) => &[],
        (false, false) => &api::container::DEFAULT_CAPABILITIES,
    };
    let mut set: BTreeSet<String> = base.iter().map(|n| (*n).to_owned()).collect();
    set.retain(|n| !drop.contains(n));
    set.extend(add.into_iter().filter(|n| n != "ALL"));
    set
}

/// What this machine lets the daemon give away.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The daemon's own capabilities as a bit set.
    pub capabilities: u64,
}

impl Machine {
    /// Reads the daemon's own capabilities.
    #[must_use]
    pub fn of_this_process() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
        Self { capabilities: line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok()).unwrap_or(0) }
    }

    fn has(&self, name: &str) -> bool {
        ALL_CAPABILITIES.iter().position(|n| *n == name).is_some_and(|bit| self.capabilities >> bit & 1 == 1)
    }
}

impl Launch {
    /// The OCI specification.
    ///
    /// Errors: a value that the specification cannot hold.
    pub fn specification(&self, machine: &Machine) -> runtime::Result<Spec> {
        let mut root = Root::default();
        root.set_path(self.rootfs.clone()).set_readonly(Some(self.read_only_root));
        let mut spec = Spec::default();
        spec.set_version("1.0.2".to_owned())
            .set_root(Some(root))
            .set_process(Some(self.process(machine)))
            .set_mounts(Some(self.mounts()))
            .set_annotations(None)
            .set_linux(Some(self.linux(machine)?));
        let own_uts = self.uts == Namespace::Private;
        spec.set_hostname(own_uts.then(|| self.hostname.clone()).filter(|h| !h.is_empty()));
        spec.set_domainname(own_uts.then(|| self.domainname.clone()).filter(|d| !d.is_empty()));
        Ok(spec)
    }

    /// Capabilities that can be given: what the daemon does not have the OCI runtime would refuse with the whole container.
    fn given(&self, machine: &Machine) -> Capabilities {
        let names: Vec<&str> = if self.privileged {
            ALL_CAPABILITIES.to_vec()
        } else {
            self.capabilities.iter().map(String::as_str).collect()
        };
        names.into_iter().filter(|n| machine.has(n)).filter_map(|n| n.parse::<Capability>().ok()).collect()
    }

    fn process(&self, machine: &Machine) -> Process {
        let mut user = User::default();
        user.set_uid(self.identity.uid).set_gid(self.identity.gid);
        // The group itself is among the further ones: a file that denies it must not be open to a process that left it.
        let mut groups = vec![self.identity.gid];
        groups.extend(self.identity.groups.iter().filter(|group| **group != self.identity.gid));
        user.set_additional_gids(Some(groups));
        let given = self.given(machine);
        let none = Capabilities::new();
        // A user other than root only keeps what its program files grant, as everywhere on Linux.
        let active = if self.identity.uid == 0 { given.clone() } else { none.clone() };
        let mut capabilities = LinuxCapabilities::default();
        capabilities
            .set_bounding(Some(given))
            .set_effective(Some(active.clone()))
            .set_permitted(Some(active))
            .set_inheritable(Some(none.clone()))
            .set_ambient(Some(none));
        let cwd = if self.working_directory.is_empty() { "/" } else { &self.working_directory };
        let mut process = Process::default();
        process
            .set_terminal(Some(self.terminal))
            .set_user(user)
            .set_args(Some(self.command.clone()))
            .set_env(Some(self.environment.clone()))
            .set_cwd(cwd.into())
            .set_capabilities(Some(capabilities))
            .set_rlimits(Some(self.rlimits.iter().filter_map(rlimit).collect()))
            .set_no_new_privileges(Some(self.no_new_privileges))
            .set_oom_score_adj(
                self.oom_score_adj.map(|adj| if machine.has("SYS_RESOURCE") { adj } else { adj.max(0) }),
            );
        process
    }

    fn mounts(&self) -> Vec<Mount> {
        let shm = if self.shm_size_bytes > 0 { self.shm_size_bytes } else { 64 << 20 };
        let sys = if self.privileged { "rw" } else { "ro" };
        let mut list = vec![
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", sys]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ];
        // Who shares the IPC namespace shares its memory; message queues belong to the namespace, and are mounted anew.
        let shared_memory = match &self.ipc {
            Namespace::Host => Some(PathBuf::from("/dev/shm")),
            Namespace::Path(path) if self.shared_memory.is_none() => {
                path.parent().and_then(|ns| Some(ns.parent()?.join("root/dev/shm")))
            }
            Namespace::Path(_) | Namespace::Private => self.shared_memory.clone(),
        };
        if self.without_shm || self.mounts.iter().any(|m| m.target == "/dev/shm") {
            // The user's own, or none.
        } else if let Some(source) = shared_memory {
            list.push(mount("/dev/shm", "bind", &source.to_string_lossy(), &["rbind", "nosuid", "noexec", "nodev"]));
        } else {
            let size = format!("size={shm}");
            list.push(mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size]));
        }
        list.extend(self.mounts.iter().map(MountPoint::oci));
        // Parents first: a mount must not be hidden by a later one above it.
        let usual = list.len() - self.mounts.len();
        list[usual..].sort_by_key(|m| m.destination().components().count());
        list
    }

    fn linux(&self, machine: &Machine) -> runtime::Result<Linux> {
        let mut linux = Linux::default();
        let mut namespaces = vec![namespace(LinuxNamespaceType::Mount, None)];
        if !self.privileged && !self.host_cgroups {
            namespaces.push(namespace(LinuxNamespaceType::Cgroup, None));
        }
        for (kind, from) in [
            (LinuxNamespaceType::Network, &self.network),
            (LinuxNamespaceType::Pid, &self.pid),
            (LinuxNamespaceType::Ipc, &self.ipc),
            (LinuxNamespaceType::Uts, &self.uts),
        ] {
            match from {
                Namespace::Private => namespaces.push(namespace(kind, None)),
                Namespace::Path(path) => namespaces.push(namespace(kind, Some(path.clone()))),
                Namespace::Host => {}
            }
        }
        let seccomp = match &self.seccomp {
            _ if self.privileged => None,
            Seccomp::Standard => Some(runtime::spec::default_profile(&self.given(machine))?),
            Seccomp::Unconfined => None,
            Seccomp::Profile(profile) => Some((**profile).clone()),
        };
        let paths = |list: &[String]| Some(if self.privileged { Vec::new() } else { list.to_vec() });
        linux
            .set_namespaces(Some(namespaces))
            .set_seccomp(seccomp)
            .set_masked_paths(paths(&self.masked_paths))
            .set_readonly_paths(paths(&self.readonly_paths))
            .set_devices(Some(self.devices.iter().map(|d| d.0.clone()).collect()))
            .set_sysctl((!self.sysctls.is_empty()).then(|| self.sysctls.clone().into_iter().collect()))
            .set_resources(Some(self.resources()?));
        let spreads = |word: &str| {
            self.mounts.iter().any(|mount| match &mount.place {
                Place::Bind { propagation, .. } | Place::BindAlone { propagation, .. } => propagation.contains(word),
                Place::Tmpfs { .. } | Place::FileSystem { .. } => false,
            })
        };
        linux.set_rootfs_propagation(match (spreads("shared"), spreads("slave")) {
            (true, _) => Some("rshared".to_owned()),
            (false, true) => Some("rslave".to_owned()),
            _ => None,
        });
        Ok(linux)
    }

    fn resources(&self) -> runtime::Result<LinuxResources> {
        let mut resources = self.bounds.resources();
        resources.set_devices(Some(self.device_rules()?));
        Ok(resources)
    }

    fn device_rules(&self) -> runtime::Result<Vec<LinuxDeviceCgroup>> {
        let mut rules = if self.privileged {
            let mut every = LinuxDeviceCgroup::default();
            every.set_allow(true).set_access(Some("rwm".to_owned()));
            vec![every]
        } else {
            runtime::spec::default_device_rules()?
        };
        for (device, access) in &self.devices {
            let mut rule = LinuxDeviceCgroup::from(device);
            rule.set_access(Some(access.clone()));
            rules.push(rule);
        }
        Ok(rules)
    }
}

fn namespace(kind: LinuxNamespaceType, path: Option<PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(path);
    namespace
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(target.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
    mount
}

impl MountPoint {
    fn oci(&self) -> Mount {
        let access = if self.access == Access::Writable { "rw" } else { "ro" };
        let bind = |kind: &str, source: &Path, propagation: &str| {
            let usual = if kind == "bind" { "private" } else { "rprivate" };
            let propagation = if propagation.is_empty() { usual } else { propagation };
            let options = [&[kind, propagation], self.access.words()].concat();
            mount(&self.target, "bind", &source.to_string_lossy(), &options)
        };
        match &self.place {
            Place::Bind { source, propagation } => bind("rbind", source, propagation),
            // crun takes the `r` of a propagation for one of the bind; nothing is below that it could mean.
            Place::BindAlone { source, propagation } => {
                bind("bind", source, propagation.strip_prefix('r').unwrap_or(propagation))
            }
            Place::Tmpfs { size_bytes, mode, options: further } => {
                let (mode, size) = (format!("mode={mode:o}"), format!("size={size_bytes}"));
                // One that is allowed takes the place of its refusal.
                let allowed = |refusal: &&str| !further.iter().any(|word| refusal.strip_prefix("no") == Some(word));
                let mut options: Vec<&str> = ["nosuid", "nodev", "noexec"].into_iter().filter(allowed).collect();
                options.extend([access, mode.as_str()]);
                if *size_bytes > 0 {
                    options.push(&size);
                }
                let granted = |word: &str| matches!(word, "suid" | "dev" | "exec");
                options.extend(further.iter().map(String::as_str).filter(|word| !granted(word)));
                mount(&self.target, "tmpfs", "tmpfs", &options)
            }
            Place::FileSystem { kind, source, options } => {
                let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
                options.push(access);
                mount(&self.target, kind, source, &options)
            }
        }
    }
}

fn rlimit((name, soft, hard): &(String, i64, i64)) -> Option<PosixRlimit> {
    let kind: PosixRlimitType = serde_json::from_value(format!("RLIMIT_{}", name.to_uppercase()).into()).ok()?;
    let value = |v: i64| u64::try_from(v).unwrap_or(u64::MAX);
    runtime::spec::resource_limit(kind, value(*soft), value(*hard)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { capabilities: u64::MAX };

    #[test]
    fn capabilities_are_added_and_dropped_by_name() {
        let set = |add: &[&str], drop: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            capabilities(&own(add), &own(drop))
        };
        assert_eq!(set(&[], &[]).len(), api::container::DEFAULT_CAPABILITIES.len());
        assert_eq!(set(&["NET_ADMIN"], &["ALL"]).into_iter().collect::<Vec<_>>(), ["NET_ADMIN"]);
        assert_eq!(set(&["cap_net_admin"], &["CAP_MKNOD"]).len(), api::container::DEFAULT_CAPABILITIES.len());
        assert_eq!(set(&["ALL"], &["SYS_ADMIN"]).len(), ALL_CAPABILITIES.len() - 1);
        assert!(set(&["ALL"], &[]).iter().all(|n| n.parse::<Capability>().is_ok()));
    }

    #[test]
    fn a_user_other_than_root_has_no_active_capability() {
        let mut launch = Launch { capabilities: capabilities(&[], &[]), ..Launch::default() };
        launch.identity.uid = 1000;
        let spec = launch.specification(&MACHINE).unwrap();
        let given = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap();
        assert!(given.effective().as_ref().unwrap().is_empty());
        assert_eq!(given.bounding().as_ref().unwrap().len(), api::container::DEFAULT_CAPABILITIES.len());
    }

    #[test]
    fn mounts_come_parents_first_and_shm_only_once() {
        let bind = |target: &str| MountPoint {
            target: target.into(),
            place: Place::Bind { source: "/x".into(), propagation: String::new() },
            access: Access::ReadOnly,
        };
        let launch = Launch { mounts: vec![bind("/a/b/c"), bind("/dev/shm"), bind("/a")], ..Launch::default() };
        let spec = launch.specification(&MACHINE).unwrap();
        let targets: Vec<_> =
            spec.mounts().as_ref().unwrap().iter().map(|m| m.destination().display().to_string()).collect();
        assert_eq!(targets[6..], ["/a", "/dev/shm", "/a/b/c"]);
        assert_eq!(spec.mounts().as_ref().unwrap()[6].options().as_ref().unwrap()[..], ["rbind", "rprivate", "ro"]);
    }

    #[test]
    fn options_of_memory_go_over_the_usual_ones() {
        let options = vec!["exec".to_owned(), "uid=5".to_owned(), "nosuid".to_owned()];
        let place = Place::Tmpfs { size_bytes: 0, mode: 0o700, options };
        let mount = MountPoint { target: "/t".into(), place, access: Access::Writable }.oci();
        assert_eq!(mount.options().as_ref().unwrap()[..], ["nosuid", "nodev", "rw", "mode=700", "uid=5", "nosuid"]);
    }

    #[test]
    fn what_is_mounted_below_is_made_unwritable_where_that_is_asked_for() {
        let options = |access: Access, place: Place| {
            let mount = MountPoint { target: "/t".into(), place, access }.oci();
            mount.options().clone().unwrap().join(",")
        };
        let bind = || Place::Bind { source: "/x".into(), propagation: "rslave".into() };
        assert_eq!(options(Access::Writable, bind()), "rbind,rslave,rw");
        assert_eq!(options(Access::ReadOnly, bind()), "rbind,rslave,ro");
        assert_eq!(options(Access::ReadOnlyThroughout, bind()), "rbind,rslave,ro,rro");
        let alone = |propagation: &str| Place::BindAlone { source: "/x".into(), propagation: propagation.into() };
        assert_eq!(options(Access::Writable, alone("")), "bind,private,rw");
        assert_eq!(options(Access::ReadOnly, alone("rslave")), "bind,slave,ro");
        // Nothing lies below a file system of its own.
        let other = Place::FileSystem { kind: "nfs".into(), source: ":/x".into(), options: Vec::new() };
        assert_eq!(options(Access::ReadOnlyThroughout, other), "ro");
    }

    #[test]
    fn a_lower_oom_score_needs_the_capability() {
        let launch = Launch { oom_score_adj: Some(-997), ..Launch::default() };
        let adj = |m: Machine| launch.specification(&m).unwrap().process().as_ref().unwrap().oom_score_adj();
        assert_eq!(adj(MACHINE), Some(-997));
        assert_eq!(adj(Machine { capabilities: 0 }), Some(0));
    }
}
