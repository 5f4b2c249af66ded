//! Builds images from Dockerfiles: a pure parser and evaluator, and the engine that runs what they decide.

pub(crate) mod cancel;
mod context;
mod copy;
mod engine;
pub mod evaluate;
pub mod expand;
mod fetch;
mod files;
pub mod flags;
pub mod ignore;
pub mod lines;
pub(crate) mod mounts;
pub mod outline;
pub mod parse;
mod plan;
mod remote;
mod report;
mod squash;
mod stage;
mod steps;
pub(crate) mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

pub use self::context::exclude_ignored;
pub use self::flags::Dialect;
pub(crate) use self::remote::FETCHES_MAX;
pub use self::remote::{
    RemoteContext, Waiting, checkout, remote_context, remote_file, shown_repository, unpack_remote, unpack_sent,
};
pub use self::report::StepEvent;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::ImageStore;
use crate::types::{Credentials, ProgressEvent};

/// Attempts to remove the directory of a build.
const REMOVALS_MAX: usize = 5;
/// Time between two of them.
const REMOVE_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Begins the name of a network that is not there; what follows is what the user is told.
pub const NETWORK_MISSING: &str = "missing:";

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
    /// Make one layer of all that the build added to the last stage's base image.
    pub squash: bool,
    /// Do not use the cache.
    pub no_cache: bool,
    /// Names of stages for which the cache is not used.
    pub no_cache_stages: Vec<String>,
    /// Images whose history counts as cache.
    pub cache_from: Vec<String>,
    /// Pull base images even when they are here.
    pub pull: bool,
    /// Print nothing but the id.
    pub quiet: bool,
    /// Network of RUN steps, as [`RunStep::network`].
    pub network: String,
    /// `NAME:ADDRESS` lines for RUN steps.
    pub extra_hosts: Vec<String>,
    /// `os/architecture`; empty means this machine's.
    pub platform: String,
    /// Limits of RUN steps.
    pub bounds: StepBounds,
    /// Credentials per registry host.
    pub credentials: BTreeMap<String, Credentials>,
    /// Which builder the Dockerfile is written for, and whose words the build speaks.
    pub dialect: Dialect,
    /// Named contexts, in lower case.
    pub contexts: BTreeMap<String, ContextSource>,
    /// Whether ADD may fetch from the machine itself and its private networks.
    pub local_urls: bool,
}

/// What a named context stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextSource {
    /// An image.
    Image(String),
    /// An image that another build just made.
    Built(Digest),
    /// A directory, which [`BuildInputs::context`] gives.
    Local,
}

/// Limits of RUN steps; 0 and empty mean none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepBounds {
    /// Memory. Units: bytes.
    pub memory_bytes: u64,
    /// Memory and swap together; -1 is unlimited swap. Units: bytes.
    pub memory_swap_bytes: i64,
    /// Share of processor time beside others.
    pub cpu_shares: u64,
    /// Time of each period. Units: microseconds.
    pub cpu_quota_us: i64,
    /// Period of the quota. Units: microseconds.
    pub cpu_period_us: u64,
    /// Processors, as `0-2,4`.
    pub cpuset_cpus: String,
    /// Memory nodes.
    pub cpuset_mems: String,
    /// Size of /dev/shm. Units: bytes.
    pub shm_bytes: u64,
    /// `name`, soft and hard limit; -1 is none.
    pub ulimits: Vec<(String, i64, i64)>,
    /// The control group above those of the steps, as a plain absolute path.
    pub cgroup_parent: String,
}

/// Where the files of a build come from.
#[async_trait]
pub trait BuildInputs: Send + Sync + 'static {
    /// Makes a context ready and says where it lies; asked once for each name, and only when it is needed. The empty name
    /// is the main context. What it makes, it makes below `scratch`, which goes with the build.
    async fn context(&self, name: &str, scratch: &Path) -> Result<PathBuf>;
    /// A secret of the client; `None` when it has none of that name.
    async fn secret(&self, id: &str) -> Result<Option<Vec<u8>>>;
    /// A unix socket below `scratch` that leads to the client's SSH agent; `None` when it has none.
    async fn ssh(&self, id: &str, scratch: &Path) -> Result<Option<PathBuf>>;
    /// Credentials for a registry that the options do not know.
    async fn credentials(&self, registry: &str) -> Result<Option<Credentials>>;
}

/// What a build says while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildEvent {
    /// Text of the classic builder, with its line feeds.
    Stream(String),
    /// Progress of a base image's pull.
    Pull(ProgressEvent),
    /// What happens to a step (BuildKit only).
    Step(StepEvent),
    /// The id of the result (`aux` of Docker's stream).
    Built(Digest),
}

/// A piece of what a step prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepOutput {
    /// Whether it came on standard error.
    pub error: bool,
    /// What.
    pub data: Bytes,
}

/// Something mounted into the root file system of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepMount {
    /// Where; absolute.
    pub destination: String,
    /// What.
    pub kind: StepMountKind,
    /// Whether it cannot be written to.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, PartialEq, Eq)]
pub enum StepMountKind {
    /// A file or directory of the builder's own.
    Bind {
        /// Its path, without links.
        source: PathBuf,
    },
    /// Memory.
    Tmpfs {
        /// Most of it; 0 leaves it to the kernel. Units: bytes.
        size_bytes: u64,
    },
    /// A file that must never be on a disk.
    Secret {
        /// Its content.
        data: Vec<u8>,
        /// Its mode.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

impl std::fmt::Debug for StepMountKind {
    /// Secrets are never printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StepMountKind::Bind { source } => write!(f, "bind {}", source.display()),
            StepMountKind::Tmpfs { size_bytes } => write!(f, "tmpfs {size_bytes}"),
            StepMountKind::Secret { .. } => f.write_str("secret"),
        }
    }
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
    /// `default`, `none`, `host`, `network:<namespace>/<object>`, `container:<id>`, or [`NETWORK_MISSING`] and why.
    pub network: String,
    /// `NAME:ADDRESS` lines for /etc/hosts.
    pub extra_hosts: Vec<String>,
    /// Limits.
    pub bounds: StepBounds,
    /// What is mounted beside the root file system.
    pub mounts: Vec<StepMount>,
}

/// Runs the RUN steps of builds.
#[async_trait]
pub trait StepRunner: Send + Sync + 'static {
    /// Runs the command to its end, sends what it prints, and returns its exit code. When the future is dropped, the
    /// command is killed.
    ///
    /// Errors: a text for the user when the command cannot be started.
    async fn run(&self, step: RunStep, output: mpsc::Sender<StepOutput>) -> std::result::Result<i32, String>;
}

/// Builds an image from a context, which is a tar archive (plain, gzip or zstd), and returns its id. Dropping the future
/// ends the build.
///
/// Errors: `Invalid` with the line of the Dockerfile, `StepFailed`, and what the store says. Steps that were done stay as
/// cache.
pub async fn build<R: AsyncRead + Send + Unpin + 'static>(
    store: &Arc<ImageStore>,
    context: R,
    mut options: BuildOptions,
    runner: Arc<dyn StepRunner>,
    events: mpsc::Sender<BuildEvent>,
) -> Result<Digest> {
    // Who names images for the cache wants what comes from them; none of them is here. Source: moby, `MakeImageCache`.
    options.no_cache |=
        !options.cache_from.is_empty() && !options.cache_from.iter().any(|name| store.resolve(name).is_ok());
    let tags = options.tags.iter().map(|tag| crate::store::tag_target(tag)).collect::<Result<Vec<_>>>()?;
    let scratch = Scratch::new(store)?;
    let dir = scratch.0.join("context");
    let (limits, name, root) = (store.options.limits, options.dockerfile.clone(), dir.clone());
    let (context, _waiting) = cancel::cancellable(context);
    let dockerfile = crate::archive::in_background(context, move |context| {
        std::fs::create_dir(&root).map_err(Error::io("cannot make the build context"))?;
        context::unpack(context, &root, limits, &name)
    })
    .await?;
    let quiet = options.quiet;
    let inputs = Arc::new(context::Unpacked(dir));
    let id = run(store, &scratch, &dockerfile, inputs, options, runner, events.clone()).await?;
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

/// Builds an image from a Dockerfile whose files come from elsewhere, and returns its id, without names. Dropping the
/// future ends the build.
///
/// Errors: as for [`build`].
pub async fn build_from(
    store: &Arc<ImageStore>,
    dockerfile: &str,
    inputs: Arc<dyn BuildInputs>,
    options: BuildOptions,
    runner: Arc<dyn StepRunner>,
    events: mpsc::Sender<BuildEvent>,
) -> Result<Digest> {
    let scratch = Scratch::new(store)?;
    run(store, &scratch, dockerfile, inputs, options, runner, events).await
}

async fn run(
    store: &Arc<ImageStore>,
    scratch: &Scratch,
    dockerfile: &str,
    inputs: Arc<dyn BuildInputs>,
    options: BuildOptions,
    runner: Arc<dyn StepRunner>,
    events: mpsc::Sender<BuildEvent>,
) -> Result<Digest> {
    let dir = scratch.0.clone();
    let parts = engine::Parts { store: store.clone(), options, runner, inputs, scratch: dir.clone(), events };
    let result = engine::run(parts, dockerfile).await;
    let held = store.clone();
    tokio::task::spawn_blocking(move || remove_scratch(&held, &dir)).await?;
    result
}

/// A directory of one build, gone when the build is.
pub struct Scratch(pub(crate) PathBuf, Arc<ImageStore>);

impl Scratch {
    /// A new one.
    pub fn new(store: &Arc<ImageStore>) -> Result<Scratch> {
        let path = store.builds_directory().join(format!("{:032x}", rand::random::<u128>()));
        std::fs::create_dir_all(&path).map_err(Error::io(format!("cannot make {}", path.display())))?;
        Ok(Scratch(path, store.clone()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

fn remove_scratch(store: &ImageStore, path: &Path) {
    for left in (0..REMOVALS_MAX).rev() {
        match store.remove_build(path) {
            Ok(()) => return,
            // What was ended may still finish the file that it is at.
            Err(_) if left > 0 => std::thread::sleep(REMOVE_AGAIN_AFTER),
            Err(error) => tracing::warn!(error = %error.chain(), "cannot remove the directory of a build"),
        }
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

/// A control group as a path without `.`, `..` and empty names; what would lead out of the hierarchy stays at its top. `None` for what is
/// no path. `Source:` runc, `utils.CleanPath`.
pub fn clean_cgroup_parent(asked: &str) -> Option<String> {
    /// Longest path that is taken. Source: PATH_MAX, and room for the id.
    const BYTES_MAX: usize = 3_072;
    if asked.len() > BYTES_MAX || asked.contains('\0') {
        return None;
    }
    let mut names: Vec<&str> = Vec::new();
    for name in asked.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    Some(if asked.is_empty() { String::new() } else { format!("/{}", names.join("/")) })
}

/// Applies Dockerfile instructions that only change the configuration (`docker commit --change`, `docker import`).
pub fn apply_changes(config: &mut crate::config::ContainerDefaults, changes: &[String]) -> Result<()> {
    let lines = lines::cut(&changes.join("\n"))?;
    let globals = evaluate::Globals { build_args: BTreeMap::new(), args: BTreeMap::new(), escape: lines.escape };
    let mut state = evaluate::State::new(config.clone(), None);
    for step in parse::parse(&lines, Dialect::Classic)? {
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
