//! Logs of services and tasks: those of their containers, one stream, each line with the names of its task.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::Container;
use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use kube::{Api, ResourceExt};
use node::LogOptions;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::tasks::{self, Task};
use crate::call::Call;
use crate::containers::streams::{encode_line, log_details, log_options, pairs};
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::{body, hijack};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ServiceLogs", Method::GET, "/services/{id}/logs", "get", "swarm", run!(service_logs)),
    Operation::new("TaskLogs", Method::GET, "/tasks/{id}/logs", "get", "swarm", run!(task_logs)),
];

/// Pieces on their way to a client that reads slowly.
const PIECES_MAX: usize = 64;
/// Logs that are read at once for one client; each is a connection to the task's machine. Others wait for one to end.
const STREAMS_MAX: usize = 256;
/// Time between two looks for tasks that came while a client follows.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Time until a machine that did not answer is asked again while a client follows.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);
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

/// Sends the lines of all tasks as they come, and those of tasks that come while the client follows. Who does not follow is told at
/// the end what is missing. Dropping it ends all reading.
async fn collect(docker: Arc<Docker>, whose: Whose, options: LogOptions, style: Style, sender: mpsc::Sender<Bytes>) {
    let slots = Arc::new(Semaphore::new(STREAMS_MAX));
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut readers = JoinSet::new();
    let mut reasons = Vec::new();
    loop {
        for task in whose.tasks(&docker) {
            if task.container.spec.node_name.is_none() && !options.follow {
                reasons.push(format!("task {} has not been scheduled", task.info.id));
            }
            let ran = task.container.status.as_ref().is_some_and(|status| status.started_at.is_some());
            if ran && known.insert(task.info.id.clone()) {
                let (docker, options, sender) = (docker.clone(), options.clone(), sender.clone());
                let slots = slots.clone();
                readers.spawn(async move {
                    let _slot = slots.acquire_owned().await;
                    send(&docker, &task, options, style, &sender).await
                });
            }
        }
        if !options.follow {
            break;
        }
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        // Those that are done need not be kept.
        while readers.try_join_next().is_some() {}
    }
    while let Some(read) = readers.join_next().await {
        reasons.extend(read.ok().and_then(Result::err));
    }
    if !reasons.is_empty() {
        let text = incomplete(reasons);
        let piece = if style.terminal { Bytes::from(text) } else { hijack::system_error(&text) };
        let _ = sender.send(piece).await;
    }
}

/// What a client is told that cannot have all lines. `Source:` swarmkit, `logbroker.subscription.Err`; moby, `WriteLogStream`.
fn incomplete(mut reasons: Vec<String>) -> String {
    reasons.sort();
    reasons.dedup();
    let reasons = reasons.join(", ");
    let why = "incomplete log stream. some logs could not be retrieved for the following reasons";
    format!("Error grabbing logs: rpc error: code = Unknown desc = warning: {why}: {reasons}\n")
}

/// How far a log was sent. Lines that a container wrote at once share a timestamp, so it takes their number too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sent {
    /// Of the last line.
    timestamp_ns: Option<i64>,
    /// Lines of that timestamp.
    lines: usize,
    /// Those among them that come once more, since the log is read again.
    again: usize,
}

impl Sent {
    /// Where to read from when the log is read again: at the last line's timestamp, its lines that were sent among the others.
    fn resume(&mut self) -> Option<i64> {
        self.again = self.lines;
        self.timestamp_ns
    }

    /// Takes the next line that was read, and says whether it is to be sent.
    fn is_new(&mut self, timestamp_ns: i64) -> bool {
        if self.timestamp_ns != Some(timestamp_ns) {
            *self = Self { timestamp_ns: Some(timestamp_ns), lines: 1, again: 0 };
            return true;
        }
        if self.again > 0 {
            self.again -= 1;
            return false;
        }
        self.lines += 1;
        true
    }
}

/// Whether a task's object is no more. Who cannot say so is asked again.
async fn is_gone(docker: &Docker, task: &Task) -> bool {
    let containers: Api<Container> = Api::namespaced(docker.state.client.clone(), &docker.state.namespace);
    matches!(containers.get_opt(&task.container.name_any()).await, Ok(None))
}

/// Sends the lines of one task, from whichever machine it is on. While the client follows, a machine that goes away, or does not know
/// the task yet, is asked again for what was not sent.
///
/// Errors: why lines are missing.
async fn send(
    docker: &Docker,
    task: &Task,
    mut options: LogOptions,
    style: Style,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), String> {
    let details = style.details.then(|| details(task));
    let mut sent = Sent::default();
    loop {
        if let Some(since) = sent.resume() {
            // The tail was that of a shorter log. Lines before it that share its first line's timestamp may come, but none is lost.
            (options.since_ns, options.tail) = (Some(since), None);
        }
        let Err(error) = read(docker, task, &options, &mut sent, style, details.as_deref(), sender).await else {
            return Ok(());
        };
        tracing::debug!(task = task.info.id, %error, "no log");
        match error {
            // The task was swept away meanwhile; otherwise its machine has just begun to look after its tasks.
            node::Error::NotFound(_) if !options.follow || is_gone(docker, task).await => return Ok(()),
            node::Error::NotFound(_) => {}
            node::Error::Unavailable(_) if options.follow => {}
            node::Error::Unavailable(_) => {
                let node = task.container.spec.labels.get(NAMES[0]).map_or("", String::as_str);
                return Err(format!("node {node} is not available"));
            }
            error => return Err(format!("task {}: {error}", task.info.id)),
        }
        tokio::select! {
            () = sender.closed() => return Ok(()),
            () = tokio::time::sleep(ASK_AGAIN_AFTER) => {}
        }
    }
}

/// Sends what was not sent to the end of the log, or until the client leaves.
async fn read(
    docker: &Docker,
    task: &Task,
    options: &LogOptions,
    sent: &mut Sent,
    style: Style,
    details: Option<&str>,
    sender: &mpsc::Sender<Bytes>,
) -> node::Result<()> {
    let lines = docker.state.node.logs(&docker.workload(&task.container.name_any()), options.clone()).await?;
    let mut lines = std::pin::pin!(lines);
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            () = sender.closed() => return Ok(()),
        };
        let Some(line) = line.transpose()? else { return Ok(()) };
        if !sent.is_new(line.timestamp_ns) {
            continue;
        }
        if sender.send(encode_line(&line, style.timestamps, details, style.terminal)).await.is_err() {
            return Ok(());
        }
    }
}

/// What `--details` shows, and the client finds the task's names in: what the log's options name, then the names, which nothing that a
/// user wrote can replace. `Source:` moby, `Cluster.ServiceLogs`.
fn details(task: &Task) -> String {
    let labels = &task.container.spec.labels;
    let mut shown = log_details(&task.container);
    shown.extend(NAMES.map(|name| (name.to_owned(), labels.get(name).cloned().unwrap_or_default())));
    pairs(&shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_lost_or_doubled_wherever_a_log_is_cut() {
        let log = [3, 3, 3, 5, 7, 7];
        for first in 0..=log.len() {
            for second in 0..=log.len() {
                let (mut sent, mut told) = (Sent::default(), Vec::new());
                for end in [first, second, log.len()] {
                    let since = sent.resume();
                    let lines = log.iter().take(end).enumerate();
                    let read = lines.filter(|(_, at)| since.is_none_or(|since| **at >= since));
                    told.extend(read.filter(|(_, at)| sent.is_new(**at)).map(|(line, _)| line));
                }
                assert_eq!(told, [0, 1, 2, 3, 4, 5], "{first} {second}");
            }
        }
    }

    #[test]
    fn each_reason_is_told_once() {
        let told = incomplete(vec!["node b is not available".into(), "a".into(), "node b is not available".into()]);
        assert!(told.ends_with("following reasons: a, node b is not available\n"), "{told}");
    }
}
