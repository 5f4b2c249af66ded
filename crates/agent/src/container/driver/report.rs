//! What the API is told of a container, and how its object is let go of: what is not taken is told again.

use std::time::Duration;

use api::container::Container;
use api::names::AGENT_FINALIZER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tokio::time::Instant;

use super::Driver;
use crate::container::step::{self, Action};
use crate::container::told::{Told, refusal};
use crate::error::{Error, Result, chain, is_not_found};
use crate::patch;

/// Pause before a write that the apiserver refused is tried again.
const WRITE_RETRY: Duration = Duration::from_millis(500);
/// The same of one that it refuses for what it says.
const REFUSED_RETRY: Duration = Duration::from_secs(30);

impl Driver {
    /// Tells the end of the last run and takes our finalizer off in one write, so that the object is gone with one more once nothing
    /// of the container is left. Whoever deletes it before has it cleared as what vanished. Whether it was written; else it is told as
    /// any other, and let go of after its deletion.
    pub(super) async fn report_last(&mut self) -> bool {
        self.status.state = self.machine.state();
        let change = serde_json::to_value(&self.status).ok().and_then(|new| patch::difference(&self.written, &new));
        let finalizers = self.newest.finalizers.iter().flatten().filter(|one| *one != AGENT_FINALIZER);
        let patch = Patch::Merge(json!({
            "metadata": {
                "finalizers": finalizers.collect::<Vec<_>>(),
                "resourceVersion": self.newest.resource_version,
            },
            "status": change.unwrap_or_else(|| json!({})),
        }));
        match self.objects().patch_status(&self.key.name, &PatchParams::default(), &patch).await {
            Ok(written) => {
                self.saw(&written.metadata);
                self.written = serde_json::to_value(&self.status).unwrap_or_default();
                true
            }
            Err(error) => {
                tracing::debug!(id = self.id, %error, "the container is not let go of with its last status");
                false
            }
        }
    }

    /// Notes what the object says of itself, unless a newer version is known.
    pub(super) fn saw(&mut self, metadata: &ObjectMeta) {
        if metadata.uid != self.newest.uid {
            return;
        }
        let version = |of: &ObjectMeta| of.resource_version.as_deref().and_then(|text| text.parse::<u64>().ok());
        if version(metadata) >= version(&self.newest) {
            self.newest = metadata.clone();
        }
    }

    pub(super) async fn report(&mut self) {
        self.tell().await;
    }

    /// Writes what changed of the status, in one patch.
    async fn tell(&mut self) -> Told {
        // The start that was acted on is written with its outcome, never with the exit before it.
        self.status.state = self.machine.state();
        self.status.restart_count = self.machine.restart_count;
        if self.machine.vanished {
            return Told::Done;
        }
        let Ok(new) = serde_json::to_value(&self.status) else { return Told::Done };
        let Some(change) = patch::difference(&self.written, &new) else { return Told::Done };
        // Another of the same name is not told what became of this one.
        let patch = Patch::Merge(json!({ "metadata": { "uid": self.object.metadata.uid }, "status": change }));
        match self.objects().patch_status(&self.key.name, &PatchParams::default(), &patch).await {
            Ok(written) => {
                self.saw(&written.metadata);
                self.written = new;
                Told::Done
            }
            Err(error) => self.untold(error).await,
        }
    }

    /// Judges a status that was not written, and sees that it is tried again.
    async fn untold(&mut self, error: kube::Error) -> Told {
        let code = if let kube::Error::Api(status) = &error { status.code } else { 0 };
        let told = if code == 409 && self.is_another().await { Told::Done } else { refusal(code) };
        let pause = match told {
            Told::Done => return told,
            Told::Refused => REFUSED_RETRY,
            Told::Later => WRITE_RETRY,
        };
        tracing::warn!(id = self.id, error = %chain(&error), "cannot write the status; trying again");
        self.retry = Some(Instant::now() + pause);
        told
    }

    /// Whether the name is no more this container's.
    async fn is_another(&self) -> bool {
        let there = self.objects().get_opt(&self.key.name).await;
        there.is_ok_and(|there| there.is_none_or(|object| object.metadata.uid != self.object.metadata.uid))
    }

    pub(super) async fn write_again(&mut self) {
        if self.overdue {
            self.remove_object().await;
        }
        if self.releasing {
            self.simple(Action::Release).await;
        } else {
            self.report().await;
        }
    }

    fn objects(&self) -> Api<Container> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }

    /// Deletes the object of one that goes by itself, again until that is done. What the container has goes when that is seen.
    pub(super) async fn remove_object(&mut self) {
        let is_due = self.machine.phase == step::Phase::Idle && self.object.goes_by_itself();
        self.overdue = false;
        if is_due
            && !self.machine.wish.deleted
            && let Err(error) = self.delete_object().await
        {
            tracing::warn!(id = self.id, error = %chain(&error), "cannot remove the container; trying again");
            self.overdue = true;
            self.retry = Some(Instant::now() + WRITE_RETRY);
        }
    }

    async fn delete_object(&self) -> Result<()> {
        let preconditions = Preconditions { uid: self.object.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.objects().delete(&self.key.name, &params).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(Error::api("delete the container")(error)),
        }
    }

    /// Lets go of the object: deletes it if nobody did, and takes our finalizer off, checked against concurrent changes.
    pub(super) async fn release(&mut self) -> Result<()> {
        self.releasing = false;
        if self.machine.vanished {
            return Ok(());
        }
        if !self.machine.wish.deleted {
            // Who waits for its end learns from the last status how it ended; a full disk may let a deletion through, and no write.
            // What is refused for what it says will be; nobody can wait for that.
            if self.tell().await == Told::Later {
                self.again_later();
                return Ok(());
            }
            self.deletes = true;
            if let Err(error) = self.delete_object().await {
                self.again_later();
                return Err(error);
            }
        }
        let objects = self.objects();
        let mut current = self.newest.clone();
        loop {
            let finalizers = current.finalizers.unwrap_or_default();
            if !finalizers.iter().any(|f| f == AGENT_FINALIZER) {
                return Ok(());
            }
            let rest: Vec<_> = finalizers.into_iter().filter(|f| f != AGENT_FINALIZER).collect();
            let patch =
                Patch::Merge(json!({"metadata": {"finalizers": rest, "resourceVersion": current.resource_version}}));
            match objects.patch(&self.key.name, &PatchParams::default(), &patch).await {
                Ok(_) => return Ok(()),
                Err(error) if is_not_found(&error) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => match objects.get_opt(&self.key.name).await {
                    Ok(Some(newer)) if newer.metadata.uid == current.uid => current = newer.metadata,
                    Ok(_) => return Ok(()),
                    Err(error) => return self.release_later(error),
                },
                Err(error) => return self.release_later(error),
            }
        }
    }

    fn again_later(&mut self) {
        self.releasing = true;
        self.retry = Some(Instant::now() + WRITE_RETRY);
    }

    fn release_later(&mut self, error: kube::Error) -> Result<()> {
        self.again_later();
        Err(Error::api("release the container")(error))
    }
}
