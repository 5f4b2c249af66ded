//! Jobs, CronJobs, DaemonSets and StatefulSets, by the real kubectl.

use anyhow::Result;
use testkit::Nuee;

use crate::with_images;

const MANIFEST: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: three}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "busybox:test", command: [sh, -c, "echo index $JOB_COMPLETION_INDEX"]}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: failing}
spec:
  backoffLimit: 0
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "busybox:test", command: [sh, -c, "exit 4"]}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: brief}
spec:
  ttlSecondsAfterFinished: 1
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "busybox:test", command: ["true"]}]}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: often}
spec:
  schedule: "@every 2s"
  successfulJobsHistoryLimit: 1
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "busybox:test", command: ["true"]}]}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "busybox:test", command: [sleep, "3600"]}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "busybox:test", command: [sleep, "3600"]}]}
"#;

#[test]
fn jobs_daemons_and_stateful_sets_do_their_work() -> Result<()> {
    let nuee = with_images()?;
    nuee.apply(MANIFEST)?.success()?;
    let text = |arguments: &[&str]| -> Result<String> { Ok(nuee.kubectl(arguments)?.success()?.stdout) };
    jobs(&nuee, &text)?;
    nuee.kubectl(&["rollout", "status", "daemonset/everywhere", "--timeout=60s"])?.success()?;
    nuee.kubectl(&["rollout", "status", "statefulset/db", "--timeout=60s"])?.success()?;
    // Names and order of a StatefulSet, and its pods' own DNS names.
    assert_eq!(text(&["get", "pods", "-l", "app=db", "-o", "name"])?, "pod/db-0\npod/db-1\n");
    nuee.eventually("db-1 finds db-0 by name", || {
        Ok(nuee.kubectl(&["exec", "db-1", "--", "nslookup", "-type=a", "db-0.db.default.svc.cluster.local"])?.status
            == 0)
    })?;
    // A pod that goes comes back under its own name.
    let uid =
        |nuee: &Nuee| nuee.kubectl(&["get", "pod", "db-1", "--ignore-not-found", "-o", "jsonpath={.metadata.uid}"]);
    let before = uid(&nuee)?.success()?.stdout;
    nuee.kubectl(&["delete", "pod", "db-1"])?.success()?;
    nuee.eventually("db-1 is another pod", || {
        let now = uid(&nuee)?.success()?.stdout;
        Ok(!now.is_empty() && now != before)
    })?;
    // Updates, history and the way back.
    for kind in ["daemonset/everywhere", "statefulset/db"] {
        let wait = |nuee: &Nuee| nuee.kubectl(&["rollout", "status", kind, "--timeout=60s"]);
        let mark = || text(&["get", kind, "-o", "jsonpath={.spec.template.spec.containers[0].env[0].value}"]);
        wait(&nuee)?.success()?;
        nuee.kubectl(&["set", "env", kind, "MARK=two"])?.success()?;
        wait(&nuee)?.success()?;
        assert_eq!(mark()?, "two");
        let history = text(&["rollout", "history", kind])?;
        assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
        nuee.kubectl(&["rollout", "undo", kind])?.success()?;
        wait(&nuee)?.success()?;
        assert_eq!(mark()?, "");
    }
    nuee.kubectl(&["scale", "statefulset/db", "--replicas=1"])?.success()?;
    nuee.eventually("db-1 is gone", || Ok(text(&["get", "pods", "-l", "app=db", "-o", "name"])? == "pod/db-0\n"))?;
    nuee.kubectl(&["delete", "daemonset/everywhere", "statefulset/db", "job/three", "job/failing"])?.success()?;
    nuee.eventually("their pods are collected", || {
        let listed = text(&["get", "pods", "-o", "name"])?;
        Ok(!["everywhere", "db-", "three", "failing"].iter().any(|name| listed.contains(name)))
    })?;
    nuee.finish()
}

fn jobs(nuee: &Nuee, text: &dyn Fn(&[&str]) -> Result<String>) -> Result<()> {
    nuee.kubectl(&["wait", "--for=condition=Complete", "job/three", "--timeout=60s"])?.success()?;
    nuee.kubectl(&["wait", "--for=condition=Failed", "job/failing", "--timeout=60s"])?.success()?;
    assert_eq!(
        text(&["get", "job", "three", "-o", "jsonpath={.status.succeeded} {.status.completedIndexes}"])?,
        "3 0-2"
    );
    let mut said: Vec<String> =
        text(&["logs", "-l", "job-name=three", "--tail=-1"])?.lines().map(str::to_owned).collect();
    said.sort();
    assert_eq!(said, ["index 0", "index 1", "index 2"]);
    let reason = "jsonpath={.status.conditions[?(@.type=='Failed')].reason}";
    assert_eq!(text(&["get", "job", "failing", "-o", reason])?, "BackoffLimitExceeded");
    nuee.eventually("the brief job cleaned itself up", || {
        Ok(text(&["get", "job", "brief", "--ignore-not-found", "-o", "name"])?.is_empty())
    })?;
    nuee.eventually("the CronJob ran twice and forgot the first", || {
        let seen = text(&[
            "get",
            "events",
            "--field-selector",
            "involvedObject.name=often,reason=SuccessfulCreate",
            "-o",
            "name",
        ])?;
        Ok(seen.lines().count() >= 3)
    })?;
    nuee.kubectl(&["create", "job", "by-hand", "--from=cronjob/often"])?.success()?;
    nuee.kubectl(&["wait", "--for=condition=Complete", "job/by-hand", "--timeout=60s"])?.success()?;
    nuee.kubectl(&["delete", "cronjob", "often"])?.success()?;
    Ok(())
}
