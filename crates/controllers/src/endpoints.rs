//! Endpoints: which ready pods stand behind a Service, as EndpointSlices and, for older clients, as Endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as OldPort, EndpointSubset, Endpoints, ObjectReference,
};
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, Resource, ResourceExt};

use crate::{Error, Result, drive, is_missing, pods, watching};

/// Most endpoints in one slice. `Source:` Kubernetes API reference, EndpointSlice.
const SLICE_ENDPOINTS: usize = 1000;
/// Label that names the slice's service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that names who manages the slice.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of it.
const MANAGER: &str = "endpointslice-controller.k8s.io";

/// Runs the controller.
pub async fn run(client: Client) {
    let controller = Controller::new(Api::<Service>::all(client.clone()), watching())
        .owns(Api::<EndpointSlice>::all(client.clone()), watching());
    let services = controller.store();
    let controller =
        controller.watches(Api::<Pod>::all(client.clone()), watching(), move |pod| affected(&services, &pod));
    drive(controller, "endpoints", reconcile, Arc::new(client)).await;
}

/// The services whose selector picks this pod.
fn affected(services: &Store<Service>, pod: &Pod) -> Vec<ObjectRef<Service>> {
    let selecting = |service: &Arc<Service>| {
        service.metadata.namespace == pod.metadata.namespace
            && selector(service)
                .is_some_and(|selector| selector.iter().all(|(key, value)| pod.labels().get(key) == Some(value)))
    };
    services
        .state()
        .iter()
        .filter(|service| selecting(service))
        .map(|service| ObjectRef::from_obj(&**service))
        .collect()
}

/// The selector of a service that has one; services without one have their endpoints written by others.
fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

async fn reconcile(service: Arc<Service>, client: Arc<Client>) -> Result<Action> {
    let namespace = service.namespace().ok_or(Error::Incomplete("namespace"))?;
    let Some(service) = Api::<Service>::namespaced((*client).clone(), &namespace).get_opt(&service.name_any()).await?
    else {
        return Ok(Action::await_change());
    };
    let Some(selector) = selector(&service) else { return Ok(Action::await_change()) };
    if service.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let text: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let api = Api::<Pod>::namespaced((*client).clone(), &namespace);
    let mut members = api.list(&ListParams::default().labels(&text.join(","))).await?.items;
    members.sort_by_key(ResourceExt::name_any);
    write_slices(&client, &namespace, &service, &members).await?;
    write_endpoints(&client, &namespace, &service, &members).await?;
    Ok(Action::await_change())
}

async fn write_slices(client: &Client, namespace: &str, service: &Service, members: &[Pod]) -> Result<()> {
    let api = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
    let name = service.name_any();
    let query = ListParams::default().labels(&format!("{SERVICE_NAME}={name},{MANAGED_BY}={MANAGER}"));
    let mut present: BTreeMap<String, EndpointSlice> =
        api.list(&query).await?.items.into_iter().map(|slice| (slice.name_any(), slice)).collect();
    for (index, wanted) in slices(service, members)?.into_iter().enumerate() {
        match present.remove(&wanted.name_any()) {
            None => {
                tracing::debug!(service = name, slice = index, "endpoint slice is new");
                api.create(&PostParams::default(), &wanted).await?;
            }
            Some(current) if same_slice(&current, &wanted) => {}
            Some(current) => {
                let mut next = wanted;
                next.metadata.resource_version = current.metadata.resource_version;
                api.replace(&next.name_any(), &PostParams::default(), &next).await?;
            }
        }
    }
    for surplus in present.keys() {
        match api.delete(surplus, &DeleteParams::default()).await {
            Err(error) if !is_missing(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

fn same_slice(one: &EndpointSlice, other: &EndpointSlice) -> bool {
    one.endpoints == other.endpoints
        && one.ports.clone().unwrap_or_default() == other.ports.clone().unwrap_or_default()
        && other.labels().iter().all(|(key, value)| one.labels().get(key) == Some(value))
}

/// The slices that a service should have: pods grouped by what its port names mean on them.
fn slices(service: &Service, members: &[Pod]) -> Result<Vec<EndpointSlice>> {
    let mut groups: Vec<(Vec<EndpointPort>, Vec<Endpoint>)> = Vec::new();
    for pod in members {
        let Some(endpoint) = endpoint(service, pod) else { continue };
        let ports = ports(service, pod);
        match groups.iter_mut().find(|(known, list)| *known == ports && list.len() < SLICE_ENDPOINTS) {
            Some((_, list)) => list.push(endpoint),
            None => groups.push((ports, vec![endpoint])),
        }
    }
    if groups.is_empty() {
        groups.push((Vec::new(), Vec::new()));
    }
    let owner = service.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?;
    let name = service.name_any();
    let mut labels = service.labels().clone();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert("service.kubernetes.io/headless".into(), String::new());
    }
    let slice = |(index, (ports, endpoints)): (usize, (Vec<EndpointPort>, Vec<Endpoint>))| EndpointSlice {
        metadata: ObjectMeta {
            name: Some(slice_name(&name, service.metadata.uid.as_deref().unwrap_or_default(), index)),
            labels: Some(labels.clone()),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".into(),
        endpoints: Some(endpoints),
        ports: Some(ports),
    };
    Ok(groups.into_iter().enumerate().map(slice).collect())
}

/// The same service always gets the same names, so that a restart in the middle doubles nothing.
fn slice_name(service: &str, uid: &str, index: usize) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let seed = format!("{uid}/{index}");
    let mut hash = seed.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut suffix = String::new();
    for _ in 0..5 {
        let letter = hash as usize % LETTERS.len();
        suffix.push(char::from(LETTERS[letter]));
        hash /= 27;
    }
    let kept: String = service.chars().take(240).collect();
    format!("{kept}-{suffix}")
}

fn endpoint(service: &Service, pod: &Pod) -> Option<Endpoint> {
    let address = pod.status.as_ref()?.pod_ip.clone().filter(|address| !address.is_empty())?;
    if pods::has_ended(pod) {
        return None;
    }
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = publish || pods::is_ready(pod);
    let spec = pod.spec.as_ref();
    let in_domain = spec.and_then(|spec| spec.subdomain.clone()) == service.metadata.name;
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(serving && (!terminating || publish)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: spec.and_then(|spec| spec.hostname.clone()).filter(|_| in_domain),
        node_name: spec.and_then(|spec| spec.node_name.clone()),
        target_ref: Some(reference(pod)),
        ..Endpoint::default()
    })
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.namespace(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(EndpointPort {
                app_protocol: port.app_protocol.clone(),
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(port, pod)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            })
        })
        .collect()
}

/// The number that a service port means on a pod; `None` when the pod declares no port of that name.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let declared = containers.flat_map(|container| container.ports.iter().flatten());
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            declared
                .into_iter()
                .find(|one| one.name.as_ref() == Some(name) && one.protocol.as_deref().unwrap_or("TCP") == protocol)
                .map(|one| one.container_port)
        }
    }
}

async fn write_endpoints(client: &Client, namespace: &str, service: &Service, members: &[Pod]) -> Result<()> {
    let api = Api::<Endpoints>::namespaced(client.clone(), namespace);
    let subsets = subsets(service, members);
    let name = service.name_any();
    match api.get_opt(&name).await? {
        Some(mut current) => {
            if current.subsets.clone().unwrap_or_default() != subsets {
                current.subsets = Some(subsets);
                api.replace(&name, &PostParams::default(), &current).await?;
            }
        }
        None => {
            let endpoints = Endpoints {
                metadata: ObjectMeta {
                    name: Some(name),
                    labels: service.metadata.labels.clone(),
                    owner_references: Some(vec![service.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?]),
                    ..ObjectMeta::default()
                },
                subsets: Some(subsets),
            };
            api.create(&PostParams::default(), &endpoints).await?;
        }
    }
    Ok(())
}

fn subsets(service: &Service, members: &[Pod]) -> Vec<EndpointSubset> {
    let mut groups: Vec<EndpointSubset> = Vec::new();
    for pod in members {
        let Some(endpoint) = endpoint(service, pod) else { continue };
        let conditions = endpoint.conditions.unwrap_or_default();
        if conditions.terminating == Some(true) {
            continue;
        }
        let ports: Vec<OldPort> = ports(service, pod)
            .into_iter()
            .map(|port| OldPort {
                app_protocol: port.app_protocol,
                name: port.name.filter(|name| !name.is_empty()),
                port: port.port.unwrap_or(0),
                protocol: port.protocol,
            })
            .collect();
        let address = EndpointAddress {
            hostname: endpoint.hostname,
            ip: endpoint.addresses.into_iter().next().unwrap_or_default(),
            node_name: endpoint.node_name,
            target_ref: endpoint.target_ref,
        };
        let position = groups.iter().position(|group| group.ports.as_ref() == Some(&ports)).unwrap_or_else(|| {
            groups.push(EndpointSubset { ports: Some(ports), ..EndpointSubset::default() });
            groups.len() - 1
        });
        let group = &mut groups[position];
        let list = if conditions.ready == Some(true) { &mut group.addresses } else { &mut group.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ready: bool, port: i32) -> Pod {
        let object = json!({
            "metadata": { "name": name, "namespace": "default", "uid": name },
            "spec": { "containers": [{ "name": "c", "ports": [{ "name": "web", "containerPort": port }] }] },
            "status": { "podIP": format!("10.0.0.{port}"), "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] },
        });
        serde_json::from_value(object).unwrap_or_default()
    }

    fn service() -> Service {
        let object = json!({
            "metadata": { "name": "s", "namespace": "default", "uid": "u" },
            "spec": { "selector": { "a": "b" }, "ports": [{ "port": 80, "targetPort": "web" }] },
        });
        serde_json::from_value(object).unwrap_or_default()
    }

    #[test]
    fn pods_that_give_a_port_name_different_numbers_go_into_different_slices() {
        let made = slices(&service(), &[pod("a", true, 80), pod("b", true, 81)]).unwrap_or_default();
        let numbers: Vec<Option<i32>> =
            made.iter().flat_map(|slice| slice.ports.iter().flatten()).map(|port| port.port).collect();
        assert_eq!(numbers, [Some(80), Some(81)]);
    }

    #[test]
    fn a_pod_that_is_not_ready_gets_no_traffic() {
        let groups = subsets(&service(), &[pod("a", false, 80)]);
        assert_eq!(groups.len(), 1);
        assert!(groups[0].addresses.is_none() && groups[0].not_ready_addresses.is_some());
    }
}
