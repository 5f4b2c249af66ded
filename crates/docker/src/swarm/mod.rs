//! Swarm mode: a view onto the same machines, scheduler, services and secrets that Kubernetes' objects use.
//!
//! | module | operations | objects |
//! |---|---|---|
//! | [`cluster`] | `/swarm…`: init, join, leave, inspect, update, unlock | the `Secret` `nuee-swarm` |
//! | [`nodes`] | `/nodes…` | `Node` |
//! | [`services`] | `/services…` | `SwarmService` |
//! | [`spec`], [`wire`], [`shown`] | Docker's specification of a service: to ours, its shapes, what inspect shows; pure | |
//! | [`tasks`] | `/tasks…` | `Container` with a task |
//! | [`logs`] | `/services/{id}/logs`, `/tasks/{id}/logs` | |
//! | [`networks`] | overlay networks, under `/networks` | `Network` |
//! | [`secrets`], [`configs`] | `/secrets…`, `/configs…` | `Secret`, `ConfigMap` |
//! | [`stored`] | what secrets and configs share | |
//! | [`credentials`] | `--with-registry-auth` | `Secret` |
//! | [`token`] | join tokens, and what they are for `nuee join`; pure | |

pub(crate) mod cluster;
pub(crate) mod configs;
mod credentials;
pub(crate) mod logs;
pub(crate) mod networks;
pub(crate) mod nodes;
pub(crate) mod secrets;
pub(crate) mod services;
mod shown;
mod spec;
mod stored;
pub(crate) mod tasks;
mod token;
mod wire;

use std::collections::BTreeMap;

use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::time;

/// Annotation with the time of the last change by a user.
const UPDATED_ANNOTATION: &str = "nuee.dev/updated-at";
/// Port at which a swarm's machines find each other, as Docker's tools print it.
const CLUSTER_PORT: u16 = 2377;
/// Longest name of a service. `Source:` swarmkit, `validateAnnotations`.
const NAME_MAX: usize = 63;

/// Docker's words for an object that is not there.
fn not_found(kind: &str, reference: &str) -> Error {
    Error::NotFound(format!("{kind} {reference} not found"))
}

/// Swarm's own words for a request that makes no sense.
fn invalid(text: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("rpc error: code = InvalidArgument desc = {text}"))
}

/// Swarm's own words for a request at the wrong time.
fn precondition(text: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("rpc error: code = FailedPrecondition desc = {text}"))
}

/// Swarm's own words for a change of something that changed meanwhile.
fn out_of_sequence() -> Error {
    Error::Internal("rpc error: code = Unknown desc = update out of sequence".into())
}

/// A refused write of an object that was read: it changed meanwhile.
fn write_error(error: kube::Error) -> Error {
    match error {
        kube::Error::Api(status) if status.code == 409 => out_of_sequence(),
        error => error.into(),
    }
}

/// The version of an object as Swarm counts them.
fn version_of<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Compares the version that a client read with what is there.
///
/// Errors: it gives none, or another.
fn check_version<K: Resource>(call: &crate::call::Call, object: &K) -> Result<()> {
    let text = call.query.get("version").unwrap_or_default();
    let given: u64 = text.parse().map_err(|_| {
        Error::Invalid(format!(
            "invalid version '{text}': strconv.ParseUint: parsing {}: invalid syntax",
            crate::text::quote(text)
        ))
    })?;
    if given == version_of(object) { Ok(()) } else { Err(out_of_sequence()) }
}

/// `Version`, `CreatedAt` and `UpdatedAt` as every object of Swarm shows them.
fn stamps<K: ResourceExt>(object: &K) -> Value {
    let created = time::of_object(object.creation_timestamp().as_ref());
    let updated = object.annotations().get(UPDATED_ANNOTATION).cloned().unwrap_or_else(|| created.clone());
    json!({ "Version": { "Index": version_of(object) }, "CreatedAt": created, "UpdatedAt": updated })
}

/// Now, for [`UPDATED_ANNOTATION`].
fn now_text() -> String {
    time::rfc3339(time::now_ns())
}

/// Adds members to an object.
fn extend(target: &mut Value, more: Value) {
    if let (Value::Object(target), Value::Object(more)) = (target, more) {
        target.extend(more);
    }
}

/// Whether a text could be the beginning of one of Swarm's ids.
fn is_id_prefix(text: &str) -> bool {
    !text.is_empty() && text.len() <= 25 && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
}

/// Finds an object by id, by name, or by the beginning of an id that only one has.
fn find<K>(
    all: Vec<K>,
    kind: &str,
    reference: &str,
    id: impl Fn(&K) -> String,
    name: impl Fn(&K) -> String,
) -> Result<K> {
    if let Some(at) = all.iter().position(|object| id(object) == reference) {
        return all.into_iter().nth(at).ok_or_else(|| not_found(kind, reference));
    }
    if let Some(at) = all.iter().position(|object| name(object) == reference) {
        return all.into_iter().nth(at).ok_or_else(|| not_found(kind, reference));
    }
    let mut candidates = all.into_iter().filter(|object| is_id_prefix(reference) && id(object).starts_with(reference));
    match (candidates.next(), candidates.next()) {
        (Some(found), None) => Ok(found),
        (Some(_), Some(_)) => Err(invalid(format!("{kind} {reference} is ambiguous (2 matches found)"))),
        (None, _) => Err(not_found(kind, reference)),
    }
}

/// The labels that an object has in Swarm.
fn labels_of<K: ResourceExt>(object: &K) -> BTreeMap<String, String> {
    let text = object.annotations().get(api::swarm::LABELS_ANNOTATION);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Labels as a text, for an annotation.
fn labels_text(labels: &BTreeMap<String, String>) -> String {
    serde_json::to_string(labels).unwrap_or_default()
}
