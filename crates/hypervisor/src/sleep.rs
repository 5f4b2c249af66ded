//! The file with the memory of a guest that sleeps. Its name tells how far that is, whichever process ends when:
//!
//! | name | meaning |
//! |---|---|
//! | as given | whole and durable; its guest has not run since |
//! | with `part` | not whole: nobody wakes from it |
//! | with `waking` | its guest may have run since, and its disks may be ahead of it: nobody wakes from it |
//!
//! It is as large as the guest's memory: syncing and removing it takes long, and is left to threads for which nobody else waits.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::create::sync_directory;
use crate::error::{Error, Result};
use crate::guest::unfinished;

/// Where the memory lies while its guest is let go on.
fn waking(memory: &Path) -> PathBuf {
    memory.with_extension("waking")
}

async fn blocking(memory: &Path, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::io("work on", memory)(io::Error::other(error))))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(Error::io("rename", from))?;
    sync_directory(to)
}

/// Removes those of the files that are there, durably. All are in one directory.
fn remove(files: &[PathBuf]) -> Result<()> {
    let mut last = None;
    for file in files {
        match std::fs::remove_file(file) {
            Ok(()) => last = Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove", file)(error)),
        }
    }
    last.map_or(Ok(()), |file| sync_directory(file))
}

/// Makes the unfinished file, to which all was written, the memory.
pub(crate) async fn finish(file: File, memory: &Path) -> Result<()> {
    let (part, whole) = (unfinished(memory), memory.to_owned());
    let work = move || {
        file.sync_all().map_err(Error::io("sync", &part))?;
        rename(&part, &whole)
    };
    blocking(memory, work).await
}

/// To be called before the guest is let go on from its memory.
///
/// Errors: the guest must not be let go on; [`call_off`] undoes what was done of it.
pub(crate) async fn begin(memory: &Path) -> Result<()> {
    let (from, to) = (memory.to_owned(), waking(memory));
    blocking(memory, move || rename(&from, &to)).await
}

/// The guest was not let go on, and its process is gone: it can be woken again.
pub(crate) async fn call_off(memory: &Path) -> Result<()> {
    let (from, to) = (waking(memory), memory.to_owned());
    let work = move || match rename(&from, &to) {
        // It was never taken away.
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    };
    blocking(memory, work).await
}

/// Removes what nobody wakes from. The memory of a guest that sleeps stays.
///
/// Errors: a file that cannot be removed.
pub async fn tidy(memory: &Path) -> Result<()> {
    let files = [unfinished(memory), waking(memory)];
    blocking(memory, move || remove(&files)).await
}

/// Forgets the memory, durably: its guest goes on without it.
///
/// Errors: a file that cannot be removed.
pub async fn forget(memory: &Path) -> Result<()> {
    let files = [memory.to_owned(), unfinished(memory), waking(memory)];
    blocking(memory, move || remove(&files)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_wake_is_called_off_or_takes_the_memory_away() {
        let directory = tempfile::tempdir().unwrap();
        let memory = directory.path().join("sleep");
        let part = File::create(unfinished(&memory)).unwrap();
        finish(part, &memory).await.unwrap();
        assert_eq!(names(directory.path()), ["sleep"]);
        begin(&memory).await.unwrap();
        assert_eq!(names(directory.path()), ["sleep.waking"]);
        call_off(&memory).await.unwrap();
        // Where nothing was begun, there is nothing to undo.
        call_off(&memory).await.unwrap();
        assert_eq!(names(directory.path()), ["sleep"]);
        begin(&memory).await.unwrap();
        tidy(&memory).await.unwrap();
        assert!(names(directory.path()).is_empty());
        assert!(begin(&memory).await.is_err(), "there is none to wake from");
    }

    #[tokio::test]
    async fn what_is_left_goes_and_the_memory_stays_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let memory = directory.path().join("sleep");
        for name in ["other", "sleep", "sleep.part", "sleep.waking"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        tidy(&memory).await.unwrap();
        assert_eq!(names(directory.path()), ["other", "sleep"]);
        forget(&memory).await.unwrap();
        forget(&memory).await.unwrap();
        assert_eq!(names(directory.path()), ["other"]);
    }
}
