//! What happens between the loss of our tables and their return: no workload's port forwards anything. Bringing the tables
//! back takes nft(8) some tens of milliseconds; switching a port off is one message, and loses neither addresses nor routes
//! nor connections, as these hang on the bridge and on the workload's own end. (Blocking the port would be milder, but a
//! bridge without spanning tree takes that back at once.)

use nix::errno::Errno;

use super::inner::{Core, Inner, host_channel, netlink_error};
use crate::error::Result;
use crate::kernel::link;

impl Inner {
    /// Switches the ports of all workloads off.
    pub(super) fn silence(&self, core: &mut Core) {
        core.silenced = true;
        self.switch_ports(core, false);
    }

    /// Switches them on again.
    pub(super) fn unsilence(&self, core: &mut Core) {
        if core.silenced {
            core.silenced = false;
            self.switch_ports(core, true);
        }
    }

    fn switch_ports(&self, core: &Core, on: bool) {
        let all = || -> Result<()> {
            let mut channel = host_channel()?;
            for attachment in core.addresses.all() {
                let name = &attachment.host_interface;
                match link::switch(&mut channel, name, on) {
                    // It is going away.
                    Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => {}
                    other => other.map_err(netlink_error(format!("switch {name}")))?,
                }
            }
            Ok(())
        };
        if let Err(error) = all() {
            tracing::warn!(%error, on, "cannot switch the ports of workloads");
        }
    }
}
