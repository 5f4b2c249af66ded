//! How far the caches have followed the store, and who waits for that.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The newest revision of which all caches know everything.
#[derive(Default)]
pub struct Progress {
    revision: AtomicU64,
    waiters: Mutex<BTreeMap<u64, Vec<oneshot::Sender<()>>>>,
}

impl Progress {
    /// The newest revision that all caches have applied.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Says that all caches know everything up to `revision`.
    pub fn advance(&self, revision: u64) {
        self.revision.fetch_max(revision, Ordering::AcqRel);
        let ready = {
            let mut waiters = self.waiters.lock();
            if waiters.is_empty() {
                return;
            }
            let later = waiters.split_off(&(revision.saturating_add(1)));
            std::mem::replace(&mut *waiters, later)
        };
        for waiter in ready.into_values().flatten() {
            // A waiter that gave up has dropped its end.
            let _ = waiter.send(());
        }
    }

    /// Waits until all caches know everything up to `revision`; `false` when that takes longer than `limit`.
    pub async fn wait(&self, revision: u64, limit: Duration) -> bool {
        if self.revision() >= revision {
            return true;
        }
        let receiver = {
            let mut waiters = self.waiters.lock();
            if self.revision() >= revision {
                return true;
            }
            let (sender, receiver) = oneshot::channel();
            waiters.entry(revision).or_default().push(sender);
            receiver
        };
        matches!(tokio::time::timeout(limit, receiver).await, Ok(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn waiters_wake_at_their_revision_and_give_up_in_time() {
        let progress = Arc::new(Progress::default());
        progress.advance(3);
        assert!(progress.wait(3, Duration::from_secs(1)).await);
        let waiting = tokio::spawn({
            let progress = progress.clone();
            async move { progress.wait(5, Duration::from_secs(10)).await }
        });
        tokio::task::yield_now().await;
        progress.advance(6);
        assert!(waiting.await.unwrap());
        assert!(!progress.wait(9, Duration::from_secs(1)).await);
    }
}
