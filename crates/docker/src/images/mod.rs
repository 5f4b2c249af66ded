//! Images: list, inspect, history, tag, remove, prune, commit. Transfers and builds are in their own files.

pub(crate) mod build;
pub mod library;
pub(crate) mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use http::{Method, StatusCode};
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::call::Call;
use crate::containers::config::ImageDefaults;
use crate::containers::wire::HealthConfig;
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::{body, text, time};
use library::{CommitRequest, ImageError, ImageRecord, Removal};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ImageList", Method::GET, "/images/json", "list", "images", run!(image_list)),
    Operation::new("ImagePrune", Method::POST, "/images/prune", "delete", "images", run!(image_prune)).since(25),
    Operation::new("ImageInspect", Method::GET, "/images/{name...}/json", "get", "images", run!(image_inspect)),
    Operation::new("ImageHistory", Method::GET, "/images/{name...}/history", "get", "images", run!(image_history)),
    Operation::new("ImageTag", Method::POST, "/images/{name...}/tag", "update", "images", run!(image_tag)),
    Operation::new("ImageDelete", Method::DELETE, "/images/{name...}", "delete", "images", run!(image_delete)),
    Operation::new("ImageCommit", Method::POST, "/commit", "create", "images", run!(image_commit))
        .partial("changes other than CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, WORKDIR"),
];

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        let message = error.to_string();
        match error {
            ImageError::NotFound(_) => Error::NotFound(message),
            ImageError::Conflict(_) => Error::Conflict(message),
            ImageError::Invalid(_) => Error::Invalid(message),
            ImageError::Unauthorized(_) | ImageError::Unavailable(_) | ImageError::Internal(_) => {
                Error::Internal(message)
            }
            ImageError::BuildStep { .. } => Error::Invalid(message),
        }
    }
}

/// A reference with its tag spelled out, as Docker names it in errors.
pub(crate) fn with_tag(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    if last.contains(':') || reference.contains('@') { reference.to_owned() } else { format!("{reference}:latest") }
}

/// The text list at a place of an image's configuration.
fn texts(config: &Value, name: &str) -> Vec<String> {
    let list = config.get(name).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn keys(config: &Value, name: &str) -> Vec<String> {
    config.get(name).and_then(Value::as_object).map(|set| set.keys().cloned().collect()).unwrap_or_default()
}

fn string(config: &Value, name: &str) -> String {
    config.get(name).and_then(Value::as_str).unwrap_or("").to_owned()
}

fn labels_of(image: &ImageRecord) -> BTreeMap<String, String> {
    image
        .config
        .pointer("/config/Labels")
        .and_then(|labels| serde_json::from_value(labels.clone()).ok())
        .unwrap_or_default()
}

fn created_ns(image: &ImageRecord) -> i64 {
    string(&image.config, "created").parse::<Timestamp>().map_or(0, time::nanoseconds)
}

impl Docker {
    /// Finds an image, in Docker's words when there is none.
    pub(crate) async fn image(&self, reference: &str) -> Result<ImageRecord> {
        self.state.images.find(reference).await.map_err(|error| match error {
            ImageError::NotFound(_) => Error::NotFound(format!("No such image: {}", with_tag(reference))),
            other => other.into(),
        })
    }

    /// What an image says about containers made from it.
    pub(crate) async fn image_defaults(&self, reference: &str) -> Result<ImageDefaults> {
        let image = self.image(reference).await?;
        let config = image.config.get("config").cloned().unwrap_or_default();
        Ok(ImageDefaults {
            id: image.id.clone(),
            entrypoint: texts(&config, "Entrypoint"),
            cmd: texts(&config, "Cmd"),
            environment: texts(&config, "Env"),
            working_directory: string(&config, "WorkingDir"),
            user: string(&config, "User"),
            labels: labels_of(&image),
            exposed_ports: keys(&config, "ExposedPorts"),
            volumes: keys(&config, "Volumes"),
            stop_signal: string(&config, "StopSignal"),
            healthcheck: config
                .get("Healthcheck")
                .filter(|check| check.is_object())
                .and_then(|check| serde_json::from_value::<HealthConfig>(check.clone()).ok()),
        })
    }

    /// Size of an image; 0 when it is gone.
    pub(crate) async fn image_size(&self, id: &str) -> u64 {
        self.state.images.find(id).await.map_or(0, |image| image.size_bytes)
    }
}

async fn image_list(docker: Arc<Docker>, call: Call) -> Reply {
    let accepted = ["before", "dangling", "label", "label!", "reference", "since", "until"];
    let filters = Filters::of(&call.query, &accepted)?;
    let dangling = filters.boolean("dangling")?;
    let mut bounds = [None, None];
    for (bound, name) in bounds.iter_mut().zip(["before", "since"]) {
        if let Some(reference) = filters.values(name).last() {
            *bound = Some(created_ns(&docker.image(reference).await?));
        }
    }
    let until = filters.values("until").first().map(|text| time::parse_point(text, time::now_ns())).transpose()?;
    let mut images = docker.state.images.list().await?;
    images.retain(|image| {
        let created = created_ns(image);
        bounds[0].is_none_or(|bound| created < bound)
            && bounds[1].is_none_or(|bound| created > bound)
            && until.is_none_or(|bound| created < bound)
            && dangling.is_none_or(|wanted| image.references.is_empty() == wanted)
            && filters.labels(&labels_of(image))
            && filters.any("reference", |pattern| image.references.iter().any(|r| reference_matches(pattern, r)))
    });
    images.sort_by(|a, b| created_ns(b).cmp(&created_ns(a)).then_with(|| a.id.cmp(&b.id)));
    let containers = docker.containers.all();
    let shown: Vec<Value> = images
        .iter()
        .map(|image| summary(image, containers.iter().filter(|c| c.spec.image_id == image.id).count()))
        .collect();
    body::json(&shown)
}

/// Patterns of `--filter reference=`: `*` within a path segment, the tag optional.
fn reference_matches(pattern: &str, reference: &str) -> bool {
    let name = reference.rsplit_once(':').map_or(reference, |(name, _)| name);
    glob(pattern.as_bytes(), reference.as_bytes()) || glob(pattern.as_bytes(), name.as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Classic two-pointer match: linear with backtracking to the last star only.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == text[t] || (*c == b'?' && text[t] != b'/') => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) if text[from] != b'/' => {
                    p = at + 1;
                    t = from + 1;
                    star = Some((at, t));
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// One row of the list.
pub(crate) fn summary(image: &ImageRecord, containers: usize) -> Value {
    json!({
        "Containers": containers,
        "Created": created_ns(image).div_euclid(1_000_000_000),
        "Id": image.id,
        "Labels": labels_of(image),
        "ParentId": "",
        "RepoDigests": image.digests,
        "RepoTags": image.references,
        "SharedSize": -1,
        "Size": image.size_bytes,
    })
}

async fn image_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    let image = docker.image(call.parameter("name")).await?;
    let config = &image.config;
    let layers = config.pointer("/rootfs/diff_ids").cloned().unwrap_or_else(|| json!([]));
    let comment = config.get("history").and_then(Value::as_array).and_then(|h| h.last()).map(|h| string(h, "comment"));
    body::json(&json!({
        "Id": image.id,
        "RepoTags": image.references,
        "RepoDigests": image.digests,
        "Parent": "",
        "Comment": comment.unwrap_or_default(),
        "Created": string(config, "created"),
        "DockerVersion": "",
        "Author": string(config, "author"),
        "Config": config.get("config").cloned().unwrap_or_else(|| json!({})),
        "Architecture": string(config, "architecture"),
        "Variant": string(config, "variant"),
        "Os": string(config, "os"),
        "Size": image.size_bytes,
        "GraphDriver": { "Name": "overlay2", "Data": null },
        "RootFS": { "Type": "layers", "Layers": layers },
        "Metadata": { "LastTagTime": time::ZERO },
    }))
}

async fn image_history(docker: Arc<Docker>, call: Call) -> Reply {
    let image = docker.image(call.parameter("name")).await?;
    let history = image.config.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
    let count = history.len();
    let rows: Vec<Value> = history
        .iter()
        .enumerate()
        .rev()
        .map(|(at, step)| {
            let top = at + 1 == count;
            let empty = step.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
            // Only the sum of the layers is known here; it is told with the top layer that has content.
            let first_full = history.iter().rposition(|s| s.get("empty_layer").and_then(Value::as_bool) != Some(true));
            json!({
                "Id": if top { image.id.as_str() } else { "<missing>" },
                "Created": string(step, "created").parse::<Timestamp>().map_or(0, |t| t.as_second()),
                "CreatedBy": string(step, "created_by"),
                "Tags": if top && !image.references.is_empty() { json!(image.references) } else { Value::Null },
                "Size": if !empty && first_full == Some(at) { image.size_bytes } else { 0 },
                "Comment": string(step, "comment"),
            })
        })
        .collect();
    body::json(&rows)
}

async fn image_tag(docker: Arc<Docker>, call: Call) -> Reply {
    let image = docker.image(call.parameter("name")).await?;
    let reference = named(&call, "repo", "tag")
        .ok_or_else(|| Error::Invalid("repository name must have at least one component".into()))?;
    docker.state.images.tag(&image.id, &reference).await?;
    docker.events.image(&image.id, &reference, "tag");
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
    let force = call.query.flag("force");
    refuse_used(&docker, &image, reference, force)?;
    let removed = docker.state.images.remove(reference, force).await?;
    body::json(&removed.iter().map(|removal| tell(&docker, &image.id, removal)).collect::<Vec<_>>())
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

/// An image that a container needs keeps at least one name.
fn refuse_used(docker: &Docker, image: &ImageRecord, reference: &str, force: bool) -> Result<()> {
    let by_id = text::is_id_prefix(reference.strip_prefix("sha256:").unwrap_or(reference))
        && !image.references.iter().any(|r| *r == with_tag(reference));
    let short = text::short_id(&image.id);
    if by_id && image.references.len() > 1 && !force {
        return Err(Error::Conflict(format!(
            "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
        )));
    }
    if !by_id && image.references.len() > 1 {
        return Ok(());
    }
    for container in docker.containers.all().into_iter().filter(|c| c.spec.image_id == image.id) {
        let user = text::short_id(&container.name_any()).to_owned();
        let runs = container
            .status
            .as_ref()
            .is_some_and(|s| matches!(s.state, api::container::State::Running | api::container::State::Paused));
        if runs {
            let shown = if by_id { short } else { reference };
            let how = if by_id { "cannot be forced" } else { "must force" };
            if by_id || !force {
                return Err(Error::Conflict(format!(
                    "conflict: unable to {} {shown} ({how}) - {} {user}",
                    if by_id { "delete" } else { "remove repository reference" },
                    if by_id { "image is being used by running container" } else { "container" },
                )));
            }
        } else if !force {
            return Err(Error::Conflict(if by_id {
                format!(
                    "conflict: unable to delete {short} (must be forced) - image is being used by stopped container {user}"
                )
            } else {
                format!(
                    "conflict: unable to remove repository reference \"{reference}\" (must force) - container {user} is using its referenced image {short}"
                )
            }));
        }
    }
    Ok(())
}

async fn image_prune(docker: Arc<Docker>, call: Call) -> Reply {
    let filters = Filters::of(&call.query, &["dangling", "label", "label!", "until"])?;
    let dangling_only = filters.boolean("dangling")?.unwrap_or(true);
    let until = filters.values("until").first().map(|text| time::parse_point(text, time::now_ns())).transpose()?;
    let used: Vec<String> = docker.containers.all().iter().map(|c| c.spec.image_id.clone()).collect();
    let (mut deleted, mut reclaimed) = (Vec::new(), 0);
    for image in docker.state.images.list().await? {
        let keep = used.contains(&image.id)
            || (dangling_only && !image.references.is_empty())
            || !filters.labels(&labels_of(&image))
            || until.is_some_and(|bound| created_ns(&image) >= bound);
        if !keep {
            let removed = docker.state.images.remove(&image.id, true).await?;
            deleted.extend(removed.iter().map(|removal| tell(&docker, &image.id, removal)));
            reclaimed += image.size_bytes;
        }
    }
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
    for change in call.query.all("changes").flat_map(str::lines) {
        apply_change(&mut config, change)?;
    }
    let request = CommitRequest {
        base: spec.image_id.clone(),
        config,
        reference: named(&call, "repo", "tag").unwrap_or_default(),
        author: call.query.text("author").unwrap_or("").to_owned(),
        comment: call.query.text("comment").unwrap_or("").to_owned(),
    };
    let layer = docker.state.node.changes_layer(&docker.workload(&container.name_any())).await?;
    let id = docker.state.images.commit(Box::pin(layer.fuse()), request.clone()).await?;
    docker.events.container(
        &container,
        "commit",
        &[("comment", request.comment.clone()), ("imageID", id.clone()), ("imageRef", request.reference.clone())],
    );
    body::json_with(StatusCode::CREATED, &json!({ "Id": id }))
}

/// One `--change` line.
fn apply_change(config: &mut Value, line: &str) -> Result<()> {
    let (word, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    let rest = rest.trim();
    let words = || -> Value {
        serde_json::from_str::<Vec<String>>(rest).map_or_else(|_| json!(["/bin/sh", "-c", rest]), |list| json!(list))
    };
    match word.to_ascii_uppercase().as_str() {
        "" => {}
        "CMD" => config["Cmd"] = words(),
        "ENTRYPOINT" => config["Entrypoint"] = words(),
        "USER" => config["User"] = json!(rest),
        "WORKDIR" => config["WorkingDir"] = json!(rest),
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let key = if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") };
                config["ExposedPorts"][key] = json!({});
            }
        }
        "ENV" | "LABEL" => {
            let (key, value) = rest.split_once('=').or_else(|| rest.split_once(' ')).unwrap_or((rest, ""));
            let value = value.trim().trim_matches('"');
            if word.eq_ignore_ascii_case("LABEL") {
                config["Labels"][key] = json!(value);
            } else if let Some(list) = config["Env"].as_array_mut() {
                list.retain(|line| !line.as_str().is_some_and(|l| l.starts_with(&format!("{key}="))));
                list.push(json!(format!("{key}={value}")));
            }
        }
        other => return Err(Error::Invalid(format!("{other} is not a valid change command"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_match_by_pattern_with_or_without_the_tag() {
        assert!(reference_matches("busybox", "busybox:latest"));
        assert!(reference_matches("busy*:latest", "busybox:latest"));
        assert!(reference_matches("a/*:1", "a/b:1"));
        assert!(!reference_matches("b*", "a/b:1") && !reference_matches("a*", "a/b:1"));
    }

    #[test]
    fn tags_are_spelled_out() {
        assert_eq!(with_tag("busybox"), "busybox:latest");
        assert_eq!(with_tag("host:5000/x"), "host:5000/x:latest");
        assert_eq!(with_tag("x@sha256:ab"), "x@sha256:ab");
    }

    #[test]
    fn commit_changes_edit_the_configuration() {
        let mut config = json!({ "Env": ["A=1"], "Labels": {}, "ExposedPorts": {} });
        for line in ["CMD [\"a\",\"b\"]", "ENV A=2", "LABEL k=\"v\"", "EXPOSE 80"] {
            apply_change(&mut config, line).unwrap();
        }
        assert_eq!(
            config,
            json!({ "Env": ["A=2"], "Labels": {"k":"v"}, "ExposedPorts": {"80/tcp":{}}, "Cmd": ["a","b"] })
        );
        assert!(apply_change(&mut config, "RUN x").is_err());
    }
}
