//! How networks are seen outside and by each other, with real packets: routed, bridged, connected by a router.

use std::net::Ipv4Addr;

use network::{
    AttachRequest, Attachment, Error, Network, NetworkConfig, PortMapping, Protocol, Remote, SecurityGroup,
    SecurityRule, Traffic,
};

use crate::lab::{
    self, Lab, MACHINE, PATIENCE, WORLD, ask, assert_alive, assert_refused, assert_unreachable, dial, serve_tcp, shell,
};
use crate::security_groups::assert_cut;

/// Addresses that are routed to the machine, or those of a network beside it.
const SUBNET: &str = "203.0.113.0/24";
/// The neighbour on that network.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

fn in_world(lab: &Lab, line: &str) {
    shell(&format!("nsenter --net={} sh -c '{line}'", lab.world.display()));
}

async fn make(lab: &Lab, config: NetworkConfig) -> network::Result<Network> {
    lab.fabric.ensure_network(NetworkConfig { subnet: Some(SUBNET.parse().unwrap()), ..config }).await
}

#[test]
fn a_routed_network_is_seen_and_reached_as_it_is() {
    lab::run(|lab| async move {
        make(&lab, NetworkConfig { id: "routed".into(), plain: true, ..Default::default() }).await.unwrap();
        let (inner, other) = (lab.workload("inner", "routed").await, lab.network("other", false).await);
        let stranger = lab.workload("stranger", &other.id).await;
        in_world(&lab, &format!("ip route add {SUBNET} via {MACHINE} && ip route add {} via {MACHINE}", other.subnet));
        serve_tcp(Some(&inner.namespace), 80, "inner");
        serve_tcp(Some(&stranger.namespace), 80, "stranger");
        serve_tcp(Some(&lab.world), 9000, "world");
        assert_eq!(ask(Some(&lab.world), inner.address, 80), format!("inner {WORLD}"));
        assert_eq!(ask(Some(&inner.namespace), WORLD, 9000), format!("world {}", inner.address));
        // The control: a network of the usual mode is neither seen nor reached.
        assert_unreachable(Some(&lab.world), stranger.address, 80);
        assert_eq!(ask(Some(&stranger.namespace), WORLD, 9000), format!("world {MACHINE}"));
        // From other networks it is as far as any.
        assert_unreachable(Some(&stranger.namespace), inner.address, 80);
    });
}

#[test]
fn a_network_without_masquerading_is_seen_as_it_is_and_not_reached() {
    lab::run(|mut lab| async move {
        let config = NetworkConfig { id: "seen".into(), unmasqueraded: true, ..Default::default() };
        make(&lab, config.clone()).await.unwrap();
        let inner = lab.workload("inner", "seen").await;
        in_world(&lab, &format!("ip route add {SUBNET} via {MACHINE}"));
        serve_tcp(Some(&inner.namespace), 80, "inner");
        serve_tcp(Some(&lab.world), 9000, "world");
        assert_eq!(ask(Some(&inner.namespace), WORLD, 9000), format!("world {}", inner.address));
        assert_unreachable(Some(&lab.world), inner.address, 80);
        // Published ports lead in as ever.
        let port = lab.publish(&inner, 0, 80, Protocol::Tcp).await;
        assert_eq!(ask(Some(&lab.world), MACHINE, port), format!("inner {WORLD}"));
        lab.restart().await;
        assert_eq!(ask(Some(&inner.namespace), WORLD, 9000), format!("world {}", inner.address));
        // Whoever wants it otherwise gets it otherwise, at once.
        make(&lab, NetworkConfig { unmasqueraded: false, ..config }).await.unwrap();
        assert_eq!(ask(Some(&inner.namespace), WORLD, 9000), format!("world {MACHINE}"));
    });
}

#[test]
fn addresses_that_are_routed_to_the_machine_are_for_networks_without_masquerading_alone() {
    lab::run(|lab| async move {
        let config = NetworkConfig { id: "seen".into(), beside_routes: true, ..Default::default() };
        let refused = make(&lab, config.clone()).await;
        assert!(matches!(&refused, Err(Error::Invalid(text)) if text.contains("is not private")), "{refused:?}");
        make(&lab, NetworkConfig { unmasqueraded: true, ..config }).await.unwrap();
    });
}

#[test]
fn a_network_says_where_ports_are_published_and_what_interfaces_are_called() {
    lab::run(|lab| async move {
        let published_on = Some(Ipv4Addr::LOCALHOST);
        let config =
            NetworkConfig { id: "own".into(), published_on, interface_prefix: "net".into(), ..Default::default() };
        make(&lab, config).await.unwrap();
        let inner = lab.workload("inner", "own").await;
        assert_eq!(inner.interface, "net0");
        serve_tcp(Some(&inner.namespace), 80, "inner");
        let port = |host_address| PortMapping {
            host_address,
            host_port: 0,
            host_port_end: 0,
            target_port: 80,
            protocol: Protocol::Tcp,
        };
        let ports = vec![port(None), port(Some(Ipv4Addr::UNSPECIFIED.into()))];
        let bound = lab.fabric.publish("inner", &inner, ports.clone()).await.unwrap();
        assert_eq!(bound[0].host_address, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(bound[1].host_address, Some(Ipv4Addr::UNSPECIFIED.into()), "it was named");
        assert!(ask(None, Ipv4Addr::LOCALHOST, bound[0].host_port).starts_with("inner "));
        assert_refused(Some(&lab.world), MACHINE, bound[0].host_port);
        assert_eq!(ask(Some(&lab.world), MACHINE, bound[1].host_port), format!("inner {WORLD}"));
        assert_eq!(lab.fabric.publish("inner", &inner, ports).await.unwrap(), bound, "what is there already stays");
        // A guest publishes by its own name, and has a name for each further interface.
        let second = lab.workload("vm.11", "own").await;
        let bound = lab.fabric.publish("vm", &second, vec![port(None)]).await.unwrap();
        assert_eq!(bound[0].host_address, Some(Ipv4Addr::LOCALHOST.into()));
    });
}

#[test]
fn a_bridged_network_is_beside_its_neighbours() {
    lab::run(|mut lab| async move {
        shell(&format!("ip link add lan0 type veth peer name eth1 netns {}", lab.world.display()));
        in_world(&lab, &format!("ip addr add {NEIGHBOUR}/24 dev eth1 && ip link set eth1 up"));
        let on = |uplink: &str| NetworkConfig {
            id: "lan".into(),
            uplink: Some(uplink.into()),
            gateway: Some(NEIGHBOUR),
            ip_range: Some("203.0.113.128/25".parse().unwrap()),
            ..Default::default()
        };
        // What the machine needs itself is not taken from it, nor what is not there.
        for uplink in ["out0", "nuee0", "nowhere0", "lo"] {
            let refused = make(&lab, on(uplink)).await;
            assert!(matches!(refused, Err(Error::Invalid(_))), "{uplink}: {refused:?}");
        }
        make(&lab, on("lan0")).await.unwrap();
        let (first, second) = (lab.workload("first", "lan").await, lab.workload("second", "lan").await);
        serve_tcp(Some(&first.namespace), 80, "first");
        serve_tcp(Some(&lab.world), 9000, "neighbour");
        let (neighbour, inside) = (Some(&*lab.world.clone()), Some(&*first.namespace));
        assert_eq!(ask(neighbour, first.address, 80), format!("first {NEIGHBOUR}"));
        assert_eq!(ask(inside, NEIGHBOUR, 9000), format!("neighbour {}", first.address));
        assert!(ask(Some(&second.namespace), first.address, 80).starts_with("first "));
        // The machine itself is not on it.
        assert_unreachable(None, first.address, 80);
        // Rules hold there as anywhere, for what the bridge only passes on.
        let rule = SecurityRule { traffic: Traffic::Any, remote: Remote::Group("own".into()) };
        let own = SecurityGroup { id: "own".into(), ingress: vec![rule], egress: vec![], members: vec![] };
        lab.fabric.sync_security_groups(vec![own]).await.unwrap();
        lab.fabric.guard("first", vec!["own".into()]).await.unwrap();
        assert_unreachable(neighbour, first.address, 80);
        lab.fabric.guard("first", Vec::new()).await.unwrap();
        let (mut stream, _) = dial(neighbour, first.address, 80, PATIENCE).unwrap();
        lab.restart().await;
        make(&lab, on("lan0")).await.unwrap();
        assert_alive(&mut stream);
        // An interface that is gone keeps no daemon from starting.
        shell("ip link del lan0");
        lab.restart().await;
        for owner in ["first", "second"] {
            lab.fabric.release(owner).await.unwrap();
        }
        lab.fabric.remove_network("lan").await.unwrap();
    });
}

async fn on(lab: &Lab, id: &str) -> Attachment {
    lab.network(id, false).await;
    let owner = format!("on-{id}");
    let namespace = lab.fabric.create_namespace(&owner).await.unwrap();
    let request = AttachRequest { owner, namespace, network: id.into(), ..Default::default() };
    let place = lab.fabric.attach(request).await.unwrap();
    serve_tcp(Some(&place.namespace), 80, &place.owner);
    place
}

#[test]
fn a_router_connects_networks_while_it_is_there() {
    lab::run(|mut lab| async move {
        let (a, b, c) = (on(&lab, "a").await, on(&lab, "b").await, on(&lab, "c").await);
        let (from_a, from_b) = (Some(&*a.namespace), Some(&*b.namespace));
        assert_unreachable(from_a, b.address, 80);
        let link = |one: &str, other: &str| vec![(one.to_owned(), other.to_owned())];
        lab.fabric.sync_links(link("a", "b")).await.unwrap();
        // Both ways, and as they are.
        assert_eq!(ask(from_a, b.address, 80), format!("on-b {}", a.address));
        assert_eq!(ask(from_b, a.address, 80), format!("on-a {}", b.address));
        assert_unreachable(from_a, c.address, 80);
        assert_unreachable(Some(&c.namespace), a.address, 80);
        // It holds for the next daemon, and for a network that comes later.
        lab.restart().await;
        lab.fabric.sync_services(Vec::new()).await.unwrap();
        assert!(ask(from_a, b.address, 80).starts_with("on-b "));
        let later = [link("a", "b"), link("a", "d")].concat();
        lab.fabric.sync_links(later).await.unwrap();
        let d = on(&lab, "d").await;
        assert!(ask(from_a, d.address, 80).starts_with("on-d "));
        let (mut stream, _) = dial(from_a, b.address, 80, PATIENCE).unwrap();
        lab.fabric.sync_links(Vec::new()).await.unwrap();
        assert_unreachable(from_a, b.address, 80);
        assert_cut(&mut stream);
    });
}
