//! Container images of one machine: a content-addressed store of blobs, layers unpacked once, snapshots for containers,
//! archives, Dockerfile builds, and transfers by the OCI distribution protocol. Knows the OCI and Docker image formats;
//! must never know what a container or a pod is, nor any dialect's requests.
//!
//! | module | what it owns |
//! |---|---|
//! | [`store`] | the image store: names, images, snapshots |
//! | [`layer`] | reading, unpacking and packing layers |
//! | [`build`] | Dockerfiles |
//! | [`reference`](mod@reference) | names of images |
//! | [`config`] | the image configuration |
//! | [`digest`] | digests |
//! | `git` | files out of git repositories |
//! | [`web`] | what is at a URL |

pub mod archive;
pub mod build;
pub mod config;
pub mod digest;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod git;
pub mod layer;
pub mod manifest;
pub mod mounts;
pub mod pattern;
pub mod reference;
mod remote;
pub mod store;
pub mod types;
pub mod web;

pub use config::ImageConfig;
pub use digest::Digest;
pub use error::{Error, Result};
pub use git::is_repository;
pub use reference::Reference;
pub use store::{BuildCache, ImageStore, Mounted, StoreOptions};
pub use types::*;
pub use web::is_url;
