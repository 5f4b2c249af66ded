//! Group `admissionregistration.k8s.io`: admission policies and webhooks.

use apiserver::{Cause, Kind};
use k8s_openapi::api::admissionregistration::v1 as api;
use serde_json::{Value, json};

use super::columns::{age, column, length, path};
use super::fields::{check_word, default, items, items_mut, object_mut, text};
use super::{Registration, register};

/// Seconds that a webhook gets to answer.
const WEBHOOK_SECONDS: i64 = 10;

pub(super) fn kinds() -> Vec<Registration> {
    vec![
        register::<api::ValidatingAdmissionPolicy>("validatingadmissionpolicies", policy),
        register::<api::ValidatingAdmissionPolicyBinding>("validatingadmissionpolicybindings", binding),
        register::<api::ValidatingWebhookConfiguration>("validatingwebhookconfigurations", webhooks),
        register::<api::MutatingWebhookConfiguration>("mutatingwebhookconfigurations", |kind| {
            webhooks(kind);
            kind.default = |object| {
                default_webhooks(object);
                items_mut(object, "webhooks").for_each(|hook| default(hook, "reinvocationPolicy", "Never"));
            };
        }),
    ]
}

fn policy(kind: &mut Kind) {
    kind.namespaced = false;
    kind.status_subresource = true;
    kind.columns = vec![
        column("Validations", "integer", |object, _| length(object.pointer("/spec/validations")).into()),
        column("ParamKind", "string", |object, _| {
            let (version, kind) = (text(object, "/spec/paramKind/apiVersion"), text(object, "/spec/paramKind/kind"));
            if kind.is_empty() { "<unset>".into() } else { format!("{version}/{kind}").into() }
        }),
        age(),
    ];
    kind.default = |object| {
        let Some(spec) = object_mut(object, "spec") else { return };
        default(spec, "failurePolicy", "Fail");
        if let Some(constraints) = object_mut(spec, "matchConstraints") {
            default_matching(constraints);
        }
    };
    kind.validate = |new, _| {
        let mut causes = Vec::new();
        let spec = &new["spec"];
        check_word("spec.failurePolicy", spec.get("failurePolicy"), &["Fail", "Ignore"], &mut causes);
        if items(spec, "validations").is_empty() && items(spec, "auditAnnotations").is_empty() {
            let detail = "validations or auditAnnotations must be non-empty";
            causes.push(Cause::required("spec.validations", detail));
        }
        if items(&spec["matchConstraints"], "resourceRules").is_empty() {
            causes.push(Cause::required("spec.matchConstraints.resourceRules", ""));
        }
        for (index, validation) in items(spec, "validations").iter().enumerate() {
            if text(validation, "/expression").trim().is_empty() {
                causes.push(Cause::required(
                    &format!("spec.validations[{index}].expression"),
                    "expression is not specified",
                ));
            }
        }
        causes
    };
}

fn default_matching(constraints: &mut Value) {
    default(constraints, "matchPolicy", "Equivalent");
    default(constraints, "namespaceSelector", json!({}));
    default(constraints, "objectSelector", json!({}));
    for field in ["resourceRules", "excludeResourceRules"] {
        items_mut(constraints, field).for_each(|rule| default(rule, "scope", "*"));
    }
}

fn binding(kind: &mut Kind) {
    kind.namespaced = false;
    kind.columns = vec![
        path("PolicyName", "string", ".spec.policyName"),
        column("ParamRef", "string", |object, _| {
            let reference = &object["spec"]["paramRef"];
            let name = text(reference, "/name");
            if reference.is_null() {
                "<unset>".into()
            } else if name.is_empty() {
                "*".into()
            } else {
                let namespace = text(reference, "/namespace");
                if namespace.is_empty() { name.into() } else { format!("{namespace}/{name}").into() }
            }
        }),
        age(),
    ];
    kind.default = |object| {
        if let Some(matching) = object.pointer_mut("/spec/matchResources").filter(|matching| matching.is_object()) {
            default_matching(matching);
        }
    };
    kind.validate = |new, _| {
        let mut causes = Vec::new();
        if text(new, "/spec/policyName").is_empty() {
            causes.push(Cause::required("spec.policyName", ""));
        }
        if items(&new["spec"], "validationActions").is_empty() {
            causes.push(Cause::required("spec.validationActions", "at least one validation action is required"));
        }
        for (index, action) in items(&new["spec"], "validationActions").iter().enumerate() {
            check_word(
                &format!("spec.validationActions[{index}]"),
                Some(action),
                &["Audit", "Deny", "Warn"],
                &mut causes,
            );
        }
        causes
    };
}

fn webhooks(kind: &mut Kind) {
    kind.namespaced = false;
    kind.columns = vec![column("Webhooks", "integer", |object, _| length(object.get("webhooks")).into()), age()];
    kind.default = default_webhooks;
    kind.validate = |new, _| {
        let mut causes = Vec::new();
        for (index, hook) in items(new, "webhooks").iter().enumerate() {
            let at = format!("webhooks[{index}]");
            if text(hook, "/name").split('.').filter(|part| !part.is_empty()).count() < 3 {
                let detail = "should be a domain with at least three segments separated by dots";
                causes.push(Cause::invalid(&format!("{at}.name"), &text(hook, "/name").into(), detail));
            }
            check_word(&format!("{at}.failurePolicy"), hook.get("failurePolicy"), &["Fail", "Ignore"], &mut causes);
            check_word(&format!("{at}.sideEffects"), hook.get("sideEffects"), &["None", "NoneOnDryRun"], &mut causes);
            let config = &hook["clientConfig"];
            if config.get("url").is_some_and(|url| !url.is_null())
                == config.get("service").is_some_and(|service| !service.is_null())
            {
                causes
                    .push(Cause::required(&format!("{at}.clientConfig"), "exactly one of url or service is required"));
            }
        }
        causes
    };
}

fn default_webhooks(object: &mut Value) {
    for hook in items_mut(object, "webhooks") {
        default(hook, "failurePolicy", "Fail");
        default(hook, "timeoutSeconds", WEBHOOK_SECONDS);
        default_matching(hook);
        items_mut(hook, "rules").for_each(|rule| default(rule, "scope", "*"));
        if let Some(service) = hook.pointer_mut("/clientConfig/service").filter(|service| service.is_object()) {
            default(service, "port", 443);
        }
    }
}
