//! Takes a guest in: makes its disk and its place on the network, starts a hypervisor that waits, and lets disk and memory flow into
//! it. The guest runs when the machine's object is bound here, by [`super::super::driver`], and not before.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream as BlockingStream};
use std::sync::Arc;
use std::time::Duration;

use api::migration::{Migration, MigrationPhase};
use hypervisor::{Guest, Start};
use kube::Api;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::wire::{self, Answer, Channel, Hello, Prepare};
use super::{Incoming, marker, source};
use crate::context::{Context, Key, is_path_safe};
use crate::error::{Error, Result, chain};
use crate::guest::image_copies;
use crate::guest::start::{self, ROOT_DISK};

/// How long the source may take to open the connections for memory and disk.
const CHANNELS_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest disk. Units: bytes.
const DISK_BYTES_MAX: u64 = 1 << 46;
/// Time between two questions whether a guest stays.
const SETTLE_LOOK: Duration = Duration::from_millis(200);
/// Most addresses of the source's neighbours that are announced.
const NEIGHBOURS_MAX: usize = 4096;

/// The connections of a migration that wait for whoever takes them up.
struct Waiting {
    memory: Option<oneshot::Sender<Box<dyn node::Duplex>>>,
    disk: Option<oneshot::Sender<Box<dyn node::Duplex>>>,
}

/// Migrations that come in.
#[derive(Default)]
pub struct Receptions {
    waiting: Mutex<HashMap<String, Waiting>>,
}

/// Serves one connection from another machine; `from` is that machine's name by its certificate, or `None` for the pool's first one.
pub async fn take_in(context: &Arc<Context>, from: Option<&str>, mut connection: Box<dyn node::Duplex>) -> Result<()> {
    let hello: Hello = wire::read(&mut connection).await?;
    if hello.channel == Channel::Image {
        return image_copies::give(context, from, &hello, connection).await;
    }
    check(context, from, &hello).await?;
    let place = match hello.channel {
        Channel::Control => return receive(context, &hello, connection).await,
        Channel::Memory => {
            context.receptions.waiting.lock().get_mut(&hello.uid).and_then(|waiting| waiting.memory.take())
        }
        Channel::Disk => context.receptions.waiting.lock().get_mut(&hello.uid).and_then(|waiting| waiting.disk.take()),
        Channel::Image => None,
    };
    let place = place.ok_or_else(|| Error::Invalid("nobody waits for this connection".into()))?;
    place.send(connection).map_err(|_| Error::Invalid("nobody waits for this connection any more".into()))
}

/// Whether the store knows of such a migration, from that machine to this one.
async fn check(context: &Context, from: Option<&str>, hello: &Hello) -> Result<()> {
    let migrations: Api<Migration> = Api::namespaced(context.client.clone(), &hello.namespace);
    let found = migrations.get_opt(&hello.name).await.map_err(Error::api("read the migration"))?;
    let known = found.is_some_and(|found| {
        let status = found.status.unwrap_or_default();
        found.metadata.uid.as_deref() == Some(hello.uid.as_str())
            && status.target_node == context.node_name
            && from.is_none_or(|from| from == status.source_node)
            && matches!(status.phase, MigrationPhase::Scheduled | MigrationPhase::Copying)
    });
    if known { Ok(()) } else { Err(Error::Invalid("there is no such migration to this machine".into())) }
}

/// Talks to the source until the guest is here and decided for, or is not to come.
async fn receive(context: &Arc<Context>, hello: &Hello, mut control: Box<dyn node::Duplex>) -> Result<()> {
    let prepare: Prepare = wire::read(&mut control).await?;
    let uid = prepare.object.metadata.uid.clone().unwrap_or_default();
    let key = Key::of(prepare.object.as_ref());
    if !is_path_safe(&uid) || !is_path_safe(&prepare.image_uid) || context.guests.uid(&key).is_some() {
        wire::write(&mut control, &Answer::Refused("such a machine is here".into())).await?;
        return Err(Error::Invalid("a machine that is here was sent".into()));
    }
    let received = take(context, hello, &prepare, &uid, &mut control).await;
    context.receptions.waiting.lock().remove(&hello.uid);
    match received {
        Ok(()) => {
            wire::write(&mut control, &Answer::Received).await?;
            tracing::info!(vm = key.name, "all of a guest is here");
            // Until the source lets go: then the store has decided.
            let mut byte = [0];
            while matches!(control.read(&mut byte).await, Ok(1..)) {}
            settle(context, &uid, &incoming(hello, &prepare)).await
        }
        Err(error) => {
            let error = match error {
                // The hypervisor itself knows why it ended.
                Error::Hypervisor(hypervisor::Error::Gone) => {
                    Error::Invalid(hypervisor::qemu::driver::log_end(&context.guests.run_dir(&uid)))
                }
                other => other,
            };
            let told = wire::write(&mut control, &Answer::Refused(chain(&error))).await;
            clear(context, &uid, prepare.object.as_ref()).await?;
            told.and(Err(error))
        }
    }
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
    if let Err(error) = settle(context, uid, incoming).await {
        tracing::warn!(vm = incoming.machine, error = %chain(&error), "a guest that does not stay is not cleared");
    }
}

/// The source is gone. Whether the guest stays is what the store says; a machine that is bound here is its driver's business. Until its
/// migration is over the store may decide for this machine, so the guest is kept.
async fn settle(context: &Arc<Context>, uid: &str, incoming: &Incoming) -> Result<()> {
    let key = Key { namespace: incoming.namespace.clone(), name: incoming.machine.clone() };
    while context.guests.uid(&key).as_deref() != Some(uid) {
        // In this order: what is not bound here after its migration was over never will be by it.
        let read =
            async { Ok::<_, Error>((is_under_way(context, incoming).await?, is_bound(context, &key, uid).await?)) };
        match read.await {
            Ok((_, true)) => return Ok(()),
            Ok((false, false)) => return clear_by_name(context, uid).await,
            Ok((true, false)) => {}
            Err(error) => tracing::warn!(vm = key.name, error = %chain(&error), "cannot learn whose the guest is"),
        }
        tokio::time::sleep(SETTLE_LOOK).await;
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
    let found = shown(migrations.get_opt(&incoming.migration).await, "read the migration")?;
    let found = found.filter(|found| found.metadata.uid.as_deref() == Some(incoming.migration_uid.as_str()));
    Ok(found.is_some_and(|found| !found.status.unwrap_or_default().phase.is_final()))
}

async fn is_bound(context: &Context, key: &Key, uid: &str) -> Result<bool> {
    let machines: Api<api::VirtualMachine> = Api::namespaced(context.client.clone(), &key.namespace);
    let found = shown(machines.get_opt(&key.name).await, "read the machine")?;
    Ok(found.is_some_and(|machine| {
        machine.metadata.uid.as_deref() == Some(uid)
            && machine.spec.node_name.as_deref() == Some(context.node_name.as_str())
    }))
}

async fn clear_by_name(context: &Arc<Context>, uid: &str) -> Result<()> {
    clear(context, uid, &api::VirtualMachine::default()).await
}

/// Takes away a guest that is not to be here.
async fn clear(context: &Arc<Context>, uid: &str, object: &api::VirtualMachine) -> Result<()> {
    tracing::info!(vm = object.metadata.name, uid, "a guest that was on its way here is not to stay");
    let run_dir = context.guests.run_dir(uid);
    hypervisor::qemu::driver::kill(&run_dir).await?;
    for directory in [run_dir, context.guests.directory(uid)] {
        crate::directories::remove(&directory)?;
    }
    let found = context.fabric.list().attachments.into_iter().find(|one| one.owner == uid);
    if let Some(found) = found {
        context.guests.dhcp.withdraw(found.mac);
        context.guests.forget(found.gateway, found.address);
    }
    context.directory.leave(uid, None);
    context.fabric.release(uid).await?;
    let (layers, owner) = (context.guests.layers().await?, uid.to_owned());
    let released = tokio::task::spawn_blocking(move || layers.release(&owner)).await;
    released.map_err(|_| Error::Timeout("releasing a disk"))??;
    Ok(context.guests.control_group(uid)?.remove()?)
}

async fn take(
    context: &Arc<Context>,
    hello: &Hello,
    prepare: &Prepare,
    uid: &str,
    control: &mut Box<dyn node::Duplex>,
) -> Result<()> {
    take_files(context, prepare, control).await?;
    // What another attempt left.
    clear(context, uid, &prepare.object).await?;
    let (layers, owner, bytes) = (context.guests.layers().await?, uid.to_owned(), prepare.disk_bytes);
    if bytes > DISK_BYTES_MAX {
        return Err(Error::Invalid(format!("a disk of {bytes} bytes")));
    }
    let made = tokio::task::spawn_blocking(move || layers.create(None, Some(bytes), &owner)).await;
    made.map_err(|_| Error::Timeout("making a disk"))??;
    let directory = context.guests.directory(uid);
    std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    let mark = marker(context, uid);
    let text = serde_json::to_vec(&incoming(hello, prepare)).unwrap_or_default();
    std::fs::write(&mark, text).map_err(Error::io("write", mark))?;
    let place = start::join(context, &prepare.object, uid).await?;
    let size =
        start::Size { cpus: prepare.launched.cpus, memory_bytes: prepare.launched.memory_bytes, disk_bytes: None };
    let cpus_max = Some(prepare.launched.cpus_max);
    let guest =
        start::start(context, &prepare.object, uid, &size, &place, Start::Receive, cpus_max, Vec::new()).await?;
    let (memory_place, memory) = oneshot::channel();
    let (disk_place, disk) = oneshot::channel();
    let waiting = Waiting { memory: Some(memory_place), disk: Some(disk_place) };
    context.receptions.waiting.lock().insert(hello.uid.clone(), waiting);
    wire::write(control, &Answer::Ready).await?;
    let channels = tokio::time::timeout(CHANNELS_TIMEOUT, async { tokio::try_join!(memory, disk) }).await;
    let (memory, disk) = channels
        .map_err(|_| Error::Timeout("the connections for memory and disk"))?
        .map_err(|_| Error::Invalid("another attempt took its place".into()))?;
    let run_dir = context.guests.run_dir(uid);
    let (listener, own) = disks_socket(&run_dir)?;
    let incoming =
        hypervisor::Incoming { memory: source::pumped(memory)?, disks: listener, names: vec![ROOT_DISK.into()] };
    guest.receive(incoming).await?;
    pump(own, disk);
    arrive(context, &guest, control).await?;
    drop(guest);
    announce(context, &place.network, &prepare.neighbours).await
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

/// The guest may know the source's neighbours by their own hardware addresses; here this machine answers for them.
async fn announce(context: &Context, network: &network::Network, neighbours: &[Ipv4Addr]) -> Result<()> {
    let elsewhere: Vec<Ipv4Addr> = neighbours.iter().copied().take(NEIGHBOURS_MAX).collect();
    Ok(context.fabric.announce(&network.id, elsewhere).await?)
}

/// A listening socket for the hypervisor, and a connection to it.
fn disks_socket(run_dir: &std::path::Path) -> Result<(UnixListener, BlockingStream)> {
    use std::os::fd::AsRawFd;
    let opened = std::fs::File::open(run_dir).map_err(Error::io("open", run_dir))?;
    // However long the directory's path is.
    let path = format!("/proc/self/fd/{}/disks.sock", opened.as_raw_fd());
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(Error::io("listen on", &path))?;
    let own = BlockingStream::connect(&path).map_err(Error::io("connect to", &path))?;
    Ok((listener, own))
}

fn pump(own: BlockingStream, mut connection: Box<dyn node::Duplex>) {
    let ours = own.set_nonblocking(true).and_then(|()| UnixStream::from_std(own));
    match ours {
        Ok(mut ours) => drop(tokio::spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut ours, &mut connection).await;
        })),
        Err(error) => tracing::warn!(%error, "cannot carry a disk"),
    }
}

/// Kernel and RAM disk of the machine's image, so that it can be started anew here.
async fn take_files(context: &Context, prepare: &Prepare, control: &mut Box<dyn node::Duplex>) -> Result<()> {
    let directory = context.guests.image_directory(&prepare.image_uid);
    for (name, length) in [("kernel", prepare.kernel), ("initrd", prepare.initrd)] {
        if let Some(length) = length {
            image_copies::receive_file(control, &directory, name, length).await?;
        }
    }
    Ok(())
}
