//! The pure translation of a create request to a `ContainerSpec`. No I/O: what must be looked up (image, networks, other
//! containers) comes in through [`Surroundings`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::ContainerSpec;
use api::container::{
    ALL_CAPABILITIES, Desired, DeviceRate, HealthCheck, Link, NetworkEndpoint, PortMapping, Resources, RestartPolicy,
    Security, Ulimit,
};

use super::mounts;
use super::wire::{CreateRequest, EndpointConfig, HealthConfig, HostConfig, LogConfig, RestartRequest};
use crate::error::{Error, Result};

/// Least memory bound that Docker accepts. Units: bytes.
const MEMORY_MIN_BYTES: i64 = 6 << 20;
/// Most words of a command and lines of an environment together, against specs that swamp the store.
const LIST_MAX: usize = 20_000;

/// What an image says about containers made from it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ImageDefaults {
    pub(crate) id: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) working_directory: String,
    pub(crate) user: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) exposed_ports: Vec<String>,
    pub(crate) volumes: Vec<String>,
    pub(crate) stop_signal: String,
    pub(crate) healthcheck: Option<HealthConfig>,
    /// The image is looked at only where the container starts, which completes what it leaves open.
    pub(crate) later: bool,
}

/// What the translation must look up.
pub(crate) trait Surroundings {
    /// Object name of the network that a user names.
    fn network_object(&self, reference: &str) -> Result<String>;
    /// Subnet that the user chose for a network (by object name).
    fn network_subnets(&self, object: &str) -> Vec<String>;
    /// Full id and spec of another container.
    fn other_container(&self, reference: &str) -> Result<(String, ContainerSpec)>;
}

/// A translated request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Translated {
    pub(crate) spec: ContainerSpec,
    /// Names of anonymous volumes that the container brings along.
    pub(crate) anonymous_volumes: Vec<String>,
    /// Settings of named volumes that come with their mounts, by volume name.
    pub(crate) volume_settings: BTreeMap<String, mounts::VolumeSettings>,
    /// Asked for beyond what the spec can say (cgroup parent, volumes in disguise).
    pub(crate) privileges: Vec<crate::policy::Privilege>,
    pub(crate) warnings: Vec<String>,
}

/// Translates a request.
///
/// Errors: [`Error::Invalid`] in Docker's words, or what [`Surroundings`] says.
pub(crate) fn translate(
    name: &str,
    request: &CreateRequest,
    image: &ImageDefaults,
    around: &dyn Surroundings,
) -> Result<Translated> {
    let host: HostConfig = if request.host_config.is_null() {
        HostConfig::default()
    } else {
        serde_json::from_value(request.host_config.clone()).map_err(|e| Error::Invalid(format!("invalid JSON: {e}")))?
    };
    let mut out = Translated::default();
    check(request, &host)?;
    let (command, entrypoint_length) = command(request, image)?;
    let spec = &mut out.spec;
    spec.name = name.to_owned();
    spec.desired = Desired::Created;
    spec.image = request.image.clone();
    spec.image_id = image.id.clone();
    spec.command = command;
    spec.entrypoint_length = entrypoint_length;
    spec.environment = environment(&request.env, &image.environment)?;
    spec.working_directory = or(&request.working_dir, &image.working_directory);
    spec.user = or(&request.user, &image.user);
    spec.hostname = request.hostname.clone();
    spec.domainname = request.domainname.clone();
    spec.terminal = request.tty;
    spec.open_stdin = request.open_stdin;
    spec.stdin_once = request.stdin_once;
    spec.labels = image.labels.clone().into_iter().chain(request.labels.clone()).collect();
    spec.auto_remove = host.auto_remove;
    spec.restart_policy = RestartPolicy {
        name: if host.restart_policy.name.is_empty() { "no".into() } else { host.restart_policy.name.clone() },
        maximum_retry_count: host.restart_policy.maximum_retry_count,
    };
    spec.stop_signal = or(&request.stop_signal, &image.stop_signal);
    spec.stop_timeout_seconds = request.stop_timeout;
    spec.healthcheck = healthcheck(request.healthcheck.clone(), image.healthcheck.clone());
    spec.dns = host.dns.clone();
    spec.dns_search = host.dns_search.clone();
    spec.dns_options = host.dns_options.clone();
    spec.extra_hosts = host.extra_hosts.clone();
    spec.init = host.init.unwrap_or(false);
    spec.shm_size_bytes = host.shm_size;
    spec.sysctls = host.sysctls.clone();
    spec.ulimits = host.ulimits.iter().map(|u| Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard }).collect();
    spec.resources = resources(&host)?;
    spec.security = security(&host, around)?;
    spec.log_driver.clone_from(&host.log_config.kind);
    (spec.log_max_size_bytes, spec.log_max_files) = log_bounds(&host.log_config)?;
    if spec.log_driver == "journald" {
        spec.log_options.clone_from(&host.log_config.config);
    }
    networks(request, &host, around, &mut out)?;
    ports(request, &host, image, &mut out)?;
    mounts::translate(request, &host, image, around, &mut out)?;
    if host.blkio_weight != 0 && !block_weight_supported() {
        out.warnings.push(
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.".into(),
        );
    }
    if !host.cgroup_parent.is_empty() {
        out.privileges.push(crate::policy::Privilege::CgroupParent(host.cgroup_parent.clone()));
    }
    if !host.device_cgroup_rules.is_empty() {
        out.privileges.push(crate::policy::Privilege::Device(host.device_cgroup_rules.join(", ")));
    }
    if !host.device_requests.is_empty() {
        return Err(Error::Invalid("could not select device driver \"\" with capabilities: [[gpu]]".into()));
    }
    if host.userns_mode == "host" {
        out.privileges.push(crate::policy::Privilege::HostNamespace("user"));
    }
    if host.cgroupns_mode == "host" {
        out.privileges.push(crate::policy::Privilege::HostNamespace("cgroup"));
    }
    Ok(out)
}

fn or(first: &str, second: &str) -> String {
    if first.is_empty() { second.to_owned() } else { first.to_owned() }
}

/// Whether this kernel can weigh input and output.
fn block_weight_supported() -> bool {
    let files = ["/sys/fs/cgroup/blkio/blkio.weight", "/sys/fs/cgroup/blkio/blkio.bfq.weight"];
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    unified || files.iter().any(|file| std::path::Path::new(file).exists())
}

/// What Docker checks before anything else.
fn check(request: &CreateRequest, host: &HostConfig) -> Result<()> {
    if !request.working_dir.is_empty() && !request.working_dir.starts_with('/') {
        return Err(Error::Invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            request.working_dir
        )));
    }
    let words = request.cmd.as_ref().map_or(0, |w| w.0.len()) + request.entrypoint.as_ref().map_or(0, |w| w.0.len());
    if words + request.env.len() + request.labels.len() > LIST_MAX {
        return Err(Error::Invalid("the configuration is too long".into()));
    }
    if request.stop_timeout.is_some_and(|seconds| seconds < -1) {
        return Err(Error::Invalid("invalid stop timeout".into()));
    }
    if !request.stop_signal.is_empty() {
        super::signals::parse(&request.stop_signal)?;
    }
    check_restart(&host.restart_policy, host.auto_remove)?;
    if let Some(health) = &request.healthcheck {
        let least = 1_000_000;
        let fields = [
            ("Interval", health.interval),
            ("Timeout", health.timeout),
            ("StartPeriod", health.start_period),
            ("StartInterval", health.start_interval),
        ];
        for (name, value) in fields {
            if value != 0 && value < least {
                return Err(Error::Invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
            }
        }
        if health.retries < 0 {
            return Err(Error::Invalid("Retries in Healthcheck cannot be negative".into()));
        }
    }
    if !matches!(host.runtime.as_str(), "" | "runc" | "io.containerd.runc.v2") {
        return Err(Error::Invalid(format!("unknown or invalid runtime name: {}", host.runtime)));
    }
    if !host.storage_opt.is_empty() {
        // A bound that nothing holds must not be taken as if it held. Source: moby `overlay2.CreateReadWrite`.
        let text = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option";
        return Err(Error::Internal(text.into()));
    }
    if !matches!(host.isolation.as_str(), "" | "default") {
        let isolation = crate::text::quote(&host.isolation);
        return Err(Error::Invalid(format!("Invalid isolation: {isolation} - linux only supports 'default'")));
    }
    for (field, list) in [("CapAdd", &host.cap_add), ("CapDrop", &host.cap_drop)] {
        for name in list.iter().flat_map(|words| &words.0) {
            let upper = name.to_ascii_uppercase();
            let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if plain != "ALL" && !ALL_CAPABILITIES.contains(&plain) {
                let shown = crate::text::quote(&format!("CAP_{plain}"));
                return Err(Error::Invalid(format!("invalid {field}: unknown capability: {shown}")));
            }
        }
    }
    Ok(())
}

/// Docker's rules for restart policies.
pub(crate) fn check_restart(policy: &RestartRequest, auto_remove: bool) -> Result<()> {
    match policy.name.as_str() {
        "always" | "unless-stopped" | "no" if policy.maximum_retry_count != 0 => {
            let text = if policy.maximum_retry_count < 0 { " and cannot be negative" } else { "" };
            Err(Error::Invalid(format!(
                "invalid restart policy: maximum retry count can only be used with 'on-failure'{text}"
            )))
        }
        "on-failure" if policy.maximum_retry_count < 0 => {
            Err(Error::Invalid("invalid restart policy: maximum retry count cannot be negative".into()))
        }
        "always" | "unless-stopped" | "on-failure" if auto_remove => {
            Err(Error::Invalid("can't create 'AutoRemove' container with restart policy".into()))
        }
        "" | "no" | "always" | "unless-stopped" | "on-failure" => Ok(()),
        other => Err(Error::Invalid(format!(
            "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ))),
    }
}

/// Entry point and command by Docker's merge rule, and the length of the entry point.
fn command(request: &CreateRequest, image: &ImageDefaults) -> Result<(Vec<String>, usize)> {
    let mut cmd = request.cmd.clone().unwrap_or_default().0;
    let mut entrypoint = request.entrypoint.clone().map(|words| words.0);
    if entrypoint.as_ref().is_none_or(Vec::is_empty) {
        if cmd.is_empty() {
            cmd.clone_from(&image.cmd);
        }
        if entrypoint.is_none() {
            entrypoint = Some(image.entrypoint.clone());
        }
    }
    let mut entrypoint = entrypoint.unwrap_or_default();
    if entrypoint.len() == 1 && entrypoint[0].is_empty() {
        entrypoint.clear();
    }
    let length = entrypoint.len();
    entrypoint.extend(cmd);
    if entrypoint.is_empty() && !image.later {
        return Err(Error::Invalid("no command specified".into()));
    }
    Ok((entrypoint, length))
}

/// The user's variables, then those of the image that the user does not set.
fn environment(own: &[String], image: &[String]) -> Result<Vec<String>> {
    let key = |line: &str| line.split('=').next().unwrap_or("").to_owned();
    if let Some(bad) = own.iter().find(|line| key(line).is_empty()) {
        return Err(Error::Invalid(format!("invalid environment variable: {bad}")));
    }
    let taken: BTreeSet<String> = own.iter().map(|line| key(line)).collect();
    let inherited = image.iter().filter(|line| !taken.contains(&key(line)));
    Ok(own.iter().chain(inherited).cloned().collect())
}

/// The image's health check, with what the user sets over it.
fn healthcheck(own: Option<HealthConfig>, image: Option<HealthConfig>) -> Option<HealthCheck> {
    let merged = match (own, image) {
        (None, image) => image,
        (Some(own), None) => Some(own),
        (Some(own), Some(image)) => {
            let pick = |a: i64, b: i64| if a == 0 { b } else { a };
            Some(HealthConfig {
                test: if own.test.is_empty() { image.test } else { own.test },
                interval: pick(own.interval, image.interval),
                timeout: pick(own.timeout, image.timeout),
                start_period: pick(own.start_period, image.start_period),
                start_interval: pick(own.start_interval, image.start_interval),
                retries: pick(own.retries, image.retries),
            })
        }
    };
    merged.filter(|check| !check.test.is_empty()).map(HealthConfig::into_object)
}

/// Bounds, with Docker's checks.
pub(crate) fn resources(host: &HostConfig) -> Result<Resources> {
    let invalid = |text: &str| Err(Error::Invalid(text.to_owned()));
    if host.memory != 0 && host.memory < MEMORY_MIN_BYTES {
        return invalid("Minimum memory limit allowed is 6MB");
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return invalid("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if host.memory == 0 && host.memory_swap > 0 {
        return invalid("You should always set the Memory limit when using Memoryswap limit, see usage");
    }
    if host.memory > 0 && host.memory_reservation > 0 && host.memory < host.memory_reservation {
        return invalid("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    check_processors(host)?;
    if host.nano_cpus > 0 && (host.cpu_quota > 0 || host.cpu_period > 0) {
        return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set");
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1000 {
        return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if host.cpu_period != 0 && !(1000..=1_000_000).contains(&host.cpu_period) {
        return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)");
    }
    if host.cpu_shares < 0 {
        return Err(Error::Invalid(format!(
            "invalid CPU shares ({}): value must be a positive integer",
            host.cpu_shares
        )));
    }
    if host.shm_size < 0 {
        return invalid("SHM size can not be less than 0");
    }
    Ok(Resources {
        nano_cpus: host.nano_cpus,
        cpu_shares: host.cpu_shares,
        cpu_quota_us: host.cpu_quota,
        cpu_period_us: host.cpu_period,
        cpuset_cpus: host.cpuset_cpus.clone(),
        cpuset_mems: host.cpuset_mems.clone(),
        device_rates: device_rates(host),
        memory_bytes: host.memory,
        memory_swap_bytes: host.memory_swap,
        memory_reservation_bytes: host.memory_reservation,
        pids_limit: host.pids_limit.max(0),
        oom_kill_disable: host.oom_kill_disable,
    })
}

/// The processors that this machine has bound what may be asked for.
fn check_processors(host: &HostConfig) -> Result<()> {
    let count = i64::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(i64::MAX);
    if host.nano_cpus < 0 || host.nano_cpus > count.saturating_mul(1_000_000_000) {
        return Err(Error::Invalid(format!(
            "Range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available"
        )));
    }
    for (name, kind, wanted, available) in [
        ("CPUs", "cpus", &host.cpuset_cpus, "/sys/devices/system/cpu/online"),
        ("memory nodes", "mems", &host.cpuset_mems, "/sys/devices/system/node/online"),
    ] {
        if wanted.is_empty() {
            continue;
        }
        let asked =
            number_list(wanted).ok_or_else(|| Error::Invalid(format!("Invalid value {wanted} for cpuset {kind}")))?;
        let there = std::fs::read_to_string(available).unwrap_or_else(|_| "0".into());
        let have = number_list(there.trim()).unwrap_or_default();
        if !asked.iter().all(|number| have.contains(number)) {
            return Err(Error::Invalid(format!(
                "Requested {name} are not available - requested {wanted}, available: {}",
                there.trim()
            )));
        }
    }
    Ok(())
}

/// Reads `0-2,5`; `None` when it is no such list, or one beyond any machine.
fn number_list(text: &str) -> Option<BTreeSet<u32>> {
    const HIGHEST: u32 = 8_192;
    let mut numbers = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last > HIGHEST || first > last {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

fn device_rates(host: &HostConfig) -> Vec<DeviceRate> {
    let lists = [
        ("readBytes", &host.blkio_device_read_bps),
        ("writeBytes", &host.blkio_device_write_bps),
        ("readOperations", &host.blkio_device_read_iops),
        ("writeOperations", &host.blkio_device_write_iops),
    ];
    let rates = lists.into_iter().flat_map(|(kind, list)| {
        list.iter().map(move |one| DeviceRate { kind: kind.to_owned(), path: one.path.clone(), rate: one.rate })
    });
    rates.collect()
}

/// Security settings out of `HostConfig` and its `SecurityOpt` lines.
fn security(host: &HostConfig, around: &dyn Surroundings) -> Result<Security> {
    let mut security = Security {
        privileged: host.privileged,
        capabilities_add: host.cap_add.clone().unwrap_or_default().0,
        capabilities_drop: host.cap_drop.clone().unwrap_or_default().0,
        read_only_root: host.readonly_rootfs,
        groups: host.group_add.clone(),
        pid_mode: mode(&host.pid_mode, around)?,
        ipc_mode: mode(&host.ipc_mode, around)?,
        uts_mode: host.uts_mode.clone(),
        masked_paths: host.masked_paths.clone(),
        readonly_paths: host.readonly_paths.clone(),
        oom_score_adj: host.oom_score_adj,
        ..Security::default()
    };
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(Error::Invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        )));
    }
    for device in &host.devices {
        let inside = or(&device.path_in_container, &device.path_on_host);
        let permissions = or(&device.cgroup_permissions, "rwm");
        security.devices.push(format!("{}:{inside}:{permissions}", device.path_on_host));
    }
    for option in &host.security_opt {
        let (key, value) = match option.split_once('=').or_else(|| option.split_once(':')) {
            Some(pair) => pair,
            None => (option.as_str(), ""),
        };
        match (key, value) {
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => security.no_new_privileges = false,
            ("seccomp", "builtin" | "default") => security.seccomp = "default".into(),
            ("seccomp", profile) if !profile.is_empty() => security.seccomp = profile.to_owned(),
            ("systempaths", "unconfined") => {
                security.masked_paths = Some(Vec::new());
                security.readonly_paths = Some(Vec::new());
            }
            // There is neither AppArmor nor SELinux to switch off; accepted as Docker does on such hosts.
            ("apparmor" | "label", _) => {}
            _ => return Err(Error::Invalid(format!("invalid --security-opt: {}", crate::text::quote(option)))),
        }
    }
    Ok(security)
}

/// A namespace mode, with another container's reference made a full id.
fn mode(mode: &str, around: &dyn Surroundings) -> Result<String> {
    match mode.strip_prefix("container:") {
        Some(other) => Ok(format!("container:{}", around.other_container(other)?.0)),
        None => Ok(mode.to_owned()),
    }
}

/// Log rotation out of the options of the json-file and local drivers.
fn log_bounds(log: &LogConfig) -> Result<(i64, i64)> {
    match log.kind.as_str() {
        "" | "json-file" | "local" | "none" => {}
        "journald" => return journald_options(log).map(|()| (0, 0)),
        other => {
            let quoted = crate::text::quote(other);
            return Err(Error::Invalid(format!("error looking up logging plugin {other}: plugin {quoted} not found")));
        }
    }
    let mut bounds = (0, 0);
    for (key, value) in &log.config {
        match key.as_str() {
            "max-size" => {
                let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                let factor: i64 = match value[digits.len()..].to_ascii_lowercase().as_str() {
                    "" | "b" => 1,
                    "k" | "kb" => 1 << 10,
                    "m" | "mb" => 1 << 20,
                    "g" | "gb" => 1 << 30,
                    _ => return Err(bad_size(value)),
                };
                let number: Option<i64> = digits.parse().ok().and_then(|n: i64| n.checked_mul(factor));
                bounds.0 = number.ok_or_else(|| bad_size(value))?;
            }
            "max-file" => {
                bounds.1 = value
                    .parse()
                    .ok()
                    .filter(|files| *files >= 1)
                    .ok_or_else(|| Error::Invalid("max-file cannot be less than 1".into()))?;
            }
            "compress" | "labels" | "labels-regex" | "env" | "env-regex" | "tag" | "mode" | "max-buffer-size" => {}
            other => {
                return Err(Error::Invalid(format!("unknown log opt '{other}' for json-file log driver")));
            }
        }
    }
    Ok(bounds)
}

/// What the driver `journald` takes.
fn journald_options(log: &LogConfig) -> Result<()> {
    for key in log.config.keys() {
        match key.as_str() {
            "labels" | "env" | "tag" | "mode" | "max-buffer-size" => {}
            "labels-regex" | "env-regex" => {
                return Err(Error::NotImplemented(format!("log opt '{key}' is not available for journald log driver")));
            }
            other => return Err(Error::Invalid(format!("unknown log opt '{other}' for journald log driver"))),
        }
    }
    Ok(())
}

fn bad_size(value: &str) -> Error {
    Error::Invalid(format!("failed to initialize logging driver: invalid size: '{value}'"))
}

/// Network mode and endpoints.
fn networks(request: &CreateRequest, host: &HostConfig, around: &dyn Surroundings, out: &mut Translated) -> Result<()> {
    let wanted = match host.network_mode.as_str() {
        "" | "default" => "bridge",
        mode => mode,
    };
    let spec = &mut out.spec;
    let mut endpoints: BTreeMap<String, NetworkEndpoint> = BTreeMap::new();
    for (name, config) in &request.networking_config.endpoints_config {
        config.as_ref().map_or(Ok(()), |config| check_addresses(name, config, around))?;
        let object = around.network_object(if name == "default" { "bridge" } else { name })?;
        endpoints.insert(object, config.clone().unwrap_or_default().into_object());
    }
    match wanted {
        "none" | "host" => spec.network_mode = wanted.to_owned(),
        _ if wanted.starts_with("container:") => {
            if !request.hostname.is_empty() {
                return Err(Error::Invalid("conflicting options: hostname and the network mode".into()));
            }
            if !host.port_bindings.is_empty() || host.publish_all_ports {
                return Err(Error::Invalid(
                    "conflicting options: port publishing and the container type network mode".into(),
                ));
            }
            spec.network_mode = mode(wanted, around)?;
        }
        _ => {
            let object = around.network_object(wanted)?;
            let has_options = endpoints.iter().any(|(name, e)| name != &object || *e != NetworkEndpoint::default());
            if object != api::names::DEFAULT_NETWORK || has_options {
                endpoints.entry(object.clone()).or_default();
            } else {
                endpoints.clear();
            }
            if !request.mac_address.is_empty() {
                let endpoint = endpoints.entry(object.clone()).or_default();
                if endpoint.mac_address.is_empty() {
                    endpoint.mac_address.clone_from(&request.mac_address);
                }
            }
            spec.network_mode = object;
            spec.networks = endpoints;
        }
    }
    for link in &host.links {
        let (other, alias) = link.split_once(':').unwrap_or((link, link));
        let (id, other_spec) = around
            .other_container(other)
            .map_err(|_| Error::Invalid(format!("could not get container for {other}: No such container: {other}")))?;
        let alias = alias.rsplit('/').next().unwrap_or(alias);
        let user_network = !matches!(spec.network_mode.as_str(), api::names::DEFAULT_NETWORK | "host" | "none");
        if user_network {
            // On a network with names of its own a link is one more name.
            let endpoint = spec.networks.entry(spec.network_mode.clone()).or_default();
            endpoint.links.push(format!("{}:{alias}", other_spec.name));
            continue;
        }
        spec.links.push(Link {
            container: id,
            name: other_spec.name.clone(),
            alias: alias.to_owned(),
            ports: other_spec.exposed_ports.clone(),
            environment: other_spec.environment.clone(),
        });
    }
    Ok(())
}

/// A chosen address needs a network whose addresses the user chose.
pub(super) fn check_addresses(network: &str, asked: &EndpointConfig, around: &dyn Surroundings) -> Result<()> {
    let Some(asked) = &asked.ipam_config else { return Ok(()) };
    let mut wanted: Vec<IpAddr> = Vec::new();
    for (family, address) in [("IPv4", &asked.ipv4_address), ("IPv6", &asked.ipv6_address)] {
        if !address.is_empty() {
            let ip: Option<IpAddr> = address.parse().ok().filter(|ip: &IpAddr| ip.is_ipv4() == (family == "IPv4"));
            wanted.push(ip.ok_or_else(|| Error::Invalid(format!("invalid {family} address: {address}")))?);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    if matches!(network, "" | "default" | "bridge" | "host" | "none") {
        return Err(Error::Invalid("user specified IP address is supported on user defined networks only".into()));
    }
    let subnets = around.network_subnets(&around.network_object(network)?);
    for ip in wanted {
        if !subnets.iter().any(|subnet| subnet.contains(':') == ip.is_ipv6()) {
            return Err(Error::Invalid(
                "user specified IP address is supported only when connecting to networks with user configured subnets"
                    .into(),
            ));
        }
        if !subnets.iter().any(|subnet| crate::cidr::holds(subnet, ip)) {
            return Err(Error::Invalid(format!(
                "Invalid address {ip}: It does not belong to any of this network's subnets"
            )));
        }
    }
    Ok(())
}

/// Exposed and published ports.
fn ports(request: &CreateRequest, host: &HostConfig, image: &ImageDefaults, out: &mut Translated) -> Result<()> {
    let mut exposed: BTreeSet<String> = image.exposed_ports.iter().cloned().collect();
    for port in request.exposed_ports.keys().chain(host.port_bindings.keys()) {
        parse_port(port)?;
        exposed.insert(if port.contains('/') { port.clone() } else { format!("{port}/tcp") });
    }
    let without_ports = matches!(out.spec.network_mode.as_str(), "host" | "none");
    if without_ports && !host.port_bindings.is_empty() && out.spec.network_mode == "host" {
        out.warnings.push("Published ports are discarded when using host network mode".into());
    }
    if !without_ports {
        for (port, bindings) in &host.port_bindings {
            let (container_port, protocol) = parse_port(port)?;
            for binding in bindings.iter().flatten() {
                let first = binding.host_port.split('-').next().unwrap_or("");
                let host_port = if first.is_empty() {
                    0
                } else {
                    first.parse().map_err(|_| {
                        Error::Invalid(format!(
                            "invalid port specification: {}",
                            crate::text::quote(&binding.host_port)
                        ))
                    })?
                };
                if !binding.host_ip.is_empty() && binding.host_ip.parse::<std::net::IpAddr>().is_err() {
                    return Err(Error::Invalid(format!("invalid IP address: {}", binding.host_ip)));
                }
                let protocol = protocol.clone();
                let host_ip = binding.host_ip.clone();
                out.spec.ports.push(PortMapping { container_port, protocol, host_ip, host_port });
            }
            if host.publish_all_ports && bindings.iter().flatten().next().is_none() {
                out.spec.ports.push(PortMapping { container_port, protocol, ..PortMapping::default() });
            }
        }
        if host.publish_all_ports {
            for port in exposed.iter().filter(|port| !host.port_bindings.contains_key(*port)) {
                let (container_port, protocol) = parse_port(port)?;
                out.spec.ports.push(PortMapping { container_port, protocol, ..PortMapping::default() });
            }
        }
    }
    out.spec.exposed_ports = exposed.into_iter().collect();
    Ok(())
}

/// `80`, `80/tcp`.
pub(crate) fn parse_port(text: &str) -> Result<(u16, String)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number = number.parse().ok().filter(|port| *port != 0);
    match (number, protocol.to_ascii_lowercase().as_str()) {
        (Some(number), protocol @ ("tcp" | "udp" | "sctp")) => Ok((number, protocol.to_owned())),
        (None, _) => Err(Error::Invalid(format!("invalid port specification: {}", crate::text::quote(text)))),
        (_, other) => Err(Error::Invalid(format!("invalid proto: {other}"))),
    }
}
