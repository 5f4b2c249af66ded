//! `Network` objects and the bridges behind them: made when an object appears or is first used, removed with it.

mod follow;
mod wanted;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::names::{DEFAULT_NETWORK, DOCKER_NAMESPACE};
use api::network::{Network, NetworkMode, NetworkSpec, NetworkStatus};
use api::subnet::{AddressPlan, ReadSubnet};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use network::{AttachRequest, Fabric, NetworkConfig};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

pub use follow::run;
use wanted::{config, may_stay};

use crate::context::{Context, Key};
use crate::directory::Directory;
use crate::error::{Error, Result, chain};
use crate::subnets;

/// Port of DNS.
const DNS_PORT: u16 = 53;

/// How long to wait for a part of a network that spans machines; the pool's controllers give it.
const GRANT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait until the first machine has made a network that spans machines.
const FIRST_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one call of the API may take while others wait to make networks.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to look whether it has.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Phase of a network that was made.
const READY: &str = "Ready";
/// Phase of one that could not be made.
const FAILED: &str = "Failed";

/// What is known of networks.
pub struct Networks {
    fabric: Arc<Fabric>,
    known: Mutex<HashMap<Key, Known>>,
    default: Arc<network::Network>,
    outside: Outside,
    /// The API is on another machine.
    is_member: bool,
    /// By network: who gives which addresses.
    grants: watch::Sender<BTreeMap<String, Grant>>,
    /// A network has been made.
    pub made: Notify,
    /// Networks, by their ids, on whose gateways no names could be told yet.
    mute: Mutex<BTreeMap<String, Ipv4Addr>>,
    /// Networks that could not be made, or not be told of, as the API did not answer.
    untold: Mutex<BTreeMap<Key, Network>>,
    /// Held while a network is made, changed or removed, from the reading of its object to the writing of its status: who comes later goes
    /// by what is newer. It holds up everybody, so nobody who has it sleeps or waits for another object, and its calls of the API are
    /// bounded.
    making: tokio::sync::Mutex<()>,
}

/// What a `Subnet` has its network do.
pub enum Word<'a> {
    /// Have these addresses, and this plan.
    Says(ReadSubnet, AddressPlan),
    /// Have no plan any more, if it is that of the subnet of this name.
    Forgets(&'a str),
}

/// Why a network is not to be had.
struct Refusal {
    error: Error,
    /// It may be had at any moment.
    may_pass: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, may_pass: false }
    }
}

/// A network that was made.
#[derive(Clone)]
struct Known {
    network: Arc<network::Network>,
    /// A `Subnet` may come yet, and say other addresses than those that were free.
    is_open: bool,
}

/// Who gives which addresses of a network that spans machines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// This machine.
    pub own: Vec<network::Subnet>,
    /// This machine's own address there.
    pub inner: Option<Ipv4Addr>,
    /// Other machines.
    pub elsewhere: Vec<(network::Subnet, String)>,
}

impl Grant {
    /// Whether this machine may give the address; `Ok(false)`: not yet.
    fn check(&self, address: Ipv4Addr) -> std::result::Result<bool, String> {
        if self.inner == Some(address) {
            return Err(format!("address {address} is this machine's own on the network"));
        }
        if self.own.iter().any(|part| part.contains(address)) {
            return Ok(true);
        }
        match self.elsewhere.iter().find(|(part, _)| part.contains(address)) {
            Some((part, node)) => Err(format!("address {address} is of {part}, which machine {node} gives")),
            None => Ok(false),
        }
    }
}

/// What the machine's operator lets networks be towards the outside.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// Addresses that networks may show, and be reached by.
    pub routed: Vec<network::Subnet>,
    /// Interfaces that networks may be on.
    pub interfaces: Vec<String>,
}

impl Outside {
    /// Refuses what the operator does not let.
    fn check(&self, spec: &NetworkSpec, config: &NetworkConfig) -> Result<()> {
        let of = |range: &network::Subnet| {
            config.subnet.is_some_and(|own| range.contains(own.address()) && range.contains(own.last()))
        };
        match spec.mode {
            NetworkMode::Routed if !self.routed.iter().any(of) => {
                Err(Error::Invalid("the subnet is not of routedAddresses in the machine's settings".into()))
            }
            NetworkMode::Bridged if !self.interfaces.contains(&spec.uplink) => {
                Err(Error::Invalid(format!("{} is not of bridgedInterfaces in the machine's settings", spec.uplink)))
            }
            // Only what the machine's operator makes for himself may show whatever addresses it says it has.
            _ if config.unmasqueraded && config.beside_routes && !self.routed.iter().any(of) => {
                let text = "without translation of source addresses, the subnet must be of routedAddresses in the machine's settings";
                Err(Error::Invalid(text.into()))
            }
            _ => Ok(()),
        }
    }
}

impl Networks {
    /// Makes the default network, which everything else may rely on.
    pub async fn open(
        fabric: Arc<Fabric>,
        subnet: Option<network::Subnet>,
        ip_range: Option<network::Subnet>,
        outside: Outside,
        is_member: bool,
    ) -> Result<Self> {
        let id = network::DEFAULT_NETWORK.to_owned();
        let config = NetworkConfig { id, subnet, ip_range, routed: true, ..NetworkConfig::default() };
        let default = Arc::new(fabric.ensure_network(config).await?);
        let (known, grants, made) = (Mutex::default(), watch::Sender::default(), Notify::new());
        let (mute, untold, making) = (Mutex::default(), Mutex::default(), tokio::sync::Mutex::default());
        Ok(Self { fabric, known, default, outside, is_member, grants, made, mute, untold, making })
    }

    /// Notes who gives which addresses; those who wait for theirs look again.
    pub fn grant(&self, grants: BTreeMap<String, Grant>) {
        self.grants.send_replace(grants);
    }

    /// Puts a workload on a network. On one that spans machines it may have to wait for this machine's part, and it gets none of
    /// another's but by `moved`: it brings its address along, or has it already.
    ///
    /// Errors: those of [`Fabric::attach`]; another machine gives the wanted address; no part is left.
    pub async fn attach(
        &self,
        network: &network::Network,
        request: AttachRequest,
        moved: bool,
    ) -> Result<network::Attachment> {
        if network.parts.is_none() || (moved && request.address.is_some()) {
            return Ok(self.fabric.attach(request).await?);
        }
        let mut grants = self.grants.subscribe();
        let mut waits = std::pin::pin!(tokio::time::sleep(GRANT_TIMEOUT));
        loop {
            let grant = grants.borrow_and_update().get(&network.id).cloned();
            let grant = grant.unwrap_or_else(|| self.home_grant(network));
            let may = request.address.map_or(Ok(true), |address| grant.check(address)).map_err(Error::Invalid)?;
            if may {
                match self.fabric.attach(request.clone()).await {
                    Err(network::Error::AddressesExhausted(_)) => {}
                    done => return Ok(done?),
                }
            }
            tokio::select! {
                changed = grants.changed() => changed.map_err(|_| Error::Timeout("a part of the network"))?,
                () = &mut waits => {
                    let text = format!("no addresses of {} are left for this machine", network.subnet);
                    return Err(Error::Invalid(text));
                }
            }
        }
    }

    /// What the first machine gives of a network, whatever anybody says.
    fn home_grant(&self, network: &network::Network) -> Grant {
        let (subnet, range) = (network.subnet.to_string(), network.ip_range.unwrap_or(network.subnet).to_string());
        let half = range.parse().ok().and_then(api::share::first).filter(|_| !self.is_member);
        let own = |(half, subnet)| api::share::own_address(subnet, half, Some(network.gateway));
        let inner = half.zip(subnet.parse().ok()).map(own);
        let own = half.and_then(|half| half.to_string().parse().ok()).into_iter().collect();
        Grant { own, inner, elsewhere: Vec::new() }
    }

    /// The network that pods are on.
    pub fn default_network(&self) -> Arc<network::Network> {
        self.default.clone()
    }

    /// What the fabric calls the network behind an object, once it was made.
    pub fn id_of(&self, namespace: &str, name: &str) -> Option<String> {
        let key = Key { namespace: namespace.to_owned(), name: name.to_owned() };
        self.known.lock().get(&key).map(|known| known.network.id.clone())
    }

    /// A network as it is now: what workloads of it are told may have changed since they joined it.
    pub fn current(&self, network: &Arc<network::Network>) -> Arc<network::Network> {
        let known = self.known.lock();
        known.values().find(|known| known.network.id == network.id).map_or(network, |known| &known.network).clone()
    }

    /// The bridge behind an object; makes it if need be, and waits a while for whoever is to say something of it first.
    ///
    /// Errors: [`Error::NotYet`] when it spans machines, and the first machine has not made it; the same of its `Subnet`.
    pub async fn ensure(&self, client: &Client, directory: &Directory, key: &Key) -> Result<Arc<network::Network>> {
        let deadline = tokio::time::Instant::now() + FIRST_TIMEOUT;
        loop {
            match self.attempt(client, directory, key).await {
                Err(Refusal { error, may_pass: true }) if tokio::time::Instant::now() < deadline => {
                    tracing::trace!(network = key.name, %error, "waiting for a network");
                    tokio::time::sleep(FIRST_PAUSE).await;
                }
                done => return done.map_err(|refusal| refusal.error),
            }
        }
    }

    /// As [`Networks::ensure`], for who looks again anyway, and has others who are not to wait.
    pub async fn ensure_now(&self, client: &Client, directory: &Directory, key: &Key) -> Result<Arc<network::Network>> {
        self.attempt(client, directory, key).await.map_err(|refusal| refusal.error)
    }

    async fn attempt(
        &self,
        client: &Client,
        directory: &Directory,
        key: &Key,
    ) -> std::result::Result<Arc<network::Network>, Refusal> {
        if key.name == DEFAULT_NETWORK || key.name == "default" {
            return Ok(self.default.clone());
        }
        let known = self.known.lock().get(key).cloned();
        if let Some(known) = known.as_ref().filter(|known| !known.is_open) {
            return Ok(known.network.clone());
        }
        let found = self.look(client, directory, key, known.as_ref()).await;
        match (found, known) {
            // What has users stays as it is, whatever troubles those have who are to change it: whoever restarts there finds it.
            (Err(_), Some(known)) if self.is_used(&known.network.id).await => Ok(known.network),
            (found, _) => found,
        }
    }

    /// A network that is not there yet, or that a `Subnet` may still change.
    async fn look(
        &self,
        client: &Client,
        directory: &Directory,
        key: &Key,
        known: Option<&Known>,
    ) -> std::result::Result<Arc<network::Network>, Refusal> {
        let subnets = if known.is_some() { subnets::of(client, key).await? } else { Vec::new() };
        if let Some(known) = known.filter(|_| subnets.is_empty()) {
            return Ok(known.network.clone());
        }
        let objects: Api<Network> = Api::namespaced(client.clone(), &key.namespace);
        let object = objects.get_opt(&key.name).await.map_err(Error::api("read network"))?;
        let object = object.ok_or_else(|| Error::Invalid(format!("network {} not found", key.name)))?;
        // Nobody is to wait for what its subnet says: it says nothing of this one any more.
        if object.metadata.deletion_timestamp.is_some() {
            return Err(is_going(&key.name).into());
        }
        // Where it leaves its addresses to another object, that is asked before anybody gets one.
        let asks = known.is_none() && object.spec.is_open();
        let subnets = if asks { subnets::of(client, key).await? } else { subnets };
        let waits = subnets::awaited(&object, &subnets).map_or(Ok(()), Err);
        // What is there of it is all that there is to be, while no subnet says another thing.
        let has_plan = object.status.as_ref().is_some_and(|status| status.plan.is_some());
        if let Some(known) = known.filter(|known| waits.is_ok() && !has_plan && is_of(known, &object)) {
            return Ok(known.network.clone());
        }
        match waits.and_then(|()| may_make(&object, self.is_member)) {
            Ok(()) => {
                let _making = self.making.lock().await;
                // Whoever had the lock may have made it.
                let known = self.known.lock().get(key).cloned();
                match known.filter(|known| !known.is_open && is_of(known, &object)) {
                    Some(known) => Ok(known.network),
                    None => Ok(self.make_alone(client, directory, &object).await?),
                }
            }
            Err(error) => {
                let may_pass = matches!(error, Error::NotYet(_)) && !has_failed(&object);
                Err(Refusal { error, may_pass })
            }
        }
    }

    /// Whether somebody here has an address of a network.
    async fn is_used(&self, id: &str) -> bool {
        let inventory = self.fabric.list().await.unwrap_or_default();
        inventory.attachments.iter().any(|one| one.network == id)
            || inventory.reservations.iter().any(|one| one.network == id)
    }

    /// Gives a network the addresses and the plan that its `Subnet` says, or no plan any more. Nothing has changed when it fails; `None`:
    /// the network is gone, or has nothing of the subnet.
    ///
    /// Errors: what [`Fabric::ensure_network`] says of the addresses.
    pub async fn replan(
        &self,
        client: &Client,
        directory: &Directory,
        object: &Network,
        word: Word<'_>,
    ) -> Result<Option<Arc<network::Network>>> {
        let _making = self.making.lock().await;
        let Some(object) = newest(client, object).await? else { return Ok(None) };
        let mut next = object.clone();
        let status = next.status.get_or_insert_default();
        match word {
            Word::Says(read, plan) => {
                (status.subnet, status.gateway) = (read.cidr.to_string(), read.gateway.to_string());
                status.plan = Some(plan);
            }
            // Another one may have come since.
            Word::Forgets(name) if status.plan.as_ref().is_none_or(|plan| plan.subnet != name) => return Ok(None),
            Word::Forgets(_) => status.plan = None,
        }
        let plan = status.plan.clone();
        let none = || Error::Invalid(format!("network {} has no addresses", object.spec.name));
        let network = self.realize(&next, config(&next).ok_or_else(none)??).await?;
        Ok(Some(self.adopt(client, directory, &object, network, plan, String::new()).await))
    }

    /// Notes a network that was made, answers there, and tells of it: `message` says which of its wishes do not hold. Whoever calls it
    /// holds `making`, and read the object since.
    async fn adopt(
        &self,
        client: &Client,
        directory: &Directory,
        object: &Network,
        network: network::Network,
        plan: Option<AddressPlan>,
        message: String,
    ) -> Arc<network::Network> {
        let network = Arc::new(network);
        let is_open = object.spec.is_open() && plan.is_none();
        let before = self.known.lock().insert(Key::of(object), Known { network: network.clone(), is_open });
        self.made.notify_waiters();
        if let Some(before) = before.filter(|before| before.network.gateway != network.gateway) {
            self.fall_silent(directory, &before.network).await;
        }
        if network.uplink.is_none() {
            self.listen(directory, &network.id, network.gateway).await;
        }
        // What all machines share is the first one's to say.
        if !(self.is_member && object.spec.spans()) {
            self.report(client, object, &NetworkStatus { plan, message, ..status(&network) }).await;
        }
        network
    }

    async fn make(&self, client: &Client, directory: &Directory, object: &Network) -> Result<Arc<network::Network>> {
        let _making = self.making.lock().await;
        self.make_alone(client, directory, object).await
    }

    /// Makes a network, and tells of it. Whoever calls it holds `making`.
    async fn make_alone(
        &self,
        client: &Client,
        directory: &Directory,
        object: &Network,
    ) -> Result<Arc<network::Network>> {
        let key = Key::of(object);
        if key.name == DEFAULT_NETWORK {
            self.report(client, object, &status(&self.default)).await;
            return Ok(self.default.clone());
        }
        // Whoever asks may have waited for one who has changed it.
        let object = newest(client, object).await?.ok_or_else(|| is_going(&key.name))?;
        may_make(&object, self.is_member)?;
        let object = &object;
        match config(object) {
            Some(config) => {
                // That its object makes no sense is told as any other failure: somebody may wait for its addresses.
                let made = async { self.realize(object, config?).await };
                match made.await {
                    Ok(network) => {
                        let plan = object.status.as_ref().and_then(|status| status.plan.clone());
                        Ok(self.adopt(client, directory, object, network, plan, String::new()).await)
                    }
                    Err(error) => {
                        let message = chain(&error);
                        if let Some(there) =
                            may_stay(object, self.fabric.list().await.unwrap_or_default().networks, &error)
                        {
                            return Ok(self.adopt(client, directory, object, there, None, message).await);
                        }
                        let old = object.status.clone().unwrap_or_default();
                        // Whether the network is fit for use is the first machine's to say; another's troubles are its workloads' own.
                        if !self.is_member {
                            self.report(client, object, &NetworkStatus { phase: FAILED.into(), message, ..old }).await;
                        }
                        Err(error)
                    }
                }
            }
            // `host` and `none` have nothing behind them.
            None => {
                self.report(client, object, &NetworkStatus { phase: READY.into(), ..NetworkStatus::default() }).await;
                Err(Error::Invalid(format!("network {} has no addresses", key.name)))
            }
        }
    }

    async fn realize(&self, object: &Network, config: NetworkConfig) -> Result<network::Network> {
        self.outside.check(&object.spec, &config)?;
        let mut network = self.fabric.ensure_network(config.clone()).await?;
        // Where the subnet was the fabric's to choose, it is known only now.
        let shared = object.spec.shared(&network.subnet.to_string()).is_some();
        if shared != config.shared {
            network = self.fabric.ensure_network(NetworkConfig { shared, ..config }).await?;
        }
        if network.parts.as_ref().is_some_and(Vec::is_empty) && !self.is_member {
            let half = self.home_grant(&network).own;
            self.fabric.share_network(&network.id, half.clone()).await?;
            network.parts = Some(half);
        }
        Ok(network)
    }

    /// Answers DNS on a network's gateway. What cannot be now is tried again.
    pub async fn listen(&self, directory: &Directory, id: &str, gateway: Ipv4Addr) {
        let address = SocketAddr::new(IpAddr::V4(gateway), DNS_PORT);
        match directory.server().listen(address, id).await {
            Ok(()) => drop(self.mute.lock().remove(id)),
            Err(error) => {
                tracing::warn!(%address, error = %chain(&error), "cannot answer DNS here yet");
                self.mute.lock().insert(id.to_owned(), gateway);
            }
        }
    }

    /// Tries again where DNS is not answered.
    async fn listen_again(&self, directory: &Directory) {
        let mute = self.mute.lock().clone();
        for (id, gateway) in mute {
            self.listen(directory, &id, gateway).await;
        }
    }

    /// Answers no more DNS for a network where it was.
    async fn fall_silent(&self, directory: &Directory, network: &network::Network) {
        self.mute.lock().remove(&network.id);
        directory.server().stop(SocketAddr::new(IpAddr::V4(network.gateway), DNS_PORT), &network.id).await;
    }

    async fn report(&self, client: &Client, object: &Network, status: &NetworkStatus) {
        if object.status.as_ref() == Some(status) {
            return;
        }
        let key = Key::of(object);
        let objects: Api<Network> = Api::namespaced(client.clone(), &key.namespace);
        // Another one of the name is none of ours.
        let mut patch = serde_json::json!({ "metadata": { "uid": object.metadata.uid }, "status": status });
        // What is empty is not written, and what an earlier attempt said would stay.
        patch["status"]["message"] = status.message.as_str().into();
        let (patch, parameters) = (Patch::Merge(patch), PatchParams::default());
        let written = tokio::time::timeout(API_TIMEOUT, objects.patch_status(&key.name, &parameters, &patch)).await;
        let written = written.map_err(|_| Error::Timeout("writing the network's status"));
        if let Err(error) = written.and_then(|done| done.map_err(Error::api("write the network's status"))) {
            tracing::warn!(network = key.name, error = %chain(&error), "cannot tell of a network yet");
            self.untold.lock().insert(key, object.clone());
        }
    }

    /// Whether a network of this machine is known by its object as it is here.
    fn is_told(&self, object: &Network) -> bool {
        let known = self.known.lock().get(&Key::of(object)).cloned();
        let Some(known) = known.filter(|known| is_of(known, object)) else { return false };
        let subnet = known.network.subnet.to_string();
        object.status.as_ref().is_some_and(|status| status.phase == READY && status.subnet == subnet)
    }

    /// Makes, and tells of, what the API did not let be made or told.
    async fn tell_again(&self, client: &Client, directory: &Directory) {
        let untold = std::mem::take(&mut *self.untold.lock());
        for object in untold.into_values() {
            self.make_or_note(client, directory, &object).await;
        }
    }

    /// Makes a network; one that the API does not let be made now is noted.
    async fn make_or_note(&self, client: &Client, directory: &Directory, object: &Network) {
        let Err(error) = self.make(client, directory, object).await else { return };
        tracing::debug!(network = object.spec.name, error = %chain(&error), "network not made");
        if matches!(error, Error::Api { .. } | Error::Timeout(_)) {
            self.untold.lock().insert(Key::of(object), object.clone());
        }
    }
}

/// Whether what is known is of this very object, and not of another one of its name. Pure.
fn is_of(known: &Known, object: &Network) -> bool {
    Some(&known.network.id) == object.metadata.uid.as_ref()
}

fn status(network: &network::Network) -> NetworkStatus {
    NetworkStatus {
        subnet: network.subnet.to_string(),
        gateway: network.gateway.to_string(),
        ipv6_subnet: network.ipv6.map(|six| six.subnet.to_string()).unwrap_or_default(),
        ipv6_gateway: network.ipv6.map(|six| six.gateway.to_string()).unwrap_or_default(),
        bridge: network.bridge.clone(),
        phase: READY.into(),
        ..NetworkStatus::default()
    }
}

/// The object as it is now; `None`: it is gone or going, or is another one of that name.
async fn newest(client: &Client, object: &Network) -> Result<Option<Network>> {
    let key = Key::of(object);
    let objects: Api<Network> = Api::namespaced(client.clone(), &key.namespace);
    let found = tokio::time::timeout(API_TIMEOUT, objects.get_opt(&key.name)).await;
    let found = found.map_err(|_| Error::Timeout("reading the network"))?.map_err(Error::api("read network"))?;
    Ok(found.filter(|found| is_still(found, object)))
}

/// Whether what was found is the network that was looked for, and is to stay. Pure.
fn is_still(found: &Network, object: &Network) -> bool {
    found.metadata.uid == object.metadata.uid && found.metadata.deletion_timestamp.is_none()
}

fn is_going(name: &str) -> Error {
    Error::Invalid(format!("network {name} is going"))
}

fn has_failed(object: &Network) -> bool {
    object.status.as_ref().is_some_and(|status| status.phase == FAILED)
}

/// Whether this machine may make the network: of one that spans machines the first chooses the subnet. Pure.
fn may_make(object: &Network, is_member: bool) -> Result<()> {
    let is_made = |status: &NetworkStatus| status.phase == READY && !status.subnet.is_empty();
    match !is_member || !object.spec.spans() || object.status.as_ref().is_some_and(is_made) {
        true => Ok(()),
        false => Err(Error::NotYet(format!("network {} is not ready on the pool's first machine", object.spec.name))),
    }
}

/// Creates the objects of the networks that are always there.
pub async fn ensure_objects(context: &Context) -> Result<()> {
    if context.is_member {
        return Ok(());
    }
    let objects: Api<Network> = Api::namespaced(context.client.clone(), DOCKER_NAMESPACE);
    for (name, driver) in [(DEFAULT_NETWORK, "bridge"), ("host", "host"), ("none", "null")] {
        let id = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(format!("nuee network {name}")));
        let spec = NetworkSpec { name: name.into(), id, driver: driver.into(), ..NetworkSpec::default() };
        match objects.create(&PostParams::default(), &Network::new(name, spec)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(Error::api("create the default networks")(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use api::share::Range;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_machine_gives_addresses_of_its_own_parts_and_waits_for_others_that_nobody_has() {
        let grant = Grant {
            own: vec!["10.89.0.128/28".parse().unwrap()],
            inner: Some(Ipv4Addr::new(10, 89, 0, 143)),
            elsewhere: vec![("10.89.0.0/25".parse().unwrap(), "n1".into())],
        };
        assert_eq!(grant.check(Ipv4Addr::new(10, 89, 0, 130)), Ok(true));
        assert_eq!(grant.check(Ipv4Addr::new(10, 89, 0, 200)), Ok(false));
        assert!(grant.check(Ipv4Addr::new(10, 89, 0, 143)).is_err());
        let refused = grant.check(Ipv4Addr::new(10, 89, 0, 9)).unwrap_err();
        assert_eq!(refused, "address 10.89.0.9 is of 10.89.0.0/25, which machine n1 gives");
    }

    #[test]
    fn a_member_makes_what_spans_machines_only_after_the_first_machine() {
        let network = |driver: &str, phase: &str, subnet: &str| {
            let spec = NetworkSpec { driver: driver.into(), ..NetworkSpec::default() };
            let (phase, subnet) = (phase.into(), subnet.into());
            let status = Some(NetworkStatus { phase, subnet, ..NetworkStatus::default() });
            Network { status, ..Network::new("a", spec) }
        };
        let made = network("", READY, "10.89.0.0/24");
        assert!(may_make(&made, true).is_ok() && may_make(&made, false).is_ok());
        for open in [network("", "", ""), network("overlay", READY, ""), network("", FAILED, "10.89.0.0/24")] {
            assert!(matches!(may_make(&open, true), Err(Error::NotYet(_))));
            assert!(may_make(&open, false).is_ok());
        }
        assert!(may_make(&network("bridge", "", ""), true).is_ok(), "each machine's own");
    }

    #[test]
    fn what_was_read_before_counts_for_the_same_network_alone_and_as_long_as_it_stays() {
        let network = |uid: &str| {
            let mut network = Network::new("a", NetworkSpec::default());
            network.metadata.uid = Some(uid.into());
            network
        };
        assert!(is_still(&network("u"), &network("u")));
        assert!(!is_still(&network("v"), &network("u")));
        let mut going = network("u");
        let now = k8s_openapi::jiff::Timestamp::from_second(1).unwrap();
        going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        assert!(!is_still(&going, &network("u")));
    }

    #[test]
    fn a_network_shows_outside_what_the_operator_lets_it() {
        let outside = Outside { routed: vec!["192.0.2.0/24".parse().unwrap()], interfaces: vec!["lan0".into()] };
        let check = |mode, subnet: &str, uplink: &str| {
            let spec = NetworkSpec { mode, uplink: uplink.into(), ..NetworkSpec::default() };
            outside.check(&spec, &NetworkConfig { subnet: subnet.parse().ok(), ..NetworkConfig::default() }).is_ok()
        };
        assert!(check(NetworkMode::Nat, "10.0.0.0/24", ""));
        assert!(check(NetworkMode::Routed, "192.0.2.128/25", ""));
        assert!(!check(NetworkMode::Routed, "192.0.2.0/23", ""), "larger than what is let");
        assert!(!check(NetworkMode::Routed, "10.0.0.0/24", ""));
        assert!(check(NetworkMode::Bridged, "10.0.0.0/24", "lan0"));
        let seen = |subnet: &str, beside_routes| {
            let subnet = subnet.parse().ok();
            let config = NetworkConfig { subnet, beside_routes, unmasqueraded: true, ..NetworkConfig::default() };
            outside.check(&NetworkSpec::default(), &config).is_ok()
        };
        assert!(seen("10.0.0.0/24", false), "the operator's own");
        assert!(!seen("10.0.0.0/24", true) && !seen("", true) && seen("192.0.2.0/24", true));
        assert!(!check(NetworkMode::Bridged, "10.0.0.0/24", "eth0"));
    }

    proptest! {
        /// What the fabric keeps for the machine is the address by which the others are led to it.
        #[test]
        fn a_machines_own_address_is_given_to_nobody(
            base in any::<u32>(), prefix in 8u8..=27, at in 0usize..12,
            gateway in any::<u32>(), from_end in 0u32..4, near in any::<bool>(),
        ) {
            let range = Range::containing(Ipv4Addr::from_bits(base), prefix);
            let others = api::share::others(range).take(10);
            let parts: Vec<Range> = api::share::first(range).into_iter().chain(others).collect();
            let part = parts[at % parts.len()];
            let (first, last) = (range.address().to_bits() + 1, range.last().to_bits() - 1);
            let wished = if near { part.last().to_bits() - from_end } else { gateway };
            let gateway = Ipv4Addr::from_bits(wished.clamp(first, last));
            let network: network::Network = serde_json::from_value(serde_json::json!({
                "id": "u", "bridge": "nuee0", "subnet": range.to_string(), "gateway": gateway, "internal": false, "routed": false,
                "isolated_ports": false, "mtu": 1500,
            }))
            .unwrap();
            let own = network.own_address(&part.to_string().parse().unwrap());
            prop_assert_eq!(own, api::share::own_address(range, part, Some(gateway)));
            prop_assert!(part.contains(own) && own != gateway && own != range.last());
        }
    }
}
