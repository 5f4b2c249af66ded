//! Between the store's words and etcd's. Pure.

use bytes::Bytes;
use tonic::{Code, Status};

use super::wire;
use crate::error::{Error, Result};
use crate::types::{
    Compare, Event, KeyRange, KeyValue, LeaseId, Operation, OperationResult, Revision, Transaction, WatchItem,
    prefix_end,
};

/// etcd's end of a range that has none: a single zero byte.
const NO_END: &[u8] = b"\0";

pub(crate) fn to_wire(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn from_wire(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(crate) fn from_wire_revision(header: Option<&wire::ResponseHeader>) -> Revision {
    header.map_or(0, |header| from_wire(header.revision))
}

/// First key and end of a range, as etcd wants them.
pub(crate) fn range(range: &KeyRange) -> (Bytes, Bytes) {
    match range {
        KeyRange::Key(key) => (key.clone(), Bytes::new()),
        KeyRange::Prefix(prefix) => {
            let first = if prefix.is_empty() { Bytes::from_static(NO_END) } else { prefix.clone() };
            (first, prefix_end(prefix).unwrap_or(Bytes::from_static(NO_END)))
        }
        KeyRange::Between(from, to) => (from.clone(), to.clone()),
    }
}

pub(crate) fn key_value(item: wire::KeyValue) -> KeyValue {
    KeyValue {
        key: item.key,
        value: item.value,
        create_revision: from_wire(item.create_revision),
        mod_revision: from_wire(item.mod_revision),
        version: from_wire(item.version),
        lease: from_wire(item.lease),
    }
}

pub(crate) fn transaction(transaction: Transaction) -> wire::TxnRequest {
    wire::TxnRequest {
        compare: transaction.compare.into_iter().map(compare).collect(),
        success: transaction.then.into_iter().map(operation).collect(),
        failure: transaction.otherwise.into_iter().map(operation).collect(),
    }
}

/// Every lease that the transaction names.
pub(crate) fn leases(transaction: &Transaction) -> Vec<LeaseId> {
    let steps = transaction.then.iter().chain(&transaction.otherwise);
    steps
        .filter_map(|step| if let Operation::Put(_, _, lease) = step { Some(*lease) } else { None })
        .filter(|lease| *lease != 0)
        .collect()
}

fn compare(compare: Compare) -> wire::Compare {
    let (key, result, target, value) = match compare {
        Compare::Exists(key) => (key, wire::GREATER, wire::TARGET_VERSION, wire::Target::Version(0)),
        Compare::ModRevision(key, revision) => {
            (key, wire::EQUAL, wire::TARGET_MOD, wire::Target::Mod(to_wire(revision)))
        }
        Compare::CreateRevision(key, revision) => {
            (key, wire::EQUAL, wire::TARGET_CREATE, wire::Target::Create(to_wire(revision)))
        }
    };
    wire::Compare { result, target, key, target_union: Some(value) }
}

fn operation(operation: Operation) -> wire::RequestOp {
    let request = match operation {
        Operation::Put(key, value, lease) => wire::Request::Put(wire::PutRequest { key, value, lease: to_wire(lease) }),
        Operation::Delete(key) => wire::Request::DeleteRange(wire::DeleteRangeRequest { key, prev_kv: true }),
        Operation::Get(key) => wire::Request::Range(wire::RangeRequest { key, ..wire::RangeRequest::default() }),
    };
    wire::RequestOp { request: Some(request) }
}

pub(crate) fn result(response: wire::ResponseOp) -> Result<OperationResult> {
    match response.response {
        Some(wire::Response::Put(_)) => Ok(OperationResult::Put),
        Some(wire::Response::DeleteRange(answer)) => {
            Ok(OperationResult::Deleted(answer.prev_kvs.into_iter().next().map(key_value)))
        }
        Some(wire::Response::Range(answer)) => Ok(OperationResult::Got(answer.kvs.into_iter().next().map(key_value))),
        None => Err(Error::Unavailable("etcd's answer lacks a result".into())),
    }
}

/// One item per revision; etcd sends all events of one revision together.
pub(crate) fn watch_items(answer: wire::WatchResponse) -> Vec<Result<WatchItem>> {
    if answer.events.is_empty() {
        return vec![Ok(WatchItem::Progress(from_wire_revision(answer.header.as_ref())))];
    }
    let mut items: Vec<Result<WatchItem>> = Vec::new();
    for event in answer.events {
        let Some(current) = event.kv.map(key_value) else { continue };
        let previous = event.prev_kv.map(key_value);
        let at = current.mod_revision;
        let event = if event.kind == wire::EVENT_DELETE {
            Event::Delete { key: current.key, revision: at, previous }
        } else {
            Event::Put { current, previous }
        };
        match items.last_mut() {
            Some(Ok(WatchItem::Events { revision, events })) if *revision == at => events.push(event),
            _ => items.push(Ok(WatchItem::Events { revision: at, events: vec![event] })),
        }
    }
    items
}

/// Why etcd ended a watch.
pub(crate) fn cancelled(answer: &wire::WatchResponse) -> Error {
    if answer.compact_revision > 0 {
        return Error::Compacted { oldest: from_wire(answer.compact_revision) };
    }
    Error::Unavailable(format!("etcd ended the watch: {}", answer.cancel_reason))
}

/// etcd tells its errors apart by text; the codes alone do not.
/// `Source:` etcd 3.4, `etcdserver/api/v3rpc/rpctypes/error.go`.
pub(crate) fn error(status: &Status) -> Error {
    let text = status.message();
    if text.contains("required revision has been compacted") {
        return Error::Compacted { oldest: 0 };
    }
    if text.contains("required revision is a future revision") {
        return Error::FutureRevision { newest: 0 };
    }
    if text.contains("database space exceeded") {
        return Error::NoSpace;
    }
    if text.contains("requested lease not found") {
        return Error::LeaseNotFound(0);
    }
    match status.code() {
        Code::InvalidArgument => Error::Invalid(text.into()),
        Code::DataLoss => Error::Corrupt(text.into()),
        _ => Error::Unavailable(format!("etcd: {text}")),
    }
}

/// As [`error`], naming the lease when there is only one that it can be.
pub(crate) fn transaction_error(status: &Status, leases: &[LeaseId]) -> Error {
    match (error(status), leases) {
        (Error::LeaseNotFound(_), [lease, ..]) => Error::LeaseNotFound(*lease),
        (other, _) => other,
    }
}
