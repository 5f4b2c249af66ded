//! Keeps a part of the machine's disk free, whatever workloads write: when less is left than the reserve, the machine says so
//! (`DiskPressure`), and the workload that fills the disk is ended. Source: Kubernetes, "Node-pressure Eviction".
//!
//! Looking costs one system call; files are measured only when the reserve is near. A pod is evicted, which frees what it
//! wrote; so does the end of a build's step. A Docker container is stopped and kept, for its owner may want what is in it:
//! that frees nothing, but nothing more is written.

mod rules;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use crate::container::driver::STOP_TIMEOUT_ANNOTATION;
use crate::context::{Context, Key};
use crate::error::chain;
use crate::events::Kind;
use crate::pod::storage;
use crate::quantity;
use rules::{Candidate, Level};

/// Least time between two measurements while the reserve is only near.
const MEASURE_PAUSE: Duration = Duration::from_secs(10);
/// Least time between two measurements while the reserve is used: what was ended needs it to be gone.
const MEASURE_PAUSE_PRESSED: Duration = Duration::from_secs(1);
/// Measuring may take this part of that time, one of so many: a tree of a million files must not keep a processor busy.
const MEASURE_SHARE: u32 = 20;

/// A workload that can be ended, and where it writes.
enum Workload {
    Pod(Arc<crate::pod::Handle>),
    Container(Arc<crate::container::Handle>, Key),
    /// A step of a build, by its id.
    Step(String),
}

/// Watches the disk until it is dropped; does nothing when nothing is to be kept free.
pub async fn run(context: Arc<Context>) {
    if context.disk_reserve_percent == 0 {
        return;
    }
    let mut guard = Guard { context, before: None, measured: None, ended: HashSet::new() };
    loop {
        let pause = guard.look().await;
        tokio::time::sleep(pause).await;
    }
}

struct Guard {
    context: Arc<Context>,
    /// What each workload used when the reserve was last whole, or when the last one was ended.
    before: Option<HashMap<String, u64>>,
    /// When the last measurement ended, and how long it took.
    measured: Option<(Instant, Duration)>,
    /// Workloads that were ended, and may need a moment to be gone.
    ended: HashSet<String>,
}

impl Guard {
    /// Looks once; returns when to look again.
    async fn look(&mut self) -> Duration {
        let Some(level) = level(&self.context.data_dir, self.context.disk_reserve_percent) else {
            return rules::LOOK_LONGEST;
        };
        let pressed = level.is_pressed(*self.context.disk_pressure.borrow());
        self.context.disk_pressure.send_if_modified(|now| {
            let changed = *now != pressed;
            if changed {
                tracing::warn!(free = level.free, reserve = level.reserve, pressed, "pressure on the disk changed");
            }
            *now = pressed;
            changed
        });
        if !level.is_near() {
            (self.before, self.measured) = (None, None);
            self.ended.clear();
            return level.next_look();
        }
        let pause = |took: Duration| match pressed {
            true => MEASURE_PAUSE_PRESSED.max(took),
            false => MEASURE_PAUSE.max(took.saturating_mul(MEASURE_SHARE)),
        };
        let begun = Instant::now();
        if self.measured.is_none_or(|(at, took)| begun >= at + pause(took)) {
            self.measure(level, pressed).await;
            self.measured = Some((Instant::now(), begun.elapsed()));
        }
        level.next_look()
    }

    /// Measures every workload, and ends one if it must be.
    async fn measure(&mut self, level: Level, pressed: bool) {
        let (workloads, places): (Vec<_>, Vec<_>) = workloads(&self.context).into_iter().unzip();
        let sizes = move || places.iter().map(|paths| storage::sizes(paths)).collect::<Vec<u64>>();
        let Ok(sizes) = tokio::task::spawn_blocking(sizes).await else { return };
        let ids: Vec<String> = workloads.iter().map(Workload::id).collect();
        let now: HashMap<String, u64> = ids.iter().cloned().zip(sizes.iter().copied()).collect();
        // What was stopped and runs again is judged again.
        self.ended.retain(|id| now.contains_key(id));
        if !pressed {
            self.before = Some(now);
            return;
        }
        let Some(before) = &self.before else {
            self.before = Some(now);
            return self.collect_images().await;
        };
        let candidates: Vec<Candidate> = workloads
            .iter()
            .zip(&ids)
            .map(|(workload, id)| workload.candidate(now[id], before.get(id).copied().unwrap_or(0)))
            .collect();
        let open: Vec<usize> = (0..candidates.len()).filter(|index| !self.ended.contains(&ids[*index])).collect();
        let left: Vec<Candidate> = open.iter().map(|index| candidates[*index]).collect();
        let Some(victim) = rules::choose(&left, level).map(|index| open[index]) else { return };
        self.ended.insert(ids[victim].clone());
        self.before = Some(now);
        workloads[victim].end(&self.context, level, candidates[victim]).await;
    }

    /// Content that no image refers to goes first.
    async fn collect_images(&self) {
        if let Err(error) = self.context.images.collect_garbage().await {
            tracing::warn!(error = %chain(&error), "cannot collect unused images");
        }
    }
}

fn level(directory: &Path, percent: u8) -> Option<Level> {
    let (total, free) = space(directory)?;
    Some(Level::new(total, free, percent))
}

/// Size of the disk below a directory, and what of it is free for users; `None` when it cannot be asked. Units: bytes.
pub fn space(directory: &Path) -> Option<(u64, u64)> {
    let disk = rustix::fs::statvfs(directory).ok().filter(|disk| disk.f_blocks > 0)?;
    Some((disk.f_blocks.saturating_mul(disk.f_frsize), disk.f_bavail.saturating_mul(disk.f_frsize)))
}

/// What workloads may still write; `None` when it cannot be asked. Units: bytes.
pub fn room(context: &Context) -> Option<u64> {
    let level = level(&context.data_dir, context.disk_reserve_percent)?;
    Some(level.free.saturating_sub(level.reserve))
}

/// What of a disk of this size workloads may ask for. Units: bytes.
pub fn allocatable(total: u64, percent: u8) -> u64 {
    if percent == 0 { total } else { total - Level::new(total, 0, percent).reserve }
}

/// All that run, with the places where they write.
fn workloads(context: &Context) -> Vec<(Workload, Vec<PathBuf>)> {
    let pods: Vec<_> = context.pods.lock().values().cloned().collect();
    let containers: Vec<_> = context.containers.lock().iter().map(|(k, handle)| (k.clone(), handle.clone())).collect();
    let pods = pods.into_iter().map(|handle| {
        let places = storage::everything(context, &handle);
        (Workload::Pod(handle), places)
    });
    let containers = containers.into_iter().filter(|(_, handle)| handle.is_running()).map(|(key, handle)| {
        let mut places = storage::of_run(context, &handle.id);
        places.extend(volumes(context, &handle));
        (Workload::Container(handle, key), places)
    });
    let step = |(id, step): (&String, &crate::build::Running)| (Workload::Step(id.clone()), step.places.clone());
    let steps: Vec<_> = context.steps.lock().iter().map(step).collect();
    pods.chain(containers).chain(steps).collect()
}

/// Volumes of this machine that a container may write to. What it was given of the host by its path is the host's own.
fn volumes(context: &Context, handle: &crate::container::Handle) -> Vec<PathBuf> {
    let Some(object) = handle.object() else { return Vec::new() };
    let paths = object.status.as_ref().map(|status| status.volume_paths.clone()).unwrap_or_default();
    let own = context.data_dir.join("volumes");
    let writable = |target: &str| object.spec.mounts.iter().any(|m| m.target == target && !m.read_only);
    let found = paths.into_iter().filter(|(target, _)| writable(target)).map(|(_, path)| PathBuf::from(path));
    found.filter(|path| path.starts_with(&own)).collect()
}

impl Workload {
    fn id(&self) -> String {
        match self {
            Self::Pod(handle) => handle.uid.clone(),
            Self::Container(handle, _) => handle.id.clone(),
            Self::Step(id) => id.clone(),
        }
    }

    fn candidate(&self, uses: u64, before: u64) -> Candidate {
        let plain = Candidate { uses, before, requested: 0, priority: 0, is_pod: false };
        match self {
            Self::Container(..) | Self::Step(_) => plain,
            Self::Pod(handle) => {
                let pod = handle.pod();
                let priority = pod.as_ref().and_then(|p| p.spec.as_ref()?.priority).unwrap_or(0);
                Candidate { requested: pod.as_deref().map_or(0, requested), priority, is_pod: true, ..plain }
            }
        }
    }

    async fn end(&self, context: &Context, level: Level, found: Candidate) {
        let (reserve, free, uses) = (level.reserve >> 10, level.free >> 10, found.uses >> 10);
        let low = format!(
            "The node was low on resource: ephemeral-storage. Threshold quantity: {reserve}Ki, available: {free}Ki. "
        );
        tracing::warn!(id = self.id(), uses_kib = uses, free_kib = free, "ending the workload that fills the disk");
        match self {
            Self::Pod(handle) => {
                let requested = found.requested;
                handle.evict(format!("{low}It was using {uses}Ki, request is {requested}. ")).await;
            }
            Self::Step(id) => {
                if let Some(step) = context.steps.lock().get_mut(id) {
                    step.ended_because = format!("{low}The step had written {uses}Ki. ");
                }
                if let Err(error) = context.runtime.kill(id, libc::SIGKILL).await {
                    tracing::warn!(id, error = %chain(&error), "cannot end the build's step");
                }
            }
            Self::Container(handle, key) => {
                handle.give_reason(format!("{low}The container had written {uses}Ki; it was stopped and is kept."));
                stop(context, key, low).await;
            }
        }
    }
}

/// Stops a container as `docker stop --time 0` does, so that no policy starts it again, and says why.
async fn stop(context: &Context, key: &Key, why: String) {
    let change = json!({"metadata": {"annotations": {STOP_TIMEOUT_ANNOTATION: "0"}}, "spec": {"desired": "stopped"}});
    let objects: Api<api::container::Container> = Api::namespaced(context.client.clone(), &key.namespace);
    if let Err(error) = objects.patch(&key.name, &PatchParams::default(), &Patch::Merge(change)).await {
        tracing::warn!(name = key.name, error = %chain(&error), "cannot stop the container");
    }
    let about = ObjectReference {
        api_version: Some(format!("{}/v1", api::names::GROUP)),
        kind: Some("Container".to_owned()),
        name: Some(key.name.clone()),
        namespace: Some(key.namespace.clone()),
        ..ObjectReference::default()
    };
    context.events.record(&about, Kind::Warning, "Stopped", why);
}

/// Local storage that a pod asked for. Units: bytes.
fn requested(pod: &Pod) -> u64 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let requests = containers.filter_map(|c| c.resources.as_ref()?.requests.as_ref()?.get("ephemeral-storage"));
    let bytes = requests.filter_map(|q| quantity::whole(&q.0)).filter_map(|n| u64::try_from(n).ok());
    bytes.fold(0, u64::saturating_add)
}
