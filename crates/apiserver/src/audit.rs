//! The audit log: one JSON line for each request, written by a thread of its own; bounded files, rotated by renaming.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::path::ResourcePath;
use crate::server::Error;
use crate::user::RequestContext;

/// Size at which a file is rotated. Units: bytes.
const MAX_FILE_BYTES: u64 = 32 * 1024 * 1024;
/// Old files kept beside the present one.
const KEPT_FILES: u32 = 4;
/// Records that wait for the disk; beyond that they are counted and dropped, never waited for.
const QUEUE: usize = 8_192;

/// A running audit log.
pub struct AuditLog {
    sender: SyncSender<Value>,
    dropped: AtomicU64,
}

impl AuditLog {
    /// Opens (or continues) the log at `path`, readable by its owner only.
    pub fn open(path: &Path) -> Result<AuditLog, Error> {
        let failed = |source| Error::AuditLog { path: path.display().to_string(), source };
        let file = open_file(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let (sender, receiver) = sync_channel(QUEUE);
        let writer = Writer { path: path.to_owned(), file, size };
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&receiver)).map_err(failed)?;
        Ok(AuditLog { sender, dropped: AtomicU64::new(0) })
    }

    /// Records one request. Reads of in-process parts are left out: they would drown everything else.
    pub fn record(&self, ctx: &RequestContext, path: &ResourcePath, verb: &str, code: u16, now: Timestamp) {
        if ctx.source.is_none() && matches!(verb, "get" | "list" | "watch") && code < 400 {
            return;
        }
        let mut record = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "stage": "ResponseComplete",
            "auditID": ctx.audit_id, "verb": verb,
            "user": {"username": ctx.user.name, "uid": ctx.user.uid, "groups": ctx.user.groups},
            "sourceIPs": ctx.source.map(|ip| ip.to_string()).into_iter().collect::<Vec<_>>(),
            "userAgent": ctx.user_agent,
            "objectRef": {"resource": path.resource, "apiGroup": path.group, "apiVersion": path.version,
                "namespace": path.namespace, "name": path.name, "subresource": path.subresource},
            "responseStatus": {"code": code},
            "requestReceivedTimestamp": now.to_string(),
            "dropped": self.dropped.load(Ordering::Relaxed),
        });
        let notes = ctx.notes.all();
        if !notes.is_empty() {
            record["annotations"] = json!(notes);
        }
        if let Err(TrySendError::Full(_)) = self.sender.try_send(record) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Writer {
    fn run(mut self, receiver: &Receiver<Value>) {
        while let Ok(record) = receiver.recv() {
            let mut text = record.to_string().into_bytes();
            text.push(b'\n');
            // Take what else is waiting, so that many records cost one write.
            while let Ok(record) = receiver.try_recv() {
                text.extend_from_slice(record.to_string().as_bytes());
                text.push(b'\n');
                if text.len() > 256 * 1024 {
                    break;
                }
            }
            if let Err(error) = self.write(&text) {
                tracing::error!(%error, path = %self.path.display(), "cannot write the audit log");
            }
        }
    }

    fn write(&mut self, text: &[u8]) -> std::io::Result<()> {
        if self.size >= MAX_FILE_BYTES {
            for number in (1..KEPT_FILES).rev() {
                // A file that is not there yet cannot be renamed; that is fine.
                let _ = std::fs::rename(self.numbered(number), self.numbered(number + 1));
            }
            std::fs::rename(&self.path, self.numbered(1))?;
            self.file = open_file(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(text)?;
        self.size += u64::try_from(text.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }
}

fn open_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
