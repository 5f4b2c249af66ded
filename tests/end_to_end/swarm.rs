//! Swarm mode by the real docker client: services, roll-outs, secrets, stacks, machines.

use std::collections::BTreeSet;

use anyhow::Result;
use testkit::{Nuee, Output};

use crate::with_images;

/// Each replica tells its own host name on port 80.
const TELL: &str = "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www";
/// Fetches of a published port within which every replica must have answered; far more than chance asks for.
const FETCHES: usize = 200;

/// A Nuée with images and a swarm.
fn with_swarm() -> Result<Nuee> {
    let nuee = with_images()?;
    let started = nuee.docker(&["swarm", "init"])?.success()?;
    assert!(started.stdout.contains("docker swarm join --token SWMTKN-1-"), "{}", started.stdout);
    Ok(nuee)
}

fn fed(nuee: &Nuee, arguments: &[&str], input: &str) -> Result<Output> {
    Output::fed(nuee.docker_command(arguments), input.as_bytes())?.success()
}

/// What `docker service ls` says about replicas.
fn replicas(nuee: &Nuee, service: &str) -> Result<String> {
    let filter = format!("name={service}");
    let list = ["service", "ls", "--filter", &filter, "--format", "{{.Replicas}}"];
    Ok(nuee.docker(&list)?.success()?.text().to_owned())
}

fn becomes(nuee: &Nuee, service: &str, wanted: &str) -> Result<()> {
    nuee.eventually(&format!("{service} has {wanted} tasks"), || Ok(replicas(nuee, service)? == wanted))
}

/// Running tasks of a service with their images.
fn tasks(nuee: &Nuee, service: &str, format: &str) -> Result<Vec<String>> {
    let list = ["service", "ps", service, "--no-trunc", "--filter", "desired-state=running", "--format", format];
    let output = nuee.docker(&list)?.success()?;
    Ok(output.text().lines().map(str::to_owned).collect())
}

fn container_of(nuee: &Nuee, service: &str) -> Result<String> {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    let list = nuee.docker(&["ps", "-q", "--filter", &filter])?.success()?;
    Ok(list.text().lines().next().unwrap_or_default().to_owned())
}

fn update_state(nuee: &Nuee, service: &str) -> Result<String> {
    let format = "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}";
    Ok(nuee.docker(&["service", "inspect", "--format", format, service])?.success()?.text().to_owned())
}

#[test]
fn a_service_is_reached_through_the_mesh_scaled_rolled_out_and_rolled_back() -> Result<()> {
    let nuee = with_swarm()?;
    nuee.docker(&["network", "create", "--driver", "overlay", "front"])?.success()?;
    fed(&nuee, &["secret", "create", "key", "-"], "s3cret")?;
    fed(&nuee, &["config", "create", "page", "-"], "c0nfig")?;
    #[rustfmt::skip]
    nuee.docker(&[
        "service", "create", "--name", "web", "--replicas", "3", "--publish", "8080:80", "--network", "front",
        "--hostname", "web-{{.Task.Slot}}", "--secret", "key", "--config", "source=page,target=/etc/page,mode=0440",
        "--update-delay", "0s", "--update-monitor", "1s", "--update-failure-action", "rollback", "--stop-grace-period", "1s",
        "--restart-delay", "0s", "busybox:test", "sh", "-c", TELL,
    ])?
    .success()?;
    assert_eq!(replicas(&nuee, "web")?, "3/3");

    // The mesh leads to every replica, from this machine and from its other address.
    let mut seen = BTreeSet::new();
    for _ in 0..FETCHES {
        seen.insert(nuee.fetch("http://127.0.0.1:8080/")?.trim().to_owned());
        if seen.len() == 3 {
            break;
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["web-1", "web-2", "web-3"]);

    // Names: the service's address, and those of its tasks; secrets and configs are files of the tasks alone.
    let container = container_of(&nuee, "web")?;
    let inside = |script: &str| {
        Ok::<_, anyhow::Error>(nuee.docker(&["exec", &container, "sh", "-c", script])?.success()?.stdout)
    };
    assert_eq!(inside("cat /run/secrets/key /etc/page; stat -c %a /etc/page")?, "s3cretc0nfig440\n");
    assert!(inside("wget -qO- http://web/")?.starts_with("web-"));
    let addresses =
        inside("nslookup tasks.web | grep -c '^Address: *10\\.\\|^Address: *172\\.\\|^Address: *192\\.' || true")?;
    assert!(addresses.trim().parse::<usize>().unwrap_or(0) >= 3, "{addresses}");
    let refused = nuee.docker(&["secret", "rm", "key"])?;
    refused.failure(1, "in use by the following service: web")?;
    // It is a view: the same things are there for kubectl.
    assert!(nuee.kubectl(&["get", "swarmservices"])?.success()?.stdout.contains("web"));
    assert!(nuee.kubectl(&["get", "secret", "key"])?.success()?.stdout.contains("key"));

    nuee.docker(&["service", "scale", "--detach", "web=2"])?.success()?;
    becomes(&nuee, "web", "2/2")?;
    nuee.eventually("two containers are left", || {
        Ok(nuee.docker(&["ps", "-aq", "--filter", "is-task=true"])?.success()?.text().lines().count() == 2)
    })?;

    // A new image, one task after the other.
    nuee.docker(&["tag", "busybox:test", "busybox:next"])?.success()?;
    nuee.docker(&["service", "update", "--no-resolve-image", "--image", "busybox:next", "web"])?.success()?;
    assert_eq!(update_state(&nuee, "web")?, "completed");
    assert_eq!(tasks(&nuee, "web", "{{.Image}}")?, ["busybox:next", "busybox:next"]);
    let history = nuee.docker(&["service", "ps", "web", "--format", "{{.Name}} {{.DesiredState}}"])?.success()?;
    assert!(history.stdout.contains("web.1 Shutdown"), "{}", history.stdout);

    // One that fails comes back to what ran before, by itself.
    nuee.docker(&["service", "update", "--detach", "--no-resolve-image", "--args", "false", "web"])?.success()?;
    nuee.eventually("the failing version is rolled back", || Ok(update_state(&nuee, "web")? == "rollback_completed"))?;
    becomes(&nuee, "web", "2/2")?;
    let arguments =
        nuee.docker(&["service", "inspect", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Args}}", "web"])?;
    assert!(arguments.success()?.stdout.contains("httpd"));
    assert!(nuee.fetch("http://127.0.0.1:8080/")?.starts_with("web-"));

    nuee.docker(&["service", "rm", "web"])?.success()?;
    nuee.docker(&["network", "rm", "front"])?.success()?;
    nuee.docker(&["secret", "rm", "key"])?.success()?;
    nuee.eventually("nothing is left of it", || {
        Ok(nuee.docker(&["ps", "-aq"])?.success()?.text().is_empty()
            && nuee.kubectl(&["get", "swarmservices", "-o", "name"])?.success()?.text().is_empty())
    })?;
    nuee.docker(&["swarm", "leave"])?.failure(1, "Use `--force`")?;
    nuee.docker(&["swarm", "leave", "--force"])?.success()?;
    nuee.docker(&["node", "ls"])?.failure(1, "This node is not a swarm manager")?;
    nuee.finish()
}

#[test]
fn configs_and_secrets_may_be_templates_and_a_task_says_what_is_not_understood() -> Result<()> {
    let nuee = with_swarm()?;
    let template = "{{.Service.Name}} {{ .Task.Slot }} {{env \"GREETED\"}} {{secret \"key\"}}\n{{- /* no more */ -}} ";
    fed(&nuee, &["secret", "create", "--template-driver", "golang", "named", "-"], "of {{.Service.Name}}")?;
    fed(&nuee, &["secret", "create", "key", "-"], "s3cret {{.Task.Slot}}")?;
    fed(&nuee, &["config", "create", "--template-driver", "golang", "greeting", "-"], template)?;
    let driver = nuee.docker(&["config", "inspect", "--format", "{{.Spec.Templating.Name}}", "greeting"])?.success()?;
    assert_eq!(driver.text(), "golang");
    #[rustfmt::skip]
    nuee.docker(&[
        "service", "create", "--name", "web", "--replicas", "2", "--env", "GREETED=world", "--secret", "key", "--secret", "named",
        "--config", "source=greeting,target=/greeting", "busybox:test", "sleep", "600",
    ])?
    .success()?;
    let mut seen = BTreeSet::new();
    for container in nuee.docker(&["ps", "-q", "--filter", "name=web."])?.success()?.text().lines() {
        let files = nuee.docker(&["exec", container, "cat", "/greeting", "/run/secrets/named"])?.success()?;
        seen.insert(files.stdout);
    }
    // What is included stands as it is: it is no template itself.
    let wanted = |slot| format!("web {slot} world s3cret {{{{.Task.Slot}}}}of web");
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [wanted(1), wanted(2)]);

    fed(&nuee, &["config", "create", "--template-driver", "golang", "clever", "-"], "{{ if .Task.ID }}x{{ end }}")?;
    #[rustfmt::skip]
    nuee.docker(&[
        "service", "create", "--detach", "--name", "clever", "--restart-condition", "none", "--config", "clever",
        "busybox:test", "sleep", "600",
    ])?
    .success()?;
    nuee.eventually("the task says what is not understood", || {
        let said = nuee.docker(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "clever"])?;
        Ok(said.stdout.contains("{{if .Task.ID}} is not understood"))
    })
}

#[test]
fn tasks_show_as_containers_with_their_logs_and_are_started_again_as_the_rules_say() -> Result<()> {
    let nuee = with_swarm()?;
    let script = "echo hello; echo trouble >&2; exec sleep 600";
    #[rustfmt::skip]
    nuee.docker(&["service", "create", "--detach", "--name", "talk", "--replicas", "2", "--stop-grace-period", "0s",
        "busybox:test", "sh", "-c", script])?.success()?;
    becomes(&nuee, "talk", "2/2")?;
    let names = nuee.docker(&["ps", "--format", "{{.Names}}"])?.success()?.stdout;
    let ids = tasks(&nuee, "talk", "{{.ID}}")?;
    assert!(ids.iter().all(|id| id.len() == 25 && names.contains(&format!(".{id}"))), "{names} {ids:?}");
    let shown = nuee.docker(&["inspect", "--format", "{{.Status.State}} {{.Slot}}", &ids[0]])?.success()?;
    assert!(shown.text().starts_with("running "), "{}", shown.stdout);
    nuee.eventually("both tasks are heard", || {
        let logs = nuee.docker(&["service", "logs", "talk"])?.success()?;
        let lines: Vec<&str> = logs.stdout.lines().collect();
        let told =
            |slot: usize| lines.iter().any(|l| l.starts_with(&format!("talk.{slot}.")) && l.ends_with("| hello"));
        Ok(told(1) && told(2) && logs.stderr.contains("| trouble"))
    })?;

    #[rustfmt::skip]
    nuee.docker(&["service", "create", "--detach", "--name", "fails", "--restart-max-attempts", "2", "--restart-delay", "0s",
        "busybox:test", "sh", "-c", "exit 3"])?.success()?;
    let failed = || -> Result<usize> {
        let list =
            nuee.docker(&["service", "ps", "fails", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}"])?;
        Ok(list
            .success()?
            .stdout
            .lines()
            .filter(|l| l.starts_with("Failed") && l.contains("non-zero exit (3)"))
            .count())
    };
    nuee.eventually("it was tried three times", || Ok(failed()? == 3))?;

    #[rustfmt::skip]
    nuee.docker(&["service", "create", "--detach", "--name", "nowhere", "--restart-condition", "none", "--no-resolve-image",
        "127.0.0.1:1/nothing:here"])?.success()?;
    nuee.eventually("a task without an image is rejected", || {
        let list =
            nuee.docker(&["service", "ps", "nowhere", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}"])?;
        let text = list.success()?.stdout;
        Ok(text.starts_with("Rejected") && text.contains("No such image"))
    })?;

    #[rustfmt::skip]
    nuee.docker(&["service", "create", "--name", "job", "--mode", "replicated-job", "--replicas", "3", "--max-concurrent", "2",
        "busybox:test", "true"])?.success()?;
    assert_eq!(replicas(&nuee, "job")?, "0/2 (3/3 completed)");
    nuee.docker(&["swarm", "leave", "--force"])?.success()?;
    nuee.eventually("its tasks are gone", || Ok(nuee.docker(&["ps", "-aq"])?.success()?.text().is_empty()))?;
    nuee.finish()
}

#[test]
fn machines_are_listed_labelled_and_drained_and_services_outlive_the_daemon() -> Result<()> {
    let nuee = with_swarm()?;
    let ids = nuee
        .docker(&["node", "ls", "--format", "{{.ID}} {{.Status}} {{.Availability}} {{.ManagerStatus}}"])?
        .success()?;
    let id = ids.text().split(' ').next().unwrap_or_default().to_owned();
    assert!(ids.text().ends_with("Ready Active Leader"), "{}", ids.stdout);
    let node = nuee
        .docker(&["info", "--format", "{{.Swarm.NodeID}} {{.Swarm.LocalNodeState}} {{.Swarm.Nodes}}"])?
        .success()?;
    assert_eq!(node.text(), format!("{id} active 1"));

    #[rustfmt::skip]
    nuee.docker(&["service", "create", "--detach", "--name", "picky", "--constraint", "node.labels.disk == ssd",
        "--stop-grace-period", "0s", "--restart-delay", "0s", "--publish", "8080:80", "web:test"])?.success()?;
    nuee.eventually("it finds no machine", || {
        let list =
            nuee.docker(&["service", "ps", "picky", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}"])?;
        let text = list.success()?.stdout;
        Ok(text.starts_with("Pending") && text.contains("no suitable node"))
    })?;
    nuee.docker(&["node", "update", "--label-add", "disk=ssd", &id])?.success()?;
    becomes(&nuee, "picky", "1/1")?;
    assert_eq!(nuee.fetch("http://127.0.0.1:8080/")?, "hello from a cloud\n");

    nuee.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "each",
        "--mode",
        "global",
        "--stop-grace-period",
        "0s",
        "busybox:test",
        "sleep",
        "600",
    ])?
    .success()?;
    becomes(&nuee, "each", "1/1")?;
    let container = container_of(&nuee, "each")?;
    let pid =
        |nuee: &Nuee| nuee.docker(&["inspect", "--format", "{{.State.Pid}}", &container])?.success().map(|o| o.stdout);
    let before = pid(&nuee)?;
    nuee.kill_daemon()?;
    assert_eq!(nuee.fetch("http://127.0.0.1:8080/")?, "hello from a cloud\n");
    nuee.up()?;
    assert_eq!(pid(&nuee)?, before);
    becomes(&nuee, "each", "1/1")?;
    assert_eq!(nuee.fetch("http://127.0.0.1:8080/")?, "hello from a cloud\n");

    nuee.docker(&["node", "update", "--availability", "drain", &id])?.success()?;
    nuee.eventually("the drained machine is empty", || Ok(nuee.docker(&["ps", "-q"])?.success()?.text().is_empty()))?;
    assert!(nuee.kubectl(&["get", "nodes"])?.success()?.stdout.contains("SchedulingDisabled"));
    nuee.docker(&["node", "update", "--availability", "active", &id])?.success()?;
    becomes(&nuee, "picky", "1/1")?;
    becomes(&nuee, "each", "1/1")?;
    nuee.docker(&["node", "demote", &id])?.failure(1, "last manager of the swarm")?;
    nuee.docker(&["node", "rm", &id])?.failure(1, "is a cluster manager")?;
    nuee.docker(&["swarm", "leave", "--force"])?.success()?;
    nuee.finish()
}

const STACK: &str = r#"
services:
  web:
    image: busybox:test
    command: ["sh", "-c", "mkdir -p /www; cp /page /www/index.html; cat /run/secrets/key >> /www/index.html; exec httpd -f -p 80 -h /www"]
    ports: ["8090:80"]
    configs: [{source: page, target: /page}]
    secrets: [key]
    networks: [front, back]
    stop_grace_period: 0s
    healthcheck: {test: ["CMD", "wget", "-qO-", "http://127.0.0.1/"], interval: 1s, retries: 5}
    deploy:
      replicas: 2
      update_config: {parallelism: 1, order: start-first}
      restart_policy: {condition: on-failure}
      placement: {constraints: ["node.role == manager"]}
      resources: {limits: {memory: 64M}, reservations: {memory: 16M}}
      labels: {tier: front}
  db:
    image: busybox:test
    command: ["sh", "-c", "echo kept >> /data/file; exec httpd -f -p 80 -h /data"]
    volumes: ["data:/data"]
    networks: {back: {aliases: [store]}}
    stop_grace_period: 0s
    deploy: {endpoint_mode: dnsrr, mode: global}
networks: {front: {}, back: {internal: true}}
volumes: {data: {}}
configs: {page: {file: ./page.html}}
secrets: {key: {file: ./key.txt}}
"#;

#[test]
fn a_stack_is_deployed_updated_and_removed() -> Result<()> {
    let nuee = with_swarm()?;
    let file = nuee.files().join("stack.yaml");
    std::fs::write(&file, STACK)?;
    std::fs::write(nuee.files().join("page.html"), "a page and ")?;
    std::fs::write(nuee.files().join("key.txt"), "a key\n")?;
    let deploy =
        ["stack", "deploy", "--detach=true", "--resolve-image", "never", "-c", &file.display().to_string(), "shop"];
    nuee.docker(&deploy)?.success()?;
    becomes(&nuee, "shop_web", "2/2")?;
    becomes(&nuee, "shop_db", "1/1")?;
    assert_eq!(nuee.fetch("http://127.0.0.1:8090/")?, "a page and a key\n");
    let web = container_of(&nuee, "shop_web")?;
    let fetched = |name: &str| nuee.docker(&["exec", &web, "wget", "-qO-", &format!("http://{name}/file")])?.success();
    assert_eq!(fetched("db")?.stdout, "kept\n");
    assert_eq!(fetched("store")?.stdout, "kept\n");
    let services =
        nuee.docker(&["stack", "services", "shop", "--format", "{{.Name}} {{.Mode}} {{.Replicas}}"])?.success()?;
    let mut services: Vec<&str> = services.stdout.lines().collect();
    services.sort_unstable();
    assert_eq!(services, ["shop_db global 1/1", "shop_web replicated 2/2"]);

    // The same again changes nothing; one more replica is one more.
    let before = tasks(&nuee, "shop_web", "{{.ID}}")?;
    nuee.docker(&deploy)?.success()?;
    std::fs::write(&file, STACK.replace("replicas: 2", "replicas: 3"))?;
    nuee.docker(&deploy)?.success()?;
    becomes(&nuee, "shop_web", "3/3")?;
    let after = tasks(&nuee, "shop_web", "{{.ID}}")?;
    assert!(before.iter().all(|id| after.contains(id)), "{before:?} {after:?}");

    nuee.docker(&["stack", "rm", "shop"])?.success()?;
    assert_eq!(nuee.docker(&["stack", "ls", "--format", "{{.Name}}"])?.success()?.text(), "");
    nuee.eventually("nothing is left of the stack", || {
        Ok(nuee.docker(&["ps", "-aq"])?.success()?.text().is_empty()
            && nuee.docker(&["secret", "ls", "-q"])?.success()?.text().is_empty()
            && nuee.docker(&["config", "ls", "-q"])?.success()?.text().is_empty()
            && !nuee.kubectl(&["get", "networks"])?.success()?.stdout.contains("shop"))
    })?;
    // What a volume holds stays, as with Docker.
    assert_eq!(nuee.docker(&["volume", "ls", "-q"])?.success()?.text(), "shop_data");
    nuee.docker(&["swarm", "leave", "--force"])?.success()?;
    nuee.finish()
}

/// A token by which the registry of a Nuée lets a client write in the namespace `team`.
fn token(nuee: &Nuee) -> Result<String> {
    nuee.kubectl(&["create", "namespace", "team"])?.success()?;
    nuee.kubectl(&["create", "serviceaccount", "robot", "--namespace", "team"])?.success()?;
    let grant = ["create", "rolebinding", "robot", "-n", "team", "--clusterrole=edit", "--serviceaccount=team:robot"];
    nuee.kubectl(&grant)?.success()?;
    Ok(nuee.kubectl(&["create", "token", "robot", "--namespace", "team"])?.success()?.text().to_owned())
}

fn log_in(nuee: &Nuee, registry: &str, token: &str) -> Result<()> {
    fed(nuee, &["login", "--username", "robot", "--password-stdin", registry], token).map(drop)
}

#[test]
fn credentials_of_a_registry_are_kept_with_their_service_and_go_with_it() -> Result<()> {
    let nuee = with_swarm()?;
    let registry = "127.0.0.1:5000";
    log_in(&nuee, registry, &token(&nuee)?)?;
    let image = format!("{registry}/team/task:1");
    nuee.docker(&["tag", "busybox:test", &image])?.success()?;
    let create = |name: &str, flags: &[&str]| {
        let first = ["service", "create", "--detach", "--name", name, "--no-resolve-image"];
        let last = ["--stop-grace-period", "0s", image.as_str(), "sleep", "600"];
        nuee.docker(&[&first, flags, &last].concat())?.success()
    };
    create("bare", &[])?;
    create("known", &["--with-registry-auth"])?;
    becomes(&nuee, "known", "1/1")?;
    let secrets = || {
        let columns = "custom-columns=NAME:.metadata.name,OWNER:.metadata.ownerReferences[0].kind";
        let list = ["get", "secrets", "-l", "nuee.dev/swarm=registry", "--no-headers", "-o", columns];
        Ok::<_, anyhow::Error>(nuee.kubectl(&list)?.success()?.text().to_owned())
    };
    let kept = secrets()?;
    assert!(kept.lines().count() == 1 && kept.ends_with("SwarmService"), "{kept}");
    assert_eq!(nuee.docker(&["secret", "ls", "-q"])?.success()?.text(), "", "they are no secret of a user");
    // An update without credentials keeps those that there are.
    nuee.docker(&["service", "update", "--detach", "--no-resolve-image", "--env-add", "A=1", "known"])?.success()?;
    becomes(&nuee, "known", "1/1")?;
    assert_eq!(secrets()?, kept);
    let named = ["get", "swarmservices", "-o", "jsonpath={.items[*].spec.current.task.container.pullSecret}"];
    assert_eq!(kept.split_whitespace().next(), Some(nuee.kubectl(&named)?.success()?.text()));
    nuee.docker(&["service", "rm", "known", "bare"])?.success()?;
    nuee.eventually("the credentials go with the service", || Ok(secrets()?.is_empty()))?;
    nuee.docker(&["swarm", "leave", "--force"])?.success()?;
    nuee.finish()
}

/// Settings by which a pool uses the registry of a third machine.
const ELSEWHERE: &str = "insecureRegistries: ['198.18.0.3:5000']\n";

fn append(nuee: &Nuee, settings: &str) -> Result<()> {
    let path = nuee.data().join("config.yaml");
    let present = std::fs::read_to_string(&path)?;
    Ok(std::fs::write(path, present + settings)?)
}

#[test]
fn a_machine_joins_by_the_token_of_the_swarm_and_tasks_are_placed_over_both() -> Result<()> {
    let mut pool = testkit::Pool::new(env!("CARGO_BIN_EXE_nuee"))?;
    let first = pool.prepare()?;
    append(&first, ELSEWHERE)?;
    first.up()?;
    first.build_images()?;
    pool.machines.push(first);
    let started = pool.first().docker(&["swarm", "init"])?.success()?.stdout;
    let line = started.lines().find(|line| line.contains("docker swarm join --token")).unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();

    // On a machine with a Nuée of its own the client is told what to run; that is done here.
    let second = pool.prepare()?;
    append(&second, ELSEWHERE)?;
    let settings = std::fs::read_to_string(second.data().join("config.yaml"))?;
    second.up()?;
    second.docker(&["swarm", "join", "--token", "nonsense", "198.18.0.1:2377"])?.failure(1, "invalid join token")?;
    let told = second.docker(&words)?.failure(1, "nuee join --token")?.stderr;
    let command = told.split_once(": nuee ").map_or("", |(_, command)| command);
    second.nuee(&["down", "--all"])?.success()?;
    std::fs::remove_dir_all(second.data())?;
    std::fs::create_dir_all(second.data())?;
    std::fs::write(second.data().join("config.yaml"), settings)?;
    let mut join: Vec<&str> = command.split_whitespace().collect();
    join.push("--detach");
    second.nuee(&join)?.success()?;
    pool.machines.push(second);
    let nuee = pool.first();
    let nodes = nuee.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?.success()?.stdout;
    assert_eq!(nodes, "n1 Ready\nn2 Ready\n");
    nuee.docker(&["swarm", "join-token", "--rotate", "worker"])?.success()?;

    for (node, zone) in [("n1", "a"), ("n2", "b")] {
        nuee.docker(&["node", "update", "--label-add", &format!("zone={zone}"), node])?.success()?;
    }
    let create = |name: &str, flags: &[&str], command: &[&str]| {
        let first =
            ["service", "create", "--detach", "--no-resolve-image", "--name", name, "--stop-grace-period", "0s"];
        nuee.docker(&[&first, flags, &["busybox:test"], command].concat())?.success()
    };
    let places = |service: &str| {
        let mut places = tasks(nuee, service, "{{.Node}}")?;
        places.sort_unstable();
        Ok::<_, anyhow::Error>(places.concat())
    };
    create("spread", &["--replicas", "4", "--placement-pref", "spread=node.labels.zone"], &["sleep", "600"])?;
    becomes(nuee, "spread", "4/4")?;
    assert_eq!(places("spread")?, "n1n1n2n2");
    create("bounded", &["--replicas", "3", "--replicas-max-per-node", "1"], &["sleep", "600"])?;
    becomes(nuee, "bounded", "2/3 (max 1 per node)")?;
    assert_eq!(places("bounded")?.replace("n1", "").replace("n2", ""), "", "the third waits without a machine");
    create("job", &["--mode", "global-job"], &["true"])?;
    nuee.eventually("the job is done on both", || Ok(replicas(nuee, "job")?.contains("(2/2 completed)")))?;

    // An image that only a registry elsewhere has: it comes by the credentials of who made the service.
    let third = pool.prepare()?;
    append(&third, &format!("registryListen: 0.0.0.0:5000\n{ELSEWHERE}"))?;
    third.up()?;
    third.build_images()?;
    let registry = "198.18.0.3:5000";
    let image = format!("{registry}/team/task:1");
    let secret = token(&third)?;
    log_in(&third, registry, &secret)?;
    third.docker(&["tag", "busybox:test", &image])?.success()?;
    third.docker(&["push", &image])?.success()?;
    log_in(nuee, registry, &secret)?;
    let away = |name: &str, flags: &[&str]| {
        let first =
            ["service", "create", "--detach", "--no-resolve-image", "--name", name, "--stop-grace-period", "0s"];
        let last = ["--constraint", "node.hostname==n2", image.as_str(), "sleep", "600"];
        nuee.docker(&[&first, flags, &last].concat())?.success()
    };
    away("bare", &[])?;
    nuee.eventually("it is not let in without credentials", || {
        let list = ["service", "ps", "bare", "--no-trunc", "--format", "{{.Error}}"];
        Ok(nuee.docker(&list)?.success()?.stdout.contains("No such image"))
    })?;
    away("known", &["--with-registry-auth"])?;
    becomes(nuee, "known", "1/1")?;
    nuee.docker(&["service", "rm", "bare", "known"])?.success()?;

    // A token that was rotated lets nobody in any more; the machine that joined by it stays.
    third.nuee(&["down", "--all"])?.success()?;
    std::fs::remove_dir_all(third.data())?;
    third.nuee(&join)?.failure(1, "cannot join")?;
    assert_eq!(nuee.docker(&["node", "ls", "-q"])?.success()?.text().lines().count(), 2);
    drop(third);
    nuee.docker(&["service", "rm", "spread", "bounded", "job"])?.success()?;
    nuee.eventually("the tasks are gone", || Ok(nuee.docker(&["ps", "-aq"])?.success()?.text().is_empty()))?;
    pool.finish()
}
