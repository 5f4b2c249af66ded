//! Logs of services and tasks: those of their containers, one stream, each line with the names of its task.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use kube::ResourceExt;
use node::LogOptions;
use tokio::sync::mpsc;

use super::tasks::{self, Task};
use crate::call::Call;
use crate::containers::streams::{encode_line, log_options};
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::{body, hijack};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ServiceLogs", Method::GET, "/services/{id}/logs", "get", "swarm", run!(service_logs))
        .partial("tasks of this machine"),
    Operation::new("TaskLogs", Method::GET, "/tasks/{id}/logs", "get", "swarm", run!(task_logs))
        .partial("tasks of this machine"),
];

/// Pieces on their way to a client that reads slowly.
const PIECES_MAX: usize = 64;
/// Time between two looks for tasks that came while a client follows.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Labels of a task's container that its lines are told with.
const NAMES: [&str; 3] = ["com.docker.swarm.node.id", "com.docker.swarm.service.id", "com.docker.swarm.task.id"];

/// Whose lines a client asks for.
enum Whose {
    Service(String),
    Task(String),
}

impl Whose {
    fn tasks(&self, docker: &Docker) -> Vec<Task> {
        match self {
            Self::Service(id) => tasks::of_service(docker, id),
            Self::Task(id) => tasks::task(docker, id).into_iter().collect(),
        }
    }
}

/// How lines are written.
#[derive(Clone, Copy)]
struct Style {
    timestamps: bool,
    details: bool,
    terminal: bool,
}

async fn service_logs(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let service = docker.service(call.parameter("id")).await?;
    let terminal = service.spec.current.task.container.terminal;
    answer(docker, &call, Whose::Service(service.name_any()), terminal)
}

async fn task_logs(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm()?;
    let task = tasks::task(&docker, call.parameter("id"))?;
    let terminal = task.container.spec.terminal;
    answer(docker, &call, Whose::Task(task.info.id), terminal)
}

fn answer(docker: Arc<Docker>, call: &Call, whose: Whose, terminal: bool) -> Reply {
    let options = log_options(&call.query)?;
    let style = Style { timestamps: call.query.flag("timestamps"), details: call.query.flag("details"), terminal };
    let (sender, mut receiver) = mpsc::channel(PIECES_MAX);
    tokio::spawn(collect(docker, whose, options, style, sender));
    let pieces = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    Ok(body::stream(hijack::content_type(call, terminal), pieces.map(Ok::<Bytes, std::io::Error>)))
}

/// Sends the lines of all tasks, and those of tasks that come while the client follows.
async fn collect(docker: Arc<Docker>, whose: Whose, options: LogOptions, style: Style, sender: mpsc::Sender<Bytes>) {
    let mut known: BTreeSet<String> = BTreeSet::new();
    loop {
        for task in whose.tasks(&docker) {
            let ran = task.container.status.as_ref().is_some_and(|status| status.started_at.is_some());
            if ran && known.insert(task.info.id.clone()) {
                tokio::spawn(send(docker.clone(), task, options.clone(), style, sender.clone()));
            }
        }
        if !options.follow {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Sends the lines of one task.
async fn send(docker: Arc<Docker>, task: Task, options: LogOptions, style: Style, sender: mpsc::Sender<Bytes>) {
    let lines = match docker.state.node.logs(&docker.workload(&task.container.name_any()), options).await {
        Ok(lines) => lines,
        Err(error) => return tracing::debug!(task = task.info.id, %error, "no log"),
    };
    let labels = &task.container.spec.labels;
    let names: Vec<String> =
        NAMES.iter().map(|name| format!("{name}={}", labels.get(*name).map_or("", String::as_str))).collect();
    let details = style.details.then(|| names.join(","));
    let mut lines = std::pin::pin!(lines);
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            () = sender.closed() => return,
        };
        let Some(Ok(line)) = line else { return };
        let piece = encode_line(&line, style.timestamps, details.as_deref(), style.terminal);
        if sender.send(piece).await.is_err() {
            return;
        }
    }
}
