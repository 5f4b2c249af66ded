//! Processes 1 that do nothing of their own (`docker run --init`, pods that share processes): this program itself, brought into the container together
//! with the libraries that it was linked to, since an image may have none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::launch::{Access, MountPoint, Place};

/// Where Docker puts its init.
const PATH: &str = "/sbin/docker-init";
/// Where the libraries go.
const LIBRARIES: &str = "/sbin/.docker-init";

/// What must be mounted, and what comes before the command.
#[derive(Debug)]
pub struct Program {
    /// The program and its libraries.
    pub mounts: Vec<MountPoint>,
    /// Words in front of the container's own command.
    pub command: Vec<String>,
}

/// Finds the program and its libraries; `words` say what it is to be.
pub fn program(words: &[&str]) -> Result<Program> {
    let own = std::env::current_exe().map_err(Error::io("find", "/proc/self/exe"))?;
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(Error::io("read", "/proc/self/maps"))?;
    Ok(assemble(own, &libraries(&maps), words))
}

/// Shared objects among a process' mappings.
fn libraries(maps: &str) -> BTreeSet<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    paths.filter(|p| p.starts_with('/') && p.contains(".so")).map(PathBuf::from).collect()
}

fn is_loader(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ld-"))
}

fn assemble(own: PathBuf, libraries: &BTreeSet<PathBuf>, words: &[&str]) -> Program {
    let mount = |source: PathBuf, target: String| MountPoint {
        target,
        place: Place::Bind { source, propagation: String::new() },
        access: Access::ReadOnly,
    };
    let inside = |path: &Path| format!("{LIBRARIES}/{}", path.file_name().unwrap_or_default().to_string_lossy());
    let mut mounts = vec![mount(own, PATH.to_owned())];
    mounts.extend(libraries.iter().map(|path| mount(path.clone(), inside(path))));
    let mut command = Vec::new();
    if let Some(loader) = libraries.iter().find(|p| is_loader(p)) {
        command.extend([inside(loader), "--library-path".to_owned(), LIBRARIES.to_owned()]);
    }
    command.extend([&[PATH], words].concat().into_iter().map(str::to_owned));
    Program { mounts, command }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_brings_its_loader_and_libraries() {
        let maps = "7f0-7f1 r-xp 0 fe:00 1 /lib/x/libc.so.6\n7f1-7f2 r--p 0 fe:00 1 /lib/x/libc.so.6\n7f2-7f3 r-xp 0 fe:00 2 /lib/x/ld-linux-x86-64.so.2\n7ff-800 r--p 0 0 0 [vvar]\n";
        let program = assemble("/usr/bin/nuee".into(), &libraries(maps), &["init", "--"]);
        let words = [
            "/sbin/.docker-init/ld-linux-x86-64.so.2",
            "--library-path",
            "/sbin/.docker-init",
            "/sbin/docker-init",
            "init",
            "--",
        ];
        assert_eq!(program.command, words);
        assert_eq!(program.mounts.len(), 3);
    }

    #[test]
    fn a_static_program_stands_alone() {
        let program = assemble("/usr/bin/nuee".into(), &libraries("55-56 r-xp 0 fe:00 1 /usr/bin/nuee\n"), &["pause"]);
        assert_eq!(program.command, ["/sbin/docker-init", "pause"]);
    }
}
