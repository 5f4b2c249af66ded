//! An index from subjects to the rules that bindings grant them, built anew when a role or binding changed.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::Value;

use super::{RBAC_GROUP, Rule};
use crate::cache::Caches;
use crate::keys;
use crate::object::Object;
use crate::selector::LabelSelector;
use crate::user::{Attributes, Decision, GROUP_MASTERS, UserInfo};

/// Prefix of the user names of service accounts.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

const KINDS: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

/// A role granted to a subject, everywhere or in one namespace.
#[derive(Clone)]
pub struct Grant {
    namespace: Option<String>,
    rules: Arc<Vec<Rule>>,
    binding: String,
}

#[derive(Default)]
struct Index {
    revisions: [u64; 4],
    by_subject: HashMap<String, Vec<Grant>>,
}

/// The index of the present roles and bindings.
#[derive(Default)]
pub struct RbacCache {
    index: ArcSwap<Index>,
}

impl RbacCache {
    /// Whether the user may do this.
    pub fn authorize(&self, caches: &Caches, user: &UserInfo, a: &Attributes) -> Decision {
        if user.is_in(GROUP_MASTERS) {
            return Decision { allowed: true, reason: String::new() };
        }
        let index = self.fresh(caches);
        for grant in grants(&index, user) {
            let here = grant
                .namespace
                .as_ref()
                .is_none_or(|namespace| *namespace == a.namespace && a.non_resource_path.is_none());
            if here && grant.rules.iter().any(|rule| rule.allows(a)) {
                return Decision {
                    allowed: true,
                    reason: format!("RBAC: allowed by {} to \"{}\"", grant.binding, user.name),
                };
            }
        }
        Decision::default()
    }

    /// All rules that hold for the user in a namespace (cluster-wide ones included).
    pub fn rules(&self, caches: &Caches, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let index = self.fresh(caches);
        let here = |grant: &&Grant| grant.namespace.as_ref().is_none_or(|own| own == namespace);
        let mut rules: Vec<Rule> =
            grants(&index, user).filter(here).flat_map(|grant| grant.rules.iter().cloned()).collect();
        if user.is_in(GROUP_MASTERS) {
            let any = || vec!["*".to_owned()];
            rules.push(Rule { verbs: any(), groups: any(), resources: any(), ..Rule::default() });
            rules.push(Rule { verbs: any(), paths: any(), ..Rule::default() });
        }
        rules
    }

    fn fresh(&self, caches: &Caches) -> Arc<Index> {
        let cache = |plural: &str| caches.get(&keys::resource(RBAC_GROUP, plural));
        let revisions = KINDS.map(|plural| cache(plural).last_revision());
        let index = self.index.load_full();
        if index.revisions == revisions {
            return index;
        }
        let [cluster_roles, cluster_bindings, roles, bindings] = KINDS.map(|plural| cache(plural).all(""));
        let index =
            Arc::new(Index { revisions, by_subject: build(&cluster_roles, &cluster_bindings, &roles, &bindings) });
        self.index.store(index.clone());
        index
    }
}

fn grants<'a>(index: &'a Index, user: &UserInfo) -> impl Iterator<Item = &'a Grant> {
    let subjects: Vec<String> = std::iter::once(format!("User/{}", user.name))
        .chain(user.groups.iter().map(|group| format!("Group/{group}")))
        .collect();
    subjects.into_iter().filter_map(|subject| index.by_subject.get(&subject)).flatten()
}

fn build(
    cluster_roles: &[Object],
    cluster_bindings: &[Object],
    roles: &[Object],
    bindings: &[Object],
) -> HashMap<String, Vec<Grant>> {
    let trees: Vec<(&Object, Value)> = cluster_roles.iter().map(|role| (role, role.to_value())).collect();
    let mut by_name: HashMap<String, Arc<Vec<Rule>>> = HashMap::new();
    for (role, tree) in &trees {
        by_name.insert(format!("ClusterRole/{}", role.name()), Arc::new(rules_of(tree, &trees)));
    }
    for role in roles {
        by_name.insert(format!("Role/{}", role.meta.key), Arc::new(Rule::of_role(&role.to_value())));
    }
    let mut by_subject: HashMap<String, Vec<Grant>> = HashMap::new();
    let mut bind = |object: &Object, namespace: Option<String>| {
        let tree = object.to_value();
        let role_name = crate::json::text(&tree, "/roleRef/name");
        let role = match (crate::json::text(&tree, "/roleRef/kind"), &namespace) {
            ("ClusterRole", _) => format!("ClusterRole/{role_name}"),
            ("Role", Some(namespace)) => format!("Role/{namespace}/{role_name}"),
            _ => return,
        };
        let Some(rules) = by_name.get(&role) else { return };
        let what = if namespace.is_some() { "RoleBinding" } else { "ClusterRoleBinding" };
        let grant = Grant {
            namespace: namespace.clone(),
            rules: rules.clone(),
            binding: format!(
                "{what} \"{}\" of {} \"{role_name}\"",
                object.meta.key,
                crate::json::text(&tree, "/roleRef/kind")
            ),
        };
        for subject in tree["subjects"].as_array().into_iter().flatten() {
            let name = crate::json::text(subject, "/name");
            let key = match crate::json::text(subject, "/kind") {
                "ServiceAccount" => {
                    let own = crate::json::text(subject, "/namespace");
                    let place = if own.is_empty() { namespace.as_deref().unwrap_or_default() } else { own };
                    format!("User/{SERVICE_ACCOUNT_PREFIX}{place}:{name}")
                }
                kind @ ("User" | "Group") => format!("{kind}/{name}"),
                _ => continue,
            };
            by_subject.entry(key).or_default().push(grant.clone());
        }
    };
    cluster_bindings.iter().for_each(|binding| bind(binding, None));
    bindings.iter().for_each(|binding| bind(binding, Some(binding.namespace().to_owned())));
    by_subject
}

/// A role's own rules, or the union of those that its aggregation rule selects.
fn rules_of(role: &Value, all: &[(&Object, Value)]) -> Vec<Rule> {
    let mut rules = Rule::of_role(role);
    for selector in
        role.pointer("/aggregationRule/clusterRoleSelectors").and_then(Value::as_array).into_iter().flatten()
    {
        let Ok(selector) = LabelSelector::from_structured(selector) else { continue };
        for (other, tree) in all {
            if selector.matches(&other.meta.labels) && tree["aggregationRule"].is_null() {
                rules.extend(Rule::of_role(tree));
            }
        }
    }
    rules
}
