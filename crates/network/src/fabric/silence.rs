//! What happens between the loss of our tables and their return: no workload's port forwards anything. Bringing the tables
//! back takes nft(8) some tens of milliseconds; blocking a bridge's port is one message, and loses neither addresses nor
//! routes nor connections.

use rtnetlink::packet_route::link::BridgePortState;

use super::inner::{Core, Inner, host_channel, netlink_error};
use crate::error::Result;
use crate::kernel::link;

impl Inner {
    /// Blocks the ports of all workloads.
    pub(super) fn silence(&self, core: &mut Core) {
        core.silenced = true;
        self.set_ports(core, BridgePortState::Blocking);
    }

    /// Lets them forward again.
    pub(super) fn unsilence(&self, core: &mut Core) {
        if core.silenced {
            core.silenced = false;
            self.set_ports(core, BridgePortState::Forwarding);
        }
    }

    fn set_ports(&self, core: &Core, state: BridgePortState) {
        let all = || -> Result<()> {
            let mut channel = host_channel()?;
            for attachment in core.addresses.all() {
                let name = &attachment.host_interface;
                match link::set_port_state(&mut channel, name, state) {
                    // It is going away, or not plugged in yet.
                    Err(error) if matches!(error.raw_os_error(), Some(ENODEV | EOPNOTSUPP | ENETDOWN | EINVAL)) => {}
                    other => other.map_err(netlink_error(format!("block {name}")))?,
                }
            }
            Ok(())
        };
        if let Err(error) = all() {
            tracing::warn!(%error, ?state, "cannot change the ports of workloads");
        }
    }
}

const ENODEV: i32 = nix::errno::Errno::ENODEV as i32;
const EOPNOTSUPP: i32 = nix::errno::Errno::EOPNOTSUPP as i32;
const ENETDOWN: i32 = nix::errno::Errno::ENETDOWN as i32;
const EINVAL: i32 = nix::errno::Errno::EINVAL as i32;
