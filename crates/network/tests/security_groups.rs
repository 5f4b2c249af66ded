//! Security groups with real packets: what is not allowed does not arrive, from neighbours, from the machine, from outside and
//! through published ports; answers do; edits, restarts and members that come and go.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use network::{Attachment, DEFAULT_NETWORK, PortMapping, Protocol, Remote, SecurityGroup, SecurityRule, Traffic};

use crate::lab::{
    self, IMPATIENCE, Lab, MACHINE, PATIENCE, WORLD, ask, ask_udp, assert_alive, assert_unreachable, dial, inside,
    serve_tcp, serve_udp, udp_socket,
};
use crate::spoofing::{datagram_to, frame, packet_socket, receive, send};

fn any() -> SecurityRule {
    SecurityRule { traffic: Traffic::Any, remote: Remote::Anywhere }
}

fn tcp(port: u16, remote: Remote) -> SecurityRule {
    SecurityRule { traffic: Traffic::Ports { protocol: Protocol::Tcp, first: port, last: port }, remote }
}

fn ping_rule() -> SecurityRule {
    SecurityRule { traffic: Traffic::Icmp { kind: 8, code: None }, remote: Remote::Anywhere }
}

/// A group with an open way out.
fn group(id: &str, ingress: Vec<SecurityRule>) -> SecurityGroup {
    SecurityGroup { id: id.into(), ingress, egress: vec![any()], members: Vec::new() }
}

fn pings(namespace: Option<&Path>, address: Ipv4Addr) -> bool {
    let ping = || Command::new("busybox").args(["ping", "-c", "1", "-W", "1", &address.to_string()]).output().unwrap();
    inside(namespace, ping).status.success()
}

/// That nothing more comes over a connection.
pub fn assert_cut(stream: &mut TcpStream) {
    use std::io::Read;
    stream.set_read_timeout(Some(IMPATIENCE)).unwrap();
    stream.write_all(b"lost\n").unwrap();
    let mut buffer = [0; 16];
    assert!(stream.read(&mut buffer).is_err(), "the connection still carries data");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
}

/// A guarded workload with servers on 80 and 81, and a neighbour of it without groups that has the same.
async fn pair(lab: &Lab) -> (Attachment, Attachment) {
    let web = lab.guarded("web", &["web"]).await;
    let open = lab.workload("open", DEFAULT_NETWORK).await;
    for one in [&web, &open] {
        for port in [80, 81] {
            serve_tcp(Some(&one.namespace), port, &one.owner);
        }
        serve_udp(Some(&one.namespace), 53, &one.owner);
    }
    (web, open)
}

#[test]
fn only_what_a_rule_names_arrives_and_answers_do() {
    lab::run(|lab| async move {
        lab.fabric.sync_security_groups(vec![group("web", vec![tcp(80, Remote::Anywhere)])]).await.unwrap();
        let (web, open) = pair(&lab).await;
        let mapping = |host_port, target_port| PortMapping {
            host_address: None,
            host_port,
            host_port_end: 0,
            target_port,
            protocol: Protocol::Tcp,
        };
        lab.fabric.publish("web", web.address, vec![mapping(8080, 80), mapping(8081, 81)]).await.unwrap();
        serve_tcp(Some(&lab.world), 9000, "world");
        serve_udp(Some(&lab.world), 9000, "world");
        let (neighbour, world) = (Some(&*open.namespace), Some(&*lab.world));
        // In: from a neighbour on the bridge, from the machine, and from outside through published ports.
        assert_eq!(ask(neighbour, web.address, 80), format!("web {}", open.address));
        assert!(ask(None, web.address, 80).starts_with("web "));
        assert_eq!(ask(world, MACHINE, 8080), format!("web {WORLD}"));
        assert!(ask(None, Ipv4Addr::LOCALHOST, 8080).starts_with("web "));
        assert_unreachable(neighbour, web.address, 81);
        assert_unreachable(None, web.address, 81);
        assert_unreachable(world, MACHINE, 8081);
        assert_unreachable(None, Ipv4Addr::LOCALHOST, 8081);
        assert!(ask_udp(&udp_socket(neighbour), web.address, 53, IMPATIENCE).is_err());
        assert!(!pings(neighbour, web.address));
        // The control: without a group all of it arrives.
        let guarded = Some(&*web.namespace);
        assert!(ask(guarded, open.address, 81).starts_with("open "));
        assert!(pings(guarded, open.address));
        // Out, and back again.
        assert!(ask(guarded, WORLD, 9000).starts_with("world "));
        assert!(ask_udp(&udp_socket(guarded), open.address, 53, PATIENCE).unwrap().starts_with("open "));
        assert!(ask_udp(&udp_socket(guarded), WORLD, 9000, PATIENCE).unwrap().starts_with("world "));
        assert!(pings(guarded, web.gateway));
    });
}

#[test]
fn an_edit_ends_what_is_not_allowed_any_more_and_nothing_else() {
    lab::run(|lab| async move {
        let (http, other) = (tcp(80, Remote::Anywhere), tcp(81, Remote::Anywhere));
        let sync = |rules: &[&SecurityRule]| {
            let rules = rules.iter().map(|one| (*one).clone()).collect();
            lab.fabric.sync_security_groups(vec![group("web", rules)])
        };
        sync(&[&http, &other]).await.unwrap();
        let (web, open) = pair(&lab).await;
        let from = Some(&*open.namespace);
        let (mut kept, _) = dial(from, web.address, 80, PATIENCE).unwrap();
        let (mut cut, _) = dial(from, web.address, 81, PATIENCE).unwrap();
        let (mut out, _) = dial(Some(&web.namespace), open.address, 81, PATIENCE).unwrap();
        sync(&[&http, &ping_rule()]).await.unwrap();
        assert_alive(&mut kept);
        assert_alive(&mut out);
        assert_cut(&mut cut);
        assert_unreachable(from, web.address, 81);
        // Echo requests, and no other ICMP, are what the rule names.
        assert!(pings(from, web.address));
        let mut redirect = ping_rule();
        redirect.traffic = Traffic::Icmp { kind: 5, code: None };
        sync(&[&http, &redirect]).await.unwrap();
        assert!(!pings(from, web.address));
        // Out of the group, everything is as for everybody.
        lab.fabric.guard("web", Vec::new()).await.unwrap();
        assert!(ask(from, web.address, 81).starts_with("web "));
        lab.fabric.guard("web", vec!["web".into()]).await.unwrap();
        assert_unreachable(from, web.address, 81);
        assert_alive(&mut kept);
        // A group that is gone lets nothing through.
        lab.fabric.sync_security_groups(Vec::new()).await.unwrap();
        assert_unreachable(from, web.address, 80);
        assert_cut(&mut out);
    });
}

#[test]
fn members_of_a_group_come_and_go() {
    lab::run(|lab| async move {
        let own = |members: Vec<Ipv4Addr>| SecurityGroup {
            members,
            ..group("own", vec![SecurityRule { traffic: Traffic::Any, remote: Remote::Group("own".into()) }])
        };
        lab.fabric.sync_security_groups(vec![own(Vec::new())]).await.unwrap();
        let (first, second) = (lab.guarded("first", &["own"]).await, lab.guarded("second", &["own"]).await);
        let stranger = lab.workload("stranger", DEFAULT_NETWORK).await;
        serve_tcp(Some(&first.namespace), 80, "first");
        lab.publish(&first, 8080, 80, Protocol::Tcp).await;
        let (member, other) = (Some(&*second.namespace), Some(&*stranger.namespace));
        assert_eq!(ask(member, first.address, 80), format!("first {}", second.address));
        // Behind the translation of a published port, too, it counts who speaks.
        assert!(ask(member, MACHINE, 8080).starts_with("first "));
        assert_unreachable(other, first.address, 80);
        assert_unreachable(other, MACHINE, 8080);
        lab.fabric.guard("stranger", vec!["own".into()]).await.unwrap();
        let (mut stream, _) = dial(other, first.address, 80, PATIENCE).unwrap();
        lab.fabric.guard("stranger", Vec::new()).await.unwrap();
        assert_cut(&mut stream);
        assert_unreachable(other, first.address, 80);
        // Its address, told as one of another machine's members, is not: it is known here.
        lab.fabric.sync_security_groups(vec![own(vec![stranger.address])]).await.unwrap();
        assert_unreachable(other, first.address, 80);
        lab.fabric.release("second").await.unwrap();
        let next = lab.workload("next", DEFAULT_NETWORK).await;
        assert_unreachable(Some(&next.namespace), first.address, 80);
    });
}

#[test]
fn the_way_out_can_be_narrowed() {
    lab::run(|lab| async move {
        let egress = vec![tcp(9000, Remote::Subnet("198.51.100.0/24".parse().unwrap()))];
        let narrow = SecurityGroup { egress, ..group("narrow", vec![any()]) };
        lab.fabric.sync_security_groups(vec![narrow]).await.unwrap();
        let inner = lab.guarded("inner", &["narrow"]).await;
        let open = lab.workload("open", DEFAULT_NETWORK).await;
        for port in [9000, 9001] {
            serve_tcp(Some(&lab.world), port, "world");
            serve_tcp(Some(&open.namespace), port, "open");
            serve_tcp(None, port, "machine");
        }
        serve_udp(None, 53, "names");
        serve_udp(None, 54, "machine");
        serve_tcp(Some(&inner.namespace), 80, "inner");
        let guarded = Some(&*inner.namespace);
        assert!(ask(guarded, WORLD, 9000).starts_with("world "));
        assert_unreachable(guarded, WORLD, 9001);
        assert_unreachable(guarded, open.address, 9000);
        assert_unreachable(guarded, inner.gateway, 9000);
        assert!(ask(guarded, MACHINE, 9000).starts_with("machine "));
        // Names are always answered, by its own gateway.
        assert!(ask_udp(&udp_socket(guarded), inner.gateway, 53, PATIENCE).is_ok());
        assert!(ask_udp(&udp_socket(guarded), inner.gateway, 54, IMPATIENCE).is_err());
        assert!(ask_udp(&udp_socket(Some(&open.namespace)), inner.gateway, 54, PATIENCE).is_ok());
        // Whoever asks it is answered.
        assert!(ask(Some(&open.namespace), inner.address, 80).starts_with("inner "));
    });
}

#[test]
fn rules_outlive_the_daemon_without_a_gap() {
    lab::run(|mut lab| async move {
        lab.fabric.sync_security_groups(vec![group("web", vec![tcp(80, Remote::Anywhere)])]).await.unwrap();
        let (web, open) = pair(&lab).await;
        let (mut stream, _) = dial(Some(&open.namespace), web.address, 80, PATIENCE).unwrap();
        let (stop, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, counted) = (stop.clone(), tries.clone());
        let (from, to) = (open.namespace.clone(), web.address);
        // A stranger that never rests: if there is a moment without rules, it finds it.
        let stranger = std::thread::spawn(move || {
            let mut found = 0;
            while !stopped.load(Ordering::Relaxed) {
                let short = std::time::Duration::from_millis(10);
                found += u32::from(dial(Some(&from), to, 81, short).is_ok());
                counted.fetch_add(1, Ordering::Relaxed);
            }
            found
        });
        for _ in 0..3 {
            lab.restart().await;
            // What a new daemon is told first: the services, which replace the tables, and the groups.
            lab.fabric.sync_services(Vec::new()).await.unwrap();
            assert_unreachable(Some(&open.namespace), web.address, 81);
            lab.fabric.sync_security_groups(vec![group("web", vec![tcp(80, Remote::Anywhere)])]).await.unwrap();
            lab.fabric.reconcile().await.unwrap();
            assert_alive(&mut stream);
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(stranger.join().unwrap(), 0, "the way was open for a moment");
        assert!(tries.load(Ordering::Relaxed) > 10);
        assert!(ask(Some(&open.namespace), web.address, 80).starts_with("web "));
        // Nothing is left in the kernel when nobody has a group any more.
        lab.fabric.release("web").await.unwrap();
        assert!(!lab::shell("nft list table inet nuee").contains("sg-"));
    });
}

/// What is flooded, and what bears another address than the port's, would pass by the rules.
#[test]
fn nothing_is_flooded_to_a_guarded_port() {
    lab::run(|lab| async move {
        lab.fabric.sync_security_groups(vec![group("web", vec![tcp(80, Remote::Anywhere)])]).await.unwrap();
        let evil = lab.workload("evil", DEFAULT_NETWORK).await;
        let (web, open) = (lab.guarded("web", &["web"]).await, lab.workload("open", DEFAULT_NETWORK).await);
        for one in [&web, &open] {
            serve_tcp(Some(&one.namespace), 80, &one.owner);
            // Both ports forward by now.
            ask(Some(&evil.namespace), one.address, 80);
        }
        let (guarded, control) = (packet_socket(&web.namespace), packet_socket(&open.namespace));
        let all = [0xff; 6];
        let packets = [
            ("broadcast", all, Ipv4Addr::BROADCAST),
            ("subnet", all, Ipv4Addr::new(10, 88, 255, 255)),
            ("multicast", [1, 0, 0x5e, 0, 0, 251], Ipv4Addr::new(224, 0, 0, 251)),
            ("other", all, Ipv4Addr::new(10, 88, 0, 77)),
        ];
        for (name, mac, to) in packets {
            send(&evil.namespace, &frame(mac, evil.mac, 0x0800, &datagram_to(evil.address, to, 9, 9, name), name));
        }
        for one in [&web, &open] {
            let other = datagram_to(evil.address, Ipv4Addr::new(10, 88, 0, 77), 9, 9, "direct");
            send(&evil.namespace, &frame(one.mac.0, evil.mac, 0x0800, &other, "direct"));
        }
        // The last one is what a rule names, so it arrives, after all the others.
        lab.fabric.sync_security_groups(vec![group("web", vec![any()])]).await.unwrap();
        for one in [&web, &open] {
            let last = datagram_to(evil.address, one.address, 9, 9, "last");
            send(&evil.namespace, &frame(one.mac.0, evil.mac, 0x0800, &last, "last"));
        }
        assert_eq!(receive(&guarded, "last"), ["last"]);
        let seen = receive(&control, "last");
        for name in ["broadcast", "subnet", "multicast", "other", "direct"] {
            assert!(seen.iter().any(|one| one == name), "{name} was not even sent: {seen:?}");
        }
    });
}
