//! Group `apps`, second part: DaemonSets and StatefulSets. `Source:` pkg/apis/apps of Kubernetes 1.36.

use apiserver::Cause;
use k8s_openapi::api::apps::v1 as api;
use serde_json::{Value, json};

use super::apps::{template_columns, workload};
use super::columns::{age, column, count_at, selector_text};
use super::fields::{
    check_immutable, check_label, check_not_negative, check_word, default, items, number, object_mut, text,
};
use super::{Registration, pod_defaults, register, texts, workload_validation};

/// Old revisions that are kept.
const REVISION_HISTORY: i64 = 10;

pub(super) fn daemon_set() -> Registration {
    register::<api::DaemonSet>("daemonsets", |kind| {
        kind.short_names = texts(&["ds"]);
        kind.categories = texts(&["all"]);
        kind.status_subresource = true;
        let count = |name, show| column(name, "integer", show);
        kind.columns = vec![
            count("Desired", |object, _| count_at(object, "/status/desiredNumberScheduled")),
            count("Current", |object, _| count_at(object, "/status/currentNumberScheduled")),
            count("Ready", |object, _| count_at(object, "/status/numberReady")),
            count("Up-to-date", |object, _| count_at(object, "/status/updatedNumberScheduled")),
            count("Available", |object, _| count_at(object, "/status/numberAvailable")),
            column("Node Selector", "string", |object, _| {
                selector_text(object.pointer("/spec/template/spec/nodeSelector"))
            }),
            age(),
        ];
        kind.columns.extend(template_columns());
        kind.default = |object| {
            let Some(spec) = object_mut(object, "spec") else { return };
            default(spec, "revisionHistoryLimit", REVISION_HISTORY);
            default_template(spec);
            let Some(strategy) = object_mut(spec, "updateStrategy") else { return };
            default(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate"
                && let Some(rolling) = object_mut(strategy, "rollingUpdate")
            {
                default(rolling, "maxUnavailable", 1);
                default(rolling, "maxSurge", 0);
            }
        };
        kind.validate = |new, old| {
            let mut causes = workload_validation::workload(new, old);
            let strategy = &new["spec"]["updateStrategy"];
            let words = &["RollingUpdate", "OnDelete"];
            check_word("spec.updateStrategy.type", strategy.get("type"), words, &mut causes);
            let surge = strategy.pointer("/rollingUpdate/maxSurge").filter(|surge| **surge != 0 && **surge != "0%");
            if surge.is_some() {
                causes.push(Cause::forbidden("spec.updateStrategy.rollingUpdate.maxSurge", "not implemented"));
            }
            let zero = |field: &str| {
                strategy.pointer(&format!("/rollingUpdate/{field}")).is_some_and(|v| *v == 0 || *v == "0" || *v == "0%")
            };
            if zero("maxUnavailable") && zero("maxSurge") {
                let detail = "cannot be 0 when maxSurge is 0";
                causes.push(Cause::invalid("spec.updateStrategy.rollingUpdate.maxUnavailable", &json!(0), detail));
            }
            causes
        };
        kind.prepare_create = |object| {
            object["status"] = json!({
                "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
            });
        };
    })
}

fn default_template(spec: &mut Value) {
    if let Some(template) = object_mut(spec, "template")
        && let Some(pod) = object_mut(template, "spec")
    {
        pod_defaults::pod_spec(pod);
    }
}

pub(super) fn stateful_set() -> Registration {
    register::<api::StatefulSet>("statefulsets", |kind| {
        workload(kind, "sts");
        kind.columns = vec![
            column("Ready", "string", |object, _| {
                format!("{}/{}", number(object, "/status/readyReplicas"), number(object, "/spec/replicas")).into()
            }),
            age(),
        ];
        kind.columns.extend(template_columns().into_iter().take(2));
        kind.default = |object| {
            let Some(spec) = object_mut(object, "spec") else { return };
            default(spec, "replicas", 1);
            default(spec, "revisionHistoryLimit", REVISION_HISTORY);
            default(spec, "podManagementPolicy", "OrderedReady");
            if let Some(kept) = object_mut(spec, "persistentVolumeClaimRetentionPolicy") {
                default(kept, "whenDeleted", "Retain");
                default(kept, "whenScaled", "Retain");
            }
            default_template(spec);
            let Some(strategy) = object_mut(spec, "updateStrategy") else { return };
            default(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate"
                && let Some(rolling) = object_mut(strategy, "rollingUpdate")
            {
                default(rolling, "partition", 0);
            }
        };
        kind.validate = validate_stateful_set;
        kind.prepare_create = |object| object["status"] = json!({"replicas": 0, "availableReplicas": 0});
    })
}

fn validate_stateful_set(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = workload_validation::workload(new, old);
    let spec = &new["spec"];
    let words = &["OrderedReady", "Parallel"];
    check_word("spec.podManagementPolicy", spec.get("podManagementPolicy"), words, &mut causes);
    let words = &["RollingUpdate", "OnDelete"];
    check_word("spec.updateStrategy.type", spec.pointer("/updateStrategy/type"), words, &mut causes);
    for (path, pointer) in [
        ("spec.updateStrategy.rollingUpdate.partition", "/updateStrategy/rollingUpdate/partition"),
        ("spec.ordinals.start", "/ordinals/start"),
    ] {
        check_not_negative(path, spec.pointer(pointer), &mut causes);
    }
    for (index, claim) in items(spec, "volumeClaimTemplates").iter().enumerate() {
        let at = format!("spec.volumeClaimTemplates[{index}].metadata.name");
        check_label(&at, text(claim, "/metadata/name"), &mut causes);
    }
    if let Some(old) = old {
        for field in ["serviceName", "podManagementPolicy", "volumeClaimTemplates"] {
            check_immutable(&format!("spec.{field}"), spec.get(field), old["spec"].get(field), &mut causes);
        }
    }
    causes
}
