//! What must be done now and then: history is compacted, and events end after an hour, so that the store does not grow.

use std::sync::{Arc, Weak};
use std::time::Duration;

use store::{LeaseId, SharedStore};
use tokio::time::Instant;

use crate::kind::Kind;
use crate::server::ApiServer;

/// How often history is compacted; what is older than one to two of these goes. As kube-apiserver does.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(300);
/// Life of an event. Units: seconds.
const EVENT_SECONDS: u64 = 3_600;
/// Events of so much time share one lease.
const LEASE_SHARED: Duration = Duration::from_secs(60);

/// Compacts the store as long as the server lives.
pub(crate) fn start(server: &Arc<ApiServer>) {
    tokio::spawn(compact(Arc::downgrade(server)));
}

async fn compact(server: Weak<ApiServer>) {
    let mut before = None;
    loop {
        tokio::time::sleep(COMPACTION_INTERVAL).await;
        let Some(server) = server.upgrade() else { return };
        if let Some(revision) = before
            && let Err(error) = server.store.compact(revision).await
        {
            // Another server on the same store may have been faster.
            tracing::debug!(revision, %error, "history was not compacted");
        }
        before = Some(server.revision());
    }
}

/// The lease on which new events hang.
#[derive(Default)]
pub(crate) struct EventLease {
    present: tokio::sync::Mutex<Option<(LeaseId, Instant)>>,
}

impl EventLease {
    /// The lease for a new object of this kind; 0 for all but events.
    pub(crate) async fn of(&self, store: &SharedStore, kind: &Kind) -> store::Result<LeaseId> {
        if !(kind.is("", "events") || kind.is("events.k8s.io", "events")) {
            return Ok(0);
        }
        let mut present = self.present.lock().await;
        match *present {
            Some((lease, since)) if since.elapsed() < LEASE_SHARED => Ok(lease),
            _ => {
                let lease = store.lease_grant(EVENT_SECONDS + LEASE_SHARED.as_secs()).await?;
                *present = Some((lease, Instant::now()));
                Ok(lease)
            }
        }
    }
}
