//! Runs the RUN steps of image builds as containers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use image::build::{RunStep, StepMount, StepMountKind, StepOutput, StepRunner};
use network::AttachRequest;
use node::AttachOptions;
use runtime::{ContainerConfig, LogConfig};
use tokio::sync::mpsc;

use crate::Agent;
use crate::container::{mounts, start};
use crate::context::{Context, Key, is_path_safe};
use crate::error::{Error, Result, chain};
use crate::files::{self, Resolver};
use crate::hands;
use crate::launch::{Access, Bounds, Launch, MountPoint, Namespace, Place, capabilities};

/// Longest host name that the kernel takes, cut as Docker does.
const HOSTNAME_LENGTH: usize = 12;

#[async_trait]
impl StepRunner for Agent {
    async fn run(&self, step: RunStep, output: mpsc::Sender<StepOutput>) -> std::result::Result<i32, String> {
        if !is_path_safe(&step.id) {
            return Err(format!("{:?} is no id of a step", step.id));
        }
        // Dropping the future must not leave anything behind, so a guard clears in the background.
        let mut guard = Cleanup { context: self.context.clone(), id: step.id.clone() };
        let running = Running { places: places(&self.context, &step), ended_because: String::new() };
        self.context.steps.lock().insert(step.id.clone(), running);
        let result = run(&self.context, &step, output).await;
        let told = self.context.steps.lock().remove(&step.id).map(|step| step.ended_because).unwrap_or_default();
        clean(&self.context, &step.id).await;
        guard.id.clear();
        if told.is_empty() { result.map_err(|error| chain(&error)) } else { Err(told) }
    }
}

/// A step that runs, as the guard of the disk sees it.
#[derive(Debug)]
pub struct Running {
    /// Where it writes.
    pub places: Vec<PathBuf>,
    /// Why the machine ended it; empty when it did not.
    pub ended_because: String,
}

/// Where a step writes: its layer, and what builds keep for each other.
fn places(context: &Context, step: &RunStep) -> Vec<PathBuf> {
    let upper = step.rootfs.parent().map(|directory| directory.join("upper"));
    let kept = step.mounts.iter().filter(|mount| !mount.read_only).filter_map(|mount| match &mount.kind {
        StepMountKind::Bind { source } => Some(source.clone()).filter(|source| source.starts_with(&context.data_dir)),
        _ => None,
    });
    upper.into_iter().chain(kept).collect()
}

/// Clears a step whose future was dropped; does nothing once the id is empty.
struct Cleanup {
    context: Arc<Context>,
    id: String,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if !self.id.is_empty() {
            let (context, id) = (self.context.clone(), self.id.clone());
            context.steps.lock().remove(&id);
            tokio::spawn(async move { clean(&context, &id).await });
        }
    }
}

async fn clean(context: &Context, id: &str) {
    if let Err(error) = context.runtime.delete(id).await {
        tracing::warn!(id, error = %chain(&error), "cannot clear a build step");
    }
    start::leave_network(context, id).await;
    let _ = std::fs::remove_dir_all(context.container_dir(id));
    let _ = std::fs::remove_dir_all(secrets_directory(id));
}

/// Where a step's secrets lie: in memory, apart from everything that is kept.
fn secrets_directory(id: &str) -> PathBuf {
    Path::new("/run/nuee-secrets").join(id)
}

/// The mounts of a step as the launcher takes them.
fn mount_points(id: &str, mounts: &[StepMount]) -> Result<Vec<MountPoint>> {
    let mut points = Vec::new();
    for (number, mount) in mounts.iter().enumerate() {
        let place = match &mount.kind {
            StepMountKind::Bind { source } => Place::Bind { source: source.clone(), propagation: String::new() },
            StepMountKind::Tmpfs { size_bytes } => Place::Tmpfs {
                size_bytes: i64::try_from(*size_bytes).unwrap_or(i64::MAX),
                mode: 0o1777,
                options: Vec::new(),
            },
            StepMountKind::Secret { data, mode, uid, gid } => {
                let directory = secrets_directory(id);
                let path = directory.join(number.to_string());
                write_secret(&directory, &path, data, (*mode, *uid, *gid)).map_err(Error::io("write", &path))?;
                Place::Bind { source: path, propagation: String::new() }
            }
        };
        points.push(MountPoint {
            target: mount.destination.clone(),
            place,
            access: Access::read_only(mount.read_only),
        });
    }
    Ok(points)
}

fn write_secret(directory: &Path, path: &Path, data: &[u8], (mode, uid, gid): (u32, u32, u32)) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(data)?;
    std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

fn bounds(step: &RunStep) -> Bounds {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    Bounds {
        memory_bytes: signed(step.bounds.memory_bytes),
        memory_swap_bytes: step.bounds.memory_swap_bytes,
        cpu_shares: signed(step.bounds.cpu_shares),
        cpu_quota_us: step.bounds.cpu_quota_us,
        cpu_period_us: signed(step.bounds.cpu_period_us),
        cpuset: step.bounds.cpuset_cpus.clone(),
        memory_nodes: step.bounds.cpuset_mems.clone(),
        ..Bounds::default()
    }
}

async fn run(context: &Arc<Context>, step: &RunStep, output: mpsc::Sender<StepOutput>) -> Result<i32> {
    let directory = context.container_dir(&step.id);
    std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    let hostname: String = step.id.chars().take(HOSTNAME_LENGTH).collect();
    let (network, mut mounts) = connect(context, step, &directory, &hostname).await?;
    let (rootfs, user, workdir) = (step.rootfs.clone(), step.user.clone(), step.working_directory.clone());
    let found = tokio::task::spawn_blocking(move || {
        make_working_directory(&rootfs, &workdir)?;
        hands::find_user(&rootfs, &user)
    })
    .await
    .map_err(|error| Error::Invalid(error.to_string()))??;
    let mut environment = step.environment.clone();
    if !environment.iter().any(|v| v.starts_with("HOME=")) {
        environment.push(format!("HOME={}", found.home));
    }
    mounts.extend(mount_points(&step.id, &step.mounts)?);
    let launch = Launch {
        command: step.command.clone(),
        environment,
        working_directory: step.working_directory.clone(),
        identity: found.identity,
        rootfs: step.rootfs.clone(),
        hostname,
        mounts,
        shm_size_bytes: i64::try_from(step.bounds.shm_bytes).unwrap_or(0),
        network,
        capabilities: capabilities(&[], &[]),
        masked_paths: runtime::spec::MASKED_PATHS.map(str::to_owned).to_vec(),
        readonly_paths: runtime::spec::READONLY_PATHS.map(str::to_owned).to_vec(),
        bounds: bounds(step),
        rlimits: step.bounds.ulimits.clone(),
        ..Launch::default()
    };
    hands::check_working_directory(&step.working_directory)?;
    let config = ContainerConfig {
        cgroup_parent: Some(step.bounds.cgroup_parent.clone()).filter(|parent| !parent.is_empty()),
        id: step.id.clone(),
        bundle_dir: directory,
        spec: launch.specification(&context.machine)?,
        terminal: false,
        open_stdin: false,
        stdin_once: false,
        log: LogConfig::default(),
    };
    context.runtime.create(config).await?;
    let mut session = context.runtime.attach(&step.id, AttachOptions::default()).await?;
    context.runtime.start(&step.id).await?;
    while let Some(piece) = session.output.next().await {
        // A client that went away does not stop the step; dropping the future does.
        let error = piece.stream == node::OutputStream::Stderr;
        let _ = output.send(StepOutput { error, data: piece.data }).await;
    }
    Ok(context.runtime.wait(&step.id).await?.code)
}

/// Puts a step on its network; gives that with the files below /etc that go with it.
async fn connect(
    context: &Context,
    step: &RunStep,
    directory: &Path,
    hostname: &str,
) -> Result<(Namespace, Vec<MountPoint>)> {
    let mut entries: Vec<_> = step.extra_hosts.iter().filter_map(|h| files::extra_host(h, "")).collect();
    let (mut name_server, mut shared_files) = (None, None);
    let network = match step.network.as_str() {
        "none" => Namespace::Private,
        "host" => Namespace::Host,
        other => match other.split_once(':') {
            Some(("container", id)) => {
                // Names and name servers belong to the network.
                shared_files = start::shared_files(context, other);
                Namespace::Path(neighbour(context, id).await?)
            }
            Some(("network", key)) => {
                let (place, namespace) = attach(context, &step.id, Some(key)).await?;
                name_server = Some(place.gateway);
                entries.push((place.address.to_string(), vec![hostname.to_owned()]));
                Namespace::Path(namespace)
            }
            Some((_, why)) => return Err(Error::Invalid(why.to_owned())),
            None => {
                let (place, namespace) = attach(context, &step.id, None).await?;
                entries.push((place.address.to_string(), vec![hostname.to_owned()]));
                Namespace::Path(namespace)
            }
        },
    };
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut resolver = Resolver::of_host(&host, network == Namespace::Host);
    if let Some(server) = name_server {
        resolver.servers = vec![server.to_string()];
    }
    let mounts = match shared_files {
        Some(other) => ["hosts", "resolv.conf"].map(|name| mounts::file(&other.join(name), &format!("/etc/{name}"))),
        None => [
            mounts::own_file(directory, "hosts", "/etc/hosts", &files::hosts(&entries))?,
            mounts::own_file(directory, "resolv.conf", "/etc/resolv.conf", &resolver.text())?,
        ],
    };
    Ok((network, mounts.to_vec()))
}

/// Puts a step on a network of users, or on the default one.
async fn attach(context: &Context, id: &str, key: Option<&str>) -> Result<(network::Attachment, PathBuf)> {
    let namespace = context.fabric.create_namespace(id).await?;
    let request = |network: &str| AttachRequest {
        owner: id.to_owned(),
        namespace: namespace.clone(),
        network: network.to_owned(),
        ..AttachRequest::default()
    };
    let Some(key) = key else {
        let place = context.fabric.attach(request(network::DEFAULT_NETWORK)).await?;
        return Ok((place, namespace));
    };
    let (project, name) = key.split_once('/').ok_or_else(|| Error::Invalid(format!("{key:?} is no network")))?;
    let key = Key { namespace: project.to_owned(), name: name.to_owned() };
    let network = context.networks.ensure(&context.client, &context.directory, &key).await?;
    let place = context.networks.attach(&network, request(&network.id), false).await?;
    Ok((place, namespace))
}

/// The network of a container that runs; whoever asks has seen that it is his own.
async fn neighbour(context: &Context, id: &str) -> Result<PathBuf> {
    let state = context.runtime.state(id).await.ok().filter(|state| state.pid > 0 && state.exit.is_none());
    let stopped = || Error::Invalid(format!("cannot join network of a non running container: {id}"));
    Ok(PathBuf::from(format!("/proc/{}/ns/net", state.ok_or_else(stopped)?.pid)))
}

/// Makes the working directory as Docker does for WORKDIR, without following links out of the root.
fn make_working_directory(rootfs: &std::path::Path, path: &str) -> Result<()> {
    let path = std::path::Path::new(path);
    let relative = path.strip_prefix("/").unwrap_or(path);
    let root = crate::in_root::directory(rootfs).map_err(Error::io("open", rootfs))?;
    let mode = rustix::fs::Mode::from_raw_mode(0o755);
    crate::in_root::make_directories(root, relative, mode).map_err(Error::io("create the working directory", path))?;
    Ok(())
}
