//! Control groups against a fake directory tree, and v1 parsing. The real ones are in the integration tests.

use super::*;

const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

#[test]
fn hybrid_counts_as_v1_and_unified_as_v2() {
    let Some(Hierarchies::V1(mounts)) = Hierarchies::parse(HYBRID) else { panic!("not v1") };
    assert_eq!(mounts[0], (vec!["cpu".into(), "cpuacct".into()], "/sys/fs/cgroup/cpu,cpuacct".into()));
    assert_eq!(mounts[2].0, ["name=systemd"]);
    let unified = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup rw,nsdelegate\n";
    assert_eq!(Hierarchies::parse(unified), Some(Hierarchies::V2("/sys/fs/cgroup".into())));
    assert_eq!(Hierarchies::parse("garbage"), None);
}

/// A directory that looks like a v2 group with these files.
fn fake_v2(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
    let root = tempfile::tempdir().unwrap();
    let cgroup = Cgroup::new(Hierarchies::V2(root.path().to_path_buf()), "/nuee-test/one");
    cgroup.create(&[]).unwrap();
    for (name, content) in files {
        std::fs::write(root.path().join("nuee-test/one").join(name), content).unwrap();
    }
    (root, cgroup)
}

#[test]
fn v2_limits_are_written_in_the_unified_words() {
    let (root, cgroup) = fake_v2(&[
        ("cpu.weight", ""),
        ("cpu.max", ""),
        ("memory.max", ""),
        ("memory.swap.max", ""),
        ("pids.max", ""),
        ("cpuset.cpus", ""),
    ]);
    cgroup
        .apply(&Limits {
            cpu_shares: Some(1_024),
            cpu_quota_us: Some(50_000),
            memory_bytes: Some(64 << 20),
            memory_swap_bytes: Some(128 << 20),
            pids: Some(-1),
            cpuset_cpus: Some("0".into()),
            ..Limits::default()
        })
        .unwrap();
    let value = |name: &str| std::fs::read_to_string(root.path().join("nuee-test/one").join(name)).unwrap();
    assert_eq!(value("cpu.weight"), "39");
    assert_eq!(value("cpu.max"), "50000 100000");
    assert_eq!(value("memory.max"), "67108864");
    assert_eq!(value("memory.swap.max"), "67108864");
    assert_eq!(value("pids.max"), "max");
    assert_eq!(value("cpuset.cpus"), "0");
}

#[test]
fn v2_figures_are_read() {
    let (_root, cgroup) = fake_v2(&[
        ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 3\nnr_throttled 2\n"),
        ("memory.current", "4096\n"),
        ("memory.max", "max\n"),
        ("memory.stat", "anon 1\ninactive_file 77\n"),
        ("memory.events", "low 0\noom 3\noom_kill 2\n"),
        ("pids.current", "5\n"),
        ("pids.max", "10\n"),
        ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n"),
        ("cgroup.procs", "12\n0\n13\n"),
    ]);
    let figures = cgroup.statistics();
    assert_eq!((figures.cpu_ns, figures.cpu_user_ns, figures.throttled_periods), (1_500_000, 1_000_000, 2));
    assert_eq!((figures.memory_bytes, figures.memory_inactive_file_bytes), (4_096, 77));
    assert_eq!((figures.memory_limit_bytes, figures.pids, figures.pids_limit), (u64::MAX, 5, 10));
    assert_eq!((figures.block_read_bytes, figures.block_write_bytes), (11, 22));
    assert_eq!(cgroup.out_of_memory_kills(), 2);
    assert_eq!(cgroup.pids(), [12, 13]);
}

#[test]
fn v2_freezes_by_its_own_file() {
    let (root, cgroup) = fake_v2(&[("cgroup.freeze", "0\n"), ("cgroup.events", "populated 1\nfrozen 1\n")]);
    cgroup.freeze().unwrap();
    assert!(cgroup.is_frozen());
    assert_eq!(std::fs::read_to_string(root.path().join("nuee-test/one/cgroup.freeze")).unwrap().trim(), "1");
    cgroup.thaw().unwrap();
    assert!(!cgroup.is_frozen());
}

#[test]
fn removing_takes_nested_groups_and_is_idempotent() {
    let root = tempfile::tempdir().unwrap();
    let cgroup = Cgroup::new(Hierarchies::V2(root.path().to_path_buf()), "a/b");
    cgroup.create(&[]).unwrap();
    std::fs::create_dir_all(root.path().join("a/b/c/d")).unwrap();
    cgroup.remove().unwrap();
    cgroup.remove().unwrap();
    assert!(!root.path().join("a/b").exists());
}

#[test]
fn device_rules_speak_v1() {
    let rule = DeviceRule {
        allow: true,
        block: Some(false),
        major: Some(1),
        minor: None,
        read: true,
        write: true,
        mknod: false,
    };
    assert_eq!(rule.to_string(), "c 1:* rw");
    assert_eq!(DeviceRule { block: None, ..rule }.to_string(), "a");
}
