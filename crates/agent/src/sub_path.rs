//! Parts of volumes: a path inside one, mounted apart so that nothing that changes in the volume leads elsewhere.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::in_root;

/// How a path is pinned.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Makes what is not there.
    pub make: bool,
    /// Lets what is mounted below the pin be mounted in the volume too, for who mounts things for the machine. Otherwise the pin
    /// sees what is mounted in the volume, and nothing more.
    pub both_ways: bool,
}

/// Pins a path inside a volume by a mount of the opened file, so that a link swapped in later changes nothing.
/// `Source:` CVE-2021-25741.
///
/// Errors: the path leads out, or to nothing.
pub fn pin(volume: &Path, sub: &Path, pin: &Path, options: Options) -> Result<()> {
    if sub.is_absolute() || sub.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(Error::Invalid(format!("subPath {} must be relative and without ..", sub.display())));
    }
    let root = in_root::directory(volume).map_err(Error::io("open", volume))?;
    let file = match in_root::open(&root, sub, OFlags::PATH, Mode::empty()) {
        Err(error) if options.make && error.kind() == std::io::ErrorKind::NotFound => {
            in_root::make_directories(&root, sub, Mode::from_raw_mode(0o750))
        }
        opened => opened,
    };
    let file = file.map_err(Error::io("open subPath", sub))?;
    let is_directory =
        rustix::fs::fstat(&file).map(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_dir()).unwrap_or(false);
    unpin(pin).map_err(Error::io("unpin", pin))?;
    if let Some(parent) = pin.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    if is_directory {
        std::fs::create_dir_all(pin).map_err(Error::io("create", pin))?;
    } else {
        std::fs::File::create(pin).map_err(Error::io("create", pin))?;
    }
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let none = None::<&str>;
    mount(Some(source.as_str()), pin, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .map_err(|e| Error::io("pin", pin)(e.into()))?;
    if options.both_ways {
        return Ok(());
    }
    mount(none, pin, none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)
        .map_err(|e| Error::io("hold apart", pin)(e.into()))
}

/// Takes away a pin, and all that was mounted over it; none is no error. It never goes into what is pinned: the kernel
/// removes neither a mount point nor a directory that holds something. The place goes too, since the next one may be a file
/// where this one was a directory.
pub fn unpin(pin: &Path) -> io::Result<()> {
    image::mounts::detach(pin)?;
    let removed = match std::fs::remove_dir(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => std::fs::remove_file(pin),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes away a directory of pins; none is no error. Goes on after failures.
pub fn unpin_all(pins: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(pins) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut result = Ok(());
    for entry in entries {
        if let Err(error) = entry.and_then(|entry| unpin(&entry.path())) {
            result = Err(error);
        }
    }
    result?;
    std::fs::remove_dir(pins)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const MAKE: Options = Options { make: true, both_ways: false };

    #[test]
    fn a_sub_path_never_leads_out_of_its_volume() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (volume, pin) = (dir.path().join("volume"), dir.path().join("pins/a"));
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        std::fs::create_dir(dir.path().join("host")).unwrap();
        std::fs::write(dir.path().join("host/canary"), "host").unwrap();
        super::pin(&volume, Path::new("absent"), &pin, Options::default()).unwrap_err();
        super::pin(&volume, Path::new("made/for/it"), &pin, MAKE).unwrap();
        assert!(volume.join("made/for/it").is_dir());
        unpin(&pin).unwrap();
        for bad in ["../host", "/etc"] {
            assert!(super::pin(&volume, Path::new(bad), &pin, MAKE).is_err(), "{bad}");
        }
        let stop = AtomicBool::new(false);
        let (link, outside) = (volume.join("swap"), dir.path().join("host"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = std::fs::create_dir(&link);
                    let _ = std::fs::remove_dir(&link);
                    let _ = symlink(&outside, &link);
                    let _ = std::fs::remove_file(&link);
                }
            });
            for _ in 0..300 {
                if super::pin(&volume, Path::new("swap"), &pin, MAKE).is_ok() {
                    assert!(!pin.join("canary").exists(), "the host's directory was mounted");
                }
                unpin(&pin).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_pin_takes_nothing_off_its_original_when_it_goes() {
        crate::directories::tests::on_a_shared_disk(|disk| {
            let (none, pins, bind) = (None::<&str>, disk.join("pins"), MsFlags::MS_BIND | MsFlags::MS_REC);
            let (original, pin) = (disk.join("original"), pins.join("0"));
            let kept = || std::fs::read_to_string(original.join("sub/nested/data")).unwrap() == "kept";
            for both_ways in [false, true] {
                super::pin(&original, Path::new("sub"), &pin, Options { both_ways, ..Options::default() }).unwrap();
                assert!(pin.join("nested/data").exists());
                // What is mounted over the pin comes to the original as well, if that is wanted, and only then.
                std::fs::create_dir_all(original.join("sub/late")).unwrap();
                mount(Some("tmpfs"), &pin.join("late"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
                std::fs::write(pin.join("late/data"), "").unwrap();
                assert_eq!(original.join("sub/late/data").exists(), both_ways);
                unpin_all(&pins).unwrap();
                assert!(kept(), "{both_ways}");
                assert_eq!(original.join("sub/late/data").exists(), both_ways);
            }
            // A pin that an older daemon left.
            std::fs::create_dir_all(&pin).unwrap();
            mount(Some(&original.join("sub")), &pin, none, bind, none).unwrap();
            unpin_all(&pins).unwrap();
            assert!(kept() && !pins.exists());
        });
    }

    #[test]
    fn a_pin_goes_with_all_that_lies_over_it_and_never_with_what_is_pinned() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (volume, pins) = (dir.path().join("volume"), dir.path().join("pins"));
        let pin = pins.join("0");
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        std::fs::write(volume.join("sub/data"), "kept").unwrap();
        super::pin(&volume, Path::new("sub"), &pin, Options::default()).unwrap();
        // One that came late, over another.
        mount(Some(&volume), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        unpin_all(&pins).unwrap();
        assert!(!pins.exists());
        unpin_all(&pins).unwrap();
        assert_eq!(std::fs::read_to_string(volume.join("sub/data")).unwrap(), "kept");
        // What is no pin of ours is left.
        std::fs::create_dir_all(pin.join("strange")).unwrap();
        assert!(unpin_all(&pins).is_err() && pin.join("strange").exists());
        std::fs::remove_dir_all(&pin).unwrap();
        // A part of a volume may be a file, and a directory later.
        super::pin(&volume, Path::new("sub/data"), &pin, Options::default()).unwrap();
        assert!(pin.is_file());
        super::pin(&volume, Path::new("sub"), &pin, Options::default()).unwrap();
        assert!(pin.join("data").is_file());
        super::pin(&volume, Path::new("sub/data"), &pin, Options::default()).unwrap();
        unpin_all(&pins).unwrap();
        assert_eq!(std::fs::read_to_string(volume.join("sub/data")).unwrap(), "kept");
    }
}
