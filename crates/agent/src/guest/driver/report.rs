//! What is told of a guest: its status, its events, and its console's log.

use hypervisor::life::Phase;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use super::super::status;
use super::{Driver, NO_SPACE, RETRY};
use crate::error::{chain, is_not_found};
use crate::events::Kind;
use crate::patch;

/// Size at which a console's log is cut to its second half. Units: bytes.
const CONSOLE_BYTES_MAX: u64 = 4 << 20;

impl Driver {
    pub(super) fn say(&self, reason: &'static str, message: &str) {
        let about: ObjectReference = self.object.object_ref(&());
        self.context.events.record(&about, Kind::Warning, reason, message);
    }

    pub(super) async fn report(&mut self) {
        if self.vanished || self.life.wish.deleted && self.life.phase == Phase::Gone {
            return;
        }
        let generation = self.object.metadata.generation;
        let disks = (!self.object.spec.disks.is_empty() || !self.disks.pending.is_empty())
            .then(|| status::disks(&self.status.conditions, &self.disks, self.guest.is_some(), generation));
        let interfaces = (!self.object.spec.interfaces.is_empty() || !self.interfaces_pending.is_empty()).then(|| {
            let running = self.guest.is_some();
            status::interfaces(&self.status.conditions, &self.interfaces_pending, running, generation)
        });
        self.status.disks.clone_from(&self.disks.attached);
        if self.guest.is_none() {
            self.status.vsock_cid = None;
        }
        let before = self.status.conditions.clone();
        status::complete(&mut self.status, &self.life, self.answered, self.failed, generation);
        if self.space.is_some() && self.answered {
            self.status.conditions = vec![status::ready(&before, false, NO_SPACE, &self.status.message, generation)];
        }
        self.status.conditions.extend(disks.into_iter().chain(interfaces));
        let now = serde_json::to_value(&self.status).unwrap_or_default();
        let Some(difference) = patch::difference(&self.written, &now) else { return };
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid}, "status": difference}));
        match self.objects().patch_status(&self.key.name, &PatchParams::default(), &patch).await {
            Ok(_) => self.written = now,
            Err(error) if is_not_found(&error) => {}
            Err(error) => {
                tracing::warn!(vm = self.key.name, error = %chain(&error), "cannot write the machine's status");
                self.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Keeps the console's log from filling the disk: its older half goes.
    pub(super) async fn bound_console(&self) {
        let path = self.context.guests.directory(&self.uid).join("console.log");
        let cut = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            if std::fs::metadata(&path).map_or(0, |found| found.len()) <= CONSOLE_BYTES_MAX {
                return Ok(());
            }
            let text = std::fs::read(&path)?;
            std::fs::write(path.with_extension("log.1"), &text[text.len() / 2..])?;
            // Whoever appends goes on at the new end.
            std::fs::OpenOptions::new().write(true).open(&path)?.set_len(0)
        });
        if let Ok(Err(error)) = cut.await {
            tracing::warn!(vm = self.key.name, %error, "cannot bound the console's log");
        }
    }
}
