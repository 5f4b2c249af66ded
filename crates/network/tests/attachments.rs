//! Networks, namespaces, addresses: who can talk to whom.

use std::collections::HashSet;

use network::{AttachRequest, DEFAULT_NETWORK, Error, NetworkConfig, PortMapping, Protocol};

use crate::lab::{self, MACHINE, WORLD, ask, assert_unreachable, inside, serve_tcp, shell};

#[test]
fn workloads_of_one_network_talk_and_go_out_masqueraded() {
    lab::run(|lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        let b = lab.workload("b", DEFAULT_NETWORK).await;
        assert_eq!((a.address.to_string().as_str(), a.interface.as_str()), ("10.88.0.2", "eth0"));
        assert_eq!(a.mac.to_string(), "02:42:0a:58:00:02");
        serve_tcp(Some(&b.namespace), 80, "b");
        serve_tcp(Some(&lab.world), 80, "world");
        assert_eq!(ask(Some(&a.namespace), b.address, 80), format!("b {}", a.address));
        assert_eq!(ask(None, b.address, 80), format!("b {}", b.gateway));
        assert_eq!(ask(Some(&a.namespace), WORLD, 80), format!("world {MACHINE}"));
        // Not from outside to an address that is not published.
        shell(&format!("nsenter --net={} ip route add 10.88.0.0/16 via {MACHINE}", lab.world.display()));
        assert_unreachable(Some(&lab.world), b.address, 80);
    });
}

#[test]
fn networks_are_apart_and_internal_ones_have_no_way_out() {
    lab::run(|lab| async move {
        let red = lab.network("red", false).await;
        lab.network("blue", false).await;
        lab.network("vault", true).await;
        let a = lab.workload("a", "red").await;
        let b = lab.workload("b", "blue").await;
        let c = lab.workload("c", "vault").await;
        let d = lab.workload("d", "vault").await;
        assert_eq!(red.bridge, network::bridge_name("red"));
        for (attachment, name) in [(&a, "a"), (&b, "b"), (&c, "c")] {
            serve_tcp(Some(&attachment.namespace), 80, name);
        }
        serve_tcp(Some(&lab.world), 80, "world");
        assert_unreachable(Some(&a.namespace), b.address, 80);
        assert_unreachable(Some(&a.namespace), c.address, 80);
        assert_unreachable(Some(&c.namespace), b.address, 80);
        assert_unreachable(Some(&c.namespace), WORLD, 80);
        shell(&format!("nsenter --net={} ip route add default via {}", d.namespace.display(), d.gateway));
        assert_unreachable(Some(&d.namespace), WORLD, 80);
        assert_eq!(ask(Some(&d.namespace), c.address, 80), format!("c {}", d.address));
        // One workload on two networks.
        let second = AttachRequest {
            owner: "a".into(),
            namespace: a.namespace.clone(),
            network: "blue".into(),
            without_default_route: true,
            ..Default::default()
        };
        let second = lab.fabric.attach(second).await.unwrap();
        assert_eq!(second.interface, "eth1");
        assert_eq!(ask(Some(&a.namespace), b.address, 80), format!("b {}", second.address));
    });
}

#[test]
fn attaching_again_detaching_and_garbage_collection() {
    lab::run(|mut lab| async move {
        let first = lab.workload("a", DEFAULT_NETWORK).await;
        assert_eq!(lab.workload("a", DEFAULT_NETWORK).await, first);
        let wanted = AttachRequest {
            owner: "b".into(),
            namespace: lab.fabric.create_namespace("b").await.unwrap(),
            network: DEFAULT_NETWORK.into(),
            address: Some(first.address),
            ..Default::default()
        };
        assert!(matches!(lab.fabric.attach(wanted.clone()).await, Err(Error::AddressTaken(_))));
        assert!(matches!(lab.fabric.remove_network(DEFAULT_NETWORK).await, Err(Error::NetworkInUse(_))));
        lab.restart().await;
        assert_eq!(lab.workload("a", DEFAULT_NETWORK).await, first, "the address survives a restart");
        lab.fabric.detach("a", DEFAULT_NETWORK).await.unwrap();
        let second = lab.fabric.attach(wanted).await.unwrap();
        assert_eq!(second.address, first.address);
        let gone = lab.fabric.collect_garbage(&HashSet::from(["world".to_owned(), "a".to_owned()])).await.unwrap();
        assert_eq!(gone, ["b"]);
        let left = lab.fabric.list().await.unwrap();
        assert!(left.attachments.is_empty() && left.publications.is_empty());
        assert_eq!(left.namespaces.len(), 2);
        assert_eq!(shell("ip -br link | grep -c nuv || true").trim(), "0");
    });
}

#[test]
fn what_a_crash_leaves_is_repaired() {
    lab::run(|mut lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        let b = lab.workload("b", DEFAULT_NETWORK).await;
        serve_tcp(Some(&b.namespace), 80, "b");
        // As after kill -9 in the middle of things: an address without an interface, interfaces and a bridge without a
        // record, a port off its bridge, a bridge that is down, and no tables.
        shell(&format!("ip link del {}", a.host_interface));
        shell(
            "ip link add nuv0123456789ab type veth peer name nuvba9876543210 && ip link add nuee-0badcafe type bridge",
        );
        shell(&format!("ip link set {} nomaster && ip link set nuee0 down", b.host_interface));
        drop(std::mem::replace(&mut lab.fabric, network::Fabric::open(lab.options.clone()).await.unwrap()));
        shell("nft flush ruleset");
        lab.fabric.reconcile().await.unwrap();
        let links = shell("ip -br link");
        assert!(!links.contains("nuee-0badcafe") && !links.contains("nuv0123"), "{links}");
        assert_eq!(lab.workload("a", DEFAULT_NETWORK).await, a);
        assert_eq!(ask(Some(&a.namespace), b.address, 80), format!("b {}", a.address));
    });
}

/// How often to look whether interfaces are gone that are deleted in the background: ten seconds in all.
const DELETION_LOOKS_MAX: u32 = 200;

#[test]
fn many_come_and_go_at_once() {
    lab::run(|lab| async move {
        let fabric = &lab.fabric;
        let one = |number: u32| async move {
            let owner = format!("w{number}");
            let namespace = fabric.create_namespace(&owner).await.unwrap();
            let request = AttachRequest {
                owner: owner.clone(),
                namespace,
                network: DEFAULT_NETWORK.into(),
                ..Default::default()
            };
            let attachment = fabric.attach(request).await.unwrap();
            let any = std::net::Ipv4Addr::UNSPECIFIED;
            let port = PortMapping {
                host_address: Some(any.into()),
                host_port: 0,
                host_port_end: 0,
                target_port: 80,
                protocol: Protocol::Tcp,
            };
            let port = fabric.publish(&owner, attachment.address, vec![port]).await.unwrap()[0].host_port;
            if number.is_multiple_of(2) {
                fabric.release(&owner).await.unwrap();
                fabric.remove_namespace(&owner).await.unwrap();
                return None;
            }
            Some((attachment.address, port))
        };
        let kept: Vec<_> = futures::future::join_all((0..40).map(one)).await.into_iter().flatten().collect();
        assert_eq!(kept.iter().map(|k| k.0).collect::<HashSet<_>>().len(), 20);
        assert_eq!(kept.iter().map(|k| k.1).collect::<HashSet<_>>().len(), 20);
        // The kernel deletes interfaces after those who released them have their answer.
        let interfaces = || shell("ip -br link | grep -c nuv").trim().to_owned();
        for _ in 0..DELETION_LOOKS_MAX {
            if interfaces() == "20" {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(interfaces(), "20");
        assert_eq!(shell("nft list set bridge nuee ports | grep -c nuv").trim(), "20");
        assert_eq!(fabric.list().await.unwrap().attachments.len(), 20);
        let gone = fabric.collect_garbage(&HashSet::from(["world".to_owned()])).await.unwrap();
        assert_eq!(gone.len(), 20);
        assert!(!shell("nft list ruleset").contains("nuv0") && !shell("ip -br link").contains("nuv"));
    });
}

#[test]
fn free_subnets_avoid_networks_and_routes_and_overlaps_are_refused() {
    lab::run(|lab| async move {
        shell("ip route add 10.89.0.0/24 dev out0");
        let first = lab.network("one", false).await;
        assert_eq!(first.subnet.to_string(), "10.89.1.0/24");
        assert_eq!(lab.fabric.free_subnet().await.unwrap().to_string(), "10.89.2.0/24");
        let overlapping =
            NetworkConfig { id: "two".into(), subnet: Some("10.89.1.128/25".parse().unwrap()), ..Default::default() };
        assert!(matches!(lab.fabric.ensure_network(overlapping).await, Err(Error::SubnetOverlap { .. })));
        lab.fabric.remove_network("one").await.unwrap();
        assert_eq!(shell("ip -br link | grep -c nuee- || true").trim(), "0");
    });
}

/// The interface inside, with the address and MAC changed: what a hostile workload with NET_ADMIN can do.
fn pretend(namespace: &std::path::Path, command: &str) {
    shell(&format!("nsenter --net={} sh -c '{command}'", namespace.display()));
}

#[test]
fn a_workload_cannot_speak_with_anothers_address_or_mac() {
    lab::run(|lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        let b = lab.workload("b", DEFAULT_NETWORK).await;
        let victim = lab.workload("victim", DEFAULT_NETWORK).await;
        serve_tcp(Some(&b.namespace), 80, "b");
        assert_eq!(ask(Some(&a.namespace), b.address, 80), format!("b {}", a.address));
        // Another's address: neither its packets nor its ARP get through.
        pretend(
            &a.namespace,
            "ip addr add 10.88.99.99/16 dev eth0 && ip route add 10.88.0.3/32 dev eth0 src 10.88.99.99",
        );
        assert_unreachable(Some(&a.namespace), b.address, 80);
        pretend(&a.namespace, "ip route del 10.88.0.3/32 && ip addr del 10.88.99.99/16 dev eth0");
        assert_eq!(ask(Some(&a.namespace), b.address, 80), format!("b {}", a.address));
        // Another's MAC.
        pretend(&a.namespace, &format!("ip link set eth0 address {}", victim.mac));
        assert_unreachable(Some(&a.namespace), b.address, 80);
        let counted = inside(Some(&victim.namespace), || shell("cat /proc/net/arp"));
        assert!(!counted.contains("10.88.99.99"), "{counted}");
    });
}

#[test]
fn everything_goes_with_destroy_all() {
    lab::run(|lab| async move {
        lab.network("red", false).await;
        let a = lab.workload("a", "red").await;
        lab.publish(&a, 8080, 80, network::Protocol::Tcp).await;
        lab.fabric.destroy_all().await.unwrap();
        assert_eq!(shell("nft list ruleset").trim(), "");
        let links = shell("ip -br link");
        assert!(!links.contains("nuee") && !links.contains("nuv"), "{links}");
        assert!(!lab.options.state_dir.exists());
        assert!(!shell("cat /proc/thread-self/mountinfo").contains("/run/netns/a"));
    });
}
