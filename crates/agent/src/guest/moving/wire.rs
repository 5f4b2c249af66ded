//! What two agents say to each other about a guest: short JSON messages with their length before them, on a connection that one
//! machine opened to the other, both by certificate.

use api::VirtualMachine;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::Launched;
use crate::error::{Error, Result};
use crate::guest::disks::Plugged;
use crate::guest::interfaces::Nic;

/// Longest message; the object with its user data is the longest part. Units: bytes.
const MESSAGE_BYTES_MAX: u32 = 1 << 20;

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channel {
    /// Messages.
    Control,
    /// The guest's memory.
    Memory,
    /// The guest's boot disk.
    Disk,
    /// Another disk of it, by the name that the hypervisors have for it.
    Volume(String),
    /// A disk image: `Hello` names the `DiskImage`. See [`crate::guest::image_copies`].
    Image,
}

/// The first message of every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Namespace of the `Migration`, or of the image.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// What follows.
    pub channel: Channel,
}

/// What the source tells of the guest. The files that the target lacks follow as they are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepare {
    /// The machine.
    pub object: Box<VirtualMachine>,
    /// How it was launched.
    pub launched: Launched,
    /// Size of its disk. Units: bytes.
    pub disk_bytes: u64,
    /// Its volumes.
    #[serde(default)]
    pub volumes: Vec<SentVolume>,
    /// Its network interfaces; nothing from a machine that knows of one alone.
    #[serde(default)]
    pub interfaces: Vec<Nic>,
    /// Sizes of its image's kernel and RAM disk, when there are any. Units: bytes.
    pub kernel: Option<u64>,
    /// As `kernel`.
    pub initrd: Option<u64>,
    /// Uid of the image that they belong to.
    pub image_uid: String,
    /// Size of what its UEFI firmware remembers, when it has such. Units: bytes.
    #[serde(default)]
    pub variables: Option<u64>,
    /// It may have to run before all of it has come.
    #[serde(default)]
    pub post_copy: bool,
    /// Addresses of the source's workloads on the same networks: the guest may remember where they were.
    pub neighbours: Vec<std::net::Ipv4Addr>,
}

/// A volume that goes along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentVolume {
    /// Where it is in the guest.
    pub plugged: Plugged,
    /// Its size. Units: bytes.
    pub bytes: u64,
}

/// What the source says when the store has decided for the target, and nobody else does: when all is there, or, by post-copy, when all
/// but a part of the memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The guest is to stay paused.
    pub paused: bool,
}

/// What the target answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Which files it lacks, and is sent next.
    Lacks {
        /// The kernel.
        kernel: bool,
        /// The RAM disk.
        initrd: bool,
        /// What the firmware remembers.
        #[serde(default)]
        variables: bool,
    },
    /// It awaits memory and disk.
    Ready,
    /// It has everything.
    Received,
    /// By post-copy: it takes nothing more for the disks, and awaits the rest of the guest.
    Awaits,
    /// The guest runs there.
    Runs,
    /// It does not go; why.
    Refused(String),
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("the connection to the other machine broke: {error}"))
}

/// Writes a message.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(message).map_err(broken)?;
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    if length > MESSAGE_BYTES_MAX {
        return Err(Error::Invalid(format!("a message of {length} bytes")));
    }
    to.write_u32(length).await.map_err(broken)?;
    to.write_all(&text).await.map_err(broken)?;
    to.flush().await.map_err(broken)
}

/// Reads a message.
pub async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> Result<T> {
    let length = from.read_u32().await.map_err(broken)?;
    if length > MESSAGE_BYTES_MAX {
        return Err(broken(format!("a message of {length} bytes")));
    }
    let mut text = Vec::new();
    let count = AsyncReadExt::take(from, u64::from(length)).read_to_end(&mut text).await.map_err(broken)?;
    if count < usize::try_from(length).unwrap_or(usize::MAX) {
        return Err(broken("it ended within a message"));
    }
    serde_json::from_slice(&text).map_err(broken)
}

/// Whether it is the answer that was to come.
pub(super) fn expect(found: Answer, wanted: &Answer) -> Result<()> {
    match found {
        found if found == *wanted => Ok(()),
        Answer::Refused(why) => Err(Error::Invalid(format!("the other machine refuses: {why}"))),
        other => Err(Error::Invalid(format!("the other machine says {other:?}"))),
    }
}

/// What the target says, read by a task of its own, so that no half of a message is lost. Dropping it closes the connection.
pub(super) struct Answers {
    said: mpsc::Receiver<Result<Answer>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Answers {
    /// Those that come on a connection.
    pub(super) fn of(mut control: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (sender, said) = mpsc::channel(1);
        let reader = tokio::spawn(async move {
            loop {
                let answer = read::<Answer>(&mut control).await;
                let ended = answer.is_err();
                if sender.send(answer).await.is_err() || ended {
                    return;
                }
            }
        });
        Self { said, reader }
    }

    pub(super) async fn next(&mut self) -> Result<Answer> {
        self.said.recv().await.unwrap_or_else(|| Err(Error::Invalid("the other machine is gone".into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_read_as_written_and_long_ones_refused() {
        let hello = Hello { namespace: "a".into(), name: "b".into(), uid: "c".into(), channel: Channel::Memory };
        let mut wire = Vec::new();
        write(&mut wire, &hello).await.unwrap();
        assert_eq!(read::<Hello>(&mut wire.as_slice()).await.unwrap(), hello);
        assert!(read::<Hello>(&mut &wire[..wire.len() - 1]).await.is_err());
        assert!(read::<Hello>(&mut &[0xff_u8, 0xff, 0xff, 0xff, b'{'][..]).await.is_err());
    }
}
