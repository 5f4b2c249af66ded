//! Networks with IPv6 beside IPv4: addresses, ways out, ports, and what keeps networks and neighbours apart.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;

use network::{AttachRequest, Attachment, Error, Ipv6Config, NetworkConfig, PortMapping, Protocol};

use crate::lab::{
    IMPATIENCE, Lab, MACHINE, PATIENCE, WORLD, ask, ask_udp, assert_refused, assert_unreachable, inside, run,
    serve_tcp, serve_udp, shell,
};

/// The machine's address towards the world, and the world's.
const MACHINE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const WORLD6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// Whether bridged IPv6 passes the IP hooks, by which answers to `::1` would be lost.
const BRIDGE_KNOB: &str = "/proc/sys/net/bridge/bridge-nf-call-ip6tables";

impl Lab {
    /// A network with this IPv6 subnet; an empty one takes any.
    async fn network6(&self, id: &str, subnet: &str, internal: bool) -> network::Network {
        let subnet = (!subnet.is_empty()).then(|| subnet.parse().unwrap());
        let ipv6 = Some(Ipv6Config { subnet, ..Ipv6Config::default() });
        let config = NetworkConfig { id: id.into(), internal, ipv6, ..NetworkConfig::default() };
        self.fabric.ensure_network(config).await.unwrap()
    }

    fn world6(&self) {
        shell(&format!(
            "ip addr add {MACHINE6}/64 dev out0 nodad && nsenter --net={} sh -c \
             'echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6 && ip addr add {WORLD6}/64 dev eth0 nodad'",
            self.world.display()
        ));
    }
}

fn address6(place: &Attachment) -> Ipv6Addr {
    place.ipv6.expect("an IPv6 address").address
}

fn port(host: Option<std::net::IpAddr>, host_port: u16, protocol: Protocol) -> PortMapping {
    PortMapping { host_address: host, host_port, host_port_end: 0, target_port: 80, protocol }
}

fn routes(namespace: &Path) -> String {
    inside(Some(namespace), || shell("ip -6 route show default"))
}

#[test]
fn both_families_reach_neighbours_the_machine_and_the_world_and_no_other_network() {
    run(|mut lab| async move {
        lab.world6();
        lab.network6("red", "fd00:1::/64", false).await;
        lab.network6("blue", "fd00:2::/64", false).await;
        let a = lab.workload("a", "red").await;
        let b = lab.workload("b", "red").await;
        let c = lab.workload("c", "blue").await;
        assert_eq!(address6(&a).to_string(), "fd00:1::2");
        assert!(routes(&a.namespace).contains("default via fd00:1::1 dev eth0"), "{}", routes(&a.namespace));
        serve_tcp(Some(&b.namespace), 80, "b");
        serve_tcp(None, 81, "machine");
        serve_tcp(Some(&lab.world), 80, "world");
        assert_eq!(ask(Some(&a.namespace), address6(&b), 80), format!("b {}", address6(&a)));
        assert_eq!(ask(Some(&a.namespace), b.address, 80), format!("b {}", a.address));
        assert!(ask(Some(&a.namespace), "fd00:1::1".parse::<Ipv6Addr>().unwrap(), 81).starts_with("machine "));
        assert!(ask(None, address6(&b), 80).starts_with("b "));
        assert_eq!(ask(Some(&a.namespace), WORLD6, 80), format!("world {MACHINE6}"), "masqueraded");
        // The control: c itself can speak.
        assert_eq!(ask(Some(&c.namespace), WORLD6, 80), format!("world {MACHINE6}"));
        assert_unreachable(Some(&c.namespace), address6(&b), 80);
        shell(&format!("nsenter --net={} ip -6 route add fd00::/16 via {MACHINE6}", lab.world.display()));
        assert_unreachable(Some(&lab.world), address6(&b), 80);
        lab.restart().await;
        assert_unreachable(Some(&c.namespace), address6(&b), 80);
        assert_eq!(ask(Some(&a.namespace), address6(&b), 80), format!("b {}", address6(&a)));
    });
}

#[test]
fn an_internal_network_leads_nowhere() {
    run(|lab| async move {
        lab.world6();
        lab.network6("vault", "fd00:3::/64", true).await;
        let a = lab.workload("a", "vault").await;
        let b = lab.workload("b", "vault").await;
        serve_tcp(Some(&b.namespace), 80, "b");
        serve_tcp(Some(&lab.world), 80, "world");
        assert_eq!(routes(&a.namespace), "");
        assert!(ask(Some(&a.namespace), address6(&b), 80).starts_with("b "));
        shell(&format!("nsenter --net={} ip -6 route add default via fd00:3::1", a.namespace.display()));
        assert_unreachable(Some(&a.namespace), WORLD6, 80);
    });
}

#[test]
fn ports_are_published_on_both_families_or_on_one_address() {
    run(|mut lab| async move {
        lab.world6();
        if let Ok(knob) = std::fs::canonicalize(BRIDGE_KNOB) {
            std::fs::write(knob, "0").unwrap();
            lab.restart().await;
        }
        lab.network6("red", "fd00:1::/64", false).await;
        lab.network6("blue", "fd00:2::/64", false).await;
        let web = lab.workload("web", "red").await;
        let near = lab.workload("near", "red").await;
        let far = lab.workload("far", "blue").await;
        serve_tcp(Some(&web.namespace), 80, "web");
        let loopback = Some(Ipv6Addr::LOCALHOST.into());
        let ports = vec![port(None, 8080, Protocol::Tcp), port(loopback, 8081, Protocol::Tcp)];
        lab.fabric.publish("web", &web, ports).await.unwrap();
        assert_eq!(ask(Some(&lab.world), MACHINE6, 8080), format!("web {WORLD6}"), "the client's own address");
        assert_eq!(ask(Some(&lab.world), MACHINE, 8080), format!("web {WORLD}"));
        for (address, port) in [(Ipv6Addr::LOCALHOST, 8080), (Ipv6Addr::LOCALHOST, 8081), (MACHINE6, 8080)] {
            assert!(ask(None, address, port).starts_with("web "), "{address}:{port}");
        }
        assert_refused(Some(&lab.world), MACHINE6, 8081);
        let (red, blue): (Ipv6Addr, Ipv6Addr) = ("fd00:1::1".parse().unwrap(), "fd00:2::1".parse().unwrap());
        assert!(ask(Some(&near.namespace), red, 8080).starts_with("web "), "a neighbour");
        assert!(ask(Some(&web.namespace), red, 8080).starts_with("web "), "itself");
        assert!(ask(Some(&far.namespace), blue, 8080).starts_with("web "), "another network");
        // Held against others, and taken once.
        assert!(std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080)).is_err());
        let again = vec![port(Some(Ipv6Addr::UNSPECIFIED.into()), 8080, Protocol::Tcp)];
        let error = lab.fabric.publish("near", &near, again).await.unwrap_err();
        assert_eq!(error.to_string(), "Bind for :::8080 failed: port is already allocated");
        // One family's port is free for the other.
        let four = vec![port(Some(Ipv4Addr::UNSPECIFIED.into()), 8082, Protocol::Tcp)];
        lab.fabric.publish("near", &near, four).await.unwrap();
        let six = vec![port(Some(Ipv6Addr::UNSPECIFIED.into()), 8082, Protocol::Tcp)];
        lab.fabric.publish("far", &far, six).await.unwrap();
        lab.fabric.unpublish("web").await.unwrap();
        assert_refused(Some(&lab.world), MACHINE6, 8080);
    });
}

#[test]
fn where_answers_to_localhost_would_be_lost_it_refuses_at_once() {
    run(|mut lab| async move {
        let Ok(knob) = std::fs::canonicalize(BRIDGE_KNOB) else { return };
        std::fs::write(knob, "1").unwrap();
        lab.restart().await;
        lab.network6("red", "fd00:1::/64", false).await;
        let web = lab.workload("web", "red").await;
        serve_tcp(Some(&web.namespace), 80, "web");
        lab.fabric.publish("web", &web, vec![port(None, 8080, Protocol::Tcp)]).await.unwrap();
        assert_refused(None, Ipv6Addr::LOCALHOST, 8080);
        assert!(ask(None, Ipv4Addr::LOCALHOST, 8080).starts_with("web "));
        assert!(ask(None, "fd00:1::1".parse::<Ipv6Addr>().unwrap(), 8080).starts_with("web "));
    });
}

#[test]
fn datagrams_follow_their_target() {
    run(|lab| async move {
        lab.world6();
        lab.network6("red", "fd00:1::/64", false).await;
        let a = lab.workload("a", "red").await;
        let b = lab.workload("b", "red").await;
        serve_udp(Some(&a.namespace), 80, "a");
        serve_udp(Some(&b.namespace), 80, "b");
        lab.fabric.publish("a", &a, vec![port(None, 5353, Protocol::Udp)]).await.unwrap();
        let client = inside(Some(&lab.world), || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
        assert_eq!(ask_udp(&client, MACHINE6, 5353, PATIENCE).unwrap(), format!("a {WORLD6}"));
        lab.fabric.unpublish("a").await.unwrap();
        lab.fabric.publish("b", &b, vec![port(None, 5353, Protocol::Udp)]).await.unwrap();
        assert_eq!(ask_udp(&client, MACHINE6, 5353, PATIENCE).unwrap(), format!("b {WORLD6}"), "the old flow");
        lab.fabric.unpublish("b").await.unwrap();
        assert!(ask_udp(&client, MACHINE6, 5353, IMPATIENCE).is_err());
    });
}

#[test]
fn addresses_are_wished_kept_and_given_back() {
    run(|mut lab| async move {
        let red = lab.network6("red", "", false).await.ipv6.unwrap();
        assert_eq!(red.subnet.prefix(), 64);
        assert!(red.subnet.to_string().starts_with("fd"), "{}", red.subnet);
        let wish = red.subnet.nth(0xbeef).unwrap();
        let attach = |lab: &Lab, owner: &'static str, address6| {
            let fabric = lab.fabric.clone();
            async move {
                let namespace = fabric.create_namespace(owner).await.unwrap();
                let network = "red".to_owned();
                let request = AttachRequest { owner: owner.into(), namespace, network, address6, ..Default::default() };
                fabric.attach(request).await
            }
        };
        assert_eq!(address6(&attach(&lab, "a", Some(wish)).await.unwrap()), wish);
        lab.restart().await;
        assert_eq!(address6(&attach(&lab, "a", None).await.unwrap()), wish, "the same again");
        assert!(matches!(attach(&lab, "b", Some(wish)).await, Err(Error::AddressTaken(_))));
        lab.fabric.release("a").await.unwrap();
        assert_eq!(address6(&attach(&lab, "b", Some(wish)).await.unwrap()), wish);
        // Who is on a network without IPv6 has none.
        lab.network("plain", false).await;
        assert_eq!(lab.workload("c", "plain").await.ipv6, None);
        assert_eq!(inside(Some(&lab.fabric.namespace_path("c")), || shell("ip -6 addr show dev eth0")), "");
        // Subnets that overlap are refused.
        let ipv6 = Some(Ipv6Config { subnet: Some(red.subnet), ..Ipv6Config::default() });
        let overlapping = NetworkConfig { id: "two".into(), ipv6, ..NetworkConfig::default() };
        assert!(matches!(lab.fabric.ensure_network(overlapping).await, Err(Error::SubnetOverlap { .. })));
    });
}
