//! Compiled system-call filters, kept by profile. Compiling Docker's profile costs crun several milliseconds of processor
//! time for each container; it also writes the result beside its state, and takes a compiled one as an annotation.

use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use oci_spec::runtime::Spec;
use sha2::{Digest, Sha256};

use crate::oci::{OciKind, OciRuntime};
use crate::{Error, Result};

/// The annotation under which crun takes a compiled filter.
const ANNOTATION: &str = "run.oci.seccomp_bpf_data";
/// Where crun writes the compiled filter, in the state of a container.
const COMPILED_NAME: &str = "seccomp.bpf";
/// The kernel takes 4,096 instructions of 8 bytes; a larger file is none.
const FILTER_MAX_BYTES: u64 = 4_096 * 8;
/// Most filters that are kept; there are as many as containers have different profiles. One that goes is compiled anew.
const KEPT_MAX: usize = 256;
/// Bytes of an instruction.
const INSTRUCTION_BYTES: usize = 8;

/// The filters of this machine, in a directory that only root reads.
#[derive(Debug)]
pub(crate) struct Filters {
    /// `None` when the OCI runtime has no use for them.
    directory: Option<PathBuf>,
    /// Names the OCI runtime's version: another one may compile otherwise.
    compiler: String,
}

impl Filters {
    pub fn open(directory: PathBuf, oci: &OciRuntime) -> Result<Self> {
        if oci.kind != OciKind::Crun {
            return Ok(Self { directory: None, compiler: String::new() });
        }
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&directory).map_err(Error::io("create", &directory))?;
        let metadata = std::fs::metadata(&oci.program).map_err(Error::io("look at", &oci.program))?;
        let compiler = format!("{} {} {:?}", oci.program.display(), metadata.len(), metadata.modified().ok());
        Ok(Self { directory: Some(directory), compiler })
    }

    /// Gives `spec` the compiled form of its profile; if there is none yet, the name under which to keep it.
    pub fn look_up(&self, spec: &mut Spec) -> Option<String> {
        let mut annotations = spec.annotations().clone().unwrap_or_default();
        // Only we may say what is compiled: an annotation of the caller's would replace the profile.
        if annotations.remove(ANNOTATION).is_some() {
            spec.set_annotations(Some(annotations.clone()));
        }
        let directory = self.directory.as_ref()?;
        let profile = spec.linux().as_ref()?.seccomp().as_ref()?;
        // A listener is told by the profile, and has no compiled form that would be complete.
        if profile.listener_path().is_some() {
            return None;
        }
        let text = serde_json::to_vec(profile).ok()?;
        let name = hex::encode(Sha256::new().chain_update(&self.compiler).chain_update(text).finalize());
        match std::fs::read(directory.join(&name)) {
            Ok(filter) if is_filter(&filter) => {
                annotations.insert(ANNOTATION.to_owned(), base64::engine::general_purpose::STANDARD.encode(filter));
                spec.set_annotations(Some(annotations));
                None
            }
            _ => Some(name),
        }
    }

    /// Keeps what the OCI runtime has compiled. A failure costs time at the next container, nothing else.
    pub fn keep(&self, name: &str, state_dir: &Path) {
        let Some(directory) = &self.directory else { return };
        let compiled = state_dir.join(COMPILED_NAME);
        if std::fs::metadata(&compiled).map_or(true, |metadata| metadata.len() > FILTER_MAX_BYTES) {
            return;
        }
        let Ok(filter) = std::fs::read(compiled) else { return };
        if !is_filter(&filter) {
            return;
        }
        let temporary = directory.join(format!("{name}.{}", state_dir.file_name().unwrap_or_default().display()));
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| std::io::Write::write_all(&mut file, &filter))
            .and_then(|()| std::fs::rename(&temporary, directory.join(name)));
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        prune(directory, KEPT_MAX);
    }
}

/// Removes the oldest files beyond `kept`: whoever may choose profiles must not fill the disk.
fn prune(directory: &Path, kept: usize) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let written = |entry: &std::fs::DirEntry| entry.metadata().and_then(|found| found.modified()).ok();
    let mut found: Vec<_> = entries.flatten().filter_map(|entry| Some((written(&entry)?, entry.path()))).collect();
    found.sort_unstable();
    for (_, path) in found.iter().rev().skip(kept) {
        // One that stays goes with the next.
        let _ = std::fs::remove_file(path);
    }
}

/// The compiled filter of a running container.
pub(crate) fn of_container(oci: &OciRuntime, id: &str) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(oci.state_dir(id).join(COMPILED_NAME))?;
    let mut filter = Vec::new();
    file.take(FILTER_MAX_BYTES + 1).read_to_end(&mut filter)?;
    match is_filter(&filter) && filter.len() as u64 <= FILTER_MAX_BYTES {
        true => Ok(filter),
        false => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

/// Whether these bytes can be a filter: whole instructions, the last of which returns.
fn is_filter(bytes: &[u8]) -> bool {
    /// `BPF_RET | BPF_K`
    const RETURN: u8 = 0x06;
    let last = bytes.len().checked_sub(INSTRUCTION_BYTES).and_then(|at| bytes.get(at));
    bytes.len().is_multiple_of(INSTRUCTION_BYTES) && last == Some(&RETURN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(directory: &Path) -> Filters {
        Filters { directory: Some(directory.to_path_buf()), compiler: "test".to_owned() }
    }

    #[test]
    fn a_kept_filter_is_found_by_its_profile_only() {
        let directory = tempfile::tempdir().unwrap();
        let filters = filters(directory.path());
        let mut spec = crate::spec::default_spec(Path::new("/"), vec!["true".to_owned()]).unwrap();
        let name = filters.look_up(&mut spec).unwrap();
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join(COMPILED_NAME), [6, 0, 0, 0, 0, 0, 0xff, 0x7f]).unwrap();
        filters.keep(&name, state.path());
        assert_eq!(filters.look_up(&mut spec), None);
        assert!(spec.annotations().as_ref().unwrap().contains_key(ANNOTATION));
        let mut other = spec.clone();
        let capabilities = crate::spec::all_capabilities();
        let profile = crate::spec::seccomp::default_profile(&capabilities).unwrap();
        other.linux_mut().as_mut().unwrap().set_seccomp(Some(profile));
        assert!(filters.look_up(&mut other).is_some());
        assert!(!other.annotations().as_ref().unwrap().contains_key(ANNOTATION));
    }

    #[test]
    fn the_oldest_filters_go() {
        let directory = tempfile::tempdir().unwrap();
        let at = |seconds| std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        for (name, seconds) in [("first", 1), ("third", 3), ("second", 2)] {
            let file = std::fs::File::create(directory.path().join(name)).unwrap();
            file.set_modified(at(seconds)).unwrap();
        }
        prune(directory.path(), 3);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
        prune(directory.path(), 2);
        let mut left: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|one| one.unwrap().file_name()).collect();
        left.sort_unstable();
        assert_eq!(left, ["second", "third"]);
    }

    #[test]
    fn what_is_no_filter_is_not_kept() {
        assert!(!is_filter(&[]));
        assert!(!is_filter(&[6; 7]));
        assert!(!is_filter(&[0; 8]));
    }
}
