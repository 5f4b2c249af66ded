//! The scheduler: gives every pod and container a machine. The choice is `placement`'s; this file keeps its snapshot in step with
//! the API and acts on its answers. Driven by events alone, but while guests lack memory that may come back to them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::{Container, Flavor, VirtualMachine, Volume};
use futures::stream::{BoxStream, select_all};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use placement::Pool;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::{Result, chain, follow, watching};

mod act;
mod balloon;
mod convert;
mod disks;
mod flavors;
mod preempt;
mod relations;

pub use convert::{machine, pod_workload};

/// Bind requests under way at once.
const PARALLEL_BINDS: usize = 64;
/// Changes taken in before the next round of placement.
const BATCH: usize = 512;
/// Time between two looks at guests that lack memory.
const BALLOON_LOOK: Duration = Duration::from_secs(5);
/// How long guests that made room wait for their memory after the last one was asked, so that it does not go to and fro.
const BALLOON_REST: Duration = Duration::from_secs(60);
/// Verdicts of bind requests that may wait to be read; a verdict that finds no room waits for its turn.
const VERDICT_QUEUE: usize = 1024;

/// A change in the world, as the scheduler sees it.
enum Change {
    Pod(Box<Event<Pod>>),
    Container(Box<Event<Container>>),
    Guest(Box<Event<VirtualMachine>>),
    Volume(Box<Event<Volume>>),
    Flavor(Box<Event<Flavor>>),
    Node(Box<Event<Node>>),
    /// A bind request failed.
    Unbound(String),
}

/// What waits for a place.
#[derive(Clone)]
struct Pending {
    target: act::Target,
    workload: placement::Workload,
    /// Higher goes first; then the older.
    priority: i32,
    age: jiff::Timestamp,
    /// Why it could not be placed last time, so that the same is not reported twice.
    refused: Option<String>,
    /// It may ask others to leave.
    preempts: bool,
    /// Those who were asked; while one of them is still there, nobody else is.
    asked: Vec<String>,
}

struct Scheduler {
    client: Client,
    pool: Pool,
    pending: BTreeMap<String, Pending>,
    /// Names that still have to be tried in this round.
    fresh: HashSet<String>,
    /// Bound by us, not yet seen bound: kept so that a failed request can be undone.
    assumed: HashMap<String, Pending>,
    /// Pods that have a place.
    holders: BTreeMap<String, preempt::Holder>,
    /// The same, to speak to.
    targets: HashMap<String, act::Target>,
    /// How many of them have which priority.
    priorities: BTreeMap<i32, usize>,
    /// For each kind that is being listed anew: what was seen so far.
    listing: HashMap<&'static str, HashSet<String>>,
    known: HashMap<&'static str, HashSet<String>>,
    unsynced: HashSet<&'static str>,
    /// Guests whose memory may be taken and given.
    balloons: BTreeMap<String, balloon::Balloon>,
    /// When memory was last asked for.
    squeezed: Option<Instant>,
    /// Where the disks of guests are.
    disks: disks::Disks,
    /// Sizes of guests that do not say theirs.
    flavors: flavors::Flavors,
    binds: Arc<Semaphore>,
    verdicts: mpsc::Sender<Change>,
}

/// Runs until the watches end.
pub async fn run(client: Client) -> Result<()> {
    let (sender, receiver) = mpsc::channel(VERDICT_QUEUE);
    let verdicts = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let sources: Vec<BoxStream<'static, Change>> = vec![
        follow(Api::<Node>::all(client.clone()), watching()).map(|event| Change::Node(Box::new(event))).boxed(),
        follow(Api::<Pod>::all(client.clone()), watching()).map(|event| Change::Pod(Box::new(event))).boxed(),
        follow(Api::<Container>::all(client.clone()), watching())
            .map(|event| Change::Container(Box::new(event)))
            .boxed(),
        follow(Api::<VirtualMachine>::all(client.clone()), watching())
            .map(|event| Change::Guest(Box::new(event)))
            .boxed(),
        follow(Api::<Volume>::all(client.clone()), watching()).map(|event| Change::Volume(Box::new(event))).boxed(),
        follow(Api::<Flavor>::all(client.clone()), watching()).map(|event| Change::Flavor(Box::new(event))).boxed(),
        verdicts.boxed(),
    ];
    let mut scheduler = Scheduler {
        client,
        pool: Pool::default(),
        pending: BTreeMap::new(),
        fresh: HashSet::new(),
        assumed: HashMap::new(),
        holders: BTreeMap::new(),
        targets: HashMap::new(),
        priorities: BTreeMap::new(),
        listing: HashMap::new(),
        known: HashMap::new(),
        unsynced: ["node", "pod", "container", "guest", "volume", "flavor"].into_iter().collect(),
        disks: disks::Disks::default(),
        flavors: flavors::Flavors::default(),
        balloons: BTreeMap::new(),
        squeezed: None,
        binds: Arc::new(Semaphore::new(PARALLEL_BINDS)),
        verdicts: sender,
    };
    let mut changes = select_all(sources).ready_chunks(BATCH);
    loop {
        let patience = if scheduler.lacks_memory() { BALLOON_LOOK } else { Duration::MAX };
        match tokio::time::timeout(patience, changes.next()).await {
            Ok(Some(batch)) => batch.into_iter().for_each(|change| scheduler.take_in(change)),
            Ok(None) => return Ok(()),
            Err(_) => {}
        }
        if scheduler.unsynced.is_empty() {
            scheduler.place_all();
            scheduler.give_back();
        }
    }
}

impl Scheduler {
    fn take_in(&mut self, change: Change) {
        match change {
            Change::Node(event) => self.track("node", *event, |this, node| {
                this.pool.set_machine(machine(node));
                this.retry_all();
                node.name_any()
            }),
            Change::Pod(event) => self.track("pod", *event, Self::see_pod),
            Change::Container(event) => self.track("container", *event, Self::see_container),
            Change::Guest(event) => self.track("guest", *event, Self::see_guest),
            Change::Volume(event) => self.track("volume", *event, |this, volume| {
                for guest in this.disks.see(volume) {
                    this.see_guest(&guest);
                }
                disks::id(volume)
            }),
            Change::Flavor(event) => self.track("flavor", *event, |this, flavor| {
                for guest in this.flavors.see(flavor) {
                    this.see_guest(&guest);
                }
                flavors::id(flavor)
            }),
            Change::Unbound(id) => {
                if let Some(pending) = self.assumed.remove(&id) {
                    self.pool.remove(&id);
                    self.fresh.insert(id.clone());
                    self.pending.insert(id, pending);
                }
            }
        }
    }

    /// Handles a watch event of one kind; after a new list, forgets what is not in it.
    fn track<K: ResourceExt>(&mut self, kind: &'static str, event: Event<K>, see: fn(&mut Self, &K) -> String) {
        match event {
            Event::Init => {
                self.listing.insert(kind, HashSet::new());
            }
            Event::InitApply(object) => {
                let id = see(self, &object);
                self.listing.entry(kind).or_default().insert(id);
            }
            Event::InitDone => {
                let listed = self.listing.remove(kind).unwrap_or_default();
                let known = self.known.insert(kind, listed.clone()).unwrap_or_default();
                for id in known.difference(&listed) {
                    self.forget(kind, id);
                }
                self.unsynced.remove(kind);
                self.retry_all();
            }
            Event::Apply(object) => {
                let id = see(self, &object);
                self.known.entry(kind).or_default().insert(id);
            }
            Event::Delete(object) => {
                let id = see(self, &object);
                self.known.entry(kind).or_default().remove(&id);
                self.forget(kind, &id);
            }
        }
    }

    fn forget(&mut self, kind: &'static str, id: &str) {
        if kind == "node" {
            self.pool.remove_machine(id);
            return;
        }
        self.disks.forget(id);
        self.flavors.forget(id);
        if matches!(kind, "volume" | "flavor") {
            return;
        }
        self.pool.remove(id);
        self.balloons.remove(id);
        self.pending.remove(id);
        self.assumed.remove(id);
        self.release(id);
        self.retry_all();
    }

    fn see_pod(&mut self, pod: &Pod) -> String {
        let workload = pod_workload(pod);
        let id = workload.id.clone();
        let spec = pod.spec.as_ref();
        let node = spec.and_then(|spec| spec.node_name.clone()).filter(|name| !name.is_empty());
        let ours = spec.and_then(|spec| spec.scheduler_name.as_deref()).is_none_or(|name| name == "default-scheduler");
        let gated = spec.and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty());
        let priority = spec.and_then(|spec| spec.priority).unwrap_or(0);
        let ended = crate::pods::has_ended(pod);
        let deleted = pod.metadata.deletion_timestamp.is_some();
        let waits = ours && !gated && !deleted;
        self.see(&id, node, ended, waits, || Pending {
            target: act::Target::pod(pod),
            workload,
            priority,
            age: created(pod),
            refused: None,
            preempts: spec.and_then(|spec| spec.preemption_policy.as_deref()) != Some("Never"),
            asked: Vec::new(),
        });
        id
    }

    fn see_container(&mut self, container: &Container) -> String {
        let workload = convert::container_workload(container);
        let id = workload.id.clone();
        let waits = container.metadata.deletion_timestamp.is_none();
        // A container that stopped keeps its place, to be started again; a task that ended is followed by another.
        let ended = container.spec.task.is_some() && !crate::swarm::tasks::state(container).is_alive();
        self.see(&id, container.spec.node_name.clone(), ended, waits, || Pending {
            target: act::Target::container(container),
            workload,
            priority: 0,
            age: created(container),
            refused: None,
            preempts: false,
            asked: Vec::new(),
        });
        id
    }

    fn see_guest(&mut self, guest: &VirtualMachine) -> String {
        let id = convert::guest_id(guest);
        let whole = convert::guest_workload(guest, self.flavors.of(&id, guest));
        let (mut workload, balloon) = balloon::workload(guest, whole);
        let held = |balloon: &balloon::Balloon| balloon.workload.requests.memory_bytes;
        let now = balloon.as_ref().map(held);
        let before = match balloon {
            Some(balloon) => self.balloons.insert(id.clone(), balloon),
            None => self.balloons.remove(&id),
        };
        if now < before.as_ref().map(held) {
            self.retry_all();
        }
        let choice = self.disks.choose(&id, guest);
        let waits = guest.metadata.deletion_timestamp.is_none() && choice != disks::Choice::Later;
        if let disks::Choice::On(node) = choice {
            workload.machine = Some(node);
        }
        self.see(&id, guest.spec.node_name.clone(), false, waits, || Pending {
            target: act::Target::guest(guest),
            workload,
            priority: 0,
            age: created(guest),
            refused: None,
            preempts: false,
            asked: Vec::new(),
        });
        id
    }

    fn see(&mut self, id: &str, node: Option<String>, ended: bool, waits: bool, pending: impl FnOnce() -> Pending) {
        if ended {
            if self.pool.machine_of(id).is_some() {
                self.pool.remove(id);
                self.retry_all();
            }
            self.pending.remove(id);
            self.assumed.remove(id);
            self.release(id);
        } else if let Some(node) = node {
            self.assumed.remove(id);
            self.pending.remove(id);
            let placed = pending();
            if placed.target.is_pod() {
                self.hold(id, &placed, &node);
            }
            self.pool.assign(&node, placed.workload);
        } else if waits && !self.assumed.contains_key(id) {
            let mut next = pending();
            if let Some(before) = self.pending.get(id) {
                next.refused.clone_from(&before.refused);
                next.asked.clone_from(&before.asked);
            }
            self.fresh.insert(id.to_owned());
            self.pending.insert(id.to_owned(), next);
        } else if !waits {
            self.pending.remove(id);
        }
    }

    fn hold(&mut self, id: &str, placed: &Pending, node: &str) {
        self.release(id);
        *self.priorities.entry(placed.priority).or_default() += 1;
        let (workload, machine) = (placed.workload.clone(), node.to_owned());
        self.holders.insert(id.to_owned(), preempt::Holder { workload, priority: placed.priority, machine });
        self.targets.insert(id.to_owned(), placed.target.clone());
    }

    fn release(&mut self, id: &str) {
        self.targets.remove(id);
        let Some(holder) = self.holders.remove(id) else { return };
        if let Some(count) = self.priorities.get_mut(&holder.priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&holder.priority);
            }
        }
    }

    fn retry_all(&mut self) {
        self.fresh.extend(self.pending.keys().cloned());
    }

    fn place_all(&mut self) {
        let mut round: Vec<(std::cmp::Reverse<i32>, jiff::Timestamp, String)> = self
            .fresh
            .drain()
            .filter_map(|id| {
                self.pending.get(&id).map(|pending| (std::cmp::Reverse(pending.priority), pending.age, id))
            })
            .collect();
        round.sort();
        for (_, _, id) in round {
            let Some(mut pending) = self.pending.remove(&id) else { continue };
            match placement::place(&self.pool, &pending.workload) {
                Ok(choice) => {
                    self.pool.assign(&choice.machine, pending.workload.clone());
                    self.bind(id.clone(), pending.clone(), choice.machine);
                    self.assumed.insert(id, pending);
                }
                Err(refusal) => {
                    let reason = refusal.to_string();
                    if pending.refused.as_ref() != Some(&reason) {
                        self.report(&pending, reason.clone());
                        pending.refused = Some(reason);
                    }
                    if !self.squeeze(&pending) {
                        self.preempt(&mut pending);
                    }
                    self.pending.insert(id, pending);
                }
            }
        }
    }

    fn bind(&self, id: String, pending: Pending, machine: String) {
        let (client, binds, verdicts) = (self.client.clone(), self.binds.clone(), self.verdicts.clone());
        tokio::spawn(async move {
            let Ok(permit) = binds.acquire().await else { return };
            let bound = pending.target.bind(&client, &machine).await;
            // Who waits to be bound does not wait for what is told about others.
            drop(permit);
            match bound {
                Ok(()) => pending.target.report_success(&client, &machine).await,
                Err(error) if crate::is_missing(&error) => {
                    tracing::debug!(workload = id, "gone before it was bound");
                }
                Err(error) => {
                    tracing::warn!(workload = id, error = chain(&error), "cannot bind; placing it again");
                    tokio::time::sleep(crate::RETRY).await;
                    if verdicts.send(Change::Unbound(id)).await.is_err() {
                        tracing::debug!("the scheduler ended");
                    }
                }
            }
        });
    }

    fn lacks_memory(&self) -> bool {
        self.balloons.values().any(|balloon| balloon.target < balloon.size)
    }

    /// Asks idle guests for memory; whether that will make a place.
    fn squeeze(&mut self, pending: &Pending) -> bool {
        let Some(targets) = balloon::squeeze(&mut self.pool, &pending.workload, &self.balloons) else { return false };
        self.squeezed = Some(Instant::now());
        self.inflate(targets);
        true
    }

    /// Gives guests memory: those in need at once, the others what nobody has waited for of late.
    fn give_back(&self) {
        if !self.lacks_memory() {
            return;
        }
        let rested = self.squeezed.is_none_or(|at| at.elapsed() >= BALLOON_REST);
        self.inflate(balloon::give_back(&self.pool, &self.balloons, rested && self.pending.is_empty()));
    }

    fn inflate(&self, targets: Vec<balloon::Target>) {
        for (id, bytes) in targets {
            if self.balloons.get(&id).is_some_and(|balloon| balloon.target == bytes) {
                continue;
            }
            let Some((namespace, name)) = balloon::place_of(&id) else { continue };
            let api = Api::<VirtualMachine>::namespaced(self.client.clone(), namespace);
            let name = name.to_owned();
            tokio::spawn(async move { act::leave_memory(&api, &name, bytes).await });
        }
    }

    /// Asks those of lower priority to leave whose places would do.
    fn preempt(&mut self, pending: &mut Pending) {
        let lowest = self.priorities.keys().next();
        let hopeless = lowest.is_none_or(|lowest| *lowest >= pending.priority);
        if !pending.preempts || hopeless || pending.asked.iter().any(|id| self.holders.contains_key(id)) {
            return;
        }
        let found = preempt::victims(&mut self.pool, &pending.workload, pending.priority, &self.holders);
        let Some((machine, ids)) = found else { return };
        let victims: Vec<act::Target> = ids.iter().filter_map(|id| self.targets.get(id).cloned()).collect();
        pending.asked = ids;
        let (client, target) = (self.client.clone(), pending.target.clone());
        tokio::spawn(async move { target.preempt(&client, &machine, &victims).await });
    }

    fn report(&self, pending: &Pending, reason: String) {
        let (client, target) = (self.client.clone(), pending.target.clone());
        tokio::spawn(async move { target.report_failure(&client, &reason).await });
    }
}

fn created<K: ResourceExt>(object: &K) -> jiff::Timestamp {
    object.creation_timestamp().map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0)
}
