//! Init containers, sidecars, restart policies, hooks, and how a pod ends.

use anyhow::Result;

use super::{becomes, pod, told, value};
use crate::with_images;

const STATE: &str = ".status.containerStatuses[0].state.terminated";

#[test]
fn containers_start_in_order_restart_by_policy_and_leave_their_last_words() -> Result<()> {
    let nuee = with_images()?;
    let volume = "  volumes: [{name: v, emptyDir: {}}]\n";
    let mount = "    volumeMounts: [{name: v, mountPath: /v}]";
    let init = |name: &str, script: &str, more: &str| {
        format!(
            "  - {{name: {name}, image: 'busybox:test', command: [sh, -c, '{script}'], volumeMounts: [{{name: v, mountPath: /v}}]{more}}}\n"
        )
    };
    let ordered = [
        "  restartPolicy: Never\n",
        volume,
        "  initContainers:\n",
        &init("first", "echo first >> /v/log", ""),
        &init(
            "side",
            "echo side >> /v/log; touch /v/up; sleep 600",
            ", restartPolicy: Always, startupProbe: {exec: {command: [cat, /v/up]}, periodSeconds: 1}",
        ),
        &init("second", "echo second >> /v/log", ""),
    ]
    .concat();
    let once = "test -e /v/again && exit 0; touch /v/again; exit 7";
    let manifest = [
        pod("ordered", "cat /v/log", &ordered, mount),
        pod(
            "badly-begun",
            "true",
            &["  restartPolicy: Never\n", volume, "  initContainers:\n", &init("fails", "exit 5", "")].concat(),
            mount,
        ),
        pod("on-failure", once, &["  restartPolicy: OnFailure\n", volume].concat(), mount),
        pod("never", "echo gone > /dev/termination-log; exit 3", "  restartPolicy: Never", ""),
        pod(
            "own-path",
            "echo elsewhere > /tmp/last",
            "  restartPolicy: Never",
            "    terminationMessagePath: /tmp/last",
        ),
        pod(
            "from-log",
            "echo the end is near; exit 1",
            "  restartPolicy: Never",
            "    terminationMessagePolicy: FallbackToLogsOnError",
        ),
        pod("crashing", "exit 1", "", ""),
        pod("late", "sleep 600", "  restartPolicy: Never\n  activeDeadlineSeconds: 2", ""),
    ]
    .concat();
    nuee.apply(&manifest)?.success()?;
    becomes(&nuee, "pod/ordered", ".status.phase", "Succeeded")?;
    assert_eq!(nuee.kubectl(&["logs", "ordered", "-c", "c"])?.success()?.stdout, "first\nside\nsecond\n");
    becomes(&nuee, "pod/badly-begun", ".status.phase", "Failed")?;
    assert_eq!(value(&nuee, "pod/badly-begun", ".status.initContainerStatuses[0].state.terminated.exitCode")?, "5");
    becomes(&nuee, "pod/on-failure", ".status.phase", "Succeeded")?;
    assert_eq!(value(&nuee, "pod/on-failure", ".status.containerStatuses[0].restartCount")?, "1");
    becomes(&nuee, "pod/never", ".status.phase", "Failed")?;
    for (name, field, wanted) in [
        ("never", "exitCode", "3"),
        ("never", "reason", "Error"),
        ("never", "message", "gone\n"),
        ("own-path", "message", "elsewhere\n"),
        ("own-path", "reason", "Completed"),
        ("from-log", "message", "the end is near"),
    ] {
        becomes(&nuee, &format!("pod/{name}"), &format!("{STATE}.{field}"), wanted)?;
    }
    // The first restart is immediate; the next waits for ten seconds, and says so.
    becomes(&nuee, "pod/crashing", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff")?;
    let said = value(&nuee, "pod/crashing", ".status.containerStatuses[0].state.waiting.message")?;
    let steps = ["10", "20", "40", "80"].map(|seconds| format!("back-off {seconds}s restarting failed container=c"));
    assert!(steps.iter().any(|step| said.starts_with(step.as_str())), "{said}");
    assert_eq!(value(&nuee, "pod/crashing", ".status.containerStatuses[0].lastState.terminated.exitCode")?, "1");
    told(&nuee, "crashing", "BackOff", "Back-off restarting failed container c in pod crashing_default(")?;
    becomes(&nuee, "pod/late", ".status.reason", "DeadlineExceeded")?;
    nuee.finish()
}

#[test]
fn a_pod_ends_by_its_hook_its_signal_or_by_force() -> Result<()> {
    let nuee = with_images()?;
    let outside = nuee.files().join("notes");
    std::fs::create_dir_all(&outside)?;
    let volume = format!("  volumes: [{{name: v, hostPath: {{path: {}}}}}]", outside.display());
    let mount = "    volumeMounts: [{name: v, mountPath: /v}]\n";
    let trap =
        |note: &str| format!("trap 'echo {note} >> /v/{note}; exit 0' TERM; while true; do sleep 1 & wait; done");
    let hook = |action: &str| format!("{mount}    lifecycle: {{preStop: {{{action}}}}}");
    let stubborn = "trap '' TERM; while true; do sleep 1 & wait; done";
    let patient = |spec: String| spec.replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 20");
    let manifest = [
        patient(pod("term", &trap("term"), &volume, mount)),
        patient(pod("exec-hook", &trap("exec-signal"), &volume, &hook("exec: {command: [sh, -c, 'echo hook > /v/exec-hook']}"))),
        patient(pod(
            "http-hook",
            "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho asked > /v/http-hook\\necho; echo\\n' > /www/cgi-bin/bye; chmod +x /www/cgi-bin/bye; exec httpd -f -p 8080 -h /www",
            &volume,
            &hook("httpGet: {port: 8080, path: /cgi-bin/bye}"),
        )),
        patient(pod("sleep-hook", &trap("sleep-signal"), &volume, &hook("sleep: {seconds: 1}"))),
        pod("stubborn", stubborn, &volume, mount),
        pod("begun", "sleep 600", &volume, &format!("{mount}    lifecycle: {{postStart: {{exec: {{command: [sh, -c, 'echo begun > /v/begun']}}}}}}")),
    ]
    .concat();
    nuee.apply(&manifest)?.success()?;
    let names = ["term", "exec-hook", "http-hook", "sleep-hook", "stubborn", "begun"];
    super::ready(&nuee, &names)?;
    let note = |name: &str| std::fs::read_to_string(outside.join(name)).unwrap_or_default();
    assert_eq!(note("begun"), "begun\n");
    nuee.kubectl(&[&["delete", "pod"], names.as_slice()].concat())?.success()?;
    for (name, wanted) in [
        ("term", "term\n"),
        ("exec-hook", "hook\n"),
        ("exec-signal", "exec-signal\n"),
        ("http-hook", "asked\n"),
        ("sleep-signal", "sleep-signal\n"),
    ] {
        assert_eq!(note(name), wanted, "{name}");
    }
    nuee.finish()
}
