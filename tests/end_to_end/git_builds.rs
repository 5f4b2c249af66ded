//! Builds whose files are in git repositories: by the clients that send their address, and with what a hostile repository tries.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use testkit::{Nuee, Output};

use crate::compose::{compose, from_pypi};
use crate::docker_tenants::{LISTEN, tenant, with_tenants};
use crate::with_images;

/// Where `tests/git_server.py` listens, in the test's own network namespace.
const PORT: u16 = 8000;

/// A server of git repositories that ends with the test.
struct Server {
    children: Vec<Child>,
    directory: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
    /// Serves over HTTP and by git's own protocol.
    fn start(nuee: &Nuee) -> Result<Self> {
        let directory = nuee.files().join("repositories");
        std::fs::create_dir(&directory)?;
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/git_server.py").canonicalize()?;
        let asked = std::fs::File::create(nuee.files().join("asked"))?;
        let mut web = nuee.space().command("python3");
        web.arg(program).arg(&directory).arg(PORT.to_string());
        web.stdin(Stdio::null()).stdout(asked).stderr(Stdio::null());
        // Not by way of `git`, which would leave it behind.
        let programs = Output::of({
            let mut command = Command::new("git");
            command.arg("--exec-path");
            command
        })?;
        let mut plain = nuee.space().command(Path::new(programs.text()).join("git-daemon"));
        plain.args(["--export-all", "--listen=127.0.0.1", "--reuseaddr"]);
        plain.arg(format!("--base-path={}", directory.display())).stdin(Stdio::null()).stderr(Stdio::null());
        plain.envs([("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", "*")]);
        let server = Self { children: vec![web.spawn()?, plain.spawn()?], directory };
        nuee.eventually("the servers listen", || {
            let reached = |port: u16| nuee.run("bash", &["-c", &format!("</dev/tcp/127.0.0.1/{port}")]);
            Ok(reached(PORT)?.status == 0 && reached(9418)?.status == 0)
        })?;
        Ok(server)
    }

    /// What was asked of the web server so far.
    fn asked(nuee: &Nuee) -> Result<String> {
        Ok(std::fs::read_to_string(nuee.files().join("asked"))?)
    }

    /// Makes a repository with one commit of these files, and other repositories within it: path and commit. The commit's name.
    fn commit(&self, name: &str, files: &[(&str, &str)], within: &[(&str, &str)]) -> Result<String> {
        let work = self.directory.join(format!("{name}.work"));
        for (path, text) in files {
            let path = work.join(path);
            std::fs::create_dir_all(path.parent().context("no parent")?)?;
            std::fs::write(path, text)?;
        }
        let git = |arguments: &[&str]| -> Result<String> {
            let mut command = Command::new("git");
            command.arg("-C").arg(&work).args([
                "-c",
                "user.name=x",
                "-c",
                "user.email=x@y",
                "-c",
                "init.defaultBranch=main",
            ]);
            command.args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null");
            Ok(Output::of(command)?.success()?.text().to_owned())
        };
        if !work.join(".git").exists() {
            git(&["init", "--quiet"])?;
        }
        git(&["add", "--all", "."])?;
        for (path, commit) in within {
            git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},{path}")])?;
        }
        git(&["commit", "--quiet", "--message", "more"])?;
        let bare = self.directory.join(format!("{name}.git")).display().to_string();
        if !Path::new(&bare).exists() {
            git(&["init", "--quiet", "--bare", &bare])?;
        }
        git(&["push", "--quiet", "--force", &bare, "HEAD:refs/heads/main"])?;
        git(&["rev-parse", "HEAD"])
    }

    /// Names what is on the branch `main`.
    fn name(&self, repository: &str, reference: &str) -> Result<()> {
        let mut command = Command::new("git");
        command.arg("-C").arg(self.directory.join(format!("{repository}.work")));
        command.args(["push", "--quiet", &format!("../{repository}.git"), &format!("HEAD:{reference}")]);
        Output::of(command)?.success().map(drop)
    }
}

fn url(place: &str) -> String {
    format!("http://127.0.0.1:{PORT}/{place}")
}

/// Asks for a build as docker-py does: the address of its context, nothing else.
fn build(nuee: &Nuee, socket: &Path, remote: &str) -> Result<String> {
    let socket = socket.display().to_string();
    let remote = format!("remote={remote}");
    let arguments =
        ["-sS", "-X", "POST", "--unix-socket", &socket, "-G", "--data-urlencode", &remote, "-d", "t=remote"];
    Ok(nuee.run("curl", &[&arguments[..], &["http://d/v1.41/build"]].concat())?.success()?.stdout)
}

fn in_image(nuee: &Nuee, image: &str, script: &str) -> Result<String> {
    Ok(nuee.docker(&["run", "--rm", image, "sh", "-c", script])?.success()?.stdout)
}

const DOCKERFILE: &str = "FROM busybox:test\nCOPY . /src\n";

/// A repository with all that is special about some, within it another one, and within that a third.
fn repositories(server: &Server) -> Result<String> {
    let innermost = server.commit("innermost", &[("deep", "innermost\n")], &[])?;
    let modules = "[submodule \"x\"]\n\tpath = below/it\n\turl = ../innermost.git\n";
    let inner =
        server.commit("inner", &[("file", "inner\n"), (".gitmodules", modules)], &[("below/it", &innermost)])?;
    let modules = "[submodule \"inner\"]\n\tpath = lib\n\turl = ../inner.git\n\
                   [submodule \"again\"]\n\tpath = again\n\turl = ../inner.git\n";
    let files = [
        ("Dockerfile", DOCKERFILE),
        ("hello", "first\n"),
        ("left-out", "by an archive, not by a checkout\n"),
        (".gitattributes", "left-out export-ignore\nhello export-subst\n"),
        (".dockerignore", "ignored\n"),
        ("ignored", "no\n"),
        ("part/Dockerfile", "FROM busybox:test\nCOPY only /only\n"),
        ("part/only", "a part\n"),
        (".gitmodules", modules),
    ];
    let first = server.commit("outer", &files, &[("lib", &inner), ("again", &inner)])?;
    server.name("outer", "refs/tags/v1")?;
    server.commit("outer", &[("hello", "second\n")], &[])?;
    Ok(first)
}

#[test]
fn a_build_takes_its_context_from_a_git_repository() -> Result<()> {
    let nuee = with_images()?;
    let server = Server::start(&nuee)?;
    let first = repositories(&server)?;
    let socket = nuee.data().join("docker.sock");
    let with_password = |place: &str| format!("http://me:pass%20word@127.0.0.1:{PORT}/{place}");
    for (remote, script, wanted) in [
        (url("outer.git"), "cat /src/hello /src/left-out", "second\nby an archive, not by a checkout\n"),
        (url("outer.git"), "ls -d /src/.git /src/ignored 2>/dev/null; true", ""),
        (url("outer.git#v1"), "cat /src/hello /src/lib/file /src/lib/below/it/deep", "first\ninner\ninnermost\n"),
        (url("outer.git#v1"), "cat /src/again/file /src/again/below/it/deep", "inner\ninnermost\n"),
        (url("outer.git#main"), "cat /src/hello", "second\n"),
        (url(&format!("outer.git#{first}")), "cat /src/hello", "first\n"),
        (url("outer.git#v1:part"), "cat /only", "a part\n"),
        (url("moved/outer.git#v1"), "cat /src/hello /src/lib/file", "first\ninner\n"),
        ("git://127.0.0.1/outer.git#v1:/part/".to_owned(), "cat /only", "a part\n"),
        (with_password("private/outer.git#v1"), "cat /src/hello /src/lib/file", "first\ninner\n"),
        (with_password("away/outer.git#v1:part"), "cat /only", "a part\n"),
    ] {
        let built = build(&nuee, &socket, &remote)?;
        assert!(built.contains("Successfully built"), "{remote}: {built}");
        assert_eq!(in_image(&nuee, "remote", script)?, wanted, "{remote}");
    }
    // A commit that is in two places is fetched once.
    let packs = || -> Result<usize> {
        let of_inner = |line: &&str| line.starts_with("POST") && line.contains(" /inner.git/");
        Ok(Server::asked(&nuee)?.lines().filter(of_inner).count())
    };
    let before = packs()?;
    build(&nuee, &socket, &url("outer.git#v1"))?;
    assert_eq!(packs()?, before + 1, "{}", Server::asked(&nuee)?);
    // Credentials are for the host that they were given for.
    let asked = Server::asked(&nuee)?;
    assert!(asked.lines().any(|line| line.contains("/away/") && line.ends_with("with credentials")), "{asked}");
    assert!(asked.contains("POST localhost:") && asked.contains("POST 127.0.0.1:"), "{asked}");
    assert!(!asked.lines().any(|line| line.contains(" localhost:") && line.ends_with("with credentials")), "{asked}");

    // A Dockerfile adds a repository's files.
    let project = nuee.files().join("adds");
    std::fs::create_dir(&project)?;
    let text = format!("FROM busybox:test\nADD {} /added\n", url("outer.git#v1"));
    std::fs::write(project.join("Dockerfile"), text)?;
    nuee.docker(&["build", "-t", "adds", &project.display().to_string()])?.success()?;
    let added = in_image(&nuee, "adds", "cat /added/hello /added/lib/file; ls -d /added/.git 2>/dev/null; true")?;
    assert_eq!(added, "first\ninner\n");
    drop(server);
    nuee.finish()
}

#[test]
fn what_a_repository_or_its_address_tries_is_refused() -> Result<()> {
    let nuee = with_images()?;
    let server = Server::start(&nuee)?;
    repositories(&server)?;
    let canary = nuee.files().join("canary");
    let touch = format!("touch {}", canary.display());
    let inner = server.commit("plain", &[("Dockerfile", DOCKERFILE)], &[])?;
    let places =
        ["/etc", "file:///etc", &format!("ext::sh -c '{touch}'"), &format!("--upload-pack={touch}"), "git@h:x"];
    let mut cases = Vec::new();
    for (number, place) in places.iter().enumerate() {
        let modules = format!("[submodule \"x\"]\n\tpath = lib\n\turl = \"{place}\"\n\tupdate = !{touch}\n");
        let name = format!("evil-{number}");
        server.commit(&name, &[("Dockerfile", DOCKERFILE), (".gitmodules", &modules)], &[("lib", &inner)])?;
        cases.push((url(&format!("{name}.git")), if *place == "git@h:x" { "SSH" } else { "invalid address" }));
    }
    server.commit("bare-link", &[("Dockerfile", DOCKERFILE)], &[("lib", &inner)])?;
    cases.extend([
        (url("bare-link.git"), "No url found for submodule path 'lib'"),
        (url("nothing.git"), "not found"),
        (url("outer.git#nothing"), "find remote ref nothing"),
        (url("outer.git#v1:nothing"), "no directory of the git repository"),
        (url("outer.git#v1:hello"), "no directory of the git repository"),
        (url("outer.git#v1:../../etc"), "invalid directory"),
        (url(&format!("outer.git#--upload-pack={}", touch.replace(' ', "\t"))), "invalid name of a git reference"),
        (url("old/outer.git"), "version 2"),
        (url("private/outer.git"), "authentication failed"),
        (format!("http://me:wrong@127.0.0.1:{PORT}/private/outer.git"), "authentication failed"),
        ("git@127.0.0.1:outer.git".to_owned(), "SSH"),
        ("git://127.0.0.1/nothing.git".to_owned(), "refuses"),
        (format!("file://{}/outer.git", server.directory.display()), "could not be recognized as URL"),
        (format!("{}/outer.git", server.directory.display()), "could not be recognized as URL"),
    ]);
    for (remote, why) in cases {
        let said = build(&nuee, &nuee.data().join("docker.sock"), &remote)?;
        assert!(said.contains(why) && !said.contains("Successfully") && !said.contains("wrong"), "{remote}: {said}");
    }
    assert!(!canary.exists());
    let builds = nuee.data().join("images/builds");
    nuee.eventually("no repository is left", || Ok(std::fs::read_dir(&builds)?.next().is_none()))?;
    drop(server);
    nuee.finish()
}

#[test]
fn a_tenants_build_reaches_no_repository_on_the_machine() -> Result<()> {
    let nuee = with_tenants()?;
    let server = Server::start(&nuee)?;
    server.commit("plain", &[("Dockerfile", DOCKERFILE)], &[])?;
    let file = |name: &str| nuee.files().join("alice").join(name).display().to_string();
    let project = nuee.files().join("adds");
    std::fs::create_dir(&project)?;
    for remote in [url("plain.git"), "git://127.0.0.1/plain.git".to_owned(), "git://localhost/plain.git".to_owned()] {
        let (ca, certificate, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
        #[rustfmt::skip]
        let said = nuee.run("curl", &["-sS", "-X", "POST", "--cacert", &ca, "--cert", &certificate, "--key", &key, "-G",
            "--data-urlencode", &format!("remote={remote}"), &format!("https://{LISTEN}/v1.41/build")])?.success()?.stdout;
        assert!(said.contains("where nobody may send us from outside"), "{remote}: {said}");
        std::fs::write(project.join("Dockerfile"), format!("FROM busybox:test\nADD {remote} /added\n"))?;
        let built = tenant(&nuee, "alice", &["build", &project.display().to_string()])?;
        built.failure(1, "where nobody may send us from outside")?;
    }
    // The machine's own endpoint may, so the servers are there.
    for remote in [url("plain.git"), "git://127.0.0.1/plain.git".to_owned()] {
        assert!(build(&nuee, &nuee.data().join("docker.sock"), &remote)?.contains("Successfully built"));
    }
    drop(server);
    nuee.finish()
}

#[test]
fn compose_builds_from_git_repositories() -> Result<()> {
    let nuee = with_images()?;
    let server = Server::start(&nuee)?;
    repositories(&server)?;
    let named = format!(
        "FROM busybox:test\nCOPY --from=code file /code\nADD {} /added/\nCOPY hello /hello\nCOPY . /src\n",
        url("inner.git#main:below/it")
    );
    server.commit("outer", &[("Dockerfile.named", &named)], &[])?;
    let files = |text: &str| -> Result<PathBuf> {
        let directory = nuee.files().join("project");
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("docker-compose.yml"), text)?;
        Ok(directory)
    };
    let run = |program: &Path| -> Result<Output> {
        let mut command = compose(&nuee, program, &nuee.files().join("project"));
        command.args(["build", "--no-cache"]);
        Output::of(command)?.success()
    };
    // Compose 1 is docker-py, which leaves the address to the daemon.
    let app = |more: &str| {
        format!(
            "version: '3'\nservices:\n  app:\n    image: app:1\n    build:\n      context: {}\n{more}",
            url("outer.git#v1")
        )
    };
    files(&app(""))?;
    run(Path::new("docker-compose"))?;
    assert_eq!(in_image(&nuee, "app:1", "cat /src/hello /src/lib/file")?, "first\ninner\n");
    nuee.docker(&["rmi", "-f", "app:1"])?.success()?;
    let mut own = compose(&nuee, Path::new(env!("CARGO_BIN_EXE_nuee")), &nuee.files().join("project"));
    own.args(["compose", "build"]);
    Output::of(own)?.success()?;
    assert_eq!(in_image(&nuee, "app:1", "cat /src/hello /src/lib/file")?, "first\ninner\n");

    // Compose 2 builds over BuildKit's protocol.
    let more =
        format!("      dockerfile: Dockerfile.named\n      additional_contexts:\n        code: {}\n", url("inner.git"));
    files(&app(&more).replace("#v1", ""))?;
    nuee.docker(&["rmi", "-f", "app:1"])?.success()?;
    run(&from_pypi("docker-compose-2")?)?;
    let script = "cat /code /added/deep /hello; ls -d /src/.git /src/ignored 2>/dev/null; true";
    assert_eq!(in_image(&nuee, "app:1", script)?, "inner\ninnermost\nsecond\n");
    drop(server);
    nuee.finish()
}
