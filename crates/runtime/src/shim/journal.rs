//! Writes a container's output to the machine's journal, entry by entry. A journal that is gone or full loses entries and
//! never stops the container.
//!
//! `Source:` systemd, "Native Journal Protocol".

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use node::OutputStream;

use crate::config::JournalConfig;

/// Longest wait for a journal that takes nothing; the container's output stands still meanwhile.
const SEND_TIMEOUT: Duration = Duration::from_millis(500);
/// `LOG_ERR` and `LOG_INFO`. `Source:` syslog(3).
const PRIORITIES: [(OutputStream, &str); 2] = [(OutputStream::Stderr, "3"), (OutputStream::Stdout, "6")];

pub(super) struct Journal {
    path: PathBuf,
    /// The fields that are the same in each entry.
    fields: Vec<u8>,
    socket: Option<UnixDatagram>,
    /// The last entry did not get through within its time, so the next ones do not wait.
    stalled: bool,
}

impl Journal {
    pub fn open(config: &JournalConfig) -> Self {
        let mut fields = Vec::new();
        config.fields.iter().for_each(|(name, value)| encode(&mut fields, name, value.as_bytes()));
        Self { path: config.socket.clone(), fields, socket: None, stalled: false }
    }

    /// Writes one entry.
    pub fn send(&mut self, stream: OutputStream, text: &[u8], complete: bool, timestamp: &str) {
        let mut entry = self.fields.clone();
        let priority = PRIORITIES.iter().find(|(of, _)| *of == stream).map_or("6", |(_, priority)| priority);
        encode(&mut entry, "PRIORITY", priority.as_bytes());
        encode(&mut entry, "SYSLOG_TIMESTAMP", timestamp.as_bytes());
        if !complete {
            encode(&mut entry, "CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        encode(&mut entry, "MESSAGE", text);
        // A journal that was started anew listens on another socket of the same name.
        for _ in 0..2 {
            let Some(socket) = self.connected() else { return };
            match socket.send(&entry) {
                Ok(_) => {
                    self.set_stalled(false);
                    return;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.set_stalled(true);
                    return;
                }
                Err(_) => self.socket = None,
            }
        }
    }

    fn connected(&mut self) -> Option<&UnixDatagram> {
        if self.socket.is_none() {
            let socket = UnixDatagram::unbound().ok()?;
            socket.connect(&self.path).ok()?;
            socket.set_write_timeout(Some(SEND_TIMEOUT)).ok()?;
            socket.set_nonblocking(self.stalled).ok()?;
            self.socket = Some(socket);
        }
        self.socket.as_ref()
    }

    fn set_stalled(&mut self, stalled: bool) {
        if self.stalled != stalled
            && let Some(socket) = &self.socket
            && socket.set_nonblocking(stalled).is_ok()
        {
            self.stalled = stalled;
        }
    }
}

/// Appends a field; a value with a line feed in it is preceded by its length.
fn encode(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = vec![0; 64 << 10];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn entries_carry_the_containers_fields_and_survive_a_new_journal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let first = UnixDatagram::bind(&path).unwrap();
        let fields = vec![("CONTAINER_NAME".into(), "web".into()), ("NOTE".into(), "a\nb".into())];
        let mut journal = Journal::open(&JournalConfig { socket: path.clone(), fields });
        journal.send(OutputStream::Stderr, b"one", true, "now");
        let expected =
            "CONTAINER_NAME=web\nNOTE\n\u{3}\0\0\0\0\0\0\0a\nb\nPRIORITY=3\nSYSLOG_TIMESTAMP=now\nMESSAGE=one\n";
        assert_eq!(receive(&first), expected);
        drop(first);
        std::fs::remove_file(&path).unwrap();
        journal.send(OutputStream::Stdout, b"lost", true, "now");
        let second = UnixDatagram::bind(&path).unwrap();
        journal.send(OutputStream::Stdout, b"two", false, "now");
        let entry = receive(&second);
        assert!(entry.contains("PRIORITY=6\n") && entry.contains("CONTAINER_PARTIAL_MESSAGE=true\n"), "{entry}");
        assert!(entry.ends_with("MESSAGE=two\n"), "{entry}");
    }

    #[test]
    fn a_journal_that_takes_nothing_holds_nobody_up_for_long() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let deaf = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::open(&JournalConfig { socket: path, fields: Vec::new() });
        // Far more than fits into the queue of a socket: each wait after the first would add its time.
        for _ in 0..2_000 {
            journal.send(OutputStream::Stdout, &[b'x'; 1_000], true, "now");
        }
        assert!(journal.stalled);
        assert!(receive(&deaf).contains("MESSAGE=x"));
        while deaf.set_nonblocking(true).is_ok() && deaf.recv(&mut [0; 2_000]).is_ok() {}
        journal.send(OutputStream::Stdout, b"again", true, "now");
        assert!(receive(&deaf).ends_with("MESSAGE=again\n") && !journal.stalled);
    }
}
