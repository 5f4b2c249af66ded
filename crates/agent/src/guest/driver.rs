//! The task of one machine: feeds events to the pure life cycle and carries out its actions, one after another.

use std::sync::Arc;
use std::time::Duration;

use api::migration::{Act, Record, Seen, at_target};
use api::names::AGENT_FINALIZER;
use api::quantity::whole;
use api::{VirtualMachine, VirtualMachineStatus};
use hypervisor::life::{self, Action, Event, Life, Phase};
use hypervisor::{Guest, GuestEvent, RunState, Start};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::Resource;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::disks::attach;
use super::start::{self, Place};
use super::{moving, status};
use crate::context::{Context, Key};
use crate::error::{Error, Result, chain, is_not_found};
use crate::events::Kind;
use crate::patch;

/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Pause before volumes that could not be had, or given back, are tried again.
const DISKS_RETRY: Duration = Duration::from_secs(2);
/// Pause before a guest whose disk had no space is let go on.
const SPACE_RETRY: Duration = Duration::from_secs(5);
/// A guest that runs so long without asking for its address counts as booted: it may have one of its own.
const ANSWER_PATIENCE: Duration = Duration::from_secs(180);
/// Size at which a console's log is cut to its second half. Units: bytes.
const CONSOLE_BYTES_MAX: u64 = 4 << 20;
/// How often a guest is asked how much memory it uses.
const MEMORY_LOOK: Duration = Duration::from_secs(2);
/// Less than this is no change worth a write. Units: bytes.
const MEMORY_TRIFLE: u64 = 4 << 20;
/// How often the log's size is looked at.
const CONSOLE_LOOK: Duration = Duration::from_secs(10);

struct Driver {
    context: Arc<Context>,
    key: Key,
    uid: String,
    object: Arc<VirtualMachine>,
    life: Life,
    guest: Option<Arc<dyn Guest>>,
    events: Option<broadcast::Receiver<GuestEvent>>,
    place: Option<Place>,
    status: VirtualMachineStatus,
    /// The status that the apiserver has.
    written: Value,
    /// The guest has taken its address.
    answered: bool,
    failed: bool,
    disks: attach::Seen,
    /// The guest has started, and the bounds of its volumes are not set yet.
    unbounded: bool,
    /// The object is no longer this machine's to write.
    vanished: bool,
    timer: Option<Instant>,
    retry: Option<Instant>,
    space: Option<Instant>,
    disks_retry: Option<Instant>,
    patience: Option<Instant>,
}

/// Starts the task of one machine.
pub fn spawn(context: Arc<Context>, key: Key, object: Arc<VirtualMachine>) {
    let Some(uid) = object.metadata.uid.clone() else { return };
    let objects = context.guests.add(key.clone(), uid.clone(), object.clone());
    let status = object.status.clone().unwrap_or_default();
    let written = serde_json::to_value(&status).unwrap_or_default();
    let life = Life::down(status.observed_restart, false, false);
    let answered = status.conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True");
    let stop = context.stop.clone();
    let driver = Driver {
        context,
        key,
        uid,
        object,
        life,
        guest: None,
        events: None,
        place: None,
        status,
        written,
        answered,
        failed: false,
        disks: attach::Seen::default(),
        unbounded: false,
        vanished: false,
        timer: None,
        retry: None,
        space: None,
        disks_retry: None,
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
        self.adjust_disks().await;
        self.feed(Event::Wished(status::wish(&self.object))).await;
        while self.life.phase != Phase::Gone {
            let event = tokio::select! {
                changed = objects.changed() => {
                    let newest = objects.borrow_and_update().clone();
                    match newest {
                        Some(object) if changed.is_ok() => self.object = object,
                        _ => self.vanish(),
                    }
                    self.adjust().await;
                    Event::Wished(status::wish(&self.object))
                }
                event = next(&mut self.events) => match self.heard(event).await {
                    Some(event) => event,
                    None => continue,
                },
                mac = acknowledged.recv() => {
                    if mac.is_ok_and(|mac| start::is_of(self.place.as_ref(), mac)) && !self.answered {
                        self.answered = true;
                        self.report().await;
                    }
                    continue;
                }
                () = sleep_until(self.patience) => { self.patience = None; self.answered = true; self.report().await; continue; }
                () = sleep_until(self.timer) => { self.timer = None; Event::Timer }
                () = sleep_until(self.retry) => { self.retry = None; self.report().await; self.try_to_clear().await }
                () = sleep_until(self.space) => { self.space = None; self.go_on().await; continue; }
                () = sleep_until(self.disks_retry) => { self.adjust_disks().await; self.report().await; continue; }
                _ = look.tick() => { self.bound_console().await; continue; }
                _ = memory.tick(), if self.object.spec.memory_minimum.is_some() => { self.look_at_memory().await; continue; }
            };
            self.feed(event).await;
        }
        self.context.guests.remove(&self.key, &self.uid);
    }

    /// The object is gone without having waited for us, or is another machine's now: what is here goes.
    fn vanish(&mut self) {
        self.vanished = true;
        let mut object = (*self.object).clone();
        object.metadata.deletion_timestamp.get_or_insert(Time(Timestamp::now()));
        self.object = Arc::new(object);
    }

    /// Takes over what runs, or finds out how it ended while nobody looked.
    async fn adopt(&mut self) -> Result<()> {
        self.hold().await?;
        let observed = self.status.observed_restart;
        let run_dir = self.context.guests.run_dir(&self.uid);
        if !run_dir.exists() {
            self.settle(observed);
            return Ok(());
        }
        match self.context.guests.hypervisor().await?.adopt(&run_dir).await {
            Ok(Some(guest)) => {
                let Some(state) = self.settle_moved(&guest).await? else {
                    hypervisor::qemu::driver::kill(&run_dir).await?;
                    self.settle(observed);
                    return Ok(());
                };
                self.life = Life::adopted(observed, state == RunState::Paused, self.context.now());
                self.status.pid = guest.pid();
                // Before anybody can send it on. It is never part of a report, which would be written over the next handover.
                moving::source::forget_handover(&self.context, &self.key).await;
                // Copies that were under way are begun anew by whoever wants them.
                guest.copy_disks(&[], &watch::Sender::new((0, 0))).await?;
                self.take(guest);
                self.place = Some(start::join(&self.context, &self.object, &self.uid).await?);
                self.status.ports = start::publish(&self.context, &self.object, &self.uid, self.place()?).await?;
                if matches!(state, RunState::Off | RunState::Panicked) {
                    let event = if state == RunState::Off { Event::Off } else { Event::Crashed };
                    self.life.wish = status::wish(&self.object);
                    self.feed(event).await;
                }
            }
            Ok(None) => self.settle(observed),
            Err(error) => {
                // It runs and does not talk: nobody could ever use it again.
                tracing::warn!(vm = self.key.name, error = %chain(&error), "ending a guest that does not answer");
                hypervisor::qemu::driver::kill(&run_dir).await?;
                self.settle(observed);
            }
        }
        Ok(())
    }

    /// Decides about a guest that moves or has moved: its state, or `None` when it can never run here.
    async fn settle_moved(&self, guest: &Arc<dyn Guest>) -> Result<Option<RunState>> {
        let marker = moving::marker(&self.context, &self.uid);
        let (state, came) = (guest.state().await?, marker.exists());
        let record = Record { bound_here: true, handed_over: false };
        let seen = match state {
            RunState::Receiving => Seen::Receiving,
            RunState::Paused if came => Seen::Received,
            RunState::Sent => Seen::Sent,
            _ => Seen::Running,
        };
        if seen == Seen::Sent {
            guest.forget_send().await?;
            moving::source::reclaim(&self.context, &self.key, guest).await?;
            return Ok(Some(guest.state().await?));
        }
        let act = at_target(record, seen, false);
        if came {
            // From here on it is a guest like any other; one that is found paused is let go on by its life.
            std::fs::remove_file(&marker).map_err(Error::io("remove", &marker))?;
        }
        match act {
            Act::Run => {
                guest.resume().await?;
                Ok(Some(guest.state().await?))
            }
            Act::End => Ok(None),
            _ => {
                guest.forget_send().await?;
                Ok(Some(state))
            }
        }
    }

    /// No process was found: what the last status says decides.
    fn settle(&mut self, observed: i64) {
        use api::virtual_machine::MachinePhase as Was;
        let memory = self.memory_file().exists();
        let ended_alone = matches!(self.status.phase, Was::Running | Was::Paused | Was::Stopping);
        let never = status::wish(&self.object).policy == life::Policy::Never;
        let stays_off = self.status.phase == Was::Stopped || (ended_alone && never);
        self.life = Life::down(observed, stays_off, memory && self.status.phase == Was::Suspended);
        self.answered = false;
    }

    fn memory_file(&self) -> std::path::PathBuf {
        self.context.guests.directory(&self.uid).join("memory")
    }

    fn place(&self) -> Result<&Place> {
        self.place.as_ref().ok_or_else(|| Error::Invalid("the machine is on no network".into()))
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
        self.adjust_disks().await;
        let Some(guest) = self.guest.clone() else { return };
        let adjusted = async {
            let size = start::size_of(&self.context, &self.object).await?;
            let target = self.object.spec.memory_target.as_ref().and_then(|quantity| whole(&quantity.0));
            let target = target.filter(|bytes| *bytes > 0).unwrap_or(size.memory_bytes).min(size.memory_bytes);
            if target != self.status.memory_bytes {
                guest.set_memory(u64::try_from(target).unwrap_or(0)).await?;
            }
            if size.cpus > self.status.cpus {
                self.status.cpus = guest.set_cpus(size.cpus).await?;
            }
            if self.place.is_some() {
                self.status.ports = start::publish(&self.context, &self.object, &self.uid, self.place()?).await?;
            }
            start::guard(&self.context, &self.object, &self.uid).await
        };
        if let Err(error) = adjusted.await {
            self.say("CannotAdjust", &chain(&error));
            self.status.message = chain(&error);
        }
        self.report().await;
    }

    /// Brings its volumes to what the object says. A suspended guest must find what it had.
    async fn adjust_disks(&mut self) {
        self.disks_retry = None;
        if self.object.metadata.deletion_timestamp.is_some()
            || matches!(self.life.phase, Phase::Suspending | Phase::Suspended)
        {
            return;
        }
        match attach::reconcile(&self.context, &self.object, &self.uid, self.guest.as_ref()).await {
            Ok(seen) => {
                if !seen.pending.is_empty() && seen.pending != self.disks.pending {
                    self.say("CannotAttach", &seen.pending);
                }
                self.disks = seen;
            }
            Err(error) => self.disks.pending = chain(&error),
        }
        if let Some(guest) = self.guest.clone().filter(|_| self.unbounded) {
            match attach::bound(&self.context, &self.key, &self.uid, &guest).await {
                Ok(()) => self.unbounded = false,
                Err(error) => self.disks.pending = chain(&error),
            }
        }
        if !self.disks.pending.is_empty() {
            self.disks_retry = Some(Instant::now() + DISKS_RETRY);
        }
    }

    /// What an event of the guest means.
    async fn heard(&mut self, event: Option<GuestEvent>) -> Option<Event> {
        let guest = self.guest.clone()?;
        match event {
            Some(GuestEvent::Gone) => return Some(Event::Crashed),
            Some(GuestEvent::Memory(bytes)) => {
                self.status.memory_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                self.report().await;
            }
            Some(GuestEvent::Restarted) => {
                self.answered = false;
                self.patience = Some(Instant::now() + ANSWER_PATIENCE);
                self.report().await;
            }
            Some(GuestEvent::Changed) | None => match guest.state().await {
                Ok(RunState::Off) => return Some(Event::Off),
                Ok(RunState::Panicked) | Err(_) => return Some(Event::Crashed),
                Ok(RunState::OutOfSpace) => {
                    self.status.message = "its disk cannot be written: no space on the machine; it waits".into();
                    self.space = Some(Instant::now() + SPACE_RETRY);
                    self.report().await;
                }
                Ok(RunState::Running | RunState::Paused | RunState::Sent | RunState::Receiving) => {}
            },
        }
        None
    }

    async fn go_on(&mut self) {
        if let Some(guest) = self.guest.clone()
            && guest.resume().await.is_ok()
            && guest.state().await.is_ok_and(|state| state == RunState::Running)
        {
            self.status.message.clear();
            self.report().await;
        }
    }

    async fn feed(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            if event == Event::Crashed {
                self.say("Crashed", "the guest ended by itself");
                self.status.restart_count += 1;
            }
            for action in life::step(&mut self.life, event, self.context.now()) {
                match action {
                    Action::Start { resuming } => next = Some(self.start(resuming).await),
                    Action::Suspend => next = Some(self.suspend().await),
                    Action::Wake(at) => self.timer = Some(self.context.at(at)),
                    Action::Report => self.report().await,
                    Action::Clear => next = self.clear().await,
                    other => self.simple(other).await,
                }
            }
        }
    }

    async fn simple(&mut self, action: Action) {
        let done = match (action, self.guest.clone()) {
            (Action::Kill, _) => self.kill().await,
            (Action::PressPower, Some(guest)) => guest.power_button().await.map_err(Error::from),
            (Action::Reset, Some(guest)) => guest.reset().await.map_err(Error::from),
            (Action::Pause, Some(guest)) => guest.pause().await.map_err(Error::from),
            (Action::Resume, Some(guest)) => guest.resume().await.map_err(Error::from),
            (Action::DropMemory, _) => {
                let file = self.memory_file();
                std::fs::remove_file(&file).map_err(Error::io("remove", file))
            }
            _ => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(vm = self.key.name, error = %chain(&error), ?action, "action failed");
        }
    }

    async fn kill(&mut self) -> Result<()> {
        self.events = None;
        self.guest = None;
        self.disks.attached.clear();
        self.context.guests.runs(&self.key, &self.uid, None);
        self.answered = false;
        self.patience = None;
        let run_dir = self.context.guests.run_dir(&self.uid);
        hypervisor::qemu::driver::kill(&run_dir).await?;
        crate::directories::remove(&run_dir)
    }

    async fn start(&mut self, resuming: bool) -> Event {
        match self.try_start(resuming).await {
            Ok(()) => {
                self.failed = false;
                self.status.message.clear();
                self.adjust_disks().await;
                Event::Started
            }
            Err(error) => {
                self.failed = true;
                let message = chain(&error);
                if self.status.message != message {
                    self.say("FailedStart", &message);
                }
                self.status.message = message;
                if matches!(error, Error::NotYet(_)) && !resuming { Event::StartLater } else { Event::StartFailed }
            }
        }
    }

    async fn try_start(&mut self, resuming: bool) -> Result<()> {
        let size = start::size_of(&self.context, &self.object).await?;
        let place = start::join(&self.context, &self.object, &self.uid).await?;
        self.status.addresses = vec![place.address()];
        self.place = Some(place);
        self.status.ports = start::publish(&self.context, &self.object, &self.uid, self.place()?).await?;
        let memory = self.memory_file();
        let how = if resuming { Start::Resume(memory.clone()) } else { Start::Boot };
        // A guest that resumes has its address.
        self.answered = resuming;
        let prepared = attach::prepare(&self.context, &self.object, &self.uid, resuming).await?;
        let volumes = prepared.disks.clone();
        let guest =
            start::start(&self.context, &self.object, &self.uid, &size, self.place()?, how, None, volumes).await?;
        drop(prepared);
        self.unbounded = true;
        if resuming {
            std::fs::remove_file(&memory).map_err(Error::io("remove", memory))?;
        }
        self.status.pid = guest.pid();
        self.status.started_at = Some(Time(Timestamp::now()));
        self.status.cpus = size.cpus;
        self.status.memory_bytes = size.memory_bytes;
        self.status.acceleration = self.context.guests.hypervisor().await?.acceleration().to_string();
        self.take(guest);
        Ok(())
    }

    async fn suspend(&mut self) -> Event {
        let Some(guest) = self.guest.clone() else { return Event::SuspendFailed };
        let file = self.memory_file();
        // What an earlier attempt left.
        let _ = std::fs::remove_file(&file);
        self.events = None;
        match guest.suspend(&file).await {
            Ok(()) => {
                self.guest = None;
                self.context.guests.runs(&self.key, &self.uid, None);
                Event::Suspended
            }
            Err(error) => {
                self.events = Some(guest.events());
                self.status.message = chain(&error);
                Event::SuspendFailed
            }
        }
    }

    /// Takes away everything of the machine; tried again until it works.
    async fn clear(&mut self) -> Option<Event> {
        match self.try_clear().await {
            Ok(()) => Some(Event::Cleared),
            Err(error) => {
                tracing::warn!(vm = self.key.name, error = %chain(&error), "cannot clear the machine yet");
                self.retry = Some(Instant::now() + RETRY);
                None
            }
        }
    }

    async fn try_to_clear(&mut self) -> Event {
        if self.life.wish.deleted { self.clear().await.unwrap_or(Event::Timer) } else { Event::Timer }
    }

    async fn try_clear(&mut self) -> Result<()> {
        self.kill().await?;
        start::leave(&self.context, &self.uid, self.place.as_ref()).await?;
        let (layers, uid) = (self.context.guests.layers().await?, self.uid.clone());
        let released = tokio::task::spawn_blocking(move || layers.release(&uid)).await;
        released.map_err(|_| Error::Timeout("releasing the disk"))??;
        attach::give_all_back(&self.context, &self.key, &self.uid).await?;
        let directory = self.context.guests.directory(&self.uid);
        crate::directories::remove(&directory)?;
        self.context.guests.control_group(&self.uid)?.remove()?;
        if self.vanished {
            return Ok(());
        }
        let finalizers = self.object.metadata.finalizers.clone().unwrap_or_default();
        let rest: Vec<String> = finalizers.into_iter().filter(|one| one != AGENT_FINALIZER).collect();
        self.patch_object(json!({"metadata": {"uid": self.uid, "finalizers": rest}})).await
    }

    fn say(&self, reason: &'static str, message: &str) {
        let about: ObjectReference = self.object.object_ref(&());
        self.context.events.record(&about, Kind::Warning, reason, message);
    }

    async fn report(&mut self) {
        if self.vanished || self.life.wish.deleted && self.life.phase == Phase::Gone {
            return;
        }
        let generation = self.object.metadata.generation;
        let disks = (!self.object.spec.disks.is_empty() || !self.disks.pending.is_empty())
            .then(|| status::disks(&self.status.conditions, &self.disks, self.guest.is_some(), generation));
        self.status.disks.clone_from(&self.disks.attached);
        status::complete(&mut self.status, &self.life, self.answered, self.failed, generation);
        self.status.conditions.extend(disks);
        let now = serde_json::to_value(&self.status).unwrap_or_default();
        let Some(difference) = patch::difference(&self.written, &now) else { return };
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid}, "status": difference}));
        match self.objects().patch_status(&self.key.name, &PatchParams::default(), &patch).await {
            Ok(_) => self.written = now,
            Err(error) if is_not_found(&error) => {}
            Err(error) => {
                tracing::warn!(vm = self.key.name, error = %chain(&error), "cannot write the machine's status");
                self.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Tells how much memory the guest uses, when that has changed by more than a trifle.
    async fn look_at_memory(&mut self) {
        let Some(guest) = self.guest.clone() else { return };
        let Ok(told) = guest.memory().await else { return };
        let Ok(launched) = moving::launched(&self.context, &self.uid) else { return };
        let Some(used) = status::memory_used(&told, u64::try_from(launched.memory_bytes).unwrap_or(0)) else { return };
        let used = i64::try_from(used).unwrap_or(i64::MAX);
        let left = i64::try_from(told.actual_bytes).unwrap_or(i64::MAX);
        if used.abs_diff(self.status.memory_used) >= MEMORY_TRIFLE || left != self.status.memory_bytes {
            (self.status.memory_used, self.status.memory_bytes) = (used, left);
            self.report().await;
        }
    }

    /// Keeps the console's log from filling the disk: its older half goes.
    async fn bound_console(&self) {
        let path = self.context.guests.directory(&self.uid).join("console.log");
        let cut = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            if std::fs::metadata(&path).map_or(0, |found| found.len()) <= CONSOLE_BYTES_MAX {
                return Ok(());
            }
            let text = std::fs::read(&path)?;
            std::fs::write(path.with_extension("log.1"), &text[text.len() / 2..])?;
            // Whoever appends goes on at the new end.
            std::fs::OpenOptions::new().write(true).open(&path)?.set_len(0)
        });
        if let Ok(Err(error)) = cut.await {
            tracing::warn!(vm = self.key.name, %error, "cannot bound the console's log");
        }
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
