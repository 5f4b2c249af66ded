//! What all guests of this machine share.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::VirtualMachine;
use hypervisor::disk::LayerStore;
use hypervisor::qemu::{Options, Qemu, probe};
use hypervisor::{Guest, Hypervisor};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, OwnedMutexGuard, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::metadata::{self, Entries, Entry};
use crate::context::Key;
use crate::error::{Error, Result};

/// User ids of guests lie above this one; no account has them. Units: user ids.
const FIRST_USER: u32 = 1_900_000_001;
/// How many there are.
const USERS: u32 = 90_000_000;
/// How often what is waited for is looked for.
const LOOK: Duration = Duration::from_millis(20);

struct Known {
    uid: String,
    guest: Option<Arc<dyn Guest>>,
    object: watch::Sender<Option<Arc<VirtualMachine>>>,
}

/// Shared by all guests.
pub struct Guests {
    data_dir: PathBuf,
    launcher: PathBuf,
    cgroup_root: String,
    hypervisor: OnceCell<Arc<dyn Hypervisor>>,
    layers: OnceCell<Arc<LayerStore>>,
    /// Answers DHCP.
    pub dhcp: network::dhcp::Server,
    entries: Entries,
    servers: tokio::sync::Mutex<HashMap<Ipv4Addr, JoinHandle<()>>>,
    known: Mutex<HashMap<Key, Known>>,
    /// Held while an image is fetched from another machine.
    pub fetching: tokio::sync::Mutex<()>,
    /// Who has the consoles of guests, by the guests' uids: a new session ends the one before.
    pub consoles: Mutex<HashMap<String, CancellationToken>>,
    /// Locks of disks, by the owners of their layers.
    disks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Disks that are being looked at, and whether they are to be looked at again.
    looks: Mutex<HashMap<String, bool>>,
    /// Held while a guest is given its id for vsock.
    pub vsock: Mutex<()>,
}

impl Guests {
    /// Nothing is opened before the first guest.
    pub fn new(data_dir: &Path, launcher: PathBuf, cgroup_root: String) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            launcher,
            cgroup_root,
            hypervisor: OnceCell::new(),
            layers: OnceCell::new(),
            dhcp: network::dhcp::Server::default(),
            entries: Entries::default(),
            servers: tokio::sync::Mutex::default(),
            known: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
            consoles: Mutex::default(),
            disks: Mutex::default(),
            looks: Mutex::default(),
            vsock: Mutex::default(),
        }
    }

    /// Waits until nobody else works on the disks of these owners. All that is needed is locked by one call, in one order for
    /// everybody, so that two never wait for each other.
    pub async fn lock_disks(&self, mut owners: Vec<String>) -> Vec<OwnedMutexGuard<()>> {
        owners.sort();
        owners.dedup();
        let locks: Vec<Arc<tokio::sync::Mutex<()>>> = {
            let mut all = self.disks.lock();
            // Those that nobody holds or waits for are forgotten.
            all.retain(|_, lock| Arc::strong_count(lock) > 1);
            owners.into_iter().map(|owner| all.entry(owner).or_default().clone()).collect()
        };
        let mut held = Vec::new();
        for lock in locks {
            held.push(lock.lock_owned().await);
        }
        held
    }

    /// Whether the caller is the one to look at a disk; whoever does will look again.
    pub fn begin_look(&self, uid: &str) -> bool {
        let mut looks = self.looks.lock();
        match looks.get_mut(uid) {
            Some(again) => {
                *again = true;
                false
            }
            None => {
                looks.insert(uid.to_owned(), false);
                true
            }
        }
    }

    /// Ends a look; whether somebody asked for another meanwhile.
    pub fn end_look(&self, uid: &str) -> bool {
        self.looks.lock().remove(uid).unwrap_or(false)
    }

    /// The hypervisor. Whether hardware assistance works is found out once per boot of the machine.
    pub async fn hypervisor(&self) -> Result<Arc<dyn Hypervisor>> {
        let opened = self.hypervisor.get_or_try_init(|| async {
            let acceleration = Some(self.acceleration().await);
            let options = Options { launcher: self.launcher.clone(), acceleration };
            Ok::<_, Error>(Qemu::open(options).await? as Arc<dyn Hypervisor>)
        });
        opened.await.cloned()
    }

    async fn acceleration(&self) -> hypervisor::Acceleration {
        let path = self.data_dir.join("guests").join("acceleration.json");
        let boot = crate::machine::line("/proc/sys/kernel/random/boot_id");
        let found = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<(String, _)>(&text).ok());
        if let Some((_, acceleration)) = found.filter(|(seen, _)| *seen == boot) {
            return acceleration;
        }
        let verdict = probe::run().await;
        tracing::info!(acceleration = %verdict.acceleration, reason = verdict.reason, "how guests run here");
        let text = serde_json::to_vec(&(boot, verdict.acceleration)).unwrap_or_default();
        let kept = std::fs::create_dir_all(self.data_dir.join("guests")).and_then(|()| std::fs::write(&path, text));
        if let Err(error) = kept {
            tracing::debug!(%error, "the verdict is not kept");
        }
        verdict.acceleration
    }

    /// The disks' layers.
    pub async fn layers(&self) -> Result<Arc<LayerStore>> {
        let directory = self.data_dir.join("disks").join("layers");
        let opened = self.layers.get_or_try_init(|| async {
            let opened = tokio::task::spawn_blocking(move || LayerStore::open(&directory)).await;
            Ok::<_, Error>(Arc::new(opened.map_err(|_| Error::Timeout("opening the disks"))??))
        });
        opened.await.cloned()
    }

    /// Files of a guest that stay over its runs.
    pub fn directory(&self, uid: &str) -> PathBuf {
        self.data_dir.join("guests").join(uid)
    }

    /// Sockets of a guest's run.
    pub fn run_dir(&self, uid: &str) -> PathBuf {
        self.data_dir.join("run").join("guests").join(uid)
    }

    /// Kernel and RAM disk of a disk image.
    pub fn image_directory(&self, uid: &str) -> PathBuf {
        self.data_dir.join("disks").join("images").join(uid)
    }

    /// Copies of disks that wait to be carried away.
    pub fn export_directory(&self, uid: &str) -> PathBuf {
        self.data_dir.join("exports").join(uid)
    }

    /// What is fetched for a disk image.
    pub fn fetch_directory(&self, uid: &str) -> PathBuf {
        self.data_dir.join("fetched").join(uid)
    }

    /// What is uploaded.
    pub fn upload_directory(&self, name: &str) -> PathBuf {
        self.data_dir.join("uploads").join(name)
    }

    /// Control group of a guest.
    pub fn control_group(&self, uid: &str) -> Result<runtime::cgroup::Cgroup> {
        let path = format!("{}/guest-{uid}", self.cgroup_root.trim_end_matches('/'));
        Ok(runtime::cgroup::Cgroup::new(runtime::cgroup::Hierarchies::of_this_machine()?, &path))
    }

    /// The user that a guest's hypervisor becomes: each its own, the same at each start.
    pub fn user_id(uid: &str) -> u32 {
        FIRST_USER + hash(uid) % USERS
    }

    /// Lets a guest read its metadata; a server is started on its network's gateway if there is none.
    pub async fn tell(&self, gateway: Ipv4Addr, address: Ipv4Addr, entry: Entry) -> Result<()> {
        self.entries.lock().insert((gateway, address), Arc::new(entry));
        let mut servers = self.servers.lock().await;
        if servers.get(&gateway).is_none_or(JoinHandle::is_finished) {
            let listen = SocketAddrV4::new(gateway, network::METADATA_PORT);
            let task = metadata::listen(listen, self.entries.clone()).await;
            servers.insert(gateway, task.map_err(Error::io("serve metadata on", listen.to_string()))?);
        }
        Ok(())
    }

    /// Has the guests on a network told what it says now, when they ask next.
    pub fn replan(&self, network: &network::Network) {
        self.dhcp.replan(&network.bridge, &network.plan);
        for entry in self.entries.lock().values_mut() {
            if entry.links.iter().any(|link| link.network_id == network.id) {
                let links = Arc::make_mut(entry).links.iter_mut();
                links.filter(|link| link.network_id == network.id).for_each(|link| link.plan.clone_from(&network.plan));
            }
        }
    }

    /// Stops telling.
    pub fn forget(&self, gateway: Ipv4Addr, address: Ipv4Addr) {
        self.entries.lock().remove(&(gateway, address));
    }

    /// Notes a driver; what it is to follow.
    pub fn add(
        &self,
        key: Key,
        uid: String,
        object: Arc<VirtualMachine>,
    ) -> watch::Receiver<Option<Arc<VirtualMachine>>> {
        let (sender, receiver) = watch::channel(Some(object));
        self.known.lock().insert(key, Known { uid, guest: None, object: sender });
        receiver
    }

    /// Whether this very object has a driver.
    pub fn knows(&self, key: &Key, uid: &str) -> bool {
        self.known.lock().get(key).is_some_and(|known| known.uid == uid)
    }

    /// Gives a driver the newest object; `None` when it is gone.
    pub fn set(&self, key: &Key, object: Option<Arc<VirtualMachine>>) {
        if let Some(known) = self.known.lock().get(key) {
            known.object.send_replace(object);
        }
    }

    /// Forgets a driver that ended.
    pub fn remove(&self, key: &Key, uid: &str) {
        let mut known = self.known.lock();
        if known.get(key).is_some_and(|known| known.uid == uid) {
            known.remove(key);
        }
    }

    /// The places of all.
    pub fn keys(&self) -> Vec<Key> {
        self.known.lock().keys().cloned().collect()
    }

    /// The uids of all.
    pub fn uids(&self) -> Vec<String> {
        self.known.lock().values().map(|known| known.uid.clone()).collect()
    }

    /// The uids of all that have files here, whether or not they have drivers yet.
    pub fn recorded(&self) -> Vec<String> {
        let found = std::fs::read_dir(self.data_dir.join("guests")).into_iter().flatten().flatten();
        found.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Notes what runs of a driver's machine.
    pub fn runs(&self, key: &Key, uid: &str, guest: Option<Arc<dyn Guest>>) {
        if let Some(known) = self.known.lock().get_mut(key).filter(|known| known.uid == uid) {
            known.guest = guest;
        }
    }

    /// The guest of one, when it runs.
    pub fn guest(&self, key: &Key) -> Option<Arc<dyn Guest>> {
        self.known.lock().get(key).and_then(|known| known.guest.clone())
    }

    /// The guest of one when it runs, or soon does: what has just come from another machine is bound here before its driver has
    /// found it. `None` after `patience`.
    pub async fn until_runs(&self, key: &Key, patience: Duration) -> Option<Arc<dyn Guest>> {
        until(|| self.guest(key), patience).await
    }

    /// The uid of one.
    pub fn uid(&self, key: &Key) -> Option<String> {
        self.known.lock().get(key).map(|known| known.uid.clone())
    }
}

/// A number for a uid, the same one on every machine. `Source:` FNV-1a
pub fn hash(uid: &str) -> u32 {
    uid.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What is looked for, once it is there; `None` after `patience`.
pub async fn until<T>(look: impl Fn() -> Option<T>, patience: Duration) -> Option<T> {
    let found = async {
        loop {
            match look() {
                Some(found) => return found,
                None => tokio::time::sleep(LOOK).await,
            }
        }
    };
    tokio::time::timeout(patience, found).await.ok()
}

/// Writes a small record; it is there whole, and durable, when this returns.
pub fn write_durably(path: &Path, record: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_vec(record).map_err(std::io::Error::from).map_err(Error::io("write", path))?;
    write_bytes_durably(path, &text, 0o666)
}

/// The same of bytes as they are. `mode`: of the file, less the process' mask.
pub fn write_bytes_durably(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let directory = path.parent().unwrap_or(path);
    let written = || -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        let part = path.with_extension("part");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&part)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&part, path)?;
        std::fs::File::open(directory)?.sync_all()
    };
    written().map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_comes_in_time_is_found_and_what_does_not_is_not() {
        let patience = Duration::from_secs(10);
        let begun = tokio::time::Instant::now();
        let after = |wait: Duration| move || (begun.elapsed() >= wait).then_some(7);
        assert_eq!(until(after(patience / 2), patience).await, Some(7));
        assert!(begun.elapsed() < patience);
        assert_eq!(until(after(patience * 4), patience).await, None);
    }

    #[tokio::test]
    async fn a_disk_is_one_workers_at_a_time_and_all_are_locked_in_one_order() {
        let guests = Arc::new(Guests::new(Path::new("/nowhere"), PathBuf::new(), String::new()));
        let held = guests.lock_disks(vec!["a".into(), "b".into()]).await;
        let waiting = tokio::spawn({
            let guests = guests.clone();
            async move { guests.lock_disks(vec!["b".into(), "c".into(), "a".into()]).await.len() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert_eq!(guests.lock_disks(vec!["d".into(), "d".into()]).await.len(), 1);
        drop(held);
        assert_eq!(waiting.await.unwrap(), 3);
        drop(guests.lock_disks(Vec::new()).await);
        assert!(guests.disks.lock().is_empty(), "locks that nobody has are forgotten");
    }
}
