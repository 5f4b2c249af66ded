//! Contexts that come beside their builds: a client that builds over a session sends an archive of its own in one request, and the
//! build in another. They meet here, whichever comes first. `Source:` docker 20.10, `cli/command/image/build_buildkit.go`; moby,
//! `builder/builder-next`.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use image::ByteStream;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::error::{Error, Result};

/// How such a build says that its context comes in another request.
pub(super) const REMOTE: &str = "upload-request";
/// What stands before the build's id in the request that brings the context.
pub(super) const PREFIX: &str = "upload-request:";
/// How long one of the two waits for the other.
const MEETING: Duration = Duration::from_secs(30);
/// Contexts that wait for their builds at once, on one endpoint.
const WAITING_MAX: usize = 100;

/// The contexts that wait for their builds.
#[derive(Default)]
pub(crate) struct Uploads {
    waiting: Mutex<HashMap<String, Upload>>,
    came: Notify,
}

struct Upload {
    context: ByteStream,
    /// Closed when the client has left.
    taken: oneshot::Sender<()>,
    /// Goes with the context.
    held: oneshot::Sender<()>,
}

/// Forgets the contexts of clients that have left.
struct Leaving<'a>(&'a Uploads);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().retain(|_, upload| !upload.taken.is_closed());
    }
}

impl Uploads {
    /// Gives a context to the build of an id; returns when the build needs it no more.
    ///
    /// Errors: `Conflict` when there is one for this build; `Unavailable` when too many wait; `Invalid` when no build comes.
    pub(super) async fn offer(&self, id: &str, context: ByteStream) -> Result<()> {
        // Dropped after the receivers.
        let _leaving = Leaving(self);
        let (taken, was_taken) = oneshot::channel();
        let (held, needed) = oneshot::channel::<()>();
        {
            let mut waiting = self.waiting.lock();
            if waiting.contains_key(id) {
                return Err(Error::Conflict(format!("there is a context for the build {id} already")));
            }
            if waiting.len() >= WAITING_MAX {
                return Err(Error::Unavailable("too many contexts wait for their builds".into()));
            }
            waiting.insert(id.to_owned(), Upload { context, taken, held });
        }
        self.came.notify_waiters();
        let met = tokio::time::timeout(MEETING, was_taken).await;
        if !matches!(met, Ok(Ok(()))) {
            return Err(Error::Invalid(format!("no build {id} asks for this context")));
        }
        // It ends by being let go of.
        let _ = needed.await;
        Ok(())
    }

    /// The context of a build, for which it waits a while.
    ///
    /// Errors: `Invalid` when none comes.
    pub(super) async fn take(&self, id: &str) -> Result<ByteStream> {
        let wait = async {
            loop {
                let came = self.came.notified();
                tokio::pin!(came);
                came.as_mut().enable();
                let upload = self.waiting.lock().remove(id);
                // A client may have left just now.
                if let Some(Upload { context, taken, held }) = upload
                    && taken.send(()).is_ok()
                {
                    return (context, held);
                }
                came.await;
            }
        };
        let absent = |_| Error::Invalid(format!("no context came for the build {id}"));
        let (context, held) = tokio::time::timeout(MEETING, wait).await.map_err(absent)?;
        Ok(Box::pin(context.inspect(move |_| {
            let _with_it = &held;
        })))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;

    fn one(text: &'static str) -> ByteStream {
        Box::pin(futures::stream::iter([Ok(Bytes::from_static(text.as_bytes()))]))
    }

    async fn until_waiting(uploads: &Uploads, count: usize) {
        while uploads.waiting.lock().len() != count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_context_and_its_build_meet_whichever_comes_first() {
        let uploads = Arc::new(Uploads::default());
        for build_first in [true, false] {
            let (offering, taking) = (uploads.clone(), uploads.clone());
            let offer = async move { offering.offer("a", one("context")).await };
            let take = tokio::spawn(async move { taking.take("a").await });
            if build_first {
                tokio::task::yield_now().await;
            }
            let offered = tokio::spawn(offer);
            let mut context = take.await.unwrap().unwrap();
            assert_eq!(context.next().await.unwrap().unwrap(), "context");
            assert!(!offered.is_finished(), "the build may read on");
            drop(context);
            offered.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_context_goes_with_its_client_and_there_is_one() {
        let uploads = Arc::new(Uploads::default());
        let offering = uploads.clone();
        let offered = tokio::spawn(async move { offering.offer("a", one("x")).await });
        until_waiting(&uploads, 1).await;
        assert!(matches!(uploads.offer("a", one("y")).await, Err(Error::Conflict(_))));
        offered.abort();
        until_waiting(&uploads, 0).await;
    }

    #[tokio::test]
    async fn contexts_that_wait_are_bounded() {
        let uploads = Arc::new(Uploads::default());
        let offers: Vec<_> = (0..WAITING_MAX)
            .map(|number| {
                let offering = uploads.clone();
                tokio::spawn(async move { offering.offer(&number.to_string(), one("x")).await })
            })
            .collect();
        until_waiting(&uploads, WAITING_MAX).await;
        assert!(matches!(uploads.offer("more", one("x")).await, Err(Error::Unavailable(_))));
        offers.iter().for_each(|offer| offer.abort());
        until_waiting(&uploads, 0).await;
    }

    #[tokio::test(start_paused = true)]
    async fn neither_waits_for_ever() {
        let uploads = Uploads::default();
        assert!(matches!(uploads.offer("a", one("x")).await, Err(Error::Invalid(_))));
        assert_eq!(uploads.waiting.lock().len(), 0);
        assert!(matches!(uploads.take("a").await, Err(Error::Invalid(_))));
    }
}
