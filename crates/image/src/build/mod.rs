//! Builds images from Dockerfiles: a pure parser and evaluator, and the engine that runs what they decide.

mod copy;
mod engine;
pub mod evaluate;
pub mod expand;
mod files;
pub mod ignore;
pub mod lines;
pub mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
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

/// Builds an image from a context, which is a tar archive (plain, gzip or zstd), and returns its id. Dropping the future
/// ends the build.
///
/// Errors: `Invalid` with the line of the Dockerfile, `StepFailed`, and what the store says. Steps that were done stay as
/// cache.
pub async fn build<R: AsyncRead + Send + Unpin + 'static>(
    store: &Arc<ImageStore>,
    context: R,
    options: BuildOptions,
    runner: Arc<dyn StepRunner>,
    events: mpsc::Sender<BuildEvent>,
) -> Result<Digest> {
    let tags = options.tags.iter().map(|tag| crate::store::tag_target(tag)).collect::<Result<Vec<_>>>()?;
    let scratch = Scratch::new(store)?;
    let dir = scratch.0.join("context");
    let (limits, name, root) = (store.options.limits, options.dockerfile.clone(), dir.clone());
    let dockerfile = crate::archive::in_background(context, move |context| {
        std::fs::create_dir(&root).map_err(Error::io("cannot make the build context"))?;
        unpack_context(context, &root, limits, &name)
    })
    .await?;
    let quiet = options.quiet;
    let mut engine = engine::Engine {
        store: store.clone(),
        options,
        runner,
        events: events.clone(),
        context: dir,
        scratch: scratch.0.clone(),
        stages: Vec::new(),
        cache_missed: false,
        used_args: BTreeSet::new(),
    };
    let result = engine.run(&dockerfile).await;
    drop(engine);
    tokio::task::spawn_blocking(move || remove_scratch(&scratch.1, &scratch.0)).await?;
    let id = result?;
    let say = |text: String| events.send(BuildEvent::Stream(text));
    // Nobody reads any more: the image is made all the same.
    let _ = events.send(BuildEvent::Built(id.clone())).await;
    let _ = say(if quiet { format!("{id}\n") } else { format!("Successfully built {}\n", id.short()) }).await;
    for tag in tags {
        store.tag(&id.to_string(), &tag.to_string())?;
        let _ = say(format!("Successfully tagged {}\n", tag.familiar())).await;
    }
    Ok(id)
}

/// A directory of one build, gone when the build is.
struct Scratch(PathBuf, Arc<ImageStore>);

impl Scratch {
    fn new(store: &Arc<ImageStore>) -> Result<Scratch> {
        let path = store.dir.join("builds").join(format!("{:032x}", rand::random::<u128>()));
        std::fs::create_dir_all(&path).map_err(Error::io(format!("cannot make {}", path.display())))?;
        Ok(Scratch(path, store.clone()))
    }
}

fn remove_scratch(store: &ImageStore, path: &Path) {
    if let Err(error) = store.remove_build(path) {
        tracing::warn!(error = %error.chain(), "cannot remove the directory of a build");
    }
}

impl Drop for Scratch {
    /// A build that was dropped in its middle: what is in the way of a task goes in the background.
    fn drop(&mut self) {
        if !self.0.exists() {
            return;
        }
        let (path, store) = (self.0.clone(), self.1.clone());
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove_scratch(&store, &path))),
            Err(_) => remove_scratch(&store, &path),
        }
    }
}

/// Unpacks a context, reads its Dockerfile, and removes what its `.dockerignore` names.
fn unpack_context(context: &mut dyn Read, root: &Path, limits: crate::layer::Limits, name: &str) -> Result<String> {
    let name = if name.is_empty() { "Dockerfile" } else { name };
    let root = crate::layer::tree::open_root(root)?;
    let options = crate::layer::UnpackOptions { limits, whiteouts: false, owner: Some((0, 0)) };
    crate::layer::unpack(crate::layer::Decompressor::new(context, limits)?, root.as_fd(), &options)?;
    let read = |name: &str| -> Result<Option<String>> {
        crate::layer::tree::components(name.as_bytes())?;
        let Some((_, stat)) = files::open_source(root.as_fd(), name.as_bytes())? else { return Ok(None) };
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
            return Ok(None);
        }
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let file = crate::layer::tree::open_in(root.as_fd(), name.as_bytes(), flags)
            .map_err(Error::io(format!("cannot open {name}")))?;
        let mut bytes = Vec::new();
        let most = lines::MAX_DOCKERFILE as u64 + 1;
        std::fs::File::from(file)
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(Error::io(format!("cannot read {name}")))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    };
    let missing = || Error::Invalid(format!("Cannot locate specified Dockerfile: {name}"));
    let dockerfile = read(name)?.ok_or_else(missing)?;
    if let Some(text) = read(".dockerignore")? {
        let ignore = ignore::Ignore::parse(&text)?;
        if !ignore.is_empty() {
            files::remove_ignored(root.as_fd(), "", &ignore, 0)?;
        }
    }
    Ok(dockerfile)
}

/// Applies Dockerfile instructions that only change the configuration (`docker commit --change`, `docker import`).
pub fn apply_changes(config: &mut crate::config::ContainerDefaults, changes: &[String]) -> Result<()> {
    let lines = lines::cut(&changes.join("\n"))?;
    let globals = evaluate::Globals { build_args: BTreeMap::new(), args: BTreeMap::new(), escape: lines.escape };
    let mut state = evaluate::State::new(config.clone(), None);
    for step in parse::parse(&lines)? {
        use parse::Instruction as I;
        let name = step.original.split(' ').next().unwrap_or_default().to_owned();
        if matches!(
            step.instruction,
            I::From { .. } | I::Run(_) | I::Copy(_) | I::Arg(_) | I::Shell(_) | I::Maintainer(_)
        ) {
            return Err(Error::Invalid(format!("{name} is not a valid change command")));
        }
        evaluate::evaluate(&mut state, &step.instruction, &globals)?;
    }
    *config = state.config;
    Ok(())
}
