//! Machines: list, inspect, update, remove. Availability is the machine's mark of being closed (`pause`, as after
//! `kubectl cordon`) and a taint that drives workloads out (`drain`).

use std::collections::BTreeMap;
use std::sync::Arc;

use api::swarm::{DRAIN_TAINT, LABELS_ANNOTATION, NAME_ANNOTATION, id_of};
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    CLUSTER_PORT, UPDATED_ANNOTATION, check_version, find, is_id_prefix, labels_of, labels_text, now_text,
    precondition, stamps, write_error,
};
use crate::body;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("NodeList", Method::GET, "/nodes", "list", "swarm", run!(node_list)),
    Operation::new("NodeInspect", Method::GET, "/nodes/{id}", "get", "swarm", run!(node_inspect)),
    Operation::new("NodeDelete", Method::DELETE, "/nodes/{id}", "delete", "swarm", run!(node_delete)),
    Operation::new("NodeUpdate", Method::POST, "/nodes/{id}/update", "update", "swarm", run!(node_update))
        .partial("promotion and demotion"),
];

/// Label of machines that decide.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Body of update, and `Spec` of a machine.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NodeSpec {
    name: String,
    labels: Option<BTreeMap<String, String>>,
    role: String,
    availability: String,
}

/// Swarm's id of a machine.
pub(crate) fn id(node: &Node) -> String {
    id_of(&node.uid().unwrap_or_default())
}

/// Whether a machine decides.
pub(crate) fn is_manager(node: &Node) -> bool {
    node.labels().contains_key(CONTROL_PLANE)
}

/// Where a machine is reached.
pub(crate) fn address(node: &Node) -> String {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    addresses.iter().find(|one| one.type_ == "InternalIP").map(|one| one.address.clone()).unwrap_or_default()
}

fn hostname(node: &Node) -> String {
    node.labels().get("kubernetes.io/hostname").cloned().unwrap_or_else(|| node.name_any())
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn availability(node: &Node) -> &'static str {
    let spec = node.spec.clone().unwrap_or_default();
    if spec.taints.iter().flatten().any(|taint| taint.key == DRAIN_TAINT) {
        "drain"
    } else if spec.unschedulable == Some(true) {
        "pause"
    } else {
        "active"
    }
}

impl Docker {
    /// All machines, in the order of their names.
    pub(crate) async fn nodes(&self) -> Result<Vec<Node>> {
        let mut all = self.node_api().list(&ListParams::default()).await?.items;
        all.sort_by_key(ResourceExt::name_any);
        Ok(all)
    }

    fn node_api(&self) -> Api<Node> {
        Api::all(self.state.client.clone())
    }

    /// The machine of this endpoint.
    pub(crate) fn own_node<'a>(&self, all: &'a [Node]) -> Option<&'a Node> {
        match &self.state.node_name {
            Some(name) => all.iter().find(|node| node.name_any() == *name),
            None => all.first(),
        }
    }

    async fn node_of(&self, reference: &str) -> Result<Node> {
        let all = self.nodes().await?;
        if reference == "self" {
            return self.own_node(&all).cloned().ok_or_else(|| super::not_found("node", reference));
        }
        find(all, "node", reference, id, hostname)
    }
}

fn describe(node: &Node, trust_root: &str) -> Value {
    let status = node.status.clone().unwrap_or_default();
    let info = status.node_info.clone().unwrap_or_default();
    let capacity = status.capacity.unwrap_or_default();
    let amount = |name: &str| capacity.get(name).and_then(|quantity| api::quantity::whole(&quantity.0)).unwrap_or(0);
    let architecture = match info.architecture.as_str() {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    let mut spec = json!({
        "Labels": labels_of(node),
        "Role": if is_manager(node) { "manager" } else { "worker" },
        "Availability": availability(node),
    });
    if let Some(name) = node.annotations().get(NAME_ANNOTATION) {
        spec["Name"] = json!(name);
    }
    let version = info.kubelet_version.split_once("nuee-").map_or(env!("CARGO_PKG_VERSION"), |(_, version)| version);
    let plugins = [
        ("Log", "json-file"),
        ("Log", "local"),
        ("Log", "none"),
        ("Network", "bridge"),
        ("Network", "host"),
        ("Network", "null"),
        ("Network", "overlay"),
        ("Volume", "local"),
    ];
    let mut shown = stamps(node);
    super::extend(
        &mut shown,
        json!({
            "ID": id(node),
            "Spec": spec,
            "Description": {
                "Hostname": hostname(node),
                "Platform": { "Architecture": architecture, "OS": info.operating_system },
                "Resources": { "NanoCPUs": amount("cpu").saturating_mul(1_000_000_000), "MemoryBytes": amount("memory") },
                "Engine": {
                    "EngineVersion": version,
                    "Labels": {},
                    "Plugins": plugins.map(|(kind, name)| json!({ "Type": kind, "Name": name })),
                },
                "TLSInfo": { "TrustRoot": trust_root, "CertIssuerSubject": "", "CertIssuerPublicKey": "" },
            },
            "Status": { "State": if is_ready(node) { "ready" } else { "down" }, "Addr": address(node) },
        }),
    );
    if is_manager(node) {
        shown["ManagerStatus"] = json!({
            "Leader": true,
            "Reachability": if is_ready(node) { "reachable" } else { "unreachable" },
            "Addr": format!("{}:{CLUSTER_PORT}", address(node)),
        });
    }
    shown
}

async fn node_list(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let filters = Filters::of(&call.query, &["id", "label", "membership", "name", "node.label", "role"])?;
    let mut nodes = docker.nodes().await?;
    nodes.retain(|node| {
        let own = labels_of(node);
        let role = if is_manager(node) { "manager" } else { "worker" };
        let labelled =
            |name: &str| filters.values(name).iter().all(|wanted| crate::filters::label_matches(wanted, &own));
        filters.any("id", |prefix| is_id_prefix(prefix) && id(node).starts_with(prefix))
            && filters.any("name", |name| hostname(node).starts_with(name))
            && filters.any("role", |wanted| wanted == role)
            && filters.any("membership", |wanted| wanted == "accepted")
            && labelled("node.label")
            && labelled("label")
    });
    let root = docker.trust_root().await?;
    body::json(&nodes.iter().map(|node| describe(node, &root)).collect::<Vec<_>>())
}

async fn node_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let node = docker.node_of(call.parameter("id")).await?;
    body::json(&describe(&node, &docker.trust_root().await?))
}

async fn node_update(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: NodeSpec = call.json().await?;
    docker.swarm()?;
    let node = docker.node_of(call.parameter("id")).await?;
    check_version(&call, &node)?;
    match (request.role.as_str(), is_manager(&node)) {
        ("manager", true) | ("worker", false) => {}
        ("worker", true) => {
            let managers = docker.nodes().await?.iter().filter(|node| is_manager(node)).count();
            return Err(if managers <= 1 {
                precondition("attempting to demote the last manager of the swarm")
            } else {
                Error::NotImplemented("a machine that decides cannot become one that does not".into())
            });
        }
        ("manager", false) => {
            return Err(Error::NotImplemented("promotion is not available: one machine decides".into()));
        }
        (other, _) => return Err(Error::Invalid(format!("invalid Role: {}", crate::text::quote(other)))),
    }
    if !matches!(request.availability.as_str(), "active" | "pause" | "drain") {
        let shown = crate::text::quote(&request.availability);
        return Err(Error::Invalid(format!("invalid Availability: {shown}")));
    }
    let mut next = node.clone();
    let own = request.labels.unwrap_or_default();
    next.annotations_mut().insert(LABELS_ANNOTATION.into(), labels_text(&own));
    next.annotations_mut().insert(UPDATED_ANNOTATION.into(), now_text());
    if request.name.is_empty() {
        next.annotations_mut().remove(NAME_ANNOTATION);
    } else {
        next.annotations_mut().insert(NAME_ANNOTATION.into(), request.name);
    }
    make_available(&mut next, &request.availability);
    docker.node_api().replace(&next.name_any(), &PostParams::default(), &next).await.map_err(write_error)?;
    let (old, new) = (availability(&node), request.availability);
    let mut attributes = vec![("name", hostname(&node))];
    if old != new {
        attributes.extend([("availability.old", old.to_owned()), ("availability.new", new)]);
    }
    docker.events.swarm("node", "update", &id(&node), &attributes);
    Ok(body::empty(StatusCode::OK))
}

/// Opens a machine for workloads, closes it, or drives them out.
fn make_available(node: &mut Node, availability: &str) {
    let spec = node.spec.get_or_insert_default();
    let mut taints = spec.taints.take().unwrap_or_default();
    taints.retain(|taint| taint.key != DRAIN_TAINT);
    if availability == "drain" {
        taints.push(Taint { key: DRAIN_TAINT.into(), effect: "NoExecute".into(), ..Taint::default() });
    }
    spec.taints = Some(taints).filter(|taints| !taints.is_empty());
    spec.unschedulable = (availability != "active").then_some(true);
}

/// The same for a machine that is in the store.
pub(crate) async fn set_availability(docker: &Docker, node: &Node, availability: &str) -> Result<()> {
    let mut next = node.clone();
    make_available(&mut next, availability);
    docker.node_api().replace(&next.name_any(), &PostParams::default(), &next).await.map_err(write_error)?;
    Ok(())
}

/// Takes away what a swarm wrote on a machine.
pub(crate) async fn forget(docker: &Docker, node: &Node) -> Result<()> {
    let drained = availability(node) == "drain";
    let mut next = node.clone();
    let annotations = next.annotations_mut();
    let marked = [LABELS_ANNOTATION, NAME_ANNOTATION].map(|name| annotations.remove(name).is_some());
    if drained {
        make_available(&mut next, "active");
    }
    if drained || marked.contains(&true) {
        docker.node_api().replace(&next.name_any(), &PostParams::default(), &next).await.map_err(write_error)?;
    }
    Ok(())
}

async fn node_delete(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let node = docker.node_of(call.parameter("id")).await?;
    if is_manager(&node) {
        return Err(precondition(format!(
            "node {} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
            id(&node)
        )));
    }
    if is_ready(&node) && !call.query.flag("force") {
        return Err(precondition(format!("node {} is not down and can't be removed", id(&node))));
    }
    docker.node_api().delete(&node.name_any(), &DeleteParams::default()).await?;
    docker.events.swarm("node", "remove", &id(&node), &[("name", hostname(&node))]);
    Ok(body::empty(StatusCode::OK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn availability_is_what_others_see_too() {
        let mut node = Node::default();
        for wanted in ["drain", "pause", "active"] {
            make_available(&mut node, wanted);
            assert_eq!(availability(&node), wanted);
        }
        assert!(node.spec.is_some_and(|spec| spec.taints.is_none() && spec.unschedulable.is_none()));
        let mut cordoned = Node::default();
        cordoned.spec.get_or_insert_default().unschedulable = Some(true);
        assert_eq!(availability(&cordoned), "pause");
    }
}
