//! Parts of files that somebody else writes, however large those are. A container may make a file of its own as long as it likes,
//! without filling a disk.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// The first bytes of a file, at most `most`. Blocking.
pub fn beginning(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last bytes of a file, at most `most`. Blocking.
pub fn end(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(most)))?;
    let mut bytes = Vec::new();
    // It may grow meanwhile.
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn little_is_read_of_what_is_large() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(b"first").unwrap();
        assert_eq!((beginning(&path, 9).unwrap(), end(&path, 9).unwrap()), (b"first".to_vec(), b"first".to_vec()));
        // More than any memory, and nothing on the disk.
        file.set_len(1 << 40).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b"last").unwrap();
        assert_eq!(beginning(&path, 7).unwrap(), b"first\0\0");
        assert_eq!(end(&path, 6).unwrap(), b"\0\0last");
        assert!(end(&directory.path().join("none"), 6).is_err());
    }
}
