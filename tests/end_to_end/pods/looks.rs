//! Ways to look into a pod: logs of all kinds, exec, attach, cp, port-forward under load, containers added for a look.

use std::io::Read;
use std::process::Stdio;

use anyhow::{Context, Result};
use testkit::Output;

use super::{pod, ready, value};
use crate::with_images;

#[test]
fn logs_exec_attach_cp_and_debug_reach_a_pod() -> Result<()> {
    let nuee = with_images()?;
    let chatty = "i=0; while [ $i -lt 5 ]; do echo line $i; i=$((i+1)); done; echo oops >&2; sleep 600";
    let two = pod("talker", chatty, "", "").replace(
        "  containers:\n",
        "  containers:\n  - {name: other, image: 'busybox:test', command: [sh, -c, 'echo other; sleep 600']}\n",
    );
    // Attaching ends with the container.
    let reader = pod("reader", "read line; echo heard $line", "  restartPolicy: Never", "    stdin: true");
    let labelled = two.replace("{name: talker}", "{name: talker, labels: {app: talker}}");
    let crashed = pod("crashed", "echo run; exit 1", "", "");
    nuee.apply(&[labelled, reader, crashed].concat())?.success()?;
    ready(&nuee, &["talker", "reader"])?;
    let logs = |arguments: &[&str]| -> Result<String> {
        Ok(nuee.kubectl(&[&["logs"], arguments].concat())?.success()?.stdout)
    };
    nuee.eventually("all is said", || Ok(logs(&["talker", "-c", "c"])?.contains("oops")))?;
    assert_eq!(logs(&["talker", "-c", "c", "--tail=2"])?, "line 4\noops\n");
    assert_eq!(logs(&["talker", "-c", "c", "--limit-bytes=6"])?, "line 0");
    assert!(logs(&["talker", "-c", "c", "--timestamps", "--tail=1"])?.starts_with("20"));
    assert_eq!(logs(&["talker", "-c", "c", "--since-time=2099-01-01T00:00:00Z"])?, "");
    let all = logs(&["-l", "app=talker", "--all-containers", "--prefix", "--tail=-1"])?;
    assert!(all.contains("[pod/talker/other] other\n") && all.contains("[pod/talker/c] line 0\n"), "{all}");
    nuee.kubectl(&["logs", "talker", "-c", "none"])?.failure(1, "container none is not valid for pod talker")?;
    nuee.eventually("it ran again", || {
        Ok(value(&nuee, "pod/crashed", ".status.containerStatuses[0].restartCount")? != "0")
    })?;
    assert_eq!(logs(&["crashed", "--previous"])?, "run\n");
    Output::fed(nuee.kubectl_command(&["attach", "-i", "reader"]), b"a word\n")?.success()?;
    nuee.eventually("the word was heard", || Ok(logs(&["reader"])?.contains("heard a word")))?;
    let file = nuee.files().join("sent");
    std::fs::write(&file, vec![b'x'; 300_000])?;
    let (sent, back) = (file.display().to_string(), nuee.files().join("back"));
    // The image has no tar but busybox's, which is enough.
    nuee.kubectl(&["cp", &sent, "talker:/tmp/got", "-c", "c"])?.success()?;
    nuee.kubectl(&["cp", "talker:/tmp/got", &back.display().to_string(), "-c", "c"])?.success()?;
    assert_eq!(std::fs::read(&back)?, std::fs::read(&file)?);
    // A container that sees the processes of another one.
    let debug = [
        "debug",
        "talker",
        "--image=busybox:test",
        "--target=c",
        "-c",
        "look",
        "--profile=general",
        "--",
        "sh",
        "-c",
        "sleep 600",
    ];
    nuee.kubectl(&debug)?.success()?;
    nuee.eventually("the added container runs", || {
        Ok(!value(&nuee, "pod/talker", ".status.ephemeralContainerStatuses[0].state.running.startedAt")?.is_empty())
    })?;
    let seen = nuee.kubectl(&["exec", "talker", "-c", "look", "--", "ps"])?.success()?.stdout;
    assert!(seen.lines().filter(|line| line.contains("sleep 600")).count() >= 2, "its own and the other's: {seen}");
    nuee.finish()
}

#[test]
fn a_flood_of_log_lines_is_rotated_and_stays_bounded() -> Result<()> {
    let nuee = with_images()?;
    // 25 MB in lines of a kilobyte; a file of the log holds ten.
    let flood = "yes $(printf %01000d 7) | head -n 25000; echo the end; sleep 600";
    nuee.apply(&pod("flood", flood, "", ""))?.success()?;
    ready(&nuee, &["flood"])?;
    nuee.eventually("the last line is there", || {
        Ok(nuee.kubectl(&["logs", "flood", "--tail=1"])?.success()?.stdout == "the end\n")
    })?;
    let (mut files, mut bytes) = (0, 0);
    for container in std::fs::read_dir(nuee.data().join("containers"))? {
        for entry in std::fs::read_dir(container?.path())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().contains(".log") {
                files += 1;
                bytes += entry.metadata()?.len();
            }
        }
    }
    assert!((3..=5).contains(&files) && bytes < 60 << 20, "{files} files, {bytes} bytes");
    let all = nuee.kubectl(&["logs", "flood"])?.success()?.stdout;
    assert!(all.lines().rev().skip(1).all(|line| line.len() == 1000), "no line is cut by the rotation");
    nuee.finish()
}

#[test]
fn a_forwarded_port_carries_many_connections() -> Result<()> {
    let nuee = with_images()?;
    let serve = "head -c 1000000 /dev/zero | tr '\\0' x > /tmp/big; exec httpd -f -p 8080 -h /tmp";
    nuee.apply(&pod("web", serve, "", "    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}"))?.success()?;
    ready(&nuee, &["web"])?;
    let mut forward = nuee.kubectl_command(&["port-forward", "pod/web", "18080:8080", "--address=127.0.0.1"]);
    let mut forward = forward.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut line = [0; 64];
    let told = forward.stdout.as_mut().context("no output")?.read(&mut line)?;
    assert!(String::from_utf8_lossy(&line[..told]).starts_with("Forwarding from"));
    let urls: Vec<String> = (0..40).map(|_| "http://127.0.0.1:18080/big".to_owned()).collect();
    let mut arguments = vec![
        "--silent",
        "--fail",
        "--parallel",
        "--parallel-max",
        "20",
        "--no-keepalive",
        "--write-out",
        "%{size_download}\n",
    ];
    for url in &urls {
        arguments.extend(["--output", "/dev/null", url.as_str()]);
    }
    let fetched = nuee.run("curl", &arguments);
    forward.kill()?;
    forward.wait()?;
    let fetched = fetched?.success()?.stdout;
    assert_eq!(fetched.lines().filter(|line| *line == "1000000").count(), 40, "{fetched}");
    nuee.finish()
}
