//! What a command asks a running daemon that has the store open: one line of JSON in, one out, over a socket that only root can
//! open. A command that finds no daemon opens the store itself.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use store::SharedStore;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::config::Config;
use crate::instance::Instance;

/// Longest request. Units: bytes.
const MAX_REQUEST_BYTES: u64 = 16 * 1024;
/// How long a command waits for the daemon; a backup of gigabytes takes minutes.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How long a client may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Request {
    /// Write the state of one revision to this new file.
    BackupState(PathBuf),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Revision(u64),
    Error(String),
}

fn socket(instance: &Instance) -> PathBuf {
    instance.path("run/control.sock")
}

/// Opens the socket; the lock on the data directory proves that an old one is dead.
pub fn bind(instance: &Instance) -> Result<UnixListener> {
    let path = socket(instance);
    let say = || format!("cannot listen on {}", path.display());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(say),
        _ => {}
    }
    // The directory is root's alone already; the mode says it again.
    let listener = UnixListener::bind(&path).with_context(say)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).with_context(say)?;
    Ok(listener)
}

/// Answers commands, one after the other, until the future is dropped.
pub async fn serve(listener: UnixListener, store: SharedStore) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept a command")?;
        if let Err(error) = answer(stream, &store).await {
            tracing::warn!(error = format!("{error:#}"), "a command went wrong");
        }
    }
}

async fn answer(stream: UnixStream, store: &SharedStore) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = tokio::io::BufReader::new(read.take(MAX_REQUEST_BYTES));
    tokio::time::timeout(REQUEST_TIMEOUT, read.read_line(&mut line)).await.context("nothing was asked in time")??;
    let answer = match serde_json::from_str(&line).context("not a request") {
        Ok(Request::BackupState(file)) => match store.backup(&file).await {
            Ok(revision) => Answer::Revision(revision),
            Err(error) => Answer::Error(error.to_string()),
        },
        Err(error) => Answer::Error(format!("{error:#}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    write.write_all(&text).await.context("the command is gone")
}

/// Writes the state of one revision to a new file, by the daemon when one runs; the revision and what the file is.
pub fn backup_state(instance: &Instance, file: &Path) -> Result<(u64, &'static str)> {
    let config_file = instance.path("config.yaml");
    let config = if config_file.exists() { Config::load(&config_file)? } else { Config::default() };
    let what = if config.etcd.is_some() { "etcd-snapshot" } else { "store" };
    if instance.daemon_pid().is_some() {
        return Ok((ask(instance, &Request::BackupState(file.to_owned()))?, what));
    }
    if config.etcd.is_none() && !instance.path("store").exists() {
        bail!("there is no Nuée in {}", instance.directory().display());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let revision = runtime.block_on(async {
        let store = super::open_store(instance, &config).await?;
        store.backup(file).await.context("the store cannot be backed up")
    })?;
    Ok((revision, what))
}

fn ask(instance: &Instance, request: &Request) -> Result<u64> {
    let path = socket(instance);
    let mut stream = BlockingStream::connect(&path)
        .with_context(|| format!("the daemon does not answer on {}; it may be starting", path.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text).context("cannot ask the daemon")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the daemon did not answer")?;
    match serde_json::from_str(&line).context("the daemon ended before it answered")? {
        Answer::Revision(revision) => Ok(revision),
        Answer::Error(text) => bail!("{text}"),
    }
}
