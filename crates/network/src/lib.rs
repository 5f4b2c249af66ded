//! The network of one machine: bridges, addresses, network namespaces, NAT, published ports, service load-balancing and
//! DNS. Knows netlink and nftables; must not know kinds, clients or dialects: plain structs in, plain structs out.
//!
//! | module | owns |
//! |---|---|
//! | [`types`], [`subnet`], [`error`] | the border |
//! | [`fabric`] | the state of one machine's network, and every operation on it |
//! | [`dns`] | the name server for clusters and user networks |

pub mod dns;
pub mod error;
pub mod fabric;
pub mod subnet;
pub mod types;

pub use error::{Error, Result};
pub use fabric::{Fabric, bridge_name};
pub use subnet::Subnet;
pub use types::*;
