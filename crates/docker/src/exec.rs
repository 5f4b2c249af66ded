//! Exec instances: create, start, resize, inspect. They are not objects: like Docker's, they belong to a running container
//! and to the daemon that made them.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use http::{Method, StatusCode};
use kube::ResourceExt;
use node::{ExecRequest, TerminalSize};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;

use crate::body;
use crate::call::Call;
use crate::containers::streams::{running, terminal_size};
use crate::containers::wire::Words;
use crate::error::{Error, Result};
use crate::hijack::{self, DetachKeys, Streams, Wanted};
use crate::operation::{Operation, Reply, run};
use crate::policy::{self, Privilege};
use crate::state::Docker;
use crate::text;

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ContainerExec", Method::POST, "/containers/{id}/exec", "connect", "containers", run!(exec_create)),
    Operation::new("ExecStart", Method::POST, "/exec/{id}/start", "connect", "containers", run!(exec_start)),
    Operation::new("ExecResize", Method::POST, "/exec/{id}/resize", "connect", "containers", run!(exec_resize)),
    Operation::new("ExecInspect", Method::GET, "/exec/{id}/json", "get", "containers", run!(exec_inspect)),
];

/// Most instances that are remembered; beyond it the finished ones go.
const REMEMBERED_MAX: usize = 4_096;

/// Exit code of what could not be run at all.
const CANNOT_RUN: i32 = 126;

/// Body of exec create.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    console_size: Option<[u16; 2]>,
    // docker-py writes it so; Go, which reads it in dockerd, does not care.
    #[serde(alias = "detachKeys")]
    detach_keys: String,
    tty: bool,
    env: Vec<String>,
    cmd: Option<Words>,
    privileged: bool,
    user: String,
    working_dir: String,
}

/// Body of exec start.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Start {
    detach: bool,
    tty: bool,
    console_size: Option<[u16; 2]>,
}

/// Where an instance is in its life.
#[derive(Clone, Debug, Default)]
enum Phase {
    /// Made.
    #[default]
    Created,
    /// Being started, or running.
    Running { pid: u32, resize: Option<mpsc::Sender<TerminalSize>> },
    /// Ended.
    Ended { code: i32, pid: u32 },
}

/// One instance.
pub(crate) struct Exec {
    pub(crate) id: String,
    /// Id of its container.
    pub(crate) container: String,
    request: Create,
    command: Vec<String>,
    phase: Mutex<Phase>,
}

impl Exec {
    /// Made or running, but not ended.
    pub(crate) fn is_live(&self) -> bool {
        !matches!(*self.phase.lock(), Phase::Ended { .. })
    }
}

fn find(docker: &Docker, id: &str) -> Result<Arc<Exec>> {
    let found = docker.execs.lock().get(id).cloned();
    found.ok_or_else(|| Error::NotFound(format!("No such exec instance: {id}")))
}

async fn exec_create(docker: Arc<Docker>, mut call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    let request: Create = call.json().await?;
    let command = request.cmd.clone().unwrap_or_default().0;
    if command.is_empty() {
        return Err(Error::Invalid("No exec command specified".into()));
    }
    running(&container)?;
    if container.status.as_ref().is_some_and(|s| s.state == api::container::State::Paused) {
        return Err(Error::Conflict(format!(
            "container {} is paused, unpause the container before exec",
            container.name_any()
        )));
    }
    let asked = if request.privileged { vec![Privilege::Privileged] } else { Vec::new() };
    policy::judge(docker.state.endpoint, &asked)?;
    let exec = Arc::new(Exec {
        id: text::new_id(),
        container: container.name_any(),
        request,
        command,
        phase: Mutex::default(),
    });
    let mut execs = docker.execs.lock();
    if execs.len() >= REMEMBERED_MAX {
        execs.retain(|_, exec| exec.is_live());
    }
    if execs.len() >= REMEMBERED_MAX {
        return Err(Error::Unavailable("too many exec instances are live".into()));
    }
    execs.insert(exec.id.clone(), exec.clone());
    drop(execs);
    let line = exec.command.join(" ");
    docker.events.container(&container, format!("exec_create: {line}"), &[("execID", exec.id.clone())]);
    body::json_with(StatusCode::CREATED, &json!({ "Id": exec.id }))
}

async fn exec_start(docker: Arc<Docker>, mut call: Call) -> Reply {
    let exec = find(&docker, call.parameter("id"))?;
    // With an upgrade, the body ends where its length says; what follows is the stream.
    let start: Start = call.json().await?;
    let container = docker
        .container(&exec.container)
        .map_err(|_| Error::Conflict(format!("container {} is not running", exec.container)))?;
    running(&container)?;
    claim(&exec)?;
    let terminal = exec.request.tty;
    let stdin = exec.request.attach_stdin && !start.detach;
    let size = start.console_size.or(exec.request.console_size);
    let request = ExecRequest {
        command: exec.command.clone(),
        terminal,
        stdin,
        environment: exec.request.env.clone(),
        working_directory: exec.request.working_dir.clone(),
        user: exec.request.user.clone(),
        groups: container.spec.security.groups.clone(),
        privileged: exec.request.privileged,
        size: size
            .filter(|[rows, columns]| *rows > 0 && *columns > 0)
            .map(|[rows, columns]| TerminalSize { columns, rows }),
    };
    if start.detach {
        let session = launch(&docker, &exec, &container, request).await?;
        tokio::spawn(session.output.for_each(|_| std::future::ready(())));
        return Ok(body::empty(StatusCode::OK));
    }
    let wanted = Wanted {
        stdin: exec.request.attach_stdin,
        stdout: exec.request.attach_stdout,
        stderr: exec.request.attach_stderr,
        // Docker frames the output unless the start says that there is a terminal, whatever the create said.
        terminal: start.tty,
        detachable: exec.request.tty,
    };
    let claimed = Claim(exec.clone());
    // The head of the answer goes out before the process starts, as with Docker: clients that read ahead of the head
    // would lose output that comes along with it.
    let open = async move {
        let session = launch(&docker, &claimed.0, &container, request).await;
        let detach_keys = DetachKeys::parse(Some(&claimed.0.request.detach_keys));
        let (events, execution) = (docker.events.clone(), claimed.0.id.clone());
        let detached = Box::new(move || events.container(&container, "exec_detach", &[("execID", execution)]));
        match session {
            Ok(Launched { stdin, output }) => Streams { stdin, output, wanted, detach_keys, detached },
            Err(error) => failure(&error, wanted),
        }
    };
    Ok(hijack::respond_later(&mut call, wanted, open).await)
}

/// A claimed instance that was never launched (its client left) counts as ended.
struct Claim(Arc<Exec>);
impl Drop for Claim {
    fn drop(&mut self) {
        let mut phase = self.0.phase.lock();
        if matches!(*phase, Phase::Running { resize: None, .. }) {
            *phase = Phase::Ended { code: CANNOT_RUN, pid: 0 };
        }
    }
}

/// The streams of a process that was started.
struct Launched {
    stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    output: Pin<Box<dyn Stream<Item = node::Output> + Send>>,
}

/// Starts the process and keeps watch over its end.
async fn launch(
    docker: &Docker,
    exec: &Arc<Exec>,
    container: &Arc<api::Container>,
    request: ExecRequest,
) -> Result<Launched> {
    let session = docker.state.node.exec(&docker.workload(&exec.container), request).await;
    let session = session.map_err(|error| refuse(exec, error))?;
    *exec.phase.lock() = Phase::Running { pid: session.pid, resize: Some(session.resize.clone()) };
    let line = exec.command.join(" ");
    docker.events.container(container, format!("exec_start: {line}"), &[("execID", exec.id.clone())]);
    let node::Session { stdin, output, exit, pid, .. } = session;
    let (ended, events, owner) = (exec.clone(), docker.events.clone(), container.clone());
    let watch = tokio::spawn(async move {
        let code = exit.await.map_or(-1, |status| status.code);
        *ended.phase.lock() = Phase::Ended { code, pid };
        let facts = [("execID", ended.id.clone()), ("exitCode", code.to_string())];
        events.container(&owner, "exec_die", &facts);
    });
    // The stream ends only after the exit code is known: clients inspect right after the stream's end.
    let output = output.chain(futures::stream::once(watch).filter_map(|_| async { None }));
    Ok(Launched { stdin, output: Box::pin(output) })
}

/// A client that attached is told in the stream why nothing runs, and finds the exit code by inspect, as with Docker.
fn failure(error: &Error, wanted: Wanted) -> Streams {
    let text = node::Output { stream: node::OutputStream::Stdout, data: format!("{error}\r\n").into() };
    Streams {
        stdin: None,
        output: Box::pin(futures::stream::iter([text])),
        wanted: Wanted { stdout: true, ..wanted },
        detach_keys: DetachKeys::parse(None),
        detached: Box::new(|| ()),
    }
}

/// An instance runs once.
fn claim(exec: &Exec) -> Result<()> {
    let mut phase = exec.phase.lock();
    match *phase {
        Phase::Created => {
            *phase = Phase::Running { pid: 0, resize: None };
            Ok(())
        }
        Phase::Running { .. } => Err(Error::Conflict(format!("Exec command {} is already running", exec.id))),
        Phase::Ended { .. } => Err(Error::Conflict(format!("Exec command {} has already run", exec.id))),
    }
}

/// Docker's words for a program that cannot be run; the exit code is kept for inspect.
fn refuse(exec: &Exec, error: node::Error) -> Error {
    let (code, error) = match error {
        node::Error::CannotStart { code, message } => {
            let prefix = "OCI runtime exec failed: exec failed: unable to start container process: ";
            let known = message.starts_with("OCI runtime");
            (code, Error::Invalid(if known { message } else { format!("{prefix}{message}: unknown") }))
        }
        other => (CANNOT_RUN, other.into()),
    };
    *exec.phase.lock() = Phase::Ended { code, pid: 0 };
    error
}

async fn exec_resize(docker: Arc<Docker>, call: Call) -> Reply {
    let exec = find(&docker, call.parameter("id"))?;
    let size = terminal_size(&call)?;
    let sender = match &*exec.phase.lock() {
        Phase::Running { resize, .. } => resize.clone(),
        Phase::Created => None,
        Phase::Ended { .. } => {
            return Err(Error::Conflict(format!("Exec command {} is not running", exec.id)));
        }
    };
    let Some(sender) = sender else {
        return Err(Error::Conflict(format!("exec process {} is not started", exec.id)));
    };
    // A process that ended meanwhile needs no size.
    let _ = sender.send(size).await;
    Ok(body::empty(StatusCode::OK))
}

async fn exec_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    let exec = find(&docker, call.parameter("id"))?;
    let (is_running, code, pid) = match &*exec.phase.lock() {
        Phase::Created => (false, Value::Null, 0),
        Phase::Running { pid, .. } => (true, Value::Null, *pid),
        Phase::Ended { code, pid } => (false, json!(code), *pid),
    };
    let request = &exec.request;
    body::json(&json!({
        "ID": exec.id,
        "Running": is_running,
        "ExitCode": code,
        "ProcessConfig": {
            "tty": request.tty,
            "entrypoint": exec.command.first().cloned().unwrap_or_default(),
            "arguments": exec.command.get(1..).unwrap_or_default(),
            "privileged": request.privileged,
            "user": request.user,
        },
        "OpenStdin": request.attach_stdin,
        "OpenStderr": request.attach_stderr,
        "OpenStdout": request.attach_stdout,
        "CanRemove": !is_running && !code.is_null(),
        "ContainerID": exec.container,
        "DetachKeys": "",
        "Pid": pid,
    }))
}
