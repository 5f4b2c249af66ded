//! The default seccomp profile: what Docker's allows, as a table of our own. Source: Docker's documentation of its default
//! profile; the kernel's list of system calls.

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use crate::{Error, Result};

/// Allowed for everybody, with any arguments.
const ALWAYS: &str = "\
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime \
clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 \
close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old \
epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 \
fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 \
fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync \
ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list \
get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups \
getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid \
getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat \
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset \
landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek \
lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir \
mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock \
munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open \
pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 \
prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv \
recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 \
restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min \
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop \
semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 \
setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid \
setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid \
setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn \
socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs \
sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate \
truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 \
waitid waitpid write writev process_vm_readv process_vm_writev ptrace arch_prctl modify_ldt";

/// Allowed with a capability.
const WITH_CAPABILITY: [(Capability, &str); 12] = [
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module finit_module init_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "ioperm iopl"),
    (Capability::SysTime, "clock_settime clock_settime64 settimeofday stime"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::SysNice, "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node"),
    (Capability::Syslog, "syslog"),
];

/// Values of personality(2) that change nothing dangerous: Linux, UNAME26, PER_LINUX32 and both, and asking.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// The flags of clone(2) that make namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// `AF_VSOCK`, which reaches the machine around every network namespace.
const FAMILY_VSOCK: u64 = 40;
/// `EPERM`, `ENOSYS`.
const NOT_PERMITTED: u32 = 1;
const NO_SUCH_CALL: u32 = 38;

/// The profile for a container with these capabilities.
pub fn default_profile(capabilities: &Capabilities) -> Result<LinuxSeccomp> {
    let mut calls = vec![allow(ALWAYS, None)?];
    for value in PERSONALITIES {
        calls.push(allow("personality", Some(argument(0, value, None, LinuxSeccompOperator::ScmpCmpEq)?))?);
    }
    calls.push(allow("socket", Some(argument(0, FAMILY_VSOCK, None, LinuxSeccompOperator::ScmpCmpNe)?))?);
    for (capability, names) in WITH_CAPABILITY {
        if capabilities.contains(&capability) {
            calls.push(allow(names, None)?);
        }
    }
    if capabilities.contains(&Capability::Bpf) && !capabilities.contains(&Capability::SysAdmin) {
        calls.push(allow("bpf", None)?);
    }
    if capabilities.contains(&Capability::Perfmon) && !capabilities.contains(&Capability::SysAdmin) {
        calls.push(allow("perf_event_open", None)?);
    }
    if !capabilities.contains(&Capability::SysAdmin) {
        let no_namespaces = argument(0, NAMESPACE_FLAGS, Some(0), LinuxSeccompOperator::ScmpCmpMaskedEq)?;
        calls.push(allow("clone", Some(no_namespaces))?);
        // Its flags lie in memory where no filter sees them: libraries fall back to clone(2).
        let refused = LinuxSyscallBuilder::default()
            .names(vec!["clone3".to_owned()])
            .action(LinuxSeccompAction::ScmpActErrno)
            .errno_ret(NO_SUCH_CALL);
        calls.push(refused.build().map_err(invalid)?);
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(NOT_PERMITTED)
        .architectures(architectures())
        .syscalls(calls)
        .build()
        .map_err(invalid)
}

fn invalid(error: oci_spec::OciSpecError) -> Error {
    Error::Invalid(error.to_string())
}

fn architectures() -> Vec<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        "riscv64" => vec![Arch::ScmpArchRiscv64],
        _ => Vec::new(),
    }
}

fn allow(names: &str, argument: Option<LinuxSeccompArg>) -> Result<LinuxSyscall> {
    let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    let mut call = LinuxSyscallBuilder::default().names(names).action(LinuxSeccompAction::ScmpActAllow);
    if let Some(argument) = argument {
        call = call.args(vec![argument]);
    }
    call.build().map_err(invalid)
}

fn argument(index: usize, value: u64, second: Option<u64>, operator: LinuxSeccompOperator) -> Result<LinuxSeccompArg> {
    let mut argument = LinuxSeccompArgBuilder::default().index(index).value(value).op(operator);
    if let Some(second) = second {
        argument = argument.value_two(second);
    }
    argument.build().map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(profile: &LinuxSeccomp, name: &str) -> bool {
        profile.syscalls().iter().flatten().any(|call| {
            call.action() == LinuxSeccompAction::ScmpActAllow && call.names().iter().any(|known| known == name)
        })
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let plain = default_profile(&crate::spec::default_capabilities()).unwrap();
        for name in [
            "mount",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "add_key",
            "kexec_load",
            "userfaultfd",
            "init_module",
            "io_uring_setup",
        ] {
            assert!(!allows(&plain, name), "{name}");
        }
        assert!(allows(&plain, "chroot") && allows(&plain, "clone") && allows(&plain, "openat2"));
        let all = default_profile(&crate::spec::all_capabilities()).unwrap();
        assert!(allows(&all, "mount") && allows(&all, "clone3"));
        assert!(!allows(&all, "kexec_load"));
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut names: Vec<&str> = ALWAYS.split_whitespace().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
