//! The Docker endpoint for tenants: TLS with a certificate for one namespace, ssh, and what a tenant may not ask for.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use testkit::{Nuee, Output};

/// Where the endpoint listens, in the test's own network namespace.
pub const LISTEN: &str = "127.0.0.1:2376";

/// A Nuée that serves tenants, with namespaces `alice` and `bob` and images.
pub fn with_tenants() -> Result<Nuee> {
    let nuee = Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))?;
    std::fs::create_dir_all(nuee.data())?;
    std::fs::write(nuee.data().join("config.yaml"), format!("dockerListen: {LISTEN}\n"))?;
    nuee.up()?;
    nuee.build_images()?;
    for namespace in ["alice", "bob"] {
        nuee.kubectl(&["create", "namespace", namespace])?.success()?;
        certificate(&nuee, namespace)?;
    }
    Ok(nuee)
}

fn certificate(nuee: &Nuee, namespace: &str) -> Result<PathBuf> {
    let directory = nuee.files().join(namespace);
    let mut command = nuee.space().command(env!("CARGO_BIN_EXE_nuee"));
    command.args(["docker-certificate", namespace, "--output"]).arg(&directory);
    command.arg("--data-dir").arg(nuee.data());
    Output::of(command)?.success()?;
    Ok(directory)
}

/// The docker client with a namespace's certificate.
pub fn tenant(nuee: &Nuee, namespace: &str, arguments: &[&str]) -> Result<Output> {
    let directory = nuee.files().join(namespace);
    let file = |name: &str| directory.join(name).display().to_string();
    let mut command = nuee.space().command("docker");
    command.args(["--host", &format!("tcp://{LISTEN}"), "--tlsverify"]);
    command.args(["--tlscacert", &file("ca.pem"), "--tlscert", &file("cert.pem"), "--tlskey", &file("key.pem")]);
    command.env("DOCKER_CONFIG", nuee.files().join("tenant-config")).env("DOCKER_BUILDKIT", "0");
    command.args(arguments);
    Output::of(command)
}

#[test]
fn each_tenant_works_over_tls_and_sees_its_own_only() -> Result<()> {
    let nuee = with_tenants()?;
    let run = tenant(&nuee, "alice", &["run", "--rm", "busybox:test", "echo", "from alice"])?;
    assert_eq!(run.success()?.stdout, "from alice\n");
    tenant(&nuee, "alice", &["run", "-d", "--name", "web", "-v", "data:/data", "busybox:test", "sleep", "600"])?
        .success()?;
    assert_eq!(tenant(&nuee, "alice", &["exec", "web", "echo", "inside"])?.success()?.stdout, "inside\n");
    assert_eq!(tenant(&nuee, "bob", &["ps", "-aq"])?.success()?.text(), "");
    assert_eq!(tenant(&nuee, "bob", &["volume", "ls", "-q"])?.success()?.text(), "");
    for words in [["inspect", "web"], ["logs", "web"], ["kill", "web"], ["top", "web"], ["export", "web"]] {
        let output = tenant(&nuee, "bob", &words)?;
        assert_ne!(output.status, 0, "{words:?}");
        assert!(output.stderr.to_lowercase().contains("no such"), "{words:?}: {}", output.stderr);
    }
    // The same name is free in another namespace.
    tenant(&nuee, "bob", &["create", "--name", "web", "busybox:test", "true"])?.success()?;
    assert_eq!(nuee.docker(&["ps", "-aq"])?.success()?.text(), "", "the machine's own endpoint is a namespace too");

    // The swarm is the machines' own.
    for words in [["swarm", "init"], ["service", "ls"], ["node", "ls"], ["secret", "ls"]] {
        tenant(&nuee, "alice", &words)?.failure(1, "not allowed on this endpoint")?;
    }

    let file = |name: &str| nuee.files().join("alice").join(name).display().to_string();
    let host = format!("host=tcp://{LISTEN},ca={},cert={},key={}", file("ca.pem"), file("cert.pem"), file("key.pem"));
    tenant(&nuee, "alice", &["context", "create", "cloud", "--docker", &host])?.success()?;
    let mut command = nuee.space().command("docker");
    command.env("DOCKER_CONFIG", nuee.files().join("tenant-config")).args([
        "--context",
        "cloud",
        "ps",
        "--format",
        "{{.Names}}",
    ]);
    assert_eq!(Output::of(command)?.success()?.text(), "web");

    let url = format!("https://{LISTEN}/containers/json");
    let bare = nuee.run(
        "curl",
        &["--silent", "--cacert", &file("ca.pem"), "--write-out", "%{http_code}", "--output", "/dev/null", &url],
    )?;
    assert_eq!(bare.text(), "401", "without a certificate");
    nuee.kubectl(&["delete", "namespace", "bob", "--wait=false"])?.success()?;
    nuee.eventually("the endpoint ends with its namespace", || {
        Ok(tenant(&nuee, "bob", &["ps"])?.stderr.contains("namespace is not there"))
    })?;
    nuee.finish()
}

/// Ways to reach the machine, as arguments of `docker create`.
const REACHING: [&[&str]; 23] = [
    &["--privileged"],
    &["-v", "/:/host"],
    &["--mount", "type=bind,source=/,target=/host"],
    &[
        "--mount",
        "type=volume,target=/x,volume-driver=local,volume-opt=type=none,volume-opt=o=bind,volume-opt=device=/",
    ],
    &["--pid", "host"],
    &["--ipc", "host"],
    &["--uts", "host"],
    &["--userns", "host"],
    &["--cgroupns", "host"],
    &["--network", "host"],
    &["--device", "/dev/zero"],
    &["--device-cgroup-rule", "c *:* rwm"],
    &["--cap-add", "SYS_ADMIN"],
    &["--cap-add", "ALL"],
    &["--cap-add", "sys_ptrace"],
    &["--security-opt", "seccomp=unconfined"],
    &["--security-opt", "systempaths=unconfined"],
    &["--cgroup-parent", "/"],
    &["--cgroup-parent", "a/../.."],
    &["--oom-score-adj", "-500"],
    &["--sysctl", "kernel.shm_rmid_forced=1"],
    &["-v", "/run/docker.sock:/run/docker.sock"],
    &["--device-read-bps", "/dev/zero:1mb"],
];

#[test]
fn a_tenant_is_refused_what_reaches_the_machine_and_the_machine_itself_is_not() -> Result<()> {
    let nuee = with_tenants()?;
    for flags in REACHING {
        let words = [&["create"], flags, &["busybox:test", "true"]].concat();
        tenant(&nuee, "alice", &words)?
            .failure(1, "not allowed on this endpoint")
            .with_context(|| format!("{flags:?}"))?;
        // The control: what is refused is the endpoint's doing, not the request's.
        nuee.docker(&words)?.success().with_context(|| format!("{flags:?}"))?;
    }
    let volume = ["volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", "device=/"];
    tenant(&nuee, "alice", &volume)?.failure(1, "not allowed on this endpoint")?;
    tenant(&nuee, "alice", &["run", "-d", "--name", "own", "busybox:test", "sleep", "600"])?.success()?;
    tenant(&nuee, "alice", &["exec", "--privileged", "own", "true"])?.failure(1, "not allowed on this endpoint")?;
    tenant(&nuee, "alice", &["rmi", "-f", "busybox:test"])?.failure(1, "not allowed on this endpoint")?;
    assert_eq!(tenant(&nuee, "alice", &["ps", "-a", "--format", "{{.Names}}"])?.success()?.text(), "own");
    nuee.finish()
}

#[test]
fn odd_bodies_do_not_change_the_verdict() -> Result<()> {
    let nuee = with_tenants()?;
    let padding = " ".repeat(5 << 20);
    let bodies = [
        ("privileged", r#"{"Image":"busybox:test","HostConfig":{"Privileged":true}}"#.to_owned(), "403"),
        ("empty", String::new(), "400"),
        ("duplicate", r#"{"Image":"busybox:test","HostConfig":{"Privileged":true},"HostConfig":{}}"#.to_owned(), "400"),
        (
            "duplicate in other case",
            r#"{"Image":"busybox:test","HostConfig":{},"hostconfig":{"Privileged":true}}"#.to_owned(),
            "400",
        ),
        ("oversized", format!(r#"{{"Image":"busybox:test",{padding}"HostConfig":{{"Privileged":true}}}}"#), "413"),
        ("fine", r#"{"Image":"busybox:test","HostConfig":{}}"#.to_owned(), "201"),
    ];
    for (name, body, expected) in bodies {
        let path = nuee.files().join("body");
        std::fs::write(&path, body)?;
        let file = |name: &str| nuee.files().join("alice").join(name).display().to_string();
        let url = format!("https://{LISTEN}/containers/create");
        let data = format!("@{}", path.display());
        let output = nuee.run(
            "curl",
            &[
                "--silent",
                "--http1.1",
                "--cacert",
                &file("ca.pem"),
                "--cert",
                &file("cert.pem"),
                "--key",
                &file("key.pem"),
                "--header",
                "Content-Type: application/json",
                "--header",
                "Expect:",
                "--data-binary",
                &data,
                "--write-out",
                "%{http_code}",
                "--output",
                "/dev/null",
                &url,
            ],
        )?;
        assert_eq!(output.text(), expected, "{name}");
    }
    nuee.finish()
}

#[test]
fn the_client_reaches_the_socket_over_ssh() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    nuee.build_images()?;
    let home = nuee.files().join("home");
    let ssh = home.join(".ssh");
    std::fs::create_dir_all(&ssh)?;
    let path = |name: &str| ssh.join(name).display().to_string();
    nuee.run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &path("id_ed25519")])?.success()?;
    nuee.run("dropbearkey", &["-t", "ed25519", "-f", &path("host")])?.success()?;
    std::fs::copy(ssh.join("id_ed25519.pub"), ssh.join("authorized_keys"))?;
    let config = format!(
        "Host *\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n IdentityFile {}\n",
        path("id_ed25519")
    );
    std::fs::write(ssh.join("config"), config)?;
    // Both sides look into root's own home; in the test's mount namespace that is a directory of the test.
    let made = !std::path::Path::new("/root/.ssh").exists();
    std::fs::create_dir_all("/root/.ssh").context("cannot make the mount point")?;
    nuee.run("mount", &["--bind", &ssh.display().to_string(), "/root/.ssh"])?.success()?;
    let mut server: Command = nuee.space().command("dropbear");
    server.args(["-F", "-E", "-s", "-r", &path("host"), "-p", "127.0.0.1:2222"]).args(["-P", &path("pid")]);
    let mut server = server.stderr(std::process::Stdio::null()).spawn().context("cannot run dropbear")?;
    let host = format!("ssh://root@127.0.0.1:2222{}", nuee.data().join("docker.sock").display());
    let over_ssh = |arguments: &[&str]| {
        let mut command = nuee.space().command("docker");
        command.args(["--host", &host]).args(arguments).env("DOCKER_CONFIG", nuee.files().join("docker-config"));
        Output::of(command)
    };
    let reached = nuee.eventually("the server answers", || Ok(over_ssh(&["version"])?.status == 0));
    let run = reached.and_then(|()| over_ssh(&["run", "--rm", "busybox:test", "echo", "through a shell"]));
    let _ = server.kill();
    let _ = server.wait();
    assert_eq!(run?.success()?.stdout, "through a shell\n");
    nuee.run("umount", &["/root/.ssh"])?.success()?;
    if made {
        std::fs::remove_dir("/root/.ssh").context("cannot remove the mount point")?;
    }
    nuee.finish()
}

/// The id of an image by one's name for it; empty when there is none.
fn image_id(nuee: &Nuee, who: &str, name: &str) -> Result<String> {
    let words = ["image", "inspect", "-f", "{{.Id}}", name];
    let output = if who.is_empty() { nuee.docker(&words)? } else { tenant(nuee, who, &words)? };
    Ok(output.text().to_owned())
}

#[test]
fn names_of_images_are_each_tenants_own_over_those_that_all_share() -> Result<()> {
    let nuee = with_tenants()?;
    let name = "busybox:test";
    let shared = image_id(&nuee, "", name)?;
    assert!(!shared.is_empty() && image_id(&nuee, "alice", name)? == shared && image_id(&nuee, "bob", name)? == shared);

    // By a build, a commit, a tag, a load and an import: the name that others use stays theirs.
    let context = nuee.files().join("takeover");
    std::fs::create_dir_all(&context)?;
    std::fs::write(context.join("Dockerfile"), "FROM busybox:test\nRUN echo mine > /owner\n")?;
    let context = context.display().to_string();
    tenant(&nuee, "alice", &["build", "-q", "-t", name, "-t", "secret:1", &context])?.success()?;
    let built = image_id(&nuee, "alice", name)?;
    assert_ne!(built, shared, "it has its own");
    let run = tenant(&nuee, "alice", &["run", "--name", "owner", name, "cat", "/owner"])?;
    assert_eq!(run.success()?.stdout, "mine\n");
    tenant(&nuee, "alice", &["commit", "owner", name])?.success()?;
    let committed = image_id(&nuee, "alice", name)?;
    assert_ne!(committed, built);
    tenant(&nuee, "alice", &["tag", "secret:1", name])?.success()?;
    assert_eq!(image_id(&nuee, "alice", name)?, built);
    let archive = nuee.files().join("taken.tar").display().to_string();
    tenant(&nuee, "alice", &["save", "-o", &archive, name])?.success()?;
    tenant(&nuee, "alice", &["load", "-q", "-i", &archive])?.success()?;
    tenant(&nuee, "alice", &["import", &archive, "web:test"])?.success()?;
    for who in ["", "bob"] {
        assert_eq!(image_id(&nuee, who, name)?, shared, "{who:?} sees the name taken over");
        assert_ne!(image_id(&nuee, who, "web:test")?, image_id(&nuee, "alice", "web:test")?, "{who:?}");
    }
    let cat = ["run", "--rm", name, "cat", "/owner"];
    assert_ne!(tenant(&nuee, "bob", &cat)?.status, 0);
    assert_ne!(nuee.docker(&cat)?.status, 0);

    // Nobody else sees what only one has a name for, by name or by id.
    for reference in ["secret:1", built.as_str()] {
        tenant(&nuee, "bob", &["image", "inspect", reference])?.failure(1, "No such image")?;
    }
    let ids = tenant(&nuee, "bob", &["images", "-aq", "--no-trunc"])?.success()?.stdout;
    assert!(!ids.contains(&built), "{ids}");
    // The machine's owner sees it, and does not lose it by tidying up.
    assert!(nuee.docker(&["images", "-aq", "--no-trunc"])?.success()?.stdout.contains(&built));
    nuee.docker(&["image", "prune", "-af"])?.success()?;
    assert_eq!(image_id(&nuee, "alice", "secret:1")?, built);
    // What is loaded by another is another's too.
    tenant(&nuee, "bob", &["load", "-q", "-i", &archive])?.success()?;
    assert_eq!(image_id(&nuee, "bob", name)?, built);
    // The names survive a restart, and end with their namespace.
    nuee.kill_daemon()?;
    nuee.up()?;
    assert_eq!(image_id(&nuee, "alice", "secret:1")?, built);
    nuee.kubectl(&["delete", "namespace", "alice"])?.success()?;
    nuee.kubectl(&["create", "namespace", "alice"])?.success()?;
    nuee.eventually("the new namespace is served", || Ok(tenant(&nuee, "alice", &["ps"])?.status == 0))?;
    tenant(&nuee, "alice", &["image", "inspect", "secret:1"])?.failure(1, "No such image")?;
    nuee.finish()
}

#[test]
fn a_certificate_lives_as_long_as_it_is_told_and_ends_when_it_is_revoked() -> Result<()> {
    let nuee = with_tenants()?;
    let spare = nuee.files().join("spare");
    let spare_text = spare.display().to_string();
    let data = nuee.data().display().to_string();
    let run = |words: &[&str]| nuee.run(env!("CARGO_BIN_EXE_nuee"), &[words, &["--data-dir", &data]].concat());
    run(&["docker-certificate", "alice", "--output", &spare_text, "--days", "7"])?.success()?;
    let lives = |days: u32| {
        let seconds = (days * 24 * 3600).to_string();
        let certificate = spare.join("cert.pem").display().to_string();
        nuee.run("openssl", &["x509", "-checkend", &seconds, "-noout", "-in", &certificate])
    };
    assert_eq!((lives(6)?.status, lives(8)?.status), (0, 1), "a week");
    let certificate = nuee.files().join("alice/cert.pem").display().to_string();
    run(&["docker-certificate", "bob", "--revoke", &certificate])?
        .failure(1, "is no certificate of the namespace bob")?;
    tenant(&nuee, "alice", &["ps"])?.success()?;
    run(&["docker-certificate", "alice", "--revoke", &certificate])?.success()?;
    let refused = tenant(&nuee, "alice", &["ps"])?;
    assert_ne!(refused.status, 0);
    assert!(refused.stderr.contains("this certificate was revoked"), "{}", refused.stderr);
    tenant(&nuee, "bob", &["ps"])?.success()?;
    std::fs::rename(nuee.files().join("alice"), nuee.files().join("old"))?;
    std::fs::rename(&spare, nuee.files().join("alice"))?;
    tenant(&nuee, "alice", &["ps"])?.success()?;
    nuee.finish()
}
