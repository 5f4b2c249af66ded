//! qemu-img, run as nobody, without a network, with bounds on time, memory and output. It never guesses a format: every
//! call names it, for every file of a chain.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use tokio::process::Command;

use super::header::{self, Format, Header};
use crate::error::{Error, Result};

/// The program.
const PROGRAM: &str = "qemu-img";
/// User and group that it runs as; layers can be read by this group. No account has it.
pub const TOOL_USER: u32 = 1_900_000_000;
/// Bound on its address space. Units: bytes.
const MEMORY_MAX: u64 = 2 << 30;
/// Bound on its processor time. Units: seconds.
const PROCESSOR_SECONDS_MAX: u64 = 1800;
/// Bound on its run.
const TIME_MAX: Duration = Duration::from_secs(3600);
/// Room for tables beside the data. Units: bytes.
const OVERHEAD_BYTES: u64 = 64 << 20;

/// Copies an uploaded file into a new layer file. Its header decides what it is; `expected` is what the uploader says.
///
/// Errors: [`Error::Invalid`] for headers that are not taken.
pub async fn import(source: &Path, expected: Option<Format>, target: &Path) -> Result<Header> {
    let mut file = File::open(source).map_err(Error::io("open", source))?;
    let found = header::inspect(&mut file)?;
    if expected.is_some_and(|format| format != found.format) {
        return Err(Error::Invalid(format!("the file is {}, not what it is said to be", found.format.name())));
    }
    fchown(&file, Some(TOOL_USER), Some(TOOL_USER)).map_err(Error::io("hand over", source))?;
    let output = create(target)?;
    let arguments = [
        "convert".to_owned(),
        "-f".into(),
        found.format.name().into(),
        "-O".into(),
        "qcow2".into(),
        descriptor_path(&file),
        descriptor_path(&output),
    ];
    run(&arguments, &[&file, &output], found.virtual_bytes).await?;
    Ok(found)
}

/// Copies a disk, all its layers together, into a new compressed layer file.
pub async fn flatten(layers: &[PathBuf], virtual_bytes: u64, target: &Path) -> Result<()> {
    let opened = layers.iter().map(|path| File::open(path).map_err(Error::io("open", path)));
    let opened: Vec<File> = opened.collect::<Result<_>>()?;
    let output = create(target)?;
    let mut source = Vec::new();
    for (depth, file) in opened.iter().enumerate() {
        let prefix = "backing.".repeat(depth);
        source.push(format!(
            "{prefix}driver=qcow2,{prefix}file.driver=file,{prefix}file.filename={}",
            descriptor_path(file)
        ));
    }
    let arguments = [
        "convert".to_owned(),
        "--image-opts".into(),
        "-O".into(),
        "qcow2".into(),
        "-c".into(),
        source.join(","),
        descriptor_path(&output),
    ];
    let mut files: Vec<&File> = opened.iter().collect();
    files.push(&output);
    run(&arguments, &files, virtual_bytes).await
}

/// Makes the target, owned by the user that will write it.
fn create(target: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(target)
        .map_err(Error::io("create", target))?;
    fchown(&file, Some(TOOL_USER), Some(TOOL_USER)).map_err(Error::io("hand over", target))?;
    Ok(file)
}

fn descriptor_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[allow(unsafe_code)]
async fn run(arguments: &[String], files: &[&File], virtual_bytes: u64) -> Result<()> {
    let descriptors: Vec<i32> = files.iter().map(|file| file.as_raw_fd()).collect();
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir("/").kill_on_drop(true);
    let output_max = virtual_bytes.saturating_add(virtual_bytes / 1024).saturating_add(OVERHEAD_BYTES);
    // SAFETY: between fork and exec only system calls are made, no allocation and no lock; the descriptors stay open in the
    // parent until the child has ended, since `files` borrows them.
    unsafe {
        command.pre_exec(move || {
            for descriptor in &descriptors {
                fcntl(BorrowedFd::borrow_raw(*descriptor), FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            setrlimit(Resource::RLIMIT_AS, MEMORY_MAX, MEMORY_MAX)?;
            setrlimit(Resource::RLIMIT_CPU, PROCESSOR_SECONDS_MAX, PROCESSOR_SECONDS_MAX)?;
            setrlimit(Resource::RLIMIT_FSIZE, output_max, output_max)?;
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
            nix::sys::prctl::set_no_new_privs()?;
            setgroups(&[])?;
            setgid(Gid::from_raw(TOOL_USER))?;
            setuid(Uid::from_raw(TOOL_USER))?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(Error::io("run", PROGRAM))?;
    let ended = tokio::time::timeout(TIME_MAX, child.wait_with_output()).await;
    let output =
        ended.map_err(|_| Error::Timeout("copying a disk image".into()))?.map_err(Error::io("wait for", PROGRAM))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Error::Invalid(format!("the image could not be copied: {}", text.lines().last().unwrap_or("it was ended"))))
}
