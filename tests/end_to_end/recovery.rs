//! The daemon dies; workloads do not.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use testkit::{Census, Nuee};

use crate::with_images;

#[test]
fn containers_outlive_a_killed_daemon_and_are_adopted_with_logs_and_exit_codes() -> Result<()> {
    let nuee = with_images()?;
    let script = "i=0; while [ $i -lt 600 ]; do echo tick $i; i=$((i+1)); sleep 0.1; done";
    nuee.docker(&["run", "-d", "--name", "ticker", "busybox:test", "sh", "-c", script])?.success()?;
    nuee.docker(&[
        "run",
        "-d",
        "--name",
        "mortal",
        "busybox:test",
        "sh",
        "-c",
        "while [ ! -e /stop ]; do sleep 0.05; done; exit 42",
    ])?
    .success()?;
    nuee.docker(&["run", "-d", "--name", "web", "-p", "8080:80", "web:test"])?.success()?;
    let pid = nuee.docker(&["inspect", "-f", "{{.State.Pid}}", "ticker"])?.success()?.stdout;
    nuee.kill_daemon()?;
    assert_eq!(nuee.fetch("http://127.0.0.1:8080/")?, "hello from a cloud\n");
    let log = |nuee: &testkit::Nuee| {
        Ok::<usize, anyhow::Error>(nuee.docker(&["logs", "ticker"])?.success()?.stdout.lines().count())
    };
    nuee.up()?;
    assert_eq!(nuee.docker(&["inspect", "-f", "{{.State.Pid}}", "ticker"])?.success()?.stdout, pid);
    let before = log(&nuee)?;
    nuee.eventually("the log grows", || Ok(log(&nuee)? > before))?;
    let text = nuee.docker(&["logs", "ticker"])?.success()?.stdout;
    for (index, line) in text.lines().enumerate() {
        assert_eq!(line, format!("tick {index}"));
    }
    nuee.kill_daemon()?;
    nuee.run("touch", &[&upper_file(&nuee, "mortal")?])?.success()?;
    nuee.up()?;
    assert_eq!(nuee.docker(&["wait", "mortal"])?.success()?.text(), "42");
    nuee.finish()
}

/// A path on the machine by which a file in the container can be made while there is no daemon to ask: its process' root.
fn upper_file(nuee: &testkit::Nuee, name: &str) -> Result<String> {
    // The daemon is down: find the process by what it runs.
    let found =
        nuee.run("sh", &["-c", &format!("grep -lz 'e /stop' /proc/[0-9]*/cmdline | head -1 # {name}")])?.success()?;
    let pid = found.text().split('/').nth(2).unwrap_or_default().to_owned();
    Ok(format!("/proc/{pid}/root/stop"))
}

/// How often the daemon is killed while containers with `--rm` end.
const ENDS: u32 = 6;
/// How much later in their end it is killed than the time before. An end takes some tens of milliseconds.
const LATER: Duration = Duration::from_millis(6);

#[test]
fn containers_that_are_to_be_removed_are_whenever_the_daemon_is_killed() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&["run", "--rm", "busybox:test", "true"])?.success()?;
    let before = Census::take(&nuee)?;
    for round in 0..ENDS {
        // They end one after another, so that the daemon is killed in another part of each one's end.
        for number in 0..4 {
            let script = format!("while [ ! -e /kept/stop-{round} ]; do sleep 0.01; done; sleep 0.0{number}; exit 3");
            nuee.docker(&["run", "-d", "--rm", "-v", "kept:/kept", "busybox:test", "sh", "-c", &script])?.success()?;
        }
        // From outside: a container that does it would end only after some of them.
        std::fs::write(nuee.data().join(format!("volumes/kept/_data/stop-{round}")), "")?;
        std::thread::sleep(LATER * round);
        nuee.kill_daemon()?;
        nuee.up()?;
        nuee.eventually("they are removed", || {
            Ok(nuee.docker(&["ps", "--all", "--quiet"])?.success()?.text().is_empty())
        })?;
    }
    nuee.docker(&["volume", "rm", "kept"])?.success()?;
    // What forks shims comes with the first container that is started.
    nuee.docker(&["run", "--rm", "busybox:test", "true"])?.success()?;
    let mut left = Vec::new();
    nuee.eventually("nothing is left of them", || {
        left = Census::take(&nuee)?.beyond(&before);
        Ok(left.is_empty())
    })
    .map_err(|error| error.context(format!("left: {left:#?}")))?;
    nuee.finish()
}

/// Shims of this Nuée, or what forks them: process ids.
fn shims(nuee: &Nuee, word: &str) -> Vec<i32> {
    let all = testkit::processes(&nuee.data().display().to_string()).into_iter();
    let chosen = all.filter(|(_, line)| line.contains(" shim ") && line.contains(word));
    chosen.filter_map(|(pid, _)| i32::try_from(pid).ok()).collect()
}

#[test]
fn a_container_that_is_to_be_removed_is_when_the_daemon_is_killed_in_a_start_that_fails() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&["run", "--rm", "busybox:test", "true"])?.success()?;
    let before = Census::take(&nuee)?;
    let servers = shims(&nuee, " --serve ");
    // Who forks shims stands still, and with it the start.
    let signal_all = |signal: Signal| servers.iter().try_for_each(|pid| kill(Pid::from_raw(*pid), signal));
    assert_eq!(servers.len(), 1);
    signal_all(Signal::SIGSTOP)?;
    let create = ["create", "--rm", "busybox:test", "/nosuch"];
    let id = nuee.docker(&create)?.success()?.text().to_owned();
    let mut client = nuee.docker_command(&["start", &id]);
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let configuration = nuee.data().join("containers").join(&id).join("config.json");
    nuee.eventually("the start is under way", || Ok(configuration.exists()))?;
    nuee.kill_daemon()?;
    signal_all(Signal::SIGCONT)?;
    assert!(!client.wait()?.success());
    nuee.eventually("nobody is left of that daemon", || Ok(shims(&nuee, "").is_empty()))?;
    nuee.up()?;
    nuee.eventually("it is removed", || Ok(nuee.docker(&["ps", "--all", "--quiet"])?.success()?.text().is_empty()))?;
    // What forks shims comes with the first container that is started.
    nuee.docker(&["run", "--rm", "busybox:test", "true"])?.success()?;
    let mut left = Vec::new();
    nuee.eventually("nothing is left of it", || {
        left = Census::take(&nuee)?.beyond(&before);
        Ok(left.is_empty())
    })
    .map_err(|error| error.context(format!("left: {left:#?}")))?;
    nuee.finish()
}

#[test]
fn a_container_that_is_made_anew_starts_though_the_shim_of_the_one_before_hangs() -> Result<()> {
    let nuee = with_images()?;
    let run = ["run", "-d", "-p", "8080:80", "busybox:test", "sh", "-c", "echo the first; sleep 6000"];
    let id = nuee.docker(&run)?.success()?.text().to_owned();
    let inspect = ["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", &id];
    let address = nuee.docker(&inspect)?.success()?.text().to_owned();
    let address = nuee.data().join("network/addresses/default").join(address);
    assert!(address.exists(), "{}", address.display());
    let object = || -> Result<Value> {
        Ok(serde_json::from_str(&nuee.kubectl(&["get", "containers", &id, "-o", "json"])?.success()?.stdout)?)
    };
    let first = object()?;
    let mut second = json!({
        "apiVersion": first["apiVersion"],
        "kind": first["kind"],
        "spec": first["spec"],
        "metadata": {
            "name": id,
            "namespace": first["metadata"]["namespace"],
            "labels": first["metadata"]["labels"],
            "annotations": first["metadata"]["annotations"],
            "finalizers": first["metadata"]["finalizers"],
        },
    });
    second["spec"]["command"] = json!(["sh", "-c", "echo the second; sleep 6000"]);
    let hung = shims(&nuee, &id);
    assert_eq!(hung.len(), 1);
    kill(Pid::from_raw(hung[0]), Signal::SIGSTOP)?;
    // Nobody holds the object any more, so that it is gone with the deletion, however long the clearing takes.
    let let_go = r#"{"metadata":{"finalizers":null}}"#;
    nuee.kubectl(&["patch", "containers", &id, "--type=merge", "--patch", let_go])?.success()?;
    nuee.kubectl(&["delete", "containers", &id, "--wait=false"])?.success()?;
    testkit::Output::fed(nuee.kubectl_command(&["create", "-f", "-"]), second.to_string().as_bytes())?.success()?;
    let uid = object()?["metadata"]["uid"].clone();
    assert_ne!(uid, first["metadata"]["uid"]);
    nuee.eventually("the second one runs, and the hung shim is gone", || {
        // What the shim carries leads to the address of the first one.
        let is_free = !address.exists();
        ensure!(!is_free || !shims(&nuee, &id).contains(&hung[0]), "the address is free before the shim is gone");
        let found = object()?;
        assert_eq!(found["metadata"]["uid"], uid);
        Ok(found["status"]["state"] == "running" && !shims(&nuee, &id).contains(&hung[0]))
    })?;
    nuee.eventually("it has its own log", || Ok(nuee.docker(&["logs", &id])?.stdout == "the second\n"))?;
    nuee.docker(&["rm", "-f", &id])?.success()?;
    nuee.finish()
}

#[test]
fn a_network_that_a_container_was_to_leave_when_the_daemon_was_killed_is_left_by_the_next() -> Result<()> {
    let nuee = with_images()?;
    let id = nuee.docker(&["run", "-d", "-p", "8080:80", "web:test"])?.success()?.text().to_owned();
    // The shim, which carries, does not say that it has stopped.
    let hung = shims(&nuee, &id);
    assert_eq!(hung.len(), 1);
    let signal = |signal: Signal| kill(Pid::from_raw(hung[0]), signal);
    signal(Signal::SIGSTOP)?;
    let mut client = nuee.docker_command(&["network", "disconnect", "bridge", &id]);
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mode = ["get", "containers", &id, "-o", "jsonpath={.spec.networkMode}"];
    nuee.eventually("it is to leave", || Ok(nuee.kubectl(&mode)?.success()?.text() == "none"))?;
    nuee.kill_daemon()?;
    assert!(!client.wait()?.success());
    signal(Signal::SIGCONT)?;
    nuee.up()?;
    nuee.eventually("it has left", || {
        let refused = nuee.run("curl", &["-sg", "-m", "20", "http://[::1]:8080/"])?.status == 7;
        Ok(refused && nuee.docker(&["port", &id])?.success()?.stdout.is_empty())
    })?;
    assert_eq!(shims(&nuee, &id), hung);
    nuee.finish()
}

/// A service that leads somewhere.
const LATE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: late}\nspec: {ports: [{port: 80}]}\n---\n\
    apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
    metadata: {name: late-by-hand, labels: {kubernetes.io/service-name: late}}\naddressType: IPv4\nports: [{port: 80}]\n\
    endpoints: [{addresses: [10.88.0.2]}]\n";
/// Stops itself, in place of nft, as long as a file is there.
const FROZEN_NFT: &str = "#!/bin/sh\n[ -e FILES/freeze ] && kill -STOP $$\nexec NFT \"$@\"\n";

#[test]
fn a_daemon_whose_nft_freezes_answers_and_goes_on_afterwards() -> Result<()> {
    let nuee = with_images()?;
    nuee.nuee(&["down"])?.success()?;
    let nft = nuee.run("sh", &["-c", "command -v nft"])?.success()?;
    let (bin, freeze) = (nuee.files().join("bin"), nuee.files().join("freeze"));
    std::fs::create_dir(&bin)?;
    let script = FROZEN_NFT.replace("FILES", &nuee.files().display().to_string()).replace("NFT", nft.text());
    std::fs::write(bin.join("nft"), script)?;
    std::fs::set_permissions(bin.join("nft"), std::fs::Permissions::from_mode(0o755))?;
    let mut up = nuee.space().command(env!("CARGO_BIN_EXE_nuee"));
    up.args(["up", "--detach", "--data-dir"]).arg(nuee.data());
    up.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH")?));
    testkit::Output::of(up)?.success()?;
    let ids = ["8080:80", "8081:80", "8082:80"]
        .iter()
        .map(|port| Ok(nuee.docker(&["run", "-d", "-p", port, "web:test"])?.success()?.text().to_owned()));
    let ids = ids.collect::<Result<Vec<_>>>()?;

    std::fs::write(&freeze, "")?;
    nuee.apply(LATE)?.success()?;
    let frozen = || {
        let all = testkit::processes(&bin.join("nft").display().to_string()).into_iter();
        let is_stopped =
            |pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "));
        all.filter(|(pid, _)| is_stopped(*pid)).count()
    };
    nuee.eventually("nft is frozen", || Ok(frozen() > 0))?;
    // Each of them looks at its ports, as often as something changes.
    for (round, id) in ids.iter().cycle().take(2 * ids.len()).enumerate() {
        let label = format!("round={round}");
        nuee.kubectl(&["label", "--overwrite", "--request-timeout=60s", "containers", id, &label])?.success()?;
    }
    let socket = nuee.data().join("docker.sock").display().to_string();
    let ask = ["--silent", "--max-time", "60", "--unix-socket", &socket, "http://docker/containers/json"];
    assert_eq!(nuee.run("curl", &ask)?.success()?.text().matches("\"Id\"").count(), 3);
    nuee.eventually("it is given up", || {
        let log = std::fs::read_to_string(nuee.data().join("nuee.log"))?;
        Ok(log.contains("nft: it did not end within 30 s, and was killed"))
    })?;
    std::fs::remove_file(&freeze)?;
    let address = ["get", "service", "late", "-o", "jsonpath={.spec.clusterIP}"];
    let address = nuee.kubectl(&address)?.success()?.text().to_owned();
    nuee.eventually("what it was about is done", || {
        Ok(nuee.run("nft", &["list", "ruleset"])?.stdout.contains(&address))
    })?;
    assert_eq!(frozen(), 0);
    nuee.docker(&[&["rm", "-f"][..], &ids.iter().map(String::as_str).collect::<Vec<_>>()].concat())?.success()?;
    nuee.finish()
}

/// Containers that run when the daemon is killed. The time is measured by `bench/docker`; here it is only that none is lost.
const CROWD: usize = 100;
/// Clients that start them.
const CLIENTS: usize = 4;

#[test]
fn a_hundred_containers_are_adopted_and_answered_for() -> Result<()> {
    let nuee = with_images()?;
    let names: Vec<String> = (0..CROWD).map(|index| format!("crowd-{index}")).collect();
    std::thread::scope(|scope| {
        let parts = names.chunks(CROWD / CLIENTS).map(|part| {
            let nuee = &nuee;
            scope.spawn(move || -> Result<()> {
                for name in part {
                    let run = ["run", "-d", "--name", name, "busybox:test", "sleep", "6000"];
                    nuee.docker(&run)?.success()?;
                }
                Ok(())
            })
        });
        let parts: Vec<_> = parts.collect();
        parts.into_iter().try_for_each(|part| part.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })?;
    let about = |format: &str| -> Result<String> {
        let mut arguments = vec!["inspect", "--format", format];
        arguments.extend(names.iter().map(String::as_str));
        Ok(nuee.docker(&arguments)?.success()?.stdout)
    };
    let facts = "{{.Name}} {{.State.Running}} {{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{.NetworkSettings.IPAddress}}";
    let before = about(facts)?;
    nuee.kill_daemon()?;
    nuee.up()?;
    // The first answer already knows them all.
    let listed = nuee.docker(&["ps", "--format", "{{.Names}} {{.State}}"])?.success()?.stdout;
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    let mut wanted: Vec<String> = names.iter().map(|name| format!("{name} running")).collect();
    wanted.sort_unstable();
    assert_eq!(listed, wanted);
    assert_eq!(about(facts)?, before);
    // Adopted, not only remembered: an exit is seen, and a command gets in.
    assert_eq!(nuee.docker(&["exec", "crowd-0", "echo", "in"])?.success()?.text(), "in");
    nuee.docker(&["kill", "crowd-99"])?.success()?;
    assert_eq!(nuee.docker(&["wait", "crowd-99"])?.success()?.text(), "137");
    nuee.finish()
}

#[test]
fn everything_comes_back_after_down_and_up() -> Result<()> {
    let nuee = with_images()?;
    nuee.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"])?.success()?;
    nuee.docker(&["run", "-d", "--name", "kept", "busybox:test", "sleep", "600"])?.success()?;
    nuee.nuee(&["down"])?.success()?;
    nuee.up()?;
    nuee.kubectl(&["get", "configmap", "kept"])?.success()?;
    assert_eq!(nuee.docker(&["ps", "--format", "{{.Names}}"])?.success()?.text(), "kept");
    nuee.finish()
}
