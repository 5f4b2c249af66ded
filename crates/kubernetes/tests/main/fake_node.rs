//! A machine that pretends: logs of three lines, an `exec` that echoes its command and input, ports that echo.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use node::{
    AttachOptions, ByteStream, Duplex, Error, ExecRequest, ExitStatus, FileChange, LogLine, LogOptions, LogStream,
    Node, Output, OutputStream, PathStatistics, ProcessTable, Result, Session, Statistics, TerminalSize, Workload,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// See the module.
pub struct FakeNode;

fn refuse<T>() -> Result<T> {
    Err(Error::NotSupported("the fake machine does not do this".into()))
}

/// A process that prints its words, then what it reads, and ends with the code that `exit N` names.
fn echo(command: Vec<String>, stdin: bool) -> Session {
    let (outputs, output) = mpsc::channel(4);
    let (resize, _sizes) = mpsc::channel(4);
    let (near, far) = tokio::io::duplex(1 << 16);
    let (_, writer) = tokio::io::split(near);
    let code = match command.as_slice() {
        [exit, code] if exit == "exit" => code.parse().unwrap_or(1),
        _ => 0,
    };
    let (done, ended) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let text = |data: Vec<u8>| Output { stream: OutputStream::Stdout, data: Bytes::from(data) };
        let _ = outputs.send(text(format!("{}\n", command.join(" ")).into_bytes())).await;
        let warning = Output { stream: OutputStream::Stderr, data: Bytes::from_static(b"to stderr\n") };
        let _ = outputs.send(warning).await;
        if stdin {
            let mut far = far;
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = far.read(&mut buffer).await {
                if outputs.send(text(buffer[..count].to_vec())).await.is_err() {
                    break;
                }
            }
        }
        let _ = done.send(ExitStatus { code, out_of_memory: false });
    });
    let output = futures::stream::unfold(output, async |mut output| output.recv().await.map(|piece| (piece, output)));
    Session {
        stdin: stdin.then(|| Box::pin(writer) as _),
        output: output.boxed(),
        resize,
        exit: Box::pin(async move { ended.await.map_err(|_| Error::Internal("lost".into())) }),
        pid: 0,
    }
}

#[async_trait]
impl Node for FakeNode {
    async fn logs(&self, _: &Workload, options: LogOptions) -> Result<LogStream> {
        let line = |number: i64| {
            let data = Bytes::from(format!("line {number}\n"));
            Ok(LogLine { timestamp_ns: number * 1_000_000_000, stream: OutputStream::Stdout, data })
        };
        let first = options.tail.map_or(1, |tail| 4 - i64::try_from(tail.min(3)).unwrap_or(3));
        Ok(futures::stream::iter((first..=3).map(line)).boxed())
    }
    async fn exec(&self, _: &Workload, request: ExecRequest) -> Result<Session> {
        if request.command.first().is_some_and(|word| word == "missing") {
            return Err(Error::CannotStart { code: 127, message: "missing: not found".into() });
        }
        Ok(echo(request.command, request.stdin))
    }
    async fn attach(&self, _: &Workload, options: AttachOptions) -> Result<Session> {
        Ok(echo(vec!["attached".into()], options.stdin))
    }
    async fn resize(&self, _: &Workload, _: TerminalSize) -> Result<()> {
        Ok(())
    }
    async fn signal(&self, _: &Workload, _: i32) -> Result<()> {
        refuse()
    }
    async fn port_forward(&self, _: &Workload, port: u16) -> Result<Box<dyn Duplex>> {
        if port != 7 {
            return Err(Error::Unavailable(format!("connection refused: port {port}")));
        }
        let (near, mut far) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = far.read(&mut buffer).await {
                if far.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), far.shutdown()).await;
        });
        Ok(Box::new(near))
    }
    async fn statistics(&self, _: &Workload) -> Result<Statistics> {
        refuse()
    }
    async fn processes(&self, _: &Workload, _: &str) -> Result<ProcessTable> {
        refuse()
    }
    async fn path_statistics(&self, _: &Workload, _: &str) -> Result<PathStatistics> {
        refuse()
    }
    async fn read_archive(&self, _: &Workload, _: &str) -> Result<(PathStatistics, ByteStream)> {
        refuse()
    }
    async fn write_archive(&self, _: &Workload, _: &str, _: ByteStream) -> Result<()> {
        refuse()
    }
    async fn changes(&self, _: &Workload) -> Result<Vec<FileChange>> {
        refuse()
    }
    async fn export(&self, _: &Workload) -> Result<ByteStream> {
        refuse()
    }
    async fn changes_layer(&self, _: &Workload) -> Result<ByteStream> {
        refuse()
    }
}
