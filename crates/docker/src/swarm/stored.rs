//! What secrets and configs share: names, labels, content and who uses them.

use std::collections::BTreeMap;

use api::swarm::{CONTENT_MEMBER, MANAGED_LABEL, SwarmService, id_of};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{UPDATED_ANNOTATION, invalid, labels_text, now_text, stamps};
use crate::call::Query;
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::state::Docker;

/// Annotation with the name that the user chose.
const NAME_ANNOTATION: &str = "nuee.dev/swarm-name";
/// Annotation with the user's labels, as JSON.
const LABELS_ANNOTATION: &str = "nuee.dev/swarm-labels";
/// Longest name. `Source:` swarmkit, `validateConfigOrSecretAnnotations`.
const NAME_MAX: usize = 64;

/// Body of create and update.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Request {
    pub(super) name: String,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) data: Option<String>,
    driver: Option<Value>,
    templating: Option<Value>,
}

impl Request {
    /// Checks the name and decodes the content.
    pub(super) fn content(&self, kind: &str, bytes_max: usize) -> Result<Vec<u8>> {
        check_name(&self.name)?;
        if self.driver.as_ref().is_some_and(|driver| !driver.is_null()) {
            return Err(Error::NotImplemented("drivers of secrets are not available".into()));
        }
        if self.templating.as_ref().is_some_and(|templating| !templating.is_null()) {
            return Err(Error::NotImplemented(format!("templates in a {kind} are not available")));
        }
        let text = self.data.as_deref().unwrap_or_default();
        let content = STANDARD.decode(text).map_err(|error| Error::Invalid(format!("illegal base64 data: {error}")))?;
        if content.is_empty() || content.len() >= bytes_max {
            return Err(invalid(format!("{kind} data must be larger than 0 and less than {bytes_max} bytes")));
        }
        Ok(content)
    }

    /// Refuses an update of anything but the labels.
    pub(super) fn check_update(&self, name: &str, content: &[u8]) -> Result<()> {
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
pub(super) fn mark<K: Resource>(object: &mut K, kind: &str, name: &str, labels: &BTreeMap<String, String>) {
    let meta = object.meta_mut();
    meta.name = Some(api::names::object_name(name));
    meta.labels.get_or_insert_default().insert(MANAGED_LABEL.into(), kind.to_owned());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(NAME_ANNOTATION.into(), name.to_owned());
    relabel(object, labels);
}

/// Writes the user's labels.
pub(super) fn relabel<K: Resource>(object: &mut K, labels: &BTreeMap<String, String>) {
    let annotations = object.meta_mut().annotations.get_or_insert_default();
    annotations.insert(LABELS_ANNOTATION.into(), labels_text(labels));
    annotations.insert(UPDATED_ANNOTATION.into(), now_text());
}

/// What selects the objects of a kind.
pub(super) fn selection(kind: &str) -> ListParams {
    ListParams::default().labels(&format!("{MANAGED_LABEL}={kind}"))
}

pub(super) fn id<K: ResourceExt>(object: &K) -> String {
    id_of(&object.uid().unwrap_or_default())
}

pub(super) fn name<K: ResourceExt>(object: &K) -> String {
    object.annotations().get(NAME_ANNOTATION).cloned().unwrap_or_else(|| object.name_any())
}

fn labels<K: ResourceExt>(object: &K) -> BTreeMap<String, String> {
    let text = object.annotations().get(LABELS_ANNOTATION);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// The object as Docker shows it; secrets keep their content to themselves.
pub(super) fn describe<K: ResourceExt>(object: &K, content: Option<&[u8]>) -> Value {
    let mut spec = json!({ "Name": name(object), "Labels": labels(object) });
    if let Some(content) = content {
        spec["Data"] = json!(STANDARD.encode(content));
    }
    let mut shown = stamps(object);
    super::extend(&mut shown, json!({ "ID": id(object), "Spec": spec }));
    shown
}

/// Leaves those that the filters of a list let through.
pub(super) fn select<K: ResourceExt>(query: &Query, all: &mut Vec<K>) -> Result<()> {
    let filters = Filters::of(query, &["id", "label", "name", "names"])?;
    all.retain(|object| {
        filters.any("id", |prefix| id(object).starts_with(prefix))
            && filters.any("name", |part| name(object).contains(part))
            && filters.any("names", |whole| name(object) == whole)
            && filters.labels(&labels(object))
    });
    all.sort_by_key(name);
    Ok(())
}

/// Docker's words for a name that is taken.
pub(super) fn create_error(error: kube::Error, kind: &str, name: &str) -> Error {
    match error {
        kube::Error::Api(status) if status.code == 409 => {
            Error::Conflict(format!("rpc error: code = AlreadyExists desc = {kind} {name} already exists"))
        }
        error => error.into(),
    }
}

/// Refuses to remove what services refer to.
pub(super) async fn check_unused(docker: &Docker, kind: &str, object: &str, name: &str) -> Result<()> {
    let services: Api<SwarmService> = Api::namespaced(docker.state.client.clone(), &docker.state.namespace);
    let all = services.list(&ListParams::default()).await?.items;
    let uses = |service: &&SwarmService| {
        let files = &service.spec.current.task.container.files;
        let refers = files.iter().any(|file| file.object == object && file.secret == (kind == "secret"));
        refers && service.metadata.deletion_timestamp.is_none()
    };
    let users: Vec<String> = all.iter().filter(uses).map(|service| service.spec.name.clone()).collect();
    match users.as_slice() {
        [] => Ok(()),
        [one] => Err(invalid(format!("{kind} '{name}' is in use by the following service: {one}"))),
        many => Err(invalid(format!("{kind} '{name}' is in use by the following services: {}", many.join(", ")))),
    }
}

/// The content of an object's members.
pub(super) fn content_of(
    data: Option<&BTreeMap<String, String>>,
    binary: Option<&BTreeMap<String, k8s_openapi::ByteString>>,
) -> Vec<u8> {
    let text = data.and_then(|data| data.get(CONTENT_MEMBER)).map(|text| text.clone().into_bytes());
    let bytes = binary.and_then(|data| data.get(CONTENT_MEMBER)).map(|bytes| bytes.0.clone());
    text.or(bytes).unwrap_or_default()
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
    fn only_labels_change() {
        let request = Request { name: "a".into(), data: Some(STANDARD.encode("x")), ..Request::default() };
        assert!(request.check_update("a", b"x").is_ok());
        assert!(request.check_update("a", b"y").is_err());
        assert!(request.check_update("b", b"x").is_err());
    }
}
