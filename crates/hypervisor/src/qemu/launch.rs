//! The small program that becomes QEMU. It opens what the guest needs while it still may, then gives everything up: own
//! mount, network, process, IPC, UTS and control group namespaces, a root with nothing but programs and libraries in it, a
//! user that owns nothing. A process of its own, since the daemon with its threads cannot do this to itself.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{ForkResult, Gid, Uid, chown, fork, pivot_root, setgid, setgroups, setsid, setuid};
use serde::{Deserialize, Serialize};

use super::{faults, process};

/// Name of the file with the guest's process.
pub(super) const PID_FILE: &str = "pid";
/// Name of the file with what the hypervisor printed.
pub(super) const LOG_FILE: &str = "hypervisor.log";
/// The same, of the hypervisor that ran before it.
const LAST_LOG_FILE: &str = "hypervisor.log.1";
/// A plan is a few kilobytes. Units: bytes.
const PLAN_BYTES_MAX: u64 = 1 << 20;
/// What a program needs to start. Links are made again, directories are bound.
const PROGRAM_DIRECTORIES: &[&str] = &["usr", "lib", "lib64", "lib32", "bin", "nix"];
const DEVICES: &[(&str, u64, u64)] = &[("null", 1, 3), ("zero", 1, 5), ("random", 1, 8), ("urandom", 1, 9)];
const KVM: (&str, u64, u64) = ("kvm", 10, 232);

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// To read.
    Read,
    /// To read and write.
    Write,
    /// To write at its end; made if missing.
    Append,
}

/// A file to open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenFile {
    /// Which.
    pub path: PathBuf,
    /// How.
    pub access: Access,
    /// The number it gets.
    pub descriptor: i32,
}

/// A tap device to open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// The number it gets.
    pub descriptor: i32,
}

/// What to launch, and with what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The hypervisor's program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Files to open.
    pub files: Vec<OpenFile>,
    /// Taps to open.
    pub taps: Vec<Tap>,
    /// Listening sockets in the run directory.
    pub sockets: Vec<(String, i32)>,
    /// Files to be found in the new root.
    pub bound_files: Vec<(PathBuf, PathBuf)>,
    /// The device for hardware assistance is needed.
    pub devices_kvm: bool,
    /// It waits for memory that is on another machine, and needs a right for that. See [`faults`].
    pub late_memory: bool,
    /// The guest's run directory.
    pub run_dir: PathBuf,
    /// User and group to become.
    pub user_id: u32,
    /// Control groups to enter.
    pub control_group_entries: Vec<PathBuf>,
}

/// Reads a plan from standard input and carries it out. Ends when the guest's process is on its way; what goes wrong until
/// then is on standard error, what goes wrong later in the run directory's log.
pub fn main() -> ExitCode {
    let mut text = Vec::new();
    let read = std::io::stdin().take(PLAN_BYTES_MAX).read_to_end(&mut text).map_err(|error| error.to_string());
    let plan = read.and_then(|_| serde_json::from_slice::<Plan>(&text).map_err(|error| error.to_string()));
    match plan.and_then(|plan| launch(&plan)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Standard error is how a launcher answers.
            let _ = writeln!(std::io::stderr(), "{message}");
            ExitCode::FAILURE
        }
    }
}

/// Adds what was being done to an error.
fn at<T, E: std::fmt::Display>(result: Result<T, E>, what: &str, path: &Path) -> Result<T, String> {
    result.map_err(|error| format!("{what} {}: {error}", path.display()))
}

fn launch(plan: &Plan) -> Result<(), String> {
    let run_dir = plan.run_dir.as_path();
    let mut descriptors = open_files(plan)?;
    at(std::env::set_current_dir(run_dir), "enter", run_dir)?;
    for (name, number) in &plan.sockets {
        let _ = fs::remove_file(name);
        let socket = at(UnixListener::bind(name), "listen on", Path::new(name))?;
        descriptors.push((socket.into(), *number));
    }
    // There is none at the first start.
    let _ = fs::rename(LOG_FILE, LAST_LOG_FILE);
    let log = open(OpenOptions::new().write(true).create(true).truncate(true).mode(0o600), Path::new(LOG_FILE))?;
    let mut pid_file =
        open(OpenOptions::new().write(true).create(true).truncate(true).mode(0o600), Path::new(PID_FILE))?;
    for entry in &plan.control_group_entries {
        at(fs::write(entry, "0"), "enter control group", entry)?;
    }
    let proc = open(OpenOptions::new().read(true), Path::new("/proc"))?;
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWCGROUP;
    at(unshare(flags), "make namespaces in", run_dir)?;
    make_root(plan)?;
    match fork_single_threaded().map_err(|error| format!("fork: {error}"))? {
        ForkResult::Child => Err(become_guest(plan, descriptors, log)),
        ForkResult::Parent { child } => {
            let record =
                process::record(&proc, child.as_raw()).map_err(|error| format!("look at the guest: {error}"))?;
            at(pid_file.write_all(record.as_bytes()), "write", Path::new(PID_FILE))
        }
    }
}

#[allow(unsafe_code)]
fn fork_single_threaded() -> nix::Result<ForkResult> {
    // SAFETY: the launcher has one thread, so the child may do whatever the parent may.
    unsafe { fork() }
}

fn open(options: &OpenOptions, path: &Path) -> Result<File, String> {
    at(options.open(path), "open", path)
}

fn open_files(plan: &Plan) -> Result<Vec<(OwnedFd, i32)>, String> {
    let mut descriptors = Vec::new();
    for OpenFile { path, access, descriptor } in &plan.files {
        let mut options = OpenOptions::new();
        match access {
            Access::Read => options.read(true),
            Access::Write => options.read(true).write(true),
            Access::Append => options.append(true).create(true).mode(0o600),
        };
        // A link in place of a disk would lead elsewhere.
        options.custom_flags(libc::O_NOFOLLOW);
        descriptors.push((open(&options, path)?.into(), *descriptor));
    }
    for Tap { name, descriptor } in &plan.taps {
        let tap = open_tap(name).map_err(|error| format!("open tap {name}: {error}"))?;
        descriptors.push((tap, *descriptor));
    }
    Ok(descriptors)
}

/// Opens an existing tap device. `Source:` Linux, Documentation/networking/tuntap.rst
#[allow(unsafe_code)]
pub(super) fn open_tap(name: &str) -> std::io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or_default();
    // SAFETY: the request is live and of the type that this call takes.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    if set < 0 { Err(std::io::Error::last_os_error()) } else { Ok(file.into()) }
}

/// Makes a root that has programs and libraries, read-only, and nothing else, and changes into it.
fn make_root(plan: &Plan) -> Result<(), String> {
    let root = plan.run_dir.join("root");
    let none = None::<&str>;
    at(fs::create_dir_all(&root), "create", &root)?;
    at(mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none), "make private", Path::new("/"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    at(mount(Some("nuee"), &root, Some("tmpfs"), flags, Some("size=64k,mode=0755")), "mount", &root)?;
    for name in PROGRAM_DIRECTORIES {
        let source = Path::new("/").join(name);
        let target = root.join(name);
        match fs::symlink_metadata(&source) {
            Ok(found) if found.is_symlink() => {
                let to = at(fs::read_link(&source), "read", &source)?;
                at(std::os::unix::fs::symlink(to, &target), "link", &target)?;
            }
            Ok(found) if found.is_dir() => {
                at(fs::create_dir(&target), "create", &target)?;
                bind(&source, &target)?;
            }
            _ => {}
        }
    }
    for name in ["etc", "dev", "tmp", "proc"] {
        let path = root.join(name);
        at(fs::create_dir(&path), "create", &path)?;
    }
    let loader = (PathBuf::from("/etc/ld.so.cache"), PathBuf::from("/etc/ld.so.cache"));
    for (source, inside) in plan.bound_files.iter().chain(loader.0.exists().then_some(&loader)) {
        let target = root.join(inside.strip_prefix("/").unwrap_or(inside));
        at(File::create(&target), "create", &target)?;
        bind(source, &target)?;
    }
    for (name, major, minor) in DEVICES.iter().chain(plan.devices_kvm.then_some(&KVM)) {
        let path = root.join("dev").join(name);
        at(mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(*major, *minor)), "make", &path)?;
        at(chown(&path, Some(Uid::from_raw(plan.user_id)), Some(Gid::from_raw(plan.user_id))), "own", &path)?;
    }
    at(std::env::set_current_dir(&root), "enter", &root)?;
    at(pivot_root(".", "."), "pivot into", &root)?;
    at(umount2(".", MntFlags::MNT_DETACH), "leave", Path::new("/"))?;
    at(std::env::set_current_dir("/"), "enter", Path::new("/"))?;
    let seal = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
    at(mount(none, "/", none, seal, none), "seal", Path::new("/"))
}

/// Shows a file or directory in the new root, read-only.
fn bind(source: &Path, target: &Path) -> Result<(), String> {
    let none = None::<&str>;
    at(mount(Some(source), target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none), "bind", source)?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    at(mount(none, target, none, flags, none), "protect", target)
}

/// Becomes the hypervisor. Returns only an error, which goes into the log too.
fn become_guest(plan: &Plan, descriptors: Vec<(OwnedFd, i32)>, log: File) -> String {
    let mut words = log.try_clone();
    let error = match prepare(plan, descriptors) {
        Ok(()) => {
            let mut command = Command::new(&plan.program);
            command.args(&plan.arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            format!("run {}: {}", plan.program.display(), command.exec())
        }
        Err(error) => error,
    };
    if let Ok(words) = &mut words {
        let _ = writeln!(words, "{error}");
    }
    error
}

#[allow(unsafe_code)]
fn prepare(plan: &Plan, descriptors: Vec<(OwnedFd, i32)>) -> Result<(), String> {
    setsid().map_err(|error| format!("setsid: {error}"))?;
    for (descriptor, number) in descriptors {
        // SAFETY: both are plain numbers; the new one is handed on to the program, which owns it from then on.
        if unsafe { libc::dup2(descriptor.into_raw_fd(), number) } < 0 {
            return Err(format!("dup2: {}", std::io::Error::last_os_error()));
        }
    }
    let limits = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    limits.map_err(|error| format!("setrlimit: {error}"))?;
    nix::sys::prctl::set_no_new_privs().map_err(|error| format!("no_new_privs: {error}"))?;
    setgroups(&[]).map_err(|error| format!("setgroups: {error}"))?;
    setgid(Gid::from_raw(plan.user_id)).map_err(|error| format!("setgid: {error}"))?;
    if plan.late_memory {
        faults::keep_over_change_of_user()?;
    }
    setuid(Uid::from_raw(plan.user_id)).map_err(|error| format!("setuid: {error}"))?;
    if plan.late_memory { faults::become_able() } else { Ok(()) }
}
