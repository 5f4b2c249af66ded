//! Objects as the machinery hands them around: complete JSON text plus the little metadata that selects and compares.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

/// What the machinery keeps of an object beside its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// `namespace/name`, or `name` for cluster scope.
    pub key: Box<str>,
    /// Revision of the last write; the resourceVersion.
    pub revision: u64,
    /// Labels in key order.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the kind's selectable fields, in the kind's order.
    pub fields: Box<[Box<str>]>,
}

impl Meta {
    /// Object name.
    pub fn name(&self) -> &str {
        self.key.rsplit_once('/').map_or(&self.key, |(_, name)| name)
    }

    /// Namespace; empty for cluster scope.
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }
}

/// An object. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Object {
    /// Complete JSON, including `resourceVersion`.
    pub bytes: Bytes,
    /// Its metadata.
    pub meta: Arc<Meta>,
}

impl Object {
    /// Object name.
    pub fn name(&self) -> &str {
        self.meta.name()
    }

    /// Namespace; empty for cluster scope.
    pub fn namespace(&self) -> &str {
        self.meta.namespace()
    }

    /// The resourceVersion; 0 for objects that are not stored.
    pub fn revision(&self) -> u64 {
        self.meta.revision
    }

    /// The object as a tree.
    pub fn to_value(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }
}

/// A (page of a) list.
#[derive(Clone, Debug, Default)]
pub struct ObjectList {
    /// The objects in key order.
    pub items: Vec<Object>,
    /// The version of the list as a whole.
    pub resource_version: u64,
    /// Token for the next page.
    pub continue_token: Option<String>,
    /// How many objects remain after this page, when known.
    pub remaining: Option<u64>,
}

impl ObjectList {
    /// The list as JSON, by concatenation; `kind` is e.g. `PodList`.
    pub fn to_json(&self, api_version: &str, kind: &str) -> Bytes {
        let total: usize = self.items.iter().map(|item| item.bytes.len() + 1).sum();
        let mut out = Vec::with_capacity(total + 256);
        let header = serde_json::json!({"apiVersion": api_version, "kind": kind});
        out.extend_from_slice(header.to_string().trim_end_matches('}').as_bytes());
        out.extend_from_slice(b",\"metadata\":{\"resourceVersion\":\"");
        out.extend_from_slice(self.resource_version.to_string().as_bytes());
        out.push(b'"');
        if let Some(token) = &self.continue_token {
            out.extend_from_slice(b",\"continue\":");
            out.extend_from_slice(Value::from(token.as_str()).to_string().as_bytes());
        }
        if let Some(remaining) = self.remaining {
            out.extend_from_slice(format!(",\"remainingItemCount\":{remaining}").as_bytes());
        }
        out.extend_from_slice(b"},\"items\":[");
        for (index, item) in self.items.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&item.bytes);
        }
        out.extend_from_slice(b"]}");
        Bytes::from(out)
    }
}
