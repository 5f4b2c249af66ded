//! Rules of pods and pod templates that users run into. `Source:` pkg/apis/core/validation of Kubernetes 1.36. Pure.

use std::collections::HashSet;

use apiserver::Cause;
use serde_json::Value;

use super::fields::{check_label, check_not_negative, check_port, check_word, items, quantity_milli, text};

const QUANTITY_RULE: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const IMMUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks a Pod.
pub(super) fn pod(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &new["spec"];
    pod_spec(spec, "spec", &mut causes);
    let annotations = |object: &Value| object["metadata"]["annotations"].clone();
    let before = old.map(annotations);
    super::nuee_network::check_port_label("metadata.annotations", &annotations(new), before.as_ref(), &mut causes);
    if let Some(old) = old
        && frozen(spec) != frozen(&old["spec"])
    {
        causes.push(Cause::forbidden("spec", IMMUTABLE));
    }
    causes
}

/// The part of a pod's spec that never changes.
fn frozen(spec: &Value) -> Value {
    let mut spec = spec.clone();
    for field in ["containers", "initContainers"] {
        for container in super::fields::items_mut(&mut spec, field) {
            if let Some(map) = container.as_object_mut() {
                map.remove("image");
                // Changed through the `resize` subresource.
                map.remove("resources");
            }
        }
    }
    if let Some(map) = spec.as_object_mut() {
        // The first is set by binding; the others may change by Kubernetes' rules.
        for field in [
            "nodeName",
            "activeDeadlineSeconds",
            "tolerations",
            "terminationGracePeriodSeconds",
            "ephemeralContainers",
            "schedulingGates",
        ] {
            map.remove(field);
        }
    }
    spec
}

/// Checks a `PodSpec` at `path`.
pub(super) fn pod_spec(spec: &Value, path: &str, causes: &mut Vec<Cause>) {
    let mut volumes = HashSet::new();
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        let at = format!("{path}.volumes[{index}].name");
        let name = text(volume, "/name");
        check_label(&at, name, causes);
        if !name.is_empty() && !volumes.insert(name) {
            causes.push(Cause::duplicate(&at, &name.into()));
        }
    }
    if items(spec, "containers").is_empty() {
        causes.push(Cause::required(&format!("{path}.containers"), ""));
    }
    let mut names = HashSet::new();
    for field in ["initContainers", "containers"] {
        for (index, one) in items(spec, field).iter().enumerate() {
            let at = format!("{path}.{field}[{index}]");
            container(one, &at, &volumes, causes);
            let name = text(one, "/name");
            if !name.is_empty() && !names.insert(name) {
                causes.push(Cause::duplicate(&format!("{at}.name"), &name.into()));
            }
        }
    }
    let words: [(&str, &[&str]); 2] = [
        ("restartPolicy", &["Always", "OnFailure", "Never"]),
        ("dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]),
    ];
    for (field, allowed) in words {
        check_word(&format!("{path}.{field}"), spec.get(field), allowed, causes);
    }
    check_not_negative(
        &format!("{path}.terminationGracePeriodSeconds"),
        spec.get("terminationGracePeriodSeconds"),
        causes,
    );
    tolerations(spec, path, causes);
}

fn tolerations(spec: &Value, path: &str, causes: &mut Vec<Cause>) {
    for (index, one) in items(spec, "tolerations").iter().enumerate() {
        let at = format!("{path}.tolerations[{index}]");
        check_word(&format!("{at}.operator"), one.get("operator"), &["", "Equal", "Exists"], causes);
        check_word(
            &format!("{at}.effect"),
            one.get("effect"),
            &["", "NoSchedule", "PreferNoSchedule", "NoExecute"],
            causes,
        );
        if text(one, "/key").is_empty() && text(one, "/operator") != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            causes.push(Cause::invalid(&format!("{at}.operator"), &text(one, "/operator").into(), detail));
        }
        if text(one, "/operator") == "Exists" && !text(one, "/value").is_empty() {
            let detail = "value must be empty when `operator` is 'Exists'";
            causes.push(Cause::invalid(&format!("{at}.operator"), &text(one, "/value").into(), detail));
        }
    }
}

fn container(container: &Value, at: &str, volumes: &HashSet<&str>, causes: &mut Vec<Cause>) {
    check_label(&format!("{at}.name"), text(container, "/name"), causes);
    let image = text(container, "/image");
    if image.is_empty() {
        causes.push(Cause::required(&format!("{at}.image"), ""));
    } else if image.trim() != image {
        causes.push(Cause::invalid(
            &format!("{at}.image"),
            &image.into(),
            "must not have leading or trailing whitespace",
        ));
    }
    check_word(
        &format!("{at}.imagePullPolicy"),
        container.get("imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
        causes,
    );
    for (index, port) in items(container, "ports").iter().enumerate() {
        let at = format!("{at}.ports[{index}]");
        if port.get("containerPort").is_none_or(|port| port == 0) {
            causes.push(Cause::required(&format!("{at}.containerPort"), ""));
        } else {
            check_port(&format!("{at}.containerPort"), &port["containerPort"], causes);
        }
        if let Some(host) = port.get("hostPort").filter(|port| **port != 0) {
            check_port(&format!("{at}.hostPort"), host, causes);
        }
        check_word(&format!("{at}.protocol"), port.get("protocol"), &["SCTP", "TCP", "UDP"], causes);
    }
    for (index, variable) in items(container, "env").iter().enumerate() {
        let at = format!("{at}.env[{index}]");
        let name = text(variable, "/name");
        if name.is_empty() {
            causes.push(Cause::required(&format!("{at}.name"), ""));
        } else if name.contains('=') || name.chars().any(|one| !(' '..='~').contains(&one)) {
            let detail =
                "a valid environment variable name must consist only of printable ASCII characters other than '='";
            causes.push(Cause::invalid(&format!("{at}.name"), &name.into(), detail));
        }
        if !text(variable, "/value").is_empty() && variable.get("valueFrom").is_some_and(|from| !from.is_null()) {
            causes.push(Cause::invalid(
                &format!("{at}.valueFrom"),
                &"".into(),
                "may not be specified when `value` is not empty",
            ));
        }
    }
    mounts(container, at, volumes, causes);
    resources(container, at, causes);
}

fn mounts(container: &Value, at: &str, volumes: &HashSet<&str>, causes: &mut Vec<Cause>) {
    let mut paths = HashSet::new();
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        let at = format!("{at}.volumeMounts[{index}]");
        let (name, path) = (text(mount, "/name"), text(mount, "/mountPath"));
        if name.is_empty() {
            causes.push(Cause::required(&format!("{at}.name"), ""));
        } else if !volumes.contains(name) {
            let message = format!("Not found: {}", Value::from(name));
            causes.push(Cause { reason: "FieldValueNotFound".into(), message, field: format!("{at}.name") });
        }
        if path.is_empty() {
            causes.push(Cause::required(&format!("{at}.mountPath"), ""));
        } else if !paths.insert(path) {
            causes.push(Cause::invalid(&format!("{at}.mountPath"), &path.into(), "must be unique"));
        }
        let sub_path = text(mount, "/subPath");
        if sub_path.starts_with('/') {
            causes.push(Cause::invalid(&format!("{at}.subPath"), &sub_path.into(), "must be a relative path"));
        }
        if sub_path.split('/').any(|part| part == "..") {
            causes.push(Cause::invalid(&format!("{at}.subPath"), &sub_path.into(), "must not contain '..'"));
        }
    }
}

fn resources(container: &Value, at: &str, causes: &mut Vec<Cause>) {
    for kind in ["limits", "requests"] {
        let given = container.pointer(&format!("/resources/{kind}"));
        check_quantities(&format!("{at}.resources.{kind}"), given, causes);
    }
    let requests = container.pointer("/resources/requests").and_then(Value::as_object);
    for (name, request) in requests.into_iter().flatten() {
        let limit = container.pointer("/resources/limits").and_then(|limits| limits.get(name));
        if let (Some(limit), Some(asked)) = (limit, quantity_milli(request))
            && quantity_milli(limit).is_some_and(|bound| asked > bound)
        {
            let shown = limit.as_str().map_or_else(|| limit.to_string(), str::to_owned);
            let detail = format!("must be less than or equal to {name} limit of {shown}");
            causes.push(Cause::invalid(&format!("{at}.resources.requests"), request, &detail));
        }
    }
}

/// Checks that all values of a map are quantities and not negative.
pub(super) fn check_quantities(path: &str, map: Option<&Value>, causes: &mut Vec<Cause>) {
    for (name, value) in map.and_then(Value::as_object).into_iter().flatten() {
        let at = format!("{path}[{name}]");
        match quantity_milli(value) {
            None => causes.push(Cause::invalid(&at, value, QUANTITY_RULE)),
            Some(milli) if milli < 0 => causes.push(Cause::invalid(&at, value, "must be greater than or equal to 0")),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: Value, expected: &[(&str, &str)]) {
        let mut causes = Vec::new();
        pod_spec(&spec, "spec", &mut causes);
        let found: Vec<(&str, &str)> =
            causes.iter().map(|cause| (cause.field.as_str(), cause.reason.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_users_get_wrong_is_named_by_field() {
        check(json!({}), &[("spec.containers", "FieldValueRequired")]);
        check(json!({"containers": [{"name": "a"}]}), &[("spec.containers[0].image", "FieldValueRequired")]);
        check(
            json!({"containers": [{"name": "A_b", "image": "x"}]}),
            &[("spec.containers[0].name", "FieldValueInvalid")],
        );
        check(
            json!({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]}),
            &[("spec.containers[1].name", "FieldValueDuplicate")],
        );
        check(
            json!({"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 70000}], "volumeMounts": [{"name": "v", "mountPath": "/x"}]}]}),
            &[
                ("spec.containers[0].ports[0].containerPort", "FieldValueInvalid"),
                ("spec.containers[0].volumeMounts[0].name", "FieldValueNotFound"),
            ],
        );
        check(
            json!({"restartPolicy": "Sometimes", "containers": [{"name": "a", "image": "x", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1", "memory": "lots"}}}]}),
            &[
                ("spec.containers[0].resources.limits[memory]", "FieldValueInvalid"),
                ("spec.containers[0].resources.requests", "FieldValueInvalid"),
                ("spec.restartPolicy", "FieldValueNotSupported"),
            ],
        );
    }

    #[test]
    fn a_running_pod_changes_its_image_but_not_its_command() {
        let old = json!({"spec": {"containers": [{"name": "a", "image": "x"}]}});
        let image = json!({"spec": {"containers": [{"name": "a", "image": "y"}], "nodeName": "n"}});
        let command = json!({"spec": {"containers": [{"name": "a", "image": "x", "command": ["z"]}]}});
        assert!(pod(&image, Some(&old)).is_empty());
        assert_eq!(pod(&command, Some(&old))[0].field, "spec");
    }
}
