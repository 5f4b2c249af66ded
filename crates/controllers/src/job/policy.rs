//! A Job's `podFailurePolicy`: what a failed pod means for the Job. Pure. `Source:` Kubernetes, "Pod failure policy".

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

/// What a failed pod means.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// It counts, as without a policy.
    Count,
    /// It does not count.
    Ignore,
    /// The Job has failed, with what is to be said about it.
    FailJob(String),
}

/// The action of the first rule that matches.
pub fn action(spec: &JobSpec, pod: &Pod) -> Action {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (index, rule) in rules.enumerate() {
        if let Some(what) = matched(rule, pod) {
            return match rule.action.as_str() {
                "Ignore" => Action::Ignore,
                "FailJob" => Action::FailJob(format!("{what} matching FailJob rule at index {index}")),
                _ => Action::Count,
            };
        }
    }
    Action::Count
}

fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let full_name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(codes) = &rule.on_exit_codes {
        let lists = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        return lists
            .filter(|container| codes.container_name.as_ref().is_none_or(|name| *name == container.name))
            .filter_map(|container| Some((&container.name, container.state.as_ref()?.terminated.as_ref()?.exit_code)))
            .find(|(_, code)| *code != 0 && (codes.operator == "In") == codes.values.contains(code))
            .map(|(name, code)| format!("Container {name} for pod {full_name} failed with exit code {code}"));
    }
    let wanted = rule.on_pod_conditions.iter().flatten();
    let present = |wanted: &&k8s_openapi::api::batch::v1::PodFailurePolicyOnPodConditionsPattern| {
        let value = wanted.status.as_deref().unwrap_or("True");
        status.conditions.iter().flatten().any(|one| one.type_ == wanted.type_ && one.status == value)
    };
    wanted.into_iter().find(present).map(|one| format!("Pod {full_name} has condition {}", one.type_))
}
