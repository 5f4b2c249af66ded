//! Tasks: list and inspect. A task is a `Container` object; its states are read out of what the agent and the scheduler say.

use std::collections::HashMap;
use std::sync::Arc;

use api::Container;
use api::container::{ContainerStatus, Desired, State};
use api::swarm::{SwarmService, TaskDesired, TaskInfo};
use http::Method;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{find, is_id_prefix, nodes, not_found, version_of};
use crate::call::Call;
use crate::error::Result;
use crate::filters::Filters;
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::{body, time};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("TaskList", Method::GET, "/tasks", "list", "swarm", run!(task_list)),
    Operation::new("TaskInspect", Method::GET, "/tasks/{id}", "get", "swarm", run!(task_inspect)),
];

/// A container that is a task.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) container: Arc<Container>,
    pub(super) info: TaskInfo,
}

/// The tasks of all services, in the order of their making.
fn all(docker: &Docker) -> Vec<Task> {
    let of = |container: Arc<Container>| Some(Task { info: container.spec.task.clone()?, container });
    let mut tasks: Vec<Task> = docker.containers.all().into_iter().filter_map(of).collect();
    tasks.sort_by_key(|task| (task.info.created_at.as_ref().map(|at| at.0), task.info.id.clone()));
    tasks
}

/// The tasks of all services, by service.
pub(super) fn by_service(docker: &Docker) -> HashMap<String, Vec<Task>> {
    let mut found: HashMap<String, Vec<Task>> = HashMap::new();
    for task in all(docker) {
        found.entry(task.info.service.clone()).or_default().push(task);
    }
    found
}

/// The tasks of one service, in the order of their making.
pub(super) fn of_service(docker: &Docker, service: &str) -> Vec<Task> {
    let mut tasks = all(docker);
    tasks.retain(|task| task.info.service == service);
    tasks
}

/// Finds a task by its id or its name.
pub(super) fn task(docker: &Docker, reference: &str) -> Result<Task> {
    find(all(docker), "task", reference, |task| task.info.id.clone(), |task| task.container.spec.name.clone())
}

/// State and what is said about it.
struct Seen {
    state: &'static str,
    message: &'static str,
    error: String,
}

fn seen(state: &'static str, message: &'static str) -> Seen {
    Seen { state, message, error: String::new() }
}

impl Task {
    fn status(&self) -> ContainerStatus {
        self.container.status.clone().unwrap_or_default()
    }

    pub(super) fn is_running(&self) -> bool {
        self.seen().state == "running" && self.info.desired == TaskDesired::Running
    }

    pub(super) fn is_complete(&self) -> bool {
        self.seen().state == "complete"
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.seen().state, "complete" | "shutdown" | "failed" | "rejected")
    }

    /// Swarm's state. `Source:` Docker, "Swarm task states".
    fn seen(&self) -> Seen {
        let (spec, status) = (&self.container.spec, self.status());
        let due = spec.start_request > status.observed_start && spec.desired == Desired::Running;
        match status.state {
            State::Running | State::Paused => match status.health.as_str() {
                "starting" => seen("starting", "starting"),
                _ => seen("running", "started"),
            },
            State::Restarting => seen("starting", "starting"),
            State::Created | State::Exited | State::Dead if due => match spec.image_id.is_empty() {
                true => seen("preparing", "preparing"),
                false => seen("starting", "starting"),
            },
            State::Created if spec.desired == Desired::Stopped && status.error.is_empty() => {
                seen("shutdown", "shutdown")
            }
            State::Created if spec.node_name.is_none() && spec.desired == Desired::Created => {
                let error = match status.waiting.as_str() {
                    "" => String::new(),
                    reason => format!("no suitable node ({reason})"),
                };
                Seen { state: "pending", message: "pending task scheduling", error }
            }
            State::Created if spec.desired == Desired::Created => match self.info.start_after {
                Some(_) => seen("ready", "prepared"),
                None => seen("assigned", "scheduler assigned task to node"),
            },
            State::Created if spec.image_id.is_empty() => {
                Seen { state: "rejected", message: "preparing", error: status.error }
            }
            State::Created | State::Exited | State::Dead => self.ended(&status),
        }
    }

    fn ended(&self, status: &ContainerStatus) -> Seen {
        let never_ran = status.started_at.is_none();
        if !status.error.is_empty() && (never_ran || status.exit_code == 0) {
            return Seen {
                state: "failed",
                message: "starting",
                error: format!("starting container failed: {}", status.error),
            };
        }
        if self.info.stopped {
            return seen("shutdown", "shutdown");
        }
        match status.exit_code {
            0 if status.health == "unhealthy" => {
                Seen { state: "failed", message: "started", error: "task: unhealthy container".into() }
            }
            0 => seen("complete", "finished"),
            code => {
                let error = format!("task: non-zero exit ({code})");
                Seen { state: "failed", message: "started", error }
            }
        }
    }

    /// What Swarm would have become of it.
    fn desired(&self, service: Option<&SwarmService>) -> &'static str {
        let is_job = service.is_some_and(|service| service.spec.current.mode.is_job());
        match self.info.desired {
            TaskDesired::Remove => "remove",
            TaskDesired::Shutdown if is_job && self.is_complete() => "complete",
            TaskDesired::Running if is_job => "complete",
            TaskDesired::Shutdown => "shutdown",
            TaskDesired::Running
                if self.container.spec.desired == Desired::Created && self.info.start_after.is_some() =>
            {
                "ready"
            }
            TaskDesired::Running => "running",
        }
    }

    fn describe(&self, docker: &Docker, service: Option<&SwarmService>, nodes: &[Node]) -> Value {
        let (spec, status) = (&self.container.spec, self.status());
        let node = spec.node_name.as_ref().and_then(|name| nodes.iter().find(|node| node.name_any() == *name));
        let seen = self.seen();
        let created = time::of_object(self.info.created_at.as_ref());
        let at = match seen.state {
            "running" | "starting" => status.started_at.as_ref(),
            "complete" | "failed" | "shutdown" | "rejected" => status.finished_at.as_ref(),
            _ => None,
        };
        let at = at.map_or_else(|| created.clone(), |at| time::of_object(Some(at)));
        let mut shown_status = json!({
            "Timestamp": at, "State": seen.state, "Message": seen.message,
            "PortStatus": { "Ports": host_ports(&status) },
        });
        if !seen.error.is_empty() {
            shown_status["Err"] = json!(seen.error);
        }
        if !spec.image_id.is_empty() {
            shown_status["ContainerStatus"] = json!({
                "ContainerID": self.container.name_any(), "PID": status.pid, "ExitCode": status.exit_code,
            });
        }
        let mut shown = json!({
            "ID": self.info.id,
            "Version": { "Index": version_of(&*self.container) },
            "CreatedAt": created,
            "UpdatedAt": at,
            "Labels": {},
            "Spec": self.template(service),
            "ServiceID": self.info.service,
            "Status": shown_status,
            "DesiredState": self.desired(service),
            "NetworksAttachments": self.attachments(docker, &status),
        });
        // Slots of jobs count from nought, which clients take for none.
        let is_job = service.is_some_and(|service| service.spec.current.mode.is_job());
        let slot = self.info.slot.saturating_sub(u32::from(is_job));
        if slot > 0 {
            shown["Slot"] = json!(slot);
        }
        if let Some(node) = node {
            shown["NodeID"] = json!(nodes::id(node));
        }
        if is_job {
            shown["JobIteration"] = json!({ "Index": service.map_or(0, |service| service.spec.request) });
        }
        shown
    }

    /// The template as it was when the task was made: that of the service's version that it belongs to.
    fn template(&self, service: Option<&SwarmService>) -> Value {
        let versions = service
            .into_iter()
            .flat_map(|service| std::iter::once(&service.spec.current).chain(service.spec.previous.as_ref()));
        let fits = |version: &&api::swarm::ServiceVersion| version.task.container.image == self.container.spec.image;
        let mut template = match versions.into_iter().find(fits) {
            Some(version) => {
                serde_json::from_str::<Value>(&version.dialect_config).unwrap_or_default()["TaskTemplate"].clone()
            }
            None => json!({ "ContainerSpec": {} }),
        };
        template["ContainerSpec"]["Image"] = json!(self.container.spec.image);
        template
    }

    fn attachments(&self, docker: &Docker, status: &ContainerStatus) -> Value {
        let networks = docker.networks.all();
        let shown = status.networks.iter().filter_map(|(object, place)| {
            let network = networks.iter().find(|n| n.name_any() == *object && n.spec.driver == "overlay")?;
            let facts = network.status.clone().unwrap_or_default();
            Some(json!({
                "Network": {
                    "ID": network.spec.id,
                    "Version": { "Index": version_of(&**network) },
                    "Spec": { "Name": network.spec.name, "Labels": network.spec.labels, "Scope": "swarm", "Ingress": network.spec.ingress },
                    "DriverState": { "Name": "overlay" },
                    "IPAMOptions": { "Driver": { "Name": "default" }, "Configs": [{ "Subnet": facts.subnet, "Gateway": facts.gateway }] },
                },
                "Addresses": [format!("{}/{}", place.ip, place.prefix_length)],
            }))
        });
        shown.collect()
    }
}

fn host_ports(status: &ContainerStatus) -> Value {
    let shown = status.ports.iter().map(|port| {
        json!({
            "Protocol": port.protocol, "TargetPort": port.container_port, "PublishedPort": port.host_port,
            "PublishMode": "host",
        })
    });
    shown.collect()
}

async fn task_list(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let accepted = ["_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"];
    let filters = Filters::of(&call.query, &accepted)?;
    let services = docker.service_api().list(&kube::api::ListParams::default()).await?.items;
    let nodes = docker.nodes().await?;
    for wanted in filters.values("service") {
        let known = services.iter().any(|s| s.name_any().starts_with(wanted.as_str()) || s.spec.name == *wanted);
        if !known {
            return Err(not_found("service", wanted));
        }
    }
    let mut rows = Vec::new();
    for task in all(&docker) {
        let service = services.iter().find(|service| service.name_any() == task.info.service);
        let shown = task.describe(&docker, service, &nodes);
        let text = |member: &str| shown[member].as_str().unwrap_or_default();
        let on = |wanted: &str| {
            let own = wanted == "self" && task.container.spec.node_name == docker.state.node_name;
            own || text("NodeID") == wanted || task.container.spec.node_name.as_deref() == Some(wanted)
        };
        let fresh = || service.is_some_and(|service| service.spec.current.task.version() == task.info.version);
        let kept = filters.any("id", |prefix| is_id_prefix(prefix) && task.info.id.starts_with(prefix))
            && filters.any("name", |part| task.container.spec.name.starts_with(part))
            && filters.any("service", |wanted| {
                task.info.service.starts_with(wanted) || service.is_some_and(|service| service.spec.name == wanted)
            })
            && filters.any("node", on)
            && filters.any("desired-state", |wanted| {
                wanted == text("DesiredState") || (wanted == "accepted" && text("DesiredState") == "running")
            })
            && filters.any("runtime", |wanted| wanted == "container")
            && filters.any("_up-to-date", |wanted| (wanted == "true") == fresh())
            && filters.labels(&task.container.spec.labels);
        if kept {
            rows.push(shown);
        }
    }
    body::json(&rows)
}

async fn task_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let task = task(&docker, call.parameter("id"))?;
    let service = docker.service_api().get_opt(&task.info.service).await?;
    let nodes = docker.nodes().await?;
    body::json(&task.describe(&docker, service.as_ref(), &nodes))
}
