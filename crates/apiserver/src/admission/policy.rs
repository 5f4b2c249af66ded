//! `ValidatingAdmissionPolicy`: rules in CEL that cluster administrators bind to kinds and namespaces. Expressions are
//! bounded in length and in the number of loops, and are compiled anew for each use: policies are few.

use std::collections::HashMap;

use cel::{Context, Program, Value as CelValue};
use serde_json::{Value, json};

use super::Request;
use crate::selector::LabelSelector;
use crate::server::ApiServer;
use crate::status::{Cause, Reason, Status};

/// Group of the policies.
const GROUP: &str = "admissionregistration.k8s.io";
/// Longest expression. Units: bytes.
const MAX_EXPRESSION_BYTES: usize = 8 * 1024;
/// Most loops (`all`, `exists`, `map`, `filter`…) of one expression; nested ones multiply.
const MAX_LOOPS: usize = 3;
const LOOPS: [&str; 5] = [".all(", ".exists(", ".exists_one(", ".map(", ".filter("];

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
            "Audit" => tracing::info!(
                policy = policy_name,
                binding = binding_name,
                message = failure.message,
                "policy violated"
            ),
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
}

fn evaluate(
    server: &ApiServer,
    request: &Request<'_>,
    object: &Value,
    policy: &Value,
    binding: &Value,
) -> Option<Failure> {
    let ignore = policy["spec"]["failurePolicy"] == "Ignore";
    let broken = |message: String| (!ignore).then(|| Failure { message, reason: "Invalid".into() });
    let params = match find_params(server, request, policy, binding) {
        Ok(params) => params,
        Err(message) => return broken(message),
    };
    let mut context = Context::default();
    let namespace = crate::json::text(object, "/metadata/namespace");
    let namespace = server.cache_of("", "namespaces").get(namespace).map_or(Value::Null, |found| found.to_value());
    for (name, value) in [
        ("object", object),
        ("oldObject", request.old.unwrap_or(&Value::Null)),
        ("request", &describe(request, object)),
        ("params", &params),
        ("namespaceObject", &namespace),
    ] {
        context.add_variable_from_value(name, to_cel(value));
    }
    for condition in policy["spec"]["matchConditions"].as_array().into_iter().flatten() {
        match run(&context, crate::json::text(condition, "/expression")) {
            Ok(CelValue::Bool(true)) => {}
            Ok(_) => return None,
            Err(problem) => return broken(problem),
        }
    }
    let mut variables: HashMap<String, CelValue> = HashMap::new();
    for variable in policy["spec"]["variables"].as_array().into_iter().flatten() {
        match run(&context, crate::json::text(variable, "/expression")) {
            Ok(value) => drop(variables.insert(crate::json::text(variable, "/name").to_owned(), value)),
            Err(problem) => return broken(problem),
        }
        context.add_variable_from_value("variables", variables.clone());
    }
    for validation in policy["spec"]["validations"].as_array().into_iter().flatten() {
        let expression = crate::json::text(validation, "/expression");
        match run(&context, expression) {
            Ok(CelValue::Bool(true)) => {}
            Ok(CelValue::Bool(false)) => return Some(failure(&context, validation, expression)),
            Ok(_) => return broken(format!("expression '{expression}' does not answer a boolean")),
            Err(problem) => {
                if let Some(failure) = broken(format!("expression '{expression}' resulted in error: {problem}")) {
                    return Some(failure);
                }
            }
        }
    }
    None
}

fn failure(context: &Context<'_, '_>, validation: &Value, expression: &str) -> Failure {
    let computed = match run(context, crate::json::text(validation, "/messageExpression")) {
        Ok(CelValue::String(text)) if !text.is_empty() => Some(text.to_string()),
        _ => None,
    };
    let given = validation["message"].as_str().map(str::to_owned);
    let reason = validation["reason"].as_str().unwrap_or("Invalid").to_owned();
    Failure {
        message: computed.or(given).unwrap_or_else(|| format!("failed expression: {}", expression.trim())),
        reason,
    }
}

fn compile(expression: &str) -> Result<Program, String> {
    if expression.len() > MAX_EXPRESSION_BYTES {
        return Err(format!("the expression is longer than {MAX_EXPRESSION_BYTES} bytes"));
    }
    let dense: String = expression.chars().filter(|c| !c.is_whitespace()).collect();
    if LOOPS.iter().map(|name| dense.matches(name).count()).sum::<usize>() > MAX_LOOPS {
        return Err(format!("the expression has more than {MAX_LOOPS} loops"));
    }
    Program::compile(expression).map_err(|error| error.to_string())
}

fn run(context: &Context<'_, '_>, expression: &str) -> Result<CelValue, String> {
    compile(expression)?.execute(context).map_err(|error| error.to_string())
}

/// What is wrong with the expressions of a policy.
pub(super) fn check_policy(policy: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for list in ["matchConditions", "variables", "validations"] {
        for (index, item) in policy["spec"][list].as_array().into_iter().flatten().enumerate() {
            if let Err(problem) = compile(crate::json::text(item, "/expression")) {
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

/// Numbers that are whole are `int`, as Kubernetes has them.
fn to_cel(value: &Value) -> CelValue {
    match value {
        Value::Null => CelValue::Null,
        Value::Bool(value) => CelValue::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => CelValue::Int(whole),
            None => CelValue::Float(number.as_f64().unwrap_or(0.0)),
        },
        Value::String(text) => CelValue::from(text.as_str()),
        Value::Array(items) => CelValue::from(items.iter().map(to_cel).collect::<Vec<_>>()),
        Value::Object(map) => CelValue::from(
            map.iter().map(|(name, value)| (name.clone(), to_cel(value))).collect::<HashMap<String, CelValue>>(),
        ),
    }
}

fn describe(request: &Request<'_>, object: &Value) -> Value {
    let (kind, path) = (request.kind, request.path);
    let name = path.name.as_deref().unwrap_or_else(|| crate::json::text(object, "/metadata/name"));
    json!({
        "operation": request.verb.as_str(), "name": name, "namespace": path.namespace.as_deref().unwrap_or_default(),
        "kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "resource": {"group": kind.group, "version": kind.version, "resource": kind.plural},
        "subResource": path.subresource.as_deref().unwrap_or_default(), "dryRun": request.dry_run,
        "userInfo": {"username": request.ctx.user.name, "uid": request.ctx.user.uid, "groups": request.ctx.user.groups, "extra": request.ctx.user.extra},
    })
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
    if named { matches(server, request, object, resources) } else { selected(server, request, object, resources) }
}

fn matches(server: &ApiServer, request: &Request<'_>, object: &Value, resources: &Value) -> bool {
    let any = |list: &str| resources[list].as_array().into_iter().flatten().any(|rule| covers(request, rule));
    any("resourceRules") && !any("excludeResourceRules") && selected(server, request, object, resources)
}

fn covers(request: &Request<'_>, rule: &Value) -> bool {
    let has =
        |member: &str, wanted: &str| crate::json::strings(rule, member).iter().any(|own| own == "*" || own == wanted);
    let plural = &request.kind.plural;
    let resource = match request.path.subresource.as_deref() {
        None => has("/resources", plural),
        Some(sub) => ["*/*".to_owned(), format!("{plural}/{sub}"), format!("{plural}/*"), format!("*/{sub}")]
            .iter()
            .any(|name| crate::json::strings(rule, "/resources").contains(name)),
    };
    let names = crate::json::strings(rule, "/resourceNames");
    has("/apiGroups", &request.kind.group)
        && has("/apiVersions", &request.kind.version)
        && has("/operations", request.verb.as_str())
        && resource
        && (names.is_empty() || request.path.name.as_ref().is_some_and(|name| names.contains(name)))
}

fn selected(server: &ApiServer, request: &Request<'_>, object: &Value, resources: &Value) -> bool {
    let accepts = |selector: &Value, labels: Option<&Value>| {
        crate::json::is_empty(Some(selector))
            || LabelSelector::from_structured(selector).is_ok_and(|selector| selector.matches_value(labels))
    };
    let namespace =
        request.path.namespace.as_deref().and_then(|namespace| server.cache_of("", "namespaces").get(namespace));
    let in_namespace = match namespace {
        Some(namespace) => accepts(&resources["namespaceSelector"], namespace.to_value()["metadata"].get("labels")),
        None => true,
    };
    let old = request.old.is_some_and(|old| accepts(&resources["objectSelector"], old["metadata"].get("labels")));
    in_namespace && (old || accepts(&resources["objectSelector"], object["metadata"].get("labels")))
}
