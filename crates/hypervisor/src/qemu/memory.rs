//! Memory of a running guest: a balloon takes of what it has, and a device of its own gives more.
//!
//! `Source:` virtio 1.2, sections 5.5 and 5.15; QEMU 7.2, docs/interop/qemu-qmp-ref

use serde_json::{Value, json};

use super::arguments::{MEMORY_BLOCK, MEMORY_DEVICE};
use super::guest::QemuGuest;
use crate::error::{Error, Result};
use crate::guest::MemoryStatistics;

impl QemuGuest {
    /// What is asked to be plugged in, and what is; `None` for a guest that cannot grow. Units: bytes.
    async fn plugged(&self) -> Result<Option<(u64, u64)>> {
        let answer = self.qmp.execute("query-memory-devices", json!({})).await?;
        let mut devices = answer.as_array().into_iter().flatten().map(|device| &device["data"]);
        let found = devices.find(|device| device["id"] == MEMORY_DEVICE);
        let bytes = |device: &Value, field: &str| device[field].as_u64().unwrap_or(0);
        Ok(found.map(|device| (bytes(device, "requested-size"), bytes(device, "size"))))
    }

    pub(super) async fn plug(&self, bytes: u64) -> Result<()> {
        let wanted = bytes / MEMORY_BLOCK * MEMORY_BLOCK;
        match self.plugged().await? {
            Some((requested, _)) if requested == wanted => Ok(()),
            None if wanted == 0 => Ok(()),
            None => Err(Error::NotSupported("the guest was not started with room for more memory".into())),
            Some(_) => {
                let path = format!("/machine/peripheral/{MEMORY_DEVICE}");
                let change = json!({"path": path, "property": "requested-size", "value": wanted});
                self.qmp.execute("qom-set", change).await.map(drop)
            }
        }
    }

    /// The balloon is in what the guest was started with, and takes for all of it.
    pub(super) async fn balloon(&self, bytes: u64) -> Result<()> {
        let (requested, _) = self.plugged().await?.unwrap_or_default();
        // None at all is no size that a balloon leaves.
        let left = bytes.saturating_sub(requested).max(MEMORY_BLOCK);
        self.qmp.execute("balloon", json!({"value": left})).await.map(drop)
    }

    pub(super) async fn statistics(&self) -> Result<MemoryStatistics> {
        let actual = self.qmp.execute("query-balloon", json!({})).await?;
        let path = json!({"path": "/machine/peripheral/balloon", "property": "guest-stats"});
        let told = self.qmp.execute("qom-get", path).await?;
        let (_, plugged_bytes) = self.plugged().await?.unwrap_or_default();
        // The largest number means that the guest did not say.
        let figure = |name: &str| told["stats"][name].as_u64().filter(|bytes| *bytes != u64::MAX);
        Ok(MemoryStatistics {
            actual_bytes: actual["actual"].as_u64().unwrap_or(0).saturating_add(plugged_bytes),
            plugged_bytes,
            total_bytes: figure("stat-total-memory"),
            free_bytes: figure("stat-free-memory"),
            available_bytes: figure("stat-available-memory"),
        })
    }
}
