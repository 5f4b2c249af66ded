//! Rules that Deployments and ReplicaSets share: selectors that match their template, replicas, templates. Pure.

use apiserver::Cause;
use serde_json::Value;

use super::fields::{check_immutable, check_not_negative, items, text};
use super::pod_validation::pod_spec;

/// Checks a workload with `replicas`, `selector` and `template`.
pub(super) fn workload(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &new["spec"];
    check_not_negative("spec.replicas", spec.get("replicas"), &mut causes);
    check_not_negative("spec.minReadySeconds", spec.get("minReadySeconds"), &mut causes);
    match spec.get("selector").filter(|selector| !selector.is_null()) {
        None => causes.push(Cause::required("spec.selector", "")),
        Some(selector) if is_empty(selector) => {
            causes.push(Cause::invalid("spec.selector", selector, "empty selector is invalid for deployment"));
        }
        Some(selector) => {
            let labels = spec.pointer("/template/metadata/labels").unwrap_or(&Value::Null);
            if !matches(selector, labels) {
                let detail = "`selector` does not match template `labels`";
                causes.push(Cause::invalid("spec.template.metadata.labels", labels, detail));
            }
        }
    }
    let template = &spec["template"]["spec"];
    pod_spec(template, "spec.template.spec", &mut causes);
    let policy = text(template, "/restartPolicy");
    if matches!(policy, "OnFailure" | "Never") {
        causes.push(Cause::not_supported("spec.template.spec.restartPolicy", &policy.into(), &["Always"]));
    }
    if let Some(old) = old {
        check_immutable("spec.selector", spec.get("selector"), old["spec"].get("selector"), &mut causes);
    }
    causes
}

fn is_empty(selector: &Value) -> bool {
    let labels = selector.get("matchLabels").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty);
    labels && items(selector, "matchExpressions").is_empty()
}

fn matches(selector: &Value, labels: &Value) -> bool {
    let exact = selector
        .get("matchLabels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    exact
        && items(selector, "matchExpressions").iter().all(|expression| {
            let label = labels.get(text(expression, "/key"));
            let among = || label.is_some_and(|label| items(expression, "values").contains(label));
            match text(expression, "/operator") {
                "In" => among(),
                "NotIn" => !among(),
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                _ => false,
            }
        })
}

/// Checks the rolling update of a Deployment, on top of [`workload`].
pub(super) fn deployment(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = workload(new, old);
    let strategy = &new["spec"]["strategy"];
    super::fields::check_word("spec.strategy.type", strategy.get("type"), &["Recreate", "RollingUpdate"], &mut causes);
    let rolling = strategy.get("rollingUpdate").filter(|rolling| !rolling.is_null());
    if text(strategy, "/type") == "Recreate" && rolling.is_some() {
        causes.push(Cause::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ));
    }
    if let Some(rolling) = rolling {
        let zero = |field: &str| rolling.get(field).is_some_and(|value| *value == 0 || *value == "0" || *value == "0%");
        if zero("maxUnavailable") && zero("maxSurge") {
            let detail = "may not be 0 when `maxSurge` is 0";
            causes.push(Cause::invalid(
                "spec.strategy.rollingUpdate.maxUnavailable",
                &rolling["maxUnavailable"],
                detail,
            ));
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_must_match_the_template_and_stay() {
        let make = |selector: Value, label: &str| json!({"spec": {"selector": selector, "template": {"metadata": {"labels": {"app": label}}, "spec": {"containers": [{"name": "a", "image": "b"}]}}}});
        let good = make(json!({"matchLabels": {"app": "x"}}), "x");
        assert!(workload(&good, None).is_empty());
        let fields = |object: &Value, old: Option<&Value>| {
            workload(object, old).into_iter().map(|one| one.field).collect::<Vec<_>>()
        };
        assert_eq!(fields(&make(json!({"matchLabels": {"app": "x"}}), "y"), None), ["spec.template.metadata.labels"]);
        assert_eq!(fields(&make(json!({}), "y"), None), ["spec.selector"]);
        assert_eq!(fields(&make(json!({"matchLabels": {"app": "y"}}), "y"), Some(&good)), ["spec.selector"]);
    }
}
