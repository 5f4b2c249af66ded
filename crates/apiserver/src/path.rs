//! The address of a resource, a collection or a subresource, however a dialect spells it.

use crate::user::Attributes;

/// Which resource a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural resource name.
    pub resource: String,
    /// Subresource, e.g. `status`.
    pub subresource: Option<String>,
    /// Namespace; `None` for cluster scope or all namespaces.
    pub namespace: Option<String>,
    /// Object name; `None` for the collection.
    pub name: Option<String>,
}

impl ResourcePath {
    /// The collection of a resource.
    pub fn collection(group: &str, version: &str, resource: &str, namespace: Option<&str>) -> ResourcePath {
        ResourcePath {
            group: group.to_owned(),
            version: version.to_owned(),
            resource: resource.to_owned(),
            subresource: None,
            namespace: namespace.map(str::to_owned),
            name: None,
        }
    }

    /// One object of this collection.
    pub fn object(&self, name: &str) -> ResourcePath {
        ResourcePath { name: Some(name.to_owned()), ..self.clone() }
    }

    /// A subresource of this object.
    pub fn sub(&self, subresource: &str) -> ResourcePath {
        ResourcePath { subresource: Some(subresource.to_owned()), ..self.clone() }
    }

    /// What authorization looks at when `verb` is done here.
    pub fn attributes(&self, verb: &str) -> Attributes {
        Attributes {
            verb: verb.to_owned(),
            group: self.group.clone(),
            version: self.version.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone().unwrap_or_default(),
            namespace: self.namespace.clone().unwrap_or_default(),
            name: self.name.clone().unwrap_or_default(),
            ..Attributes::default()
        }
    }

    /// `pods`, or `deployments.apps`: the way error messages name a resource.
    pub fn qualified(&self) -> String {
        qualified(&self.resource, &self.group)
    }
}

/// `pods`, or `deployments.apps`: the way error messages name a resource.
pub fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// `v1`, or `apps/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}
