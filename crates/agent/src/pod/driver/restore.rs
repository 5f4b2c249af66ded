//! After a restart of the daemon: what the status and the runtime say about a pod's containers.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState as State, ContainerStateTerminated, ContainerStatus};
use runtime::ContainerState;

use super::{Driver, EXIT_UNKNOWN, Runs};
use crate::pod::decide::Life;
use crate::pod::model::{Ended, Record};
use crate::pod::start::run_id;
use crate::pod::status::ID_SCHEME;

/// What a restart of the daemon found.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// Containers that have a run to wait for.
    pub adopted: Vec<usize>,
    /// Runs that were made but never began.
    pub stale: Vec<String>,
}

impl Driver {
    /// Fills the records.
    pub(super) fn restore(&mut self, found: &HashMap<String, ContainerState>) -> Restored {
        let status = self.pod.status.clone().unwrap_or_default();
        if matches!(status.phase.as_deref(), Some("Failed")) && status.reason.is_some() {
            self.around.failed =
                status.reason.clone().map(|reason| (reason, status.message.clone().unwrap_or_default()));
        }
        // Until the sandbox is looked at, the status goes on to say what it said.
        self.around.pod_ip = status.pod_ip.clone().unwrap_or_default();
        self.around.sandbox_ready = status.pod_ip.is_some();
        let known: HashMap<String, ContainerStatus> = status
            .container_statuses
            .into_iter()
            .chain(status.init_container_statuses)
            .chain(status.ephemeral_container_statuses)
            .flatten()
            .map(|s| (s.name.clone(), s))
            .collect();
        let mut restored = Restored::default();
        for index in 0..self.records.len() {
            let uid = self.handle.uid.clone();
            let probed = {
                let container = &self.containers[index];
                (container.startup_probe.is_some(), container.readiness_probe.is_some())
            };
            let record = &mut self.records[index];
            if let Some(status) = known.get(&record.name) {
                from_status(record, status);
            }
            // The next run may have begun before the status could say so.
            let attempts = [record.restart_count + 1, record.restart_count];
            let run =
                attempts.into_iter().find_map(|n| found.get(&run_id(&uid, &record.name, n)).map(|state| (n, state)));
            let begun = run.filter(|(_, s)| s.started_at_ns > 0);
            let candidates = attempts.map(|n| run_id(&uid, &record.name, n));
            let adopted_id = begun.map(|(_, state)| state.id.clone());
            restored.stale.extend(
                candidates.iter().filter(|id| found.contains_key(*id) && Some(*id) != adopted_id.as_ref()).cloned(),
            );
            self.handle.reserved.lock().extend(candidates);
            if let Some((attempt, state)) = begun {
                if attempt > record.restart_count {
                    record.last = record.ended.take();
                    record.restart_count = attempt;
                }
                record.container_id = state.id.clone();
                // Without probes it is ready; with them the old word stands until they speak again.
                let was_started = known.get(&record.name).and_then(|s| s.started) == Some(true);
                record.life = Life::Running { started: !probed.0 || was_started };
                record.ready = !(probed.0 || probed.1) || known.get(&record.name).is_some_and(|s| s.ready);
                record.started_at = Timestamp::from_nanosecond(state.started_at_ns.into()).ok();
                record.since = self.context.now();
                (record.ended, record.waiting) = (None, None);
                restored.adopted.push(index);
            } else if record.life == (Life::Running { started: true }) {
                let ended = Ended {
                    code: EXIT_UNKNOWN,
                    reason: "ContainerStatusUnknown".into(),
                    message: "The container could not be located when the pod was terminated".into(),
                    started_at: record.started_at,
                    finished_at: Some(Timestamp::now()),
                    container_id: record.container_id.clone(),
                };
                record.life = Life::Exited { code: ended.code };
                record.ended = Some(ended);
            }
            let attempt = record.restart_count;
            if !record.container_id.is_empty() {
                let previous = if attempt > 0 { run_id(&uid, &record.name, attempt - 1) } else { String::new() };
                let runs = Runs { current: record.container_id.clone(), previous, running: false };
                self.handle.runs.lock().insert(record.name.clone(), runs);
            }
        }
        restored
    }
}

fn from_status(record: &mut Record, status: &ContainerStatus) {
    record.restart_count = status.restart_count;
    record.image_id.clone_from(&status.image_id);
    record.container_id =
        status.container_id.as_deref().and_then(|id| id.strip_prefix(ID_SCHEME)).unwrap_or_default().to_owned();
    record.last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref()).map(ended);
    match &status.state {
        Some(State { running: Some(running), .. }) => {
            record.life = Life::Running { started: true };
            record.started_at = running.started_at.as_ref().map(|t| t.0);
        }
        Some(State { terminated: Some(terminated), .. }) => {
            record.life = Life::Exited { code: terminated.exit_code };
            record.ended = Some(ended(terminated));
        }
        // Waiting after a run: the run is told as the last one.
        _ => {
            if let Some(last) = record.last.take() {
                record.life = Life::Exited { code: last.code };
                record.crashes = u32::try_from(record.restart_count).unwrap_or(0);
                record.ended = Some(last);
            }
        }
    }
}

fn ended(state: &ContainerStateTerminated) -> Ended {
    Ended {
        code: state.exit_code,
        reason: state.reason.clone().unwrap_or_default(),
        message: state.message.clone().unwrap_or_default(),
        started_at: state.started_at.as_ref().map(|t| t.0),
        finished_at: state.finished_at.as_ref().map(|t| t.0),
        container_id: state
            .container_id
            .as_deref()
            .and_then(|id| id.strip_prefix(ID_SCHEME))
            .unwrap_or_default()
            .to_owned(),
    }
}
