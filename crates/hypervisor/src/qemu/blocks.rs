//! Disks of a running guest. Files go in as descriptors, so nothing has to be visible to QEMU's own eyes.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::arguments::{device, device_id, node_name, nodes};
use super::guest::QemuGuest;
use super::qmp::{self, QmpEvent};
use crate::error::{Error, Result};
use crate::guest::Disk;

/// How long a guest may take to let go of a disk.
const UNPLUG_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a copy may take.
const COPY_TIMEOUT: Duration = Duration::from_secs(3600);

impl QemuGuest {
    /// All nodes, as QEMU names them.
    async fn node_names(&self) -> Result<Vec<String>> {
        let answer = self.qmp.execute("query-named-block-nodes", json!({"flat": true})).await?;
        let nodes = answer.as_array().into_iter().flatten();
        Ok(nodes.filter_map(|node| node["node-name"].as_str().map(str::to_owned)).collect())
    }

    /// The node that a disk's device writes to.
    pub(super) async fn top_node(&self, name: &str) -> Result<String> {
        let answer = self.qmp.execute("query-block", json!({})).await?;
        let place = format!("/machine/peripheral/{}/", device_id(name));
        let found =
            answer.as_array().into_iter().flatten().find(|one| {
                one["qdev"].as_str().is_some_and(|path| path.starts_with(&place) || path == device_id(name))
            });
        let node = found.and_then(|one| one["inserted"]["node-name"].as_str());
        node.map(str::to_owned).ok_or_else(|| Error::NotFound(format!("disk {name}")))
    }

    /// A node name of a disk that is free.
    async fn free_node(&self, name: &str) -> Result<String> {
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
    async fn open_layer(
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

    async fn close_layer(&self, node: &str) {
        if let Err(error) = self.qmp.execute("blockdev-del", json!({"node-name": node})).await {
            tracing::warn!(node, %error, "a disk's node is left over");
        }
    }

    pub(super) async fn plug_disk(&self, disk: &Disk) -> Result<()> {
        if self.top_node(&disk.name).await.is_ok() {
            return Err(Error::Conflict(format!("disk {} is attached", disk.name)));
        }
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
        self.top_node(name).await?;
        let id = device_id(name);
        let events = self.qmp.events();
        self.qmp.execute("device_del", json!({"id": id})).await?;
        let gone = wait_for(events, "DEVICE_DELETED", |data| data["device"] == id.as_str());
        let waited = tokio::time::timeout(UNPLUG_TIMEOUT, gone).await;
        waited.map_err(|_| Error::Timeout(format!("the guest did not let go of disk {name}; that")))??;
        self.close_disk(name).await
    }

    /// Closes all nodes of a disk, from the top down.
    async fn close_disk(&self, name: &str) -> Result<()> {
        loop {
            let ours = |node: &String| node.rsplit_once('.').is_some_and(|(disk, _)| disk == name);
            let left: Vec<String> = self.node_names().await?.into_iter().filter(ours).collect();
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
                None => return Ok(()),
                Some(error) if closed == 0 => return Err(error),
                Some(_) => {}
            }
        }
    }

    pub(super) async fn put_on_top(&self, name: &str, path: &Path) -> Result<()> {
        let top = self.top_node(name).await?;
        let node = self.free_node(name).await?;
        let disk = Disk { name: name.to_owned(), layers: Vec::new(), raw: false, read_only: false };
        self.open_layer(&disk, &node, path, None, true).await?;
        let done = self.qmp.execute("blockdev-snapshot", json!({"node": top, "overlay": node})).await;
        if done.is_err() {
            self.close_layer(&node).await;
            self.close_layer(&format!("{node}f")).await;
        }
        done.map(drop)
    }

    pub(super) async fn copy_to(&self, name: &str, path: &Path) -> Result<()> {
        let top = self.top_node(name).await?;
        let node = format!("copy-{}", self.free_node(name).await?);
        let disk = Disk { name: name.to_owned(), layers: Vec::new(), raw: false, read_only: false };
        self.open_layer(&disk, &node, path, None, true).await?;
        let events = self.qmp.events();
        let job = json!({"job-id": node, "device": top, "target": node, "sync": "full", "compress": true});
        let copied = match self.qmp.execute("blockdev-backup", job).await {
            Ok(_) => {
                let done = wait_for(events, "BLOCK_JOB_COMPLETED", |data| data["device"] == node.as_str());
                let done = tokio::time::timeout(COPY_TIMEOUT, done).await;
                done.unwrap_or_else(|_| Err(Error::Timeout("the copy of a disk".into()))).and_then(|data| {
                    match data["error"].as_str() {
                        Some(message) => Err(Error::Refused { command: "copy".into(), message: message.to_owned() }),
                        None => Ok(()),
                    }
                })
            }
            Err(error) => Err(error),
        };
        self.close_layer(&node).await;
        self.close_layer(&format!("{node}f")).await;
        copied
    }
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
