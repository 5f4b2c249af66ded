//! A container's streams: logs, attach, resize, top.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Container;
use api::container::State;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{Method, StatusCode};
use kube::ResourceExt;
use node::{AttachOptions, LogLine, LogOptions, TerminalSize};
use serde_json::{Value, json};

use super::echo::Echo;
use super::lifecycle::status_of;
use crate::call::{Call, Query};
use crate::error::{Error, Result};
use crate::filters::Pattern;
use crate::hijack::{self, DetachKeys, Streams, Wanted};
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::text::query_escape;
use crate::websocket::Handshake;
use crate::{body, time};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ContainerLogs", Method::GET, "/containers/{id}/logs", "get", "containers", run!(container_logs)),
    Operation::new(
        "ContainerAttach",
        Method::POST,
        "/containers/{id}/attach",
        "connect",
        "containers",
        run!(container_attach),
    ),
    Operation::new(
        "ContainerAttachWebsocket",
        Method::GET,
        "/containers/{id}/attach/ws",
        "connect",
        "containers",
        run!(container_attach_websocket),
    ),
    Operation::new(
        "ContainerResize",
        Method::POST,
        "/containers/{id}/resize",
        "update",
        "containers",
        run!(container_resize),
    ),
    Operation::new("ContainerTop", Method::GET, "/containers/{id}/top", "get", "containers", run!(container_top)),
    Operation::new(
        "ContainerStats",
        Method::GET,
        "/containers/{id}/stats",
        "get",
        "containers",
        run!(super::stats::container_stats),
    ),
];

async fn container_logs(docker: Arc<Docker>, call: Call) -> Reply {
    let options = log_options(&call.query)?;
    let container = docker.container(call.parameter("id"))?;
    if container.spec.log_driver == "none" {
        return Err(Error::NotImplemented("configured logging driver does not support reading".into()));
    }
    let timestamps = call.query.flag("timestamps");
    let details = call.query.flag("details").then(|| pairs(&log_details(&container)));
    let terminal = container.spec.terminal;
    let lines = docker.state.node.logs(&docker.workload(&container.name_any()), options).await?;
    let pieces = lines.map(move |line| {
        line.map(|line| encode_line(&line, timestamps, details.as_deref(), terminal))
            .map_err(|e| std::io::Error::other(e.to_string()))
    });
    Ok(body::stream(hijack::content_type(&call, terminal), pieces))
}

/// Which lines a client of logs asks for.
pub(crate) fn log_options(query: &Query) -> Result<LogOptions> {
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    if !stdout && !stderr {
        return Err(Error::Invalid("Bad parameters: you must choose at least one stream".into()));
    }
    let now = time::now_ns();
    let point = |name: &str| -> Result<Option<i64>> {
        query.text(name).filter(|text| *text != "0").map(|text| time::parse_point(text, now)).transpose()
    };
    let tail = match query.text("tail") {
        None | Some("all") => None,
        // Docker takes what is no number, or a negative one, for "all".
        Some(text) => text.parse::<usize>().ok(),
    };
    Ok(LogOptions {
        follow: query.flag("follow"),
        tail,
        since_ns: point("since")?,
        until_ns: point("until")?,
        previous: false,
        without_stdout: !stdout,
        without_stderr: !stderr,
    })
}

/// The labels and variables that the log's options name, as `docker logs --details` shows them.
pub(crate) fn log_details(container: &Container) -> BTreeMap<String, String> {
    let echo = Echo::of(container);
    let option = |name: &str| echo.host_config.pointer(&format!("/LogConfig/Config/{name}")).and_then(Value::as_str);
    let names = |name: &str| -> Vec<String> {
        option(name).into_iter().flat_map(|list| list.split(',')).map(str::to_owned).collect()
    };
    let spec = &container.spec;
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    for name in names("labels") {
        if let Some(value) = spec.labels.get(&name) {
            shown.insert(name, value.clone());
        }
    }
    for name in names("env") {
        let value = spec.environment.iter().find_map(|line| line.strip_prefix(&name)?.strip_prefix('='));
        if let Some(value) = value {
            shown.insert(name, value.to_owned());
        }
    }
    if let Some(pattern) = option("labels-regex").map(Pattern::of) {
        shown.extend(spec.labels.iter().filter(|(name, _)| pattern.matches(name)).map(|(k, v)| (k.clone(), v.clone())));
    }
    if let Some(pattern) = option("env-regex").map(Pattern::of) {
        let lines = spec.environment.iter().filter_map(|line| line.split_once('='));
        shown.extend(lines.filter(|(name, _)| pattern.matches(name)).map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
    if let Some(template) = option("tag").filter(|template| !template.is_empty())
        && let Ok(tag) = api::log_tag::expand(template, spec, &container.name_any(), kernel_hostname().trim())
    {
        shown.insert("tag".to_owned(), tag);
    }
    shown
}

fn kernel_hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
}

/// Details as they stand in a line. `Source:` moby, `attrsByteSlice`.
pub(crate) fn pairs(details: &BTreeMap<String, String>) -> String {
    let pairs = details.iter().map(|(name, value)| format!("{}={}", query_escape(name), query_escape(value)));
    pairs.collect::<Vec<_>>().join(",")
}

/// One line as it goes over the wire.
pub(crate) fn encode_line(line: &LogLine, timestamps: bool, details: Option<&str>, terminal: bool) -> Bytes {
    let data = if timestamps || details.is_some() {
        let mut data = BytesMut::new();
        if timestamps {
            data.extend_from_slice(time::rfc3339_fixed(line.timestamp_ns).as_bytes());
            data.extend_from_slice(b" ");
        }
        if let Some(details) = details {
            data.extend_from_slice(details.as_bytes());
            data.extend_from_slice(b" ");
        }
        data.extend_from_slice(&line.data);
        data.freeze()
    } else {
        line.data.clone()
    };
    if terminal { data } else { hijack::frame(line.stream, &data) }
}

async fn container_attach(docker: Arc<Docker>, mut call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    let streams = attached(&docker, container, &call.query).await?;
    Ok(hijack::respond(&mut call, streams))
}

async fn container_attach_websocket(docker: Arc<Docker>, mut call: Call) -> Reply {
    // An error must be told before the connection changes hands.
    let container = docker.container(call.parameter("id"))?;
    let handshake = Handshake::of(&mut call)?;
    let streams = attached(&docker, container, &call.query).await?;
    Ok(handshake.respond(streams))
}

/// The streams that a client of attach asks for.
async fn attached(docker: &Arc<Docker>, container: Arc<Container>, query: &Query) -> Result<Streams> {
    let (stream, logs) = (query.flag("stream"), query.flag("logs"));
    let wanted = Wanted {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        terminal: container.spec.terminal,
        detachable: container.spec.terminal,
    };
    let keys = DetachKeys::parse(query.text("detachKeys"));
    let status = status_of(&container);
    if status.state == State::Paused {
        return Err(Error::Conflict(format!(
            "container {} is paused, unpause the container before attach",
            container.name_any()
        )));
    }
    if status.state == State::Restarting {
        return Err(Error::Conflict(format!(
            "container {} is restarting, wait until the container is running",
            container.name_any()
        )));
    }
    let workload = docker.workload(&container.name_any());
    if !stream {
        let options =
            LogOptions { without_stdout: !wanted.stdout, without_stderr: !wanted.stderr, ..LogOptions::default() };
        let lines: Vec<LogLine> = if logs {
            docker.state.node.logs(&workload, options).await?.filter_map(|line| async { line.ok() }).collect().await
        } else {
            Vec::new()
        };
        let output = futures::stream::iter(lines.into_iter().map(|l| node::Output { stream: l.stream, data: l.data }));
        let streams =
            Streams { stdin: None, output: Box::pin(output), wanted, detach_keys: keys, detached: Box::new(|| ()) };
        return Ok(streams);
    }
    let options = AttachOptions {
        stdin: wanted.stdin && container.spec.open_stdin,
        replay_logs: logs,
        wait_for_start: !matches!(status.state, State::Running),
    };
    let session = docker.state.node.attach(&workload, options).await?;
    docker.events.container(&container, "attach", &[]);
    let (events, left) = (docker.events.clone(), container.clone());
    Ok(Streams {
        stdin: session.stdin.filter(|_| wanted.stdin),
        output: session.output,
        wanted,
        detach_keys: keys,
        detached: Box::new(move || events.container(&left, "detach", &[])),
    })
}

/// `h` and `w` of a resize.
pub(crate) fn terminal_size(call: &Call) -> Result<TerminalSize> {
    let side = |name: &str| -> Result<u16> {
        let text = call.query.get(name).unwrap_or("");
        text.parse()
            .map_err(|_| Error::Invalid(format!("invalid resize {name} {}: invalid syntax", crate::text::quote(text))))
    };
    Ok(TerminalSize { rows: side("h")?, columns: side("w")? })
}

async fn container_resize(docker: Arc<Docker>, call: Call) -> Reply {
    let size = terminal_size(&call)?;
    let container = docker.container(call.parameter("id"))?;
    running(&container)?;
    docker.state.node.resize(&docker.workload(&container.name_any()), size).await?;
    let sizes = [("height", size.rows.to_string()), ("width", size.columns.to_string())];
    docker.events.container(&container, "resize", &sizes);
    Ok(body::empty(StatusCode::OK))
}

/// Refuses what needs a process.
pub(crate) fn running(container: &Container) -> Result<()> {
    let id = container.name_any();
    match status_of(container).state {
        State::Running | State::Paused => Ok(()),
        State::Restarting => {
            Err(Error::Conflict(format!("Container {id} is restarting, wait until the container is running")))
        }
        _ => Err(Error::Conflict(format!("container {id} is not running"))),
    }
}

async fn container_top(docker: Arc<Docker>, call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    running(&container)?;
    let arguments = call.query.text("ps_args").unwrap_or("");
    let table = docker.state.node.processes(&docker.workload(&container.name_any()), arguments).await?;
    docker.events.container(&container, "top", &[]);
    body::json(&json!({ "Titles": table.titles, "Processes": table.processes }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::OutputStream;

    #[test]
    fn log_lines_are_framed_with_their_timestamps_inside() {
        let line = LogLine { timestamp_ns: 0, stream: OutputStream::Stdout, data: Bytes::from_static(b"hi\n") };
        assert_eq!(&encode_line(&line, false, None, true)[..], b"hi\n");
        assert_eq!(&encode_line(&line, true, None, true)[..], b"1970-01-01T00:00:00.000000000Z hi\n");
        assert_eq!(&encode_line(&line, false, None, false)[..8], b"\x01\0\0\0\0\0\0\x03");
    }
}
