//! Addresses that a network keeps from everybody, since they are others'. Pure.

use std::net::{IpAddr, Ipv4Addr};

use crate::error::{Error, Result};
use crate::subnet::Subnet;
use crate::types::Ipv6Network;

/// Refuses to keep what is not the network's to give. A network may have addresses of IPv6 for show. Pure.
pub(super) fn check(subnet: Subnet, gateway: Ipv4Addr, ipv6: Option<Ipv6Network>, kept: &[IpAddr]) -> Result<()> {
    let is_given = |address: &IpAddr| match address {
        IpAddr::V4(address) => subnet.is_host(*address) && *address != gateway,
        IpAddr::V6(address) => ipv6.is_none_or(|six| six.subnet.is_host(*address) && *address != six.gateway),
    };
    match kept.iter().find(|address| !is_given(address)) {
        None => Ok(()),
        Some(IpAddr::V4(address)) if subnet.contains(*address) => Err(Error::AddressTaken((*address).into())),
        Some(IpAddr::V6(address)) if ipv6.is_some_and(|six| six.subnet.contains(*address)) => {
            Err(Error::AddressTaken((*address).into()))
        }
        Some(address) => Err(Error::Invalid(format!("auxiliary address {address} is not of the network's subnets"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_of_the_network_and_nobody_elses() {
        let (subnet, gateway) = ("10.90.0.0/24".parse().unwrap(), Ipv4Addr::new(10, 90, 0, 1));
        let six =
            Ipv6Network { subnet: "fd00:1::/64".parse().unwrap(), range: None, gateway: "fd00:1::1".parse().unwrap() };
        let check = |six, kept: &str| super::check(subnet, gateway, six, &[kept.parse().unwrap()]);
        assert!(check(None, "10.90.0.9").is_ok() && check(Some(six), "fd00:1::9").is_ok());
        assert!(check(None, "fd00:2::9").is_ok(), "for show");
        for taken in ["10.90.0.0", "10.90.0.1", "10.90.0.255", "fd00:1::1"] {
            assert!(matches!(check(Some(six), taken), Err(Error::AddressTaken(_))), "{taken}");
        }
        for others in ["10.91.0.9", "fd00:2::9"] {
            assert!(matches!(check(Some(six), others), Err(Error::Invalid(_))), "{others}");
        }
    }
}
