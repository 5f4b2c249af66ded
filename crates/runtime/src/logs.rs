//! Reads the logs that shims write: from the beginning or the last lines, within a time, following as they grow and are
//! rotated.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use node::{LogLine, LogOptions, LogStream, Output, OutputStream};
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::log_format::parse;
use crate::shim::rotated;
use crate::{Error, Result};

/// Read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Read at once from the end, in search of the last lines.
const TAIL_CHUNK_BYTES: u64 = 64 << 10;
/// Longest line that is taken for one; what is longer is not ours and is skipped.
const LINE_MAX_BYTES: usize = CHUNK_BYTES;
/// Rotated files that are looked for.
const FILES_MAX: u32 = 1_000;

/// Reads the log at `path` and the files rotated from it. When following, the stream ends once `ended` resolves and
/// everything was read. A log that is not there is empty.
pub fn read(
    path: impl Into<PathBuf>,
    options: LogOptions,
    ended: impl Future<Output = ()> + Send + 'static,
) -> LogStream {
    let reader = Reader::new(path.into(), options, ended.boxed());
    Box::pin(futures::stream::unfold(reader, |mut reader| async move {
        let line = reader.next().await?;
        Some((line.map_err(node::Error::from), reader))
    }))
}

/// What was logged up to `bytes` of the file `inode`, as output.
pub(crate) fn replay(path: PathBuf, inode: u64, bytes: u64) -> Pin<Box<dyn Stream<Item = Output> + Send>> {
    let mut reader = Reader::new(path, LogOptions::default(), futures::future::ready(()).boxed());
    reader.until_position = Some((inode, bytes));
    Box::pin(futures::stream::unfold(reader, |mut reader| async move {
        let line = reader.next().await?.ok()?;
        Some((Output { stream: line.stream, data: line.data }, reader))
    }))
}

struct Reader {
    path: PathBuf,
    options: LogOptions,
    ended: Option<BoxFuture<'static, ()>>,
    /// Files to read, oldest first; the first is being read.
    files: VecDeque<File>,
    offset: u64,
    opened: bool,
    finished: bool,
    lines: VecDeque<LogLine>,
    watch: Option<AsyncFd<OwnedFd>>,
    until_position: Option<(u64, u64)>,
}

impl Reader {
    fn new(path: PathBuf, options: LogOptions, ended: BoxFuture<'static, ()>) -> Self {
        Self {
            path,
            options,
            ended: Some(ended),
            files: VecDeque::new(),
            offset: 0,
            opened: false,
            finished: false,
            lines: VecDeque::new(),
            watch: None,
            until_position: None,
        }
    }

    async fn next(&mut self) -> Option<Result<LogLine>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(Ok(line));
            }
            if self.finished {
                return None;
            }
            match self.advance().await {
                Ok(()) => {}
                Err(error) => {
                    self.finished = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// One step: opens, reads a piece, goes to the next file, or waits for more.
    async fn advance(&mut self) -> Result<()> {
        if !self.opened {
            return self.open().await;
        }
        if self.read_chunk().await? {
            return Ok(());
        }
        if self.files.len() > 1 {
            self.files.pop_front();
            self.offset = 0;
            return Ok(());
        }
        if self.find_newer()? {
            return Ok(());
        }
        if !self.options.follow || self.ended.is_none() {
            self.finished = true;
            return Ok(());
        }
        self.wait().await
    }

    async fn open(&mut self) -> Result<()> {
        if self.options.follow {
            // Before the first look, so that nothing falls between look and watch.
            self.watch = Some(watch(&self.path)?);
        }
        let (path, tail) = (self.path.clone(), self.options.tail);
        let (files, offset) = off_thread(move || {
            let mut files = open_all(&path)?;
            let offset = match tail {
                Some(lines) => drop_but_tail(&mut files, lines)?,
                None => 0,
            };
            Ok((files, offset))
        })
        .await?;
        (self.files, self.offset, self.opened) = (files, offset, true);
        Ok(())
    }

    /// Reads one piece of the current file into lines; whether there was one.
    async fn read_chunk(&mut self) -> Result<bool> {
        let Some(file) = self.files.front() else { return Ok(false) };
        let (file, offset, path) =
            (file.try_clone().map_err(Error::io("read", &self.path))?, self.offset, self.path.clone());
        let end = match self.until_position {
            Some((inode, bytes)) if file.metadata().is_ok_and(|metadata| metadata.ino() == inode) => {
                // What comes after this file is the live stream's.
                self.files.truncate(1);
                bytes
            }
            _ => u64::MAX,
        };
        let wanted = usize::try_from(end.saturating_sub(offset)).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        if wanted == 0 {
            self.finished = true;
            return Ok(false);
        }
        let chunk = off_thread(move || {
            let mut buffer = vec![0; wanted];
            let mut filled = 0;
            while let Some(space) = buffer.get_mut(filled..).filter(|space| !space.is_empty()) {
                match file.read_at(space, offset + filled as u64).map_err(Error::io("read", &path))? {
                    0 => break,
                    count => filled += count,
                }
            }
            buffer.truncate(filled);
            Ok(Bytes::from(buffer))
        })
        .await?;
        let Some(last) = chunk.iter().rposition(|byte| *byte == b'\n') else {
            // A line in the making, or, at full length, none of ours.
            if chunk.len() >= LINE_MAX_BYTES {
                self.offset += chunk.len() as u64;
            }
            return Ok(chunk.len() >= LINE_MAX_BYTES);
        };
        self.offset += last as u64 + 1;
        self.take_lines(&chunk.slice(..=last));
        Ok(true)
    }

    fn take_lines(&mut self, chunk: &Bytes) {
        let mut start = 0;
        while let Some(length) = chunk.get(start..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n')) {
            let line = chunk.slice(start..start + length);
            let after = start + length + 1;
            if let Some((timestamp_ns, stream, complete, text)) = parse(&line) {
                if self.options.until_ns.is_some_and(|until| timestamp_ns >= until) {
                    self.finished = true;
                    return;
                }
                let left_out = match stream {
                    OutputStream::Stdout => self.options.without_stdout,
                    OutputStream::Stderr => self.options.without_stderr,
                };
                if !left_out && self.options.since_ns.is_none_or(|since| timestamp_ns >= since) {
                    // The line feed of a complete line is the one that ends the entry.
                    let end = if complete { after } else { after - 1 };
                    self.lines.push_back(LogLine { timestamp_ns, stream, data: chunk.slice(start + text..end) });
                }
            }
            start = after;
        }
    }

    /// After the end of the newest known file: whether the log was rotated, or has appeared, since.
    fn find_newer(&mut self) -> Result<bool> {
        let current = match self.files.front() {
            Some(file) => Some(file.metadata().map_err(Error::io("read", &self.path))?),
            None => None,
        };
        let now = std::fs::metadata(&self.path).ok();
        let (Some(now), true) = (now, self.until_position.is_none()) else { return Ok(false) };
        let Some(current) = current else {
            self.files = open_all(&self.path)?;
            self.offset = 0;
            return Ok(!self.files.is_empty());
        };
        if now.ino() == current.ino() {
            if now.size() < self.offset {
                // Emptied in place: the log keeps a single file.
                self.offset = 0;
                return Ok(now.size() > 0);
            }
            return Ok(false);
        }
        if current.size() > self.offset {
            // Written before the rotation, after our last read.
            let rest = current.size();
            if rest > self.offset && self.has_line()? {
                return Ok(true);
            }
        }
        let mut newer = open_all(&self.path)?;
        if let Some(at) = newer.iter().position(|file| file.metadata().is_ok_and(|m| m.ino() == current.ino())) {
            newer.drain(..=at);
        }
        self.files = newer;
        self.offset = 0;
        Ok(!self.files.is_empty())
    }

    /// Whether a complete line is left in the current file.
    fn has_line(&self) -> Result<bool> {
        let Some(file) = self.files.front() else { return Ok(false) };
        let mut buffer = vec![0; LINE_MAX_BYTES];
        let count = file.read_at(&mut buffer, self.offset).map_err(Error::io("read", &self.path))?;
        Ok(buffer.get(..count).is_some_and(|bytes| bytes.contains(&b'\n')))
    }

    /// Waits until something happens to the files, or the container ends.
    async fn wait(&mut self) -> Result<()> {
        let Some(watch) = &self.watch else { return Ok(()) };
        let until = self.options.until_ns.map(|until| {
            let left = until.saturating_sub(crate::state::now_ns()).max(0);
            Duration::from_nanos(u64::try_from(left).unwrap_or(0))
        });
        let late = async {
            match until {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        let ended = async {
            match &mut self.ended {
                Some(ended) => ended.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = watch.readable() => {
                let mut guard = ready.map_err(Error::io("watch", &self.path))?;
                let mut events = [0_u8; 4_096];
                // What happened does not matter, only that something did; an empty queue means that all was taken.
                while rustix::io::read(watch.get_ref(), &mut events).is_ok_and(|count| count > 0) {}
                guard.clear_ready();
            }
            () = ended => self.ended = None,
            () = late => self.finished = true,
        }
        Ok(())
    }
}

/// All files of a log, oldest first. Opened from the newest on, so that a rotation in between doubles a file (which is
/// seen) and never skips one.
fn open_all(path: &Path) -> Result<VecDeque<File>> {
    let mut files: VecDeque<File> = VecDeque::new();
    let mut seen = Vec::new();
    for number in 0..FILES_MAX {
        let name = if number == 0 { path.to_path_buf() } else { rotated(path, number) };
        let file = match File::open(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && number == 0 => continue,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
            Err(error) => return Err(Error::io("open", &name)(error)),
        };
        let inode = file.metadata().map_err(Error::io("open", &name))?.ino();
        if !seen.contains(&inode) {
            seen.push(inode);
            files.push_front(file);
        }
    }
    Ok(files)
}

/// Leaves the files that hold the last `lines` lines; returns where in the first of them they begin.
fn drop_but_tail(files: &mut VecDeque<File>, lines: usize) -> Result<u64> {
    let mut left = lines;
    for index in (0..files.len()).rev() {
        let Some(file) = files.get(index) else { continue };
        let (start, found) = tail_start(file, left).map_err(Error::io("read", Path::new("log")))?;
        left -= found;
        if left == 0 {
            files.drain(..index);
            return Ok(start);
        }
    }
    Ok(0)
}

/// Where the last `lines` lines of a file begin, and how many there are, at most `lines`. Parts of a line count as one.
fn tail_start(file: &File, lines: usize) -> std::io::Result<(u64, usize)> {
    let size = file.metadata()?.len();
    if lines == 0 {
        return Ok((size, 0));
    }
    // `end` is the end of the part not yet looked at; `carry` the beginning of a line that begins before it.
    let (mut end, mut carry, mut found) = (size, Vec::new(), 0);
    while end > 0 {
        let start = end.saturating_sub(TAIL_CHUNK_BYTES);
        let mut block = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(&mut block, start)?;
        block.append(&mut carry);
        let mut line_end = block.len();
        while let Some(feed) = block.get(..line_end).and_then(|head| head.iter().rposition(|byte| *byte == b'\n')) {
            let line = block.get(feed + 1..line_end).unwrap_or_default();
            let is_last = start + feed as u64 + 1 + line.len() as u64 + 1 >= size;
            if ends_a_line(line, is_last) {
                if found == lines {
                    return Ok((start + line_end as u64 + 1, found));
                }
                found += 1;
            }
            line_end = feed;
        }
        block.truncate(line_end);
        carry = block;
        if carry.len() > LINE_MAX_BYTES {
            carry.truncate(LINE_MAX_BYTES);
        }
        end = start;
    }
    if ends_a_line(&carry, false) {
        if found == lines {
            return Ok((carry.len() as u64 + 1, found));
        }
        found += 1;
    }
    Ok((0, found))
}

/// Whether an entry is the end of a line: a complete one, or a part after which the log ends.
fn ends_a_line(entry: &[u8], is_last: bool) -> bool {
    match parse(entry) {
        Some((_, _, complete, _)) => complete || is_last,
        None => false,
    }
}

fn watch(path: &Path) -> Result<AsyncFd<OwnedFd>> {
    let failed = |error: rustix::io::Errno| Error::io("watch", path)(error.into());
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map_err(failed)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&fd, directory, events).map_err(failed)?;
    crate::sys::watch_readiness(fd).map_err(Error::io("watch", path))
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Conflict(format!("reading a log was cut off: {error}"))),
    }
}

#[cfg(test)]
mod tests;
