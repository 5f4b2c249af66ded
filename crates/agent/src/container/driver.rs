//! The task of one container: feeds events to the pure core and carries out its actions, one after another.

mod networks;
mod report;
mod runs;

use std::sync::Arc;
use std::time::Duration;

use api::container::{Container, ContainerStatus, Desired, HealthResult, ResourceUpdate, Resources, State};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use runtime::{ContainerState, ExitRecord};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::handle::Handle;
use super::late::Late;
use super::places::Taken;
use super::start;
use super::step::{self, Action, Event, Machine, STOP_TIMEOUT_DEFAULT, Wish};
use super::{health, spec};
use crate::context::{Context, Key};
use crate::error::{Error, Result, chain};
use runs::clear_late;

/// Exit code of a container that ended while nobody looked. Source: moby, after a reboot.
const EXIT_UNKNOWN: i32 = 255;
/// Annotation by which a client sets the time of one stop. Units: seconds.
pub const STOP_TIMEOUT_ANNOTATION: &str = "nuee.dev/stop-timeout";
/// Annotation by which a client sets the signal of one stop.
const STOP_SIGNAL_ANNOTATION: &str = "nuee.dev/stop-signal";

/// What comes from the driver's own helpers.
#[derive(Debug)]
pub enum Input {
    /// The main process ended.
    Exited(ExitRecord),
    /// A health check was done.
    Health(HealthResult),
}

struct Driver {
    context: Arc<Context>,
    key: Key,
    id: String,
    handle: Arc<Handle>,
    object: Arc<Container>,
    machine: Machine,
    status: ContainerStatus,
    /// The status that the apiserver has.
    written: Value,
    sender: mpsc::Sender<Input>,
    helpers: Vec<JoinHandle<()>>,
    /// A start that was given up.
    late: Late,
    timer: Option<Instant>,
    retry: Option<Instant>,
    /// When networks that could not be joined are tried again.
    networks_retry: Option<Instant>,
    releasing: bool,
    /// It goes by itself, and its object could not be deleted yet.
    overdue: bool,
    /// The object is deleted by us: until that is seen, older states of it may still come, and are no new container.
    deletes: bool,
    /// What the object says of itself in the newest version that is known.
    newest: ObjectMeta,
    /// Bounds that the process was started with.
    bounds: Resources,
}

/// Whether the process of what was found lives.
pub fn is_alive(found: &ContainerState) -> bool {
    found.exit.is_none() && found.pid > 0 && found.started_at_ns > 0
}

/// Starts the task of a container that has its place; `found` is what the runtime has of it.
pub fn spawn(context: Arc<Context>, taken: Taken, found: Option<ContainerState>) {
    let Taken { key, object, handle, objects } = taken;
    let id = handle.id.clone();
    let running = found.as_ref().is_some_and(is_alive);
    context.arrivals.notify_waiters();
    let status = object.status.clone().unwrap_or_default();
    let written = serde_json::to_value(&status).unwrap_or_default();
    let (sender, inbox) = mpsc::channel(16);
    let machine = if running {
        Machine::adopted(status.observed_start, status.restart_count, context.now(), status.state == State::Paused)
    } else {
        let ever = status.started_at.is_some();
        Machine::new(status.observed_start, status.restart_count, ever)
    };
    let bounds = object.spec.resources.clone();
    let driver = Driver {
        newest: object.metadata.clone(),
        bounds,
        context,
        key,
        id,
        handle,
        object,
        machine,
        status,
        written,
        sender,
        helpers: Vec::new(),
        late: Late::default(),
        timer: None,
        retry: None,
        networks_retry: None,
        releasing: false,
        overdue: false,
        deletes: false,
    };
    let stop = driver.context.stop.clone();
    tokio::spawn(stop.run_until_cancelled_owned(driver.run(objects, inbox, found)));
}

impl Driver {
    async fn run(
        mut self,
        mut objects: watch::Receiver<Option<Arc<Container>>>,
        mut inbox: mpsc::Receiver<Input>,
        found: Option<ContainerState>,
    ) {
        self.adopt(found).await;
        self.feed(Event::Wished(wish(&self.object))).await;
        loop {
            let event = tokio::select! {
                changed = objects.changed() => {
                    let newest = objects.borrow_and_update().clone();
                    match newest {
                        // Another of the same name is another container: this one is gone.
                        Some(object) if changed.is_ok() && object.metadata.uid == self.object.metadata.uid => {
                            self.saw(&object.metadata);
                            self.object = object;
                            self.adjust_networks().await;
                            self.adjust_bounds().await;
                            Event::Wished(wish(&self.object))
                        }
                        _ => Event::Vanished,
                    }
                }
                input = inbox.recv() => match input {
                    Some(Input::Exited(exit)) => self.exited(exit),
                    Some(Input::Health(result)) => { self.health(result).await; continue; }
                    None => continue,
                },
                () = sleep_until(self.timer) => { self.timer = None; Event::Timer }
                () = sleep_until(self.retry) => { self.retry = None; self.write_again().await; continue; }
                () = sleep_until(self.networks_retry) => { self.adjust_networks().await; continue; }
            };
            self.feed(event).await;
            let waits = self.releasing || self.deletes;
            if self.machine.phase == step::Phase::Gone && (self.machine.vanished || !waits) {
                break;
            }
        }
        self.stop_helpers();
        // One of the same name that came meanwhile was told to this driver alone.
        let (context, id, late) = (self.context.clone(), self.id.clone(), std::mem::take(&mut self.late));
        let clear = move || async move { clear_late(&context, &id, true).await };
        if let Some(next) = runs::leave(&self.context.containers, &self.handle, &self.object, late, clear).await {
            spawn(self.context, next, None);
        }
    }

    /// Takes over what runs; what ended while nobody looked gets its exit code.
    async fn adopt(&mut self, found: Option<ContainerState>) {
        let was_running = matches!(self.status.state, State::Running | State::Paused);
        match found {
            Some(state) if matches!(self.machine.phase, step::Phase::Running { .. }) => {
                self.status.pid = state.pid.into();
                if !was_running {
                    // The daemon died between the start and the status.
                    self.status.observed_start = self.object.spec.start_request;
                    self.machine.observed_start = self.object.spec.start_request;
                    self.status.started_at = time(state.started_at_ns);
                    self.status.state = State::Running;
                    self.report().await;
                }
                self.join_names().await;
                self.watch_run();
                self.take_up_networks().await;
            }
            found if was_running => {
                self.machine.phase = step::Phase::Running { since: self.context.now(), paused: false };
                let exit = found.and_then(|f| f.exit);
                let exit =
                    exit.unwrap_or(ExitRecord { code: EXIT_UNKNOWN, out_of_memory: false, finished_at_ns: now_ns() });
                self.machine.wish = wish(&self.object);
                let event = self.exited(exit);
                self.feed(event).await;
            }
            // Created but never started, or ended and written down: nothing of the run is wanted.
            Some(_) => start::end_run(&self.context, &self.id).await,
            None => {}
        }
        if self.machine.phase == step::Phase::Idle && self.object.goes_by_itself() {
            // The daemon died between the exit, or a start that failed, and the removal.
            self.remove_object().await;
        }
        if self.status.state == State::Restarting && self.machine.phase == step::Phase::Idle {
            self.machine.phase = step::Phase::Waiting { until: self.context.now() + step::BACKOFF_FIRST };
            self.timer = Some(Instant::now() + step::BACKOFF_FIRST);
        }
    }

    /// Brings changed bounds into force while the process runs, and tells what came of it.
    async fn adjust_bounds(&mut self) {
        let wanted = &self.object.spec.resources;
        let now = self.status.resource_update.as_ref().map_or(&self.bounds, |update| &update.resources);
        if now == wanted || !matches!(self.machine.phase, step::Phase::Running { .. }) {
            return;
        }
        let updated = self
            .context
            .runtime
            .update(&self.id, &spec::bounds(&self.object.spec, self.context.container_pids_limit).resources())
            .await;
        let error = updated.err().map(|error| chain(&error)).unwrap_or_default();
        self.status.resource_update = Some(ResourceUpdate { resources: wanted.clone(), error });
        self.report().await;
    }

    async fn feed(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let actions = step::step(&mut self.machine, event, self.context.now());
            let ends = actions.contains(&Action::EndRun) && actions.contains(&Action::Report);
            let last = actions.contains(&Action::Remove) && !self.machine.wish.deleted;
            for action in actions {
                match action {
                    // The end of a run is told while its remains are cleared.
                    Action::EndRun if ends => self.end_run_and_report(last).await,
                    Action::Report if ends => {}
                    Action::EndRun => self.end_run().await,
                    Action::Report => self.report().await,
                    Action::Wake(at) => self.timer = Some(self.context.at(at)),
                    Action::Start => next = Some(self.start().await),
                    Action::End => next = self.end_without_shim().await,
                    Action::Remove => {
                        start::leave_network(&self.context, &self.id).await;
                        start::remove(&self.context, &self.id).await;
                        next = Some(Event::Removed);
                    }
                    action => self.simple(action).await,
                }
            }
        }
    }

    async fn simple(&mut self, action: Action) {
        let (runtime, id) = (self.context.runtime.clone(), self.id.clone());
        let id = id.as_str();
        let result = match action {
            Action::Signal(signal) => self.signal(signal).await,
            Action::Pause => runtime.pause(id).await.map_err(Error::from),
            Action::Resume => runtime.resume(id).await.map_err(Error::from),
            Action::Release => self.release().await,
            _ => Ok(()),
        };
        if let Err(error) = result {
            tracing::warn!(id, error = %chain(&error), ?action, "container action failed");
        }
    }

    /// Sends a signal by way of the shim. SIGKILL is repeated: one that hangs must not hold up what follows it.
    async fn signal(&self, signal: i32) -> Result<()> {
        let sent = self.context.runtime.kill(&self.id, signal);
        if signal != step::SIGKILL {
            return sent.await.map_err(Error::from);
        }
        let sent = tokio::time::timeout(step::KILL_REPEAT, sent).await;
        sent.map_err(|_| Error::Timeout("the shim"))?.map_err(Error::from)
    }

    async fn health(&mut self, result: HealthResult) {
        if !matches!(self.machine.phase, step::Phase::Running { .. }) {
            return;
        }
        let Some(check) = health::wanted(&self.object.spec) else { return };
        let since = self.status.started_at.as_ref().map(|t| Timestamp::now().duration_since(t.0)).unwrap_or_default();
        health::judge(&mut self.status, &check, result, Duration::try_from(since).unwrap_or_default());
        self.report().await;
    }
}

/// The parts of an object that decide.
fn wish(object: &Container) -> Wish {
    let spec = &object.spec;
    let annotations = object.metadata.annotations.as_ref();
    let asked = annotations.and_then(|a| a.get(STOP_TIMEOUT_ANNOTATION)).and_then(|s| s.trim().parse::<i64>().ok());
    let signal = annotations.and_then(|a| a.get(STOP_SIGNAL_ANNOTATION)).and_then(|s| spec::signal(s));
    let stop_timeout = match asked.or(spec.stop_timeout_seconds) {
        None => Some(STOP_TIMEOUT_DEFAULT),
        Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
    };
    Wish {
        desired: spec.desired,
        start_request: if spec.desired == Desired::Created { 0 } else { spec.start_request },
        restart_policy: spec.restart_policy.clone(),
        auto_remove: spec.auto_remove,
        deleted: object.metadata.deletion_timestamp.is_some(),
        stop_timeout,
        stop_signal: signal.or_else(|| spec::signal(&spec.stop_signal)).unwrap_or(libc::SIGTERM),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn now_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

fn time(nanoseconds: i64) -> Option<MicroTime> {
    (nanoseconds > 0).then(|| Timestamp::from_nanosecond(nanoseconds.into()).ok()).flatten().map(MicroTime)
}
