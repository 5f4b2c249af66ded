//! Security contexts and resource limits, as seen from inside.

use anyhow::Result;

use super::{becomes, pod, ready, told, value};
use crate::with_images;

#[test]
fn a_security_context_and_limits_hold_inside() -> Result<()> {
    let nuee = with_images()?;
    std::fs::create_dir_all(nuee.data().join("seccomp"))?;
    let profile =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(nuee.data().join("seccomp/no-mkdir.json"), profile)?;
    let volumes = "  volumes: [{name: v, emptyDir: {}}]\n";
    let mount = "    volumeMounts: [{name: v, mountPath: /v}]\n";
    let identity = format!(
        "{volumes}  securityContext: {{runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000], sysctls: [{{name: net.ipv4.ip_unprivileged_port_start, value: '80'}}]}}"
    );
    let context = |text: &str| format!("    securityContext: {{{text}}}");
    let manifest = [
        pod("identity", "sleep 600", &identity, mount),
        pod("caps", "sleep 600", "", &context("capabilities: {add: [NET_ADMIN], drop: [CHOWN]}")),
        pod("locked", "sleep 600", "", &context("readOnlyRootFilesystem: true, allowPrivilegeEscalation: false")),
        pod("open", "sleep 600", "", &context("privileged: true")),
        pod("profile", "sleep 600", "", &context("seccompProfile: {type: Localhost, localhostProfile: no-mkdir.json}")),
        pod("not-root", "sleep 600", "", &context("runAsNonRoot: true")),
        pod("sysctl", "sleep 600", "  securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}", ""),
        pod(
            "small",
            "sleep 600",
            "",
            "    resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 250m, memory: 32Mi}}",
        ),
        pod(
            "hungry",
            "dd if=/dev/zero of=/dev/null bs=256M count=1",
            "  restartPolicy: Never",
            "    resources: {limits: {memory: 32Mi}}",
        ),
    ]
    .concat();
    nuee.apply(&manifest)?.success()?;
    ready(&nuee, &["identity", "caps", "locked", "open", "profile", "small"])?;
    let inside = |pod: &str, script: &str| -> Result<String> {
        Ok(nuee.kubectl(&["exec", pod, "--", "sh", "-c", script])?.success()?.stdout.trim().to_owned())
    };
    let line = |pod: &str, key: &str| inside(pod, &format!("grep ^{key}: /proc/1/status | cut -f2"));
    assert_eq!(
        inside("identity", "id -u; id -g; id -G | tr ' ' '\\n' | sort | tr '\\n' ' '")?,
        "1000\n3000\n2000 3000 4000"
    );
    assert_eq!(inside("identity", "touch /v/x; stat -c %g /v/x")?, "2000");
    assert_eq!(inside("identity", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start")?, "80");
    let caps = |pod: &str| -> Result<u64> { Ok(u64::from_str_radix(&line(pod, "CapEff")?, 16)?) };
    let (net_admin, chown) = (1 << 12, 1 << 0);
    assert_eq!(caps("caps")? & (net_admin | chown), net_admin);
    assert_eq!(caps("locked")? & (net_admin | chown), chown);
    assert_eq!((line("locked", "NoNewPrivs")?, line("caps", "NoNewPrivs")?), ("1".into(), "0".into()));
    assert_eq!((line("locked", "Seccomp")?, line("open", "Seccomp")?), ("2".into(), "0".into()));
    assert!(inside("locked", "touch /x 2>&1 || true")?.contains("Read-only file system"));
    assert!(inside("profile", "mkdir /tmp/x 2>&1 || true")?.contains("Operation not permitted"));
    becomes(&nuee, "pod/not-root", ".status.containerStatuses[0].state.waiting.reason", "CreateContainerConfigError")?;
    told(&nuee, "not-root", "Failed", "container has runAsNonRoot and image will run as root")?;
    becomes(&nuee, "pod/sysctl", ".status.reason", "SysctlForbidden")?;
    let limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    let seen = inside("small", limits)?;
    assert!(seen.starts_with("67108864\n50000"), "{seen}");
    assert_eq!(value(&nuee, "pod/small", ".status.qosClass")?, "Burstable");
    becomes(&nuee, "pod/hungry", ".status.containerStatuses[0].state.terminated.reason", "OOMKilled")?;
    assert_eq!(value(&nuee, "pod/hungry", ".status.containerStatuses[0].state.terminated.exitCode")?, "137");
    nuee.finish()
}
