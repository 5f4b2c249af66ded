//! Posts to subresources: a pod's binding and eviction, a service account's token.

use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::authentication::TokenRequest;
use crate::keys;
use crate::kind::Kind;
use crate::object::{Meta, Object};
use crate::options::{Body, DeleteOptions, Preconditions, WriteOptions, Written};
use crate::path::ResourcePath;
use crate::selector::LabelSelector;
use crate::server::ApiServer;
use crate::status::{Cause, Status};
use crate::user::RequestContext;
use crate::write::Change;

/// Shortest, default and longest life of a token. Units: seconds.
const TOKEN_SECONDS: (i64, i64, i64) = (600, 3600, 1 << 32);

/// Serves a post to a subresource.
pub(crate) async fn post(
    server: &ApiServer,
    ctx: &RequestContext,
    kind: &Kind,
    path: &ResourcePath,
    body: Body,
    o: &WriteOptions,
) -> Result<Written, Status> {
    let (body, _) = crate::write::tree(body)?;
    match (kind.group.as_str(), kind.plural.as_str(), path.subresource.as_deref()) {
        ("", "pods", Some("binding")) => bind(server, ctx, kind, path, &body, o).await,
        ("", "pods", Some("eviction")) => evict(server, ctx, kind, path, &body, o).await,
        ("", "serviceaccounts", Some("token")) => token(server, kind, path, body),
        _ => Err(Status::method_not_allowed(&kind.group, &kind.plural, "create")),
    }
}

/// An answer that is not stored.
pub(crate) fn answer(value: &Value) -> Written {
    Written {
        object: Object { bytes: value.to_string().into(), meta: Meta::default().into() },
        created: true,
        warnings: Vec::new(),
    }
}

fn success() -> Written {
    answer(&json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
}

async fn bind(
    server: &ApiServer,
    ctx: &RequestContext,
    kind: &Kind,
    path: &ResourcePath,
    binding: &Value,
    o: &WriteOptions,
) -> Result<Written, Status> {
    let name = path.name.as_deref().unwrap_or_default();
    let node = crate::json::text(binding, "/target/name");
    if node.is_empty() {
        return Err(Status::invalid("", "Binding", name, vec![Cause::required("target.name", "")]));
    }
    let target = crate::json::text(binding, "/target/kind");
    if !matches!(target, "" | "Node") {
        return Err(Status::invalid(
            "",
            "Binding",
            name,
            vec![Cause::not_supported("target.kind", &json!(target), &["Node", "<empty>"])],
        ));
    }
    let now = crate::write::time((server.options.now)());
    server
        .change(ctx, kind, path, o, |_, old| {
            let present = crate::json::text(old, "/spec/nodeName");
            if !present.is_empty() {
                return Err(Status::conflict(
                    "",
                    "pods/binding",
                    name,
                    &format!("pod {name} is already assigned to node \"{present}\""),
                ));
            }
            if !old["metadata"]["deletionTimestamp"].is_null() {
                return Err(Status::conflict(
                    "",
                    "pods/binding",
                    name,
                    &format!("pod {name} is being deleted, cannot be assigned to a host"),
                ));
            }
            let gates: Vec<&str> = old["spec"]["schedulingGates"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|gate| crate::json::text(gate, "/name"))
                .collect();
            if !gates.is_empty() {
                return Err(Status::conflict(
                    "",
                    "pods/binding",
                    name,
                    &format!("pod {name} has non-empty .spec.schedulingGates {gates:?}"),
                ));
            }
            let mut object = old.clone();
            for member in ["uid", "resourceVersion"] {
                let given = crate::json::text(&binding["metadata"], &format!("/{member}"));
                if !given.is_empty() {
                    crate::json::set_metadata(&mut object, member, json!(given));
                }
            }
            object["spec"]["nodeName"] = json!(node);
            for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
                object["metadata"]["annotations"][key] = value.clone();
            }
            set_condition(
                &mut object,
                json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}),
            );
            Ok(Change { object, applied: None, warnings: Vec::new() })
        })
        .await?;
    Ok(success())
}

fn set_condition(object: &mut Value, condition: Value) {
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    if let Some(conditions) = object["status"]["conditions"].as_array_mut() {
        conditions.retain(|other| other["type"] != condition["type"]);
        conditions.push(condition);
    }
}

async fn evict(
    server: &ApiServer,
    ctx: &RequestContext,
    kind: &Kind,
    path: &ResourcePath,
    eviction: &Value,
    o: &WriteOptions,
) -> Result<Written, Status> {
    let main = ResourcePath { subresource: None, ..path.clone() };
    let pod = server.present(kind, &main)?;
    let ended = matches!(crate::json::text(&pod.to_value(), "/status/phase"), "Succeeded" | "Failed" | "Pending");
    let prefix = format!("{}/", pod.namespace());
    for budget in server.cache_of("policy", "poddisruptionbudgets").all(&prefix).into_iter().filter(|_| !ended) {
        let budget = budget.to_value();
        let selector = LabelSelector::from_structured(&budget["spec"]["selector"]).map_err(Status::internal)?;
        if budget["spec"]["selector"].is_object()
            && selector.matches(&pod.meta.labels)
            && budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) <= 0
        {
            let mut status =
                Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 10);
            let name = crate::json::text(&budget, "/metadata/name");
            status.details.causes.push(Cause {
                reason: "DisruptionBudget".into(),
                message: format!("The disruption budget {name} does not allow a disruption now"),
                field: String::new(),
            });
            return Err(status);
        }
    }
    let options = &eviction["deleteOptions"];
    let text = |pointer: &str| options.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let options = DeleteOptions {
        grace_period_seconds: options["gracePeriodSeconds"].as_i64(),
        preconditions: Preconditions {
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
        },
        propagation: None,
        dry_run: o.dry_run,
    };
    server.delete_object(ctx, &main, &options).await?;
    Ok(success())
}

fn token(server: &ApiServer, kind: &Kind, path: &ResourcePath, mut request: Value) -> Result<Written, Status> {
    let main = ResourcePath { subresource: None, ..path.clone() };
    let account = server.present(kind, &main)?;
    let tree = account.to_value();
    let (least, default, most) = TOKEN_SECONDS;
    let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(default);
    if !(least..=most).contains(&seconds) {
        let cause = Cause::invalid(
            "spec.expirationSeconds",
            &json!(seconds),
            "may not specify a duration less than 10 minutes",
        );
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", account.name(), vec![cause]));
    }
    let mut bound = Vec::new();
    let reference = request["spec"]["boundObjectRef"].clone();
    if reference.is_object() {
        let name = crate::json::text(&reference, "/name").to_owned();
        let (member, plural, place) = match crate::json::text(&reference, "/kind") {
            "Pod" => ("pod", "pods", keys::relative(account.namespace(), &name)),
            "Secret" => ("secret", "secrets", keys::relative(account.namespace(), &name)),
            "Node" => ("node", "nodes", name.clone()),
            other => {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount to object of type {other:?}"
                )));
            }
        };
        let object =
            server.cache_of("", plural).get(&place).ok_or_else(|| Status::not_found("", plural, &name))?.to_value();
        let uid = crate::json::text(&object, "/metadata/uid").to_owned();
        let wanted = crate::json::text(&reference, "/uid");
        if !wanted.is_empty() && wanted != uid {
            return Err(Status::conflict(
                "",
                "serviceaccounts/token",
                account.name(),
                &format!(
                    "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
                ),
            ));
        }
        if member == "pod" && object["spec"]["serviceAccountName"] != account.name() {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                account.name()
            )));
        }
        bound.push((member, name, uid));
    }
    let now = (server.options.now)();
    let token = TokenRequest {
        namespace: account.namespace(),
        name: account.name(),
        uid: crate::json::text(&tree, "/metadata/uid"),
        bound,
        audiences: crate::json::strings(&request, "/spec/audiences"),
        seconds,
    };
    let text = server.authenticator.issue(&token, now)?;
    let ends = now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
    request["apiVersion"] = json!("authentication.k8s.io/v1");
    request["kind"] = json!("TokenRequest");
    request["metadata"] =
        json!({"name": account.name(), "namespace": account.namespace(), "creationTimestamp": crate::write::time(now)});
    request["spec"]["expirationSeconds"] = json!(seconds);
    request["status"] = json!({"token": text, "expirationTimestamp": crate::write::time(ends)});
    Ok(answer(&request))
}
