//! What is on a machine beside its pods. `kubectl describe node` asks for the pods that a machine has and have not ended, and adds up
//! what they ask for; guests and containers are placed on the same capacity, so whoever asks in these words is shown them too, as
//! pods with a slash in their names, which no pod can have.

use api::container::State;
use api::requests::{self, Requests};
use api::{Container, Flavor, VirtualMachine, quantity};
use apiserver::{ApiServer, ListOptions, Meta, Object, ObjectList, RequestContext, ResourcePath};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// What `kubectl describe node` asks of the pods' phases.
const NOT_ENDED: [&str; 2] = ["status.phase!=Failed", "status.phase!=Succeeded"];
/// What it says of their place.
const PLACE: &str = "spec.nodeName=";

/// The machine whose workloads are asked for, if that is what is asked.
pub(crate) fn machine<'a>(path: &ResourcePath, options: &'a ListOptions) -> Option<&'a str> {
    let pods = path.group.is_empty() && path.resource == "pods" && path.namespace.is_none();
    if !pods || options.label_selector.as_deref().is_some_and(|text| !text.is_empty()) {
        return None;
    }
    let mut machine = None;
    let mut phases = 0;
    for term in options.field_selector.as_deref()?.split(',') {
        match term.strip_prefix(PLACE) {
            Some(name) => machine = Some(name.trim_start_matches('=')),
            None if NOT_ENDED.contains(&term) => phases += 1,
            None => return None,
        }
    }
    machine.filter(|name| !name.is_empty() && phases == NOT_ENDED.len())
}

/// Adds guests and containers of the machine to the last page of its pods, as far as who asks may list them.
pub(crate) async fn add(api: &ApiServer, context: &RequestContext, machine: &str, list: &mut ObjectList) {
    if list.continue_token.is_some() {
        return;
    }
    let flavors: Vec<Flavor> = all(api, context, "flavors").await;
    for guest in all::<VirtualMachine>(api, context, "virtualmachines").await {
        let spec = &guest.spec;
        if spec.node_name.as_deref() != Some(machine) {
            continue;
        }
        let flavor = flavors.iter().find(|flavor| flavor.metadata.name.as_deref() == Some(&spec.flavor));
        let asked = requests::of_guest(spec, flavor.map(|flavor| &flavor.spec));
        let name = guest.metadata.name.as_deref().unwrap_or_default();
        let resources = resources(asked, asked);
        list.items.push(shown(("virtualmachine", name), &guest.metadata, machine, &spec.image, &resources));
    }
    for container in all::<Container>(api, context, "containers").await {
        let spec = &container.spec;
        let asked = requests::of_container(spec);
        if spec.node_name.as_deref() == Some(machine) && counts(&container, asked) {
            let bound = |number: i64| u64::try_from(number).unwrap_or(0);
            let limits = Requests {
                cpu_millis: bound(spec.resources.nano_cpus).div_ceil(1_000_000),
                memory_bytes: bound(spec.resources.memory_bytes),
            };
            let resources = resources(asked, limits);
            list.items.push(shown(("container", &spec.name), &container.metadata, machine, &spec.image, &resources));
        }
    }
}

/// A container that runs, or holds a place to be started again.
fn counts(container: &Container, asked: Requests) -> bool {
    match container.status.as_ref().map_or(State::Created, |status| status.state) {
        State::Running | State::Paused | State::Restarting => true,
        State::Created | State::Exited => container.spec.task.is_none() && asked != Requests::default(),
        State::Dead => false,
    }
}

async fn all<K: DeserializeOwned>(api: &ApiServer, context: &RequestContext, resource: &str) -> Vec<K> {
    let path = ResourcePath {
        group: "nuee.dev".into(),
        version: "v1".into(),
        resource: resource.into(),
        ..ResourcePath::default()
    };
    let found = api.list(context, &path, &ListOptions::default()).await;
    let items = found.map(|list| list.items).unwrap_or_default();
    items.iter().filter_map(|item| serde_json::from_slice(&item.bytes).ok()).collect()
}

/// As a container's `resources`; what is zero is not said.
fn resources(requests: Requests, limits: Requests) -> Value {
    let amounts = |amounts: Requests| {
        let mut said = serde_json::Map::new();
        if amounts.cpu_millis > 0 {
            said.insert("cpu".into(), format!("{}m", amounts.cpu_millis).into());
        }
        if amounts.memory_bytes > 0 {
            said.insert("memory".into(), quantity::bytes(amounts.memory_bytes).into());
        }
        said
    };
    json!({"requests": amounts(requests), "limits": amounts(limits)})
}

fn shown((kind, name): (&str, &str), metadata: &ObjectMeta, machine: &str, image: &str, resources: &Value) -> Object {
    let name = format!("{kind}/{name}");
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": metadata.uid, "labels": metadata.labels,
            "creationTimestamp": metadata.creation_timestamp},
        "spec": {"nodeName": machine, "containers": [{"name": kind, "image": image, "resources": resources}]},
        "status": {"phase": "Running"},
    });
    let key = format!("{namespace}/{name}").into();
    Object { bytes: pod.to_string().into(), meta: Meta { key, ..Meta::default() }.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_words_of_describe_node_are_answered_with_more_than_pods() {
        let pods = |namespace: Option<&str>| ResourcePath {
            version: "v1".into(),
            resource: "pods".into(),
            namespace: namespace.map(str::to_owned),
            ..ResourcePath::default()
        };
        let asked = |fields: &str| ListOptions { field_selector: Some(fields.into()), ..ListOptions::default() };
        let words = "spec.nodeName=a,status.phase!=Failed,status.phase!=Succeeded";
        assert_eq!(machine(&pods(None), &asked(words)), Some("a"));
        assert_eq!(machine(&pods(Some("default")), &asked(words)), None);
        let nodes = ResourcePath { resource: "nodes".into(), ..pods(None) };
        assert_eq!(machine(&nodes, &asked(words)), None);
        // As kubectl drain and the agents ask.
        for other in ["spec.nodeName=a", "status.phase!=Failed,status.phase!=Succeeded", "metadata.name=x", ""] {
            assert_eq!(machine(&pods(None), &asked(other)), None, "{other}");
        }
        let labelled = ListOptions { label_selector: Some("a=b".into()), ..asked(words) };
        assert_eq!(machine(&pods(None), &labelled), None);
    }
}
