//! This machine's `Node` object and its lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Namespace, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
    NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::context::Context;
use crate::error::{Error, Result, chain, is_not_found};
use crate::machine;

/// Namespace of leases. Source: Kubernetes, "Leases".
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Time between two renewals. Source: kubelet.
const LEASE_RENEWAL: Duration = Duration::from_secs(10);
/// How long a lease is good for. Units: seconds. Source: kubelet `nodeLeaseDurationSeconds`.
const LEASE_SECONDS: i32 = 40;
/// Renewals between two writes of an unchanged status. Source: kubelet `nodeStatusReportFrequency`, 5 min.
const STATUS_EVERY: u32 = 30;
/// Images listed in the status. Source: kubelet `nodeStatusMaxImages`.
const IMAGES_LIMIT: usize = 50;
/// Pods per machine. Source: kubelet `maxPods`.
const PODS_LIMIT: i64 = 110;

/// What the caller says about the machine.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// Further labels.
    pub labels: BTreeMap<String, String>,
    /// Version of Nuée.
    pub version: String,
    /// Port at which the machine is reached, shown as its endpoint.
    pub port: i32,
    /// Its part of the pods' network.
    pub pod_range: Option<network::Subnet>,
}

/// Registers the machine, or refreshes what is registered.
pub async fn register(context: &Context, facts: &NodeFacts) -> Result<Node> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let node = object(context, facts);
    let created = match nodes.create(&PostParams::default(), &node).await {
        Ok(created) => created,
        Err(kube::Error::Api(status)) if status.code == 409 => {
            // Where the API is on another machine, that one has said which part of the network this one has.
            let patch = match context.is_member {
                true => json!({"metadata": {"labels": node.metadata.labels}}),
                false => json!({"metadata": {"labels": node.metadata.labels}, "spec": node.spec}),
            };
            let patch = Patch::Merge(patch);
            nodes
                .patch(&context.node_name, &PatchParams::default(), &patch)
                .await
                .map_err(Error::api("refresh the node"))?
        }
        Err(error) => return Err(Error::api("register the node")(error)),
    };
    write_status(context, facts, created.status.as_ref()).await?;
    Ok(created)
}

fn object(context: &Context, facts: &NodeFacts) -> Node {
    let mut labels = facts.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", context.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ] {
        labels.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    if !context.is_member {
        labels.insert("node-role.kubernetes.io/control-plane".into(), String::new());
    }
    let range = facts.pod_range.map(|range| range.to_string());
    Node {
        metadata: ObjectMeta { name: Some(context.node_name.clone()), labels: Some(labels), ..ObjectMeta::default() },
        spec: Some(NodeSpec {
            pod_cidr: range.clone(),
            pod_cidrs: range.map(|range| vec![range]),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn write_status(context: &Context, facts: &NodeFacts, old: Option<&NodeStatus>) -> Result<()> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let patch = Patch::Merge(json!({ "status": status(context, facts, old) }));
    nodes
        .patch_status(&context.node_name, &PatchParams::default(), &patch)
        .await
        .map_err(Error::api("write the node's status"))?;
    Ok(())
}

fn status(context: &Context, facts: &NodeFacts, old: Option<&NodeStatus>) -> NodeStatus {
    let disk_bytes = crate::disk::space(&context.data_dir).map_or(0, |(total, _)| total);
    let quantities: BTreeMap<String, Quantity> = [
        ("cpu", (context.size.cpu_milli / 1000).to_string()),
        ("memory", format!("{}Ki", context.size.memory_bytes / 1024)),
        ("ephemeral-storage", format!("{}Ki", disk_bytes / 1024)),
        ("pods", PODS_LIMIT.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), Quantity(value)))
    .collect();
    let mut allocatable = quantities.clone();
    let asked_for = crate::disk::allocatable(disk_bytes, context.disk_reserve_percent);
    allocatable.insert("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", asked_for / 1024)));
    let pressure = *context.disk_pressure.borrow();
    let conditions = [
        ("MemoryPressure", false, "KubeletHasSufficientMemory", "agent has sufficient memory available"),
        if pressure {
            ("DiskPressure", true, "KubeletHasDiskPressure", "agent has disk pressure")
        } else {
            ("DiskPressure", false, "KubeletHasNoDiskPressure", "agent has no disk pressure")
        },
        ("PIDPressure", false, "KubeletHasSufficientPID", "agent has sufficient PID available"),
        ("Ready", true, "KubeletReady", "agent is posting ready status"),
    ];
    let old_conditions = old.and_then(|o| o.conditions.as_deref()).unwrap_or(&[]);
    let images = context.images.list().into_iter().take(IMAGES_LIMIT);
    NodeStatus {
        capacity: Some(quantities),
        allocatable: Some(allocatable),
        conditions: Some(conditions.map(|c| condition(c, old_conditions)).to_vec()),
        addresses: Some(vec![
            NodeAddress { type_: "InternalIP".into(), address: context.host_address.to_string() },
            NodeAddress { type_: "Hostname".into(), address: context.node_name.clone() },
        ]),
        daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: facts.port }) }),
        images: Some(
            images.map(|(names, size)| ContainerImage { names: Some(names), size_bytes: Some(size) }).collect(),
        ),
        node_info: Some(info(facts)),
        ..NodeStatus::default()
    }
}

fn condition((kind, value, reason, message): (&str, bool, &str, &str), old: &[NodeCondition]) -> NodeCondition {
    let status = if value { "True" } else { "False" };
    let now = Time(Timestamp::now());
    let before = old.iter().find(|c| c.type_ == kind && c.status == status);
    NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(now)),
    }
}

fn info(facts: &NodeFacts) -> NodeSystemInfo {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty =
        release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"').to_owned();
    NodeSystemInfo {
        machine_id: machine::line("/etc/machine-id"),
        system_uuid: machine::line("/sys/class/dmi/id/product_uuid"),
        boot_id: machine::line("/proc/sys/kernel/random/boot_id"),
        kernel_version: machine::line("/proc/sys/kernel/osrelease"),
        os_image: pretty,
        container_runtime_version: format!("nuee://{}", facts.version),
        kubelet_version: format!("v1.36.0+nuee-{}", facts.version),
        kube_proxy_version: String::new(),
        operating_system: "linux".into(),
        architecture: architecture().into(),
        ..NodeSystemInfo::default()
    }
}

/// Renews the lease and refreshes the status until the agent is dropped.
pub async fn run(context: Arc<Context>, facts: NodeFacts, node: Node) {
    let mut turn: u32 = 0;
    let (mut pressure, mut changed) = (context.disk_pressure.subscribe(), false);
    loop {
        if let Err(error) = renew(&context, &node).await {
            tracing::warn!(error = %chain(&error), "cannot renew the node's lease");
        }
        let due = changed || turn % STATUS_EVERY == STATUS_EVERY - 1;
        if let Err(error) = refresh(&context, &facts, due).await {
            tracing::warn!(error = %chain(&error), "cannot refresh the node");
        }
        turn = turn.wrapping_add(1);
        changed = matches!(tokio::time::timeout(LEASE_RENEWAL, pressure.changed()).await, Ok(Ok(())));
    }
}

/// Writes the status when it is due, and at once when another said that this machine is not ready: it is, or this would not run.
async fn refresh(context: &Context, facts: &NodeFacts, due: bool) -> Result<()> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let Some(current) = nodes.get_opt(&context.node_name).await.map_err(Error::api("read the node"))? else {
        if context.is_member {
            return Err(Error::Invalid("this machine was taken out of the pool".into()));
        }
        return register(context, facts).await.map(drop);
    };
    let status = current.status.unwrap_or_default();
    let doubted = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status != "True");
    if due || doubted { write_status(context, facts, Some(&status)).await } else { Ok(()) }
}

async fn renew(context: &Context, node: &Node) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), LEASE_NAMESPACE);
    let now = MicroTime(Timestamp::now());
    let patch = Patch::Merge(json!({"spec": {"renewTime": now, "holderIdentity": context.node_name}}));
    match leases.patch(&context.node_name, &PatchParams::default(), &patch).await {
        Ok(_) => return Ok(()),
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(Error::api("renew the lease")(error)),
    }
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: context.node_name.clone(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(context.node_name.clone()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(context.node_name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    match leases.create(&PostParams::default(), &lease).await {
        Err(error) if is_not_found(&error) => {
            let namespaces: Api<Namespace> = Api::all(context.client.clone());
            let namespace = Namespace {
                metadata: ObjectMeta { name: Some(LEASE_NAMESPACE.into()), ..ObjectMeta::default() },
                ..Namespace::default()
            };
            let _ = namespaces.create(&PostParams::default(), &namespace).await;
            leases.create(&PostParams::default(), &lease).await.map(drop).map_err(Error::api("create the lease"))
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        result => result.map(drop).map_err(Error::api("create the lease")),
    }
}
