//! Kinds that are answered and not stored: access reviews, rules reviews, token reviews.

use serde_json::{Value, json};

use crate::authorization::Rule;
use crate::kind::Kind;
use crate::options::Written;
use crate::server::ApiServer;
use crate::status::Status;
use crate::subresource::answer as unstored;
use crate::user::{Attributes, RequestContext, UserInfo};
use crate::write::Decoded;

/// Answers a review.
pub(crate) fn answer(
    server: &ApiServer,
    ctx: &RequestContext,
    kind: &Kind,
    namespace: Option<&str>,
    decoded: Decoded,
) -> Result<Written, Status> {
    let mut review = decoded.value;
    // Who may ask within one namespace learns nothing about another.
    let asked = crate::json::text(&review, "/spec/resourceAttributes/namespace");
    if let Some(namespace) = namespace.filter(|own| kind.namespaced && *own != asked) {
        return Err(Status::bad_request(format!(
            "spec.resourceAttributes.namespace must match namespace: {namespace}"
        )));
    }
    match kind.kind.as_str() {
        "SelfSubjectAccessReview" => review["status"] = access(server, &ctx.user, &review["spec"]),
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let user = UserInfo {
                name: crate::json::text(&review, "/spec/user").to_owned(),
                uid: crate::json::text(&review, "/spec/uid").to_owned(),
                groups: crate::json::strings(&review, "/spec/groups"),
                ..UserInfo::default()
            };
            review["status"] = access(server, &user, &review["spec"]);
        }
        "SelfSubjectRulesReview" => {
            review["status"] = rules(server, &ctx.user, crate::json::text(&review, "/spec/namespace"))
        }
        "SelfSubjectReview" => review["status"] = json!({"userInfo": user_json(&ctx.user)}),
        "TokenReview" => review["status"] = token(server, &review["spec"]),
        _ => return Err(Status::method_not_allowed(&kind.group, &kind.plural, "create")),
    }
    let mut written = unstored(&review);
    written.warnings = decoded.warnings;
    Ok(written)
}

fn access(server: &ApiServer, user: &UserInfo, spec: &Value) -> Value {
    let resource = &spec["resourceAttributes"];
    let text = |member: &str| resource[member].as_str().unwrap_or_default().to_owned();
    let attributes = if resource.is_object() {
        Attributes {
            verb: text("verb"),
            group: text("group"),
            version: text("version"),
            resource: text("resource"),
            subresource: text("subresource"),
            namespace: text("namespace"),
            name: text("name"),
            field_selector: crate::json::text(resource, "/fieldSelector/rawSelector").to_owned(),
            non_resource_path: None,
        }
    } else {
        Attributes {
            verb: crate::json::text(spec, "/nonResourceAttributes/verb").to_owned(),
            non_resource_path: Some(crate::json::text(spec, "/nonResourceAttributes/path").to_owned()),
            ..Attributes::default()
        }
    };
    let decision = server.authorize(user, &attributes);
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = json!(decision.reason);
    }
    status
}

fn rules(server: &ApiServer, user: &UserInfo, namespace: &str) -> Value {
    let all = server.rbac.rules(&server.caches, user, namespace);
    let (paths, resources): (Vec<Rule>, Vec<Rule>) = all.into_iter().partition(|rule| !rule.paths.is_empty());
    let resources: Vec<Value> = resources
        .into_iter()
        .map(|rule| {
            let mut value = json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if !rule.names.is_empty() {
                value["resourceNames"] = json!(rule.names);
            }
            value
        })
        .collect();
    let paths: Vec<Value> =
        paths.into_iter().map(|rule| json!({"verbs": rule.verbs, "nonResourceURLs": rule.paths})).collect();
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}

fn user_json(user: &UserInfo) -> Value {
    let mut value = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        value["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

fn token(server: &ApiServer, spec: &Value) -> Value {
    let wanted = crate::json::strings(spec, "/audiences");
    match server.authenticator.authenticate(crate::json::text(spec, "/token"), &server.caches, (server.options.now)()) {
        Ok(known) => {
            let audiences: Vec<String> = if wanted.is_empty() {
                known.audiences
            } else {
                known.audiences.into_iter().filter(|audience| wanted.contains(audience)).collect()
            };
            if audiences.is_empty() {
                return json!({"authenticated": false, "error": "the token is for another audience"});
            }
            json!({"authenticated": true, "user": user_json(&known.user), "audiences": audiences})
        }
        Err(_) => json!({"authenticated": false, "error": "invalid bearer token"}),
    }
}
