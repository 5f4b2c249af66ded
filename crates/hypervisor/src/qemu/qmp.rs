//! A client of QEMU's machine protocol: requests with their answers, events, descriptors. Our own, as it is small: the crates
//! there are generate types for all of QEMU's commands at every build, and none of them passes descriptors asynchronously.
//!
//! `Source:` QEMU, docs/interop/qmp-spec.txt

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, oneshot};

use crate::error::{Error, Result};

/// Bound on an answer: all nodes of a guest with many disks are some 100 KiB. Units: bytes.
const LINE_BYTES_MAX: usize = 8 << 20;
/// How long a command may take; long work is done by jobs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Events that a slow listener may fall behind.
const EVENTS_KEPT: usize = 256;

/// The event that says that there will be no other: the connection ended.
pub(super) const GONE: &str = "nuee-gone";

/// Something that QEMU told by itself.
#[derive(Clone, Debug)]
pub(super) struct QmpEvent {
    pub(super) name: String,
    pub(super) data: Value,
}

type Answer = std::result::Result<Value, String>;
/// Who waits for which answer; nothing once the connection has ended.
type Pending = Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A connection. All of its users share it.
pub(super) struct Qmp {
    stream: Arc<UnixStream>,
    writing: tokio::sync::Mutex<()>,
    pending: Arc<Pending>,
    next: AtomicU64,
    events: broadcast::Sender<QmpEvent>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Connects to a socket in a directory, however long the directory's path is.
pub(super) async fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let opened = std::fs::File::open(directory)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd())).await
}

impl Qmp {
    /// Speaks to a QEMU that has just been reached, and waits until it is ready for commands. `gone` is called when the
    /// connection ends.
    pub(super) async fn open(stream: UnixStream, gone: impl FnOnce() + Send + 'static) -> Result<Self> {
        let stream = Arc::new(stream);
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let pending: Arc<Pending> = Arc::new(Mutex::new(Some(HashMap::new())));
        let (greeted, greeting) = oneshot::channel();
        let reader = tokio::spawn({
            let (stream, events, pending) = (stream.clone(), events.clone(), pending.clone());
            async move {
                let ended = read(&stream, &events, &pending, greeted).await;
                tracing::debug!(?ended, "the connection to a guest ended");
                // Dropping the senders tells everybody who waits.
                pending.lock().take();
                // Who waits for an event would wait for ever. Nobody may be listening.
                let _ = events.send(QmpEvent { name: GONE.to_owned(), data: Value::Null });
                gone();
            }
        });
        let qmp =
            Self { stream, writing: tokio::sync::Mutex::default(), pending, next: AtomicU64::new(1), events, reader };
        let greeted = tokio::time::timeout(ANSWER_TIMEOUT, greeting).await;
        greeted.map_err(|_| Error::Timeout("the hypervisor's greeting".into()))?.map_err(|_| Error::Gone)?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// What happens from now on.
    pub(super) fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.events.subscribe()
    }

    /// Gives a command and waits for its answer.
    pub(super) async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.request(command, arguments, None).await
    }

    /// Gives a command, and a descriptor with it.
    pub(super) async fn execute_with(&self, command: &str, arguments: Value, file: BorrowedFd<'_>) -> Result<Value> {
        self.request(command, arguments, Some(file)).await
    }

    async fn request(&self, command: &str, arguments: Value, file: Option<BorrowedFd<'_>>) -> Result<Value> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.pending.lock().as_mut().ok_or(Error::Gone)?.insert(id, sender);
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string().into_bytes();
        line.push(b'\n');
        let exchange = async {
            {
                let _turn = self.writing.lock().await;
                self.send(&line, file).await.map_err(|_| Error::Gone)?;
            }
            answer.await.map_err(|_| Error::Gone)
        };
        let outcome = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await;
        if let Some(pending) = self.pending.lock().as_mut() {
            pending.remove(&id);
        }
        let outcome = outcome.map_err(|_| Error::Timeout(command.to_owned()))??;
        outcome.map_err(|message| Error::Refused { command: command.to_owned(), message })
    }

    async fn send(&self, mut line: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut descriptor = file.map(|file| [file.as_raw_fd()]);
        while !line.is_empty() {
            self.stream.writable().await?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let messages: Vec<ControlMessage<'_>> =
                    descriptor.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
                let parts = [IoSlice::new(line)];
                let sent = sendmsg::<()>(self.stream.as_raw_fd(), &parts, &messages, MsgFlags::MSG_NOSIGNAL, None);
                sent.map_err(io::Error::from)
            });
            match sent {
                Ok(count) => {
                    line = &line[count..];
                    descriptor = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

async fn read(
    stream: &UnixStream,
    events: &broadcast::Sender<QmpEvent>,
    pending: &Pending,
    greeted: oneshot::Sender<()>,
) -> io::Result<()> {
    let mut greeted = Some(greeted);
    let mut buffer = Vec::new();
    loop {
        let Some(end) = buffer.iter().position(|byte| *byte == b'\n') else {
            if buffer.len() > LINE_BYTES_MAX {
                return Err(io::Error::other("an answer without end"));
            }
            stream.readable().await?;
            match stream.try_read_buf(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            continue;
        };
        let line: Vec<u8> = buffer.drain(..=end).collect();
        let Ok(mut message) = serde_json::from_slice::<Value>(&line) else { continue };
        if message.get("QMP").is_some() {
            if let Some(greeted) = greeted.take() {
                let _ = greeted.send(());
            }
        } else if let Some(name) = message["event"].as_str() {
            // Nobody may be listening.
            let _ = events.send(QmpEvent { name: name.to_owned(), data: message["data"].take() });
        } else if let Some(id) = message["id"].as_u64() {
            let sender = pending.lock().as_mut().and_then(|pending| pending.remove(&id));
            let answer = match message.get_mut("error") {
                Some(error) => Err(error["desc"].as_str().unwrap_or("refused").to_owned()),
                None => Ok(message["return"].take()),
            };
            if let Some(sender) = sender {
                let _ = sender.send(answer);
            }
        }
    }
}
