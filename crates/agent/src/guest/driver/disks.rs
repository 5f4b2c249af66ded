//! The disks of a guest while it runs.

use std::time::Duration;

use hypervisor::RunState;
use hypervisor::life::Phase;
use tokio::time::Instant;

use super::super::disks::attach;
use super::super::root::RESCUE_DISK;
use super::super::start::{self, ROOT_DISK};
use super::{Check, Driver};
use crate::error::{Result, chain};

/// Pause before a guest whose disk had no space is looked at again.
const SPACE_RETRY: Duration = Duration::from_secs(5);
/// Less is no space for a guest to go on. Units: bytes.
const SPACE_MIN: u64 = 8 << 20;
/// Pause before volumes that could not be had, or given back, are tried again.
const DISKS_RETRY: Duration = Duration::from_secs(2);

impl Driver {
    /// Brings its volumes to what the object says. A suspended guest must find what it had.
    pub(super) async fn adjust_disks(&mut self) {
        self.disks_retry = None;
        if self.object.metadata.deletion_timestamp.is_some()
            || matches!(self.life.phase, Phase::Suspending | Phase::Suspended)
        {
            return;
        }
        match attach::reconcile(&self.context, &self.object, &self.uid, self.guest.as_ref()).await {
            Ok(seen) => {
                if !seen.pending.is_empty() && seen.pending != self.disks.pending {
                    self.say("CannotAttach", &seen.pending);
                }
                self.disks = seen;
            }
            Err(error) => self.disks.pending = chain(&error),
        }
        if let Some(guest) = self.guest.clone().filter(|_| self.unbounded) {
            match attach::bound(&self.context, &self.key, &self.uid, &guest).await {
                Ok(()) => self.unbounded = false,
                Err(error) => self.disks.pending = chain(&error),
            }
        }
        let limited = self.limit_root().await;
        let is_limited = limited.is_ok();
        self.told_of(Check::Limits, limited.err().map(|error| chain(&error)));
        if !self.disks.pending.is_empty() || !is_limited {
            self.disks_retry = Some(Instant::now() + DISKS_RETRY);
        }
    }

    /// Bounds what the guest may ask of the disks that it boots from.
    async fn limit_root(&mut self) -> Result<()> {
        let Some(guest) = self.guest.clone() else { return Ok(()) };
        let wanted = start::size_of(&self.context, &self.object).await?.limits;
        if self.limits == Some(wanted) {
            return Ok(());
        }
        for name in guest.disks().await?.iter().filter(|name| [ROOT_DISK, RESCUE_DISK].contains(&name.as_str())) {
            guest.limit_disk(name, wanted).await?;
        }
        self.limits = Some(wanted);
        Ok(())
    }

    /// The guest stands still because one of its disks cannot be written.
    pub(super) fn wait_for_space(&mut self) {
        self.status.message = "its disk cannot be written: no space on the machine; it waits".into();
        self.space = Some(Instant::now() + SPACE_RETRY);
    }

    /// Lets a guest go on that waits for space, when there is some.
    pub(super) async fn go_on(&mut self) {
        if !matches!(self.life.phase, Phase::Running(_)) {
            return;
        }
        // Let go on without it, it would stop at once, and its status would say now this, now that.
        let room = rustix::fs::statvfs(self.context.data_dir.join("disks").join("layers"));
        if room.is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < SPACE_MIN) {
            return self.wait_for_space();
        }
        let Some(guest) = self.guest.clone() else { return };
        // Whether one that was sent goes on here is its migration's to say.
        if guest.state().await.is_ok_and(|state| state == RunState::Sent) {
            self.space = Some(Instant::now() + SPACE_RETRY);
            return;
        }
        if guest.resume().await.is_ok() && guest.state().await.is_ok_and(|state| state == RunState::Running) {
            self.status.message.clear();
            self.report().await;
        }
    }
}
