//! RBAC policy rules and what they cover.

use serde_json::Value;

use crate::user::Attributes;

/// One rule. `Source:` `rbac/v1.PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub paths: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    /// The rules of a role.
    pub fn of_role(role: &Value) -> Vec<Rule> {
        let rules = role.get("rules").and_then(Value::as_array);
        rules.into_iter().flatten().map(Rule::read).collect()
    }

    /// Reads one rule.
    pub fn read(rule: &Value) -> Rule {
        Rule {
            verbs: crate::json::strings(rule, "/verbs"),
            groups: crate::json::strings(rule, "/apiGroups"),
            resources: crate::json::strings(rule, "/resources"),
            names: crate::json::strings(rule, "/resourceNames"),
            paths: crate::json::strings(rule, "/nonResourceURLs"),
        }
    }

    /// Whether it allows the request.
    pub fn allows(&self, a: &Attributes) -> bool {
        if !has(&self.verbs, &a.verb) {
            return false;
        }
        match &a.non_resource_path {
            Some(path) => self.paths.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => pattern == path,
            }),
            None => {
                has(&self.groups, &a.group)
                    && self.covers_resource(a)
                    && (self.names.is_empty() || self.names.contains(&a.name))
            }
        }
    }

    fn covers_resource(&self, a: &Attributes) -> bool {
        self.resources.iter().any(|pattern| match pattern.as_str() {
            "*" => true,
            pattern if a.subresource.is_empty() => pattern == a.resource,
            pattern => match pattern.split_once('/') {
                Some((resource, sub)) => (resource == "*" || resource == a.resource) && sub == a.subresource,
                None => false,
            },
        })
    }

    /// All single requests that the rule covers, for the escalation check.
    pub fn singles(&self) -> Vec<Rule> {
        let mut singles = Vec::new();
        let one = |text: &String| vec![text.clone()];
        for verb in &self.verbs {
            for path in &self.paths {
                singles.push(Rule { verbs: one(verb), paths: one(path), ..Rule::default() });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let base =
                        Rule { verbs: one(verb), groups: one(group), resources: one(resource), ..Rule::default() };
                    if self.names.is_empty() {
                        singles.push(base);
                    } else {
                        singles.extend(self.names.iter().map(|name| Rule { names: one(name), ..base.clone() }));
                    }
                }
            }
        }
        singles
    }

    /// Whether this rule covers all that `single` (one of [`Rule::singles`]) allows.
    pub fn covers(&self, single: &Rule) -> bool {
        let all = |own: &[String], wanted: &[String]| wanted.iter().all(|item| has(own, item));
        let resources = single.resources.iter().all(|wanted| {
            has(&self.resources, wanted)
                || wanted.split_once('/').is_some_and(|(_, sub)| self.resources.contains(&format!("*/{sub}")))
        });
        let names = self.names.is_empty()
            || !single.names.is_empty() && single.names.iter().all(|name| self.names.contains(name));
        let paths = single.paths.iter().all(|wanted| {
            self.paths
                .iter()
                .any(|own| own == wanted || own.strip_suffix('*').is_some_and(|prefix| wanted.starts_with(prefix)))
        });
        all(&self.verbs, &single.verbs) && all(&self.groups, &single.groups) && resources && names && paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(rule: Value, verb: &str, group: &str, resource: &str, sub: &str, name: &str) -> bool {
        let a = Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: sub.into(),
            name: name.into(),
            ..Attributes::default()
        };
        Rule::read(&rule).allows(&a)
    }

    #[test]
    fn rules_cover_what_they_name_and_no_more() {
        let pods = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/scale"]});
        assert!(check(pods.clone(), "get", "", "pods", "", "a"));
        assert!(!check(pods.clone(), "get", "", "pods", "log", "a"));
        assert!(check(pods.clone(), "get", "", "rcs", "scale", "a"));
        assert!(!check(pods.clone(), "list", "", "pods", "", ""));
        assert!(!check(pods, "get", "apps", "pods", "", ""));
        let named = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["x"]});
        assert!(check(named.clone(), "get", "g", "r", "s", "x") && !check(named, "get", "g", "r", "", "y"));
    }

    #[test]
    fn a_wider_rule_covers_a_narrower_one_only() {
        let wide = Rule::read(&json!({"verbs": ["*"], "apiGroups": [""], "resources": ["*"]}));
        let narrow = Rule::read(
            &json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}),
        );
        assert!(narrow.singles().iter().all(|single| wide.covers(single)));
        assert!(!wide.singles().iter().all(|single| narrow.covers(single)));
    }
}
