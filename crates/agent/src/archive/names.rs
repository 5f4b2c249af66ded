//! Archives whose names begin with a slash or with `./`, as Docker's clients expect them of `/` and of what ends in `/.`: they put
//! another name in the place of that beginning.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Appends a tree by names that begin with `base`, which the library would not write.
pub(super) fn append_below<W: Write>(archive: &mut tar::Builder<W>, root: &Path, base: &[u8]) -> io::Result<()> {
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = path.symlink_metadata()?;
        let mut name = base.to_vec();
        name.extend_from_slice(path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes());
        if meta.is_dir() {
            let mut entries: Vec<_> = std::fs::read_dir(&path)?.collect::<io::Result<_>>()?;
            entries.sort_by_key(|e| std::cmp::Reverse(e.file_name()));
            waiting.extend(entries.into_iter().map(|e| e.path()));
            if name != base {
                name.push(b'/');
            }
        } else if !meta.is_file() && !meta.is_symlink() {
            continue;
        }
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&meta);
        header.set_size(if meta.is_file() { meta.len() } else { 0 });
        if meta.is_symlink() {
            let target = path.read_link()?;
            // A link that no header holds is left out; it is longer than any that a program follows.
            if header.set_link_name_literal(target.as_os_str().as_bytes()).is_err() {
                continue;
            }
        }
        let room = header.as_old().name.len();
        if name.len() > room {
            append_long_name(archive, &name)?;
        }
        let kept = name.len().min(room);
        header.as_old_mut().name[..kept].copy_from_slice(&name[..kept]);
        header.set_cksum();
        if meta.is_file() {
            let file = match std::fs::File::open(&path) {
                Ok(file) => file,
                // Gone since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // One that shrinks meanwhile is filled up: its size is told already.
            archive.append(&header, file.chain(io::repeat(0)).take(meta.len()))?;
        } else {
            archive.append(&header, io::empty())?;
        }
    }
    Ok(())
}

/// An entry before another that gives it a name for which its header has no room. `Source:` GNU tar, "Basic Tar Format".
fn append_long_name<W: Write>(archive: &mut tar::Builder<W>, name: &[u8]) -> io::Result<()> {
    const LONG_LINK: &[u8] = b"././@LongLink";
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..LONG_LINK.len()].copy_from_slice(LONG_LINK);
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_mode(0o644);
    header.set_size(name.len() as u64 + 1);
    header.set_cksum();
    archive.append(&header, name.chain(&b"\0"[..]))
}
