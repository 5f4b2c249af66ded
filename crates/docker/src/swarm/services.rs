//! Services: list, create, inspect, update, roll back, remove. Each is a `SwarmService` object; what it asks for is judged as
//! `docker create` is.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::ContainerSpec;
use api::swarm::{
    FINALIZER, Mode, NETWORK_ANNOTATION, Rollout, RolloutPhase, SERVICE_LABEL, ServiceVersion, SwarmService,
    SwarmServiceSpec, TaskDesired, id_of,
};
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::spec::{self, NetworkFacts, References, Wanted};
use super::{
    UPDATED_ANNOTATION, check_version, credentials, extend, find, invalid, is_id_prefix, not_found, now_text,
    precondition, shown, stamps, stored, tasks, write_error,
};
use crate::call::Call;
use crate::containers::config::Surroundings;
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::images::transfer::registry_auth;
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::{body, policy, text, time};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ServiceList", Method::GET, "/services", "list", "swarm", run!(service_list)),
    Operation::new("ServiceCreate", Method::POST, "/services/create", "create", "swarm", run!(service_create))
        .partial("seccomp profiles of its own, plugins"),
    Operation::new("ServiceInspect", Method::GET, "/services/{id}", "get", "swarm", run!(service_inspect)),
    Operation::new("ServiceDelete", Method::DELETE, "/services/{id}", "delete", "swarm", run!(service_delete)),
    Operation::new("ServiceUpdate", Method::POST, "/services/{id}/update", "update", "swarm", run!(service_update))
        .partial("seccomp profiles of its own, plugins"),
];

/// What a specification refers to, read before it is translated.
struct Looked<'a> {
    docker: &'a Docker,
    secrets: Vec<Secret>,
    configs: Vec<ConfigMap>,
}

impl Surroundings for Looked<'_> {
    fn network_object(&self, reference: &str) -> Result<String> {
        Ok(self.docker.network(reference)?.name_any())
    }

    fn network_subnets(&self, _object: &str) -> Vec<String> {
        Vec::new()
    }

    fn other_container(&self, reference: &str) -> Result<(String, ContainerSpec)> {
        Err(not_found("container", reference))
    }
}

impl References for Looked<'_> {
    fn service_network(&self, reference: &str) -> Result<NetworkFacts> {
        let network = self.docker.network(reference)?;
        let spec = &network.spec;
        Ok(NetworkFacts {
            id: spec.id.clone(),
            object: network.name_any(),
            driver: spec.driver.clone(),
            ingress: spec.ingress,
        })
    }

    fn stored(&self, secret: bool, id: &str, name: &str) -> Result<String> {
        let by_id = |found: String| found == id;
        let object = if secret {
            self.secrets.iter().find(|object| by_id(stored::id(*object))).map(ResourceExt::name_any)
        } else {
            self.configs.iter().find(|object| by_id(stored::id(*object))).map(ResourceExt::name_any)
        };
        let kind = if secret { "secret" } else { "config" };
        object.ok_or_else(|| invalid(format!("{kind} not found: {name}")))
    }
}

impl Docker {
    pub(super) fn service_api(&self) -> Api<SwarmService> {
        Api::namespaced(self.state.client.clone(), &self.state.namespace)
    }

    /// The services that are not about to go, in the order of their names.
    pub(super) async fn services(&self) -> Result<Vec<SwarmService>> {
        let mut all = self.service_api().list(&ListParams::default()).await?.items;
        all.retain(|service| service.metadata.deletion_timestamp.is_none());
        all.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        Ok(all)
    }

    pub(super) async fn service(&self, reference: &str) -> Result<SwarmService> {
        find(self.services().await?, "service", reference, ResourceExt::name_any, |service| service.spec.name.clone())
    }

    async fn translate(&self, given: Value) -> Result<Wanted> {
        let looked = Looked { docker: self, secrets: self.stored().await?, configs: self.stored().await? };
        let wanted = spec::translate(given, &looked)?;
        let mut asked = policy::privileges(&wanted.version.task.container);
        asked.extend(wanted.translated.privileges.iter().cloned());
        policy::judge(self.state.endpoint, &asked)?;
        Ok(wanted)
    }
}

/// Refuses ports that another service publishes.
fn check_ports(all: &[SwarmService], own: &str, version: &ServiceVersion) -> Result<()> {
    for port in version.ports.iter().filter(|port| port.published != 0) {
        let same = |other: &&SwarmService| {
            let ports = &other.spec.current.ports;
            let taken = ports.iter().any(|one| one.published == port.published && one.protocol == port.protocol);
            other.name_any() != own && taken
        };
        if let Some(other) = all.iter().find(same) {
            return Err(invalid(format!(
                "port '{}' is already in use by service '{}' ({}) as an ingress port",
                port.published,
                other.spec.name,
                other.name_any()
            )));
        }
    }
    Ok(())
}

async fn service_create(docker: Arc<Docker>, mut call: Call) -> Reply {
    let mut given: Value = call.json().await?;
    docker.swarm()?;
    if given["Name"].as_str().is_none_or(str::is_empty) {
        given["Name"] = json!(docker.free_container_name());
    }
    let login = registry_auth(&call)?;
    let mut wanted = docker.translate(given).await?;
    let all = docker.services().await?;
    let conflict = || {
        let text = format!("name conflicts with an existing object: service {} already exists", wanted.name);
        Error::Conflict(format!("rpc error: code = AlreadyExists desc = {text}"))
    };
    if all.iter().any(|service| service.spec.name == wanted.name) {
        return Err(conflict());
    }
    check_ports(&all, "", &wanted.version)?;
    make_volumes(&docker, &wanted).await?;
    let id = id_of(&text::new_id());
    // Before the service is there, so that its first task finds them.
    if let Some(login) = &login {
        wanted.version.task.container.pull_secret = credentials::secret_name(&id);
        credentials::keep(&docker, &id, None, &wanted.version.task.container.image, login).await?;
    }
    let spec = SwarmServiceSpec { name: wanted.name.clone(), current: wanted.version.clone(), ..Default::default() };
    let mut service = SwarmService::new(&id, spec);
    service.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    service.annotations_mut().insert(UPDATED_ANNOTATION.into(), now_text());
    let made = match docker.service_api().create(&PostParams::default(), &service).await {
        Ok(made) => made,
        Err(kube::Error::Api(status)) if status.code == 409 => return Err(conflict()),
        Err(error) => return Err(error.into()),
    };
    if let Some(login) = &login {
        credentials::keep(&docker, &id, Some(&made), &made.spec.current.task.container.image, login).await?;
    }
    docker.events.swarm("service", "create", &id, &[("name", wanted.name.clone())]);
    body::json_with(StatusCode::CREATED, &json!({ "ID": id, "Warnings": null }))
}

/// Volumes with settings of their own are made now; the others where their tasks start.
async fn make_volumes(docker: &Docker, wanted: &Wanted) -> Result<()> {
    let settings = wanted.translated.volume_settings.iter();
    let mounts = &wanted.version.task.container.mounts;
    for (name, settings) in settings.filter(|(_, settings)| !settings.options.is_empty() || !settings.labels.is_empty())
    {
        if !mounts.iter().any(|mount| mount.source == *name) {
            continue;
        }
        let spec = api::VolumeSpec {
            name: name.clone(),
            driver: "local".into(),
            labels: settings.labels.clone(),
            options: settings.options.clone(),
            ..api::VolumeSpec::default()
        };
        docker.ensure_volume(name, spec).await?;
    }
    Ok(())
}

async fn service_update(docker: Arc<Docker>, mut call: Call) -> Reply {
    let given: Value = call.json().await?;
    docker.swarm()?;
    let service = docker.service(call.parameter("id")).await?;
    check_version(&call, &service)?;
    let mut next = service.clone();
    next.spec.request += 1;
    if call.query.get("rollback") == Some("previous") {
        let Some(previous) = next.spec.previous.take() else {
            return Err(precondition(format!("service {} does not have a previous spec", service.name_any())));
        };
        next.spec.previous = Some(std::mem::replace(&mut next.spec.current, previous));
        next.spec.rolling_back = true;
    } else {
        let login = registry_auth(&call)?;
        let mut wanted = docker.translate(given).await?;
        let unimplemented =
            |text: &str| Error::NotImplemented(format!("rpc error: code = Unimplemented desc = {text}"));
        if wanted.name != service.spec.name {
            return Err(unimplemented("renaming services is not supported"));
        }
        if wanted.version.mode != service.spec.current.mode {
            return Err(unimplemented("service mode change is not allowed"));
        }
        check_ports(&docker.services().await?, &service.name_any(), &wanted.version)?;
        make_volumes(&docker, &wanted).await?;
        let task = &mut wanted.version.task.container;
        match &login {
            Some(login) => {
                task.pull_secret = credentials::secret_name(&service.name_any());
                credentials::keep(&docker, &service.name_any(), Some(&service), &task.image, login).await?;
            }
            // Those that it had, as with `registryAuthFrom=spec`.
            None => task.pull_secret.clone_from(&service.spec.current.task.container.pull_secret),
        }
        next.spec.previous = Some(std::mem::replace(&mut next.spec.current, wanted.version));
        next.spec.rolling_back = false;
    }
    next.spec.rollback_reason.clear();
    next.annotations_mut().insert(UPDATED_ANNOTATION.into(), now_text());
    let written = docker.service_api().replace(&service.name_any(), &PostParams::default(), &next).await;
    written.map_err(write_error)?;
    docker.events.swarm("service", "update", &service.name_any(), &[("name", service.spec.name.clone())]);
    body::json(&json!({ "Warnings": null }))
}

async fn service_delete(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let service = docker.service(call.parameter("id")).await?;
    remove(&docker, &service).await?;
    Ok(body::empty(StatusCode::OK))
}

/// Lets a service go: its name is free at once, its tasks end in peace.
pub(super) async fn remove(docker: &Docker, service: &SwarmService) -> Result<()> {
    let id = service.name_any();
    let change = json!({ "metadata": { "uid": service.metadata.uid }, "spec": { "name": format!("removed/{id}") } });
    let done = async {
        docker.service_api().patch(&id, &PatchParams::default(), &Patch::Merge(change)).await?;
        docker.service_api().delete(&id, &DeleteParams::default()).await
    };
    match done.await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error.into()),
    }
    docker.events.swarm("service", "remove", &id, &[("name", service.spec.name.clone())]);
    Ok(())
}

/// The specification as the user gave it, completed.
fn shown_spec(version: &ServiceVersion) -> Value {
    serde_json::from_str(&version.dialect_config).unwrap_or_else(|_| json!({}))
}

/// A service as inspect shows it.
fn describe(docker: &Docker, service: &SwarmService, fronts: &[Service], defaults: bool) -> Value {
    let current = &service.spec.current;
    let mut spec = shown_spec(current);
    if defaults {
        shown::insert_defaults(&mut spec);
    }
    let mut shown = stamps(service);
    extend(
        &mut shown,
        json!({ "ID": service.name_any(), "Spec": spec, "Endpoint": endpoint(docker, service, fronts) }),
    );
    if let Some(previous) = &service.spec.previous {
        shown["PreviousSpec"] = shown_spec(previous);
    }
    let rollout = service.status.as_ref().and_then(|status| status.rollout.as_ref());
    if let Some(rollout) = rollout.filter(|rollout| rollout.request == service.spec.request) {
        shown["UpdateStatus"] = rollout_status(rollout);
    }
    if current.mode.is_job() {
        shown["JobStatus"] = json!({
            "JobIteration": { "Index": service.spec.request },
            "LastExecution": shown["UpdatedAt"],
        });
    }
    shown
}

fn rollout_status(rollout: &Rollout) -> Value {
    let state = match (rollout.rollback, rollout.phase) {
        (false, RolloutPhase::Running) => "updating",
        (false, RolloutPhase::Paused) => "paused",
        (false, RolloutPhase::Completed) => "completed",
        (true, RolloutPhase::Running) => "rollback_started",
        (true, RolloutPhase::Paused) => "rollback_paused",
        (true, RolloutPhase::Completed) => "rollback_completed",
    };
    let mut shown = json!({
        "State": state,
        "StartedAt": time::of_object(rollout.started_at.as_ref()),
        "Message": rollout.message,
    });
    if rollout.completed_at.is_some() {
        shown["CompletedAt"] = json!(time::of_object(rollout.completed_at.as_ref()));
    }
    shown
}

/// Ports and addresses as they are.
fn endpoint(docker: &Docker, service: &SwarmService, fronts: &[Service]) -> Value {
    let wanted = shown_spec(&service.spec.current)["EndpointSpec"].clone();
    let is_empty = wanted.as_object().is_none_or(|spec| spec.get("Ports").is_none_or(Value::is_null));
    let has_address = !service.spec.current.task.networks.is_empty() && !service.spec.current.round_robin_names;
    if is_empty && !has_address {
        return json!({ "Spec": {} });
    }
    let own = |front: &&Service| front.labels().get(SERVICE_LABEL) == Some(&service.name_any());
    let address = |front: &Service| front.spec.as_ref().and_then(|spec| spec.cluster_ip.clone()).unwrap_or_default();
    let networks = docker.networks.all();
    let mut virtual_ips = Vec::new();
    let mut ports = wanted["Ports"].clone();
    for front in fronts.iter().filter(own) {
        let network = match front.annotations().get(NETWORK_ANNOTATION) {
            Some(object) => networks.iter().find(|network| network.name_any() == *object),
            None => {
                fill_ports(&mut ports, service, front);
                networks.iter().find(|network| network.spec.ingress)
            }
        };
        if let Some(network) = network {
            virtual_ips.push(json!({ "NetworkID": network.spec.id, "Addr": format!("{}/32", address(front)) }));
        }
    }
    let mut shown = json!({ "Spec": wanted });
    if !ports.is_null() {
        shown["Ports"] = ports;
    }
    if !virtual_ips.is_empty() {
        shown["VirtualIPs"] = json!(virtual_ips);
    }
    shown
}

/// Ports that were left to choose, as they were chosen.
fn fill_ports(ports: &mut Value, service: &SwarmService, front: &Service) {
    let chosen: Vec<Option<i32>> =
        front.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).map(|port| port.node_port).collect();
    let ingress = ports.as_array_mut().into_iter().flatten().filter(|port| port["PublishMode"] != "host");
    for ((shown, wanted), chosen) in ingress.zip(&service.spec.current.ports).zip(chosen) {
        if wanted.published == 0
            && let Some(chosen) = chosen
        {
            shown["PublishedPort"] = json!(chosen);
        }
    }
}

/// How many tasks run, should run, and are done.
fn counts(own: &[tasks::Task], service: &SwarmService) -> Value {
    let current = &service.spec.current;
    let running = own.iter().filter(|task| task.is_running()).count();
    let wanted = own.iter().filter(|task| task.info.desired == TaskDesired::Running && !task.is_over()).count();
    let slots: std::collections::BTreeSet<(u32, &str)> =
        own.iter().filter(|task| task.is_complete()).map(|task| (task.info.slot, task.info.machine.as_str())).collect();
    let completed = if current.mode.is_job() { slots.len() } else { 0 };
    let replicas = usize::try_from(current.replicas).unwrap_or(0);
    let desired = match current.mode {
        Mode::Replicated => replicas,
        Mode::Global | Mode::GlobalJob => wanted,
        Mode::ReplicatedJob => usize::try_from(current.max_concurrent).unwrap_or(0),
    };
    json!({ "RunningTasks": running, "DesiredTasks": desired, "CompletedTasks": completed })
}

async fn fronts(docker: &Docker) -> Result<Vec<Service>> {
    let services: Api<Service> = Api::namespaced(docker.state.client.clone(), &docker.state.namespace);
    Ok(services.list(&ListParams::default().labels(SERVICE_LABEL)).await?.items)
}

async fn service_list(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let filters = Filters::of(&call.query, &["id", "label", "mode", "name", "runtime"])?;
    let mut all = docker.services().await?;
    all.retain(|service| {
        let spec = shown_spec(&service.spec.current);
        let labels: BTreeMap<String, String> = serde_json::from_value(spec["Labels"].clone()).unwrap_or_default();
        let mode = match service.spec.current.mode {
            Mode::Replicated => "replicated",
            Mode::Global => "global",
            Mode::ReplicatedJob => "replicated-job",
            Mode::GlobalJob => "global-job",
        };
        filters.any("id", |prefix| is_id_prefix(prefix) && service.name_any().starts_with(prefix))
            && filters.any("name", |prefix| service.spec.name.starts_with(prefix))
            && filters.any("mode", |wanted| wanted == mode)
            && filters.any("runtime", |wanted| wanted == "container")
            && filters.labels(&labels)
    });
    let fronts = fronts(&docker).await?;
    let status = call.query.flag("status").then(|| tasks::by_service(&docker));
    let rows = all.iter().map(|service| {
        let mut row = describe(&docker, service, &fronts, false);
        if let Some(tasks) = &status {
            let own = tasks.get(&service.name_any()).map(Vec::as_slice).unwrap_or_default();
            row["ServiceStatus"] = counts(own, service);
        }
        row
    });
    body::json(&rows.collect::<Vec<_>>())
}

async fn service_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let service = docker.service(call.parameter("id")).await?;
    let fronts = fronts(&docker).await?;
    body::json(&describe(&docker, &service, &fronts, call.query.flag("insertDefaults")))
}
