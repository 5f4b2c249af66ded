//! Group `apps`: Deployments, ReplicaSets and the revisions of controllers.

use apiserver::{Kind, ScalePaths};
use k8s_openapi::api::apps::v1 as api;
use serde_json::{Value, json};

use super::columns::{age, column, container_images, container_names, count_at, path, selector_text, wide};
use super::fields::{default, number, object_mut};
use super::{Registration, pod_defaults, register, selectable, texts, workload_validation};

/// Old ReplicaSets that a Deployment keeps.
const REVISION_HISTORY: i64 = 10;
/// Seconds after which a rollout counts as stuck.
const PROGRESS_SECONDS: i64 = 600;

pub(super) fn kinds() -> Vec<Registration> {
    vec![
        deployment(),
        replica_set(),
        super::apps_sets::daemon_set(),
        super::apps_sets::stateful_set(),
        controller_revision(),
    ]
}

fn scale() -> Option<ScalePaths> {
    Some(ScalePaths {
        spec_replicas: "/spec/replicas".into(),
        status_replicas: "/status/replicas".into(),
        selector: Some("/spec/selector".into()),
    })
}

pub(super) fn workload(kind: &mut Kind, short: &str) {
    kind.short_names = texts(&[short]);
    kind.categories = texts(&["all"]);
    kind.status_subresource = true;
    kind.scale = scale();
}

pub(super) fn template_columns() -> [apiserver::Column; 3] {
    [
        wide(column("Containers", "string", container_names)),
        wide(column("Images", "string", container_images)),
        wide(column("Selector", "string", |object, _| selector_text(object.pointer("/spec/selector")))),
    ]
}

fn default_workload(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else { return };
    default(spec, "replicas", 1);
    if let Some(template) = object_mut(spec, "template")
        && let Some(pod) = object_mut(template, "spec")
    {
        pod_defaults::pod_spec(pod);
    }
}

fn deployment() -> Registration {
    register::<api::Deployment>("deployments", |kind| {
        workload(kind, "deploy");
        kind.columns = vec![
            column("Ready", "string", |object, _| {
                format!("{}/{}", number(object, "/status/readyReplicas"), number(object, "/spec/replicas")).into()
            }),
            column("Up-to-date", "string", |object, _| count_at(object, "/status/updatedReplicas")),
            column("Available", "string", |object, _| count_at(object, "/status/availableReplicas")),
            age(),
        ];
        kind.columns.extend(template_columns());
        kind.default = |object| {
            default_workload(object);
            let Some(spec) = object_mut(object, "spec") else { return };
            default(spec, "revisionHistoryLimit", REVISION_HISTORY);
            default(spec, "progressDeadlineSeconds", PROGRESS_SECONDS);
            let Some(strategy) = object_mut(spec, "strategy") else { return };
            default(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate"
                && let Some(rolling) = object_mut(strategy, "rollingUpdate")
            {
                default(rolling, "maxUnavailable", "25%");
                default(rolling, "maxSurge", "25%");
            }
        };
        kind.validate = workload_validation::deployment;
        kind.prepare_create = |object| object["status"] = json!({});
    })
}

fn replica_set() -> Registration {
    register::<api::ReplicaSet>("replicasets", |kind| {
        workload(kind, "rs");
        kind.selectable_fields = selectable(&["status.replicas"]);
        kind.columns = vec![
            column("Desired", "integer", |object, _| count_at(object, "/spec/replicas")),
            column("Current", "integer", |object, _| count_at(object, "/status/replicas")),
            column("Ready", "integer", |object, _| count_at(object, "/status/readyReplicas")),
            age(),
        ];
        kind.columns.extend(template_columns());
        kind.default = default_workload;
        kind.validate = workload_validation::workload;
        kind.prepare_create = |object| object["status"] = json!({"replicas": 0});
    })
}

fn controller_revision() -> Registration {
    register::<api::ControllerRevision>("controllerrevisions", |kind| {
        kind.columns = vec![
            column("Controller", "string", |object, _| {
                let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
                let owner = owners.into_iter().flatten().find(|owner| owner["controller"] == true);
                let Some(owner) = owner else { return "<none>".into() };
                let text = |field: &str| owner[field].as_str().unwrap_or_default().to_owned();
                let (kind, version) = (text("kind").to_lowercase(), text("apiVersion"));
                let group = version.split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
                format!("{kind}{group}/{}", text("name")).into()
            }),
            path("Revision", "integer", ".revision"),
            age(),
        ];
        kind.validate = |new, old| {
            let mut causes = Vec::new();
            if let Some(old) = old {
                super::fields::check_immutable("data", new.get("data"), old.get("data"), &mut causes);
            }
            super::fields::check_not_negative("revision", new.get("revision"), &mut causes);
            causes
        };
    })
}
