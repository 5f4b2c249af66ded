//! What a new pod gets from its namespace and the cluster: a service account with a token, and a priority.

use serde_json::{Value, json};

use crate::keys;
use crate::server::ApiServer;
use crate::status::Status;

/// Where containers find the token.
const TOKEN_DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Life of a mounted token; the agent fetches a new one in time. Units: seconds.
const TOKEN_SECONDS: u32 = 3607;

/// Sets the service account, its pull secrets and, when the options say so, the token volume.
pub(super) fn service_account(server: &ApiServer, pod: &mut Value) -> Result<(), Status> {
    let namespace = crate::json::text(pod, "/metadata/namespace").to_owned();
    let pod_name = crate::json::text(pod, "/metadata/name").to_owned();
    if !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
        return Ok(());
    }
    let mut name = crate::json::text(pod, "/spec/serviceAccountName").to_owned();
    if name.is_empty() {
        name = "default".to_owned();
    }
    pod["spec"]["serviceAccountName"] = json!(name);
    pod["spec"]["serviceAccount"] = json!(name);
    if server.kinds.load().lookup("", "v1", "serviceaccounts").is_none() {
        return Ok(());
    }
    let Some(account) = server.cache_of("", "serviceaccounts").get(&keys::relative(&namespace, &name)) else {
        let detail =
            format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
        return Err(Status::forbidden("", "pods", &pod_name, &detail));
    };
    let account = account.to_value();
    if crate::json::is_empty(pod["spec"].get("imagePullSecrets"))
        && !crate::json::is_empty(account.get("imagePullSecrets"))
    {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let mount = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if mount && server.options.mount_service_account_tokens {
        mount_token(pod);
    }
    Ok(())
}

fn mount_token(pod: &mut Value) {
    let mounted = |container: &Value| {
        container["volumeMounts"].as_array().into_iter().flatten().any(|mount| mount["mountPath"] == TOKEN_DIRECTORY)
    };
    let volume = crate::write::generate_name("kube-api-access-");
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if mounted(container) {
                continue;
            }
            let mount = json!({"name": volume, "mountPath": TOKEN_DIRECTORY, "readOnly": true});
            match container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
            used = true;
        }
    }
    if !used {
        return;
    }
    let projected = json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    match pod["spec"].get_mut("volumes").and_then(Value::as_array_mut) {
        Some(volumes) => volumes.push(projected),
        None => pod["spec"]["volumes"] = json!([projected]),
    }
}

/// How long a pod stays on a machine that is not ready or does not answer, when it does not say. Units: seconds. `Source:`
/// Kubernetes, DefaultTolerationSeconds admission.
const PATIENCE_SECONDS: u32 = 300;

/// Gives a pod its patience with machines that fail.
pub(super) fn tolerations(pod: &mut Value) {
    let mut own = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    let covers = |one: &Value, key: &str| {
        let (own_key, effect) = (crate::json::text(one, "/key"), crate::json::text(one, "/effect"));
        (own_key == key || own_key.is_empty()) && matches!(effect, "" | "NoExecute")
    };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        if !own.iter().any(|one| covers(one, key)) {
            own.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": PATIENCE_SECONDS}),
            );
        }
    }
    pod["spec"]["tolerations"] = own.into();
}

/// Resolves the priority class, or the default one.
pub(super) fn priority(server: &ApiServer, pod: &mut Value) -> Result<(), Status> {
    let name = crate::json::text(pod, "/spec/priorityClassName").to_owned();
    let classes = server.cache_of("scheduling.k8s.io", "priorityclasses");
    let class = if name.is_empty() {
        let all = classes.all("").into_iter().map(|class| class.to_value());
        all.filter(|class| class["globalDefault"] == true).min_by_key(|class| class["value"].as_i64())
    } else {
        let Some(class) = classes.get(&name) else {
            let detail = format!("no PriorityClass with name {name} was found");
            return Err(Status::forbidden("", "pods", crate::json::text(pod, "/metadata/name"), &detail));
        };
        Some(class.to_value())
    };
    let value = class.as_ref().and_then(|class| class["value"].as_i64()).unwrap_or(0);
    if pod["spec"]["priority"].as_i64().is_some_and(|own| own != value) {
        let detail = format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            pod["spec"]["priority"]
        );
        return Err(Status::forbidden("", "pods", crate::json::text(pod, "/metadata/name"), &detail));
    }
    pod["spec"]["priority"] = json!(value);
    if let Some(class) = class {
        pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
        if let Some(policy) = class.get("preemptionPolicy") {
            pod["spec"]["preemptionPolicy"] = policy.clone();
        }
    }
    Ok(())
}
