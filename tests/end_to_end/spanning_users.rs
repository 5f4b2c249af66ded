//! Networks of users span the machines of a pool: names, addresses, services, large packets and streams lead to workloads on either
//! machine, what is on one network reaches no other, not even forged, and all of it outlives crashes and ends with the machine.

use anyhow::{Context, Result};
use serde_json::json;
use testkit::{Nuee, Output, Pool};

use crate::join::{field, pool};

/// Two machines, a swarm over both, and two networks over both.
fn swarm() -> Result<Pool> {
    let pool = pool()?;
    let first = pool.first();
    first.docker(&["swarm", "init"])?.success()?;
    for name in ["front", "back"] {
        first.docker(&["network", "create", "--driver", "overlay", "--attachable", name])?.success()?;
    }
    Ok(pool)
}

/// The object behind a network that Docker knows by name.
fn object_of(first: &Nuee, network: &str) -> Result<serde_json::Value> {
    let list: serde_json::Value =
        serde_json::from_str(&first.kubectl(&["get", "networks", "-o", "json"])?.success()?.stdout)?;
    let found = list["items"].as_array().context("no list")?.iter().find(|one| one["spec"]["name"] == network);
    found.cloned().with_context(|| format!("no network {network}"))
}

/// A container on the second machine, as a client that places containers makes it.
pub fn on_the_second(first: &Nuee, number: u8, name: &str, network: &str, image: &str) -> Result<()> {
    let model = format!("model-{name}");
    let mut create = vec!["create", "--name", &model, "--network", network, image];
    if image.starts_with("busybox") {
        create.extend(["sleep", "6000"]);
    }
    let id = first.docker(&create)?.success()?;
    let text = first.kubectl(&["get", "containers", id.text(), "-o", "json"])?.success()?.stdout;
    let mut object: serde_json::Value = serde_json::from_str(&text)?;
    object["metadata"] = json!({"name": format!("{number:064x}"), "namespace": "default"});
    object["spec"]["name"] = name.into();
    object["spec"]["nodeName"] = "n2".into();
    object["spec"]["startRequest"] = 1.into();
    object["spec"]["desired"] = "running".into();
    object.as_object_mut().context("no object")?.remove("status");
    first.docker(&["rm", &model])?.success()?;
    first.apply(&object.to_string())?.success()?;
    first.eventually(&format!("{name} runs"), || {
        Ok(first.docker(&["inspect", "-f", "{{.State.Running}}", name])?.text() == "true")
    })
}

pub fn inside(first: &Nuee, name: &str, line: &str) -> Result<Output> {
    first.docker(&["exec", name, "timeout", "20", "sh", "-c", line])
}

pub fn address(first: &Nuee, name: &str) -> Result<String> {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    Ok(first.docker(&["inspect", "-f", format, name])?.success()?.text().to_owned())
}

/// One that asks and one that answers, on each machine.
fn crowd(first: &Nuee) -> Result<()> {
    first
        .docker(&["run", "-d", "--name", "client-1", "--network", "front", "busybox:test", "sleep", "6000"])?
        .success()?;
    first.docker(&["run", "-d", "--name", "page-1", "--network", "front", "web:test"])?.success()?;
    on_the_second(first, 1, "client-2", "front", "busybox:test")?;
    on_the_second(first, 2, "page-2", "front", "web:test")
}

fn each_reaches_the_other(first: &Nuee) -> Result<()> {
    for (client, page) in [("client-1", "page-2"), ("client-2", "page-1")] {
        first.eventually(&format!("{client} reaches {page} by its name"), || {
            Ok(inside(first, client, &format!("wget -q -O - http://{page}/"))?.stdout == "hello from a cloud\n")
        })?;
    }
    Ok(())
}

#[test]
fn workloads_of_one_network_reach_each_other_and_no_others_across_machines() -> Result<()> {
    let pool = swarm()?;
    let (first, second) = (pool.first(), &pool.machines[1]);
    crowd(first)?;
    each_reaches_the_other(first)?;
    for (client, page) in [("client-1", "page-2"), ("client-2", "page-1")] {
        // Seen with its own address on the other machine.
        let ping = format!("ping -c 3 -W 5 -s 4000 {}", address(first, page)?);
        assert!(inside(first, client, &ping)?.stdout.contains("3 packets received"));
    }
    // A stream with full segments.
    inside(first, "client-2", "(sleep 600 | nc -l -p 9000 | wc -c > /tmp/count) > /dev/null 2>&1 &")?.success()?;
    first.eventually("the stream arrives whole", || {
        inside(first, "client-1", "head -c 3000000 /dev/zero | nc client-2 9000")?;
        Ok(inside(first, "client-2", "cat /tmp/count")?.text() == "3000000")
    })?;

    // The other network: on both machines too, and it reaches its own.
    first
        .docker(&["run", "-d", "--name", "stranger-1", "--network", "back", "busybox:test", "sleep", "6000"])?
        .success()?;
    on_the_second(first, 3, "stranger-2", "back", "busybox:test")?;
    let ping = |name: &str, target: &str| inside(first, name, &format!("ping -c 2 -W 2 {target}"));
    first.eventually("the other network leads to its own", || {
        Ok(ping("stranger-1", &address(first, "stranger-2")?)?.stdout.contains("2 packets received"))
    })?;
    let target = address(first, "page-2")?;
    assert!(ping("client-1", &target)?.stdout.contains("2 packets received"));
    assert!(ping("stranger-1", &target)?.stdout.contains(" 0 packets received"));
    assert!(inside(first, "stranger-1", "nslookup page-2")?.status != 0);
    isolation_is_kept_by_who_receives(first, second, &target)?;
    pool.finish()
}

/// The sending machine is made to put packets of one network into the other's way; the receiving one drops them.
fn isolation_is_kept_by_who_receives(first: &Nuee, second: &Nuee, target: &str) -> Result<()> {
    let (front, back) = (object_of(first, "front")?, object_of(first, "back")?);
    let uid = back["metadata"]["uid"].as_str().context("no uid")?;
    let routes: serde_json::Value =
        serde_json::from_str(&first.kubectl(&["get", "networkroutes", "-o", "json"])?.success()?.stdout)?;
    let route = routes["items"]
        .as_array()
        .context("no list")?
        .iter()
        .find(|route| route["spec"]["network"] == uid && route["spec"]["nodeName"] == "n2");
    let route = &route.context("the other network is not led to the second machine")?["spec"];
    let device = format!("nuee-vx{}", route["number"]);
    let gateway = route["gateway"].as_str().context("no gateway")?;
    let forge = format!("ip route replace {target}/32 via {gateway} dev {device} onlink");
    first.run("sh", &["-c", &forge])?.success()?;
    let received = || -> Result<u64> {
        let line = "cat /sys/class/net/eth0/statistics/rx_packets";
        Ok(inside(first, "page-2", line)?.success()?.text().parse()?)
    };
    let attack = || first.run("busybox", &["ping", "-c", "20", "-i", "0.05", "-W", "1", "-q", target]).map(drop);
    let before = received()?;
    attack()?;
    assert!(received()? < before + 20);
    // The control: the same packets arrive once the receiving machine takes the two for one network.
    let bridge = front["status"]["bridge"].as_str().context("no bridge")?;
    let pair = format!("{{ \"{device}\" . \"{bridge}\" }}");
    second.run("nft", &["add", "element", "inet", "nuee", "within", &pair])?.success()?;
    let before = received()?;
    attack()?;
    assert!(received()? >= before + 20);
    Ok(())
}

#[test]
fn a_service_is_reached_by_name_and_address_from_both_machines_and_outlives_crashes() -> Result<()> {
    let mut pool = swarm()?;
    crowd(pool.first())?;
    let tell = "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www";
    #[rustfmt::skip]
    pool.first().docker(&["service", "create", "--name", "web", "--mode", "global", "--network", "front", "--publish", "8080:80",
        "--hostname", "web-{{.Node.Hostname}}", "--stop-grace-period", "1s", "busybox:test", "sh", "-c", tell])?.success()?;
    let meets_both = |pool: &Pool, what: &str| -> Result<()> {
        for client in ["client-1", "client-2"] {
            let first = pool.first();
            let line = "for i in $(seq 40); do wget -q -O - http://web/; done | sort -u | wc -l";
            first.eventually(&format!("{client} meets both tasks, {what}"), || {
                Ok(inside(first, client, line)?.text() == "2")
            })?;
        }
        Ok(())
    };
    meets_both(&pool, "at first")?;
    // The mesh: either machine leads the world to both tasks.
    for number in [1, 2] {
        let url = format!("http://{}:8080/", Pool::address(number));
        let line = format!("for i in $(seq 40); do curl -s --max-time 5 {url}; done | sort -u | wc -l");
        pool.first().eventually(&format!("{url} leads to both tasks"), || {
            Ok(pool.outside("sh", &["-c", &line])?.text() == "2")
        })?;
    }
    let names = inside(pool.first(), "client-1", "nslookup tasks.web")?.stdout;
    assert!(names.matches("Address").count() >= 3, "{names}");
    for number in [0, 1] {
        pool.machines[number].kill_daemon()?;
        pool.machines[number].up()?;
        meets_both(&pool, "after a crash")?;
        each_reaches_the_other(pool.first())?;
    }
    let devices = |pool: &Pool| Ok::<_, anyhow::Error>(pool.first().run("ip", &["-br", "link"])?.success()?.stdout);
    let users =
        |text: &str| text.lines().filter(|line| line.starts_with("nuee-vx") && !line.starts_with("nuee-vx0")).count();
    assert!(users(&devices(&pool)?) >= 1);
    let second = pool.machines.pop().context("no second machine")?;
    second.nuee(&["leave"])?.success()?;
    pool.first().eventually("the ways to it are gone", || Ok(users(&devices(&pool)?) == 0))?;
    second.finish()?;
    pool.first().docker(&["service", "rm", "web"])?.success()?;
    assert_eq!(field(pool.first(), &["networkroutes"], ".items[*].metadata.name")?, "");
    pool.finish()
}

/// How long a guest may take to boot on a machine under load that translates every instruction.
const BOOT: &str = "--timeout=300s";

#[test]
fn a_guest_is_a_neighbour_on_both_machines_and_keeps_its_address_when_it_moves() -> Result<()> {
    hypervisor::test_guest::build(std::path::Path::new("/var/cache/nuee"))?;
    let pool = pool()?;
    let first = pool.first();
    first.nuee(&["image", "build-test-guest", "-o", "tiny"])?.success()?;
    first
        .apply(
            "apiVersion: nuee.dev/v1\nkind: Network\nmetadata: {name: lan}\nspec: {name: lan}\n---\n\
             apiVersion: nuee.dev/v1\nkind: VirtualMachine\nmetadata: {name: web}\n\
             spec: {image: tiny, memory: 128Mi, network: lan, nodeName: n1}\n",
        )?
        .success()?;
    first
        .docker(&["run", "-d", "--name", "client-1", "--network", "lan", "busybox:test", "sleep", "6000"])?
        .success()?;
    on_the_second(first, 1, "client-2", "lan", "busybox:test")?;
    let waited = first.kubectl(&["wait", "--for=condition=Ready", "vm/web", BOOT])?;
    waited.success().with_context(|| first.log_end())?;
    let own = || field(first, &["vm", "web"], ".status.addresses[0].ip");
    let before = own()?;
    let answers = |when: &str| -> Result<()> {
        for client in ["client-1", "client-2"] {
            first.eventually(&format!("{client} reaches the guest by its name, {when}"), || {
                let said = inside(first, client, "ping -c 2 -W 5 web")?.stdout;
                Ok(said.contains("2 packets received") && said.contains(&before))
            })?;
        }
        Ok(())
    };
    answers("at first")?;
    for (name, to) in [("there", "n2"), ("back", "n1")] {
        let text = format!(
            "apiVersion: nuee.dev/v1\nkind: Migration\nmetadata: {{name: {name}}}\n\
             spec: {{virtualMachine: web, targetNode: {to}}}\n"
        );
        first.apply(&text)?.success()?;
        let phase = || field(first, &["migration", name], ".status.phase");
        let is_over = || first.eventually("the guest has moved", || Ok(phase()? == "Succeeded"));
        // Its memory and disk take their time on a machine under load.
        (0..3).find_map(|_| is_over().ok()).map_or_else(is_over, Ok).with_context(|| {
            let told = first.kubectl(&["get", "migration", name, "-o", "yaml"]).map(|found| found.stdout);
            format!("{}\nsecond: {}", told.unwrap_or_default(), pool.machines[1].log_end())
        })?;
        assert_eq!(field(first, &["vm", "web"], ".spec.nodeName")?, to);
        answers(&format!("after it moved to {to}"))?;
        assert_eq!(own()?, before);
    }
    pool.finish()
}
