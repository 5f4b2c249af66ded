//! Floods: one client takes all it can get, and another must still be served. Each has its control: without the bound that holds it
//! back, the flood would win. All traffic is on loopback, and every loop is bounded.

use std::net::Ipv4Addr;
use std::time::Duration;

use apiserver::{StaticToken, UserInfo};
use kubernetes::ServeLimits;

use crate::raw::{CONTINUATION, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, Raw, frame, get, get_head};
use crate::server::Server;

/// Where the flood comes from, and where the other client is.
const FLOOD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// After so long without an answer a client counts as starved; only the controls wait for it.
const STARVED: Duration = Duration::from_secs(2);
/// Time for a head: short, and long enough for a decent client on a loaded machine.
const HEAD_TIME: Duration = Duration::from_secs(3);
/// Connections that the small server takes.
const PLACES: usize = 24;

fn small() -> ServeLimits {
    ServeLimits { connections: PLACES, connections_of_one: PLACES, ..ServeLimits::default() }
}

async fn server(limits: ServeLimits) -> Server {
    let alice = StaticToken::new("alice", UserInfo::new("alice", &[]));
    let options = apiserver::Options { tokens: vec![alice], ..apiserver::Options::default() };
    let options = apiserver::Options {
        fairness: apiserver::FairnessLimits { watches: 600, ..apiserver::FairnessLimits::default() },
        ..options
    };
    Server::start_with(limits, options).await
}

/// Opens every connection that the server takes, and says nothing.
async fn occupy(server: &Server) -> Vec<Raw> {
    let mut held = Vec::new();
    for _ in 0..PLACES {
        held.push(Raw::connect(server, FLOOD, "http/1.1").await.unwrap());
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_end_and_make_room() {
    let quick = server(ServeLimits { header_timeout: HEAD_TIME, ..small() }).await;
    let mut held = occupy(&quick).await;
    assert_eq!(get(&quick, OTHER, "/livez", PATIENCE).await, Ok(200));
    for raw in &mut held {
        assert!(raw.is_ended_within(PATIENCE).await);
    }
    // Control: with all the time in the world they keep everybody else out.
    let patient = server(ServeLimits { header_timeout: Duration::from_secs(3600), ..small() }).await;
    let held = occupy(&patient).await;
    assert!(get(&patient, OTHER, "/livez", STARVED).await.is_err());
    drop(held);
    assert_eq!(get(&patient, OTHER, "/livez", PATIENCE).await, Ok(200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_comes_in_drops_has_no_more_time_than_any_other() {
    let quick = server(ServeLimits { header_timeout: HEAD_TIME, ..small() }).await;
    let mut held = occupy(&quick).await;
    for raw in &mut held {
        // On a slow machine the first ones may have had their time already.
        let _ = raw.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n").await;
    }
    let mut dropping = tokio::task::JoinSet::new();
    for mut raw in held {
        dropping.spawn(async move {
            // A line now and then would keep a connection open for ever if each one gave it more time.
            for _ in 0..600 {
                if raw.send(b"x-a: b\r\n").await.is_err() || raw.is_ended_within(Duration::from_millis(100)).await {
                    return true;
                }
            }
            false
        });
    }
    assert_eq!(get(&quick, OTHER, "/livez", PATIENCE).await, Ok(200));
    while let Some(ended) = dropping.join_next().await {
        assert!(ended.unwrap(), "the connection was kept open");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_never_has_all_connections() {
    let fair = server(ServeLimits { connections_of_one: PLACES / 2, ..small() }).await;
    let mut held = Vec::new();
    for _ in 0..PLACES {
        // Those above the bound are closed before or during the handshake.
        held.extend(Raw::connect(&fair, FLOOD, "http/1.1").await.ok());
    }
    assert!(held.len() <= PLACES / 2, "{}", held.len());
    assert_eq!(get(&fair, OTHER, "/livez", PATIENCE).await, Ok(200));
    let unfair = server(small()).await;
    let held = occupy(&unfair).await;
    assert!(get(&unfair, OTHER, "/livez", STARVED).await.is_err());
    drop(held);
}

/// Whether the server breaks off a connection that opens and resets so many streams.
async fn breaks_off_resets(limits: ServeLimits, resets: u32) -> bool {
    let server = server(limits).await;
    let mut raw = Raw::http2(&server, FLOOD).await.unwrap();
    let head = get_head("/livez", "");
    let mut bytes = Vec::new();
    for number in 0..resets {
        let stream = number * 2 + 1;
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &head));
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        if bytes.len() > 16 * 1024 {
            if raw.send(&bytes).await.is_err() {
                return true;
            }
            bytes.clear();
        }
    }
    // After the flood a decent request, to know whether anybody still listens.
    let stream = resets * 2 + 1;
    bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &head));
    if raw.send(&bytes).await.is_err() {
        return true;
    }
    let answered = async {
        loop {
            match raw.frame().await {
                None | Some((GOAWAY, ..)) => return true,
                Some((HEADERS, _, payload)) if payload.first() == Some(&0x88) => return false,
                Some(_) => {}
            }
        }
    };
    let broken = tokio::time::timeout(PATIENCE, answered).await.expect("neither answered nor broken off");
    assert_eq!(get(&server, OTHER, "/livez", PATIENCE).await, Ok(200));
    broken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_opens_and_resets_streams_is_broken_off() {
    assert!(breaks_off_resets(ServeLimits::default(), 5_000).await);
    // Control: a server without the bound goes on serving the flood.
    assert!(!breaks_off_resets(ServeLimits { reset_streams: 1_000_000, ..ServeLimits::default() }, 5_000).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_without_end_is_broken_off() {
    let server = server(ServeLimits::default()).await;
    let head = get_head("/livez", "");
    let mut decent = Raw::http2(&server, FLOOD).await.unwrap();
    decent.send(&frame(HEADERS, END_STREAM, 1, &head[..2])).await.unwrap();
    decent.send(&frame(CONTINUATION, END_HEADERS, 1, &head[2..])).await.unwrap();
    loop {
        let (kind, _, payload) = decent.frame().await.expect("a head in two frames is fine");
        if kind == HEADERS {
            assert_eq!(payload.first(), Some(&0x88));
            break;
        }
    }
    let mut raw = Raw::http2(&server, FLOOD).await.unwrap();
    raw.send(&frame(HEADERS, END_STREAM, 1, &head)).await.unwrap();
    // A header field of 1 KiB that is never indexed, over and over: 64 MiB, if anybody took them.
    let mut field = vec![0x00, 0x01, b'a', 0x7f, 0x81, 0x07];
    field.extend(vec![b'x'; 1024]);
    let more = frame(CONTINUATION, 0, 1, &field.repeat(15));
    let mut broken = false;
    for _ in 0..4096 {
        if raw.send(&more).await.is_err() {
            broken = true;
            break;
        }
    }
    assert!(broken || raw.is_ended_within(PATIENCE).await);
    assert_eq!(get(&server, OTHER, "/livez", PATIENCE).await, Ok(200));
}

/// Opens watches on one connection, reads the heads of the answers and nothing more; how many were accepted.
async fn open_watches(server: &Server, count: u32) -> (Raw, usize) {
    let mut raw = Raw::http2(server, FLOOD).await.unwrap();
    let head = get_head("/api/v1/namespaces/default/configmaps?watch=1", "alice");
    for number in 0..count {
        raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, number * 2 + 1, &head)).await.unwrap();
    }
    let (mut accepted, mut answered) = (0, 0);
    while answered < count {
        if let (HEADERS, _, payload) = raw.frame().await.expect("the connection stays") {
            answered += 1;
            accepted += usize::from(payload.first() == Some(&0x88));
        }
    }
    (raw, accepted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_nobody_reads_are_bounded_and_hold_no_memory() {
    let server = server(ServeLimits::default()).await;
    server.kubectl("create rolebinding alice --clusterrole=view --user=alice").await;
    let (mut held, mut accepted) = (Vec::new(), 0);
    for _ in 0..4 {
        let (raw, more) = open_watches(&server, 200).await;
        held.push(raw);
        accepted += more;
    }
    assert_eq!(accepted, 600, "one user has no more watches than that");
    let before = resident_kib();
    let root = apiserver::RequestContext::internal("admin");
    let path = apiserver::ResourcePath::collection("", "v1", "configmaps", Some("default"));
    for index in 0..200 {
        let body = serde_json::json!({"metadata": {"name": format!("a{index}")}, "data": {"a": "x".repeat(32 * 1024)}});
        server.api.create(&root, &path, body, &apiserver::WriteOptions::default()).await.unwrap();
    }
    // 200 objects of 32 KiB are 6 MiB, three times over in cache, events and store; queued for 600 watches they would be 4 GiB.
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 512 * 1024, "{grown} KiB");
    assert_eq!(get(&server, OTHER, "/livez", PATIENCE).await, Ok(200));
    drop(held);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
