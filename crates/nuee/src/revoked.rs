//! Certificates that were revoked before their end: their fingerprints, one a line, in `pki/revoked`. The daemon looks at
//! each request, so a revocation holds from then on without a restart.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::instance::Instance;

/// Largest list that is read, some 60,000 certificates. Units: bytes.
const LIST_BYTES_MAX: u64 = 4 << 20;

/// The list of an instance.
#[derive(Clone, Debug)]
pub struct Revoked {
    path: PathBuf,
}

impl Revoked {
    /// The list; it need not be there.
    pub fn of(instance: &Instance) -> Self {
        Self { path: instance.path("pki").join("revoked") }
    }

    /// Adds a certificate (DER). Doing it again changes nothing.
    pub fn add(&self, certificate: &[u8]) -> Result<()> {
        if self.contains(certificate)? {
            return Ok(());
        }
        let failed = || format!("cannot write {}", self.path.display());
        let mut file =
            OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path).with_context(failed)?;
        file.write_all(format!("{}\n", fingerprint(certificate)).as_bytes()).with_context(failed)?;
        file.sync_all().with_context(failed)?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).with_context(failed)
    }

    /// Whether a certificate (DER) is on the list.
    ///
    /// Errors: the list is there and cannot be read; whoever asks must not let the certificate pass then.
    pub fn contains(&self, certificate: &[u8]) -> Result<bool> {
        let failed = || format!("cannot read {}", self.path.display());
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).with_context(failed),
        };
        let mut text = String::new();
        file.take(LIST_BYTES_MAX + 1).read_to_string(&mut text).with_context(failed)?;
        if text.len() as u64 > LIST_BYTES_MAX {
            bail!("{} is larger than {LIST_BYTES_MAX} bytes", self.path.display());
        }
        let wanted = fingerprint(certificate);
        Ok(text.lines().any(|line| line.trim() == wanted))
    }
}

fn fingerprint(certificate: &[u8]) -> String {
    hex::encode(Sha256::digest(certificate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_on_the_list_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let list = Revoked { path: directory.path().join("revoked") };
        assert!(!list.contains(b"one").unwrap());
        list.add(b"one").unwrap();
        list.add(b"one").unwrap();
        assert!(list.contains(b"one").unwrap() && !list.contains(b"two").unwrap());
        assert_eq!(std::fs::read_to_string(&list.path).unwrap().lines().count(), 1);
        std::fs::write(&list.path, [0xff]).unwrap();
        assert!(list.contains(b"two").is_err(), "a damaged list lets nobody pass");
    }
}
