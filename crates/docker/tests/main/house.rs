//! A dialect on a socket of its own, and ways to talk to it.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use docker::{DockerState, Endpoint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;

use crate::fake_images::{FakeImages, NoSteps};
use crate::fake_kube::FakeKube;
use crate::fake_machine::FakeMachine;

/// Longest time that one command may take; only a defect reaches it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

pub struct House {
    pub socket: PathBuf,
    pub kube: FakeKube,
    directory: tempfile::TempDir,
}

/// What a command printed, and its exit code.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl House {
    pub fn open(endpoint: Endpoint) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let kube = FakeKube::new();
        let machine = FakeMachine::start(kube.clone());
        let state = DockerState {
            client: kube.client(),
            namespace: "default".into(),
            node_name: Some("here".into()),
            node: machine,
            images: image::ImageStore::open(&directory.path().join("images")).unwrap(),
            step_runner: Arc::new(NoSteps),
            buildkit: None,
            endpoint,
            experimental: false,
            data_dir: directory.path().to_owned(),
            authority: "5a".repeat(32),
        };
        let router = docker::router_with(state, Arc::new(FakeImages));
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(docker::serve(listener, router));
        Self { socket, kube, directory }
    }

    /// A docker command line, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("DOCKER_CONFIG", self.directory.path().join("config"))
            .env("DOCKER_BUILDKIT", "0")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn docker(&self, arguments: &[&str]) -> Ran {
        self.docker_with(arguments, "").await
    }

    /// Runs a docker command with text on its standard input.
    pub async fn docker_with(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = self.command(arguments);
        if !input.is_empty() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().unwrap();
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await.unwrap();
        }
        let output = tokio::time::timeout(COMMAND_TIMEOUT, child.wait_with_output())
            .await
            .unwrap_or_else(|_| panic!("docker {arguments:?} hangs"))
            .unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// One request with `Connection: close`; status line and headers, body.
    pub async fn http(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // A body that is refused early may not be taken to its end.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        let _ = tokio::time::timeout(COMMAND_TIMEOUT, read).await.expect("an answer");
        let answer = String::from_utf8_lossy(&bytes).into_owned();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, answer)
    }
}
