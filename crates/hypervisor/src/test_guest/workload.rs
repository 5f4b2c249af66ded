//! A container's image as a guest: its files on a disk that boots with the kernel of the test guest, and its command as the only
//! program. The files stay as they are but for `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, which the network fills, as
//! it does in a container.

use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{COMMAND_LINE, TestGuest, boot_disk, build, root};
use crate::error::{Error, Result};

/// The RAM disk of such guests, beside the test guest's files.
pub(super) const INITRD: &str = "initrd-workload";
/// The smallest root file system. Units: bytes.
const ROOT_BYTES_MIN: u64 = 32 << 20;
/// What a file takes on the disk beside its contents: an inode, and its share of what is made for that many of them. Units: bytes.
const FILE_BYTES: u64 = 20 << 10;
/// Deepest directory that is counted.
const DEPTH_MAX: usize = 200;

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct Workload<'a> {
    /// Directory of the root file system.
    pub root: &'a Path,
    /// Program and arguments.
    pub command: &'a [String],
    /// `NAME=value`.
    pub environment: &'a [String],
    /// Where it starts.
    pub directory: &'a str,
    /// As whom: user and group.
    pub user: (u32, u32),
    /// What it gets when the guest's power button is pressed, as kill(1) names it.
    pub stop_signal: &'a str,
    /// Size of the root file system; `None`: what the files need, and a third more. Units: bytes.
    pub root_bytes: Option<u64>,
}

/// Makes the guest's files in `work`. Blocking.
///
/// Errors: as [`build`]; [`Error::Invalid`] when a wanted size does not hold the files.
pub fn make(cache: &Path, workload: &Workload<'_>, work: &Path) -> Result<TestGuest> {
    let base = build(cache)?;
    let kernel_directory = base.kernel.parent().unwrap_or(cache);
    let made = TestGuest { disk: work.join("disk.qcow2"), kernel: base.kernel.clone(), initrd: work.join("initrd") };
    root::append_workload(&kernel_directory.join(INITRD), &script(workload), workload.stop_signal, &made.initrd)?;
    let needed = needed_bytes(workload.root, DEPTH_MAX).map_err(Error::io("read", workload.root))?;
    let root_bytes = match workload.root_bytes {
        Some(wanted) if wanted < needed => {
            return Err(Error::Invalid(format!("the files need {} MiB", needed.div_ceil(1 << 20))));
        }
        Some(wanted) => wanted,
        None => needed.saturating_add(needed / 3).max(ROOT_BYTES_MIN),
    };
    let parts = boot_disk::Parts {
        root: workload.root,
        kernel: &made.kernel,
        initrd: &made.initrd,
        loader: &kernel_directory.join(boot_disk::LOADER),
        command_line: COMMAND_LINE,
        root_bytes: root_bytes.next_multiple_of(1 << 20),
    };
    boot_disk::make(&parts, work, &made.disk)?;
    Ok(made)
}

/// The shell script that becomes the workload.
fn script(workload: &Workload<'_>) -> String {
    let (user, group) = workload.user;
    let mut words = vec!["env".to_owned(), "-i".to_owned()];
    words.extend(workload.environment.iter().cloned());
    words.push("/usr/bin/unshare".into());
    words.push("--root=/root".into());
    words.push(format!("--wd={}", if workload.directory.is_empty() { "/" } else { workload.directory }));
    words.push(format!("--setgid={group}"));
    words.push(format!("--setuid={user}"));
    words.push("--".into());
    words.extend(workload.command.iter().cloned());
    let quoted: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("exec {}\n", quoted.join(" "))
}

/// A word as a shell reads it back, whatever is in it.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Room that a tree takes on a file system. Links are not followed.
fn needed_bytes(directory: &Path, depth: usize) -> io::Result<u64> {
    let mut sum = 0_u64;
    let mut add = |entry: DirEntry| {
        let found = entry.metadata()?;
        let own = if found.is_dir() && depth > 0 { needed_bytes(&entry.path(), depth - 1)? } else { found.size() };
        sum = sum.saturating_add(own).saturating_add(FILE_BYTES);
        io::Result::Ok(())
    };
    fs::read_dir(directory)?.try_for_each(|entry| add(entry?))?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_command_stays_one_word() {
        let command = ["sh".to_owned(), "-c".to_owned(), "echo 'it''s'; $(reboot) `x`\n".to_owned()];
        let environment = ["A=b c'; poweroff #".to_owned()];
        let workload = Workload {
            root: Path::new("/"),
            command: &command,
            environment: &environment,
            directory: "/srv/a b",
            user: (5, 6),
            stop_signal: "TERM",
            root_bytes: None,
        };
        let text = script(&workload).replace("exec 'env' '-i'", "printf '%s|'");
        let output = std::process::Command::new("sh").arg("-c").arg(text).output().expect("a shell");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = [
            environment[0].as_str(),
            "/usr/bin/unshare",
            "--root=/root",
            "--wd=/srv/a b",
            "--setgid=6",
            "--setuid=5",
            "--",
            "sh",
            "-c",
            &command[2],
        ];
        assert_eq!(said, words.map(|word| format!("{word}|")).concat());
    }

    #[test]
    fn a_tree_needs_room_for_its_bytes_and_its_files() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("a")).expect("a directory");
        fs::write(directory.path().join("a/b"), vec![0; 5000]).expect("a file");
        std::os::unix::fs::symlink("/", directory.path().join("c")).expect("a link");
        assert_eq!(needed_bytes(directory.path(), 9).expect("readable"), 5000 + 1 + 3 * FILE_BYTES);
    }
}
