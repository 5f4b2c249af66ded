//! The Kubernetes dialect: HTTP in front of the `apiserver` machinery, and the built-in kinds. Owns certificates, TLS,
//! authentication, content negotiation, discovery, OpenAPI, and the streams of `kubectl logs|exec|attach|port-forward`.
//! Must never know the store, nor any other dialect.
//!
//! Where to look: a non-resource path is one row of [`endpoints::ENDPOINTS`]; a kind is one file section under `kinds/`;
//! everything about resources goes through `resource.rs`.

mod alive;
mod beside_pods;
mod body;
mod client;
mod discovery;
mod endpoints;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod identity;
mod jsonpath;
pub mod kinds;
mod metrics;
mod negotiate;
mod openapi;
mod openapi_v2;
pub mod pki;
mod pods;
mod protobuf;
mod query;
mod resource;
mod router;
mod serve;
mod table;
mod time;
mod watch;
mod webhooks;

pub use alive::keep_alive;
pub use client::client;
pub use endpoints::{ENDPOINTS, Endpoint};
pub use identity::{
    authenticate, certificate_user as user_of_certificate, request_certificate as certificate,
    request_certificate_user as certificate_user, request_remote,
};
pub use kinds::builtin_kinds;
pub use router::{RouterOptions, json_response, render, router};
pub use serve::{ServeError, ServeLimits, serve};
pub use webhooks::HttpsWebhooks;
