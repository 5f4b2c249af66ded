//! Admission webhooks over real TLS: who is asked, what an answer does, and what happens when there is none.

use serde_json::{Value, json};

use crate::hook::Hook;
use crate::http::{Answer, ask};
use crate::server::Server;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn rule(resource: &str, operations: &[&str]) -> Value {
    json!({"apiGroups": [""], "apiVersions": ["v1"], "resources": [resource], "operations": operations})
}

fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"a": "b"}})
}

/// Stores a configuration of these webhooks, in place of one of the same name.
async fn configure(server: &Server, kind: &str, name: &str, webhooks: &[Value]) {
    let path = format!("/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations");
    ask(server, "DELETE", &format!("{path}/{name}"), &Value::Null).await;
    let made = ask(server, "POST", &path, &json!({"metadata": {"name": name}, "webhooks": webhooks})).await;
    assert_eq!(made.code, 201, "{}", made.text);
}

async fn create(server: &Server, name: &str) -> Answer {
    ask(server, "POST", CONFIG_MAPS, &config_map(name)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutating_webhook_changes_the_object_warns_and_annotates() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    configure(
        &server,
        "mutating",
        "m",
        &[hook.webhook("label.example.com", "/label", &rule("configmaps", &["CREATE"]))],
    )
    .await;
    let made = create(&server, "a").await;
    assert_eq!((made.code, &made.body["metadata"]["labels"]), (201, &json!({"hooked": "yes"})));
    assert!(made.warnings().iter().any(|text| text.contains("this was labelled")), "{:?}", made.warnings());
    let asked = hook.asked();
    assert_eq!(asked.len(), 1);
    let request = &asked[0];
    assert_eq!(request["operation"], "CREATE");
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(request["requestResource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!(
        (&request["namespace"], &request["name"], &request["dryRun"]),
        (&json!("default"), &json!("a"), &json!(false))
    );
    assert_eq!((&request["object"]["kind"], &request["oldObject"]), (&json!("ConfigMap"), &Value::Null));
    assert_eq!(request["options"]["kind"], "CreateOptions");
    assert_eq!(request["userInfo"]["username"], "admin");
    // The change is the webhook's, and the audit log says what it said.
    let dry = ask(&server, "POST", &format!("{CONFIG_MAPS}?dryRun=All"), &config_map("dry")).await;
    assert_eq!((dry.code, &hook.asked()[0]["dryRun"]), (201, &json!(true)));
    let audit = server.audit_until("label.example.com/seen").await;
    assert_eq!(audit["annotations"]["label.example.com/seen"], "by the hook");
    // Negative control: without the configuration nothing is changed and nobody is asked.
    configure(&server, "mutating", "m", &[]).await;
    assert!(create(&server, "b").await.body["metadata"]["labels"].is_null());
    assert!(hook.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_are_asked_again_when_a_later_one_changed_the_object() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    let mut first = hook.webhook("a.example.com", "/count", &rule("configmaps", &["CREATE"]));
    let second = hook.webhook("b.example.com", "/count", &rule("configmaps", &["CREATE"]));
    configure(&server, "mutating", "m", &[first.clone(), second.clone()]).await;
    assert_eq!(create(&server, "never").await.body["metadata"]["labels"]["count"], "2");
    first["reinvocationPolicy"] = json!("IfNeeded");
    configure(&server, "mutating", "m", &[first, second]).await;
    assert_eq!(create(&server, "again").await.body["metadata"]["labels"]["count"], "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validating_webhook_refuses_every_kind_of_write() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    assert_eq!(create(&server, "a").await.code, 201);
    let all = rule("configmaps", &["CREATE", "UPDATE", "DELETE"]);
    configure(&server, "validating", "v", &[hook.webhook("deny.example.com", "/deny", &all)]).await;
    let path = format!("{CONFIG_MAPS}/a");
    for (method, path, body) in [
        ("POST", CONFIG_MAPS, config_map("b")),
        ("PUT", path.as_str(), json!({"metadata": {"name": "a"}, "data": {"c": "d"}})),
        ("PATCH", path.as_str(), json!({"data": {"c": "d"}})),
        ("DELETE", path.as_str(), Value::Null),
    ] {
        let refused = ask(&server, method, path, &body).await;
        assert_eq!((refused.code, refused.reason()), (403, "Forbidden"), "{method}");
        assert_eq!(refused.message(), "admission webhook \"deny.example.com\" denied the request: not today");
    }
    let operations: Vec<Value> = hook.asked().iter().map(|request| request["operation"].clone()).collect();
    assert_eq!(operations, ["CREATE", "UPDATE", "UPDATE", "DELETE"]);
    let shown = server.run("create configmap c", "").await;
    assert_eq!(
        shown.stderr.trim(),
        "error: failed to create configmap: admission webhook \"deny.example.com\" denied the request: not today"
    );
    assert_eq!(ask(&server, "GET", &path, &Value::Null).await.body["data"], json!({"a": "b"}));
    // The configuration itself is never shown to it, so it can be mended.
    let mend = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/v";
    assert_eq!(ask(&server, "DELETE", mend, &Value::Null).await.code, 200);
    assert_eq!(ask(&server, "DELETE", &path, &Value::Null).await.code, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_gives_no_good_answer_counts_by_its_failure_policy() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    let rule = rule("configmaps", &["CREATE"]);
    let at = |path: &str| hook.webhook("w.example.com", path, &rule);
    let mut foreign = at("/allow");
    foreign["clientConfig"]["caBundle"] = json!(hook.foreign_bundle);
    let mut closed = at("/allow");
    closed["clientConfig"]["url"] = json!("https://127.0.0.1:1/");
    let mut slow = at("/slow");
    slow["timeoutSeconds"] = json!(1);
    let cases = [
        (foreign, "failed to verify certificate"),
        (closed, "connect"),
        (slow, "context deadline exceeded"),
        (at("/garbage"), "failed calling webhook"),
        (at("/other"), "received invalid webhook response: expected response.uid="),
        (at("/redirect"), "302"),
    ];
    for (index, (webhook, problem)) in cases.into_iter().enumerate() {
        for kind in ["validating", "mutating"] {
            configure(&server, kind, "w", std::slice::from_ref(&webhook)).await;
            let failed = create(&server, &format!("fail-{kind}-{index}")).await;
            assert_eq!((failed.code, failed.reason()), (500, "InternalError"), "{problem}: {}", failed.text);
            assert!(failed.message().contains("failed calling webhook \"w.example.com\""), "{}", failed.message());
            assert!(failed.message().contains(problem), "{problem}: {}", failed.message());
            configure(&server, kind, "w", &[]).await;
        }
        let mut ignored = webhook;
        ignored["failurePolicy"] = json!("Ignore");
        configure(&server, "validating", "w", &[ignored]).await;
        assert_eq!(create(&server, &format!("ignore-{index}")).await.code, 201, "{problem}");
    }
    // Negative control: the same webhook with a good answer.
    configure(&server, "validating", "w", &[at("/allow")]).await;
    assert_eq!(create(&server, "good").await.code, 201);
    configure(&server, "mutating", "w", &[at("/misfit")]).await;
    assert_eq!(create(&server, "misfit").await.code, 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn selectors_conditions_and_rules_narrow_whom_a_webhook_hears_of() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    for (name, labels) in [("watched", json!({"watch": "yes"})), ("free", json!({}))] {
        ask(&server, "POST", "/api/v1/namespaces", &json!({"metadata": {"name": name, "labels": labels}})).await;
    }
    let mut webhook = hook.webhook("deny.example.com", "/deny", &rule("configmaps", &["CREATE"]));
    webhook["namespaceSelector"] = json!({"matchExpressions": [{"key": "watch", "operator": "In", "values": ["yes"]}]});
    webhook["objectSelector"] = json!({"matchLabels": {"kind": "x"}});
    webhook["matchConditions"] = json!([{"name": "not-robots", "expression": "!request.userInfo.username.startsWith('system:')"},
        {"name": "named", "expression": "object.metadata.name != 'spared'"}]);
    configure(&server, "validating", "v", &[webhook.clone()]).await;
    let post = async |namespace: &str, name: &str, label: &str| {
        let body = json!({"metadata": {"name": name, "labels": {"kind": label}}});
        ask(&server, "POST", &format!("/api/v1/namespaces/{namespace}/configmaps"), &body).await.code
    };
    assert_eq!(post("watched", "a", "x").await, 403);
    assert_eq!(post("free", "a", "x").await, 201);
    assert_eq!(post("watched", "a", "y").await, 201);
    assert_eq!(post("watched", "spared", "x").await, 201);
    let secret = json!({"metadata": {"name": "s", "labels": {"kind": "x"}}});
    assert_eq!(ask(&server, "POST", "/api/v1/namespaces/watched/secrets", &secret).await.code, 201);
    // A condition that cannot be judged refuses, unless failures do not count.
    webhook["matchConditions"] = json!([{"name": "broken", "expression": "object.spec.none == 1"}]);
    configure(&server, "validating", "v", &[webhook.clone()]).await;
    assert_eq!(post("watched", "b", "x").await, 403);
    webhook["failurePolicy"] = json!("Ignore");
    configure(&server, "validating", "v", &[webhook]).await;
    assert_eq!(post("watched", "b", "x").await, 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_behind_a_service_is_reached_at_a_ready_endpoint() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    let mut webhook = hook.webhook("deny.example.com", "/deny", &rule("configmaps", &["CREATE"]));
    webhook["clientConfig"] = json!({"service": {"namespace": "default", "name": "hook", "path": "/deny", "port": 443}, "caBundle": hook.ca_bundle});
    configure(&server, "validating", "v", &[webhook]).await;
    let failed = create(&server, "a").await;
    assert!(failed.message().contains("service \"hook\" not found"), "{}", failed.message());
    let service = json!({"metadata": {"name": "hook"}, "spec": {"ports": [{"name": "https", "port": 443, "targetPort": hook.address.port()}]}});
    assert_eq!(ask(&server, "POST", "/api/v1/namespaces/default/services", &service).await.code, 201);
    let failed = create(&server, "a").await;
    assert!(failed.message().contains("no endpoints available for service \"hook\""), "{}", failed.message());
    let slice = json!({"metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}}, "addressType": "IPv4",
        "ports": [{"name": "https", "port": hook.address.port()}], "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    assert_eq!(ask(&server, "POST", slices, &slice).await.code, 201);
    assert_eq!(
        create(&server, "a").await.message(),
        "admission webhook \"deny.example.com\" denied the request: not today"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_may_change_no_more_than_the_client_and_sees_connections() {
    let (server, hook) = (Server::start().await, Hook::start().await);
    let pods = "/api/v1/namespaces/default/pods";
    configure(&server, "mutating", "m", &[hook.webhook("s.example.com", "/status", &rule("pods", &["UPDATE"]))]).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "busybox"}]}});
    assert_eq!(ask(&server, "POST", pods, &pod).await.code, 201);
    let patched = ask(&server, "PATCH", &format!("{pods}/p"), &json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!((patched.code, &patched.body["status"]["phase"]), (200, &json!("Pending")), "{}", patched.text);
    assert_eq!(server.kubectl("exec p -- echo hi").await, "echo hi\n");
    configure(
        &server,
        "validating",
        "v",
        &[hook.webhook("deny.example.com", "/deny", &rule("pods/exec", &["CONNECT"]))],
    )
    .await;
    hook.asked();
    let refused = server.run("exec p -- echo hi", "").await;
    assert!(refused.stderr.contains("denied the request: not today"), "{}", refused.stderr);
    let asked = hook.asked();
    assert_eq!((&asked[0]["operation"], &asked[0]["subResource"]), (&json!("CONNECT"), &json!("exec")));
    assert_eq!(asked[0]["object"]["command"], json!(["echo", "hi"]));
    // Who opened a stream, and who was refused, stands in the audit log.
    let audit = server.audit_until("\"subresource\":\"exec\"").await;
    assert_eq!((&audit["verb"], &audit["objectRef"]["name"]), (&json!("create"), &json!("p")));
}
