//! Addresses that are kept for ports.

use std::net::Ipv4Addr;

use super::Fabric;
use super::inner::Inner;
use crate::error::{Error, Result};
use crate::types::{Mac, Reservation};

impl Fabric {
    /// Keeps an address of a network, the wanted one or a free one, for whoever names `owner` as its port. It is durable when this returns,
    /// and the same owner gets the same answer again.
    ///
    /// `Errors:` [`Error::NetworkNotFound`], [`Error::AddressTaken`], [`Error::AddressesExhausted`]; [`Error::Invalid`] when an address is
    /// not this machine's to give, or somebody has the hardware address.
    pub async fn keep_address(
        &self,
        owner: &str,
        network: &str,
        address: Option<Ipv4Addr>,
        mac: Option<Mac>,
    ) -> Result<Reservation> {
        let (owner, network) = (owner.to_owned(), network.to_owned());
        self.run("a port's address", move |inner| inner.keep_address(&owner, &network, address, mac)).await
    }

    /// Gives up what is kept for a port. Nothing to do is fine.
    pub async fn give_up_address(&self, owner: &str) -> Result<()> {
        let owner = owner.to_owned();
        self.run("a port's address", move |inner| inner.core().addresses.give_up(&owner)).await
    }
}

impl Inner {
    fn keep_address(&self, owner: &str, id: &str, address: Option<Ipv4Addr>, mac: Option<Mac>) -> Result<Reservation> {
        let mut core = self.core();
        let network = core.networks.get(id).cloned().ok_or_else(|| Error::NetworkNotFound(id.to_owned()))?;
        self.check_bridge_mac(&network, mac)?;
        core.addresses.keep(&network, owner, address, mac)
    }
}
