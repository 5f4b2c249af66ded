//! The network interfaces of a guest while it runs, and while it does not.

use std::sync::Arc;
use std::time::Duration;

use api::interface::MachineInterface;
use hypervisor::life::Phase;
use hypervisor::{Guest, RunState};
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use super::super::disks::attach as disks;
use super::super::interfaces::{self, Joining, Nic, Step, attach, serve};
use super::{Driver, RETRY};
use crate::error::{Error, Result, chain};
use crate::{ports, security};

/// Pause before interfaces that could not be had, or given back, are tried again.
const INTERFACES_RETRY: Duration = Duration::from_secs(2);

impl Driver {
    /// Brings its interfaces to what the object says. A suspended guest must find what it had.
    pub(super) async fn adjust_interfaces(&mut self) {
        self.interfaces_retry = None;
        if self.object.metadata.deletion_timestamp.is_some()
            || matches!(self.life.phase, Phase::Suspending | Phase::Suspended)
        {
            return;
        }
        let Some(guest) = self.guest.clone() else {
            self.interfaces_pending.clear();
            return;
        };
        let pending = match self.try_adjust_interfaces(&guest).await {
            Ok(pending) => pending,
            Err(error) => chain(&error),
        };
        if !pending.is_empty() {
            if pending != self.interfaces_pending {
                self.say("CannotAttach", &pending);
            }
            self.interfaces_retry = Some(Instant::now() + INTERFACES_RETRY);
        }
        self.interfaces_pending = pending;
        self.note_addresses();
    }

    /// What the status says of its addresses.
    pub(super) fn note_addresses(&mut self) {
        self.status.addresses = self.places.iter().map(interfaces::Place::address).collect();
    }

    /// Why not all is as wished; empty: it is.
    async fn try_adjust_interfaces(&mut self, guest: &Arc<dyn Guest>) -> Result<String> {
        let record = attach::recorded(&self.context, &self.object, &self.uid).await?;
        let wishes = interfaces::live(&self.object.spec, &record);
        let present = guest.interfaces().await?;
        let steps = interfaces::plan(&wishes, &record, |nic| present.contains(&nic.slot));
        if steps.is_empty() && interfaces::in_order(&wishes, &record) == record {
            return Ok(String::new());
        }
        // What moves with a machine is settled when it begins to.
        let _lock = disks::lock(&self.context, vec![self.uid.clone()], "its network interfaces").await?;
        if guest.state().await? == RunState::Sent {
            return Err(Error::NotYet("the machine moves; its interfaces change when it has".into()));
        }
        let mut pending = String::new();
        for step in steps {
            let done = match step {
                Step::Unplug(nic) => self.unplug_interface(guest, &nic, present.contains(&nic.slot)).await,
                Step::Plug { wish, slot } => self.plug_interface(guest, &wishes[wish], slot).await,
                Step::Wait { .. } => {
                    Err(Error::NotYet("no place on the guest's bus is free until another interface is out".into()))
                }
            };
            if let Err(error) = done {
                tracing::debug!(vm = self.key.name, error = %chain(&error), "an interface is not as wished");
                if pending.is_empty() {
                    pending = chain(&error);
                }
            }
        }
        attach::sort(&self.context, &self.object, &self.uid, &mut self.places)?;
        serve::serve(&self.context, &self.object, &self.uid, &self.places).await?;
        Ok(pending)
    }

    /// Takes an interface out of the guest, and gives its place back when the guest has let go of it.
    async fn unplug_interface(&mut self, guest: &Arc<dyn Guest>, nic: &Nic, is_present: bool) -> Result<()> {
        if is_present && guest.state().await? != RunState::Running {
            let text = format!("the guest stands still; the interface on {} goes when it goes on", nic.network);
            return Err(Error::NotYet(text));
        }
        let detached = guest.detach_interface(nic.slot).await;
        detached.map_err(|error| disks::kept(error, &format!("the interface on {}", nic.network)))?;
        attach::forget(&self.context, &self.uid, nic.slot).await?;
        self.places.retain(|place| place.nic.slot != nic.slot);
        Ok(())
    }

    /// Gives an interface its place, and then the guest the interface. What is recorded and not in the guest is tried again, or given back.
    async fn plug_interface(&mut self, guest: &Arc<dyn Guest>, wish: &MachineInterface, slot: u8) -> Result<()> {
        security::check(&self.context, &self.key.namespace, &wish.security_groups).await?;
        let mut nic = Nic::new(slot, wish);
        if !nic.port.is_empty() {
            let held = ports::held(&self.context, &self.key, &nic.port, &self.uid).await?;
            nic.network.clone_from(&held.network);
            self.tell_port(&held).await?;
            ports::held(&self.context, &self.key, &nic.port, &self.uid).await?;
        }
        attach::note(&self.context, &self.uid, &nic)?;
        let plugged = async {
            let place = interfaces::join(&self.context, &self.key, &self.uid, nic, Joining::Anew).await?;
            attach::note(&self.context, &self.uid, &place.nic)?;
            self.places.retain(|known| known.nic.slot != slot);
            self.places.push(place.clone());
            // Whoever asks at once is answered.
            serve::serve(&self.context, &self.object, &self.uid, &self.places).await?;
            Ok::<_, Error>(guest.attach_interface(&place.interface()).await?)
        };
        let plugged = plugged.await;
        // Where it is not known whether the guest has it, it stays recorded.
        if plugged.is_err() && guest.interfaces().await.is_ok_and(|slots| !slots.contains(&slot)) {
            self.places.retain(|known| known.nic.slot != slot);
            attach::forget(&self.context, &self.uid, slot).await?;
        }
        plugged
    }

    /// Says in the status that it is on a port before it is: whose a port is is seen from that, and from the wish, which must still stand
    /// then.
    async fn tell_port(&mut self, held: &ports::Held) -> Result<()> {
        let changed = || Error::NotYet(format!("the machine was changed while it was given port {}", held.name));
        let objects = self.objects();
        let fresh = objects.get_opt(&self.key.name).await.map_err(Error::api("read the machine"))?;
        let fresh = fresh.filter(|fresh| {
            fresh.metadata.uid.as_deref() == Some(self.uid.as_str())
                && fresh.metadata.deletion_timestamp.is_none()
                && fresh.spec.names_port(&held.name)
        });
        let fresh = fresh.ok_or_else(changed)?;
        let mut addresses: Vec<_> = self.places.iter().map(interfaces::Place::address).collect();
        if addresses.iter().any(|one| one.port == held.name) {
            return Ok(());
        }
        addresses.push(api::virtual_machine::MachineAddress {
            network: held.network.clone(),
            ip: held.address.to_string(),
            mac: held.mac.to_string(),
            port: held.name.clone(),
            security_groups: Vec::new(),
        });
        let metadata = json!({"uid": self.uid, "resourceVersion": fresh.metadata.resource_version});
        let patch = Patch::Merge(json!({"metadata": metadata, "status": {"addresses": addresses}}));
        match objects.patch_status(&self.key.name, &PatchParams::default(), &patch).await {
            Ok(_) => {
                self.written["addresses"] = json!(addresses);
                Ok(())
            }
            Err(kube::Error::Api(answer)) if answer.code == 409 => Err(changed()),
            Err(error) => Err(Error::api("write the machine's status")(error)),
        }
    }

    /// Without a guest, it is on a port no longer than that is its own: another machine may wait for it, and have the one that this waits
    /// for. One that sleeps wakes up where it was.
    pub(super) async fn let_go(&mut self) {
        let is_down = matches!(self.life.phase, Phase::Down | Phase::Waiting(_) | Phase::Starting);
        if self.guest.is_some() || !is_down || self.vanished {
            return;
        }
        match self.try_let_go().await {
            Ok(false) => {}
            Ok(true) => self.report().await,
            Err(error) => {
                tracing::warn!(vm = self.key.name, error = %chain(&error), "cannot let go of a port yet");
                self.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Whether there was anything to let go of.
    async fn try_let_go(&mut self) -> Result<bool> {
        let record = attach::recorded(&self.context, &self.object, &self.uid).await?;
        let is_foreign = |nic: &&Nic| !nic.port.is_empty() && !self.object.spec.names_port(&nic.port);
        let gone: Vec<Nic> = record.iter().filter(is_foreign).cloned().collect();
        if gone.is_empty() {
            return Ok(false);
        }
        interfaces::save(&self.context, &self.uid, &record)?;
        for nic in gone {
            attach::forget(&self.context, &self.uid, nic.slot).await?;
            self.places.retain(|place| place.nic.slot != nic.slot);
            self.status.addresses.retain(|one| one.port != nic.port);
            if nic.slot == 0 {
                self.status.ports.clear();
            }
        }
        Ok(true)
    }
}
