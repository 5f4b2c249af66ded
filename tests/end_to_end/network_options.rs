//! What `docker network create` is told by options and auxiliary addresses holds, on one machine and on all of a pool.

use anyhow::Result;
use testkit::{Nuee, Pool};

use crate::join::pool;
use crate::spanning_users::{address, inside, on_the_second};

const BRIDGE: &str = "com.docker.network.bridge";
/// The world, as workloads reach it.
const WORLD: &str = "198.18.0.254";

fn create(nuee: &Nuee, arguments: &[&str]) -> Result<testkit::Output> {
    nuee.docker(&[&["network", "create"], arguments].concat())
}

/// By which address a container that runs is seen in the world: it asks for its name there, until somebody listens.
fn seen(pool: &Pool, name: &str) -> Result<String> {
    let line = format!("while :; do nslookup {name}.test {WORLD}; sleep 0.2; done > /dev/null 2>&1 &");
    inside(pool.first(), name, &line)?.success()?;
    let listen = "import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(60)\ns.bind(('', 53))\n\
                  heard = (b'', None)\nwhile sys.argv[1].encode() not in heard[0]: heard = s.recvfrom(512)\nprint(heard[1][0])\n";
    Ok(pool.outside("python3", &["-c", listen, name])?.success()?.text().to_owned())
}

fn run(nuee: &Nuee, name: &str, more: &[&str]) -> Result<()> {
    nuee.docker(&[&["run", "-d", "--name", name], more].concat())?.success().map(drop)
}

#[test]
fn networks_are_as_their_options_say_and_what_cannot_be_is_refused() -> Result<()> {
    let pool = Pool::start(env!("CARGO_BIN_EXE_nuee"))?;
    let nuee = pool.first();
    nuee.build_images()?;

    // Whose addresses packets bear outside.
    create(nuee, &["-o", &format!("{BRIDGE}.enable_ip_masquerade=false"), "plain"])?.success()?;
    create(nuee, &["-o", &format!("{BRIDGE}.enable_ip_masquerade=1"), "usual"])?.success()?;
    for network in ["plain", "usual"] {
        run(nuee, network, &["--network", network, "busybox:test", "sleep", "6000"])?;
        let own = if network == "plain" { address(nuee, network)? } else { Pool::address(1) };
        assert_eq!(seen(&pool, network)?, own, "{network}");
    }

    // Where ports are published.
    create(nuee, &["-o", &format!("{BRIDGE}.host_binding_ipv4=127.0.0.1"), "near"])?.success()?;
    run(nuee, "web", &["--network", "near", "-p", "8080:80", "-p", "0.0.0.0:8081:80", "web:test"])?;
    for _ in 0..2 {
        let ports = nuee.docker(&["port", "web"])?.success()?.stdout;
        assert_eq!(ports, "80/tcp -> 0.0.0.0:8081\n80/tcp -> 127.0.0.1:8080\n");
        assert_eq!(nuee.fetch("http://127.0.0.1:8080/")?, "hello from a cloud\n");
        let from_world = |port: u16| pool.outside("curl", &["-s", "-m", "20", &format!("http://198.18.0.1:{port}/")]);
        assert_eq!(from_world(8081)?.success()?.stdout, "hello from a cloud\n");
        from_world(8080)?.failure(7, "")?;
        nuee.docker(&["restart", "-t", "0", "web"])?.success()?;
    }

    // What is somebody else's.
    let others = ["--aux-address", "r=10.66.1.2", "--aux-address", "s=10.66.1.3"];
    create(nuee, &[&["--subnet", "10.66.1.0/29"], &others[..], &["narrow"]].concat())?.success()?;
    run(nuee, "third", &["--network", "narrow", "busybox:test", "sleep", "6000"])?;
    assert_eq!(address(nuee, "third")?, "10.66.1.4");
    nuee.docker(&["run", "--rm", "--network", "narrow", "--ip", "10.66.1.2", "busybox:test", "true"])?
        .failure(125, "Address already in use")?;
    let shown = nuee.docker(&["network", "inspect", "-f", "{{json .IPAM.Config}}", "narrow"])?.success()?.stdout;
    assert!(shown.contains(r#""AuxiliaryAddresses":{"r":"10.66.1.2","s":"10.66.1.3"}"#), "{shown}");
    create(nuee, &["--subnet", "10.66.2.0/24", "--aux-address", "r=10.66.2.1", "bad"])?
        .failure(1, "failed to allocate secondary ip address (r:10.66.2.1): Address already in use")?;

    // Interfaces, and talk between them.
    let (prefix, mtu) = ("com.docker.network.container_iface_prefix=net", "com.docker.network.driver.mtu=1400");
    create(nuee, &["-o", prefix, "-o", mtu, "-o", &format!("{BRIDGE}.enable_icc=0"), "quiet"])?.success()?;
    for name in ["one", "two"] {
        run(nuee, name, &["--network", "quiet", "busybox:test", "sleep", "6000"])?;
    }
    let link = inside(nuee, "one", "ip -o link show dev net0")?.success()?.stdout;
    assert!(link.contains("mtu 1400"), "{link}");
    let ping = |target: &str| inside(nuee, "one", &format!("ping -c 2 -W 2 {target}"));
    ping(WORLD)?.success()?;
    assert_ne!(ping(&address(nuee, "two")?)?.status, 0, "they may not talk to each other");

    for (option, why) in [
        ("enable_ip_masquerade=yes", "(strconv.ParseBool: parsing \"yes\": invalid syntax)"),
        ("enable_icc=", "(strconv.ParseBool: parsing \"\": invalid syntax)"),
        ("host_binding_ipv4=nonsense", "(nil ip)"),
        ("inhibit_ipv4=true", "is not available"),
        ("gateway_mode_ipv4=routed", "is not available"),
    ] {
        create(nuee, &["-o", &format!("{BRIDGE}.{option}"), "bad"])?.failure(1, why)?;
    }
    create(nuee, &["-o", "com.docker.network.driver.mtu=-1", "bad"])?.failure(1, "invalid MTU number: -1")?;
    pool.finish()
}

#[test]
fn options_of_a_network_hold_on_each_machine_that_it_spans() -> Result<()> {
    let pool = pool()?;
    let first = pool.first();
    first.docker(&["swarm", "init"])?.success()?;
    let overlay = ["-d", "overlay", "--attachable", "--subnet", "10.90.0.0/24"];
    let on_all = |more: &[&str]| create(first, &[&overlay[..], more].concat());
    on_all(&["-o", &format!("{BRIDGE}.host_binding_ipv4=127.0.0.1"), "bad"])?
        .failure(1, "spans all machines of the pool")?;
    on_all(&["--aux-address", "r=10.90.0.143", "bad"])?.failure(1, "that a machine of the pool takes for itself")?;
    // The first addresses of the second machine's part are others'.
    let others = ["--aux-address", "r=10.90.0.128", "--aux-address", "s=10.90.0.129"];
    let option = format!("{BRIDGE}.enable_ip_masquerade=false");
    on_all(&[&others[..], &["-o", &option, "wide"]].concat())?.success()?;
    run(first, "near", &["--network", "wide", "busybox:test", "sleep", "6000"])?;
    on_the_second(first, 1, "far", "wide", "busybox:test")?;
    assert_eq!(address(first, "far")?, "10.90.0.130");
    for name in ["near", "far"] {
        assert_eq!(seen(&pool, name)?, address(first, name)?, "{name}");
    }
    first.eventually("they reach each other as they are", || {
        Ok(inside(first, "near", "ping -c 1 -W 2 far")?.stdout.contains("1 packets received"))
    })?;
    pool.finish()
}
