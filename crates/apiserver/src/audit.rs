//! The audit log: one JSON line for each request, written by a thread of its own; bounded files, rotated by renaming.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use jiff::Timestamp;
use serde::Serialize;

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
    sender: SyncSender<Vec<u8>>,
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
        let record = Record {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: "Metadata",
            stage: "ResponseComplete",
            audit_id: &ctx.audit_id,
            verb,
            user: User { username: &ctx.user.name, uid: &ctx.user.uid, groups: &ctx.user.groups },
            source_ips: ctx.source.as_slice(),
            user_agent: &ctx.user_agent,
            object_ref: ObjectRef {
                resource: &path.resource,
                api_group: &path.group,
                api_version: &path.version,
                namespace: path.namespace.as_deref(),
                name: path.name.as_deref(),
                subresource: path.subresource.as_deref(),
            },
            response_status: ResponseStatus { code },
            request_received_timestamp: now,
            dropped: self.dropped.load(Ordering::Relaxed),
            annotations: ctx.notes.all(),
        };
        // Text at once: a tree would cost several times as much, here and in the thread that takes it.
        let Ok(mut record) = serde_json::to_vec(&record) else { return };
        record.push(b'\n');
        if let Err(TrySendError::Full(_)) = self.sender.try_send(record) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One line of the log. `Source:` `audit.k8s.io/v1.Event`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    kind: &'a str,
    api_version: &'a str,
    level: &'a str,
    stage: &'a str,
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    verb: &'a str,
    user: User<'a>,
    #[serde(rename = "sourceIPs")]
    source_ips: &'a [IpAddr],
    user_agent: &'a str,
    object_ref: ObjectRef<'a>,
    response_status: ResponseStatus,
    request_received_timestamp: Timestamp,
    dropped: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct User<'a> {
    username: &'a str,
    uid: &'a str,
    groups: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef<'a> {
    resource: &'a str,
    api_group: &'a str,
    api_version: &'a str,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    subresource: Option<&'a str>,
}

#[derive(Serialize)]
struct ResponseStatus {
    code: u16,
}

struct Writer {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Writer {
    fn run(mut self, receiver: &Receiver<Vec<u8>>) {
        while let Ok(mut text) = receiver.recv() {
            // Take what else is waiting, so that many records cost one write.
            while let Ok(record) = receiver.try_recv() {
                text.extend_from_slice(&record);
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
