//! The Docker dialect: Docker's Engine API on a unix socket, translated to `Container`, `Network` and `Volume` objects,
//! to `node::Node` for streams, and to `image::ImageStore` for images. An endpoint of the API is one row in a const table
//! in the file that is named after Docker's own group; router, authorization and coverage are derived from the rows.
//! Must never know the store, the apiserver's insides, or another dialect.

// The long JSON literals of `HostConfig` and `info`.
#![recursion_limit = "256"]

mod body;
mod cache;
mod call;
mod cidr;
mod containers;
mod distribution;
mod error;
mod events;
mod exec;
mod filters;
#[doc(hidden)]
pub mod fuzzing;
mod hijack;
mod identity;
mod images;
mod json;
mod networks;
mod operation;
pub mod policy;
mod rest_of_body;
mod server;
mod state;
mod swarm;
mod system;
mod text;
mod time;
mod unsupported;
mod version;
mod volumes;
mod websocket;

pub use images::buildkit::{BuildKitHost, Connection, SessionBuild, SessionBuildEvent};
pub use images::library::{Images, MachineImages};
pub use operation::{Access, OperationInfo, Support, operations};
pub use policy::Endpoint;
pub use server::{router, router_with, serve};
pub use state::DockerState;
pub use version::{ApiVersion, MAXIMUM_VERSION, MINIMUM_VERSION};
