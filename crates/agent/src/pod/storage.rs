//! Bounds on what a pod keeps on the machine's disk: emptyDir volumes, writable layers, logs. The kernel bounds none of them here
//! (overlayfs has no quota of its own), so they are measured, and a pod that is over its bound is ended, as the kubelet does.
//! Source: Kubernetes, "Local ephemeral storage", "Ephemeral storage consumption management".

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodSpec;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use tokio::sync::mpsc;

use super::driver::{Handle, Input};
use crate::context::Context;
use crate::in_root;
use crate::quantity;

/// Least time between two measurements. Source: kubelet's `monitoringInterval` of the eviction manager.
const PERIOD: Duration = Duration::from_secs(10);
/// Measuring may take this part of the time, one of so many: a tree of a million files must not keep a processor busy.
const SHARE: u32 = 20;
/// Entries looked at in one measurement of one directory; a tree with more than that is too large whatever it holds.
const ENTRIES_MAX: usize = 1_000_000;

/// What a pod may keep. Units: bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// emptyDir volumes on disk, each with its own bound.
    pub volumes: BTreeMap<String, Bound>,
    /// Containers: writable layer and log.
    pub containers: BTreeMap<String, Bound>,
    /// All of it together, when every container has a bound.
    pub pod: Option<Bound>,
    /// emptyDir volumes on disk, with or without a bound: they count for the pod.
    pub counted: Vec<String>,
}

/// A bound, as it was written and as a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// As the spec has it.
    pub text: String,
    /// Units: bytes.
    pub bytes: u64,
}

impl Bounds {
    /// Nothing to measure.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.containers.is_empty()
    }
}

/// What a pod keeps. Units: bytes.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// By volume.
    pub volumes: BTreeMap<String, u64>,
    /// By container.
    pub containers: BTreeMap<String, u64>,
}

/// Reads the bounds of a pod.
#[must_use]
pub fn bounds(spec: &PodSpec) -> Bounds {
    let bound = |text: &str| {
        let bytes = quantity::whole(text).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0)?;
        Some(Bound { text: text.to_owned(), bytes })
    };
    let mut bounds = Bounds::default();
    for volume in spec.volumes.iter().flatten() {
        let Some(empty) = volume.empty_dir.as_ref().filter(|e| e.medium.as_deref() != Some("Memory")) else { continue };
        bounds.counted.push(volume.name.clone());
        if let Some(found) = empty.size_limit.as_ref().and_then(|q| bound(&q.0)) {
            bounds.volumes.insert(volume.name.clone(), found);
        }
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        if let Some(found) = limits.and_then(|l| l.get("ephemeral-storage")).and_then(|q| bound(&q.0)) {
            bounds.containers.insert(container.name.clone(), found);
        }
    }
    let all: Option<Vec<u64>> =
        spec.containers.iter().map(|c| bounds.containers.get(&c.name).map(|b| b.bytes)).collect();
    bounds.pod = all.filter(|all| !all.is_empty()).map(|all| {
        let bytes = all.into_iter().fold(0, u64::saturating_add);
        Bound { text: bytes.to_string(), bytes }
    });
    bounds
}

/// Which bound is broken, in the kubelet's words.
#[must_use]
pub fn verdict(bounds: &Bounds, usage: &Usage) -> Option<String> {
    for (name, bound) in &bounds.volumes {
        if usage.volumes.get(name).is_some_and(|used| *used > bound.bytes) {
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", bound.text));
        }
    }
    if let Some(bound) = &bounds.pod {
        let volumes = bounds.counted.iter().filter_map(|name| usage.volumes.get(name));
        let total = volumes.chain(usage.containers.values()).fold(0_u64, |sum, used| sum.saturating_add(*used));
        if total > bound.bytes {
            let limit = &bound.text;
            return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "));
        }
    }
    for (name, bound) in &bounds.containers {
        if usage.containers.get(name).is_some_and(|used| *used > bound.bytes) {
            return Some(format!("Container {name} exceeded its local ephemeral storage limit {:?}. ", bound.text));
        }
    }
    None
}

/// Measures until the pod is over a bound, or the task is aborted.
pub async fn watch(context: Arc<Context>, handle: Arc<Handle>, bounds: Bounds, sender: mpsc::Sender<Input>) {
    loop {
        let begun = tokio::time::Instant::now();
        let places = places(&context, &handle, &bounds);
        let usage = tokio::task::spawn_blocking(move || measure(&places)).await.unwrap_or_default();
        if let Some(text) = verdict(&bounds, &usage) {
            let _ = sender.send(Input::TooLarge(text)).await;
            return;
        }
        tokio::time::sleep(PERIOD.max(begun.elapsed().saturating_mul(SHARE))).await;
    }
}

/// Where to look: directories and files of each volume and each container.
#[derive(Debug, Default)]
struct Places {
    volumes: Vec<(String, PathBuf)>,
    containers: Vec<(String, Vec<PathBuf>)>,
}

fn places(context: &Context, handle: &Handle, bounds: &Bounds) -> Places {
    let volumes = context.pod_dir(&handle.uid).join("volumes");
    Places {
        volumes: bounds.counted.iter().map(|name| (name.clone(), volumes.join(name))).collect(),
        containers: handle.current().into_iter().map(|(name, id)| (name, of_run(context, &id))).collect(),
    }
}

/// Where one run of a container writes: its layer and its log.
pub fn of_run(context: &Context, id: &str) -> Vec<PathBuf> {
    let upper = context.images.snapshot(id).map(|snapshot| snapshot.upper);
    // Besides the layer, the container's directory holds its log and small files of ours.
    let logs = std::fs::read_dir(context.container_dir(id)).into_iter().flatten().flatten();
    let logs = logs.filter(|e| e.file_type().is_ok_and(|t| t.is_file())).map(|e| e.path());
    upper.into_iter().chain(logs).collect()
}

/// Where a pod writes: layers, logs, and emptyDir volumes on disk.
pub fn everything(context: &Context, handle: &Handle) -> Vec<PathBuf> {
    let bounds = handle.pod().and_then(|pod| pod.spec.as_ref().map(bounds)).unwrap_or_default();
    let places = places(context, handle, &bounds);
    let volumes = places.volumes.into_iter().map(|(_, path)| path);
    volumes.chain(places.containers.into_iter().flat_map(|(_, list)| list)).collect()
}

fn measure(places: &Places) -> Usage {
    Usage {
        volumes: places.volumes.iter().map(|(name, path)| (name.clone(), size(path))).collect(),
        containers: places.containers.iter().map(|(name, list)| (name.clone(), sizes(list))).collect(),
    }
}

/// Disk space below all of these paths. Units: bytes.
pub fn sizes(list: &[PathBuf]) -> u64 {
    list.iter().fold(0, |sum, path| sum.saturating_add(size(path)))
}

/// Disk space below a path. Links are not followed, other file systems not entered, whatever is changed meanwhile.
/// Units: bytes.
fn size(path: &Path) -> u64 {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(path, flags, Mode::empty()) else { return 0 };
    let Ok(whole) = rustix::fs::fstat(&root) else { return 0 };
    let mut total = space(&whole);
    let mut waiting = if is_directory(&whole) { vec![PathBuf::new()] } else { Vec::new() };
    let mut seen = 0;
    while let Some(relative) = waiting.pop() {
        let directory = match in_root::open_straight(&root, &relative, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => directory,
            // Deeper than a path can say: nobody needs that but to hide files from this.
            Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => return u64::MAX,
            // Gone, or a link by now.
            Err(_) => continue,
        };
        for entry in Dir::read_from(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if in_root::is_dot(name) {
                continue;
            }
            seen += 1;
            if seen > ENTRIES_MAX {
                return u64::MAX;
            }
            let Ok(stat) = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_dev != whole.st_dev {
                continue;
            }
            total = total.saturating_add(space(&stat));
            if is_directory(&stat) {
                waiting.push(relative.join(OsStr::from_bytes(name.to_bytes())));
            }
        }
    }
    total
}

fn space(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec() -> PodSpec {
        serde_json::from_value(json!({
            "volumes": [
                {"name": "small", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "free", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            ],
            "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "4Mi"}}}]
        }))
        .unwrap()
    }

    #[test]
    fn the_broken_bound_is_named() {
        let bounds = bounds(&spec());
        let check = |volumes: &[(&str, u64)], container: u64, expected: &str| {
            let volumes = volumes.iter().map(|(n, b)| ((*n).to_owned(), b << 20)).collect();
            let containers = BTreeMap::from([("c".to_owned(), container << 20)]);
            let said = verdict(&bounds, &Usage { volumes, containers }).unwrap_or_default();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{said}");
        };
        check(&[("small", 1), ("free", 1), ("memory", 100)], 2, "");
        check(&[("small", 2)], 0, "EmptyDir volume \"small\"");
        check(&[("free", 3)], 2, "total limit of containers");
        check(&[], 5, "limit");
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        std::fs::write(dir.path().join("in/a"), vec![1; 100_000]).unwrap();
        std::fs::write(dir.path().join("out"), vec![1; 500_000]).unwrap();
        std::os::unix::fs::symlink("../out", dir.path().join("in/link")).unwrap();
        let found = size(&dir.path().join("in"));
        assert!((100_000..300_000).contains(&found), "{found}");
    }

    #[test]
    fn nothing_is_too_deep_to_be_measured() {
        let dir = tempfile::tempdir().unwrap();
        let name = "d".repeat(200);
        let mut current = in_root::directory(dir.path()).unwrap();
        for _ in 0..25 {
            rustix::fs::mkdirat(&current, &name, Mode::RWXU).unwrap();
            current = in_root::open_straight(&current, Path::new(&name), OFlags::PATH | OFlags::DIRECTORY).unwrap();
        }
        assert_eq!(size(dir.path()), u64::MAX);
    }

    #[test]
    fn swapping_links_never_leads_a_measurement_out_of_its_tree() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        std::fs::create_dir_all(tree.join("in")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("large"), vec![1; 4 << 20]).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let swapped = tree.join("in");
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = std::fs::remove_dir(&swapped);
                    let _ = std::os::unix::fs::symlink(&outside, &swapped);
                    let _ = std::fs::remove_file(&swapped);
                    let _ = std::fs::create_dir(&swapped);
                }
            });
            let largest = (0..2000).map(|_| size(&tree)).max();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(largest < Some(4 << 20), "{largest:?}");
        });
    }
}
