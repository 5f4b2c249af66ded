//! One store transaction for one object: the object itself, the values that must stay unique, and the compares that
//! make it safe. Waits until the cache has seen it, so that the writer reads its own write.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use store::{Compare, Operation, OperationResult, Transaction};

use super::body::MAX_OBJECT_BYTES;
use crate::encoding;
use crate::keys;
use crate::kind::Kind;
use crate::object::Object;
use crate::server::ApiServer;
use crate::status::{Cause, Reason, Status};

/// How long a writer waits to see its own write in the cache. The write is durable before that.
const OWN_WRITE_WAIT: Duration = Duration::from_secs(10);

/// What the store must hold for the write to happen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    /// Nothing under this name.
    Absent,
    /// The object at this revision.
    Revision(u64),
}

/// A write of one object.
pub(crate) struct Commit<'a> {
    pub(crate) kind: &'a Kind,
    pub(crate) relative: &'a str,
    pub(crate) expect: Expect,
    pub(crate) old: Option<&'a Value>,
    /// The new state; `None` deletes.
    pub(crate) new: Option<&'a Value>,
}

/// How a write ended.
pub(crate) enum Outcome {
    /// Written; for deletions the object is the last state.
    Done(Object),
    /// The object is there already.
    Exists,
    /// The object changed meanwhile or is gone.
    Stale,
    /// A unique value is taken: its key and the object that has it.
    Taken(String, String),
}

impl ApiServer {
    /// Runs the transaction.
    pub(crate) async fn commit(&self, commit: Commit<'_>) -> Result<Outcome, Status> {
        let Commit { kind, relative, expect, old, new } = commit;
        let key = Bytes::from(keys::object(kind, relative));
        if key.len() > store::MAX_KEY_BYTES {
            return Err(Status::bad_request("the name is too long"));
        }
        let text = new.map(|new| Bytes::from(encode_as(kind, new)));
        if text.as_ref().is_some_and(|text| text.len() > MAX_OBJECT_BYTES) {
            return Err(Status::request_entity_too_large(format!(
                "the object is larger than {MAX_OBJECT_BYTES} bytes"
            )));
        }
        let lease = self.event_lease.of(&self.store, kind).await?;
        let held = old.map(|old| self.unique_keys(kind, old)).unwrap_or_default();
        let wanted = new.map(|new| self.unique_keys(kind, new)).unwrap_or_default();
        let transaction = transaction(
            &key,
            text.clone().map(|text| (text, lease)),
            expect,
            &held,
            &wanted,
            relative,
            self.namespace_key(kind, relative, expect),
        );
        let response = self.store.transact(transaction).await?;
        if !response.succeeded {
            return failure(
                kind,
                relative,
                expect,
                &wanted.difference(&held).cloned().collect::<Vec<_>>(),
                &response.results,
            );
        }
        let object = match &text {
            Some(text) => encoding::object(relative, text, response.revision, &kind.selectable_fields),
            None => {
                let last = old.map(|old| encode_as(kind, old)).unwrap_or_default();
                encoding::object(relative, &last, response.revision, &kind.selectable_fields)
            }
        };
        if !self.progress.wait(response.revision, OWN_WRITE_WAIT).await {
            tracing::warn!(revision = response.revision, "the cache lags behind the store");
        }
        Ok(Outcome::Done(crate::read::show(kind, object)))
    }

    /// The object as it would be, for dry runs.
    pub(crate) fn as_if_written(&self, kind: &Kind, relative: &str, value: &Value, revision: u64) -> Object {
        encoding::object(relative, &encoding::encode(value), revision, &kind.selectable_fields)
    }

    fn unique_keys(&self, kind: &Kind, object: &Value) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        if let Some(pointer) = &kind.unique_field {
            let value = crate::json::text(object, pointer);
            if !value.is_empty() {
                found.insert(keys::unique(kind, crate::json::text(object, "/metadata/namespace"), value));
            }
        }
        if kind.allocator.is_some() {
            found.extend(crate::allocation::reserved_keys(object));
        }
        found
    }

    fn namespace_key(&self, kind: &Kind, relative: &str, expect: Expect) -> Option<Bytes> {
        let (namespace, _) = relative.split_once('/')?;
        (matches!(expect, Expect::Absent) && kind.namespaced && self.knows_namespaces())
            .then(|| Bytes::from(format!("{}core/namespaces/{namespace}", keys::OBJECTS)))
    }

    /// Whether namespaces are served at all; some tests serve less.
    pub(crate) fn knows_namespaces(&self) -> bool {
        self.kinds.load().lookup("", "v1", "namespaces").is_some()
    }
}

/// The text to store.
fn encode_as(kind: &Kind, object: &Value) -> Vec<u8> {
    if kind.view.is_none() && kind.version == kind.storage_version {
        return encoding::encode(object);
    }
    encoding::encode(&kind.to_stored(object))
}

fn transaction(
    key: &Bytes,
    text: Option<(Bytes, store::LeaseId)>,
    expect: Expect,
    held: &BTreeSet<String>,
    wanted: &BTreeSet<String>,
    relative: &str,
    namespace: Option<Bytes>,
) -> Transaction {
    let mut transaction = Transaction::default();
    let revision = match expect {
        Expect::Absent => 0,
        Expect::Revision(revision) => revision,
    };
    transaction.compare.push(Compare::ModRevision(key.clone(), revision));
    transaction.otherwise.push(Operation::Get(key.clone()));
    transaction.then.push(match text {
        Some((text, lease)) => Operation::Put(key.clone(), text, lease),
        None => Operation::Delete(key.clone()),
    });
    for value in wanted.difference(held) {
        let value = Bytes::from(value.clone());
        transaction.compare.push(Compare::ModRevision(value.clone(), 0));
        transaction.then.push(Operation::Put(value.clone(), Bytes::from(relative.to_owned()), 0));
        transaction.otherwise.push(Operation::Get(value));
    }
    for value in held.difference(wanted) {
        transaction.then.push(Operation::Delete(Bytes::from(value.clone())));
    }
    transaction.compare.extend(namespace.map(Compare::Exists));
    transaction
}

/// Why the compares did not hold.
fn failure(
    kind: &Kind,
    relative: &str,
    expect: Expect,
    added: &[String],
    results: &[OperationResult],
) -> Result<Outcome, Status> {
    let found = |index: usize| match results.get(index) {
        Some(OperationResult::Got(Some(found))) => Some(found),
        _ => None,
    };
    match (expect, found(0)) {
        (Expect::Absent, Some(_)) => return Ok(Outcome::Exists),
        (Expect::Revision(_), None) => return Ok(Outcome::Stale),
        (Expect::Revision(revision), Some(found)) if found.mod_revision != revision => return Ok(Outcome::Stale),
        _ => {}
    }
    for (index, key) in added.iter().enumerate() {
        if let Some(holder) = found(index + 1) {
            return Ok(Outcome::Taken(key.clone(), String::from_utf8_lossy(&holder.value).into_owned()));
        }
    }
    match relative.split_once('/') {
        Some((namespace, _)) if kind.namespaced => Err(Status::not_found("", "namespaces", namespace)),
        _ => Ok(Outcome::Stale),
    }
}

/// The answer when a unique value is taken.
pub(crate) fn taken(kind: &Kind, name: &str, key: &str, holder: &str) -> Status {
    let value = key.rsplit_once('/').map_or(key, |(_, value)| value);
    let field = kind.unique_field.as_deref().unwrap_or_default().trim_start_matches('/').replace('/', ".");
    let mut status = Status::already_exists(&kind.group, &kind.plural, name);
    status.reason = Reason::AlreadyExists;
    status.message = format!("{} \"{name}\": {field} \"{value}\" is already used by \"{holder}\"", kind.qualified());
    status.details.causes.push(Cause {
        reason: "FieldValueDuplicate".into(),
        message: format!("Duplicate value: \"{value}\": used by \"{holder}\""),
        field,
    });
    status
}
