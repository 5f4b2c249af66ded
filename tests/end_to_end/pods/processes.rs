//! Pods whose containers see each other's processes.

use anyhow::{Context, Result, ensure};
use testkit::Census;

use super::{becomes, ready, value};
use crate::with_images;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: shared}
spec:
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: "busybox:test", command: [httpd, -f, -p, "8080"]}
  - {name: looker, image: "busybox:test", command: [sh, -c, "sleep 3600"]}
---
apiVersion: v1
kind: Pod
metadata: {name: apart}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: "busybox:test", command: [httpd, -f, -p, "8080"]}
  - {name: looker, image: "busybox:test", command: [sh, -c, "sleep 3600"]}
"#;

#[test]
fn containers_of_a_pod_see_each_others_processes_when_it_says_so() -> Result<()> {
    let nuee = with_images()?;
    let before = Census::take(&nuee)?;
    nuee.apply(POD)?.success()?;
    ready(&nuee, &["shared", "apart"])?;
    let inside = |pod: &str, script: &str| -> Result<String> {
        Ok(nuee.kubectl(&["exec", pod, "-c", "looker", "--", "sh", "-c", script])?.success()?.stdout)
    };
    let seen = inside("shared", "ps -o pid,comm")?;
    ensure!(seen.contains("httpd") && seen.lines().any(|line| line.trim() == "1 pause"), "{seen}");
    ensure!(!inside("apart", "ps -o pid,comm")?.contains("httpd"), "pods that do not ask for it share nothing");
    // The first process has nothing to give away, and cannot be ended from inside.
    let reach = "cat /proc/1/environ >/dev/null 2>&1 && echo environ; ls /proc/1/root/ 2>/dev/null; \
        (echo x > /proc/1/exe) 2>/dev/null && echo wrote; kill -9 1; kill 1; grep CapEff /proc/1/status";
    ensure!(inside("shared", reach)? == "CapEff:\t0000000000000000\n", "{}", inside("shared", reach)?);
    // Orphans are collected by it.
    inside("shared", "(sh -c 'sleep 0.1 & exec true' &) ; sleep 1")?;
    nuee.eventually("no zombie is left", || Ok(!inside("shared", "cat /proc/[0-9]*/stat")?.contains(") Z ")))?;

    // A container that another one ends comes back into the same namespace; the other goes on.
    let looker = value(&nuee, "pod/shared", ".status.containerStatuses[?(@.name=='looker')].containerID")?;
    inside("shared", "killall httpd")?;
    becomes(&nuee, "pod/shared", ".status.containerStatuses[?(@.name=='web')].restartCount", "1")?;
    nuee.eventually("the new web is seen", || Ok(inside("shared", "ps -o comm")?.contains("httpd")))?;
    let restarts = ".status.containerStatuses[?(@.name=='looker')].restartCount";
    ensure!(value(&nuee, "pod/shared", restarts)? == "0");

    // The daemon may die: the namespace and who is in it stay, and the next container still finds it.
    nuee.kill_daemon()?;
    nuee.up()?;
    nuee.eventually("the pod is adopted", || Ok(inside("shared", "ps -o comm")?.contains("httpd")))?;
    let after = value(&nuee, "pod/shared", ".status.containerStatuses[?(@.name=='looker')].containerID")?;
    ensure!(after == looker, "the container was started again");
    inside("shared", "killall httpd")?;
    becomes(&nuee, "pod/shared", ".status.containerStatuses[?(@.name=='web')].restartCount", "2")?;
    nuee.eventually("the third web is seen", || Ok(inside("shared", "ps -o comm")?.contains("httpd")))?;
    let gone = Census::take(&nuee)?.beyond(&before);
    ensure!(!gone.is_empty(), "the census is blind");
    nuee.kubectl(&["delete", "pod", "shared", "apart"])?.success()?;
    let mut left = Vec::new();
    let clean = nuee.eventually("nothing of the pods is left", || {
        left = Census::take(&nuee)?.beyond(&before);
        Ok(left.is_empty())
    });
    clean.with_context(|| format!("left: {left:#?}"))?;
    nuee.finish()
}
