//! Authentication, authorization and escalation through the server.

use apiserver::{Attributes, DeleteOptions, Reason, RequestContext, UserInfo, WriteOptions};
use serde_json::json;

use crate::world::{path, pod, user, world};

fn asks(verb: &str, resource: &str, namespace: &str) -> Attributes {
    Attributes { verb: verb.into(), resource: resource.into(), namespace: namespace.into(), ..Attributes::default() }
}

#[tokio::test]
async fn bindings_grant_in_their_scope_and_take_effect_at_once() {
    let world = world().await;
    let alice = UserInfo::new("alice", &[]);
    assert!(!world.api.authorize(&alice, &asks("list", "pods", "default")).allowed);
    world.create("rolebindings", json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "User", "name": "alice"}]})).await.unwrap();
    assert!(world.api.authorize(&alice, &asks("list", "pods", "default")).allowed);
    assert!(!world.api.authorize(&alice, &asks("list", "pods", "kube-system")).allowed);
    assert!(!world.api.authorize(&alice, &asks("list", "secrets", "default")).allowed);
    assert!(!world.api.authorize(&alice, &asks("create", "pods", "default")).allowed);
    world.api.delete(&world.root, &path("rolebindings").object("b"), &DeleteOptions::default()).await.unwrap();
    assert!(!world.api.authorize(&alice, &asks("list", "pods", "default")).allowed);
}

#[tokio::test]
async fn the_default_roles_serve_nodes_schedulers_and_discovery() {
    let world = world().await;
    let node = UserInfo::new("system:node:n1", &["system:nodes"]);
    assert!(
        world
            .api
            .authorize(
                &node,
                &Attributes { subresource: "status".into(), name: "n1".into(), ..asks("patch", "nodes", "") }
            )
            .allowed
    );
    assert!(!world.api.authorize(&node, &asks("delete", "services", "default")).allowed);
    let scheduler = UserInfo::new("system:kube-scheduler", &[]);
    assert!(
        world
            .api
            .authorize(&scheduler, &Attributes { subresource: "binding".into(), ..asks("create", "pods", "default") })
            .allowed
    );
    let version =
        |path: &str| Attributes { verb: "get".into(), non_resource_path: Some(path.into()), ..Attributes::default() };
    assert!(world.api.authorize(&UserInfo::anonymous(), &version("/version")).allowed);
    assert!(!world.api.authorize(&UserInfo::anonymous(), &version("/apis/apps")).allowed);
    assert!(world.api.authorize(&UserInfo::new("x", &[]), &version("/apis/apps")).allowed);
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_hold() {
    let world = world().await;
    world.create("rolebindings", json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "admin"}, "subjects": [{"kind": "User", "name": "alice"}]})).await.unwrap();
    let alice = user("alice");
    let role = |verbs: &[&str], resource: &str| json!({"metadata": {"generateName": "r"}, "rules": [{"verbs": verbs, "apiGroups": [""], "resources": [resource]}]});
    let o = WriteOptions::default();
    world.api.create(&alice, &path("roles"), role(&["get"], "pods"), &o).await.unwrap();
    let refused = world.api.create(&alice, &path("roles"), role(&["get"], "nodes"), &o).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Forbidden);
    assert!(refused.message.contains("attempting to grant RBAC permissions not currently held"));
    let binding = json!({"metadata": {"name": "c"}, "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"}, "subjects": [{"kind": "User", "name": "alice"}]});
    assert_eq!(
        world.api.create(&alice, &path("rolebindings"), binding, &o).await.unwrap_err().reason,
        Reason::Forbidden
    );
}

#[tokio::test]
async fn static_tokens_stand_for_their_user_and_others_for_nobody() {
    let world = world().await;
    assert_eq!(world.api.authenticate_token("secret").await.unwrap().name, "robot");
    for token in ["", "Secret", "a.b.c"] {
        assert_eq!(world.api.authenticate_token(token).await.unwrap_err().code, 401);
    }
}

#[tokio::test]
async fn account_tokens_end_with_their_pod_and_their_account() {
    let world = world().await;
    let o = WriteOptions::default();
    world.create("pods", pod("p")).await.unwrap();
    let at = path("serviceaccounts").object("default").sub("token");
    let request = |body| {
        let (api, root, at) = (world.api.clone(), world.root.clone(), at.clone());
        async move {
            api.create(&root, &at, body, &WriteOptions::default())
                .await
                .map(|written| written.object.to_value()["status"]["token"].as_str().unwrap().to_owned())
        }
    };
    let bound = request(json!({"spec": {"boundObjectRef": {"kind": "Pod", "name": "p"}}})).await.unwrap();
    let free = request(json!({"spec": {}})).await.unwrap();
    let foreign = request(json!({"spec": {"audiences": ["elsewhere"]}})).await.unwrap();
    assert_eq!(world.api.authenticate_token(&bound).await.unwrap().name, "system:serviceaccount:default:default");
    assert_eq!(world.api.authenticate_token(&foreign).await.unwrap_err().code, 401);
    assert_eq!(request(json!({"spec": {"expirationSeconds": 10}})).await.unwrap_err().reason, Reason::Invalid);
    let review = json!({"spec": {"token": bound}});
    let answer = world.api.create(&world.root, &path("tokenreviews"), review, &o).await.unwrap().object.to_value();
    assert_eq!(answer["status"]["authenticated"], true);
    world.api.delete(&world.root, &path("pods").object("p"), &DeleteOptions::default()).await.unwrap();
    assert_eq!(world.api.authenticate_token(&bound).await.unwrap_err().code, 401);
    assert!(world.api.authenticate_token(&free).await.is_ok());
    world.api.delete(&world.root, &path("serviceaccounts").object("default"), &DeleteOptions::default()).await.unwrap();
    assert_eq!(world.api.authenticate_token(&free).await.unwrap_err().code, 401);
}

#[tokio::test]
async fn access_reviews_tell_what_authorization_would() {
    let world = world().await;
    let ask = |ctx: RequestContext, verb: &'static str| {
        let api = world.api.clone();
        async move {
            let review =
                json!({"spec": {"resourceAttributes": {"verb": verb, "resource": "pods", "namespace": "default"}}});
            api.create(&ctx, &path("selfsubjectaccessreviews"), review, &WriteOptions::default())
                .await
                .unwrap()
                .object
                .to_value()["status"]["allowed"]
                .clone()
        }
    };
    assert_eq!(ask(user("eve"), "get").await, false);
    assert_eq!(ask(world.root.clone(), "get").await, true);
}

#[tokio::test]
async fn a_namespace_keeps_privileged_pods_out() {
    let world = world().await;
    let mut namespace = world.get("namespaces", "default").await.unwrap();
    namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = json!("baseline");
    namespace["metadata"]["labels"]["pod-security.kubernetes.io/warn"] = json!("restricted");
    world.update("namespaces", namespace).await.unwrap();
    let mut bad = pod("bad");
    bad["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let refused = world.create("pods", bad.clone()).await.unwrap_err();
    assert!(refused.message.contains("violates PodSecurity \"baseline:latest\": privileged"), "{}", refused.message);
    let written = world.api.create(&world.root, &path("pods"), pod("fine"), &WriteOptions::default()).await.unwrap();
    assert!(written.warnings[0].starts_with("would violate PodSecurity \"restricted:latest\""));
    let ephemeral = json!({"spec": {"ephemeralContainers": bad["spec"]["containers"]}});
    let at = path("pods").object("fine").sub("ephemeralcontainers");
    let body = bytes::Bytes::from(ephemeral.to_string());
    let sneaked = world
        .api
        .patch(&world.root, &at, apiserver::PatchKind::Merge, body, &WriteOptions::default())
        .await
        .unwrap_err();
    assert_eq!(sneaked.reason, Reason::Forbidden);
}

#[tokio::test]
async fn a_bound_policy_decides_by_its_expressions() {
    let world = world().await;
    let policy = |expression: &str| {
        json!({"metadata": {"name": "few"}, "spec": {"failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}]},
            "variables": [{"name": "most", "expression": "5"}],
            "validations": [{"expression": expression, "message": "too many"}]}})
    };
    assert_eq!(
        world.create("validatingadmissionpolicies", policy("object.spec.replicas <=")).await.unwrap_err().reason,
        Reason::Invalid
    );
    let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    assert_eq!(world.create("validatingadmissionpolicies", policy(&deep)).await.unwrap_err().reason, Reason::Invalid);
    world
        .create(
            "validatingadmissionpolicies",
            policy("object.spec.replicas <= variables.most && request.userInfo.username != 'eve'"),
        )
        .await
        .unwrap();
    let deployment = |name: &str, replicas: i64| json!({"metadata": {"name": name}, "spec": {"replicas": replicas}});
    world.create("deployments", deployment("unbound", 9)).await.unwrap();
    world
        .create(
            "validatingadmissionpolicybindings",
            json!({"metadata": {"name": "b"}, "spec": {"policyName": "few", "validationActions": ["Deny"]}}),
        )
        .await
        .unwrap();
    let denied = world.create("deployments", deployment("a", 9)).await.unwrap_err();
    assert_eq!((denied.code, denied.reason), (422, Reason::Invalid));
    assert!(
        denied.message.ends_with("ValidatingAdmissionPolicy 'few' with binding 'b' denied request: too many"),
        "{}",
        denied.message
    );
    world.create("deployments", deployment("a", 5)).await.unwrap();
    let broken = world.create("deployments", json!({"metadata": {"name": "c"}, "spec": {}})).await.unwrap_err();
    assert!(broken.message.contains("resulted in error"), "{}", broken.message);
}
