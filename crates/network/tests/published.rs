//! Published ports: from everywhere, through restarts and flushes.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use network::{DEFAULT_NETWORK, Error, PortMapping, Protocol};

use crate::lab::{
    self, IMPATIENCE, MACHINE, PATIENCE, WORLD, ask, ask_udp, assert_alive, assert_refused, assert_unreachable, dial,
    serve_tcp, serve_udp, shell, udp_socket,
};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn mapping(host_address: Ipv4Addr, host_port: u16, target_port: u16) -> PortMapping {
    PortMapping {
        host_address: Some(host_address.into()),
        host_port,
        host_port_end: 0,
        target_port,
        protocol: Protocol::Tcp,
    }
}

#[test]
fn a_published_port_is_reached_from_everywhere() {
    lab::run(|lab| async move {
        lab.network("red", false).await;
        let web = lab.workload("web", DEFAULT_NETWORK).await;
        let neighbour = lab.workload("neighbour", DEFAULT_NETWORK).await;
        let stranger = lab.workload("stranger", "red").await;
        serve_tcp(Some(&web.namespace), 80, "web");
        assert_eq!(lab.publish(&web, 8080, 80, Protocol::Tcp).await, 8080);
        assert_eq!(ask(Some(&lab.world), MACHINE, 8080), format!("web {WORLD}"), "the client's address is kept");
        assert_eq!(ask(None, LOCALHOST, 8080), format!("web {}", web.gateway));
        assert_eq!(ask(None, MACHINE, 8080), format!("web {MACHINE}"));
        assert_eq!(ask(None, web.gateway, 8080), format!("web {}", web.gateway));
        assert!(ask(Some(&neighbour.namespace), MACHINE, 8080).starts_with("web "));
        assert!(ask(Some(&neighbour.namespace), web.gateway, 8080).starts_with("web "));
        assert!(ask(Some(&stranger.namespace), MACHINE, 8080).starts_with("web "));
        assert!(ask(Some(&web.namespace), MACHINE, 8080).starts_with("web "), "hairpin to itself");
        assert_unreachable(Some(&stranger.namespace), web.address, 80);
        lab.fabric.unpublish("web").await.unwrap();
        assert_refused(None, LOCALHOST, 8080);
        assert_refused(Some(&lab.world), MACHINE, 8080);
    });
}

#[test]
fn localhost_stays_the_machines_own() {
    lab::run(|lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        serve_tcp(None, 9000, "machine");
        assert_eq!(ask(None, LOCALHOST, 9000), "machine 127.0.0.1");
        shell(&format!(
            "nsenter --net={} sh -c 'echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; ip addr del 127.0.0.1/8 dev lo; \
             ip route add 127.0.0.0/8 via {} dev eth0'",
            a.namespace.display(),
            a.gateway
        ));
        assert_unreachable(Some(&a.namespace), LOCALHOST, 9000);
    });
}

#[test]
fn conflicts_are_told_in_dockers_words() {
    lab::run(|lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        let b = lab.workload("b", DEFAULT_NETWORK).await;
        let any = Ipv4Addr::UNSPECIFIED;
        lab.publish(&a, 8080, 80, Protocol::Tcp).await;
        let error = lab.fabric.publish("b", b.address, vec![mapping(any, 8080, 80)]).await.unwrap_err();
        assert_eq!(error.to_string(), "Bind for 0.0.0.0:8080 failed: port is already allocated");
        assert!(lab.fabric.publish("b", b.address, vec![mapping(LOCALHOST, 8080, 80)]).await.is_err());
        let _listener = TcpListener::bind((LOCALHOST, 8081)).unwrap();
        // All or nothing: the free one of the two is not kept.
        let both = vec![mapping(any, 8082, 80), mapping(any, 8081, 80)];
        assert!(matches!(lab.fabric.publish("b", b.address, both).await, Err(Error::PortTaken { port: 8081, .. })));
        assert!(TcpListener::bind((any, 8082)).is_ok());
        // A published port belongs to the workload: nobody else on the machine can listen there.
        assert!(TcpListener::bind((any, 8080)).is_err());
        // UDP is another matter.
        lab.publish(&b, 8080, 53, Protocol::Udp).await;
        assert!((32_768..=60_999).contains(&lab.publish(&b, 0, 80, Protocol::Tcp).await));
        let range = PortMapping { host_port_end: 8083, ..mapping(any, 8080, 80) };
        let chosen = lab.fabric.publish("b", b.address, vec![range, range]).await.unwrap();
        assert_eq!(chosen.iter().map(|p| p.host_port).collect::<Vec<_>>(), [8082, 8083]);
        assert_eq!(lab.fabric.publish("b", b.address, vec![range, range]).await.unwrap(), chosen);
    });
}

#[test]
fn a_port_of_one_address_is_not_a_port_of_another() {
    lab::run(|lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        serve_tcp(Some(&a.namespace), 80, "a");
        lab.fabric.publish("a", a.address, vec![mapping(LOCALHOST, 8080, 80)]).await.unwrap();
        assert!(ask(None, LOCALHOST, 8080).starts_with("a "));
        assert_refused(Some(&lab.world), MACHINE, 8080);
    });
}

#[test]
fn published_udp_follows_its_target() {
    lab::run(|lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        let b = lab.workload("b", DEFAULT_NETWORK).await;
        serve_udp(Some(&a.namespace), 53, "a");
        serve_udp(Some(&b.namespace), 53, "b");
        lab.publish(&a, 5353, 53, Protocol::Udp).await;
        let client = udp_socket(Some(&lab.world));
        assert_eq!(ask_udp(&client, MACHINE, 5353, PATIENCE).unwrap(), format!("a {WORLD}"));
        lab.fabric.unpublish("a").await.unwrap();
        lab.publish(&b, 5353, 53, Protocol::Udp).await;
        assert_eq!(
            ask_udp(&client, MACHINE, 5353, PATIENCE).unwrap(),
            format!("b {WORLD}"),
            "the old flow is forgotten"
        );
        lab.fabric.unpublish("b").await.unwrap();
        assert!(ask_udp(&client, MACHINE, 5353, IMPATIENCE).is_err());
    });
}

#[test]
fn a_flush_heals_itself_and_connections_live_on() {
    lab::run(|mut lab| async move {
        let web = lab.workload("web", DEFAULT_NETWORK).await;
        serve_tcp(Some(&web.namespace), 80, "web");
        lab.publish(&web, 8080, 80, Protocol::Tcp).await;
        let (mut stream, _) = dial(Some(&lab.world), MACHINE, 8080, PATIENCE).unwrap();
        lab.fabric.reconcile().await.unwrap();
        assert_alive(&mut stream);
        lab.restart().await;
        assert_alive(&mut stream);
        // A packet that meets no rules is not translated and is answered by a reset: let the delayed
        // acknowledgement (TCP_DELACK_MAX, 200 ms) of the last answer be out.
        std::thread::sleep(Duration::from_millis(300));
        shell("nft flush ruleset");
        let deadline = std::time::Instant::now() + PATIENCE;
        while !shell("nft list tables").contains("bridge nuee") {
            assert!(std::time::Instant::now() < deadline, "the tables did not come back");
        }
        assert_alive(&mut stream);
        assert_eq!(ask(Some(&lab.world), MACHINE, 8080), format!("web {WORLD}"));
    });
}

#[test]
fn without_rules_no_workload_speaks_until_they_are_back() {
    lab::run(|lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        let b = lab.workload("b", DEFAULT_NETWORK).await;
        serve_tcp(Some(&a.namespace), 80, "a");
        let (mut stream, _) = dial(Some(&b.namespace), a.address, 80, PATIENCE).unwrap();
        // The tables cannot come back: nft is out of order, but for us.
        let own = lab.options.run_dir.join("own-nft");
        shell(&format!("cp $(command -v nft) {0} && mount --bind /bin/false $(command -v nft)", own.display()));
        shell(&format!("{} flush ruleset", own.display()));
        let deadline = std::time::Instant::now() + PATIENCE;
        while dial(Some(&b.namespace), a.address, 80, IMPATIENCE).is_ok() {
            assert!(std::time::Instant::now() < deadline, "workloads speak without rules");
        }
        assert_unreachable(Some(&b.namespace), a.address, 80);
        shell("umount $(command -v nft)");
        lab.fabric.reconcile().await.unwrap();
        assert_eq!(ask(Some(&b.namespace), a.address, 80), format!("a {}", b.address));
        assert_alive(&mut stream);
    });
}

#[test]
fn ports_on_ipv6_without_ipv6_are_given_to_who_carries_and_are_his_over_restarts() {
    lab::run(|mut lab| async move {
        let web = lab.workload("web", DEFAULT_NETWORK).await;
        let other = lab.workload("other", DEFAULT_NETWORK).await;
        let target = |address| network::Target { address, address6: None, carries6: true };
        let any = PortMapping { host_address: None, ..mapping(LOCALHOST, 8080, 80) };
        // Somebody has it on IPv6 alone: nothing is taken on IPv4 either.
        let theirs = TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 8080)).unwrap();
        let error = lab.fabric.publish("web", target(web.address), vec![any]).await.unwrap_err();
        assert_eq!(error.to_string(), "Bind for :::8080 failed: port is already allocated");
        assert!(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).is_ok());
        drop(theirs);
        lab.fabric.publish("web", target(web.address), vec![any]).await.unwrap();
        let carried = lab.fabric.carried("web").await.unwrap();
        let [one] = &carried[..] else { panic!("{carried:?}") };
        assert_eq!(one.host.to_string(), "[::]:8080");
        assert_eq!(one.target, std::net::SocketAddrV4::new(web.address, 80));
        // Whoever carries listens, and the fabric is opened again meanwhile.
        rustix::net::listen(&one.socket, 1).unwrap();
        lab.restart().await;
        assert!(lab.fabric.carried("web").await.unwrap().is_empty(), "it is not the fabric's any more");
        let error = lab.fabric.publish("other", target(other.address), vec![any]).await.unwrap_err();
        assert!(matches!(error, Error::PortTaken { port: 8080, .. }));
        // A new start, after whoever carried is gone.
        drop(carried);
        lab.fabric.publish("web", target(web.address), vec![any]).await.unwrap();
        assert_eq!(lab.fabric.carried("web").await.unwrap().len(), 1);
        lab.fabric.release("web").await.unwrap();
        assert!(TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, 8080)).is_ok());
    });
}

#[test]
fn nothing_is_carried_to_where_rules_would_see_the_machine_speak() {
    lab::run(|lab| async move {
        lab.network("inside", true).await;
        let inside = lab.workload("inside", "inside").await;
        let target = network::Target { address: inside.address, address6: None, carries6: true };
        let any = PortMapping { host_address: None, ..mapping(LOCALHOST, 8081, 80) };
        lab.fabric.publish("inside", target, vec![any]).await.unwrap();
        assert!(lab.fabric.carried("inside").await.unwrap().is_empty());
        assert!(TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 8081)).is_ok());
        // The same on a network that is not internal is carried.
        let open = lab.workload("open", DEFAULT_NETWORK).await;
        let target = network::Target { address: open.address, ..target };
        let any = PortMapping { host_port: 8082, ..any };
        lab.fabric.publish("open", target, vec![any]).await.unwrap();
        assert_eq!(lab.fabric.carried("open").await.unwrap().len(), 1);
    });
}

#[test]
fn nothing_is_carried_any_more_to_who_comes_under_security_groups() {
    lab::run(|mut lab| async move {
        let web = lab.workload("web", DEFAULT_NETWORK).await;
        let target = network::Target { address: web.address, address6: None, carries6: true };
        let any = PortMapping { host_address: None, ..mapping(LOCALHOST, 8083, 80) };
        lab.fabric.publish("web", target, vec![any]).await.unwrap();
        let carried = lab.fabric.carried("web").await.unwrap();
        rustix::net::listen(&carried[0].socket, 1).unwrap();
        drop(carried);
        lab.fabric.guard("web", vec!["shut".into()]).await.unwrap();
        assert!(lab.fabric.carried("web").await.unwrap().is_empty());
        // Until it is told that nobody carries, also over a restart, it may be that somebody does.
        lab.restart().await;
        assert!(lab.fabric.carried("web").await.unwrap().is_empty());
        let publication = async |lab: &lab::Lab| lab.fabric.list().await.unwrap().publications.remove(0);
        assert!(publication(&lab).await.carried6);
        lab.fabric.forget_carried("web").await.unwrap();
        assert!(TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, 8083)).is_ok());
        lab.restart().await;
        assert_eq!(
            publication(&lab).await,
            network::Publication {
                owner: "web".into(),
                target: web.address,
                target6: None,
                carried6: false,
                ports: vec![any],
            }
        );
        lab.fabric.guard("web", Vec::new()).await.unwrap();
        lab.fabric.unpublish("web").await.unwrap();
        lab.fabric.publish("web", target, vec![any]).await.unwrap();
        assert_eq!(lab.fabric.carried("web").await.unwrap().len(), 1);
    });
}
