//! The name server on real sockets.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use network::dns::{NetworkNames, Options, Records, Server, ServiceRecord};
use network::{Endpoint, Protocol, ServiceRule};

use crate::lab;

/// Runs busybox' nslookup in a namespace; all that it prints.
async fn look_up(namespace: &std::path::Path, name: &str, server: Ipv4Addr) -> String {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    let job = move || {
        let path = format!("--net={}", namespace.display());
        let output =
            Command::new("nsenter").args([&path, "busybox", "nslookup", &name, &server.to_string()]).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    tokio::task::spawn_blocking(job).await.unwrap()
}

#[test]
fn names_are_answered_on_gateways_and_by_the_clusters_address() {
    lab::run(|lab| async move {
        let red = lab.network("red", false).await;
        let blue = lab.network("blue", false).await;
        let a = lab.workload("a", "red").await;
        let b = lab.workload("b", "blue").await;
        let records = Records {
            services: BTreeMap::from([(
                ("default".into(), "web".into()),
                ServiceRecord::Cluster { address: Ipv4Addr::new(10, 96, 0, 80), ports: Vec::new() },
            )]),
            pods: BTreeMap::new(),
            networks: vec![NetworkNames {
                subnet: Some(red.subnet),
                name: "red".into(),
                names: BTreeMap::from([("a".into(), vec![a.address.into()])]),
                ..Default::default()
            }],
        };
        // The world's resolver is another server of ours; the machine's asks it.
        let upstream: SocketAddr = "127.0.0.1:5353".parse().unwrap();
        let world = Server::new(Options { cluster_domain: "example.org".into(), ..Options::default() });
        let elsewhere = ServiceRecord::Cluster { address: Ipv4Addr::new(203, 0, 113, 5), ports: Vec::new() };
        world.set_records(Records {
            services: BTreeMap::from([(("shop".into(), "far".into()), elsewhere)]),
            ..Records::default()
        });
        world.listen(upstream, "world").await.unwrap();
        let server = Server::new(Options { upstreams: vec![upstream], ..Options::default() });
        server.set_records(records);
        for network in [&red, &blue] {
            server.listen((network.gateway, 53).into(), &network.id).await.unwrap();
            server.listen((network.gateway, 53).into(), &network.id).await.unwrap();
        }
        assert!(look_up(&a.namespace, "a", red.gateway).await.contains(&a.address.to_string()));
        assert!(look_up(&a.namespace, "web.default.svc.cluster.local", red.gateway).await.contains("10.96.0.80"));
        assert!(look_up(&b.namespace, "far.shop.svc.example.org", blue.gateway).await.contains("203.0.113.5"));
        let denied = look_up(&b.namespace, "a", blue.gateway).await;
        assert!(!denied.contains(&a.address.to_string()), "{denied}");
        // The cluster's own DNS address is a service like any other.
        let cluster_dns = Ipv4Addr::new(10, 96, 0, 10);
        let rule = ServiceRule {
            name: "kube-system/kube-dns:dns".into(),
            cluster_ip: Some(cluster_dns),
            external_addresses: Vec::new(),
            port: 53,
            protocol: Protocol::Udp,
            node_port: None,
            endpoints: vec![Endpoint { address: red.gateway, port: 53 }],
            external_endpoints: None,
            from_network: None,
            affinity_seconds: None,
        };
        lab.fabric.sync_services(vec![rule]).await.unwrap();
        let found = look_up(&a.namespace, "web.default.svc.cluster.local", cluster_dns).await;
        assert!(found.contains("10.96.0.80"), "{found}");
        server.stop((blue.gateway, 53).into(), &blue.id).await;
        assert_eq!(server.addresses(), [(red.gateway, 53).into()]);
    });
}
