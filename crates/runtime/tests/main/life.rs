//! From creation to the end: exit codes, failures to start, adoption after the daemon's death.

use std::time::{Duration, Instant};

use runtime::{ContainerStatus, Error, OciRuntimeChoice};

use crate::place::{Place, run, shell};

#[tokio::test]
async fn the_exit_code_and_the_log_arrive() {
    let place = Place::new();
    let (code, log) = place.run("one", shell("echo out; echo err >&2; exit 7")).await;
    assert_eq!(code, 7);
    assert!(log.contains("out\n") && log.contains("err\n"), "{log}");
    let state = place.runtime.state("one").await.unwrap();
    assert_eq!(state.status, ContainerStatus::Stopped);
    assert!(state.started_at_ns > 0 && state.exit.unwrap().finished_at_ns >= state.started_at_ns);
    place.close().await;
}

#[tokio::test]
async fn a_signal_ends_with_128_and_its_number() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    place.runtime.kill("one", 9).await.unwrap();
    assert_eq!(place.wait("one").await.code, 137);
    assert!(matches!(place.runtime.kill("one", 9).await, Err(Error::Conflict(_))));
    place.close().await;
}

#[tokio::test]
async fn a_created_container_waits_until_it_is_started() {
    let place = Place::new();
    place.create("one", shell("echo ran")).await;
    assert_eq!(place.runtime.state("one").await.unwrap().status, ContainerStatus::Created);
    assert_eq!(place.log_text("one").await, "");
    place.runtime.start("one").await.unwrap();
    assert!(place.runtime.start("one").await.is_err());
    place.wait("one").await;
    assert_eq!(place.log_text("one").await, "ran\n");
    place.close().await;
}

#[tokio::test]
async fn a_missing_program_is_127_and_leaves_nothing() {
    let place = Place::new();
    let error = place.runtime.create(place.config("one", run(&["nope"]))).await.unwrap_err();
    let Error::CannotStart { code, message } = error else { panic!("{error:?}") };
    assert_eq!((code, message.as_str()), (127, "exec: \"nope\": executable file not found in $PATH"));
    let error = place.runtime.create(place.config("one", run(&["/etc/passwd"]))).await.unwrap_err();
    let Error::CannotStart { code, message } = error else { panic!("{error:?}") };
    assert_eq!(code, 126, "{message}");
    assert!(place.runtime.list().await.unwrap().is_empty());
    place.close().await;
}

#[tokio::test]
async fn shims_outlive_the_process_that_forked_them() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    let shim = shim_pid(&place, "one");
    let line = std::fs::read_to_string(format!("/proc/{shim}/cmdline")).unwrap();
    assert!(line.starts_with("nuee\0shim\0") && line.contains("/containers/one/shim"), "{line:?}");
    let server = parent(shim);
    assert_ne!(server, std::process::id());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.cast_signed()), nix::sys::signal::SIGKILL).unwrap();
    place.start("two", run(&["/bin/sleep", "1000"])).await;
    assert_ne!(parent(shim_pid(&place, "two")), server);
    assert_eq!(place.exec("one", &["/bin/echo", "alive"]).await, (0, "alive\n".to_owned()));
    assert_eq!(shim_pid(&place, "one"), shim);
    place.close().await;
}

/// A file of a container's shim.
fn shim_file(place: &Place, id: &str, name: &str) -> std::path::PathBuf {
    place.directory.path().join(format!("containers/{id}/shim/{name}"))
}

fn shim_pid(place: &Place, id: &str) -> u32 {
    let path = shim_file(place, id, "state.json");
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    u32::try_from(state["shim_pid"].as_u64().unwrap()).unwrap()
}

fn kill_shim(place: &Place, id: &str) {
    let shim = shim_pid(place, id);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim.cast_signed()), nix::sys::signal::SIGKILL).unwrap();
    let begin = Instant::now();
    // Gone, or a zombie, which has no command line.
    while std::fs::read(format!("/proc/{shim}/cmdline")).is_ok_and(|line| !line.is_empty()) {
        assert!(begin.elapsed() < crate::place::PATIENCE, "the shim does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[tokio::test]
async fn a_frozen_server_of_shims_is_replaced_and_never_goes_on() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    let server = parent(shim_pid(&place, "one"));
    let process = nix::unistd::Pid::from_raw(server.cast_signed());
    nix::sys::signal::kill(process, nix::sys::signal::SIGSTOP).unwrap();
    place.start("two", run(&["/bin/sleep", "1000"])).await;
    assert_ne!(parent(shim_pid(&place, "two")), server);
    let line = std::fs::read(format!("/proc/{server}/cmdline")).unwrap_or_default();
    assert!(line.is_empty(), "it has ended: one that is let go would fork a second shim");
    place.start("three", run(&["/bin/sleep", "1000"])).await;
    assert_eq!(parent(shim_pid(&place, "three")), parent(shim_pid(&place, "two")));
    place.close().await;
}

fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn an_id_is_used_once_and_deleted_again_and_again() {
    let place = Place::new();
    place.create("one", run(&["/bin/true"])).await;
    assert!(matches!(place.runtime.create(place.config("one", run(&["/bin/true"]))).await, Err(Error::Conflict(_))));
    place.runtime.delete("one").await.unwrap();
    place.runtime.delete("one").await.unwrap();
    assert!(matches!(place.runtime.wait("one").await, Err(Error::NotFound(_))));
    assert!(matches!(place.runtime.delete("../one").await, Err(Error::Invalid(_))));
    place.close().await;
}

#[tokio::test]
async fn a_restarted_daemon_finds_its_containers_and_their_ends() {
    let place = Place::new();
    place.start("long", run(&["/bin/sleep", "1000"])).await;
    place.start("short", shell("exit 3")).await;
    place.wait("short").await;
    let second = place.reopened();
    let mut found = second.list().await.unwrap();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    let statuses: Vec<_> = found.iter().map(|state| (state.id.as_str(), state.status)).collect();
    assert_eq!(statuses, [("long", ContainerStatus::Running), ("short", ContainerStatus::Stopped)]);
    assert_eq!(second.wait("short").await.unwrap().code, 3);
    second.kill("long", 15).await.unwrap();
    second.kill("long", 9).await.unwrap();
    assert_eq!(second.wait("long").await.unwrap().code, 137);
    place.close().await;
}

#[tokio::test]
async fn what_loses_its_shim_is_ended_and_reported() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    let pid = place.runtime.state("one").await.unwrap().pid;
    let text = std::fs::read_to_string(place.directory.path().join("containers/one/shim/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&text).unwrap();
    let shim = i32::try_from(state["shim_pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(place.wait("one").await.code, 137);
    // Gone, or a zombie that the machine's init has not collected yet: that has no command line.
    assert_eq!(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(), b"");
    place.close().await;
}

#[tokio::test]
async fn one_that_cannot_be_ended_keeps_no_other_from_being_found() {
    let place = Place::new();
    place.start("fine", run(&["/bin/sleep", "1000"])).await;
    place.start("stuck", run(&["/bin/sleep", "1000"])).await;
    kill_shim(&place, "stuck");
    // In its group there is a process that no signal ends, as one that waits for a dead disk: here, one that is no process.
    let config = shim_file(&place, "stuck", "shim.json");
    let original = std::fs::read(&config).unwrap();
    let mut changed: serde_json::Value = serde_json::from_slice(&original).unwrap();
    let groups = place.directory.path().join("groups");
    let group = groups.join(changed["cgroup"]["path"].as_str().unwrap().trim_start_matches('/'));
    std::fs::create_dir_all(&group).unwrap();
    std::fs::write(group.join("cgroup.procs"), format!("{}\n", i32::MAX)).unwrap();
    changed["cgroup"]["hierarchies"] = serde_json::json!({"V2": groups});
    std::fs::write(&config, changed.to_string()).unwrap();
    let second = place.reopened();
    let mut found = second.list().await.unwrap();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!((found[0].id.as_str(), found[0].status), ("fine", ContainerStatus::Running));
    assert_eq!((found[1].id.as_str(), found[1].status), ("stuck", ContainerStatus::Stopped));
    assert_eq!(found[1].exit.unwrap().code, 137);
    assert!(matches!(second.delete("stuck").await, Err(Error::Timeout(_))), "whoever ends it hears why not");
    std::fs::write(&config, original).unwrap();
    second.delete("stuck").await.unwrap();
    assert_eq!(second.list().await.unwrap().len(), 1);
    place.close().await;
}

#[tokio::test]
async fn files_that_lost_their_content_are_as_none() {
    let place = Place::new();
    // As after the machine had no power.
    for (id, lost, content) in [
        ("state", "state.json", ""),
        ("cut", "state.json", "{\"shim_pid\":"),
        ("exit", "exit.json", ""),
        ("config", "shim.json", ""),
    ] {
        place.start(id, run(&["/bin/sleep", "1000"])).await;
        kill_shim(&place, id);
        std::fs::write(shim_file(&place, id, lost), content).unwrap();
        // What was being created is waited for a while.
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(3_600);
        let config = std::fs::File::options().write(true).open(shim_file(&place, id, "shim.json")).unwrap();
        config.set_modified(long_ago).unwrap();
    }
    let second = place.reopened();
    let found = second.list().await.unwrap();
    assert_eq!(found.len(), 4, "{found:?}");
    for state in found {
        assert_eq!(
            (state.status, state.exit.map(|exit| exit.code)),
            (ContainerStatus::Stopped, Some(137)),
            "{state:?}"
        );
        assert_eq!(second.wait(&state.id).await.unwrap().code, 137);
        second.delete(&state.id).await.unwrap();
    }
    place.close().await;
}

#[tokio::test]
async fn a_hung_shim_does_not_hold_its_callers() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    let text = std::fs::read_to_string(place.directory.path().join("containers/one/shim/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&text).unwrap();
    let shim = nix::unistd::Pid::from_raw(i32::try_from(state["shim_pid"].as_i64().unwrap()).unwrap());
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let begin = Instant::now();
    assert_eq!(place.runtime.list().await.unwrap().len(), 1);
    assert!(begin.elapsed() < Duration::from_secs(1));
    place.runtime.delete("one").await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(15));
    place.close().await;
}

#[tokio::test]
async fn runc_does_the_same_where_crun_is_missing() {
    let Some(runc) = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find(|path| std::path::Path::new(path).exists())
    else {
        return;
    };
    let place = Place::with(OciRuntimeChoice::Runc(runc.into()));
    let (code, log) = place.run("one", shell("echo hello; exit 4")).await;
    assert_eq!((code, log.as_str()), (4, "hello\n"));
    place.start("two", run(&["/bin/sleep", "1000"])).await;
    assert_eq!(place.exec("two", &["/bin/echo", "exec"]).await, (0, "exec\n".to_owned()));
    place.close().await;
}

#[test]
fn init_ends_as_its_program_and_passes_signals_on() {
    let init = |script: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_runtime-test-shim"));
        command.args(["init", "--", "/bin/sh", "-c", script]).stdout(std::process::Stdio::piped());
        command
    };
    assert_eq!(init("exit 3").status().unwrap().code(), Some(3));
    let mut child = init("trap 'exit 5' TERM; echo ready; while true; do sleep 0.01; done").spawn().unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn a_program_below_init_has_no_signal_blocked() {
    let mut init = std::process::Command::new(env!("CARGO_BIN_EXE_runtime-test-shim"));
    let blocked = init.args(["init", "--", "/bin/grep", "SigBlk", "/proc/self/status"]).output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&blocked), "SigBlk:\t0000000000000000\n");
}

#[tokio::test]
async fn a_frozen_oci_runtime_is_given_up() {
    let place = Place::new();
    let hung = place.directory.path().join("hung");
    std::fs::write(&hung, "#!/bin/sh\nkill -STOP $$\n").unwrap();
    std::fs::set_permissions(&hung, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let frozen = Place::with(OciRuntimeChoice::Crun(hung));
    let begin = Instant::now();
    let error = frozen.runtime.create(frozen.config("one", run(&["/bin/true"]))).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(30), "{error}");
    assert!(error.to_string().contains("did not answer"), "{error}");
    // Others go on meanwhile, and nothing stays.
    assert_eq!(place.run("other", run(&["/bin/true"])).await.0, 0);
    frozen.close().await;
    place.close().await;
}

/// Not a test by itself: the daemon that the next one kills.
#[tokio::test]
#[ignore = "run by the_death_of_the_daemon_loses_neither_process_nor_line_nor_status"]
async fn daemon_to_be_killed() {
    let (Ok(directory), Ok(cgroup_root)) = (std::env::var("NUEE_TEST_PLACE"), std::env::var("NUEE_TEST_GROUP")) else {
        return;
    };
    let directory = std::path::Path::new(&directory);
    let runtime = Place::open(directory, &cgroup_root, OciRuntimeChoice::Auto, Vec::new());
    let script = "n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo line $n; sleep 0.01; done; exit 6";
    runtime.create(crate::place::config_in(directory, "one", shell(script))).await.unwrap();
    let _session = runtime.attach("one", node::AttachOptions::default()).await.unwrap();
    runtime.start("one").await.unwrap();
    std::fs::write(directory.join("ready"), "").unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn the_death_of_the_daemon_loses_neither_process_nor_line_nor_status() {
    let place = Place::new();
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["life::daemon_to_be_killed", "--exact", "--ignored"])
        .env("NUEE_TEST_PLACE", place.directory.path())
        .env("NUEE_TEST_GROUP", &place.cgroup_root)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ready = async {
        while !place.directory.path().join("ready").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::place::PATIENCE, ready).await.unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let logged = place.log_text("one").await.lines().count();
    place.until_logged("one", &format!("line {}\n", logged + 20)).await;
    let found = place.runtime.list().await.unwrap();
    assert_eq!(found[0].status, ContainerStatus::Running);
    // A little later, since the end of the container is that of whoever was let into it.
    let stop = "(sleep 1; echo > /tmp/stop) > /dev/null 2>&1 &";
    assert_eq!(place.exec("one", &["/bin/sh", "-c", stop]).await.0, 0);
    assert_eq!(place.wait("one").await.code, 6);
    let log = place.log_text("one").await;
    for (number, line) in log.lines().enumerate() {
        assert_eq!(line, format!("line {}", number + 1));
    }
    place.close().await;
}
