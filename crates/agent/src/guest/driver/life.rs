//! Starts a guest, ends it, puts it to sleep, and clears away what is left of it.

use std::path::Path;
use std::sync::Arc;

use api::names::AGENT_FINALIZER;
use hypervisor::life::Event;
use hypervisor::{Guest, RunState, Start};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use tokio::time::Instant;

use super::super::disks::attach;
use super::super::interfaces::{attach as nics, serve};
use super::super::{moving, revert, root, start};
use super::{Driver, RETRY};
use crate::error::{Error, Result, chain};

impl Driver {
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.events = None;
        self.guest = None;
        self.disks.attached.clear();
        self.context.guests.runs(&self.key, &self.uid, None);
        self.answered = false;
        self.patience = None;
        self.space = None;
        let run_dir = self.context.guests.run_dir(&self.uid);
        hypervisor::qemu::driver::kill(&run_dir).await?;
        crate::directories::remove(&run_dir)
    }

    /// Whether a guest that boots is answered when it asks for its address.
    pub(super) fn will_ask(&self) -> bool {
        let first = self.places.first().map(|place| self.context.networks.current(&place.network));
        first.is_none_or(|network| !network.plan.without_dhcp)
    }

    pub(super) async fn start(&mut self, resuming: bool) -> Event {
        match self.try_start(resuming).await {
            Ok(()) => {
                self.failed = false;
                self.status.message.clear();
                self.adjust_disks().await;
                self.adjust_interfaces().await;
                Event::Started
            }
            Err(error) => {
                self.failed = true;
                // While its memory is there it sleeps on, whatever went wrong.
                let sleeps_on = resuming && self.may_sleep();
                let (reason, message) = match sleeps_on {
                    true => ("FailedWake", format!("it sleeps on, since it cannot be woken: {}", chain(&error))),
                    false => ("FailedStart", chain(&error)),
                };
                if self.status.message != message {
                    self.say(reason, &message);
                }
                self.status.message = message;
                match error {
                    _ if sleeps_on => Event::WakeFailed,
                    Error::NotYet(_) if !resuming => Event::StartLater,
                    _ => Event::StartFailed,
                }
            }
        }
    }

    async fn try_start(&mut self, resuming: bool) -> Result<()> {
        let mut size = start::size_of(&self.context, &self.object).await?;
        let like = if resuming { Some(moving::launched(&self.context.guests, &self.uid)?) } else { None };
        if let Some(like) = &like {
            // Whatever was wished while it slept comes when it is awake.
            size.memory_bytes = like.memory_bytes.max(self.status.memory_bytes);
            size.cpus = self.status.cpus.max(like.cpus);
        }
        // A guest that resumes has the interfaces that it had.
        self.places = match resuming {
            true => nics::rejoin(&self.context, &self.object, &self.uid, None).await?,
            false => nics::prepare(&self.context, &self.object, &self.uid).await?,
        };
        self.note_addresses();
        // Whose a port is is seen from this.
        self.report().await;
        self.status.ports = serve::publish(&self.context, &self.object, &self.uid, &self.places).await?;
        let how = if resuming { Start::Resume(self.memory_file()) } else { Start::Boot };
        // A guest that resumes has its address; one that nobody answers does not ask.
        self.answered = resuming || !self.will_ask();
        let locks = attach::prepare(&self.context, &self.object, &self.uid, resuming).await?;
        if !resuming {
            self.drop_memory().await?;
            let made = root::make(&self.context, &self.object, &self.uid, &size).await?;
            (self.status.observed_rebuild, self.status.observed_revert) = (made.rebuild, made.revert);
            self.status.rescue_image = made.rescue;
        }
        // Only now: a revert has given them other layers.
        let volumes = attach::disks_now(&self.context, &self.uid).await?;
        let guest =
            start::start(&self.context, &self.object, &self.uid, &size, &self.places, how, like.as_ref(), volumes)
                .await?;
        drop(locks);
        (self.unbounded, self.limits) = (true, None);
        self.status.pid = guest.pid();
        self.status.started_at = Some(Time(Timestamp::now()));
        self.status.cpus = size.cpus;
        self.status.memory_bytes = size.memory_bytes;
        self.status.vsock_cid = moving::launched(&self.context.guests, &self.uid).unwrap_or_default().vsock_cid;
        self.status.acceleration = self.context.guests.hypervisor().await?.acceleration().to_string();
        self.take(guest);
        Ok(())
    }

    pub(super) async fn suspend(&mut self) -> Event {
        let Some(guest) = self.guest.clone() else { return Event::SuspendFailed };
        let file = self.memory_file();
        self.events = None;
        match self.try_suspend(&guest, &file).await {
            Ok(()) => {
                self.guest = None;
                self.context.guests.runs(&self.key, &self.uid, None);
                Event::Suspended
            }
            Err(error) => {
                self.events = Some(guest.events());
                self.status.message = chain(&error);
                // Nobody listened meanwhile.
                match guest.state().await {
                    Ok(RunState::Off) => return Event::Off,
                    Ok(RunState::Panicked) => return Event::Crashed,
                    _ => {}
                }
                // From here on it is taken to run, and may have been paused. One that was sent refuses.
                if let Err(error) = guest.resume().await {
                    tracing::warn!(vm = self.key.name, error = %chain(&error), "a guest that was not suspended is not let go on");
                }
                Event::SuspendFailed
            }
        }
    }

    async fn try_suspend(&self, guest: &Arc<dyn Guest>, file: &Path) -> Result<()> {
        let present = guest.interfaces().await?;
        nics::forget_absent(&self.context, &self.uid, &present).await?;
        Ok(guest.suspend(file).await?)
    }

    /// Takes away everything of the machine; tried again until it works.
    pub(super) async fn clear(&mut self) -> Option<Event> {
        match self.try_clear().await {
            Ok(()) => Some(Event::Cleared),
            Err(error) => {
                tracing::warn!(vm = self.key.name, error = %chain(&error), "cannot clear the machine yet");
                self.retry = Some(Instant::now() + RETRY);
                None
            }
        }
    }

    /// Does what could not be done before.
    pub(super) async fn try_again(&mut self) -> Event {
        match self.life.wish.deleted {
            true => self.clear().await.unwrap_or(Event::Timer),
            false => Event::Wished(self.wish().await),
        }
    }

    async fn try_clear(&mut self) -> Result<()> {
        self.kill().await?;
        // Its volumes stay. On a full disk nothing could be finished, and a machine must go all the same.
        if let Err(error) = revert::finish(&self.context, &self.uid).await {
            tracing::warn!(vm = self.key.name, error = %chain(&error), "the volumes of a machine that goes were not all taken back");
        }
        serve::leave_all(&self.context, &self.uid).await?;
        root::release(&self.context, &self.uid).await?;
        attach::give_all_back(&self.context, &self.key, &self.uid, self.vanished).await?;
        // Beside it there is nothing large in that directory.
        self.drop_memory().await?;
        let directory = self.context.guests.directory(&self.uid);
        crate::directories::remove(&directory)?;
        self.context.guests.control_group(&self.uid)?.remove()?;
        if self.vanished {
            return Ok(());
        }
        let finalizers = self.object.metadata.finalizers.clone().unwrap_or_default();
        let rest: Vec<String> = finalizers.into_iter().filter(|one| one != AGENT_FINALIZER).collect();
        self.patch_object(json!({"metadata": {"uid": self.uid, "finalizers": rest}})).await
    }
}
