//! `POST /build`: the classic builder's protocol. The context comes as a tar stream, progress goes back as JSON lines.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Method;
use image::ByteStream;
use image::build::{BuildEvent, BuildOptions, NETWORK_MISSING, StepBounds};
use kube::ResourceExt;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::mpsc;

use super::transfer::{error_line, line, progress_line};
use crate::body;
use crate::call::Call;
use crate::containers::bounds::cgroup_parent;
use crate::error::{Error, Result};
use crate::operation::{Operation, Reply, run};
use crate::policy::{self, Endpoint, Privilege};
use crate::state::Docker;
use crate::swarm::networks::check_attachable;

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ImageBuild", Method::POST, "/build", "create", "images", run!(image_build)),
    Operation::new("BuildPrune", Method::POST, "/build/prune", "delete", "images", run!(build_prune))
        .partial("steps of BuildKit builds and cache mounts; filters are not read"),
];

/// Lines of output that wait for a slow client; the build waits with them.
const OUTPUT_QUEUE: usize = 256;

/// A query value that holds JSON.
pub(super) fn json_value<T: DeserializeOwned + Default>(call: &Call, name: &str) -> Result<T> {
    match call.query.text(name) {
        None => Ok(T::default()),
        Some(text) => crate::json::parse(text.as_bytes())
            .map_err(|error| Error::Invalid(format!("error reading {name}: {error}"))),
    }
}

fn request(call: &Call, endpoint: Endpoint, experimental: bool) -> Result<BuildOptions> {
    let query = &call.query;
    let build_args: BTreeMap<String, Option<String>> = json_value(call, "buildargs")?;
    if query.flag("squash") && !experimental {
        return Err(Error::Invalid("squash is only supported with experimental mode".into()));
    }
    if query.text("securityopt").is_some_and(|text| !matches!(text, "null" | "[]")) {
        return Err(Error::Invalid(
            "The daemon on this platform does not support setting security options on build".into(),
        ));
    }
    if let Some(isolation) = query.text("isolation").filter(|text| *text != "default") {
        return Err(Error::Invalid(format!("Unsupported isolation: {}", crate::text::quote(isolation))));
    }
    Ok(BuildOptions {
        dockerfile: query.text("dockerfile").unwrap_or("").to_owned(),
        tags: query.all("t").filter(|tag| !tag.is_empty()).map(super::with_tag).collect(),
        build_args,
        labels: json_value(call, "labels")?,
        target: query.text("target").unwrap_or("").to_owned(),
        squash: query.flag("squash"),
        no_cache: query.flag("nocache"),
        pull: query.flag("pull"),
        quiet: query.flag("q"),
        network: query.text("networkmode").unwrap_or("default").to_owned(),
        cache_from: json_value(call, "cachefrom")?,
        extra_hosts: query
            .all("extrahosts")
            .flat_map(|l| l.split(','))
            .filter(|l| !l.is_empty())
            .map(str::to_owned)
            .collect(),
        platform: query.text("platform").unwrap_or("").to_owned(),
        bounds: bounds(call)?,
        credentials: credentials(call)?,
        local_urls: policy::judge(endpoint, &[Privilege::HostNamespace("network")]).is_ok(),
        ..BuildOptions::default()
    })
}

/// The network of RUN steps as those who run them know it. What is not there is told to a build that runs something; another
/// needs no network.
fn network(docker: &Docker, asked: &str) -> String {
    match asked.strip_prefix("container:") {
        Some(reference) => match docker.container(reference) {
            Ok(container) => format!("container:{}", container.name_any()),
            Err(error) => format!("{NETWORK_MISSING}{error}"),
        },
        None if matches!(asked, "" | "default" | "none" | "host") => asked.to_owned(),
        None => match docker.network(asked).and_then(|network| check_attachable(&network).map(|()| network)) {
            Ok(network) if network.name_any() == api::names::DEFAULT_NETWORK => "default".to_owned(),
            Ok(network) => format!("network:{}/{}", docker.state.namespace, network.name_any()),
            Err(error) => format!("{NETWORK_MISSING}{error}"),
        },
    }
}

/// The limits of RUN steps.
fn bounds(call: &Call) -> Result<StepBounds> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Limit {
        name: String,
        soft: i64,
        hard: i64,
    }
    let query = &call.query;
    let limits: Option<Vec<Limit>> = json_value(call, "ulimits")?;
    Ok(StepBounds {
        memory_bytes: query.number("memory")?.unwrap_or(0),
        memory_swap_bytes: query.number("memswap")?.unwrap_or(0),
        cpu_shares: query.number("cpushares")?.unwrap_or(0),
        cpu_quota_us: query.number("cpuquota")?.unwrap_or(0),
        cpu_period_us: query.number("cpuperiod")?.unwrap_or(0),
        cpuset_cpus: query.text("cpusetcpus").unwrap_or_default().to_owned(),
        cpuset_mems: query.text("cpusetmems").unwrap_or_default().to_owned(),
        shm_bytes: query.number("shmsize")?.unwrap_or(0),
        ulimits: limits.into_iter().flatten().map(|l| (l.name, l.soft, l.hard)).collect(),
        cgroup_parent: cgroup_parent(query.get("cgroupparent").unwrap_or_default())?,
    })
}

/// `X-Registry-Config`: credentials by registry host.
fn credentials(call: &Call) -> Result<BTreeMap<String, image::Credentials>> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Auth {
        username: String,
        password: String,
        identitytoken: String,
        registrytoken: String,
    }
    let Some(text) = call.header("x-registry-config").filter(|text| !text.is_empty()) else {
        return Ok(BTreeMap::new());
    };
    let bytes = super::transfer::decode_header(text)
        .ok_or_else(|| Error::Invalid("invalid X-Registry-Config header".into()))?;
    // A client without credentials may send `null` (20.10 does when it builds over a session).
    let all: Option<BTreeMap<String, Auth>> =
        serde_json::from_slice(&bytes).map_err(|_| Error::Invalid("invalid X-Registry-Config header".into()))?;
    let convert = |auth: Auth| image::Credentials {
        username: auth.username,
        password: auth.password,
        identity_token: auth.identitytoken,
        registry_token: auth.registrytoken,
    };
    Ok(all.into_iter().flatten().map(|(host, auth)| (host, convert(auth))).collect())
}

async fn image_build(docker: Arc<Docker>, call: Call) -> Reply {
    let session = call.query.text("version") == Some("2");
    if let Some(id) =
        call.query.text("buildid").and_then(|id| id.strip_prefix(super::uploads::PREFIX)).filter(|_| session)
    {
        let id = id.to_owned();
        return super::buildkit::upload(&docker, call, &id).await;
    }
    let mut request = request(&call, docker.state.endpoint, docker.state.experimental)?;
    let mut asked = Vec::new();
    if request.network == "host" {
        asked.push(Privilege::HostNamespace("network"));
    }
    if let Some(parent) = call.query.text("cgroupparent") {
        asked.push(Privilege::CgroupParent(parent.to_owned()));
    }
    policy::judge(docker.state.endpoint, &asked)?;
    if session {
        return super::buildkit::build(&docker, call, &request).await;
    }
    request.network = network(&docker, &request.network);
    let quiet = call.query.flag("q");
    let remote = call.query.text("remote").filter(|remote| *remote != "client-session");
    // dockerd has told of a download before it looks at what came.
    let told_before = remote.is_some_and(|url| !image::is_repository(url));
    let (context, waiting) = match remote {
        Some(url) => {
            let remote = image::build::remote_context(&docker.state.images, url, request.local_urls).await?;
            if remote.dockerfile_only {
                // There is no other file, whatever name the client gives.
                request.dockerfile.clear();
            }
            (remote.stream, remote.waiting)
        }
        None => (body::byte_stream(call.body), None),
    };
    run_build(docker, context, waiting, request, quiet, told_before).await
}

async fn run_build(
    docker: Arc<Docker>,
    context: ByteStream,
    waiting: Option<image::build::Waiting>,
    request: BuildOptions,
    quiet: bool,
    told_before: bool,
) -> Reply {
    let (output, mut events) = mpsc::channel::<BuildEvent>(OUTPUT_QUEUE);
    let tags = request.tags.clone();
    let worker = docker.clone();
    let mut build: BoxFuture<'_, image::Result<String>> = Box::pin(async move {
        let result = worker.images.build(context, request, output).await;
        drop(waiting);
        result
    });
    // A build that cannot begin is told by a status code, as long as nothing was sent.
    let first = tokio::select! {
        biased;
        first = events.recv() => first,
        result = &mut build => match (events.try_recv().ok(), result) {
            (None, Err(error)) if !told_before => return Err(error.into()),
            (first, result) => {
                build = Box::pin(std::future::ready(result));
                first
            }
        },
    };
    let (sender, pieces) = body::channel();
    tokio::spawn(async move {
        let told = sender.clone();
        let forward = async move {
            let mut next = first;
            while let Some(event) = next {
                if let Some(text) = shown(event)
                    && !quiet
                    && told.send(text).await.is_err()
                {
                    return false;
                }
                // A client may leave while a step says nothing.
                next = tokio::select! {
                    event = events.recv() => event,
                    () = told.closed() => return false,
                };
            }
            true
        };
        tokio::pin!(forward);
        // A client that leaves ends the build: dropping it drops its steps.
        let result = tokio::select! {
            result = &mut build => { forward.await; result }
            here = &mut forward => if here { build.await } else { return },
        };
        match result {
            Ok(id) => {
                for tag in &tags {
                    docker.events.image(&id, tag, "tag");
                }
                if quiet {
                    let _ = sender.send(line(&json!({ "stream": format!("{id}\n") }))).await;
                }
            }
            Err(error) => {
                let _ = sender.send(error_line(&error)).await;
            }
        }
    });
    Ok(body::stream("application/json", pieces))
}

/// What a client is told of an event.
fn shown(event: BuildEvent) -> Option<Bytes> {
    match event {
        BuildEvent::Stream(text) => Some(line(&json!({ "stream": text }))),
        BuildEvent::Pull(progress) => Some(progress_line(&progress)),
        BuildEvent::Step(_) => None,
        BuildEvent::Built(id) => Some(line(&json!({ "aux": { "ID": id.to_string() } }))),
    }
}

async fn build_prune(docker: Arc<Docker>, call: Call) -> Reply {
    let gone = docker.state.images.prune_build_cache(call.query.flag("all")).await.map_err(Error::from)?;
    let bytes: u64 = gone.iter().map(|cache| cache.size_bytes).sum();
    let ids: Vec<String> = gone.into_iter().map(|cache| cache.id).collect();
    body::json(&json!({ "CachesDeleted": ids, "SpaceReclaimed": bytes }))
}
