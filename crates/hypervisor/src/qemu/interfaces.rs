//! Network interfaces of a running guest. Taps go in as descriptors, as they do at its start.

use std::os::fd::AsFd;

use serde_json::json;

use super::arguments::{netdev_id, nic, nic_id, slot_of_nic};
use super::guest::QemuGuest;
use super::launch::open_tap;
use crate::error::{Error, Result};
use crate::guest::Interface;

impl QemuGuest {
    /// The slots of the interfaces that are plugged in, those that the guest was asked to let go of among them.
    pub(super) async fn nic_slots(&self) -> Result<Vec<u8>> {
        let answer = self.qmp.execute("qom-list", json!({"path": "/machine/peripheral"})).await?;
        let names = answer.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str());
        Ok(names.filter_map(slot_of_nic).collect())
    }

    pub(super) async fn plug_nic(&self, interface: &Interface) -> Result<()> {
        let slot = interface.slot;
        if slot == 0 {
            return Err(Error::Conflict("an interface that is plugged in has a place on the bus".into()));
        }
        if self.nic_slots().await?.contains(&slot) {
            return Err(Error::Conflict(format!("an interface is plugged in at {slot}")));
        }
        // What somebody left who was ended in the middle of this: it would hold the tap.
        self.close_netdev(slot).await?;
        let tap = open_tap(&interface.tap).map_err(Error::io("open tap", &interface.tap))?;
        let (name, id) = (format!("tap{slot}"), netdev_id(slot));
        self.qmp.execute_with("getfd", json!({"fdname": name}), tap.as_fd()).await?;
        // From here on the hypervisor's descriptor alone holds it.
        drop(tap);
        let made = self.qmp.execute("netdev_add", json!({"type": "tap", "id": id, "fd": name})).await;
        if made.is_err() {
            // Where it was taken all the same, there is none of that name any more.
            let _ = self.qmp.execute("closefd", json!({"fdname": name})).await;
            return made.map(drop);
        }
        let plugged = self.qmp.execute("device_add", nic(interface)).await;
        // Where it is not known whether the device is there, its other end stays.
        if matches!(plugged, Err(Error::Refused { .. })) {
            self.close_netdev(slot).await?;
        }
        plugged.map(drop)
    }

    pub(super) async fn unplug_nic(&self, slot: u8) -> Result<()> {
        if self.nic_slots().await?.contains(&slot) {
            self.unplug_device(&nic_id(slot), "the network interface").await?;
        }
        self.close_netdev(slot).await
    }

    /// Closes the machine's end of an interface whose device is gone.
    async fn close_netdev(&self, slot: u8) -> Result<()> {
        match self.qmp.execute("netdev_del", json!({"id": netdev_id(slot)})).await {
            Err(Error::Refused { message, .. }) if message.contains("not found") => Ok(()),
            other => other.map(drop),
        }
    }
}
