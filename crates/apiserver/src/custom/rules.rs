//! The validation rules of a definition, before any object meets them: do they compile, can they find an old value, and
//! what may they cost on the largest object that the schema admits.

use serde_json::Value;

use crate::status::Cause;

/// Most that a rule may be estimated to cost. `Source:` Kubernetes' `StaticEstimatedCostLimit` (10 million), ten times
/// over: our estimate is coarser, and what it lets pass is bounded again when a rule runs.
const STATIC_LIMIT: u64 = 100_000_000;
/// Elements of a list or map without a bound: what fits into a request.
const UNBOUNDED: u64 = 300_000;
/// The member that holds the rules.
const RULES: &str = "x-kubernetes-validations";
/// Most rules of one schema.
const MAX_RULES: usize = 5_000;

/// What is wrong with the rules of a schema.
pub(super) fn check(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let mut walk = Walk { causes, rules: 0 };
    walk.schema(schema, path, true, 1);
}

struct Walk<'a> {
    causes: &'a mut Vec<Cause>,
    rules: usize,
}

impl Walk<'_> {
    /// `correlated`: whether an old value can be found for values here; `times`: how often there may be values here.
    fn schema(&mut self, schema: &Value, path: &str, correlated: bool, times: u64) {
        for (index, rule) in schema[RULES].as_array().into_iter().flatten().enumerate() {
            self.rules += 1;
            if self.rules > MAX_RULES {
                self.causes.push(Cause::forbidden(path, "the schema has too many rules"));
                return;
            }
            self.rule(schema, rule, &format!("{path}.{RULES}[{index}]"), correlated, times);
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            self.schema(inner, &format!("{path}.properties[{name}]"), correlated, times);
        }
        if let Some(inner) = schema.get("additionalProperties").filter(|inner| inner.is_object()) {
            let times = times.saturating_mul(size(schema));
            self.schema(inner, &format!("{path}.additionalProperties"), correlated, times);
        }
        if let Some(inner) = schema.get("items") {
            let keyed = schema["x-kubernetes-list-type"] == "map";
            self.schema(inner, &format!("{path}.items"), correlated && keyed, times.saturating_mul(size(schema)));
        }
    }

    fn rule(&mut self, schema: &Value, rule: &Value, at: &str, correlated: bool, times: u64) {
        let source = crate::json::text(rule, "/rule");
        let field = format!("{at}.rule");
        if source.trim().is_empty() {
            self.causes.push(Cause::required(&field, "rule is not specified"));
            return;
        }
        if crate::json::text(rule, "/message").contains('\n') {
            self.causes.push(Cause::invalid(
                &format!("{at}.message"),
                &rule["message"],
                "message must not contain line breaks",
            ));
        }
        for (member, source) in [("rule", source), ("messageExpression", crate::json::text(rule, "/messageExpression"))]
        {
            if let Err(problem) = crate::expression::compile(source)
                && !source.is_empty()
            {
                let detail = format!("compilation failed: ERROR: {problem}");
                self.causes.push(Cause::invalid(&format!("{at}.{member}"), &Value::from(source), &detail));
            }
        }
        if let Some(name) = unknown_member(schema, source) {
            let detail = format!("compilation failed: ERROR: <input>: undefined field '{name}'");
            self.causes.push(Cause::invalid(&field, &rule["rule"], &detail));
        }
        if !correlated && crate::expression::mentions(source, "oldSelf") {
            let detail = "oldSelf cannot be used on the uncorrelatable portion of the schema";
            self.causes.push(Cause::invalid(&field, &rule["rule"], detail));
        }
        let cost = crate::expression::static_cost(source, &|name| largest(schema, name, 0))
            .saturating_mul(times.min(UNBOUNDED));
        if cost > STATIC_LIMIT {
            let factor = cost / STATIC_LIMIT;
            let factor = if factor >= 10 { "more than 100x".to_owned() } else { format!("{factor}.0x") };
            let detail = format!(
                "estimated rule cost exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, \
                 maxProperties, and maxLength where arrays, maps, and strings are declared)"
            );
            self.causes.push(Cause::forbidden(&field, &detail));
        }
    }
}

/// How many elements a list or map has at most.
fn size(schema: &Value) -> u64 {
    let bound = schema["maxItems"].as_u64().or_else(|| schema["maxProperties"].as_u64());
    bound.unwrap_or(UNBOUNDED).min(UNBOUNDED)
}

/// The largest list or map below this schema that a rule calls by this name; any when the name says nothing.
fn largest(schema: &Value, name: &str, depth: usize) -> u64 {
    let mut found = 1;
    if depth == 0 && (schema["type"] == "array" || schema.get("additionalProperties").is_some()) {
        found = size(schema);
    }
    for (own, inner) in schema["properties"].as_object().into_iter().flatten() {
        let sized = inner["type"] == "array" || inner.get("additionalProperties").is_some();
        if sized && (name.is_empty() || crate::expression::escape(own) == name) {
            found = found.max(size(inner));
        }
        found = found.max(largest(inner, name, depth + 1));
    }
    for member in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(member).filter(|inner| inner.is_object()) {
            found = found.max(largest(inner, name, depth + 1));
        }
    }
    found
}

/// The first member that the rule reads of `self` and that the schema does not have.
fn unknown_member(schema: &Value, source: &str) -> Option<String> {
    let properties = schema["properties"].as_object()?;
    if schema["x-kubernetes-preserve-unknown-fields"] == true || schema["x-kubernetes-embedded-resource"] == true {
        return None;
    }
    let members = crate::expression::members_of(source, "self");
    let known = |name: &String| {
        matches!(name.as_str(), "apiVersion" | "kind" | "metadata")
            || properties.keys().any(|own| crate::expression::escape(own) == *name)
    };
    members.into_iter().find(|name| !known(name))
}
