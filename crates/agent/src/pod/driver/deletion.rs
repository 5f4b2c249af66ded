//! The end of a pod: containers stop gracefully, sidecars last; then everything is taken away and the object let go.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};

use super::{Driver, Input};
use crate::error::{chain, is_not_found};
use crate::pod::decide::{Class, Life};
use crate::pod::sandbox;
use tokio::time::Instant;

/// Grace of a pod whose object is gone already.
const VANISHED_GRACE: Duration = Duration::from_secs(1);
/// Pause before the final deletion is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How far the end has come.
#[derive(Debug, Default)]
pub struct Deletion {
    /// The object is gone.
    pub vanished: bool,
    /// When the end began.
    begin: Option<Instant>,
    /// Clearing is under way.
    clearing: bool,
    /// Nothing is left on the machine.
    pub cleared: bool,
    /// The driver may end.
    pub done: bool,
}

impl Driver {
    pub(super) fn is_ending(&self) -> bool {
        self.deletion.vanished || self.pod.metadata.deletion_timestamp.is_some()
    }

    pub(super) fn advance_ending(&mut self) {
        let grace = if self.deletion.vanished { VANISHED_GRACE } else { self.grace() };
        // One grace time for the whole pod: sidecars get what the main containers left.
        let begin = *self.deletion.begin.get_or_insert_with(Instant::now);
        let grace = grace.saturating_sub(begin.elapsed());
        if self.stop_all(grace) && !self.deletion.clearing {
            self.clear();
        }
        self.deletion.done = self.deletion.cleared;
    }

    /// A pod that is over keeps its records and logs; its sandbox goes.
    pub(super) fn advance_over(&mut self) {
        let evicted = self.around.failed.as_ref().is_some_and(|(reason, _)| reason == super::EVICTED);
        let grace = if evicted { Duration::ZERO } else { self.grace() };
        if self.stop_all(grace) && !self.deletion.clearing && self.sandbox.is_some() {
            self.release_sandbox();
        }
    }

    /// Stops what lives: main containers together, then sidecars from the last to the first. True when nothing lives.
    fn stop_all(&mut self, grace: Duration) -> bool {
        let lives = |life: Life| matches!(life, Life::Running { .. } | Life::Stopping | Life::Starting);
        let living: Vec<usize> = (0..self.records.len()).filter(|i| lives(self.records[*i].life)).collect();
        let mains: Vec<usize> = living.iter().copied().filter(|i| self.records[*i].class != Class::Sidecar).collect();
        let next = if mains.is_empty() { living.last().copied().into_iter().collect() } else { mains };
        for index in next {
            let why = format!("Stopping container {}", self.records[index].name);
            self.stop(index, grace, why);
        }
        living.is_empty()
    }

    fn release_sandbox(&mut self) {
        let Some(sandbox) = self.sandbox.take() else { return };
        self.around.sandbox_ready = false;
        self.context.directory.set_pod(&self.key.namespace, sandbox.address, false);
        self.watchers.drain(..).for_each(|w| w.abort());
        let (context, uid) = (self.context.clone(), self.uid().to_owned());
        tokio::spawn(async move { sandbox::remove(&context, &uid).await });
    }

    fn clear(&mut self) {
        self.deletion.clearing = true;
        if let Some(sandbox) = self.sandbox.take() {
            self.context.directory.set_pod(&self.key.namespace, sandbox.address, false);
        }
        self.around.sandbox_ready = false;
        self.watchers.drain(..).for_each(|w| w.abort());
        let (context, uid, sender) = (self.context.clone(), self.uid().to_owned(), self.sender.clone());
        let runs: Vec<String> = self.handle.owned().into_iter().filter(|id| *id != uid).collect();
        tokio::spawn(async move {
            sandbox::remove(&context, &uid).await;
            for id in runs {
                crate::container::start::remove(&context, &id).await;
            }
            let _ = sender.send(Input::Cleared).await;
        });
    }

    /// The last step: the object goes, unless it is gone or another of the same name has come.
    pub(super) async fn finish(self) {
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &self.key.namespace);
        let preconditions = Preconditions { uid: Some(self.handle.uid.clone()), resource_version: None };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        let mut held = !self.deletion.vanished;
        while held {
            match pods.delete(&self.key.name, &params).await {
                Ok(_) => held = false,
                Err(error) if is_not_found(&error) => held = false,
                Err(kube::Error::Api(status)) if status.code == 409 => held = false,
                Err(error) => {
                    tracing::warn!(pod = self.key.name, error = %chain(&error), "cannot let go of the pod; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        let mut known = self.context.pods.lock();
        if known.get(&self.key).is_some_and(|h| h.uid == self.handle.uid) {
            known.remove(&self.key);
        }
    }
}
