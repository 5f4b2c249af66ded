//! A place of its own for each test: directories, control groups, containers; everything goes at the end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use runtime::{ContainerConfig, LogConfig, OciRuntimeChoice, Runtime, RuntimeOptions};

/// How long anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Place {
    pub directory: tempfile::TempDir,
    pub runtime: Runtime,
    pub cgroup_root: String,
}

/// What a test changes of a default container.
pub struct Wanted {
    pub args: Vec<String>,
    pub terminal: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub change: Box<dyn FnOnce(&mut Spec)>,
    pub log_max_bytes: u64,
}

pub fn run(args: &[&str]) -> Wanted {
    Wanted {
        args: args.iter().map(|word| (*word).to_owned()).collect(),
        terminal: false,
        open_stdin: false,
        stdin_once: false,
        change: Box::new(|_| {}),
        log_max_bytes: 10 << 20,
    }
}

pub fn shell(script: &str) -> Wanted {
    run(&["/bin/sh", "-c", script])
}

impl Place {
    pub fn new() -> Self {
        Self::with(OciRuntimeChoice::Auto)
    }

    pub fn with(oci_runtime: OciRuntimeChoice) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().file_name().unwrap().to_string_lossy().trim_start_matches('.').to_owned();
        let cgroup_root = format!("/nuee-test-{name}");
        let runtime = Self::open(directory.path(), &cgroup_root, oci_runtime, Vec::new());
        make_rootfs(&directory.path().join("rootfs"));
        Self { directory, runtime, cgroup_root }
    }

    pub fn open(directory: &Path, cgroup_root: &str, oci_runtime: OciRuntimeChoice, crowds: Vec<PathBuf>) -> Runtime {
        Runtime::open(RuntimeOptions {
            containers_dir: directory.join("containers"),
            run_dir: directory.join("run"),
            shim_program: PathBuf::from(env!("CARGO_BIN_EXE_runtime-test-shim")),
            cgroup_root: cgroup_root.to_owned(),
            oci_runtime,
            crowds,
        })
        .unwrap()
    }

    /// A second runtime over the same directories: a daemon after its restart.
    pub fn reopened(&self) -> Runtime {
        Self::open(self.directory.path(), &self.cgroup_root, OciRuntimeChoice::Auto, Vec::new())
    }

    /// What the OCI runtime is kept from, from now on.
    pub fn set_crowds(&mut self, crowds: Vec<PathBuf>) {
        self.runtime = Self::open(self.directory.path(), &self.cgroup_root, OciRuntimeChoice::Auto, crowds);
    }

    pub fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.directory.path().join("bundles").join(id).join("log")
    }

    pub fn config(&self, id: &str, wanted: Wanted) -> ContainerConfig {
        config_in(self.directory.path(), id, wanted)
    }

    pub async fn create(&self, id: &str, wanted: Wanted) {
        self.runtime.create(self.config(id, wanted)).await.unwrap();
    }

    pub async fn start(&self, id: &str, wanted: Wanted) {
        self.create(id, wanted).await;
        self.runtime.start(id).await.unwrap();
    }

    /// Runs a container to its end; its exit code and its log.
    pub async fn run(&self, id: &str, wanted: Wanted) -> (i32, String) {
        self.start(id, wanted).await;
        let exit = self.wait(id).await;
        (exit.code, self.log_text(id).await)
    }

    pub async fn wait(&self, id: &str) -> node::ExitStatus {
        tokio::time::timeout(PATIENCE, self.runtime.wait(id)).await.expect("the container did not end").unwrap()
    }

    pub async fn log_text(&self, id: &str) -> String {
        let lines = runtime::logs::read(self.log(id), node::LogOptions::default(), std::future::ready(()));
        let bytes: Vec<u8> = lines.map(|line| line.unwrap().data.to_vec()).concat().await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub async fn exec(&self, id: &str, command: &[&str]) -> (i32, String) {
        let request = node::ExecRequest {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            ..node::ExecRequest::default()
        };
        let session = tokio::time::timeout(PATIENCE, self.runtime.exec(id, request)).await.unwrap().unwrap();
        collect(session).await
    }

    /// Follows the log until it holds `text`.
    pub async fn until_logged(&self, id: &str, text: &str) {
        let options = node::LogOptions { follow: true, ..node::LogOptions::default() };
        let mut lines = runtime::logs::read(self.log(id), options, std::future::pending());
        let found = async {
            while let Some(line) = lines.next().await {
                if String::from_utf8_lossy(&line.unwrap().data).contains(text) {
                    return true;
                }
            }
            false
        };
        assert!(tokio::time::timeout(PATIENCE, found).await.expect("the text did not come"));
    }

    /// Deletes all containers and asserts that nothing is left of them.
    pub async fn close(self) {
        for state in self.runtime.list().await.unwrap() {
            self.runtime.delete(&state.id).await.unwrap();
        }
        let left: Vec<_> = std::fs::read_dir(self.directory.path().join("containers")).unwrap().flatten().collect();
        assert!(left.is_empty(), "left: {left:?}");
        let left: Vec<_> = std::fs::read_dir(self.directory.path().join("run/oci")).unwrap().flatten().collect();
        assert!(left.is_empty(), "left: {left:?}");
        self.remove_groups();
    }

    fn remove_groups(&self) {
        let hierarchies = runtime::cgroup::Hierarchies::of_this_machine().unwrap();
        let group = runtime::cgroup::Cgroup::new(hierarchies, &self.cgroup_root);
        let _ = group.kill_all();
        let _ = group.remove();
        for directory in group.directories() {
            assert!(std::thread::panicking() || !directory.exists(), "left: {}", directory.display());
        }
    }
}

impl Drop for Place {
    /// Also after a failed assertion nothing stays.
    fn drop(&mut self) {
        self.remove_groups();
    }
}

/// A container of a place, by the place's directory alone.
pub fn config_in(directory: &Path, id: &str, wanted: Wanted) -> ContainerConfig {
    let bundle_dir = directory.join("bundles").join(id);
    std::fs::create_dir_all(&bundle_dir).unwrap();
    let mut spec = runtime::spec::default_spec(&directory.join("rootfs"), wanted.args).unwrap();
    // The root is shared by the containers of a test; no test needs an interface.
    runtime::spec::set_namespace(&mut spec, LinuxNamespaceType::Network, Some(None)).unwrap();
    (wanted.change)(&mut spec);
    ContainerConfig {
        cgroup_parent: None,
        id: id.to_owned(),
        bundle_dir: bundle_dir.clone(),
        spec,
        terminal: wanted.terminal,
        open_stdin: wanted.open_stdin,
        stdin_once: wanted.stdin_once,
        log: LogConfig {
            path: bundle_dir.join("log"),
            max_size_bytes: wanted.log_max_bytes,
            max_files: 3,
            journal: None,
        },
    }
}

/// Reads a session to its end.
pub async fn collect(mut session: node::Session) -> (i32, String) {
    let mut bytes = Vec::new();
    let all = async {
        while let Some(piece) = session.output.next().await {
            bytes.extend_from_slice(&piece.data);
        }
        session.exit.await.unwrap().code
    };
    let code = tokio::time::timeout(PATIENCE, all).await.expect("the session did not end");
    (code, String::from_utf8_lossy(&bytes).into_owned())
}

fn make_rootfs(rootfs: &Path) {
    for directory in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        std::fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "echo", "sleep", "true", "id", "stty", "ls", "head", "dd", "env", "yes", "ps", "mknod",
        "readlink", "umount", "unshare", "tty", "grep", "mount",
    ] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name)).unwrap();
    }
    std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n").unwrap();
    std::fs::write(rootfs.join("etc/group"), "root:x:0:\nweb:x:33:\nextra:x:44:web\n").unwrap();
}
