//! The pods' network spans the machines of a pool: addresses, names, services and node ports lead to workloads on either one, large
//! packets and streams pass, and packets of strangers do not.

use anyhow::Result;
use testkit::Pool;

use crate::join::{field, pod, pool, ready};

/// The pods of every test: one that asks and one that answers, on each machine.
fn crowd(pool: &Pool) -> Result<()> {
    let first = pool.first();
    let mut text = String::new();
    for node in ["n1", "n2"] {
        text.push_str(&pod(&format!("client-{node}"), node, "busybox:test", "exec sleep 6000"));
        text.push_str(&pod(&format!("page-{node}"), node, "web:test", ""));
    }
    first.apply(&text)?.success()?;
    for name in ["client-n1", "client-n2", "page-n1", "page-n2"] {
        ready(first, &format!("pod/{name}"))?;
    }
    Ok(())
}

#[test]
fn workloads_on_two_machines_reach_each_other() -> Result<()> {
    let pool = pool()?;
    let first = pool.first();
    crowd(&pool)?;
    let inside = |name: &str, line: &str| -> Result<String> {
        Ok(first.kubectl(&["exec", name, "--", "sh", "-c", line])?.stdout)
    };
    let address = |name: &str| field(first, &["pod", name], ".status.podIP");
    assert!(address("page-n2")?.starts_with("10.88.128."));
    for (client, page) in [("client-n1", "page-n2"), ("client-n2", "page-n1")] {
        let line = format!("wget -q -O - http://{}/", address(page)?);
        first
            .eventually(&format!("{client} reaches {page}"), || Ok(inside(client, &line)? == "hello from a cloud\n"))?;
        // Seen with its own address on the other machine.
        let ping = format!("ping -c 3 -W 5 -s 4000 {}", address(page)?);
        assert!(inside(client, &ping)?.contains("3 packets received"));
    }

    // A service whose only endpoint is on the second machine.
    first.kubectl(&["expose", "pod", "page-n2", "--name=page", "--port=80", "--type=NodePort"])?.success()?;
    let cluster = field(first, &["service", "page"], ".spec.clusterIP")?;
    let port = field(first, &["service", "page"], ".spec.ports[0].nodePort")?;
    for client in ["client-n1", "client-n2"] {
        first.eventually(&format!("{client} reaches the service by name"), || {
            Ok(inside(client, "wget -q -O - http://page/")? == "hello from a cloud\n")
        })?;
    }
    for number in [1, 2] {
        let url = format!("http://{}:{port}/", Pool::address(number));
        first.eventually(&format!("{url} answers the world"), || {
            Ok(pool.outside("curl", &["-s", "--max-time", "5", &url])?.stdout == "hello from a cloud\n")
        })?;
    }
    assert_eq!(first.fetch(&format!("http://{cluster}/"))?, "hello from a cloud\n");
    assert_eq!(first.fetch(&format!("http://{}/", address("page-n2")?))?, "hello from a cloud\n");

    // A stream with full segments.
    // Without an open input of its own it would hang up at once.
    let sink = "sleep 6000 | nc -l -p 9000 | wc -c > /tmp/count";
    first.apply(&pod("sink", "n2", "busybox:test", sink))?.success()?;
    ready(first, "pod/sink")?;
    let send = format!("head -c 3000000 /dev/zero | nc {} 9000", address("sink")?);
    first.eventually("the stream arrives whole", || {
        inside("client-n1", &send)?;
        Ok(inside("sink", "cat /tmp/count")?.trim() == "3000000")
    })?;
    pool.finish()
}

#[test]
fn routes_outlive_a_restart_and_end_with_the_machine() -> Result<()> {
    let mut pool = pool()?;
    crowd(&pool)?;
    let target = field(pool.first(), &["pod", "page-n1"], ".status.podIP")?;
    let line = format!("wget -q -O - http://{target}/");
    let reached = |pool: &Pool| -> Result<bool> {
        let said = pool.first().kubectl(&["exec", "client-n2", "--", "sh", "-c", &line])?;
        Ok(said.stdout == "hello from a cloud\n")
    };
    pool.first().eventually("the other machine is reached", || reached(&pool))?;
    for number in [0, 1] {
        pool.machines[number].kill_daemon()?;
        pool.machines[number].up()?;
        pool.first().eventually("the other machine is reached again", || reached(&pool))?;
    }
    let routes = |pool: &Pool| Ok::<String, anyhow::Error>(pool.first().run("ip", &["route"])?.success()?.stdout);
    assert!(routes(&pool)?.contains("10.88.128.0/24 via"));
    let second = pool.machines.pop().expect("two machines");
    second.nuee(&["leave"])?.success()?;
    pool.first().eventually("the routes are gone", || Ok(!routes(&pool)?.contains("10.88.128.0/24")))?;
    second.finish()?;
    pool.finish()
}

#[test]
fn packets_of_strangers_are_dropped() -> Result<()> {
    let pool = pool()?;
    let (first, second) = (pool.first(), &pool.machines[1]);
    crowd(&pool)?;
    let target = field(first, &["pod", "page-n2"], ".status.podIP")?;
    let line = format!("wget -q -O - http://{target}/");
    first.eventually("the machines reach each other", || {
        Ok(first.kubectl(&["exec", "client-n1", "--", "sh", "-c", &line])?.stdout == "hello from a cloud\n")
    })?;
    // A forger outside, who knows everything.
    let forge = format!(
        "ip link add forged type vxlan id 1 dstport 8473 local 198.18.0.254 remote 198.18.0.2 nolearning && \
         ip link set forged up && ip addr add 10.88.127.254/32 dev forged && ip route add {target}/32 dev forged && \
         ip neigh add {target} lladdr 02:42:0a:58:80:ff dev forged"
    );
    pool.outside("sh", &["-c", &forge])?.success()?;
    let received = || -> Result<u64> {
        let line = "grep -c . /proc/net/dev >/dev/null; cat /sys/class/net/eth0/statistics/rx_packets";
        Ok(first.kubectl(&["exec", "page-n2", "--", "sh", "-c", line])?.success()?.text().parse()?)
    };
    let attack = || pool.outside("busybox", &["ping", "-c", "20", "-i", "0.05", "-W", "1", "-q", &target]).map(drop);
    let before = received()?;
    attack()?;
    assert!(received()? < before + 20);
    // The control: the same packets arrive once the machine is told that their sender is one of the pool.
    second.run("nft", &["add", "element", "inet", "nuee", "machines", "{ 198.18.0.254 }"])?.success()?;
    let before = received()?;
    attack()?;
    assert!(received()? >= before + 20);
    pool.finish()
}
