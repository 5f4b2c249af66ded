//! Hashes what is read on a thread of its own: a digest costs as much time as all else of reading an archive. Knows bytes alone.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::digest::{Algorithm, Digest, Hasher};

/// Bytes that go to the hash at once. Larger ones cost the file system less when they are written, and threads wake each other
/// less often; but all of them should stay in a processor's cache (of 1 MiB often), or each step waits for memory. Units: bytes.
const CHUNK: usize = 256 << 10;
/// Chunks in all: one that is filled or written, one that is hashed, and one between them.
const CHUNKS: usize = 3;

/// The beginning of a buffer that is full.
#[derive(Clone, Default)]
struct Chunk {
    buffer: Arc<Vec<u8>>,
    length: usize,
}

/// A buffered reader that hashes and counts what is read through it. What fits into one chunk is hashed where it is read.
pub struct HashingAside<R> {
    inner: R,
    chunk: Chunk,
    taken: usize,
    count: u64,
    hashing: Hashing,
    /// The error from below, which lost a buffer: it is the answer to whoever reads on.
    failure: Option<(io::ErrorKind, String)>,
}

enum Hashing {
    Here(Hasher),
    Aside(Aside),
}

/// The thread. It ends when no more chunks can come.
struct Aside {
    chunks: SyncSender<Chunk>,
    hashed: Receiver<Arc<Vec<u8>>>,
    thread: JoinHandle<Hasher>,
    buffers: usize,
}

impl Aside {
    fn start(mut hasher: Hasher) -> io::Result<Aside> {
        let (chunks, waiting) = sync_channel::<Chunk>(CHUNKS);
        let (done, hashed) = sync_channel(CHUNKS);
        let thread = std::thread::Builder::new().name("digest".to_owned()).spawn(move || {
            for chunk in waiting {
                hasher.update(&chunk.buffer[..chunk.length]);
                // Nobody takes it any more once the last one is read.
                let _ = done.send(chunk.buffer);
            }
            hasher
        })?;
        Ok(Aside { chunks, hashed, thread, buffers: 1 })
    }

    /// A buffer that nobody uses: a new one, or the next that was hashed.
    fn buffer(&mut self) -> io::Result<Vec<u8>> {
        if self.buffers < CHUNKS {
            self.buffers += 1;
            return Ok(vec![0; CHUNK]);
        }
        let hashed = self.hashed.recv().map_err(|_| lost())?;
        Ok(Arc::try_unwrap(hashed).unwrap_or_else(|_| vec![0; CHUNK]))
    }
}

fn lost() -> io::Error {
    io::Error::other("what computes a digest has ended")
}

impl<R: Read> HashingAside<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> HashingAside<R> {
        let hashing = Hashing::Here(Hasher::new(Algorithm::Sha256));
        HashingAside { inner, chunk: Chunk::default(), taken: 0, count: 0, hashing, failure: None }
    }

    /// Digest and number of the bytes read from below so far.
    pub fn finish(self) -> io::Result<(Digest, u64)> {
        let hasher = match self.hashing {
            Hashing::Here(hasher) => hasher,
            Hashing::Aside(Aside { chunks, hashed, thread, .. }) => {
                drop((chunks, hashed));
                thread.join().map_err(|_| lost())?
            }
        };
        Ok((hasher.finish(), self.count))
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        if let Some((kind, text)) = &self.failure {
            return Err(io::Error::new(*kind, text.clone()));
        }
        self.taken = 0;
        // The thread that hashes it may be the last to have it.
        self.chunk = Chunk::default();
        let mut buffer = match &mut self.hashing {
            Hashing::Here(_) => vec![0; CHUNK],
            Hashing::Aside(aside) => aside.buffer()?,
        };
        let length = fill(&mut self.inner, &mut buffer)
            .inspect_err(|error| self.failure = Some((error.kind(), error.to_string())))?;
        self.count += length as u64;
        self.chunk = Chunk { buffer: Arc::new(buffer), length };
        if let Hashing::Here(hasher) = &mut self.hashing
            && length == CHUNK
            && let Ok(aside) = Aside::start(hasher.clone())
        {
            self.hashing = Hashing::Aside(aside);
        }
        match &mut self.hashing {
            Hashing::Here(hasher) => hasher.update(&self.chunk.buffer[..length]),
            Hashing::Aside(aside) => aside.chunks.send(self.chunk.clone()).map_err(|_| lost())?,
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the end is there.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl<R: Read> BufRead for HashingAside<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.chunk.length {
            self.next_chunk()?;
        }
        Ok(&self.chunk.buffer[self.taken..self.chunk.length])
    }

    fn consume(&mut self, count: usize) {
        self.taken = self.chunk.length.min(self.taken + count);
    }
}

impl<R: Read> Read for HashingAside<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let count = ready.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ready[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time, and then what comes after them.
    struct Drips<'a>(&'a [u8], Option<io::Error>);

    impl Read for Drips<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(buffer.len()).min(100_003);
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            match self.1.take() {
                Some(error) if count == 0 => Err(error),
                kept => {
                    self.1 = kept;
                    Ok(count)
                }
            }
        }
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at * 31 % 251).unwrap_or(0)).collect()
    }

    #[test]
    fn every_length_has_the_digest_of_its_bytes_and_comes_through_as_it_is() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, (2 * CHUNKS + 3) * CHUNK + 77] {
            let plain = bytes(length);
            let (mut reader, mut read) = (HashingAside::new(Drips(&plain, None)), Vec::new());
            reader.read_to_end(&mut read).unwrap();
            assert!(read == plain, "{length} bytes came through as {}", read.len());
            assert_eq!(reader.finish().unwrap(), (Digest::of(&plain), length as u64));
        }
    }

    #[test]
    fn who_stops_reading_leaves_no_thread_waiting() {
        let plain = bytes(8 * CHUNK);
        let mut reader = HashingAside::new(Drips(&plain, None));
        reader.read_exact(&mut vec![0; 3 * CHUNK + 5]).unwrap();
        // The digest is that of the chunks that were begun; it would not come if the thread waited for more.
        assert_eq!(reader.finish().unwrap(), (Digest::of(&plain[..4 * CHUNK]), 4 * CHUNK as u64));
    }

    #[test]
    fn an_error_below_is_told() {
        let plain = bytes(2 * CHUNK);
        let mut reader = HashingAside::new(Drips(&plain, Some(io::Error::other("torn"))));
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "torn");
        // Who reads on is told again, and does not wait for buffers that are lost.
        for _ in 0..2 * CHUNKS {
            assert_eq!(reader.fill_buf().unwrap_err().to_string(), "torn");
        }
        drop(reader);
    }
}
