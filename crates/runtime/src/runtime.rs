//! The asynchronous interface: creates, starts, stops and finds containers, by way of their shims.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxResources, Spec};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;

use crate::apart;
use crate::cgroup::{Cgroup, Hierarchies, Limits, SETTLE_TIMEOUT as KILL_TIMEOUT};
use crate::config::{ContainerConfig, PortToCarry, RuntimeOptions, ShimConfig};
use crate::directories::make_spread;
use crate::filters::Filters;
use crate::oci::{OciKind, OciRuntime};
use crate::protocol::{AttachRequest, Attached, CarriedPort, FrameKind, encode_size};
use crate::session::Connection;
use crate::shim::{Forker, OCI_TIMEOUT, Report};
use crate::state::{
    ContainerState, ContainerStatus, EXIT_CODE_LOST, ExitRecord, ShimDir, ShimState, now_ns, read_json, read_written,
    write_json,
};
use crate::{Error, Result, exec, logs, processes, spec};

/// How long a new shim may take to report; more than it grants the OCI runtime.
const REPORT_TIMEOUT: Duration = Duration::from_secs(OCI_TIMEOUT.as_secs() + 5);
/// Longest report of a new shim.
const REPORT_MAX_BYTES: u64 = 64 << 10;
/// How long a container may take to end after SIGKILL before its shim is given up.
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a list waits in all for the ends of containers that lost their shims; they are many when a file system died below them.
const LIST_PATIENCE: Duration = KILL_TIMEOUT;
/// And how long for each at least.
const KILL_LEAST: Duration = Duration::from_millis(100);
/// How long the end of a container waits for clients that have not read all of its output. Source: moby `handleContainerExit`.
const SHIM_GRACE: Duration = Duration::from_secs(2);
/// Pause between looks at a shim that is about to end.
const SHIM_PAUSE: Duration = Duration::from_millis(20);
/// Largest specification of a container.
const SPEC_MAX_BYTES: u64 = 1 << 20;
/// Longest id.
const ID_MAX_BYTES: usize = 128;

/// The containers of one machine. Cheap to clone; holds no state that is not on disk or in the kernel.
#[derive(Clone, Debug)]
pub struct Runtime {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: RuntimeOptions,
    oci: OciRuntime,
    hierarchies: Hierarchies,
    filters: Filters,
    forker: Forker,
    /// Whether the OCI runtime knows them, once it was asked.
    recursive_options: tokio::sync::OnceCell<bool>,
}

impl Runtime {
    /// Opens the runtime: makes its directories, finds the OCI runtime and the control groups.
    ///
    /// Errors: `NotSupported` when the machine has no OCI runtime or no control groups.
    pub fn open(mut options: RuntimeOptions) -> Result<Self> {
        let hierarchies = Hierarchies::of_this_machine()?;
        let oci = OciRuntime::find(&options.oci_runtime, options.run_dir.join("oci"), &hierarchies)?;
        for directory in [&options.containers_dir, &oci.root] {
            make_spread(directory)?;
        }
        if oci.kind != OciKind::Crun || !apart::is_possible(&options.crowds, &oci.program) {
            options.crowds.clear();
        }
        let filters = Filters::open(options.run_dir.join("seccomp"), &oci)?;
        let forker = Forker::new(options.shim_program.clone(), options.containers_dir.clone(), &oci);
        let recursive_options = tokio::sync::OnceCell::new();
        Ok(Self { shared: Arc::new(Shared { options, oci, hierarchies, filters, forker, recursive_options }) })
    }

    /// The OCI runtime in use, for people.
    pub fn oci_runtime(&self) -> &Path {
        &self.shared.oci.program
    }

    /// Whether the OCI runtime is known to make mounts for reading alone with all that is mounted below them, where the kernel can: see
    /// [`crate::can_seal_mounts_throughout`].
    pub async fn seals_mounts_throughout(&self) -> bool {
        let ask = || async { self.shared.oci.knows_recursive_options().await.ok_or(()) };
        self.shared.recursive_options.get_or_try_init(ask).await.copied().unwrap_or(false)
    }

    fn directory(&self, id: &str) -> Result<ShimDir> {
        check_id(id)?;
        Ok(ShimDir(self.shared.options.containers_dir.join(id).join("shim")))
    }

    /// The control group of a container: what it was created with, or what it would be created with.
    fn cgroup(&self, id: &str) -> Cgroup {
        let config = self.directory(id).ok().and_then(|directory| read_json::<ShimConfig>(&directory.config()).ok()?);
        config.map_or_else(|| self.cgroup_below(None, id), |config| config.cgroup)
    }

    fn cgroup_below(&self, parent: Option<&str>, id: &str) -> Cgroup {
        let parent = parent.unwrap_or(&self.shared.options.cgroup_root);
        Cgroup::new(self.shared.hierarchies.clone(), &format!("{}/{id}", parent.trim_end_matches('/')))
    }

    /// Creates a container up to the point where its process waits for [`Self::start`]. Returns its process id.
    ///
    /// Errors: `Conflict` when the id is in use; `CannotStart` when its program is not there or cannot be run;
    /// nothing stays behind after an error.
    pub async fn create(&self, config: ContainerConfig) -> Result<u32> {
        let id = config.id.clone();
        let directory = self.directory(&id)?;
        if read_json::<serde_json::Value>(&directory.config())?.is_some() {
            return Err(Error::Conflict(format!("container {id} exists already")));
        }
        let runtime = self.clone();
        let prepared = directory.clone();
        let (limits, filter) = blocking(move || runtime.prepare(&prepared, config)).await?;
        let created = match self.run_shim(&id, &directory).await {
            Ok(pid) => {
                // Only now: a tight limit must bind the container, not the OCI runtime that sets it up.
                let (runtime, id) = (self.clone(), id.clone());
                blocking(move || {
                    if let Some(filter) = filter {
                        runtime.shared.filters.keep(&filter, &runtime.shared.oci.state_dir(&id));
                    }
                    runtime.cgroup(&id).apply(&limits)
                })
                .await
                .map(|()| pid)
            }
            Err(error) => Err(error),
        };
        if created.is_err() {
            // The first error is the one to report.
            let _ = self.delete(&id).await;
        }
        created
    }

    /// Writes everything that the shim reads, and makes the control group. Also returns the name of a system-call filter
    /// that is to be kept once the OCI runtime has compiled it.
    fn prepare(&self, directory: &ShimDir, config: ContainerConfig) -> Result<(Limits, Option<String>)> {
        let ContainerConfig { id, bundle_dir, mut spec, terminal, open_stdin, stdin_once, log, cgroup_parent } = config;
        let filter = self.shared.filters.look_up(&mut spec);
        let parent = cgroup_parent.as_deref();
        if parent.is_some_and(|path| !path.starts_with('/') || path.split('/').any(|name| matches!(name, "." | ".."))) {
            return Err(Error::Invalid("the parent control group is no plain absolute path".to_owned()));
        }
        let cgroup = self.cgroup_below(parent, &id);
        spec::check(&spec)?;
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
        let mut limits = resources.as_ref().map(Limits::from).unwrap_or_default();
        self.adapt(&mut spec, &cgroup, terminal);
        // Left-overs of a run that was cut off before its configuration was written.
        cgroup.kill_all().and_then(|()| cgroup.remove())?;
        let stale = self.shared.oci.state_dir(&id);
        match std::fs::remove_dir_all(&stale) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &stale)(error));
            }
            _ => {}
        }
        std::fs::create_dir_all(&directory.0).map_err(Error::io("create", &directory.0))?;
        std::fs::create_dir_all(&bundle_dir).map_err(Error::io("create", &bundle_dir))?;
        let written = bundle_dir.join("config.json");
        write_json(&written, &spec, false)?;
        // The OCI runtime keeps a copy of each in memory that all share.
        if std::fs::metadata(&written).is_ok_and(|found| found.len() > SPEC_MAX_BYTES) {
            let message = format!("its arguments, environment and mounts are more than {SPEC_MAX_BYTES} bytes");
            return Err(Error::Invalid(message));
        }
        let oci = self.shared.oci.clone();
        if oci.kind == OciKind::Runc {
            // runc makes the group, enters it and sets the limits.
            limits = Limits::default();
        } else {
            cgroup.create(&limits.devices)?;
        }
        let apart = apart::of(&self.shared.options.crowds, &bundle_dir, &spec);
        let shim = ShimConfig { id, bundle_dir, oci, terminal, open_stdin, stdin_once, log, cgroup, apart };
        write_json(&directory.config(), &shim, false)?;
        Ok((limits, filter))
    }

    /// What the shim and the chosen OCI runtime need in a specification.
    fn adapt(&self, spec: &mut Spec, cgroup: &Cgroup, terminal: bool) {
        let mut process = spec.process().clone().unwrap_or_default();
        process.set_terminal(Some(terminal));
        spec.set_process(Some(process));
        if let Some(linux) = spec.linux_mut() {
            linux.set_cgroups_path(Some(cgroup.path().into()));
            if self.shared.oci.kind == OciKind::Crun {
                linux.set_resources(None);
            }
        }
    }

    /// Starts the shim and waits for its report.
    async fn run_shim(&self, id: &str, directory: &ShimDir) -> Result<u32> {
        let (runtime, shim_directory) = (self.clone(), directory.clone());
        let (pid, output) = blocking(move || runtime.shared.forker.fork(&shim_directory)).await?;
        let bad = |message: String| Error::Shim { id: id.to_owned(), message };
        let stdout = pipe::Receiver::from_owned_fd(output).map_err(|error| bad(error.to_string()))?;
        let mut line = String::new();
        let mut reader = BufReader::new(stdout.take(REPORT_MAX_BYTES));
        match tokio::time::timeout(REPORT_TIMEOUT, reader.read_line(&mut line)).await {
            Ok(read) => read.map_err(|error| bad(error.to_string()))?,
            Err(_) => {
                processes::kill(pid, libc::SIGKILL);
                return Err(Error::Timeout(format!("the shim of {id} did not report")));
            }
        };
        match serde_json::from_str(&line) {
            Ok(Report::Created { pid }) => Ok(pid),
            Ok(Report::Failed(refusal)) if refusal.code != 0 => {
                Err(Error::CannotStart { code: refusal.code, message: refusal.message })
            }
            Ok(Report::Failed(refusal)) => Err(bad(refusal.message)),
            Err(_) => Err(bad("ended without a report".to_owned())),
        }
    }

    /// Lets a created container go.
    ///
    /// Errors: `Conflict` when it was started before or has ended.
    pub async fn start(&self, id: &str) -> Result<()> {
        self.request(id, FrameKind::Start, &[]).await.map(drop)
    }

    /// Has the container's shim carry what comes to these sockets to the container, until it ends or [`Self::stop_carrying`] is called,
    /// whoever else ends meanwhile.
    ///
    /// Errors: `Conflict` when somebody else listens there, or the container has ended.
    pub async fn carry(&self, id: &str, ports: Vec<PortToCarry>) -> Result<()> {
        let mut rest = ports.into_iter();
        loop {
            let part = rest.by_ref().take(crate::protocol::CARRIED_AT_ONCE);
            let (ports, sockets): (Vec<_>, Vec<_>) = part
                .map(|port| (CarriedPort { is_datagram: port.is_datagram, target: port.target }, port.socket))
                .unzip();
            if ports.is_empty() {
                return Ok(());
            }
            self.carry_some(id, &ports, &sockets).await?;
        }
    }

    /// Has the container's shim carry nothing any more. One that has ended does not.
    ///
    /// Errors: `Conflict` while the process that carries is stuck in the kernel: it holds the ports until it ends.
    pub async fn stop_carrying(&self, id: &str) -> Result<()> {
        let connection = match self.connect(id).await {
            Err(Error::Conflict(_) | Error::NotFound(_)) => return Ok(()),
            other => other?,
        };
        match connection.carry(&[], &[]).await {
            // It ended in good order between our connection and our question.
            Err(Error::Shim { .. } | Error::Conflict(_)) if self.directory(id)?.exit().exists() => Ok(()),
            other => other,
        }
    }

    async fn carry_some(&self, id: &str, ports: &[CarriedPort], sockets: &[std::os::fd::OwnedFd]) -> Result<()> {
        match self.connect(id).await?.carry(ports, sockets).await {
            // As above.
            Err(Error::Shim { .. }) if self.directory(id)?.exit().exists() => Err(not_running(id)),
            other => other,
        }
    }

    /// Sends a signal to the main process. SIGKILL also reaches a paused container.
    ///
    /// Errors: `Conflict` when it does not run.
    pub async fn kill(&self, id: &str, signal: i32) -> Result<()> {
        self.request(id, FrameKind::Kill, &signal.to_le_bytes()).await?;
        if signal == libc::SIGKILL {
            let cgroup = self.cgroup(id);
            blocking(move || if cgroup.is_frozen() { cgroup.thaw() } else { Ok(()) }).await?;
        }
        Ok(())
    }

    /// Changes the size of the main process' terminal.
    pub async fn resize(&self, id: &str, size: node::TerminalSize) -> Result<()> {
        self.request(id, FrameKind::Resize, &encode_size(size.columns, size.rows)).await.map(drop)
    }

    /// One request to the shim. A container that has ended has none: `Conflict`.
    async fn request(&self, id: &str, kind: FrameKind, payload: &[u8]) -> Result<Vec<u8>> {
        self.request_on(id, kind, payload).await.map(|(_, answer)| answer)
    }

    /// The same, with the connection on which the answer came.
    async fn request_on(&self, id: &str, kind: FrameKind, payload: &[u8]) -> Result<(Connection, Vec<u8>)> {
        let mut connection = self.connect(id).await?;
        match connection.request(kind, payload).await {
            Ok(answer) => Ok((connection, answer)),
            // It ended in good order between our connection and our question.
            Err(Error::Shim { .. }) if self.directory(id)?.exit().exists() => Err(not_running(id)),
            Err(error) => Err(error),
        }
    }

    async fn connect(&self, id: &str) -> Result<Connection> {
        let directory = self.directory(id)?;
        match Connection::open(id, &directory).await {
            Err(Error::NotFound(_)) if directory.config().exists() => Err(not_running(id)),
            other => other,
        }
    }

    /// Waits for the end of a container, also of one that was created before this daemon was started, or that has
    /// ended long ago.
    ///
    /// Errors: `NotFound`.
    pub async fn wait(&self, id: &str) -> Result<node::ExitStatus> {
        self.wait_record(id).await.map(Into::into)
    }

    /// Like [`Self::wait`], with the time of the end.
    pub async fn wait_record(&self, id: &str) -> Result<ExitRecord> {
        let directory = self.directory(id)?;
        loop {
            if let Some(exit) = read_written(&directory.exit())? {
                return Ok(exit);
            }
            if !directory.config().exists() {
                return Err(Error::NotFound(id.to_owned()));
            }
            if let Ok(connection) = Connection::open(id, &directory).await
                && let Some(exit) = connection.wait().await?
            {
                return Ok(exit);
            }
            // The shim has gone: it wrote the exit status first, or it was killed.
            let runtime = self.clone();
            let id = id.to_owned();
            blocking(move || runtime.look(&id)).await?;
            tokio::time::sleep(SHIM_PAUSE).await;
        }
    }

    /// Runs one more process in a running container.
    ///
    /// Errors: `CannotStart` with 126 or 127 as Docker has them; `Conflict` when it does not run or is paused.
    pub async fn exec(&self, id: &str, request: node::ExecRequest) -> Result<node::Session> {
        let directory = self.directory(id)?;
        let cgroup = self.cgroup(id);
        let (stdin, id_for_spec) = (request.stdin, id.to_owned());
        let start = blocking(move || {
            if cgroup.is_frozen() {
                return Err(Error::Conflict(format!("container {id_for_spec} is paused, unpause it before exec")));
            }
            let config: ShimConfig =
                read_json(&directory.config())?.ok_or_else(|| Error::NotFound(id_for_spec.clone()))?;
            exec::exec_start(&config.bundle_dir, request)
        })
        .await?;
        let payload = serde_json::to_vec(&start).map_err(|error| Error::Invalid(error.to_string()))?;
        if payload.len() > crate::protocol::PAYLOAD_MAX_BYTES {
            return Err(Error::Invalid("arguments and environment are too large".to_owned()));
        }
        let (connection, answer) = self.request_on(id, FrameKind::Exec, &payload).await?;
        let pid = serde_json::from_slice(&answer).unwrap_or(0);
        let lost = async { Err(node::Error::Unavailable("the connection to the process was lost".to_owned())) };
        Ok(connection.into_session(stdin, pid, None, lost))
    }

    /// Connects to the main process. A created container may be attached to before its start; nothing is missed then.
    ///
    /// Errors: `Conflict` when it has ended and no replay is wanted.
    pub async fn attach(&self, id: &str, options: node::AttachOptions) -> Result<node::Session> {
        let request = AttachRequest { stdin: options.stdin, replay: options.replay_logs };
        let payload = serde_json::to_vec(&request).map_err(|error| Error::Invalid(error.to_string()))?;
        let (connection, answer) = self.request_on(id, FrameKind::Attach, &payload).await?;
        let attached: Attached = serde_json::from_slice(&answer).unwrap_or_default();
        let mut before = None;
        if options.replay_logs {
            let directory = self.directory(id)?;
            let config: Option<ShimConfig> = read_json(&directory.config())?;
            if let Some(config) = config.filter(|config| !config.log.path.as_os_str().is_empty()) {
                before = Some(logs::replay(config.log.path, attached.log_inode, attached.log_bytes));
            }
        }
        let (runtime, owned) = (self.clone(), id.to_owned());
        let fallback = async move { runtime.wait(&owned).await.map_err(node::Error::from) };
        Ok(connection.into_session(options.stdin, attached.pid, before, fallback))
    }

    /// Freezes all processes of a container.
    pub async fn pause(&self, id: &str) -> Result<()> {
        self.require_running(id)?;
        let cgroup = self.cgroup(id);
        blocking(move || cgroup.freeze()).await
    }

    /// Lets a frozen container run again.
    pub async fn resume(&self, id: &str) -> Result<()> {
        self.require_running(id)?;
        let cgroup = self.cgroup(id);
        blocking(move || cgroup.thaw()).await
    }

    /// Changes the limits that `resources` names.
    pub async fn update(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        self.require_running(id)?;
        let (cgroup, limits) = (self.cgroup(id), Limits::from(resources));
        blocking(move || cgroup.apply(&limits)).await
    }

    fn require_running(&self, id: &str) -> Result<ShimState> {
        let directory = self.directory(id)?;
        if !directory.config().exists() {
            return Err(Error::NotFound(id.to_owned()));
        }
        match read_written::<ShimState>(&directory.state())? {
            Some(state) if state.started_at_ns != 0 && !directory.exit().exists() => Ok(state),
            _ => Err(not_running(id)),
        }
    }

    /// Reads the figures of a running container.
    pub async fn statistics(&self, id: &str) -> Result<node::Statistics> {
        let state = self.require_running(id)?;
        let cgroup = self.cgroup(id);
        blocking(move || {
            let mut figures = cgroup.statistics();
            figures.network = processes::network_statistics(state.pid);
            Ok(figures)
        })
        .await
    }

    /// Process ids of a running container, on the host.
    pub async fn pids(&self, id: &str) -> Result<Vec<u32>> {
        self.require_running(id)?;
        let cgroup = self.cgroup(id);
        blocking(move || Ok(cgroup.pids())).await
    }

    /// State of one container.
    ///
    /// Errors: `NotFound`.
    pub async fn state(&self, id: &str) -> Result<ContainerState> {
        let (runtime, owned) = (self.clone(), id.to_owned());
        blocking(move || runtime.look(&owned)).await?.ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// All containers of this machine, from what their shims wrote. What lost its shim is ended here. One that cannot be ended or
    /// looked at is told as ended all the same: nobody gets anything out of it any more, and whoever ends it or starts it anew hears why.
    pub async fn list(&self) -> Result<Vec<ContainerState>> {
        let runtime = self.clone();
        blocking(move || {
            let directory = &runtime.shared.options.containers_dir;
            let patience = Instant::now() + LIST_PATIENCE;
            let mut found = Vec::new();
            for entry in std::fs::read_dir(directory).map_err(Error::io("list", directory))?.flatten() {
                let Ok(id) = entry.file_name().into_string() else { continue };
                if check_id(&id).is_err() {
                    continue;
                }
                let looked = runtime.look_until(&id, patience.max(Instant::now() + KILL_LEAST));
                found.extend(looked.unwrap_or_else(|error| {
                    tracing::error!(id, error = %crate::error::chain(&error), "a container is given up for lost");
                    Some(lost(&id))
                }));
            }
            Ok(found)
        })
        .await
    }

    /// What the files and the kernel say about one container; `None` when there is none.
    fn look(&self, id: &str) -> Result<Option<ContainerState>> {
        self.look_until(id, Instant::now() + KILL_TIMEOUT)
    }

    /// The same. What is to be killed may take until `deadline` to end.
    fn look_until(&self, id: &str, deadline: Instant) -> Result<Option<ContainerState>> {
        let directory = self.directory(id)?;
        if !directory.config().exists() {
            return Ok(None);
        }
        let state: Option<ShimState> = read_written(&directory.state())?;
        let exit: Option<ExitRecord> = read_written(&directory.exit())?;
        let mut found = ContainerState {
            id: id.to_owned(),
            status: ContainerStatus::Creating,
            pid: 0,
            exit,
            created_at_ns: state.as_ref().map_or(0, |state| state.created_at_ns),
            started_at_ns: state.as_ref().map_or(0, |state| state.started_at_ns),
        };
        if exit.is_some() {
            found.status = ContainerStatus::Stopped;
            return Ok(Some(found));
        }
        let Some(state) = state else {
            // Cut off in its creation, with its daemon and its shim: nobody is at work on it any more.
            if age(&directory.config()) > REPORT_TIMEOUT {
                found.exit = Some(self.bury(id, &directory, deadline)?);
                found.status = ContainerStatus::Stopped;
            }
            return Ok(Some(found));
        };
        if processes::start_ticks(state.shim_pid) != Some(state.shim_start_ticks) {
            // It may have ended in good order between our two looks.
            let record = match read_written(&directory.exit())? {
                Some(record) => record,
                None => self.bury(id, &directory, deadline)?,
            };
            found.exit = Some(record);
            found.status = ContainerStatus::Stopped;
            return Ok(Some(found));
        }
        found.pid = state.pid;
        found.status = match state.started_at_ns {
            0 => ContainerStatus::Created,
            _ if self.cgroup(id).is_frozen() => ContainerStatus::Paused,
            _ => ContainerStatus::Running,
        };
        Ok(Some(found))
    }

    /// Ends what has lost its shim: nobody can tell its exit status any more, nor feed or log it.
    fn bury(&self, id: &str, directory: &ShimDir, deadline: Instant) -> Result<ExitRecord> {
        let cgroup = self.cgroup(id);
        cgroup.kill_all_until(deadline)?;
        let out_of_memory = cgroup.out_of_memory_kills() > 0;
        let record = ExitRecord { code: EXIT_CODE_LOST, out_of_memory, finished_at_ns: now_ns() };
        write_json(&directory.exit(), &record, true)?;
        Ok(record)
    }

    /// Ends a container if it runs, and removes everything that the runtime keeps of it. No error when there is none.
    /// The bundle and the log belong to the caller.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let directory = self.directory(id)?;
        let cgroup = self.cgroup(id);
        if directory.config().exists() && !directory.exit().exists() {
            // It may be hung, or gone: what follows does not depend on it.
            let gentle = async {
                self.kill(id, libc::SIGKILL).await?;
                self.wait(id).await
            };
            let _ = tokio::time::timeout(DELETE_TIMEOUT, gentle).await;
        }
        let runtime = self.clone();
        let id = id.to_owned();
        blocking(move || {
            let shim: Option<ShimState> = read_json(&directory.state()).unwrap_or_default();
            let lives = |state: &ShimState| processes::start_ticks(state.shim_pid) == Some(state.shim_start_ticks);
            if let Some(state) = shim.as_ref().filter(|state| directory.unread().exists() && lives(state)) {
                // It ends by itself once they have.
                processes::wait_for_end(state.shim_pid, SHIM_GRACE);
            }
            if let Some(state) = shim.filter(lives) {
                processes::kill(state.shim_pid, libc::SIGKILL);
            }
            cgroup.kill_all()?;
            cgroup.remove()?;
            for path in [runtime.shared.oci.state_dir(&id), directory.0.clone()] {
                match std::fs::remove_dir_all(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", &path)(error));
                    }
                    _ => {}
                }
            }
            // Only when the caller has nothing else in it.
            let _ = std::fs::remove_dir(runtime.shared.options.containers_dir.join(&id));
            Ok(())
        })
        .await
    }
}

/// Runs blocking work beside the asynchronous tasks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Shim { id: String::new(), message: format!("work was cut off: {error}") }),
    }
}

/// How long ago a file was written.
fn age(path: &Path) -> Duration {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.ok().and_then(|time| time.elapsed().ok()).unwrap_or_default()
}

/// One of which nothing more is known, or that does not end.
fn lost(id: &str) -> ContainerState {
    ContainerState {
        id: id.to_owned(),
        status: ContainerStatus::Stopped,
        pid: 0,
        exit: Some(ExitRecord { code: EXIT_CODE_LOST, out_of_memory: false, finished_at_ns: now_ns() }),
        created_at_ns: 0,
        started_at_ns: 0,
    }
}

fn not_running(id: &str) -> Error {
    Error::Conflict(format!("container {id} is not running"))
}

/// Ids become file names and control groups.
fn check_id(id: &str) -> Result<()> {
    let fits = !id.is_empty()
        && id.len() <= ID_MAX_BYTES
        && !id.starts_with('.')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if fits { Ok(()) } else { Err(Error::Invalid(format!("{id:?} cannot be a container's id"))) }
}
