//! A container that was made without looking at its image, as the tasks of services are: at its first start the image is
//! found or pulled here, the spec is completed with what the image says, and its volumes are made.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::container::{Container, ContainerSpec, HealthCheck, Mount};
use api::names::object_name;
use api::volume::{Volume, VolumeSpec};
use image::{ImageConfig, PullOptions};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::context::Context;
use crate::error::{Error, Result, chain};
use crate::hands::FoundImage;
use crate::{patch, pull_secret};

/// Label by which Docker's clients know volumes that nobody named.
const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// The object as it is to be started; it is the same when its image is known already.
///
/// Errors: the image is neither here nor at its registry, or says nothing to run.
pub async fn complete(context: &Context, object: &Arc<Container>) -> Result<Arc<Container>> {
    if !object.spec.image_id.is_empty() {
        return Ok(object.clone());
    }
    let image = find(context, object).await?;
    let mut spec = object.spec.clone();
    merge(&mut spec, &image.id, &image.config)?;
    let id = object.metadata.name.clone().unwrap_or_default();
    let namespace = object.metadata.namespace.clone().unwrap_or_default();
    let volumes: Api<Volume> = Api::namespaced(context.client.clone(), &namespace);
    for (index, mount) in spec.mounts.iter_mut().enumerate().filter(|(_, mount)| mount.kind == "volume") {
        make_volume(&volumes, &id, index, mount).await?;
    }
    let before = serde_json::to_value(&object.spec).unwrap_or_default();
    let after = serde_json::to_value(&spec).unwrap_or_default();
    if let Some(change) = patch::difference(&before, &after) {
        let objects: Api<Container> = Api::namespaced(context.client.clone(), &namespace);
        let patch = Patch::Merge(json!({ "metadata": { "uid": object.metadata.uid }, "spec": change }));
        objects.patch(&id, &PatchParams::default(), &patch).await.map_err(Error::api("complete the container"))?;
    }
    let mut complete = (**object).clone();
    complete.spec = spec;
    Ok(Arc::new(complete))
}

/// The image of a reference. One that came from a registry may be fresher there, unless it is named by its digest; what is
/// here will do when the registry does not answer.
async fn find(context: &Context, object: &Container) -> Result<FoundImage> {
    let reference = object.spec.image.as_str();
    let mut present = context.images.find(reference);
    if present.as_ref().is_none_or(|image| !image.from_registry) {
        // What was built on the pool's first machine is nowhere else.
        context.images.bring(reference).await;
        present = context.images.find(reference);
    }
    match present {
        Some(image) if !image.from_registry || reference.contains('@') => Ok(image),
        present => match (context.images.pull(reference, &pull_options(context, object).await).await, present) {
            (Ok(image), _) => Ok(image),
            (Err(error), Some(image)) => {
                tracing::debug!(reference, error = %chain(&error), "not pulled; what is here is taken");
                Ok(image)
            }
            (Err(error), None) => {
                tracing::warn!(reference, error = %chain(&error), "a task's image cannot be had");
                Err(Error::Invalid(format!("No such image: {reference}")))
            }
        },
    }
}

async fn pull_options(context: &Context, object: &Container) -> PullOptions {
    let (spec, namespace) = (&object.spec, object.metadata.namespace.as_deref().unwrap_or_default());
    let credentials = match image::Reference::parse_tagged(&spec.image) {
        Ok(image) if !spec.pull_secret.is_empty() => {
            let names = std::iter::once(spec.pull_secret.as_str());
            pull_secret::credentials(&context.client, namespace, names, &image).await
        }
        _ => None,
    };
    PullOptions { credentials, ..PullOptions::default() }
}

/// Docker's rules for what an image and a container say together. `Source:` Docker, "Dockerfile reference", CMD and ENTRYPOINT.
fn merge(spec: &mut ContainerSpec, id: &str, image: &ImageConfig) -> Result<()> {
    let config = &image.config;
    id.clone_into(&mut spec.image_id);
    if spec.entrypoint_length == 0 {
        let entrypoint = config.entrypoint.clone().unwrap_or_default();
        let arguments = std::mem::take(&mut spec.command);
        spec.entrypoint_length = entrypoint.len();
        spec.command = entrypoint;
        spec.command.extend(if arguments.is_empty() { config.cmd.clone().unwrap_or_default() } else { arguments });
    }
    if spec.command.is_empty() {
        return Err(Error::Invalid("no command specified".into()));
    }
    let key = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
    let own: BTreeSet<String> = spec.environment.iter().map(|line| key(line)).collect();
    spec.environment.extend(config.env.iter().filter(|line| !own.contains(&key(line))).cloned());
    for (name, value) in &config.labels {
        spec.labels.entry(name.clone()).or_insert_with(|| value.clone());
    }
    let text = |mine: &mut String, other: &str| {
        if mine.is_empty() {
            other.clone_into(mine);
        }
    };
    text(&mut spec.working_directory, &config.working_dir);
    text(&mut spec.user, &config.user);
    text(&mut spec.stop_signal, config.stop_signal.as_deref().unwrap_or_default());
    let ports: BTreeSet<String> = spec.exposed_ports.drain(..).chain(config.exposed_ports.keys().cloned()).collect();
    spec.exposed_ports = ports.into_iter().collect();
    merge_health(spec, image);
    for target in config.volumes.keys() {
        let taken = |mount: &Mount| mount.target.trim_end_matches('/') == target.trim_end_matches('/');
        if target.starts_with('/') && !spec.mounts.iter().any(taken) {
            spec.mounts.push(Mount { kind: "volume".into(), target: target.clone(), ..Mount::default() });
        }
    }
    Ok(())
}

fn merge_health(spec: &mut ContainerSpec, image: &ImageConfig) {
    let Some(theirs) = image.config.healthcheck.as_ref().filter(|check| !check.test.is_empty()) else { return };
    let own = spec.healthcheck.get_or_insert_with(HealthCheck::default);
    if own.test.is_empty() {
        own.test.clone_from(&theirs.test);
    }
    for (mine, other) in [
        (&mut own.interval_ns, theirs.interval),
        (&mut own.timeout_ns, theirs.timeout),
        (&mut own.start_period_ns, theirs.start_period),
        (&mut own.start_interval_ns, theirs.start_interval),
        (&mut own.retries, theirs.retries),
    ] {
        if *mine == 0 {
            *mine = other;
        }
    }
}

/// Makes a volume unless it is there, and names it in the mount as its object is named. The name of one that nobody named
/// follows from the container, so that a start that is tried again makes no second one.
async fn make_volume(volumes: &Api<Volume>, id: &str, index: usize, mount: &mut Mount) -> Result<()> {
    let mut spec = VolumeSpec { name: mount.source.clone(), driver: "local".into(), ..VolumeSpec::default() };
    if spec.name.is_empty() {
        let name = format!("{id} {index}");
        spec.name = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(name.as_bytes()));
        spec.labels.insert(ANONYMOUS_LABEL.into(), String::new());
    }
    let object = object_name(&spec.name);
    match volumes.create(&PostParams::default(), &Volume::new(&object, spec)).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(Error::api("make a volume")(error)),
    }
    mount.source = object;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(spec: &ContainerSpec, image: serde_json::Value) -> ContainerSpec {
        let mut spec = spec.clone();
        let image: ImageConfig = serde_json::from_value(json!({
            "architecture": "amd64", "os": "linux", "config": image, "rootfs": {"type": "layers", "diff_ids": []},
        }))
        .unwrap();
        merge(&mut spec, "sha256:1", &image).unwrap();
        spec
    }

    #[test]
    fn arguments_replace_the_images_and_an_entry_point_replaces_both() {
        let image = json!({"Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=1", "B=1"], "Volumes": {"/v": {}}});
        let spec = ContainerSpec { environment: vec!["B=2".into()], ..ContainerSpec::default() };
        let out = merged(&spec, image.clone());
        assert_eq!((out.command, out.entrypoint_length), (vec!["/e".to_owned(), "c".into()], 1));
        assert_eq!(out.environment, ["B=2", "A=1"]);
        assert_eq!(out.mounts[0].target, "/v");
        let with = |words: &[&str], length| {
            let command = words.iter().map(|word| (*word).to_owned()).collect();
            merged(&ContainerSpec { command, entrypoint_length: length, ..ContainerSpec::default() }, image.clone())
                .command
        };
        assert_eq!(with(&["x"], 0), ["/e", "x"]);
        assert_eq!(with(&["/mine", "x"], 1), ["/mine", "x"]);
    }
}
