//! Watches as streamed JSON lines, in the shape that was negotiated.

use std::sync::Arc;

use apiserver::{EventKind, Kind, WatchEvent, WatchStream};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::negotiate::Shape;
use crate::table::{self, Include};

/// How events are dressed.
pub(crate) struct Dress {
    /// The kind watched.
    pub(crate) kind: Arc<Kind>,
    /// The shape asked for.
    pub(crate) shape: Shape,
    /// What table rows carry.
    pub(crate) include: Include,
    /// The clock.
    pub(crate) now: fn() -> Timestamp,
}

/// The answer to a watch.
pub(crate) fn response(events: WatchStream, dress: Dress) -> Response {
    let mut response = Response::new(Body::from_stream(frames(events, dress).map(Ok::<_, std::convert::Infallible>)));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn frames(events: WatchStream, dress: Dress) -> impl Stream<Item = Bytes> {
    let mut headed = false;
    events.map(move |event| match (dress.shape, event.kind) {
        (Shape::Object, _) | (_, EventKind::Error) => event.frame(),
        (Shape::Metadata, _) => WatchEvent::new(event.kind, metadata(&event.object)).frame(),
        (Shape::Table, _) => {
            let dressed = table_event(&event, &dress, !headed);
            headed = true;
            dressed
        }
    })
}

/// The object's metadata as they stand: nothing of an object is taken apart for each of its events.
fn metadata(object: &[u8]) -> Bytes {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow)]
        metadata: Option<&'a RawValue>,
    }
    let head: Option<Head<'_>> = serde_json::from_slice(object).ok();
    let text = head.and_then(|head| head.metadata).map_or("{}", RawValue::get);
    Bytes::from(format!(r#"{{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{text}}}"#))
}

/// Only the first table of a watch carries its column heads, as kube-apiserver does.
fn table_event(event: &WatchEvent, dress: &Dress, with_heads: bool) -> Bytes {
    let object: Value = serde_json::from_slice(&event.object).unwrap_or(Value::Null);
    let single = table::single_metadata(&object);
    let row = if event.kind == EventKind::Bookmark {
        json!({"cells": [], "object": table::partial_metadata(object)})
    } else {
        table::row(&dress.kind, object, dress.include, (dress.now)())
    };
    let heads = with_heads.then(|| table::column_definitions(&dress.kind));
    let table = table::table(heads, vec![row], single);
    WatchEvent::new(event.kind, Bytes::from(table.to_string())).frame()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_are_those_of_the_object_alone() {
        for object in [
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"metadata":"}\"{"}},"spec":{"metadata":{"name":"b"}}}"#,
            r#"{"spec":{"metadata":1},"metadata":{}}"#,
            r#"{"kind":"Pod"}"#,
            "[]",
        ] {
            let whole = serde_json::from_str(object).unwrap();
            let found: Value = serde_json::from_slice(&metadata(object.as_bytes())).unwrap();
            assert_eq!(found, table::partial_metadata(whole), "{object}");
        }
    }

    #[tokio::test]
    async fn only_the_first_table_event_has_column_heads() {
        let object = Bytes::from_static(br#"{"metadata":{"name":"a","resourceVersion":"5"}}"#);
        let events =
            vec![WatchEvent::new(EventKind::Added, object.clone()), WatchEvent::new(EventKind::Modified, object)];
        let dress = Dress {
            kind: Arc::new(Kind::new("", "v1", "Thing", "things")),
            shape: Shape::Table,
            include: Include::Metadata,
            now: Timestamp::now,
        };
        let lines: Vec<Value> = frames(Box::pin(futures::stream::iter(events)), dress)
            .map(|line| serde_json::from_slice(&line).unwrap())
            .collect()
            .await;
        let heads = |line: &Value| line["object"]["columnDefinitions"].as_array().unwrap().len();
        assert_eq!((heads(&lines[0]), heads(&lines[1])), (2, 0));
        assert_eq!(lines[1]["object"]["rows"][0]["cells"][0], "a");
    }
}
