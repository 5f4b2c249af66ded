//! Takes over what runs when the agent starts, or finds out how it ended while nobody looked.

use std::sync::Arc;

use api::migration::{Act, Seen, at_target};
use hypervisor::life::{self, Desired, Event, Life};
use hypervisor::{Guest, RunState};
use tokio::sync::watch;

use super::super::interfaces::{attach as nics, serve};
use super::super::moving::post_copy;
use super::super::{moving, revert, root, status};
use super::Driver;
use crate::error::{Error, Result, chain};

impl Driver {
    /// Takes over what runs, or finds out how it ended while nobody looked.
    pub(super) async fn adopt(&mut self) -> Result<()> {
        // Who takes it in has it until all of it is here, or never will be.
        self.context.receptions.coming.until_over(&self.uid).await;
        self.hold().await?;
        self.end_partial().await?;
        // Before anybody looks at its disks.
        revert::finish(&self.context, &self.uid).await?;
        let observed = self.status.observed_restart;
        let run_dir = self.context.guests.run_dir(&self.uid);
        if !run_dir.exists() {
            self.settle(observed).await;
            return Ok(());
        }
        let paused = status::wish(&self.object, &self.status).desired == Desired::Paused;
        self.context.receptions.run(&self.uid, paused).await?;
        match self.context.guests.hypervisor().await?.adopt(&run_dir).await {
            Ok(Some(guest)) => {
                let state = match guest.state().await? {
                    // It has never run, and never will: what comes from another machine is not whole, and one that sleeps is woken anew
                    // from its memory, which therefore stays.
                    RunState::Receiving => None,
                    _ => {
                        self.forget_suspension(&guest).await?;
                        self.settle_moved(&guest).await?
                    }
                };
                let Some(state) = state else {
                    hypervisor::qemu::driver::kill(&run_dir).await?;
                    self.settle(observed).await;
                    return Ok(());
                };
                self.life = Life::adopted(observed, state == RunState::Paused, self.context.now());
                self.status.pid = guest.pid();
                // What was made is noted before a guest runs from it, and may not have been told.
                let made = root::made(&self.context, &self.uid)?;
                self.status.observed_rebuild = self.status.observed_rebuild.max(made.rebuild);
                self.status.observed_revert = self.status.observed_revert.max(made.revert);
                let launched = moving::launched(&self.context.guests, &self.uid).unwrap_or_default();
                self.status.rescue_image = launched.rescue;
                self.status.vsock_cid = launched.vsock_cid;
                // Copies that were under way are begun anew by whoever wants them.
                guest.copy_disks(&[], &watch::Sender::new((0, 0))).await?;
                let present = guest.interfaces().await?;
                let events = guest.events();
                // Before others have the guest: a hypervisor talks to one client alone, so with one that is still there the next
                // attempt would find it silent.
                self.rejoin(&present).await?;
                self.take(guest);
                self.events = Some(events);
                if state == RunState::OutOfSpace {
                    self.wait_for_space();
                }
                if matches!(state, RunState::Off | RunState::Panicked) {
                    let event = if state == RunState::Off { Event::Off } else { Event::Crashed };
                    self.life.wish = status::wish(&self.object, &self.status);
                    self.feed(event).await;
                }
            }
            Ok(None) => self.settle(observed).await,
            Err(error) => {
                // It runs and does not talk: nobody could ever use it again.
                tracing::warn!(vm = self.key.name, error = %chain(&error), "ending a guest that does not answer");
                hypervisor::qemu::driver::kill(&run_dir).await?;
                self.settle(observed).await;
            }
        }
        Ok(())
    }

    /// Ends a guest that runs here by post-copy and lacks memory that nobody brings any more: it counts as crashed.
    async fn end_partial(&mut self) -> Result<()> {
        if !post_copy::is_partial(&self.context, &self.uid) {
            return Ok(());
        }
        tracing::warn!(vm = self.key.name, "not all of a guest has come, and it is ended");
        hypervisor::qemu::driver::kill(&self.context.guests.run_dir(&self.uid)).await?;
        post_copy::end(&self.context, &self.uid)?;
        self.say("Crashed", post_copy::LOST);
        self.status.restart_count += 1;
        Ok(())
    }

    /// Finds its interfaces again.
    async fn rejoin(&mut self, present: &[u8]) -> Result<()> {
        self.places = nics::rejoin(&self.context, &self.object, &self.uid, Some(present)).await?;
        self.note_addresses();
        if !self.places.is_empty() {
            self.status.ports = serve::publish(&self.context, &self.object, &self.uid, &self.places).await?;
        }
        Ok(())
    }

    /// A suspension that was cut short, wherever, is undone; it is begun anew if it is still wished. What is left of a wake goes too: all
    /// of that memory is in the guest.
    async fn forget_suspension(&self, guest: &Arc<dyn Guest>) -> Result<()> {
        let is_written = hypervisor::guest::unfinished(&self.memory_file()).exists();
        if is_written {
            guest.forget_send().await?;
        }
        self.drop_memory().await
    }

    /// Decides about a guest that moves or has moved: its state, or `None` when it can never run here.
    async fn settle_moved(&self, guest: &Arc<dyn Guest>) -> Result<Option<RunState>> {
        let marker = moving::marker(&self.context, &self.uid);
        let (state, came) = (guest.state().await?, marker.exists());
        let seen = match state {
            RunState::Receiving => Seen::Receiving,
            RunState::Paused if came => Seen::Received,
            RunState::Sent => Seen::Sent,
            _ => Seen::Running,
        };
        if seen == Seen::Sent {
            guest.forget_send().await?;
            moving::handover::reclaim(&self.context, &self.key, guest).await?;
            return Ok(Some(guest.state().await?));
        }
        let act = at_target(true, seen, false);
        if came {
            // From here on it is a guest like any other; one that is found paused is let go on by its life.
            std::fs::remove_file(&marker).map_err(Error::io("remove", &marker))?;
        }
        match act {
            Act::Run if status::wish(&self.object, &self.status).desired == Desired::Paused => {
                Ok(Some(RunState::Paused))
            }
            Act::Run => {
                guest.resume().await?;
                Ok(Some(guest.state().await?))
            }
            Act::End => Ok(None),
            _ => {
                guest.forget_send().await?;
                Ok(Some(state))
            }
        }
    }

    /// No process was found: what the last status says decides.
    pub(super) async fn settle(&mut self, observed: i64) {
        use api::virtual_machine::MachinePhase as Was;
        // What came and ended before it ever ran here starts from its disk.
        let _ = std::fs::remove_file(moving::marker(&self.context, &self.uid));
        if let Err(error) = hypervisor::sleep::tidy(&self.memory_file()).await {
            tracing::warn!(vm = self.key.name, error = %chain(&error), "what is left of the machine's sleep is not removed");
        }
        let memory = self.may_sleep();
        let ended_alone = matches!(self.status.phase, Was::Running | Was::Paused | Was::Stopping);
        let never = status::wish(&self.object, &self.status).policy == life::Policy::Never;
        let stays_off = self.status.phase == Was::Stopped || (ended_alone && never);
        self.life = Life::down(observed, stays_off, memory);
        self.answered = false;
    }
}
