//! Secrets and configs: one set of operations over two kinds of object, told apart by what [`Stored`] says.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use api::swarm::{
    LABELS_ANNOTATION, MANAGED_LABEL, NAME_ANNOTATION, SwarmService, TEMPLATE_DRIVER, TEMPLATING_ANNOTATION, id_of,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{UPDATED_ANNOTATION, check_version, find, invalid, labels_of, labels_text, now_text, stamps, write_error};
use crate::body;
use crate::call::{Call, Query};
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::operation::Reply;
use crate::state::Docker;

/// Longest name. `Source:` swarmkit, `validateConfigOrSecretAnnotations`.
const NAME_MAX: usize = 64;

/// A kind of object that secrets or configs are kept as.
pub(super) trait Stored:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// What Docker calls it.
    const WORD: &'static str;
    /// Size that the content stays below. Units: bytes.
    const BYTES_MAX: usize;
    /// Whether it keeps its content to itself.
    const IS_SECRET: bool;

    /// An object that holds a content and has no name yet.
    fn holding(content: Vec<u8>) -> Self;
    /// What it holds.
    fn content(&self) -> Vec<u8>;
}

fn objects<K: Stored>(docker: &Docker) -> Api<K> {
    Api::namespaced(docker.state.client.clone(), &docker.state.namespace)
}

impl Docker {
    /// All secrets, or all configs, of the swarm.
    pub(super) async fn stored<K: Stored>(&self) -> Result<Vec<K>> {
        let selected = ListParams::default().labels(&format!("{MANAGED_LABEL}={}", K::WORD));
        Ok(objects::<K>(self).list(&selected).await?.items)
    }

    async fn one_stored<K: Stored>(&self, reference: &str) -> Result<K> {
        find(self.stored().await?, K::WORD, reference, id, name)
    }
}

pub(super) async fn list<K: Stored>(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let mut all = docker.stored::<K>().await?;
    select(&call.query, &mut all)?;
    body::json(&all.iter().map(describe).collect::<Vec<_>>())
}

pub(super) async fn create<K: Stored>(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Request = call.json().await?;
    docker.swarm()?;
    let mut object = K::holding(request.content(K::WORD, K::BYTES_MAX)?);
    mark(&mut object, &request.name, &request.labels.unwrap_or_default());
    if let Some(driver) = &request.templating {
        let text = json!(driver).to_string();
        object.annotations_mut().insert(TEMPLATING_ANNOTATION.into(), text);
    }
    let made = objects::<K>(&docker).create(&PostParams::default(), &object).await;
    let made = made.map_err(|error| create_error(error, K::WORD, &request.name))?;
    docker.events.swarm(K::WORD, "create", &id(&made), &[("name", request.name)]);
    body::json_with(StatusCode::CREATED, &json!({ "ID": id(&made) }))
}

pub(super) async fn inspect<K: Stored>(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    body::json(&describe::<K>(&docker.one_stored(call.parameter("id")).await?))
}

pub(super) async fn delete<K: Stored>(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let object: K = docker.one_stored(call.parameter("id")).await?;
    let name = name(&object);
    check_unused::<K>(&docker, &object.name_any(), &name).await?;
    objects::<K>(&docker).delete(&object.name_any(), &DeleteParams::default()).await?;
    docker.events.swarm(K::WORD, "remove", &id(&object), &[("name", name)]);
    Ok(body::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn update<K: Stored>(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Request = call.json().await?;
    docker.swarm()?;
    let mut object: K = docker.one_stored(call.parameter("id")).await?;
    check_version(&call, &object)?;
    let name = name(&object);
    request.check_update(&name, &object.content())?;
    relabel(&mut object, &request.labels.unwrap_or_default());
    let written = objects::<K>(&docker).replace(&object.name_any(), &PostParams::default(), &object).await;
    written.map_err(write_error)?;
    docker.events.swarm(K::WORD, "update", &id(&object), &[("name", name)]);
    Ok(body::empty(StatusCode::OK))
}

/// Body of create and update.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Request {
    name: String,
    labels: Option<BTreeMap<String, String>>,
    data: Option<String>,
    driver: Option<Value>,
    templating: Option<Driver>,
}

/// What makes something out of a content.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Driver {
    // Go takes any case, and docker-py sends this one.
    #[serde(alias = "name")]
    name: String,
    #[serde(alias = "options", skip_serializing_if = "Option::is_none")]
    options: Option<BTreeMap<String, String>>,
}

impl Request {
    /// Checks the name and decodes the content.
    fn content(&self, kind: &str, bytes_max: usize) -> Result<Vec<u8>> {
        check_name(&self.name)?;
        if self.driver.as_ref().is_some_and(|driver| !driver.is_null()) {
            return Err(Error::NotImplemented("drivers of secrets are not available".into()));
        }
        if let Some(driver) = self.templating.as_ref().filter(|driver| driver.name != TEMPLATE_DRIVER) {
            return Err(Error::NotImplemented(format!("the template driver {:?} is not available", driver.name)));
        }
        let text = self.data.as_deref().unwrap_or_default();
        let content = STANDARD.decode(text).map_err(|error| Error::Invalid(format!("illegal base64 data: {error}")))?;
        if content.is_empty() || content.len() >= bytes_max {
            return Err(invalid(format!("{kind} data must be larger than 0 and less than {bytes_max} bytes")));
        }
        Ok(content)
    }

    /// Refuses an update of anything but the labels.
    fn check_update(&self, name: &str, content: &[u8]) -> Result<()> {
        let text = self.data.as_deref().unwrap_or_default();
        if self.name != name || !(text.is_empty() || STANDARD.decode(text).is_ok_and(|bytes| bytes == content)) {
            return Err(invalid("only updates to Labels are allowed"));
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<()> {
    let end = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric());
    let bytes = name.as_bytes();
    let inner = bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if name.len() <= NAME_MAX && inner && end(bytes.first().copied()) && end(bytes.last().copied()) {
        return Ok(());
    }
    Err(invalid(
        "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
    ))
}

/// The object's own name for a name, and what marks it as Swarm's.
fn mark<K: Stored>(object: &mut K, name: &str, labels: &BTreeMap<String, String>) {
    let meta = object.meta_mut();
    meta.name = Some(api::names::object_name(name));
    meta.labels.get_or_insert_default().insert(MANAGED_LABEL.into(), K::WORD.to_owned());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(NAME_ANNOTATION.into(), name.to_owned());
    relabel(object, labels);
}

/// Writes the user's labels.
fn relabel<K: Resource>(object: &mut K, labels: &BTreeMap<String, String>) {
    let annotations = object.meta_mut().annotations.get_or_insert_default();
    annotations.insert(LABELS_ANNOTATION.into(), labels_text(labels));
    annotations.insert(UPDATED_ANNOTATION.into(), now_text());
}

pub(super) fn id<K: ResourceExt>(object: &K) -> String {
    id_of(&object.uid().unwrap_or_default())
}

fn name<K: ResourceExt>(object: &K) -> String {
    object.annotations().get(NAME_ANNOTATION).cloned().unwrap_or_else(|| object.name_any())
}

/// The object as Docker shows it; secrets keep their content to themselves.
fn describe<K: Stored>(object: &K) -> Value {
    let mut spec = json!({ "Name": name(object), "Labels": labels_of(object) });
    if !K::IS_SECRET {
        spec["Data"] = json!(STANDARD.encode(object.content()));
    }
    let templating = object.annotations().get(TEMPLATING_ANNOTATION);
    if let Some(driver) = templating.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        spec["Templating"] = driver;
    }
    let mut shown = stamps(object);
    super::extend(&mut shown, json!({ "ID": id(object), "Spec": spec }));
    shown
}

/// Leaves those that the filters of a list let through.
fn select<K: ResourceExt>(query: &Query, all: &mut Vec<K>) -> Result<()> {
    let filters = Filters::of(query, &["id", "label", "name", "names"])?;
    all.retain(|object| {
        filters.any("id", |prefix| id(object).starts_with(prefix))
            && filters.any("name", |part| name(object).contains(part))
            && filters.any("names", |whole| name(object) == whole)
            && filters.labels(&labels_of(object))
    });
    all.sort_by_key(name);
    Ok(())
}

/// Docker's words for a name that is taken.
fn create_error(error: kube::Error, kind: &str, name: &str) -> Error {
    match error {
        kube::Error::Api(status) if status.code == 409 => {
            Error::Conflict(format!("rpc error: code = AlreadyExists desc = {kind} {name} already exists"))
        }
        error => error.into(),
    }
}

/// Refuses to remove what services refer to.
async fn check_unused<K: Stored>(docker: &Docker, object: &str, name: &str) -> Result<()> {
    let kind = K::WORD;
    let services: Api<SwarmService> = Api::namespaced(docker.state.client.clone(), &docker.state.namespace);
    let all = services.list(&ListParams::default()).await?.items;
    let uses = |service: &&SwarmService| {
        let files = &service.spec.current.task.container.files;
        let refers = files.iter().any(|file| file.object == object && file.secret == K::IS_SECRET);
        refers && service.metadata.deletion_timestamp.is_none()
    };
    let users: Vec<String> = all.iter().filter(uses).map(|service| service.spec.name.clone()).collect();
    match users.as_slice() {
        [] => Ok(()),
        [one] => Err(invalid(format!("{kind} '{name}' is in use by the following service: {one}"))),
        many => Err(invalid(format!("{kind} '{name}' is in use by the following services: {}", many.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_swarms_rule() {
        assert!(check_name("a").is_ok() && check_name("A_b.c-1").is_ok());
        for name in ["", "-a", "a-", "a b", "a/b", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_driver_of_templates_comes_in_either_case() {
        for text in [r#"{"Name": "golang"}"#, r#"{"name": "golang"}"#] {
            let driver: Driver = serde_json::from_str(text).unwrap();
            assert_eq!(json!(driver), json!({ "Name": "golang" }));
        }
    }

    #[test]
    fn only_labels_change() {
        let request = Request { name: "a".into(), data: Some(STANDARD.encode("x")), ..Request::default() };
        assert!(request.check_update("a", b"x").is_ok());
        assert!(request.check_update("a", b"y").is_err());
        assert!(request.check_update("b", b"x").is_err());
    }
}
