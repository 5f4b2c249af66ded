//! The memory of a guest while it runs.

use std::sync::Arc;

use api::quantity::whole;
use hypervisor::Guest;

use super::super::start::{self, Size};
use super::super::{moving, status};
use super::Driver;
use crate::error::Result;

/// Less than this is no change worth a write. Units: bytes.
const MEMORY_TRIFLE: u64 = 4 << 20;

impl Driver {
    /// Brings its memory to what the object says: more than it was started with is plugged in, as far as it may grow; less is left to
    /// its balloon.
    pub(super) async fn adjust_memory(&mut self, guest: &Arc<dyn Guest>, size: &Size) -> Result<()> {
        let launched = moving::launched(&self.context.guests, &self.uid)?;
        let all = size.memory_bytes.min(launched.memory_max.max(launched.memory_bytes));
        let target = self.object.spec.memory_target.as_ref().and_then(|quantity| whole(&quantity.0));
        let target = target.filter(|bytes| *bytes > 0).unwrap_or(all).min(all);
        let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        if launched.memory_max > launched.memory_bytes {
            let told = guest.memory().await?;
            let wanted = bytes(all - launched.memory_bytes);
            // Its hypervisor's room grows before it needs that, and becomes less when nothing needs it any more.
            let has = launched.memory_bytes.saturating_add(i64::try_from(told.plugged_bytes).unwrap_or(i64::MAX));
            start::bound_memory(&self.context, &self.uid, all.max(has))?;
            guest.plug_memory(wanted).await?;
        }
        if target != self.status.memory_bytes {
            guest.set_memory(bytes(target)).await?;
        }
        Ok(())
    }

    /// Tells how much memory the guest uses, when that has changed by more than a trifle.
    pub(super) async fn look_at_memory(&mut self) {
        let Some(guest) = self.guest.clone() else { return };
        let Ok(told) = guest.memory().await else { return };
        let Ok(launched) = moving::launched(&self.context.guests, &self.uid) else { return };
        let Some(used) = status::memory_used(&told, u64::try_from(launched.memory_bytes).unwrap_or(0)) else { return };
        let used = i64::try_from(used).unwrap_or(i64::MAX);
        let left = i64::try_from(told.actual_bytes).unwrap_or(i64::MAX);
        if used.abs_diff(self.status.memory_used) >= MEMORY_TRIFLE || left != self.status.memory_bytes {
            (self.status.memory_used, self.status.memory_bytes) = (used, left);
            self.report().await;
        }
    }
}
