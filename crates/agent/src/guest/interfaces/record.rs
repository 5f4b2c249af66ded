//! Which interfaces a machine has. The record lies beside the guest's other files: it says where each is on the guest's bus and on its
//! network, so that a suspended guest finds them there again, and what has to be given back when one goes.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use api::interface::{INTERFACES_MAX, MachineInterface};
use api::virtual_machine::VirtualMachineSpec;
use network::Mac;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::guest::shared::write_durably;

/// Places on a guest's bus for interfaces but the first of its first start: above those that the hypervisor gives by itself, below those of
/// disks.
pub const SLOTS: RangeInclusive<u8> = 11..=15;

const _: () = assert!(SLOTS.end().saturating_sub(*SLOTS.start()) as usize + 1 >= INTERFACES_MAX);

/// An interface that a machine has, or is about to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its place on the bus; 0: the hypervisor's choice.
    pub slot: u8,
    /// The network's name for users; empty until its port has told.
    pub network: String,
    /// Name of the port that it is on; empty: its own place.
    pub port: String,
    /// That port's uid, once it is on it.
    pub port_uid: Option<String>,
    /// The hardware address that was wished for; empty: none.
    pub wished_mac: String,
    /// Its addresses, once it has them.
    pub place: Option<(Ipv4Addr, Mac)>,
    /// Names of the security groups that guard it.
    pub groups: Vec<String>,
}

impl Nic {
    /// One that has no place yet.
    pub fn new(slot: u8, wish: &MachineInterface) -> Self {
        Self {
            slot,
            network: wish.network().unwrap_or_default().to_owned(),
            port: wish.port.clone(),
            port_uid: None,
            wished_mac: wish.mac_address.clone(),
            place: None,
            groups: wish.security_groups.clone(),
        }
    }

    fn fits(&self, wish: &MachineInterface) -> bool {
        let same_mac = self.wished_mac.eq_ignore_ascii_case(&wish.mac_address);
        self.port == wish.port && same_mac && wish.network().is_none_or(|name| name == self.network)
    }
}

/// Who a machine's interface is towards the network.
pub fn owner(uid: &str, slot: u8) -> String {
    if slot == 0 { uid.to_owned() } else { format!("{uid}.{slot}") }
}

/// All that a machine's interfaces can be.
pub fn owners(uid: &str) -> impl Iterator<Item = String> + use<> {
    let uid = uid.to_owned();
    std::iter::once(0).chain(SLOTS).map(move |slot| owner(&uid, slot))
}

/// The uid of the machine whose interface this is.
pub fn machine_of(owner: &str) -> &str {
    owner.split('.').next().unwrap_or(owner)
}

/// What is wished of a guest that runs. The single fields, without a list, are for the next start: until then the first interface stays.
pub fn live(spec: &VirtualMachineSpec, record: &[Nic]) -> Vec<MachineInterface> {
    let mut wishes = spec.interfaces();
    if let (true, Some(first), Some(wish)) = (spec.interfaces.is_empty(), record.first(), wishes.first_mut())
        && !first.fits(wish)
    {
        let network = if first.port.is_empty() { first.network.clone() } else { String::new() };
        let (port, mac_address) = (first.port.clone(), first.wished_mac.clone());
        *wish = MachineInterface { network, port, mac_address, security_groups: first.groups.clone() };
    }
    wishes
}

/// For each wish the interface that fulfils it, by its place in the record; each is one wish's. Pure.
pub fn pair(wishes: &[MachineInterface], record: &[Nic]) -> Vec<Option<usize>> {
    let mut taken = Vec::new();
    let mut find = |wish: &MachineInterface| {
        let found = (0..record.len()).find(|at| !taken.contains(at) && record[*at].fits(wish))?;
        taken.push(found);
        Some(found)
    };
    wishes.iter().map(&mut find).collect()
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take it out and give its place back.
    Unplug(Nic),
    /// Put in what this wish asks for.
    Plug {
        /// Which wish.
        wish: usize,
        /// Its place on the bus.
        slot: u8,
    },
    /// There is no place on the bus for this wish, until another interface is out.
    Wait {
        /// Which wish.
        wish: usize,
    },
}

/// The way from what is recorded to what is wanted, for a guest that runs; those that `present` does not name are recorded, but not in the
/// guest. Pure.
pub fn plan(wishes: &[MachineInterface], record: &[Nic], present: impl Fn(&Nic) -> bool) -> Vec<Step> {
    // Whoever left the place that only a start gives does not come back to it.
    let (stay, lost): (Vec<Nic>, Vec<Nic>) = record.iter().cloned().partition(|one| one.slot != 0 || present(one));
    let paired = pair(wishes, &stay);
    let mut taken: Vec<u8> = record.iter().map(|one| one.slot).collect();
    let gone = (0..stay.len()).filter(|at| !paired.contains(&Some(*at))).map(|at| stay[at].clone());
    let mut steps: Vec<Step> = lost.into_iter().chain(gone).map(Step::Unplug).collect();
    for (wish, at) in paired.into_iter().enumerate() {
        let slot = match at.map(|at| &stay[at]) {
            Some(one) if present(one) => continue,
            Some(one) => Some(one.slot),
            None => SLOTS.clone().find(|slot| !taken.contains(slot)),
        };
        taken.extend(slot);
        steps.push(slot.map_or(Step::Wait { wish }, |slot| Step::Plug { wish, slot }));
    }
    steps
}

/// What a guest that starts gets, in the order of the wishes: what it had, and new ones. Pure.
pub(super) fn at_start(wishes: &[MachineInterface], record: &[Nic]) -> Vec<Nic> {
    let paired = pair(wishes, record);
    let mut taken: Vec<u8> = paired.iter().flatten().map(|at| record[*at].slot).collect();
    let is_first = taken.is_empty();
    let mut nics = Vec::new();
    for (at, wish) in wishes.iter().enumerate() {
        let mut nic = match paired[at] {
            Some(found) => record[found].clone(),
            None => {
                let slot = match is_first && at == 0 {
                    true => Some(0),
                    false => SLOTS.clone().find(|slot| !taken.contains(slot)),
                };
                // More than the bus has places for are refused when they are asked for.
                let Some(slot) = slot else { continue };
                taken.push(slot);
                Nic::new(slot, wish)
            }
        };
        if nic.port.is_empty() {
            nic.groups.clone_from(&wish.security_groups);
        }
        nics.push(nic);
    }
    nics
}

/// What a guest that starts has no more, and gives back before it gets anything: also that whose place on the bus another one gets. Pure.
pub(super) fn gone_at_start(wishes: &[MachineInterface], record: &[Nic]) -> Vec<Nic> {
    let paired = pair(wishes, record);
    (0..record.len()).filter(|at| !paired.contains(&Some(*at))).map(|at| record[at].clone()).collect()
}

/// The record in the order of the wishes; what nobody wishes for comes last. Pure.
pub fn in_order(wishes: &[MachineInterface], record: &[Nic]) -> Vec<Nic> {
    let paired: Vec<usize> = pair(wishes, record).into_iter().flatten().collect();
    let rest = (0..record.len()).filter(|at| !paired.contains(at));
    paired.iter().copied().chain(rest).map(|at| record[at].clone()).collect()
}

fn file(context: &Context, uid: &str) -> std::path::PathBuf {
    context.guests.directory(uid).join("interfaces.json")
}

/// Reads the record of a machine; `None` when there has never been one.
pub fn load(context: &Context, uid: &str) -> Result<Option<Vec<Nic>>> {
    let path = file(context, uid);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(std::io::Error::from).map_err(Error::io("decode", path)),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Writes it, durable when this returns.
pub fn save(context: &Context, uid: &str, record: &[Nic]) -> Result<()> {
    write_durably(&file(context, uid), &record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(network: &str) -> MachineInterface {
        MachineInterface { network: network.into(), ..MachineInterface::default() }
    }

    fn nic(slot: u8, network: &str) -> Nic {
        Nic::new(slot, &on(network))
    }

    #[test]
    fn interfaces_come_and_go_and_keep_their_places() {
        let all = |_: &Nic| true;
        let record = [nic(0, "a"), nic(11, "b")];
        assert_eq!(plan(&[on("a"), on("b")], &record, all), []);
        assert_eq!(plan(&[on("b"), on("a")], &record, all), [], "another order is no other interface");
        assert_eq!(plan(&[on("a"), on("b"), on("c")], &record, all), [Step::Plug { wish: 2, slot: 12 }]);
        // A place is free for another only once its interface is out.
        let steps = [Step::Unplug(nic(11, "b")), Step::Plug { wish: 1, slot: 12 }];
        assert_eq!(plan(&[on("a"), on("c")], &record, all), steps);
        assert_eq!(
            plan(&[on("a"), on("a"), on("b")], &record, all),
            [Step::Plug { wish: 1, slot: 12 }],
            "twice on one"
        );
        // Recorded, and not in the guest: a crash came between.
        let is_b = |one: &Nic| one.network == "b";
        assert_eq!(plan(&[on("a"), on("b")], &[nic(11, "a"), nic(12, "b")], is_b), [Step::Plug { wish: 0, slot: 11 }]);
        let steps = [Step::Unplug(nic(0, "a")), Step::Plug { wish: 0, slot: 12 }];
        assert_eq!(plan(&[on("a"), on("b")], &record, is_b), steps, "the first place is had from a start alone");
        let full: Vec<Nic> = SLOTS.map(|slot| nic(slot, &format!("n{slot}"))).collect();
        assert!(plan(&[on("x")], &full, all).contains(&Step::Wait { wish: 0 }));
        let other = MachineInterface { mac_address: "52:54:00:00:00:01".into(), ..on("b") };
        assert_eq!(plan(&[on("a"), other], &record, all)[0], Step::Unplug(nic(11, "b")), "another hardware address");
    }

    #[test]
    fn a_guest_that_starts_has_its_first_interface_where_it_always_was() {
        let slots = |wishes: &[MachineInterface], record: &[Nic]| -> Vec<(u8, String)> {
            at_start(wishes, record).into_iter().map(|one| (one.slot, one.network)).collect()
        };
        let at = |slot: u8, name: &str| (slot, name.to_owned());
        assert_eq!(slots(&[on("a"), on("b")], &[]), [at(0, "a"), at(11, "b")]);
        assert_eq!(slots(&[on("c")], &[nic(0, "a")]), [at(0, "c")]);
        assert_eq!(slots(&[on("c"), on("b")], &[nic(0, "a"), nic(11, "b")]), [at(12, "c"), at(11, "b")]);
        let groups = MachineInterface { security_groups: vec!["g".into()], ..on("a") };
        assert_eq!(at_start(&[groups], &[nic(0, "a")])[0].groups, ["g"]);
    }

    #[test]
    fn another_hardware_address_is_another_interface_at_a_start_too() {
        let other = [MachineInterface { mac_address: "52:54:00:00:00:01".into(), ..on("a") }];
        let address = Ipv4Addr::new(10, 89, 0, 7);
        let had = [Nic { place: Some((address, Mac::from_address(address))), ..nic(0, "a") }];
        assert_eq!(gone_at_start(&other, &had), had, "what it had in the same place goes");
        assert_eq!(at_start(&other, &had), [Nic::new(0, &other[0])]);
        assert_eq!((gone_at_start(&[on("a")], &had).len(), at_start(&[on("a")], &had)), (0, had.to_vec()));
        assert_eq!(gone_at_start(&[on("a")], &[nic(0, "a"), nic(11, "a")]), [nic(11, "a")], "each is one wish's");
    }

    #[test]
    fn the_single_fields_are_for_the_next_start() {
        let spec = |port: &str, network: &str, list: &[MachineInterface]| VirtualMachineSpec {
            port: port.into(),
            network: network.into(),
            interfaces: list.to_vec(),
            security_groups: if port.is_empty() { vec!["now".into()] } else { Vec::new() },
            ..VirtualMachineSpec::default()
        };
        let before = Nic { groups: vec!["before".into()], ..nic(0, "a") };
        let groups = |spec: &VirtualMachineSpec, first: &Nic| {
            let wishes = live(spec, std::slice::from_ref(first));
            assert_eq!(pair(&wishes, std::slice::from_ref(first)), [Some(0)]);
            wishes[0].security_groups.clone()
        };
        assert_eq!(groups(&spec("", "a", &[]), &before), ["now"]);
        assert_eq!(groups(&spec("p", "", &[]), &before), ["before"], "the port holds from the next start");
        let wish = MachineInterface { port: "p".into(), ..MachineInterface::default() };
        let on_port = Nic { network: "a".into(), groups: vec!["before".into()], ..Nic::new(0, &wish) };
        assert_eq!(groups(&spec("", "b", &[]), &on_port), ["before"]);
        // A list is for now.
        let record = std::slice::from_ref(&before);
        assert_eq!(pair(&live(&spec("", "", &[on("b")]), record), record), [None]);
    }

    #[test]
    fn the_order_of_the_record_is_that_of_the_wishes() {
        let names = |record: Vec<Nic>| record.into_iter().map(|one| one.network).collect::<Vec<_>>();
        assert_eq!(names(in_order(&[on("b"), on("a")], &[nic(0, "a"), nic(12, "x"), nic(11, "b")])), ["b", "a", "x"]);
        assert_eq!((machine_of("u-1.12"), machine_of("u-1"), owner("u-1", 12)), ("u-1", "u-1", "u-1.12".to_owned()));
    }
}
