//! Limits bind, are seen from inside, and are told when they strike.

use std::time::Duration;

use oci_spec::runtime::{LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Spec};
use runtime::cgroup::{Cgroup, DeviceRule, Hierarchies};
use runtime::{ContainerStatus, Error};

use crate::place::{PATIENCE, Place, run, shell};

fn limit(spec: &mut Spec, change: impl FnOnce(&mut LinuxResources)) {
    let linux = spec.linux_mut().as_mut().unwrap();
    let mut resources = linux.resources().clone().unwrap();
    change(&mut resources);
    linux.set_resources(Some(resources));
}

fn memory(bytes: i64) -> impl FnOnce(&mut Spec) {
    move |spec| {
        limit(spec, |resources| {
            resources.set_memory(Some(LinuxMemoryBuilder::default().limit(bytes).swap(bytes).build().unwrap()));
        });
    }
}

fn pids(count: i64) -> impl FnOnce(&mut Spec) {
    move |spec| {
        limit(spec, |resources| {
            resources.set_pids(Some(LinuxPidsBuilder::default().limit(count).build().unwrap()));
        });
    }
}

#[tokio::test]
async fn too_much_memory_is_an_out_of_memory_end() {
    let place = Place::new();
    let mut wanted = run(&["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    wanted.change = Box::new(memory(16 << 20));
    place.start("one", wanted).await;
    let exit = place.wait("one").await;
    assert_eq!((exit.code, exit.out_of_memory), (137, true));
    place.close().await;
}

#[tokio::test]
async fn a_container_sees_its_own_limits() {
    let place = Place::new();
    let mut wanted = shell(
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; cat /proc/self/cgroup",
    );
    wanted.change = Box::new(memory(32 << 20));
    let (_, log) = place.run("one", wanted).await;
    assert!(log.starts_with("33554432\n"), "{log}");
    assert!(!log.contains(&place.cgroup_root), "{log}");
    place.close().await;
}

#[tokio::test]
async fn a_fork_bomb_stays_in_its_group_and_goes_with_it() {
    let place = Place::new();
    // The first fills its group and stays full; the second forks as fast as it can while it is killed.
    let mut wanted = shell("(while true; do sleep 1000 & done); exec sleep 1000");
    wanted.change = Box::new(pids(40));
    place.start("one", wanted).await;
    let mut wanted = shell("bomb() { bomb | bomb & }; bomb; while true; do sleep 1; done");
    wanted.change = Box::new(pids(40));
    place.start("bomb", wanted).await;
    let full = async {
        while place.runtime.statistics("one").await.unwrap().pids < 39 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, full).await.unwrap();
    let figures = place.runtime.statistics("one").await.unwrap();
    assert!(figures.pids <= 40 && figures.pids_limit == 40, "{figures:?}");
    for id in ["bomb", "one"] {
        tokio::time::timeout(PATIENCE, place.runtime.delete(id)).await.unwrap().unwrap();
    }
    place.close().await;
}

#[tokio::test]
async fn a_paused_container_stands_still_and_can_be_killed() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    place.runtime.pause("one").await.unwrap();
    assert_eq!(place.runtime.state("one").await.unwrap().status, ContainerStatus::Paused);
    let request = node::ExecRequest { command: vec!["true".to_owned()], ..node::ExecRequest::default() };
    assert!(matches!(place.runtime.exec("one", request).await, Err(Error::Conflict(_))));
    place.runtime.resume("one").await.unwrap();
    assert_eq!(place.exec("one", &["true"]).await.0, 0);
    place.runtime.pause("one").await.unwrap();
    place.runtime.kill("one", 9).await.unwrap();
    assert_eq!(place.wait("one").await.code, 137);
    place.close().await;
}

#[tokio::test]
async fn limits_change_while_it_runs() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    let resources = LinuxResourcesBuilder::default()
        .memory(LinuxMemoryBuilder::default().limit(64 << 20).swap(64 << 20).build().unwrap())
        .pids(LinuxPidsBuilder::default().limit(17).build().unwrap())
        .build()
        .unwrap();
    place.runtime.update("one", &resources).await.unwrap();
    let figures = place.runtime.statistics("one").await.unwrap();
    assert_eq!((figures.memory_limit_bytes, figures.pids_limit), (64 << 20, 17));
    let pids = place.runtime.pids("one").await.unwrap();
    assert_eq!(pids, [place.runtime.state("one").await.unwrap().pid]);
    assert_eq!(runtime::names(&pids).len(), 1);
    place.close().await;
}

#[tokio::test]
async fn a_log_flood_is_bounded() {
    let place = Place::new();
    let mut wanted = shell("yes 0123456789012345678901234567890123456789 | head -n 200000");
    wanted.log_max_bytes = 1 << 20;
    place.start("one", wanted).await;
    place.wait("one").await;
    let directory = place.log("one").parent().unwrap().to_path_buf();
    let logs: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("log"))
        .collect();
    assert_eq!(logs.len(), 3);
    assert!(logs.iter().all(|entry| entry.metadata().unwrap().len() <= 1 << 20));
    place.close().await;
}

#[tokio::test]
async fn on_v2_a_program_decides_over_devices() {
    // A hybrid machine has v2 without controllers, which is all that device programs need.
    let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .find(|mount| std::path::Path::new(mount).join("cgroup.subtree_control").exists());
    let Some(mount) = mount else { return };
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().file_name().unwrap().to_string_lossy().trim_start_matches('.').to_owned();
    let group = Cgroup::new(Hierarchies::V2(mount.into()), &format!("/nuee-test-{name}"));
    let rules: Vec<DeviceRule> = runtime::spec::default_device_rules().unwrap().iter().map(DeviceRule::from).collect();
    let created = group.create(&rules);
    if created.is_err() {
        group.remove().unwrap();
    }
    created.unwrap();
    let script = "echo 0 > $0; : < /dev/zero && echo zero; mknod $1/loop b 7 0 && echo node; : < $1/loop; echo opened";
    let output = std::process::Command::new("/bin/busybox")
        .args(["sh", "-c", script])
        .arg(&group.entry_files()[0])
        .arg(directory.path())
        .output()
        .unwrap();
    group.kill_all().unwrap();
    group.remove().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "zero\nnode\n", "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not permitted"), "{output:?}");
}
