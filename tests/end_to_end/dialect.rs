//! More of the docker client: terminals, copies, figures, events, networks, images.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::Terminal;

use crate::with_images;

/// Control-P, Control-Q.
const DETACH: &str = "\x10\x11";

#[test]
fn a_terminal_is_sized_left_and_found_again() -> Result<()> {
    let nuee = with_images()?;
    let run = nuee.docker_command(&["run", "-it", "--name", "shell", "busybox:test", "sh"]);
    let mut terminal = Terminal::start(&run, 30, 100)?;
    terminal.until("# ")?;
    // The client sizes it right after the start.
    nuee.eventually("the client's size is seen inside", || {
        terminal.send("stty size\r")?;
        terminal.until("# ")?;
        Ok(terminal.screen().contains("30 100"))
    })?;
    terminal.send("tty\r")?;
    terminal.until("/dev/pts/0")?;
    terminal.resize(41, 121)?;
    nuee.eventually("the new size is seen inside", || {
        terminal.send("stty size\r")?;
        Ok(terminal.screen().contains("41 121"))
    })?;
    terminal.send("left=behind\r")?;
    terminal.send(DETACH)?;
    assert_eq!(terminal.wait()?, 0);
    assert_eq!(nuee.docker(&["inspect", "-f", "{{.State.Running}}", "shell"])?.success()?.text(), "true");

    let mut again = Terminal::start(&nuee.docker_command(&["attach", "shell"]), 24, 80)?;
    // What is typed before the client has the terminal may be lost, so it is typed again.
    nuee.eventually("the shell is as it was left", || {
        again.send("echo it was $left\r")?;
        Ok(again.screen().contains("it was behind"))
    })?;
    // Another pair of keys, and an exec with a terminal beside it.
    let exec = nuee.docker_command(&["exec", "-it", "--detach-keys", "ctrl-x", "shell", "sh"]);
    let mut beside = Terminal::start(&exec, 20, 60)?;
    beside.until("# ")?;
    nuee.eventually("the client's size is seen by the second program", || {
        beside.send("stty size\r")?;
        Ok(beside.screen().contains("20 60"))
    })?;
    beside.send("\x18")?;
    beside.wait()?;
    again.send("exit 5\r")?;
    assert_eq!(again.wait()?, 5);
    nuee.finish()
}

#[test]
fn files_are_copied_both_ways_with_owner_mode_and_links() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&["create", "--name", "box", "busybox:test", "sleep", "600"])?.success()?;
    let tree = nuee.files().join("tree");
    std::fs::create_dir_all(tree.join("deep/er"))?;
    std::fs::write(tree.join("deep/er/file"), "content")?;
    std::os::unix::fs::symlink("deep/er/file", tree.join("link"))?;
    let from = tree.display().to_string();
    // Into one that never ran, and out of it while it runs.
    nuee.docker(&["cp", "-a", &from, "box:/in"])?.success()?;
    nuee.docker(&["start", "box"])?.success()?;
    assert_eq!(nuee.docker(&["exec", "box", "cat", "/in/link"])?.success()?.stdout, "content");
    nuee.docker(&["exec", "box", "sh", "-c", "echo more >> /in/deep/er/file; chmod 640 /in/deep/er/file"])?
        .success()?;
    let to = nuee.files().join("out").display().to_string();
    nuee.docker(&["cp", "box:/in", &to])?.success()?;
    assert_eq!(std::fs::read_to_string(nuee.files().join("out/deep/er/file"))?, "contentmore\n");
    assert_eq!(std::fs::read_link(nuee.files().join("out/link"))?.display().to_string(), "deep/er/file");
    let archive = nuee.docker(&["cp", "box:/in/deep/er/file", "-"])?.success()?.stdout;
    assert!(archive.contains("contentmore"), "a tar on standard output");
    nuee.docker(&["cp", "box:/no/such/file", &to])?.failure(1, "Could not find the file /no/such/file")?;
    nuee.finish()
}

#[test]
fn nothing_is_copied_into_what_is_mounted_for_reading() -> Result<()> {
    let nuee = with_images()?;
    let (host, file) = (nuee.files().join("host"), nuee.files().join("file"));
    std::fs::create_dir(&host)?;
    std::fs::write(&file, "content")?;
    let (bind, from) = (format!("{}:/bind:ro", host.display()), file.display().to_string());
    let mut create = vec!["create", "--name", "box"];
    create.extend(["-v", "data:/volume:ro", "-v", &bind, "-v", "data:/open", "busybox:test", "sleep", "600"]);
    nuee.docker(&create)?.success()?;
    nuee.docker(&["cp", &from, "box:/bind/"])?.failure(1, "mounted volume is marked read-only")?;
    nuee.docker(&["start", "box"])?.success()?;
    for place in ["box:/bind/", "box:/volume/"] {
        nuee.docker(&["cp", &from, place])?.failure(1, "mounted volume is marked read-only")?;
    }
    assert!(!host.join("file").exists());
    nuee.docker(&["exec", "box", "test", "!", "-e", "/volume/file"])?.success()?;
    nuee.docker(&["cp", &from, "box:/open/"])?.success()?;
    assert_eq!(nuee.docker(&["exec", "box", "cat", "/volume/file"])?.success()?.stdout, "content");
    nuee.finish()
}

#[test]
fn top_stats_events_and_disk_use_tell_what_goes_on() -> Result<()> {
    let nuee = with_images()?;
    let mut events = nuee.docker_command(&["events", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}"]);
    let mut child = events.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    // A first event shows that the stream stands; everything after it is seen.
    nuee.eventually("events are told", || {
        nuee.docker(&["volume", "create", "first"])?.success()?;
        nuee.docker(&["volume", "rm", "first"])?.success()?;
        Ok(true)
    })?;
    let script = "dd if=/dev/zero of=/big bs=1k count=300 2>/dev/null; sleep 600";
    nuee.docker(&["run", "-d", "--name", "busy", "busybox:test", "sh", "-c", script])?.success()?;
    nuee.eventually("the sleeper is seen by top", || {
        Ok(nuee.docker(&["top", "busy"])?.success()?.stdout.contains("sleep 600"))
    })?;
    let stats = nuee.docker(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}", "busy"])?;
    let line = stats.success()?.stdout;
    assert!(line.starts_with("busy 1 ") && line.contains("iB / "), "{line}");
    let usage = nuee.docker(&["system", "df", "-v", "--format", "{{json .Containers}}"])?.success()?.stdout;
    let rows: serde_json::Value = serde_json::from_str(&usage)?;
    let size = rows[0]["Size"].as_str().unwrap_or_default();
    assert!(size.starts_with("307") || size.starts_with("308") || size.starts_with("309"), "{usage}");
    nuee.docker(&["kill", "busy"])?.success()?;
    nuee.docker(&["rm", "busy"])?.success()?;
    let wanted = ["container create busy", "container start busy", "container die busy", "container destroy busy"];
    let mut seen = Vec::new();
    while let Some(line) = lines.next().transpose()? {
        if wanted.contains(&line.as_str()) {
            seen.push(line.clone());
        }
        if line == wanted[3] {
            break;
        }
    }
    child.kill()?;
    child.wait()?;
    assert_eq!(seen, wanted);
    nuee.finish()
}

#[test]
fn networks_join_and_leave_and_names_follow() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&["network", "create", "blue"])?.success()?;
    nuee.docker(&["run", "-d", "--name", "web", "--network", "blue", "web:test"])?.success()?;
    let fetch = ["run", "--rm", "--network", "blue", "busybox:test", "wget", "-q", "-O", "-", "http://web/"];
    nuee.eventually("the web server answers", || Ok(nuee.docker(&fetch)?.stdout == "hello from a cloud\n"))?;
    nuee.docker(&["run", "-d", "--name", "loner", "busybox:test", "sleep", "600"])?.success()?;
    let ask = ["exec", "loner", "wget", "-q", "-T", "2", "-O", "-", "http://web/"];
    assert_ne!(nuee.docker(&ask)?.status, 0, "another network knows no such name");
    nuee.docker(&["network", "connect", "--alias", "guest", "blue", "loner"])?.success()?;
    let address =
        nuee.docker(&["inspect", "-f", "{{.NetworkSettings.Networks.blue.IPAddress}}", "web"])?.success()?.stdout;
    let url = format!("http://{}/", address.trim());
    let direct = ["exec", "loner", "wget", "-q", "-O", "-", &url];
    nuee.eventually("the joined network is reached", || Ok(nuee.docker(&direct)?.stdout == "hello from a cloud\n"))?;
    nuee.docker(&["network", "rm", "blue"])?.failure(1, "active endpoints")?;
    nuee.docker(&["network", "disconnect", "blue", "loner"])?.success()?;
    nuee.docker(&["rm", "-f", "web", "loner"])?.success()?;
    nuee.docker(&["network", "rm", "blue"])?.success()?;
    assert!(!nuee.docker(&["network", "ls", "--format", "{{.Name}}"])?.success()?.stdout.contains("blue"));
    nuee.docker(&["volume", "create", "data"])?.success()?;
    assert_eq!(nuee.docker(&["volume", "ls", "-q"])?.success()?.text(), "data");
    nuee.docker(&["volume", "rm", "data"])?.success()?;
    nuee.finish()
}

#[test]
fn a_directory_cannot_be_run_and_is_told_so_as_docker_tells_it() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&["run", "--rm", "busybox:test", "/tmp"])?
        .failure(126, "exec: \"/tmp\": permission denied: unknown")?;
    nuee.docker(&["run", "--rm", "busybox:test", "/no"])?
        .failure(127, "exec: \"/no\": stat /no: no such file or directory: unknown")?;
    nuee.finish()
}

/// The entry with this message; `None` when none came in time.
fn entry(journal: &UnixDatagram, message: &str) -> Result<Option<String>> {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = journal.recv(&mut buffer) {
        let text = String::from_utf8(buffer[..count].to_vec())?;
        if text.ends_with(&format!("MESSAGE={message}\n")) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

#[test]
fn the_journal_gets_what_a_container_says_even_while_the_daemon_is_away() -> Result<()> {
    let nuee = with_images()?;
    // A machine whose journal is ours.
    let prepare = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal";
    anyhow::ensure!(nuee.space().command("sh").args(["-c", prepare]).status()?.success(), "cannot hide /run");
    let script = "echo first; echo second >&2; while ! test -e /tmp/go; do sleep 0.1; done; echo away; sleep 600";
    let options = ["--log-driver", "journald", "--log-opt", "tag={{.Name}}/{{.ImageName}}", "--log-opt", "labels=tier"];
    let patterns = ["--log-opt", "labels-regex=^shop[.]", "--log-opt", "env-regex=^GREET"];
    let options = [&options[..], &patterns[..]].concat();
    let labels = ["--label", "tier=front", "--label", "shop.floor=2", "--label", "other=x"];
    let words = [&["run", "-d", "--name", "teller"], &labels[..], &options[..]].concat();
    let words = [&words[..], &["-v", "errand:/tmp", "busybox:test", "sh", "-c", script]].concat();
    nuee.docker(&words)?.failure(125, "failed to initialize logging driver: journald is not enabled on this host")?;
    nuee.docker(&["rm", "-f", "teller"])?.success()?;

    let journal = UnixDatagram::bind(format!("/proc/{}/root/run/systemd/journal/socket", nuee.space().pid()))?;
    journal.set_read_timeout(Some(Duration::from_secs(30)))?;
    let id = nuee.docker(&words)?.success()?.text().to_owned();
    let first = entry(&journal, "first")?.context("no entry of standard output")?;
    let short = &id[..12];
    let wanted = [
        format!("CONTAINER_ID={short}"),
        format!("CONTAINER_ID_FULL={id}"),
        "CONTAINER_NAME=teller".to_owned(),
        "CONTAINER_TAG=teller/busybox:test".to_owned(),
        "SYSLOG_IDENTIFIER=teller/busybox:test".to_owned(),
        "IMAGE_NAME=busybox:test".to_owned(),
        "TIER=front".to_owned(),
        "SHOP_FLOOR=2".to_owned(),
        "GREETING=hello".to_owned(),
        "PRIORITY=6".to_owned(),
    ];
    for field in &wanted {
        assert!(first.lines().any(|line| line == field), "no {field} in {first}");
    }
    assert!(!first.contains("OTHER="), "{first}");
    let second = entry(&journal, "second")?.context("no entry of standard error")?;
    assert!(second.contains("PRIORITY=3\n"), "{second}");
    let errand = nuee.docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", "errand"])?.success()?.text().to_owned();
    nuee.kill_daemon()?;
    std::fs::write(std::path::Path::new(&errand).join("go"), "")?;
    assert!(entry(&journal, "away")?.is_some(), "said while no daemon ran");
    nuee.up()?;
    let logs = nuee.docker(&["logs", "teller"])?.success()?;
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("first\naway\n", "second\n"));
    nuee.docker(&["rm", "-f", "-v", "teller"])?.success()?;
    nuee.docker(&["volume", "rm", "errand"])?.success()?;
    nuee.finish()
}

/// Removes a control group that a test made, in all hierarchies.
fn remove_group(name: &str) -> Result<()> {
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let group = hierarchy.path().join(name);
        if group.is_dir() {
            std::fs::remove_dir(&group).with_context(|| format!("{} is not empty", group.display()))?;
        }
    }
    Ok(())
}

#[test]
fn containers_have_the_parent_group_they_ask_for_and_the_machines_bound_on_processes_unless_they_ask() -> Result<()> {
    let nuee = testkit::Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))?;
    std::fs::create_dir_all(nuee.data())?;
    std::fs::write(nuee.data().join("config.yaml"), "containerPidsLimit: 64\n")?;
    nuee.up()?;
    nuee.build_images()?;
    let bound = |flags: &[&str]| {
        let look = ["busybox:test", "sh", "-c", "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null"];
        nuee.docker(&[&["run", "--rm"], flags, &look].concat())
    };
    assert_eq!(bound(&[])?.text(), "64");
    assert_eq!(bound(&["--pids-limit", "9"])?.text(), "9");
    assert_eq!(bound(&["--pids-limit", "-1"])?.text(), "max");

    let parent = format!("nuee-test-parent-{}", std::process::id());
    // What would lead out of the hierarchy stays at its top.
    for (name, asked) in [("plain", format!("/{parent}")), ("out", format!("../../{parent}"))] {
        nuee.docker(&["run", "-d", "--name", name, "--cgroup-parent", &asked, "busybox:test", "sleep", "600"])?
            .success()?;
        let facts = nuee.docker(&["inspect", "-f", "{{.Id}} {{.State.Pid}} {{.HostConfig.CgroupParent}}", name])?;
        let facts = facts.success()?.text().to_owned();
        let words: Vec<&str> = facts.split(' ').collect();
        let [id, pid, shown] = words[..] else { anyhow::bail!("{facts}") };
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        assert!(groups.lines().any(|line| line.ends_with(&format!(":/{parent}/{id}"))), "{groups}");
        assert_eq!(shown, asked);
    }
    // All that works on a control group finds it: exec, figures, pause, a daemon that comes back, the end.
    assert_eq!(nuee.docker(&["exec", "plain", "echo", "inside"])?.success()?.text(), "inside");
    nuee.kill_daemon()?;
    nuee.up()?;
    nuee.docker(&["pause", "plain"])?.success()?;
    nuee.docker(&["unpause", "plain"])?.success()?;
    let figures = nuee.docker(&["stats", "--no-stream", "--format", "{{.PIDs}}", "plain"])?.success()?;
    assert_eq!(figures.text(), "1");
    nuee.docker(&["rm", "-f", "plain", "out"])?.success()?;
    remove_group(&parent)?;
    nuee.finish()
}

#[test]
fn steps_of_a_build_have_the_parent_group_that_is_asked_for() -> Result<()> {
    let nuee = with_images()?;
    let parent = format!("nuee-test-builds-{}", std::process::id());
    let project = nuee.files().join("slow");
    std::fs::create_dir(&project)?;
    std::fs::write(project.join("Dockerfile"), "FROM busybox:test\nRUN exec sleep 6000\n")?;
    let project = project.display().to_string();
    let mut command = nuee.docker_command(&["build", "--cgroup-parent", &format!("../{parent}"), &project]);
    let mut client = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
    let sleeps = || -> Result<bool> {
        let within = |process: std::fs::DirEntry| {
            let read = |name: &str| std::fs::read_to_string(process.path().join(name)).unwrap_or_default();
            read("cmdline").split('\0').eq(["sleep", "6000", ""])
                && read("cgroup").lines().any(|line| line.contains(&format!(":/{parent}/")))
        };
        Ok(std::fs::read_dir("/proc")?.flatten().any(within))
    };
    nuee.eventually("the step is in the group", sleeps)?;
    client.kill()?;
    client.wait()?;
    nuee.eventually("the step is gone", || Ok(!sleeps()?))?;
    nuee.eventually("its group is gone", || Ok(remove_group(&parent).is_ok()))?;
    nuee.finish()
}

#[test]
fn a_build_takes_its_context_from_a_url() -> Result<()> {
    let nuee = with_images()?;
    let site = nuee.files().join("site");
    std::fs::create_dir(&site)?;
    std::fs::write(site.join("Dockerfile"), "FROM busybox:test\nRUN echo alone > /how\n")?;
    std::fs::write(site.join("Other"), "FROM busybox:test\nCOPY how /how\n")?;
    std::fs::write(site.join("how"), "from an archive\n")?;
    let directory = site.display().to_string();
    nuee.run("tar", &["-C", &directory, "-czf", &format!("{directory}/context.tar.gz"), "Other", "how"])?.success()?;
    std::fs::write(site.join("page.html"), "<html>")?;
    // Served from inside, as this machine's own namespace has no other server.
    let volume = format!("{directory}:/site");
    nuee.docker(&[
        "run",
        "-d",
        "--name",
        "site",
        "-v",
        &volume,
        "busybox:test",
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/site",
    ])?
    .success()?;
    let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = nuee.docker(&["inspect", "-f", address, "site"])?.success()?.text().to_owned();
    let socket = nuee.data().join("docker.sock").display().to_string();
    let build = |path: &str, more: &str| {
        let url = format!("http://d/v1.41/build?t=remote&remote=http://{address}/{path}{more}");
        Ok::<_, anyhow::Error>(
            nuee.run("curl", &["-sS", "-X", "POST", "--unix-socket", &socket, &url])?.success()?.stdout,
        )
    };
    let how = || Ok::<_, anyhow::Error>(nuee.docker(&["run", "--rm", "remote", "cat", "/how"])?.success()?.stdout);
    let built = build("Dockerfile", "")?;
    assert!(built.contains("Successfully built"), "{built}");
    assert_eq!(how()?, "alone\n");
    let built = build("context.tar.gz", "&dockerfile=Other")?;
    assert!(built.contains("Successfully built"), "{built}");
    assert_eq!(how()?, "from an archive\n");
    assert!(build("page.html", "")?.contains("unsupported Content-Type"));
    assert!(build("nothing-here", "")?.contains("404"));
    let url = "http://d/v1.41/build?remote=file:///etc/passwd";
    let refused = nuee.run("curl", &["-sS", "-X", "POST", "--unix-socket", &socket, url])?.success()?.stdout;
    assert!(refused.contains("could not be recognized as URL"), "{refused}");
    nuee.docker(&["rm", "-f", "site"])?.success()?;
    nuee.finish()
}

#[test]
fn images_and_parts_of_volumes_are_mounted_and_lead_nowhere_else() -> Result<()> {
    let nuee = with_images()?;
    let run =
        |mount: &str, script: &str| nuee.docker(&["run", "--rm", "--mount", mount, "busybox:test", "sh", "-c", script]);
    let image = "type=image,source=busybox:test,target=/img";
    assert_eq!(
        run(image, "ls /img/bin/busybox; touch /img/x 2>&1 | grep -c Read-only")?.success()?.text(),
        "/img/bin/busybox\n1"
    );
    assert_eq!(run(&format!("{image},image-subpath=bin"), "ls /img/busybox")?.success()?.text(), "/img/busybox");
    run("type=image,source=nosuch:x,target=/img", "true")?.failure(125, "nosuch:x")?;

    let fill = "mkdir -p /v/inner && echo here > /v/inner/file && ln -s / /v/out && ln -s ../../../etc /v/inner/up";
    nuee.docker(&["run", "--rm", "-v", "parts:/v", "busybox:test", "sh", "-c", fill])?.success()?;
    let part = |sub: &str| format!("type=volume,source=parts,target=/v,volume-subpath={sub}");
    assert_eq!(run(&part("inner"), "cat /v/file")?.success()?.text(), "here");
    // Links of the volume stay within it: its root is the end of all ways up.
    assert_eq!(run(&part("out"), "ls /v")?.success()?.text(), "inner\nout");
    for bad in ["nosuch", "inner/up"] {
        run(&part(bad), "true")?.failure(125, "No such file or directory")?;
    }
    run(&part("../parts"), "true")?.failure(125, "subpath must be a relative path within the volume")?;

    let (image, part) = (image.to_owned(), part("inner"));
    let both = ["run", "-d", "--name", "both", "--mount", &image, "--mount", &part, "busybox:test", "sleep", "600"];
    nuee.docker(&both)?.success()?;
    for _ in 0..2 {
        assert_eq!(
            nuee.docker(&["exec", "both", "sh", "-c", "cat /v/file; ls /img/bin/busybox"])?.success()?.text(),
            "here\n/img/bin/busybox"
        );
        nuee.docker(&["restart", "-t", "0", "both"])?.success()?;
    }
    let directory = format!("{}/", nuee.data().join("containers").display());
    nuee.docker(&["rm", "-f", "both"])?.success()?;
    let left = nuee.run("grep", &["-c", &directory, "/proc/self/mounts"])?;
    assert_eq!(left.text(), "0");
    nuee.finish()
}
