//! Defaults of pods and pod templates. `Source:` pkg/apis/core/v1/defaults.go of Kubernetes 1.36. Pure.

use serde_json::{Value, json};

use super::fields::{default, items, items_mut, object_mut, quantity_milli, text};

/// Seconds that a pod gets to end.
const GRACE_SECONDS: i64 = 30;

/// Fills in a `PodSpec`.
pub(super) fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    default(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", GRACE_SECONDS);
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "securityContext", json!({}));
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "enableServiceLinks", true);
    // `serviceAccount` is the deprecated twin of `serviceAccountName`; Kubernetes shows both.
    let account = text(spec, "/serviceAccountName").to_owned();
    let account = if account.is_empty() { text(spec, "/serviceAccount").to_owned() } else { account };
    if !account.is_empty() {
        spec["serviceAccountName"] = account.as_str().into();
        spec["serviceAccount"] = account.into();
    }
    let host_network = spec["hostNetwork"] == true;
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        for one in items_mut(spec, field) {
            container(one, host_network);
        }
    }
    items_mut(spec, "volumes").for_each(volume);
    for constraint in items_mut(spec, "topologySpreadConstraints") {
        default(constraint, "whenUnsatisfiable", "DoNotSchedule");
    }
}

fn container(container: &mut Value, host_network: bool) {
    if !container.is_object() {
        return;
    }
    default(container, "resources", json!({}));
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    let policy = if is_latest(text(container, "/image")) { "Always" } else { "IfNotPresent" };
    default(container, "imagePullPolicy", policy);
    for port in items_mut(container, "ports") {
        default(port, "protocol", "TCP");
        if host_network {
            let number = port["containerPort"].clone();
            default(port, "hostPort", number);
        }
    }
    for probe_name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe_name).filter(|probe| probe.is_object()) {
            self::probe(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(action) = container.pointer_mut(&format!("/lifecycle/{hook}/httpGet")) {
            http_get(action);
        }
    }
    for variable in items_mut(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            default(field, "apiVersion", "v1");
        }
    }
    // A limit without a request is a request of the same size.
    let limits = container.pointer("/resources/limits").and_then(Value::as_object).cloned();
    if let (Some(limits), Some(resources)) = (limits, container.get_mut("resources"))
        && let Some(requests) = object_mut(resources, "requests")
    {
        for (name, value) in limits {
            default(requests, &name, value);
        }
    }
}

/// Whether an image reference means the tag `latest`: by name, or by naming neither tag nor digest.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn probe(probe: &mut Value) {
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        default(probe, field, value);
    }
    if let Some(action) = probe.get_mut("httpGet") {
        http_get(action);
    }
    if let Some(action) = probe.get_mut("grpc") {
        default(action, "service", "");
    }
}

fn http_get(action: &mut Value) {
    default(action, "path", "/");
    default(action, "scheme", "HTTP");
}

/// Octal 0644, the mode of projected files.
const FILE_MODE: i64 = 0o644;
/// Life of a projected service account token.
const TOKEN_SECONDS: i64 = 3600;

fn volume(volume: &mut Value) {
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source) {
            default(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(host_path) = volume.get_mut("hostPath") {
        default(host_path, "type", "");
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items_mut(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken") {
                default(token, "expirationSeconds", TOKEN_SECONDS);
            }
        }
    }
    let named = volume.as_object().is_some_and(|map| map.len() > 1);
    if !named {
        default(volume, "emptyDir", json!({}));
    }
}

/// The quality of service class that follows from requests and limits.
pub(super) fn quality_of_service(spec: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for field in ["containers", "initContainers"] {
        for container in items(spec, field) {
            for resource in ["cpu", "memory"] {
                let read = |kind: &str| {
                    container
                        .pointer(&format!("/resources/{kind}/{resource}"))
                        .and_then(quantity_milli)
                        .filter(|milli| *milli > 0)
                };
                let (request, limit) = (read("requests"), read("limits"));
                any |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && request == limit;
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_pod_gets_kubernetes_defaults() {
        let mut spec = json!({"containers": [{"name": "a", "image": "web", "ports": [{"containerPort": 80}]}]});
        pod_spec(&mut spec);
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["dnsPolicy"], "ClusterFirst");
        assert_eq!(spec["terminationGracePeriodSeconds"], 30);
        assert_eq!(spec["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(spec["containers"][0]["ports"][0]["protocol"], "TCP");
        let once = spec.clone();
        pod_spec(&mut spec);
        assert_eq!(once, spec, "defaulting twice changes nothing");
    }

    #[test]
    fn only_latest_is_pulled_always() {
        for (image, latest) in [
            ("a", true),
            ("a:latest", true),
            ("host:5000/a", true),
            ("a:1", false),
            ("a@sha256:0", false),
            ("host:5000/a:1", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let class = |resources: Value| {
            let mut spec = json!({"containers": [{"name": "a", "image": "b", "resources": resources}]});
            pod_spec(&mut spec);
            quality_of_service(&spec)
        };
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
    }
}
