//! What the agent knows of a pod's containers between events; the material of decisions and of the status. No I/O.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};
use serde::{Deserialize, Serialize};

use super::decide::{Class, Instant, Life, View};

/// How a run of a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`…
    pub reason: String,
    /// What there is to say.
    pub message: String,
    /// Begin of the run.
    pub started_at: Option<Timestamp>,
    /// End of the run.
    pub finished_at: Option<Timestamp>,
    /// Runtime id of the run.
    pub container_id: String,
}

/// Why a container waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// `CrashLoopBackOff`, `ImagePullBackOff`…
    pub reason: String,
    /// What there is to say.
    pub message: String,
}

/// One container of a pod.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its name in the pod.
    pub name: String,
    /// Kind.
    pub class: Class,
    /// Image reference as in the spec.
    pub image: String,
    /// Image id once known.
    pub image_id: String,
    /// Runtime id of the current or last run; empty before the first.
    pub container_id: String,
    /// Place in its life.
    pub life: Life,
    /// Its readiness probe passes (or there is none and it has started).
    pub ready: bool,
    /// Restarts so far.
    pub restart_count: i32,
    /// Restarts since the last long run.
    pub crashes: u32,
    /// Pull failures in a row.
    pub pull_failures: u32,
    /// Start of the current run, for people.
    pub started_at: Option<Timestamp>,
    /// Start of the current run, for decisions.
    pub since: Instant,
    /// How the current run ended.
    pub ended: Option<Ended>,
    /// How the run before ended.
    pub last: Option<Ended>,
    /// Why it waits.
    pub waiting: Option<Waiting>,
    /// Must not be started before.
    pub not_before: Option<Instant>,
}

impl Record {
    /// A container that never ran.
    #[must_use]
    pub fn new(container: &Container, class: Class) -> Self {
        Self {
            name: container.name.clone(),
            class,
            image: container.image.clone().unwrap_or_default(),
            image_id: String::new(),
            container_id: String::new(),
            life: Life::Fresh,
            ready: false,
            restart_count: 0,
            crashes: 0,
            pull_failures: 0,
            started_at: None,
            since: Instant::ZERO,
            ended: None,
            last: None,
            waiting: None,
            not_before: None,
        }
    }

    /// What decisions need of it.
    #[must_use]
    pub fn view(&self) -> View {
        View { class: self.class, life: self.life, not_before: self.not_before }
    }

    /// Whether a process of it may be alive.
    #[must_use]
    pub fn alive(&self) -> bool {
        matches!(self.life, Life::Running { .. } | Life::Stopping)
    }
}

/// All containers of a pod in the order in which decisions see them.
#[must_use]
pub fn containers(spec: &PodSpec) -> Vec<(Container, Class)> {
    let init = spec.init_containers.iter().flatten().cloned().map(|c| {
        let class = if c.restart_policy.as_deref() == Some("Always") { Class::Sidecar } else { Class::Init };
        (c, class)
    });
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (as_container(c), Class::Ephemeral));
    init.chain(spec.containers.iter().cloned().map(|c| (c, Class::Main))).chain(ephemeral).collect()
}

/// An ephemeral container has the fields of an ordinary one, and the name of the one that it looks at.
fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let e = ephemeral.clone();
    Container {
        name: e.name,
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        security_context: e.security_context,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
        ..Container::default()
    }
}
