//! `POST /containers/create`: looks up what the pure translation needs, judges it, and makes the objects.

use std::path::Path;
use std::sync::Arc;

use api::container::{Container, ContainerSpec};
use api::volume::{Volume, VolumeSpec};
use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::config::{self, Surroundings, Translated};
use super::connections;
use super::echo::Echo;
use super::mounts;
use super::wire::{CreateRequest, EndpointConfig};
use crate::call::Call;
use crate::error::{Error, Result};
use crate::operation::Reply;
use crate::state::Docker;
use crate::{body, policy, text};

/// Label by which `docker volume prune` knows volumes that nobody named.
pub(crate) const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";
/// Attempts to find a free name before giving up.
const NAME_ATTEMPTS: usize = 4;

struct Lookup<'a>(&'a Docker);

impl Surroundings for Lookup<'_> {
    fn network_object(&self, reference: &str) -> Result<String> {
        let network = self.0.network(reference)?;
        crate::swarm::networks::check_attachable(&network)?;
        Ok(network.name_any())
    }

    fn network_subnets(&self, object: &str) -> Vec<String> {
        let Some(network) = self.0.network_of_object(object) else { return Vec::new() };
        let chosen = [network.spec.subnet.clone(), network.spec.ipv6_subnet.clone()];
        chosen.into_iter().filter(|subnet| !subnet.is_empty()).collect()
    }

    fn other_container(&self, reference: &str) -> Result<(String, ContainerSpec)> {
        let other = self.0.container(reference)?;
        let mut spec = other.spec.clone();
        // The spec names volumes as their objects are named; requests name them as users do.
        for mount in spec.mounts.iter_mut().filter(|mount| mount.kind == "volume") {
            if let Some(volume) = self.0.volumes.get(&mount.source) {
                mount.source.clone_from(&volume.spec.name);
            }
        }
        Ok((other.name_any(), spec))
    }
}

/// What is checked of a place on a network that is asked for.
pub(crate) fn check_endpoint(docker: &Docker, network: &str, asked: &EndpointConfig) -> Result<()> {
    connections::check_addresses(network, asked, &Lookup(docker))
}

/// Makes a container.
pub(crate) async fn container_create(docker: Arc<Docker>, mut call: Call) -> Reply {
    let name = call.query.text("name").map(|name| name.strip_prefix('/').unwrap_or(name).to_owned());
    let Some(request) = call.json_or_empty::<CreateRequest>().await? else {
        return Err(Error::Invalid("config cannot be empty in order to create a container".into()));
    };
    // Only now: an answer before the whole request was read breaks the connection of clients that are still sending.
    if let Some(name) = &name {
        check_name(name)?;
    }
    let image = if request.image.is_empty() {
        return Err(Error::Invalid("no image specified".into()));
    } else {
        docker.image_defaults(&request.image).await?
    };
    let chosen = name.clone().unwrap_or_else(|| docker.free_container_name());
    // "Not found" means the image to clients, who go and pull it; other things that are not there are bad requests.
    let translated = config::translate(&chosen, &request, &image, &Lookup(&docker));
    let mut translated = translated.map_err(|error| match error {
        Error::NotFound(text) => Error::Invalid(text),
        other => other,
    })?;
    if call.version < mounts::RECURSIVE_READ_ONLY {
        mounts::read_only_alone(&mut translated.spec.mounts)?;
    }
    let mut asked = policy::privileges(&translated.spec);
    asked.append(&mut translated.privileges);
    policy::judge(docker.state.endpoint, &asked)?;
    check_sources(&docker, &request).await?;
    for mount in translated.spec.mounts.iter_mut().filter(|mount| mount.kind == "image") {
        let image = docker.image(&mount.source).await.map_err(|error| Error::Invalid(error.to_string()))?;
        mount.source = image.id.to_string();
    }
    for (mount, settings) in named_volumes(&translated) {
        docker.ensure_volume(&mount, settings).await?;
    }
    translated.spec.dialect_config = Echo::of_request(&request).to_text();
    translated.spec.node_name.clone_from(&docker.state.node_name);
    let made = make(&docker, &mut translated, name.is_some()).await?;
    for volume in &translated.anonymous_volumes {
        make_anonymous_volume(&docker, volume, &made).await?;
    }
    body::json_with(StatusCode::CREATED, &json!({ "Id": made.name_any(), "Warnings": translated.warnings }))
}

/// Docker's rule for names, in its words.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if text::is_restricted_name(name) {
        return Ok(());
    }
    Err(Error::Invalid(format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")))
}

/// `--mount type=bind` wants its source to exist already (unlike `-v`, which makes it). Only what runs on this very
/// machine can be checked here.
async fn check_sources(docker: &Docker, request: &CreateRequest) -> Result<()> {
    if docker.state.node_name.is_none() {
        return Ok(());
    }
    for mount in request.host_config.get("Mounts").and_then(serde_json::Value::as_array).into_iter().flatten() {
        let member = |name: &str| mount.get(name).and_then(serde_json::Value::as_str).unwrap_or("");
        let makes_it =
            mount.pointer("/BindOptions/CreateMountpoint").and_then(serde_json::Value::as_bool) == Some(true);
        if member("Type") != "bind" || makes_it {
            continue;
        }
        let found = node::patience::ask_path(member("Source"), Path::symlink_metadata).await;
        if found.map_err(node::Error::from)?.is_err() {
            return Err(Error::Invalid(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {}",
                member("Source")
            )));
        }
    }
    Ok(())
}

fn named_volumes(translated: &Translated) -> Vec<(String, VolumeSpec)> {
    let named = |source: &String| !translated.anonymous_volumes.contains(source);
    translated
        .spec
        .mounts
        .iter()
        .filter(|mount| mount.kind == "volume" && named(&mount.source))
        .map(|mount| {
            let settings = translated.volume_settings.get(&mount.source).cloned().unwrap_or_default();
            let spec = VolumeSpec {
                name: mount.source.clone(),
                driver: "local".into(),
                labels: settings.labels,
                options: settings.options,
                node_name: translated.spec.node_name.clone(),
                ..VolumeSpec::default()
            };
            (mount.source.clone(), spec)
        })
        .collect()
}

/// Writes the object; a name that we chose ourselves is chosen again when somebody was faster.
async fn make(docker: &Docker, translated: &mut Translated, named: bool) -> Result<Arc<Container>> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut object = Container::new(&text::new_id(), translated.spec.clone());
        // The spec names volumes as their objects are named.
        for mount in object.spec.mounts.iter_mut().filter(|mount| mount.kind == "volume") {
            mount.source = docker.volume_object(&mount.source);
        }
        object.metadata.finalizers = Some(vec![api::names::AGENT_FINALIZER.to_owned()]);
        match docker.containers.create(&object).await {
            Ok(made) => return Ok(made),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                if named || attempt == NAME_ATTEMPTS {
                    return Err(name_conflict(docker, &translated.spec.name));
                }
                translated.spec.name = docker.free_container_name();
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Docker's text for a name that is taken.
pub(crate) fn name_conflict(docker: &Docker, name: &str) -> Error {
    let holder = docker.containers.all().into_iter().find(|c| c.spec.name == name).map(|c| c.name_any());
    Error::Conflict(format!(
        "Conflict. The container name \"/{name}\" is already in use by container \"{}\". You have to remove (or rename) that container to be able to reuse that name.",
        holder.unwrap_or_default()
    ))
}

/// A volume that lives with its container: it goes with it when the container removes itself.
async fn make_anonymous_volume(docker: &Docker, name: &str, owner: &Container) -> Result<()> {
    let spec = VolumeSpec {
        name: name.to_owned(),
        driver: "local".into(),
        labels: [(ANONYMOUS_LABEL.to_owned(), String::new())].into(),
        node_name: docker.state.node_name.clone(),
        ..VolumeSpec::default()
    };
    let mut volume = Volume::new(&docker.volume_object(name), spec);
    if owner.spec.auto_remove {
        volume.metadata.owner_references = Some(vec![OwnerReference {
            api_version: Container::api_version(&()).into_owned(),
            kind: Container::kind(&()).into_owned(),
            name: owner.name_any(),
            uid: owner.uid().unwrap_or_default(),
            ..OwnerReference::default()
        }]);
    }
    docker.volumes.create(&volume).await?;
    Ok(())
}
