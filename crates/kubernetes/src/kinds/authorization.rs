//! Group `authorization.k8s.io`: reviews, which are answered and not stored.

use apiserver::{Cause, Kind};
use k8s_openapi::api::authorization::v1 as api;

use serde_json::Value;

use super::{Registration, register};

fn review(kind: &mut Kind) {
    kind.namespaced = false;
    kind.stored = false;
}

/// Exactly one thing is asked about.
fn access(new: &Value, _: Option<&Value>) -> Vec<Cause> {
    let given = |field: &str| new["spec"].get(field).is_some_and(Value::is_object);
    let path = &new["spec"]["nonResourceAttributes"];
    match (given("resourceAttributes"), given("nonResourceAttributes")) {
        (true, true) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            vec![Cause::invalid("spec.nonResourceAttributes", path, detail)]
        }
        (false, false) => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            vec![Cause::invalid("spec.resourceAttributes", &new["spec"]["resourceAttributes"], detail)]
        }
        _ => Vec::new(),
    }
}

pub(super) fn kinds() -> Vec<Registration> {
    vec![
        register::<api::LocalSubjectAccessReview>("localsubjectaccessreviews", |kind| {
            kind.stored = false;
            kind.validate = access;
        }),
        register::<api::SelfSubjectAccessReview>("selfsubjectaccessreviews", |kind| {
            review(kind);
            kind.validate = access;
        }),
        register::<api::SelfSubjectRulesReview>("selfsubjectrulesreviews", review),
        register::<api::SubjectAccessReview>("subjectaccessreviews", |kind| {
            review(kind);
            kind.validate = access;
        }),
    ]
}
