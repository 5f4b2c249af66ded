//! Which writes a policy or a webhook is about: rules, selectors and conditions, common to all of them.

use serde_json::{Value, json};

use super::Request;
use crate::expression::Scope;
use crate::selector::LabelSelector;
use crate::server::ApiServer;
use crate::write::Verb;

/// Group of all admission configuration.
pub(super) const GROUP: &str = "admissionregistration.k8s.io";

/// The version of the kind in which a rule asks for the object.
pub(super) type Version = String;

/// Whether one of the rules covers the request, and in which version. With `matchPolicy: Equivalent` a rule that names
/// another version of the kind covers it, too.
pub(super) fn covered(server: &ApiServer, request: &Request<'_>, rules: &Value, equivalent: bool) -> Option<Version> {
    let rules = rules.as_array()?;
    let kind = request.kind;
    if rules.iter().any(|rule| covers(request, &kind.version, rule)) {
        return Some(kind.version.clone());
    }
    if !equivalent {
        return None;
    }
    let kinds = server.kinds.load();
    let others = kinds.iter().filter(|other| other.is(&kind.group, &kind.plural) && other.version != kind.version);
    let mut others = others.map(|other| other.version.clone());
    others.find(|version| rules.iter().any(|rule| covers(request, version, rule)))
}

fn covers(request: &Request<'_>, version: &str, rule: &Value) -> bool {
    let has =
        |member: &str, wanted: &str| crate::json::strings(rule, member).iter().any(|own| own == "*" || own == wanted);
    let plural = &request.kind.plural;
    let resource = match request.path.subresource.as_deref() {
        None => has("/resources", plural) || crate::json::strings(rule, "/resources").iter().any(|own| own == "*/*"),
        Some(sub) => ["*/*".to_owned(), format!("{plural}/{sub}"), format!("{plural}/*"), format!("*/{sub}")]
            .iter()
            .any(|name| crate::json::strings(rule, "/resources").contains(name)),
    };
    let scope = match crate::json::text(rule, "/scope") {
        "Cluster" => !request.kind.namespaced,
        "Namespaced" => request.kind.namespaced,
        _ => true,
    };
    let names = crate::json::strings(rule, "/resourceNames");
    has("/apiGroups", &request.kind.group)
        && has("/apiVersions", version)
        && has("/operations", request.verb.as_str())
        && resource
        && scope
        && (names.is_empty() || request.path.name.as_ref().is_some_and(|name| names.contains(name)))
}

/// Whether the namespace and the object have the labels that are asked for.
pub(super) fn selected(server: &ApiServer, request: &Request<'_>, object: &Value, resources: &Value) -> bool {
    let accepts = |selector: &Value, labels: Option<&Value>| {
        crate::json::is_empty(Some(selector))
            || LabelSelector::from_structured(selector).is_ok_and(|selector| selector.matches_value(labels))
    };
    let labels_of = |object: &Value| object["metadata"].get("labels").cloned().unwrap_or_else(|| json!({}));
    let namespaces = server.cache_of("", "namespaces");
    let namespace = if request.kind.is("", "namespaces") {
        let shown = if request.verb == Verb::Delete { request.old } else { Some(object) };
        shown.map(labels_of)
    } else {
        let found = request.path.namespace.as_deref().and_then(|namespace| namespaces.get(namespace));
        found.map(|found| labels_of(&found.to_value()))
    };
    let in_namespace = namespace.is_none_or(|labels| accepts(&resources["namespaceSelector"], Some(&labels)));
    let old = request.old.is_some_and(|old| accepts(&resources["objectSelector"], old["metadata"].get("labels")));
    let new = !object.is_null() && accepts(&resources["objectSelector"], object["metadata"].get("labels"));
    in_namespace && (old || new)
}

/// The request as expressions and webhooks see it; the webhook's review adds what only it has.
pub(super) fn describe(request: &Request<'_>, object: &Value) -> Value {
    let (kind, path) = (request.kind, request.path);
    let name = path.name.as_deref().unwrap_or_else(|| crate::json::text(object, "/metadata/name"));
    let user = &request.ctx.user;
    json!({
        "operation": request.verb.as_str(), "name": name, "namespace": path.namespace.as_deref().unwrap_or_default(),
        "kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "resource": {"group": kind.group, "version": kind.version, "resource": kind.plural},
        "subResource": path.subresource.as_deref().unwrap_or_default(), "dryRun": request.dry_run,
        "userInfo": {"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra},
    })
}

/// The variables of conditions and validations.
pub(super) fn scope(server: &ApiServer, request: &Request<'_>, object: &Value, params: Option<&Value>) -> Scope {
    let mut scope = Scope::new();
    scope.set("object", object);
    scope.set("oldObject", request.old.unwrap_or(&Value::Null));
    scope.set("request", &describe(request, object));
    if let Some(params) = params {
        scope.set("params", params);
        let namespace = request.path.namespace.as_deref().unwrap_or_default();
        let namespace = server.cache_of("", "namespaces").get(namespace).map_or(Value::Null, |found| found.to_value());
        scope.set("namespaceObject", &namespace);
    }
    scope
}

/// Whether all conditions hold. One that says no decides, even when another failed. Errors: one failed and none said no.
pub(super) fn conditions(scope: &mut Scope, conditions: &Value) -> Result<bool, String> {
    let mut failed = None;
    for condition in conditions.as_array().into_iter().flatten() {
        match scope.holds(crate::json::text(condition, "/expression")) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(problem) => failed = failed.or(Some(problem.to_string())),
        }
    }
    failed.map_or(Ok(true), Err)
}
