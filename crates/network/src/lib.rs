//! The network of one machine: bridges, addresses, network namespaces, NAT, published ports, service load-balancing and
//! DNS. Knows netlink and nftables; must not know kinds, clients or dialects: plain structs in, plain structs out.
//!
//! | module | owns |
//! |---|---|
//! | [`types`], [`Plan`], [`subnet`], [`subnet6`], [`error`] | the border |
//! | [`fabric`] | every operation on one machine's network |
//! | [`dhcp`] | addresses for guests that ask for them |
//! | [`dns`] | the name server for clusters and user networks |
//! | `state` | what is known, in memory and on disk |
//! | `nft` | rulesets as text, elements as netlink messages; pure but for one file each |
//! | `kernel` | netlink, namespaces, kernel settings, connection tracking |

pub mod dhcp;
pub mod dns;
pub mod error;
pub mod fabric;
mod kernel;
mod names;
mod nft;
mod plan;
mod state;
pub mod subnet;
pub mod subnet6;
pub mod types;

pub use error::{Error, Result};
pub use fabric::Fabric;
pub use fabric::overlay::{Overlay, Part};
pub use names::bridge_name;
pub use plan::{Plan, StaticRoute};
pub use subnet::Subnet;
pub use subnet6::Subnet6;
pub use types::*;
