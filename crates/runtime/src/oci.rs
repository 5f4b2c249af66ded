//! The OCI runtime underneath: which one, how it is called, what its failures mean. Blocking and small: the shim uses it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::apart::Apart;
use crate::cgroup::{Cgroup, Hierarchies};
use crate::detached;
use crate::sys::{self, Entry};
use crate::{Error, OciRuntimeChoice, Result};

/// Where programs of the system are.
const PROGRAM_DIRECTORIES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// How long it may take to say its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest message of the OCI runtime that is passed on.
const MESSAGE_MAX_BYTES: u64 = 16 << 10;

/// Which program is meant; they differ in who handles control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OciKind {
    /// crun with its control groups off: ours are entered before it starts.
    Crun,
    /// runc, which enters the groups itself.
    Runc,
}

impl OciKind {
    /// The version from which on it knows options of mounts that hold for all below them. `Source:` moby's documentation of
    /// `bind-recursive`.
    fn recursive_options_since(self) -> (u32, u32) {
        match self {
            OciKind::Crun => (1, 4),
            OciKind::Runc => (1, 1),
        }
    }
}

/// Major and minor number of the version in what `--version` prints. Pure.
fn version(printed: &str) -> Option<(u32, u32)> {
    let version = printed.lines().next()?.split_whitespace().nth(2)?;
    let mut numbers = version.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// An OCI runtime and where it keeps its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OciRuntime {
    pub kind: OciKind,
    pub program: PathBuf,
    pub root: PathBuf,
    /// The v2 mount of a hybrid machine, which crun refuses to see.
    pub hidden_mount: Option<PathBuf>,
}

impl OciRuntime {
    /// Finds the chosen one.
    pub fn find(choice: &OciRuntimeChoice, root: PathBuf, hierarchies: &Hierarchies) -> Result<Self> {
        let (kind, program) = match choice {
            OciRuntimeChoice::Crun(program) => (OciKind::Crun, Some(program.clone())),
            OciRuntimeChoice::Runc(program) => (OciKind::Runc, Some(program.clone())),
            OciRuntimeChoice::Auto => match find_program("crun") {
                Some(program) => (OciKind::Crun, Some(program)),
                None => (OciKind::Runc, find_program("runc")),
            },
        };
        let program = program
            .filter(|program| program.is_file())
            .ok_or_else(|| Error::NotSupported("no OCI runtime: install the package crun (or runc)".to_owned()))?;
        let hybrid = PathBuf::from("/sys/fs/cgroup/unified");
        let hides = kind == OciKind::Crun
            && matches!(hierarchies, Hierarchies::V1(_))
            && hybrid.join("cgroup.controllers").exists();
        Ok(Self { kind, program, root, hidden_mount: hides.then_some(hybrid) })
    }

    /// A command line up to the sub-command, with standard streams closed and messages going to `log`.
    /// The mounts `apart` are out of its sight.
    pub fn command(&self, log: &Path, cgroup: Option<&Cgroup>, apart: &[Apart]) -> Result<Command> {
        // runc has a way of its own to be safe from its containers.
        let detached = (self.kind == OciKind::Crun).then(|| detached::path_of(&self.program)).flatten();
        let mut command = Command::new(detached.as_ref().unwrap_or(&self.program));
        command.arg0(&self.program);
        command.arg("--root").arg(&self.root).arg("--log").arg(log).args(["--log-format", "json"]);
        let mut entry = Entry { hidden_mount: self.hidden_mount.clone(), apart: apart.to_vec(), ..Entry::default() };
        if self.kind == OciKind::Crun {
            command.arg("--cgroup-manager=disabled");
            entry.thread_files = cgroup.map(Cgroup::thread_files).unwrap_or_default();
        }
        command.env_clear().envs(detached.map(|_| detached::CLONED_VARIABLE));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sys::enter_before_exec(&mut command, &entry).map_err(Error::io("prepare", &self.program))?;
        Ok(command)
    }

    /// Whether it knows options of mounts that hold for all below them (`rro`): one that does not says nothing, and takes the plain ones.
    /// `None` when it does not tell its version.
    pub async fn knows_recursive_options(&self) -> Option<bool> {
        let mut command = tokio::process::Command::new(&self.program);
        command.arg("--version").env_clear().stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(VERSION_TIMEOUT, command.output()).await.ok()?.ok()?;
        Some(version(&String::from_utf8_lossy(&output.stdout))? >= self.kind.recursive_options_since())
    }

    /// The v2 control group in which its process must be born; `None` when there is none, or when it enters by itself.
    pub fn birth_group(&self, cgroup: &Cgroup) -> Option<PathBuf> {
        match self.kind {
            OciKind::Crun => cgroup.unified_directory(),
            OciKind::Runc => None,
        }
    }

    /// Where it keeps the state of `id`.
    pub fn state_dir(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    PROGRAM_DIRECTORIES.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

/// The last error in a log of the OCI runtime.
pub(crate) fn message(log: &Path) -> Option<String> {
    use std::io::Read;
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        level: String,
        #[serde(default)]
        msg: String,
    }
    let mut text = String::new();
    std::fs::File::open(log).ok()?.take(MESSAGE_MAX_BYTES).read_to_string(&mut text).ok()?;
    let lines: Vec<Line> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    lines.into_iter().rfind(|line| line.level == "error" || line.level == "fatal").map(|line| line.msg)
}

/// What a failure to start `program` means: the exit code that clients show, and the message in Docker's words.
pub(crate) fn start_failure(message: &str, program: &str) -> (i32, String) {
    let said = message.to_lowercase();
    let is_path = program.contains('/');
    if said.contains("not found in $path") && !is_path {
        return (127, format!("exec: \"{program}\": executable file not found in $PATH"));
    }
    let about_program = said.contains("executable file") || said.contains("exec: ") || said.contains("open executable");
    if about_program && said.contains("no such file or directory") {
        let what = if is_path {
            format!("stat {program}: no such file or directory")
        } else {
            "no such file or directory".to_owned()
        };
        return (127, format!("exec: \"{program}\": {what}"));
    }
    // A directory is "not permitted" to one, "is a directory" to another, and no program that one may run to Docker.
    let refused = ["permission denied", "operation not permitted", "is a directory"];
    if about_program && refused.iter().any(|reason| said.contains(reason)) {
        return (126, format!("exec: \"{program}\": permission denied"));
    }
    if said.contains("exec format error") {
        return (126, format!("exec {program}: exec format error"));
    }
    (126, message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recursive_options_are_known_since_a_version() {
        use OciKind::{Crun, Runc};
        for (kind, printed, expected) in [
            (Crun, "crun version 0.17\ncommit: 0e9229ae", Some(false)),
            (Crun, "crun version 1.3", Some(false)),
            (Crun, "crun version 1.4", Some(true)),
            (Crun, "crun version 1.14.4\ncommit: 1", Some(true)),
            (Runc, "runc version 1.0.0~rc93+ds1\ncommit: 1.0.0~rc93+ds1-5+deb11u3", Some(false)),
            (Runc, "runc version 1.1.4+ds1", Some(true)),
            (Runc, "runc version 2.0.0", Some(true)),
            (Crun, "crun version UNKNOWN", None),
            (Crun, "", None),
        ] {
            let known = version(printed).map(|version| version >= kind.recursive_options_since());
            assert_eq!(known, expected, "{printed}");
        }
    }

    #[test]
    fn failures_are_told_as_docker_tells_them() {
        assert_eq!(
            start_failure("executable file `nope` not found in $PATH: No such file or directory", "nope"),
            (127, "exec: \"nope\": executable file not found in $PATH".to_owned())
        );
        assert_eq!(
            start_failure("open executable: Permission denied", "/etc/passwd"),
            (126, "exec: \"/etc/passwd\": permission denied".to_owned())
        );
        assert_eq!(
            start_failure("open executable: Operation not permitted", "/bin"),
            (126, "exec: \"/bin\": permission denied".to_owned())
        );
        assert_eq!(
            start_failure("executable file `/no` not found in $PATH: No such file or directory", "/no"),
            (127, "exec: \"/no\": stat /no: no such file or directory".to_owned())
        );
        assert_eq!(start_failure("something else", "x"), (126, "something else".to_owned()));
    }
}
