//! gRPC on a connection that was handed over, with the control and gateway services on it.

use std::convert::Infallible;
use std::sync::Arc;

use futures::Stream;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioExecutor;
use prost::Message;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::{BuildKit, control, gateway};

/// Largest message: a Dockerfile with its attributes is far below.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Calls that may be open at once on one connection.
const MAX_STREAMS: u32 = 256;

impl BuildKit {
    /// Answers a client's calls until it leaves. Builds that it began and did not detach from end with it.
    pub async fn serve<C>(self: Arc<Self>, connection: C)
    where
        C: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    {
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let buildkit = self.clone();
            async move { Ok::<_, Infallible>(answer(buildkit, request).await) }
        });
        let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(MAX_STREAMS)
            .serve_connection(connection, service);
        if let Err(error) = served.await {
            tracing::debug!(%error, "a BuildKit connection ended");
        }
    }
}

async fn answer(buildkit: Arc<BuildKit>, request: Request<Incoming>) -> Response<Body> {
    let request = request.map(Body::new);
    let path = request.uri().path().to_owned();
    tracing::debug!(%path, "BuildKit call");
    match path.split_once("/moby.buildkit.v1.").map(|(_, method)| method) {
        Some(method) if method.starts_with("Control/") => {
            control::answer(buildkit, method.trim_start_matches("Control/"), request).await
        }
        Some(method) if method.starts_with("frontend.LLBBridge/") => {
            gateway::answer(buildkit, method.trim_start_matches("frontend.LLBBridge/"), request).await
        }
        _ if path == "/grpc.health.v1.Health/Check" => {
            unary(request, |_: tonic::Request<crate::wire::control::Empty>| async { Ok(Health { status: 1 }) }).await
        }
        _ => unimplemented(&path),
    }
}

/// `grpc.health.v1.HealthCheckResponse`
#[derive(Clone, Copy, PartialEq, Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The answer to a call that is not there.
pub fn unimplemented(method: &str) -> Response<Body> {
    Status::new(Code::Unimplemented, format!("{method} is not available")).into_http()
}

/// Answers a call of one message with one message.
pub async fn unary<Q, A, F, W>(request: Request<Body>, work: F) -> Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    F: Fn(tonic::Request<Q>) -> W + Send + Sync + 'static,
    W: Future<Output = Result<A, Status>> + Send + 'static,
{
    struct Unary<F>(F);
    impl<Q, A, F, W> UnaryService<Q> for Unary<F>
    where
        F: Fn(tonic::Request<Q>) -> W,
        W: Future<Output = Result<A, Status>> + Send + 'static,
        A: Send + 'static,
    {
        type Response = A;
        type Future = futures::future::BoxFuture<'static, Result<tonic::Response<A>, Status>>;
        fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
            let work = (self.0)(request);
            Box::pin(async move { work.await.map(tonic::Response::new) })
        }
    }
    let mut grpc = Grpc::new(ProstCodec::<A, Q>::default()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    grpc.unary(Unary(work), request).await
}

/// Answers a call of one message with a stream.
pub async fn streaming<Q, A, F, S>(request: Request<Body>, work: F) -> Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    F: Fn(tonic::Request<Q>) -> S + Send + Sync + 'static,
    S: Stream<Item = Result<A, Status>> + Send + 'static,
{
    struct Streaming<F>(F);
    impl<Q, A, F, S> tonic::server::ServerStreamingService<Q> for Streaming<F>
    where
        F: Fn(tonic::Request<Q>) -> S,
        S: Stream<Item = Result<A, Status>> + Send + 'static,
        A: Send + 'static,
    {
        type Response = A;
        type ResponseStream = S;
        type Future = std::future::Ready<Result<tonic::Response<S>, Status>>;
        fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
            std::future::ready(Ok(tonic::Response::new((self.0)(request))))
        }
    }
    let mut grpc = Grpc::new(ProstCodec::<A, Q>::default()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    grpc.server_streaming(Streaming(work), request).await
}
