//! From objects to `placement`'s plain structs.

use std::collections::BTreeMap;

use api::requests::{self, Requests};
use api::swarm::{SERVICE_LABEL, TaskInfo};
use api::{Container, FlavorSpec, VirtualMachine};
use k8s_openapi::api::core::v1::{self as core, Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use placement::pool::LabelRequirement;
use placement::{Machine, Relation, Resources, Spread, Taint, TaintEffect, Toleration, Workload};

use crate::quantity;
use crate::swarm::machines;

/// Pods on a machine that does not say how many it takes. `Source:` Kubernetes' kubelet default.
const DEFAULT_PODS: usize = 110;

/// Stands for the field `metadata.name` among a machine's labels; no label can have this key.
const NAME_FIELD: &str = "field:metadata.name";

/// Stands before what the rules of tasks ask about among a machine's labels; no label's key can begin so.
const ATTRIBUTE: &str = "attribute:";
/// Weight of the wish not to be where other tasks of the same service are.
const APART_WEIGHT: i32 = -100;

/// A machine from its `Node`.
pub fn machine(node: &Node) -> Machine {
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let allocatable = status.allocatable.or(status.capacity).unwrap_or_default();
    let workloads_max = allocatable.get("pods").and_then(quantity::units);
    let conditions = status.conditions.unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let mut taints: Vec<Taint> = spec.taints.iter().flatten().filter_map(taint).collect();
    if !ready && !taints.iter().any(|taint| taint.key == "node.kubernetes.io/not-ready") {
        let key = "node.kubernetes.io/not-ready".into();
        taints.push(Taint { key, value: String::new(), effect: TaintEffect::NoSchedule });
    }
    let mut labels = node.labels().clone();
    labels.insert(NAME_FIELD.into(), node.name_any());
    let attributes = machines::attributes(node).into_iter();
    labels.extend(attributes.map(|(key, value)| (format!("{ATTRIBUTE}{key}"), value)));
    let images = status.images.into_iter().flatten().flat_map(|image| {
        let size = image.size_bytes.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
        image.names.into_iter().flatten().map(move |name| (image_name(&name), size))
    });
    Machine {
        name: node.name_any(),
        labels,
        images: images.collect(),
        taints,
        unschedulable: spec.unschedulable.unwrap_or(false),
        ready,
        allocatable: resources(&allocatable),
        workloads_max: workloads_max.and_then(|count| usize::try_from(count).ok()).unwrap_or(DEFAULT_PODS),
        ..Machine::default()
    }
}

/// One form for the many ways to write an image's name.
fn image_name(name: &str) -> String {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    let short = short.strip_prefix("library/").unwrap_or(short);
    let last = short.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { short.to_owned() } else { format!("{short}:latest") }
}

fn taint(taint: &core::Taint) -> Option<Taint> {
    Some(Taint {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
        effect: effect(&taint.effect)?,
    })
}

fn effect(text: &str) -> Option<TaintEffect> {
    match text {
        "NoSchedule" => Some(TaintEffect::NoSchedule),
        "PreferNoSchedule" => Some(TaintEffect::PreferNoSchedule),
        "NoExecute" => Some(TaintEffect::NoExecute),
        _ => None,
    }
}

fn resources(amounts: &BTreeMap<String, Quantity>) -> Resources {
    let mut resources = Resources::default();
    for (name, amount) in amounts {
        match name.as_str() {
            "cpu" => resources.cpu_millis = quantity::millis(amount).unwrap_or(0),
            "memory" => resources.memory_bytes = quantity::units(amount).unwrap_or(0),
            "ephemeral-storage" => resources.ephemeral_storage_bytes = quantity::units(amount).unwrap_or(0),
            "pods" => {}
            _ => {
                resources.extended.insert(name.clone(), quantity::units(amount).unwrap_or(0));
            }
        }
    }
    resources
}

/// A workload from a pod.
pub fn pod_workload(pod: &Pod) -> Workload {
    let spec = pod.spec.clone().unwrap_or_default();
    let (affinity, preferences) = node_affinity(&spec);
    let pinned = spec.node_name.clone().filter(|name| !name.is_empty());
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut workload = Workload {
        id: format!("pod/{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()),
        namespace: pod.namespace().unwrap_or_default(),
        labels: pod.labels().clone(),
        images: containers.filter_map(|one| one.image.as_deref()).map(image_name).collect(),
        requests: pod_requests(&spec),
        selector: if pinned.is_some() { BTreeMap::new() } else { spec.node_selector.clone().unwrap_or_default() },
        affinity,
        preferences,
        tolerations: spec.tolerations.iter().flatten().map(toleration).collect(),
        host_ports: spec
            .containers
            .iter()
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| {
                let number = u16::try_from(port.host_port?).ok().filter(|number| *number > 0)?;
                Some((port.protocol.clone().unwrap_or_else(|| "TCP".into()), number))
            })
            .collect(),
        ..Workload::default()
    };
    super::relations::fill(&mut workload, pod);
    workload
}

/// What a pod asks for: its containers together, or its largest init container, whichever is more; init containers that go on
/// running count with the containers. `Source:` Kubernetes documentation, Init Containers, "Resource sharing".
fn pod_requests(spec: &core::PodSpec) -> Resources {
    let of = |container: &core::Container| {
        let asked = container.resources.clone().unwrap_or_default();
        let mut amounts = asked.limits.unwrap_or_default();
        amounts.extend(asked.requests.unwrap_or_default());
        resources(&amounts)
    };
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&of(container));
            peak = larger(&peak, &sidecars);
        } else {
            let mut now = sidecars.clone();
            now.add(&of(container));
            peak = larger(&peak, &now);
        }
    }
    total.add(&sidecars);
    let mut total = larger(&total, &peak);
    total.add(&resources(&spec.overhead.clone().unwrap_or_default()));
    total
}

fn larger(one: &Resources, other: &Resources) -> Resources {
    let mut extended = one.extended.clone();
    for (name, amount) in &other.extended {
        let entry = extended.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
    Resources {
        cpu_millis: one.cpu_millis.max(other.cpu_millis),
        memory_bytes: one.memory_bytes.max(other.memory_bytes),
        ephemeral_storage_bytes: one.ephemeral_storage_bytes.max(other.ephemeral_storage_bytes),
        extended,
    }
}

fn toleration(toleration: &core::Toleration) -> Toleration {
    let exists = toleration.operator.as_deref() == Some("Exists");
    Toleration {
        key: toleration.key.clone().filter(|key| !key.is_empty()),
        value: if exists { None } else { Some(toleration.value.clone().unwrap_or_default()) },
        effect: toleration.effect.as_deref().and_then(effect),
    }
}

type Preferences = Vec<(u32, Vec<LabelRequirement>)>;

fn node_affinity(spec: &core::PodSpec) -> (Vec<Vec<LabelRequirement>>, Preferences) {
    let Some(affinity) = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()) else {
        return (Vec::new(), Vec::new());
    };
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref();
    let required = required.map(|selector| selector.node_selector_terms.iter().map(term).collect());
    let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
    let preferred = preferred.map(|wish| (u32::try_from(wish.weight).unwrap_or(0), term(&wish.preference)));
    (required.unwrap_or_default(), preferred.collect())
}

fn term(term: &core::NodeSelectorTerm) -> Vec<LabelRequirement> {
    let labels = term.match_expressions.iter().flatten().map(|condition| (condition.key.clone(), condition));
    let fields = term.match_fields.iter().flatten().map(|condition| (format!("field:{}", condition.key), condition));
    let conditions = labels.chain(fields).map(|(key, condition)| {
        let values = condition.values.clone().unwrap_or_default();
        let number = values.first().and_then(|text| text.parse().ok());
        match (condition.operator.as_str(), number) {
            ("In", _) => LabelRequirement::In(key, values),
            ("NotIn", _) => LabelRequirement::NotIn(key, values),
            ("Exists", _) => LabelRequirement::Exists(key),
            ("DoesNotExist", _) => LabelRequirement::DoesNotExist(key),
            ("Gt", Some(bound)) => LabelRequirement::GreaterThan(key, bound),
            ("Lt", Some(bound)) => LabelRequirement::LessThan(key, bound),
            // An operator that we do not know is met by no machine: safer than by all.
            _ => LabelRequirement::In(key, Vec::new()),
        }
    });
    conditions.collect()
}

/// What is asked for, as placement takes it.
fn asked(requests: Requests) -> Resources {
    let Requests { cpu_millis, memory_bytes } = requests;
    Resources { cpu_millis, memory_bytes, ..Resources::default() }
}

/// A workload from a `Container`.
pub fn container_workload(container: &Container) -> Workload {
    let mut workload = Workload {
        id: format!("container/{}/{}", container.namespace().unwrap_or_default(), container.name_any()),
        namespace: container.namespace().unwrap_or_default(),
        requests: asked(requests::of_container(&container.spec)),
        ..Workload::default()
    };
    if let Some(task) = &container.spec.task {
        place_task(&mut workload, task);
        workload.images = vec![image_name(&container.spec.image)];
    }
    workload
}

/// What a task says about its place.
fn place_task(workload: &mut Workload, task: &TaskInfo) {
    let placement = &task.placement;
    let further = placement.resources.iter().map(|(name, amount)| (name.clone(), u64::from(*amount)));
    workload.requests.extended = further.collect();
    let rules = machines::rules(placement).into_iter().map(|(attribute, values, negated)| {
        let key = format!("{ATTRIBUTE}{attribute}");
        if negated { LabelRequirement::NotIn(key, values) } else { LabelRequirement::In(key, values) }
    });
    workload.affinity = [rules.collect::<Vec<_>>()].into_iter().filter(|rules| !rules.is_empty()).collect();
    workload.machine = Some(task.machine.clone()).filter(|machine| !machine.is_empty());
    let same = LabelRequirement::In(SERVICE_LABEL.to_owned(), vec![task.service.clone()]);
    workload.labels.insert(SERVICE_LABEL.to_owned(), task.service.clone());
    let others = |selector| Relation { selector, topology_key: NAME_FIELD.to_owned(), ..Relation::default() };
    workload.near_preferences.push((APART_WEIGHT, others(vec![same.clone()])));
    if placement.max_per_node > 0 {
        // Slots are dealt out to as many lanes as a machine may have tasks; of each lane it has one at most.
        let lane = (task.slot.saturating_sub(1) % placement.max_per_node).to_string();
        workload.labels.insert(LANE.to_owned(), lane.clone());
        workload.apart.push(others(vec![same.clone(), LabelRequirement::In(LANE.to_owned(), vec![lane])]));
    }
    workload.spread.extend(placement.spread.iter().map(|attribute| Spread {
        selector: vec![same.clone()],
        topology_key: format!("{ATTRIBUTE}{attribute}"),
        max_skew: 1,
        required: false,
    }));
}

/// Label of tasks, for the bound on tasks of a service on one machine.
const LANE: &str = "nuee.dev/lane";

/// The id of a guest's workload.
pub fn guest_id(guest: &VirtualMachine) -> String {
    format!("guest/{}/{}", guest.namespace().unwrap_or_default(), guest.name_any())
}

/// A workload from a `VirtualMachine`. `flavor` says what it does not.
pub fn guest_workload(guest: &VirtualMachine, flavor: Option<&FlavorSpec>) -> Workload {
    Workload { id: guest_id(guest), requests: asked(requests::of_guest(&guest.spec, flavor)), ..Workload::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_asks_for_its_largest_init_container_or_all_its_containers() {
        let container = |cpu: &str| json!({ "name": "c", "resources": { "requests": { "cpu": cpu } } });
        let object = json!({
            "metadata": { "name": "p" },
            "spec": { "containers": [container("100m"), container("200m")], "initContainers": [container("500m")] },
        });
        let pod: Pod = serde_json::from_value(object).unwrap_or_default();
        assert_eq!(pod_workload(&pod).requests.cpu_millis, 500);
    }

    #[test]
    fn a_node_that_is_not_ready_is_tainted() {
        let node: Node = serde_json::from_value(json!({ "metadata": { "name": "n" } })).unwrap_or_default();
        assert_eq!(machine(&node).taints.len(), 1);
    }
}
