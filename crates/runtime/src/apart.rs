//! Keeping the mounts of all other containers from the OCI runtime. It copies every mount of the machine into a namespace of its
//! own, reads the list of them and changes each of them: among a hundred containers, a third of its work.
//!
//! `Source:` mount_namespaces(7), open_tree(2), move_mount(2)

use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::detached;
use crate::sys::{self, Entry};

/// A mount below which those of single containers lie, and what a container needs of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Apart {
    /// Taken off, with all that lies on it.
    pub crowd: PathBuf,
    /// Stays where it is, with all that lies on it.
    pub kept: Option<PathBuf>,
}

/// Whether a child can put mounts apart here and still run `program`: kernels since 5.2, where nothing forbids one of the calls. It
/// is tried with each crowd as a whole. Without a crowd there is nothing to try.
pub(crate) fn is_possible(crowds: &[PathBuf], program: &Path) -> bool {
    if crowds.is_empty() {
        return false;
    }
    let whole = |crowd: &PathBuf| Apart { crowd: crowd.clone(), kept: Some(crowd.clone()) };
    let apart = crowds.iter().filter(|crowd| crowd.exists()).map(whole).collect();
    let mut trial = Command::new(program);
    trial.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let entered = sys::enter_before_exec(&mut trial, &Entry { apart, ..Entry::default() });
    entered.and_then(|()| detached::succeeds_in_time(trial)).unwrap_or(false)
}

/// What a container can do without: of each crowd all but its own bundle, and its own network namespace. Of none, when it must
/// see them: one of its mounts comes from there or holds them, or is to be shared with the machine.
pub(crate) fn of(crowds: &[PathBuf], bundle_dir: &Path, spec: &Spec) -> Vec<Apart> {
    let network = network_namespace(spec);
    let apart: Vec<Apart> = crowds
        .iter()
        .map(|crowd| {
            let kept = [Some(bundle_dir), network].into_iter().flatten().find(|path| path.starts_with(crowd));
            Apart { crowd: crowd.clone(), kept: kept.map(Path::to_path_buf) }
        })
        .collect();
    if apart.is_empty() || shares_mounts(spec) || sources(spec).any(|source| sees(source, &apart)) {
        return Vec::new();
    }
    apart
}

fn network_namespace(spec: &Spec) -> Option<&Path> {
    use oci_spec::runtime::LinuxNamespaceType::Network;
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|namespace| namespace.typ() == Network)?.path().as_deref()
}

/// Whether what is mounted in it is to be mounted on the machine too: then its mounts must stay peers of the machine's.
fn shares_mounts(spec: &Spec) -> bool {
    let shared = |word: &str| matches!(word, "shared" | "rshared");
    let whole = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    let mut options = spec.mounts().iter().flatten().flat_map(|mount| mount.options().iter().flatten());
    whole.is_some_and(shared) || options.any(|option| shared(option))
}

/// Directories and files of the machine that it gets.
fn sources(spec: &Spec) -> impl Iterator<Item = &Path> {
    let mounted = spec.mounts().iter().flatten().filter_map(|mount| mount.source().as_deref());
    let root = spec.root().as_ref().map(|root| root.path().as_path());
    mounted.chain(root).filter(|path| path.is_absolute())
}

/// Whether what is taken off could be seen through a path: it lies there, or holds it.
fn sees(source: &Path, apart: &[Apart]) -> bool {
    let is_kept = |path: &Path| apart.iter().any(|one| one.kept.as_deref().is_some_and(|kept| path.starts_with(kept)));
    if is_kept(source) && !source.components().any(|part| part == Component::ParentDir) {
        return false;
    }
    // One that does not resolve is mounted by nobody.
    let resolved = std::fs::canonicalize(source).unwrap_or_else(|_| source.to_path_buf());
    apart.iter().any(|one| {
        let crowd = std::fs::canonicalize(&one.crowd).unwrap_or_else(|_| one.crowd.clone());
        crowd.starts_with(&resolved) || resolved.starts_with(&crowd)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NETWORK: &str = "/data/run/netns/one";

    fn found(mounts: serde_json::Value) -> Vec<Apart> {
        let spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "/data/containers/one/rootfs"},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": NETWORK}]},
        });
        let crowds = [PathBuf::from("/data/containers"), PathBuf::from("/data/run/netns")];
        of(&crowds, Path::new("/data/containers/one"), &serde_json::from_value(spec).unwrap())
    }

    fn bind(source: &str, option: &str) -> serde_json::Value {
        json!({"destination": "/x", "type": "bind", "source": source, "options": ["rbind", option]})
    }

    #[test]
    fn a_frozen_program_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let crowds = [directory.path().join("no mount")];
        let script = |text: &str| {
            let program = directory.path().join("program");
            std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            program
        };
        assert!(!is_possible(&crowds, &script("kill -STOP $$")));
        assert!(is_possible(&crowds, &script("exit 0")), "the control");
        assert!(!is_possible(&[], Path::new("/bin/true")), "there is nothing to try");
    }

    #[test]
    fn a_container_keeps_its_own() {
        let mounts = json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            bind("/data/containers/one/hosts", "rprivate"),
            bind("/data/volumes/v/_data", "rprivate"),
            bind("/etc", "rslave"),
        ]);
        let kept = |crowd: &str, kept: &str| Apart { crowd: crowd.into(), kept: Some(kept.into()) };
        let expected = [kept("/data/containers", "/data/containers/one"), kept("/data/run/netns", NETWORK)];
        assert_eq!(found(mounts), expected);
    }

    #[test]
    fn one_that_must_see_the_others_does() {
        for (source, option) in [
            ("/", "rprivate"),
            ("/data", "rprivate"),
            ("/data/containers", "rprivate"),
            ("/data/containers/two/rootfs", "rprivate"),
            ("/data/run", "rprivate"),
            ("/proc/self/root", "rprivate"),
            ("/srv", "rshared"),
        ] {
            assert_eq!(found(json!([bind(source, option)])), [], "{source}, {option}");
        }
    }
}
