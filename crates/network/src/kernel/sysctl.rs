//! Kernel settings under `/proc/sys`, of the calling thread's network namespace.

use std::path::Path;
use std::{fs, io};

use crate::types::KernelSetting;

/// Sets a value unless it is there already, and tells how it was found.
pub(crate) fn ensure(path: &str, wanted: &'static str) -> KernelSetting {
    let before = read(path).ok();
    let problem = match &before {
        Some(value) if value == wanted => None,
        _ => write(path, wanted).err().map(|e| e.to_string()),
    };
    KernelSetting { path: path.to_owned(), wanted, before, problem }
}

/// Reads a value.
pub(crate) fn read(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(Path::new("/proc/sys").join(path))?.trim().to_owned())
}

/// Writes a value.
pub(crate) fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys").join(path), value)
}
