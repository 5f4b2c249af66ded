//! The unmodified buildx plugin, in front of the docker client: builds, bake, what it asks of Dockerfiles, the cache.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::{Nuee, Output};

use crate::with_images;

/// A command of the docker client with buildx as its plugin, in a directory that holds these files.
fn command(nuee: &Nuee, files: &[(&str, &str)], arguments: &[&str]) -> Result<Command> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/buildx/docker-buildx");
    ensure!(program.exists(), "{} is not there: run contrib/packages.sh test", program.display());
    let configuration = nuee.files().join("docker-config");
    let plugin = configuration.join("cli-plugins/docker-buildx");
    if !plugin.exists() {
        std::fs::create_dir_all(configuration.join("cli-plugins"))?;
        std::os::unix::fs::symlink(program.canonicalize()?, &plugin)?;
    }
    let directory = nuee.files().join("project");
    std::fs::create_dir_all(&directory)?;
    for (name, text) in files {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&directory))?;
        std::fs::write(path, text)?;
    }
    // Entering a mount namespace loses the working directory, so `env` goes there inside it.
    let mut command = nuee.space().command("env");
    command.arg(format!("--chdir={}", directory.display())).arg("docker");
    command.env("DOCKER_HOST", format!("unix://{}", nuee.data().join("docker.sock").display()));
    command.env("DOCKER_CONFIG", configuration);
    // Only then does it know `--print`.
    command.env("BUILDX_EXPERIMENTAL", if arguments.contains(&"--print") { "1" } else { "0" });
    command.env_remove("DOCKER_BUILDKIT").args(arguments);
    Ok(command)
}

/// Runs `docker buildx` in a directory that holds these files too.
fn buildx(nuee: &Nuee, files: &[(&str, &str)], arguments: &[&str]) -> Result<Output> {
    Output::of(command(nuee, files, &[&["buildx"], arguments].concat())?)
}

/// Runs `docker buildx build` on the project, and has it say what it does.
fn build(nuee: &Nuee, files: &[(&str, &str)], arguments: &[&str]) -> Result<Output> {
    buildx(nuee, files, &[&["build", "--progress", "plain"], arguments, &["."]].concat())
}

fn shown(nuee: &Nuee, image: &str) -> Result<String> {
    Ok(nuee.docker(&["run", "--rm", image])?.success()?.stdout)
}

fn read(nuee: &Nuee, name: &str) -> Result<String> {
    let path = nuee.files().join("project").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

const STAGES: &str = "# syntax=docker/dockerfile:1\n# FROM_WHERE names the base\nARG FROM_WHERE=busybox:test\n\
    # first is what all share\nFROM ${FROM_WHERE} AS first\n# WHO is greeted\nARG WHO=world\n\
    RUN --mount=type=secret,id=token,required cp /run/secrets/token /token && echo hello $WHO > /hello && \\\n  cat /proc/sys/kernel/random/uuid > /once\n\
    FROM first AS second\nRUN cat /proc/sys/kernel/random/uuid > /twice\n\
    FROM second\nCOPY file /file\nCMD [\"cat\", \"/hello\", \"/token\", \"/file\"]\n";
const FILES: [(&str, &str); 3] = [("Dockerfile", STAGES), ("file", "a file\n"), ("token", "a secret\n")];
const SECRET: [&str; 2] = ["--secret", "id=token,src=token"];

#[test]
fn builds_come_out_as_images_files_and_archives() -> Result<()> {
    let nuee = with_images()?;
    let options = ["-t", "app:1", "--build-arg", "WHO=you", "--label", "kind=test", "--iidfile", "id"];
    let first =
        build(&nuee, &FILES, &[&SECRET[..], &options, &["--metadata-file", "told.json"]].concat())?.success()?;
    for step in ["[first 1/2] FROM docker.io/library/busybox:test", "[stage-2 1/1] COPY file /file"] {
        assert!(first.stderr.contains(step), "{step}: {}", first.stderr);
    }
    assert_eq!(shown(&nuee, "app:1")?, "hello you\na secret\na file\n");
    let inspected = nuee.docker(&["inspect", "--format", "{{.Id}} {{.Config.Labels.kind}}", "app:1"])?.success()?;
    let id = read(&nuee, "id")?;
    assert_eq!(inspected.text(), format!("{id} test"));
    let told: Value = serde_json::from_str(&read(&nuee, "told.json")?)?;
    assert_eq!(told["containerimage.config.digest"], id);
    assert_eq!(told["image.name"], "docker.io/library/app:1");

    let quiet = buildx(&nuee, &[], &[&["build", "-q"], &SECRET[..], &["--build-arg", "WHO=you", "."]].concat())?;
    assert!(quiet.success()?.text().starts_with("sha256:"));
    build(&nuee, &[], &[&SECRET[..], &["-o", "out"]].concat())?.success()?;
    assert_eq!(read(&nuee, "out/hello")?, "hello world\n");
    build(&nuee, &[], &[&SECRET[..], &["-o", "type=tar,dest=out.tar"]].concat())?.success()?;
    let archive = nuee.files().join("project/out.tar").display().to_string();
    assert!(nuee.run("tar", &["-tf", &archive])?.success()?.stdout.lines().any(|line| line.ends_with("hello")));
    // What dockerd without containerd's images refuses by the client's own words, is refused here.
    for refused in [["-o", "type=oci,dest=x.tar"], ["--platform", "linux/amd64,linux/arm64"], ["--sbom", "true"]] {
        let refused = build(&nuee, &[], &[&SECRET[..], &refused].concat())?;
        assert!(refused.status != 0 && refused.stderr.contains("not supported for the docker driver"), "{refused:?}");
    }
    // An image that is here for another platform is no base.
    let other = build(&nuee, &[], &[&SECRET[..], &["--platform", "linux/s390x"]].concat())?;
    assert!(other.status != 0 && other.stderr.contains("registry-1.docker.io"), "{other:?}");
    // The Dockerfile alone, on standard input.
    let from_input = command(&nuee, &[], &["buildx", "build", "-t", "input:1", "-"])?;
    Output::fed(from_input, b"FROM busybox:test\nCMD [\"echo\", \"alone\"]\n")?.success()?;
    assert_eq!(shown(&nuee, "input:1")?, "alone\n");
    nuee.finish()
}

#[test]
fn the_cache_is_passed_over_for_all_stages_or_for_those_that_are_named() -> Result<()> {
    let nuee = with_images()?;
    let files = || {
        let text = nuee.docker(&["run", "--rm", "app:1", "cat", "/once", "/twice"])?.success()?.stdout;
        let mut lines = text.lines().map(str::to_owned);
        Ok::<_, anyhow::Error>((lines.next(), lines.next()))
    };
    let again = |more: &[&str]| build(&nuee, &FILES, &[&SECRET[..], &["-t", "app:1"], more].concat())?.success();
    again(&[])?;
    let (once, twice) = files()?;
    assert!(again(&[])?.stderr.contains("CACHED"));
    assert_eq!(files()?, (once.clone(), twice.clone()));
    again(&["--no-cache-filter", "Second"])?;
    let (same, other) = files()?;
    assert_eq!(same, once);
    assert_ne!(other, twice);
    again(&["--no-cache"])?;
    assert_ne!(files()?.0, once);
    assert!(buildx(&nuee, &[], &["du"])?.success()?.stdout.contains("Total:"));
    assert!(buildx(&nuee, &[], &["prune", "-af"])?.success()?.stdout.contains("Total:"));
    nuee.finish()
}

#[test]
fn failures_show_the_lines_of_the_dockerfile() -> Result<()> {
    let nuee = with_images()?;
    for (dockerfile, why, excerpt) in [
        ("FROM busybox:test\nFOO x\n", "unknown instruction: FOO", "   2 | >>> FOO x"),
        ("FROM busybox:test\n\nRUN exit 3\n", "did not complete successfully: exit code: 3", "   3 | >>> RUN exit 3"),
        ("FROM busybox:test\nRUN true && \\\n  exit 4\n", "exit code: 4", "   3 | >>>   exit 4"),
        ("FROM busybox:test\nCOPY nothing /\n", "stat nothing: file does not exist", "   2 | >>> COPY nothing /"),
        ("FROM busybox:test\nENV A\n", "ENV must have two arguments", "   2 | >>> ENV A"),
    ] {
        let output = build(&nuee, &[("Dockerfile", dockerfile)], &[])?;
        assert!(output.status != 0 && output.stderr.contains(why), "{dockerfile:?}: {}", output.stderr);
        assert!(output.stderr.contains(excerpt), "{dockerfile:?}: {}", output.stderr);
    }
    build(&nuee, &[], &["--target", "nowhere", "-f", "absent"])?
        .failure(1, "failed to read dockerfile: open absent")?;
    nuee.finish()
}

#[test]
fn named_contexts_are_directories_images_and_bases() -> Result<()> {
    let nuee = with_images()?;
    let dockerfile = "FROM tree AS files\nFROM busybox:test\nCOPY --from=files /a /a\nCOPY --from=tree /b /b\n\
        COPY --from=picture /bin/busybox /c\nCMD [\"cat\", \"/a\", \"/b\"]\n";
    let files = [("Dockerfile", dockerfile), ("tree/a", "one\n"), ("tree/b", "two\n")];
    let contexts = ["--build-context", "tree=tree", "--build-context", "picture=docker-image://busybox:test"];
    build(&nuee, &files, &[&contexts[..], &["-t", "app:1"]].concat())?.success()?;
    assert_eq!(shown(&nuee, "app:1")?, "one\ntwo\n");
    nuee.finish()
}

#[test]
fn dockerfiles_are_asked_for_their_targets_and_what_these_take() -> Result<()> {
    let nuee = with_images()?;
    let ask = |what: &str, more: &[&str]| build(&nuee, &FILES, &[&["--print", what], more].concat())?.success();
    let targets = ask("targets", &[])?.stdout;
    let rows: Vec<Vec<&str>> = targets.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.contains(&vec!["first", "is", "what", "all", "share"]), "{targets}");
    assert!(rows.contains(&vec!["(default)"]), "{targets}");
    let outline = ask("outline", &["--target", "first", "--build-arg", "WHO=you"])?.stdout;
    let rows: Vec<Vec<&str>> = outline.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [&["FROM_WHERE", "busybox:test", "names", "the", "base"][..], &["WHO", "you", "is", "greeted"]] {
        assert!(rows.iter().any(|found| found == row), "{row:?}: {outline}");
    }
    assert!(rows.contains(&vec!["token", "true"]), "{outline}");
    let described = ask("subrequests.describe", &[])?.stdout;
    assert!(described.contains("outline") && described.contains("targets"), "{described}");
    let data: Value = serde_json::from_str(&ask("outline,format=json", &[])?.stdout)?;
    assert_eq!(data["secrets"][0]["name"], "token");
    build(&nuee, &[("Dockerfile", "FROM x\nFOO\n")], &["--print", "targets"])?
        .failure(1, "unknown instruction: FOO")?;
    nuee.finish()
}

const BAKE: &str = "variable \"TAG\" { default = \"1\" }\n\
    group \"default\" { targets = [\"a\", \"b\", \"inline\"] }\n\
    target \"below\" {\n  dockerfile = \"Dockerfile.below\"\n}\n\
    target \"a\" {\n  contexts = { below = \"target:below\" }\n  args = { N = \"a\" }\n  tags = [\"a:${TAG}\"]\n}\n\
    target \"b\" {\n  inherits = [\"a\"]\n  args = { N = \"b\" }\n  tags = [\"b:${TAG}\"]\n}\n\
    target \"inline\" {\n  dockerfile-inline = \"FROM busybox:test\\nCMD [\\\"echo\\\", \\\"inline\\\"]\\n\"\n  tags = [\"inline:1\"]\n}\n";

#[test]
fn bake_builds_targets_that_build_on_each_other() -> Result<()> {
    let nuee = with_images()?;
    let files = [
        ("docker-bake.hcl", BAKE),
        ("Dockerfile.below", "FROM busybox:test\nENV WHERE=below\nRUN echo $WHERE > /below\n"),
        ("Dockerfile", "FROM below\nARG N\nRUN echo $N $WHERE > /n\nCMD [\"cat\", \"/below\", \"/n\"]\n"),
        (
            "compose.yaml",
            "services:\n  web:\n    image: web:1\n    build: { context: ., dockerfile: Dockerfile.below }\n",
        ),
    ];
    let printed = buildx(&nuee, &files, &["bake", "-f", "docker-bake.hcl", "--print"])?.success()?.stdout;
    let printed: Value = serde_json::from_str(&printed)?;
    assert_eq!(printed["target"]["b"]["tags"][0], "b:1");
    let baked = ["bake", "-f", "docker-bake.hcl", "--progress", "plain", "--set", "a.tags=a:2"];
    buildx(&nuee, &[], &baked)?.success()?;
    assert_eq!(shown(&nuee, "a:2")?, "below\na below\n");
    assert_eq!(shown(&nuee, "b:1")?, "below\nb below\n");
    assert_eq!(shown(&nuee, "inline:1")?, "inline\n");
    buildx(&nuee, &[], &["bake", "-f", "compose.yaml", "web"])?.success()?;
    let below = nuee.docker(&["run", "--rm", "web:1", "cat", "/below"])?.success()?;
    assert_eq!(below.text(), "below");
    nuee.finish()
}

#[test]
fn results_are_pushed_and_looked_at_in_the_registry() -> Result<()> {
    let nuee = with_images()?;
    nuee.kubectl(&["create", "namespace", "team"])?.success()?;
    nuee.kubectl(&["create", "serviceaccount", "writer", "--namespace", "team"])?.success()?;
    let binding = ["create", "rolebinding", "writer", "--namespace", "team", "--clusterrole=edit"];
    nuee.kubectl(&[&binding[..], &["--serviceaccount=team:writer"]].concat())?.success()?;
    let token = nuee.kubectl(&["create", "token", "writer", "--namespace", "team"])?.success()?;
    let name = "127.0.0.1:5000/team/app:1";
    let push = ["-t", name, "--push", "--metadata-file", "told.json"];
    let refused = build(&nuee, &FILES, &[&SECRET[..], &push].concat())?;
    assert!(refused.status != 0 && refused.stderr.contains("failed to push 127.0.0.1:5000"), "{}", refused.stderr);
    let log_in = command(&nuee, &[], &["login", "--username", "writer", "--password-stdin", "127.0.0.1:5000"])?;
    Output::fed(log_in, token.text().as_bytes())?.success()?;
    build(&nuee, &[], &[&SECRET[..], &push].concat())?.success()?;
    let told: Value = serde_json::from_str(&read(&nuee, "told.json")?)?;
    let digest = told["containerimage.digest"].as_str().unwrap_or_default();
    let seen = buildx(&nuee, &[], &["imagetools", "inspect", name])?.success()?;
    assert!(!digest.is_empty() && seen.stdout.contains(digest), "{digest}: {}", seen.stdout);
    nuee.finish()
}

#[test]
fn the_builder_is_listed_and_described() -> Result<()> {
    let nuee = with_images()?;
    assert!(buildx(&nuee, &[], &["version"])?.success()?.stdout.contains("buildx"));
    let listed = buildx(&nuee, &[], &["ls"])?.success()?.stdout;
    assert!(listed.contains("docker") && listed.contains("running") && listed.contains("linux/"), "{listed}");
    let inspected = buildx(&nuee, &[], &["inspect"])?.success()?.stdout;
    assert!(inspected.contains("BuildKit version") && inspected.contains("Driver:"), "{inspected}");
    nuee.finish()
}
