//! The task of one container: feeds events to the pure core and carries out its actions, one after another.

use std::sync::Arc;
use std::time::Duration;

use api::container::{
    Container, ContainerStatus, Desired, HealthResult, NetworkEndpoint, ResourceUpdate, Resources, State,
};
use api::names::AGENT_FINALIZER;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use runtime::{ContainerState, ExitRecord};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handle::Handle;
use super::late::Late;
use super::places::{self, Taken};
use super::start::{self, Running};
use super::step::{self, Action, Event, Machine, STOP_TIMEOUT_DEFAULT, Wish};
use super::told::{Told, refusal};
use super::{complete, health, spec};
use crate::context::{Context, Key};
use crate::error::{Error, Result, chain, is_not_found};
use crate::patch;
use crate::ports::{self, Held};

/// Exit code of a container that ended while nobody looked. Source: moby, after a reboot.
const EXIT_UNKNOWN: i32 = 255;
/// Exit code of a container that was ended without its shim: that of SIGKILL.
const EXIT_KILLED: i32 = 137;
/// Exit code of a start that failed for reasons other than the program. Source: moby `exitcode`.
const EXIT_START_FAILED: i64 = 128;
/// How long one start may take.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// Pause before a write that the apiserver refused is tried again.
const WRITE_RETRY: Duration = Duration::from_millis(500);
/// The same of one that it refuses for what it says.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// Pause before the network of a port that is not the container's own yet is tried again.
const NETWORKS_RETRY: Duration = Duration::from_secs(2);
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
        if let Some(next) = places::leave(&self.context.containers, &self.handle, &self.object) {
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

    /// After a restart of the daemon the name server must learn the names again.
    async fn join_names(&self) {
        for (name, endpoint) in start::wanted_networks(&self.object.spec) {
            let Some(place) = self.status.networks.get(&name) else { continue };
            let key = Key { namespace: self.key.namespace.clone(), name: name.clone() };
            let network = self.context.networks.ensure(&self.context.client, &self.context.directory, &key).await;
            let addresses: Vec<_> = [&place.ip, &place.ipv6].into_iter().filter_map(|a| a.parse().ok()).collect();
            if let Ok(network) = network
                && !addresses.is_empty()
                && network.id != network::DEFAULT_NETWORK
            {
                let (names, links) = (place.aliases.clone(), start::links(&endpoint));
                let netns = start::netns_path(&self.context, &self.id);
                self.context.directory.choose(&self.id, &self.object.spec.dns, &netns);
                self.context.directory.join(&network, &name, &self.id, addresses, names, links);
            }
        }
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
                        let (context, key, handle) = (self.context.clone(), self.key.clone(), self.handle.clone());
                        let clear = move || async move { clear_late(&context, &key, &handle, true).await };
                        std::mem::take(&mut self.late).leave(clear);
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

    /// Ends the run though its shim, which may hang, does not say that it ended. When that fails, it is tried again.
    async fn end_without_shim(&mut self) -> Option<Event> {
        tracing::warn!(id = self.id, "the end of the container is not seen; ending it without its shim");
        if let Err(error) = self.context.runtime.delete(&self.id).await {
            tracing::warn!(id = self.id, error = %chain(&error), "cannot end the container without its shim");
            return None;
        }
        // Who waits for its exit may have to wait for the shim.
        self.stop_helpers();
        Some(self.exited(ExitRecord { code: EXIT_KILLED, out_of_memory: false, finished_at_ns: now_ns() }))
    }

    async fn start(&mut self) -> Event {
        self.status.observed_start = self.machine.observed_start;
        self.status.restart_count = self.machine.restart_count;
        self.bounds = self.object.spec.resources.clone();
        match self.attempt().await {
            Ok(Running { pid, networks, ports, volume_paths }) => {
                let log_path = self.context.container_dir(&self.id).join(start::LOG_FILE);
                self.status = ContainerStatus {
                    pid: pid.into(),
                    networks,
                    ports,
                    volume_paths,
                    log_path: log_path.display().to_string(),
                    started_at: Some(MicroTime(Timestamp::now())),
                    observed_start: self.machine.observed_start,
                    restart_count: self.machine.restart_count,
                    finished_at: self.status.finished_at.clone(),
                    health: if health::wanted(&self.object.spec).is_some() { "starting".into() } else { String::new() },
                    ..ContainerStatus::default()
                };
                self.watch_run();
                Event::Started
            }
            Err(error) => {
                self.status.exit_code = match error {
                    Error::CannotStart { code, .. } => code.into(),
                    _ => EXIT_START_FAILED,
                };
                self.status.error = chain(&error);
                self.handle.disconnect(true);
                Event::StartFailed
            }
        }
    }

    /// One start within its time. What is late may still mount something, which is cleared then.
    async fn attempt(&mut self) -> Result<Running> {
        let (context, object, handle) = (self.context.clone(), self.object.clone(), self.handle.clone());
        let work = |given_up: CancellationToken| async move {
            let stop = context.stop.clone();
            let start = async {
                let complete = given_up.run_until_cancelled(complete::complete(&context, &object)).await;
                let object = complete.unwrap_or(Err(Error::Timeout("the start")))?;
                start::start(&context, &object, &handle.id, &handle, &given_up).await
            };
            stop.run_until_cancelled(start).await.unwrap_or(Err(Error::Timeout("the start")))
        };
        let (context, key, handle) = (self.context.clone(), self.key.clone(), self.handle.clone());
        let clear = move || async move { clear_late(&context, &key, &handle, false).await };
        self.late.within(START_TIMEOUT, work, clear).await.unwrap_or(Err(Error::Timeout("the start")))
    }

    /// Waits for the exit, and checks health.
    fn watch_run(&mut self) {
        let (context, id, sender) = (self.context.clone(), self.id.clone(), self.sender.clone());
        self.helpers.push(tokio::spawn(async move {
            let exit = context.runtime.wait_record(&id).await.unwrap_or_else(|error| {
                tracing::warn!(id, error = %chain(&error), "lost sight of the container");
                ExitRecord { code: EXIT_UNKNOWN, out_of_memory: false, finished_at_ns: now_ns() }
            });
            let _ = sender.send(Input::Exited(exit)).await;
        }));
        if let Some(check) = health::wanted(&self.object.spec) {
            let (context, id, sender) = (self.context.clone(), self.id.clone(), self.sender.clone());
            self.helpers.push(tokio::spawn(async move { health::run(&context, &id, &check, sender).await }));
        }
    }

    fn stop_helpers(&mut self) {
        self.helpers.drain(..).for_each(|helper| helper.abort());
    }

    fn exited(&mut self, exit: ExitRecord) -> Event {
        self.status.exit_code = exit.code.into();
        self.status.oom_killed = exit.out_of_memory;
        self.status.finished_at = time(exit.finished_at_ns);
        self.status.pid = 0;
        self.status.ports.clear();
        self.status.error = self.handle.take_reason();
        Event::Exited { code: exit.code }
    }

    async fn end_run(&mut self) {
        self.stop_helpers();
        self.handle.disconnect(false);
        start::end_run(&self.context, &self.id).await;
    }

    async fn end_run_and_report(&mut self, last: bool) {
        self.stop_helpers();
        self.handle.disconnect(false);
        let (context, id) = (self.context.clone(), self.id.clone());
        let tell = async {
            if !(last && self.report_last().await) {
                self.report().await;
            }
        };
        tokio::join!(start::end_run(&context, &id), tell);
    }

    /// Tells the end of the last run and takes our finalizer off in one write, so that the object is gone with one more once nothing
    /// of the container is left. Whoever deletes it before has it cleared as what vanished. Whether it was written; else it is told as
    /// any other, and let go of after its deletion.
    async fn report_last(&mut self) -> bool {
        self.status.state = self.machine.state();
        let change = serde_json::to_value(&self.status).ok().and_then(|new| patch::difference(&self.written, &new));
        let finalizers = self.newest.finalizers.iter().flatten().filter(|one| *one != AGENT_FINALIZER);
        let patch = Patch::Merge(json!({
            "metadata": {
                "finalizers": finalizers.collect::<Vec<_>>(),
                "resourceVersion": self.newest.resource_version,
            },
            "status": change.unwrap_or_else(|| json!({})),
        }));
        match self.objects().patch_status(&self.key.name, &PatchParams::default(), &patch).await {
            Ok(written) => {
                self.saw(&written.metadata);
                self.written = serde_json::to_value(&self.status).unwrap_or_default();
                true
            }
            Err(error) => {
                tracing::debug!(id = self.id, %error, "the container is not let go of with its last status");
                false
            }
        }
    }

    /// Notes what the object says of itself, unless a newer version is known.
    fn saw(&mut self, metadata: &ObjectMeta) {
        if metadata.uid != self.newest.uid {
            return;
        }
        let version = |of: &ObjectMeta| of.resource_version.as_deref().and_then(|text| text.parse::<u64>().ok());
        if version(metadata) >= version(&self.newest) {
            self.newest = metadata.clone();
        }
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

    /// Joins and leaves networks while the container runs.
    async fn adjust_networks(&mut self) {
        self.networks_retry = None;
        if !matches!(self.machine.phase, step::Phase::Running { .. }) {
            return;
        }
        let (new, gone) = start::network_changes(&self.object.spec, &self.status.networks);
        if new.is_empty() && gone.is_empty() {
            return;
        }
        let netns = start::netns_path(&self.context, &self.id);
        for name in gone {
            self.leave_network(&name).await;
        }
        let (port, new) = self.port_among(new).await;
        for (name, endpoint) in new {
            let further = !self.status.networks.is_empty();
            let (context, object) = (self.context.clone(), self.object.clone());
            match start::join_network(
                &context,
                &self.key.namespace,
                &self.id,
                &object.spec,
                &netns,
                &name,
                &endpoint,
                port.as_ref(),
                further,
            )
            .await
            {
                Ok((place, _)) => drop(self.status.networks.insert(name, place)),
                Err(error) => tracing::warn!(id = self.id, error = %chain(&error), "cannot join a network"),
            }
        }
        self.report().await;
    }

    /// Takes the container off a network, whose object may be gone or another by now. What cannot be now is tried again, and is told until
    /// then: the container has its address and access.
    async fn leave_network(&mut self, name: &str) {
        let attachments = self.context.fabric.list().attachments;
        let place = self.status.networks.get(name);
        if let Some(network) = place.and_then(|place| start::network_behind(&attachments, &self.id, &place.ip)) {
            if let Err(error) = self.context.fabric.detach(&self.id, network).await {
                tracing::warn!(id = self.id, error = %chain(&error), "cannot leave a network yet");
                self.networks_retry = Some(Instant::now() + NETWORKS_RETRY);
                return;
            }
            self.context.directory.leave(&self.id, Some(network));
        }
        self.status.networks.remove(name);
    }

    /// Its port, if one of these networks is that one's, and those of them that can be joined: on its port's network it is on its port, or
    /// not at all, as nobody would guard it. Nobody waits for the port here: the container runs, and is tried again.
    async fn port_among(
        &mut self,
        mut new: Vec<(String, NetworkEndpoint)>,
    ) -> (Option<Held>, Vec<(String, NetworkEndpoint)>) {
        let label = self.object.spec.labels.get(api::port::LABEL).filter(|name| !name.is_empty()).cloned();
        let Some(name) = label.filter(|_| !new.is_empty()) else { return (None, new) };
        let uid = self.object.metadata.uid.clone().unwrap_or_default();
        let (error, network) = match ports::held(&self.context, &self.key, &name, &uid).await {
            Ok(held) => match start::is_on(&held, &new) {
                Ok(is_on) => return (is_on.then_some(held), new),
                Err(error) => (error, Ok(Some(held.network))),
            },
            Err(error) => {
                self.networks_retry = Some(Instant::now() + NETWORKS_RETRY);
                (error, ports::network_of(&self.context, &self.key.namespace, &name).await)
            }
        };
        tracing::warn!(id = self.id, port = name, error = %chain(&error), "cannot join the network of a port");
        match network {
            Ok(Some(network)) => new.retain(|(own, _)| *own != network),
            // It may be any of them.
            Ok(None) | Err(_) => new.clear(),
        }
        (None, new)
    }

    async fn report(&mut self) {
        self.tell().await;
    }

    /// Writes what changed of the status, in one patch.
    async fn tell(&mut self) -> Told {
        // The start that was acted on is written with its outcome, never with the exit before it.
        self.status.state = self.machine.state();
        self.status.restart_count = self.machine.restart_count;
        if self.machine.vanished {
            return Told::Done;
        }
        let Ok(new) = serde_json::to_value(&self.status) else { return Told::Done };
        let Some(change) = patch::difference(&self.written, &new) else { return Told::Done };
        // Another of the same name is not told what became of this one.
        let patch = Patch::Merge(json!({ "metadata": { "uid": self.object.metadata.uid }, "status": change }));
        match self.objects().patch_status(&self.key.name, &PatchParams::default(), &patch).await {
            Ok(written) => {
                self.saw(&written.metadata);
                self.written = new;
                Told::Done
            }
            Err(error) => self.untold(error).await,
        }
    }

    /// Judges a status that was not written, and sees that it is tried again.
    async fn untold(&mut self, error: kube::Error) -> Told {
        let code = if let kube::Error::Api(status) = &error { status.code } else { 0 };
        let told = if code == 409 && self.is_another().await { Told::Done } else { refusal(code) };
        let pause = match told {
            Told::Done => return told,
            Told::Refused => REFUSED_RETRY,
            Told::Later => WRITE_RETRY,
        };
        tracing::warn!(id = self.id, error = %chain(&error), "cannot write the status; trying again");
        self.retry = Some(Instant::now() + pause);
        told
    }

    /// Whether the name is no more this container's.
    async fn is_another(&self) -> bool {
        let there = self.objects().get_opt(&self.key.name).await;
        there.is_ok_and(|there| there.is_none_or(|object| object.metadata.uid != self.object.metadata.uid))
    }

    async fn write_again(&mut self) {
        if self.overdue {
            self.remove_object().await;
        }
        if self.releasing {
            self.simple(Action::Release).await;
        } else {
            self.report().await;
        }
    }

    fn objects(&self) -> Api<Container> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }

    /// Deletes the object of one that goes by itself, again until that is done. What the container has goes when that is seen.
    async fn remove_object(&mut self) {
        let is_due = self.machine.phase == step::Phase::Idle && self.object.goes_by_itself();
        self.overdue = false;
        if is_due
            && !self.machine.wish.deleted
            && let Err(error) = self.delete_object().await
        {
            tracing::warn!(id = self.id, error = %chain(&error), "cannot remove the container; trying again");
            self.overdue = true;
            self.retry = Some(Instant::now() + WRITE_RETRY);
        }
    }

    async fn delete_object(&self) -> Result<()> {
        let preconditions = Preconditions { uid: self.object.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.objects().delete(&self.key.name, &params).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(Error::api("delete the container")(error)),
        }
    }

    /// Lets go of the object: deletes it if nobody did, and takes our finalizer off, checked against concurrent changes.
    async fn release(&mut self) -> Result<()> {
        self.releasing = false;
        if self.machine.vanished {
            return Ok(());
        }
        if !self.machine.wish.deleted {
            // Who waits for its end learns from the last status how it ended; a full disk may let a deletion through, and no write.
            // What is refused for what it says will be; nobody can wait for that.
            if self.tell().await == Told::Later {
                self.again_later();
                return Ok(());
            }
            self.deletes = true;
            if let Err(error) = self.delete_object().await {
                self.again_later();
                return Err(error);
            }
        }
        let objects = self.objects();
        let mut current = self.newest.clone();
        loop {
            let finalizers = current.finalizers.unwrap_or_default();
            if !finalizers.iter().any(|f| f == AGENT_FINALIZER) {
                return Ok(());
            }
            let rest: Vec<_> = finalizers.into_iter().filter(|f| f != AGENT_FINALIZER).collect();
            let patch =
                Patch::Merge(json!({"metadata": {"finalizers": rest, "resourceVersion": current.resource_version}}));
            match objects.patch(&self.key.name, &PatchParams::default(), &patch).await {
                Ok(_) => return Ok(()),
                Err(error) if is_not_found(&error) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => match objects.get_opt(&self.key.name).await {
                    Ok(Some(newer)) if newer.metadata.uid == current.uid => current = newer.metadata,
                    Ok(_) => return Ok(()),
                    Err(error) => return self.release_later(error),
                },
                Err(error) => return self.release_later(error),
            }
        }
    }

    fn again_later(&mut self) {
        self.releasing = true;
        self.retry = Some(Instant::now() + WRITE_RETRY);
    }

    fn release_later(&mut self, error: kube::Error) -> Result<()> {
        self.again_later();
        Err(Error::api("release the container")(error))
    }
}

/// Clears what a start made after it was given up; all of it, when the container is removed. What is another one's of the same name is left.
async fn clear_late(context: &Context, key: &Key, handle: &Arc<Handle>, removed: bool) {
    let is_others = context.containers.lock().get(key).is_some_and(|there| !Arc::ptr_eq(there, handle));
    if is_others {
        return;
    }
    tracing::debug!(id = handle.id, "clearing what came of a start that was given up");
    start::end_run(context, &handle.id).await;
    if removed {
        start::remove(context, &handle.id).await;
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
