//! The server, question by question, and against hostile packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use proptest::prelude::*;

use super::*;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 9);

fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol, port }
}

fn records() -> Records {
    let key = |name: &str| ("shop".to_owned(), name.to_owned());
    let endpoint = |hostname: &str, last| HeadlessEndpoint {
        hostname: hostname.into(),
        address: Ipv4Addr::new(10, 88, 0, last),
        ports: vec![port("sql", Protocol::Tcp, 5432)],
    };
    let web =
        ServiceRecord::Cluster { address: Ipv4Addr::new(10, 96, 0, 7), ports: vec![port("http", Protocol::Tcp, 80)] };
    let network = |name: &str, internal, third, host: &str| NetworkNames {
        subnet: Some(Subnet::new_const(Ipv4Addr::new(10, 89, third, 0), 24)),
        elsewhere: BTreeSet::from([Ipv4Addr::new(10, 89, 9, third), Ipv4Addr::new(10, 89, 3 - third, 7)]),
        internal,
        name: name.into(),
        names: BTreeMap::from([(
            host.to_owned(),
            vec![Ipv4Addr::new(10, 89, third, 5).into(), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, third.into(), 5).into()],
        )]),
        reverse: BTreeMap::from([
            (Ipv4Addr::new(10, 89, third, 5).into(), host.to_owned()),
            (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, third.into(), 5).into(), host.to_owned()),
        ]),
        virtual_names: BTreeMap::from([(format!("{host}-service"), Ipv4Addr::new(10, 96, 1, third))]),
    };
    Records {
        services: BTreeMap::from([
            (key("web"), web),
            (key("db"), ServiceRecord::Headless { endpoints: vec![endpoint("db-0", 2), endpoint("", 3)] }),
            (key("idle"), ServiceRecord::Headless { endpoints: Vec::new() }),
            (key("ext"), ServiceRecord::External { name: "web.shop.svc.cluster.local".into() }),
            (key("far"), ServiceRecord::External { name: "example.org".into() }),
        ]),
        pods: BTreeMap::from([("shop".to_owned(), vec![Ipv4Addr::new(10, 88, 0, 2)])]),
        networks: vec![network("red", false, 1, "db"), network("vault", true, 2, "safe")],
    }
}

fn server() -> Arc<Server> {
    // An upstream that nobody listens on: what is forwarded fails at once.
    let upstreams = vec!["127.0.0.1:1".parse().unwrap()];
    let server = Server::new(Options { upstreams, ..Options::default() });
    server.set_records(records());
    server
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 0;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// Asks, and prints the answer: `code [records]`, sorted.
fn ask_from(client: Ipv4Addr, name: &str, kind: RecordType) -> String {
    block_on(async {
        let bytes = question(name, kind).to_vec().unwrap();
        let answer = server().handle(&bytes, IpAddr::V4(client), true).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        let mut found: Vec<String> = answer.answers.iter().map(|r| format!("{} {}", r.record_type(), r.data)).collect();
        found.sort();
        let code = answer.metadata.response_code;
        let code = if code == ResponseCode::NoError { "ok".to_owned() } else { format!("{code:?}") };
        [vec![code], found].concat().join(" | ")
    })
}

fn check(name: &str, kind: RecordType, expected: &str) {
    assert_eq!(ask_from(CLIENT, name, kind), expected, "{name} {kind}");
}

#[test]
fn services_follow_the_kubernetes_specification() {
    use RecordType::{A, AAAA, CNAME, PTR, SRV, TXT};
    check("web.shop.svc.cluster.local.", A, "ok | A 10.96.0.7");
    check("WEB.Shop.svc.CLUSTER.local.", A, "ok | A 10.96.0.7");
    check("web.shop.svc.cluster.local.", AAAA, "ok");
    check("_http._tcp.web.shop.svc.cluster.local.", SRV, "ok | SRV 0 100 80 web.shop.svc.cluster.local.");
    check("_http._udp.web.shop.svc.cluster.local.", SRV, "NXDomain");
    check("_tcp.web.shop.svc.cluster.local.", SRV, "ok");
    check("db.shop.svc.cluster.local.", A, "ok | A 10.88.0.2 | A 10.88.0.3");
    check("db-0.db.shop.svc.cluster.local.", A, "ok | A 10.88.0.2");
    check("10-88-0-3.db.shop.svc.cluster.local.", A, "ok | A 10.88.0.3");
    check("db-1.db.shop.svc.cluster.local.", A, "NXDomain");
    check(
        "_sql._tcp.db.shop.svc.cluster.local.",
        SRV,
        "ok | SRV 0 100 5432 10-88-0-3.db.shop.svc.cluster.local. | SRV 0 100 5432 db-0.db.shop.svc.cluster.local.",
    );
    check("idle.shop.svc.cluster.local.", A, "NXDomain");
    check("ext.shop.svc.cluster.local.", A, "ok | A 10.96.0.7 | CNAME web.shop.svc.cluster.local.");
    check("far.shop.svc.cluster.local.", CNAME, "ok | CNAME example.org.");
    check("10-88-0-2.shop.pod.cluster.local.", A, "ok | A 10.88.0.2");
    check("10-88-0-9.shop.pod.cluster.local.", A, "NXDomain");
    check("dns-version.cluster.local.", TXT, "ok | TXT 1.1.0");
    check("7.0.96.10.in-addr.arpa.", PTR, "ok | PTR web.shop.svc.cluster.local.");
    check("2.0.88.10.in-addr.arpa.", PTR, "ok | PTR db-0.db.shop.svc.cluster.local.");
}

#[test]
fn what_is_on_the_way_to_a_name_has_no_data_and_what_is_not_does_not_exist() {
    check("cluster.local.", RecordType::A, "ok");
    check("svc.cluster.local.", RecordType::A, "ok");
    check("shop.svc.cluster.local.", RecordType::A, "ok");
    check("other.svc.cluster.local.", RecordType::A, "NXDomain");
    check("nothing.shop.svc.cluster.local.", RecordType::A, "NXDomain");
    // Search domains: each wrong guess is answered here, and at once.
    check("example.org.shop.svc.cluster.local.", RecordType::A, "NXDomain");
    check("example.org.cluster.local.", RecordType::A, "NXDomain");
    check("web.shop.svc.cluster.local.shop.svc.cluster.local.", RecordType::A, "NXDomain");
}

#[test]
fn names_of_a_network_are_told_to_who_is_on_it_only() {
    let red = Ipv4Addr::new(10, 89, 1, 9);
    let vault = Ipv4Addr::new(10, 89, 2, 9);
    assert_eq!(ask_from(red, "db.", RecordType::A), "ok | A 10.89.1.5");
    assert_eq!(ask_from(red, "DB.red.", RecordType::A), "ok | A 10.89.1.5");
    assert_eq!(ask_from(red, "db.", RecordType::AAAA), "ok | AAAA fd00::1:5");
    assert_eq!(ask_from(red, "db.", RecordType::MX), "ok");
    let reversed = "5.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.";
    assert_eq!(ask_from(red, reversed, RecordType::PTR), "ok | PTR db.red.");
    assert_eq!(ask_from(vault, reversed, RecordType::PTR), "ServFail");
    assert_eq!(ask_from(red, "5.1.89.10.in-addr.arpa.", RecordType::PTR), "ok | PTR db.red.");
    assert_eq!(ask_from(red, "safe.", RecordType::A), "ServFail");
    assert_eq!(ask_from(vault, "safe.", RecordType::A), "ok | A 10.89.2.5");
    assert_eq!(ask_from(vault, "5.1.89.10.in-addr.arpa.", RecordType::PTR), "ServFail");
    assert_eq!(ask_from(vault, "example.org.", RecordType::A), "ServFail");
    assert_eq!(ask_from(CLIENT, "db.", RecordType::A), "ServFail");
    // Who is on the network too, but asks by its address on another.
    assert_eq!(ask_from(Ipv4Addr::new(10, 89, 9, 2), "safe.", RecordType::A), "ok | A 10.89.2.5");
    assert_eq!(ask_from(Ipv4Addr::new(10, 89, 9, 1), "safe.", RecordType::A), "ServFail");
}

#[test]
fn strangers_answers_and_rubbish_get_no_answer_or_an_error() {
    block_on(async {
        let server = server();
        let good = question("web.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
        let client = IpAddr::V4(CLIENT);
        assert!(server.handle(&good, IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), true).await.is_none());
        let mut response = good.clone();
        response[2] |= 0x80;
        assert!(server.handle(&response, client, true).await.is_none());
        assert!(server.handle(&good[..11], client, true).await.is_none());
        let code = |message: Message| {
            let server = Arc::clone(&server);
            async move {
                let bytes = server.handle(&message.to_vec().unwrap(), client, true).await.unwrap();
                Message::from_vec(&bytes).unwrap().metadata.response_code
            }
        };
        let mut update = question("a.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(code(update).await, ResponseCode::NotImp);
        let mut two = question("a.", RecordType::A);
        two.add_query(Query::query(Name::from_ascii("b.").unwrap(), RecordType::A));
        assert_eq!(code(two).await, ResponseCode::FormErr);
        let mut chaos = question("version.bind.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(chaos).await, ResponseCode::Refused);
        assert_eq!(code(question("cluster.local.", RecordType::AXFR)).await, ResponseCode::Refused);
        let cut = server.handle(&good[..good.len() - 3], client, true).await.unwrap();
        assert_eq!(Message::from_vec(&cut).unwrap().metadata.response_code, ResponseCode::FormErr);
    });
}

#[test]
fn large_answers_are_cut_over_udp_and_whole_over_tcp() {
    let endpoints = (0..200u8).map(|i| HeadlessEndpoint {
        hostname: String::new(),
        address: Ipv4Addr::new(10, 88, 1, i),
        ports: Vec::new(),
    });
    let mut all = records();
    all.services.insert(("shop".into(), "many".into()), ServiceRecord::Headless { endpoints: endpoints.collect() });
    block_on(async {
        let server = server();
        server.set_records(all);
        let client = IpAddr::V4(CLIENT);
        let mut message = question("many.shop.svc.cluster.local.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_max_payload(u16::MAX);
        message.set_edns(edns);
        let bytes = message.to_vec().unwrap();
        let datagram = server.handle(&bytes, client, true).await.unwrap();
        assert!(datagram.len() <= 1232);
        assert!(Message::from_vec(&datagram).unwrap().metadata.truncation);
        let stream = server.handle(&bytes, client, false).await.unwrap();
        assert_eq!(Message::from_vec(&stream).unwrap().answers.len(), 200);
    });
}

/// An address of this process's tests alone.
const SHARED_ADDRESS: &str = "127.83.0.53:8353";

#[test]
fn an_address_is_the_newest_networks_and_is_free_once_it_stops() {
    block_on(async {
        // An upstream that says nothing: what is forwarded takes its time.
        let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstreams = vec![silent.local_addr().unwrap()];
        let server = Server::new(Options { upstreams, ..Options::default() });
        let address: SocketAddr = SHARED_ADDRESS.parse().unwrap();
        server.listen(address, "old").await.unwrap();
        server.listen(address, "new").await.unwrap();
        server.stop(address, "old").await;
        assert_eq!(server.addresses(), [address], "it is another network's by now");
        for _ in 0..50 {
            let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.send_to(&question("far.example.org", RecordType::A).to_vec().unwrap(), address).await.unwrap();
            silent.recv_from(&mut [0; 1500]).await.unwrap();
            server.stop(address, "new").await;
            assert!(server.addresses().is_empty());
            let both = tokio::join!(server.listen(address, "new"), server.listen(address, "new"));
            both.0.and(both.1).unwrap();
        }
    });
}

#[test]
fn a_client_that_chose_has_nobody_else_asked() {
    block_on(async {
        let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstreams = vec![silent.local_addr().unwrap()];
        let server = Server::new(Options { upstreams, ..Options::default() });
        let servers = vec!["::ffff:192.0.2.1".parse().unwrap()];
        let chosen = Chosen { servers, namespace: "/nonexistent/namespace".into() };
        server.set_chosen(HashMap::from([(CLIENT, chosen)]));
        let bytes = question("far.example.org.", RecordType::A).to_vec().unwrap();
        let answer = server.handle(&bytes, IpAddr::V4(CLIENT), true).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::ServFail);
        assert!(silent.try_recv(&mut [0; 512]).is_err(), "nor is the machine's resolver");
    });
}

#[test]
fn resolv_conf_is_read_as_glibc_reads_it() {
    let found =
        super::forward::parse_resolv_conf("# x\nnameserver 192.0.2.1\nsearch a b\nnameserver ::1\nnameserver bad\n");
    assert_eq!(found, ["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
}

proptest! {
    #[test]
    fn any_packet_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600), is_datagram: bool) {
        let answer = block_on(async { server().handle(&bytes, IpAddr::V4(CLIENT), is_datagram).await });
        if let Some(answer) = answer {
            prop_assert_eq!(&answer[..2], &bytes[..2]);
            prop_assert!(answer[2] & 0x80 != 0);
        }
    }

    #[test]
    fn a_damaged_question_is_survived(at in 0usize..60, value: u8) {
        let mut bytes = question("web.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = block_on(async { server().handle(&bytes, IpAddr::V4(CLIENT), true).await });
    }
}
