//! Has a guest hold its file systems still for the instant of a snapshot, by the agent inside it. Without an agent the instant is as a
//! power cut would leave the disks. Whoever holds a guest still lets it go on: at the end, when it is dropped, or, if this process was
//! ended, when the guest is adopted; a file in the run directory says so.
//!
//! `Source:` QEMU, docs/interop/qemu-ga-ref; the agent's protocol is that of QMP, without a greeting

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::guest::{QemuGuest, refused};
use super::process::Process;
use super::qmp;
use crate::error::{Error, Result};

/// How long an agent that has its end of the line open may take to answer at all; a guest whose instructions are translated is slow.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to have everything written and hold still, or to let go on.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is asked to let the guest go on.
const THAW_ATTEMPTS: usize = 5;
const THAW_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two later questions, for as long as the guest lives.
const THAW_PAUSE_MAX: Duration = Duration::from_secs(30);
/// The longest answer that is read. Units: bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// The longest text of an error that is shown.
pub(crate) const MESSAGE_CHARACTERS_MAX: usize = 512;
/// Begins an answer to who does not know what was said before.
const SENTINEL: u8 = 0xff;
/// The file that says that a guest may be held still.
const MARKER: &str = "still";

/// A line to the agent.
struct Agent {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Agent {
    /// Reaches the agent, past whatever others left unread.
    async fn open(run_dir: &Path) -> Result<Self> {
        let stream = qmp::connect(run_dir, "agent.sock").await.map_err(Error::io("reach the agent of", run_dir))?;
        let (reader, writer) = stream.into_split();
        let mut agent = Self { reader: BufReader::new(reader), writer };
        let id = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        let asked = async {
            agent.writer.write_all(&[SENTINEL]).await.map_err(Error::io("write to the agent of", run_dir))?;
            agent.send("guest-sync-delimited", json!({"id": id})).await?;
            loop {
                let mut skipped = Vec::new();
                let mut bounded = (&mut agent.reader).take(ANSWER_BYTES_MAX);
                let read = bounded.read_until(SENTINEL, &mut skipped).await;
                if read.map_err(Error::io("read from the agent of", run_dir))? == 0 {
                    return Err(Error::Gone);
                }
                if skipped.last() == Some(&SENTINEL) && agent.answer().await.is_ok_and(|answer| answer == id) {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(SYNC_TIMEOUT, asked).await.map_err(|_| Error::Timeout("the guest's agent".into()))??;
        Ok(agent)
    }

    async fn send(&mut self, command: &str, arguments: Value) -> Result<()> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.writer.write_all(line.as_bytes()).await.map_err(Error::io("write to", "the guest's agent"))
    }

    async fn answer(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line).await;
        if read.map_err(Error::io("read from", "the guest's agent"))? == 0 {
            return Err(Error::Gone);
        }
        understand(&line)
    }

    async fn ask(&mut self, command: &str) -> Result<Value> {
        let asked = async {
            self.send(command, json!({})).await?;
            self.answer().await
        };
        tokio::time::timeout(FREEZE_TIMEOUT, asked).await.map_err(|_| Error::Timeout("the guest's agent".into()))?
    }
}

/// What a line of the agent says. The guest may say anything.
pub(crate) fn understand(line: &[u8]) -> Result<Value> {
    let mut answer: Value = serde_json::from_slice(line).map_err(|error| Error::Invalid(error.to_string()))?;
    match answer.get_mut("return") {
        Some(value) => Ok(value.take()),
        None => {
            let message = answer["error"]["desc"].as_str().unwrap_or("it says nothing that can be understood");
            // It is shown to people: nothing of it may move their cursor or fill their screen.
            let message = message.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARACTERS_MAX).collect();
            Err(Error::Refused { command: "guest agent".into(), message })
        }
    }
}

/// Lets a guest go on that may be held still; how many file systems it had held. The file goes when it does.
async fn thaw(run_dir: &Path) -> Result<u64> {
    let thawed = Agent::open(run_dir).await?.ask("guest-fsfreeze-thaw").await?;
    forget(run_dir);
    Ok(thawed.as_u64().unwrap_or(0))
}

/// Nothing holds a guest still any more: it went on, or started over.
pub(super) fn forget(run_dir: &Path) {
    let _ = std::fs::remove_file(run_dir.join(MARKER));
}

/// Lets a guest go on; how many file systems it had held. One that does not answer soon is asked for as long as it lives.
async fn let_go(run_dir: &Path) -> u64 {
    for _ in 0..THAW_ATTEMPTS {
        match thaw(run_dir).await {
            Ok(thawed) => return thawed,
            Err(error) => tracing::debug!(run_dir = %run_dir.display(), %error, "a guest is not let go on yet"),
        }
        tokio::time::sleep(THAW_PAUSE).await;
    }
    tracing::warn!(run_dir = %run_dir.display(), "a guest may still hold its file systems still; asking on");
    tokio::spawn(ask_on(run_dir.to_owned()));
    0
}

/// Asks until the guest goes on, or nothing is left to ask or to let go.
async fn ask_on(run_dir: PathBuf) {
    let mut pause = THAW_PAUSE;
    while run_dir.join(MARKER).exists() && Process::of(&run_dir).is_some() {
        if thaw(&run_dir).await.is_ok() {
            tracing::info!(run_dir = %run_dir.display(), "a guest that held its file systems still goes on");
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(THAW_PAUSE_MAX);
    }
}

/// Lets a guest go on that this process, in an earlier life, held still.
pub(super) fn resume_after_end(run_dir: &Path) {
    if run_dir.join(MARKER).exists() {
        let run_dir = run_dir.to_owned();
        tokio::spawn(async move { let_go(&run_dir).await });
    }
}

/// A guest that holds still until this goes.
struct Still {
    run_dir: PathBuf,
    /// File systems that it holds.
    frozen: u64,
    is_over: bool,
}

impl Still {
    async fn begin(run_dir: &Path) -> Result<Self> {
        let marker = run_dir.join(MARKER);
        let mut agent = Agent::open(run_dir).await?;
        std::fs::write(&marker, "").map_err(Error::io("write", &marker))?;
        let mut still = Self { run_dir: run_dir.to_owned(), frozen: 0, is_over: false };
        match agent.ask("guest-fsfreeze-freeze").await {
            Ok(frozen) => {
                still.frozen = frozen.as_u64().unwrap_or(0);
                Ok(still)
            }
            Err(error) => {
                // It may hold still all the same.
                drop(agent);
                still.end().await;
                Err(error)
            }
        }
    }

    /// Lets it go on; whether it did hold still until then: a guest may have nothing to hold, or have let go by itself.
    async fn end(mut self) -> bool {
        self.is_over = true;
        let run_dir = std::mem::take(&mut self.run_dir);
        let_go(&run_dir).await > 0 && self.frozen > 0
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        // Whoever waited was dropped; this goes on for the guest.
        if !self.is_over {
            let run_dir = std::mem::take(&mut self.run_dir);
            tokio::spawn(async move { let_go(&run_dir).await });
        }
    }
}

impl QemuGuest {
    /// Whether something in the guest has its end of the agent's line open.
    async fn has_agent(&self) -> bool {
        let Ok(answer) = self.qmp.execute("query-chardev", json!({})).await else { return false };
        answer.as_array().into_iter().flatten().any(|one| one["label"] == "agent" && one["frontend-open"] == true)
    }

    /// Errors: [`Error::Refused`] when its file systems may be held still. It would stay so wherever it goes, with nobody who knows.
    pub(super) fn must_not_hold_still(&self, command: &str) -> Result<()> {
        match self.run_dir.join(MARKER).exists() {
            true => Err(refused(command, "the guest may hold its file systems still, and is asked to go on first")),
            false => Ok(()),
        }
    }

    /// Does short work while the guest's file systems hold still, if it has an agent that answers; whether they did.
    pub(super) async fn while_still<T>(&self, work: impl Future<Output = Result<T>>) -> Result<(T, bool)> {
        let _turn = self.agent.lock().await;
        let running = self.status().await.is_ok_and(|status| status == "running");
        // One that has not gone on since the last time is being asked to.
        let free = !self.run_dir.join(MARKER).exists();
        let still = match running && free && self.has_agent().await {
            true => Still::begin(&self.run_dir)
                .await
                .inspect_err(|error| tracing::info!(%error, "a guest does not hold still"))
                .ok(),
            false => None,
        };
        let done = work.await;
        let was_still = match still {
            Some(still) => still.end().await,
            None => false,
        };
        done.map(|done| (done, was_still))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[test]
    fn whatever_a_guest_says_is_an_answer_or_an_error() {
        assert_eq!(understand(b"{\"return\": 2}\n").unwrap(), 2);
        for line in [&b"{}"[..], b"", b"[]", b"null", b"{\"error\": {\"desc\": \"no\"}}", b"\xff\xff", b"{\"return\""] {
            assert!(understand(line).is_err());
        }
    }

    /// An agent that answers each line by what `say` makes of its command; the commands that it heard.
    async fn converse(
        say: impl Fn(&str, &Value) -> String + Send + 'static,
    ) -> (tempfile::TempDir, tokio::task::JoinHandle<Vec<String>>) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("agent.sock")).unwrap();
        let agent = tokio::spawn(async move {
            let mut heard = Vec::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (reader, mut writer) = stream.into_split();
                let mut lines = BufReader::new(reader).split(b'\n');
                while let Ok(Some(line)) = lines.next_segment().await {
                    let text = line.strip_prefix(&[SENTINEL]).unwrap_or(&line);
                    let command: Value = serde_json::from_slice(text).unwrap();
                    let name = command["execute"].as_str().unwrap().to_owned();
                    let answer = match name.as_str() {
                        "guest-sync-delimited" => format!("\u{0}{}\n", json!({"return": command["arguments"]["id"]})),
                        _ => say(&name, &command["arguments"]),
                    };
                    heard.push(name.clone());
                    let mut bytes = answer.into_bytes();
                    if bytes.first() == Some(&0) {
                        // Rubbish from an earlier talk comes before.
                        bytes = [&b"{\"return\": 7}\n"[..], &[SENTINEL], &bytes[1..]].concat();
                    }
                    writer.write_all(&bytes).await.unwrap();
                    if name == "guest-fsfreeze-thaw" {
                        return heard;
                    }
                }
            }
        });
        (directory, agent)
    }

    #[tokio::test]
    async fn who_is_held_still_is_let_go_also_when_nobody_waits_any_more() {
        for is_dropped in [false, true] {
            let (directory, agent) = converse(|_, _| "{\"return\": 1}\n".into()).await;
            let still = Still::begin(directory.path()).await.unwrap();
            assert!(directory.path().join(MARKER).exists());
            if is_dropped {
                drop(still);
            } else {
                assert!(still.end().await);
                assert!(!directory.path().join(MARKER).exists());
            }
            let sync = "guest-sync-delimited";
            assert_eq!(agent.await.unwrap(), [sync, "guest-fsfreeze-freeze", sync, "guest-fsfreeze-thaw"]);
        }
    }

    #[tokio::test]
    async fn who_let_go_before_did_not_hold_still() {
        for (frozen, thawed) in [(0, 0), (0, 1), (2, 0)] {
            let (directory, agent) = converse(move |name, _| {
                let count = if name == "guest-fsfreeze-freeze" { frozen } else { thawed };
                format!("{}\n", json!({"return": count}))
            })
            .await;
            let still = Still::begin(directory.path()).await.unwrap();
            assert!(!still.end().await, "{frozen} {thawed}");
            agent.await.unwrap();
        }
    }

    #[tokio::test]
    async fn who_refuses_to_hold_still_is_let_go_all_the_same() {
        let (directory, agent) = converse(|name, _| match name {
            "guest-fsfreeze-freeze" => "{\"error\": {\"desc\": \"no\"}}\n".into(),
            _ => "{\"return\": 0}\n".into(),
        })
        .await;
        assert!(Still::begin(directory.path()).await.is_err());
        assert_eq!(agent.await.unwrap().last().unwrap(), "guest-fsfreeze-thaw");
        assert!(!directory.path().join(MARKER).exists());
    }
}
