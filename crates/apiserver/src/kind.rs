//! The registration of a kind: one value that says everything the machinery needs to serve it.

use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use serde_json::Value;

use crate::status::Cause;

/// Where a column of `kubectl get` takes its value.
#[derive(Clone, Debug)]
pub enum ColumnValue {
    /// A JSONPath relative to the object, e.g. `.spec.replicas`.
    JsonPath(String),
    /// A function of the object and the present.
    Function(fn(&Value, Timestamp) -> Value),
}

/// A column of the `Table` form.
#[derive(Clone, Debug)]
pub struct Column {
    /// Heading.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    /// OpenAPI format; `name` marks the primary column.
    pub format: String,
    /// For people.
    pub description: String,
    /// 0 is always shown; above only with `-o wide`.
    pub priority: i32,
    /// Where the value comes from.
    pub value: ColumnValue,
}

/// The fields behind a `scale` subresource, as JSON pointers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    /// Desired replicas, e.g. `/spec/replicas`.
    pub spec_replicas: String,
    /// Observed replicas, e.g. `/status/replicas`.
    pub status_replicas: String,
    /// A label selector, as text or as a `LabelSelector`; `None` when there is none.
    pub selector: Option<String>,
}

/// A further subresource, for discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// `log`, `exec`, `binding`, `token`…
    pub name: String,
    /// Kind of its body.
    pub kind: String,
    /// Group of that kind; empty for the parent's.
    pub group: String,
    /// Version of that kind; empty for the parent's.
    pub version: String,
    /// Its verbs.
    pub verbs: Vec<String>,
}

/// Values that must be unique across objects and that the machinery hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocator {
    /// `clusterIP(s)` and `nodePort`s of a Service.
    ServiceAddresses,
}

/// A kind that is another one in other words: it has no objects of its own, but shows and writes those of `group`, whose
/// resource has the same plural name. Selectable fields are those of the other kind, in its order, under own labels.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// API group of the kind whose objects these are; empty for the core group.
    pub group: &'static str,
    /// Its API version.
    pub version: &'static str,
    /// Turns a stored object into the words of this kind.
    pub read: fn(&mut Value),
    /// The other way round.
    pub write: fn(&mut Value),
}

/// The OpenAPI v3 schema of a kind, made at its first use and kept from then on: a machine writes few of the kinds that it
/// serves, and the schemas of all would be most of what an idle daemon holds.
#[derive(Clone)]
pub struct KindSchema(Arc<LazyLock<Made, Box<dyn FnOnce() -> Made + Send>>>);

struct Made {
    schema: Value,
    has_rules: bool,
}

impl KindSchema {
    /// A schema that `make` answers when somebody asks.
    pub fn lazy(make: impl FnOnce() -> Value + Send + 'static) -> KindSchema {
        KindSchema(Arc::new(LazyLock::new(Box::new(|| {
            let schema = make();
            let has_rules = crate::schema::has_rules(&schema);
            Made { schema, has_rules }
        }))))
    }

    /// Whether it has any rule in CEL; most have none.
    pub fn has_rules(&self) -> bool {
        self.0.has_rules
    }
}

impl From<Value> for KindSchema {
    fn from(schema: Value) -> KindSchema {
        KindSchema::lazy(move || schema)
    }
}

impl Deref for KindSchema {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0.schema
    }
}

impl std::fmt::Debug for KindSchema {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("KindSchema")
    }
}

/// Everything about a kind in one version. Build it with `Kind { …, ..Kind::new(…) }`.
#[derive(Clone, Debug)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind, e.g. `Pod`.
    pub kind: String,
    /// Plural resource name, e.g. `pods`.
    pub plural: String,
    /// Singular name; may be empty.
    pub singular: String,
    /// Short names for the command line.
    pub short_names: Vec<String>,
    /// Categories such as `all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether objects are stored. Reviews (`SubjectAccessReview`, `TokenReview`…) are answered, not stored.
    pub stored: bool,
    /// OpenAPI v3 schema of the object, with `x-kubernetes-*` extensions; `$ref`s are resolved by their last segment in
    /// `definitions`, `$defs` or `components.schemas` of this same value.
    pub schema: KindSchema,
    /// Fields outside the schema are dropped, and defaults come from the schema (CustomResourceDefinitions).
    pub structural: bool,
    /// Columns of the `Table` form.
    pub columns: Vec<Column>,
    /// Fills in defaults.
    pub default: fn(&mut Value),
    /// Checks what the schema cannot say.
    pub validate: fn(&Value, Option<&Value>) -> Vec<Cause>,
    /// Last word before a create, after defaults; status was already dropped when there is a status subresource.
    pub prepare_create: fn(&mut Value),
    /// Last word before an update of the main resource: new object, old object.
    pub prepare_update: fn(&mut Value, &Value),
    /// Whether `status` is a subresource.
    pub status_subresource: bool,
    /// The `scale` subresource.
    pub scale: Option<ScalePaths>,
    /// Other subresources, for discovery.
    pub subresources: Vec<Subresource>,
    /// Fields that field selectors may name, beside `metadata.name` and `metadata.namespace`: (label, JSON pointer).
    pub selectable_fields: Vec<(String, String)>,
    /// JSON pointer of a value that is unique among the kind's objects in a namespace, in the same transaction.
    pub unique_field: Option<String>,
    /// Unique values handed out by the machinery.
    pub allocator: Option<Allocator>,
    /// Version in which objects are stored; differs from `version` only for kinds with several versions.
    pub storage_version: String,
    /// Whether this version comes from a CustomResourceDefinition.
    pub custom: bool,
    /// Deprecation warning of this version.
    pub deprecation: Option<String>,
    /// Whose objects these are, when they are another kind's.
    pub view: Option<View>,
}

impl Kind {
    /// A namespaced kind with an open schema and no extras.
    pub fn new(group: &str, version: &str, kind: &str, plural: &str) -> Kind {
        Kind {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            stored: true,
            schema: KindSchema::lazy(
                || serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            ),
            structural: false,
            columns: Vec::new(),
            default: |_| {},
            validate: |_, _| Vec::new(),
            prepare_create: |_| {},
            prepare_update: |_, _| {},
            status_subresource: false,
            scale: None,
            subresources: Vec::new(),
            selectable_fields: Vec::new(),
            unique_field: None,
            allocator: None,
            storage_version: version.to_owned(),
            custom: false,
            deprecation: None,
            view: None,
        }
    }

    /// The group under which objects are stored.
    pub(crate) fn storage_group(&self) -> &str {
        self.view.map_or(&self.group, |view| view.group)
    }

    /// An object as it is stored, from the words of this kind.
    pub(crate) fn to_stored(&self, object: &Value) -> Value {
        let mut object = object.clone();
        let mut stored = Kind { version: self.storage_version.clone(), ..Kind::new(&self.group, "", "", "") };
        if let Some(view) = self.view {
            (view.write)(&mut object);
            stored = Kind::new(view.group, view.version, "", "");
        }
        object["apiVersion"] = Value::from(stored.api_version());
        object
    }

    /// An object in the words of this kind, from what is stored.
    pub(crate) fn to_shown(&self, mut object: Value) -> Value {
        if let Some(view) = self.view {
            (view.read)(&mut object);
        }
        object["apiVersion"] = Value::from(self.api_version());
        object
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        crate::path::api_version(&self.group, &self.version)
    }

    /// `pods` or `deployments.apps`.
    pub fn qualified(&self) -> String {
        crate::path::qualified(&self.plural, &self.group)
    }

    /// Whether this is the kind `plural` of `group`.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_schema_is_made_once_at_its_first_use() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        let schema = KindSchema::lazy(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            serde_json::json!({"type": "object"})
        });
        let other = schema.clone();
        assert_eq!(made.load(Ordering::Relaxed), 0);
        assert_eq!((schema["type"].as_str(), other["type"].as_str()), (Some("object"), Some("object")));
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }
}
