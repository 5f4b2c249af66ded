//! A `kube::Client` that calls the router in the same process: no socket, no TLS, an identity given by the caller.

use std::sync::Arc;

use apiserver::UserInfo;
use axum::Router;
use http::{Request, Response};
use tower::ServiceBuilder;

use crate::identity::TrustedUser;

/// A client over the router's own service that acts as `user`. The identity travels as a request extension whose type
/// is private to this crate, so no request from outside can carry one.
pub fn client(router: &Router, user: UserInfo) -> kube::Client {
    let trusted = TrustedUser(Arc::new(user));
    let service = ServiceBuilder::new()
        .map_request(move |mut request: Request<kube::client::Body>| {
            request.extensions_mut().insert(trusted.clone());
            request.map(axum::body::Body::new)
        })
        .map_response(|response: Response<axum::body::Body>| response)
        .service(router.clone());
    kube::Client::new(service, "default")
}
