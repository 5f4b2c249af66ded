//! The pure translation of a create request to a `ContainerSpec`. No I/O: what must be looked up (image, networks, other
//! containers) comes in through [`Surroundings`]. Bounds, networks and ports, logs and mounts have files of their own.

use std::collections::{BTreeMap, BTreeSet};

use api::ContainerSpec;
use api::container::{ALL_CAPABILITIES, Desired, HealthCheck, RestartPolicy, Security, Ulimit};

use super::wire::{CreateRequest, HealthConfig, HostConfig, RestartRequest};
use super::{bounds, connections, logging, mounts};
use crate::error::{Error, Result};

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
    /// Asked for beyond what the spec can say (device rules, volumes in disguise).
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
    check_name_servers(&host.dns)?;
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
    spec.resources = bounds::resources(&host)?;
    spec.security = security(&host, around)?;
    spec.log_driver.clone_from(&host.log_config.kind);
    (spec.log_max_size_bytes, spec.log_max_files) = logging::log_bounds(&host.log_config)?;
    spec.log_options.clone_from(&host.log_config.config);
    connections::networks(request, &host, around, &mut out)?;
    connections::ports(request, &host, image, &mut out)?;
    mounts::translate(request, &host, image, around, &mut out)?;
    let weighs = bounds::block_weight_supported();
    bounds::block_weight(&host, weighs, &mut out.spec.resources, &mut out.warnings)?;
    bounds::memory_behaviour(bounds::memory_behaviour_supported(), &mut out.spec.resources, &mut out.warnings);
    if !host.device_cgroup_rules.is_empty() {
        out.privileges.push(crate::policy::Privilege::Device(host.device_cgroup_rules.join(", ")));
    }
    if !host.device_requests.is_empty() {
        return Err(Error::Invalid("could not select device driver \"\" with capabilities: [[gpu]]".into()));
    }
    if host.userns_mode == "host" {
        out.privileges.push(crate::policy::Privilege::HostNamespace("user"));
    }
    Ok(out)
}

fn or(first: &str, second: &str) -> String {
    if first.is_empty() { second.to_owned() } else { first.to_owned() }
}

/// Name servers are addresses. `Source:` Go, `netip.ParseAddr`, by which dockerd reads them.
fn check_name_servers(servers: &[String]) -> Result<()> {
    let is_address = |server: &&String| match server.split_once('%') {
        Some((address, zone)) => address.parse::<std::net::Ipv6Addr>().is_ok() && !zone.is_empty(),
        None => server.parse::<std::net::IpAddr>().is_ok(),
    };
    match servers.iter().find(|server| !is_address(server)) {
        Some(bad) => {
            let quoted = crate::text::quote(bad);
            Err(Error::Invalid(format!("invalid JSON: ParseAddr({quoted}): unable to parse IP")))
        }
        None if servers.len() > LIST_MAX => Err(Error::Invalid("the configuration is too long".into())),
        None => Ok(()),
    }
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
    if host.uts_mode == "host" && !request.hostname.is_empty() {
        return Err(Error::Invalid("conflicting options: hostname and the UTS mode".into()));
    }
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

/// Security settings out of `HostConfig` and its `SecurityOpt` lines.
fn security(host: &HostConfig, around: &dyn Surroundings) -> Result<Security> {
    let mut security = Security {
        privileged: host.privileged,
        capabilities_add: host.cap_add.clone().unwrap_or_default().0,
        capabilities_drop: host.cap_drop.clone().unwrap_or_default().0,
        read_only_root: host.readonly_rootfs,
        groups: host.group_add.clone(),
        pid_mode: mode(&host.pid_mode, around)?,
        ipc_mode: ipc_mode(&host.ipc_mode, around)?,
        uts_mode: host.uts_mode.clone(),
        cgroup_mode: cgroup_mode(&host.cgroupns_mode)?,
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

/// The mode of the cgroup namespace; none is a namespace of its own. `Source:` moby, `verifyPlatformContainerSettings`.
fn cgroup_mode(asked: &str) -> Result<String> {
    match asked {
        "" | "private" => Ok(String::new()),
        "host" => Ok("host".to_owned()),
        other => Err(Error::Invalid(format!("invalid cgroup namespace mode: {other}"))),
    }
}

/// The IPC mode: that of another container is shared only where it offers it.
fn ipc_mode(asked: &str, around: &dyn Surroundings) -> Result<String> {
    let Some(other) = asked.strip_prefix("container:") else {
        return match asked {
            "" | "none" | "private" | "shareable" | "host" => Ok(asked.to_owned()),
            other => Err(Error::Invalid(format!("Invalid IPC mode: {other}"))),
        };
    };
    let (id, donor) = around.other_container(other)?;
    match donor.security.ipc_mode.as_str() {
        "shareable" => Ok(format!("container:{id}")),
        // What the donor has from elsewhere is taken from there: the machine's own, which who may not have it may not get through
        // a neighbour either, or that of the container that offers it.
        from if from == "host" || from.starts_with("container:") => Ok(from.to_owned()),
        _ => Err(Error::Invalid(format!(
            "can't join IPC of container {id}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"
        ))),
    }
}

/// A namespace mode, with another container's reference made a full id.
pub(super) fn mode(mode: &str, around: &dyn Surroundings) -> Result<String> {
    match mode.strip_prefix("container:") {
        Some(other) => Ok(format!("container:{}", around.other_container(other)?.0)),
        None => Ok(mode.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any other container, which has this IPC mode.
    struct Donor(&'static str);

    impl Surroundings for Donor {
        fn network_object(&self, reference: &str) -> Result<String> {
            Ok(reference.to_owned())
        }
        fn network_subnets(&self, _: &str) -> Vec<String> {
            Vec::new()
        }
        fn other_container(&self, reference: &str) -> Result<(String, ContainerSpec)> {
            let security = Security { ipc_mode: self.0.to_owned(), ..Security::default() };
            Ok((format!("id-of-{reference}"), ContainerSpec { security, ..ContainerSpec::default() }))
        }
    }

    #[test]
    fn ipc_is_shared_with_who_offers_it_and_with_who_has_it_from_there() {
        let shared = |donor: &'static str| ipc_mode("container:x", &Donor(donor)).ok();
        for (donor, wanted) in [
            ("shareable", Some("container:id-of-x")),
            ("container:first", Some("container:first")),
            ("host", Some("host")),
            ("private", None),
            ("none", None),
            ("", None),
        ] {
            assert_eq!(shared(donor).as_deref(), wanted, "{donor}");
        }
    }

    #[test]
    fn a_cgroup_namespace_is_ones_own_or_the_machines() {
        assert_eq!((cgroup_mode("").unwrap().as_str(), cgroup_mode("private").unwrap().as_str()), ("", ""));
        assert_eq!(cgroup_mode("host").unwrap(), "host");
        assert!(cgroup_mode("nonsense").is_err() && cgroup_mode("Host").is_err());
    }

    #[test]
    fn a_name_server_is_an_address() {
        let check = |server: &str| check_name_servers(&[server.to_owned()]);
        for good in ["9.9.9.9", "2620:fe::fe", "fe80::1%eth0", "::ffff:9.9.9.9"] {
            assert!(check(good).is_ok(), "{good}");
        }
        let refusal = check("nonsense").unwrap_err();
        assert_eq!(refusal.to_string(), "invalid JSON: ParseAddr(\"nonsense\"): unable to parse IP");
        for bad in ["", "9.9.9", "dns.example.org", "9.9.9.9:53", "9.9.9.9%eth0", "fe80::1%", "9.9.9.9\nsearch x"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
