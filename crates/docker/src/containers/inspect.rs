//! `GET /containers/{id}/json`, and the parts of it that the list shows too.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Container;
use api::container::{Mount, NetworkAttachment, NetworkEndpoint, PortMapping, State};
use futures::StreamExt;
use kube::ResourceExt;
use serde_json::{Map, Value, json};

use super::echo::Echo;
use super::wire::HealthConfig;
use crate::call::Call;
use crate::operation::Reply;
use crate::state::Docker;
use crate::{body, time};

/// Describes a container.
pub(crate) async fn container_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    let mut shown = describe(&docker, &container);
    if call.query.flag("size") {
        let (own, all) = sizes(&docker, &container).await;
        shown["SizeRw"] = json!(own);
        shown["SizeRootFs"] = json!(all);
    }
    body::json(&shown)
}

/// Bytes that a container wrote, and with its image's; the first is counted as its layer would be stored.
pub(crate) async fn sizes(docker: &Docker, container: &Container) -> (u64, u64) {
    let mut own: u64 = 0;
    if let Ok(mut layer) = docker.state.node.changes_layer(&docker.workload(&container.name_any())).await {
        while let Some(Ok(piece)) = layer.next().await {
            own += piece.len() as u64;
        }
    }
    (own, own + docker.image_size(&container.spec.image_id).await)
}

/// The instant of creation. Units: nanoseconds since the Unix epoch.
pub(super) fn created_ns(container: &Container) -> i64 {
    match Echo::of(container).created_ns {
        0 => container.metadata.creation_timestamp.as_ref().map_or(0, |at| time::nanoseconds(at.0)),
        ns => ns,
    }
}

/// Docker's word for where a container is in its life.
pub(crate) fn state_word(container: &Container) -> &'static str {
    if container.metadata.deletion_timestamp.is_some() {
        return "removing";
    }
    match container.status.as_ref().map(|s| s.state).unwrap_or_default() {
        State::Created => "created",
        State::Running => "running",
        State::Paused => "paused",
        State::Restarting => "restarting",
        State::Exited => "exited",
        State::Dead => "dead",
    }
}

fn describe(docker: &Docker, container: &Container) -> Value {
    let id = container.name_any();
    let spec = &container.spec;
    let status = container.status.clone().unwrap_or_default();
    let echo = Echo::of(container);
    let execs: Vec<String> =
        docker.execs.lock().values().filter(|e| e.container == id && e.is_live()).map(|e| e.id.clone()).collect();
    json!({
        "Id": id,
        "Created": time::rfc3339(created_ns(container)),
        "Path": spec.command.first().cloned().unwrap_or_default(),
        "Args": spec.command.get(1..).unwrap_or_default(),
        "State": state(container),
        "Image": spec.image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": status.log_path,
        "Name": format!("/{}", spec.name),
        "RestartCount": status.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if execs.is_empty() { Value::Null } else { json!(execs) },
        "HostConfig": host_config(docker, container, &echo),
        "GraphDriver": { "Name": "overlay2", "Data": null },
        "Mounts": mounts(docker, container),
        "Config": config(container, &echo),
        "NetworkSettings": network_settings(docker, container),
    })
}

/// The host configuration, with the network named as the user named it.
pub(crate) fn host_config(docker: &Docker, container: &Container, echo: &Echo) -> Value {
    let mut full = echo.full_host_config(container);
    let mode = full["NetworkMode"].as_str().unwrap_or("").to_owned();
    if let Some(network) = docker.networks.get(&mode) {
        full["NetworkMode"] = json!(network.spec.name);
    }
    full
}

fn state(container: &Container) -> Value {
    let status = container.status.clone().unwrap_or_default();
    let alive = matches!(status.state, State::Running | State::Paused);
    let mut shown = json!({
        "Status": state_word(container),
        "Running": alive || status.state == State::Restarting,
        "Paused": status.state == State::Paused,
        "Restarting": status.state == State::Restarting,
        "OOMKilled": status.oom_killed,
        "Dead": status.state == State::Dead,
        "Pid": if alive { status.pid } else { 0 },
        "ExitCode": if alive { 0 } else { status.exit_code },
        "Error": status.error,
        "StartedAt": time::of_object(status.started_at.as_ref()),
        "FinishedAt": time::of_object(status.finished_at.as_ref()),
    });
    if container.spec.healthcheck.as_ref().is_some_and(|check| check.test.first().is_some_and(|t| t != "NONE")) {
        let log: Vec<Value> = status
            .health_log
            .iter()
            .map(|result| {
                json!({
                    "Start": time::of_object(result.start.as_ref()),
                    "End": time::of_object(result.end.as_ref()),
                    "ExitCode": result.exit_code,
                    "Output": result.output,
                })
            })
            .collect();
        let word = if status.health.is_empty() { "starting" } else { &status.health };
        shown["Health"] = json!({ "Status": word, "FailingStreak": status.health_failing_streak, "Log": log });
    }
    shown
}

fn config(container: &Container, echo: &Echo) -> Value {
    let spec = &container.spec;
    let id = container.name_any();
    let (entrypoint, cmd) = spec.command.split_at(spec.entrypoint_length.min(spec.command.len()));
    let list = |words: &[String]| if words.is_empty() { Value::Null } else { json!(words) };
    let set =
        |keys: &[String]| -> Value { keys.iter().map(|key| (key.clone(), json!({}))).collect::<Map<_, _>>().into() };
    let mut shown = json!({
        "Hostname": if spec.hostname.is_empty() { crate::text::short_id(&id) } else { &spec.hostname },
        "Domainname": spec.domainname,
        "User": spec.user,
        "AttachStdin": echo.attach_stdin,
        "AttachStdout": echo.attach_stdout,
        "AttachStderr": echo.attach_stderr,
        "Tty": spec.terminal,
        "OpenStdin": spec.open_stdin,
        "StdinOnce": spec.stdin_once,
        "Env": spec.environment,
        "Cmd": list(cmd),
        "Image": spec.image,
        "Volumes": if echo.volumes.is_empty() { Value::Null } else { set(&echo.volumes) },
        "WorkingDir": spec.working_directory,
        "Entrypoint": list(entrypoint),
        "OnBuild": null,
        "Labels": spec.labels,
    });
    if !spec.exposed_ports.is_empty() {
        shown["ExposedPorts"] = set(&spec.exposed_ports);
    }
    if !spec.stop_signal.is_empty() {
        shown["StopSignal"] = json!(spec.stop_signal);
    }
    if let Some(seconds) = spec.stop_timeout_seconds {
        shown["StopTimeout"] = json!(seconds);
    }
    if let Some(check) = &spec.healthcheck {
        shown["Healthcheck"] = json!(HealthConfig::of_object(check));
    }
    shown
}

/// `Mounts` of inspect and list.
pub(crate) fn mounts(docker: &Docker, container: &Container) -> Vec<Value> {
    let status = container.status.as_ref();
    container
        .spec
        .mounts
        .iter()
        .map(|mount| {
            let mut shown = json!({
                "Type": mount.kind,
                "Source": mount.source,
                "Destination": mount.target,
                "Mode": mode(mount),
                "RW": !mount.read_only,
                "Propagation": match (mount.kind.as_str(), mount.propagation.as_str()) {
                    ("bind", "") => "rprivate",
                    (_, propagation) => propagation,
                },
            });
            if mount.kind == "volume" {
                let object = docker.volumes.get(&mount.source);
                let path = status.and_then(|s| s.volume_paths.get(&mount.target)).cloned();
                let path = path.or_else(|| object.as_ref().and_then(|v| v.status.as_ref().map(|s| s.path.clone())));
                shown["Name"] = json!(object.map_or_else(|| mount.source.clone(), |v| v.spec.name.clone()));
                shown["Source"] = json!(path.unwrap_or_default());
                shown["Driver"] = json!("local");
            }
            shown
        })
        .collect()
}

fn mode(mount: &Mount) -> &'static str {
    match (mount.kind.as_str(), mount.read_only) {
        ("tmpfs", _) => "",
        (_, true) => "ro",
        ("volume", false) => "z",
        (_, false) => "",
    }
}

/// Endpoints by the name that Docker shows.
pub(crate) fn endpoints(docker: &Docker, container: &Container) -> Map<String, Value> {
    let spec = &container.spec;
    let status = container.status.clone().unwrap_or_default();
    let alive = matches!(status.state, State::Running | State::Paused);
    let mut names: BTreeMap<String, Option<NetworkAttachment>> =
        spec.networks.keys().map(|object| (object.clone(), None)).collect();
    match spec.network_mode.as_str() {
        mode if mode.starts_with("container:") => {}
        mode if names.is_empty() => {
            let mode = if mode.is_empty() { api::names::DEFAULT_NETWORK } else { mode };
            names.insert(mode.to_owned(), None);
        }
        _ => {}
    }
    if alive {
        for (object, attachment) in &status.networks {
            names.insert(object.clone(), Some(attachment.clone()));
        }
    }
    let id = container.name_any();
    names
        .into_iter()
        .map(|(object, attachment)| {
            let network = docker.network_of_object(&object);
            let (network_id, name) = network.map_or_else(
                || (String::new(), object.clone()),
                |network| (network.spec.id.clone(), network.spec.name.clone()),
            );
            let asked = spec.networks.get(&object).cloned().unwrap_or_default();
            let is_user_network = !matches!(name.as_str(), "bridge" | "host" | "none");
            let there = attachment.unwrap_or_default();
            let endpoint_id =
                if alive { crate::text::id_of_name(&format!("{id}/{network_id}")) } else { String::new() };
            let mut dns: Vec<String> = vec![spec.name.clone()];
            dns.extend(asked.aliases.iter().cloned());
            dns.push(crate::text::short_id(&id).to_owned());
            if !spec.hostname.is_empty() {
                dns.push(spec.hostname.clone());
            }
            let shown = json!({
                "IPAMConfig": wanted_addresses(&asked),
                "Links": if asked.links.is_empty() { Value::Null } else { json!(asked.links) },
                "Aliases": if asked.aliases.is_empty() { Value::Null } else { json!(asked.aliases) },
                "MacAddress": if there.mac.is_empty() { asked.mac_address } else { there.mac },
                "DriverOpts": if asked.driver_options.is_empty() { Value::Null } else { json!(asked.driver_options) },
                "GwPriority": 0,
                "NetworkID": network_id,
                "EndpointID": endpoint_id,
                "Gateway": there.gateway,
                "IPAddress": there.ip,
                "IPPrefixLen": there.prefix_length,
                "IPv6Gateway": there.ipv6_gateway,
                "GlobalIPv6Address": there.ipv6,
                "GlobalIPv6PrefixLen": there.ipv6_prefix_length,
                "DNSNames": if is_user_network { json!(dns) } else { Value::Null },
            });
            (name, shown)
        })
        .collect()
}

/// `IPAMConfig` of an endpoint: what the user asked for.
fn wanted_addresses(asked: &NetworkEndpoint) -> Value {
    let mut shown = Map::new();
    for (name, address) in [("IPv4Address", &asked.ipv4_address), ("IPv6Address", &asked.ipv6_address)] {
        if !address.is_empty() {
            shown.insert(name.into(), json!(address));
        }
    }
    if !asked.link_local_addresses.is_empty() {
        shown.insert("LinkLocalIPs".into(), json!(asked.link_local_addresses));
    }
    if shown.is_empty() { Value::Null } else { Value::Object(shown) }
}

fn network_settings(docker: &Docker, container: &Container) -> Value {
    let status = container.status.clone().unwrap_or_default();
    let alive = matches!(status.state, State::Running | State::Paused);
    let networks = endpoints(docker, container);
    let default = networks.get("bridge").cloned().unwrap_or(Value::Null);
    let text = |name: &str| default.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let length = |name: &str| default.get(name).and_then(Value::as_u64).unwrap_or(0);
    json!({
        "Bridge": "",
        "SandboxID": if alive { crate::text::id_of_name(&format!("sandbox/{}", container.name_any())) } else { String::new() },
        "SandboxKey": "",
        "Ports": ports(container, alive),
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "EndpointID": text("EndpointID"),
        "Gateway": text("Gateway"),
        "GlobalIPv6Address": text("GlobalIPv6Address"),
        "GlobalIPv6PrefixLen": length("GlobalIPv6PrefixLen"),
        "IPAddress": text("IPAddress"),
        "IPPrefixLen": length("IPPrefixLen"),
        "IPv6Gateway": text("IPv6Gateway"),
        "MacAddress": text("MacAddress"),
        "Networks": networks,
    })
}

/// The address that is shown for a binding to all addresses.
fn shown_ip(port: &PortMapping) -> &str {
    if port.host_ip.is_empty() { "0.0.0.0" } else { &port.host_ip }
}

fn ports(container: &Container, alive: bool) -> Value {
    if !alive {
        return json!({});
    }
    let mut shown: Map<String, Value> =
        container.spec.exposed_ports.iter().map(|port| (port.clone(), Value::Null)).collect();
    for port in container.status.iter().flat_map(|status| &status.ports) {
        let key = format!("{}/{}", port.container_port, port.protocol);
        let binding = json!({ "HostIp": shown_ip(port), "HostPort": port.host_port.to_string() });
        match shown.get_mut(&key).and_then(Value::as_array_mut) {
            Some(list) => list.push(binding),
            None => {
                shown.insert(key, json!([binding]));
            }
        }
    }
    Value::Object(shown)
}

/// `Ports` of the list.
pub(super) fn list_ports(container: &Container) -> Vec<Value> {
    let alive = container.status.as_ref().is_some_and(|s| matches!(s.state, State::Running | State::Paused));
    if !alive {
        return Vec::new();
    }
    let bound: &[PortMapping] = container.status.as_ref().map_or(&[], |status| &status.ports);
    let mut shown = Vec::new();
    for port in bound {
        shown.push(json!({
            "IP": shown_ip(port),
            "PrivatePort": port.container_port,
            "PublicPort": port.host_port,
            "Type": port.protocol,
        }));
    }
    for exposed in &container.spec.exposed_ports {
        let Ok((number, protocol)) = super::connections::parse_port(exposed) else { continue };
        if !bound.iter().any(|port| port.container_port == number && port.protocol == protocol) {
            shown.push(json!({ "PrivatePort": number, "Type": protocol }));
        }
    }
    shown
}
