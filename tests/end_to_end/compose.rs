//! The Compose clients, unmodified: 1.29 (Debian), 2.40 and 5.6 (from PyPI, fetched by `contrib/packages.sh test`), each on the
//! same three projects.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::{Nuee, Output};

use crate::with_images;

/// Time until a page that a watch has not seen is written again.
const WRITTEN_AGAIN: Duration = Duration::from_secs(5);

/// A Compose client pointed at a Nuée, in a project's directory.
struct Compose<'a> {
    nuee: &'a Nuee,
    program: &'a Path,
    directory: PathBuf,
}

impl Compose<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = compose(self.nuee, self.program, &self.directory);
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<Output> {
        Output::of(self.command(arguments))?.success()
    }

    fn logs_say(&self, service: &str, text: &str) -> Result<()> {
        self.nuee.eventually(&format!("{service} says {text:?}"), || {
            Ok(self.run(&["logs", "--no-color", service])?.stdout.contains(text))
        })
    }
}

/// A Compose client in a directory, up to its sub-command.
pub fn compose(nuee: &Nuee, program: &Path, directory: &Path) -> Command {
    // Entering a mount namespace loses the working directory, so `env` goes there inside it.
    let mut command = nuee.space().command("env");
    command.arg(format!("--chdir={}", directory.display())).arg(program);
    command.env("DOCKER_HOST", format!("unix://{}", nuee.data().join("docker.sock").display()));
    command.env("DOCKER_CONFIG", nuee.files().join("docker-config"));
    command.env("COMPOSE_MENU", "false").env_remove("DOCKER_BUILDKIT");
    command
}

/// The clients from PyPI lie where the set-up step put them.
pub fn from_pypi(name: &str) -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/compose").join(name);
    ensure!(path.exists(), "{} is not there: run contrib/packages.sh test", path.display());
    Ok(path.canonicalize()?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// All three projects, with one client.
fn projects_run(program: &Path) -> Result<()> {
    let nuee = with_images()?;
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/end_to_end/compose");
    let project = |name: &str| -> Result<Compose<'_>> {
        let directory = nuee.files().join(name);
        copy(&all.join(name), &directory)?;
        Ok(Compose { nuee: &nuee, program, directory })
    };
    shop(&project("shop")?)?;
    site(&project("site")?)?;
    pipeline(&project("pipeline")?)?;
    assert_eq!(nuee.docker(&["ps", "-aq"])?.success()?.text(), "");
    assert_eq!(nuee.docker(&["volume", "ls", "-q"])?.success()?.text(), "");
    nuee.finish()
}

fn shop(shop: &Compose<'_>) -> Result<()> {
    shop.run(&["build"])?;
    shop.run(&["up", "-d"])?;
    let nuee = shop.nuee;
    for (path, text) in [("", "a page\n"), ("greeting", "hello\n"), ("token", "a secret\n"), ("env", "from the file\n")]
    {
        assert_eq!(nuee.fetch(&format!("http://127.0.0.1:18080/{path}"))?, text, "{path}");
    }
    nuee.eventually("the database is healthy", || Ok(nuee.docker(&["ps"])?.success()?.stdout.contains("(healthy)")))?;
    shop.logs_say("worker", "worked")?;
    assert_eq!(shop.run(&["exec", "-T", "web", "cat", "/www/greeting"])?.stdout, "hello\n");
    shop.run(&["up", "-d", "--scale", "worker=2"])?;
    assert_eq!(shop.run(&["ps", "-q", "worker"])?.text().lines().count(), 2);
    // What is in the volume outlives the containers, until it is asked to go.
    shop.run(&["exec", "-T", "database", "sh", "-c", "echo kept > /data/state"])?;
    shop.run(&["down"])?;
    shop.run(&["up", "-d"])?;
    shop.logs_say("worker", "kept")?;
    shop.run(&["down", "--volumes"])?;
    Ok(())
}

fn site(site: &Compose<'_>) -> Result<()> {
    assert!(site.run(&["config"])?.stdout.contains("OVERRIDDEN"));
    site.run(&["up", "-d"])?;
    site.logs_say("client", "from a directory")?;
    let environment = site.run(&["exec", "-T", "site", "env"])?.stdout;
    assert!(environment.contains("OVERRIDDEN=yes"), "{environment}");
    let both = ["ps", "-q", "--filter", "label=tier=front", "--filter", "label=more=labels"];
    assert_eq!(site.nuee.docker(&both)?.success()?.text().lines().count(), 1);
    site.run(&["restart", "client"])?;
    site.run(&["stop"])?;
    site.run(&["down"])?;
    Ok(())
}

fn pipeline(pipeline: &Compose<'_>) -> Result<()> {
    pipeline.run(&["build", "--build-arg", "WHAT=glass"])?;
    pipeline.run(&["up", "-d"])?;
    pipeline.logs_say("consumer", "made of glass")?;
    let volumes = pipeline.nuee.docker(&["volume", "ls", "-q", "--filter", "label=kind=hand-over"])?.success()?;
    assert_eq!(volumes.text(), "pipeline_shared");
    let run = pipeline.run(&["run", "--rm", "-T", "consumer", "cat", "/shared/result"])?;
    assert!(run.stdout.contains("made of glass"), "{}", run.stdout);
    pipeline.run(&["down", "--volumes"])?;
    Ok(())
}

/// Who depends on the health or the end of another waits for it; profiles start when they are asked for; configs are files. Compose 1
/// knows configs of swarms alone.
fn order_profiles_and_configs(program: &Path, configs: bool) -> Result<()> {
    let nuee = with_images()?;
    let directory = nuee.files().join("ordered");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("motto"), "out of a config\n")?;
    let (uses, defines) = match configs {
        true => ("\n    configs: [{source: motto, target: /motto}]", "configs:\n  motto: {file: ./motto}\n"),
        false => ("\n    volumes: ['./motto:/motto:ro']", ""),
    };
    let compose_file = format!(
        "services:\n  base:\n    image: busybox:test\n    stop_grace_period: 0s\n    command: [sh, -c, 'sleep 1; touch /ready; sleep 600']\n    \
         healthcheck: {{test: [CMD, test, -e, /ready], interval: 1s, retries: 60}}\n  once:\n    image: busybox:test\n    command: [sh, -c, 'exit 0']\n  \
         asks:\n    image: busybox:test\n    stop_grace_period: 0s\n    command: [sh, -c, 'cat /motto; sleep 600']{uses}\n    depends_on:\n      \
         base: {{condition: service_healthy}}\n      once: {{condition: service_completed_successfully}}\n  extra:\n    image: busybox:test\n    \
         stop_grace_period: 0s\n    command: [sleep, '600']\n    profiles: [tools]\n{defines}"
    );
    std::fs::write(directory.join("compose.yaml"), compose_file)?;
    let project = Compose { nuee: &nuee, program, directory };
    project.run(&["up", "-d"])?;
    let id = |service: &str| Ok::<_, anyhow::Error>(project.run(&["ps", "-aq", service])?.text().to_owned());
    let inspect = |service: &str, what: &str| {
        Ok::<_, anyhow::Error>(nuee.docker(&["inspect", "-f", what, &id(service)?])?.success()?.text().to_owned())
    };
    assert_eq!(inspect("base", "{{.State.Health.Status}}")?, "healthy");
    assert_eq!(inspect("once", "{{.State.Status}} {{.State.ExitCode}}")?, "exited 0");
    let time = |service: &str, what: &str| {
        let text = inspect(service, what)?;
        text.parse::<jiff::Timestamp>().with_context(|| format!("{what} of {service}: {text}"))
    };
    assert!(time("asks", "{{.State.StartedAt}}")? > time("once", "{{.State.FinishedAt}}")?);
    project.logs_say("asks", "out of a config")?;
    let running = || Ok::<_, anyhow::Error>(nuee.docker(&["ps", "-q"])?.success()?.text().lines().count());
    assert_eq!(running()?, 2, "nobody asked for the profile");
    project.run(&["--profile", "tools", "up", "-d"])?;
    assert_eq!(running()?, 3);
    project.run(&["--profile", "tools", "down"])?;
    assert_eq!(nuee.docker(&["ps", "-aq"])?.success()?.text(), "");
    nuee.finish()
}

#[test]
fn compose_1_waits_for_health_and_knows_profiles() -> Result<()> {
    order_profiles_and_configs(Path::new("docker-compose"), false)
}

#[test]
fn compose_2_waits_for_health_and_knows_profiles_and_configs() -> Result<()> {
    order_profiles_and_configs(&from_pypi("docker-compose-2")?, true)
}

#[test]
fn compose_5_waits_for_health_and_knows_profiles_and_configs() -> Result<()> {
    order_profiles_and_configs(&from_pypi("docker-compose-5")?, true)
}

/// `watch` copies what changes into the container, and builds anew where it is told to.
fn watch_follows(program: &Path) -> Result<()> {
    let nuee = with_images()?;
    // The project has its directory's name, under which a client holds a lock for the whole machine.
    let name = program.file_name().context("a program without a name")?.to_string_lossy();
    let directory = nuee.files().join(format!("watched-by-{name}"));
    std::fs::create_dir_all(directory.join("pages"))?;
    std::fs::write(directory.join("pages/index.html"), "first\n")?;
    std::fs::write(directory.join("made"), "built\n")?;
    std::fs::write(directory.join("Dockerfile"), "FROM busybox:test\nCOPY made /made\nCOPY pages /pages\n")?;
    let compose_file = "services:\n  web:\n    build: .\n    command: [httpd, -f, -p, '80', -h, /pages]\n    stop_grace_period: 0s\n    \
                        develop:\n      watch:\n        - {action: sync, path: ./pages, target: /pages}\n        - {action: rebuild, path: ./made}\n";
    std::fs::write(directory.join("compose.yaml"), compose_file)?;
    let project = Compose { nuee: &nuee, program, directory };
    project.run(&["up", "-d", "--build"])?;
    let log = std::fs::File::create(nuee.files().join("watch.log"))?;
    let mut watch = project.command(&["watch", "--no-up"]).stdout(log.try_clone()?).stderr(log).spawn()?;
    let said = || std::fs::read_to_string(nuee.files().join("watch.log")).unwrap_or_default();
    let inside = |path: &str| project.command(&["exec", "-T", "web", "cat", path]).output().map(|output| output.stdout);
    let done = (|| {
        nuee.eventually("the watch has begun", || Ok(said().to_lowercase().contains("watch enabled")))?;
        // The watch may be told of before it sees everything, so the page is written again; not at each try, as it waits until the
        // files are quiet.
        let mut written: Option<Instant> = None;
        nuee.eventually("the page is copied", || {
            if written.is_none_or(|at| at.elapsed() > WRITTEN_AGAIN) {
                std::fs::write(project.directory.join("pages/index.html"), "second\n")?;
                written = Some(Instant::now());
            }
            Ok(inside("/pages/index.html")? == b"second\n")
        })?;
        std::fs::write(project.directory.join("made"), "built anew\n")?;
        nuee.eventually("the image is built anew", || Ok(inside("/made")? == b"built anew\n"))
    })();
    // Its own interrupt, as a terminal sends it; one that builds may not heed it.
    let _ = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(watch.id())?),
        nix::sys::signal::Signal::SIGINT,
    );
    if nuee.eventually("the watch ends", || Ok(watch.try_wait()?.is_some())).is_err() {
        watch.kill()?;
        watch.wait()?;
    }
    done.with_context(said)?;
    project.run(&["down", "--volumes"])?;
    nuee.finish()
}

#[test]
fn compose_2_watches() -> Result<()> {
    watch_follows(&from_pypi("docker-compose-2")?)
}

#[test]
fn compose_5_watches() -> Result<()> {
    watch_follows(&from_pypi("docker-compose-5")?)
}

#[test]
fn compose_1_runs_three_projects() -> Result<()> {
    projects_run(Path::new("docker-compose"))
}

#[test]
fn compose_2_builds_over_buildkit_and_runs_three_projects() -> Result<()> {
    projects_run(&from_pypi("docker-compose-2")?)
}

#[test]
fn compose_5_runs_three_projects() -> Result<()> {
    projects_run(&from_pypi("docker-compose-5")?)
}

#[test]
fn our_own_compose_runs_three_projects_and_compose_sees_them() -> Result<()> {
    let nuee = with_images()?;
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/end_to_end/compose");
    let compose_2 = from_pypi("docker-compose-2")?;
    let ours = |directory: &Path, arguments: &[&str]| -> Result<Output> {
        let mut command = nuee.space().command("env");
        command.arg(format!("--chdir={}", directory.display())).arg(env!("CARGO_BIN_EXE_nuee")).arg("compose");
        command.env("DOCKER_HOST", format!("unix://{}", nuee.data().join("docker.sock").display())).args(arguments);
        Output::of(command)?.success()
    };
    for (name, service, says) in [
        ("shop", "worker", "worked"),
        ("site", "client", "from a directory"),
        ("pipeline", "consumer", "made of thing"),
    ] {
        let directory = nuee.files().join(name);
        copy(&all.join(name), &directory)?;
        ours(&directory, &["build"])?;
        ours(&directory, &["up", "--detach"])?;
        nuee.eventually(&format!("{service} says {says:?}"), || {
            Ok(ours(&directory, &["logs", service])?.stdout.contains(says))
        })?;
        // Nothing is to be done a second time, and the real client finds what ours made.
        let again = ours(&directory, &["up", "--detach", service])?;
        assert!(!again.stdout.contains("Removed"), "{}", again.stdout);
        let theirs = Compose { nuee: &nuee, program: &compose_2, directory: directory.clone() };
        let listed = ours(&directory, &["ps", "--all", "--quiet"])?.stdout;
        let seen = theirs.run(&["ps", "--all", "--quiet", "--no-trunc"])?.stdout;
        let sorted = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(sorted(&listed), sorted(&seen), "{name}");
        if name == "shop" {
            assert_eq!(nuee.fetch("http://127.0.0.1:18080/token")?, "a secret\n");
        }
        ours(&directory, &["down", "--volumes"])?;
    }
    assert_eq!(nuee.docker(&["ps", "-aq"])?.success()?.text(), "");
    assert_eq!(nuee.docker(&["volume", "ls", "-q"])?.success()?.text(), "");
    nuee.finish()
}
