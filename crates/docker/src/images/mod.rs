//! Images: list, inspect, history, tag, remove, prune, commit. Transfers and builds are in their own files.

pub(crate) mod build;
pub(crate) mod buildkit;
pub(crate) mod library;
pub(crate) mod transfer;
pub(crate) mod uploads;

use std::sync::Arc;

use api::container::{Container, State};
use futures::StreamExt;
use http::{Method, StatusCode};
use image::{CommitOptions, ImageRecord, ImageSummary, ImageUser, ListFilter, Removal, RemoveOptions};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::call::Call;
use crate::containers::config::ImageDefaults;
use crate::containers::lifecycle::reach;
use crate::containers::wire::HealthConfig;
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::{body, time};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ImageList", Method::GET, "/images/json", "list", "images", run!(image_list)),
    Operation::new("ImagePrune", Method::POST, "/images/prune", "delete", "images", run!(image_prune)).since(25),
    Operation::new("ImageInspect", Method::GET, "/images/{name...}/json", "get", "images", run!(image_inspect)),
    Operation::new("ImageHistory", Method::GET, "/images/{name...}/history", "get", "images", run!(image_history)),
    Operation::new("ImageTag", Method::POST, "/images/{name...}/tag", "update", "images", run!(image_tag)),
    Operation::new("ImageDelete", Method::DELETE, "/images/{name...}", "delete", "images", run!(image_delete)),
    Operation::new("ImageCommit", Method::POST, "/commit", "create", "images", run!(image_commit)),
];

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Self {
        let message = error.chain();
        match error {
            image::Error::NotFound(_) => Error::NotFound(message),
            image::Error::Conflict(_) => Error::Conflict(message),
            image::Error::Invalid(_)
            | image::Error::Hostile(_)
            | image::Error::Corrupt(_)
            | image::Error::StepFailed { .. } => Error::Invalid(message),
            image::Error::NotSupported(_) => Error::NotImplemented(message),
            image::Error::Unauthorized(_)
            | image::Error::Unavailable(_)
            | image::Error::Io { .. }
            | image::Error::Internal(_) => Error::Internal(message),
        }
    }
}

/// A reference with its tag spelled out, as Docker names it in errors.
pub(crate) fn with_tag(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    if last.contains(':') || reference.contains('@') { reference.to_owned() } else { format!("{reference}:latest") }
}

impl Docker {
    /// Finds an image, in Docker's words when there is none.
    pub(crate) async fn image(&self, reference: &str) -> Result<ImageRecord> {
        self.images.get(reference).await.map_err(|error| match error {
            image::Error::NotFound(_) => Error::NotFound(format!("No such image: {}", with_tag(reference))),
            other => other.into(),
        })
    }

    /// What an image says about containers made from it.
    pub(crate) async fn image_defaults(&self, reference: &str) -> Result<ImageDefaults> {
        let image = self.image(reference).await?;
        let config = image.config.config;
        Ok(ImageDefaults {
            id: image.id.to_string(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            environment: config.env,
            working_directory: config.working_dir,
            user: config.user,
            labels: config.labels,
            exposed_ports: config.exposed_ports.into_keys().collect(),
            volumes: config.volumes.into_keys().collect(),
            stop_signal: config.stop_signal.unwrap_or_default(),
            healthcheck: config.healthcheck.map(|check| HealthConfig {
                test: check.test,
                interval: check.interval,
                timeout: check.timeout,
                start_period: check.start_period,
                start_interval: check.start_interval,
                retries: check.retries,
            }),
            later: false,
        })
    }

    /// Size of an image; 0 when it is gone.
    pub(crate) async fn image_size(&self, id: &str) -> u64 {
        self.images.get(id).await.map_or(0, |image| image.size_bytes)
    }

    /// Containers as users of images.
    fn image_users(&self) -> Vec<ImageUser> {
        self.containers.all().iter().flat_map(|container| uses(container)).collect()
    }
}

/// What a container uses: its own image, and those that it mounts.
fn uses(container: &Container) -> Vec<ImageUser> {
    let alive = |state| matches!(state, State::Running | State::Paused | State::Restarting);
    let running = container.status.as_ref().is_some_and(|status| alive(status.state));
    let images = std::iter::once(container.spec.image_id.as_str()).chain(container.spec.mounted_images());
    images.map(|image| ImageUser { container_id: container.name_any(), image_id: image.to_owned(), running }).collect()
}

/// The filters that list and prune share.
fn list_filter(filters: &Filters) -> Result<ListFilter> {
    let until = filters.values("until").first().map(|text| time::parse_point(text, time::now_ns())).transpose()?;
    Ok(ListFilter {
        all: false,
        dangling: filters.boolean("dangling")?,
        references: filters.values("reference").to_vec(),
        labels: filters.values("label").to_vec(),
        without_labels: filters.values("label!").to_vec(),
        before: filters.values("before").last().cloned(),
        since: filters.values("since").last().cloned(),
        until_ns: until,
    })
}

async fn image_list(docker: Arc<Docker>, call: Call) -> Reply {
    let accepted = ["before", "dangling", "label", "reference", "since", "until"];
    let filters = Filters::of(&call.query, &accepted)?;
    let filter = ListFilter { all: call.query.flag("all"), ..list_filter(&filters)? };
    let mut images = docker.images.list(&filter).await?;
    images.sort_by(|a, b| b.created_ns.cmp(&a.created_ns).then_with(|| a.id.to_string().cmp(&b.id.to_string())));
    let containers = docker.containers.all();
    let shown: Vec<Value> = images
        .iter()
        .map(|image| {
            let id = image.id.to_string();
            summary(image, containers.iter().filter(|container| container.spec.image_id == id).count())
        })
        .collect();
    body::json(&shown)
}

/// One row of the list.
pub(crate) fn summary(image: &ImageSummary, containers: usize) -> Value {
    json!({
        "Containers": containers,
        "Created": image.created_ns.div_euclid(1_000_000_000),
        "Id": image.id.to_string(),
        "Labels": image.labels,
        "ParentId": image.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
        "RepoDigests": image.digests,
        "RepoTags": image.references,
        "SharedSize": -1,
        "Size": image.size_bytes,
    })
}

async fn image_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    let image = docker.image(call.parameter("name")).await?;
    let config = &image.config;
    let layers: Vec<String> = image.layers.iter().map(ToString::to_string).collect();
    let comment = config.comment.clone().or_else(|| config.history.last().and_then(|step| step.comment.clone()));
    let tagged = if image.last_tagged_ns == 0 { time::ZERO.to_owned() } else { time::rfc3339(image.last_tagged_ns) };
    let mut defaults = json!(config.config);
    // Docker's own form has this one always, and clients read it without looking.
    if defaults.get("OnBuild").is_none() {
        defaults["OnBuild"] = Value::Null;
    }
    let mut shown = json!({
        "Id": image.id.to_string(),
        "RepoTags": image.references,
        "RepoDigests": image.digests,
        "Parent": image.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
        "Comment": comment.unwrap_or_default(),
        "Created": config.created.clone().unwrap_or_else(|| time::ZERO.to_owned()),
        "DockerVersion": config.docker_version.clone().unwrap_or_default(),
        "Author": config.author.clone().unwrap_or_default(),
        "Config": defaults,
        "Architecture": config.architecture,
        "Variant": config.variant.clone().unwrap_or_default(),
        "Os": config.os,
        "Size": image.size_bytes,
        "GraphDriver": { "Name": "overlay2", "Data": null },
        "RootFS": { "Type": "layers", "Layers": layers },
        "Metadata": { "LastTagTime": tagged },
    });
    if call.version.minor < 45 {
        shown["Container"] = json!(config.container);
        shown["ContainerConfig"] = json!({});
    }
    body::json(&shown)
}

async fn image_history(docker: Arc<Docker>, call: Call) -> Reply {
    let name = call.parameter("name");
    docker.image(name).await?;
    let rows: Vec<Value> = docker
        .images
        .history(name)
        .await?
        .into_iter()
        .map(|step| {
            json!({
                "Id": step.id.map_or_else(|| "<missing>".to_owned(), |id| id.to_string()),
                "Created": step.created_ns.div_euclid(1_000_000_000),
                "CreatedBy": step.created_by,
                "Tags": if step.references.is_empty() { Value::Null } else { json!(step.references) },
                "Size": step.size_bytes,
                "Comment": step.comment,
            })
        })
        .collect();
    body::json(&rows)
}

async fn image_tag(docker: Arc<Docker>, call: Call) -> Reply {
    let image = docker.image(call.parameter("name")).await?;
    let reference = named(&call, "repo", "tag")
        .ok_or_else(|| Error::Invalid("repository name must have at least one component".into()))?;
    let id = image.id.to_string();
    docker.images.tag(&id, &reference).await?;
    docker.events.image(&id, &reference, "tag");
    Ok(body::empty(StatusCode::CREATED))
}

/// `repo` and `tag` of a query as one reference.
fn named(call: &Call, repository: &str, tag: &str) -> Option<String> {
    let repository = call.query.text(repository)?;
    Some(match call.query.text(tag) {
        Some(digest) if digest.starts_with("sha256:") => format!("{repository}@{digest}"),
        Some(tag) => format!("{repository}:{tag}"),
        None => with_tag(repository),
    })
}

async fn image_delete(docker: Arc<Docker>, call: Call) -> Reply {
    let reference = call.parameter("name");
    let image = docker.image(reference).await?;
    let options = RemoveOptions {
        force: call.query.flag("force"),
        no_prune: call.query.flag("noprune"),
        users: docker.image_users(),
    };
    let removed = docker.images.remove(reference, &options).await?;
    body::json(&removed.iter().map(|removal| tell(&docker, &image.id.to_string(), removal)).collect::<Vec<_>>())
}

/// Publishes a removal and renders it.
fn tell(docker: &Docker, id: &str, removal: &Removal) -> Value {
    match removal {
        Removal::Untagged(name) => {
            docker.events.image(id, name, "untag");
            json!({ "Untagged": name })
        }
        Removal::Deleted(name) => {
            docker.events.image(name, name, "delete");
            json!({ "Deleted": name })
        }
    }
}

async fn image_prune(docker: Arc<Docker>, call: Call) -> Reply {
    let filters = Filters::of(&call.query, &["dangling", "label", "label!", "until"])?;
    let mut filter = list_filter(&filters)?;
    // `dangling=false` means "all that is not used", not "all that has a name".
    filter.dangling = if filter.dangling.unwrap_or(true) { Some(true) } else { Some(false) };
    let (removed, reclaimed) = docker.images.prune(&filter, &docker.image_users()).await?;
    let deleted: Vec<Value> = removed.iter().map(|removal| tell(&docker, "", removal)).collect();
    docker.events.publish("image", "prune", "", [("reclaimed".to_owned(), reclaimed.to_string())].into());
    let list = if deleted.is_empty() { Value::Null } else { Value::Array(deleted) };
    body::json(&json!({ "ImagesDeleted": list, "SpaceReclaimed": reclaimed }))
}

async fn image_commit(docker: Arc<Docker>, mut call: Call) -> Reply {
    let reference = call.query.text("container").ok_or_else(|| Error::NotFound("No such container: ".into()))?;
    let container = docker.container(reference)?;
    let overrides: Value = call.json_or_empty::<Value>().await?.unwrap_or(Value::Null);
    let spec = &container.spec;
    let (entrypoint, cmd) = spec.command.split_at(spec.entrypoint_length.min(spec.command.len()));
    let set = |list: &[String]| list.iter().map(|key| (key.clone(), json!({}))).collect::<serde_json::Map<_, _>>();
    let mut config = json!({
        "Cmd": cmd, "Entrypoint": entrypoint, "Env": spec.environment, "User": spec.user,
        "WorkingDir": spec.working_directory, "Labels": spec.labels, "ExposedPorts": set(&spec.exposed_ports),
    });
    for name in [
        "Cmd",
        "Entrypoint",
        "Env",
        "User",
        "WorkingDir",
        "Labels",
        "ExposedPorts",
        "Volumes",
        "StopSignal",
        "Healthcheck",
    ] {
        let given =
            overrides.get(name).filter(|v| !v.is_null() && **v != json!("") && **v != json!([]) && **v != json!({}));
        if let Some(value) = given {
            config[name] = value.clone();
        }
    }
    let config = serde_json::from_value(config).map_err(|e| Error::Invalid(format!("invalid JSON: {e}")))?;
    let options = CommitOptions {
        parent: spec.image_id.clone(),
        config: Some(config),
        changes: changes(&call),
        reference: named(&call, "repo", "tag"),
        author: call.query.text("author").unwrap_or("").to_owned(),
        comment: call.query.text("comment").unwrap_or("").to_owned(),
        created_by: spec.command.join(" "),
        container: container.name_any(),
    };
    let facts = [("comment", options.comment.clone()), ("imageRef", options.reference.clone().unwrap_or_default())];
    // Frozen meanwhile, so that the image shows one instant; thawed whatever comes of it.
    let running = container.status.as_ref().is_some_and(|status| status.state == State::Running);
    let frozen = running && call.query.flag_or("pause", true);
    let name = container.name_any();
    if frozen {
        reach(&docker, &name, "paused", State::Paused).await?;
    }
    let tagged = options.reference.clone();
    let committed = commit(&docker, &name, options).await;
    if let (Ok(id), Some(reference)) = (&committed, &tagged) {
        docker.events.image(id, reference, "tag");
    }
    let mut facts = facts.to_vec();
    if let Ok(id) = &committed {
        facts.push(("imageID", id.clone()));
        docker.events.container(&container, "commit", &facts);
    }
    if frozen {
        reach(&docker, &name, "running", State::Running).await?;
    }
    body::json_with(StatusCode::CREATED, &json!({ "Id": committed? }))
}

async fn commit(docker: &Docker, container: &str, options: CommitOptions) -> Result<String> {
    let layer = docker.state.node.changes_layer(&docker.workload(container)).await?;
    Ok(docker.images.commit(Box::pin(layer.fuse()), options).await?)
}

/// The `changes` of commit and import: Dockerfile instructions.
fn changes(call: &Call) -> Vec<String> {
    call.query.all("changes").flat_map(str::lines).filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use api::container::{ContainerSpec, Mount};

    use super::*;

    #[test]
    fn a_container_uses_the_images_that_it_mounts() {
        let mount = |kind: &str, source: &str| Mount { kind: kind.into(), source: source.into(), ..Mount::default() };
        let mounts = vec![mount("volume", "data"), mount("image", "sha256:bb"), mount("image", "sha256:cc")];
        let spec = ContainerSpec { image_id: "sha256:aa".into(), mounts, ..ContainerSpec::default() };
        let used: Vec<_> = uses(&Container::new("c", spec)).into_iter().map(|user| user.image_id).collect();
        assert_eq!(used, ["sha256:aa", "sha256:bb", "sha256:cc"]);
    }

    #[test]
    fn tags_are_spelled_out() {
        assert_eq!(with_tag("busybox"), "busybox:latest");
        assert_eq!(with_tag("host:5000/x"), "host:5000/x:latest");
        assert_eq!(with_tag("x@sha256:ab"), "x@sha256:ab");
    }
}
