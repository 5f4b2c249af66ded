//! Nobody may grant rights that they do not hold themselves.

use serde_json::Value;

use super::{RBAC_GROUP, Rule};
use crate::kind::Kind;
use crate::server::ApiServer;
use crate::status::Status;
use crate::user::{Attributes, GROUP_MASTERS, UserInfo};

/// Most single rights that are checked; a role above that needs the right to escalate.
const MAX_SINGLES: usize = 10_000;

/// Checks a new or changed role or binding. Errors: forbidden.
pub fn check_escalation(
    server: &ApiServer,
    user: &UserInfo,
    kind: &Kind,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if kind.group != RBAC_GROUP || user.is_in(GROUP_MASTERS) {
        return Ok(());
    }
    let namespace = crate::json::text(object, "/metadata/namespace");
    let name = crate::json::text(object, "/metadata/name");
    let may = |verb: &str, resource: &str, name: &str| {
        let attributes = Attributes {
            verb: verb.into(),
            group: RBAC_GROUP.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        };
        server.authorize(user, &attributes).allowed
    };
    let granted = match kind.plural.as_str() {
        "roles" | "clusterroles" => {
            let unchanged = old.is_some_and(|old| {
                old["rules"] == object["rules"] && old["aggregationRule"] == object["aggregationRule"]
            });
            if unchanged || may("escalate", &kind.plural, name) {
                return Ok(());
            }
            if !crate::json::is_empty(object.get("aggregationRule")) {
                return Err(Status::forbidden(
                    RBAC_GROUP,
                    &kind.plural,
                    name,
                    "must have cluster-admin privileges to use an aggregationRule",
                ));
            }
            Rule::of_role(object)
        }
        "rolebindings" | "clusterrolebindings" => {
            let role = crate::json::text(object, "/roleRef/name");
            let plural = if crate::json::text(object, "/roleRef/kind") == "Role" { "roles" } else { "clusterroles" };
            let unchanged =
                old.is_some_and(|old| old["subjects"] == object["subjects"] && old["roleRef"] == object["roleRef"]);
            if unchanged || may("bind", plural, role) {
                return Ok(());
            }
            let key = if plural == "roles" { format!("{namespace}/{role}") } else { role.to_owned() };
            let Some(found) = server.cache_of(RBAC_GROUP, plural).get(&key) else {
                return Err(Status::not_found(RBAC_GROUP, plural, role));
            };
            let found = found.to_value();
            if !found["aggregationRule"].is_null() {
                return Err(Status::forbidden(
                    RBAC_GROUP,
                    &kind.plural,
                    name,
                    "the role is aggregated; binding it needs the right to bind it",
                ));
            }
            Rule::of_role(&found)
        }
        _ => return Ok(()),
    };
    let own = server.rbac.rules(&server.caches, user, namespace);
    let singles: Vec<Rule> = granted.iter().flat_map(Rule::singles).collect();
    if singles.len() > MAX_SINGLES {
        return Err(Status::forbidden(RBAC_GROUP, &kind.plural, name, "the role grants too much to be checked"));
    }
    let missing: Vec<String> =
        singles.iter().filter(|single| !own.iter().any(|rule| rule.covers(single))).map(describe).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let detail = format!(
        "user \"{}\" (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        user.groups,
        missing.join("\n")
    );
    Err(Status::forbidden(RBAC_GROUP, &kind.plural, name, &detail))
}

fn describe(rule: &Rule) -> String {
    if rule.paths.is_empty() {
        let names = if rule.names.is_empty() { String::new() } else { format!(", ResourceNames:{:?}", rule.names) };
        format!("{{APIGroups:{:?}, Resources:{:?}{names}, Verbs:{:?}}}", rule.groups, rule.resources, rule.verbs)
    } else {
        format!("{{NonResourceURLs:{:?}, Verbs:{:?}}}", rule.paths, rule.verbs)
    }
}
