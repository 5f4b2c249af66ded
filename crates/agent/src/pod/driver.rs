//! The task of one pod: takes events in, decides, carries out, tells the status.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, PodStatus};
use parking_lot::Mutex;
use runtime::{ContainerState, ExitRecord};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::decide::{self, Action, Life, Phase, Restart, View};
use super::model::{self, Record};
use super::probe::{self, Target};
use super::sandbox::Sandbox;
use super::start::{Failure, Order, Started, run_id};
use super::status::Surroundings;
use super::{ending, pause, start, status, writer};
use crate::context::{Context, Key};
use crate::events::Kind;

mod deletion;
mod outcome;
mod preparation;
mod restore;

/// Grace time when neither pod nor deletion says one. Units: seconds. Source: Kubernetes API reference.
const GRACE_SECONDS: i64 = 30;
/// Reason of a pod that the machine ended for its own sake. Source: kubelet `eviction.Reason`.
const EVICTED: &str = "Evicted";
/// Exit code of a run that ended while nobody looked. Source: kubelet `ContainerStatusUnknown`.
const EXIT_UNKNOWN: i32 = 137;
/// Most of a container's last words that is kept. Units: bytes. Source: kubelet `MaxContainerTerminationMessageLength`.
const LAST_WORDS_BYTES: u64 = 4_096;
/// First and longest pause after a pull failed. Source: kubelet `imageBackOff`.
const PULL_BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// How long a failed pull is shown as such.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(1);
/// Pause after a container could not be made.
const CONFIG_RETRY: Duration = Duration::from_secs(2);
/// Events on their way to a driver.
const INBOX: usize = 64;

/// What comes from the driver's helpers.
#[derive(Debug)]
pub enum Input {
    /// Sandbox and volumes are ready, or why not.
    Prepared(Result<(Sandbox, BTreeMap<String, PathBuf>), String>),
    /// A start ended.
    Started { index: usize, id: String, result: Result<Started, Failure> },
    /// A container ended, with these last words.
    Exited { index: usize, id: String, exit: ExitRecord, words: String },
    /// A probe has something to say; `passed` is set when the verdict is due.
    Probe { index: usize, id: String, kind: probe::Kind, passed: Option<bool>, text: String },
    /// The postStart hook ended.
    PostStart { index: usize, id: String, result: Result<(), String> },
    /// The pod uses more of the machine's disk than it may, or than there is; what to say about it.
    TooLarge(String),
    /// Everything is taken away.
    Cleared,
}

/// A driver from outside.
pub struct Handle {
    /// The pod's uid.
    pub uid: String,
    pod: watch::Sender<Option<Arc<Pod>>>,
    inbox: mpsc::Sender<Input>,
    runs: Mutex<HashMap<String, Runs>>,
    /// Ids that may exist since before a restart of the daemon, or come next.
    reserved: Mutex<HashSet<String>>,
}

/// Runtime ids of a container's runs.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// The current or last one.
    pub current: String,
    /// The one before.
    pub previous: String,
    /// Whether the current one runs.
    pub running: bool,
}

impl Handle {
    /// Gives the driver the newest pod; `None` when it is gone.
    pub fn set_pod(&self, pod: Option<Arc<Pod>>) {
        self.pod.send_replace(pod);
    }

    /// The newest pod.
    pub fn pod(&self) -> Option<Arc<Pod>> {
        self.pod.borrow().clone()
    }

    /// Has the pod ended for the machine's sake; `text` says why.
    pub async fn evict(&self, text: String) {
        // A driver that is gone has no pod any more.
        let _ = self.inbox.send(Input::TooLarge(text)).await;
    }

    /// The runs of a container.
    pub fn runs(&self, container: &str) -> Option<Runs> {
        self.runs.lock().get(container).cloned()
    }

    /// Container names with the runtime ids of their current or last runs.
    pub fn current(&self) -> Vec<(String, String)> {
        let runs = self.runs.lock();
        runs.iter().filter(|(_, r)| !r.current.is_empty()).map(|(n, r)| (n.clone(), r.current.clone())).collect()
    }

    /// Everything that the collector must leave alone.
    pub fn owned(&self) -> HashSet<String> {
        let runs = self.runs.lock();
        let ids = runs.values().flat_map(|r| [r.current.clone(), r.previous.clone()]);
        let reserved = self.reserved.lock();
        ids.chain([self.uid.clone()]).chain(reserved.iter().cloned()).filter(|id| !id.is_empty()).collect()
    }
}

/// What an event is about.
pub fn reference(pod: &Pod, container: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: container.map(|name| {
            let spec = pod.spec.as_ref();
            let init = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten()).any(|c| c.name == name);
            let late = spec.into_iter().flat_map(|s| s.ephemeral_containers.iter().flatten()).any(|c| c.name == name);
            let list = if init {
                "initContainers"
            } else if late {
                "ephemeralContainers"
            } else {
                "containers"
            };
            format!("spec.{list}{{{name}}}")
        }),
    }
}

struct Driver {
    context: Arc<Context>,
    key: Key,
    handle: Arc<Handle>,
    pod: Arc<Pod>,
    containers: Vec<Arc<Container>>,
    records: Vec<Record>,
    stop_signals: Vec<i32>,
    around: Surroundings,
    sandbox: Option<Sandbox>,
    first_process: Arc<tokio::sync::Mutex<()>>,
    volumes: Arc<BTreeMap<String, PathBuf>>,
    preparing: bool,
    prepare_failures: u32,
    prepare_at: Option<Instant>,
    sender: mpsc::Sender<Input>,
    status: watch::Sender<Option<Arc<PodStatus>>>,
    /// Per container: waiting for the exit, probes, hooks, the stop.
    helpers: Vec<Vec<JoinHandle<()>>>,
    watchers: Vec<JoinHandle<()>>,
    timer: Option<Instant>,
    deletion: deletion::Deletion,
}

/// Starts the task of one pod; `found` is what the runtime had at the agent's start.
pub fn spawn(context: Arc<Context>, key: Key, uid: String, pod: Arc<Pod>, found: &HashMap<String, ContainerState>) {
    let (object, objects) = watch::channel(Some(pod.clone()));
    let (sender, inbox) = mpsc::channel(INBOX);
    let first_process = pod.spec.as_ref().filter(|spec| pause::wanted(spec)).map(|_| pause::id(&uid));
    let handle = Arc::new(Handle {
        uid: uid.clone(),
        pod: object,
        inbox: sender.clone(),
        runs: Mutex::default(),
        reserved: Mutex::new(first_process.into_iter().collect()),
    });
    context.pods.lock().insert(key.clone(), handle.clone());
    let (status, newest) = watch::channel(None);
    tokio::spawn(writer::run(context.clone(), key.clone(), uid, pod.status.clone(), newest));
    let listed = pod.spec.as_ref().map(model::containers).unwrap_or_default();
    let records: Vec<_> = listed.iter().map(|(c, class)| Record::new(c, *class)).collect();
    let containers: Vec<_> = listed.into_iter().map(|(c, _)| Arc::new(c)).collect();
    let start_time = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or_else(Timestamp::now, |t| t.0);
    let around = Surroundings {
        host_ip: context.host_address.to_string(),
        start_time: Some(start_time),
        ..Surroundings::default()
    };
    let count = records.len();
    let mut driver = Driver {
        context,
        key,
        handle,
        containers,
        records,
        around,
        sender,
        status,
        stop_signals: vec![libc::SIGTERM; count],
        sandbox: None,
        first_process: Arc::default(),
        volumes: Arc::default(),
        preparing: false,
        prepare_failures: 0,
        prepare_at: None,
        helpers: (0..count).map(|_| Vec::new()).collect(),
        watchers: Vec::new(),
        timer: None,
        deletion: deletion::Deletion::default(),
        pod,
    };
    let restored = driver.restore(found);
    let stop = driver.context.stop.clone();
    tokio::spawn(stop.run_until_cancelled_owned(driver.run(objects, inbox, restored)));
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Driver {
    async fn run(
        mut self,
        mut objects: watch::Receiver<Option<Arc<Pod>>>,
        mut inbox: mpsc::Receiver<Input>,
        restored: restore::Restored,
    ) {
        for id in &restored.stale {
            // Half made when the daemon died: the next start uses the same id.
            clear_run(&self.context, id).await;
        }
        for index in restored.adopted {
            self.watch_run(index);
        }
        self.refuse();
        loop {
            self.advance();
            if self.deletion.done {
                break;
            }
            tokio::select! {
                _ = objects.changed() => match objects.borrow_and_update().clone() {
                    Some(pod) => self.see(pod),
                    None => self.deletion.vanished = true,
                },
                Some(input) = inbox.recv() => self.take(input).await,
                () = sleep_until(self.timer) => self.timer = None,
                () = sleep_until(self.prepare_at) => self.prepare_at = None,
            }
        }
        self.finish().await;
    }

    /// Takes in a newer pod; containers may have been added to it for a look.
    fn see(&mut self, pod: Arc<Pod>) {
        self.pod = pod;
        let listed = self.pod.spec.as_ref().map(model::containers).unwrap_or_default();
        for (container, class) in listed.into_iter().skip(self.records.len()) {
            self.records.push(Record::new(&container, class));
            self.containers.push(Arc::new(container));
            self.stop_signals.push(libc::SIGTERM);
            self.helpers.push(Vec::new());
        }
    }

    /// The runtime id of the container whose processes an ephemeral one is to see.
    fn looked_at(&self, index: usize) -> Option<String> {
        let spec = self.pod.spec.as_ref()?;
        let own = spec.ephemeral_containers.iter().flatten().find(|e| e.name == self.records[index].name)?;
        let target = own.target_container_name.as_deref()?;
        self.records.iter().find(|r| r.name == target && r.alive()).map(|r| r.container_id.clone())
    }

    fn uid(&self) -> &str {
        &self.handle.uid
    }

    fn restart(&self) -> Restart {
        Restart::parse(self.pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()))
    }

    fn views(&self) -> Vec<View> {
        self.records.iter().map(Record::view).collect()
    }

    fn event(&self, index: Option<usize>, kind: Kind, reason: &'static str, text: impl Into<String>) {
        let name = index.map(|i| self.records[i].name.as_str());
        self.context.events.record(&reference(&self.pod, name), kind, reason, text);
    }

    /// Decides and acts until nothing more is to be done now, then tells the status.
    fn advance(&mut self) {
        self.check_deadline();
        if self.is_ending() {
            self.advance_ending();
        } else if self.over() {
            self.advance_over();
        } else if self.sandbox.is_none() {
            self.prepare();
        } else {
            self.advance_running();
        }
        self.tell();
    }

    fn over(&self) -> bool {
        self.around.failed.is_some()
            || matches!(decide::phase(&self.views(), self.restart()), Phase::Succeeded | Phase::Failed)
    }

    fn advance_running(&mut self) {
        let now = self.context.now();
        self.timer = self.deadline();
        self.show_pull_backoff(now);
        for action in decide::decide(&self.views(), self.restart(), now) {
            match action {
                Action::Start(index) => self.start(index),
                Action::Stop(index) => {
                    self.stop(index, self.grace(), format!("Stopping container {}", self.records[index].name))
                }
                Action::Wake(at) => {
                    let at = self.context.at(at);
                    self.timer = Some(self.timer.map_or(at, |t| t.min(at)));
                }
            }
        }
    }

    /// A failed pull is told as an error first and as a back-off after a moment, as the kubelet's next look does.
    fn show_pull_backoff(&mut self, now: Duration) {
        for record in &mut self.records {
            let Some(waiting) = record.waiting.as_mut().filter(|w| w.reason == "ErrImagePull") else { continue };
            let at = record.since + PULL_ERROR_SHOWN;
            if now >= at {
                waiting.message =
                    format!("Back-off pulling image \"{}\": ErrImagePull: {}", record.image, waiting.message);
                waiting.reason = "ImagePullBackOff".to_owned();
            } else {
                let at = self.context.at(at);
                self.timer = Some(self.timer.map_or(at, |t| t.min(at)));
            }
        }
    }

    fn grace(&self) -> Duration {
        let spec = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
        let seconds = self.pod.metadata.deletion_grace_period_seconds.or(spec).unwrap_or(GRACE_SECONDS);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    fn deadline(&self) -> Option<Instant> {
        let seconds = self.pod.spec.as_ref().and_then(|s| s.active_deadline_seconds)?;
        let begin = self.around.start_time?;
        let passed = Duration::try_from(Timestamp::now().duration_since(begin)).unwrap_or_default();
        let left = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).saturating_sub(passed);
        Some(Instant::now() + left)
    }

    fn check_deadline(&mut self) {
        if self.around.failed.is_none()
            && !self.is_ending()
            && !self.over()
            && self.deadline().is_some_and(|d| d <= Instant::now())
        {
            let text = "Pod was active on the node longer than the specified deadline";
            self.around.failed = Some(("DeadlineExceeded".to_owned(), text.to_owned()));
            self.event(None, Kind::Normal, "DeadlineExceeded", text);
        }
    }

    /// Ends a pod that took too much.
    fn evict(&mut self, text: String) {
        if self.around.failed.is_none() && !self.is_ending() && !self.over() {
            self.event(None, Kind::Warning, EVICTED, text.clone());
            self.around.failed = Some((EVICTED.to_owned(), text));
        }
    }

    /// Refuses a pod that this machine must not run, before anything is made for it.
    fn refuse(&mut self) {
        let refusal = self.pod.spec.as_ref().and_then(super::admit::refusal);
        if let (None, Some((reason, text))) = (&self.around.failed, refusal) {
            self.event(None, Kind::Warning, reason, text.clone());
            self.around.failed = Some((reason.to_owned(), text));
        }
    }

    fn start(&mut self, index: usize) {
        let Some(sandbox) = self.sandbox.clone() else { return };
        let record = &mut self.records[index];
        if record.ended.is_some() || !record.container_id.is_empty() && record.life != Life::Fresh {
            record.restart_count += 1;
        }
        let attempt = record.restart_count;
        let id = run_id(&self.handle.uid, &record.name, attempt);
        if let Some(ended) = record.ended.take() {
            record.last = Some(ended);
        }
        let oldest = {
            let mut runs = self.handle.runs.lock();
            let runs = runs.entry(record.name.clone()).or_default();
            let mut oldest = String::new();
            if runs.current != id {
                oldest = std::mem::replace(&mut runs.previous, std::mem::replace(&mut runs.current, id.clone()));
            }
            oldest
        };
        record.life = Life::Starting;
        record.not_before = None;
        let order = Order {
            pod: self.pod_with_address(),
            container: (*self.containers[index]).clone(),
            sandbox,
            volumes: self.volumes.clone(),
            first_process: self.first_process.clone(),
            looked_at: self.looked_at(index),
            id: id.clone(),
        };
        let (context, sender) = (self.context.clone(), self.sender.clone());
        tokio::spawn(async move {
            if !oldest.is_empty() {
                crate::container::start::remove(&context, &oldest).await;
            }
            let result = start::start(&context, &order).await;
            if result.is_err() {
                clear_run(&context, &id).await;
            }
            let _ = sender.send(Input::Started { index, id, result }).await;
        });
    }

    /// The pod with what the status will say, for the downward API.
    fn pod_with_address(&self) -> Arc<Pod> {
        let mut pod = (*self.pod).clone();
        pod.status = Some(status::build(&self.pod, &self.records, &self.around, Timestamp::now()));
        Arc::new(pod)
    }

    fn target(&self, index: usize) -> Target {
        let address = self.sandbox.as_ref().map_or(self.context.host_address, |s| s.address);
        Target {
            id: self.records[index].container_id.clone(),
            address,
            container: self.containers[index].clone(),
            index,
        }
    }

    /// Waits for the exit of a run and probes it.
    fn watch_run(&mut self, index: usize) {
        let target = self.target(index);
        let (context, sender, id) = (self.context.clone(), self.sender.clone(), target.id.clone());
        let file = start::termination_file(&context, &id);
        let log = context.container_dir(&id).join(crate::container::start::LOG_FILE);
        let policy = self.containers[index].termination_message_policy.as_deref();
        let log = (policy == Some("FallbackToLogsOnError")).then_some(log);
        self.helpers[index].push(tokio::spawn(async move {
            let exit = context.runtime.wait_record(&id).await.unwrap_or_else(|error| {
                tracing::warn!(id, %error, "lost sight of the container");
                let finished_at_ns = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
                ExitRecord { code: EXIT_UNKNOWN, out_of_memory: false, finished_at_ns }
            });
            clear_run(&context, &id).await;
            let log = log.filter(|_| exit.code != 0);
            let words = tokio::task::spawn_blocking(move || outcome::last_words(&file, log.as_deref())).await;
            let words = words.unwrap_or_default();
            let _ = sender.send(Input::Exited { index, id, exit, words }).await;
        }));
        self.set_running(index, true);
        let container = &self.containers[index];
        let probed = container.startup_probe.is_some()
            || container.liveness_probe.is_some()
            || container.readiness_probe.is_some();
        if probed {
            self.helpers[index].push(tokio::spawn(probe::run(self.context.clone(), target, self.sender.clone())));
        }
    }

    fn set_running(&self, index: usize, running: bool) {
        if let Some(runs) = self.handle.runs.lock().get_mut(&self.records[index].name) {
            runs.running = running;
        }
    }

    fn stop(&mut self, index: usize, grace: Duration, why: String) {
        if !matches!(self.records[index].life, Life::Running { .. }) {
            return;
        }
        self.records[index].life = Life::Stopping;
        let own = self.containers[index].lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
        let signal = own.and_then(crate::container::spec::signal).unwrap_or(self.stop_signals[index]);
        let about = reference(&self.pod, Some(&self.records[index].name));
        let target = self.target(index);
        self.helpers[index].push(tokio::spawn(ending::stop(self.context.clone(), target, about, signal, grace, why)));
    }

    async fn take(&mut self, input: Input) {
        match input {
            Input::Prepared(result) => self.prepared(result),
            Input::Started { index, id, result } => self.started(index, id, result),
            Input::Exited { index, id, exit, words } if id == self.records[index].container_id => {
                self.exited(index, exit, words);
            }
            Input::Probe { index, id, kind, passed, text } if id == self.records[index].container_id => {
                self.probed(index, kind, passed, &text);
            }
            Input::PostStart { index, id, result } if id == self.records[index].container_id => {
                self.post_start(index, result)
            }
            Input::TooLarge(text) => self.evict(text),
            Input::Cleared => self.deletion.cleared = true,
            // About a run that is over.
            _ => {}
        }
    }

    fn tell(&self) {
        let status = status::build(&self.pod, &self.records, &self.around, Timestamp::now());
        self.status.send_if_modified(|last| {
            let changed = last.as_deref() != Some(&status);
            if changed {
                *last = Some(Arc::new(status));
            }
            changed
        });
    }
}

/// Gives back what a run had; its log stays until the next but one.
async fn clear_run(context: &Context, id: &str) {
    if let Err(error) = context.runtime.delete(id).await {
        tracing::warn!(id, error = %crate::error::chain(&error), "cannot clear the process");
    }
    if let Err(error) = context.images.unmount(id).await {
        tracing::warn!(id, error = %crate::error::chain(&error), "cannot unmount the root file system");
    }
    if let Err(error) = context.images.remove(id).await {
        tracing::warn!(id, error = %crate::error::chain(&error), "cannot remove the writable layer");
    }
}
