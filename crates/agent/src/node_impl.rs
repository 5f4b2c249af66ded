//! [`node::Node`]: what dialects may ask of this machine directly.

use std::sync::Arc;
use std::time::Duration;

use api::container::Container;
use async_trait::async_trait;
use kube::Api;
use node::{
    AttachOptions, ByteStream, Duplex, Error, ExecRequest, FileChange, LogOptions, LogStream, Node, PathStatistics,
    ProcessTable, Result, Session, Statistics, TerminalSize, Workload,
};
use tokio_util::sync::CancellationToken;

use crate::Agent;
use crate::archive::{self, Part, View};
use crate::container::Handle;
use crate::container::mounts::{access, volume_directory};
use crate::container::start::LOG_FILE;
use crate::context::{Context, Key};
use crate::error::chain;
use crate::guest::console;
use crate::launch::Access;
use crate::pod::Handle as PodHandle;

/// How long a container that exists may take to reach the agent.
const ARRIVAL: Duration = Duration::from_secs(5);

/// One container of either kind.
struct Found {
    id: String,
    container: Option<Arc<Handle>>,
    pod: Option<Arc<PodHandle>>,
    previous: String,
    running: bool,
}

impl Agent {
    fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Finds a container; one that was made a moment ago may not have reached the agent yet, and is waited for.
    async fn find(&self, workload: &Workload) -> Result<Found> {
        match workload {
            Workload::Container { namespace, name } => {
                let handle = self.container(Key { namespace: namespace.clone(), name: name.clone() }).await?;
                let running = handle.is_running();
                Ok(Found {
                    id: handle.id.clone(),
                    running,
                    container: Some(handle),
                    pod: None,
                    previous: String::new(),
                })
            }
            Workload::PodContainer { namespace, pod, container } => {
                let key = Key { namespace: namespace.clone(), name: pod.clone() };
                let handle = self.context.pods.lock().get(&key).cloned();
                let handle = handle.ok_or_else(|| Error::NotFound(format!("pods \"{pod}\" not found")))?;
                let runs = handle.runs(container).ok_or_else(|| {
                    Error::Conflict(format!("container \"{container}\" in pod \"{pod}\" is waiting to start"))
                })?;
                Ok(Found {
                    id: runs.current,
                    running: runs.running,
                    previous: runs.previous,
                    container: None,
                    pod: Some(handle),
                })
            }
            Workload::VirtualMachine { name, .. } => Err(Error::NotSupported(format!(
                "virtual machine {name} has a console and its log, no processes of ours"
            ))),
        }
    }

    async fn container(&self, key: Key) -> Result<Arc<Handle>> {
        let missing = || Error::NotFound(format!("No such container: {}", key.name));
        let known = || self.context.containers.lock().get(&key).cloned();
        let mut asked = false;
        let deadline = tokio::time::Instant::now() + ARRIVAL;
        loop {
            let arrival = self.context.arrivals.notified();
            let mut arrival = std::pin::pin!(arrival);
            arrival.as_mut().enable();
            if let Some(handle) = known() {
                return Ok(handle);
            }
            if !asked {
                asked = true;
                let objects: Api<Container> = Api::namespaced(self.context.client.clone(), &key.namespace);
                let object = objects.get_opt(&key.name).await.map_err(|error| Error::Unavailable(chain(&error)))?;
                if object.is_none_or(|o| o.metadata.deletion_timestamp.is_some()) {
                    return Err(missing());
                }
            }
            if tokio::time::timeout_at(deadline, arrival).await.is_err() {
                return Err(missing());
            }
        }
    }

    async fn find_running(&self, workload: &Workload) -> Result<Found> {
        let found = self.find(workload).await?;
        if found.running { Ok(found) } else { Err(Error::Conflict(format!("container {} is not running", found.id))) }
    }

    async fn view(&self, workload: &Workload) -> Result<View> {
        let found = self.find(workload).await?;
        let object = found.container.as_ref().and_then(|h| h.object());
        if let (None, Some(object)) = (self.context.images.snapshot(&found.id), &object) {
            // Never started: its file system is made now, as Docker does at creation.
            let never = CancellationToken::new();
            let made = self.context.images.prepare_marked(&found.id, &object.spec.image_id, &never).await;
            made.map_err(|error| Error::Internal(error.chain()))?;
        }
        let snapshot = self.context.images.snapshot(&found.id);
        let snapshot = snapshot.ok_or_else(|| Error::Conflict(format!("container {} has no file system", found.id)))?;
        let read_only_root = object.as_ref().is_some_and(|object| object.spec.security.read_only_root);
        let volumes = object.map(|object| {
            let namespace = object.metadata.namespace.clone().unwrap_or_default();
            let place = |(number, mount): (usize, &api::container::Mount)| {
                let source: std::path::PathBuf = match mount.kind.as_str() {
                    "bind" => mount.source.clone().into(),
                    "volume" => self.context.volume_dir(&volume_directory(&namespace, &mount.source)),
                    // Mounted while the container runs, and for reading only.
                    "image" => self.context.images.mounted_beside(&found.id, number)?,
                    _ => return None,
                };
                let is_seen = mount.kind != "volume" || source.is_dir();
                // What makes no sense here starts no container.
                let access = access(mount, runtime::can_seal_mounts_throughout(), true).unwrap_or(Access::ReadOnly);
                is_seen.then(|| (mount.target.clone(), Part { source, sub_path: mount.sub_path.clone(), access }))
            };
            object.spec.mounts.iter().enumerate().filter_map(place).collect()
        });
        Ok(View { snapshot, volumes: volumes.unwrap_or_default(), read_only_root })
    }

    async fn mounted(&self, workload: &Workload) -> Result<View> {
        let view = self.view(workload).await?;
        self.context.images.mount_existing(&view.snapshot).await.map_err(|error| Error::Internal(error.chain()))?;
        Ok(view)
    }
}

#[async_trait]
impl Node for Agent {
    async fn logs(&self, workload: &Workload, options: LogOptions) -> Result<LogStream> {
        if let Workload::VirtualMachine { namespace, name } = workload {
            return console::log(&self.context, Key { namespace: namespace.clone(), name: name.clone() }, options);
        }
        let found = self.find(workload).await?;
        let id = if options.previous { found.previous.clone() } else { found.id.clone() };
        if id.is_empty() {
            return Err(Error::Invalid("previous terminated container not found".to_owned()));
        }
        let path = self.context.container_dir(&id).join(LOG_FILE);
        let runtime = self.context().runtime.clone();
        let running = found.running && !options.previous;
        let ended = async move {
            if running {
                let _ = runtime.wait(&id).await;
            }
        };
        Ok(runtime::logs::read(path, options, ended))
    }

    async fn exec(&self, workload: &Workload, request: ExecRequest) -> Result<Session> {
        let found = self.find_running(workload).await?;
        Ok(self.context.runtime.exec(&found.id, request).await?)
    }

    async fn attach(&self, workload: &Workload, options: AttachOptions) -> Result<Session> {
        if let Workload::VirtualMachine { namespace, name } = workload {
            let key = Key { namespace: namespace.clone(), name: name.clone() };
            return console::attach(&self.context, &key, options).await;
        }
        let found = self.find(workload).await?;
        match found.container {
            Some(handle) => handle.attach(&self.context, options).await,
            None => Ok(self.context.runtime.attach(&found.id, options).await?),
        }
    }

    async fn resize(&self, workload: &Workload, size: TerminalSize) -> Result<()> {
        let found = self.find_running(workload).await?;
        Ok(self.context.runtime.resize(&found.id, size).await?)
    }

    async fn signal(&self, workload: &Workload, signal: i32) -> Result<()> {
        let found = self.find_running(workload).await?;
        Ok(self.context.runtime.kill(&found.id, signal).await?)
    }

    async fn port_forward(&self, workload: &Workload, port: u16) -> Result<Box<dyn Duplex>> {
        let namespace = match (self.find(workload).await?, workload) {
            (Found { pod: Some(handle), .. }, _) => self.context.fabric.namespace_path(&handle.uid),
            (found, _) => {
                let pinned = self.context.fabric.namespace_path(&found.id);
                if pinned.exists() {
                    pinned
                } else {
                    let state = self.context.runtime.state(&found.id).await?;
                    format!("/proc/{}/ns/net", state.pid).into()
                }
            }
        };
        let stream = crate::netns::connect(&namespace, port).await;
        stream.map(|s| Box::new(s) as Box<dyn Duplex>).map_err(|error| {
            Error::Unavailable(format!("failed to connect to localhost:{port} inside namespace: {error}"))
        })
    }

    async fn statistics(&self, workload: &Workload) -> Result<Statistics> {
        let found = self.find_running(workload).await?;
        Ok(self.context.runtime.statistics(&found.id).await?)
    }

    async fn processes(&self, workload: &Workload, arguments: &str) -> Result<ProcessTable> {
        let found = self.find_running(workload).await?;
        let pids = self.context.runtime.pids(&found.id).await?;
        crate::processes::table(&found.id, pids, arguments).await
    }

    async fn path_statistics(&self, workload: &Workload, path: &str) -> Result<PathStatistics> {
        let view = self.mounted(workload).await?;
        archive::statistics(view, path.to_owned()).await
    }

    async fn read_archive(&self, workload: &Workload, path: &str) -> Result<(PathStatistics, ByteStream)> {
        let view = self.mounted(workload).await?;
        archive::read(view, path.to_owned()).await
    }

    async fn write_archive(&self, workload: &Workload, path: &str, content: ByteStream) -> Result<()> {
        let view = self.mounted(workload).await?;
        archive::write(view, path.to_owned(), content).await
    }

    async fn changes(&self, workload: &Workload) -> Result<Vec<FileChange>> {
        let view = self.view(workload).await?;
        archive::changes(view).await
    }

    async fn export(&self, workload: &Workload) -> Result<ByteStream> {
        let mut view = self.mounted(workload).await?;
        view.volumes.clear();
        archive::export(view).await
    }

    async fn changes_layer(&self, workload: &Workload) -> Result<ByteStream> {
        let view = self.view(workload).await?;
        archive::layer(view).await
    }
}
