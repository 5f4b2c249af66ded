//! Addresses of networks: allotted one after the other, so that a freed address rests as long as possible before somebody
//! else gets it (neighbours and connection tracking may still remember it).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};
use crate::names::check_id;
use crate::state::files;
use crate::state::ranges::{is_given, is_kept, pieces, ranges, usable};
use crate::state::reservations::Reservations;
use crate::subnet::Subnet;
use crate::types::{AttachRequest, Attachment, Ipv6Place, Mac, Network, Reservation};

/// How often to try again when another process takes the address that we found free.
const RACES_MAX: usize = 1024;
/// Ports may hold one of so many addresses of a network.
const PORTS_SHARE: usize = 2;

/// The attachments of all networks; each holds an address.
pub(crate) struct AddressBook {
    directory: PathBuf,
    networks: HashMap<String, BTreeMap<Ipv4Addr, Attachment>>,
    /// Last allotted address per network.
    cursors: HashMap<String, Ipv4Addr>,
    /// Addresses that nobody is given, per network.
    reserved: HashMap<String, HashSet<Ipv4Addr>>,
    /// Addresses of ports.
    ports: Reservations,
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
            ports: Reservations::default(),
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

    /// With addresses that are kept for ports.
    pub(crate) fn keeping(self, ports: Reservations) -> AddressBook {
        AddressBook { ports, ..self }
    }

    /// Addresses that are kept for ports.
    pub(crate) fn reservations(&self) -> impl Iterator<Item = &Reservation> {
        self.ports.all()
    }

    /// Whether somebody has an address of the network, or it is kept for somebody.
    pub(crate) fn is_in_use(&self, network: &str) -> bool {
        self.count(network) > 0 || self.ports.count_of(network) > 0
    }

    /// Keeps an address for a port; the same owner gets the same answer again. Ports have at most half of a network's addresses, so that
    /// workloads without one still find some.
    ///
    /// `Errors:` as with [`AddressBook::take`]; [`Error::Invalid`] when somebody has the hardware address.
    pub(crate) fn keep(
        &mut self,
        network: &Network,
        owner: &str,
        wanted: Option<Ipv4Addr>,
        mac: Option<Mac>,
    ) -> Result<Reservation> {
        check_id(owner)?;
        if let Some(found) = self.ports.of(owner) {
            return match found.network == network.id {
                true => Ok(found.clone()),
                false => Err(Error::Invalid(format!("{owner} holds an address of another network"))),
            };
        }
        if self.ports.count_of(&network.id) >= usable(network).div_ceil(PORTS_SHARE) {
            return Err(Error::AddressesExhausted(network.subnet.to_string()));
        }
        let address = match wanted {
            Some(address) if is_kept(network, address) => return Err(Error::AddressTaken(address.into())),
            Some(address) if !is_given(network, address) => {
                let ranges = ranges(network).iter().map(Subnet::to_string).collect::<Vec<_>>().join(", ");
                let text = format!("invalid address {address}: ports have addresses of {ranges} that are no gateway's");
                return Err(Error::Invalid(text));
            }
            Some(address) if self.is_held(&network.id, address) || self.is_reserved(&network.id, address) => {
                return Err(Error::AddressTaken(address.into()));
            }
            Some(address) => address,
            None => {
                let free = self.next_free(network);
                let free = free.ok_or_else(|| Error::AddressesExhausted(network.subnet.to_string()))?;
                self.cursors.insert(network.id.clone(), free);
                free
            }
        };
        let mac = mac.unwrap_or_else(|| Mac::from_address(address));
        self.check_mac(&network.id, mac, |_| false)?;
        let reservation = Reservation { owner: owner.to_owned(), network: network.id.clone(), address, mac };
        self.ports.add(&reservation)?;
        Ok(reservation)
    }

    /// Gives up what is kept for a port.
    pub(crate) fn give_up(&mut self, owner: &str) -> Result<()> {
        self.ports.remove(owner)
    }

    fn is_held(&self, network: &str, address: Ipv4Addr) -> bool {
        self.networks.get(network).is_some_and(|one| one.contains_key(&address))
            || self.ports.holder(network, address).is_some()
    }

    /// Refuses a hardware address that another has than who `is_own`.
    fn check_mac(&self, network: &str, mac: Mac, is_own: impl Fn(&str) -> bool) -> Result<()> {
        let held = self.networks.get(network).into_iter().flat_map(BTreeMap::values).filter(|one| one.mac == mac);
        let mut holders = held.map(|one| one.owner.as_str()).chain(self.ports.holder_of_mac(network, mac));
        match holders.any(|holder| !is_own(holder)) {
            true => Err(Error::Invalid(format!("MAC address {mac} is in use on the network"))),
            false => Ok(()),
        }
    }

    /// Refuses addresses that others have, or that are kept for ports that the request does not name.
    pub(crate) fn check_wishes(&self, request: &AttachRequest) -> Result<()> {
        let port = request.port.as_deref();
        let holder = request.address.and_then(|address| self.ports.holder(&request.network, address));
        if let Some(address) = request.address.filter(|_| holder.is_some() && holder != port) {
            return Err(Error::AddressTaken(address.into()));
        }
        let is_own = |holder: &str| holder == request.owner || Some(holder) == port;
        request.mac.map_or(Ok(()), |mac| self.check_mac(&request.network, mac, is_own))
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
            if address == network.gateway || is_kept(network, address) {
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
        let pieces = pieces(network);
        let start = self.cursors.get(&network.id).map_or(0, |cursor| cursor.to_bits().saturating_add(1));
        let free = |bits: &u32| {
            let address = Ipv4Addr::from_bits(*bits);
            is_given(network, address)
                && !used.contains_key(&address)
                && !self.is_reserved(&network.id, address)
                && self.ports.holder(&network.id, address).is_none()
        };
        let mut after = pieces.iter().flat_map(|(first, last)| *first.max(&start)..=*last);
        let mut before = pieces.iter().flat_map(|(first, last)| *first..=*last.min(&start));
        after.find(free).or_else(|| before.find(free)).map(Ipv4Addr::from_bits)
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
        let kept = |a: &Ipv6Addr| network.kept.contains(&IpAddr::V6(*a));
        let free = |a: &Ipv6Addr| six.subnet.is_host(*a) && *a != six.gateway && !used.contains(a) && !kept(a);
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
                // One of these is free when any is: the taken and kept ones, the gateway and the anycast address are fewer.
                let candidates =
                    (0..=(used.len() + network.kept.len()) as u128 + 2).map_while(|offset| range.nth(offset));
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
            published_on: None,
            interface_prefix: String::new(),
            kept: Vec::new(),
            parts: None,
            plan: crate::Plan::default(),
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
            port: None,
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
    fn a_machine_gives_addresses_of_its_own_parts_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut network = network("10.0.0.0/24", None);
        let mut book = AddressBook::open(directory.path()).unwrap();
        network.parts = Some(Vec::new());
        assert!(matches!(take(&mut book, &network, None, "o"), Err(Error::AddressesExhausted(_))));
        network.parts = Some(vec!["10.0.0.252/30".parse().unwrap(), "10.0.0.8/30".parse().unwrap()]);
        book.reserve("net", [Ipv4Addr::new(10, 0, 0, 9)].into_iter());
        let mut all: Vec<u8> = (0..4).map(|_| take(&mut book, &network, None, "o").unwrap().octets()[3]).collect();
        all.sort_unstable();
        // Without those that are kept for the machine: the last of each part that may be a host's.
        assert_eq!(all, [8, 10, 252, 253]);
        assert!(take(&mut book, &network, None, "o").is_err());
        book.release("net", Ipv4Addr::new(10, 0, 0, 8)).unwrap();
        assert_eq!(take(&mut book, &network, None, "o").unwrap(), Ipv4Addr::new(10, 0, 0, 8));
    }

    #[test]
    fn what_is_kept_for_a_port_is_given_to_nobody_else_and_outlives_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let network = network("10.0.0.0/28", None);
        let open = || {
            let ports = Reservations::open(&directory.path().join("ports")).unwrap();
            AddressBook::open(&directory.path().join("addresses")).unwrap().keeping(ports)
        };
        let address = |last| Some(Ipv4Addr::new(10, 0, 0, last));
        let mut book = open();
        assert_eq!(take(&mut book, &network, None, "o").unwrap().octets()[3], 2);
        let port = book.keep(&network, "p", address(3), None).unwrap();
        assert_eq!(book.keep(&network, "p", None, None).unwrap(), port, "asked again");
        assert!(matches!(book.keep(&network, "q", address(3), None), Err(Error::AddressTaken(_))));
        assert!(matches!(book.keep(&network, "q", address(2), None), Err(Error::AddressTaken(_))));
        for gateway_or_stranger in [1, 0, 15, 16] {
            assert!(matches!(book.keep(&network, "q", address(gateway_or_stranger), None), Err(Error::Invalid(_))));
        }
        assert!(book.keep(&network, "q", None, Some(port.mac)).is_err(), "a hardware address is one port's");
        book = open();
        assert_eq!(book.reservations().collect::<Vec<_>>(), [&port]);
        let rest: HashSet<_> = std::iter::from_fn(|| take(&mut book, &network, None, "o").ok()).collect();
        assert!(rest.len() == 11 && !rest.contains(&port.address));
        let wish = |port: Option<&str>, mac: Option<Mac>| {
            let port = port.map(str::to_owned);
            let request = AttachRequest {
                owner: "vm".into(),
                network: "net".into(),
                address: address(3),
                mac,
                port,
                ..Default::default()
            };
            book.check_wishes(&request)
        };
        assert!(matches!(wish(None, None), Err(Error::AddressTaken(_))));
        assert!(matches!(wish(Some("q"), None), Err(Error::AddressTaken(_))));
        assert!(wish(Some("p"), Some(port.mac)).is_ok());
        let thief =
            AttachRequest { owner: "vm".into(), network: "net".into(), mac: Some(port.mac), ..Default::default() };
        assert!(matches!(book.check_wishes(&thief), Err(Error::Invalid(_))));
        book.give_up("p").unwrap();
        assert!(book.check_wishes(&thief).is_ok());
        assert_eq!(take(&mut open(), &network, None, "o").unwrap(), port.address);
    }

    #[test]
    fn addresses_of_others_are_given_to_nobody_whoever_asks() {
        let directory = tempfile::tempdir().unwrap();
        let mut book = AddressBook::open(directory.path()).unwrap();
        let ip = |last| Ipv4Addr::new(10, 0, 0, last);
        let six = "fd00:1::/125".parse().unwrap();
        let network = Network {
            kept: vec![ip(2).into(), ip(4).into(), "fd00:1::2".parse().unwrap(), "fd00:1::3".parse().unwrap()],
            ipv6: Some(Ipv6Network { subnet: six, range: None, gateway: "fd00:1::1".parse().unwrap() }),
            ..network("10.0.0.0/29", None)
        };
        assert_eq!(usable(&network), 3);
        assert!(matches!(take(&mut book, &network, Some(ip(4)), "a"), Err(Error::AddressTaken(_))));
        assert!(matches!(book.keep(&network, "port", Some(ip(2)), None), Err(Error::AddressTaken(_))));
        for last in [3, 5, 6] {
            assert_eq!(take(&mut book, &network, None, "a").unwrap(), ip(last));
        }
        assert!(matches!(take(&mut book, &network, None, "a"), Err(Error::AddressesExhausted(_))));
        let mut given: Vec<String> = book.all().map(|one| one.ipv6.unwrap().address.to_string()).collect();
        given.sort();
        assert_eq!(given, ["fd00:1::4", "fd00:1::5", "fd00:1::6"]);
    }

    #[test]
    fn ports_have_half_of_a_network_at_most() {
        let directory = tempfile::tempdir().unwrap();
        let mut network = network("10.0.0.0/28", None);
        assert_eq!(usable(&network), 13, "without network, broadcast and gateway");
        let ports = Reservations::open(&directory.path().join("ports")).unwrap();
        let mut book = AddressBook::open(&directory.path().join("addresses")).unwrap().keeping(ports);
        for number in 0..7 {
            book.keep(&network, &format!("p{number}"), None, None).unwrap();
        }
        assert!(matches!(book.keep(&network, "q", None, None), Err(Error::AddressesExhausted(_))));
        assert!(book.keep(&network, "p0", None, None).is_ok(), "what it has it keeps");
        assert!(take(&mut book, &network, None, "o").is_ok());
        book.give_up("p3").unwrap();
        assert!(book.keep(&network, "q", None, None).is_ok());
        // Of parts, those of this machine count, without the machine's own: .3 is one part's, .14 the other's, which holds broadcast, too.
        network.parts = Some(vec!["10.0.0.0/30".parse().unwrap(), "10.0.0.12/30".parse().unwrap()]);
        let given = (0..16).filter(|last| is_given(&network, Ipv4Addr::new(10, 0, 0, *last))).count();
        assert_eq!((usable(&network), given), (3, 3));
        // The machine's own address steps over the gateway.
        network.gateway = Ipv4Addr::new(10, 0, 0, 14);
        assert!(!is_given(&network, Ipv4Addr::new(10, 0, 0, 13)) && is_given(&network, Ipv4Addr::new(10, 0, 0, 12)));
        let given = (0..16).filter(|last| is_given(&network, Ipv4Addr::new(10, 0, 0, *last))).count();
        assert_eq!((usable(&network), given), (3, 3));
        network.parts = Some(Vec::new());
        assert_eq!(usable(&network), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn who_wishes_for_none_is_given_each_address_of_the_pools_once_and_no_other(
            ends in proptest::collection::vec((1u8..=62, 1u8..=62), 1..4),
            parts in proptest::option::of(proptest::collection::vec(0u8..4, 0..3)),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut network = network("10.0.0.0/26", None);
            let at = |last: u8| Ipv4Addr::new(10, 0, 0, last);
            let mut pools: Vec<(Ipv4Addr, Ipv4Addr)> = Vec::new();
            for (one, other) in ends {
                let pool = (at(one.min(other)), at(one.max(other)));
                if pools.iter().all(|(first, last)| pool.1 < *first || *last < pool.0) {
                    pools.push(pool);
                }
            }
            pools.sort_unstable();
            network.plan.pools = pools.clone();
            network.parts = parts.map(|parts| {
                let parts: std::collections::BTreeSet<u8> = parts.into_iter().collect();
                parts.iter().map(|part| format!("10.0.0.{}/28", part * 16).parse().unwrap()).collect()
            });
            let mut book = AddressBook::open(directory.path()).unwrap();
            let expected: HashSet<Ipv4Addr> = (0..64).map(at)
                .filter(|one| is_given(&network, *one) && pools.iter().any(|(first, last)| first <= one && one <= last))
                .collect();
            prop_assert_eq!(usable(&network), expected.len());
            let mut given = HashSet::new();
            while let Ok(address) = take(&mut book, &network, None, "o") {
                prop_assert!(given.insert(address), "{} given twice", address);
            }
            prop_assert_eq!(given, expected);
        }
    }

    #[test]
    fn an_address_beside_the_pools_is_had_by_who_wishes_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut network = network("10.0.0.0/28", None);
        let at = |last: u8| Ipv4Addr::new(10, 0, 0, last);
        network.plan.pools = vec![(at(5), at(6))];
        let ports = Reservations::open(&directory.path().join("ports")).unwrap();
        let mut book = AddressBook::open(&directory.path().join("addresses")).unwrap().keeping(ports);
        assert_eq!(take(&mut book, &network, Some(at(9)), "o").unwrap(), at(9));
        assert_eq!(book.keep(&network, "p", Some(at(10)), None).unwrap().address, at(10));
        assert_eq!(take(&mut book, &network, None, "o").unwrap(), at(5));
        // An edit counts from the next address on.
        network.plan.pools = vec![(at(12), at(13))];
        assert_eq!(take(&mut book, &network, None, "o").unwrap(), at(12));
        assert_eq!(take(&mut book, &network, None, "o").unwrap(), at(13));
        assert!(matches!(take(&mut book, &network, None, "o"), Err(Error::AddressesExhausted(_))));
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
