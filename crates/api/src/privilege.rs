//! What workloads ask of the machine itself: one pure function for each kind of them, which all who judge ask.

use std::collections::BTreeMap;

use crate::container::{ContainerSpec, DEFAULT_CAPABILITIES};
use crate::network::NetworkMode;
use crate::network_options::{BRIDGE_NAME, masquerades};
use crate::virtual_machine::VirtualMachineSpec;

/// What a request asks of the machine beyond an ordinary container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// `--privileged`, in run or exec.
    Privileged,
    /// A path of the host, by `-v /path:…`, or a volume that is one in disguise.
    HostPath(String),
    /// A namespace of the host: which one.
    HostNamespace(&'static str),
    /// A device.
    Device(String),
    /// A capability beyond the usual.
    Capability(String),
    /// seccomp, AppArmor, masked paths or a systempath switched off.
    Unconfined(String),
    /// A parent cgroup of its own choice.
    CgroupParent(String),
    /// The machine's own journal.
    Journal,
    /// An interface of the machine.
    Interface(String),
    /// A kernel setting, a score, or a runtime of its own choice.
    Kernel(String),
}

impl std::fmt::Display for Privilege {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Privilege::Privileged => f.write_str("privileged mode"),
            Privilege::HostPath(path) => write!(f, "mounting the host path {path}"),
            Privilege::HostNamespace(kind) => write!(f, "the host's {kind} namespace"),
            Privilege::Device(device) => write!(f, "the device {device}"),
            Privilege::Capability(name) => write!(f, "the capability {name}"),
            Privilege::Unconfined(what) => write!(f, "switching off {what}"),
            Privilege::CgroupParent(parent) => write!(f, "the parent cgroup {parent}"),
            Privilege::Journal => f.write_str("the machine's journal"),
            Privilege::Interface(which) => write!(f, "an interface of the machine {which}"),
            Privilege::Kernel(what) => write!(f, "setting {what}"),
        }
    }
}

/// Everything that a container's configuration asks for beyond the ordinary.
pub fn of_container(spec: &ContainerSpec) -> Vec<Privilege> {
    let mut asked = Vec::new();
    let security = &spec.security;
    if security.privileged {
        asked.push(Privilege::Privileged);
    }
    // Whatever is none of ours is taken for the worst.
    let of_host = |kind: &str| !matches!(kind, "tmpfs" | "volume" | "image");
    asked.extend(spec.mounts.iter().filter(|m| of_host(&m.kind)).map(|m| Privilege::HostPath(m.source.clone())));
    let host = |mode: &str| mode == "host" || mode.starts_with("host:");
    let modes = [
        ("network", &spec.network_mode),
        ("process", &security.pid_mode),
        ("IPC", &security.ipc_mode),
        ("UTS", &security.uts_mode),
        ("cgroup", &security.cgroup_mode),
    ];
    asked.extend(modes.into_iter().filter(|(_, mode)| host(mode)).map(|(kind, _)| Privilege::HostNamespace(kind)));
    if spec.networks.keys().any(|name| name == "host") {
        asked.push(Privilege::HostNamespace("network"));
    }
    asked.extend(security.devices.iter().map(|device| Privilege::Device(device.clone())));
    if !spec.resources.cgroup_parent.is_empty() {
        asked.push(Privilege::CgroupParent(spec.resources.cgroup_parent.clone()));
    }
    asked.extend(spec.resources.device_rates.iter().map(|rate| Privilege::Device(rate.path.clone())));
    for capability in &security.capabilities_add {
        let upper = capability.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        // A tenant may add what every container has anyway.
        if !DEFAULT_CAPABILITIES.contains(&name) {
            asked.push(Privilege::Capability(name.to_owned()));
        }
    }
    if !matches!(security.seccomp.as_str(), "" | "default") {
        asked.push(Privilege::Unconfined("or replacing the seccomp profile".into()));
    }
    if security.masked_paths.is_some() || security.readonly_paths.is_some() {
        asked.push(Privilege::Unconfined("the protection of /proc and /sys".into()));
    }
    if spec.log_driver == "journald" {
        asked.push(Privilege::Journal);
    }
    if spec.resources.pids_limit < 0 {
        asked.push(Privilege::Kernel("no bound on processes".into()));
    }
    if spec.resources.oom_kill_disable {
        asked.push(Privilege::Kernel("no end when memory runs out".into()));
    }
    if security.oom_score_adj < 0 {
        asked.push(Privilege::Kernel("a negative OOM score".into()));
    }
    let own_network = |name: &str| name.starts_with("net.");
    asked.extend(spec.sysctls.keys().filter(|name| !own_network(name)).map(|name| Privilege::Kernel(name.clone())));
    asked
}

/// Words among a volume's mount options that make it a path of the host, whatever its type says.
pub const BIND_WORDS: [&str; 2] = ["bind", "rbind"];

/// The words of a `local` volume's mount options (`o=size=1m,nodev`).
pub fn mount_words(options: &BTreeMap<String, String>) -> impl Iterator<Item = &str> {
    options.get("o").into_iter().flat_map(|words| words.split(',')).filter(|word| !word.is_empty())
}

/// A network on an interface of the machine, on a bridge of its own choice, or seen outside by addresses of its own choice.
pub fn of_network(mode: NetworkMode, options: &BTreeMap<String, String>) -> Vec<Privilege> {
    let bridged = (mode == NetworkMode::Bridged).then(|| Privilege::Interface("(mode bridged)".into()));
    let named = options.get(BRIDGE_NAME).map(|name| Privilege::Interface(format!("(bridge {name})")));
    // What cannot be read is refused by whoever makes the network. Other options do not count: one that cannot be had today may be later.
    let seen = masquerades(options).is_ok_and(|masquerades| !masquerades);
    let seen = seen.then(|| Privilege::Unconfined("the translation of source addresses".into()));
    bridged.into_iter().chain(named).chain(seen).collect()
}

/// A virtual machine whose guest reaches whatever listens on its host's side, past all networks.
pub fn of_machine(spec: &VirtualMachineSpec) -> Vec<Privilege> {
    spec.vsock.then(|| Privilege::Device("/dev/vhost-vsock".into())).into_iter().collect()
}

/// A `local` volume with options is a mount of the host in disguise.
pub fn of_volume(options: &BTreeMap<String, String>) -> Vec<Privilege> {
    let kind = options.get("type").map_or("", String::as_str);
    let device = options.get("device").map_or("", String::as_str);
    // These words count before the type does.
    if mount_words(options).any(|word| BIND_WORDS.contains(&word)) {
        return vec![Privilege::HostPath(device.to_owned())];
    }
    if kind == "tmpfs" || (device.is_empty() && kind.is_empty()) {
        return Vec::new();
    }
    vec![Privilege::HostPath(device.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Mount;
    use crate::network_options::MASQUERADE;

    #[test]
    fn no_word_disguises_a_path_of_the_host() {
        for kind in ["bind", "", "Bind", "x"] {
            let mount = Mount { kind: kind.into(), source: "/".into(), target: "/h".into(), ..Mount::default() };
            let spec = ContainerSpec { mounts: vec![mount], ..ContainerSpec::default() };
            assert_eq!(of_container(&spec), [Privilege::HostPath("/".into())], "{kind}");
        }
        let options = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let disguised = options(&[("type", "tmpfs"), ("o", "nodev,bind"), ("device", "/etc")]);
        assert_eq!(of_volume(&disguised), [Privilege::HostPath("/etc".into())]);
        assert!(of_volume(&options(&[("type", "tmpfs"), ("o", "size=1m"), ("device", "tmpfs")])).is_empty());
        assert!(of_volume(&options(&[])).is_empty());
        assert_eq!(of_network(NetworkMode::default(), &options(&[(BRIDGE_NAME, "br0")])).len(), 1);
        let seen = |value| of_network(NetworkMode::default(), &options(&[(MASQUERADE, value)]));
        assert_eq!(seen("F"), [Privilege::Unconfined("the translation of source addresses".into())]);
        assert!(seen("true").is_empty());
        let inhibit = ("com.docker.network.bridge.inhibit_ipv4", "1");
        let beside = of_network(NetworkMode::default(), &options(&[(MASQUERADE, "F"), inhibit]));
        assert_eq!(beside, seen("F"), "whatever else it asks for");
    }

    #[test]
    fn a_guest_that_reaches_the_machine_past_its_networks_asks_for_a_device() {
        let near = VirtualMachineSpec { vsock: true, ..VirtualMachineSpec::default() };
        assert_eq!(of_machine(&near), [Privilege::Device("/dev/vhost-vsock".into())]);
        assert!(of_machine(&VirtualMachineSpec::default()).is_empty());
    }
}
