//! The task of one machine: feeds events to the pure life cycle and carries out its actions, one after another.
//!
//! | module | owns |
//! |---|---|
//! | `adoption` | guests that were running when the agent started |
//! | `life` | start, end, sleep |
//! | `disks` | volumes while it runs |
//! | `interfaces` | network interfaces while it runs |
//! | `memory` | figures of its memory |
//! | `report` | status, events, console's log |

mod adoption;
mod disks;
mod interfaces;
mod life;
mod memory;
mod report;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::migration::{Act, Seen, at_source};
use api::names::AGENT_FINALIZER;
use api::{VirtualMachine, VirtualMachineStatus};
use hypervisor::life::{Action, Event, Life, Phase, Root, Wish, step};
use hypervisor::{DiskLimits, Guest, GuestEvent, RunState};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::disks::attach;
use super::interfaces::{Place, attach as nics, serve};
use super::start;
use super::{root, status};
use crate::context::{Context, Key};
use crate::error::{Error, Result, chain, is_not_found};

/// Why a guest that was up is not ready while it waits for space on the machine's disk.
const NO_SPACE: &str = "NoSpace";
/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// A guest that runs so long without asking for its address counts as booted: it may have one of its own.
const ANSWER_PATIENCE: Duration = Duration::from_secs(180);
/// How often a guest is asked how much memory it uses.
const MEMORY_LOOK: Duration = Duration::from_secs(2);
/// How often the log's size is looked at.
const CONSOLE_LOOK: Duration = Duration::from_secs(10);

/// What is looked at again and again, and says in the status why it cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Check {
    /// What it is to boot from.
    Root,
    /// What can change while it runs.
    Size,
    /// The bounds of its own disk.
    Limits,
}

struct Driver {
    context: Arc<Context>,
    key: Key,
    uid: String,
    object: Arc<VirtualMachine>,
    life: Life,
    guest: Option<Arc<dyn Guest>>,
    events: Option<broadcast::Receiver<GuestEvent>>,
    /// Its places on networks, the first one first.
    places: Vec<Place>,
    /// Why its interfaces are not as wished.
    interfaces_pending: String,
    status: VirtualMachineStatus,
    /// The status that the apiserver has.
    written: Value,
    /// The guest has taken its address.
    answered: bool,
    failed: bool,
    /// What each check that failed last has said.
    told: BTreeMap<Check, String>,
    disks: attach::Seen,
    /// The guest has started, and the bounds of its volumes are not set yet.
    unbounded: bool,
    /// The bounds of its own disk that were set.
    limits: Option<DiskLimits>,
    /// The object is no longer this machine's to write.
    vanished: bool,
    timer: Option<Instant>,
    retry: Option<Instant>,
    space: Option<Instant>,
    disks_retry: Option<Instant>,
    /// The version of the wishes by which volumes were looked at last.
    disks_generation: Option<i64>,
    interfaces_retry: Option<Instant>,
    /// The version of the wishes by which interfaces were looked at last.
    interfaces_generation: Option<i64>,
    patience: Option<Instant>,
}

/// Starts the task of one machine.
pub fn spawn(context: Arc<Context>, key: Key, object: Arc<VirtualMachine>) {
    let Some(uid) = object.metadata.uid.clone() else { return };
    let objects = context.guests.add(key.clone(), uid.clone(), object.clone());
    let status = object.status.clone().unwrap_or_default();
    let written = serde_json::to_value(&status).unwrap_or_default();
    let life = Life::down(status.observed_restart, false, false);
    // One that waits for space had its address.
    let was_up = |one: &Condition| one.type_ == "Ready" && (one.status == "True" || one.reason == NO_SPACE);
    let answered = status.conditions.iter().any(was_up);
    let stop = context.stop.clone();
    let driver = Driver {
        context,
        key,
        uid,
        object,
        life,
        guest: None,
        events: None,
        places: Vec::new(),
        interfaces_pending: String::new(),
        status,
        written,
        answered,
        failed: false,
        told: BTreeMap::new(),
        disks: attach::Seen::default(),
        unbounded: false,
        limits: None,
        vanished: false,
        timer: None,
        retry: None,
        space: None,
        disks_retry: None,
        disks_generation: None,
        interfaces_retry: None,
        interfaces_generation: None,
        patience: None,
    };
    tokio::spawn(stop.run_until_cancelled_owned(driver.run(objects)));
}

impl Driver {
    async fn run(mut self, mut objects: watch::Receiver<Option<Arc<VirtualMachine>>>) {
        let mut acknowledged = self.context.guests.dhcp.acknowledged();
        let mut look = tokio::time::interval(CONSOLE_LOOK);
        let mut memory = tokio::time::interval(MEMORY_LOOK);
        memory.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while let Err(error) = self.adopt().await {
            tracing::warn!(vm = self.key.name, error = %chain(&error), "cannot look after the machine yet");
            tokio::time::sleep(RETRY).await;
        }
        self.let_go().await;
        self.adjust_disks().await;
        self.adjust_interfaces().await;
        let wish = self.wish().await;
        self.feed(Event::Wished(wish)).await;
        // Where nothing is to be done, what the last agent told may not be so any more.
        self.report().await;
        while self.life.phase != Phase::Gone {
            let event = tokio::select! {
                changed = objects.changed() => {
                    let newest = objects.borrow_and_update().clone();
                    match newest {
                        Some(object) if changed.is_ok() => self.object = object,
                        _ => self.vanish().await,
                    }
                    self.adjust().await;
                    Event::Wished(self.wish().await)
                }
                event = next(&mut self.events) => match self.heard(event).await {
                    Some(event) => event,
                    None => continue,
                },
                mac = acknowledged.recv() => {
                    if mac.is_ok_and(|mac| serve::is_first(&self.places, mac)) && !self.answered {
                        self.answered = true;
                        self.report().await;
                    }
                    continue;
                }
                () = sleep_until(self.patience) => { self.patience = None; self.answered = true; self.report().await; continue; }
                () = sleep_until(self.timer) => { self.timer = None; Event::Timer }
                () = sleep_until(self.retry) => {
                    self.retry = None;
                    self.let_go().await;
                    self.report().await;
                    self.try_again().await
                }
                () = sleep_until(self.space) => { self.space = None; self.go_on().await; continue; }
                () = sleep_until(self.disks_retry) => { self.adjust_disks().await; self.report().await; continue; }
                () = sleep_until(self.interfaces_retry) => { self.interfaces_retry = None; self.adjust().await; continue; }
                _ = look.tick() => { self.bound_console().await; continue; }
                _ = memory.tick(), if self.object.spec.memory_minimum.is_some() => { self.look_at_memory().await; continue; }
            };
            self.feed(event).await;
        }
        self.context.guests.remove(&self.key, &self.uid);
    }

    /// What is wished. A guest that runs is not ended for a disk that cannot be made, nor started over in place when it was to start from
    /// that disk.
    async fn wish(&mut self) -> Wish {
        let mut wish = status::wish(&self.object, &self.status);
        let failed = match self.guest.is_some() && wish.root != Root::Same {
            true => root::check(&self.context, &self.object, &self.status).await.err(),
            false => None,
        };
        if failed.is_some() {
            wish.root = Root::Same;
            wish.restart_request = self.life.observed_restart;
            self.retry = Some(Instant::now() + RETRY);
        }
        if self.told_of(Check::Root, failed.map(|error| chain(&error))) {
            self.report().await;
        }
        wish
    }

    /// Says in the status why something cannot be; when it can, what was said of that goes. Whether something went.
    fn told_of(&mut self, check: Check, why: Option<String>) -> bool {
        let before = self.told.remove(&check);
        match why {
            Some(why) => {
                if check != Check::Root && before.as_deref() != Some(why.as_str()) {
                    self.say("CannotAdjust", &why);
                }
                self.status.message.clone_from(&why);
                self.told.insert(check, why);
                false
            }
            None => {
                let said = before.is_some_and(|said| said == self.status.message);
                if said {
                    self.status.message.clear();
                }
                said
            }
        }
    }

    /// The object is gone without having waited for us, or is another machine's now: what is here goes.
    async fn vanish(&mut self) {
        // What another machine still lacks of its memory is here alone.
        while at_source(false, Seen::Sent, self.context.giving.has(&self.uid), false) == Act::Wait {
            self.context.giving.until_over(&self.uid).await;
        }
        self.vanished = true;
        let mut object = (*self.object).clone();
        object.metadata.deletion_timestamp.get_or_insert(Time(Timestamp::now()));
        self.object = Arc::new(object);
    }

    /// Where the memory of a suspended guest is. The file is there from the instant that it is whole until the guest goes on,
    /// from it or without it; so where it is, and no process, the guest is suspended, whatever was told of it.
    fn memory_file(&self) -> std::path::PathBuf {
        self.context.guests.directory(&self.uid).join("sleep")
    }

    /// Whether that memory is there. Where that cannot be told it is: nothing is given up for an error.
    fn may_sleep(&self) -> bool {
        self.memory_file().try_exists().unwrap_or(true)
    }

    /// Forgets that memory, durably: its guest goes on without it.
    async fn drop_memory(&self) -> Result<()> {
        Ok(hypervisor::sleep::forget(&self.memory_file()).await?)
    }

    fn take(&mut self, guest: Arc<dyn Guest>) {
        self.events = Some(guest.events());
        self.context.guests.runs(&self.key, &self.uid, Some(guest.clone()));
        self.guest = Some(guest);
        self.patience = (!self.answered).then(|| Instant::now() + ANSWER_PATIENCE);
    }

    /// Makes the deletion of the object wait for us.
    async fn hold(&self) -> Result<()> {
        let finalizers = self.object.metadata.finalizers.clone().unwrap_or_default();
        if finalizers.iter().any(|one| one == AGENT_FINALIZER) || self.object.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let list: Vec<String> = finalizers.into_iter().chain([AGENT_FINALIZER.to_owned()]).collect();
        self.patch_object(
            json!({"metadata": {"finalizers": list, "resourceVersion": self.object.metadata.resource_version}}),
        )
        .await
    }

    fn objects(&self) -> Api<VirtualMachine> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }

    async fn patch_object(&self, patch: Value) -> Result<()> {
        match self.objects().patch(&self.key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            // Somebody changed it; the newest comes by the watch.
            Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(()),
            Err(error) => Err(Error::api("change the machine's object")(error)),
        }
    }

    /// What can change while it runs.
    async fn adjust(&mut self) {
        if let Err(error) = self.hold().await {
            tracing::warn!(vm = self.key.name, error = %chain(&error), "cannot hold the object");
        }
        // Volumes that wait are tried again in their time: an attempt may write into this object, and would call for the next one.
        if self.disks_retry.is_none() || self.disks_generation != self.object.metadata.generation {
            self.disks_generation = self.object.metadata.generation;
            self.adjust_disks().await;
        }
        if self.interfaces_retry.is_none() || self.interfaces_generation != self.object.metadata.generation {
            self.interfaces_generation = self.object.metadata.generation;
            self.adjust_interfaces().await;
        }
        let Some(guest) = self.guest.clone() else { return self.let_go().await };
        let adjusted = async {
            let size = start::size_of(&self.context, &self.object).await?;
            self.adjust_memory(&guest, &size).await?;
            if size.cpus > self.status.cpus {
                self.status.cpus = guest.set_cpus(size.cpus).await?;
            }
            if !self.places.is_empty() {
                self.status.ports = serve::publish(&self.context, &self.object, &self.uid, &self.places).await?;
            }
            nics::guard(&self.context, &self.object, &self.uid, &mut self.places).await
        };
        let adjusted: Result<()> = adjusted.await;
        self.told_of(Check::Size, adjusted.err().map(|error| chain(&error)));
        self.note_addresses();
        self.report().await;
    }

    /// What an event of the guest means.
    async fn heard(&mut self, event: Option<GuestEvent>) -> Option<Event> {
        let guest = self.guest.clone()?;
        match event {
            Some(GuestEvent::Gone) => return Some(Event::Crashed),
            Some(GuestEvent::Memory) => {
                if let Ok(told) = guest.memory().await {
                    self.status.memory_bytes = i64::try_from(told.actual_bytes).unwrap_or(i64::MAX);
                    self.report().await;
                }
            }
            Some(GuestEvent::Restarted) => {
                self.answered = !self.will_ask();
                self.patience = (!self.answered).then(|| Instant::now() + ANSWER_PATIENCE);
                self.report().await;
            }
            Some(GuestEvent::Changed) | None => match guest.state().await {
                Ok(RunState::Off) => return Some(Event::Off),
                Ok(RunState::Panicked) | Err(_) => return Some(Event::Crashed),
                Ok(RunState::OutOfSpace) => {
                    self.wait_for_space();
                    self.report().await;
                }
                Ok(RunState::Running | RunState::Paused | RunState::Sent | RunState::Receiving) => {}
            },
        }
        None
    }

    async fn feed(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            self.forgive(event).await;
            if event == Event::Crashed {
                self.say("Crashed", "the guest ended by itself");
                self.status.restart_count += 1;
            }
            let restarted = self.life.observed_restart;
            for action in step(&mut self.life, event, self.context.now()) {
                match action {
                    Action::Start { resuming } => {
                        if !resuming {
                            self.let_go().await;
                        }
                        next = Some(self.start(resuming).await);
                    }
                    Action::Suspend => next = Some(self.suspend().await),
                    Action::Wake(at) => self.timer = Some(self.context.at(at)),
                    Action::Report => self.report().await,
                    Action::Clear => next = self.clear().await,
                    other => self.simple(other, restarted).await,
                }
            }
        }
    }

    /// Why a guest could not be woken is of no interest to who wishes something else.
    async fn forgive(&mut self, event: Event) {
        let is_other = matches!(event, Event::Wished(wish) if wish.desired != self.life.wish.desired);
        if is_other && self.failed && self.life.phase == Phase::Suspended {
            self.failed = false;
            self.status.message.clear();
            self.report().await;
        }
    }

    /// Does what has no answer. `restarted`: the request to start over that was taken up before this one.
    async fn simple(&mut self, action: Action, restarted: i64) {
        let done = match (action, self.guest.clone()) {
            (Action::Kill, _) => self.kill().await,
            (Action::PressPower, Some(guest)) => guest.power_button().await.map_err(Error::from),
            (Action::Reset, Some(guest)) => guest.reset().await.map_err(Error::from),
            (Action::Pause, Some(guest)) => guest.pause().await.map_err(Error::from),
            (Action::Resume, Some(guest)) => guest.resume().await.map_err(Error::from),
            (Action::DropMemory, _) => self.drop_memory().await,
            _ => Ok(()),
        };
        let Err(error) = done else { return };
        if action != Action::Reset {
            tracing::warn!(vm = self.key.name, error = %chain(&error), ?action, "action failed");
            return;
        }
        // One that moves is started over when it has, here or there: until then that stays asked for.
        tracing::debug!(vm = self.key.name, error = %chain(&error), "not started over yet");
        self.life.observed_restart = restarted;
        self.retry = Some(Instant::now() + RETRY);
    }
}

async fn next(events: &mut Option<broadcast::Receiver<GuestEvent>>) -> Option<GuestEvent> {
    match events {
        Some(receiver) => match receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => None,
            Err(broadcast::error::RecvError::Closed) => Some(GuestEvent::Gone),
        },
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
