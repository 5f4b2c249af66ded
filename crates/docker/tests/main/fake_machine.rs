//! A machine whose processes are a few lines of Rust: `echo`, `err`, `cat`, `sleep`, `exit N`. It acts on container
//! objects as the agent's contract says.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use node::*;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};

use crate::fake_kube::FakeKube;

/// How long what a failed start left takes to be cleared.
const CLEARING: Duration = Duration::from_millis(200);
/// How long a network takes to be made.
const MAKING: Duration = Duration::from_millis(200);

/// A process: what it printed, and how it ended.
pub struct Process {
    output: watch::Sender<(Vec<Output>, Option<i32>)>,
}

impl Process {
    fn new() -> Arc<Self> {
        Arc::new(Self { output: watch::Sender::new((Vec::new(), None)) })
    }
    fn print(&self, stream: OutputStream, data: impl Into<Bytes>) {
        let data = data.into();
        self.output.send_modify(|(all, _)| all.push(Output { stream, data }));
    }
    fn end(&self, code: i32) {
        self.output.send_if_modified(|(_, exit)| {
            let first = exit.is_none();
            exit.get_or_insert(code);
            first
        });
    }
    async fn ended(&self) -> i32 {
        let mut receiver = self.output.subscribe();
        let last = receiver.wait_for(|(_, exit)| exit.is_some()).await.unwrap();
        last.1.unwrap()
    }
    fn stream(self: &Arc<Self>) -> Pin<Box<dyn Stream<Item = Output> + Send>> {
        let receiver = self.output.subscribe();
        Box::pin(futures::stream::unfold((receiver, 0), |(mut receiver, at)| async move {
            let state = receiver.wait_for(|(all, exit)| all.len() > at || exit.is_some()).await.ok()?;
            let next = state.0.get(at).cloned();
            drop(state);
            next.map(|piece| (piece, (receiver, at + 1)))
        }))
    }
    fn session(self: &Arc<Self>, wants_stdin: bool) -> Session {
        let (resize, _) = mpsc::channel(1);
        let this = self.clone();
        let stdin = wants_stdin.then(|| {
            let (ours, mut theirs) = tokio::io::duplex(4096);
            let process = self.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(count @ 1..) = theirs.read(&mut buffer).await {
                    process.print(OutputStream::Stdout, buffer[..count].to_vec());
                }
                process.end(0);
            });
            Box::pin(ours) as Pin<Box<dyn tokio::io::AsyncWrite + Send>>
        });
        let exit = async move { Ok(ExitStatus { code: this.ended().await, out_of_memory: false }) };
        Session { stdin, output: self.stream(), resize, exit: Box::pin(exit), pid: 42 }
    }
}

fn spawn(process: &Arc<Process>, command: &[String]) -> Result<()> {
    let rest = command[1..].join(" ");
    match command[0].as_str() {
        "echo" => {
            process.print(OutputStream::Stdout, format!("{rest}\n"));
            process.end(0);
        }
        "err" => {
            process.print(OutputStream::Stderr, format!("{rest}\n"));
            process.end(0);
        }
        "exit" => process.end(rest.parse().unwrap()),
        "sleep" | "cat" => {}
        other => {
            let message = format!("exec: \"{other}\": executable file not found in $PATH");
            return Err(Error::CannotStart { code: 127, message });
        }
    }
    Ok(())
}

/// The machine.
pub struct FakeMachine {
    kube: FakeKube,
    processes: Mutex<HashMap<String, watch::Sender<Option<Arc<Process>>>>>,
}

fn id(workload: &Workload) -> &str {
    match workload {
        Workload::Container { name, .. } | Workload::VirtualMachine { name, .. } => name,
        Workload::PodContainer { container, .. } => container,
    }
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

impl FakeMachine {
    pub fn start(kube: FakeKube) -> Arc<Self> {
        let this = Arc::new(Self { kube: kube.clone(), processes: Mutex::default() });
        let mut events = kube.subscribe();
        let machine = this.clone();
        tokio::spawn(async move {
            while let Ok((plural, event)) = events.recv().await {
                if plural == "containers" && event["type"] != "DELETED" {
                    machine.act(&event["object"]);
                }
                if plural == "networks" && event["type"] == "ADDED" {
                    machine.make_network(&event["object"]);
                }
            }
        });
        this
    }

    fn slot(&self, id: &str) -> watch::Receiver<Option<Arc<Process>>> {
        let mut all = self.processes.lock().unwrap();
        all.entry(id.to_owned()).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }

    fn process(&self, id: &str) -> Option<Arc<Process>> {
        self.slot(id).borrow().clone()
    }

    fn act(self: &Arc<Self>, object: &Value) {
        let id = object["metadata"]["name"].as_str().unwrap().to_owned();
        let (spec, status) = (&object["spec"], &object["status"]);
        let running = matches!(status["state"].as_str(), Some("running" | "paused"));
        if object["metadata"].get("deletionTimestamp").is_some() {
            if let Some(process) = self.process(&id).filter(|_| running) {
                process.end(137);
            } else if object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()) {
                self.kube.patch("containers", &id, &json!({ "metadata": { "finalizers": [] } }));
            }
            return;
        }
        let wanted = spec["startRequest"].as_i64().unwrap_or(0);
        let seen = status["observedStart"].as_i64().unwrap_or(0);
        if wanted > seen && running {
            self.process(&id).unwrap().end(143);
        } else if wanted > seen {
            self.run(&id, object, wanted);
        } else if running && spec["desired"] == "stopped" {
            self.process(&id).unwrap().end(143);
        } else if status["state"] == "running" && spec["desired"] == "paused" {
            self.kube.patch("containers", &id, &json!({ "status": { "state": "paused" } }));
        } else if status["state"] == "paused" && spec["desired"] == "running" {
            self.kube.patch("containers", &id, &json!({ "status": { "state": "running" } }));
        } else if running && !spec["resources"].is_null() && status["resourceUpdate"]["resources"] != spec["resources"]
        {
            let update = json!({ "resources": spec["resources"], "error": "" });
            self.kube.patch("containers", &id, &json!({ "status": { "resourceUpdate": update } }));
        }
    }

    fn make_network(self: &Arc<Self>, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let chosen = |family: &str, free: &str| match object["spec"][family].as_str() {
            None | Some("") => free.to_owned(),
            Some(subnet) => subnet.to_owned(),
        };
        let mut status = json!({ "subnet": chosen("subnet", "10.76.0.0/24"), "phase": "Ready" });
        if object["spec"]["ipv6"] == true {
            status["ipv6Subnet"] = json!(chosen("ipv6Subnet", "fd00:76::/64"));
        }
        let this = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(MAKING).await;
            this.kube.patch("networks", &name, &json!({ "status": status }));
        });
    }

    fn run(self: &Arc<Self>, id: &str, object: &Value, request: i64) {
        let command: Vec<String> = serde_json::from_value(object["spec"]["command"].clone()).unwrap();
        let process = Process::new();
        if let Err(error) = spawn(&process, &command) {
            let status =
                json!({ "observedStart": request, "error": error.to_string(), "exitCode": 127, "state": "created" });
            if object["spec"]["autoRemove"] != true {
                self.kube.patch("containers", id, &json!({ "status": status }));
                return;
            }
            // Let go of with its last status, and gone once nothing of it is left.
            self.kube.patch("containers", id, &json!({ "metadata": { "finalizers": [] }, "status": status }));
            let (this, id) = (self.clone(), id.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep(CLEARING).await;
                this.kube.patch("containers", &id, &json!({ "metadata": { "annotations": { "cleared": "yes" } } }));
                this.kube.delete("containers", &id);
            });
            return;
        }
        self.slot(id);
        self.processes.lock().unwrap()[id].send_replace(Some(process.clone()));
        let networks = json!({ "bridge": { "ip": "10.0.0.2", "prefixLength": 16, "gateway": "10.0.0.1", "mac": "02:00:00:00:00:02" } });
        let status = json!({ "observedStart": request, "state": "running", "pid": 4242, "startedAt": now(), "error": null, "networks": networks });
        self.kube.patch("containers", id, &json!({ "status": status }));
        let (this, id, remove) = (self.clone(), id.to_owned(), object["spec"]["autoRemove"] == true);
        tokio::spawn(async move {
            let code = process.ended().await;
            let status = json!({ "state": "exited", "exitCode": code, "pid": 0, "finishedAt": now() });
            this.kube.patch("containers", &id, &json!({ "status": status }));
            if remove {
                this.kube.delete("containers", &id);
            }
        });
    }
}

#[async_trait]
impl Node for FakeMachine {
    async fn logs(&self, workload: &Workload, options: LogOptions) -> Result<LogStream> {
        let Some(process) = self.process(id(workload)) else { return Ok(Box::pin(futures::stream::empty())) };
        let line = |o: Output| Ok(LogLine { timestamp_ns: 1_000_000_000, stream: o.stream, data: o.data });
        if options.follow {
            return Ok(Box::pin(process.stream().map(line)));
        }
        let all = process.output.borrow().0.clone();
        let skip = options.tail.map_or(0, |n| all.len().saturating_sub(n));
        Ok(Box::pin(futures::stream::iter(all.into_iter().skip(skip).map(line))))
    }
    async fn exec(&self, _workload: &Workload, request: ExecRequest) -> Result<Session> {
        // A real process takes its time; docker-py loses what comes along with the head of the answer.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let process = Process::new();
        spawn(&process, &request.command)?;
        Ok(process.session(request.stdin))
    }
    async fn attach(&self, workload: &Workload, options: AttachOptions) -> Result<Session> {
        // The session stands before the process does; its parts wait for the start.
        let (resize, _) = mpsc::channel(1);
        let mut slot = self.slot(id(workload));
        if !options.wait_for_start || slot.borrow().is_some() {
            let process = slot.borrow().clone();
            return process
                .map(|p| p.session(options.stdin))
                .ok_or_else(|| Error::Conflict("container is not running".into()));
        }
        let (early, mut late) = tokio::io::duplex(4096);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let process = slot.wait_for(Option::is_some).await.unwrap().clone().unwrap();
            let mut session = process.session(options.stdin);
            let stdin = session.stdin.take();
            let _ = sender.send(process);
            if let Some(mut stdin) = stdin {
                let _ = tokio::io::copy(&mut late, &mut stdin).await;
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut stdin).await;
            }
        });
        let output = futures::stream::once(async move { receiver.await.ok() })
            .filter_map(std::future::ready)
            .flat_map(|process| process.stream());
        let stdin = options.stdin.then(|| Box::pin(early) as Pin<Box<dyn tokio::io::AsyncWrite + Send>>);
        Ok(Session { stdin, output: Box::pin(output), resize, exit: Box::pin(std::future::pending()), pid: 0 })
    }
    async fn resize(&self, _workload: &Workload, _size: TerminalSize) -> Result<()> {
        Ok(())
    }
    async fn signal(&self, workload: &Workload, signal: i32) -> Result<()> {
        self.process(id(workload)).ok_or_else(|| Error::Conflict("not running".into()))?.end(128 + signal);
        Ok(())
    }
    async fn port_forward(&self, _workload: &Workload, _port: u16) -> Result<Box<dyn Duplex>> {
        Err(Error::NotSupported("no ports here".into()))
    }
    async fn statistics(&self, _workload: &Workload) -> Result<Statistics> {
        Ok(Statistics { memory_bytes: 1 << 20, memory_limit_bytes: u64::MAX, pids: 1, ..Statistics::default() })
    }
    async fn processes(&self, _workload: &Workload, _arguments: &str) -> Result<ProcessTable> {
        Ok(ProcessTable { titles: vec!["PID".into(), "CMD".into()], processes: vec![vec!["1".into(), "sleep".into()]] })
    }
    async fn path_statistics(&self, _workload: &Workload, path: &str) -> Result<PathStatistics> {
        if path == "/etc" {
            let (name, mode) = ("etc".to_owned(), 0o040_755);
            return Ok(PathStatistics { name, size_bytes: 0, mode, modified_ns: 0, link_target: String::new() });
        }
        if path != "/etc/motd" {
            return Err(Error::NotFound("no such file".into()));
        }
        Ok(PathStatistics {
            name: "motd".into(),
            size_bytes: 3,
            mode: 0o100_644,
            modified_ns: 0,
            link_target: String::new(),
        })
    }
    async fn read_archive(&self, workload: &Workload, path: &str) -> Result<(PathStatistics, ByteStream)> {
        let statistics = self.path_statistics(workload, path).await?;
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o644);
        archive.append_data(&mut header, "motd", &b"hi\n"[..]).unwrap();
        let bytes = archive.into_inner().unwrap();
        Ok((statistics, Box::pin(futures::stream::iter([Ok(Bytes::from(bytes))]))))
    }
    async fn write_archive(&self, _workload: &Workload, _path: &str, mut archive: ByteStream) -> Result<()> {
        while archive.next().await.is_some() {}
        Ok(())
    }
    async fn changes(&self, _workload: &Workload) -> Result<Vec<FileChange>> {
        Ok(vec![FileChange { path: "/new".into(), kind: FileChangeKind::Added }])
    }
    async fn export(&self, _workload: &Workload) -> Result<ByteStream> {
        Ok(Box::pin(futures::stream::empty()))
    }
    async fn changes_layer(&self, _workload: &Workload) -> Result<ByteStream> {
        Ok(Box::pin(futures::stream::iter([Ok(Bytes::from_static(b"layer"))])))
    }
}
