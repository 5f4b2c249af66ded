//! `metadata.managedFields`: one entry per manager, operation, version and subresource.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::fields::{FieldSet, compare, from_json, leaves, to_json};
use crate::kind::Kind;
use crate::options::WriteOptions;
use crate::schema::SchemaRef;
use crate::status::Status;
use crate::user::RequestContext;

/// Longest name of a manager. Units: bytes.
const MAX_MANAGER_BYTES: usize = 128;
/// Most entries of managers that update; the oldest are joined beyond that, as in Kubernetes.
const MAX_UPDATERS: usize = 10;

/// One manager's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub manager: String,
    pub operation: String,
    pub api_version: String,
    pub subresource: String,
    pub time: String,
    pub fields: FieldSet,
}

impl Entry {
    fn is_same(&self, other: &Entry) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == "Apply" || self.api_version == other.api_version)
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({"manager": self.manager, "operation": self.operation, "apiVersion": self.api_version,
            "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": to_json(&self.fields)});
        if !self.subresource.is_empty() {
            entry["subresource"] = json!(self.subresource);
        }
        entry
    }
}

/// The entries of an object.
pub fn read(object: &Value) -> Vec<Entry> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    let text = |entry: &Value, member: &str| entry.get(member).and_then(Value::as_str).unwrap_or_default().to_owned();
    entries
        .into_iter()
        .flatten()
        .map(|entry| Entry {
            manager: text(entry, "manager"),
            operation: text(entry, "operation"),
            api_version: text(entry, "apiVersion"),
            subresource: text(entry, "subresource"),
            time: text(entry, "time"),
            fields: from_json(&entry["fieldsV1"]),
        })
        .filter(|entry| !entry.fields.is_empty())
        .collect()
}

/// The name under which a request's fields are recorded.
fn manager(ctx: &RequestContext, o: &WriteOptions) -> Result<String, Status> {
    let name = match o.field_manager.as_deref().filter(|name| !name.is_empty()) {
        Some(name) if name.len() > MAX_MANAGER_BYTES || name.chars().any(char::is_control) => {
            return Err(Status::bad_request(format!(
                "fieldManager: Invalid value: {name:?}: must be printable and at most {MAX_MANAGER_BYTES} bytes"
            )));
        }
        Some(name) => name.to_owned(),
        None => ctx
            .user_agent
            .split('/')
            .next()
            .unwrap_or_default()
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_MANAGER_BYTES)
            .collect(),
    };
    Ok(if name.is_empty() { "unknown".to_owned() } else { name })
}

/// Keeps of the fields those that a (sub)resource may manage.
pub(super) fn in_scope(kind: &Kind, subresource: Option<&str>, path: &[String]) -> bool {
    let in_status = path.first().is_some_and(|step| step == "f:status");
    match subresource {
        Some("status") => in_status || !kind.custom && path.first().is_some_and(|step| step == "f:metadata"),
        _ => !(kind.status_subresource && in_status),
    }
}

/// Writes `managedFields` of a new or changed object. `applied` is the configuration of an apply.
#[allow(clippy::too_many_arguments)] // All of a write's circumstances count here.
pub fn record_write(
    kind: &Kind,
    new: &mut Value,
    old: Option<&Value>,
    applied: Option<&Value>,
    ctx: &RequestContext,
    o: &WriteOptions,
    now: Timestamp,
    subresource: Option<&str>,
) -> Result<(), Status> {
    let schema = SchemaRef::root(kind);
    let reset = new.pointer("/metadata/managedFields").is_some_and(|given| *given == json!([{}]));
    let mut entries = match old {
        Some(old) if !reset => read(old),
        _ => Vec::new(),
    };
    let new_leaves = leaves(schema, new);
    let (changed, removed) = match old {
        Some(old) => compare(&leaves(schema, old), &new_leaves),
        None => (new_leaves.keys().cloned().collect(), FieldSet::new()),
    };
    let mut own = Entry {
        manager: manager(ctx, o)?,
        operation: if applied.is_some() { "Apply" } else { "Update" }.to_owned(),
        api_version: kind.api_version(),
        subresource: subresource.unwrap_or_default().to_owned(),
        time: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        fields: FieldSet::new(),
    };
    let at = entries.iter().position(|entry| entry.is_same(&own));
    for (index, entry) in entries.iter_mut().enumerate() {
        let mine = Some(index) == at;
        entry.fields.retain(|path| !removed.contains(path) && (mine || !changed.contains(path)));
    }
    own.fields = match applied {
        Some(applied) => leaves(schema, applied).into_keys().collect(),
        None => changed,
    };
    own.fields.retain(|path| in_scope(kind, subresource, path));
    match at.map(|at| &mut entries[at]) {
        Some(entry) => {
            let next: FieldSet =
                if applied.is_some() { own.fields } else { entry.fields.union(&own.fields).cloned().collect() };
            if next != entry.fields || entry.api_version != own.api_version {
                *entry = Entry { fields: next, ..own };
            }
        }
        None => entries.push(own),
    }
    entries.retain(|entry| !entry.fields.is_empty());
    join_oldest(&mut entries);
    let entries: Vec<Value> = entries.iter().map(Entry::to_json).collect();
    if entries.is_empty() {
        crate::json::metadata_mut(new).map(|metadata| metadata.remove("managedFields"));
    } else {
        crate::json::set_metadata(new, "managedFields", Value::Array(entries));
    }
    Ok(())
}

/// Joins the oldest updaters when there are too many.
fn join_oldest(entries: &mut Vec<Entry>) {
    while entries.iter().filter(|entry| entry.operation == "Update").count() > MAX_UPDATERS {
        let oldest = |entries: &[Entry], but: Option<usize>| {
            let updaters =
                entries.iter().enumerate().filter(|(index, entry)| entry.operation == "Update" && Some(*index) != but);
            updaters.min_by(|(_, a), (_, b)| a.time.cmp(&b.time)).map(|(index, _)| index)
        };
        let Some(first) = oldest(entries, None) else { return };
        let joined = entries.remove(first);
        let Some(second) = oldest(entries, None) else { return };
        if let Some(entry) = entries.get_mut(second) {
            entry.fields.extend(joined.fields);
            entry.manager = "ancient-changes".to_owned();
        }
    }
}
