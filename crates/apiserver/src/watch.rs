//! The events that a watch yields.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::Stream;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// New to the watcher.
    Added,
    /// Changed.
    Modified,
    /// Gone, or no longer selected.
    Deleted,
    /// Nothing happened up to this version.
    Bookmark,
    /// The watch ends; the object is a `Status`.
    Error,
}

impl EventKind {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Added => "ADDED",
            EventKind::Modified => "MODIFIED",
            EventKind::Deleted => "DELETED",
            EventKind::Bookmark => "BOOKMARK",
            EventKind::Error => "ERROR",
        }
    }
}

/// One event of a watch. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct WatchEvent {
    /// What happened.
    pub kind: EventKind,
    /// The object as complete JSON.
    pub object: Bytes,
    shared_frame: Option<Arc<OnceLock<Bytes>>>,
}

impl WatchEvent {
    /// An event of its own.
    pub fn new(kind: EventKind, object: Bytes) -> WatchEvent {
        WatchEvent { kind, object, shared_frame: None }
    }

    /// An event whose frame is made once and shared by all who hold `frame`.
    pub(crate) fn shared(kind: EventKind, object: Bytes, frame: Arc<OnceLock<Bytes>>) -> WatchEvent {
        WatchEvent { kind, object, shared_frame: Some(frame) }
    }

    /// `{"type":…,"object":…}` and a newline; all watchers of one event share one allocation.
    pub fn frame(&self) -> Bytes {
        match &self.shared_frame {
            Some(cell) => cell.get_or_init(|| render(self.kind, &self.object)).clone(),
            None => render(self.kind, &self.object),
        }
    }
}

fn render(kind: EventKind, object: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(object.len() + 40);
    frame.extend_from_slice(b"{\"type\":\"");
    frame.extend_from_slice(kind.as_str().as_bytes());
    frame.extend_from_slice(b"\",\"object\":");
    frame.extend_from_slice(object);
    frame.extend_from_slice(b"}\n");
    Bytes::from(frame)
}

/// A running watch; dropping it ends it. The stream ends after an [`EventKind::Error`] or when its time is over.
pub type WatchStream = Pin<Box<dyn Stream<Item = WatchEvent> + Send>>;
