//! Networks: list, inspect, create, remove, connect, disconnect, prune.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::container::{Container, State};
use api::network::{Network, NetworkSpec};
use api::swarm::id_of;
use http::{Method, StatusCode};
use kube::ResourceExt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::cache::Slot;
use crate::call::Call;
use crate::cidr::{self, Cidr};
use crate::containers::create::check_endpoint;
use crate::containers::lifecycle::status_of;
use crate::containers::wire::EndpointConfig;
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::swarm::networks as overlay;
use crate::{body, policy, text, time};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("NetworkList", Method::GET, "/networks", "list", "networks", run!(network_list)),
    Operation::new("NetworkCreate", Method::POST, "/networks/create", "create", "networks", run!(network_create))
        .partial("one subnet of each family, IPv4 always; drivers bridge and overlay"),
    Operation::new("NetworkPrune", Method::POST, "/networks/prune", "delete", "networks", run!(network_prune))
        .since(25),
    Operation::new("NetworkInspect", Method::GET, "/networks/{id}", "get", "networks", run!(network_inspect)),
    Operation::new("NetworkDelete", Method::DELETE, "/networks/{id}", "delete", "networks", run!(network_delete)),
    Operation::new(
        "NetworkConnect",
        Method::POST,
        "/networks/{id}/connect",
        "update",
        "networks",
        run!(network_connect),
    ),
    Operation::new(
        "NetworkDisconnect",
        Method::POST,
        "/networks/{id}/disconnect",
        "update",
        "networks",
        run!(network_disconnect),
    ),
];

/// Networks that are always there and cannot be removed.
const PREDEFINED: [&str; 3] = [api::names::DEFAULT_NETWORK, "host", "none"];
/// Longest wait for the agent to plug or unplug a running container, or to make a network.
const AGENT_TIMEOUT: Duration = Duration::from_secs(30);

/// What stands for a network that no object stands for.
pub(crate) fn predefined(name: &str) -> Network {
    let driver = match name {
        "host" => "host",
        "none" => "null",
        _ => "bridge",
    };
    let spec = NetworkSpec {
        name: name.to_owned(),
        id: text::id_of_name(&format!("network/{name}")),
        driver: driver.to_owned(),
        ..NetworkSpec::default()
    };
    Network::new(name, spec)
}

/// Body of create.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    name: String,
    driver: String,
    scope: String,
    internal: bool,
    attachable: bool,
    ingress: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: Option<bool>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Ipam {
    driver: String,
    config: Vec<IpamConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct IpamConfig {
    subnet: String,
    #[serde(rename = "IPRange")]
    ip_range: String,
    gateway: String,
    auxiliary_addresses: Option<BTreeMap<String, String>>,
}

impl IpamConfig {
    /// The subnet.
    fn pool(&self) -> Result<Option<Cidr>> {
        Cidr::parse(&self.subnet)
    }
}

/// Body of connect.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Connect {
    container: String,
    endpoint_config: EndpointConfig,
}

/// Body of disconnect.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Disconnect {
    container: String,
    force: bool,
}

impl Create {
    /// Whether it is to be a swarm's.
    fn is_overlay(&self) -> bool {
        self.driver == "overlay" || self.ingress || self.scope == "swarm"
    }
}

impl Docker {
    /// Containers that run on a network, or (`stopped`) that would.
    fn members(&self, object: &str, stopped: bool) -> Vec<Arc<Container>> {
        let mut members = self.containers.all();
        members.retain(|container| {
            let status = status_of(container);
            let alive = matches!(status.state, State::Running | State::Paused);
            if alive {
                status.networks.contains_key(object)
            } else {
                stopped && container.spec.networks.contains_key(object)
            }
        });
        members
    }
}

async fn network_list(docker: Arc<Docker>, call: Call) -> Reply {
    let accepted = ["dangling", "driver", "id", "label", "name", "scope", "type"];
    let filters = Filters::of(&call.query, &accepted)?;
    let (dangling, names) = (filters.boolean("dangling")?, filters.names()?);
    if let Some(bad) = filters.values("type").iter().find(|t| !matches!(t.as_str(), "custom" | "builtin")) {
        return Err(Error::Invalid(format!("invalid filter 'type={bad}'")));
    }
    let mut networks = docker.all_networks();
    networks.retain(|network| {
        let spec = &network.spec;
        let builtin = PREDEFINED.contains(&spec.name.as_str());
        filters.any("driver", |driver| driver == spec.driver)
            && filters.any("id", |prefix| spec.id.starts_with(prefix))
            && names.accept(&[&spec.name])
            && filters.labels(&spec.labels)
            && filters.any("scope", |wanted| wanted == scope(network))
            && filters.any("type", |kind| (kind == "builtin") == builtin)
            && dangling
                .is_none_or(|wanted| (!builtin && docker.members(&network.name_any(), false).is_empty()) == wanted)
    });
    networks.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    body::json(&networks.iter().map(|network| describe(network)).collect::<Vec<_>>())
}

/// How far a network reaches.
fn scope(network: &Network) -> &'static str {
    if overlay::is_overlay(network) { "swarm" } else { "local" }
}

fn describe(network: &Network) -> Value {
    let spec = &network.spec;
    let status = network.status.clone().unwrap_or_default();
    let created = network.metadata.creation_timestamp.as_ref();
    let pick = |first: &str, second: &str| if first.is_empty() { second.to_owned() } else { first.to_owned() };
    let four = [pick(&status.subnet, &spec.subnet), spec.ip_range.clone(), pick(&status.gateway, &spec.gateway)];
    let six = [
        pick(&status.ipv6_subnet, &spec.ipv6_subnet),
        spec.ipv6_range.clone(),
        pick(&status.ipv6_gateway, &spec.ipv6_gateway),
    ];
    let mut pools = vec![pool(&four, &spec.auxiliary_addresses), pool(&six, &spec.auxiliary_addresses)];
    pools.retain(|pool| !pool.is_empty());
    json!({
        "Name": spec.name,
        "Id": spec.id,
        "Created": time::of_object(created),
        "Scope": scope(network),
        "Driver": if spec.driver == "none" { "null" } else { &spec.driver },
        "EnableIPv4": true,
        "EnableIPv6": spec.ipv6,
        "IPAM": { "Driver": "default", "Options": null, "Config": pools },
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": {},
        "Options": spec.options,
        "Labels": spec.labels,
    })
}

/// One member of `IPAM.Config`, of subnet, range and gateway.
fn pool([subnet, range, gateway]: &[String; 3], auxiliary: &BTreeMap<String, String>) -> Map<String, Value> {
    let mut shown = Map::new();
    for (name, value) in [("Subnet", subnet), ("IPRange", range), ("Gateway", gateway)] {
        if !value.is_empty() {
            shown.insert(name.into(), json!(value));
        }
    }
    let own: BTreeMap<_, _> =
        auxiliary.iter().filter(|(_, ip)| ip.parse().is_ok_and(|ip| cidr::holds(subnet, ip))).collect();
    if !own.is_empty() {
        shown.insert("AuxiliaryAddresses".into(), json!(own));
    }
    shown
}

async fn network_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    let network = docker.network(call.parameter("id"))?;
    if call.query.text("scope").is_some_and(|wanted| wanted != scope(&network)) {
        return Err(Error::NotFound(format!("network {} not found", call.parameter("id"))));
    }
    let object = network.name_any();
    let mut shown = describe(&network);
    let members: Map<String, Value> = docker
        .members(&object, false)
        .into_iter()
        .map(|container| {
            let place = status_of(&container).networks.get(&object).cloned().unwrap_or_default();
            let address = |ip: &str, length: u8| if ip.is_empty() { String::new() } else { format!("{ip}/{length}") };
            let row = json!({
                "Name": container.spec.name,
                "EndpointID": text::id_of_name(&format!("{}/{}", container.name_any(), network.spec.id)),
                "MacAddress": place.mac,
                "IPv4Address": address(&place.ip, place.prefix_length),
                "IPv6Address": address(&place.ipv6, place.ipv6_prefix_length),
            });
            (container.name_any(), row)
        })
        .collect();
    shown["Containers"] = Value::Object(members);
    body::json(&shown)
}

async fn network_create(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Create = call.json().await?;
    check(&request)?;
    if docker.all_networks().iter().any(|network| network.spec.name == request.name) {
        return Err(Error::Conflict(format!("network with name {} already exists", request.name)));
    }
    let swarm = if request.is_overlay() { Some(docker.swarm()?) } else { None };
    if request.ingress && docker.all_networks().iter().any(|network| network.spec.ingress) {
        return Err(Error::Conflict("rpc error: code = AlreadyExists desc = ingress network already exists".into()));
    }
    let is_ipv6 = |config: &IpamConfig| config.pool().is_ok_and(|pool| pool.is_some_and(|pool| pool.is_ipv6()));
    let (six, four): (Vec<_>, Vec<_>) = request.ipam.config.into_iter().partition(is_ipv6);
    let first = |pools: Vec<IpamConfig>| pools.into_iter().next().unwrap_or_default();
    let (mut addresses, six) = (first(four), first(six));
    let mut auxiliary_addresses = addresses.auxiliary_addresses.take().unwrap_or_default();
    auxiliary_addresses.extend(six.auxiliary_addresses.unwrap_or_default());
    let id = if swarm.is_some() { id_of(&text::new_id()) } else { text::new_id() };
    if let (Some(swarm), true) = (&swarm, addresses.subnet.is_empty()) {
        addresses.subnet = overlay::free_subnet(&docker, swarm)?;
    }
    let spec = NetworkSpec {
        name: request.name.clone(),
        id: id.clone(),
        driver: if swarm.is_some() { "overlay" } else { "bridge" }.into(),
        subnet: addresses.subnet,
        ip_range: addresses.ip_range,
        gateway: addresses.gateway,
        ipv6: request.enable_ipv6,
        ipv6_subnet: six.subnet,
        ipv6_range: six.ip_range,
        ipv6_gateway: six.gateway,
        auxiliary_addresses,
        internal: request.internal,
        mode: api::network::NetworkMode::default(),
        uplink: String::new(),
        attachable: request.attachable,
        ingress: request.ingress,
        labels: request.labels,
        options: request.options,
    };
    check_options(&spec)?;
    policy::judge(docker.state.endpoint, &api::privilege::of_network(spec.mode, &spec.options))?;
    check_overlap(&docker, &spec)?;
    let is_label = !request.name.contains('.') && text::object_name(&request.name) == request.name;
    let object = if is_label { request.name.clone() } else { format!("n-{}", text::short_id(&id)) };
    let network = if swarm.is_some() { overlay::object(spec) } else { Network::new(&object, spec) };
    match docker.networks.create(&network).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {
            return Err(Error::Conflict(format!("network with name {} already exists", request.name)));
        }
        Err(error) => return Err(error.into()),
    }
    // A swarm's network says its addresses itself, and is made where it is used.
    if swarm.is_none() {
        made(&docker, &object).await;
    }
    body::json_with(StatusCode::CREATED, &json!({ "Id": id, "Warning": "" }))
}

/// Waits until the agent has made a network, or could not: who looks at it next is told its addresses, as dockerd tells them. One that takes
/// too long is there all the same.
async fn made(docker: &Docker, object: &str) {
    let told = docker.networks.wait_for(object, |slot| match slot {
        Slot::Gone(_) => true,
        Slot::There(network) => is_told(network),
    });
    if tokio::time::timeout(AGENT_TIMEOUT, told).await.is_err() {
        tracing::warn!(network = object, "the machine did not make the network in time");
    }
}

/// Whether the agent has told what came of a network. Pure.
fn is_told(network: &Network) -> bool {
    network.status.as_ref().is_some_and(|status| matches!(status.phase.as_str(), "Ready" | "Failed"))
}

/// What Docker checks of a request.
fn check(request: &Create) -> Result<()> {
    let invalid = |text: String| Err(Error::Invalid(text));
    let name = request.name.as_str();
    if name.trim().is_empty() {
        return invalid("network name cannot be empty".into());
    }
    if PREDEFINED.contains(&name) || name == "default" || name.starts_with("container:") {
        return Err(Error::Forbidden(format!("operation is not permitted on predefined {name} network")));
    }
    if name.len() > 255 || name.chars().any(char::is_control) {
        return invalid(format!("invalid network name {}", text::quote(name)));
    }
    match request.driver.as_str() {
        "" | "bridge" | "default" if !request.is_overlay() => {}
        "" | "overlay" => {}
        "bridge" | "default" => return invalid(format!("driver {} cannot be a swarm's", request.driver)),
        driver @ ("host" | "null") => {
            return Err(Error::Forbidden(format!("only one instance of {} network is allowed", text::quote(driver))));
        }
        driver => {
            return Err(Error::NotFound(format!("plugin {} not found", text::quote(driver))));
        }
    }
    if request.enable_ipv4 == Some(false) {
        return Err(Error::NotImplemented("networks without IPv4 are not available".into()));
    }
    if !matches!(request.ipam.driver.as_str(), "" | "default") {
        return invalid(format!("could not resolve IPAM driver {}", text::quote(&request.ipam.driver)));
    }
    let mut families = Vec::new();
    for config in &request.ipam.config {
        let pool = config.pool()?;
        let inside = |address: &str| pool.is_none_or(|pool| address.parse().is_ok_and(|ip| pool.holds(ip)));
        if !config.gateway.is_empty() && !inside(&config.gateway) {
            return invalid(format!("no matching subnet for gateway {}", config.gateway));
        }
        if Cidr::parse(&config.ip_range)?.is_some_and(|range| !inside(&range.base().to_string())) {
            return invalid(format!("no matching subnet for range {}", config.ip_range));
        }
        families.push(pool.is_some_and(|pool| pool.is_ipv6()));
    }
    if [true, false].iter().any(|family| families.iter().filter(|f| *f == family).count() > 1) {
        return invalid("bridge driver doesn't support multiple subnets".into());
    }
    Ok(())
}

/// Refuses options and auxiliary addresses that could not be acted upon.
fn check_options(spec: &NetworkSpec) -> Result<()> {
    spec.read_options().map_err(|error| match error.is_missing() {
        true => Error::NotImplemented(error.to_string()),
        false => Error::Invalid(error.to_string()),
    })?;
    let kept = spec.read_auxiliary(spec.shared(&spec.subnet)).map_err(Error::Invalid)?;
    let pools = [(Cidr::parse(&spec.subnet)?, &spec.gateway), (Cidr::parse(&spec.ipv6_subnet)?, &spec.ipv6_gateway)];
    let mut taken: HashSet<IpAddr> =
        pools.iter().flat_map(|(pool, gateway)| pool.iter().flat_map(|pool| pool.given(gateway))).collect();
    for (address, (name, text)) in kept.into_iter().zip(&spec.auxiliary_addresses) {
        if !pools.iter().any(|(pool, _)| pool.is_some_and(|pool| pool.holds(address))) {
            let pool = if address.is_ipv6() { &spec.ipv6_subnet } else { &spec.subnet };
            return Err(Error::Forbidden(format!(
                "auxiliary address: ({name}:{text}) must belong to the master pool: {pool}"
            )));
        }
        if !taken.insert(address) {
            return Err(Error::Forbidden(format!(
                "failed to allocate secondary ip address ({name}:{text}): Address already in use"
            )));
        }
    }
    Ok(())
}

/// Two networks of one machine must not share addresses.
fn check_overlap(docker: &Docker, spec: &NetworkSpec) -> Result<()> {
    let six = if spec.ipv6 { spec.ipv6_subnet.as_str() } else { "" };
    let wanted: Vec<Cidr> = [Cidr::parse(&spec.subnet)?, Cidr::parse(six)?].into_iter().flatten().collect();
    for other in docker.networks.all() {
        let status = other.status.clone().unwrap_or_default();
        // What the agent took is in the status; until then what was asked for counts.
        let mut taken = vec![if status.subnet.is_empty() { &other.spec.subnet } else { &status.subnet }];
        if other.spec.ipv6 {
            taken.push(if status.ipv6_subnet.is_empty() { &other.spec.ipv6_subnet } else { &status.ipv6_subnet });
        }
        let mut taken = taken.into_iter().filter_map(|text| Cidr::parse(text).ok().flatten());
        if taken.any(|taken| wanted.iter().any(|wanted| wanted.overlaps(&taken))) {
            return Err(Error::Forbidden(
                "invalid pool request: Pool overlaps with other one on this address space".into(),
            ));
        }
    }
    Ok(())
}

async fn network_delete(docker: Arc<Docker>, call: Call) -> Reply {
    let network = docker.network(call.parameter("id"))?;
    let name = &network.spec.name;
    if PREDEFINED.contains(&name.as_str()) {
        return Err(Error::Forbidden(format!("{name} is a pre-defined network and cannot be removed")));
    }
    let is_overlay = overlay::is_overlay(&network);
    if is_overlay {
        overlay::check_unused(&docker, &network).await?;
    }
    let mut members = docker.members(&network.name_any(), false);
    // Tasks of services that are gone end by themselves; the network waits for them.
    members.retain(|member| !is_overlay || member.spec.task.is_none());
    if let Some(member) = members.first() {
        return Err(Error::Forbidden(format!(
            "error while removing network: network {name} has active endpoints (name:{} id:{})",
            text::quote(&member.spec.name),
            text::quote(text::short_id(&member.name_any()))
        )));
    }
    if is_overlay {
        overlay::remove(&docker, &network).await?;
    } else {
        docker.networks.delete(&network.name_any()).await?;
    }
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// Docker's words for the network of the machine, which is had from the start or never.
const HOST_NETWORK_STAYS: &str = "container cannot be disconnected from host network or connected to host network";
/// Docker's words for the network that is none.
const NONE_IS_ALONE: &str =
    "container cannot be connected to multiple networks with one of the networks in private (none) mode";

async fn network_connect(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Connect = call.json().await?;
    let network = docker.network(call.parameter("id"))?;
    let container = docker.container(&request.container)?;
    let (object, id) = (network.name_any(), container.name_any());
    policy_of_network(&docker, &network)?;
    match network.spec.name.as_str() {
        "host" => return Err(Error::Forbidden(HOST_NETWORK_STAYS.into())),
        "none" => return Err(Error::Forbidden(NONE_IS_ALONE.into())),
        _ => {}
    }
    check_endpoint(&docker, &network.spec.name, &request.endpoint_config)?;
    overlay::check_attachable(&network)?;
    match container.spec.network_mode.as_str() {
        "host" => {
            return Err(Error::Forbidden(
                "container cannot be connected to multiple networks with one of the networks in host mode".into(),
            ));
        }
        "none" if container.spec.networks.is_empty() && docker.was_none(&container) => {
            return Err(Error::Forbidden(NONE_IS_ALONE.into()));
        }
        mode if mode.starts_with("container:") => {
            return Err(Error::Forbidden("container sharing network namespace with another container or host cannot be connected to any other network".into()));
        }
        _ => {}
    }
    let alive = matches!(status_of(&container).state, State::Running | State::Paused);
    let default_only =
        container.spec.networks.is_empty() && matches!(container.spec.network_mode.as_str(), "" | "bridge");
    if container.spec.networks.contains_key(&object) || (default_only && object == api::names::DEFAULT_NETWORK) {
        return Err(Error::Forbidden(format!(
            "endpoint with name {} already exists in network {}",
            container.spec.name, network.spec.name
        )));
    }
    let mut networks = json!({ &object: request.endpoint_config.into_object() });
    if default_only {
        networks[api::names::DEFAULT_NETWORK] = json!({});
    }
    let mut change = json!({ "spec": { "networks": networks } });
    if container.spec.network_mode == "none" {
        change["spec"]["networkMode"] = json!(object);
    }
    docker.containers.patch(&id, &change).await?;
    if alive {
        plugged(&docker, &id, &object, true).await?;
    }
    Ok(body::empty(StatusCode::OK))
}

/// The host's network is for those who may have it.
fn policy_of_network(docker: &Docker, network: &Network) -> Result<()> {
    let asked =
        if network.spec.name == "host" { vec![policy::Privilege::HostNamespace("network")] } else { Vec::new() };
    policy::judge(docker.state.endpoint, &asked)
}

impl Docker {
    /// Whether a container was *made* without a network (and is not just unplugged from all).
    fn was_none(&self, container: &Container) -> bool {
        let echo: Value = serde_json::from_str(&container.spec.dialect_config).unwrap_or_default();
        echo.pointer("/hostConfig/NetworkMode").and_then(Value::as_str) == Some("none")
    }
}

/// Waits until the agent has plugged a running container in or out.
async fn plugged(docker: &Docker, id: &str, object: &str, wanted: bool) -> Result<()> {
    let reached = docker.containers.wait_for(id, |slot| match slot {
        Slot::Gone(_) => true,
        Slot::There(container) => {
            let status = status_of(container);
            !matches!(status.state, State::Running | State::Paused) || status.networks.contains_key(object) == wanted
        }
    });
    match tokio::time::timeout(AGENT_TIMEOUT, reached).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Unavailable("the machine did not change the container's networks in time".into())),
    }
}

async fn network_disconnect(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Disconnect = call.json().await?;
    let network = docker.network(call.parameter("id"))?;
    let object = network.name_any();
    let container = match docker.container(&request.container) {
        Ok(container) => container,
        // A container that is gone is disconnected; `force` says that this is what is wanted.
        Err(Error::NotFound(_)) if request.force => return Ok(body::empty(StatusCode::OK)),
        Err(error) => return Err(error),
    };
    let id = container.name_any();
    let spec = &container.spec;
    let on_default = spec.networks.is_empty() && matches!(spec.network_mode.as_str(), "" | "bridge");
    let is_member = spec.networks.contains_key(&object) || (on_default && object == api::names::DEFAULT_NETWORK);
    if !is_member {
        return Err(Error::Forbidden(format!("container {id} is not connected to network {}", network.spec.name)));
    }
    if spec.network_mode == "host" {
        return Err(Error::Forbidden(HOST_NETWORK_STAYS.into()));
    }
    let last = spec.networks.keys().all(|name| *name == object);
    let mut change = json!({ "spec": { "networks": { &object: null } } });
    if last {
        // No network left: an empty set would mean the default one.
        change["spec"]["networkMode"] = json!("none");
    } else if spec.network_mode == object {
        let next = spec.networks.keys().find(|name| **name != object);
        change["spec"]["networkMode"] = json!(next);
    }
    docker.containers.patch(&id, &change).await?;
    if matches!(status_of(&container).state, State::Running | State::Paused) {
        plugged(&docker, &id, &object, false).await?;
    }
    Ok(body::empty(StatusCode::OK))
}

async fn network_prune(docker: Arc<Docker>, call: Call) -> Reply {
    let filters = Filters::of(&call.query, &["until", "label", "label!"])?;
    let until = filters.values("until").first().map(|text| time::parse_point(text, time::now_ns())).transpose()?;
    let mut deleted = Vec::new();
    for network in docker.networks.all() {
        let created = network.metadata.creation_timestamp.as_ref().map_or(0, |at| time::nanoseconds(at.0));
        let keep = PREDEFINED.contains(&network.spec.name.as_str())
            || !filters.labels(&network.spec.labels)
            || until.is_some_and(|until| created >= until)
            || !docker.members(&network.name_any(), true).is_empty();
        if !keep && overlay::is_overlay(&network) {
            if network.spec.ingress || overlay::check_unused(&docker, &network).await.is_err() {
                continue;
            }
            overlay::remove(&docker, &network).await?;
            deleted.push(network.spec.name.clone());
        } else if !keep {
            docker.networks.delete(&network.name_any()).await?;
            deleted.push(network.spec.name.clone());
        }
    }
    docker.events.publish("network", "prune", "", [("reclaimed".to_owned(), "0".to_owned())].into());
    body::json(&json!({ "NetworksDeleted": if deleted.is_empty() { Value::Null } else { json!(deleted) } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predefined_networks_keep_their_ids() {
        assert_eq!(predefined("host").spec.id, predefined("host").spec.id);
        assert_eq!(predefined("none").spec.driver, "null");
    }
}
