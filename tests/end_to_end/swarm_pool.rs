//! Services whose tasks run on several machines: what the docker client reads of them on the first.

use std::fs::File;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use testkit::{Nuee, Output, Pool};

use crate::join::pool;

/// What each task does: it says where it is, complains, and counts to a bound, with lines that are written at once.
const TALK: &str = "h=$(hostname); echo hello from $h; echo trouble >&2; i=0; while [ $i -lt $0 ]; do i=$((i+1)); \
                    printf 'tick %d on %s\\ntock %d on %s\\nrest %d on %s\\n' $i $h $i $h $i $h; sleep 0.2; done; \
                    exec sleep 6000";
/// How those lines begin.
const BEATS: [&str; 3] = ["tick", "tock", "rest"];

/// Two machines, and a service with a task on each.
fn talking(ticks: u32) -> Result<Pool> {
    let pool = pool()?;
    let first = pool.first();
    first.docker(&["swarm", "init"])?.success()?;
    #[rustfmt::skip]
    first.docker(&["service", "create", "--detach", "--name", "talk", "--mode", "global", "--hostname", "{{.Node.Hostname}}",
        "--stop-grace-period", "0s", "--log-driver", "json-file", "--log-opt", "env=MOOD", "--env", "MOOD=deep blue", "busybox:test", "sh", "-c", TALK, &ticks.to_string()])?
        .success()?;
    first.eventually("a task on each machine is heard", || {
        let said = first.docker(&["service", "logs", "talk"])?.stdout;
        Ok(["n1", "n2"].iter().all(|node| said.contains(&format!("| rest 3 on {node}"))))
    })?;
    Ok(pool)
}

fn logs(first: &Nuee, arguments: &[&str]) -> Result<Output> {
    first.docker(&[&["service", "logs"], arguments].concat())
}

/// The lines of the task on a machine, by what the client puts before them.
fn of<'a>(said: &'a str, node: &str) -> Vec<&'a str> {
    let of_node = |line: &&str| {
        line.split_once('|').and_then(|(task, _)| task.trim().rsplit_once('@')).is_some_and(|(_, on)| on == node)
    };
    said.lines().filter(of_node).collect()
}

#[test]
fn the_logs_of_a_service_are_those_of_its_tasks_on_all_machines() -> Result<()> {
    let pool = talking(3)?;
    let first = pool.first();
    let all = logs(first, &["talk"])?.success()?;
    for node in ["n1", "n2"] {
        let lines = of(&all.stdout, node);
        assert!(lines[0].starts_with("talk.") && lines[0].ends_with(&format!("| hello from {node}")), "{lines:?}");
        assert!(lines[1].ends_with(&format!("| tick 1 on {node}")), "{lines:?}");
        assert!(of(&all.stderr, node)[0].ends_with("| trouble"), "{}", all.stderr);
    }
    let last = logs(first, &["--tail", "1", "talk"])?.success()?;
    assert_eq!((of(&last.stdout, "n1").len(), of(&last.stdout, "n2").len()), (1, 1), "{}", last.stdout);
    let stamped = logs(first, &["--timestamps", "talk"])?.success()?;
    for node in ["n1", "n2"] {
        let line = stamped.stdout.lines().find(|line| line.ends_with(&format!("| hello from {node}")));
        let stamp = line.context("no such line")?.split(' ').next().unwrap_or_default();
        assert!(stamp.parse::<jiff::Timestamp>().is_ok(), "{line:?}");
    }
    let detailed = logs(first, &["--details", "talk"])?.success()?;
    for node in ["n1", "n2"] {
        assert!(of(&detailed.stdout, node)[0].ends_with(&format!("| MOOD=deep blue hello from {node}")));
    }
    let raw = logs(first, &["--raw", "talk"])?.success()?;
    assert!(["n1", "n2"].iter().all(|node| raw.stdout.contains(&format!("\ntick 2 on {node}\n"))), "{}", raw.stdout);

    // One task, by its id; and its container, as any other.
    let task = first.docker(&["service", "ps", "--quiet", "--no-trunc", "--filter", "node=n2", "talk"])?.success()?;
    let alone = logs(first, &[task.text()])?.success()?;
    assert!(!of(&alone.stdout, "n2").is_empty() && of(&alone.stdout, "n1").is_empty(), "{}", alone.stdout);
    let format = "{{.Status.ContainerStatus.ContainerID}}";
    let container = first.docker(&["inspect", "--type", "task", "--format", format, task.text()])?.success()?;
    let said = first.docker(&["logs", container.text()])?.success()?;
    let begins = said.stdout.starts_with("hello from n2\ntick 1 on n2\ntock 1 on n2\n");
    assert!(begins && said.stderr == "trouble\n", "{}", said.stdout);
    first.docker(&["service", "rm", "talk"])?.success()?;
    pool.finish()
}

/// A client that follows the service until it is dropped.
struct Follower(Child);

impl Follower {
    fn start(first: &Nuee) -> Result<Self> {
        let mut command = first.docker_command(&["service", "logs", "--follow", "talk"]);
        let written = File::create(first.files().join("followed"))?;
        Ok(Self(command.stdout(written).stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn who_follows_a_service_loses_no_line_when_a_machine_goes_and_comes_back() -> Result<()> {
    let pool = talking(1_000_000)?;
    let (first, second) = (pool.first(), &pool.machines[1]);
    let follower = Follower::start(first)?;
    let followed = || Ok::<String, anyhow::Error>(std::fs::read_to_string(first.files().join("followed"))?);
    let ticks = |node: &str| -> Result<Vec<String>> {
        let said = followed()?;
        // The last line may be half of one.
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let told =
            of(whole, node).into_iter().filter_map(|line| line.split_once("| ").map(|(_, said)| said.to_owned()));
        Ok(told.filter(|said| BEATS.iter().any(|beat| said.starts_with(beat))).collect())
    };
    first.eventually("both are followed", || Ok(ticks("n1")?.len() > 5 && ticks("n2")?.len() > 5))?;
    second.kill_daemon()?;
    let cut = logs(first, &["talk"])?;
    assert_ne!(cut.status, 0);
    assert!(cut.stderr.contains("incomplete log stream") && cut.stderr.contains("is not available"), "{}", cut.stderr);
    assert!(cut.stdout.contains("| hello from n1") && !cut.stdout.contains("| hello from n2"), "{}", cut.stdout);
    let before = ticks("n2")?.len();
    second.up()?;
    first.eventually("the other machine is heard again", || Ok(ticks("n2")?.len() > before + 5))?;
    for node in ["n1", "n2"] {
        for (number, line) in ticks(node)?.iter().enumerate() {
            let beat = BEATS[number % BEATS.len()];
            assert_eq!(*line, format!("{beat} {} on {node}", number / BEATS.len() + 1));
        }
    }
    drop(follower);
    first.docker(&["service", "rm", "talk"])?.success()?;
    pool.finish()
}
