//! Addresses of a service: a `Service` for each of its networks, whose address leads to its tasks there, and one for the
//! ports that every machine publishes. Which tasks stand behind them is in one `EndpointSlice` each. The proxy of every
//! machine does with them as with those of Kubernetes.

use std::collections::BTreeMap;

use api::container::Container;
use api::network::Network;
use api::swarm::{
    ALL_PORTS_ANNOTATION, NAMES_ANNOTATION, NETWORK_ANNOTATION, SERVICE_LABEL, SwarmService, TaskDesired,
};
use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, Resource, ResourceExt};

use super::plan::State;
use super::tasks;
use crate::endpoints::{MANAGED_BY, SERVICE_NAME};
use crate::{Error, Result, gone};

/// Who manages these slices, as [`MANAGED_BY`] says it.
const MANAGER: &str = "swarm.nuee.dev";

/// A service and who stands behind it.
#[derive(Debug, PartialEq)]
struct Front {
    service: Service,
    slice: EndpointSlice,
}

/// Makes the addresses of a service what they should be.
pub async fn sync(
    client: &Client,
    service: &SwarmService,
    networks: &[Network],
    containers: &[Container],
) -> Result<()> {
    let namespace = service.namespace().ok_or(Error::Incomplete("namespace"))?;
    let services = Api::<Service>::namespaced(client.clone(), &namespace);
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), &namespace);
    let query = ListParams::default().labels(&format!("{SERVICE_LABEL}={}", service.name_any()));
    let mut old: BTreeMap<String, Service> =
        services.list(&query).await?.items.into_iter().map(|one| (one.name_any(), one)).collect();
    let mut old_slices: BTreeMap<String, EndpointSlice> =
        slices.list(&query).await?.items.into_iter().map(|one| (one.name_any(), one)).collect();
    for front in fronts(service, networks, containers)? {
        let name = front.service.name_any();
        match old.remove(&name) {
            None => drop(services.create(&PostParams::default(), &front.service).await?),
            Some(current) if same_service(&current, &front.service) => {}
            Some(current) => {
                let mut next = front.service;
                next.metadata.resource_version = current.metadata.resource_version;
                if let (Some(next), Some(current)) = (&mut next.spec, current.spec) {
                    next.cluster_ip = current.cluster_ip;
                    next.cluster_ips = current.cluster_ips;
                }
                services.replace(&name, &PostParams::default(), &next).await?;
            }
        }
        match old_slices.remove(&name) {
            None => drop(slices.create(&PostParams::default(), &front.slice).await?),
            Some(current) if current.endpoints == front.slice.endpoints && current.ports == front.slice.ports => {}
            Some(current) => {
                let mut next = front.slice;
                next.metadata.resource_version = current.metadata.resource_version;
                slices.replace(&name, &PostParams::default(), &next).await?;
            }
        }
    }
    for name in old_slices.keys() {
        gone(slices.delete(name, &DeleteParams::default()).await)?;
    }
    for name in old.keys() {
        gone(services.delete(name, &DeleteParams::default()).await)?;
    }
    Ok(())
}

fn same_service(current: &Service, wanted: &Service) -> bool {
    fn ports(service: &Service) -> Vec<&ServicePort> {
        service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).collect()
    }
    let (now, then) = (ports(current), ports(wanted));
    // A port that was left to choose keeps what was chosen.
    let same = now.len() == then.len()
        && now.iter().zip(then).all(|(now, then)| {
            (&now.name, now.port, &now.target_port, &now.protocol)
                == (&then.name, then.port, &then.target_port, &then.protocol)
                && (then.node_port.is_none() || now.node_port == then.node_port)
        });
    same && wanted.annotations().iter().all(|(key, value)| current.annotations().get(key) == Some(value))
}

/// What a service should have.
fn fronts(service: &SwarmService, networks: &[Network], containers: &[Container]) -> Result<Vec<Front>> {
    let version = &service.spec.current;
    let owner = service.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?;
    let mut fronts = Vec::new();
    if service.metadata.deletion_timestamp.is_some() {
        return Ok(fronts);
    }
    let own = version.task.networks.iter().filter(|_| !version.round_robin_names);
    for (wanted, network) in own.filter_map(|own| Some((own, networks.iter().find(|n| n.name_any() == own.network)?))) {
        let uid = network.uid().unwrap_or_default();
        let names: Vec<&str> = std::iter::once(&service.spec.name).chain(&wanted.aliases).map(String::as_str).collect();
        let port = ServicePort {
            name: Some("any".into()),
            port: 1,
            target_port: Some(IntOrString::Int(1)),
            protocol: Some("TCP".into()),
            ..ServicePort::default()
        };
        let annotations = [
            (ALL_PORTS_ANNOTATION.to_owned(), "true".to_owned()),
            (NETWORK_ANNOTATION.to_owned(), wanted.network.clone()),
            (NAMES_ANNOTATION.to_owned(), names.join(",")),
        ];
        let short: String = uid.chars().take(8).collect();
        let name = format!("swarm-{}-{short}", service.name_any());
        let members = endpoints(containers, Some(&wanted.network));
        let spec = ServiceSpec { type_: Some("ClusterIP".into()), ports: Some(vec![port]), ..ServiceSpec::default() };
        fronts.push(front(&name, service, &owner, annotations.into(), spec, members));
    }
    if !version.ports.is_empty() {
        let ports = version.ports.iter().enumerate().map(|(index, port)| ServicePort {
            name: Some(format!("port-{index}")),
            port: i32::from(if port.published == 0 { port.target } else { port.published }),
            target_port: Some(IntOrString::Int(port.target.into())),
            node_port: (port.published != 0).then(|| port.published.into()),
            protocol: Some(port.protocol.to_uppercase()),
            ..ServicePort::default()
        });
        let spec =
            ServiceSpec { type_: Some("NodePort".into()), ports: Some(ports.collect()), ..ServiceSpec::default() };
        let name = format!("swarm-{}", service.name_any());
        fronts.push(front(&name, service, &owner, BTreeMap::new(), spec, endpoints(containers, None)));
    }
    Ok(fronts)
}

fn front(
    name: &str,
    service: &SwarmService,
    owner: &OwnerReference,
    annotations: BTreeMap<String, String>,
    spec: ServiceSpec,
    endpoints: Vec<Endpoint>,
) -> Front {
    let mut labels = BTreeMap::from([(SERVICE_LABEL.to_owned(), service.name_any())]);
    let ports = spec.ports.iter().flatten().map(|port| {
        let target = port.target_port.as_ref().map_or(port.port, |target| match target {
            IntOrString::Int(number) => *number,
            IntOrString::String(_) => port.port,
        });
        EndpointPort {
            name: port.name.clone(),
            port: Some(target),
            protocol: port.protocol.clone(),
            ..EndpointPort::default()
        }
    });
    let ports = Some(ports.collect());
    let meta = |labels| ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(labels),
        owner_references: Some(vec![owner.clone()]),
        ..ObjectMeta::default()
    };
    let mut own = meta(labels.clone());
    own.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
    labels.insert(SERVICE_NAME.to_owned(), name.to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    Front {
        service: Service { metadata: own, spec: Some(spec), status: None },
        slice: EndpointSlice { metadata: meta(labels), address_type: "IPv4".into(), endpoints: Some(endpoints), ports },
    }
}

/// The tasks that answer, with their addresses on a network; `None` means the network that their routes lead to.
fn endpoints(containers: &[Container], network: Option<&str>) -> Vec<Endpoint> {
    let mut found: Vec<Endpoint> = containers
        .iter()
        .filter_map(|container| {
            let task = tasks::task(container)?;
            let serves = task.state == State::Running && task.desired == TaskDesired::Running;
            let place = network.unwrap_or(container.spec.network_mode.as_str());
            let address = container.status.as_ref()?.networks.get(place)?.ip.clone();
            (serves && !address.is_empty()).then(|| Endpoint {
                addresses: vec![address],
                conditions: Some(EndpointConditions {
                    ready: Some(true),
                    serving: Some(true),
                    terminating: Some(false),
                }),
                node_name: container.spec.node_name.clone(),
                target_ref: Some(ObjectReference {
                    kind: Some("Container".into()),
                    namespace: container.namespace(),
                    name: Some(container.name_any()),
                    uid: container.uid(),
                    ..ObjectReference::default()
                }),
                ..Endpoint::default()
            })
        })
        .collect();
    found.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    found
}
