//! Runs the RUN steps of image builds as containers.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use image::build::{RunStep, StepRunner};
use network::AttachRequest;
use node::AttachOptions;
use runtime::{ContainerConfig, LogConfig};
use tokio::sync::mpsc;

use crate::Agent;
use crate::container::{mounts, start};
use crate::context::{Context, is_path_safe};
use crate::error::{Error, Result, chain};
use crate::files::{self, Resolver};
use crate::hands;
use crate::launch::{Bounds, Launch, Namespace, capabilities};

/// Longest host name that the kernel takes, cut as Docker does.
const HOSTNAME_LENGTH: usize = 12;

#[async_trait]
impl StepRunner for Agent {
    async fn run(&self, step: RunStep, output: mpsc::Sender<Bytes>) -> std::result::Result<i32, String> {
        if !is_path_safe(&step.id) {
            return Err(format!("{:?} is no id of a step", step.id));
        }
        // Dropping the future must not leave anything behind, so a guard clears in the background.
        let mut guard = Cleanup { context: self.context.clone(), id: step.id.clone() };
        let result = run(&self.context, &step, output).await;
        clean(&self.context, &step.id).await;
        guard.id.clear();
        result.map_err(|error| chain(&error))
    }
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
}

async fn run(context: &Arc<Context>, step: &RunStep, output: mpsc::Sender<Bytes>) -> Result<i32> {
    let directory = context.container_dir(&step.id);
    std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    let mut entries: Vec<_> = step.extra_hosts.iter().filter_map(|h| files::extra_host(h, "")).collect();
    let hostname: String = step.id.chars().take(HOSTNAME_LENGTH).collect();
    let network = match step.network.as_str() {
        "none" => Namespace::Private,
        "host" => Namespace::Host,
        _ => {
            let namespace = context.fabric.create_namespace(&step.id).await?;
            let request = AttachRequest {
                owner: step.id.clone(),
                namespace: namespace.clone(),
                network: network::DEFAULT_NETWORK.to_owned(),
                ..AttachRequest::default()
            };
            let place = context.fabric.attach(request).await?;
            entries.push((place.address.to_string(), vec![hostname.clone()]));
            Namespace::Path(namespace)
        }
    };
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolver = Resolver::of_host(&host, network == Namespace::Host);
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
    let launch = Launch {
        command: step.command.clone(),
        environment,
        working_directory: step.working_directory.clone(),
        identity: found.identity,
        rootfs: step.rootfs.clone(),
        hostname,
        mounts: vec![
            mounts::own_file(&directory, "hosts", "/etc/hosts", &files::hosts(&entries))?,
            mounts::own_file(&directory, "resolv.conf", "/etc/resolv.conf", &resolver.text())?,
        ],
        network,
        capabilities: capabilities(&[], &[]),
        masked_paths: runtime::spec::MASKED_PATHS.map(str::to_owned).to_vec(),
        readonly_paths: runtime::spec::READONLY_PATHS.map(str::to_owned).to_vec(),
        bounds: Bounds { memory_bytes: i64::try_from(step.memory_bytes).unwrap_or(i64::MAX), ..Bounds::default() },
        ..Launch::default()
    };
    hands::check_working_directory(&step.working_directory)?;
    let config = ContainerConfig {
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
        let _ = output.send(piece.data).await;
    }
    Ok(context.runtime.wait(&step.id).await?.code)
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
