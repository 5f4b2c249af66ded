//! Docker's specification of a service: checked, completed for inspect, and translated to a [`ServiceVersion`]. What a task is
//! goes through the same translation as `docker create`. Pure, but for what must be looked up.

use std::collections::BTreeMap;

use api::swarm::{
    FailureAction, FileMount, IngressPort, Mode, Placement, PlacementRule, RestartCondition, RestartRules,
    RolloutPolicy, ServiceNetwork, ServiceVersion, TaskTemplate,
};
use serde_json::{Map, Value, json};

use super::shown::complete;
use super::wire::{Container, RestartPolicy, Spec, Template, UpdateConfig, canonical};
use super::{NAME_MAX, invalid};
use crate::containers::config::{self, ImageDefaults, Surroundings, Translated};
use crate::containers::echo::Echo;
use crate::containers::wire::{CreateRequest, HealthConfig, Words};
use crate::error::{Error, Result};

/// Most tasks of a service.
const REPLICAS_MAX: u64 = 10_000;
/// Most placement rules, ports, networks, secrets and configs together.
const LIST_MAX: usize = 1_000;
/// Time before a task that ended is followed. Units: nanoseconds. `Source:` swarmkit, `defaults.Service`.
pub(super) const RESTART_DELAY_NS: i64 = 5_000_000_000;
/// How long new tasks are watched. Units: nanoseconds. `Source:` swarmkit, `defaults.Service`.
pub(super) const MONITOR_NS: i64 = 5_000_000_000;
/// Time of a stop. Units: nanoseconds. `Source:` swarmkit, `defaults.Service`.
pub(super) const GRACE_NS: i64 = 10_000_000_000;
const SECOND_NS: i64 = 1_000_000_000;

/// Labels by which a task's container is known; the placeholders are replaced when it is made.
const TASK_LABELS: [(&str, &str); 6] = [
    ("com.docker.swarm.node.id", "{{.Node.ID}}"),
    ("com.docker.swarm.service.id", "{{.Service.ID}}"),
    ("com.docker.swarm.service.name", "{{.Service.Name}}"),
    ("com.docker.swarm.task", ""),
    ("com.docker.swarm.task.id", "{{.Task.ID}}"),
    ("com.docker.swarm.task.name", "{{.Task.Name}}"),
];

/// What a specification refers to.
pub(super) trait References: Surroundings {
    /// Id and object name of the network that a service may be on, and its driver.
    fn service_network(&self, reference: &str) -> Result<NetworkFacts>;
    /// Object name of a secret or config by its id.
    fn stored(&self, secret: bool, id: &str, name: &str) -> Result<String>;
}

/// A network of a service.
#[derive(Clone, Debug, Default)]
pub(super) struct NetworkFacts {
    pub(super) id: String,
    pub(super) object: String,
    pub(super) driver: String,
    pub(super) ingress: bool,
}

/// A translated specification.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) version: ServiceVersion,
    /// What the tasks ask of the machines beyond the ordinary.
    pub(super) translated: Translated,
}

/// Translates a specification. `given` is completed for inspect on the way.
///
/// Errors: [`Error::Invalid`] in Docker's words, or what [`References`] says.
pub(super) fn translate(given: Value, around: &dyn References) -> Result<Wanted> {
    let mut given = canonical(given)?;
    let spec: Spec =
        serde_json::from_value(given.clone()).map_err(|error| Error::Invalid(format!("invalid JSON: {error}")))?;
    if spec.task_template.plugin_spec.as_ref().is_some_and(|spec| !spec.is_null())
        || !matches!(spec.task_template.runtime.as_str(), "" | "container")
    {
        return Err(Error::NotImplemented("services of plugins are not available".into()));
    }
    let container = spec.task_template.container_spec.as_ref().ok_or_else(|| invalid("ContainerSpec: missing"))?;
    check(&spec, container)?;
    let (mode, replicas, max_concurrent) = mode(&spec.mode)?;
    let networks = networks(&spec, around)?;
    let (ports, host_ports) = ports(&spec, mode)?;
    let (request, templated) = request(&spec.task_template, container, &networks, &host_ports)?;
    let image = ImageDefaults { later: true, ..ImageDefaults::default() };
    let mut translated = config::translate("task", &request, &image, around)?;
    for mount in &mut translated.spec.mounts {
        if let Some(source) = templated.get(&mount.source) {
            mount.source.clone_from(source);
        }
        if translated.anonymous_volumes.contains(&mount.source) {
            mount.source.clear();
        }
    }
    translated.spec.dialect_config = Echo { created_ns: 0, ..Echo::of_request(&request) }.to_text();
    translated.spec.files = files(container, around)?;
    // Rules of tasks, not of containers, start them again.
    translated.spec.restart_policy = api::container::RestartPolicy { name: "no".into(), maximum_retry_count: 0 };
    complete(&mut given, &spec, &networks);
    let shared: Vec<ServiceNetwork> = networks.iter().filter_map(|(_, network)| network.clone()).collect();
    let endpoint_mode = spec.endpoint_spec.as_ref().map_or("", |endpoint| endpoint.mode.as_str());
    let version = ServiceVersion {
        mode,
        replicas,
        max_concurrent,
        task: TaskTemplate {
            container: translated.spec.clone(),
            placement: placement(&spec.task_template)?,
            restart: restart(spec.task_template.restart_policy.as_ref())?,
            networks: shared,
            force: i64::try_from(spec.task_template.force_update).unwrap_or(i64::MAX),
        },
        update: policy(spec.update_config.as_ref(), "update")?,
        rollback: policy(spec.rollback_config.as_ref(), "rollback")?,
        round_robin_names: endpoint_mode == "dnsrr",
        ports,
        dialect_config: given.to_string(),
    };
    Ok(Wanted { name: spec.name, version, translated })
}

fn check(spec: &Spec, container: &Container) -> Result<()> {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = spec.name.as_bytes();
    let inner = bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if !inner || !ends(bytes.first()) || !ends(bytes.last()) {
        return Err(invalid("name must be valid as a DNS name component"));
    }
    if spec.name.len() > NAME_MAX {
        return Err(invalid(format!("name must be {NAME_MAX} characters or fewer")));
    }
    if container.image.is_empty() {
        return Err(invalid("ContainerSpec: image reference must be provided"));
    }
    image::Reference::parse_tagged(&container.image).map_err(|_| {
        invalid(format!("ContainerSpec: {} is not a valid repository/tag", crate::text::quote(&container.image)))
    })?;
    let counts = [
        container.secrets.as_ref().map_or(0, Vec::len),
        container.configs.as_ref().map_or(0, Vec::len),
        container.mounts.as_ref().map_or(0, Vec::len),
        spec.endpoint_spec.as_ref().and_then(|endpoint| endpoint.ports.as_ref()).map_or(0, Vec::len),
        spec.task_template.placement.as_ref().and_then(|p| p.constraints.as_ref()).map_or(0, Vec::len),
    ];
    if counts.iter().sum::<usize>() > LIST_MAX {
        return Err(invalid("the specification is too long"));
    }
    Ok(())
}

fn mode(mode: &Value) -> Result<(Mode, u32, u32)> {
    let number = |pointer: &str, default: u64| -> Result<u32> {
        let value = mode.pointer(pointer).filter(|value| !value.is_null());
        let number = value.map_or(Some(default), Value::as_u64).filter(|number| *number <= REPLICAS_MAX);
        number
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| invalid(format!("Number of replicas must be between 0 and {REPLICAS_MAX}")))
    };
    let is = |name: &str| mode.get(name).is_some_and(|value| !value.is_null());
    if is("Global") {
        Ok((Mode::Global, 0, 0))
    } else if is("GlobalJob") {
        Ok((Mode::GlobalJob, 0, 0))
    } else if is("ReplicatedJob") {
        let concurrent = number("/ReplicatedJob/MaxConcurrent", 1)?;
        let total = number("/ReplicatedJob/TotalCompletions", u64::from(concurrent))?;
        Ok((Mode::ReplicatedJob, total, concurrent))
    } else {
        Ok((Mode::Replicated, number("/Replicated/Replicas", 1)?, 0))
    }
}

/// Networks in order: their ids, and what services have on those that are a swarm's.
fn networks(spec: &Spec, around: &dyn References) -> Result<Vec<(NetworkFacts, Option<ServiceNetwork>)>> {
    let wanted = spec.task_template.networks.as_ref().filter(|list| !list.is_empty()).or(spec.networks.as_ref());
    let mut found = Vec::new();
    for config in wanted.into_iter().flatten() {
        let facts = around.service_network(&config.target)?;
        if facts.ingress {
            return Err(invalid(format!(
                "Service cannot be explicitly attached to the ingress network {}",
                config.target
            )));
        }
        let own = match facts.driver.as_str() {
            "overlay" => {
                let aliases = config.aliases.clone().unwrap_or_default();
                Some(ServiceNetwork { network: facts.object.clone(), aliases })
            }
            "host" | "none" | "null" => None,
            _ if facts.object == api::names::DEFAULT_NETWORK => None,
            _ => {
                return Err(Error::Forbidden(format!(
                    "network {} cannot be used with services. Only networks scoped to the swarm can be used, such as \
                     those created with the overlay driver.",
                    config.target
                )));
            }
        };
        found.push((facts, own));
    }
    Ok(found)
}

/// Ports that every machine leads to the tasks, and ports of the tasks' own machines.
fn ports(spec: &Spec, mode: Mode) -> Result<(Vec<IngressPort>, Map<String, Value>)> {
    let endpoint = spec.endpoint_spec.as_ref();
    let (mut shared, mut own): (Vec<IngressPort>, Map<String, Value>) = Default::default();
    for port in endpoint.and_then(|endpoint| endpoint.ports.as_ref()).into_iter().flatten() {
        let protocol = if port.protocol.is_empty() { "tcp" } else { port.protocol.as_str() };
        if !matches!(protocol, "tcp" | "udp" | "sctp") {
            return Err(invalid(format!("protocol {} is not supported", crate::text::quote(protocol))));
        }
        let number = |number: u32| u16::try_from(number).map_err(|_| invalid(format!("invalid port {number}")));
        let (target, published) = (number(port.target_port)?, number(port.published_port)?);
        if target == 0 {
            return Err(invalid("EndpointSpec: target port must be specified"));
        }
        if port.publish_mode == "host" {
            let binding = json!({ "HostPort": if published == 0 { String::new() } else { published.to_string() } });
            let list = own.entry(format!("{target}/{protocol}")).or_insert_with(|| json!([]));
            list.as_array_mut().into_iter().for_each(|list| list.push(binding.clone()));
            continue;
        }
        let taken = |one: &IngressPort| one.protocol == protocol && one.published == published && published != 0;
        if shared.iter().any(taken) {
            return Err(invalid("EndpointSpec: duplicate published ports provided"));
        }
        shared.push(IngressPort { protocol: protocol.to_owned(), target, published });
    }
    if !shared.is_empty() && endpoint.is_some_and(|endpoint| endpoint.mode == "dnsrr") {
        return Err(invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode"));
    }
    if !shared.is_empty() && mode.is_job() {
        return Err(invalid("jobs may not have ports that are published by ingress"));
    }
    Ok((shared, own))
}

/// The request to create a container that says what a task is, and the sources of mounts that hold placeholders.
fn request(
    template: &Template,
    container: &Container,
    networks: &[(NetworkFacts, Option<ServiceNetwork>)],
    host_ports: &Map<String, Value>,
) -> Result<(CreateRequest, BTreeMap<String, String>)> {
    let limits = template.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let dns = container.dns_config.as_ref();
    let mut templated = BTreeMap::new();
    let mut mounts = container.mounts.clone().unwrap_or_default();
    for (index, mount) in mounts.iter_mut().enumerate() {
        let source = mount["Source"].as_str().unwrap_or_default().to_owned();
        if source.contains("{{") {
            let stand_in = format!("templated-{index}");
            mount["Source"] = json!(stand_in);
            templated.insert(stand_in, source);
        }
    }
    let mode = networks.iter().find(|(_, own)| own.is_none()).map(|(facts, _)| facts.driver.as_str());
    let log = template.log_driver.as_ref().filter(|log| !log.is_null());
    let host = json!({
        "Mounts": mounts,
        "NetworkMode": match mode { Some("host") => "host", Some("none" | "null") => "none", _ => "default" },
        "PortBindings": host_ports,
        "GroupAdd": container.groups.clone().unwrap_or_default(),
        "ReadonlyRootfs": container.read_only,
        "ExtraHosts": hosts(container),
        "Dns": dns.and_then(|dns| dns.nameservers.clone()).unwrap_or_default(),
        "DnsSearch": dns.and_then(|dns| dns.search.clone()).unwrap_or_default(),
        "DnsOptions": dns.and_then(|dns| dns.options.clone()).unwrap_or_default(),
        "Init": container.init,
        "Sysctls": container.sysctls.clone().unwrap_or_default(),
        "CapAdd": container.capability_add,
        "CapDrop": container.capability_drop,
        "Ulimits": container.ulimits.clone().unwrap_or_default(),
        "OomScoreAdj": container.oom_score_adj,
        "SecurityOpt": security(container.privileges.as_ref())?,
        "Memory": limits.map_or(0, |limits| limits.memory_bytes),
        "NanoCpus": limits.map_or(0, |limits| limits.nano_cpus),
        "PidsLimit": limits.map_or(0, |limits| limits.pids),
        "LogConfig": {
            "Type": log.and_then(|log| log["Name"].as_str()).unwrap_or_default(),
            "Config": log.and_then(|log| log.get("Options")).filter(|o| o.is_object()).cloned().unwrap_or_else(|| json!({})),
        },
    });
    let mut labels = container.labels.clone().unwrap_or_default();
    labels.extend(TASK_LABELS.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let words = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty()).map(Words);
    let exposed = host_ports.keys().map(|port| (port.clone(), json!({}))).collect();
    let request = CreateRequest {
        image: container.image.clone(),
        hostname: container.hostname.clone(),
        user: container.user.clone(),
        tty: container.tty,
        open_stdin: container.open_stdin,
        env: container.env.clone().unwrap_or_default(),
        entrypoint: words(&container.command),
        cmd: words(&container.args),
        working_dir: container.dir.clone(),
        labels,
        exposed_ports: exposed,
        stop_signal: container.stop_signal.clone(),
        stop_timeout: Some(container.stop_grace_period.unwrap_or(GRACE_NS).max(0) / SECOND_NS),
        healthcheck: container.healthcheck.clone().filter(|check| *check != HealthConfig::default()),
        host_config: host,
        ..CreateRequest::default()
    };
    Ok((request, templated))
}

/// `address name…` of the hosts file as `name:address`.
fn hosts(container: &Container) -> Vec<String> {
    let lines = container.hosts.iter().flatten().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.to_owned();
        Some(words.map(move |name| format!("{name}:{address}")).collect::<Vec<_>>())
    });
    lines.flatten().collect()
}

fn security(privileges: Option<&Value>) -> Result<Vec<String>> {
    let Some(privileges) = privileges.filter(|privileges| !privileges.is_null()) else { return Ok(Vec::new()) };
    let mut options = Vec::new();
    if privileges["NoNewPrivileges"] == json!(true) {
        options.push("no-new-privileges".to_owned());
    }
    match privileges.pointer("/Seccomp/Mode").and_then(Value::as_str) {
        None | Some("" | "default") => {}
        Some("unconfined") => options.push("seccomp=unconfined".to_owned()),
        Some(_) => {
            return Err(Error::NotImplemented("a seccomp profile of its own is not available in services".into()));
        }
    }
    if privileges.get("CredentialSpec").is_some_and(|spec| !spec.is_null()) {
        return Err(Error::NotImplemented("credential specs belong to Windows".into()));
    }
    Ok(options)
}

fn files(container: &Container, around: &dyn References) -> Result<Vec<FileMount>> {
    let mut files: Vec<FileMount> = Vec::new();
    let both = [(true, &container.secrets), (false, &container.configs)];
    for (secret, list) in both {
        for reference in list.iter().flatten() {
            let kind = if secret { "secret" } else { "config" };
            let file = reference
                .file
                .as_ref()
                .ok_or_else(|| invalid(format!("malformed {kind} reference: no target file provided")))?;
            let name = if file.name.is_empty() { &reference.name } else { &file.name };
            let base = if secret { "/run/secrets" } else { "" };
            let path = if name.starts_with('/') { name.clone() } else { format!("{base}/{name}") };
            let target = crate::containers::mounts::clean(&path);
            if files.iter().any(|other| other.target == target) {
                return Err(invalid(format!(
                    "{kind} references '{}' and another have a conflicting target: '{name}'",
                    reference.name
                )));
            }
            let number = |text: &str| -> Result<u32> {
                if text.is_empty() {
                    Ok(0)
                } else {
                    text.parse().map_err(|_| invalid(format!("invalid owner {text} of a {kind}")))
                }
            };
            files.push(FileMount {
                secret,
                object: around.stored(secret, &reference.id, &reference.name)?,
                target,
                uid: number(&file.uid)?,
                gid: number(&file.gid)?,
                mode: file.mode,
            });
        }
    }
    Ok(files)
}

/// `node.role == manager`.
fn rule(text: &str) -> Result<PlacementRule> {
    let wrong = || invalid(format!("constraint expected one operator from ==, !=: {text}"));
    let (key, negated, value) = match (text.split_once("=="), text.split_once("!=")) {
        (Some((key, value)), None) => (key, false, value),
        (None, Some((key, value))) => (key, true, value),
        _ => return Err(wrong()),
    };
    let (attribute, value) = (key.trim().to_lowercase(), value.trim().to_lowercase());
    let plain = ["node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch"];
    let labelled = ["node.labels.", "engine.labels."];
    let known = plain.contains(&attribute.as_str())
        || labelled.iter().any(|prefix| attribute.strip_prefix(prefix).is_some_and(|label| !label.is_empty()));
    if value.is_empty() || attribute.is_empty() {
        return Err(wrong());
    }
    if !known {
        return Err(invalid(format!("constraint {} is not known", crate::text::quote(key.trim()))));
    }
    Ok(PlacementRule { attribute, negated, value })
}

fn placement(template: &Template) -> Result<Placement> {
    let reserved = template.resources.as_ref().and_then(|resources| resources.reservations.as_ref());
    let mut placement = Placement {
        nano_cpus: reserved.map_or(0, |amounts| amounts.nano_cpus),
        memory_bytes: reserved.map_or(0, |amounts| amounts.memory_bytes),
        ..Placement::default()
    };
    for resource in reserved.and_then(|amounts| amounts.generic_resources.as_ref()).into_iter().flatten() {
        let discrete = resource.get("DiscreteResourceSpec");
        let named = resource.get("NamedResourceSpec");
        let Some(kind) = discrete.or(named).and_then(|spec| spec["Kind"].as_str()) else {
            return Err(invalid("malformed generic resource"));
        };
        let amount = discrete.and_then(|spec| spec["Value"].as_u64()).unwrap_or(1);
        *placement.resources.entry(kind.to_owned()).or_default() += u32::try_from(amount).unwrap_or(u32::MAX);
    }
    let Some(wanted) = &template.placement else { return Ok(placement) };
    placement.rules = wanted.constraints.iter().flatten().map(|text| rule(text)).collect::<Result<_>>()?;
    placement.max_per_node = u32::try_from(wanted.max_replicas).unwrap_or(u32::MAX);
    for preference in wanted.preferences.iter().flatten() {
        let descriptor = preference.pointer("/Spread/SpreadDescriptor").and_then(Value::as_str);
        let descriptor = descriptor.ok_or_else(|| invalid("only the placement preference spread is supported"))?;
        placement.spread.push(descriptor.to_lowercase());
    }
    let architectures =
        wanted.platforms.iter().flatten().filter(|platform| matches!(platform.os.as_str(), "" | "linux"));
    let named: Vec<String> = architectures.map(|platform| normal(&platform.architecture).to_owned()).collect();
    // One without an architecture fits all.
    if !named.iter().any(String::is_empty) {
        placement.architectures = named;
        placement.architectures.sort();
        placement.architectures.dedup();
    }
    Ok(placement)
}

fn normal(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn restart(policy: Option<&RestartPolicy>) -> Result<RestartRules> {
    let Some(policy) = policy else {
        return Ok(RestartRules { delay_ns: RESTART_DELAY_NS, ..RestartRules::default() });
    };
    if policy.delay.is_some_and(|delay| delay < 0) || policy.window.is_some_and(|window| window < 0) {
        return Err(invalid("TaskSpec: restart-delay and restart-window cannot be negative"));
    }
    Ok(RestartRules {
        condition: match policy.condition.as_str() {
            "" | "any" => RestartCondition::Any,
            "on-failure" => RestartCondition::OnFailure,
            "none" => RestartCondition::None,
            other => return Err(Error::Invalid(format!("invalid RestartCondition: {}", crate::text::quote(other)))),
        },
        delay_ns: policy.delay.unwrap_or(RESTART_DELAY_NS),
        max_attempts: u32::try_from(policy.max_attempts.unwrap_or(0)).unwrap_or(u32::MAX),
        window_ns: policy.window.unwrap_or(0),
    })
}

fn policy(config: Option<&UpdateConfig>, what: &str) -> Result<RolloutPolicy> {
    let Some(config) = config else {
        return Ok(RolloutPolicy { parallelism: 1, monitor_ns: MONITOR_NS, ..RolloutPolicy::default() });
    };
    if config.delay < 0 || config.monitor < 0 {
        return Err(invalid(format!("TaskSpec: {what}-delay and {what}-monitor cannot be negative")));
    }
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(invalid(format!("TaskSpec: {what}-maxfailureratio cannot be less than 0 or bigger than 1")));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between nought and a million")]
    let max_failure_millionths = (config.max_failure_ratio * 1e6).round() as u32;
    Ok(RolloutPolicy {
        parallelism: u32::try_from(config.parallelism).unwrap_or(u32::MAX),
        delay_ns: config.delay,
        monitor_ns: if config.monitor == 0 { MONITOR_NS } else { config.monitor },
        max_failure_millionths,
        on_failure: match (config.failure_action.as_str(), what) {
            ("" | "pause", _) => FailureAction::Pause,
            ("continue", _) => FailureAction::Continue,
            ("rollback", "update") => FailureAction::Rollback,
            (other, _) => {
                return Err(Error::Invalid(format!("unrecognized {what} failure action {other}")));
            }
        },
        start_first: match config.order.as_str() {
            "" | "stop-first" => false,
            "start-first" => true,
            other => return Err(Error::Invalid(format!("unrecognized {what} order {other}"))),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;
    impl Surroundings for Nothing {
        fn network_object(&self, reference: &str) -> Result<String> {
            Ok(reference.to_owned())
        }
        fn network_subnets(&self, _: &str) -> Vec<String> {
            Vec::new()
        }
        fn other_container(&self, reference: &str) -> Result<(String, api::ContainerSpec)> {
            Err(super::super::not_found("container", reference))
        }
    }
    impl References for Nothing {
        fn service_network(&self, reference: &str) -> Result<NetworkFacts> {
            let id = format!("id-{reference}");
            Ok(NetworkFacts { id, object: reference.to_owned(), driver: "overlay".into(), ingress: false })
        }
        fn stored(&self, _: bool, _: &str, name: &str) -> Result<String> {
            Ok(name.to_owned())
        }
    }

    fn refusal(spec: Value) -> String {
        translate(spec, &Nothing).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_whole_specification_is_translated() {
        let wanted = translate(
            json!({
                "Name": "web",
                "TaskTemplate": {
                    "ContainerSpec": { "Image": "busybox", "Args": ["httpd"], "Hostname": "h-{{.Task.Slot}}",
                        "Secrets": [{ "File": { "Name": "key", "UID": "1", "GID": "2", "Mode": 292 }, "SecretID": "x", "SecretName": "key" }],
                        "Configs": [{ "File": { "Name": "/etc/c", "UID": "0", "GID": "0", "Mode": 292 }, "ConfigID": "y", "ConfigName": "c" }],
                        "Mounts": [{ "Type": "volume", "Source": "v-{{.Task.Slot}}", "Target": "/v" }] },
                    "Placement": { "Constraints": ["node.role==manager", "node.labels.Zone != West"], "MaxReplicas": 2,
                        "Platforms": [{ "Architecture": "x86_64", "OS": "linux" }] },
                    "RestartPolicy": { "Condition": "on-failure", "MaxAttempts": 3 },
                    "Networks": [{ "Target": "front", "Aliases": ["w"] }],
                },
                "Mode": { "Replicated": { "Replicas": 3 } },
                "UpdateConfig": { "Parallelism": 2, "FailureAction": "rollback", "MaxFailureRatio": 0.25, "Order": "start-first" },
                "EndpointSpec": { "Ports": [{ "TargetPort": 80, "PublishedPort": 8080 }] },
            }),
            &Nothing,
        )
        .unwrap();
        let version = wanted.version;
        assert_eq!((version.mode, version.replicas), (Mode::Replicated, 3));
        assert_eq!(version.task.container.files[0].target, "/run/secrets/key");
        assert_eq!(
            (version.task.container.files[1].target.as_str(), version.task.container.files[1].secret),
            ("/etc/c", false)
        );
        assert_eq!(version.task.container.mounts[0].source, "v-{{.Task.Slot}}");
        assert_eq!(version.task.container.labels["com.docker.swarm.task.id"], "{{.Task.ID}}");
        assert_eq!(version.task.placement.rules[1].value, "west");
        assert_eq!(version.task.placement.architectures, ["amd64"]);
        assert_eq!((version.update.parallelism, version.update.max_failure_millionths), (2, 250_000));
        assert!(version.update.start_first && version.update.on_failure == FailureAction::Rollback);
        assert_eq!(version.ports[0].published, 8080);
        let kept: Value = serde_json::from_str(&version.dialect_config).unwrap();
        assert_eq!(kept["TaskTemplate"]["Networks"][0]["Target"], "id-front");
        assert_eq!(kept["EndpointSpec"]["Ports"][0]["Protocol"], "tcp");
    }

    #[test]
    fn names_are_read_in_any_case_but_not_twice() {
        let small = json!({ "Name": "a", "mode": { "replicated": { "Replicas": 5 } }, "RollbackConfig": { "order": "start-first" },
            "TaskTemplate": { "ContainerSpec": { "Image": "busybox", "Labels": { "mode": "x" } } } });
        let version = translate(small, &Nothing).unwrap().version;
        assert_eq!((version.mode, version.replicas, version.rollback.start_first), (Mode::Replicated, 5, true));
        assert_eq!(version.task.container.labels["mode"], "x");
        let twice = json!({ "Name": "a", "name": "b", "TaskTemplate": { "ContainerSpec": { "Image": "busybox" } } });
        assert!(refusal(twice).contains("twice"));
    }

    #[test]
    fn wrong_specifications_are_refused_in_swarms_words() {
        let with = |name: &str, more: Value| {
            let mut spec = json!({ "Name": name, "TaskTemplate": { "ContainerSpec": { "Image": "busybox" } } });
            super::super::extend(&mut spec, more);
            refusal(spec)
        };
        assert!(with("b d", json!({})).contains("name must be valid as a DNS name component"));
        assert!(with("a", json!({ "Mode": { "Replicated": { "Replicas": 1_000_000_000 } } })).contains("replicas"));
        assert!(with("a", json!({ "UpdateConfig": { "MaxFailureRatio": 2 } })).contains("maxfailureratio"));
        let port = json!({ "TargetPort": 80, "PublishedPort": 80 });
        assert!(with("a", json!({ "EndpointSpec": { "Ports": [port, port] } })).contains("duplicate"));
        assert!(with("a", json!({ "EndpointSpec": { "Mode": "dnsrr", "Ports": [port] } })).contains("dnsrr"));
        assert!(refusal(json!({ "Name": "a", "TaskTemplate": { "ContainerSpec": {} } })).contains("image reference"));
        let constrained = |text: &str| {
            let template = json!({ "ContainerSpec": { "Image": "b" }, "Placement": { "Constraints": [text] } });
            refusal(json!({ "Name": "a", "TaskTemplate": template }))
        };
        assert!(constrained("node.role").contains("expected one operator"));
        assert!(constrained("colour==red").contains("is not known"));
        assert_eq!(constrained("node.ip != 10.0.0.1"), "");
    }
}
