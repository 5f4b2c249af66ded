//! The system group: ping, version, info, events, disk usage, auth.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::container::State;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use image::{Credentials, ListFilter};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use crate::call::Call;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::filters::{Filters, label_matches};
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::version::{MAXIMUM_VERSION, MINIMUM_VERSION};
use crate::{body, text, time};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("SystemPing", Method::GET, "/_ping", "get", "system", run!(system_ping)),
    Operation::new("SystemPingHead", Method::HEAD, "/_ping", "get", "system", run!(system_ping)),
    Operation::new("SystemVersion", Method::GET, "/version", "get", "system", run!(system_version)),
    Operation::new("SystemInfo", Method::GET, "/info", "get", "system", run!(system_info)),
    Operation::new("SystemEvents", Method::GET, "/events", "get", "system", run!(system_events)),
    Operation::new("SystemDataUsage", Method::GET, "/system/df", "get", "system", run!(system_data_usage))
        .partial("sizes of volumes"),
    Operation::new("SystemAuth", Method::POST, "/auth", "get", "system", run!(system_auth)),
];

/// Our own version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

async fn system_ping(docker: Arc<Docker>, _call: Call) -> Reply {
    let swarm = if docker.in_swarm() { "active/manager" } else { "inactive" };
    let mut response = body::typed(StatusCode::OK, "text/plain; charset=utf-8", Body::from("OK"));
    let headers = response.headers_mut();
    headers.insert("Builder-Version", HeaderValue::from_static("1"));
    headers.insert("Swarm", HeaderValue::from_static(swarm));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// A line of a small file of the kernel, or nothing.
fn kernel_text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Memory of the machine; 0 when unknown.
pub(crate) fn memory_total_bytes() -> u64 {
    let text = kernel_text("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn system_version(docker: Arc<Docker>, _call: Call) -> Reply {
    let kernel = kernel_text("/proc/sys/kernel/osrelease");
    body::json(&json!({
        "Platform": { "Name": "Nuée" },
        "Components": [{
            "Name": "Engine",
            "Version": VERSION,
            "Details": {
                "ApiVersion": MAXIMUM_VERSION.to_string(), "MinAPIVersion": MINIMUM_VERSION.to_string(),
                "Arch": architecture(), "Os": "linux", "KernelVersion": kernel, "Experimental": docker.state.experimental.to_string(),
                "GitCommit": "", "GoVersion": "", "BuildTime": "",
            },
        }],
        "Version": VERSION,
        "ApiVersion": MAXIMUM_VERSION.to_string(),
        "MinAPIVersion": MINIMUM_VERSION.to_string(),
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": architecture(),
        "KernelVersion": kernel,
        "BuildTime": "",
    }))
}

async fn system_info(docker: Arc<Docker>, _call: Call) -> Reply {
    let containers = docker.containers.all();
    let count = |wanted: &[State]| {
        containers.iter().filter(|c| wanted.contains(&c.status.as_ref().map(|s| s.state).unwrap_or_default())).count()
    };
    let os_release = kernel_text("/etc/os-release");
    let os = |key: &str| -> String {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or("").trim_matches('"').to_owned()
    };
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let images =
        docker.images.list(&ListFilter { all: true, ..ListFilter::default() }).await.map_or(0, |images| images.len());
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let mut security = vec!["name=seccomp,profile=builtin"];
    security.extend(unified.then_some("name=cgroupns"));
    let no_proxy = std::env::var("NO_PROXY").unwrap_or_default();
    body::json(&json!({
        "ID": text::id_of_name(&format!("{}/{}", kernel_text("/etc/machine-id"), docker.state.data_dir.display())),
        "Containers": containers.len(),
        "ContainersRunning": count(&[State::Running, State::Restarting]),
        "ContainersPaused": count(&[State::Paused]),
        "ContainersStopped": count(&[State::Created, State::Exited, State::Dead]),
        "Images": images,
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", "extfs"], ["Supports d_type", "true"]],
        "Plugins": { "Volume": ["local"], "Network": ["bridge", "host", "null", "overlay"], "Authorization": null, "Log": ["journald", "json-file", "local", "none"] },
        "MemoryLimit": true, "SwapLimit": true, "CpuCfsPeriod": true, "CpuCfsQuota": true, "CPUShares": true,
        "CPUSet": true, "PidsLimit": true, "IPv4Forwarding": true, "OomKillDisable": !unified,
        "Debug": false,
        "NFd": descriptors,
        "NGoroutines": tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        "SystemTime": Timestamp::now().to_string(),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if unified { "2" } else { "1" },
        "NEventsListener": docker.listeners.load(Ordering::Relaxed),
        "KernelVersion": kernel_text("/proc/sys/kernel/osrelease"),
        "OperatingSystem": os("PRETTY_NAME"),
        "OSVersion": os("VERSION_ID"),
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": { "InsecureRegistryCIDRs": ["127.0.0.0/8", "::1/128"], "IndexConfigs": {}, "Mirrors": null },
        "NCPU": std::thread::available_parallelism().map_or(1, usize::from),
        "MemTotal": memory_total_bytes(),
        "GenericResources": null,
        "DockerRootDir": docker.state.data_dir.display().to_string(),
        "HttpProxy": "", "HttpsProxy": "", "NoProxy": no_proxy,
        "Name": kernel_text("/proc/sys/kernel/hostname"),
        "Labels": [],
        "ExperimentalBuild": docker.state.experimental,
        "ServerVersion": VERSION,
        "Runtimes": { "runc": { "path": "runc" } },
        "DefaultRuntime": "runc",
        "Swarm": crate::swarm::cluster::info(&docker).await?,
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": { "ID": "" }, "RuncCommit": { "ID": "" }, "InitCommit": { "ID": "" },
        "SecurityOptions": security,
        "CDISpecDirs": [],
        "Warnings": null,
    }))
}

const EVENT_FILTERS: [&str; 15] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
    "builder",
];

/// Whether the filters let an event through.
fn accepts(filters: &Filters, event: &Event) -> bool {
    let actor = &event.actor;
    let name = actor.attributes.get("name").map_or("", String::as_str);
    let about = |kind: &str, wanted: &str| {
        event.kind == kind
            && (actor.id == wanted || name == wanted || (text::is_id_prefix(wanted) && actor.id.starts_with(wanted)))
    };
    let action = event.action.split(':').next().unwrap_or("");
    let image = actor.attributes.get("image").map_or(name, String::as_str);
    filters.any("type", |kind| kind == event.kind)
        && filters.any("event", |wanted| wanted == action || wanted == event.action)
        && filters.any("container", |wanted| {
            about("container", wanted) || actor.attributes.get("container").is_some_and(|c| c.starts_with(wanted))
        })
        && filters.any("network", |wanted| about("network", wanted))
        && filters.any("volume", |wanted| about("volume", wanted))
        && ["builder", "config", "daemon", "node", "plugin", "secret", "service"]
            .into_iter()
            .all(|kind| filters.any(kind, |wanted| about(kind, wanted)))
        && filters.any("image", |wanted| {
            let wanted_name = crate::images::with_tag(wanted);
            matches!(event.kind, "image" | "container")
                && (actor.id == wanted || image == wanted || crate::images::with_tag(image) == wanted_name)
        })
        && filters.any("scope", |scope| scope == event.scope)
        && filters.values("label").iter().all(|wanted| label_matches(wanted, &actor.attributes))
}

/// Counts an open event stream.
struct Listener(Arc<Docker>);
impl Listener {
    fn new(docker: Arc<Docker>) -> Self {
        docker.listeners.fetch_add(1, Ordering::Relaxed);
        Self(docker)
    }
}
impl Drop for Listener {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn system_events(docker: Arc<Docker>, call: Call) -> Reply {
    let filters = Filters::of(&call.query, &EVENT_FILTERS)?;
    let now = time::now_ns();
    let point = |name: &str| -> Result<Option<i64>> {
        call.query.text(name).map(|text| time::parse_point(text, now)).transpose()
    };
    let (since, until) = (point("since")?, point("until")?);
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(Error::Invalid("`since` time cannot be after `until` time".into()));
    }
    let (past, mut future) = docker.events.subscribe(since.or(until.filter(|u| *u <= now).map(|_| i64::MAX)));
    let listener = Listener::new(docker);
    let (sender, pieces) = body::channel();
    tokio::spawn(async move {
        let _listener = listener;
        let encode = |event: &Event| {
            let mut text = serde_json::to_string(event).unwrap_or_default();
            text.push('\n');
            Bytes::from(text)
        };
        for event in past.iter().filter(|e| until.is_none_or(|until| e.time_ns <= until) && accepts(&filters, e)) {
            if sender.send(encode(event)).await.is_err() {
                return;
            }
        }
        let wait_ns = until.map(|until| u64::try_from(until - time::now_ns()).unwrap_or(0));
        let end = async {
            match wait_ns {
                Some(ns) => tokio::time::sleep(std::time::Duration::from_nanos(ns)).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        loop {
            let event = tokio::select! {
                event = future.recv() => event,
                () = &mut end => return,
                () = sender.closed() => return,
            };
            match event {
                Ok(event) if accepts(&filters, &event) => {
                    if sender.send(encode(&event)).await.is_err() {
                        return;
                    }
                }
                // A listener that lags loses the oldest events, as with Docker.
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    });
    Ok(body::stream("application/json", pieces))
}

async fn system_data_usage(docker: Arc<Docker>, call: Call) -> Reply {
    let kinds: Vec<&str> = call.query.all("type").collect();
    if let Some(bad) = kinds.iter().find(|k| !matches!(**k, "container" | "image" | "volume" | "build-cache")) {
        return Err(Error::Invalid(format!("unknown object type: {bad}")));
    }
    let wants = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let mut shown = json!({});
    let containers = docker.containers.all();
    if wants("image") {
        let images = docker.images.list(&ListFilter::default()).await?;
        shown["LayersSize"] = json!(images.iter().map(|image| image.size_bytes).sum::<u64>());
        let uses = |id: &str| containers.iter().filter(|c| c.spec.image_id == id).count();
        shown["Images"] =
            images.iter().map(|image| crate::images::summary(image, uses(&image.id.to_string()))).collect();
    }
    if wants("container") {
        let mut rows = Vec::with_capacity(containers.len());
        for container in &containers {
            rows.push(crate::containers::row_with_sizes(&docker, container).await);
        }
        shown["Containers"] = json!(rows);
    }
    if wants("volume") {
        shown["Volumes"] = json!(crate::volumes::describe_all_with_use(&docker));
    }
    if wants("build-cache") {
        // What tenants' builds may use again is the machine's, as its images are.
        let held = docker.state.images.build_cache().await?;
        let row = |cache: image::BuildCache| {
            json!({
                "ID": cache.id, "Parent": "", "Type": if cache.mount { "exec.cachemount" } else { "regular" },
                "Description": cache.description, "InUse": false, "Shared": false, "Size": cache.size_bytes,
                "LastUsedAt": null, "UsageCount": 0,
            })
        };
        shown["BuildCache"] = held.into_iter().map(row).collect();
    }
    body::json(&shown)
}

/// Body of auth.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    username: String,
    password: String,
    #[serde(alias = "identityToken")]
    identitytoken: String,
    serveraddress: String,
}

async fn system_auth(docker: Arc<Docker>, mut call: Call) -> Reply {
    let auth: Auth = call.json().await?;
    if auth.identitytoken.is_empty() && (auth.username.is_empty() || auth.password.is_empty()) {
        return Err(Error::Unauthorized("username and password are required".into()));
    }
    let host = auth.serveraddress.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or("");
    let registry = if host.is_empty() || host == "index.docker.io" { image::reference::DEFAULT_REGISTRY } else { host };
    let credentials = Credentials {
        username: auth.username,
        password: auth.password,
        identity_token: auth.identitytoken,
        ..Credentials::default()
    };
    docker.images.login(registry, &credentials).await.map_err(|error| match error {
        image::Error::Unauthorized(text) => Error::Unauthorized(text),
        other => other.into(),
    })?;
    body::json(&json!({ "Status": "Login Succeeded", "IdentityToken": "" }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::events::Actor;

    #[test]
    fn event_filters_select_by_kind_action_and_actor() {
        let attributes =
            BTreeMap::from([("name".to_owned(), "web".to_owned()), ("image".to_owned(), "busybox".to_owned())]);
        let event = Event {
            status: None,
            id: None,
            from: None,
            kind: "container",
            action: "exec_start: ls".into(),
            actor: Actor { id: "abc123".into(), attributes },
            scope: "local",
            time: 0,
            time_ns: 0,
        };
        let check = |text: &str, expected: bool| {
            let uri = format!("/x?filters={text}");
            let request = http::Request::builder().uri(uri).body(Body::empty()).unwrap();
            let call = Call::new(MAXIMUM_VERSION, Vec::new(), request).unwrap();
            let filters = Filters::of(&call.query, &EVENT_FILTERS).unwrap();
            assert_eq!(accepts(&filters, &event), expected, "{text}");
        };
        check("%7B%22type%22:%5B%22container%22%5D,%22event%22:%5B%22exec_start%22%5D%7D", true);
        check("%7B%22container%22:%5B%22web%22%5D%7D", true);
        check("%7B%22container%22:%5B%22abc%22%5D%7D", true);
        check("%7B%22image%22:%5B%22busybox:latest%22%5D%7D", true);
        check("%7B%22type%22:%5B%22network%22%5D%7D", false);
        check("%7B%22network%22:%5B%22web%22%5D%7D", false);
    }
}
