//! From a body to an object of the right kind: decoding, type checks, unknown and duplicate fields.

use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::options::{Body, FieldValidation};
use crate::path::ResourcePath;
use crate::server::ApiServer;
use crate::status::{Reason, Status};

/// Largest object that is stored; etcd's and so Kubernetes' default. Units: bytes.
pub(super) const MAX_OBJECT_BYTES: usize = 1_572_864;
/// Most problems that one answer lists.
const MAX_PROBLEMS: usize = 20;

/// A decoded body.
pub(crate) struct Decoded {
    pub(crate) value: Value,
    pub(crate) warnings: Vec<String>,
}

/// The tree of a body, and its duplicate keys.
pub(crate) fn tree(body: Body) -> Result<(Value, Vec<String>), Status> {
    match body {
        Body::Value(value) => Ok((value, Vec::new())),
        Body::Json(bytes) => crate::json::decode(&bytes),
    }
}

impl ApiServer {
    /// Decodes the body of a create or update.
    pub(crate) fn decode(&self, kind: &Kind, body: Body, validation: FieldValidation) -> Result<Decoded, Status> {
        let (value, duplicates) = tree(body).map_err(|status| match status.reason {
            Reason::BadRequest => Status::bad_request(format!(
                "the object provided is unrecognized (must be of type {}): {}",
                kind.kind, status.message
            )),
            _ => status,
        })?;
        let value = with_type(kind, value)?;
        self.check_fields(kind, value, &duplicates, validation)
    }

    /// Drops (and depending on `validation` reports) fields that the schema does not know; checks types.
    pub(crate) fn check_fields(
        &self,
        kind: &Kind,
        mut value: Value,
        duplicates: &[String],
        validation: FieldValidation,
    ) -> Result<Decoded, Status> {
        let mut problems: Vec<String> = duplicates.iter().map(|path| format!("duplicate field \"{path}\"")).collect();
        let unknown = crate::schema::prune(kind, &mut value);
        problems.extend(unknown.into_iter().map(|path| format!("unknown field \"{path}\"")));
        problems.truncate(MAX_PROBLEMS);
        if !kind.structural {
            crate::schema::check_types(kind, &value).map_err(|detail| {
                Status::bad_request(format!(
                    "{} in version \"{}\" cannot be handled as a {}: {detail}",
                    kind.kind, kind.version, kind.kind
                ))
            })?;
        }
        match validation {
            _ if problems.is_empty() => {}
            FieldValidation::Ignore => problems.clear(),
            FieldValidation::Warn => {}
            FieldValidation::Strict => {
                return Err(Status::bad_request(format!(
                    "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
                    kind.kind,
                    kind.version,
                    kind.kind,
                    problems.join(", ")
                )));
            }
        }
        if let Some(warning) = &kind.deprecation {
            problems.push(warning.clone());
        }
        Ok(Decoded { value, warnings: problems })
    }
}

/// Checks that the body is an object of this kind and version, and fills these in when they are missing.
fn with_type(kind: &Kind, mut value: Value) -> Result<Value, Status> {
    let Some(map) = value.as_object_mut() else {
        return Err(Status::bad_request(format!("the body is not an object: a {} was expected", kind.kind)));
    };
    let expected = kind.api_version();
    check_type_member(map, "apiVersion", &expected).map_err(|found| {
        Status::bad_request(format!(
            "the API version in the data ({found}) does not match the expected API version ({expected})"
        ))
    })?;
    check_type_member(map, "kind", &kind.kind).map_err(|found| {
        Status::bad_request(format!("the kind in the data ({found}) does not match the expected kind ({})", kind.kind))
    })?;
    match map.get("metadata") {
        None | Some(Value::Null) => {
            map.insert("metadata".into(), json!({}));
        }
        Some(Value::Object(_)) => {}
        Some(other) => {
            return Err(Status::bad_request(format!("metadata must be an object, not {other}")));
        }
    }
    Ok(value)
}

fn check_type_member(map: &mut Map<String, Value>, member: &str, expected: &str) -> Result<(), String> {
    match map.get(member) {
        Some(Value::String(found)) if found == expected => Ok(()),
        Some(Value::String(found)) if !found.is_empty() => Err(found.clone()),
        None | Some(Value::Null | Value::String(_)) => {
            map.insert(member.to_owned(), Value::from(expected));
            Ok(())
        }
        Some(other) => Err(other.to_string()),
    }
}

/// The object's name and namespace must be those of the path; missing ones come from there.
pub(super) fn match_path(path: &ResourcePath, kind: &Kind, object: &mut Value) -> Result<(), Status> {
    let Some(metadata) = crate::json::metadata_mut(object) else {
        return Err(Status::bad_request("metadata must be an object"));
    };
    if let Some(name) = &path.name {
        match metadata.get("name").and_then(Value::as_str).unwrap_or_default() {
            "" => {
                metadata.insert("name".into(), Value::from(name.as_str()));
            }
            own if own == name => {}
            own => {
                return Err(Status::bad_request(format!(
                    "the name of the object ({own}) does not match the name on the URL ({name})"
                )));
            }
        }
    }
    let wanted = path.namespace.as_deref().unwrap_or_default();
    if !kind.namespaced {
        metadata.remove("namespace");
        return Ok(());
    }
    match metadata.get("namespace").and_then(Value::as_str).unwrap_or_default() {
        "" => {
            metadata.insert("namespace".into(), Value::from(wanted));
            Ok(())
        }
        own if own == wanted => Ok(()),
        _ => Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}
