//! A container's life: start, stop, restart, kill, pause, unpause, wait. Each is one patch of the object and a wait on the
//! shared cache, never a poll.
//!
//! A failed start is told by `status.error` with `observedStart` at or above the request.

use std::sync::Arc;
use std::time::Duration;

use api::Container;
use api::container::{ContainerStatus, State};
use axum::response::Response;
use bytes::Bytes;
use http::{Method, StatusCode};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::manage::wait_cleared;
use super::signals;
use crate::cache::Slot;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::{body, time};

/// Annotation that tells the agent how long a stop may take. Units: seconds; -1 means for ever.
const STOP_TIMEOUT: &str = "nuee.dev/stop-timeout";
/// Annotation that tells the agent which signal asks the container to stop this time.
const STOP_SIGNAL: &str = "nuee.dev/stop-signal";
/// Longest wait for a start that the agent does not report on (a machine that is gone).
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait for a process to vanish after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a freeze or thaw.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(30);

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new(
        "ContainerStart",
        Method::POST,
        "/containers/{id}/start",
        "update",
        "containers",
        run!(container_start),
    ),
    Operation::new(
        "ContainerStop",
        Method::POST,
        "/containers/{id}/stop",
        "update",
        "containers",
        run!(container_stop),
    ),
    Operation::new(
        "ContainerRestart",
        Method::POST,
        "/containers/{id}/restart",
        "update",
        "containers",
        run!(container_restart),
    ),
    Operation::new(
        "ContainerKill",
        Method::POST,
        "/containers/{id}/kill",
        "update",
        "containers",
        run!(container_kill),
    ),
    Operation::new(
        "ContainerPause",
        Method::POST,
        "/containers/{id}/pause",
        "update",
        "containers",
        run!(container_pause),
    ),
    Operation::new(
        "ContainerUnpause",
        Method::POST,
        "/containers/{id}/unpause",
        "update",
        "containers",
        run!(container_unpause),
    ),
    Operation::new("ContainerWait", Method::POST, "/containers/{id}/wait", "get", "containers", run!(container_wait)),
];

/// The status, or that of a container that never ran.
pub(crate) fn status_of(container: &Container) -> ContainerStatus {
    container.status.clone().unwrap_or_default()
}

/// Whether a process lives in it, or will again by itself.
fn is_active(state: State) -> bool {
    matches!(state, State::Running | State::Paused | State::Restarting)
}

/// Refuses what cannot be done to a container that is going away.
fn not_removing(container: &Container) -> Result<()> {
    if container.metadata.deletion_timestamp.is_some() {
        return Err(Error::Conflict("container is marked for removal and cannot be started".into()));
    }
    Ok(())
}

async fn container_start(docker: Arc<Docker>, call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    not_removing(&container)?;
    match status_of(&container).state {
        State::Paused => {
            return Err(Error::Conflict("cannot start a paused container, try unpause instead".into()));
        }
        State::Running => return Err(Error::NotModified),
        State::Dead => {
            return Err(Error::Conflict("container is marked for removal and cannot be started".into()));
        }
        State::Created | State::Restarting | State::Exited => {}
    }
    start(&docker, &container, &json!({})).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// Asks for a start and waits for what comes of it.
async fn start(docker: &Docker, container: &Container, annotations: &Value) -> Result<()> {
    let id = container.name_any();
    let request = container.spec.start_request.max(status_of(container).observed_start) + 1;
    let change = json!({
        "metadata": { "annotations": annotations },
        "spec": { "desired": "running", "startRequest": request },
    });
    docker.containers.patch(&id, &change).await?;
    let reached = docker.containers.wait_for(&id, |slot| match slot {
        Slot::Gone(_) => true,
        Slot::There(object) => {
            let status = status_of(object);
            status.observed_start >= request && (status.state != State::Created || !status.error.is_empty())
        }
    });
    let slot = tokio::time::timeout(START_TIMEOUT, reached).await.map_err(|_| {
        Error::Unavailable(format!("container {id} was not started in time: its machine does not answer"))
    })?;
    let Some(slot) = slot else { return Ok(()) };
    let status = status_of(slot.object());
    let failed = !status.error.is_empty() && !matches!(status.state, State::Running | State::Paused);
    if status.observed_start < request || !failed {
        return Ok(());
    }
    if container.spec.auto_remove {
        wait_cleared(docker, &id).await;
        docker.containers.delete(&id).await?;
    }
    Err(start_failure(&status))
}

/// Docker's words for a start that failed; its command line reads exit codes 126 and 127 out of them.
fn start_failure(status: &ContainerStatus) -> Error {
    let cause = status.error.as_str();
    let known = ["executable file not found", "no such file or directory", "permission denied", "is a directory"];
    let said = known.iter().any(|phrase| cause.contains(phrase));
    let cause = match status.exit_code {
        127 if !said => format!("{cause}: executable file not found in $PATH"),
        126 if !said => format!("{cause}: permission denied"),
        _ => cause.to_owned(),
    };
    if matches!(status.exit_code, 126 | 127) {
        let prefix = "failed to create task for container: failed to create shim task: OCI runtime create failed: ";
        let text = if cause.starts_with("failed to create task") { cause } else { format!("{prefix}{cause}") };
        return Error::Invalid(text);
    }
    Error::Internal(cause)
}

/// `t` and `signal` of stop and restart as annotations.
fn stop_annotations(call: &Call) -> Result<Value> {
    let mut annotations = json!({ STOP_TIMEOUT: null, STOP_SIGNAL: null });
    if let Some(seconds) = call.query.number::<i64>("t")? {
        annotations[STOP_TIMEOUT] = json!(seconds.max(-1).to_string());
    }
    if let Some(signal) = call.query.text("signal") {
        signals::parse(signal)?;
        annotations[STOP_SIGNAL] = json!(signal);
    }
    Ok(annotations)
}

async fn container_stop(docker: Arc<Docker>, call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    let annotations = stop_annotations(&call)?;
    if !is_active(status_of(&container).state) {
        return Err(Error::NotModified);
    }
    let id = container.name_any();
    let signal = call.query.text("signal").map_or_else(|| container.spec.stop_signal.clone(), str::to_owned);
    let number = if signal.is_empty() { 15 } else { signals::parse(&signal).unwrap_or(15) };
    docker.events.container(&container, "kill", &[("signal", number.to_string())]);
    docker.events.will_stop(&id, false);
    let change = json!({ "metadata": { "annotations": annotations }, "spec": { "desired": "stopped" } });
    docker.containers.patch(&id, &change).await?;
    docker.containers.wait_for(&id, |slot| !there_and(slot, is_active)).await;
    docker.events.container(&container, "stop", &[]);
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// Whether an object exists and its state fits.
fn there_and(slot: &Slot<Container>, fits: impl Fn(State) -> bool) -> bool {
    match slot {
        Slot::There(object) => fits(status_of(object).state),
        Slot::Gone(_) => false,
    }
}

async fn container_restart(docker: Arc<Docker>, call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    not_removing(&container)?;
    let annotations = stop_annotations(&call)?;
    if is_active(status_of(&container).state) {
        let signal = Some(container.spec.stop_signal.as_str()).filter(|signal| !signal.is_empty()).unwrap_or("TERM");
        let number = signals::parse(signal).unwrap_or(15);
        docker.events.container(&container, "kill", &[("signal", number.to_string())]);
        docker.events.will_stop(&container.name_any(), true);
    }
    start(&docker, &container, &annotations).await?;
    docker.events.container(&container, "restart", &[]);
    Ok(body::empty(StatusCode::NO_CONTENT))
}

async fn container_kill(docker: Arc<Docker>, call: Call) -> Reply {
    let reference = call.parameter("id");
    let container = docker.container(reference)?;
    let signal = signals::parse(call.query.text("signal").unwrap_or("KILL"))?;
    let id = container.name_any();
    let state = status_of(&container).state;
    let policy = container.spec.restart_policy.name.as_str();
    let stop_signal = Some(container.spec.stop_signal.as_str()).filter(|s| !s.is_empty()).unwrap_or("TERM");
    let ends = signal == signals::KILL || signals::parse(stop_signal).is_ok_and(|stop| stop == signal);
    if !is_active(state) {
        return Err(Error::Conflict(format!("cannot kill container: {reference}: container {id} is not running")));
    }
    if ends && !matches!(policy, "" | "no") {
        // Killed by hand means: not started again by policy.
        let timeout = if signal == signals::KILL { "0" } else { "-1" };
        let annotations = json!({ STOP_TIMEOUT: timeout, STOP_SIGNAL: signal.to_string() });
        let change = json!({ "metadata": { "annotations": annotations }, "spec": { "desired": "stopped" } });
        docker.containers.patch(&id, &change).await?;
    } else {
        match docker.state.node.signal(&docker.workload(&id), signal).await {
            Ok(()) => {}
            Err(node::Error::Conflict(_) | node::Error::NotFound(_)) => {
                return Err(Error::Conflict(format!(
                    "cannot kill container: {reference}: container {id} is not running"
                )));
            }
            Err(error) => return Err(error.into()),
        }
    }
    docker.events.container(&container, "kill", &[("signal", signal.to_string())]);
    if signal == signals::KILL {
        let ended = docker.containers.wait_for(&id, |slot| !there_and(slot, is_active));
        // Beyond the bound the kernel still holds the process; the signal was sent, so the request is done.
        let _ = tokio::time::timeout(KILL_TIMEOUT, ended).await;
    }
    Ok(body::empty(StatusCode::NO_CONTENT))
}

async fn container_pause(docker: Arc<Docker>, call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    let id = container.name_any();
    match status_of(&container).state {
        State::Running => {}
        State::Paused => return Err(Error::Conflict(format!("Container {id} is already paused"))),
        State::Restarting => {
            return Err(Error::Conflict(format!("Container {id} is restarting, wait until the container is running")));
        }
        _ => return Err(Error::Conflict(format!("Container {id} is not running"))),
    }
    reach(&docker, &id, "paused", State::Paused).await
}

async fn container_unpause(docker: Arc<Docker>, call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    let id = container.name_any();
    if status_of(&container).state != State::Paused {
        return Err(Error::Conflict(format!("Container {id} is not paused")));
    }
    reach(&docker, &id, "running", State::Running).await
}

/// Freezes or thaws a container, and waits until it is.
pub(crate) async fn reach(docker: &Docker, id: &str, desired: &str, state: State) -> Reply {
    docker.containers.patch(id, &json!({ "spec": { "desired": desired } })).await?;
    let from = if state == State::Paused { State::Running } else { State::Paused };
    let reached = docker.containers.wait_for(id, |slot| !there_and(slot, |now| now == from));
    tokio::time::timeout(PAUSE_TIMEOUT, reached)
        .await
        .map_err(|_| Error::Unavailable(format!("container {id} did not become {desired} in time")))?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// What `wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    NotRunning,
    NextExit,
    Removed,
}

/// The exit that `next-exit` must tell from those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Baseline {
    observed_start: i64,
    finished_ns: i64,
    restarts: i64,
}

impl Baseline {
    fn of(status: &ContainerStatus) -> Self {
        Self {
            observed_start: status.observed_start,
            finished_ns: time::of_object_ns(status.finished_at.as_ref()),
            restarts: status.restart_count,
        }
    }

    /// Whether a run ended since. Pure.
    fn passed(&self, now: &ContainerStatus) -> bool {
        let then = Self::of(now);
        let ended = then.finished_ns != self.finished_ns || then.restarts != self.restarts;
        // Times are told in whole seconds, so a run within the second of the last end shows by its number only.
        let another = then.observed_start != self.observed_start && !is_active(now.state);
        ended || another
    }
}

/// Waits; the head of the answer goes out at once, so that a client knows the wait stands before it starts the container.
async fn container_wait(docker: Arc<Docker>, call: Call) -> Reply {
    let condition = match call.query.text("condition") {
        None | Some("not-running") => Condition::NotRunning,
        Some("next-exit") => Condition::NextExit,
        Some("removed") => Condition::Removed,
        Some(other) => {
            return Err(Error::Invalid(format!("invalid condition: {}", crate::text::quote(other))));
        }
    };
    let container = docker.container(call.parameter("id"))?;
    let id = container.name_any();
    let Some(mut slot) = docker.containers.follow(&id) else {
        return Err(Error::NotFound(format!("No such container: {id}")));
    };
    let baseline = Baseline::of(&status_of(slot.borrow().object()));
    let waiting = async move {
        let reached = slot
            .wait_for(|slot| match (condition, slot) {
                (_, Slot::Gone(_)) => true,
                (Condition::Removed, Slot::There(_)) => false,
                // A run that ends counts even when the policy starts the next one.
                (Condition::NotRunning, Slot::There(object)) => {
                    let status = status_of(object);
                    !is_active(status.state) || baseline.passed(&status)
                }
                (Condition::NextExit, Slot::There(object)) => baseline.passed(&status_of(object)),
            })
            .await;
        let status = match reached {
            Ok(slot) => status_of(slot.object()),
            Err(_) => ContainerStatus::default(),
        };
        let mut text = json!({ "StatusCode": status.exit_code }).to_string();
        text.push('\n');
        Ok::<_, std::io::Error>(Bytes::from(text))
    };
    Ok(wait_response(waiting))
}

fn wait_response(waiting: impl Future<Output = std::io::Result<Bytes>> + Send + 'static) -> Response {
    body::stream("application/json", futures::stream::once(waiting))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    fn ended(at: i64) -> ContainerStatus {
        let finished_at = Some(MicroTime(jiff::Timestamp::from_second(at).unwrap()));
        ContainerStatus { state: State::Exited, observed_start: 1, finished_at, ..Default::default() }
    }

    #[test]
    fn next_exit_ignores_the_exit_before_and_sees_a_quick_one() {
        let baseline = Baseline::of(&ended(5));
        assert!(!baseline.passed(&ended(5)));
        assert!(baseline.passed(&ContainerStatus { observed_start: 2, ..ended(6) }));
        let failed = ContainerStatus { observed_start: 2, error: "no".into(), ..ended(5) };
        assert!(baseline.passed(&failed));
        assert!(!baseline.passed(&ContainerStatus { state: State::Running, observed_start: 2, ..ended(5) }));
    }

    #[test]
    fn start_failures_carry_the_phrases_that_the_command_line_looks_for() {
        let status = ContainerStatus { error: "exec: \"nope\"".into(), exit_code: 127, ..Default::default() };
        let error = start_failure(&status);
        assert_eq!(error.status(), 400);
        assert!(error.to_string().contains("executable file not found in $PATH"));
        let status =
            ContainerStatus { error: "exec /x: permission denied".into(), exit_code: 126, ..Default::default() };
        assert!(start_failure(&status).to_string().ends_with("permission denied"));
        let port = "Bind for 0.0.0.0:80 failed: port is already allocated";
        let status = ContainerStatus { error: port.into(), exit_code: 128, ..Default::default() };
        assert_eq!(start_failure(&status).status(), 500);
        assert_eq!(start_failure(&status).to_string(), port);
    }
}
