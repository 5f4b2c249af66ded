//! Writes a container's output as log lines, with rotation. A full disk loses lines, never stops the container.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use node::OutputStream;

use super::journal::Journal;
use crate::config::LogConfig;
use crate::log_format::{write_head, write_timestamp};

/// Longest text of one entry; longer lines are written in parts. Docker's and containerd's number.
const TEXT_MAX_BYTES: usize = 16 << 10;
/// Entries are written in pieces of about this size.
const WRITE_BYTES: usize = 32 << 10;

pub(super) struct LogWriter {
    config: LogConfig,
    file: File,
    size: u64,
    /// Unfinished lines of both streams.
    partial: [Vec<u8>; 2],
    out: Vec<u8>,
    journal: Option<Journal>,
}

impl LogWriter {
    pub fn open(config: LogConfig) -> std::io::Result<Self> {
        let file = open_file(&config.path)?;
        let size = file.metadata()?.len();
        let journal = config.journal.as_ref().map(Journal::open);
        Ok(Self { config, file, size, partial: [Vec::new(), Vec::new()], out: Vec::new(), journal })
    }

    /// Takes output as it was read.
    pub fn feed(&mut self, stream: OutputStream, mut data: &[u8], now_ns: i64) {
        let index = usize::from(stream == OutputStream::Stderr);
        while let Some(at) = data.iter().take(TEXT_MAX_BYTES).position(|byte| *byte == b'\n') {
            self.end_part(stream, index, &data[..at], true, now_ns);
            data = &data[at + 1..];
        }
        while data.len() >= TEXT_MAX_BYTES {
            let (part, rest) = data.split_at(TEXT_MAX_BYTES);
            match part.iter().position(|byte| *byte == b'\n') {
                Some(at) => {
                    self.end_part(stream, index, &part[..at], true, now_ns);
                    data = &data[at + 1..];
                }
                None => {
                    self.end_part(stream, index, part, false, now_ns);
                    data = rest;
                }
            }
        }
        while let Some(at) = data.iter().position(|byte| *byte == b'\n') {
            self.end_part(stream, index, &data[..at], true, now_ns);
            data = &data[at + 1..];
        }
        self.partial[index].extend_from_slice(data);
        if self.partial[index].len() >= TEXT_MAX_BYTES {
            self.end_part(stream, index, &[], false, now_ns);
        }
        self.write_out();
    }

    /// Writes unfinished lines as parts: at the end, and before a client reads the log to here.
    pub fn flush_partial(&mut self, now_ns: i64) {
        for (index, stream) in [OutputStream::Stdout, OutputStream::Stderr].into_iter().enumerate() {
            if !self.partial[index].is_empty() {
                self.end_part(stream, index, &[], false, now_ns);
            }
        }
        self.write_out();
    }

    /// Which file is written and how far.
    pub fn position(&self) -> (u64, u64) {
        (self.file.metadata().map_or(0, |metadata| metadata.ino()), self.size)
    }

    fn end_part(&mut self, stream: OutputStream, index: usize, text: &[u8], complete: bool, now_ns: i64) {
        write_head(&mut self.out, now_ns, stream, complete);
        let partial = std::mem::take(&mut self.partial[index]);
        let start = self.out.len();
        self.out.extend_from_slice(&partial);
        self.out.extend_from_slice(text);
        if let (Some(journal), Some(text)) = (&mut self.journal, self.out.get(start..)) {
            let mut timestamp = Vec::new();
            write_timestamp(&mut timestamp, now_ns);
            journal.send(stream, text, complete, &String::from_utf8_lossy(&timestamp));
        }
        self.out.push(b'\n');
        if self.out.len() >= WRITE_BYTES {
            self.write_out();
        }
    }

    fn write_out(&mut self) {
        if self.out.is_empty() {
            return;
        }
        let length = self.out.len() as u64;
        let limit = self.config.max_size_bytes;
        if limit > 0 && self.size > 0 && self.size + length > limit {
            self.rotate();
        }
        match self.file.write_all(&self.out) {
            Ok(()) => self.size += length,
            // Disk full: these lines are lost. What was written of them is cut off, so that the next line begins a line.
            Err(_) => {
                let _ = self.file.set_len(self.size);
            }
        }
        self.out.clear();
    }

    /// `log` becomes `log.1`, `log.1` becomes `log.2`; the oldest goes. On failure the current file goes on.
    fn rotate(&mut self) {
        let keep = self.config.max_files.max(1) - 1;
        if keep == 0 {
            if self.file.set_len(0).is_ok() {
                self.size = 0;
            }
            return;
        }
        for number in (1..keep).rev() {
            // Missing ones are no failure: there were not so many yet.
            let _ = std::fs::rename(rotated(&self.config.path, number), rotated(&self.config.path, number + 1));
        }
        if std::fs::rename(&self.config.path, rotated(&self.config.path, 1)).is_err() {
            return;
        }
        if let Ok(file) = open_file(&self.config.path) {
            self.file = file;
            self.size = 0;
        }
    }
}

/// The path of a rotated log; number 1 is the newest.
pub(crate) fn rotated(path: &std::path::Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn open_file(path: &std::path::Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &std::path::Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn lines_are_joined_over_reads_and_streams_kept_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log =
            LogWriter::open(LogConfig { path: path.clone(), max_size_bytes: 0, max_files: 1, journal: None }).unwrap();
        log.feed(OutputStream::Stdout, b"one\ntw", 0);
        log.feed(OutputStream::Stderr, b"err\n", 0);
        log.feed(OutputStream::Stdout, b"o\n\nrest", 0);
        log.flush_partial(0);
        assert_eq!(lines(&path), ["stdout F one", "stderr F err", "stdout F two", "stdout F ", "stdout P rest"]);
    }

    #[test]
    fn a_long_line_is_cut_into_parts_that_join_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log =
            LogWriter::open(LogConfig { path: path.clone(), max_size_bytes: 0, max_files: 1, journal: None }).unwrap();
        let mut text = vec![b'x'; 3 * TEXT_MAX_BYTES + 5];
        text.extend_from_slice(b"\nnext\n");
        log.feed(OutputStream::Stdout, &text, 0);
        let lines = lines(&path);
        assert_eq!(lines.len(), 5);
        assert!(lines[..3].iter().all(|line| line.starts_with("stdout P x")));
        assert_eq!((lines[3].as_str(), lines[4].as_str()), ("stdout F xxxxx", "stdout F next"));
    }

    #[test]
    fn a_flood_stays_within_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log =
            LogWriter::open(LogConfig { path: path.clone(), max_size_bytes: 64 << 10, max_files: 3, journal: None })
                .unwrap();
        for _ in 0..100 {
            log.feed(OutputStream::Stdout, &b"0123456789\n".repeat(2_000), 0);
        }
        let files: Vec<_> = std::fs::read_dir(directory.path()).unwrap().flatten().collect();
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|file| file.metadata().unwrap().len() <= (64 << 10) + 1));
    }
}
