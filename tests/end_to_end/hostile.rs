//! Hostile archives by every way in, and hostile containers beside a neighbour: the host stays as it was, and the daemon
//! and the neighbour go on.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use testkit::{Nuee, Output};

use crate::with_images;

/// A directory of the host that nothing may change.
struct Canary(PathBuf);

impl Canary {
    fn new(directory: &Path) -> Result<Self> {
        let path = directory.join("canary");
        std::fs::create_dir(&path)?;
        std::fs::write(path.join("secret"), "secret")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
        Ok(Self(path))
    }

    fn is_unchanged(&self) -> Result<bool> {
        let (outer, secret) = (self.0.metadata()?, self.0.join("secret"));
        let inner = secret.metadata()?;
        Ok(outer.mode() & 0o7777 == 0o700
            && std::fs::read_dir(&self.0)?.count() == 1
            && inner.nlink() == 1
            && inner.mode() & 0o777 == 0o644
            && std::fs::read(&secret)? == b"secret")
    }
}

/// One archive: what it tries, and its entries as type, name, and link target or content.
type Evil = (&'static str, Vec<(tar::EntryType, String, String)>);

/// What is tried. Ideas: the tar traversal, symlink, hard link and whiteout weaknesses of container engines since 2014.
fn corpus(canary: &Path) -> Vec<Evil> {
    use tar::EntryType::{Block, Directory, Fifo, Link, Regular, Symlink};
    let outside = canary.display().to_string();
    let up = format!("../../../../../../../../../..{outside}");
    let entry = |kind, name: &str, rest: &str| (kind, name.to_owned(), rest.to_owned());
    vec![
        ("climbs by name", vec![entry(Regular, &format!("{up}/pwn"), "x")]),
        ("absolute name", vec![entry(Regular, &format!("{outside}/pwn"), "x")]),
        ("file through a link", vec![entry(Symlink, "d", &outside), entry(Regular, "d/pwn", "x")]),
        ("chain of links", vec![entry(Symlink, "a", "b"), entry(Symlink, "b", &up), entry(Regular, "a/pwn", "x")]),
        ("hard link to the host", vec![entry(Link, "h", &format!("{outside}/secret")), entry(Regular, "h", "over")]),
        ("hard link that climbs", vec![entry(Link, "h", &format!("{up}/secret")), entry(Regular, "h", "over")]),
        ("hard link through a link", vec![entry(Symlink, "d", &outside), entry(Link, "h", "d/secret")]),
        ("directory over a link", vec![entry(Symlink, "d", &outside), entry(Directory, "d", "")]),
        ("whiteout through a link", vec![entry(Symlink, "d", &outside), entry(Regular, "d/.wh.secret", "")]),
        ("opaque through a link", vec![entry(Symlink, "d", &outside), entry(Regular, "d/.wh..wh..opq", "")]),
        ("whiteout of the parent", vec![entry(Directory, "a", ""), entry(Regular, "a/.wh...", "")]),
        ("the root is a link", vec![entry(Symlink, ".", &outside), entry(Regular, "./pwn", "x")]),
        (
            "through the process' root",
            vec![entry(Symlink, "d", "/proc/self/root"), entry(Regular, &format!("d{outside}/pwn"), "x")],
        ),
        ("a disk and a pipe", vec![entry(Block, "disk", ""), entry(Fifo, "pipe", "")]),
    ]
}

fn archive(entries: &[(tar::EntryType, String, String)]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, name, rest) in entries {
        let mut header = tar::Header::new_gnu();
        let is_link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
        let data = if is_link { "" } else { rest.as_str() };
        header.set_entry_type(*kind);
        header.set_mode(if *kind == tar::EntryType::Directory { 0o777 } else { 0o666 });
        header.set_size(data.len() as u64);
        header.set_device_major(7)?;
        header.set_device_minor(0)?;
        // Written as they are: the crate's own setters refuse what is tried here.
        raw(&mut header.as_mut_bytes()[..100], name)?;
        if is_link {
            raw(&mut header.as_mut_bytes()[157..257], rest)?;
        }
        header.set_cksum();
        builder.append(&header, data.as_bytes())?;
    }
    Ok(builder.into_inner()?)
}

fn raw(field: &mut [u8], text: &str) -> Result<()> {
    ensure!(text.len() < field.len(), "{text} is too long for a plain header");
    field.fill(0);
    field[..text.len()].copy_from_slice(text.as_bytes());
    Ok(())
}

/// Each way in takes the archive's file; whether the client calls it a success matters to nobody here.
type Way = fn(&Nuee, &Path) -> Result<Output>;

fn import(nuee: &Nuee, file: &Path) -> Result<Output> {
    nuee.docker(&["import", &file.display().to_string(), "evil:import"])?;
    // What was taken in must also be harmless when it is unpacked.
    nuee.docker(&["create", "--name", "imported", "evil:import", "/x"])?;
    nuee.docker(&["rm", "-f", "imported"])?;
    nuee.docker(&["rmi", "-f", "evil:import"])
}

fn add(nuee: &Nuee, file: &Path) -> Result<Output> {
    let context = file.with_extension("context");
    std::fs::create_dir_all(&context)?;
    std::fs::copy(file, context.join("evil.tar"))?;
    std::fs::write(context.join("Dockerfile"), "FROM busybox:test\nADD evil.tar /\nADD evil.tar /tmp/\n")?;
    nuee.docker(&["build", "--quiet", "--no-cache", &context.display().to_string()])
}

fn context(nuee: &Nuee, file: &Path) -> Result<Output> {
    Output::fed(nuee.docker_command(&["build", "--quiet", "-"]), &std::fs::read(file)?)
}

fn copy(nuee: &Nuee, file: &Path) -> Result<Output> {
    let tar = std::fs::read(file)?;
    Output::fed(nuee.docker_command(&["cp", "-", "idle:/"]), &tar)?;
    Output::fed(nuee.docker_command(&["cp", "-a", "-", "running:/tmp"]), &tar)
}

fn load(nuee: &Nuee, file: &Path) -> Result<Output> {
    let image = wrap(nuee, file)?;
    nuee.docker(&["load", "--input", &image.display().to_string()])?;
    nuee.docker(&["run", "--rm", "evil:1", "/x"])?;
    nuee.docker(&["rmi", "-f", "evil:1"])
}

/// Through the registry: skopeo looks into no layer, and what is pushed is an image of the machine at once.
fn push(nuee: &Nuee, file: &Path) -> Result<Output> {
    let (image, token) = (wrap(nuee, file)?, std::fs::read_to_string(nuee.files().join("token"))?);
    let (from, to) = (format!("docker-archive:{}", image.display()), "docker://127.0.0.1:5000/default/evil:1");
    let credentials = format!("x:{}", token.trim());
    let copied = ["--insecure-policy", "copy", "--dest-tls-verify=false", "--dest-creds", &credentials, &from, to];
    nuee.run("skopeo", &copied)?.success()?;
    nuee.docker(&["run", "--rm", "127.0.0.1:5000/default/evil:1", "/x"])?;
    nuee.docker(&["rmi", "-f", "127.0.0.1:5000/default/evil:1"])
}

/// A docker-archive whose only layer is the file.
fn wrap(nuee: &Nuee, layer: &Path) -> Result<PathBuf> {
    let sum = nuee.run("sha256sum", &[&layer.display().to_string()])?.success()?.stdout;
    let id = sum.split_whitespace().next().context("sha256sum says nothing")?;
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/x"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{id}"]}}}}"#
    );
    let manifest = r#"[{"Config":"config.json","RepoTags":["evil:1"],"Layers":["layer.tar"]}]"#;
    let path = layer.with_extension("image");
    let mut builder = tar::Builder::new(std::fs::File::create(&path)?);
    for (name, data) in [
        ("config.json", config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
        ("layer.tar", &std::fs::read(layer)?),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, data)?;
    }
    builder.finish()?;
    Ok(path)
}

#[test]
fn hostile_archives_reach_nothing_by_any_way_in() -> Result<()> {
    let nuee = with_images()?;
    // A short path: it must fit into the headers.
    let short = tempfile::Builder::new().prefix("evil-").tempdir()?;
    let canary = Canary::new(short.path())?;
    for name in ["idle", "running"] {
        nuee.docker(&["create", "--name", name, "busybox:test", "sleep", "600"])?.success()?;
    }
    nuee.docker(&["start", "running"])?.success()?;
    nuee.kubectl(&["create", "serviceaccount", "pusher"])?.success()?;
    let grant = ["create", "rolebinding", "pusher", "--clusterrole=edit", "--serviceaccount=default:pusher"];
    nuee.kubectl(&grant)?.success()?;
    std::fs::write(nuee.files().join("token"), nuee.kubectl(&["create", "token", "pusher"])?.success()?.stdout)?;
    let daemon = nuee.pid()?;
    let ways: [(&str, Way); 6] =
        [("load", load), ("import", import), ("ADD", add), ("context", context), ("cp", copy), ("push", push)];
    for (number, (what, entries)) in corpus(&canary.0).iter().enumerate() {
        let file = short.path().join(format!("{number}.tar"));
        std::fs::write(&file, archive(entries)?)?;
        for (way, take) in &ways {
            take(&nuee, &file).with_context(|| format!("{what} by {way}"))?;
            ensure!(canary.is_unchanged()?, "{what} by {way} reached the host");
        }
        ensure!(nuee.pid()? == daemon, "the daemon died of: {what}");
    }
    let node = nuee.docker(&["exec", "running", "test", "-b", "/tmp/disk"])?;
    ensure!(node.status != 0, "a node of the machine's disk was copied into a container");
    // The control: a reader without care does reach it.
    let naive = short.path().join("naive");
    std::fs::create_dir(&naive)?;
    let evil = archive(&corpus(&canary.0)[2].1)?;
    for entry in tar::Archive::new(&evil[..]).entries()? {
        let mut entry = entry?;
        let path = naive.join(entry.path()?);
        match entry.link_name()? {
            Some(target) => std::os::unix::fs::symlink(target, path)?,
            None => drop(std::io::copy(&mut entry, &mut std::fs::File::create(path)?)?),
        }
    }
    ensure!(!canary.is_unchanged()?, "the canary sees nothing");
    nuee.finish()
}

#[test]
fn hostile_containers_stay_within_their_bounds_beside_a_neighbour() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&["run", "-d", "--name", "neighbour", "-p", "8080:80", "web:test"])?.success()?;
    let (daemon, pattern) = (nuee.pid()?, std::fs::read("/proc/sys/kernel/core_pattern")?);
    let attack = |name: &str, options: &[&str], script: &str| -> Result<()> {
        let mut arguments = vec!["run", "-d", "--name", name];
        arguments.extend(options);
        arguments.extend(["busybox:test", "sh", "-c", script]);
        nuee.docker(&arguments)?.success().map(drop)
    };
    attack("bomb", &["--pids-limit", "64", "--cpus", "0.2"], "b() { b | b & }; b; while :; do b; sleep 1; done")?;
    attack("hog", &["--memory", "24m", "--memory-swap", "24m"], "x=0123456789; while :; do x=$x$x; done")?;
    let bounded = ["--log-opt", "max-size=100k", "--log-opt", "max-file=2", "--cpus", "0.2"];
    attack("flood", &bounded, "while :; do echo 0123456789012345678901234567890123456789; done")?;
    attack(
        "filler",
        &["--read-only", "--tmpfs", "/fill:size=1m"],
        "cat /dev/zero > /fill/x; cat /dev/zero > /y; sleep 600",
    )?;
    attack(
        "meddler",
        &[],
        "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/vm/drop_caches /sys/kernel/uevent_helper \
         /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent /proc/self/exe /proc/1/oom_score_adj; do \
         case $f in */oom_score_adj) v=-1000;; *) v='|/evil';; esac; \
         if [ -e $f ] && (echo \"$v\" > $f) 2>/dev/null; then echo wrote $f; fi; done; \
         mount -t tmpfs none /mnt 2>/dev/null && echo mounted; mount -o bind / /mnt 2>/dev/null && echo bound; \
         mkdir -p /tmp/c; mount -t cgroup -o memory none /tmp/c 2>/dev/null && echo cgroup; \
         mknod /tmp/kmem c 1 2 && cat /tmp/kmem 2>/dev/null | head -c 1 | grep -q . && echo read; \
         chroot /proc/1/root true 2>/dev/null; swapoff -a 2>/dev/null && echo swapoff; \
         hostname evil 2>/dev/null && echo renamed; date -s 2001-01-01 >/dev/null 2>&1; [ $(date +%Y) = 2001 ] && echo clock; echo done",
    )?;
    nuee.eventually("the hog is ended for its memory", || {
        Ok(nuee.docker(&["inspect", "-f", "{{.State.OOMKilled}}", "hog"])?.success()?.text() == "true")
    })?;
    nuee.eventually("the bomb has reached its bound", || {
        Ok(nuee.docker(&["logs", "bomb"])?.success()?.stderr.contains("can't fork"))
    })?;
    nuee.eventually("the disk is full inside", || {
        let said = nuee.docker(&["logs", "filler"])?.success()?.stderr;
        Ok(said.contains("No space left") && said.contains("Read-only file system"))
    })?;
    let mut told = String::new();
    nuee.eventually("the meddler is done", || {
        told = nuee.docker(&["logs", "meddler"])?.success()?.stdout;
        Ok(told.ends_with("done\n"))
    })?;
    ensure!(told == "done\n", "the meddler got through: {told}");
    let path = nuee.docker(&["inspect", "-f", "{{.LogPath}}", "flood"])?.success()?.text().to_owned();
    nuee.eventually("the flood has filled more than one file", || Ok(Path::new(&format!("{path}.1")).exists()))?;
    let directory = Path::new(&path).parent().context("a log has a directory")?;
    let logged: u64 = std::fs::read_dir(directory)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("container.log"))
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.len())
        .sum();
    ensure!(logged < 300 << 10, "{logged} bytes of logs");
    ensure!(nuee.fetch("http://127.0.0.1:8080/")? == "hello from a cloud\n", "the neighbour suffers");
    ensure!(nuee.pid()? == daemon, "the daemon died");
    ensure!(std::fs::read("/proc/sys/kernel/core_pattern")? == pattern, "the host was changed");
    nuee.docker(&["rm", "-f", "bomb", "hog", "flood", "filler", "meddler"])?.success()?;
    nuee.finish()
}

/// Weaknesses of 2019 and 2024: a process of the machine that enters a container lends it its program, or its descriptors.
#[test]
fn who_enters_a_container_lends_it_neither_program_nor_descriptors() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&["run", "-d", "--name", "neighbour", "-p", "8080:80", "web:test"])?.success()?;
    let programs = || -> Result<String> {
        let crun = nuee.run("sh", &["-c", "command -v crun || command -v runc"])?.success()?.text().to_owned();
        Ok(nuee.run("sha256sum", &[env!("CARGO_BIN_EXE_nuee"), &crun])?.success()?.stdout)
    };
    let (before, daemon) = (programs()?, nuee.pid()?);
    let overwrite = "while :; do for p in /proc/[0-9]*; do echo x 2>/dev/null > $p/exe; done; done";
    let hostile = ["run", "-d", "--name", "hostile", "--cpus", "0.3", "busybox:test", "sh", "-c", overwrite];
    nuee.docker(&hostile)?.success()?;
    for turn in 0..8 {
        // Whether the machine's own program starts inside or is refused: it must not be there to be written to.
        nuee.docker(&["exec", "hostile", "/proc/self/exe"])?;
        if turn % 4 == 0 {
            nuee.docker(&["run", "--rm", "busybox:test", "/proc/self/exe"])?;
            nuee.docker(&["run", "--rm", "--init", "busybox:test", "sh", "-c", ": > /proc/1/exe"])?;
        }
    }
    for entered in [
        nuee.docker(&["run", "--rm", "busybox:test", "ls", "/proc/self/fd"])?.success()?.stdout,
        nuee.docker(&["exec", "hostile", "ls", "/proc/self/fd"])?.success()?.stdout,
    ] {
        // 3 is the directory that `ls` itself reads.
        ensure!(entered.split_whitespace().eq(["0", "1", "2", "3"]), "descriptors came along: {entered}");
    }
    for directory in ["/proc/self/fd/7", "/proc/self/fd/8"] {
        let led =
            nuee.docker(&["run", "--rm", "--workdir", directory, "busybox:test", "cat", "../../../etc/hostname"])?;
        ensure!(led.status != 0, "{directory} led out of the container: {led:?}");
    }
    ensure!(programs()? == before, "a program of the machine was changed");
    ensure!(nuee.fetch("http://127.0.0.1:8080/")? == "hello from a cloud\n", "the neighbour suffers");
    ensure!(nuee.pid()? == daemon, "the daemon died");
    nuee.finish()
}
