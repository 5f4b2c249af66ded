//! Two tenants. One has every right in its own namespace and none in the other's; every verb on every kind there must be refused,
//! show no byte of what is there, and not even tell whether it is there.

use std::time::Duration;

use apiserver::{Kind, RequestContext, ResourcePath, StaticToken, UserInfo, WriteOptions};
use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use store::{KeyRange, Operation, RangeRequest, Transaction};
use tower::ServiceExt;

use crate::server::Server;

/// What is in every object of the other tenant, and nowhere else.
const CANARY: &str = "canary-of-tenant-b";
/// How long a stream is read for a canary.
const STREAM_PATIENCE: Duration = Duration::from_millis(500);
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

/// A request of the matrix.
#[derive(Clone, Debug)]
struct Attempt {
    method: &'static str,
    path: String,
    accept: &'static str,
    content: &'static str,
    body: String,
}

impl Attempt {
    fn new(method: &'static str, path: String) -> Attempt {
        Attempt { method, path, accept: "application/json", content: "application/json", body: String::new() }
    }

    fn with(method: &'static str, path: String, content: &'static str, body: &Value) -> Attempt {
        Attempt { content, body: body.to_string(), ..Attempt::new(method, path) }
    }
}

/// A server with the namespaces `a` and `b`, an object of every kind in `b`, and alice, who has every right in `a`.
async fn world() -> Server {
    let alice = StaticToken::new("alice", UserInfo::new("alice", &[]));
    let options = apiserver::Options { tokens: vec![alice], ..apiserver::Options::default() };
    let server = Server::start_with(kubernetes::ServeLimits::default(), options).await;
    let root = RequestContext::internal("admin");
    for name in ["a", "b"] {
        let path = ResourcePath::collection("", "v1", "namespaces", None);
        let body = json!({"metadata": {"name": name}});
        server.api.create(&root, &path, body, &WriteOptions::default()).await.unwrap();
    }
    bind(&server, "rolebindings", Some("a"), "admin").await;
    // Straight into the store, so that no kind needs a valid spec here.
    for kind in server.api.kinds().iter().filter(|kind| kind.stored && kind.namespaced) {
        let group = if kind.group.is_empty() { "core" } else { &kind.group };
        let key = format!("/registry/{group}/{}/b/victim", kind.plural);
        let object = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "victim", "namespace": "b",
            "uid": "5f2d9c1e-0000-4000-8000-000000000001", "labels": {"canary": CANARY}, "annotations": {"canary": CANARY}},
            "spec": {"canary": CANARY}, "data": {"canary": CANARY}, "status": {"canary": CANARY}});
        let put = Operation::Put(key.into(), object.to_string().into(), 0);
        let written = server.store.transact(Transaction { then: vec![put], ..Transaction::default() }).await.unwrap();
        while server.api.revision() < written.revision {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    server
}

async fn bind(server: &Server, bindings: &str, namespace: Option<&str>, role: &str) {
    let path = ResourcePath::collection("rbac.authorization.k8s.io", "v1", bindings, namespace);
    let body = json!({"metadata": {"name": format!("alice-{role}")}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "alice"}]});
    server.api.create(&RequestContext::internal("admin"), &path, body, &WriteOptions::default()).await.unwrap();
}

/// Status and the beginning of the body, sent as alice.
async fn send(server: &Server, attempt: &Attempt, more: &[(&str, &str)]) -> (u16, String) {
    let mut request = Request::builder().method(attempt.method).uri(&attempt.path);
    request = request.header("authorization", "Bearer alice").header("accept", attempt.accept);
    request = request.header("content-type", attempt.content);
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(attempt.body.clone())).unwrap();
    let response = server.router.clone().oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let mut body = response.into_body();
    let mut text = Vec::new();
    // A stream that should not be there may never end.
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(STREAM_PATIENCE, body.frame()).await {
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if text.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()) {
            break;
        }
    }
    (code, String::from_utf8_lossy(&text).into_owned())
}

fn root_of(kind: &Kind) -> String {
    let group = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    format!("{group}/{}", kind.version)
}

fn object(kind: &Kind, namespace: &str, name: &str) -> Value {
    json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": name, "namespace": namespace}})
}

/// What is tried on one object: its name decides whether it is there.
fn on_object(kind: &Kind, namespace: &str, name: &str) -> Vec<Attempt> {
    let path = format!("{}/namespaces/{namespace}/{}/{name}", root_of(kind), kind.plural);
    let body = object(kind, "b", name);
    let further = kind.subresources.iter().map(|one| format!("/{}", one.name));
    let places = ["", "/status", "/scale"].map(str::to_owned).into_iter().chain(further);
    let mut attempts = Vec::new();
    for place in places {
        let path = format!("{path}{place}");
        attempts.push(Attempt::new("GET", path.clone()));
        attempts.push(Attempt::new("HEAD", path.clone()));
        attempts.push(Attempt { accept: TABLE, ..Attempt::new("GET", path.clone()) });
        attempts.push(Attempt::with("POST", path.clone(), "application/json", &body));
        attempts.push(Attempt::with("PUT", path.clone(), "application/json", &body));
        attempts.push(Attempt::with(
            "PATCH",
            path.clone(),
            "application/merge-patch+json",
            &json!({"metadata": {"labels": {"x": "y"}}}),
        ));
        attempts.push(Attempt::with("PATCH", path.clone(), "application/strategic-merge-patch+json", &json!({})));
        let test = json!([{"op": "test", "path": "/metadata/labels/canary", "value": CANARY}]);
        attempts.push(Attempt::with("PATCH", path.clone(), "application/json-patch+json", &test));
        let apply = format!("{path}?fieldManager=m&force=true");
        attempts.push(Attempt::with("PATCH", apply, "application/apply-patch+yaml", &body));
        attempts.push(Attempt::new("DELETE", path));
    }
    attempts
}

/// What is tried on the collection.
fn on_collection(kind: &Kind, namespace: &str) -> Vec<Attempt> {
    let (root, plural) = (root_of(kind), &kind.plural);
    let there = format!("{root}/namespaces/{namespace}/{plural}");
    let mut attempts = Vec::new();
    for place in [there.clone(), format!("{root}/{plural}")] {
        let queries = [
            "",
            "?limit=1",
            "?labelSelector=canary",
            "?fieldSelector=metadata.name%3Dvictim",
            "?fieldSelector=metadata.namespace%3Db",
            "?resourceVersion=0",
            "?watch=1&timeoutSeconds=1",
            "?watch=1&timeoutSeconds=1&resourceVersion=1",
            "?watch=1&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
            "?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dvictim",
        ];
        for query in queries {
            attempts.push(Attempt::new("GET", format!("{place}{query}")));
        }
        attempts.push(Attempt { accept: TABLE, ..Attempt::new("GET", place.clone()) });
        attempts.push(Attempt { accept: METADATA, ..Attempt::new("GET", place.clone()) });
        attempts.push(Attempt::new("DELETE", format!("{place}?labelSelector=canary")));
    }
    attempts.push(Attempt::with("POST", there.clone(), "application/json", &object(kind, "b", "made-by-a")));
    attempts.push(Attempt::with(
        "POST",
        format!("{there}?dryRun=All"),
        "application/json",
        &object(kind, "b", "made-by-a"),
    ));
    for old in [
        format!("{root}/watch/namespaces/b/{plural}"),
        format!("{root}/watch/{plural}"),
        format!("{root}/watch/namespaces/b/{plural}/victim"),
    ] {
        attempts.push(Attempt::new("GET", format!("{old}?timeoutSeconds=1")));
    }
    attempts
}

/// Everything of the other tenant that is in the store, to see that nothing was touched.
async fn state_of_b(server: &Server) -> Vec<(String, u64)> {
    let range = KeyRange::Prefix("/registry/".into());
    let all = server.store.range(RangeRequest { range, revision: None, limit: 0, keys_only: true }).await.unwrap();
    let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
    all.items.iter().map(|item| (text(&item.key), item.mod_revision)).filter(|(key, _)| key.contains("/b/")).collect()
}

/// What went wrong: a request that was let in, or that showed the canary.
async fn leaks(server: &Server, attempts: &[Attempt]) -> Vec<String> {
    let mut found = Vec::new();
    for attempt in attempts {
        let (code, text) = send(server, attempt, &[]).await;
        if !matches!(code, 403..=405) || text.contains(CANARY) {
            found.push(format!(
                "{} {}: {code} {}",
                attempt.method,
                attempt.path,
                text.chars().take(200).collect::<String>()
            ));
        }
    }
    found
}

fn kinds(server: &Server) -> Vec<Kind> {
    server.api.kinds().iter().filter(|kind| kind.namespaced).map(|kind| (**kind).clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_verb_on_any_kind_reaches_another_tenant() {
    let server = world().await;
    let before = state_of_b(&server).await;
    assert!(before.len() > 15, "{before:?}");
    for kind in kinds(&server) {
        let mut attempts = on_object(&kind, "b", "victim");
        // The same name, spelled so that a careless comparison takes it for another.
        attempts.extend(on_object(&kind, "%62", "victim").into_iter().take(4));
        attempts.extend(on_collection(&kind, "b"));
        let found = leaks(&server, &attempts).await;
        assert!(found.is_empty(), "{found:#?}");
        // Whether something is there is a secret too.
        for (there, missing) in on_object(&kind, "b", "victim").iter().zip(on_object(&kind, "b", "absent")) {
            let (there_code, there_text) = send(&server, there, &[]).await;
            let (missing_code, missing_text) = send(&server, &missing, &[]).await;
            assert_eq!((there_code, there_text.replace("victim", "absent")), (missing_code, missing_text), "{there:?}");
        }
    }
    assert_eq!(state_of_b(&server).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_whole_cluster_is_open_to_a_tenant() {
    let server = world().await;
    for kind in server.api.kinds().iter().filter(|kind| !kind.namespaced && kind.stored) {
        let (root, plural) = (root_of(kind), &kind.plural);
        let body = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "b"}});
        let mut attempts = Vec::new();
        for query in ["", "?watch=1&timeoutSeconds=1", "?fieldSelector=metadata.name%3Db"] {
            attempts.push(Attempt::new("GET", format!("{root}/{plural}{query}")));
        }
        attempts.push(Attempt::with("POST", format!("{root}/{plural}"), "application/json", &body));
        attempts.push(Attempt::new("DELETE", format!("{root}/{plural}")));
        for place in ["", "/status", "/finalize"] {
            let path = format!("{root}/{plural}/b{place}");
            attempts.push(Attempt::new("GET", path.clone()));
            attempts.push(Attempt::with("PUT", path.clone(), "application/json", &body));
            attempts.push(Attempt::with("PATCH", path.clone(), "application/merge-patch+json", &json!({})));
            attempts.push(Attempt::new("DELETE", path));
        }
        let found = leaks(&server, &attempts).await;
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_and_headers_that_name_another_tenant_reach_nothing() {
    let server = world().await;
    let before = state_of_b(&server).await;
    let core = "/api/v1/namespaces/a";
    let post = |path: &str, body: Value| Attempt::with("POST", path.to_owned(), "application/json", &body);
    let other = json!({"name": "x", "namespace": "b"});
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings";
    let attempts = [
        post(&format!("{core}/configmaps"), json!({"metadata": other})),
        post(&format!("{core}/secrets"), json!({"metadata": other})),
        post(
            rbac,
            json!({"metadata": other, "roleRef": {"kind": "ClusterRole", "name": "admin", "apiGroup": "rbac.authorization.k8s.io"}}),
        ),
        Attempt::with(
            "PATCH",
            format!("{core}/configmaps/x?fieldManager=m"),
            "application/apply-patch+yaml",
            &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": other}),
        ),
        post(
            &format!("{core}/pods/victim/eviction"),
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "victim", "namespace": "b"}}),
        ),
        post(
            &format!("{core}/pods/victim/binding"),
            json!({"metadata": {"name": "victim", "namespace": "b"}, "target": {"kind": "Node", "name": "n"}}),
        ),
        post(&format!("{core}/serviceaccounts/victim/token"), json!({"metadata": {"namespace": "b"}, "spec": {}})),
        post(
            &format!("{core}/serviceaccounts/default/token"),
            json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "victim"}}}),
        ),
        post(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            json!({"spec": {"user": "bob", "resourceAttributes": {"namespace": "b", "verb": "get", "resource": "secrets"}}}),
        ),
        post(
            "/apis/authorization.k8s.io/v1/namespaces/a/localsubjectaccessreviews",
            json!({"metadata": {"namespace": "a"}, "spec": {"user": "bob", "resourceAttributes": {"namespace": "b", "verb": "get", "resource": "secrets"}}}),
        ),
        post("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {"token": "alice"}})),
    ];
    for attempt in &attempts {
        let (code, text) = send(&server, attempt, &[]).await;
        assert!((400..500).contains(&code) && !text.contains(CANARY), "{attempt:?}: {code} {text}");
    }
    let read = Attempt::new("GET", "/api/v1/namespaces/b/secrets/victim".into());
    for headers in [
        &[("impersonate-user", "admin")][..],
        &[("impersonate-user", "alice"), ("impersonate-group", "system:masters")],
        &[("impersonate-group", "system:masters")],
        &[("impersonate-user", "system:serviceaccount:b:default")],
        &[("x-remote-user", "admin"), ("x-remote-group", "system:masters")],
        &[("x-forwarded-user", "admin"), ("x-forwarded-client-cert", "Subject=\"O=system:masters,CN=admin\"")],
    ] {
        let (code, text) = send(&server, &read, headers).await;
        assert!(matches!(code, 400 | 403) && !text.contains(CANARY), "{headers:?}: {code} {text}");
    }
    assert_eq!(state_of_b(&server).await, before);
}

/// The control: with rights in both namespaces the same requests are reported, and show the canary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_matrix_notices_a_tenant_who_reaches_another() {
    let server = world().await;
    bind(&server, "clusterrolebindings", None, "cluster-admin").await;
    for plural in ["configmaps", "secrets", "deployments"] {
        let kind = kinds(&server).into_iter().find(|kind| kind.plural == plural).unwrap();
        let mut reads = on_collection(&kind, "b");
        reads.retain(|attempt| attempt.method == "GET");
        reads.truncate(12);
        let found = leaks(&server, &reads).await;
        assert!(found.len() >= 8, "{plural}: {found:#?}");
        assert!(found.iter().any(|leak| leak.contains(CANARY)), "{found:#?}");
        let (code, text) = send(&server, &on_object(&kind, "b", "victim")[0], &[]).await;
        assert!(code == 200 && text.contains(CANARY), "{code} {text}");
    }
}

/// What alice, who may edit namespace `c`, is answered there.
async fn posts(server: &Server, plural: &str, object: Value) -> (u16, String) {
    let group = if plural == "services" { "api/v1" } else { "apis/nuee.dev/v1" };
    let path = format!("/{group}/namespaces/c/{plural}");
    send(server, &Attempt::with("POST", path, "application/json", &object), &[]).await
}

fn own(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "nuee.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_edit_makes_machines_and_networks_and_touches_nothing_of_the_operators() {
    let server = world().await;
    let root = RequestContext::internal("admin");
    let labels = json!({"pod-security.kubernetes.io/enforce": "baseline"});
    let namespace = json!({"metadata": {"name": "c", "labels": labels}});
    let path = ResourcePath::collection("", "v1", "namespaces", None);
    server.api.create(&root, &path, namespace, &WriteOptions::default()).await.unwrap();
    bind(&server, "rolebindings", Some("c"), "edit").await;
    let quota = json!({"metadata": {"name": "few"}, "spec": {"hard": {"count/floatingips.nuee.dev": "1"}}});
    let path = ResourcePath::collection("", "v1", "resourcequotas", Some("c"));
    server.api.create(&root, &path, quota, &WriteOptions::default()).await.unwrap();

    for (plural, object) in [
        ("virtualmachines", own("VirtualMachine", "web", &json!({"image": "tiny"}))),
        ("diskimages", own("DiskImage", "tiny", &json!({"source": {"virtualMachine": "web"}}))),
        ("keypairs", own("KeyPair", "me", &json!({"publicKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJv me"}))),
        ("networks", own("Network", "front", &json!({"name": "front"}))),
        ("routers", own("Router", "between", &json!({"networks": ["front"]}))),
        ("subnets", own("Subnet", "front", &json!({"network": "front", "cidr": "10.90.0.0/24"}))),
        ("ports", own("Port", "front", &json!({"network": "front"}))),
        ("securitygroups", own("SecurityGroup", "ssh", &json!({"rules": []}))),
        ("floatingips", own("FloatingIP", "one", &json!({"virtualMachine": "web"}))),
    ] {
        let (code, text) = posts(&server, plural, object).await;
        assert_eq!(code, 201, "{plural}: {text}");
    }
    let (code, text) = posts(&server, "floatingips", own("FloatingIP", "two", &json!({}))).await;
    assert!(code == 403 && text.contains("exceeded quota: few"), "{code} {text}");

    // A network has its addresses from one place.
    for (network, flaw) in [("front", "has subnet front already"), ("inline", "says its subnet itself")] {
        if network == "inline" {
            let inline = own("Network", network, &json!({"name": network, "subnet": "10.91.0.0/24"}));
            assert_eq!(posts(&server, "networks", inline).await.0, 201);
        }
        let second = own("Subnet", "second", &json!({"network": network, "cidr": "10.92.0.0/24"}));
        let (code, text) = posts(&server, "subnets", second).await;
        assert!(code == 422 && text.contains(flaw), "{code} {text}");
    }

    // What belongs to the operator, or says what only the pool knows.
    for (method, path) in [
        ("POST", "/apis/nuee.dev/v1/flavors"),
        ("POST", "/apis/nuee.dev/v1/networkroutes"),
        ("GET", "/apis/nuee.dev/v1/networkroutes"),
        ("POST", "/apis/nuee.dev/v1/namespaces/c/migrations"),
        ("POST", "/apis/nuee.dev/v1/namespaces/c/swarmservices"),
        ("PATCH", "/apis/nuee.dev/v1/namespaces/c/virtualmachines/web/status"),
        ("PATCH", "/apis/nuee.dev/v1/namespaces/c/floatingips/one/status"),
        ("PATCH", "/apis/nuee.dev/v1/namespaces/c/ports/front/status"),
        ("PATCH", "/apis/nuee.dev/v1/namespaces/c/subnets/front/status"),
        ("PATCH", "/apis/nuee.dev/v1/namespaces/c/networks/front/status"),
        ("PATCH", "/apis/nuee.dev/v1/namespaces/c/diskimages/tiny/status"),
        ("POST", "/api/v1/namespaces/c/resourcequotas"),
        ("DELETE", "/api/v1/namespaces/c/resourcequotas/few"),
        ("GET", "/api/v1/nodes"),
    ] {
        let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = json!({"metadata": {"name": "x"}, "status": {}});
        let (code, text) = send(&server, &Attempt::with(method, path.into(), content, &body), &[]).await;
        assert_eq!(code, 403, "{method} {path}: {text}");
    }
    // The namespace keeps workloads from the machine, whatever kind they are of.
    let id = "a".repeat(64);
    for (plural, object) in [
        ("containers", own("Container", &id, &json!({"name": "p", "security": {"privileged": true}}))),
        (
            "containers",
            own("Container", &id, &json!({"name": "p", "mounts": [{"kind": "bind", "source": "/", "target": "/h"}]})),
        ),
        ("volumes", own("Volume", "v", &json!({"name": "v", "options": {"type": "none", "o": "bind", "device": "/"}}))),
        (
            "volumes",
            own("Volume", "v", &json!({"name": "v", "options": {"type": "tmpfs", "o": "bind", "device": "/"}})),
        ),
        (
            "containers",
            own("Container", &id, &json!({"name": "p", "mounts": [{"kind": "Bind", "source": "/", "target": "/h"}]})),
        ),
        (
            "networks",
            own(
                "Network",
                "lan",
                &json!({"name": "lan", "mode": "bridged", "uplink": "lan0", "subnet": "192.0.2.0/24"}),
            ),
        ),
        (
            "networks",
            own("Network", "br", &json!({"name": "br", "options": {"com.docker.network.bridge.name": "br0"}})),
        ),
        ("virtualmachines", own("VirtualMachine", "near", &json!({"image": "tiny", "vsock": true}))),
    ] {
        let (code, text) = posts(&server, plural, object).await;
        assert!(code == 403 && text.contains("violates PodSecurity"), "{plural}: {code} {text}");
    }
    let (code, text) = posts(&server, "containers", own("Container", &id, &json!({"name": "p", "image": "i"}))).await;
    assert_eq!(code, 201, "{text}");
    // Ports of the machines are of the range for them.
    let service = |port: u16| json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}});
    let (code, text) = posts(&server, "services", service(2222)).await;
    let expected = "spec.ports[0].nodePort: Invalid value: 2222: provided port is not in the valid range. \
                    The range of valid ports is 30000-32767";
    assert!(code == 422 && text.contains(expected), "{code} {text}");
    let (code, text) = posts(&server, "services", service(30022)).await;
    assert_eq!(code, 201, "{text}");
}
