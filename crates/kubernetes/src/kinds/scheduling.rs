//! Group `scheduling.k8s.io`: PriorityClasses.

use k8s_openapi::api::scheduling::v1 as api;
use serde_json::Value;

use super::columns::{age, column, path};
use super::fields::{check_immutable, check_word, default};
use super::{Registration, register, texts};

pub(super) fn kinds() -> Vec<Registration> {
    vec![register::<api::PriorityClass>("priorityclasses", |kind| {
        kind.namespaced = false;
        kind.short_names = texts(&["pc"]);
        kind.columns = vec![
            path("Value", "integer", ".value"),
            column("Global-Default", "boolean", |object, _| {
                object.get("globalDefault").cloned().unwrap_or(Value::Bool(false))
            }),
            age(),
            path("PreemptionPolicy", "string", ".preemptionPolicy"),
        ];
        kind.default = |object| default(object, "preemptionPolicy", "PreemptLowerPriority");
        kind.validate = |new, old| {
            let mut causes = Vec::new();
            check_word(
                "preemptionPolicy",
                new.get("preemptionPolicy"),
                &["Never", "PreemptLowerPriority"],
                &mut causes,
            );
            if let Some(old) = old {
                check_immutable("value", new.get("value"), old.get("value"), &mut causes);
            }
            causes
        };
    })]
}
