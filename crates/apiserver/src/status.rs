//! Errors as clients see them: `metav1.Status` with the reasons, messages and causes of Kubernetes.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Kubernetes' machine-readable reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are those of metav1.StatusReason.
pub enum Reason {
    #[default]
    #[serde(rename = "")]
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
}

/// One cause: a field and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`…
    pub reason: String,
    /// For people.
    pub message: String,
    /// Path of the field, e.g. `spec.containers[0].image`.
    pub field: String,
}

impl Cause {
    /// The field must be given.
    pub fn required(field: &str, detail: &str) -> Cause {
        let message = if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Cause { reason: "FieldValueRequired".into(), message, field: field.into() }
    }

    /// The field's value is wrong.
    pub fn invalid(field: &str, value: &Value, detail: &str) -> Cause {
        Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {}: {detail}", abridged(value)),
            field: field.into(),
        }
    }

    /// The field's value is none of those supported.
    pub fn not_supported(field: &str, value: &Value, supported: &[&str]) -> Cause {
        let list: Vec<String> = supported.iter().map(|one| format!("\"{one}\"")).collect();
        Cause {
            reason: "FieldValueNotSupported".into(),
            message: format!("Unsupported value: {}: supported values: {}", abridged(value), list.join(", ")),
            field: field.into(),
        }
    }

    /// The value occurs twice where it must be unique.
    pub fn duplicate(field: &str, value: &Value) -> Cause {
        Cause {
            reason: "FieldValueDuplicate".into(),
            message: format!("Duplicate value: {}", abridged(value)),
            field: field.into(),
        }
    }

    /// The field may not be set (this way).
    pub fn forbidden(field: &str, detail: &str) -> Cause {
        Cause { reason: "FieldValueForbidden".into(), message: format!("Forbidden: {detail}"), field: field.into() }
    }

    /// The value is longer than allowed.
    pub fn too_long(field: &str, max: usize) -> Cause {
        Cause {
            reason: "FieldValueTooLong".into(),
            message: format!("Too long: may not be more than {max} bytes"),
            field: field.into(),
        }
    }

    /// The value has the wrong type.
    pub fn type_invalid(field: &str, value: &Value, detail: &str) -> Cause {
        Cause {
            reason: "FieldValueTypeInvalid".into(),
            message: format!("Invalid value: {}: {detail}", abridged(value)),
            field: field.into(),
        }
    }
}

/// Longest value that an error message repeats. Units: bytes.
const MAX_ECHOED_BYTES: usize = 256;

fn abridged(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > MAX_ECHOED_BYTES {
        let end = (0..=MAX_ECHOED_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What a status is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    /// Object name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Kind, or plural resource as Kubernetes puts here for most errors.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Object uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Causes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// When to try again; 0: not said.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde wants.
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// An answer that is not an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// HTTP code.
    pub code: u16,
    /// Reason.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// What it is about; boxed, so that `Result<_, Status>` stays small.
    pub details: Box<Details>,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    /// A failure without details.
    pub fn new(code: u16, reason: Reason, message: impl Into<String>) -> Status {
        Status { code, reason, message: message.into(), details: Box::default() }
    }

    fn about(mut self, group: &str, resource: &str, name: &str) -> Status {
        self.details.group = group.into();
        self.details.kind = resource.into();
        self.details.name = name.into();
        self
    }

    /// The status as JSON, `kind: Status`.
    pub fn to_value(&self) -> Value {
        let status = if self.code < 400 { "Success" } else { "Failure" };
        let mut value = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": status,
            "message": self.message, "code": self.code});
        if self.reason != Reason::Unknown {
            value["reason"] = json!(self.reason);
        }
        if *self.details != Details::default() {
            value["details"] = json!(self.details);
        }
        value
    }

    /// No such object.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Status {
        let what = crate::path::qualified(resource, group);
        Status::new(404, Reason::NotFound, format!("{what} \"{name}\" not found")).about(group, resource, name)
    }

    /// No such path at all.
    pub fn no_such_resource() -> Status {
        let mut status = Status::new(404, Reason::NotFound, "the server could not find the requested resource");
        status.details.causes.push(Cause {
            reason: "UnexpectedServerResponse".into(),
            message: "404 page not found".into(),
            field: String::new(),
        });
        status
    }

    /// The name is taken.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Status {
        let what = crate::path::qualified(resource, group);
        Status::new(409, Reason::AlreadyExists, format!("{what} \"{name}\" already exists"))
            .about(group, resource, name)
    }

    /// The object changed meanwhile, or its state forbids the operation.
    pub fn conflict(group: &str, resource: &str, name: &str, detail: &str) -> Status {
        let what = crate::path::qualified(resource, group);
        Status::new(409, Reason::Conflict, format!("Operation cannot be fulfilled on {what} \"{name}\": {detail}"))
            .about(group, resource, name)
    }

    /// The conflict of a stale resourceVersion.
    pub fn modified(group: &str, resource: &str, name: &str) -> Status {
        Status::conflict(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// The object breaks rules.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Status {
        let texts: Vec<String> = causes
            .iter()
            .map(|cause| {
                if cause.field.is_empty() {
                    cause.message.clone()
                } else {
                    format!("{}: {}", cause.field, cause.message)
                }
            })
            .collect();
        let text = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let what = crate::path::qualified(kind, group);
        let mut status =
            Status::new(422, Reason::Invalid, format!("{what} \"{name}\" is invalid: {text}")).about(group, kind, name);
        status.details.causes = causes;
        status
    }

    /// Not allowed.
    pub fn forbidden(group: &str, resource: &str, name: &str, detail: &str) -> Status {
        let what = crate::path::qualified(resource, group);
        let message = if name.is_empty() {
            format!("{what} is forbidden: {detail}")
        } else {
            format!("{what} \"{name}\" is forbidden: {detail}")
        };
        Status::new(403, Reason::Forbidden, message).about(group, resource, name)
    }

    /// Nobody knows who you are.
    pub fn unauthorized() -> Status {
        Status::new(401, Reason::Unauthorized, "Unauthorized")
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Status {
        Status::new(400, Reason::BadRequest, message)
    }

    /// The version or continue token is too old.
    pub fn expired(message: impl Into<String>) -> Status {
        Status::new(410, Reason::Expired, message)
    }

    /// Gone for good.
    pub fn gone(message: impl Into<String>) -> Status {
        Status::new(410, Reason::Gone, message)
    }

    /// Come back later.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Status {
        let mut status = Status::new(429, Reason::TooManyRequests, message);
        status.details.retry_after_seconds = retry_after_seconds;
        status
    }

    /// The resource does not know this verb.
    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> Status {
        let what = crate::path::qualified(resource, group);
        Status::new(405, Reason::MethodNotAllowed, format!("{verb} is not supported on resources of kind \"{what}\""))
            .about(group, resource, "")
    }

    /// Not a body that we read.
    pub fn unsupported_media_type(message: impl Into<String>) -> Status {
        Status::new(415, Reason::UnsupportedMediaType, message)
    }

    /// Not an answer that we can give.
    pub fn not_acceptable(message: impl Into<String>) -> Status {
        Status::new(406, Reason::NotAcceptable, message)
    }

    /// Too much.
    pub fn request_entity_too_large(message: impl Into<String>) -> Status {
        Status::new(413, Reason::RequestEntityTooLarge, message)
    }

    /// Our fault.
    pub fn internal(message: impl std::fmt::Display) -> Status {
        Status::new(500, Reason::InternalError, format!("Internal error occurred: {message}"))
    }

    /// It took too long.
    pub fn timeout(message: impl Into<String>, retry_after_seconds: u32) -> Status {
        let mut status = Status::new(504, Reason::Timeout, format!("Timeout: {}", message.into()));
        status.details.retry_after_seconds = retry_after_seconds;
        status
    }

    /// Cannot serve now.
    pub fn unavailable(message: impl Into<String>) -> Status {
        Status::new(503, Reason::ServiceUnavailable, message)
    }

    /// A success without an object, as some deletes and evictions answer.
    pub fn success() -> Status {
        Status::new(200, Reason::Unknown, "")
    }

    /// The resourceVersion asked for lies in the future.
    pub(crate) fn too_large_version(asked: u64, current: u64) -> Status {
        let mut status = Status::timeout(format!("Too large resource version: {asked}, current: {current}"), 1);
        status.details.causes.push(Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        });
        status
    }
}

impl From<store::Error> for Status {
    fn from(error: store::Error) -> Status {
        match error {
            store::Error::Compacted { .. } => Status::expired("The resourceVersion for the provided list is too old."),
            store::Error::FutureRevision { newest } => Status::too_large_version(newest.saturating_add(1), newest),
            store::Error::Invalid(message) => Status::request_entity_too_large(message),
            store::Error::NoSpace => Status::new(507, Reason::InternalError, "no space left for the store"),
            store::Error::Unavailable(message) => Status::unavailable(message),
            other => Status::internal(other),
        }
    }
}
