//! Group `policy`: PodDisruptionBudgets.

use apiserver::Cause;
use k8s_openapi::api::policy::v1 as api;
use serde_json::{Value, json};

use super::columns::{age, column, count_at};
use super::{Registration, register, texts};

pub(super) fn kinds() -> Vec<Registration> {
    vec![register::<api::PodDisruptionBudget>("poddisruptionbudgets", |kind| {
        kind.short_names = texts(&["pdb"]);
        kind.status_subresource = true;
        kind.columns = vec![
            column("Min Available", "string", |object, _| or_missing(object, "/spec/minAvailable")),
            column("Max Unavailable", "string", |object, _| or_missing(object, "/spec/maxUnavailable")),
            column("Allowed Disruptions", "integer", |object, _| count_at(object, "/status/disruptionsAllowed")),
            age(),
        ];
        kind.validate = |new, _| {
            let mut causes = Vec::new();
            let given = |field: &str| new["spec"].get(field).is_some_and(|value| !value.is_null());
            if given("minAvailable") && given("maxUnavailable") {
                let detail = "minAvailable and maxUnavailable cannot be both set";
                causes.push(Cause::invalid("spec", &new["spec"], detail));
            }
            causes
        };
        kind.prepare_create = |object| {
            object["status"] =
                json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
        };
    })]
}

fn or_missing(object: &Value, pointer: &str) -> Value {
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.as_str().into(),
        Some(Value::Number(number)) => number.to_string().into(),
        _ => "N/A".into(),
    }
}
