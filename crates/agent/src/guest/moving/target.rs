//! Takes a guest in: makes its disk and its place on the network, starts a hypervisor that waits, and lets disk and memory flow into
//! it. The guest runs when the machine's object is bound here, by [`super::super::driver`], and not before.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use api::interface::INTERFACES_MAX;
use api::migration::{Act, Migration, MigrationPhase, Seen, at_word};
use hypervisor::{Guest, Start};
use kube::Api;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::Instant;

use super::carry::{disks_socket, pump, pumped};
use super::handover::answered;
use super::post_copy::{self, Arrival, Ongoing};
use super::wire::{self, Answer, Channel, Decided, Hello, Prepare, SentVolume};
use super::{Incoming, marker};
use crate::context::{Context, Key, is_path_safe};
use crate::error::{Error, Result, chain};
use crate::guest::disks::{self, attach, volumes};
use crate::guest::interfaces::{self, Nic, Place, attach as nics, serve};
use crate::guest::shared::{until, write_durably};
use crate::guest::start::{self, ROOT_DISK};
use crate::guest::{firmware, image_copies};

/// How long the source may take to open the connections for memory and disk.
const CHANNELS_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a machine that was sent away may take to be gone from here before it comes again.
const GONE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the source may take to send what a guest's firmware remembers.
const VARIABLES_TIMEOUT: Duration = Duration::from_secs(30);
/// How long, and how much, a source may send on that was refused.
const REST_TIMEOUT: Duration = Duration::from_secs(10);
const REST_BYTES_MAX: u64 = 2 << 30;
/// Largest disk. Units: bytes.
const DISK_BYTES_MAX: u64 = 1 << 46;
/// Time between two questions whether a guest stays.
const SETTLE_LOOK: Duration = Duration::from_millis(200);
/// How long the store may not say that a guest is this machine's which runs here at its source's word. That source's write was acknowledged
/// before, so what is not seen after this was never written.
const WORD_TIMEOUT: Duration = Duration::from_secs(60);
/// Most addresses of the source's neighbours that are announced.
const NEIGHBOURS_MAX: usize = 4096;

/// The connections of a migration that wait for whoever takes them up.
struct Waiting {
    memory: Option<oneshot::Sender<Box<dyn node::Duplex>>>,
    /// By the disk's name.
    disks: HashMap<String, oneshot::Sender<Box<dyn node::Duplex>>>,
}

impl Waiting {
    fn take(&mut self, channel: &Channel) -> Option<oneshot::Sender<Box<dyn node::Duplex>>> {
        match channel {
            Channel::Memory => self.memory.take(),
            Channel::Disk => self.disks.remove(ROOT_DISK),
            Channel::Volume(name) => self.disks.remove(name),
            Channel::Control | Channel::Image => None,
        }
    }
}

/// A guest that is all here.
struct Arrived {
    /// Uid of the migration that brought it.
    migration: String,
    guest: Arc<dyn Guest>,
}

/// Migrations that come in.
#[derive(Default)]
pub struct Receptions {
    waiting: Mutex<HashMap<String, Waiting>>,
    /// Guests that wait to be decided for, by their uids.
    arrived: Mutex<HashMap<String, Arrived>>,
    /// Guests that come by post-copy: until all is here they are nobody else's to look after.
    pub coming: Ongoing,
}

impl Receptions {
    /// Has a guest run that is all here and is this machine's now, unless that was done. Both who drives it and who talks to its source
    /// hear of the decision, and the first of them does it. The connection to its hypervisor is free then: it talks to one at a time.
    ///
    /// Errors: those of the hypervisor; nothing else is done about the guest then.
    pub async fn run(&self, uid: &str, paused: bool) -> Result<()> {
        let arrived = self.arrived.lock().remove(uid).map(|arrived| arrived.guest);
        match arrived.filter(|_| !paused && at_word(Seen::Received, false) == Act::Run) {
            Some(guest) => Ok(guest.resume().await?),
            None => Ok(()),
        }
    }

    fn has(&self, uid: &str, migration: &str) -> bool {
        self.arrived.lock().get(uid).is_some_and(|arrived| arrived.migration == migration)
    }

    /// Forgets a guest that this migration brought; one that a later migration brings is that one's.
    fn forget(&self, uid: &str, migration: &str) {
        let mut arrived = self.arrived.lock();
        if arrived.get(uid).is_some_and(|arrived| arrived.migration == migration) {
            arrived.remove(uid);
        }
    }
}

/// Serves one connection from another machine; `from` is that machine's name by its certificate, or `None` for the pool's first one.
pub async fn take_in(context: &Arc<Context>, from: Option<&str>, mut connection: Box<dyn node::Duplex>) -> Result<()> {
    let hello: Hello = wire::read(&mut connection).await?;
    if hello.channel == Channel::Image {
        return image_copies::give(context, from, &hello, connection).await;
    }
    let migration = match check(context, from, &hello).await {
        Ok(migration) => migration,
        Err(error) if hello.channel == Channel::Control => return refuse(&mut connection, error).await,
        Err(error) => return Err(error),
    };
    if hello.channel == Channel::Control {
        return receive(context, from, &hello, &migration, connection).await;
    }
    let place = context.receptions.waiting.lock().get_mut(&hello.uid).and_then(|waiting| waiting.take(&hello.channel));
    let place = place.ok_or_else(|| Error::Invalid("nobody waits for this connection".into()))?;
    place.send(connection).map_err(|_| Error::Invalid("nobody waits for this connection any more".into()))
}

/// The migration, if the store knows of such a one, from that machine to this one.
async fn check(context: &Context, from: Option<&str>, hello: &Hello) -> Result<Migration> {
    let migrations: Api<Migration> = Api::namespaced(context.client.clone(), &hello.namespace);
    let asked = answered(migrations.get_opt(&hello.name), "reading the migration").await?;
    let found = asked.map_err(Error::api("read the migration"))?;
    let known = found.filter(|found| {
        let status = found.status.clone().unwrap_or_default();
        found.metadata.uid.as_deref() == Some(hello.uid.as_str())
            && status.target_node == context.node_name
            && from.is_none_or(|from| from == status.source_node)
            && matches!(status.phase, MigrationPhase::Scheduled | MigrationPhase::Copying)
    });
    known.ok_or_else(|| Error::Invalid("there is no such migration to this machine".into()))
}

/// Whether the machine that is sent is the one that the pool sends. What is here under its uid would be taken for left over.
fn is_meant(migration: &Migration, sent: &api::VirtualMachine) -> bool {
    let uid = migration.status.as_ref().map(|status| status.machine_uid.as_str()).filter(|uid| !uid.is_empty());
    sent.metadata.namespace == migration.metadata.namespace
        && sent.metadata.name.as_deref() == Some(migration.spec.virtual_machine.as_str())
        && uid.is_some_and(|uid| sent.metadata.uid.as_deref() == Some(uid))
}

/// Talks to the source until the guest is here and decided for, or is not to come.
async fn receive(
    context: &Arc<Context>,
    from: Option<&str>,
    hello: &Hello,
    migration: &Migration,
    mut control: Box<dyn node::Duplex>,
) -> Result<()> {
    let prepare: Prepare = wire::read(&mut control).await?;
    let uid = prepare.object.metadata.uid.clone().unwrap_or_default();
    let key = Key::of(prepare.object.as_ref());
    let refused = if !is_meant(migration, &prepare.object) {
        Some("another machine was to come")
    } else if !is_path_safe(&uid) || !is_path_safe(&prepare.image_uid) || !is_gone(context, &key).await {
        Some("such a machine is here")
    } else {
        None
    };
    if let Some(why) = refused {
        return refuse(&mut control, Error::Invalid(why.into())).await;
    }
    let coming = prepare.post_copy.then(|| context.receptions.coming.begin(&uid));
    let received = take(context, from, hello, &prepare, &uid, &mut control).await;
    context.receptions.waiting.lock().remove(&hello.uid);
    let incoming = incoming(hello, &prepare);
    match received {
        Ok((_, guest, Arrival::Late)) => {
            tracing::info!(vm = key.name, "all of a guest that runs here has come");
            // A hypervisor talks to one at a time.
            drop((guest, coming));
            settle(context, &uid, &incoming, Some(Instant::now())).await
        }
        Ok((places, guest, Arrival::Whole)) => {
            drop(coming);
            let arrived = Arrived { migration: hello.uid.clone(), guest };
            context.receptions.arrived.lock().insert(uid.clone(), arrived);
            // All of it is here, so that only the store says whether it stays, whether or not the source hears of it.
            if let Err(error) = wire::write(&mut control, &Answer::Received).await {
                tracing::warn!(vm = key.name, error = %chain(&error), "the source does not hear that all of a guest is here");
            }
            tracing::info!(vm = key.name, "all of a guest is here");
            let announced = announce_all(context, &key, &places, &prepare.neighbours);
            let ((), told) = tokio::join!(announced, until_left(context, &key, &uid, &hello.uid, &mut control));
            context.receptions.forget(&uid, &hello.uid);
            settle(context, &uid, &incoming, told).await
        }
        Err(error) if coming.is_some() => {
            let error = super::told(context, &uid, error);
            tracing::warn!(vm = key.name, error = %chain(&error), "not all of a guest has come");
            // It may be this machine's by now, with all that is on its disks; its memory is of no use any more.
            let ended = end_own(context, &uid, &incoming).await;
            drop(coming);
            let (settled, refused) = tokio::join!(settle(context, &uid, &incoming, None), refuse(&mut control, error));
            ended?;
            settled.and(refused)
        }
        Err(error) => {
            let error = super::told(context, &uid, error);
            // What a later migration brings, and a guest that runs here by now, are none of its business.
            let cleared = clear_own(context, &uid, &key, &incoming);
            let (cleared, refused) = tokio::join!(cleared, refuse(&mut control, error));
            cleared.and(refused)
        }
    }
}

/// Waits until the source lets go, or says that the store has decided; since when it has said so. At its word the guest runs.
async fn until_left(
    context: &Context,
    key: &Key,
    uid: &str,
    migration: &str,
    control: &mut Box<dyn node::Duplex>,
) -> Option<Instant> {
    let Decided { paused } = wire::read::<Decided>(control).await.ok()?;
    let run = async {
        // Whoever drives it may have been the first.
        if context.receptions.has(uid, migration) {
            context.receptions.run(uid, paused).await?;
        }
        wire::write(control, &Answer::Runs).await
    };
    if let Err(error) = run.await {
        tracing::warn!(vm = key.name, error = %chain(&error), "a guest that came does not run at its source's word");
    }
    Some(Instant::now())
}

/// Tells why it does not come. What the source still sends is taken, so that it reads why and not that the connection broke.
async fn refuse(control: &mut Box<dyn node::Duplex>, error: Error) -> Result<()> {
    wire::write(control, &Answer::Refused(chain(&error))).await?;
    let rest = async { tokio::io::copy(&mut control.take(REST_BYTES_MAX), &mut tokio::io::sink()).await };
    let _ = tokio::time::timeout(REST_TIMEOUT, rest).await;
    Err(error)
}

/// Whether nothing is here of a machine that comes, or soon is not: one that was just sent away may come back at once.
async fn is_gone(context: &Context, key: &Key) -> bool {
    until(|| context.guests.uid(key).is_none().then_some(()), GONE_TIMEOUT).await.is_some()
}

/// Whether what is here of a guest is what this migration has brought.
fn is_marked(context: &Context, uid: &str, incoming: &Incoming) -> bool {
    let text = std::fs::read(marker(context, uid)).ok();
    let found: Option<Incoming> = text.and_then(|text| serde_json::from_slice(&text).ok());
    found.as_ref() == Some(incoming)
}

fn incoming(hello: &Hello, prepare: &Prepare) -> Incoming {
    Incoming {
        namespace: hello.namespace.clone(),
        machine: prepare.object.metadata.name.clone().unwrap_or_default(),
        migration: hello.name.clone(),
        migration_uid: hello.uid.clone(),
    }
}

/// Looks after a guest that was on its way here when the last agent ended.
pub async fn settle_unsettled(context: &Arc<Context>, uid: &str, incoming: &Incoming) {
    tracing::info!(vm = incoming.machine, uid, "a guest was on its way here when the last agent ended");
    if let Err(error) = settle(context, uid, incoming, None).await {
        tracing::warn!(vm = incoming.machine, error = %chain(&error), "a guest that does not stay is not cleared");
    }
}

/// The source is gone, or has said that it is decided. Whether the guest stays is what the store says; a machine that is bound here is its
/// driver's business. Until its migration is over the store may decide for this machine, so the guest is kept. `told`: since when it runs at
/// its source's word, which is looked after.
async fn settle(context: &Arc<Context>, uid: &str, incoming: &Incoming, told: Option<Instant>) -> Result<()> {
    let key = Key { namespace: incoming.namespace.clone(), name: incoming.machine.clone() };
    while context.guests.uid(&key).as_deref() != Some(uid) {
        // In this order: what is not bound here after its migration was over never will be by it.
        let read =
            async { Ok::<_, Error>((is_under_way(context, incoming).await?, is_bound(context, &key, uid).await?)) };
        match read.await {
            Ok((_, true)) => return Ok(()),
            Ok((false, false)) => return clear_own(context, uid, &key, incoming).await,
            Ok((true, false)) if told.is_some_and(|at| at.elapsed() > WORD_TIMEOUT) => {
                tracing::warn!(vm = key.name, "the store does not know of the decision that a guest's source told of");
                return clear_own(context, uid, &key, incoming).await;
            }
            Ok((true, false)) => {}
            Err(error) => tracing::warn!(vm = key.name, error = %chain(&error), "cannot learn whose the guest is"),
        }
        tokio::time::sleep(SETTLE_LOOK).await;
    }
    Ok(())
}

/// Waits until nobody else makes or clears what is here of a guest that comes. The locks of its disks are others, which are taken within.
async fn lock_reception(context: &Context, uid: &str) -> Vec<OwnedMutexGuard<()>> {
    // No owner of a disk has such a name.
    context.guests.lock_disks(vec![format!("{uid}/incoming")]).await
}

/// Clears what this migration has brought. What is not marked as its own ran here, and was cleared by its driver; or is what a later
/// migration brings.
async fn clear_own(context: &Arc<Context>, uid: &str, key: &Key, incoming: &Incoming) -> Result<()> {
    let _locks = lock_reception(context, uid).await;
    if is_marked(context, uid, incoming) { clear(context, uid, key).await } else { Ok(()) }
}

/// Ends the hypervisor of what this migration has brought, and leaves all else of it. A later one may have begun meanwhile.
async fn end_own(context: &Context, uid: &str, incoming: &Incoming) -> Result<()> {
    let _locks = lock_reception(context, uid).await;
    if is_marked(context, uid, incoming) {
        hypervisor::qemu::driver::kill(&context.guests.run_dir(uid)).await?;
    }
    Ok(())
}

/// What is not shown to this machine is neither bound to it nor on its way to it.
fn shown<T>(found: kube::Result<Option<T>>, action: &'static str) -> Result<Option<T>> {
    match found {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
        other => other.map_err(Error::api(action)),
    }
}

async fn is_under_way(context: &Context, incoming: &Incoming) -> Result<bool> {
    let migrations: Api<Migration> = Api::namespaced(context.client.clone(), &incoming.namespace);
    let asked = answered(migrations.get_opt(&incoming.migration), "reading the migration");
    let found = shown(asked.await?, "read the migration")?;
    let found = found.filter(|found| found.metadata.uid.as_deref() == Some(incoming.migration_uid.as_str()));
    Ok(found.is_some_and(|found| !found.status.unwrap_or_default().phase.is_final()))
}

async fn is_bound(context: &Context, key: &Key, uid: &str) -> Result<bool> {
    let machines: Api<api::VirtualMachine> = Api::namespaced(context.client.clone(), &key.namespace);
    let found = shown(answered(machines.get_opt(&key.name), "reading the machine").await?, "read the machine")?;
    Ok(found.is_some_and(|machine| {
        machine.metadata.uid.as_deref() == Some(uid)
            && machine.spec.node_name.as_deref() == Some(context.node_name.as_str())
    }))
}

/// Takes away a guest that is not to be here. The caller holds the lock of its reception.
async fn clear(context: &Arc<Context>, uid: &str, key: &Key) -> Result<()> {
    tracing::info!(vm = key.name, uid, "a guest that was on its way here is not to stay");
    let plugged = disks::load(context, uid)?;
    let run_dir = context.guests.run_dir(uid);
    hypervisor::qemu::driver::kill(&run_dir).await?;
    for directory in [run_dir, context.guests.directory(uid)] {
        crate::directories::remove(&directory)?;
    }
    serve::leave_all(context, uid).await?;
    let (layers, owner) = (context.guests.layers().await?, uid.to_owned());
    let released = tokio::task::spawn_blocking(move || layers.release(&owner)).await;
    released.map_err(|_| Error::Timeout("releasing a disk"))??;
    for one in &plugged {
        volumes::drop_stray(context, &key.namespace, one).await;
    }
    Ok(context.guests.control_group(uid)?.remove()?)
}

/// What was made for a guest that comes.
struct Made {
    guest: Arc<dyn Guest>,
    seats: Vec<Place>,
    /// Names of its disks.
    names: Vec<String>,
}

/// Makes its disks, its places on the network and a hypervisor that waits. `variables`: what its firmware remembers.
async fn make(
    context: &Arc<Context>,
    from: Option<&str>,
    hello: &Hello,
    prepare: &Prepare,
    uid: &str,
    variables: Option<Vec<u8>>,
) -> Result<Made> {
    let key = Key::of(prepare.object.as_ref());
    let _locks = lock_reception(context, uid).await;
    // It may have been called off, and another begun, while this one waited or had its files sent.
    check(context, from, hello).await?;
    // What another attempt left.
    clear(context, uid, &key).await?;
    let (layers, owner, bytes) = (context.guests.layers().await?, uid.to_owned(), prepare.disk_bytes);
    if bytes > DISK_BYTES_MAX {
        return Err(Error::Invalid(format!("a disk of {bytes} bytes")));
    }
    prepare.launched.check_moves()?;
    let directory = context.guests.directory(uid);
    std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    // First, since only what is marked as its own is cleared when it fails.
    if let Err(error) = write_durably(&marker(context, uid), &incoming(hello, prepare)) {
        crate::directories::remove(&directory)?;
        return Err(error);
    }
    if let Some(variables) = variables {
        firmware::remember(context, uid, &variables)?;
    }
    if prepare.post_copy {
        post_copy::begin(context, uid)?;
    }
    let made = tokio::task::spawn_blocking(move || layers.create(None, Some(bytes), &owner)).await;
    made.map_err(|_| Error::Timeout("making a disk"))??;
    let disks = make_volumes(context, &key, uid, prepare).await?;
    let names = std::iter::once(ROOT_DISK.to_owned()).chain(disks.iter().map(|disk| disk.name.clone())).collect();
    if !prepare.interfaces.is_empty() {
        check_interfaces(&prepare.interfaces)?;
        interfaces::save(context, uid, &prepare.interfaces)?;
    }
    let seats = nics::rejoin(context, &prepare.object, uid, None).await?;
    let launched = &prepare.launched;
    let size = start::Size {
        cpus: launched.cpus,
        // It bounds the hypervisor, which is launched as it was before: what was plugged in comes along.
        memory_bytes: launched.memory_max.max(launched.memory_bytes),
        memory_max: launched.memory_max,
        ..start::Size::default()
    };
    let (like, how) = (Some(launched), Start::Receive { post_copy: prepare.post_copy });
    let guest = start::start(context, &prepare.object, uid, &size, &seats, how, like, disks).await?;
    attach::bound(context, &key, uid, &guest).await?;
    Ok(Made { guest, seats, names })
}

/// Takes all of a guest in. What is here of it on an error is for the caller to clear.
async fn take(
    context: &Arc<Context>,
    from: Option<&str>,
    hello: &Hello,
    prepare: &Prepare,
    uid: &str,
    control: &mut Box<dyn node::Duplex>,
) -> Result<(Vec<Place>, Arc<dyn Guest>, Arrival)> {
    let variables = take_files(context, prepare, control).await?;
    let Made { guest, seats, names } = make(context, from, hello, prepare, uid, variables).await?;
    let (memory_place, memory) = oneshot::channel();
    let (mut places, mut connections) = (HashMap::new(), Vec::new());
    for name in &names {
        let (place, connection) = oneshot::channel();
        places.insert(name.clone(), place);
        connections.push(connection);
    }
    let waiting = Waiting { memory: Some(memory_place), disks: places };
    context.receptions.waiting.lock().insert(hello.uid.clone(), waiting);
    wire::write(control, &Answer::Ready).await?;
    let all = async { tokio::try_join!(memory, futures::future::try_join_all(connections)) };
    let mut byte = [0];
    let all = tokio::select! {
        all = tokio::time::timeout(CHANNELS_TIMEOUT, all) => all,
        _ = control.read(&mut byte) => return Err(Error::Invalid("the source gave it up".into())),
    };
    let (memory, connections) = all
        .map_err(|_| Error::Timeout("the connections for memory and disk"))?
        .map_err(|_| Error::Invalid("another attempt took its place".into()))?;
    let (run_dir, post_copy) = (context.guests.run_dir(uid), prepare.post_copy);
    let (listener, own) = disks_socket(&run_dir, connections.len())?;
    guest.receive(hypervisor::Incoming { memory: pumped(memory)?, disks: listener, names, post_copy }).await?;
    for (own, connection) in own.into_iter().zip(connections) {
        pump(own, connection);
    }
    if post_copy {
        let key = Key::of(prepare.object.as_ref());
        let announced = announce_all(context, &key, &seats, &prepare.neighbours);
        let arrival = post_copy::arrive(context, uid, &guest, control, announced).await?;
        return Ok((seats, guest, arrival));
    }
    arrive(context, &guest, control).await?;
    Ok((seats, guest, Arrival::Whole))
}

/// Waits until everything is here, unless the source says or does something else meanwhile.
async fn arrive(context: &Context, guest: &Arc<dyn Guest>, control: &mut Box<dyn node::Duplex>) -> Result<()> {
    let mut byte = [0];
    tokio::select! {
        received = guest.received() => Ok(received?),
        _ = control.read(&mut byte) => Err(Error::Invalid("the source gave it up".into())),
        () = context.stop.cancelled() => Err(Error::Invalid("this machine's agent ends".into())),
    }
}

async fn announce_all(context: &Context, key: &Key, places: &[Place], neighbours: &[Ipv4Addr]) {
    for place in places {
        if let Err(error) = announce(context, &place.network, neighbours).await {
            tracing::warn!(vm = key.name, error = %chain(&error), "the guest may look for neighbours where they were");
        }
    }
}

/// The guest may know the source's neighbours by their own hardware addresses; here this machine answers for them.
async fn announce(context: &Context, network: &network::Network, neighbours: &[Ipv4Addr]) -> Result<()> {
    let own = neighbours.iter().copied().filter(|address| network.subnet.contains(*address));
    let elsewhere: Vec<Ipv4Addr> = own.take(NEIGHBOURS_MAX).collect();
    Ok(context.fabric.announce(&network.id, elsewhere).await?)
}

/// Makes the disks of the machine's volumes, empty, where they are in the guest. The record comes first: what is recorded nobody takes for
/// left over.
async fn make_volumes(
    context: &Arc<Context>,
    key: &Key,
    uid: &str,
    prepare: &Prepare,
) -> Result<Vec<hypervisor::Disk>> {
    let plugged: Vec<disks::Plugged> = prepare.volumes.iter().map(|one| one.plugged.clone()).collect();
    if plugged.is_empty() {
        return Ok(Vec::new());
    }
    check_volumes(context, key, uid, prepare).await?;
    let _locks = context.guests.lock_disks(plugged.iter().map(|one| one.uid.clone()).collect()).await;
    disks::save(context, uid, &plugged)?;
    let layers = context.guests.layers().await?;
    let wanted: Vec<(String, u64)> = prepare.volumes.iter().map(|one| (one.plugged.uid.clone(), one.bytes)).collect();
    disks::blocking(move || {
        wanted.iter().try_for_each(|(owner, bytes)| {
            layers.release(owner)?;
            layers.create(None, Some(*bytes), owner).map(drop)
        })
    })
    .await?;
    let mut made = Vec::new();
    for one in &plugged {
        made.push(disks::disk(context, one).await?);
    }
    Ok(made)
}

/// Whether these can be a machine's interfaces, whatever that host says. Whose a port is, its object tells.
fn check_interfaces(told: &[Nic]) -> Result<()> {
    let mut slots = HashSet::new();
    let sound = |nic: &Nic| (nic.slot == 0 || interfaces::SLOTS.contains(&nic.slot)) && slots.insert(nic.slot);
    match told.len() <= INTERFACES_MAX && told.iter().all(sound) {
        true => Ok(()),
        false => Err(Error::Invalid("these are no interfaces of a machine".into())),
    }
}

/// Whether these are volumes of the machine on another host, whatever that host says: nothing that is here is written over.
async fn check_volumes(context: &Context, key: &Key, uid: &str, prepare: &Prepare) -> Result<()> {
    let mut slots = HashSet::new();
    for SentVolume { plugged, bytes } in &prepare.volumes {
        let sound = is_path_safe(&plugged.uid)
            && !plugged.read_only
            && *bytes <= DISK_BYTES_MAX
            && disks::SLOTS.contains(&plugged.slot)
            && slots.insert(plugged.slot);
        let found = disks::volume(context, &key.namespace, &plugged.volume).await?;
        let status = found.status.unwrap_or_default();
        let is_its = found.metadata.uid.as_deref() == Some(plugged.uid.as_str())
            && found.spec.node_name.as_deref() != Some(context.node_name.as_str())
            && status.attached_to.is_some_and(|attached| attached.uid == uid);
        if !sound || !is_its {
            return Err(Error::Invalid(format!("volume {} is not the machine's to bring", plugged.volume)));
        }
    }
    Ok(())
}

/// Kernel and RAM disk of the machine's image, so that it can be started anew here.
async fn take_files(
    context: &Context,
    prepare: &Prepare,
    control: &mut Box<dyn node::Duplex>,
) -> Result<Option<Vec<u8>>> {
    let directory = context.guests.image_directory(&prepare.image_uid);
    // Other guests boot from those that are there; whatever comes is not to change that.
    let lacks = |name: &str, length: Option<u64>| length.filter(|_| !directory.join(name).exists());
    let (kernel, initrd) = (lacks("kernel", prepare.kernel), lacks("initrd", prepare.initrd));
    if let Some(bytes) = prepare.variables {
        firmware::check(bytes)?;
    }
    let variables = prepare.variables.is_some();
    wire::write(control, &Answer::Lacks { kernel: kernel.is_some(), initrd: initrd.is_some(), variables }).await?;
    for (name, length) in [("kernel", kernel), ("initrd", initrd)] {
        if let Some(length) = length {
            image_copies::receive_file(control, &directory, name, length).await?;
        }
    }
    let Some(bytes) = prepare.variables else { return Ok(None) };
    let mut variables = Vec::new();
    let mut sent = AsyncReadExt::take(control, bytes);
    let read = tokio::time::timeout(VARIABLES_TIMEOUT, sent.read_to_end(&mut variables)).await;
    read.map_err(|_| Error::Timeout("what its firmware remembers"))?.map_err(Error::io("read", "the other machine"))?;
    if variables.len() as u64 != bytes {
        return Err(Error::Invalid("the connection ended within what its firmware remembers".into()));
    }
    Ok(Some(variables))
}
