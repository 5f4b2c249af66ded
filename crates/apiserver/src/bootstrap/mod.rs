//! Default objects: namespaces, priority classes, and the roles and bindings that the cluster's own parts need. What is
//! there already stays as it is; roles of this list get rules that they lack.

mod roles;

use serde_json::{Value, json};

use crate::authorization::RBAC_GROUP;
use crate::options::WriteOptions;
use crate::path::ResourcePath;
use crate::server::{ApiServer, Error};
use crate::status::Reason;
use crate::user::RequestContext;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
const PRIORITY_CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// Creates what is missing.
pub(crate) async fn run(server: &ApiServer) -> Result<(), Error> {
    let core = |plural: &str| ResourcePath::collection("", "v1", plural, None);
    for name in NAMESPACES {
        ensure(server, &core("namespaces"), json!({"metadata": {"name": name}})).await?;
    }
    for name in NAMESPACES {
        default_account(server, name).await?;
    }
    for (name, value) in PRIORITY_CLASSES {
        let path = ResourcePath::collection("scheduling.k8s.io", "v1", "priorityclasses", None);
        ensure(
            server,
            &path,
            json!({"metadata": {"name": name}, "value": value, "description": "Used for system critical pods."}),
        )
        .await?;
    }
    let rbac = |plural: &str| ResourcePath::collection(RBAC_GROUP, "v1", plural, None);
    for role in roles::roles() {
        let present = server.cache_of(RBAC_GROUP, "clusterroles").get(crate::json::text(&role, "/metadata/name"));
        match present {
            Some(present) => refresh_role(server, &rbac("clusterroles"), &present.to_value(), &role).await?,
            None => ensure(server, &rbac("clusterroles"), role).await?,
        }
    }
    for binding in roles::bindings() {
        ensure(server, &rbac("clusterrolebindings"), binding).await?;
    }
    Ok(())
}

/// Every namespace has a service account `default`.
pub(crate) async fn default_account(server: &ApiServer, namespace: &str) -> Result<(), Error> {
    let path = ResourcePath::collection("", "v1", "serviceaccounts", Some(namespace));
    ensure(server, &path, json!({"metadata": {"name": "default"}})).await
}

async fn ensure(server: &ApiServer, path: &ResourcePath, object: Value) -> Result<(), Error> {
    // A server that does not serve the kind (some tests) has no need for its defaults.
    let Ok(kind) = server.kind(path) else { return Ok(()) };
    let name = crate::json::text(&object, "/metadata/name");
    let relative = crate::keys::relative(path.namespace.as_deref().unwrap_or_default(), name);
    if server.cache(&kind).get(&relative).is_some() {
        return Ok(());
    }
    let ctx = RequestContext::internal("system:apiserver");
    match Box::pin(server.create_object(&ctx, path, object.into(), &WriteOptions::default())).await {
        Err(status) if status.reason != Reason::AlreadyExists => Err(status.into()),
        _ => Ok(()),
    }
}

async fn refresh_role(server: &ApiServer, path: &ResourcePath, present: &Value, wanted: &Value) -> Result<(), Error> {
    let lacks = |rule: &&Value| !present["rules"].as_array().is_some_and(|own| own.contains(rule));
    let missing: Vec<Value> = wanted["rules"].as_array().into_iter().flatten().filter(lacks).cloned().collect();
    let automatic = present["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] != "false";
    if missing.is_empty() || !automatic {
        return Ok(());
    }
    let mut role = present.clone();
    let mut rules = role["rules"].as_array().cloned().unwrap_or_default();
    rules.extend(missing);
    role["rules"] = Value::Array(rules);
    let ctx = RequestContext::internal("system:apiserver");
    let path = path.object(crate::json::text(wanted, "/metadata/name"));
    Box::pin(server.update_object(&ctx, &path, role.into(), &WriteOptions::default())).await?;
    Ok(())
}
