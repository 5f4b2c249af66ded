//! Group `rbac.authorization.k8s.io`: roles and bindings.

use apiserver::{Cause, Kind};
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1 as api;
use serde_json::Value;

use super::columns::{age, column, created_at, wide};
use super::fields::{check_word, default, items, items_mut, object_mut, text};
use super::{Registration, register};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn kinds() -> Vec<Registration> {
    vec![
        register::<api::Role>("roles", role),
        register::<api::RoleBinding>("rolebindings", binding),
        register::<api::ClusterRole>("clusterroles", |kind| {
            role(kind);
            kind.namespaced = false;
        }),
        register::<api::ClusterRoleBinding>("clusterrolebindings", |kind| {
            binding(kind);
            kind.namespaced = false;
        }),
    ]
}

fn role(kind: &mut Kind) {
    kind.columns = vec![created_at()];
    kind.default = |object| default(object, "rules", Value::Array(Vec::new()));
    kind.validate = |new, _| {
        let mut causes = Vec::new();
        let namespaced = text(new, "/kind") == "Role";
        for (index, rule) in items(new, "rules").iter().enumerate() {
            check_rule(rule, &format!("rules[{index}]"), namespaced, &mut causes);
        }
        causes
    };
}

fn check_rule(rule: &Value, at: &str, namespaced: bool, causes: &mut Vec<Cause>) {
    if items(rule, "verbs").is_empty() {
        causes.push(Cause::required(&format!("{at}.verbs"), "verbs must contain at least one value"));
    }
    if !items(rule, "nonResourceURLs").is_empty() {
        if namespaced {
            let detail = "namespaced rules cannot apply to non-resource URLs";
            causes.push(Cause::invalid(&format!("{at}.nonResourceURLs"), &rule["nonResourceURLs"], detail));
        }
        return;
    }
    if items(rule, "apiGroups").is_empty() {
        causes.push(Cause::required(&format!("{at}.apiGroups"), "resource rules must supply at least one api group"));
    }
    if items(rule, "resources").is_empty() {
        causes.push(Cause::required(&format!("{at}.resources"), "resource rules must supply at least one resource"));
    }
}

fn binding(kind: &mut Kind) {
    kind.columns = vec![
        column("Role", "string", |object, _| {
            format!("{}/{}", text(object, "/roleRef/kind"), text(object, "/roleRef/name")).into()
        }),
        age(),
        wide(column("Users", "string", |object, now| subjects(object, "User", now))),
        wide(column("Groups", "string", |object, now| subjects(object, "Group", now))),
        wide(column("ServiceAccounts", "string", |object, now| subjects(object, "ServiceAccount", now))),
    ];
    kind.default = |object| {
        if let Some(role) = object_mut(object, "roleRef") {
            default(role, "apiGroup", GROUP);
        }
        for subject in items_mut(object, "subjects") {
            let group = if subject["kind"] == "ServiceAccount" { "" } else { GROUP };
            if !group.is_empty() {
                default(subject, "apiGroup", group);
            }
        }
    };
    kind.validate = |new, old| {
        let mut causes = Vec::new();
        if text(new, "/roleRef/name").is_empty() {
            causes.push(Cause::required("roleRef.name", ""));
        }
        let kinds: &[&str] =
            if text(new, "/kind") == "RoleBinding" { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
        check_word("roleRef.kind", new.pointer("/roleRef/kind"), kinds, &mut causes);
        for (index, subject) in items(new, "subjects").iter().enumerate() {
            let at = format!("subjects[{index}]");
            check_word(&format!("{at}.kind"), subject.get("kind"), &["Group", "ServiceAccount", "User"], &mut causes);
            if text(subject, "/name").is_empty() {
                causes.push(Cause::required(&format!("{at}.name"), ""));
            }
            if text(subject, "/kind") == "ServiceAccount" && text(subject, "/namespace").is_empty() {
                causes.push(Cause::required(&format!("{at}.namespace"), ""));
            }
        }
        if let Some(old) = old.filter(|old| old["roleRef"] != new["roleRef"]) {
            let _ = old;
            causes.push(Cause::invalid("roleRef", &new["roleRef"], "cannot change roleRef"));
        }
        causes
    };
}

fn subjects(object: &Value, kind: &str, _: Timestamp) -> Value {
    let names: Vec<String> = items(object, "subjects")
        .iter()
        .filter(|subject| subject["kind"] == kind)
        .map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", text(subject, "/namespace"), text(subject, "/name")),
            _ => text(subject, "/name").to_owned(),
        })
        .collect();
    names.join(", ").into()
}
