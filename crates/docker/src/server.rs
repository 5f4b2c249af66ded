//! The way of a request: version, row, authorization, function, answer; and serving it on a unix socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::{Router, body::Body};
use http::{HeaderValue, Method, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;

use crate::call::Call;
use crate::error::Error;
use crate::images::library::{Images, MachineImages};
use crate::operation::{self, Support};
use crate::state::{Docker, DockerState};
use crate::{policy, rest_of_body, unsupported, version};

/// How long a client may take to send the head of a request (against clients that send one byte a minute).
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after an accept that failed, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest head of a request. Units: bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The dialect as a router. Must be called inside a tokio runtime; the caches fill in the background.
pub fn router(state: DockerState) -> Router {
    let images = MachineImages::new(state.images.clone(), state.step_runner.clone());
    router_with(state, images)
}

/// The same over other images than those of the machine's store.
pub fn router_with(state: DockerState, images: Arc<dyn Images>) -> Router {
    let docker = Docker::start(state, images);
    Router::new().fallback(answer).layer(axum::middleware::from_fn(rest_of_body::read)).with_state(docker)
}

/// Serves a router on a unix socket until the task is aborted.
///
/// Errors: none that ends it; an accept that fails is tried again.
pub async fn serve(listener: UnixListener, router: Router) -> io::Result<()> {
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX.max(8192))
                .serve_connection(TokioIo::new(socket), service)
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

/// Answers one request.
async fn answer(State(docker): State<Arc<Docker>>, request: Request) -> Response {
    let head = request.method() == Method::HEAD;
    let experimental = if docker.state.experimental { "true" } else { "false" };
    let mut response = match dispatch(docker, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    if head {
        *response.body_mut() = Body::empty();
    }
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let headers = response.headers_mut();
        headers.insert("Api-Version", HeaderValue::from_static("1.50"));
        headers.insert("Docker-Experimental", HeaderValue::from_static(experimental));
        headers.insert("Ostype", HeaderValue::from_static("linux"));
        headers
            .insert(header::SERVER, HeaderValue::from_static(concat!("Nuee/", env!("CARGO_PKG_VERSION"), " (linux)")));
    }
    response
}

async fn dispatch(docker: Arc<Docker>, request: Request) -> Result<Response, Error> {
    let path = request.uri().path().to_owned();
    let (version, rest) = version::split(&path)?;
    let (row, parameters) = operation::find(request.method(), version, rest).ok_or_else(Error::page_not_found)?;
    policy::judge_operation(docker.state.endpoint, row.info.access)?;
    if let Support::Missing(reason) = row.info.support {
        return Err(unsupported::refusal(&row.info, reason));
    }
    tracing::debug!(operation = row.info.id, %path, "request");
    let call = Call::new(version, parameters, request)?;
    docker.ready().await?;
    (row.run)(docker, call).await
}
