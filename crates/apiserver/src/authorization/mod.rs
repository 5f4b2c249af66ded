//! Who may do what: RBAC over the cached roles and bindings.

mod escalation;
mod node;
mod rbac;
mod rules;

pub use escalation::check_escalation;
pub use node::{LEASE_NAMESPACE, may_give_away, node_name, objection};
pub use rbac::RbacCache;
pub use rules::Rule;

use crate::status::Status;
use crate::user::{Attributes, UserInfo};

/// API group of the RBAC kinds.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// The answer to a request that is not allowed.
pub fn refusal(user: &UserInfo, a: &Attributes, reason: &str) -> Status {
    let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if let Some(path) = &a.non_resource_path {
        return Status::new(
            403,
            crate::status::Reason::Forbidden,
            format!("forbidden: User \"{}\" cannot {} path \"{path}\"{because}", user.name, a.verb),
        );
    }
    let resource =
        if a.subresource.is_empty() { a.resource.clone() } else { format!("{}/{}", a.resource, a.subresource) };
    let place = if a.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", a.namespace)
    };
    let detail = format!(
        "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {place}{because}",
        user.name, a.verb, a.group
    );
    Status::forbidden(&a.group, &a.resource, &a.name, &detail)
}
