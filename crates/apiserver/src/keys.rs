//! Where things lie in the store.

use crate::kind::Kind;

/// Prefix of all objects.
pub const OBJECTS: &str = "/registry/";

/// `group/plural/`: the part of a key that names a resource.
pub fn resource(group: &str, plural: &str) -> String {
    format!("{}/{plural}/", if group.is_empty() { "core" } else { group })
}

/// `namespace/name`, or `name`.
pub fn relative(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// The key of an object.
pub fn object(kind: &Kind, relative: &str) -> String {
    format!("{OBJECTS}{}{relative}", resource(kind.storage_group(), &kind.plural))
}

/// The key that holds a value of a kind's unique field.
pub fn unique(kind: &Kind, namespace: &str, value: &str) -> String {
    format!("/reserved/unique/{}{namespace}/{value}", resource(&kind.group, &kind.plural))
}

/// The key that holds a Service's address or port.
pub fn service(what: &str, value: &str) -> String {
    format!("/reserved/services/{what}/{value}")
}

/// Takes an object's key apart: (`group/plural/`, `namespace/name`).
pub fn split(key: &str) -> Option<(&str, &str)> {
    let rest = key.strip_prefix(OBJECTS)?;
    let group_end = rest.find('/')?;
    let plural_end = rest[group_end + 1..].find('/')? + group_end + 2;
    Some((&rest[..plural_end], &rest[plural_end..])).filter(|(_, relative)| !relative.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_apart_as_they_were_put_together() {
        let kind = Kind::new("apps", "v1", "Deployment", "deployments");
        let key = object(&kind, &relative("ns", "web"));
        assert_eq!(split(&key), Some(("apps/deployments/", "ns/web")));
        assert_eq!(split("/registry/core/nodes/n1"), Some(("core/nodes/", "n1")));
        assert_eq!(split("/registry/core"), None);
        assert_eq!(split("/other/core/nodes/n1"), None);
    }
}
