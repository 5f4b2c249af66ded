//! create, update, delete: what the server fills in, refuses and keeps.

use apiserver::{DeleteOptions, FieldValidation, Preconditions, Propagation, Reason, WriteOptions};
use serde_json::{Value, json};

use crate::world::{config, path, pod, user, world};

#[tokio::test]
async fn a_writer_reads_its_own_writes_and_the_server_owns_the_metadata() {
    let world = world().await;
    let mut object = config("a");
    object["metadata"]["uid"] = json!("forged");
    object["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
    let made = world.create("configmaps", object).await.unwrap();
    assert_eq!(world.get("configmaps", "a").await.unwrap(), made);
    assert_ne!(made["metadata"]["uid"], "forged");
    assert!(made["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(made["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    let again = world.create("configmaps", config("a")).await.unwrap_err();
    assert_eq!(
        (again.code, again.reason, again.message.as_str()),
        (409, Reason::AlreadyExists, "configmaps \"a\" already exists")
    );
}

#[tokio::test]
async fn errors_carry_the_reasons_of_kubernetes() {
    let world = world().await;
    let missing = world.get("deployments", "x").await.unwrap_err();
    assert_eq!((missing.code, missing.message.as_str()), (404, "deployments.apps \"x\" not found"));
    let bad_name = world.create("configmaps", config("Bad_Name")).await.unwrap_err();
    assert_eq!((bad_name.code, bad_name.reason), (422, Reason::Invalid));
    assert_eq!(
        (bad_name.details.causes[0].reason.as_str(), bad_name.details.causes[0].field.as_str()),
        ("FieldValueInvalid", "metadata.name")
    );
    let nameless = world.create("configmaps", json!({"metadata": {}})).await.unwrap_err();
    assert_eq!(nameless.details.causes[0].reason, "FieldValueRequired");
    let negative =
        world.create("deployments", json!({"metadata": {"name": "d"}, "spec": {"replicas": -1}})).await.unwrap_err();
    assert_eq!(
        negative.message,
        "Deployment.apps \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
    );
    let other_kind = world
        .create("configmaps", json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}))
        .await
        .unwrap_err();
    assert_eq!(other_kind.code, 400);
    let other_place =
        world.create("configmaps", json!({"metadata": {"name": "a", "namespace": "kube-system"}})).await.unwrap_err();
    assert_eq!(other_place.code, 400);
    let versioned =
        world.create("configmaps", json!({"metadata": {"name": "a", "resourceVersion": "3"}})).await.unwrap_err();
    assert_eq!(versioned.code, 400);
    let mut elsewhere = path("configmaps");
    elsewhere.namespace = Some("nowhere".into());
    let no_namespace =
        world.api.create(&world.root, &elsewhere, config("a"), &WriteOptions::default()).await.unwrap_err();
    assert_eq!(no_namespace.message, "namespaces \"nowhere\" not found");
    let labels = world
        .create("configmaps", json!({"metadata": {"name": "a", "labels": {"a": "x".repeat(64)}}}))
        .await
        .unwrap_err();
    assert_eq!(labels.code, 422);
}

#[tokio::test]
async fn stale_versions_conflict_and_absent_ones_do_not() {
    let world = world().await;
    let first = world.create("configmaps", config("a")).await.unwrap();
    let mut next = first.clone();
    next["data"]["a"] = json!("2");
    world.update("configmaps", next.clone()).await.unwrap();
    let stale = world.update("configmaps", next.clone()).await.unwrap_err();
    assert_eq!((stale.code, stale.reason), (409, Reason::Conflict));
    assert!(
        stale.message.starts_with("Operation cannot be fulfilled on configmaps \"a\": the object has been modified")
    );
    next["metadata"]["resourceVersion"].take();
    next["data"]["a"] = json!("3");
    let third = world.update("configmaps", next.clone()).await.unwrap();
    assert_eq!(third["data"]["a"], "3");
    let same = world.update("configmaps", third.clone()).await.unwrap();
    assert_eq!(same["metadata"]["resourceVersion"], third["metadata"]["resourceVersion"]);
    next["metadata"]["uid"] = json!("other");
    assert_eq!(world.update("configmaps", next).await.unwrap_err().reason, Reason::Conflict);
}

#[tokio::test]
async fn generated_names_are_unique_and_dry_runs_write_nothing() {
    let world = world().await;
    for _ in 0..3 {
        let made = world.create("configmaps", json!({"metadata": {"generateName": "g-"}})).await.unwrap();
        assert!(made["metadata"]["name"].as_str().unwrap().starts_with("g-"));
    }
    let dry = WriteOptions { dry_run: true, ..WriteOptions::default() };
    world.api.create(&world.root, &path("configmaps"), config("dry"), &dry).await.unwrap();
    assert_eq!(world.get("configmaps", "dry").await.unwrap_err().code, 404);
}

#[tokio::test]
async fn unknown_and_duplicate_fields_are_treated_as_asked() {
    let world = world().await;
    let text = r#"{"metadata":{"name":"NAME"},"data":{"a":"1","a":"2"},"bogus":1}"#;
    let with = |validation| WriteOptions { field_validation: validation, ..WriteOptions::default() };
    let strict = world.create_raw("configmaps", text, with(FieldValidation::Strict)).await.unwrap_err();
    assert_eq!(strict.code, 400);
    assert!(
        strict.message.contains("strict decoding error: duplicate field \"data.a\", unknown field \"bogus\""),
        "{}",
        strict.message
    );
    let warned = world.create_raw("configmaps", &text.replace("NAME", "w"), with(FieldValidation::Warn)).await.unwrap();
    assert_eq!(warned.warnings, ["duplicate field \"data.a\"", "unknown field \"bogus\""]);
    assert!(warned.object.to_value()["bogus"].is_null());
    let ignored =
        world.create_raw("configmaps", &text.replace("NAME", "i"), with(FieldValidation::Ignore)).await.unwrap();
    assert!(ignored.warnings.is_empty());
    let typed = world
        .create_raw("configmaps", r#"{"metadata":{"name":"t"},"data":{"a":1}}"#, with(FieldValidation::Warn))
        .await
        .unwrap_err();
    assert_eq!(typed.code, 400);
    let deep = format!("{{\"metadata\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(world.create_raw("configmaps", &deep, with(FieldValidation::Warn)).await.unwrap_err().code, 400);
    let huge = json!({"metadata": {"name": "h"}, "data": {"a": "x".repeat(2_000_000)}}).to_string();
    assert_eq!(world.create_raw("configmaps", &huge, with(FieldValidation::Warn)).await.unwrap_err().code, 413);
}

#[tokio::test]
async fn spec_and_status_have_their_own_doors_and_generation_counts_the_spec() {
    let world = world().await;
    let made = world
        .create("deployments", json!({"metadata": {"name": "d"}, "spec": {"replicas": 1}, "status": {"replicas": 9}}))
        .await
        .unwrap();
    assert!(made["status"].is_null());
    let mut both = made.clone();
    both["spec"]["replicas"] = json!(2);
    both["status"] = json!({"replicas": 9});
    let main = world.update("deployments", both.clone()).await.unwrap();
    assert_eq!(
        (&main["spec"]["replicas"], &main["status"], &main["metadata"]["generation"]),
        (&json!(2), &Value::Null, &json!(2))
    );
    let status = path("deployments").object("d").sub("status");
    both["metadata"]["resourceVersion"].take();
    both["spec"]["replicas"] = json!(7);
    let after = world.api.update(&world.root, &status, both, &WriteOptions::default()).await.unwrap().object.to_value();
    assert_eq!(
        (&after["spec"]["replicas"], &after["status"]["replicas"], &after["metadata"]["generation"]),
        (&json!(2), &json!(9), &json!(2))
    );
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let world = world().await;
    world.create("configmaps", json!({"metadata": {"name": "a", "finalizers": ["example.com/hold"]}})).await.unwrap();
    let at = path("configmaps").object("a");
    let deleted = world.api.delete(&world.root, &at, &DeleteOptions::default()).await.unwrap();
    assert!(!deleted.gone);
    let mut held = world.get("configmaps", "a").await.unwrap();
    assert!(!held["metadata"]["deletionTimestamp"].is_null());
    held["metadata"]["finalizers"] = json!(["example.com/hold", "example.com/more"]);
    assert_eq!(world.update("configmaps", held.clone()).await.unwrap_err().reason, Reason::Invalid);
    held["metadata"]["finalizers"] = json!([]);
    world.update("configmaps", held).await.unwrap();
    assert_eq!(world.get("configmaps", "a").await.unwrap_err().code, 404);
}

#[tokio::test]
async fn propagation_sets_the_collectors_finalizers() {
    let world = world().await;
    for (propagation, finalizer) in [(Propagation::Orphan, "orphan"), (Propagation::Foreground, "foregroundDeletion")] {
        world.create("configmaps", config(finalizer.to_lowercase().as_str())).await.unwrap();
        let options = DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
        let deleted = world
            .api
            .delete(&world.root, &path("configmaps").object(&finalizer.to_lowercase()), &options)
            .await
            .unwrap();
        assert_eq!(deleted.object.to_value()["metadata"]["finalizers"], json!([finalizer]));
    }
}

#[tokio::test]
async fn preconditions_of_a_delete_are_kept() {
    let world = world().await;
    world.create("configmaps", config("a")).await.unwrap();
    for preconditions in [
        Preconditions { uid: Some("x".into()), ..Preconditions::default() },
        Preconditions { resource_version: Some("1".into()), ..Preconditions::default() },
    ] {
        let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
        assert_eq!(
            world.api.delete(&world.root, &path("configmaps").object("a"), &options).await.unwrap_err().reason,
            Reason::Conflict
        );
    }
    assert!(
        world.api.delete(&world.root, &path("configmaps").object("a"), &DeleteOptions::default()).await.unwrap().gone
    );
}

#[tokio::test]
async fn pods_that_run_get_their_grace_period_and_others_go_at_once() {
    let world = world().await;
    for name in ["idle", "busy"] {
        world.create("pods", pod(name)).await.unwrap();
    }
    let bind = path("pods").object("busy").sub("binding");
    world
        .api
        .create(&world.root, &bind, json!({"target": {"kind": "Node", "name": "n1"}}), &WriteOptions::default())
        .await
        .unwrap();
    let twice = world
        .api
        .create(&world.root, &bind, json!({"target": {"name": "n2"}}), &WriteOptions::default())
        .await
        .unwrap_err();
    assert_eq!(twice.reason, Reason::Conflict);
    let bound = world.get("pods", "busy").await.unwrap();
    assert_eq!(
        (&bound["spec"]["nodeName"], &bound["status"]["conditions"][0]["type"]),
        (&json!("n1"), &json!("PodScheduled"))
    );
    let delete = |name: &str, grace| {
        let (api, root, at) = (world.api.clone(), world.root.clone(), path("pods").object(name));
        async move {
            api.delete(&root, &at, &DeleteOptions { grace_period_seconds: grace, ..DeleteOptions::default() })
                .await
                .unwrap()
        }
    };
    assert!(delete("idle", None).await.gone);
    let busy = delete("busy", None).await;
    assert!(!busy.gone);
    assert_eq!(busy.object.to_value()["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(delete("busy", None).await.object.revision(), busy.object.revision());
    assert_eq!(delete("busy", Some(5)).await.object.to_value()["metadata"]["deletionGracePeriodSeconds"], 5);
    assert!(delete("busy", Some(0)).await.gone);
}

#[tokio::test]
async fn unique_fields_are_unique_within_their_namespace() {
    let world = world().await;
    let container = |name: &str, unique: &str| json!({"metadata": {"name": name}, "spec": {"name": unique}});
    world.create("containers", container("a", "web")).await.unwrap();
    let taken = world.create("containers", container("b", "web")).await.unwrap_err();
    assert_eq!((taken.code, taken.details.causes[0].field.as_str()), (409, "spec.name"));
    world.create("containers", container("b", "db")).await.unwrap();
    let renamed = world.update("containers", container("b", "web")).await.unwrap_err();
    assert_eq!(renamed.code, 409);
    world.update("containers", container("a", "front")).await.unwrap();
    world.update("containers", container("b", "web")).await.unwrap();
    world.api.delete(&world.root, &path("containers").object("b"), &DeleteOptions::default()).await.unwrap();
    world.create("containers", container("c", "web")).await.unwrap();
}

#[tokio::test]
async fn services_get_addresses_and_ports_that_no_other_has() {
    let world = world().await;
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let first =
        world.create("services", service("a", json!({"type": "NodePort", "ports": [{"port": 80}]}))).await.unwrap();
    let address = first["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let port = first["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!(address.starts_with("10.96.") && (30000..=32767).contains(&port));
    let same_address = world
        .create("services", service("b", json!({"clusterIP": address, "ports": [{"port": 80}]})))
        .await
        .unwrap_err();
    assert!(same_address.message.contains("provided IP is already allocated"), "{}", same_address.message);
    let same_port = world
        .create("services", service("b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]})))
        .await
        .unwrap_err();
    assert_eq!(same_port.details.causes[0].field, "spec.ports[0].nodePort");
    let foreign = world.create("services", service("b", json!({"clusterIP": "192.168.0.1"}))).await.unwrap_err();
    assert_eq!(foreign.code, 422);
    let headless = world.create("services", service("h", json!({"clusterIP": "None", "ports": []}))).await.unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    world.api.delete(&world.root, &path("services").object("a"), &DeleteOptions::default()).await.unwrap();
    world.create("services", service("b", json!({"clusterIP": address}))).await.unwrap();
    let mut many = Vec::new();
    for index in 0..50 {
        let made = world.create("services", service(&format!("s{index}"), json!({"ports": []}))).await.unwrap();
        many.push(made["spec"]["clusterIP"].as_str().unwrap().to_owned());
    }
    many.sort();
    many.dedup();
    assert_eq!(many.len(), 50);
}

#[tokio::test]
async fn namespaces_take_nothing_in_while_they_go() {
    let world = world().await;
    world.create("namespaces", json!({"metadata": {"name": "team"}})).await.unwrap();
    let made = world.get("namespaces", "team").await.unwrap();
    assert_eq!((&made["status"]["phase"], &made["spec"]["finalizers"]), (&json!("Active"), &json!(["kubernetes"])));
    let deleted =
        world.api.delete(&world.root, &path("namespaces").object("team"), &DeleteOptions::default()).await.unwrap();
    assert!(!deleted.gone);
    let mut inside = path("configmaps");
    inside.namespace = Some("team".into());
    let refused = world.api.create(&world.root, &inside, config("a"), &WriteOptions::default()).await.unwrap_err();
    assert_eq!((refused.code, refused.details.causes[0].reason.as_str()), (403, "NamespaceTerminating"));
    let mut finalized = world.get("namespaces", "team").await.unwrap();
    assert_eq!(finalized["status"]["phase"], "Terminating");
    finalized["spec"]["finalizers"] = json!([]);
    let finalize = path("namespaces").object("team").sub("finalize");
    world.api.update(&world.root, &finalize, finalized, &WriteOptions::default()).await.unwrap();
    assert_eq!(world.get("namespaces", "team").await.unwrap_err().code, 404);
    let kept = world
        .api
        .delete(&world.root, &path("namespaces").object("default"), &DeleteOptions::default())
        .await
        .unwrap_err();
    assert_eq!(kept.code, 403);
}

#[tokio::test]
async fn quotas_hold_also_when_many_ask_at_once() {
    let world = world().await;
    world
        .create("resourcequotas", json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "5"}}}))
        .await
        .unwrap();
    let many = (0..20).map(|index| world.create("configmaps", config(&format!("c{index}")))).collect::<Vec<_>>();
    let results = futures::future::join_all(many).await;
    let made = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(made, 5);
    let refused = results.into_iter().find_map(Result::err).unwrap();
    assert_eq!(refused.message.split(": ").nth(1), Some("exceeded quota"));
}

#[tokio::test]
async fn pods_get_accounts_priorities_and_defaults_from_their_namespace() {
    let world = world().await;
    world.create("limitranges", json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "default": {"cpu": "1"}, "max": {"cpu": "2"}}]}})).await.unwrap();
    let mut object = pod("a");
    object["spec"]["priorityClassName"] = json!("system-node-critical");
    let made = world.create("pods", object).await.unwrap();
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!(made["spec"]["priority"], 2_000_001_000);
    assert_eq!(made["spec"]["containers"][0]["resources"]["limits"]["cpu"], "1");
    let mut greedy = pod("b");
    greedy["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "3"}});
    assert_eq!(world.create("pods", greedy).await.unwrap_err().reason, Reason::Forbidden);
    let mut nobody = pod("c");
    nobody["spec"]["serviceAccountName"] = json!("nobody");
    assert_eq!(world.create("pods", nobody).await.unwrap_err().reason, Reason::Forbidden);
}

#[tokio::test]
async fn scale_reads_and_writes_the_replicas() {
    let world = world().await;
    world
        .create(
            "deployments",
            json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}}}),
        )
        .await
        .unwrap();
    let at = path("deployments").object("d").sub("scale");
    let scale = world.api.get(&world.root, &at, &Default::default()).await.unwrap().to_value();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(1), &json!("a=b")));
    let patch = bytes::Bytes::from(r#"{"spec":{"replicas":4}}"#);
    let scaled =
        world.api.patch(&world.root, &at, apiserver::PatchKind::Merge, patch, &WriteOptions::default()).await.unwrap();
    assert_eq!(scaled.object.to_value()["spec"]["replicas"], 4);
    assert_eq!(world.get("deployments", "d").await.unwrap()["spec"]["replicas"], 4);
    let negative = world
        .api
        .update(&world.root, &at, json!({"spec": {"replicas": -1}}), &WriteOptions::default())
        .await
        .unwrap_err();
    assert_eq!(negative.reason, Reason::Invalid);
}

#[tokio::test]
async fn many_writers_of_one_object_lose_no_update() {
    let world = world().await;
    world.create("configmaps", json!({"metadata": {"name": "a"}})).await.unwrap();
    let writers = (0..12).map(|index| {
        let patch = bytes::Bytes::from(format!(r#"{{"data":{{"k{index}":"v"}}}}"#));
        let (api, root) = (world.api.clone(), world.root.clone());
        async move {
            api.patch(
                &root,
                &path("configmaps").object("a"),
                apiserver::PatchKind::Merge,
                patch,
                &WriteOptions::default(),
            )
            .await
        }
    });
    for result in futures::future::join_all(writers).await {
        result.unwrap();
    }
    assert_eq!(world.get("configmaps", "a").await.unwrap()["data"].as_object().unwrap().len(), 12);
}

#[tokio::test]
async fn strangers_can_do_nothing() {
    let world = world().await;
    let refused =
        world.api.create(&user("eve"), &path("configmaps"), config("a"), &WriteOptions::default()).await.unwrap_err();
    assert_eq!(
        refused.message,
        "configmaps is forbidden: User \"eve\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
}
