//! The question: an `AdmissionReview`. `Source:` `admission.k8s.io/v1`.

use bytes::Bytes;
use serde_json::{Value, json};

use super::Hook;
use crate::admission::{Request, matching};
use crate::kind::Kind;
use crate::write::Verb;

/// Versions of reviews that are spoken.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// The object as this version of its kind.
pub(super) fn in_version(kind: &Kind, object: &Value, version: &str) -> Value {
    let mut object = object.clone();
    if object.is_object() {
        let other = Kind { version: version.to_owned(), ..Kind::new(&kind.group, "", "", "") };
        object["apiVersion"] = json!(other.api_version());
        object["kind"] = json!(kind.kind);
    }
    object
}

/// The review's `apiVersion` and its body. Errors: the webhook speaks none of our versions.
pub(super) fn request(
    request: &Request<'_>,
    hook: &Hook,
    object: &Value,
    uid: &str,
) -> Result<(String, Bytes), String> {
    let spoken = crate::json::strings(&hook.value, "/admissionReviewVersions");
    let Some(version) = spoken.iter().find(|version| REVIEWS.contains(&version.as_str())) else {
        return Err("webhook does not accept known AdmissionReview versions (v1, v1beta1)".to_owned());
    };
    let api_version = format!("admission.k8s.io/{version}");
    let mut asked = matching::describe(request, if object.is_null() { request.old.unwrap_or(object) } else { object });
    let (kind, resource, sub) = (asked["kind"].clone(), asked["resource"].clone(), asked["subResource"].clone());
    asked["uid"] = json!(uid);
    asked["requestKind"] = kind;
    asked["requestResource"] = resource;
    for member in ["kind", "resource"] {
        asked[member]["version"] = json!(hook.version);
    }
    if let Some(map) = asked.as_object_mut() {
        // An empty subresource and namespace are left out, as Go leaves them out.
        if sub == "" {
            map.remove("subResource");
        } else {
            map.insert("requestSubResource".to_owned(), sub);
        }
        if map["namespace"] == "" {
            map.remove("namespace");
        }
    }
    asked["object"] = in_version(request.kind, object, &hook.version);
    asked["oldObject"] = request.old.map_or(Value::Null, |old| in_version(request.kind, old, &hook.version));
    let options = match request.verb {
        Verb::Create => "CreateOptions",
        Verb::Update => "UpdateOptions",
        Verb::Delete => "DeleteOptions",
        Verb::Connect => "",
    };
    asked["options"] = if options.is_empty() {
        Value::Null
    } else {
        let mut options = json!({"apiVersion": "meta.k8s.io/v1", "kind": options});
        if request.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        options
    };
    let review = json!({"apiVersion": api_version, "kind": "AdmissionReview", "request": asked});
    Ok((api_version, Bytes::from(review.to_string())))
}
