//! Disks of a running guest. Files go in as descriptors, so nothing has to be visible to QEMU's own eyes.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::arguments::{DEVICE_PREFIX, device, device_id, node_name, nodes};
use super::copies::GRANULARITY;
use super::guest::QemuGuest;
use super::qmp::{self, QmpEvent};
use crate::error::{Error, Result};
use crate::guest::Disk;

/// How long a guest may take to let go of a disk before its owner looks after other things; it may be asked again.
const UNPLUG_TIMEOUT: Duration = Duration::from_secs(5);

impl QemuGuest {
    /// All nodes, as QEMU names them.
    async fn node_names(&self) -> Result<Vec<String>> {
        let answer = self.qmp.execute("query-named-block-nodes", json!({"flat": true})).await?;
        let nodes = answer.as_array().into_iter().flatten();
        Ok(nodes.filter_map(|node| node["node-name"].as_str().map(str::to_owned)).collect())
    }

    /// The disks that are plugged in.
    pub(super) async fn disk_names(&self) -> Result<Vec<String>> {
        let answer = self.qmp.execute("query-block", json!({})).await?;
        let devices = answer.as_array().into_iter().flatten().filter_map(|one| one["qdev"].as_str());
        Ok(devices.filter_map(disk_of_device).map(str::to_owned).collect())
    }

    /// What QEMU knows of a disk.
    async fn block(&self, name: &str) -> Result<Value> {
        let answer = self.qmp.execute("query-block", json!({})).await?;
        let mut blocks = answer.as_array().cloned().unwrap_or_default().into_iter();
        let found = blocks.find(|one| one["qdev"].as_str().and_then(disk_of_device) == Some(name));
        found.ok_or_else(|| Error::NotFound(format!("disk {name}")))
    }

    /// The node that a disk's device writes to.
    pub(super) async fn top_node(&self, name: &str) -> Result<String> {
        let block = self.block(name).await?;
        let node = block["inserted"]["node-name"].as_str();
        node.map(str::to_owned).ok_or_else(|| Error::NotFound(format!("disk {name}")))
    }

    pub(super) async fn marks_of(&self, name: &str) -> Result<Vec<String>> {
        let block = self.block(name).await?;
        let bitmaps = block["inserted"]["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
        let usable = bitmaps.iter().filter(|one| one["recording"] == true && one["inconsistent"] != true);
        Ok(usable.filter_map(|one| one["name"].as_str().map(str::to_owned)).collect())
    }

    /// A node name of a disk that is free.
    pub(super) async fn free_node(&self, name: &str) -> Result<String> {
        let used = self.node_names().await?;
        let mut names = (0..).map(|index| node_name(name, index));
        names.find(|node| !used.contains(node)).ok_or(Error::Gone)
    }

    /// Hands a file over; the path by which QEMU then opens it.
    async fn hand_over(&self, path: &Path, writable: bool) -> Result<String> {
        let answer = {
            let file = OpenOptions::new().read(true).write(writable).open(path).map_err(Error::io("open", path))?;
            self.qmp.execute_with("add-fd", json!({}), file.as_fd()).await?
        };
        let set = answer["fdset-id"].as_u64().ok_or(Error::Gone)?;
        if writable {
            let file = OpenOptions::new().read(true).open(path).map_err(Error::io("open", path))?;
            self.qmp.execute_with("add-fd", json!({"fdset-id": set}), file.as_fd()).await?;
        }
        Ok(format!("/dev/fdset/{set}"))
    }

    /// Opens a layer in QEMU, over another or over nothing.
    pub(super) async fn open_layer(
        &self,
        disk: &Disk,
        node: &str,
        path: &Path,
        below: Option<&str>,
        writable: bool,
    ) -> Result<()> {
        let file = self.hand_over(path, writable).await?;
        let (file, format) = nodes(disk, node, &file, below, writable);
        self.qmp.execute("blockdev-add", file).await?;
        if let Err(error) = self.qmp.execute("blockdev-add", format).await {
            self.close_layer(&format!("{node}f")).await;
            return Err(error);
        }
        Ok(())
    }

    pub(super) async fn close_layer(&self, node: &str) {
        if let Err(error) = self.qmp.execute("blockdev-del", json!({"node-name": node})).await {
            tracing::warn!(node, %error, "a disk's node is left over");
        }
    }

    pub(super) async fn plug_disk(&self, disk: &Disk) -> Result<()> {
        if self.top_node(&disk.name).await.is_ok() {
            return Err(Error::Conflict(format!("disk {} is attached", disk.name)));
        }
        // What somebody left who was ended in the middle of this.
        self.close_disk(&disk.name).await?;
        let plugged = self.plug_layers(disk).await;
        if plugged.is_err() {
            self.close_disk(&disk.name).await?;
        }
        plugged
    }

    async fn plug_layers(&self, disk: &Disk) -> Result<()> {
        let mut below: Option<String> = None;
        for (index, path) in disk.layers.iter().enumerate().rev() {
            let node = node_name(&disk.name, index);
            let writable = index == 0 && !disk.read_only;
            self.open_layer(disk, &node, path, below.as_deref(), writable).await?;
            below = Some(node);
        }
        self.qmp.execute("device_add", device(disk, &node_name(&disk.name, 0), None)).await.map(drop)
    }

    pub(super) async fn unplug_disk(&self, name: &str) -> Result<()> {
        if self.top_node(name).await.is_ok() {
            self.unplug_device(&device_id(name), &format!("disk {name}")).await?;
        }
        self.close_disk(name).await
    }

    /// Asks the guest to let go of a device that it has, and waits until it has.
    pub(super) async fn unplug_device(&self, id: &str, what: &str) -> Result<()> {
        let events = self.qmp.events();
        match self.qmp.execute("device_del", json!({"id": id})).await {
            // The guest was asked before.
            Err(Error::Refused { message, .. }) if message.contains("in the process of unplug") => {}
            other => drop(other?),
        }
        let gone = wait_for(events, "DEVICE_DELETED", |data| data["device"] == id);
        let waited = tokio::time::timeout(UNPLUG_TIMEOUT, gone).await;
        waited.map_err(|_| Error::Kept(what.to_owned()))?.map(drop)
    }

    /// Closes all nodes of a disk, from the top down, and the descriptors that were handed over for them: an open one would keep
    /// a removed file's space.
    pub(super) async fn close_disk(&self, name: &str) -> Result<()> {
        let answer = self.qmp.execute("query-named-block-nodes", json!({"flat": true})).await?;
        let ours = |node: &&Value| node["node-name"].as_str().is_some_and(|node| is_node_of(node, name));
        let files: Vec<Value> = answer.as_array().into_iter().flatten().filter(ours).cloned().collect();
        let sets: BTreeSet<u64> = files.iter().filter_map(|node| descriptor_set(node["file"].as_str()?)).collect();
        loop {
            let left: Vec<String> =
                self.node_names().await?.into_iter().filter(|node| is_node_of(node, name)).collect();
            let mut closed = 0;
            let mut last = None;
            for node in &left {
                match self.qmp.execute("blockdev-del", json!({"node-name": node})).await {
                    Ok(_) => closed += 1,
                    // Something lies on it still; the next round may have it.
                    Err(error) => last = Some(error),
                }
            }
            match last {
                None => break,
                Some(error) if closed == 0 => return Err(error),
                Some(_) => {}
            }
        }
        for set in sets {
            if let Err(error) = self.qmp.execute("remove-fd", json!({"fdset-id": set})).await {
                tracing::debug!(%error, set, "descriptors stay open");
            }
        }
        Ok(())
    }

    /// Closes the nodes of a disk that are not in use: somebody opened them, and was ended before anything was done with them. Those
    /// that are in use QEMU does not close.
    async fn close_strays(&self, name: &str) -> Result<()> {
        loop {
            let mut closed = false;
            for node in self.node_names().await?.into_iter().filter(|node| is_node_of(node, name)) {
                closed |= match self.qmp.execute("blockdev-del", json!({"node-name": node})).await {
                    Ok(_) => true,
                    Err(Error::Refused { .. }) => false,
                    Err(error) => return Err(error),
                };
            }
            if !closed {
                return Ok(());
            }
        }
    }

    pub(super) async fn put_on_top(&self, new_tops: &[(String, PathBuf)]) -> Result<bool> {
        let mut actions = Vec::new();
        let (mut opened, mut moved) = (Vec::new(), Vec::new());
        let prepared = async {
            for (name, path) in new_tops {
                self.close_strays(name).await?;
                let top = self.top_node(name).await?;
                let node = self.free_node(name).await?;
                let disk = Disk { name: name.clone(), ..Disk::default() };
                self.open_layer(&disk, &node, path, None, true).await?;
                actions.push(json!({"type": "blockdev-snapshot", "data": {"node": top, "overlay": node}}));
                for mark in self.marks_of(name).await? {
                    actions.extend(move_mark(&mark, &top, &node));
                    moved.push(json!({"node": top, "name": mark}));
                }
                opened.push(node);
            }
            Ok::<_, Error>(())
        };
        let done = match prepared.await {
            Ok(()) => {
                let frozen = self.qmp.execute("transaction", json!({"actions": actions}));
                self.while_still(frozen).await.map(|(_, still)| still)
            }
            // Nothing has happened to the disks yet.
            Err(error @ (Error::Gone | Error::Timeout(_))) => {
                Err(Error::Refused { command: "blockdev-add".into(), message: error.to_string() })
            }
            Err(error) => Err(error),
        };
        // Where it is not known whether they are in use, they stay open.
        if done.as_ref().is_err_and(|error| !matches!(error, Error::Gone | Error::Timeout(_))) {
            for node in &opened {
                self.close_layer(node).await;
                self.close_layer(&format!("{node}f")).await;
            }
        }
        if done.is_ok() {
            for mark in moved {
                // It says nothing new any more, and costs only memory if it stays.
                if let Err(error) = self.qmp.execute("block-dirty-bitmap-remove", mark).await {
                    tracing::debug!(%error, "a mark stays on a frozen layer");
                }
            }
        }
        done
    }
}

/// Has a mark go on on the layer that comes on top: what it has seen so far is merged into one of the same name there.
fn move_mark(mark: &str, from: &str, to: &str) -> [Value; 2] {
    let new = json!({"node": to, "name": mark, "granularity": GRANULARITY, "persistent": false});
    let seen = json!({"node": to, "target": mark, "bitmaps": [{"node": from, "name": mark}]});
    [json!({"type": "block-dirty-bitmap-add", "data": new}), json!({"type": "block-dirty-bitmap-merge", "data": seen})]
}

/// The disk of a device, by its id or its path.
fn disk_of_device(device: &str) -> Option<&str> {
    let id = device.strip_prefix("/machine/peripheral/").map_or(device, |rest| rest.split('/').next().unwrap_or(rest));
    id.strip_prefix(DEVICE_PREFIX)
}

/// Whether a node is one of a disk's layers: `NAME.3`, or its file `NAME.3f`.
fn is_node_of(node: &str, disk: &str) -> bool {
    node.rsplit_once('.').is_some_and(|(front, _)| front == disk)
}

/// The number of the set of descriptors that a file was opened from.
fn descriptor_set(file: &str) -> Option<u64> {
    file.strip_prefix("/dev/fdset/")?.parse().ok()
}

/// Waits for an event.
async fn wait_for(
    mut events: broadcast::Receiver<QmpEvent>,
    name: &str,
    is_it: impl Fn(&Value) -> bool,
) -> Result<Value> {
    loop {
        match events.recv().await {
            Ok(event) if event.name == name && is_it(&event.data) => return Ok(event.data),
            Ok(event) if event.name == qmp::GONE => return Err(Error::Gone),
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return Err(Error::Gone),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::qemu::qmp::Qmp;

    #[test]
    fn devices_and_nodes_are_told_apart_by_their_disks() {
        assert_eq!(disk_of_device("disk-root"), Some("root"));
        assert_eq!(disk_of_device("/machine/peripheral/disk-v1/virtio-backend"), Some("v1"));
        assert_eq!(disk_of_device("/machine/peripheral/nic0"), None);
        assert!(is_node_of("v1.0", "v1") && is_node_of("v1.12f", "v1") && !is_node_of("v12.0", "v1"));
        assert_eq!(descriptor_set("/dev/fdset/7"), Some(7));
    }

    #[tokio::test]
    async fn who_waits_for_a_job_learns_that_the_guest_is_gone() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = tokio::spawn(async move {
            theirs.write_all(b"{\"QMP\": {}}\n").await.unwrap();
            let mut request = [0u8; 256];
            assert!(theirs.read(&mut request).await.unwrap() > 0);
            theirs.write_all(b"{\"return\": {}, \"id\": 1}\n").await.unwrap();
            theirs
        });
        let qmp = Qmp::open(ours, || ()).await.unwrap();
        let waiting = tokio::spawn(wait_for(qmp.events(), "BLOCK_JOB_COMPLETED", |_| true));
        drop(server.await.unwrap());
        assert!(matches!(waiting.await.unwrap(), Err(Error::Gone)));
    }
}
