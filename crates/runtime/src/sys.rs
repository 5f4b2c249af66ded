//! The one module that talks to the kernel without a safe wrapper: what runs between fork and exec, signals by number,
//! terminal sizes, the BPF calls; what it does to mounts is a module of its own.
#![allow(unsafe_code)]

mod mounts;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apart::Apart;

#[cfg(test)]
pub(crate) use mounts::change_mount;
pub(crate) use mounts::{can_change_mounts, make_mount_read_only, make_mounts_below_read_only};

/// Sends a signal; whether there was such a process.
pub(crate) fn kill(pid: u32, signal: i32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    if pid <= 1 {
        // 0 and negative numbers mean groups, 1 is the machine's init: never what is meant here.
        return false;
    }
    // SAFETY: kill(2) takes plain numbers and touches no memory of ours.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// Registers a descriptor with the asynchronous runtime.
pub(crate) fn watch_readiness(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, which `AsyncFd` does after deregistering.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)
}

/// Marks every descriptor from `first` on close-on-exec, so that no child inherits what it was not given.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: plain numbers; only the close-on-exec flags of descriptors change.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Becomes the parent of orphaned descendants.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Forks. `None` in the child.
///
/// Only for a process with a single thread: the child of another could wait for ever for a lock that nobody holds.
pub(crate) fn fork() -> io::Result<Option<u32>> {
    // SAFETY: the callers' process has one thread, so the child's memory is in order.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => u32::try_from(pid).map(Some).map_err(io::Error::other),
    }
}

/// Whether the kernel collects ended children itself, without being asked.
pub(crate) fn reap_children_by_itself(on: bool) -> io::Result<()> {
    // SAFETY: sets a disposition that runs no code of ours.
    let result = unsafe { libc::signal(libc::SIGCHLD, if on { libc::SIG_IGN } else { libc::SIG_DFL }) };
    if result == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Shows these words as this process' command line, as far as they fit into the room of the one that it was started with.
/// For people (and their tools): a failure changes nothing.
pub(crate) fn set_command_line(words: &[&[u8]]) {
    let Ok(text) = std::fs::read_to_string("/proc/self/stat") else { return };
    // The second field may hold anything but ends with the last parenthesis; `arg_start` and `arg_end` are fields 48 and 49.
    let Some((_, rest)) = text.rsplit_once(')') else { return };
    let mut bounds = rest.split_whitespace().skip(45).map_while(|word| word.parse::<usize>().ok());
    let (Some(start), Some(end)) = (bounds.next(), bounds.next()) else { return };
    let room = end.saturating_sub(start);
    let mut line = words.join(&0);
    if start == 0 || room < 2 {
        return;
    }
    line.truncate(room - 1);
    line.resize(room, 0);
    // SAFETY: the kernel says that our arguments lie there. They are writable, and nothing here holds them: the standard
    // library's arguments were copied where they were used, and are not read again in a shim.
    unsafe { std::ptr::copy_nonoverlapping(line.as_ptr(), start as *mut u8, room) };
}

/// Sets the size of a terminal.
pub(crate) fn set_terminal_size(terminal: BorrowedFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` lives for the call and is what TIOCSWINSZ reads.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps the allocator of a small single-threaded process small: large blocks go back to the kernel at once.
pub(crate) fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only sets numbers of the allocator, before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Where a child goes before it executes its program.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// Files into which it writes `0`: the control groups that it enters.
    pub thread_files: Vec<PathBuf>,
    /// A mount that it must not see; it gets a mount namespace of its own without it.
    pub hidden_mount: Option<PathBuf>,
    /// Mounts that it need not see, in the same way. Nothing that it mounts is then mounted on the machine.
    pub apart: Vec<Apart>,
}

/// Makes `command`'s child go where `entry` says, without descriptors beyond the standard three.
pub(crate) fn enter_before_exec(command: &mut Command, entry: &Entry) -> io::Result<()> {
    let c_string = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let files: Vec<CString> = entry.thread_files.iter().map(|path| c_string(path)).collect::<io::Result<_>>()?;
    let hidden = match &entry.hidden_mount {
        Some(mount) => Some((c_string(mount.parent().unwrap_or(Path::new("/")))?, c_string(mount)?)),
        None => None,
    };
    let mut apart = Vec::with_capacity(entry.apart.len());
    for one in &entry.apart {
        apart.push((c_string(&one.crowd)?, one.kept.as_deref().map(c_string).transpose()?));
    }
    let before_exec = move || {
        close_on_exec_from(3)?;
        for file in &files {
            write_whole(file, b"0")?;
        }
        if hidden.is_some() || !apart.is_empty() {
            mounts::unshare_mounts()?;
        }
        if !apart.is_empty() {
            // What is unmounted here must stay mounted on the machine, whoever made its mounts follow each other.
            mounts::change_propagation(c"/", libc::MS_REC | libc::MS_SLAVE)?;
        }
        if let Some((parent, mount)) = &hidden {
            mounts::hide_mount(parent, mount)?;
        }
        for (crowd, kept) in &apart {
            mounts::put_apart(crowd, kept.as_deref())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes only system calls on memory prepared above; it neither allocates
    // nor takes a lock.
    unsafe { command.pre_exec(before_exec) };
    Ok(())
}

/// Gives `command`'s child its place in the order in which the kernel kills when there is no memory left: -1000 to 1000.
pub(crate) fn set_oom_score_before_exec(command: &mut Command, adjustment: i64) {
    let text = adjustment.to_string();
    let before_exec = move || write_whole(c"/proc/self/oom_score_adj", text.as_bytes());
    // SAFETY: between fork and exec the closure makes only system calls on memory prepared above.
    unsafe { command.pre_exec(before_exec) };
}

/// Gives `command`'s child an empty signal mask; by itself it has that of the thread that starts it.
pub(crate) fn unblock_before_exec(command: &mut Command) {
    let before_exec = || {
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call on memory of its own.
    unsafe { command.pre_exec(before_exec) };
}

/// `struct clone_args`. `Source:` clone(2).
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks into a v2 control group. `None` in the child. Only for a process with a single thread, as [`fork`].
pub(crate) fn fork_into(group: &OwnedFd) -> io::Result<Option<u32>> {
    let cgroup = u64::try_from(group.as_raw_fd()).map_err(io::Error::other)?;
    let exit_signal = u64::try_from(libc::SIGCHLD).map_err(io::Error::other)?;
    // The constant has bit 33 set, whatever type the library gives it.
    let arguments = CloneArguments { flags: 1 << 33, exit_signal, cgroup, ..CloneArguments::default() };
    // SAFETY: without CLONE_VM and without a stack of its own the child goes on with a copy of our memory, as after fork(2);
    // the callers' process has one thread, so that copy is in order.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => u32::try_from(pid).map(Some).map_err(io::Error::other),
    }
}

/// Starts `command`, in the v2 control group `group` from its first instant on when there is one. The process id.
///
/// Only for a process with a single thread, as [`fork`].
///
/// Errors: what kept the child from executing its program.
pub(crate) fn spawn_into(command: &mut Command, group: Option<&Path>) -> io::Result<u32> {
    let Some(group) = group else { return command.spawn().map(|child| child.id()) };
    let directory = OwnedFd::from(std::fs::File::open(group)?);
    let (mut told, mut tell) = io::pipe()?;
    let (child, entered) = match fork_into(&directory) {
        Ok(child) => (child, true),
        // Kernels before 5.7, or a filter that does not know the call.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::E2BIG | libc::EPERM)) => {
            (fork()?, false)
        }
        Err(error) => return Err(error),
    };
    let Some(child) = child else {
        let error = match (!entered).then(|| std::fs::write(group.join("cgroup.procs"), "0")) {
            Some(Err(error)) => error,
            _ => command.exec(),
        };
        // The parent waits for these bytes or the end of the pipe; if it is gone, nobody asks.
        let _ = io::Write::write_all(&mut tell, &error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
        end_at_once(127)
    };
    drop(tell);
    let mut failure = [0; size_of::<i32>()];
    match io::Read::read_exact(&mut told, &mut failure) {
        // Closed by exec: all is well.
        Err(_) => Ok(child),
        Ok(()) => {
            // An error here means that somebody else has reaped it, which is as good.
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.cast_signed()), None);
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(failure)))
        }
    }
}

/// Writes to a file of the kernel's in one call. For between fork and exec: it neither allocates nor takes a lock.
fn write_whole(file: &CStr, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: `file` is a valid C string and `bytes` live for the call; the descriptor is used and closed here only.
    unsafe {
        let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let written = libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        let error = io::Error::last_os_error();
        libc::close(fd);
        if usize::try_from(written) == Ok(bytes.len()) { Ok(()) } else { Err(error) }
    }
}

/// Forks a child of our own parent, in the process namespace that children of ours are to have. `None` in the child. Only for a
/// process with a single thread, as [`fork`].
pub(crate) fn fork_sibling() -> io::Result<Option<u32>> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and without a stack of its own the child goes on with a copy of our memory, as after fork(2);
    // the callers' process has one thread, so that copy is in order.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => u32::try_from(pid).map(Some).map_err(io::Error::other),
    }
}

/// Ends this process at once, without running what belongs to the one that it was forked from.
pub(crate) fn end_at_once(code: i32) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor but the standard three and `kept`, which are the next ones afterwards, in this order.
///
/// Only in a process that ends without dropping what it had from the one that it was forked from: all other owners of
/// descriptors own nothing any more.
pub(crate) fn close_all_but(kept: [&OwnedFd; 2]) -> io::Result<[OwnedFd; 2]> {
    /// The first that is not standard.
    const FIRST: libc::c_int = 3;
    // Above all that there are to be, so that neither is in the other's way.
    let above = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, FIRST + 2).map(std::os::fd::IntoRawFd::into_raw_fd);
    let [first, second] = kept;
    let (first, second) = (above(first)?, above(second)?);
    // SAFETY: plain numbers. Descriptors 3 and 4 may have had other owners, who are gone as the caller promises.
    unsafe {
        if libc::dup3(first, FIRST, libc::O_CLOEXEC) < 0 || libc::dup3(second, FIRST + 1, libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::syscall(libc::SYS_close_range, FIRST + 2, libc::c_int::MAX, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok([OwnedFd::from_raw_fd(FIRST), OwnedFd::from_raw_fd(FIRST + 1)])
    }
}

/// Closes every descriptor but the standard three and those of `kept`, which ascends.
///
/// Only in a process that ends without dropping what it had from the one that it was forked from: all other owners of
/// descriptors own nothing any more.
pub(crate) fn close_all_except(kept: &[std::os::fd::RawFd]) -> io::Result<()> {
    let close = |first: libc::c_int, last: libc::c_int| {
        // SAFETY: plain numbers, whose owners are gone as the caller promises.
        let failed = first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0;
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    let mut first = libc::STDERR_FILENO + 1;
    for kept in kept {
        close(first, kept - 1)?;
        first = first.max(kept + 1);
    }
    close(first, libc::c_int::MAX)
}

/// Has the kernel end this process with its parent, which is `parent`.
///
/// Errors: it has gone already.
pub(crate) fn end_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: plain numbers.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    match std::os::unix::process::parent_id() == parent {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Closes a descriptor whose owner is never dropped: in a process that ends without doing so.
pub(crate) fn close_for_good(fd: BorrowedFd) {
    // SAFETY: the caller promises that nobody closes or uses this number any more.
    unsafe { libc::close(fd.as_raw_fd()) };
}

/// Gives every signal its default disposition and takes none of them away: what a fresh program expects.
pub(crate) fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: sets dispositions that run no code of ours; those that cannot be set are left as they are.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Has this process use the session keyring of this name, or one of its own where it may not. A machine without keyrings has
/// nothing to leak by them.
///
/// `Source:` keyctl(2), KEYCTL_JOIN_SESSION_KEYRING
pub(crate) fn join_session_keyring(name: &CStr) {
    /// Source: linux/keyctl.h
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a valid C string, and a null pointer where the call allows it.
    unsafe {
        if libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) < 0 {
            libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>());
        }
    }
}

/// Filters this process' system calls from now on. `filter` is a program as the kernel takes it, 8 bytes for an instruction.
///
/// `Source:` seccomp(2)
pub(crate) fn filter_system_calls(filter: &[u8]) -> io::Result<()> {
    let length = u16::try_from(filter.len() / size_of::<libc::sock_filter>()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies the program, which lives for the call, byte by byte, so its alignment does not matter.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const program,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One eBPF instruction as the kernel takes it (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct BpfInstruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl BpfInstruction {
    /// `to = *(u32 *)(from + offset)`
    pub fn load_word(to: u8, from: u8, offset: i16) -> Self {
        Self { code: 0x61, registers: to | from << 4, offset, immediate: 0 }
    }
    /// `register &= mask` (32 bits)
    pub fn and(register: u8, mask: u32) -> Self {
        Self { code: 0x54, registers: register, offset: 0, immediate: mask.cast_signed() }
    }
    /// `register >>= bits` (32 bits)
    pub fn shift_right(register: u8, bits: u32) -> Self {
        Self { code: 0x74, registers: register, offset: 0, immediate: bits.cast_signed() }
    }
    /// `to = from` (32 bits)
    pub fn copy(to: u8, from: u8) -> Self {
        Self { code: 0xbc, registers: to | from << 4, offset: 0, immediate: 0 }
    }
    /// `register = value`
    pub fn set(register: u8, value: u32) -> Self {
        Self { code: 0xb7, registers: register, offset: 0, immediate: value.cast_signed() }
    }
    /// Jumps when `register != value`; how far is set later.
    pub fn jump_if_not_equal(register: u8, value: u32) -> Self {
        Self { code: 0x55, registers: register, offset: 0, immediate: value.cast_signed() }
    }
    /// Jumps when `register == value`; how far is set later.
    pub fn jump_if_equal(register: u8, value: u32) -> Self {
        Self { code: 0x15, registers: register, offset: 0, immediate: value.cast_signed() }
    }
    /// Ends the program with the value of register 0.
    pub fn exit() -> Self {
        Self { code: 0x95, registers: 0, offset: 0, immediate: 0 }
    }
    /// Sets how far a jump goes; other instructions stay as they are.
    pub fn jump_forward(&mut self, instructions: usize) {
        if matches!(self.code, 0x55 | 0x15) {
            self.offset = i16::try_from(instructions).unwrap_or(i16::MAX);
        }
    }
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// Head of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replace: u32,
}

/// Loads a device program and attaches it to a v2 control group.
pub(crate) fn attach_device_program(group: BorrowedFd, program: &[BpfInstruction]) -> io::Result<()> {
    let load = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes and what they point to live for the call; the kernel only reads them.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<LoadAttributes>()) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd) };
    let raw = |fd: BorrowedFd| u32::try_from(fd.as_raw_fd()).map_err(io::Error::other);
    let attach = AttachAttributes {
        target: raw(group)?,
        program: raw(loaded.as_fd())?,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
        replace: 0,
    };
    // SAFETY: as above.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<AttachAttributes>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
