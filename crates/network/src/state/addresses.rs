//! Addresses of networks: allotted one after the other, so that a freed address rests as long as possible before somebody
//! else gets it (neighbours and connection tracking may still remember it).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};
use crate::names::check_id;
use crate::state::files;
use crate::types::{Attachment, Ipv6Place, Network};

/// How often to try again when another process takes the address that we found free.
const RACES_MAX: usize = 1024;

/// The attachments of all networks; each holds an address.
pub(crate) struct AddressBook {
    directory: PathBuf,
    networks: HashMap<String, BTreeMap<Ipv4Addr, Attachment>>,
    /// Last allotted address per network.
    cursors: HashMap<String, Ipv4Addr>,
    /// Addresses that nobody is given, per network.
    reserved: HashMap<String, HashSet<Ipv4Addr>>,
}

impl AddressBook {
    /// Reads what is on disk.
    pub(crate) fn open(directory: &Path) -> Result<AddressBook> {
        fs::create_dir_all(directory).at("create", directory)?;
        let mut book = AddressBook {
            directory: directory.into(),
            networks: HashMap::new(),
            cursors: HashMap::new(),
            reserved: HashMap::new(),
        };
        for entry in fs::read_dir(directory).at("list", directory)? {
            let path = entry.at("list", directory)?.path();
            let Some(network) = path.file_name().and_then(|n| n.to_str()).map(str::to_owned) else { continue };
            let found: Vec<(String, Attachment)> = files::read_all(&path)?;
            let addresses: BTreeMap<_, _> = found.into_iter().map(|(_, a)| (a.address, a)).collect();
            if let Some(last) = addresses.keys().next_back() {
                book.cursors.insert(network.clone(), *last);
            }
            book.networks.insert(network, addresses);
        }
        Ok(book)
    }

    fn path(&self, network: &str, address: Ipv4Addr) -> PathBuf {
        self.directory.join(network).join(address.to_string())
    }

    /// Keeps these addresses, and no others any more, from being given to who asks for any.
    pub(crate) fn reserve(&mut self, network: &str, addresses: impl Iterator<Item = Ipv4Addr>) {
        self.reserved.insert(network.to_owned(), addresses.collect());
    }

    fn is_reserved(&self, network: &str, address: Ipv4Addr) -> bool {
        self.reserved.get(network).is_some_and(|reserved| reserved.contains(&address))
    }

    /// The attachment of an owner to a network.
    pub(crate) fn find(&self, owner: &str, network: &str) -> Option<&Attachment> {
        self.networks.get(network)?.values().find(|a| a.owner == owner)
    }

    /// All attachments.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Attachment> {
        self.networks.values().flat_map(BTreeMap::values)
    }

    /// How many there are on a network.
    pub(crate) fn count(&self, network: &str) -> usize {
        self.networks.get(network).map_or(0, BTreeMap::len)
    }

    /// Takes an address. `fill` makes the attachment for the address that was found.
    ///
    /// `Errors:` [`Error::AddressTaken`] for a wanted one, [`Error::AddressesExhausted`], [`Error::Invalid`] when the
    /// wanted one is not the network's to give.
    pub(crate) fn take(
        &mut self,
        network: &Network,
        wanted: Option<Ipv4Addr>,
        wanted6: Option<Ipv6Addr>,
        fill: impl Fn(Ipv4Addr) -> Attachment,
    ) -> Result<Attachment> {
        check_id(&network.id)?;
        fs::create_dir_all(self.directory.join(&network.id)).at("create", self.directory.join(&network.id))?;
        if let Some(address) = wanted {
            if !network.subnet.is_host(address) {
                return Err(Error::Invalid(format!(
                    "invalid address {address}: it does not belong to {}",
                    network.subnet
                )));
            }
            // A reserved one is given to who asks for it: a guest that comes home to the address that was kept for it.
            if address == network.gateway {
                return Err(Error::AddressTaken(address.into()));
            }
            return self.try_take(network, address, wanted6, &fill)?.ok_or(Error::AddressTaken(address.into()));
        }
        for _ in 0..RACES_MAX {
            let Some(address) = self.next_free(network) else { break };
            if let Some(attachment) = self.try_take(network, address, wanted6, &fill)? {
                self.cursors.insert(network.id.clone(), address);
                return Ok(attachment);
            }
            // Another process has it: remember that it is not ours to give.
            self.cursors.insert(network.id.clone(), address);
        }
        Err(Error::AddressesExhausted(network.subnet.to_string()))
    }

    fn try_take(
        &mut self,
        network: &Network,
        address: Ipv4Addr,
        wanted6: Option<Ipv6Addr>,
        fill: impl Fn(Ipv4Addr) -> Attachment,
    ) -> Result<Option<Attachment>> {
        if self.networks.get(&network.id).is_some_and(|n| n.contains_key(&address)) {
            return Ok(None);
        }
        let mut attachment = fill(address);
        if !attachment.tap {
            attachment.ipv6 = self.choose6(network, address, wanted6)?;
        }
        if !files::create(&self.path(&network.id, address), &attachment)? {
            return Ok(None);
        }
        self.networks.entry(network.id.clone()).or_default().insert(address, attachment.clone());
        Ok(Some(attachment))
    }

    /// The first free address after the last one allotted, around the end.
    fn next_free(&self, network: &Network) -> Option<Ipv4Addr> {
        let empty = BTreeMap::new();
        let used = self.networks.get(&network.id).unwrap_or(&empty);
        let range = network.ip_range.filter(|r| network.subnet.contains(r.address())).unwrap_or(network.subnet);
        let (first, last) = (range.address().to_bits(), range.last().to_bits());
        let start = self.cursors.get(&network.id).map_or(first, |c| c.to_bits().saturating_add(1)).clamp(first, last);
        let free = |bits: &u32| {
            let address = Ipv4Addr::from_bits(*bits);
            network.subnet.is_host(address)
                && address != network.gateway
                && !used.contains_key(&address)
                && !self.is_reserved(&network.id, address)
        };
        (start..=last).find(free).or_else(|| (first..start).find(free)).map(Ipv4Addr::from_bits)
    }

    /// The IPv6 address for whoever gets `address`: the wanted one, or the one as far behind the first as `address` is in
    /// its own range (so that it rests as long when it is freed), or the first free one. Held by the attachment that is
    /// taken with it.
    ///
    /// `Errors:` as with [`AddressBook::take`].
    fn choose6(&self, network: &Network, address: Ipv4Addr, wanted: Option<Ipv6Addr>) -> Result<Option<Ipv6Place>> {
        let Some(six) = network.ipv6 else {
            return match wanted {
                None => Ok(None),
                Some(wanted) => {
                    Err(Error::Invalid(format!("invalid address {wanted}: the network {} has no IPv6", network.id)))
                }
            };
        };
        let held = self.networks.get(&network.id).into_iter().flat_map(BTreeMap::values);
        let used: HashSet<Ipv6Addr> = held.filter_map(|a| Some(a.ipv6?.address)).collect();
        let free = |a: &Ipv6Addr| six.subnet.is_host(*a) && *a != six.gateway && !used.contains(a);
        let found = match wanted {
            Some(wanted) if !six.subnet.is_host(wanted) => {
                return Err(Error::Invalid(format!("invalid address {wanted}: it does not belong to {}", six.subnet)));
            }
            Some(wanted) => Some(wanted).filter(free).ok_or(Error::AddressTaken(wanted.into()))?,
            None => {
                let range = six.range.unwrap_or(six.subnet);
                // Where nobody says where to begin, it is behind network and gateway.
                let start = network.ip_range.map_or(network.subnet.address().to_bits() + 2, |r| r.address().to_bits());
                let offset = address.to_bits().checked_sub(start).map(u128::from);
                let same = offset.and_then(|o| range.nth(if six.range.is_some() { o } else { o + 2 }));
                // One of these is free when any is: the taken ones, the gateway and the anycast address are fewer.
                let candidates = (0..=used.len() as u128 + 2).map_while(|offset| range.nth(offset));
                let found = same.filter(free).or_else(|| candidates.into_iter().find(free));
                found.ok_or_else(|| Error::Ipv6AddressesExhausted(six.subnet.to_string()))?
            }
        };
        Ok(Some(Ipv6Place { address: found, prefix: six.subnet.prefix(), gateway: six.gateway }))
    }

    /// Notes more about an attachment.
    pub(crate) fn update(&mut self, attachment: &Attachment) -> Result<()> {
        files::replace(&self.path(&attachment.network, attachment.address), attachment)?;
        let addresses = self.networks.entry(attachment.network.clone()).or_default();
        addresses.insert(attachment.address, attachment.clone());
        Ok(())
    }

    /// Frees an address.
    pub(crate) fn release(&mut self, network: &str, address: Ipv4Addr) -> Result<()> {
        files::remove(&self.path(network, address))?;
        if let Some(addresses) = self.networks.get_mut(network) {
            addresses.remove(&address);
        }
        Ok(())
    }

    /// Forgets a network with all its addresses.
    pub(crate) fn forget(&mut self, network: &str) -> Result<()> {
        self.networks.remove(network);
        self.cursors.remove(network);
        let directory = self.directory.join(network);
        match fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", directory),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Ipv6Network, Mac};

    fn network(subnet: &str, range: Option<&str>) -> Network {
        let subnet: crate::subnet::Subnet = subnet.parse().unwrap();
        Network {
            id: "net".into(),
            bridge: "nuee0".into(),
            subnet,
            ip_range: range.map(|r| r.parse().unwrap()),
            gateway: subnet.first_host(),
            ipv6: None,
            internal: false,
            routed: false,
            plain: false,
            uplink: None,
            isolated_ports: false,
            mtu: 1500,
        }
    }

    fn attachment(owner: &str, address: Ipv4Addr) -> Attachment {
        Attachment {
            owner: owner.into(),
            network: "net".into(),
            namespace: "/ns".into(),
            interface: "eth0".into(),
            host_interface: "nuv0".into(),
            address,
            prefix: 28,
            gateway: address,
            ipv6: None,
            mac: Mac::from_address(address),
            tap: false,
            groups: Vec::new(),
        }
    }

    fn take(book: &mut AddressBook, network: &Network, wanted: Option<Ipv4Addr>, owner: &str) -> Result<Ipv4Addr> {
        book.take(network, wanted, None, |a| attachment(owner, a)).map(|a| a.address)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take,
        TakeThis(u8),
        Release(u8),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => Just(Step::Take),
            2 => (0u8..18).prop_map(Step::TakeThis),
            4 => (0u8..18).prop_map(Step::Release),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn an_address_has_one_owner_at_most_whatever_happens(steps in proptest::collection::vec(step(), 1..60)) {
            let directory = tempfile::tempdir().unwrap();
            let network = network("10.0.0.0/28", None);
            let mut book = AddressBook::open(directory.path()).unwrap();
            let mut model: HashSet<Ipv4Addr> = HashSet::new();
            // 16 addresses less network, broadcast and gateway.
            const HOSTS: usize = 13;
            for step in steps {
                match step {
                    Step::Take => match take(&mut book, &network, None, "o") {
                        Ok(address) => {
                            prop_assert!(network.subnet.is_host(address) && address != network.gateway);
                            prop_assert!(model.insert(address), "{} given twice", address);
                        }
                        Err(error) => {
                            prop_assert!(matches!(error, Error::AddressesExhausted(_)), "{}", error);
                            prop_assert_eq!(model.len(), HOSTS);
                        }
                    },
                    Step::TakeThis(last) => {
                        let address = Ipv4Addr::new(10, 0, 0, last);
                        let possible = (2..=14).contains(&last) && !model.contains(&address);
                        prop_assert_eq!(take(&mut book, &network, Some(address), "o").is_ok(), possible);
                        if possible {
                            model.insert(address);
                        }
                    }
                    Step::Release(last) => {
                        let address = Ipv4Addr::new(10, 0, 0, last);
                        book.release("net", address).unwrap();
                        model.remove(&address);
                    }
                    Step::Restart => book = AddressBook::open(directory.path()).unwrap(),
                }
                prop_assert_eq!(book.all().map(|a| a.address).collect::<HashSet<_>>(), model.clone());
            }
        }
    }

    #[test]
    fn two_processes_never_give_the_same_address() {
        let directory = tempfile::tempdir().unwrap();
        let network = network("10.0.0.0/24", None);
        let take_many = |owner: &'static str| {
            let mut book = AddressBook::open(directory.path()).unwrap();
            (0..100).map(|_| take(&mut book, &network, None, owner).unwrap()).collect::<Vec<_>>()
        };
        let all: Vec<Ipv4Addr> = std::thread::scope(|scope| {
            let workers = ["a", "b"].map(|owner| scope.spawn(move || take_many(owner)));
            workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
        });
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 200);
    }

    #[test]
    fn a_freed_address_rests_and_a_range_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let network = network("10.0.0.0/24", Some("10.0.0.64/30"));
        let mut book = AddressBook::open(directory.path()).unwrap();
        let first = take(&mut book, &network, None, "o").unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 0, 0, 64));
        book.release("net", first).unwrap();
        assert_eq!(take(&mut book, &network, None, "o").unwrap(), Ipv4Addr::new(10, 0, 0, 65));
        let rest: Vec<_> = (0..3).map(|_| take(&mut book, &network, None, "o").unwrap().octets()[3]).collect();
        assert_eq!(rest, [66, 67, 64]);
        assert!(take(&mut book, &network, None, "o").is_err());
    }

    #[test]
    fn ipv6_addresses_go_with_the_others_and_are_given_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut network = network("10.0.0.0/24", None);
        let subnet: crate::subnet6::Subnet6 = "fd00::/64".parse().unwrap();
        network.ipv6 = Some(Ipv6Network { subnet, range: None, gateway: "fd00::1".parse().unwrap() });
        let mut book = AddressBook::open(directory.path()).unwrap();
        let mut take6 = |owner: &str, wanted: Option<&str>| {
            let wanted = wanted.map(|w| w.parse().unwrap());
            let place = book.take(&network, None, wanted, |a| attachment(owner, a))?;
            Ok::<_, Error>(place.ipv6.unwrap().address.to_string())
        };
        assert_eq!(take6("a", None).unwrap(), "fd00::2");
        assert_eq!(take6("b", Some("fd00::4")).unwrap(), "fd00::4");
        assert_eq!(take6("c", None).unwrap(), "fd00::3", "its own place is taken");
        assert!(matches!(take6("d", Some("fd00::4")), Err(Error::AddressTaken(_))));
        assert!(matches!(take6("d", Some("fd00::1")), Err(Error::AddressTaken(_))), "the gateway");
        assert!(matches!(take6("d", Some("fd00:1::4")), Err(Error::Invalid(_))));
        let reopened = AddressBook::open(directory.path()).unwrap();
        let mut kept: Vec<String> = reopened.all().map(|a| a.ipv6.unwrap().address.to_string()).collect();
        kept.sort();
        assert_eq!(kept, ["fd00::2", "fd00::3", "fd00::4"]);
    }

    #[test]
    fn an_ipv6_range_that_is_used_up_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let mut network = network("10.0.0.0/24", None);
        let subnet: crate::subnet6::Subnet6 = "fd00::/126".parse().unwrap();
        network.ipv6 = Some(Ipv6Network { subnet, range: None, gateway: "fd00::1".parse().unwrap() });
        let mut book = AddressBook::open(directory.path()).unwrap();
        for expected in ["fd00::2", "fd00::3"] {
            let place = book.take(&network, None, None, |a| attachment("o", a)).unwrap();
            assert_eq!(place.ipv6.unwrap().address.to_string(), expected);
        }
        let error = book.take(&network, None, None, |a| attachment("o", a)).unwrap_err();
        assert!(matches!(error, Error::Ipv6AddressesExhausted(_)), "{error}");
        assert_eq!(book.all().count(), 2, "a failed attempt takes nothing");
    }

    #[test]
    fn what_a_crash_left_half_written_takes_no_address() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("net")).unwrap();
        fs::write(directory.path().join("net/10.0.0.2"), "{\"owner\":\"o\"").unwrap();
        fs::write(directory.path().join("net/.tmp-1-1"), "{}").unwrap();
        let mut book = AddressBook::open(directory.path()).unwrap();
        assert_eq!(book.all().count(), 0);
        assert_eq!(take(&mut book, &network("10.0.0.0/24", None), None, "o").unwrap(), Ipv4Addr::new(10, 0, 0, 2));
    }
}
