//! The Kubernetes dialect needs the machine, and the machine's agent needs a client of the dialect. This stands for the agent
//! until it is there.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use node::{
    AttachOptions, ByteStream, Duplex, Error, ExecRequest, FileChange, LogOptions, LogStream, Node, PathStatistics,
    ProcessTable, Result, Session, SharedNode, Statistics, TerminalSize, Workload,
};

/// Passes everything on to the agent once there is one; before, the machine is unavailable.
pub struct LateNode {
    agent: OnceLock<SharedNode>,
}

impl LateNode {
    /// Nothing behind it yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { agent: OnceLock::new() })
    }

    /// Puts the agent behind it; only the first call counts.
    pub fn set(&self, agent: SharedNode) {
        if self.agent.set(agent).is_err() {
            tracing::warn!("this machine already has an agent");
        }
    }

    fn agent(&self) -> Result<&SharedNode> {
        self.agent.get().ok_or_else(|| Error::Unavailable("the machine is starting; try again".into()))
    }
}

#[async_trait]
impl Node for LateNode {
    async fn logs(&self, workload: &Workload, options: LogOptions) -> Result<LogStream> {
        self.agent()?.logs(workload, options).await
    }
    async fn exec(&self, workload: &Workload, request: ExecRequest) -> Result<Session> {
        self.agent()?.exec(workload, request).await
    }
    async fn attach(&self, workload: &Workload, options: AttachOptions) -> Result<Session> {
        self.agent()?.attach(workload, options).await
    }
    async fn resize(&self, workload: &Workload, size: TerminalSize) -> Result<()> {
        self.agent()?.resize(workload, size).await
    }
    async fn signal(&self, workload: &Workload, signal: i32) -> Result<()> {
        self.agent()?.signal(workload, signal).await
    }
    async fn port_forward(&self, workload: &Workload, port: u16) -> Result<Box<dyn Duplex>> {
        self.agent()?.port_forward(workload, port).await
    }
    async fn statistics(&self, workload: &Workload) -> Result<Statistics> {
        self.agent()?.statistics(workload).await
    }
    async fn processes(&self, workload: &Workload, arguments: &str) -> Result<ProcessTable> {
        self.agent()?.processes(workload, arguments).await
    }
    async fn path_statistics(&self, workload: &Workload, path: &str) -> Result<PathStatistics> {
        self.agent()?.path_statistics(workload, path).await
    }
    async fn read_archive(&self, workload: &Workload, path: &str) -> Result<(PathStatistics, ByteStream)> {
        self.agent()?.read_archive(workload, path).await
    }
    async fn write_archive(&self, workload: &Workload, path: &str, archive: ByteStream) -> Result<()> {
        self.agent()?.write_archive(workload, path, archive).await
    }
    async fn changes(&self, workload: &Workload) -> Result<Vec<FileChange>> {
        self.agent()?.changes(workload).await
    }
    async fn export(&self, workload: &Workload) -> Result<ByteStream> {
        self.agent()?.export(workload).await
    }
    async fn changes_layer(&self, workload: &Workload) -> Result<ByteStream> {
        self.agent()?.changes_layer(workload).await
    }
}
