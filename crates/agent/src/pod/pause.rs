//! Process 1 of a pod whose containers see each other's processes (`shareProcessNamespace`). It does nothing but collect
//! orphans: this program itself, in an otherwise empty root, without privileges. As long as it lives, so does the namespace.
//! Source: Kubernetes, "Share Process Namespace between Containers in a Pod".

use std::collections::BTreeSet;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::PodSpec;
use runtime::{ContainerConfig, ContainerStatus, LogConfig};

use super::sandbox::Sandbox;
use super::start::run_id;
use crate::container::{init, start};
use crate::context::Context;
use crate::error::{Error, Result, chain};
use crate::launch::{Bounds, Identity, Launch, Namespace};

/// User and group of the process. Source: Kubernetes' image `pause`.
const USER: u32 = 65_535;
/// Memory that it may take; it needs a small part of it. Units: bytes.
const MEMORY_BYTES: i64 = 64 << 20;
/// Processes that it may start.
const PROCESSES: i64 = 4;
/// The last that is ended when memory runs out. Source: kubelet `PodInfraOOMAdj`.
const OOM_SCORE: i32 = -998;

/// Whether the pod wants one.
#[must_use]
pub fn wanted(spec: &PodSpec) -> bool {
    spec.share_process_namespace == Some(true) && spec.host_pid != Some(true)
}

/// Its runtime id: no container's name is empty.
#[must_use]
pub fn id(uid: &str) -> String {
    run_id(uid, "", 0)
}

/// The pod's process namespace, made when there is none.
pub async fn namespace(context: &Context, uid: &str, sandbox: &Sandbox) -> Result<Namespace> {
    let id = id(uid);
    let state = context.runtime.state(&id).await.ok();
    let living = state.filter(|s| s.status == ContainerStatus::Running && s.exit.is_none() && s.pid > 0);
    let pid = match living {
        Some(state) => state.pid,
        None => start(context, uid, &id, sandbox).await?,
    };
    Ok(Namespace::Path(format!("/proc/{pid}/ns/pid").into()))
}

/// Starts it, after clearing what is left of another.
async fn start(context: &Context, uid: &str, id: &str, sandbox: &Sandbox) -> Result<u32> {
    context.runtime.delete(id).await?;
    let root = root(context, uid);
    let directory = context.container_dir(id);
    for path in [&root, &directory] {
        std::fs::create_dir_all(path).map_err(Error::io("create", path))?;
    }
    let program = init::program(&["pause"])?;
    let launch = Launch {
        command: program.command,
        mounts: program.mounts,
        identity: Identity { uid: USER, gid: USER, groups: Vec::new() },
        rootfs: root,
        read_only_root: true,
        network: sandbox.network.clone(),
        ipc: sandbox.ipc.clone(),
        uts: sandbox.uts.clone(),
        without_shm: true,
        capabilities: BTreeSet::new(),
        no_new_privileges: true,
        masked_paths: runtime::spec::MASKED_PATHS.map(str::to_owned).to_vec(),
        readonly_paths: runtime::spec::READONLY_PATHS.map(str::to_owned).to_vec(),
        bounds: Bounds { memory_bytes: MEMORY_BYTES, pids: PROCESSES, ..Bounds::default() },
        oom_score_adj: Some(OOM_SCORE),
        ..Launch::default()
    };
    let config = ContainerConfig {
        cgroup_parent: None,
        id: id.to_owned(),
        bundle_dir: directory.clone(),
        spec: launch.specification(&context.machine)?,
        terminal: false,
        open_stdin: false,
        stdin_once: false,
        log: LogConfig::bounded(directory.join(start::LOG_FILE)),
    };
    let pid = context.runtime.create(config).await?;
    context.runtime.start(id).await?;
    Ok(pid)
}

/// Ends it, and with it whatever is left in the namespace.
pub async fn remove(context: &Context, uid: &str) {
    let (id, root) = (id(uid), root(context, uid));
    if !root.exists() {
        return;
    }
    if let Err(error) = context.runtime.delete(&id).await {
        tracing::warn!(uid, error = %chain(&error), "cannot end the pod's first process");
    }
    start::remove(context, &id).await;
}

fn root(context: &Context, uid: &str) -> PathBuf {
    context.pod_dir(uid).join("pause")
}
