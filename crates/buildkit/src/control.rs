//! `moby.buildkit.v1.Control`: solve, watch, list, prune.

use std::collections::HashMap;
use std::sync::Arc;

use futures::{StreamExt, stream};
use http::{Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::build::{Ending, Running};
use crate::export::{Export, export};
use crate::frontend::{self, Answer, Built, Given};
use crate::server::{streaming, unary, unimplemented};
use crate::wire::control::{
    BuildHistoryEvent, BuildHistoryRecord, BuildHistoryRequest, DiskUsageResponse, Empty, Exporter, InfoResponse,
    ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse, StatusRequest, UsageRecord, Version, WorkerRecord,
};
use crate::wire::gateway::References;
use crate::wire::ops::Platform;
use crate::{BuildKit, linked, source};

/// The BuildKit whose protocol this is.
const VERSION: &str = "v0.25.1";
/// The kind of a finished build in the history.
const COMPLETE: i32 = 1;

/// Answers one call.
pub async fn answer(buildkit: Arc<BuildKit>, method: &str, request: Request<Body>) -> Response<Body> {
    match method {
        "Solve" => {
            unary(request, move |call: tonic::Request<SolveRequest>| {
                let mut request = call.into_inner();
                let inputs = std::mem::take(&mut request.frontend_inputs);
                solve(buildkit.clone(), request, Given { inputs, ..Given::default() })
            })
            .await
        }
        "Status" => {
            streaming(request, move |call: tonic::Request<StatusRequest>| {
                let buildkit = buildkit.clone();
                let reference = call.into_inner().reference;
                let found = async move { buildkit.builds.get(&reference).await };
                stream::once(found).flat_map(|found| match found {
                    Ok(running) => running.messages().left_stream(),
                    Err(status) => stream::once(std::future::ready(Err(status))).right_stream(),
                })
            })
            .await
        }
        "ListWorkers" => {
            unary(request, |_: tonic::Request<Empty>| async { Ok(ListWorkersResponse { record: vec![worker()] }) })
                .await
        }
        "Info" => {
            unary(request, |_: tonic::Request<Empty>| async { Ok(InfoResponse { version: Some(version()) }) }).await
        }
        "DiskUsage" => unary(request, move |_: tonic::Request<Empty>| disk_usage(buildkit.clone())).await,
        "Prune" => {
            streaming(request, move |call: tonic::Request<PruneRequest>| {
                let buildkit = buildkit.clone();
                let all = call.into_inner().all;
                stream::once(prune(buildkit, all)).flat_map(|pruned| match pruned {
                    Ok(records) => stream::iter(records.into_iter().map(Ok)).left_stream(),
                    Err(status) => stream::once(std::future::ready(Err(status))).right_stream(),
                })
            })
            .await
        }
        "ListenBuildHistory" => {
            streaming(request, move |call: tonic::Request<BuildHistoryRequest>| {
                stream::iter(history(&buildkit, &call.into_inner()).into_iter().map(Ok))
            })
            .await
        }
        other => unimplemented(other),
    }
}

fn version() -> Version {
    Version { package: "github.com/moby/buildkit".to_owned(), version: VERSION.to_owned(), revision: String::new() }
}

/// The one worker: this machine.
pub fn worker() -> WorkerRecord {
    let own = image::Platform::default();
    let platform = Platform { architecture: own.architecture, os: own.os, variant: own.variant };
    WorkerRecord {
        id: "nuee".to_owned(),
        labels: HashMap::from([("org.mobyproject.buildkit.worker.executor".to_owned(), "nuee".to_owned())]),
        platforms: vec![platform],
        version: Some(version()),
    }
}

async fn solve(buildkit: Arc<BuildKit>, request: SolveRequest, given: Given) -> Result<SolveResponse, Status> {
    tracing::debug!(?request, "solve");
    let running = buildkit.builds.begin(&request.reference, &request.session)?;
    let _ending = Ending { builds: &buildkit.builds, running: running.clone() };
    let definition = request.definition.as_ref().filter(|definition| !definition.def.is_empty());
    for entitlement in &request.entitlements {
        if entitlement != "network.host" || !buildkit.options.host_network {
            return Err(Status::new(Code::PermissionDenied, format!("entitlement {entitlement} is not allowed")));
        }
    }
    warn_of_caches(&running, &request);
    let built = if let Some(definition) = definition {
        Some(Built { image: linked::image(definition)? })
    } else if request.frontend.is_empty() {
        returned(&running).await?
    } else {
        let attributes = request.frontend_attrs.clone();
        match frontend::solve(&buildkit, &request.session, &request.frontend, attributes, given, &running).await? {
            Answer::Built(built) => Some(built),
            Answer::Told(_) => None,
        }
    };
    let mut exports: Vec<Export> =
        request.exporters.into_iter().map(|e| Export { kind: e.kind, attributes: e.attrs }).collect();
    if exports.is_empty() && !request.exporter_deprecated.is_empty() {
        let attributes = request.exporter_attrs_deprecated;
        exports.push(Export { kind: request.exporter_deprecated, attributes });
    }
    let mut exporter_response = HashMap::new();
    if let Some(built) = built {
        for (number, one) in exports.iter().enumerate() {
            exporter_response.extend(export(&buildkit, &request.session, one, number, &built, &running).await?);
        }
    }
    running.response.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone_from(&exporter_response);
    Ok(SolveResponse { exporter_response })
}

/// A build that the daemon itself asks for, in place of a client's Solve.
#[derive(Default)]
pub struct Build {
    /// Its id.
    pub reference: String,
    /// The session whose files it builds.
    pub session: String,
    /// Attributes of the Dockerfile frontend.
    pub attributes: HashMap<String, String>,
    /// Where the result goes: kind and attributes.
    pub exports: Vec<(String, HashMap<String, String>)>,
    /// Make one layer of all that the build added to the last stage's base image.
    pub squash: bool,
    /// The main context, as an archive or a Dockerfile alone, in place of the session's.
    pub context: Option<image::ByteStream>,
}

impl BuildKit {
    /// Builds; `told` gets the progress as BuildKit encodes it. The image's id, if the result is one. Dropping the future
    /// ends the build.
    ///
    /// Errors: a text for the user.
    pub async fn build<F, W>(self: &Arc<Self>, build: Build, told: F) -> Result<Option<String>, String>
    where
        F: Fn(Vec<u8>) -> W,
        W: Future<Output = ()>,
    {
        let exporters = build.exports.into_iter().map(|(kind, attrs)| Exporter { kind, attrs }).collect();
        let request = SolveRequest {
            reference: build.reference.clone(),
            session: build.session,
            frontend: frontend::DOCKERFILE.to_owned(),
            frontend_attrs: build.attributes,
            exporters,
            ..SolveRequest::default()
        };
        let solving =
            solve(self.clone(), request, Given { squash: build.squash, context: build.context, ..Given::default() });
        let telling = async {
            let Ok(running) = self.builds.get(&build.reference).await else { return };
            let messages = running.messages();
            tokio::pin!(messages);
            while let Some(Ok(message)) = messages.next().await {
                told(prost::Message::encode_to_vec(&message)).await;
            }
        };
        let (solved, ()) = tokio::join!(solving, telling);
        let response = solved.map_err(|status| format!("failed to solve: {}", status.message()))?;
        Ok(response.exporter_response.get("containerimage.config.digest").cloned())
    }
}

/// Caches that other builders made, or would read, are no use here: the images themselves are the cache.
fn warn_of_caches(running: &Running, request: &SolveRequest) {
    let Some(cache) = &request.cache else { return };
    for entry in cache.exports.iter().filter(|entry| entry.kind != "inline") {
        let digest = running.begin_step(&format!("exporting cache to {}", entry.kind));
        running.end_step(&digest, false, None);
        running
            .warn(&digest, &format!("cache export to {} is ignored: the images themselves are the cache", entry.kind));
    }
}

/// Waits for the client, which evaluates the build itself and asks the gateway for its parts.
async fn returned(running: &Running) -> Result<Option<Built>, Status> {
    let answer = running.client_return().await?;
    if let Some(error) = answer.error.filter(|error| error.code != 0) {
        return Err(source::with_details(&error));
    }
    let references = answer.result.and_then(|result| result.references);
    let name = match references {
        None => return Ok(None),
        Some(References::Deprecated(id)) => id,
        Some(References::One(reference)) => reference.id,
        Some(References::Many(map)) => match map.references.into_values().collect::<Vec<_>>().as_slice() {
            [] => return Ok(None),
            [one] => one.id.clone(),
            _ => return Err(Status::new(Code::Unimplemented, "results of several platforms are not supported")),
        },
    };
    if name.is_empty() {
        return Ok(None);
    }
    let image =
        running.image(&name).ok_or_else(|| Status::new(Code::NotFound, format!("no result is named {name}")))?;
    Ok(Some(Built { image }))
}

async fn disk_usage(buildkit: Arc<BuildKit>) -> Result<DiskUsageResponse, Status> {
    let caches = buildkit.options.store.build_cache().await.map_err(frontend::status)?;
    Ok(DiskUsageResponse { record: caches.into_iter().map(usage_record).collect() })
}

async fn prune(buildkit: Arc<BuildKit>, all: bool) -> Result<Vec<UsageRecord>, Status> {
    let pruned = buildkit.options.store.prune_build_cache(all).await.map_err(frontend::status)?;
    Ok(pruned.into_iter().map(usage_record).collect())
}

fn usage_record(cache: image::BuildCache) -> UsageRecord {
    UsageRecord {
        id: cache.id,
        mutable: cache.mount,
        size: i64::try_from(cache.size_bytes).unwrap_or(i64::MAX),
        description: cache.description,
        record_type: if cache.mount { "exec.cachemount" } else { "regular" }.to_owned(),
        ..UsageRecord::default()
    }
}

fn history(buildkit: &BuildKit, request: &BuildHistoryRequest) -> Vec<BuildHistoryEvent> {
    let wanted = |running: &Arc<Running>| {
        (request.reference.is_empty() || running.reference == request.reference)
            && (!request.active_only || running.ended().is_none())
    };
    let event = |running: Arc<Running>| {
        let completed_at = running.ended();
        let response = running.response.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        BuildHistoryEvent {
            kind: if completed_at.is_some() { COMPLETE } else { 0 },
            record: Some(BuildHistoryRecord {
                reference: running.reference.clone(),
                frontend: frontend::DOCKERFILE.to_owned(),
                created_at: Some(running.began),
                completed_at,
                exporter_response: response,
                ..BuildHistoryRecord::default()
            }),
        }
    };
    buildkit.builds.list().into_iter().filter(wanted).map(event).collect()
}
