//! [`Fabric`]: every operation on one machine's network. The work itself is short and blocking (netlink, small files), so
//! each operation runs on a blocking thread; one lock orders all changes of state and of nftables, while the slower work
//! on interfaces goes on outside of it. Who holds the lock may wait for nft(8), as long as that is let: nothing asks for it on the
//! caller's own thread.

mod attachments;
mod floating;
mod guards;
mod inner;
mod kept;
mod monitor;
pub mod overlay;
mod publications;
mod reservations;
mod routers;
mod silence;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::error::{Error, Result};
use crate::subnet::Subnet;
use crate::types::{
    AttachRequest, Attachment, CarriedPort, FabricOptions, Inventory, KernelSetting, Network, NetworkConfig,
    PortMapping, Publication, ServiceRule, Target,
};
use inner::Inner;

/// How many operations have a thread at once; further ones wait for one. Most of them wait for the same lock, and the threads are all
/// of the process'.
const OPERATIONS_MAX: usize = 32;

/// The network of one machine. Methods are idempotent, and safe to call at once from many tasks.
pub struct Fabric {
    inner: Arc<Inner>,
    /// One for each operation that may have a thread.
    turns: Arc<Semaphore>,
    /// Ends the watch over our tables when the fabric is dropped.
    _monitor: monitor::Monitor,
}

impl Fabric {
    /// Opens the fabric: reads what is on disk, sets the kernel's switches, brings back what is missing. Service tables
    /// that are installed already stay until the first [`Fabric::sync_services`], so that a restart of the daemon
    /// interrupts nothing.
    pub async fn open(options: FabricOptions) -> Result<Arc<Fabric>> {
        let opened = tokio::task::spawn_blocking(move || {
            let inner = Arc::new(Inner::open(options)?);
            let monitor = monitor::Monitor::start(&inner)?;
            inner.heal()?;
            Ok(Arc::new(Fabric { inner, turns: Arc::new(Semaphore::new(OPERATIONS_MAX)), _monitor: monitor }))
        });
        opened.await.unwrap_or(Err(Error::WorkerLost("opening the network")))
    }

    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        job: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Error::WorkerLost(what))?;
        let job = move || {
            // Ends with the operation, also when nobody waits for that any more.
            let _turn = turn;
            job(&inner)
        };
        tokio::task::spawn_blocking(job).await.unwrap_or(Err(Error::WorkerLost(what)))
    }

    /// Makes a network, or brings back what is missing of it.
    ///
    /// `Errors:` [`Error::SubnetOverlap`], [`Error::SubnetsExhausted`], [`Error::NetworkInUse`] when it exists with
    /// another subnet and something is attached to it.
    pub async fn ensure_network(&self, config: NetworkConfig) -> Result<Network> {
        self.run("a network", move |inner| inner.ensure_network(&config)).await
    }

    /// Says which parts of a network that spans machines this one gives addresses from.
    ///
    /// `Errors:` [`Error::NetworkNotFound`].
    pub async fn share_network(&self, id: &str, parts: Vec<Subnet>) -> Result<()> {
        let id = id.to_owned();
        self.run("a network", move |inner| inner.share_network(&mut inner.core(), &id, &parts)).await
    }

    /// Removes a network and its bridge. Removing what is not there is fine.
    ///
    /// `Errors:` [`Error::NetworkInUse`] while something is attached.
    pub async fn remove_network(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.run("a network", move |inner| inner.remove_network(&id)).await
    }

    /// Makes and pins a network namespace, with loopback up. Doing it again gives the same namespace.
    pub async fn create_namespace(&self, id: &str) -> Result<PathBuf> {
        let id = id.to_owned();
        self.run("a namespace", move |inner| inner.create_namespace(&id)).await
    }

    /// Lets go of a namespace; it ends with its last process.
    pub async fn remove_namespace(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.run("a namespace", move |inner| inner.remove_namespace(&id)).await
    }

    /// Path that [`Fabric::create_namespace`] gives.
    pub fn namespace_path(&self, id: &str) -> PathBuf {
        self.inner.namespace_path(id)
    }

    /// Puts a namespace on a network. The same owner on the same network gets the same answer again; what is missing of it
    /// is made.
    ///
    /// `Errors:` [`Error::NetworkNotFound`], [`Error::AddressTaken`], [`Error::AddressesExhausted`].
    pub async fn attach(&self, request: AttachRequest) -> Result<Attachment> {
        self.run("an attachment", move |inner| inner.attach(&request)).await
    }

    /// Takes an owner off one network and frees the address. Nothing to do is fine.
    pub async fn detach(&self, owner: &str, network: &str) -> Result<()> {
        let (owner, network) = (owner.to_owned(), network.to_owned());
        self.run("an attachment", move |inner| inner.detach(&owner, &network)).await
    }

    /// Takes an owner off all networks, and withdraws its published ports. Addresses, ports and all ways are free when it
    /// returns; the kernel may take some milliseconds more to delete the interfaces.
    pub async fn release(&self, owner: &str) -> Result<()> {
        let owner = owner.to_owned();
        let left = self.run("an owner", move |inner| inner.release(&owner)).await?;
        tokio::task::spawn_blocking(move || {
            if let Err(error) = attachments::delete_interfaces(&left) {
                tracing::warn!(error = %error, "an interface stays until the next start");
            }
        });
        Ok(())
    }

    /// Publishes ports of `target`, in place of what this owner had published before. All or nothing. A port of all
    /// addresses is published on those of IPv6 when the target has one.
    ///
    /// `Errors:` [`Error::PortTaken`], in Docker's words; [`Error::PortsExhausted`].
    pub async fn publish(
        &self,
        owner: &str,
        target: impl Into<Target>,
        ports: Vec<PortMapping>,
    ) -> Result<Vec<PortMapping>> {
        let (owner, target) = (owner.to_owned(), target.into());
        self.run("published ports", move |inner| inner.publish(&owner, target, &ports)).await
    }

    /// The published ports of an owner.
    pub async fn publication(&self, owner: &str) -> Result<Option<Publication>> {
        let owner = owner.to_owned();
        self.run("published ports", move |inner| Ok(inner.core().ports.of(&owner).cloned())).await
    }

    /// The sockets of an owner that lead from IPv6 to its IPv4 address ([`Target::carries6`]). Whoever carries has them open from then on; a
    /// fabric that was opened again has none of those. None are given since the owner is under security groups: who asked before must ask
    /// again once it carries, and stop then.
    pub async fn carried(&self, owner: &str) -> Result<Vec<CarriedPort>> {
        let owner = owner.to_owned();
        self.run("published ports", move |inner| inner.carried(&owner)).await
    }

    /// Notes that nobody carries for an owner any more: its ports are published on IPv4 alone until they are published anew.
    pub async fn forget_carried(&self, owner: &str) -> Result<()> {
        let owner = owner.to_owned();
        self.run("published ports", move |inner| inner.core().ports.forget_carried(&owner)).await
    }

    /// Withdraws the published ports of an owner.
    pub async fn unpublish(&self, owner: &str) -> Result<()> {
        let owner = owner.to_owned();
        self.run("published ports", move |inner| inner.unpublish(&owner)).await
    }

    /// Makes the kernel's service tables be exactly these rules, in one transaction that touches only what changed.
    /// Tracked UDP flows to endpoints that are gone are forgotten, so that clients reach the others.
    pub async fn sync_services(&self, rules: Vec<ServiceRule>) -> Result<()> {
        self.run("services", move |inner| inner.sync_services(&rules)).await
    }

    /// A subnet that overlaps neither our networks nor the machine's routes. It is not reserved.
    pub async fn free_subnet(&self) -> Result<Subnet> {
        self.run("a free subnet", |inner| inner.free_subnet(&inner.core())).await
    }

    /// What there is, once the change that is on its way is done.
    pub async fn list(&self) -> Result<Inventory> {
        self.run("what there is", |inner| Ok(inner.list())).await
    }

    /// Frees everything (addresses, ports, namespaces) of owners that are not in the list. Returns who went.
    pub async fn collect_garbage(&self, live: &HashSet<String>) -> Result<Vec<String>> {
        let live = live.clone();
        self.run("garbage", move |inner| inner.collect_garbage(&live)).await
    }

    /// Installs everything again from what is known. Established connections go on. Nobody needs to call it after a flush
    /// of the ruleset: the fabric watches its tables and brings them back by itself.
    pub async fn reconcile(&self) -> Result<()> {
        self.run("the network", Inner::reconcile).await
    }

    /// The kernel settings that were needed, and how they were found.
    pub fn kernel_settings(&self) -> Vec<KernelSetting> {
        self.inner.settings.clone()
    }

    /// Removes every bridge, interface, namespace, table and file of ours. The fabric is of no use afterwards.
    pub async fn destroy_all(&self) -> Result<()> {
        self.run("the network", Inner::destroy_all).await
    }
}
