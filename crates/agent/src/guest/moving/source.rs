//! Drives migrations from the machine that has the guest.

use std::collections::HashSet;
use std::os::unix::net::UnixStream as BlockingStream;
use std::sync::Arc;
use std::time::Duration;

use api::migration::{Act, Migration, MigrationPhase, MigrationStatus, READY, Record, Seen, Transfer, at_source};
use api::quantity::whole;
use api::{DiskImage, VirtualMachine};
use futures::StreamExt;
use hypervisor::{Guest, Outgoing, Progress, RunState};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::wire::{self, Answer, Channel, Hello, Prepare};
use crate::context::{Context, Key};
use crate::error::{Error, Result, chain};
use crate::guest::start::ROOT_DISK;
use crate::informer;

/// Time between two reports of progress.
const REPORT: Duration = Duration::from_millis(500);
/// How long the other machine may take to make ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long it may take to say that it has everything, once all is sent.
const RECEIVED_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the store's decision may take before the handover is taken back.
const DECISION_TIMEOUT: Duration = Duration::from_secs(60);
/// Time before a failed question to the API is put again.
const RETRY: Duration = Duration::from_millis(500);

/// Follows the migrations that start here until the agent is dropped.
pub async fn run(context: Arc<Context>) {
    let config = watcher::Config::default().fields(&format!("status.sourceNode={}", context.node_name));
    let (_, stream) = informer::reflect(Api::<Migration>::all(context.client.clone()), config);
    let mut stream = std::pin::pin!(stream);
    let driven: Arc<Mutex<HashSet<String>>> = Arc::default();
    let cancelled = watch::Sender::new(HashSet::<String>::new());
    while let Some(event) = stream.next().await {
        match event {
            Event::Apply(object) | Event::InitApply(object) => {
                let uid = object.uid().unwrap_or_default();
                let phase = object.status.as_ref().map(|status| status.phase).unwrap_or_default();
                if object.spec.cancel || object.metadata.deletion_timestamp.is_some() {
                    cancelled.send_if_modified(|all| all.insert(uid.clone()));
                }
                if phase.is_final() || !driven.lock().insert(uid.clone()) {
                    continue;
                }
                let drive = Drive { context: context.clone(), object, uid, cancelled: cancelled.subscribe() };
                let stop = context.stop.clone();
                tokio::spawn(stop.run_until_cancelled_owned(async move { drive.run(phase).await }));
            }
            Event::Delete(object) => {
                cancelled.send_if_modified(|all| all.insert(object.uid().unwrap_or_default()));
            }
            Event::Init | Event::InitDone => {}
        }
    }
}

struct Drive {
    context: Arc<Context>,
    object: Migration,
    uid: String,
    cancelled: watch::Receiver<HashSet<String>>,
}

/// What the store says of a machine, as seen from here.
async fn look(context: &Context, key: &Key, migration: &str) -> Result<Option<(VirtualMachine, Record)>> {
    let machines: Api<VirtualMachine> = Api::namespaced(context.client.clone(), &key.namespace);
    let found = match machines.get_opt(&key.name).await {
        Ok(found) => found,
        // One that is bound elsewhere is not shown to this machine.
        Err(kube::Error::Api(status)) if status.code == 403 => None,
        Err(error) => return Err(Error::api("read the machine")(error)),
    };
    Ok(found.map(|machine| {
        let handover = machine.status.as_ref().map(|status| status.handover.as_str()).unwrap_or_default();
        let record = Record {
            bound_here: machine.spec.node_name.as_deref() == Some(context.node_name.as_str()),
            handed_over: handover.strip_prefix(READY).is_some_and(|uid| migration.is_empty() || uid == migration),
        };
        (machine, record)
    }))
}

/// Writes `status.handover` against the version that was read; whether it was still that version.
async fn write_handover(context: &Context, machine: &VirtualMachine, handover: &str) -> Result<bool> {
    let machines: Api<VirtualMachine> =
        Api::namespaced(context.client.clone(), machine.metadata.namespace.as_deref().unwrap_or_default());
    let metadata = json!({"uid": machine.metadata.uid, "resourceVersion": machine.metadata.resource_version});
    let patch = Patch::Merge(json!({"metadata": metadata, "status": {"handover": handover}}));
    match machines.patch_status(&machine.name_any(), &PatchParams::default(), &patch).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => Ok(false),
        Err(error) => Err(Error::api("write the machine's handover")(error)),
    }
}

/// Takes out of the store what an earlier migration left of its handover to this machine. A word that stays there says nothing of any
/// other migration, so a store that does not answer is no reason to wait.
pub async fn forget_handover(context: &Context, key: &Key) {
    loop {
        let forgotten = match look(context, key, "").await {
            Ok(Some((machine, Record { bound_here: true, handed_over: true }))) => {
                write_handover(context, &machine, "").await
            }
            Ok(_) => return,
            Err(error) => Err(error),
        };
        match forgotten {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(vm = key.name, error = %chain(&error), "cannot forget a handover that is over");
                return;
            }
        }
    }
}

/// Has a guest that was sent run on here, if the store still says that it is this machine's; whether it does. Asks until there is an
/// answer: until then nobody knows.
pub async fn reclaim(context: &Context, key: &Key, guest: &Arc<dyn Guest>) -> Result<bool> {
    let mut withdrawn = false;
    loop {
        let found = match look(context, key, "").await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(vm = key.name, error = %chain(&error), "cannot learn whose the guest is; asking on");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let seen = if guest.state().await? == RunState::Sent { Seen::Sent } else { Seen::Running };
        let nothing = Record { bound_here: false, handed_over: false };
        let record = found.as_ref().map_or(nothing, |(_, record)| *record);
        match (at_source(record, seen, false, withdrawn), found) {
            (Act::Run, _) => {
                guest.resume().await?;
                return Ok(true);
            }
            (Act::Withdraw, Some((machine, _))) => {
                // A value that was never there before: only a new version keeps late words out.
                let word = format!("withdrawn:{}", Timestamp::now().as_nanosecond());
                match write_handover(context, &machine, &word).await {
                    Ok(done) => withdrawn |= done,
                    Err(error) => {
                        tracing::warn!(vm = key.name, error = %chain(&error), "cannot take the handover back; trying on");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            (Act::Wait, _) => return Ok(true),
            _ => return Ok(false),
        }
    }
}

impl Drive {
    fn key(&self) -> Key {
        Key { namespace: self.object.namespace().unwrap_or_default(), name: self.object.spec.virtual_machine.clone() }
    }

    async fn try_report(&self, status: Value) -> Result<()> {
        let objects: Api<Migration> =
            Api::namespaced(self.context.client.clone(), &self.object.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid}, "status": status}));
        let written = objects.patch_status(&self.object.name_any(), &PatchParams::default(), &patch).await;
        written.map(drop).map_err(Error::api("write the migration's status"))
    }

    async fn report(&self, status: Value) {
        if let Err(error) = self.try_report(status).await {
            tracing::debug!(migration = self.object.name_any(), error = %chain(&error), "cannot report");
        }
    }

    async fn end(&self, phase: MigrationPhase, message: &str) {
        tracing::info!(migration = self.object.name_any(), ?phase, message, "a migration ended");
        self.report(json!({"phase": phase, "message": message, "endedAt": Time(Timestamp::now())})).await;
    }

    async fn run(self, phase: MigrationPhase) {
        let key = self.key();
        if phase != MigrationPhase::Scheduled {
            // The agent that drove it is dead. The guest's own driver takes it back, or learns that it has moved.
            if let Some(guest) = self.context.guests.guest(&key)
                && let Err(error) = guest.forget_send().await
            {
                tracing::warn!(vm = key.name, error = %chain(&error), "a transfer is left over");
            }
            // It has failed only when the handover is taken back; as long as it stands, the store may decide for the target.
            loop {
                match look(&self.context, &key, &self.uid).await {
                    Ok(Some((_, record))) if record.bound_here && !record.handed_over => {
                        return self.end(MigrationPhase::Failed, "the agent that drove it was started anew").await;
                    }
                    Ok(Some((_, record))) if record.bound_here => {}
                    Ok(_) => return,
                    Err(error) => tracing::debug!(vm = key.name, error = %chain(&error), "cannot look at the machine"),
                }
                tokio::time::sleep(RETRY).await;
            }
        }
        let Some(guest) = self.context.guests.guest(&key) else {
            return self.end(MigrationPhase::Failed, "the machine does not run").await;
        };
        match self.drive(&key, &guest).await {
            Ok(()) => {}
            Err(error) => {
                let phase = if self.is_cancelled() { MigrationPhase::Cancelled } else { MigrationPhase::Failed };
                match reclaim(&self.context, &key, &guest).await {
                    Ok(true) => self.end(phase, &chain(&error)).await,
                    // The store decided for the target after all.
                    Ok(false) => {}
                    Err(gone) => self.end(MigrationPhase::Failed, &chain(&gone)).await,
                }
            }
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.borrow().contains(&self.uid)
    }

    async fn open(&self, channel: Channel) -> Result<Box<dyn node::Duplex>> {
        let target = self.object.status.as_ref().map(|status| status.target_node.clone()).unwrap_or_default();
        let peers = self.context.peers.as_ref();
        let peers = peers.ok_or_else(|| Error::Invalid("this machine reaches no others".into()))?;
        let mut connection = peers.open(&target).await.map_err(Error::Invalid)?;
        let hello = Hello {
            namespace: self.object.namespace().unwrap_or_default(),
            name: self.object.name_any(),
            uid: self.uid.clone(),
            channel,
        };
        wire::write(&mut connection, &hello).await?;
        Ok(connection)
    }

    /// Moves the guest; returns when the store has decided for the target. On an error the guest may be all sent.
    async fn drive(&self, key: &Key, guest: &Arc<dyn Guest>) -> Result<()> {
        let mut control = self.open(Channel::Control).await?;
        self.prepare(key, &mut control).await?;
        let ready = tokio::time::timeout(READY_TIMEOUT, wire::read::<Answer>(&mut control)).await;
        expect(ready.map_err(|_| Error::Timeout("the other machine's preparation"))??, &Answer::Ready)?;
        let started_at = Time(Timestamp::now());
        self.report(json!({"phase": MigrationPhase::Copying, "startedAt": started_at})).await;
        let bandwidth = self.object.spec.bandwidth.as_ref().and_then(|quantity| whole(&quantity.0));
        let outgoing = Outgoing {
            memory: pumped(self.open(Channel::Memory).await?)?,
            disks: vec![(ROOT_DISK.into(), pumped(self.open(Channel::Disk).await?)?)],
            bandwidth: bandwidth.and_then(|bytes| u64::try_from(bytes).ok()),
        };
        let (progress, seen) = watch::channel(Progress::default());
        let mut answers = answers(control);
        let sent = self.send(guest, outgoing, &progress, seen, &mut answers).await;
        let received = match sent {
            Ok(received) => received,
            Err(error) => {
                guest.forget_send().await?;
                return Err(error);
            }
        };
        if !received {
            let received = tokio::time::timeout(RECEIVED_TIMEOUT, answers.next()).await;
            expect(
                received.map_err(|_| Error::Timeout("the other machine's word that it has everything"))??,
                &Answer::Received,
            )?;
        }
        let status = status_of(*progress.borrow());
        // The target keeps a guest whose source is gone only when it can read that a handover is under way.
        self.try_report(json!({"phase": MigrationPhase::Handover, "memory": status.memory, "disk": status.disk,
            "downtimeMs": status.downtime_ms}))
            .await?;
        self.hand_over(key).await
    }

    /// Sends the guest; whether the target has said meanwhile that it has everything.
    async fn send(
        &self,
        guest: &Arc<dyn Guest>,
        outgoing: Outgoing,
        progress: &watch::Sender<Progress>,
        seen: watch::Receiver<Progress>,
        answers: &mut Answers,
    ) -> Result<bool> {
        let mut received = false;
        let mut cancelled = self.cancelled.clone();
        let mut sending = std::pin::pin!(guest.send(outgoing, progress));
        let mut telling = std::pin::pin!(self.tell(seen));
        loop {
            tokio::select! {
                sent = &mut sending => return sent.map(|()| received).map_err(Error::from),
                answer = answers.next(), if !received => {
                    expect(answer?, &Answer::Received)?;
                    received = true;
                }
                () = &mut telling => {}
                _ = cancelled.wait_for(|all| all.contains(&self.uid)) => {
                    return Err(Error::Invalid("it was cancelled".into()));
                }
            }
        }
    }

    /// Lets the store decide. The connection to the target stays open until then.
    async fn hand_over(&self, key: &Key) -> Result<()> {
        let asked = tokio::time::Instant::now();
        let mut told = false;
        while asked.elapsed() < DECISION_TIMEOUT {
            match look(&self.context, key, &self.uid).await {
                Ok(Some((machine, record))) if record.bound_here => {
                    if !told {
                        told = matches!(
                            write_handover(&self.context, &machine, &format!("{READY}{}", self.uid)).await,
                            Ok(true)
                        );
                    } else if !record.handed_over {
                        return Err(Error::Invalid("somebody took the handover back".into()));
                    }
                }
                Ok(_) => return Ok(()),
                Err(error) => tracing::warn!(vm = key.name, error = %chain(&error), "the store does not answer"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(Error::Timeout("the decision where the machine runs"))
    }

    async fn prepare(&self, key: &Key, control: &mut Box<dyn node::Duplex>) -> Result<()> {
        let missing = || Error::Invalid("the machine is not here".into());
        let (machine, _) = look(&self.context, key, "").await?.ok_or_else(missing)?;
        let uid = machine.uid().unwrap_or_default();
        let launched = super::launched(&self.context, &uid)?;
        if machine.status.as_ref().is_some_and(|status| status.cpus != launched.cpus) {
            return Err(Error::Invalid("processors were added since its start; restart it first".into()));
        }
        if !crate::guest::disks::load(&self.context, &uid)?.is_empty() {
            return Err(Error::Invalid("its volumes are on this machine and do not move; detach them first".into()));
        }
        let layers = self.context.guests.layers().await?;
        let top = layers.owned_by(&uid).pop().ok_or_else(missing)?;
        let images: Api<DiskImage> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let image = images.get_opt(&machine.spec.image).await.map_err(Error::api("read the disk image"))?;
        let image_uid = image.and_then(|image| image.metadata.uid).unwrap_or_default();
        let directory = self.context.guests.image_directory(&image_uid);
        let size = |name: &str| std::fs::metadata(directory.join(name)).ok().map(|found| found.len());
        let network = self.context.networks.default_network();
        let inventory = self.context.fabric.list();
        let own = inventory.attachments.iter().filter(|one| one.network == network.id && one.owner != uid);
        let prepare = Prepare {
            object: Box::new(machine),
            launched,
            disk_bytes: layers.get(&top)?.virtual_bytes,
            kernel: size("kernel"),
            initrd: size("initrd"),
            image_uid,
            neighbours: own.map(|one| one.address).collect(),
        };
        wire::write(control, &prepare).await?;
        for (name, length) in [("kernel", prepare.kernel), ("initrd", prepare.initrd)] {
            if length.is_some() {
                let path = directory.join(name);
                let mut file = tokio::fs::File::open(&path).await.map_err(Error::io("open", &path))?;
                tokio::io::copy(&mut file, control).await.map_err(Error::io("send", &path))?;
            }
        }
        control.flush().await.map_err(Error::io("send to", "the other machine"))
    }

    /// Reports progress for ever.
    async fn tell(&self, seen: watch::Receiver<Progress>) {
        let mut ticks = tokio::time::interval(REPORT);
        let mut last = Progress::default();
        loop {
            ticks.tick().await;
            let now = *seen.borrow();
            if now != last {
                last = now;
                let status = status_of(now);
                self.report(json!({"memory": status.memory, "disk": status.disk,
                    "dirtyBytesPerSecond": status.dirty_bytes_per_second, "throttlePercent": status.throttle_percent}))
                    .await;
            }
        }
    }
}

fn expect(found: Answer, wanted: &Answer) -> Result<()> {
    match found {
        found if found == *wanted => Ok(()),
        Answer::Refused(why) => Err(Error::Invalid(format!("the other machine refuses: {why}"))),
        other => Err(Error::Invalid(format!("the other machine says {other:?}"))),
    }
}

/// What the target says, read by a task of its own, so that no half of a message is lost. Dropping it closes the connection.
struct Answers {
    said: mpsc::Receiver<Result<Answer>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Answers {
    async fn next(&mut self) -> Result<Answer> {
        self.said.recv().await.unwrap_or_else(|| Err(Error::Invalid("the other machine is gone".into())))
    }
}

fn answers(mut control: Box<dyn node::Duplex>) -> Answers {
    let (sender, said) = mpsc::channel(1);
    let reader = tokio::spawn(async move {
        loop {
            let answer = wire::read::<Answer>(&mut control).await;
            let ended = answer.is_err();
            if sender.send(answer).await.is_err() || ended {
                return;
            }
        }
    });
    Answers { said, reader }
}

fn status_of(progress: Progress) -> MigrationStatus {
    let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    MigrationStatus {
        memory: Transfer {
            total_bytes: number(progress.memory_total),
            sent_bytes: number(progress.memory_sent),
            remaining_bytes: number(progress.memory_remaining),
        },
        disk: Transfer {
            total_bytes: number(progress.disk_total),
            sent_bytes: number(progress.disk_sent),
            remaining_bytes: number(progress.disk_total.saturating_sub(progress.disk_sent)),
        },
        dirty_bytes_per_second: number(progress.dirty_per_second),
        throttle_percent: number(progress.throttle_percent),
        downtime_ms: number(progress.downtime_ms),
        ..MigrationStatus::default()
    }
}

/// A socket for the hypervisor whose other end this process carries over a connection.
pub(super) fn pumped(mut connection: Box<dyn node::Duplex>) -> Result<BlockingStream> {
    let failed = || Error::io("make", "a pair of sockets");
    let (theirs, ours) = BlockingStream::pair().map_err(failed())?;
    ours.set_nonblocking(true).map_err(failed())?;
    let mut ours = UnixStream::from_std(ours).map_err(failed())?;
    tokio::spawn(async move {
        // Either end may go at any time; the hypervisors notice, and say so.
        let _ = tokio::io::copy_bidirectional(&mut ours, &mut connection).await;
    });
    Ok(theirs)
}
