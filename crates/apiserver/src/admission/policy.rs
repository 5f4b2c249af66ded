//! `ValidatingAdmissionPolicy`: rules in CEL that cluster administrators bind to kinds and namespaces. What expressions
//! may cost is `crate::expression`'s business.

use std::collections::HashMap;

use cel::Value as CelValue;
use serde_json::{Value, json};

use super::Request;
use super::matching::{self, GROUP};
use crate::expression::Scope;
use crate::server::ApiServer;
use crate::status::{Cause, Reason, Status};

/// Checks the write against all policies. Errors: what the policy says, 422 unless it names another reason.
pub(super) fn check(server: &ApiServer, request: &mut Request<'_>, object: &Value) -> Result<(), Status> {
    let bindings = server.cache_of(GROUP, "validatingadmissionpolicybindings");
    if bindings.len() == 0 || request.kind.group == GROUP {
        return Ok(());
    }
    let policies = server.cache_of(GROUP, "validatingadmissionpolicies");
    for binding in bindings.all("") {
        let binding = binding.to_value();
        let Some(policy) = policies.get(crate::json::text(&binding, "/spec/policyName")) else { continue };
        let policy = policy.to_value();
        let matched = matches(server, request, object, &policy["spec"]["matchConstraints"])
            && (binding["spec"]["matchResources"].is_null()
                || matches_binding(server, request, object, &binding["spec"]["matchResources"]));
        if matched {
            enforce(server, request, object, &policy, &binding)?;
        }
    }
    Ok(())
}

fn enforce(
    server: &ApiServer,
    request: &mut Request<'_>,
    object: &Value,
    policy: &Value,
    binding: &Value,
) -> Result<(), Status> {
    let Some(failure) = evaluate(server, request, object, policy, binding) else { return Ok(()) };
    let (policy_name, binding_name) =
        (crate::json::text(policy, "/metadata/name"), crate::json::text(binding, "/metadata/name"));
    let text = format!(
        "ValidatingAdmissionPolicy '{policy_name}' with binding '{binding_name}' denied request: {}",
        failure.message
    );
    for action in crate::json::strings(binding, "/spec/validationActions") {
        match action.as_str() {
            "Warn" => request.warnings.push(format!(
                "Validation failed for ValidatingAdmissionPolicy '{policy_name}' with binding '{binding_name}': {}",
                failure.message
            )),
            "Audit" => {
                let violation = json!([{"message": failure.message, "policy": policy_name, "binding": binding_name,
                    "expressionIndex": failure.index, "validationActions": binding["spec"]["validationActions"]}]);
                request.ctx.notes.add("validation.policy.admission.k8s.io/validation_failure", violation.to_string());
            }
            _ => {
                let name = if object.is_null() {
                    request.path.name.as_deref().unwrap_or_default()
                } else {
                    crate::json::text(object, "/metadata/name")
                };
                let mut status = Status::forbidden(&request.kind.group, &request.kind.plural, name, &text);
                (status.code, status.reason) = match failure.reason.as_str() {
                    "Forbidden" => (403, Reason::Forbidden),
                    "Unauthorized" => (401, Reason::Unauthorized),
                    "RequestEntityTooLarge" => (413, Reason::RequestEntityTooLarge),
                    _ => (422, Reason::Invalid),
                };
                status.details.causes.push(Cause {
                    reason: failure.reason.clone(),
                    message: text.clone(),
                    field: String::new(),
                });
                return Err(status);
            }
        }
    }
    Ok(())
}

struct Failure {
    message: String,
    reason: String,
    index: usize,
}

fn evaluate(
    server: &ApiServer,
    request: &Request<'_>,
    object: &Value,
    policy: &Value,
    binding: &Value,
) -> Option<Failure> {
    let ignore = policy["spec"]["failurePolicy"] == "Ignore";
    let broken = |message: String| (!ignore).then(|| Failure { message, reason: "Invalid".into(), index: 0 });
    let params = match find_params(server, request, policy, binding) {
        Ok(params) => params,
        Err(message) => return broken(message),
    };
    let mut scope = matching::scope(server, request, object, Some(&params));
    match matching::conditions(&mut scope, &policy["spec"]["matchConditions"]) {
        Ok(true) => {}
        Ok(false) => return None,
        Err(problem) => return broken(problem),
    }
    let mut variables: HashMap<String, CelValue> = HashMap::new();
    for variable in policy["spec"]["variables"].as_array().into_iter().flatten() {
        // A variable that fails is only a failure where it is used; then it is not there.
        if let Ok(value) = scope.run(crate::json::text(variable, "/expression")) {
            variables.insert(crate::json::text(variable, "/name").to_owned(), value);
        }
        scope.set_results("variables", &variables);
    }
    for (index, validation) in policy["spec"]["validations"].as_array().into_iter().flatten().enumerate() {
        let expression = crate::json::text(validation, "/expression");
        match scope.holds(expression) {
            Ok(true) => {}
            Ok(false) => return Some(failure(&mut scope, validation, expression, index)),
            Err(problem) => {
                if let Some(failure) = broken(format!("expression '{expression}' resulted in error: {problem}")) {
                    return Some(failure);
                }
            }
        }
    }
    annotate(&mut scope, request, policy);
    None
}

/// What the policy wants to see in the audit log.
fn annotate(scope: &mut Scope, request: &Request<'_>, policy: &Value) {
    for annotation in policy["spec"]["auditAnnotations"].as_array().into_iter().flatten() {
        if let Some(text) = scope.text(crate::json::text(annotation, "/valueExpression")) {
            let policy = crate::json::text(policy, "/metadata/name");
            request.ctx.notes.add(&format!("{policy}/{}", crate::json::text(annotation, "/key")), text);
        }
    }
}

fn failure(scope: &mut Scope, validation: &Value, expression: &str, index: usize) -> Failure {
    let computed = validation["messageExpression"].as_str().and_then(|message| scope.text(message));
    let given = validation["message"].as_str().map(str::to_owned);
    let reason = validation["reason"].as_str().unwrap_or("Invalid").to_owned();
    Failure {
        message: computed.or(given).unwrap_or_else(|| format!("failed expression: {}", expression.trim())),
        reason,
        index,
    }
}

/// What is wrong with the expressions of a policy.
pub(super) fn check_policy(policy: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for list in ["matchConditions", "variables", "validations"] {
        for (index, item) in policy["spec"][list].as_array().into_iter().flatten().enumerate() {
            if let Err(problem) = crate::expression::compile(crate::json::text(item, "/expression")) {
                causes.push(Cause::invalid(
                    &format!("spec.{list}[{index}].expression"),
                    &item["expression"],
                    &format!("compilation failed: {problem}"),
                ));
            }
        }
    }
    causes
}

fn find_params(server: &ApiServer, request: &Request<'_>, policy: &Value, binding: &Value) -> Result<Value, String> {
    let wanted = &policy["spec"]["paramKind"];
    let reference = &binding["spec"]["paramRef"];
    if !wanted.is_object() || !reference.is_object() {
        return Ok(Value::Null);
    }
    let (group, version) = crate::json::text(wanted, "/apiVersion")
        .rsplit_once('/')
        .unwrap_or(("", crate::json::text(wanted, "/apiVersion")));
    let kinds = server.kinds.load();
    let kind =
        kinds.lookup_kind(group, version, crate::json::text(wanted, "/kind")).ok_or("paramKind is not served")?;
    let namespace = match crate::json::text(reference, "/namespace") {
        _ if !kind.namespaced => "",
        "" => request.path.namespace.as_deref().unwrap_or_default(),
        given => given,
    };
    let relative = crate::keys::relative(namespace, crate::json::text(reference, "/name"));
    match server.cache(kind).get(&relative) {
        Some(found) => Ok(found.to_value()),
        None if reference["parameterNotFoundAction"] == "Allow" => Ok(Value::Null),
        None => Err("no params found for policy binding".into()),
    }
}

/// A binding without rules of its own narrows by its selectors only.
fn matches_binding(server: &ApiServer, request: &Request<'_>, object: &Value, resources: &Value) -> bool {
    let named = !crate::json::is_empty(resources.get("resourceRules"));
    if named {
        matches(server, request, object, resources)
    } else {
        matching::selected(server, request, object, resources)
    }
}

fn matches(server: &ApiServer, request: &Request<'_>, object: &Value, resources: &Value) -> bool {
    let equivalent = resources["matchPolicy"] != "Exact";
    let any = |list: &str| matching::covered(server, request, &resources[list], equivalent).is_some();
    any("resourceRules") && !any("excludeResourceRules") && matching::selected(server, request, object, resources)
}
