//! [`Fabric`]: the state of one machine's network, and every operation on it.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::subnet::Subnet;
use crate::types::*;

/// The network of one machine. Methods are safe to call at once from many tasks, and idempotent.
pub struct Fabric {
    options: FabricOptions,
}

/// The bridge that serves a network: `nuee0` for the default one, `nuee-<8 hex digits>` otherwise.
pub fn bridge_name(network: &str) -> String {
    if network == DEFAULT_NETWORK { DEFAULT_BRIDGE.to_owned() } else { format!("nuee-{:08x}", fnv(network)) }
}

/// FNV-1a, folded to 32 bits: short names for long ids. Not for security.
fn fnv(text: &str) -> u32 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    ((hash >> 32) ^ (hash & 0xffff_ffff)) as u32
}

fn not_yet<T>(what: &str) -> Result<T> {
    Err(Error::Invalid(format!("{what} is not supported yet")))
}

impl Fabric {
    /// Opens the fabric: reads what is on disk, sets the kernel's switches, repairs what is missing.
    pub async fn open(options: FabricOptions) -> Result<Arc<Fabric>> {
        Ok(Arc::new(Fabric { options }))
    }

    /// Makes a network, or brings back what is missing of it.
    pub async fn ensure_network(&self, config: NetworkConfig) -> Result<Network> {
        not_yet(&config.id)
    }

    /// Removes a network and its bridge. Removing what is not there is fine.
    ///
    /// `Errors:` [`Error::NetworkInUse`] while something is attached.
    pub async fn remove_network(&self, id: &str) -> Result<()> {
        not_yet(id)
    }

    /// Makes and pins a network namespace, with loopback up. Doing it again gives the same namespace.
    pub async fn create_namespace(&self, id: &str) -> Result<PathBuf> {
        not_yet(id)
    }

    /// Lets go of a namespace; it ends with its last process.
    pub async fn remove_namespace(&self, id: &str) -> Result<()> {
        not_yet(id)
    }

    /// Path that [`Fabric::create_namespace`] gives.
    pub fn namespace_path(&self, id: &str) -> PathBuf {
        self.options.run_dir.join("netns").join(id)
    }

    /// Puts a namespace on a network.
    pub async fn attach(&self, request: AttachRequest) -> Result<Attachment> {
        not_yet(&request.owner)
    }

    /// Takes an owner off one network and frees the address. Nothing to do is fine.
    pub async fn detach(&self, owner: &str, network: &str) -> Result<()> {
        not_yet(&format!("{owner}{network}"))
    }

    /// Takes an owner off all networks, and withdraws its published ports.
    pub async fn release(&self, owner: &str) -> Result<()> {
        not_yet(owner)
    }

    /// Publishes ports of `target`; replaces what this owner had published before. All or nothing.
    ///
    /// `Errors:` [`Error::PortTaken`] in Docker's words.
    pub async fn publish(&self, owner: &str, target: std::net::Ipv4Addr, ports: Vec<PortMapping>) -> Result<Vec<PortMapping>> {
        not_yet(&format!("{owner}{target}{ports:?}"))
    }

    /// Withdraws the published ports of an owner.
    pub async fn unpublish(&self, owner: &str) -> Result<()> {
        not_yet(owner)
    }

    /// Makes the kernel's service tables be exactly these rules, in one transaction, touching only what changed.
    pub async fn sync_services(&self, rules: Vec<ServiceRule>) -> Result<()> {
        not_yet(&format!("{}", rules.len()))
    }

    /// A subnet that overlaps neither our networks nor the machine's routes.
    pub async fn free_subnet(&self) -> Result<Subnet> {
        not_yet("free_subnet")
    }

    /// What there is.
    pub fn list(&self) -> Inventory {
        Inventory::default()
    }

    /// Frees everything (addresses, ports, namespaces) of owners that are not in the list. Returns who went.
    pub async fn collect_garbage(&self, live: &HashSet<String>) -> Result<Vec<String>> {
        not_yet(&format!("{}", live.len()))
    }

    /// Installs everything again from what is known: after a flush of the ruleset, or on doubt. Established connections
    /// go on.
    pub async fn reconcile(&self) -> Result<()> {
        not_yet("reconcile")
    }

    /// The kernel settings that were needed, and how they were found.
    pub fn kernel_settings(&self) -> Vec<KernelSetting> {
        Vec::new()
    }

    /// Removes every bridge, interface, namespace, table and file of ours.
    pub async fn destroy_all(&self) -> Result<()> {
        not_yet("destroy_all")
    }
}
