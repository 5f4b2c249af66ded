//! The daemon is killed in the middle of many requests, again and again. What was acknowledged is there afterwards, once;
//! what was not is there once or not at all; and when everything is removed, the machine is as it was before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::{Census, Nuee};

use crate::with_images;

/// How often the daemon is killed; more by `NUEE_STORM_ROUNDS`.
const ROUNDS_DEFAULT: usize = 2;
/// `docker run` at the same time.
const RUNS: usize = 50;
/// `kubectl apply` at the same time, each a process of its own with a ConfigMap and a Pod.
const APPLIES: usize = 50;
/// Containers that run through all rounds.
const OLD: usize = 5;
/// How often the storm looks whether it is time to kill.
const LOOK: Duration = Duration::from_millis(2);

#[test]
fn a_daemon_killed_amid_requests_loses_doubles_and_leaks_nothing() -> Result<()> {
    let nuee = with_images()?;
    let rounds = crate::journal::rounds("NUEE_STORM_ROUNDS", ROUNDS_DEFAULT);
    let old: Vec<String> = (0..OLD).map(|index| format!("old-{index}")).collect();
    for name in &old {
        docker_run(&nuee, name, &["--detach", "--publish", "80"])?.success()?;
    }
    let pids = pids(&nuee, &old)?;
    let before = Census::take(&nuee)?;
    let mut random = u64::from(std::process::id());
    for round in 0..rounds {
        let storm = Storm::new(round, &mut random);
        let acknowledged = storm.rage(&nuee)?;
        nuee.up()?;
        storm.check(&nuee, &acknowledged).with_context(|| format!("{storm:?}"))?;
        ensure!(self::pids(&nuee, &old)? == pids, "old containers were started again: {storm:?}");
        let during = Census::take(&nuee)?;
        // The control: the count must see what runs, or it would not see a leak either.
        ensure!(during.beyond(&before).len() > acknowledged.containers.len(), "the census is blind: {during:?}");
        storm.clear(&nuee)?;
        let mut left = Vec::new();
        let clean = nuee.eventually("nothing is left of the storm", || {
            left = Census::take(&nuee)?.beyond(&before);
            Ok(left.is_empty())
        });
        clean.with_context(|| format!("leaked: {left:#?}\n{storm:?}"))?;
        println!("round {round}: killed after {} answers, {acknowledged}", storm.kill_after);
    }
    nuee.docker(&["rm", "--force", "old-0"])?.success()?;
    nuee.finish()
}

/// One storm.
#[derive(Debug)]
struct Storm {
    round: usize,
    /// Requests that are answered before the daemon is killed.
    kill_after: usize,
}

/// What clients were told is done.
#[derive(Debug, Default)]
struct Acknowledged {
    containers: BTreeSet<String>,
    objects: BTreeSet<String>,
}

impl std::fmt::Display for Acknowledged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} containers and {} objects acknowledged", self.containers.len(), self.objects.len())
    }
}

/// What one client did: the name, whether it is a container, whether it was acknowledged.
type Answer = (String, bool, bool);

impl Storm {
    fn new(round: usize, random: &mut u64) -> Self {
        // Any sequence will do that differs from run to run; constants of Knuth's MMIX generator.
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let kill_after = usize::try_from(*random >> 33).unwrap_or(0) % ((RUNS + APPLIES) * 3 / 4) + 2;
        Self { round, kill_after }
    }

    /// How the names of this round begin; other tests on the machine have other names.
    fn prefix(&self, sort: &str) -> String {
        format!("{sort}-{}-{}-", std::process::id(), self.round)
    }

    fn container(&self, index: usize) -> String {
        format!("{}{index}", self.prefix("storm"))
    }

    fn object(&self, index: usize) -> String {
        format!("{}{index}", self.prefix("gale"))
    }

    /// Lets all clients loose, and kills the daemon among them.
    fn rage(&self, nuee: &Nuee) -> Result<Acknowledged> {
        let answered = AtomicUsize::new(0);
        let answers = std::thread::scope(|scope| {
            let runs = (0..RUNS).map(|index| {
                let answered = &answered;
                scope.spawn(move || -> Result<Vec<Answer>> {
                    let name = self.container(index);
                    let options: &[&str] = match index % 5 {
                        0 => &["--detach", "--publish", "80"],
                        1 => &["--rm", "--detach"],
                        2 => &["--detach", "--restart", "always"],
                        3 => &["--detach", "--volume", "/anonymous"],
                        _ => &["--detach"],
                    };
                    let output = docker_run(nuee, &name, options)?;
                    answered.fetch_add(1, Ordering::SeqCst);
                    Ok(vec![(name, true, output.status == 0)])
                })
            });
            let applies = (0..APPLIES).map(|index| {
                let answered = &answered;
                scope.spawn(move || -> Result<Vec<Answer>> {
                    let name = self.object(index);
                    let output = nuee.apply(&manifest(&name))?;
                    answered.fetch_add(1, Ordering::SeqCst);
                    let made = |kind: &str| {
                        let object = format!("{kind}/{name}");
                        let line = format!("{object} created");
                        let told = output.stdout.lines().any(|found| found == line);
                        (object, false, told)
                    };
                    Ok(vec![made("configmap"), made("pod")])
                })
            });
            let clients: Vec<_> = runs.chain(applies).collect();
            while answered.load(Ordering::SeqCst) < self.kill_after {
                std::thread::sleep(LOOK);
            }
            nuee.kill_daemon()?;
            let joined =
                clients.into_iter().map(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?);
            joined.collect::<Result<Vec<_>>>()
        })?;
        let mut acknowledged = Acknowledged::default();
        for (name, is_container, _) in answers.into_iter().flatten().filter(|(_, _, told)| *told) {
            let list = if is_container { &mut acknowledged.containers } else { &mut acknowledged.objects };
            list.insert(name);
        }
        Ok(acknowledged)
    }

    /// After the restart: all that was acknowledged is there and runs, once, at an address of its own.
    fn check(&self, nuee: &Nuee, acknowledged: &Acknowledged) -> Result<()> {
        let states = states(nuee)?;
        for name in &acknowledged.containers {
            ensure!(states.get(name).is_some_and(|s| s == "running"), "{name} is {:?}", states.get(name));
        }
        if !acknowledged.objects.is_empty() {
            let mut arguments = vec!["get"];
            arguments.extend(acknowledged.objects.iter().map(String::as_str));
            nuee.kubectl(&arguments)?.success()?;
        }
        let mut last = String::new();
        let settled = nuee.eventually("every container and pod that should run does so, once", || {
            let running = markers(&self.prefix("storm"));
            let pods = markers(&self.prefix("gale"));
            let wanted: BTreeSet<String> = self::states(nuee)?
                .into_iter()
                .filter(|(name, state)| name.starts_with("storm-") && state == "running")
                .map(|(name, _)| name)
                .collect();
            let wanted_pods = names(nuee, "pods")?;
            last = format!("running {running:?} {pods:?}, wanted {wanted:?} {wanted_pods:?}");
            Ok(running.values().chain(pods.values()).all(|count| *count == 1)
                && running.keys().eq(wanted.iter())
                && pods.keys().eq(wanted_pods.iter()))
        });
        settled.context(last)?;
        let addresses = addresses(nuee)?;
        let distinct: BTreeSet<&String> = addresses.iter().collect();
        ensure!(distinct.len() == addresses.len(), "an address was given twice: {addresses:?}");
        Ok(())
    }

    fn clear(&self, nuee: &Nuee) -> Result<()> {
        let containers: Vec<String> = states(nuee)?.into_keys().filter(|name| name.starts_with("storm-")).collect();
        if !containers.is_empty() {
            let mut arguments = vec!["rm", "--force", "--volumes"];
            arguments.extend(containers.iter().map(String::as_str));
            nuee.docker(&arguments)?.success()?;
        }
        nuee.kubectl(&["delete", "pods,configmaps", "--selector", "storm=yes", "--wait=false"])?.success()?;
        Ok(())
    }
}

/// Starts a container whose only long-lived process carries its name.
fn docker_run(nuee: &Nuee, name: &str, options: &[&str]) -> Result<testkit::Output> {
    let mut arguments = vec!["run", "--name", name];
    arguments.extend(options);
    arguments.extend(["busybox:test", "sh", "-c", "while :; do sleep 1000; done", name]);
    nuee.docker(&arguments)
}

fn manifest(name: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: ConfigMap
metadata: {{name: {name}, labels: {{storm: "yes"}}}}
data: {{key: value}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{storm: "yes"}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: main, image: "busybox:test", command: [sh, -c, "while :; do sleep 1000; done", {name}]}}
"#
    )
}

/// States of all containers by name.
fn states(nuee: &Nuee) -> Result<BTreeMap<String, String>> {
    let text = nuee.docker(&["ps", "--all", "--format", "{{.Names}} {{.State}}"])?.success()?.stdout;
    Ok(text.lines().filter_map(|line| line.split_once(' ')).map(|(n, s)| (n.to_owned(), s.to_owned())).collect())
}

fn names(nuee: &Nuee, kind: &str) -> Result<BTreeSet<String>> {
    let output = nuee.kubectl(&["get", kind, "-l", "storm=yes", "-o", "jsonpath={.items[*].metadata.name}"])?;
    Ok(output.success()?.stdout.split_whitespace().map(str::to_owned).collect())
}

/// Main processes that carry a name with this beginning, counted by name.
fn markers(prefix: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for line in testkit::command_lines("while :; do sleep 1000; done") {
        let mut words = line.iter();
        // Clients and shims have it among their words too; the process itself begins with it.
        if let (Some("sh"), Some(name)) = (words.next().map(String::as_str), line.last())
            && name.starts_with(prefix)
        {
            *found.entry(name.clone()).or_default() += 1;
        }
    }
    found
}

fn addresses(nuee: &Nuee) -> Result<Vec<String>> {
    let ids = nuee.docker(&["ps", "--quiet"])?.success()?.stdout;
    let mut arguments = vec!["inspect", "--format", "{{.NetworkSettings.IPAddress}}"];
    arguments.extend(ids.lines());
    let text = nuee.docker(&arguments)?.success()?.stdout;
    let mut found: Vec<String> = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    let pods = nuee.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.podIP}"])?.success()?.stdout;
    found.extend(pods.split_whitespace().map(str::to_owned));
    Ok(found)
}

fn pids(nuee: &Nuee, names: &[String]) -> Result<String> {
    let mut arguments = vec!["inspect", "--format", "{{.State.Pid}} {{.State.Running}}"];
    arguments.extend(names.iter().map(String::as_str));
    Ok(nuee.docker(&arguments)?.success()?.stdout)
}
