//! Who may wait for pages of a guest's memory that are still on another machine: a process that is told of its own page faults, those in
//! the kernel too, by `userfaultfd`. A process without rights gets that only where `vm.unprivileged_userfaultfd` is 1, and any with
//! `CAP_SYS_PTRACE`. A hypervisor that is to receive a guest by post-copy therefore gets that one capability where it needs it, and with it
//! a filter of system calls that takes away all else that the capability is good for. See `docs/decisions/0017-post-copy.md`.
//!
//! `Source:` Linux, Documentation/admin-guide/mm/userfaultfd.rst, fs/userfaultfd.c; capabilities(7), seccomp(2)

use std::os::fd::{FromRawFd, OwnedFd};

/// The setting by which everybody may.
const SETTING: &str = "/proc/sys/vm/unprivileged_userfaultfd";
/// `CAP_SYS_PTRACE`. `Source:` linux/capability.h
const CAPABILITY: u32 = 19;
/// Version of the structures that `capset` takes. `Source:` linux/capability.h
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// What `CAP_SYS_PTRACE` allows beside `userfaultfd`, or is needed for it. A pid namespace alone does not keep a process from others: the
/// peer of a socket is had as a descriptor (see [`OPTIONS`]), from which `pidfd_getfd` takes whatever that process has open. What is asked for
/// by `io_uring` no filter sees.
const DENIED: [libc::c_long; 15] = [
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_kcmp,
    libc::SYS_get_robust_list,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_perf_event_open,
    libc::SYS_bpf,
    libc::SYS_setns,
    libc::SYS_io_uring_setup,
];

/// `SO_PASSPIDFD` and `SO_PEERPIDFD`, by which a socket tells of its peers as descriptors. Since Linux 6.11 these give a process's namespaces
/// out to whoever may trace it. `Source:` asm-generic/socket.h, fs/pidfs.c
const OPTIONS: [u32; 2] = [76, 77];

/// The machine's kind of system calls, which the numbers above belong to. `Source:` linux/audit.h
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// Numbers from here on are those of x32, which are other names for the same calls; no other machine has any. `Source:` asm/unistd.h
const X32: u32 = 0x4000_0000;
/// Where the kernel shows number and kind of a call, and, of one for a socket's options, the level and the option: the lower halves of its
/// second and third argument. `Source:` linux/seccomp.h, `struct seccomp_data`
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const LEVEL_AT: u32 = 16 + 8;
const OPTION_AT: u32 = 16 + 2 * 8;

/// Whether a process needs the capability for it. Where the setting cannot be read it does not exist, and nobody needs it.
pub(super) fn need_capability() -> bool {
    std::fs::read_to_string(SETTING).is_ok_and(|text| text.trim() == "0")
}

/// Whether guests can be received by post-copy here.
///
/// Errors: why not, and what to do about it.
pub fn check() -> Result<(), String> {
    match open() {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            Err("its kernel has no userfaultfd (CONFIG_USERFAULTFD)".to_owned())
        }
        Err(error) => Err(format!(
            "page faults cannot be waited for (userfaultfd: {error}); set sysctl vm.unprivileged_userfaultfd=1 there, or give nuee CAP_SYS_PTRACE"
        )),
    }
}

#[allow(unsafe_code)]
fn open() -> std::io::Result<OwnedFd> {
    // SAFETY: the call takes flags alone.
    let made = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    match i32::try_from(made) {
        // SAFETY: the descriptor is new and nobody else's.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or_default(), jt: 0, jf: 0, k }
}

/// One instruction that goes over the next unless the value is (`is`), or is at least, `k`.
fn unless(is: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | is | libc::BPF_K, k) }
}

/// The filter. Pure.
fn filter() -> Vec<libc::sock_filter> {
    let load = |at| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at);
    let answer = |what| statement(libc::BPF_RET | libc::BPF_K, what);
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let mut all = vec![load(ARCHITECTURE_AT)];
    // By the numbers of another kind of machine everything could be called.
    all.push(libc::sock_filter { jt: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, ARCHITECTURE) });
    all.push(answer(libc::SECCOMP_RET_KILL_PROCESS));
    all.extend([load(NUMBER_AT), unless(libc::BPF_JGE, X32), answer(refuse)]);
    for call in DENIED {
        all.extend([unless(libc::BPF_JEQ, number(call)), answer(refuse)]);
    }
    let is = |k, jt, jf| libc::sock_filter { jt, jf, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k) };
    // All that is not about such an option goes to the last instruction.
    all.extend([is(number(libc::SYS_getsockopt), 1, 0), is(number(libc::SYS_setsockopt), 0, 7)]);
    all.extend([load(LEVEL_AT), is(libc::SOL_SOCKET.cast_unsigned(), 0, 5), load(OPTION_AT)]);
    for option in OPTIONS {
        all.extend([unless(libc::BPF_JEQ, option), answer(refuse)]);
    }
    all.push(answer(libc::SECCOMP_RET_ALLOW));
    all
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).unwrap_or_default()
}

/// Has the kernel keep what is permitted over the change of the user, which drops it otherwise.
#[allow(unsafe_code)]
pub(super) fn keep_over_change_of_user() -> Result<(), String> {
    // SAFETY: the call takes numbers alone.
    done("keep capabilities", unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) }.into())
}

fn done(what: &str, answer: libc::c_long) -> Result<(), String> {
    if answer < 0 { Err(format!("{what}: {}", std::io::Error::last_os_error())) } else { Ok(()) }
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up all of the thread's capabilities but these.
#[allow(unsafe_code)]
fn keep_only(bits: u32) -> Result<(), String> {
    let header = Header { version: CAPABILITY_VERSION_3, pid: 0 };
    let sets = [
        Sets { effective: bits, permitted: bits, inheritable: bits },
        Sets { effective: 0, permitted: 0, inheritable: 0 },
    ];
    // SAFETY: both are live, and as large as this version of the call takes them.
    done("capset", unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) })
}

/// Gives up all capabilities but the one, which the program that this process becomes has too, and all that it is good for but the one
/// call. The process must not be able to gain rights any more.
#[allow(unsafe_code)]
pub(super) fn become_able() -> Result<(), String> {
    keep_only(1 << CAPABILITY)?;
    // SAFETY: the call takes numbers alone.
    let raised = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, CAPABILITY, 0, 0) };
    done("pass the capability on", raised.into())?;
    let mut instructions = filter();
    let length = u16::try_from(instructions.len()).map_err(|_| "a filter that is too long".to_owned())?;
    let program = libc::sock_fprog { len: length, filter: instructions.as_mut_ptr() };
    // SAFETY: the program and its instructions are live, and the kernel copies them.
    let set = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    done("seccomp", set)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers to a call, by the rules of the machine that it is for.
    fn run(architecture: u32, number: u32) -> u32 {
        run_with(architecture, number, 0, 0)
    }

    fn run_with(architecture: u32, number: u32, level: u32, option: u32) -> u32 {
        let (all, mut at, mut value) = (filter(), 0, 0);
        loop {
            let one = all[at];
            at += 1;
            match u32::from(one.code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    value = match one.k {
                        ARCHITECTURE_AT => architecture,
                        LEVEL_AT => level,
                        OPTION_AT => option,
                        _ => number,
                    };
                }
                code if code == libc::BPF_RET | libc::BPF_K => return one.k,
                code => {
                    let holds = if code & 0xf0 == libc::BPF_JGE { value >= one.k } else { value == one.k };
                    at += usize::from(if holds { one.jt } else { one.jf });
                }
            }
        }
    }

    #[test]
    fn only_what_the_capability_is_not_for_passes() {
        let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
        for call in DENIED {
            assert_eq!(run(ARCHITECTURE, number(call)), refuse, "{call}");
            assert_eq!(run(ARCHITECTURE, X32 | number(call)), refuse, "{call} by its other name");
        }
        for call in [libc::SYS_userfaultfd, libc::SYS_read, libc::SYS_execve, libc::SYS_mmap, libc::SYS_seccomp] {
            assert_eq!(run(ARCHITECTURE, number(call)), libc::SECCOMP_RET_ALLOW, "{call}");
        }
        for call in [libc::SYS_getsockopt, libc::SYS_setsockopt] {
            let of_socket = |option| run_with(ARCHITECTURE, number(call), libc::SOL_SOCKET.cast_unsigned(), option);
            assert_eq!((of_socket(76), of_socket(77)), (refuse, refuse), "{call}");
            for other in [libc::SO_PEERCRED, libc::SO_RCVBUF, libc::SO_ERROR] {
                assert_eq!(of_socket(other.cast_unsigned()), libc::SECCOMP_RET_ALLOW, "{call}, {other}");
            }
            let of_tcp = run_with(ARCHITECTURE, number(call), libc::IPPROTO_TCP.cast_unsigned(), 76);
            assert_eq!(of_tcp, libc::SECCOMP_RET_ALLOW, "{call}");
        }
        let other = run_with(ARCHITECTURE, number(libc::SYS_read), libc::SOL_SOCKET.cast_unsigned(), 77);
        assert_eq!(other, libc::SECCOMP_RET_ALLOW);
        assert_eq!(run(0x4000_0003, 26), libc::SECCOMP_RET_KILL_PROCESS, "ptrace by the numbers of 32 bits");
    }

    /// Capabilities and filters are those of a thread.
    fn in_a_thread(check: impl FnOnce() + Send + 'static) {
        std::thread::spawn(check).join().unwrap();
    }

    #[test]
    fn who_may_not_wait_for_pages_is_told_which_setting_allows_it() {
        in_a_thread(|| {
            keep_only(0).unwrap();
            match check() {
                Ok(()) => assert!(!need_capability()),
                // Nothing allows it.
                Err(why) if why.contains("CONFIG_USERFAULTFD") => {}
                Err(why) => assert!(need_capability() && why.contains("vm.unprivileged_userfaultfd=1"), "{why}"),
            }
        });
    }

    /// Whether this process has the capability to give.
    fn is_permitted() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
        permitted
            .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
            .is_some_and(|bits| (bits & (1 << CAPABILITY)) != 0)
    }

    #[test]
    #[allow(unsafe_code)]
    fn with_the_one_capability_pages_are_waited_for_and_nobody_is_looked_into() {
        // Others have no right to give; in a container the first user may not have it either.
        if !nix::unistd::geteuid().is_root() || !is_permitted() || check().is_err() {
            return;
        }
        in_a_thread(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            become_able().unwrap();
            check().unwrap();
            // SAFETY: the call takes numbers alone.
            let own = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
            assert_eq!((own, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
        });
    }
}
