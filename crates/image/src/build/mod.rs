//! Builds images from Dockerfiles: a pure parser and evaluator, and the engine that runs what they decide.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::ImageStore;
use crate::types::{Credentials, ProgressEvent};

/// What to build and how.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Path of the Dockerfile in the context; empty means `Dockerfile`.
    pub dockerfile: String,
    /// Names for the result.
    pub tags: Vec<String>,
    /// Values for `ARG`; `None` takes no value.
    pub build_args: BTreeMap<String, Option<String>>,
    /// Labels for the result.
    pub labels: BTreeMap<String, String>,
    /// Stage at which to stop; empty means the last.
    pub target: String,
    /// Do not use the cache.
    pub no_cache: bool,
    /// Images whose history counts as cache.
    pub cache_from: Vec<String>,
    /// Pull base images even when they are here.
    pub pull: bool,
    /// Print nothing but the id.
    pub quiet: bool,
    /// Network of RUN steps: `default`, `none`, `host`, or a name.
    pub network: String,
    /// `NAME:ADDRESS` lines for RUN steps.
    pub extra_hosts: Vec<String>,
    /// `os/architecture`; empty means this machine's.
    pub platform: String,
    /// Memory limit of RUN steps; 0 means none. Units: bytes.
    pub memory_bytes: u64,
    /// Credentials per registry host.
    pub credentials: BTreeMap<String, Credentials>,
}

/// What a build says while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildEvent {
    /// Text of the classic builder, with its line feeds.
    Stream(String),
    /// Progress of a base image's pull.
    Pull(ProgressEvent),
    /// The id of the result (`aux` of Docker's stream).
    Built(Digest),
}

/// One command to run in a mounted root file system.
#[derive(Clone, Debug, Default)]
pub struct RunStep {
    /// 64 hex digits, unique to the step.
    pub id: String,
    /// The mounted root file system.
    pub rootfs: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Where to start; absolute, made when missing.
    pub working_directory: String,
    /// `user[:group]`; empty means root.
    pub user: String,
    /// `default`, `none`, `host`, or a name.
    pub network: String,
    /// `NAME:ADDRESS` lines for /etc/hosts.
    pub extra_hosts: Vec<String>,
    /// Memory limit; 0 means none. Units: bytes.
    pub memory_bytes: u64,
}

/// Runs the RUN steps of builds.
#[async_trait]
pub trait StepRunner: Send + Sync + 'static {
    /// Runs the command to its end, sends what it prints, and returns its exit code. When the future is dropped, the
    /// command is killed.
    ///
    /// Errors: a text for the user when the command cannot be started.
    async fn run(&self, step: RunStep, output: mpsc::Sender<Bytes>) -> std::result::Result<i32, String>;
}

/// Builds an image from a context, which is a tar archive (plain, gzip or zstd), and returns its id.
///
/// Errors: `Invalid` with the line of the Dockerfile, `StepFailed`, and what the store says.
pub async fn build<R: AsyncRead + Send + Unpin + 'static>(
    _store: &Arc<ImageStore>,
    _context: R,
    _options: BuildOptions,
    _runner: Arc<dyn StepRunner>,
    _events: mpsc::Sender<BuildEvent>,
) -> Result<Digest> {
    Err(Error::NotSupported("builds are not ready yet".to_owned()))
}

/// Applies Dockerfile instructions that only change the configuration (`docker commit --change`, `docker import`).
pub fn apply_changes(_config: &mut crate::config::ContainerDefaults, changes: &[String]) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    Err(Error::NotSupported("changes are not ready yet".to_owned()))
}
