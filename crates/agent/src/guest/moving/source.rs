//! Drives migrations from the machine that has the guest.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use api::migration::{FINALIZER, Migration, MigrationPhase, MigrationStatus, Seen, Transfer, is_complete, may_decide};
use api::quantity::whole;
use api::virtual_machine::MachineDesired;
use api::{DiskImage, VirtualMachine};
use futures::StreamExt;
use hypervisor::{Guest, Outgoing, Progress, Sent};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;

use super::carry::pumped;
use super::give::{Over, Rest};
use super::handover::{answered, give_away, look, reclaim, withdraw};
use super::post_copy;
use super::wire::{self, Answer, Answers, Channel, Decided, Hello, Prepare, SentVolume, expect};
use crate::context::{Context, Key};
use crate::error::{Error, Result, chain};
use crate::guest::disks::{self, Plugged, disk_name, snapshots};
use crate::guest::firmware;
use crate::guest::interfaces::{self, Nic, attach as nics};
use crate::guest::start::ROOT_DISK;
use crate::informer;

/// Time between two reports of progress.
const REPORT: Duration = Duration::from_millis(500);
/// How long the other machine may take to make ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long one of the image's files may take to get there.
const FILE_TIMEOUT: Duration = Duration::from_secs(600);
/// How long it may take to say that it has everything, once all is sent.
const RECEIVED_TIMEOUT: Duration = Duration::from_secs(60);
/// Attempts to tell that the store has not decided yet, while others write.
const REPORTS_MAX: usize = 4;
/// How long the store may take to decide before that is told.
const DECISION_SOON: Duration = Duration::from_millis(250);
/// Time before the store is asked again to decide; it doubles up to `RETRY`.
const DECISION_RETRY: Duration = Duration::from_millis(5);
/// How long the other machine's word that the guest runs is waited for, to tell how long it stood still.
const RUNS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long this machine's own reason for a failure is waited for, when the other machine's came first.
const OWN_REASON: Duration = Duration::from_secs(5);
/// How long the store's decision may take before the guest is taken back.
const DECISION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a snapshot or a copy of the guest's disks may take before it does not move.
const DISKS_TIMEOUT: Duration = Duration::from_secs(60);
/// How long this host's driver may take to find a guest that is bound here.
const FOUND_TIMEOUT: Duration = Duration::from_secs(30);
/// What is told of a migration whose agent died when the machine was the target's.
const AGENT_DIED_LATE: &str = "the agent that drove it was started anew; if a part of the machine's memory was still here, it was lost, and \
    the machine started anew from its disks";
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

/// One migration that starts here.
pub(super) struct Drive {
    pub(super) context: Arc<Context>,
    pub(super) object: Migration,
    uid: String,
    cancelled: watch::Receiver<HashSet<String>>,
}

impl Drive {
    fn key(&self) -> Key {
        Key { namespace: self.object.namespace().unwrap_or_default(), name: self.object.spec.virtual_machine.clone() }
    }

    fn objects(&self) -> Api<Migration> {
        Api::namespaced(self.context.client.clone(), &self.object.namespace().unwrap_or_default())
    }

    async fn try_report(&self, status: Value) -> Result<()> {
        let objects = self.objects();
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid}, "status": status}));
        let (name, parameters) = (self.object.name_any(), PatchParams::default());
        let asked = objects.patch_status(&name, &parameters, &patch);
        let written = answered(asked, "writing the migration's status").await?;
        written.map(drop).map_err(Error::api("write the migration's status"))
    }

    pub(super) async fn report(&self, status: Value) {
        if let Err(error) = self.try_report(status).await {
            tracing::debug!(migration = self.object.name_any(), error = %chain(&error), "cannot report");
        }
    }

    async fn end(&self, phase: MigrationPhase, message: &str) {
        tracing::info!(migration = self.object.name_any(), ?phase, message, "a migration ended");
        // Until it is written the target keeps what it has, and nobody can delete the object.
        self.report_surely(json!({"phase": phase, "message": message, "endedAt": Time(Timestamp::now())})).await;
    }

    /// Tells that nothing more of the guest is here; the pool ends the migration.
    async fn complete(&self) {
        // Others it ends without that.
        if self.object.spec.post_copy {
            self.report_surely(json!({"complete": true})).await;
        }
    }

    async fn report_surely(&self, status: Value) {
        while let Err(error) = self.try_report(status.clone()).await {
            tracing::debug!(migration = self.object.name_any(), error = %chain(&error), "cannot tell how it ended");
            if self.is_gone().await {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Whether the API says that the object is not there any more.
    async fn is_gone(&self) -> bool {
        let found = answered(self.objects().get_opt(&self.object.name_any()), "reading the migration").await;
        matches!(found, Ok(Ok(found)) if found.as_ref().and_then(|found| found.metadata.uid.as_deref()) != Some(self.uid.as_str()))
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
            // What the dead agent asked the store for must come too late: the target drops what it has once this has failed.
            loop {
                let void = match look(&self.context, &key).await {
                    Ok(Some(machine)) => withdraw(&self.context, &machine).await,
                    // What was missing on the target flowed through the dead one.
                    Ok(None) if !is_complete(&self.object.spec, &self.object.status.clone().unwrap_or_default()) => {
                        return self.end(MigrationPhase::Failed, AGENT_DIED_LATE).await;
                    }
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                match void {
                    Ok(true) => {
                        return self.end(MigrationPhase::Failed, "the agent that drove it was started anew").await;
                    }
                    Ok(false) => {}
                    Err(error) => tracing::debug!(vm = key.name, error = %chain(&error), "cannot look at the machine"),
                }
                tokio::time::sleep(RETRY).await;
            }
        }
        // Without it the object could go while the store decides, and the target would drop what it has.
        if !self.object.finalizers().iter().any(|own| own == FINALIZER) {
            return self.end(MigrationPhase::Failed, "nothing keeps its object meanwhile; make another one").await;
        }
        // The one who wishes it may have seen the machine's last move end before this host's driver has found the guest.
        let found = tokio::select! {
            found = self.context.guests.until_runs(&key, FOUND_TIMEOUT) => found,
            () = self.until_cancelled() => return self.end(MigrationPhase::Cancelled, "it was cancelled").await,
        };
        if found.is_none() {
            return self.end(MigrationPhase::Failed, "the machine does not run").await;
        }
        // Held until it is over: which disks there are, and their layers, stay as they are, and nobody starts the guest anew.
        let Some((_locks, volumes)) = self.lock(&key).await else { return };
        let Some(guest) = self.context.guests.guest(&key) else {
            return self.end(MigrationPhase::Failed, "the machine does not run").await;
        };
        let mut in_part = false;
        match self.drive(&key, &guest, &volumes, &mut in_part).await {
            Ok(Over::Lost(error)) => {
                self.end(MigrationPhase::Failed, &format!("{}; {}", post_copy::LOST, chain(&error))).await;
            }
            Ok(Over::Moved) => self.complete().await,
            Err(error) => {
                let uid = self.context.guests.uid(&key).unwrap_or_default();
                let error = super::told(&self.context, &uid, error);
                if let Err(left) = guest.forget_send().await {
                    tracing::warn!(vm = key.name, error = %chain(&left), "a transfer is left over");
                }
                let phase = if self.is_cancelled() { MigrationPhase::Cancelled } else { MigrationPhase::Failed };
                match reclaim(&self.context, &key, &guest).await {
                    Ok(true) => self.end(phase, &chain(&error)).await,
                    // The store decided for the target after all.
                    Ok(false) if in_part => {
                        self.end(MigrationPhase::Failed, &format!("{}; {}", post_copy::LOST, chain(&error))).await;
                    }
                    Ok(false) => self.complete().await,
                    Err(gone) => {
                        let gone = chain(&super::told(&self.context, &uid, gone));
                        self.end(MigrationPhase::Failed, &format!("{}; the guest has ended: {gone}", chain(&error)))
                            .await;
                    }
                }
            }
        }
    }

    /// Locks the machine's disks; the volumes that it has. `None` when the migration has ended over it.
    async fn lock(&self, key: &Key) -> Option<(Vec<OwnedMutexGuard<()>>, Vec<Plugged>)> {
        let Some(uid) = self.context.guests.uid(key) else {
            self.end(MigrationPhase::Failed, "the machine is not here").await;
            return None;
        };
        let locked = tokio::select! {
            locked = tokio::time::timeout(DISKS_TIMEOUT, snapshots::lock_machine(&self.context, &uid)) => Some(locked),
            () = self.until_cancelled() => None,
        };
        let Some(locked) = locked else {
            self.end(MigrationPhase::Cancelled, "it was cancelled").await;
            return None;
        };
        let message = match locked {
            Ok(Ok(locked)) => return Some(locked),
            Ok(Err(error)) => chain(&error),
            Err(_) => "a snapshot or a copy of its disks is being made; try again when it is done".to_owned(),
        };
        self.end(MigrationPhase::Failed, &message).await;
        None
    }

    async fn until_cancelled(&self) {
        // The other end stays as long as the agent.
        let _ = self.cancelled.clone().wait_for(|all| all.contains(&self.uid)).await;
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

    /// Moves the guest; returns when the store has decided for the target, and it needs nothing more of this machine. On an error the
    /// guest may be sent, and `in_part` tells whether not all of it was.
    async fn drive(&self, key: &Key, guest: &Arc<dyn Guest>, plugged: &[Plugged], in_part: &mut bool) -> Result<Over> {
        let volumes = self.volumes(key, guest, plugged).await?;
        let mut control = self.open(Channel::Control).await?;
        let prepared = tokio::select! {
            prepared = self.prepare(key, guest, volumes, &mut control) => prepared,
            () = self.until_cancelled() => return Err(cancelled()),
        };
        if let Err(error) = prepared {
            // The other machine may have refused it meanwhile, and said why.
            let answer = tokio::time::timeout(OWN_REASON, wire::read::<Answer>(&mut control)).await;
            return match answer {
                Ok(Ok(refused)) => expect(refused, &Answer::Ready).and(Err(error)),
                _ => Err(error),
            };
        }
        let ready = tokio::select! {
            ready = tokio::time::timeout(READY_TIMEOUT, wire::read::<Answer>(&mut control)) => ready,
            () = self.until_cancelled() => return Err(cancelled()),
        };
        expect(ready.map_err(|_| Error::Timeout("the other machine's preparation"))??, &Answer::Ready)?;
        let started_at = Time(Timestamp::now());
        // Without it nobody would hear of the handover, nor of whose agent died meanwhile: an agent that starts takes one that is only
        // scheduled for new.
        let told = async {
            let status = json!({"phase": MigrationPhase::Copying, "startedAt": started_at});
            match self.advance(MigrationPhase::Scheduled, status).await? {
                true => Ok(()),
                false => Err(Error::Invalid("the migration is not to begin any more".into())),
            }
        };
        let names = plugged.iter().map(|one| disk_name(&one.uid));
        let volumes = names.map(|name| async move { Ok((name.clone(), self.open(Channel::Volume(name)).await?)) });
        let (root, memory, volumes, ()) = tokio::try_join!(
            self.open(Channel::Disk),
            self.open(Channel::Memory),
            futures::future::try_join_all(volumes),
            told,
        )?;
        let all = std::iter::once((ROOT_DISK.to_owned(), root)).chain(volumes);
        let disks = all.map(|(name, connection)| Ok((name, pumped(connection)?))).collect::<Result<_>>()?;
        let bandwidth = self.object.spec.bandwidth.as_ref().and_then(|quantity| whole(&quantity.0));
        let bandwidth = bandwidth.and_then(|bytes| u64::try_from(bytes).ok());
        let post_copy = self.object.spec.post_copy;
        let outgoing = Outgoing { memory: pumped(memory)?, disks, bandwidth, post_copy };
        let (progress, seen) = watch::channel(Progress::default());
        let (hearing, mut saying) = tokio::io::split(control);
        let mut answers = Answers::of(hearing);
        let (much, received) = self.send(guest, outgoing, &progress, seen.clone(), &mut answers).await?;
        if much == Sent::Part {
            *in_part = true;
            let rest = Rest { guest, progress: &progress, seen, saying: &mut saying, answers: &mut answers };
            return self.give(key, rest).await;
        }
        let sent = Instant::now();
        // The version that the decision is made against is looked for while the other machine reads what is left.
        let (machine, received) = tokio::join!(look(&self.context, key), self.await_received(received, &mut answers));
        received?;
        let received = Instant::now();
        let mut status = status_of(*progress.borrow());
        let moved = self.decide(key, machine.ok().flatten(), Sent::All, status.clone()).await?;
        let decided = Instant::now();
        if let Some(moved) = moved {
            let ran = tokio::time::timeout(RUNS_TIMEOUT, say_decided(&moved, &mut saying, &mut answers)).await;
            if let (Ok(Ok(())), Some(since)) = (ran, progress.borrow().stands_still_since) {
                status.downtime_ms = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
                tracing::info!(vm = key.name, stood_still = ?since.elapsed(), last_part = ?sent.duration_since(since),
                    received = ?received.duration_since(sent), decided = ?decided.duration_since(received),
                    started = ?decided.elapsed(), "a guest has moved");
            }
        }
        self.report(json!({"memory": status.memory, "disk": status.disk, "downtimeMs": status.downtime_ms})).await;
        Ok(Over::Moved)
    }

    /// Waits for the target's word that it has everything, unless that came.
    async fn await_received(&self, came: bool, answers: &mut Answers) -> Result<()> {
        if came {
            return Ok(());
        }
        let received = tokio::select! {
            received = tokio::time::timeout(RECEIVED_TIMEOUT, answers.next()) => received,
            () = self.until_cancelled() => return Err(cancelled()),
        };
        expect(
            received.map_err(|_| Error::Timeout("the other machine's word that it has everything"))??,
            &Answer::Received,
        )
    }

    /// Lets the store decide for the target, which has everything, or so much that the guest can run there. `machine`: as it was read,
    /// if it was. The machine as it was then; `None` when the answer to the write was lost, and the target hears it from the store alone.
    ///
    /// Errors: it was cancelled before the store had decided, or the store does not decide; what was asked for may be on its way.
    pub(super) async fn decide(
        &self,
        key: &Key,
        machine: Option<VirtualMachine>,
        sent: Sent,
        status: MigrationStatus,
    ) -> Result<Option<VirtualMachine>> {
        // However long that takes to be told, the guest stands still no longer for it.
        let told = async {
            tokio::time::sleep(DECISION_SOON).await;
            self.report_handover(status).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            decided = self.ask(key, machine, sent) => decided,
            () = tokio::time::sleep(DECISION_TIMEOUT) => Err(Error::Timeout("the decision where the machine runs")),
            () = self.until_cancelled() => Err(cancelled()),
            () = told => Err(Error::Timeout("the decision where the machine runs")),
        }
    }

    async fn ask(&self, key: &Key, mut machine: Option<VirtualMachine>, sent: Sent) -> Result<Option<VirtualMachine>> {
        let target = self.object.status.as_ref().map(|status| status.target_node.clone()).unwrap_or_default();
        let mut pause = DECISION_RETRY;
        loop {
            let asked = async {
                let machine = match machine.take() {
                    Some(machine) => Some(machine),
                    None => look(&self.context, key).await?,
                };
                let Some(machine) = machine else { return Ok(Some(None)) };
                if !may_decide(true, Seen::Sent, sent == Sent::All, sent == Sent::Part, self.is_cancelled()) {
                    return Err(cancelled());
                }
                Ok(give_away(&self.context, &machine, &target).await?.map(Some))
            };
            match asked.await {
                Ok(Some(moved)) => return Ok(moved),
                // Somebody wrote meanwhile.
                Ok(None) => {}
                // It stays so. When it was called off, that is heard meanwhile, and says better why.
                Err(error) if is_invalid(&error) => {
                    tokio::time::sleep(RETRY).await;
                    return Err(error);
                }
                Err(error) => tracing::debug!(vm = key.name, error = %chain(&error), "the store does not decide yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY);
        }
    }

    /// Writes the status of a migration that is in this phase, against the version that was read, so that a write which comes late changes
    /// nothing; whether it was made.
    pub(super) async fn advance(&self, from: MigrationPhase, status: Value) -> Result<bool> {
        let (objects, name) = (self.objects(), self.object.name_any());
        for _ in 0..REPORTS_MAX {
            let seen = answered(objects.get_opt(&name), "reading the migration").await?;
            let seen = seen.map_err(Error::api("read the migration"))?;
            let is_there = |seen: &Migration| seen.status.as_ref().is_some_and(|status| status.phase == from);
            let Some(seen) = seen.filter(is_there) else { return Ok(false) };
            let version = seen.metadata.resource_version;
            let told =
                Patch::Merge(json!({"metadata": {"uid": self.uid, "resourceVersion": version}, "status": status}));
            let parameters = PatchParams::default();
            let asked = objects.patch_status(&name, &parameters, &told);
            match answered(asked, "writing the migration's status").await? {
                Err(kube::Error::Api(answer)) if answer.code == 409 => {}
                written => return written.map(|_| true).map_err(Error::api("write the migration's status")),
            }
        }
        Ok(false)
    }

    /// Tells that the store has not decided yet, unless it has by now: what came after that stays.
    async fn report_handover(&self, status: MigrationStatus) {
        let status = json!({"phase": MigrationPhase::Handover, "memory": status.memory, "disk": status.disk,
            "downtimeMs": status.downtime_ms});
        if let Err(error) = self.advance(MigrationPhase::Copying, status).await {
            tracing::debug!(migration = self.object.name_any(), error = %chain(&error), "cannot tell of the handover");
        }
    }

    /// Sends the guest; how much of it, and whether the target has said meanwhile that it has everything.
    async fn send(
        &self,
        guest: &Arc<dyn Guest>,
        outgoing: Outgoing,
        progress: &watch::Sender<Progress>,
        seen: watch::Receiver<Progress>,
        answers: &mut Answers,
    ) -> Result<(Sent, bool)> {
        let mut received = false;
        let mut sending = std::pin::pin!(guest.send(outgoing, progress));
        let mut telling = std::pin::pin!(self.tell(seen));
        loop {
            tokio::select! {
                sent = &mut sending => return sent.map(|much| (much, received)).map_err(Error::from),
                answer = answers.next(), if !received => {
                    if let Err(refused) = answer.and_then(|answer| expect(answer, &Answer::Received)) {
                        // The other machine may only have seen that this one gave up, which knows why.
                        return match tokio::time::timeout(OWN_REASON, sending).await {
                            Ok(Err(own)) => Err(own.into()),
                            _ => Err(refused),
                        };
                    }
                    received = true;
                }
                () = &mut telling => {}
                () = self.until_cancelled() => {
                    return Err(cancelled());
                }
            }
        }
    }

    /// The machine's volumes as they are told to the other machine.
    ///
    /// Errors: one of them does not move, or is just coming or going.
    async fn volumes(&self, key: &Key, guest: &Arc<dyn Guest>, plugged: &[Plugged]) -> Result<Vec<SentVolume>> {
        let present = guest.disks().await?;
        let layers = self.context.guests.layers().await?;
        let mut volumes = Vec::new();
        for one in plugged {
            let refuse = |why: &str| Err(Error::Invalid(format!("volume {} {why}", one.volume)));
            if one.read_only {
                return refuse("can only be read, and does not move; detach it first");
            }
            let found = disks::volume(&self.context, &key.namespace, &one.volume).await?;
            let status = found.status.unwrap_or_default();
            let is_here = found.metadata.uid.as_deref() == Some(one.uid.as_str())
                && found.spec.node_name.as_deref() == Some(self.context.node_name.as_str())
                && status.attached_to.is_some_and(|attached| attached.virtual_machine == key.name);
            if !is_here || !present.contains(&disk_name(&one.uid)) {
                return refuse("is just coming or going; try again when it is attached");
            }
            let top = layers.owned_by(&one.uid).pop();
            let top = top.ok_or_else(|| Error::Invalid(format!("the disk of volume {} is missing", one.volume)))?;
            volumes.push(SentVolume { plugged: one.clone(), bytes: layers.get(&top)?.virtual_bytes });
        }
        Ok(volumes)
    }

    /// The machine's interfaces as they are told to the other machine, with the addresses of neighbours there.
    ///
    /// Errors: one of them does not move, or is just coming or going.
    async fn interfaces(&self, machine: &VirtualMachine, guest: &Arc<dyn Guest>) -> Result<(Vec<Nic>, Vec<Ipv4Addr>)> {
        let uid = machine.uid().unwrap_or_default();
        let record = nics::recorded(&self.context, machine, &uid).await?;
        let (mut told, mut present) =
            (record.iter().map(|one| one.slot).collect::<Vec<_>>(), guest.interfaces().await?);
        told.sort_unstable();
        present.sort_unstable();
        let wishes = interfaces::live(&machine.spec, &record);
        let is_settled = wishes.len() == record.len() && !interfaces::pair(&wishes, &record).contains(&None);
        if told != present || !is_settled {
            let text = "a network interface is just coming or going; try again when it is attached, or gone";
            return Err(Error::Invalid(text.into()));
        }
        let inventory = self.context.fabric.list().await?;
        let mut neighbours = Vec::new();
        for nic in &record {
            let owner = interfaces::owner(&uid, nic.slot);
            let place = inventory.attachments.iter().find(|one| one.owner == owner);
            let network = place.and_then(|place| inventory.networks.iter().find(|one| one.id == place.network));
            let network = network.ok_or_else(|| Error::Invalid("the machine is not here".into()))?;
            if network.id != network::DEFAULT_NETWORK && network.parts.is_none() {
                return Err(Error::Invalid(format!("its network {} is this machine's own", nic.network)));
            }
            let here = inventory.attachments.iter().filter(|one| one.network == network.id);
            neighbours.extend(here.filter(|one| interfaces::machine_of(&one.owner) != uid).map(|one| one.address));
        }
        neighbours.sort_unstable();
        neighbours.dedup();
        Ok((record, neighbours))
    }

    async fn prepare(
        &self,
        key: &Key,
        guest: &Arc<dyn Guest>,
        volumes: Vec<SentVolume>,
        control: &mut Box<dyn node::Duplex>,
    ) -> Result<()> {
        let missing = || Error::Invalid("the machine is not here".into());
        let machine = look(&self.context, key).await?.ok_or_else(missing)?;
        let uid = machine.uid().unwrap_or_default();
        let launched = super::launched(&self.context.guests, &uid)?;
        if machine.status.as_ref().is_some_and(|status| status.cpus != launched.cpus) {
            return Err(Error::Invalid("processors were added since its start; restart it first".into()));
        }
        launched.check_moves()?;
        let layers = self.context.guests.layers().await?;
        let top = layers.owned_by(&uid).pop().ok_or_else(missing)?;
        let images: Api<DiskImage> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let image = images.get_opt(&machine.spec.image).await.map_err(Error::api("read the disk image"))?;
        let image_uid = image.and_then(|image| image.metadata.uid).unwrap_or_default();
        let directory = self.context.guests.image_directory(&image_uid);
        let size = |name: &str| std::fs::metadata(directory.join(name)).ok().map(|found| found.len());
        let (interfaces, neighbours) = self.interfaces(&machine, guest).await?;
        let remembered = firmware::remembered(&self.context, &uid, launched.boot);
        let prepare = Prepare {
            object: Box::new(machine),
            launched,
            disk_bytes: layers.get(&top)?.virtual_bytes,
            volumes,
            kernel: size("kernel"),
            initrd: size("initrd"),
            image_uid,
            variables: remembered.as_deref().and_then(|path| Some(std::fs::metadata(path).ok()?.len())),
            interfaces,
            post_copy: self.object.spec.post_copy,
            neighbours,
        };
        wire::write(control, &prepare).await?;
        let lacks = tokio::time::timeout(READY_TIMEOUT, wire::read::<Answer>(control)).await;
        let (kernel, initrd, variables) = match lacks.map_err(|_| Error::Timeout("the other machine's answer"))?? {
            Answer::Lacks { kernel, initrd, variables } => (kernel, initrd, variables),
            other => return expect(other, &Answer::Lacks { kernel: true, initrd: true, variables: false }),
        };
        let files = [
            (kernel, Some(directory.join("kernel"))),
            (initrd, Some(directory.join("initrd"))),
            (variables, remembered),
        ];
        for (lacks, path) in files {
            if let Some(path) = path.filter(|_| lacks) {
                let mut file = tokio::fs::File::open(&path).await.map_err(Error::io("open", &path))?;
                let copied = tokio::time::timeout(FILE_TIMEOUT, tokio::io::copy(&mut file, control)).await;
                copied
                    .map_err(|_| Error::Timeout("sending a file that it boots from"))?
                    .map_err(Error::io("send", &path))?;
            }
        }
        control.flush().await.map_err(Error::io("send to", "the other machine"))
    }

    /// Reports progress for ever.
    pub(super) async fn tell(&self, seen: watch::Receiver<Progress>) {
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

/// Has the guest run on the other machine, and waits until it does.
async fn say_decided(
    moved: &VirtualMachine,
    saying: &mut WriteHalf<Box<dyn node::Duplex>>,
    answers: &mut Answers,
) -> Result<()> {
    wire::write(saying, &Decided { paused: moved.spec.desired == MachineDesired::Paused }).await?;
    expect(answers.next().await?, &Answer::Runs)
}

/// Whether admission has said that the object must not be so.
fn is_invalid(error: &Error) -> bool {
    let Error::Api { source, .. } = error else { return false };
    matches!(source.as_ref(), kube::Error::Api(answer) if answer.code == 422)
}

fn cancelled() -> Error {
    Error::Invalid("it was cancelled".into())
}

pub(super) fn status_of(progress: Progress) -> MigrationStatus {
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
