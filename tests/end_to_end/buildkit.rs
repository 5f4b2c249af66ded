//! BuildKit's protocol, by the clients that have it built in: Compose 2, and the docker client of Debian 12.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use testkit::{Nuee, Output};

use crate::with_images;

/// Builds with Compose 2 in a directory that holds these files; what it says, and whether it succeeded.
fn build(nuee: &Nuee, files: &[(&str, &str)], arguments: &[&str]) -> Result<Output> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/compose/docker-compose-2");
    ensure!(program.exists(), "{} is not there: run contrib/packages.sh test", program.display());
    let directory = nuee.files().join("project");
    for (name, text) in files {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&directory))?;
        std::fs::write(path, text)?;
    }
    // Entering a mount namespace loses the working directory, so `env` goes there inside it.
    let mut command: Command = nuee.space().command("env");
    command.arg(format!("--chdir={}", directory.display())).arg(program.canonicalize()?);
    command.env_remove("DOCKER_BUILDKIT");
    command.env("DOCKER_HOST", format!("unix://{}", nuee.data().join("docker.sock").display()));
    command.env("DOCKER_CONFIG", nuee.files().join("docker-config"));
    command.args(["--progress", "plain", "build"]).args(arguments);
    Output::of(command)
}

fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

const COMPOSE: &str = "services:\n  app:\n    image: app:1\n    build:\n      context: .\n      secrets: [token]\n      \
                       additional_contexts:\n        shared: ./shared\nsecrets:\n  token:\n    file: ./token\n";
const DOCKERFILE: &str = "# syntax=docker/dockerfile:1\n\
    FROM busybox:test AS build\n\
    WORKDIR /src\n\
    COPY --exclude=*.md . .\n\
    COPY --from=shared --parents deep/er/file /kept/\n\
    RUN --mount=type=cache,target=/cache --mount=type=secret,id=token --mount=type=tmpfs,target=/scratch \
        --mount=type=bind,source=hello,target=/bound \
        echo x >> /cache/runs; wc -l < /cache/runs > runs; cp /run/secrets/token secret; cat /bound > bound\n\
    RUN --network=none ip link | grep -c UP > links\n\
    FROM busybox:test AS unused\n\
    RUN exit 9\n\
    FROM busybox:test\n\
    COPY --from=build /src /app\n\
    COPY --from=build /kept /kept\n\
    CMD [\"cat\", \"/app/hello\"]\n";

#[test]
fn a_dockerfile_of_buildkit_is_built_cached_and_confined() -> Result<()> {
    let nuee = with_images()?;
    let files = [
        ("compose.yaml", COMPOSE),
        ("Dockerfile", DOCKERFILE),
        (".dockerignore", "token\nshared\nignored*\n!ignored-not\n"),
        ("token", "the secret\n"),
        ("hello", "hello from the context\n"),
        ("notes.md", "no"),
        ("ignored", "no"),
        ("ignored-not", "yes"),
        ("shared/deep/er/file", "from a named context\n"),
    ];
    let first = build(&nuee, &files, &[])?.success()?;
    assert!(!said(&first).contains("unused"), "{}", said(&first));
    let sh = |script: &str| nuee.docker(&["run", "--rm", "app:1", "sh", "-c", script]);
    assert_eq!(nuee.docker(&["run", "--rm", "app:1"])?.success()?.stdout, "hello from the context\n");
    let listing = sh("ls -A /app; cat /app/runs /app/secret /app/bound /kept/deep/er/file")?.success()?.stdout;
    for there in ["ignored-not", "1\n", "the secret", "hello from the context", "from a named context"] {
        assert!(listing.contains(there), "{there}: {listing}");
    }
    assert!(!listing.contains("notes.md") && !listing.contains("ignored\n"), "{listing}");
    // Nothing of the mounts is in the image, and no network but the loopback was there.
    assert_eq!(sh("ls -d /cache /scratch /bound /run/secrets 2>/dev/null; cat /app/links")?.stdout, "1\n");

    // Again: nothing is run. With another file: the cache mount is still there.
    let again = build(&nuee, &files, &[])?.success()?;
    assert!(said(&again).matches("CACHED").count() >= 6, "{}", said(&again));
    let changed = build(&nuee, &[("hello", "changed\n")], &[])?.success()?;
    assert!(said(&changed).contains("writing image"), "{}", said(&changed));
    assert_eq!(sh("cat /app/runs /app/hello")?.stdout, "2\nchanged\n");
    nuee.finish()
}

#[test]
fn errors_of_a_buildkit_build_reach_the_user() -> Result<()> {
    let nuee = with_images()?;
    let compose = "services:\n  app:\n    image: app:1\n    build: .\n";
    for (dockerfile, why) in [
        ("FROM busybox:test\nFOO x\n", "dockerfile parse error on line 2: unknown instruction: FOO"),
        ("FROM busybox:test\nRUN exit 3\n", "did not complete successfully: exit code: 3"),
        ("FROM busybox:test\nCOPY nothing /\n", "stat nothing: file does not exist"),
        ("FROM busybox:test\nRUN --mount=type=secret,id=x,required true\n", "secret x: not found"),
        ("FROM busybox:test\nRUN --security=insecure true\n", "security.insecure is not allowed"),
        ("", "the Dockerfile cannot be empty"),
    ] {
        let output = build(&nuee, &[("compose.yaml", compose), ("Dockerfile", dockerfile)], &[])?;
        assert!(output.status != 0 && said(&output).contains(why), "{dockerfile:?}: {}", said(&output));
    }
    nuee.finish()
}

/// Debian 12's docker client, in the project's directory and with BuildKit, which it has built in; `None` where it is not.
fn old_client(nuee: &Nuee) -> Option<Command> {
    let docker = Path::new("/usr/bin/docker");
    let mut version = Command::new(docker);
    version.arg("--version");
    if !Output::of(version).is_ok_and(|output| output.stdout.contains("20.10.")) {
        eprintln!("not run: Debian 12's docker client is not at {}", docker.display());
        return None;
    }
    let mut command = nuee.space().command("env");
    command.arg(format!("--chdir={}", nuee.files().join("project").display())).arg(docker);
    command.env("DOCKER_HOST", format!("unix://{}", nuee.data().join("docker.sock").display()));
    command.env("DOCKER_CONFIG", nuee.files().join("docker-config")).env("DOCKER_BUILDKIT", "1");
    Some(command)
}

/// Debian's client has BuildKit built in, and takes its own way to it: `POST /build?version=2`.
#[test]
fn a_build_over_a_session_without_the_clients_own_grpc_works() -> Result<()> {
    let nuee = with_images()?;
    if old_client(&nuee).is_none() {
        return nuee.finish();
    }
    let directory = nuee.files().join("project");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("token"), "a secret\n")?;
    let dockerfile = "FROM busybox:test AS a\nRUN --mount=type=secret,id=t cp /run/secrets/t /x\n\
        FROM busybox:test\nCOPY --from=a /x /x\nCMD [\"cat\", \"/x\"]\n";
    std::fs::write(directory.join("Dockerfile"), dockerfile)?;
    let build = |more: &[&str]| -> Result<Output> {
        let mut command = old_client(&nuee).context("Debian's client is there")?;
        command.args(["build", "--progress", "plain", "--secret", "id=t,src=token"]).args(more).arg(".");
        Output::of(command)
    };
    build(&["--tag", "old:1", "--iidfile", "id"])?.success()?;
    assert_eq!(nuee.docker(&["run", "--rm", "old:1"])?.success()?.stdout, "a secret\n");
    let id = std::fs::read_to_string(directory.join("id"))?;
    assert_eq!(nuee.docker(&["inspect", "--format", "{{.Id}}", "old:1"])?.success()?.text(), id);
    // The result can come as files, too.
    build(&["--output", "type=local,dest=out"])?.success()?;
    assert_eq!(std::fs::read_to_string(directory.join("out/x"))?, "a secret\n");
    build(&["--output", "type=tar,dest=out.tar"])?.success()?;
    let list = Output::of({
        let mut command = Command::new("tar");
        command.arg("tf").arg(directory.join("out.tar"));
        command
    })?;
    assert!(list.success()?.stdout.lines().any(|line| line.trim_start_matches("./") == "x"));
    build(&["--target", "nowhere"])?.failure(1, "failed to reach build target nowhere")?;
    nuee.finish()
}

#[test]
fn contexts_come_from_urls_of_archives_and_of_dockerfiles() -> Result<()> {
    let nuee = with_images()?;
    let site = nuee.files().join("site");
    std::fs::create_dir_all(&site)?;
    std::fs::write(site.join("Dockerfile"), "FROM busybox:test\nRUN echo alone > /how\n")?;
    std::fs::write(site.join("Other"), "FROM busybox:test\nCOPY how /how\n")?;
    std::fs::write(site.join("how"), "from an archive\n")?;
    let directory = site.display().to_string();
    nuee.run("tar", &["-C", &directory, "-cJf", &format!("{directory}/context.tar.xz"), "Other", "how"])?.success()?;
    let volume = format!("{directory}:/site");
    let serve =
        ["run", "-d", "--name", "site", "-v", &volume, "busybox:test", "httpd", "-f", "-p", "80", "-h", "/site"];
    nuee.docker(&serve)?.success()?;
    let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = nuee.docker(&["inspect", "-f", address, "site"])?.success()?.text().to_owned();
    let how =
        |image: &str| Ok::<_, anyhow::Error>(nuee.docker(&["run", "--rm", image, "cat", "/how"])?.success()?.stdout);

    let compose = format!(
        "services:\n  alone:\n    image: alone:1\n    build: http://{address}/Dockerfile\n  part:\n    image: part:1\n    \
         build:\n      context: .\n      additional_contexts:\n        fetched: http://{address}/context.tar.xz\n"
    );
    let dockerfile = "FROM busybox:test\nCOPY --from=fetched how /how\n";
    let files = [("compose.yaml", compose.as_str()), ("Dockerfile", dockerfile)];
    build(&nuee, &files, &[])?.success()?;
    for (image, wanted) in [("alone:1", "alone\n"), ("part:1", "from an archive\n")] {
        assert_eq!(how(image)?, wanted, "{image}");
    }
    if let Some(mut old) = old_client(&nuee) {
        let url = format!("http://{address}/context.tar.xz");
        old.args(["build", "--tag", "whole:1", "--file", "Other", &url]);
        Output::of(old)?.success()?;
        assert_eq!(how("whole:1")?, "from an archive\n");
    }
    let absent = format!("services:\n  app:\n    image: app:1\n    build: http://{address}/absent\n");
    let output = build(&nuee, &[("compose.yaml", absent.as_str())], &[])?;
    assert!(output.status != 0 && said(&output).contains("404"), "{}", said(&output));
    nuee.finish()
}

/// Builds with Debian's client in the project's directory, with this as its standard input.
fn fed(nuee: &Nuee, arguments: &[&str], input: &[u8]) -> Result<Output> {
    let mut command = old_client(nuee).context("Debian's client is there")?;
    command.args(["build", "--progress", "plain"]).args(arguments);
    Output::fed(command, input)
}

/// Packs what is in a directory, as `tar` does with these options.
fn packed(directory: &Path, options: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new("tar");
    let output = command.arg("-C").arg(directory).args(options).output()?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

#[test]
fn contexts_come_from_the_clients_standard_input() -> Result<()> {
    let nuee = with_images()?;
    if old_client(&nuee).is_none() {
        return nuee.finish();
    }
    let directory = nuee.files().join("project");
    std::fs::create_dir_all(directory.join("sub"))?;
    for (name, text) in [
        ("Dockerfile", "FROM busybox:test\nRUN exit 1\n"),
        ("sub/Other", "FROM busybox:test\nCOPY . /all/\nCMD [\"ls\", \"-A\", \"/all\"]\n"),
        ("sub/how", "from an archive\n"),
        ("sub/ignored", ""),
        ("sub/.dockerignore", "ignored\n"),
    ] {
        std::fs::write(directory.join(name), text)?;
    }
    for packing in ["-c", "-cz", "-cJ", "-cj"] {
        let archive = packed(&directory.join("sub"), &[packing, "."])?;
        fed(&nuee, &["-t", "sent:1", "-f", "Other", "-"], &archive)?.success()?;
        let listed = nuee.docker(&["run", "--rm", "sent:1"])?.success()?.stdout;
        assert_eq!(listed.lines().collect::<Vec<_>>(), [".dockerignore", "Other", "how"], "{packing}");
        nuee.docker(&["rmi", "sent:1"])?.success()?;
    }
    // What a client that is to be quiet says is the image.
    let archive = packed(&directory.join("sub"), &["-c", "."])?;
    let quiet = fed(&nuee, &["-q", "-t", "sent:1", "-f", "Other", "-"], &archive)?.success()?;
    assert_eq!(quiet.text(), nuee.docker(&["inspect", "--format", "{{.Id}}", "sent:1"])?.success()?.text());
    fed(&nuee, &["-f", "Absent", "-"], &archive)?.failure(1, "failed to read dockerfile: open Absent")?;

    // It may be the Dockerfile alone, without a context or beside one.
    fed(&nuee, &["-t", "alone:1", "-"], b"FROM busybox:test\nCMD [\"echo\", \"alone\"]\n")?.success()?;
    assert_eq!(nuee.docker(&["run", "--rm", "alone:1"])?.success()?.stdout, "alone\n");
    let beside = b"FROM busybox:test\nCOPY how /how\nCMD [\"cat\", \"/how\"]\n";
    fed(&nuee, &["-t", "beside:1", "-f", "-", "sub"], beside)?.success()?;
    assert_eq!(nuee.docker(&["run", "--rm", "beside:1"])?.success()?.stdout, "from an archive\n");
    nuee.finish()
}

/// How many builds have files of their own now.
fn builds(nuee: &Nuee) -> usize {
    std::fs::read_dir(nuee.data().join("images/builds")).map_or(0, Iterator::count)
}

#[test]
fn a_hostile_context_on_standard_input_is_refused_and_forgotten() -> Result<()> {
    let nuee = with_images()?;
    if old_client(&nuee).is_none() {
        return nuee.finish();
    }
    let directory = nuee.files().join("project");
    std::fs::create_dir_all(directory.join("sub"))?;
    std::fs::write(directory.join("sub/Dockerfile"), "FROM busybox:test\nCOPY . /all/\n")?;
    std::fs::write(directory.join("outside"), "no")?;
    let leads_out = packed(&directory.join("sub"), &["-Pc", "Dockerfile", "../outside"])?;
    fed(&nuee, &["-"], &leads_out)?.failure(1, "leaves the root")?;
    // Zeros pack beyond what any honest file does.
    std::fs::File::create(directory.join("sub/zeros"))?.set_len(256 << 20)?;
    let bomb = packed(&directory.join("sub"), &["-cz", "Dockerfile", "zeros"])?;
    ensure!(bomb.len() < 1 << 20, "{} bytes", bomb.len());
    fed(&nuee, &["-"], &bomb)?.failure(1, "unpacks to more than")?;
    let whole = packed(&directory.join("sub"), &["-c", "zeros", "Dockerfile"])?;
    fed(&nuee, &["-"], &whole[..16 << 20])?.failure(1, "the data ends early")?;

    // A client that leaves in the middle takes its build along.
    nuee.eventually("nothing of the others is left", || Ok(builds(&nuee) == 0))?;
    let mut command = old_client(&nuee).context("Debian's client is there")?;
    command.args(["build", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut client = command.spawn()?;
    let mut input = client.stdin.take().context("no standard input")?;
    input.write_all(&whole[..16 << 20])?;
    let begun = nuee.eventually("the build has begun", || Ok(builds(&nuee) > 0));
    client.kill()?;
    client.wait()?;
    begun?;
    nuee.eventually("nothing of a build is left", || Ok(builds(&nuee) == 0))?;
    assert_eq!(nuee.docker(&["images", "-q", "--filter", "dangling=true"])?.success()?.stdout, "");
    fed(&nuee, &["-"], b"FROM busybox:test\n")?.success()?;
    nuee.finish()
}

#[test]
fn a_squashed_buildkit_build_is_one_layer_over_its_base() -> Result<()> {
    let nuee = Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))?;
    std::fs::create_dir_all(nuee.data())?;
    nuee.up()?;
    nuee.build_images()?;
    if old_client(&nuee).is_none() {
        return nuee.finish();
    }
    std::fs::create_dir_all(nuee.files().join("project"))?;
    let dockerfile = b"FROM busybox:test AS other\nRUN echo other > /other\n\
        FROM busybox:test\nRUN echo x > /came-and-went\nRUN rm /came-and-went && echo y > /kept\n\
        COPY --from=other /other /other\nCMD [\"cat\", \"/kept\", \"/other\"]\n";
    // The client itself asks only where it is offered; others are told by the daemon.
    fed(&nuee, &["--squash", "-"], dockerfile)?.failure(1, "experimental")?;
    let socket = nuee.data().join("docker.sock").display().to_string();
    let url = "http://docker/v1.41/build?version=2&squash=1&remote=client-session";
    let refused = nuee.run("curl", &["-sS", "-X", "POST", "--unix-socket", &socket, url])?.success()?;
    assert!(refused.stdout.contains("squash is only supported with experimental mode"), "{}", refused.stdout);

    nuee.nuee(&["down"])?.success()?;
    std::fs::write(nuee.data().join("config.yaml"), "dockerExperimental: true\n")?;
    nuee.up()?;
    fed(&nuee, &["-t", "plain:1", "-"], dockerfile)?.success()?;
    fed(&nuee, &["--squash", "-t", "squashed:1", "-"], dockerfile)?.success()?;
    let inspected = |format: &str, image: &str| {
        Ok::<_, anyhow::Error>(nuee.docker(&["inspect", "--format", format, image])?.success()?.text().to_owned())
    };
    let layers = |image: &str| -> Result<Vec<String>> {
        let text = inspected("{{range .RootFS.Layers}}{{.}} {{end}}", image)?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    };
    let (base, squashed) = (layers("busybox:test")?, layers("squashed:1")?);
    assert_eq!(squashed.split_last().map(|(_, below)| below), Some(&base[..]));
    assert_eq!(layers("plain:1")?.len(), base.len() + 3);
    assert_eq!(nuee.docker(&["run", "--rm", "squashed:1"])?.success()?.stdout, "y\nother\n");
    // Every step is told of, and at the end what became one; nothing is left of the file that came and went.
    let history = nuee.docker(&["history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Comment}}", "squashed:1"])?;
    let history = history.success()?.stdout;
    let merged = format!("|merge {} to {}", inspected("{{.Id}}", "plain:1")?, inspected("{{.Id}}", "busybox:test")?);
    assert_eq!(history.lines().next(), Some(merged.as_str()), "{history}");
    assert!(history.contains("echo x > /came-and-went"), "{history}");
    let saved = nuee.files().join("saved.tar").display().to_string();
    nuee.docker(&["save", "-o", &saved, "squashed:1"])?.success()?;
    assert!(!contains(&std::fs::read(&saved)?, b"came-and-went\0"), "a file that was removed is in the image");
    // A build without a base has nothing below its one layer.
    let scratch =
        b"FROM scratch\nCOPY --from=busybox:test /bin/busybox /one\nCOPY --from=busybox:test /bin/busybox /two\n";
    fed(&nuee, &["--squash", "-t", "scratch:1", "-"], scratch)?.success()?;
    assert_eq!(layers("scratch:1")?.len(), 1);
    nuee.finish()
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
