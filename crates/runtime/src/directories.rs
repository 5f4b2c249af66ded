//! Where containers' files lie.

use std::fs::File;
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::{Error, Result};

/// Makes a directory whose own directories have nothing to do with each other.
///
/// ext4 lays each of them into a part of the disk of its own then. Without that they share one, and where ext4 has no journal it passes
/// over what was deleted there within the last minutes, one by one, for every file that is made: at fifteen containers a second that was
/// a fifth of all processor time. Other file systems do not know the wish and do without.
///
/// `Source:` chattr(1), attribute `T`; Linux, fs/ext4/ialloc.c, `find_group_orlov` and `recently_deleted`
pub(crate) fn make_spread(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::io("create", path))?;
    let directory = File::open(path).map_err(Error::io("open", path))?;
    let wish = ioctl_getflags(&directory).and_then(|flags| ioctl_setflags(&directory, flags | IFlags::TOPDIR));
    if let Err(error) = wish {
        tracing::debug!(%error, path = %path.display(), "its directories are not spread over the disk");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_wherever_that_is_and_again() {
        let here = tempfile::tempdir().unwrap();
        // A file system in memory does not know the wish.
        for root in [here.path(), Path::new("/dev/shm")] {
            let own = tempfile::tempdir_in(root).unwrap();
            let path = own.path().join("a/b");
            make_spread(&path).unwrap();
            make_spread(&path).unwrap();
            std::fs::create_dir(path.join("one")).unwrap();
        }
    }
}
