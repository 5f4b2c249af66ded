//! `moby.buildkit.v1.frontend.LLBBridge`: what a client asks for that evaluates a build itself, as buildx and Compose do.

use std::collections::HashMap;
use std::sync::Arc;

use http::{Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::build::Running;
use crate::frontend::{Answer, Given};
use crate::server::{unary, unimplemented};
use crate::wire::control::Empty;
use crate::wire::gateway::{
    BuildResult, Capability, PongResponse, Reference, References, ResolveImageConfigRequest,
    ResolveImageConfigResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse, ReturnRequest, SolveRequest,
    SolveResponse,
};
use crate::{BuildKit, control, frontend, linked};

/// The header that says which build a call belongs to.
const BUILD_HEADER: &str = "buildkit-controlapi-buildid";
/// What the gateway can do, in BuildKit's words.
const CAPABILITIES: [&str; 15] = [
    "return",
    "returnmap",
    "proto.refarray",
    "solve.base",
    "solve.inlinereturn",
    "resolveimage",
    "resolveimage.resolvemode",
    "reference.output",
    "frontend.inputs",
    "frontend.caps",
    "gateway.solve.metadata",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "gateway.warnings",
    "importcaches",
];

/// Answers one call.
pub async fn answer(buildkit: Arc<BuildKit>, method: &str, request: Request<Body>) -> Response<Body> {
    let reference = request.headers().get(BUILD_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let reference = reference.to_owned();
    match method {
        "Ping" => unary(request, |_: tonic::Request<Empty>| async { Ok(pong()) }).await,
        "Solve" => {
            unary(request, move |call: tonic::Request<SolveRequest>| {
                solve(buildkit.clone(), reference.clone(), call.into_inner())
            })
            .await
        }
        "Return" => {
            unary(request, move |call: tonic::Request<ReturnRequest>| {
                let (buildkit, reference) = (buildkit.clone(), reference.clone());
                async move {
                    buildkit.builds.get(&reference).await?.give_back(call.into_inner())?;
                    Ok(Empty {})
                }
            })
            .await
        }
        // The image is whole already, nothing waits to be evaluated; and there are no inputs of graphs.
        "Evaluate" | "Inputs" | "Warn" => unary(request, |_: tonic::Request<Empty>| async { Ok(Empty {}) }).await,
        "ResolveImageConfig" => {
            unary(request, move |call: tonic::Request<ResolveImageConfigRequest>| {
                let buildkit = buildkit.clone();
                async move { resolve(&buildkit, &call.into_inner().reference) }
            })
            .await
        }
        "ResolveSourceMeta" => {
            unary(request, move |call: tonic::Request<ResolveSourceMetaRequest>| {
                let buildkit = buildkit.clone();
                async move { resolve_source(&buildkit, call.into_inner()) }
            })
            .await
        }
        other => unimplemented(other),
    }
}

fn pong() -> PongResponse {
    let capability = |id: &str| Capability { id: id.to_owned(), enabled: true };
    PongResponse {
        frontend_capabilities: CAPABILITIES.map(capability).to_vec(),
        definition_capabilities: Vec::new(),
        workers: vec![control::worker()],
    }
}

async fn solve(buildkit: Arc<BuildKit>, reference: String, request: SolveRequest) -> Result<SolveResponse, Status> {
    tracing::debug!(?request, "gateway solve");
    let running = buildkit.builds.get(&reference).await?;
    // buildx asks for what it was just given, to have it at hand when the build is looked into.
    if let Some(definition) = request.definition.filter(|definition| !definition.def.is_empty()) {
        let built = frontend::Built { image: linked::image(&definition)? };
        return Ok(SolveResponse { result: Some(result(&buildkit, &running, &built)?) });
    }
    let options = request.frontend_opt;
    let (session, given) = (&running.session, Given { inputs: request.frontend_inputs, ..Given::default() });
    let result = match frontend::solve(&buildkit, session, &request.frontend, options, given, &running).await? {
        Answer::Built(built) => result(&buildkit, &running, &built)?,
        Answer::Told(metadata) => BuildResult { references: None, metadata },
    };
    Ok(SolveResponse { result: Some(result) })
}

fn result(buildkit: &BuildKit, running: &Running, built: &frontend::Built) -> Result<BuildResult, Status> {
    let config = buildkit.options.store.config(&built.image).map_err(frontend::status)?;
    let config = serde_json::to_vec(&config).map_err(|error| Status::new(Code::Internal, error.to_string()))?;
    let reference = Reference { id: running.keep(&built.image), definition: Some(linked::definition(&built.image)) };
    Ok(BuildResult {
        references: Some(References::One(reference)),
        metadata: HashMap::from([("containerimage.config".to_owned(), config)]),
    })
}

fn resolve(buildkit: &BuildKit, name: &str) -> Result<ResolveImageConfigResponse, Status> {
    let store = &buildkit.options.store;
    let id = store.resolve(name).map_err(frontend::status)?;
    let config = store.config(&id).map_err(frontend::status)?;
    let config = serde_json::to_vec(&config).map_err(|error| Status::new(Code::Internal, error.to_string()))?;
    Ok(ResolveImageConfigResponse { digest: id.to_string(), config, reference: name.to_owned() })
}

fn resolve_source(buildkit: &BuildKit, request: ResolveSourceMetaRequest) -> Result<ResolveSourceMetaResponse, Status> {
    let identifier = request.source.as_ref().map(|source| source.identifier.clone()).unwrap_or_default();
    let image = match identifier.strip_prefix("docker-image://") {
        Some(name) => Some(resolve(buildkit, name)?),
        None => None,
    };
    Ok(ResolveSourceMetaResponse { source: request.source, image })
}
