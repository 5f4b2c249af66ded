//! Runs nft(8): the only place in this crate that starts a process.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// How much of nft's complaints to keep. Units: bytes.
const COMPLAINT_BYTES_MAX: usize = 2048;

/// Applies a script as one transaction.
pub(crate) fn apply(script: &str) -> Result<()> {
    let failed = |e: std::io::Error| Error::Nft(format!("cannot run nft (package nftables): {e}"));
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // nft reads all of its input before it writes anything, so this cannot block on its output.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return written.map_err(failed);
    }
    let mut complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    complaint.truncate(complaint.floor_char_boundary(COMPLAINT_BYTES_MAX));
    Err(Error::Nft(complaint))
}
