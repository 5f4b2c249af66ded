//! `ResourceQuota`: what a namespace may use. Creates in a namespace with a quota take turns, so that two cannot both
//! take the last place.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use crate::kind::Kind;
use crate::quantity;
use crate::server::ApiServer;
use crate::status::Status;

/// One lock per namespace that has a quota.
#[derive(Default)]
pub struct QuotaLocks {
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// Held until the create is done.
pub struct QuotaGuard {
    _turn: OwnedMutexGuard<()>,
}

type Usage = BTreeMap<String, i128>;
/// One, in nano-units.
const ONE: i128 = 1_000_000_000;

/// Checks that the object fits. Errors: forbidden, naming what is exceeded.
pub(super) async fn reserve(
    server: &ApiServer,
    kind: &Kind,
    object: &Value,
    dry_run: bool,
) -> Result<Option<QuotaGuard>, Status> {
    let namespace = crate::json::text(object, "/metadata/namespace");
    let cache = server.cache_of("", "resourcequotas");
    let prefix = format!("{namespace}/");
    if cache.len() == 0 || cache.all(&prefix).is_empty() {
        return Ok(None);
    }
    let lock = server.quota_locks.locks.lock().entry(namespace.to_owned()).or_default().clone();
    let guard = QuotaGuard { _turn: lock.lock_owned().await };
    let asked = usage(kind, object);
    for quota in cache.all(&prefix) {
        let tree = quota.to_value();
        let Some(hard) = tree["spec"]["hard"].as_object().filter(|_| in_scope(&tree, kind, object)) else { continue };
        let mut used = Usage::new();
        for other in server.cache(kind).all(&prefix) {
            let other = other.to_value();
            if in_scope(&tree, kind, &other) {
                for (name, amount) in usage(kind, &other) {
                    *used.entry(name).or_default() += amount;
                }
            }
        }
        exceeded(kind, object, quota.name(), hard, &asked, &used)?;
    }
    Ok(Some(guard).filter(|_| !dry_run))
}

fn exceeded(
    kind: &Kind,
    object: &Value,
    quota: &str,
    hard: &serde_json::Map<String, Value>,
    asked: &Usage,
    used: &Usage,
) -> Result<(), Status> {
    let name = crate::json::text(object, "/metadata/name");
    let mut over = Vec::new();
    for (resource, limit) in hard {
        let Some(limit_value) = quantity::of_value(limit) else { continue };
        if kind.is("", "pods")
            && asked.get(resource).is_none()
            && matches!(
                resource.as_str(),
                "cpu" | "memory" | "requests.cpu" | "requests.memory" | "limits.cpu" | "limits.memory"
            )
        {
            return Err(Status::forbidden(
                &kind.group,
                &kind.plural,
                name,
                &format!("failed quota: {quota}: must specify {resource} for: {}", containers(object)),
            ));
        }
        let Some(more) = asked.get(resource) else { continue };
        let present = used.get(resource).copied().unwrap_or(0);
        if present + more > limit_value {
            over.push((
                resource.clone(),
                quantity::format(*more),
                quantity::format(present),
                limit.as_str().map_or_else(|| limit.to_string(), str::to_owned),
            ));
        }
    }
    if over.is_empty() {
        return Ok(());
    }
    let list = |pick: fn(&(String, String, String, String)) -> &String| {
        over.iter().map(|entry| format!("{}={}", entry.0, pick(entry))).collect::<Vec<_>>().join(",")
    };
    let detail = format!(
        "exceeded quota: {quota}, requested: {}, used: {}, limited: {}",
        list(|e| &e.1),
        list(|e| &e.2),
        list(|e| &e.3)
    );
    Err(Status::forbidden(&kind.group, &kind.plural, name, &detail))
}

fn containers(pod: &Value) -> String {
    let names = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|container| crate::json::text(container, "/name"));
    names.collect::<Vec<_>>().join(",")
}

fn ended(pod: &Value) -> bool {
    matches!(crate::json::text(pod, "/status/phase"), "Succeeded" | "Failed")
}

/// What an object counts for. Pods that ended count only as objects.
pub(crate) fn usage(kind: &Kind, object: &Value) -> Usage {
    let count = if kind.group.is_empty() {
        format!("count/{}", kind.plural)
    } else {
        format!("count/{}.{}", kind.plural, kind.group)
    };
    let mut usage = Usage::from([(count, ONE)]);
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "pods") if !ended(object) => {
            usage.insert("pods".into(), ONE);
            for list in ["requests", "limits"] {
                for container in object["spec"]["containers"].as_array().into_iter().flatten() {
                    for (name, amount) in container["resources"][list].as_object().into_iter().flatten() {
                        let amount = quantity::of_value(amount).unwrap_or(0);
                        *usage.entry(format!("{list}.{name}")).or_default() += amount;
                        if list == "requests" && matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                            *usage.entry(name.clone()).or_default() += amount;
                        }
                    }
                }
            }
        }
        ("", "services") => {
            usage.insert("services".into(), ONE);
            let kind = crate::json::text(object, "/spec/type");
            if kind == "LoadBalancer" {
                usage.insert("services.loadbalancers".into(), ONE);
            }
            if matches!(kind, "NodePort" | "LoadBalancer") {
                let ports = object["spec"]["ports"].as_array().map_or(0, Vec::len);
                usage.insert("services.nodeports".into(), ONE * i128::try_from(ports).unwrap_or(0));
            }
        }
        ("", "persistentvolumeclaims") => {
            usage.insert("persistentvolumeclaims".into(), ONE);
            usage.insert(
                "requests.storage".into(),
                quantity::of_value(&object["spec"]["resources"]["requests"]["storage"]).unwrap_or(0),
            );
        }
        ("", plural @ ("configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas")) => {
            usage.insert(plural.to_owned(), ONE);
        }
        _ => {}
    }
    usage
}

fn in_scope(quota: &Value, kind: &Kind, object: &Value) -> bool {
    let scopes = crate::json::strings(quota, "/spec/scopes");
    if scopes.is_empty() {
        return true;
    }
    let best_effort = object["spec"]["containers"].as_array().into_iter().flatten().all(|container| {
        crate::json::is_empty(container["resources"].get("requests"))
            && crate::json::is_empty(container["resources"].get("limits"))
    });
    let terminating = !object["spec"]["activeDeadlineSeconds"].is_null();
    kind.is("", "pods")
        && scopes.iter().all(|scope| match scope.as_str() {
            "BestEffort" => best_effort,
            "NotBestEffort" => !best_effort,
            "Terminating" => terminating,
            "NotTerminating" => !terminating,
            _ => false,
        })
}
