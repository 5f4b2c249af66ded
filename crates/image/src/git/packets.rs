//! The packets of git's protocol, version 2, and what a client reads out of them. `Source:` gitprotocol-common(5), gitprotocol-v2(5).

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{Error, Result};

/// Largest packet, its length included. `Source:` gitprotocol-common(5), "pkt-line Format".
const PACKET_BYTES_MAX: usize = 65_520;
/// Packets before the pack itself: capabilities, references, sections. Nothing that was asked for has more.
const PACKETS_MAX: usize = 10_000;
/// Time until a server goes on.
const PATIENCE: Duration = crate::web::PATIENCE;
/// The only kind of object name that is understood.
const OBJECT_FORMAT: &str = "sha1";

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    Data(Vec<u8>),
    /// The end of a message.
    Flush,
    /// The end of a section.
    Delimiter,
}

/// Writes a packet that holds a line.
pub(crate) fn line(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("{:04x}{text}\n", text.len() + 5).as_bytes());
}

/// The end of a message.
pub(crate) const FLUSH: &[u8] = b"0000";
/// The end of a section.
pub(crate) const DELIMITER: &[u8] = b"0001";

/// The packets that a server sends.
pub(crate) struct Packets<R> {
    reader: R,
    left: usize,
}

fn broken(what: &str) -> Error {
    Error::Invalid(format!("the git server does not follow the protocol: {what}"))
}

impl<R: AsyncRead + Unpin> Packets<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, left: PACKETS_MAX }
    }

    /// The next packet; an error that the server tells is one here.
    async fn read(&mut self) -> Result<Packet> {
        let late = |_| Error::Unavailable("the git server does not answer in time".to_owned());
        tokio::time::timeout(PATIENCE, self.read_patiently()).await.map_err(late)?
    }

    async fn read_patiently(&mut self) -> Result<Packet> {
        let cut = |error: std::io::Error| Error::Unavailable(format!("the git server breaks off: {error}"));
        let mut head = [0; 4];
        self.reader.read_exact(&mut head).await.map_err(cut)?;
        let hex = std::str::from_utf8(&head).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let length = hex.and_then(|text| usize::from_str_radix(text, 16).ok());
        match length.ok_or_else(|| broken("no length of a packet"))? {
            0 => Ok(Packet::Flush),
            1 => Ok(Packet::Delimiter),
            length @ 4..=PACKET_BYTES_MAX => {
                let mut data = vec![0; length - 4];
                self.reader.read_exact(&mut data).await.map_err(cut)?;
                match data.strip_prefix(b"ERR ") {
                    Some(why) => Err(refused(why)),
                    None => Ok(Packet::Data(data)),
                }
            }
            length => Err(broken(&format!("a packet of {length} bytes"))),
        }
    }

    /// The next packet of a part that has an end.
    async fn bounded(&mut self) -> Result<Packet> {
        self.left = self.left.checked_sub(1).ok_or_else(|| broken("it says too much"))?;
        self.read().await
    }

    async fn text(&mut self) -> Result<Option<String>> {
        match self.bounded().await? {
            Packet::Data(data) => Ok(Some(String::from_utf8_lossy(&data).trim_end_matches('\n').to_owned())),
            Packet::Flush | Packet::Delimiter => Ok(None),
        }
    }

    /// Reads what the server can do; an HTTP server says first what it is.
    ///
    /// Errors: `NotSupported` when it does not speak this version, or names objects in another way.
    pub(crate) async fn capabilities(&mut self) -> Result<Capabilities> {
        let mut first = self.text().await?;
        if first.as_deref().is_some_and(|text| text.starts_with("# service=")) {
            // It ends with a flush.
            first = self.text().await?;
            if first.is_none() {
                first = self.text().await?;
            }
        }
        if first.as_deref() != Some("version 2") {
            return Err(Error::NotSupported("the git server does not speak version 2 of the protocol".to_owned()));
        }
        let mut found = Capabilities::default();
        while let Some(text) = self.text().await? {
            let (name, value) = text.split_once('=').unwrap_or((&text, ""));
            match name {
                "fetch" => found.shallow = value.split(' ').any(|feature| feature == "shallow"),
                "object-format" if value != OBJECT_FORMAT => {
                    return Err(Error::NotSupported(format!(
                        "git repositories with objects of {value} are not supported"
                    )));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Reads a list of references, and gives the object of the one that is meant.
    ///
    /// Errors: `NotFound` when there is none.
    pub(crate) async fn reference(&mut self, wanted: &str) -> Result<String> {
        let candidates = candidates(wanted);
        let mut best: Option<(usize, String)> = None;
        while let Some(text) = self.text().await? {
            let mut words = text.split(' ');
            let (Some(object), Some(name)) = (words.next(), words.next()) else { continue };
            let Some(rank) = candidates.iter().position(|candidate| candidate == name) else { continue };
            if is_object(object) && best.as_ref().is_none_or(|(before, _)| rank < *before) {
                best = Some((rank, object.to_owned()));
            }
        }
        let missing = || match wanted {
            "" => Error::NotFound("the git repository has no commit".to_owned()),
            _ => Error::NotFound(format!("couldn't find remote ref {wanted}")),
        };
        best.map(|(_, object)| object).ok_or_else(missing)
    }

    /// Reads the answer to a fetch, writes its pack, and says how many bytes it had.
    ///
    /// Errors: `Invalid` when it is larger than `bytes_max`.
    pub(crate) async fn pack(&mut self, out: &mut (impl AsyncWrite + Unpin), bytes_max: u64) -> Result<u64> {
        loop {
            match self.bounded().await? {
                Packet::Data(data) if data == b"packfile\n" => break,
                // Other sections say what was left out.
                Packet::Data(_) | Packet::Delimiter => {}
                Packet::Flush => return Err(broken("no pack")),
            }
        }
        let mut bytes = 0_u64;
        while let Packet::Data(data) = self.read().await? {
            match data.split_first() {
                Some((1, pack)) => {
                    bytes += pack.len() as u64;
                    if bytes > bytes_max {
                        return Err(Error::Invalid(format!("the git repository is larger than {bytes_max} bytes")));
                    }
                    out.write_all(pack).await.map_err(Error::io("cannot hand a pack to git"))?;
                }
                // Progress.
                Some((2, _)) => {}
                Some((3, why)) => return Err(refused(why)),
                _ => return Err(broken("an unknown band")),
            }
        }
        Ok(bytes)
    }
}

fn refused(why: &[u8]) -> Error {
    let text: String = String::from_utf8_lossy(why).chars().filter(|c| !c.is_control()).take(500).collect();
    Error::Unavailable(format!("the git server refuses: {text}"))
}

/// What a server can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// It leaves out history.
    pub shallow: bool,
}

/// Whether a text is the whole name of an object.
pub(crate) fn is_object(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What a short name may stand for, the likeliest first. `Source:` gitrevisions(7), "refname".
fn candidates(wanted: &str) -> Vec<String> {
    match wanted {
        "" => vec!["HEAD".to_owned()],
        name => ["", "refs/", "refs/tags/", "refs/heads/"].iter().map(|prefix| format!("{prefix}{name}")).collect(),
    }
}

/// Asks for the references that a name may stand for.
pub(crate) fn ask_reference(wanted: &str) -> Vec<u8> {
    let mut out = Vec::new();
    line(&mut out, "command=ls-refs");
    line(&mut out, &format!("object-format={OBJECT_FORMAT}"));
    out.extend_from_slice(DELIMITER);
    for candidate in candidates(wanted) {
        line(&mut out, &format!("ref-prefix {candidate}"));
    }
    out.extend_from_slice(FLUSH);
    out
}

/// Asks for an object and what it needs, without history where the server can leave it out.
pub(crate) fn ask_pack(object: &str, capabilities: Capabilities) -> Vec<u8> {
    let mut out = Vec::new();
    line(&mut out, "command=fetch");
    line(&mut out, &format!("object-format={OBJECT_FORMAT}"));
    out.extend_from_slice(DELIMITER);
    if capabilities.shallow {
        line(&mut out, "deepen 1");
    }
    for text in ["no-progress", "ofs-delta"] {
        line(&mut out, text);
    }
    line(&mut out, &format!("want {object}"));
    line(&mut out, "done");
    out.extend_from_slice(FLUSH);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn said(parts: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for part in parts {
            match *part {
                "." => out.extend_from_slice(FLUSH),
                "|" => out.extend_from_slice(DELIMITER),
                text => line(&mut out, text),
            }
        }
        out
    }

    #[tokio::test]
    async fn a_server_says_what_it_can_do() {
        let http = said(&["# service=git-upload-pack", ".", "version 2", "agent=x", "fetch=shallow filter", "."]);
        assert!(Packets::new(&http[..]).capabilities().await.unwrap().shallow);
        let plain = said(&["version 2", "fetch", "object-format=sha1", "."]);
        assert!(!Packets::new(&plain[..]).capabilities().await.unwrap().shallow);
        for bad in
            [said(&["version 1", "."]), said(&["version 2", "object-format=sha256", "."]), said(&["ERR no", "."])]
        {
            assert!(Packets::new(&bad[..]).capabilities().await.is_err());
        }
    }

    #[tokio::test]
    async fn a_tag_comes_before_a_branch_of_the_same_name_and_no_other_is_taken() {
        let other = OBJECT.replace('0', "f");
        let list = said(&[
            &format!("{OBJECT} refs/heads/v1"),
            &format!("{other} refs/tags/v1 peeled:{OBJECT}"),
            &format!("{OBJECT} refs/tags/v10"),
            ".",
        ]);
        assert_eq!(Packets::new(&list[..]).reference("v1").await.unwrap(), other);
        let missing = Packets::new(&list[..]).reference("v").await.unwrap_err();
        assert_eq!(missing.to_string(), "couldn't find remote ref v");
        let head = said(&[&format!("{OBJECT} HEAD symref-target:refs/heads/main"), "."]);
        assert_eq!(Packets::new(&head[..]).reference("").await.unwrap(), OBJECT);
    }

    #[tokio::test]
    async fn a_pack_is_taken_out_of_its_band() {
        let mut answer = said(&["shallow-info", "shallow x", "|", "packfile"]);
        answer.extend_from_slice(b"0008\x01abc0008\x02hmm0007\x01de0000");
        let mut pack = Vec::new();
        assert_eq!(Packets::new(&answer[..]).pack(&mut pack, 5).await.unwrap(), 5);
        assert_eq!(pack, b"abcde");
        let too_large = Packets::new(&answer[..]).pack(&mut Vec::new(), 4).await.unwrap_err();
        assert!(too_large.to_string().contains("larger than 4 bytes"));
        for cut in 0..answer.len() {
            assert!(Packets::new(&answer[..cut]).pack(&mut Vec::new(), 5).await.is_err(), "{cut}");
        }
        let mut failed = said(&["packfile"]);
        failed.extend_from_slice(b"0008\x03bad0000");
        assert!(Packets::new(&failed[..]).pack(&mut Vec::new(), 5).await.unwrap_err().to_string().ends_with("bad"));
    }

    #[tokio::test]
    async fn a_server_that_never_ends_its_list_is_left() {
        let endless = said(&["x y"]).repeat(PACKETS_MAX + 1);
        assert!(Packets::new(&endless[..]).reference("main").await.is_err());
    }
}
