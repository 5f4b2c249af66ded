//! `Subnet` objects: the pool's first machine gives each network the addresses and the plan that its subnet says ([`run`]), and writes both
//! into the network's status, by which all machines go. Whoever needs a network waits here for its subnet ([`awaited`]). What is to become
//! of a subnet is the pure [`judge`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use api::names::DEFAULT_NETWORK;
use api::subnet::{self, AddressPlan, FINALIZER, NAME_SERVERS_MAX, POOLS_MAX, ROUTES_MAX, ReadSubnet, SubnetStatus};
use api::{Network, NetworkRoute, NetworkStatus, Subnet};
use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use kube::Api;
use kube::api::ListParams;
use kube::runtime::watcher;
use network::{Plan, StaticRoute};
use serde_json::json;

use crate::context::{Context, Key};
use crate::error::{Error, Result, chain};
use crate::guest::status::ready;
use crate::networks::Word;
use crate::{informer, objects};

/// How often addresses are counted, and what could not be done is tried again.
const LOOK: Duration = Duration::from_secs(2);
/// What is said to be done when a subnet cannot be written into.
const WRITE: &str = "write the subnet";
/// Its network has what it says.
const IN_FORCE: &str = "InForce";
/// Its network is not there yet.
const NO_NETWORK: &str = "NetworkNotFound";
/// It can never be its network's.
const REFUSED: &str = "Refused";
/// Its network has other addresses, which are in use.
const IN_USE: &str = "NetworkInUse";
/// The machine could not do as it says.
const FAILED: &str = "Failed";
/// It is to go, and somebody has an address of it.
const HELD: &str = "AddressesInUse";

type Subnets = BTreeMap<Key, Arc<Subnet>>;
type Networks = BTreeMap<Key, Arc<Network>>;
type Routes = BTreeMap<Key, Arc<NetworkRoute>>;

/// Why a subnet is not in force: a word, and a sentence.
type Trouble = (&'static str, String);

enum State {
    Subnets(Subnets),
    Networks(Networks),
    Routes(Routes),
}

/// The subnets that name a network and are to stay.
pub async fn of(client: &kube::Client, network: &Key) -> Result<Vec<Subnet>> {
    let objects: Api<Subnet> = Api::namespaced(client.clone(), &network.namespace);
    let naming = ListParams::default().fields(&format!("spec.network={}", network.name));
    let found = objects.list(&naming).await.map_err(Error::api("read the network's subnet"))?.items;
    Ok(found.into_iter().filter(|one| one.metadata.deletion_timestamp.is_none()).collect())
}

/// Why nobody may have an address of a network yet: its subnet is still to say which there are. One that is refused, or comes to a network
/// that is in use, is waited for by nobody. Pure.
pub fn awaited(network: &Network, subnets: &[Subnet]) -> Option<Error> {
    if !network.spec.is_open() || network.status.as_ref().is_some_and(|status| status.plan.is_some()) {
        return None;
    }
    let word = |subnet: &Subnet| {
        let conditions = subnet.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        conditions.iter().find(|one| one.type_ == "Ready").map(|one| one.reason.clone()).unwrap_or_default()
    };
    let open = subnets.iter().find(|subnet| ![REFUSED, IN_USE].contains(&&*word(subnet)))?;
    let (name, status) = (open.metadata.name.clone().unwrap_or_default(), open.status.clone().unwrap_or_default());
    Some(match word(open) == FAILED {
        true => Error::Invalid(format!("subnet {name}: {}", status.message)),
        false => Error::NotYet(format!("subnet {name} is not in force yet")),
    })
}

/// A plan as the network takes it. Pure. What somebody else wrote into a status is bounded as what a subnet says.
pub fn plan_of(plan: &AddressPlan) -> Plan {
    let route = |route: &subnet::HostRoute| {
        let (destination, next_hop) = route.read()?;
        Some(StaticRoute { destination: destination.to_string().parse().ok()?, next_hop })
    };
    Plan {
        pools: plan.allocation_pools.iter().take(POOLS_MAX).filter_map(subnet::AllocationPool::read).collect(),
        without_gateway: plan.without_gateway,
        without_dhcp: plan.without_dhcp,
        name_servers: plan.dns_nameservers.iter().take(NAME_SERVERS_MAX).filter_map(|one| one.parse().ok()).collect(),
        routes: plan.host_routes.iter().take(ROUTES_MAX).filter_map(route).collect(),
    }
}

/// Gives networks what their subnets say, until the agent is dropped. On the pool's first machine alone.
pub async fn run(context: Arc<Context>) {
    let (client, config) = (&context.client, watcher::Config::default);
    let sources: Vec<BoxStream<'static, State>> = vec![
        informer::states(Api::<Subnet>::all(client.clone()), config()).map(State::Subnets).boxed(),
        informer::states(Api::<Network>::all(client.clone()), config()).map(State::Networks).boxed(),
        informer::states(Api::<NetworkRoute>::all(client.clone()), config()).map(State::Routes).boxed(),
    ];
    let mut states = select_all(sources);
    let (mut subnets, mut networks, mut routes) = (None, None, None);
    loop {
        let looks = subnets.as_ref().is_some_and(|subnets: &Subnets| !subnets.is_empty());
        tokio::select! {
            state = states.next() => match state {
                Some(State::Subnets(known)) => subnets = Some(known),
                Some(State::Networks(known)) => networks = Some(known),
                Some(State::Routes(known)) => routes = Some(known),
                None => return,
            },
            () = tokio::time::sleep(LOOK), if looks => {}
        }
        let (Some(subnets), Some(networks), Some(routes)) = (&subnets, &networks, &routes) else { continue };
        let has_plan = |network: &Arc<Network>| network.status.as_ref().is_some_and(|status| status.plan.is_some());
        if subnets.is_empty() && !networks.values().any(has_plan) {
            continue;
        }
        let Ok(used) = Used::of(&context, routes).await else { continue };
        let eldest = eldest(subnets);
        for (key, subnet) in subnets {
            let eldest = eldest.get(&(&*key.namespace, &*subnet.spec.network)).copied();
            if let Err(error) = settle(&context, key, subnet, eldest, networks, &used).await {
                tracing::warn!(subnet = key.name, error = %chain(&error), "cannot settle a subnet");
            }
        }
        for (key, network) in networks {
            if let Some(name) = stale(key, network, subnets) {
                // Said at each attempt, so no warning: the network is in use, and says other addresses itself now.
                if let Err(error) = replan(&context, network, Word::Forgets(name)).await {
                    tracing::debug!(subnet = name, error = %chain(&error), "cannot forget a subnet");
                }
            }
        }
    }
}

/// Changes a network, and tells its guests; whether it is there and had anything of it.
async fn replan(context: &Context, network: &Network, word: Word<'_>) -> Result<bool> {
    let changed = context.networks.replan(&context.client, &context.directory, network, word).await?;
    if let Some(network) = &changed {
        context.guests.replan(network);
    }
    Ok(changed.is_some())
}

/// Who has addresses of networks, by these.
struct Used {
    here: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    elsewhere: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// What networks there are here, as they are.
    networks: BTreeMap<String, network::Network>,
}

impl Used {
    async fn of(context: &Context, routes: &Routes) -> Result<Self> {
        let (mut here, mut elsewhere) = (BTreeMap::new(), BTreeMap::new());
        let inventory = context.fabric.list().await?;
        let note = |map: &mut BTreeMap<String, BTreeSet<Ipv4Addr>>, network: String, address| {
            map.entry(network).or_default().insert(address);
        };
        inventory.attachments.into_iter().for_each(|one| note(&mut here, one.network, one.address));
        inventory.reservations.into_iter().for_each(|one| note(&mut here, one.network, one.address));
        for route in routes.values().filter(|route| route.spec.node_name != context.node_name) {
            let addresses = route.spec.members.iter().filter_map(|member| member.address.parse().ok());
            addresses.for_each(|address| note(&mut elsewhere, route.spec.network.clone(), address));
        }
        let networks = inventory.networks.into_iter().map(|network| (network.id.clone(), network)).collect();
        Ok(Self { here, elsewhere, networks })
    }

    fn all(&self, network: &str) -> BTreeSet<Ipv4Addr> {
        [&self.here, &self.elsewhere].into_iter().filter_map(|map| map.get(network)).flatten().copied().collect()
    }
}

/// The name of the subnet whose plan a network has, though that is there no more or not the network's. Pure.
fn stale<'a>(key: &Key, network: &'a Network, subnets: &Subnets) -> Option<&'a String> {
    let name = &network.status.as_ref()?.plan.as_ref()?.subnet;
    let at = Key { namespace: key.namespace.clone(), name: name.clone() };
    let is_its = |subnet: &Arc<Subnet>| subnet.spec.network == key.name && network.spec.is_open();
    (!subnets.get(&at).is_some_and(is_its)).then_some(name)
}

/// The eldest subnet of each network, by namespace and name of that. Pure.
fn eldest(subnets: &Subnets) -> BTreeMap<(&str, &str), &Key> {
    let mut eldest: BTreeMap<(&str, &str), (_, &Key)> = BTreeMap::new();
    for (key, subnet) in subnets {
        let age = (subnet.metadata.creation_timestamp.as_ref().map(|time| time.0), key);
        let of_network = eldest.entry((&key.namespace, &subnet.spec.network)).or_insert(age);
        *of_network = age.min(*of_network);
    }
    eldest.into_iter().map(|(network, (_, key))| (network, key)).collect()
}

/// What is to become of a subnet: what it says, if its network can have that. Pure. Of several, the eldest is the network's.
fn judge(
    key: &Key,
    subnet: &Subnet,
    eldest: Option<&Key>,
    network: Option<&Network>,
) -> std::result::Result<ReadSubnet, Trouble> {
    let name = &subnet.spec.network;
    let network = match network {
        _ if name == DEFAULT_NETWORK => return Err((REFUSED, format!("network {name} is everybody's"))),
        None => return Err((NO_NETWORK, format!("network {name} not found"))),
        Some(network) if network.metadata.deletion_timestamp.is_some() => {
            return Err((NO_NETWORK, format!("network {name} is going")));
        }
        Some(network) => network,
    };
    if !network.spec.is_open() {
        return Err((REFUSED, format!("network {name} says its addresses itself")));
    }
    if let Some(elder) = eldest.filter(|elder| *elder != key) {
        return Err((REFUSED, format!("network {name} has subnet {}, and can have one", elder.name)));
    }
    let flaw = |flaws: Vec<subnet::Flaw>| {
        let text = flaws.into_iter().map(|(field, flaw)| format!("{field} {flaw}")).collect::<Vec<_>>().join("; ");
        (REFUSED, text)
    };
    subnet.spec.read().map_err(flaw)
}

/// Brings one subnet to what it should be.
async fn settle(
    context: &Context,
    key: &Key,
    subnet: &Subnet,
    eldest: Option<&Key>,
    networks: &Networks,
    used: &Used,
) -> Result<()> {
    let at = Key { namespace: key.namespace.clone(), name: subnet.spec.network.clone() };
    let network = networks.get(&at).map(Arc::as_ref);
    let id = network.and_then(|network| network.metadata.uid.clone()).unwrap_or_default();
    let plan = network.and_then(|network| network.status.as_ref()?.plan.as_ref());
    let has_it = plan.is_some_and(|plan| plan.subnet == key.name);
    let finalizers = subnet.metadata.finalizers.clone().unwrap_or_default();
    let is_ours = finalizers.iter().any(|one| one == FINALIZER);
    let judged = judge(key, subnet, eldest, network);
    if subnet.metadata.deletion_timestamp.is_some() {
        let count = if has_it { used.all(&id).len() } else { 0 };
        if count > 0 {
            let trouble = (HELD, format!("{count} of its addresses are in use"));
            return tell(context, key, subnet, judged.ok().as_ref(), Some(trouble), &used.all(&id)).await;
        }
        if let Some(network) = network.filter(|_| has_it) {
            replan(context, network, Word::Forgets(&key.name)).await?;
        }
        let rest: Vec<String> = finalizers.into_iter().filter(|one| one != FINALIZER).collect();
        return if is_ours {
            objects::write_as_read(&context.client, subnet, json!({"finalizers": rest}), None, WRITE).await
        } else {
            Ok(())
        };
    }
    if !is_ours {
        let all: Vec<String> = finalizers.into_iter().chain([FINALIZER.to_owned()]).collect();
        // What this changes comes by the watch, and the rest is settled then.
        return objects::write_as_read(&context.client, subnet, json!({"finalizers": all}), None, WRITE).await;
    }
    let trouble = match (&judged, network) {
        (Ok(read), Some(network)) => enforce(context, key, subnet, read, network, used).await,
        (Err(trouble), _) => Some(trouble.clone()),
        (Ok(_), None) => None,
    };
    let taken = if trouble.is_none() { used.all(&id) } else { BTreeSet::new() };
    tell(context, key, subnet, judged.ok().as_ref(), trouble, &taken).await
}

/// Gives a network what its subnet says, if that is news; why it cannot.
async fn enforce(
    context: &Context,
    key: &Key,
    subnet: &Subnet,
    read: &ReadSubnet,
    network: &Network,
    used: &Used,
) -> Option<Trouble> {
    let wanted = subnet.spec.plan(&key.name, read);
    let status = network.status.clone().unwrap_or_default();
    let id = network.metadata.uid.clone().unwrap_or_default();
    let real = used.networks.get(&id);
    if is_settled(real, &status, read, &wanted) {
        return None;
    }
    let in_use = || {
        let subnet = real.map_or_else(|| status.subnet.clone(), |real| real.subnet.to_string());
        (IN_USE, format!("network {} is in use with addresses of {subnet}", network.spec.name))
    };
    // What is on other machines the network here does not know, and they go by what it says; for those here it would look at much before
    // it refused.
    let is_elsewhere = used.elsewhere.contains_key(&id) && !has_addresses(None, &status, read);
    if is_elsewhere || (!has_addresses(real, &status, read) && !used.all(&id).is_empty()) {
        return Some(in_use());
    }
    match replan(context, network, Word::Says(read.clone(), wanted)).await {
        Ok(true) => None,
        Ok(false) => Some((NO_NETWORK, format!("network {} is going", network.spec.name))),
        Err(Error::Network(network::Error::NetworkInUse(_))) => Some(in_use()),
        Err(error) => Some((FAILED, chain(&error))),
    }
}

/// Whether a network has the addresses that a subnet says, so that nobody on it is in the way. `real` is what is there of it; where nothing
/// is, it will be as it says itself. Pure.
fn has_addresses(real: Option<&network::Network>, status: &NetworkStatus, read: &ReadSubnet) -> bool {
    let (cidr, gateway) = (read.cidr.to_string(), read.gateway);
    match real {
        Some(real) => real.subnet.to_string() == cidr && real.gateway == gateway,
        None => status.subnet == cidr && status.gateway == gateway.to_string(),
    }
}

/// Whether a network both is, and says itself that it is, as a subnet says. Pure.
fn is_settled(
    real: Option<&network::Network>,
    status: &NetworkStatus,
    read: &ReadSubnet,
    wanted: &AddressPlan,
) -> bool {
    let is = real.is_some_and(|real| real.plan == plan_of(wanted)) && has_addresses(real, status, read);
    is && has_addresses(None, status, read) && status.plan.as_ref() == Some(wanted)
}

/// Writes the status of a subnet, when it is another than before.
async fn tell(
    context: &Context,
    key: &Key,
    subnet: &Subnet,
    read: Option<&ReadSubnet>,
    trouble: Option<Trouble>,
    taken: &BTreeSet<Ipv4Addr>,
) -> Result<()> {
    let old = subnet.status.clone().unwrap_or_default();
    let (word, message) = trouble.unwrap_or((IN_FORCE, String::new()));
    let is_ready = [IN_FORCE, HELD].contains(&word);
    let condition = ready(&old.conditions, is_ready, word, &message, subnet.metadata.generation);
    let in_force = read.filter(|_| is_ready);
    let is_given = |address: &&Ipv4Addr| in_force.is_some_and(|read| is_pooled(read, **address));
    let given = count(taken.iter().filter(is_given).count());
    let wanted = SubnetStatus {
        gateway_ip: in_force.filter(|read| read.has_gateway).map(|read| read.gateway.to_string()).unwrap_or_default(),
        used_addresses: count(taken.len()),
        available_addresses: in_force.map_or(0, |read| subnet::capacity(read) - given),
        conditions: vec![condition],
        message,
    };
    if wanted == old {
        return Ok(());
    }
    tracing::debug!(subnet = key.name, word, message = wanted.message, "what became of a subnet");
    objects::write_as_read(&context.client, subnet, json!({}), Some(json!(wanted)), WRITE).await
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Whether an address is one of those that are given to who wishes for none.
fn is_pooled(read: &ReadSubnet, address: Ipv4Addr) -> bool {
    read.pools.is_empty() || read.pools.iter().any(|(start, end)| *start <= address && address <= *end)
}

#[cfg(test)]
mod tests {
    use api::{NetworkSpec, SubnetSpec};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "shop".into(), name: name.into() }
    }

    fn subnet(network: &str, second: i64) -> Arc<Subnet> {
        let spec = SubnetSpec { network: network.into(), cidr: "10.90.0.0/24".into(), ..SubnetSpec::default() };
        let mut subnet = Subnet::new("s", spec);
        subnet.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
        Arc::new(subnet)
    }

    #[test]
    fn a_network_has_one_subnet_which_is_the_eldest() {
        let network = Network::new("a", NetworkSpec::default());
        let subnets: Subnets = [("late", 2), ("early", 1)].map(|(name, at)| (key(name), subnet("a", at))).into();
        let eldest = eldest(&subnets);
        assert_eq!(eldest, [(("shop", "a"), &key("early"))].into());
        let said = |name: &str, network: Option<&Network>| {
            judge(&key(name), &subnets[&key(name)], eldest.values().next().copied(), network)
        };
        assert_eq!(said("early", Some(&network)).unwrap().cidr.to_string(), "10.90.0.0/24");
        let refused = said("late", Some(&network)).unwrap_err();
        assert_eq!(refused, (REFUSED, "network a has subnet early, and can have one".into()));
        assert_eq!(said("early", None).unwrap_err().0, NO_NETWORK);
        let own = Network::new("a", NetworkSpec { subnet: "10.91.0.0/24".into(), ..NetworkSpec::default() });
        assert_eq!(said("early", Some(&own)).unwrap_err(), (REFUSED, "network a says its addresses itself".into()));
        assert_eq!(judge(&key("s"), &subnet("bridge", 1), None, Some(&network)).unwrap_err().0, REFUSED);
    }

    #[test]
    fn nobody_gets_an_address_before_the_subnet_says_which_there_are() {
        let mut network = Network::new("a", NetworkSpec::default());
        let with = |word: &str| {
            let mut subnet = (*subnet("a", 1)).clone();
            let conditions = vec![ready(&[], word == IN_FORCE, word, "why", None)];
            subnet.status = Some(SubnetStatus { conditions, message: "why".into(), ..SubnetStatus::default() });
            subnet
        };
        let new = (*subnet("a", 1)).clone();
        assert!(awaited(&network, &[]).is_none());
        assert!(matches!(awaited(&network, std::slice::from_ref(&new)), Some(Error::NotYet(_))));
        assert!(matches!(awaited(&network, &[with(NO_NETWORK)]), Some(Error::NotYet(_))));
        assert!(matches!(awaited(&network, &[with(FAILED)]), Some(Error::Invalid(_))));
        assert!(awaited(&network, &[with(REFUSED)]).is_none() && awaited(&network, &[with(IN_USE)]).is_none());
        assert!(awaited(&network, &[with(REFUSED), new.clone()]).is_some());
        network.status = Some(NetworkStatus { plan: Some(AddressPlan::default()), ..NetworkStatus::default() });
        assert!(awaited(&network, &[new]).is_none());
    }

    #[test]
    fn a_subnet_is_settled_when_its_network_is_what_it_says() {
        let spec = SubnetSpec { cidr: "10.90.0.0/24".into(), enable_dhcp: Some(false), ..SubnetSpec::default() };
        let read = spec.read().unwrap();
        let wanted = spec.plan("s", &read);
        let real = |subnet: &str, gateway: &str| -> network::Network {
            serde_json::from_value(json!({
                "id": "u", "bridge": "nuee0", "subnet": subnet, "gateway": gateway, "internal": false, "routed": false,
                "isolated_ports": false, "mtu": 1500, "plan": {"without_dhcp": true},
            }))
            .unwrap()
        };
        let status = |subnet: &str, plan: Option<AddressPlan>| {
            let (subnet, gateway) = (subnet.to_owned(), "10.90.0.1".to_owned());
            NetworkStatus { subnet, gateway, plan, ..NetworkStatus::default() }
        };
        let told = status("10.90.0.0/24", Some(wanted.clone()));
        let right = real("10.90.0.0/24", "10.90.0.1");
        assert!(is_settled(Some(&right), &told, &read, &wanted));
        // What it says counts for nothing where it is not so, and the other way round.
        let moved = real("10.91.0.0/24", "10.91.0.1");
        let plain = network::Network { plan: Plan::default(), ..right.clone() };
        for other in [None, Some(&moved), Some(&plain), Some(&real("10.90.0.0/24", "10.90.0.254"))] {
            assert!(!is_settled(other, &told, &read, &wanted), "{other:?}");
        }
        assert!(!is_settled(Some(&right), &status("10.90.0.0/24", None), &read, &wanted));
        assert!(!is_settled(Some(&right), &status("10.91.0.0/24", Some(wanted.clone())), &read, &wanted));
        // Users are in the way of other addresses alone.
        assert!(has_addresses(Some(&right), &status("10.91.0.0/24", None), &read));
        assert!(has_addresses(Some(&plain), &told, &read) && has_addresses(None, &told, &read));
        assert!(!has_addresses(Some(&moved), &told, &read));
    }

    #[test]
    fn a_plan_without_its_subnet_is_forgotten() {
        let mut network = Network::new("a", NetworkSpec::default());
        let plan = AddressPlan { subnet: "s".into(), ..AddressPlan::default() };
        network.status = Some(NetworkStatus { plan: Some(plan), ..NetworkStatus::default() });
        let own = [(key("s"), subnet("a", 1))].into();
        assert_eq!(stale(&key("a"), &network, &own), None);
        assert_eq!(stale(&key("a"), &network, &Subnets::new()).map(String::as_str), Some("s"));
        assert!(stale(&key("a"), &network, &[(key("s"), subnet("b", 1))].into()).is_some());
        network.spec.subnet = "10.91.0.0/24".into();
        assert!(stale(&key("a"), &network, &own).is_some());
    }

    #[test]
    fn what_a_status_says_is_taken_as_far_as_it_makes_sense() {
        let pool = |start: &str, end: &str| subnet::AllocationPool { start: start.into(), end: end.into() };
        let plan = AddressPlan {
            allocation_pools: vec![pool("10.90.0.9", "10.90.0.2"), pool("10.90.0.2", "10.90.0.9")],
            dns_nameservers: vec!["x".into(), "192.0.2.53".into()],
            ..AddressPlan::default()
        };
        let taken = plan_of(&plan);
        assert_eq!(taken.pools, [(Ipv4Addr::new(10, 90, 0, 2), Ipv4Addr::new(10, 90, 0, 9))]);
        assert_eq!(taken.name_servers, [Ipv4Addr::new(192, 0, 2, 53)]);
    }
}
