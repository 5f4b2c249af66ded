//! Services: load-balancing in the kernel.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use network::{Attachment, DEFAULT_NETWORK, Endpoint, Protocol, ServiceRule};

use crate::lab::{
    self, MACHINE, PATIENCE, WORLD, ask, ask_udp, assert_alive, assert_refused, dial, serve_tcp, serve_udp, shell,
    udp_socket,
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);

fn service(endpoints: &[&Attachment]) -> ServiceRule {
    ServiceRule {
        name: "default/web:http".into(),
        cluster_ip: Some(VIP),
        external_addresses: Vec::new(),
        port: 80,
        protocol: Protocol::Tcp,
        node_port: Some(30_080),
        endpoints: endpoints.iter().map(|a| Endpoint { address: a.address, port: 8080 }).collect(),
        external_endpoints: None,
        from_network: None,
        affinity_seconds: None,
    }
}

/// Who answers, and how often.
fn tally(namespace: Option<&Path>, address: Ipv4Addr, port: u16, times: usize) -> HashMap<String, usize> {
    let mut found = HashMap::new();
    for _ in 0..times {
        let answer = ask(namespace, address, port);
        *found.entry(answer.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    found
}

#[test]
fn a_service_spreads_over_its_endpoints_from_everywhere() {
    lab::run(|lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        let b = lab.workload("b", DEFAULT_NETWORK).await;
        let client = lab.workload("client", DEFAULT_NETWORK).await;
        serve_tcp(Some(&a.namespace), 8080, "a");
        serve_tcp(Some(&b.namespace), 8080, "b");
        lab.fabric.sync_services(vec![service(&[&a, &b])]).await.unwrap();
        let found = tally(Some(&client.namespace), VIP, 80, 60);
        assert!(found["a"] >= 10 && found["b"] >= 10, "{found:?}");
        assert!(
            ask(Some(&client.namespace), VIP, 80).ends_with(&format!(" {}", client.address)),
            "the address is kept"
        );
        // To itself, when chance wants it.
        assert_eq!(tally(Some(&a.namespace), VIP, 80, 30).len(), 2);
        // The machine itself, and its node port from outside, by loopback too? Kubernetes' nftables mode says no.
        assert_eq!(tally(None, VIP, 80, 30).len(), 2);
        assert_eq!(tally(Some(&lab.world), MACHINE, 30_080, 30).len(), 2);
        assert!(ask(Some(&lab.world), MACHINE, 30_080).ends_with(&format!(" {WORLD}")));
        // A user who tries localhost on the machine itself gets an answer too.
        assert!(ask(None, Ipv4Addr::LOCALHOST, 30_080).starts_with(['a', 'b']));
    });
}

#[test]
fn an_address_may_lead_on_from_every_port_for_its_own_network_alone() {
    lab::run(|lab| async move {
        // Internal: there is no way out, but one to the addresses of services.
        lab.network("red", true).await;
        lab.network("blue", false).await;
        let a = lab.workload("a", "red").await;
        let b = lab.workload("b", "red").await;
        let client = lab.workload("client", "red").await;
        let stranger = lab.workload("stranger", "blue").await;
        for (attachment, name) in [(&a, "a"), (&b, "b")] {
            serve_tcp(Some(&attachment.namespace), 8080, name);
            serve_tcp(Some(&attachment.namespace), 9090, name);
        }
        let whole = ServiceRule { port: 0, node_port: None, from_network: Some("red".into()), ..service(&[&a, &b]) };
        lab.fabric.sync_services(vec![whole]).await.unwrap();
        for port in [8080, 9090] {
            assert_eq!(tally(Some(&client.namespace), VIP, port, 30).len(), 2);
        }
        assert_refused(Some(&stranger.namespace), VIP, 8080);
        lab.fabric.sync_services(Vec::new()).await.unwrap();
        assert_refused(Some(&client.namespace), VIP, 8080);
    });
}

#[test]
fn without_endpoints_connections_are_refused_at_once() {
    lab::run(|lab| async move {
        let client = lab.workload("client", DEFAULT_NETWORK).await;
        lab.fabric.sync_services(vec![service(&[])]).await.unwrap();
        assert_refused(Some(&client.namespace), VIP, 80);
        assert_refused(None, VIP, 80);
        assert_refused(Some(&lab.world), MACHINE, 30_080);
        assert_refused(Some(&client.namespace), Ipv4Addr::new(10, 96, 9, 9), 1234);
    });
}

#[test]
fn endpoints_come_and_go_without_harm_to_connections() {
    lab::run(|mut lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        let b = lab.workload("b", DEFAULT_NETWORK).await;
        let client = lab.workload("client", DEFAULT_NETWORK).await;
        serve_tcp(Some(&a.namespace), 8080, "a");
        serve_tcp(Some(&b.namespace), 8080, "b");
        lab.fabric.sync_services(vec![service(&[&a])]).await.unwrap();
        let (mut stream, line) = dial(Some(&client.namespace), VIP, 80, PATIENCE).unwrap();
        assert!(line.starts_with("a "));
        lab.fabric.sync_services(vec![service(&[&b])]).await.unwrap();
        assert_alive(&mut stream);
        assert_eq!(tally(Some(&client.namespace), VIP, 80, 10).len(), 1);
        // A daemon that starts again leaves services alone until it knows them.
        lab.restart().await;
        lab.fabric.reconcile().await.unwrap();
        assert!(ask(Some(&client.namespace), VIP, 80).starts_with("b "));
        lab.fabric.sync_services(vec![service(&[&a, &b])]).await.unwrap();
        assert_alive(&mut stream);
        assert_eq!(tally(Some(&client.namespace), VIP, 80, 30).len(), 2);
        lab.fabric.sync_services(Vec::new()).await.unwrap();
        assert_refused(Some(&client.namespace), VIP, 80);
        assert!(!shell("nft list table inet nuee").contains("svc-"));
    });
}

#[test]
fn a_client_with_affinity_stays_with_its_endpoint() {
    lab::run(|lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        let b = lab.workload("b", DEFAULT_NETWORK).await;
        let c = lab.workload("c", DEFAULT_NETWORK).await;
        let client = lab.workload("client", DEFAULT_NETWORK).await;
        for (attachment, name) in [(&a, "a"), (&b, "b"), (&c, "c")] {
            serve_tcp(Some(&attachment.namespace), 8080, name);
        }
        let sticky = |endpoints: &[&Attachment]| ServiceRule { affinity_seconds: Some(10_800), ..service(endpoints) };
        lab.fabric.sync_services(vec![sticky(&[&a, &b])]).await.unwrap();
        let first = tally(Some(&client.namespace), VIP, 80, 20);
        assert_eq!(first.len(), 1, "{first:?}");
        lab.fabric.sync_services(vec![sticky(&[&a, &b, &c])]).await.unwrap();
        assert_eq!(
            tally(Some(&client.namespace), VIP, 80, 20).keys().collect::<Vec<_>>(),
            first.keys().collect::<Vec<_>>()
        );
        let left = if first.contains_key("a") { [&b, &c] } else { [&a, &c] };
        lab.fabric.sync_services(vec![sticky(&left)]).await.unwrap();
        let second = tally(Some(&client.namespace), VIP, 80, 20);
        assert!(second.len() == 1 && second.keys().ne(first.keys()), "{second:?}");
    });
}

#[test]
fn udp_clients_are_led_away_from_a_dead_endpoint() {
    lab::run(|lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        let b = lab.workload("b", DEFAULT_NETWORK).await;
        let client = lab.workload("client", DEFAULT_NETWORK).await;
        serve_udp(Some(&a.namespace), 8080, "a");
        serve_udp(Some(&b.namespace), 8080, "b");
        let udp = |endpoints: &[&Attachment]| ServiceRule { protocol: Protocol::Udp, ..service(endpoints) };
        lab.fabric.sync_services(vec![udp(&[&a])]).await.unwrap();
        let socket = udp_socket(Some(&client.namespace));
        assert!(ask_udp(&socket, VIP, 80, PATIENCE).unwrap().starts_with("a "));
        lab.fabric.sync_services(vec![udp(&[&b])]).await.unwrap();
        assert!(ask_udp(&socket, VIP, 80, PATIENCE).unwrap().starts_with("b "));
    });
}

#[test]
fn an_endpoint_may_be_the_machine_itself() {
    lab::run(|lab| async move {
        let client = lab.workload("client", DEFAULT_NETWORK).await;
        let stranger = {
            lab.network("red", false).await;
            lab.workload("stranger", "red").await
        };
        serve_tcp(None, 6443, "machine");
        let endpoint = Endpoint { address: MACHINE, port: 6443 };
        lab.fabric.sync_services(vec![ServiceRule { endpoints: vec![endpoint], ..service(&[]) }]).await.unwrap();
        assert_eq!(ask(Some(&client.namespace), VIP, 80), format!("machine {}", client.address));
        assert!(ask(Some(&stranger.namespace), VIP, 80).starts_with("machine "));
        assert!(ask(None, VIP, 80).starts_with("machine "));
    });
}

#[test]
fn local_external_traffic_policy_and_external_addresses() {
    lab::run(|lab| async move {
        let a = lab.workload("a", DEFAULT_NETWORK).await;
        let b = lab.workload("b", DEFAULT_NETWORK).await;
        serve_tcp(Some(&a.namespace), 8080, "a");
        serve_tcp(Some(&b.namespace), 8080, "b");
        let rule = ServiceRule {
            external_addresses: vec![Ipv4Addr::new(203, 0, 113, 7)],
            external_endpoints: Some(service(&[&b]).endpoints),
            ..service(&[&a])
        };
        lab.fabric.sync_services(vec![rule]).await.unwrap();
        shell(&format!("nsenter --net={} ip route add 203.0.113.7 via {MACHINE}", lab.world.display()));
        assert!(ask(Some(&lab.world), Ipv4Addr::new(203, 0, 113, 7), 80).starts_with("b "));
        assert!(ask(Some(&lab.world), MACHINE, 30_080).starts_with("b "));
        assert!(ask(None, VIP, 80).starts_with("a "));
    });
}

#[test]
fn a_thousand_services_install_and_change_fast() {
    lab::run(|lab| async move {
        let rule = |number: u32| ServiceRule {
            name: format!("default/s{number}:http"),
            cluster_ip: Some(Ipv4Addr::from_bits(VIP.to_bits() + number)),
            node_port: None,
            endpoints: (0..3)
                .map(|e| Endpoint { address: Ipv4Addr::from_bits(0x0a58_0100 + number * 3 + e), port: 80 })
                .collect(),
            ..service(&[])
        };
        let mut rules: Vec<_> = (0..1000).map(rule).collect();
        let start = Instant::now();
        lab.fabric.sync_services(rules.clone()).await.unwrap();
        let all = start.elapsed();
        rules[500].endpoints.pop();
        let start = Instant::now();
        lab.fabric.sync_services(rules.clone()).await.unwrap();
        let one = start.elapsed();
        let start = Instant::now();
        lab.fabric.sync_services(rules).await.unwrap();
        eprintln!("1,000 services: all {all:?}, one changed {one:?}, none changed {:?}", start.elapsed());
        // Far above what it takes (150 ms and 10 ms), for busy machines; a quadratic step would take far longer.
        assert!(all.as_secs() < 10 && one.as_secs() < 2);
    });
}
