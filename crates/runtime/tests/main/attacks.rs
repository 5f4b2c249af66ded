//! Hostile containers against the machine: each a known attack, each harmless.

use oci_spec::runtime::Spec;
use runtime::Error;
use sha2::{Digest, Sha256};

use crate::place::{Place, run, shell};

fn digest(path: &str) -> Vec<u8> {
    Sha256::digest(std::fs::read(path).unwrap()).to_vec()
}

#[tokio::test]
async fn only_the_three_streams_are_inherited() {
    let place = Place::new();
    // A descriptor of the daemon that is not marked close-on-exec must not arrive.
    let leaked = std::fs::File::open("/etc/hostname").unwrap();
    nix::fcntl::fcntl(&leaked, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let (_, log) = place.run("one", shell("ls /proc/1/fd; true")).await;
    let descriptors: Vec<&str> = log.split_whitespace().collect();
    assert!(descriptors.iter().all(|fd| ["0", "1", "2"].contains(fd)), "{log}");
    place.start("two", run(&["/bin/sleep", "1000"])).await;
    let (_, text) = place.exec("two", &["ls", "/proc/self/fd"]).await;
    // 3 is the directory that `ls` itself reads.
    assert!(text.split_whitespace().all(|fd| ["0", "1", "2", "3"].contains(&fd)), "{text}");
    place.close().await;
}

#[tokio::test]
async fn the_runtime_cannot_be_overwritten_through_its_own_executable() {
    let place = Place::new();
    let oci = place.runtime.oci_runtime().to_string_lossy().into_owned();
    let shim = env!("CARGO_BIN_EXE_runtime-test-shim");
    let before = (digest(&oci), digest(shim));
    // The program of the container is the runtime itself, and every process that enters is overwritten if it can be.
    for number in 0..3 {
        let _ = place.runtime.create(place.config(&format!("self{number}"), run(&["/proc/self/exe"]))).await;
    }
    let mut wanted = shell("while true; do for p in /proc/[0-9]*; do echo x 2>/dev/null > $p/exe; done; done");
    wanted.change = Box::new(|_| {});
    place.start("hostile", wanted).await;
    for _ in 0..30 {
        let request = node::ExecRequest { command: vec!["/proc/self/exe".to_owned()], ..node::ExecRequest::default() };
        if let Ok(session) = place.runtime.exec("hostile", request).await {
            let _ = crate::place::collect(session).await;
        }
    }
    // The control: it was at work all the time.
    assert_eq!(place.exec("hostile", &["true"]).await.0, 0);
    assert!(before == (digest(&oci), digest(shim)), "an executable of the machine was changed");
    place.close().await;
}

#[tokio::test]
async fn working_directories_through_descriptors_are_refused() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    for number in 3..12 {
        let directory = format!("/proc/self/fd/{number}");
        let mut wanted = shell("pwd");
        let cwd = directory.clone();
        wanted.change = Box::new(move |spec: &mut Spec| {
            let mut process = spec.process().clone().unwrap();
            process.set_cwd(cwd.into());
            spec.set_process(Some(process));
        });
        let result = place.runtime.create(place.config("bad", wanted)).await;
        assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
        // The same by a link that the check of names cannot see.
        let link = place.rootfs().join(format!("link{number}"));
        std::os::unix::fs::symlink(&directory, link).unwrap();
        let request = node::ExecRequest {
            command: vec!["ls".to_owned(), "../../../../etc/shadow".to_owned()],
            working_directory: format!("/link{number}"),
            ..node::ExecRequest::default()
        };
        if let Ok(session) = place.runtime.exec("one", request).await {
            assert_ne!(crate::place::collect(session).await.0, 0);
        }
    }
    place.close().await;
}

#[tokio::test]
async fn the_filter_of_system_calls_holds_when_compiled_and_when_kept() {
    let place = Place::new();
    // The first container compiles the filter, the second takes the kept one; an annotation cannot replace it.
    for id in ["compiled", "kept"] {
        let mut wanted = shell(
            "while read line; do case $line in Seccomp:*) echo $line;; esac; done < /proc/self/status; unshare -U true && echo allowed || echo refused; exec sleep 1000",
        );
        wanted.change = Box::new(|spec: &mut Spec| {
            let allow_all = "BgAAAAAA/38=".to_owned();
            spec.set_annotations(Some([("run.oci.seccomp_bpf_data".to_owned(), allow_all)].into()));
        });
        place.start(id, wanted).await;
        place.until_logged(id, "refused").await;
        let log = place.log_text(id).await;
        assert!(log.starts_with("Seccomp:\t2") || log.starts_with("Seccomp: 2"), "{id}: {log}");
        let (code, _) = place.exec(id, &["unshare", "-U", "true"]).await;
        assert_ne!(code, 0, "{id}");
    }
    // The control: without the filter the same call goes through.
    let mut wanted = shell("unshare -U true && echo allowed");
    wanted.change = Box::new(|spec: &mut Spec| {
        spec.linux_mut().as_mut().unwrap().set_seccomp(None);
    });
    assert_eq!(place.run("control", wanted).await, (0, "allowed\n".to_owned()));
    let kept = std::fs::read_dir(place.directory.path().join("run/seccomp")).unwrap().count();
    assert!(kept <= 1);
    place.close().await;
}

#[tokio::test]
async fn links_in_place_of_mount_points_stay_inside() {
    let place = Place::new();
    let canary = place.directory.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    for name in ["dev", "proc", "sys"] {
        let path = place.rootfs().join(name);
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink(&canary, &path).unwrap();
    }
    // Refused or mounted inside the root: either is right, as long as nothing appears outside.
    if place.runtime.create(place.config("one", run(&["/bin/true"]))).await.is_ok() {
        place.runtime.start("one").await.unwrap();
        place.wait("one").await;
    }
    assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 0);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*canary.to_string_lossy()));
    place.close().await;
}

#[tokio::test]
async fn switches_of_the_kernel_cannot_be_written() {
    let place = Place::new();
    let script = "\
        for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/kernel/uevent_helper \
                 /sys/fs/cgroup/memory/release_agent /sys/fs/cgroup/memory/notify_on_release \
                 /sys/fs/cgroup/devices/devices.allow /sys/fs/cgroup/cgroup.procs; do \
            if [ -e $f ] && (echo x > $f) 2>/dev/null; then echo WROTE $f; fi; \
        done; \
        mount -o remount,rw /proc/sys 2>/dev/null && echo REMOUNTED; \
        umount /proc/kcore 2>/dev/null && echo UNMASKED; \
        [ -s /proc/kcore ] && head -c 1 /proc/kcore | grep -q . && echo READ; \
        mknod /tmp/disk b 7 0 && head -c 1 /tmp/disk 2>/dev/null && echo DEVICE; \
        echo end";
    let (_, log) = place.run("one", shell(script)).await;
    assert_eq!(log, "end\n");
    place.close().await;
}

/// crun gives standard streams to the container's user, also a `/dev/null` of the machine.
#[tokio::test]
async fn the_user_of_a_container_does_not_get_the_machine_s_null_device() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let look = || {
        let found = std::fs::metadata("/dev/null").unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    let before = look();
    assert_eq!(before.0, 0);
    // Who owns a file may change its mode.
    let script = "chmod 600 /proc/self/fd/0; echo user $(id -u)";
    for (id, by_oci_runtime) in [("by-shim", false), ("by-oci-runtime", true)] {
        let mut wanted = shell(&format!("{script}; exec sleep 1000"));
        wanted.change = Box::new(move |spec: &mut Spec| {
            let mut process = spec.process().clone().unwrap();
            process.set_user(oci_spec::runtime::UserBuilder::default().uid(33_u32).gid(33_u32).build().unwrap());
            spec.set_process(Some(process));
            if by_oci_runtime {
                crate::joining::leave_to_oci_runtime(spec);
            }
        });
        place.start(id, wanted).await;
        place.until_logged(id, "user 33").await;
        let during = look();
        let (code, text) = place.exec(id, &["sh", "-c", script]).await;
        let after = look();
        // Whatever was found, the machine keeps its device.
        std::os::unix::fs::chown("/dev/null", Some(before.0), Some(before.1)).unwrap();
        std::fs::set_permissions("/dev/null", std::os::unix::fs::PermissionsExt::from_mode(before.2)).unwrap();
        assert_eq!((code, text.contains("user 33")), (0, true), "{text}");
        assert_eq!((before, before), (during, after), "{id}");
    }
    // Root owns the machine's, too; a container without the device gets none of the machine's for it.
    place.start("without", run(&["/bin/sleep", "1000"])).await;
    let script = "rm /dev/null; chmod 600 /proc/self/fd/0; wc -c < /proc/self/fd/0";
    for _ in 0..2 {
        assert_eq!(place.exec("without", &["sh", "-c", script]).await.1.lines().last(), Some("0"));
        let after = look();
        std::fs::set_permissions("/dev/null", std::os::unix::fs::PermissionsExt::from_mode(before.2)).unwrap();
        assert_eq!(before, after);
    }
    place.close().await;
}
