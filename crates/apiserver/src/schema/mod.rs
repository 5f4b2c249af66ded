//! OpenAPI v3 schemas, walked in place: no compiled form, no memory beside the registration's own value.

mod defaults;
mod keys;
mod prune;
mod rules;
mod types;
mod validate;

pub use defaults::fill_defaults;
pub use prune::prune;
pub(crate) use rules::has_rules;
pub use rules::validate_rules;
pub use types::check_types;
pub(crate) use validate::compile as compile_pattern;
pub use validate::{Patterns, validate};

use serde_json::Value;

use crate::kind::Kind;

/// How server-side apply sees a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// One value.
    Atomic,
    /// A set of scalars.
    Set,
    /// Maps, identified by these members.
    Map(Vec<String>),
}

/// A place in a schema, together with the names that led there.
#[derive(Clone, Copy)]
pub struct SchemaRef<'a> {
    root: &'a Value,
    node: Option<&'a Value>,
    kind: &'a Kind,
    parent: &'a str,
    field: &'a str,
}

/// Longest chain of `$ref`s that is followed.
const MAX_REFERENCES: usize = 16;

impl<'a> SchemaRef<'a> {
    /// The schema of a kind's objects.
    pub fn root(kind: &'a Kind) -> SchemaRef<'a> {
        SchemaRef { root: &kind.schema, node: Some(&kind.schema), kind, parent: "", field: "" }
    }

    fn at(self, node: Option<&'a Value>, parent: &'a str, field: &'a str) -> SchemaRef<'a> {
        SchemaRef { node: node.and_then(|node| resolve(self.root, node)), parent, field, ..self }
    }

    /// The schema node, references resolved; `None` where nothing is known.
    pub fn node(self) -> Option<&'a Value> {
        self.node
    }

    /// The schema of a member.
    pub fn property<'b>(self, name: &'b str) -> SchemaRef<'b>
    where
        'a: 'b,
    {
        let node = self.node.and_then(|node| {
            node.get("properties").and_then(|properties| properties.get(name)).or_else(|| additional(node))
        });
        self.at(node, self.field, name)
    }

    /// Whether `properties` names this member.
    pub fn has_property(self, name: &str) -> bool {
        self.node.is_some_and(|node| node.get("properties").is_some_and(|properties| properties.get(name).is_some()))
    }

    /// The schema of a list's elements; it keeps the list's name.
    pub fn items(self) -> SchemaRef<'a> {
        self.at(self.node.and_then(|node| node.get("items")), self.parent, self.field)
    }

    /// Whether members that the schema does not name are kept.
    pub fn is_open(self) -> bool {
        let Some(node) = self.node else { return true };
        let flag = |name: &str| node.get(name).and_then(Value::as_bool).unwrap_or(false);
        flag("x-kubernetes-preserve-unknown-fields")
            || flag("x-kubernetes-embedded-resource") && node.get("properties").is_none()
            || additional(node).is_some()
            || node.get("additionalProperties") == Some(&Value::Bool(true))
            || node.get("properties").is_none()
                && !(self.kind.structural && node.get("type").is_some_and(|kind| kind == "object"))
            || node.get("oneOf").is_some() && node.get("properties").is_none()
    }

    /// The member by which strategic merge patch merges this list.
    pub fn merge_key(self) -> Option<String> {
        if let Some(key) = self.extension("x-kubernetes-patch-merge-key").and_then(Value::as_str) {
            return Some(key.to_owned());
        }
        keys::row(self.kind, self.parent, self.field).and_then(|row| row.merge_key).map(str::to_owned)
    }

    /// Whether strategic merge patch joins this list of scalars.
    pub fn merges_primitives(self) -> bool {
        if self
            .extension("x-kubernetes-patch-strategy")
            .and_then(Value::as_str)
            .is_some_and(|strategy| strategy.split(',').any(|one| one == "merge"))
        {
            return true;
        }
        self.field == "finalizers" && self.parent == "metadata"
    }

    /// How apply sees this list.
    pub fn list_kind(self) -> ListKind {
        match self.extension("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => return ListKind::Set,
            Some("atomic") => return ListKind::Atomic,
            Some("map") => {
                let keys = self.extension("x-kubernetes-list-map-keys").and_then(Value::as_array);
                return ListKind::Map(
                    keys.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
                );
            }
            _ => {}
        }
        if self.field == "finalizers" && self.parent == "metadata" {
            return ListKind::Set;
        }
        match keys::row(self.kind, self.parent, self.field) {
            Some(row) if !row.apply_keys.is_empty() => {
                ListKind::Map(row.apply_keys.iter().map(|key| (*key).to_owned()).collect())
            }
            _ => ListKind::Atomic,
        }
    }

    /// Whether apply sees this map as one value.
    pub fn is_atomic_map(self) -> bool {
        match self.extension("x-kubernetes-map-type").and_then(Value::as_str) {
            Some(kind) => kind == "atomic",
            None => keys::is_atomic_map(self.kind, self.field),
        }
    }

    /// The default that the schema gives a member of a list element, for merge keys that may be left out.
    pub fn default_of(self, name: &str) -> Option<Value> {
        if let Some(value) = self.property(name).node.and_then(|node| node.get("default")) {
            return Some(value.clone());
        }
        (name == "protocol" && self.field == "ports").then(|| Value::from("TCP"))
    }

    fn extension(self, name: &str) -> Option<&'a Value> {
        self.node.and_then(|node| node.get(name))
    }
}

fn additional(node: &Value) -> Option<&Value> {
    node.get("additionalProperties").filter(|schema| schema.is_object())
}

/// Follows `$ref`, and `allOf` with one member (the way generators wrap references).
fn resolve<'a>(root: &'a Value, mut node: &'a Value) -> Option<&'a Value> {
    for _ in 0..MAX_REFERENCES {
        let reference = match node.get("$ref") {
            Some(reference) => reference,
            None => match node.get("allOf").and_then(Value::as_array).map(Vec::as_slice) {
                Some([one]) if node.get("properties").is_none() && one.get("$ref").is_some() => &one["$ref"],
                _ => return Some(node),
            },
        };
        let name = reference.as_str()?.rsplit('/').next()?;
        node = ["/definitions", "/$defs", "/components/schemas"]
            .iter()
            .find_map(|place| root.pointer(place)?.get(name))?;
    }
    None
}
