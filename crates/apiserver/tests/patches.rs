//! Patches and apply through the server.

use apiserver::{PatchKind, Reason, Status, WriteOptions};
use serde_json::{Value, json};

use crate::world::{World, config, path, pod, world};

async fn patch(
    world: &World,
    resource: &str,
    name: &str,
    format: PatchKind,
    body: Value,
    options: WriteOptions,
) -> Result<Value, Status> {
    let body = bytes::Bytes::from(body.to_string());
    let written = world.api.patch(&world.root, &path(resource).object(name), format, body, &options).await?;
    Ok(written.object.to_value())
}

fn by(manager: &str, force: bool) -> WriteOptions {
    WriteOptions { field_manager: Some(manager.into()), force, ..WriteOptions::default() }
}

#[tokio::test]
async fn each_format_changes_the_object() {
    let world = world().await;
    world.create("pods", pod("p")).await.unwrap();
    let plain = WriteOptions::default;
    let json_patch = json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "1"}}]);
    let one = patch(&world, "pods", "p", PatchKind::Json, json_patch, plain()).await.unwrap();
    assert_eq!(one["metadata"]["labels"]["a"], "1");
    let two =
        patch(&world, "pods", "p", PatchKind::Merge, json!({"metadata": {"labels": {"a": null, "b": "2"}}}), plain())
            .await
            .unwrap();
    assert_eq!(two["metadata"]["labels"], json!({"b": "2"}));
    let three = patch(
        &world,
        "pods",
        "p",
        PatchKind::Strategic,
        json!({"spec": {"containers": [{"name": "c", "image": "j"}, {"name": "d"}]}}),
        plain(),
    )
    .await
    .unwrap();
    assert_eq!(three["spec"]["containers"], json!([{"name": "c", "image": "j"}, {"name": "d"}]));
    let stale = json!({"metadata": {"resourceVersion": one["metadata"]["resourceVersion"], "labels": {"c": "3"}}});
    assert_eq!(
        patch(&world, "pods", "p", PatchKind::Merge, stale, plain()).await.unwrap_err().reason,
        Reason::Conflict
    );
    let misfit = json!([{"op": "remove", "path": "/spec/nothing"}]);
    assert_eq!(patch(&world, "pods", "p", PatchKind::Json, misfit, plain()).await.unwrap_err().code, 422);
    let malformed = json!({"op": "remove"});
    assert_eq!(patch(&world, "pods", "p", PatchKind::Json, malformed, plain()).await.unwrap_err().code, 400);
    let renamed = json!({"metadata": {"name": "q"}});
    assert_eq!(patch(&world, "pods", "p", PatchKind::Merge, renamed, plain()).await.unwrap_err().code, 400);
    assert_eq!(patch(&world, "pods", "none", PatchKind::Merge, json!({}), plain()).await.unwrap_err().code, 404);
}

#[tokio::test]
async fn apply_creates_owns_conflicts_and_is_forced() {
    let world = world().await;
    let config =
        |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": value}});
    let made = patch(&world, "configmaps", "a", PatchKind::Apply, config("1"), by("one", false)).await.unwrap();
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:data": {"f:x": {}}}));
    assert_eq!(made["metadata"]["managedFields"][0]["operation"], "Apply");
    let again = patch(&world, "configmaps", "a", PatchKind::Apply, config("1"), by("one", false)).await.unwrap();
    assert_eq!(again["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let conflict = patch(&world, "configmaps", "a", PatchKind::Apply, config("2"), by("two", false)).await.unwrap_err();
    assert_eq!(
        (conflict.code, conflict.message.as_str()),
        (409, "Apply failed with 1 conflict: conflict with \"one\": .data.x")
    );
    assert_eq!(
        (conflict.details.causes[0].reason.as_str(), conflict.details.causes[0].field.as_str()),
        ("FieldManagerConflict", ".data.x")
    );
    let forced = patch(&world, "configmaps", "a", PatchKind::Apply, config("2"), by("two", true)).await.unwrap();
    assert_eq!((&forced["data"]["x"], forced["metadata"]["managedFields"].as_array().unwrap().len()), (&json!("2"), 1));
    let empty = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let emptied = patch(&world, "configmaps", "a", PatchKind::Apply, empty, by("two", false)).await.unwrap();
    assert!(emptied["data"].is_null(), "{emptied}");
    let anonymous =
        patch(&world, "configmaps", "a", PatchKind::Apply, config("3"), WriteOptions::default()).await.unwrap_err();
    assert_eq!((anonymous.code, anonymous.details.causes[0].field.as_str()), (422, "fieldManager"));
}

#[tokio::test]
async fn plain_writes_take_fields_over_from_appliers() {
    let world = world().await;
    let applied =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1", "y": "1"}});
    patch(&world, "configmaps", "a", PatchKind::Apply, applied.clone(), by("one", false)).await.unwrap();
    let edited = patch(&world, "configmaps", "a", PatchKind::Merge, json!({"data": {"x": "2"}}), by("edit", false))
        .await
        .unwrap();
    let managers: Vec<&str> = edited["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["manager"].as_str().unwrap())
        .collect();
    assert_eq!(managers, ["one", "edit"]);
    let conflict = patch(&world, "configmaps", "a", PatchKind::Apply, applied, by("one", false)).await.unwrap_err();
    assert!(conflict.message.contains("conflict with \"edit\" using v1 at "), "{}", conflict.message);
}

#[tokio::test]
async fn status_has_a_manager_of_its_own() {
    let world = world().await;
    world.create("deployments", json!({"metadata": {"name": "d"}, "spec": {"replicas": 1}})).await.unwrap();
    let at = path("deployments").object("d").sub("status");
    let body = bytes::Bytes::from(r#"{"status":{"replicas":1}}"#);
    let after = world
        .api
        .patch(&world.root, &at, PatchKind::Merge, body, &by("controller", false))
        .await
        .unwrap()
        .object
        .to_value();
    let entry = after["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["manager"] == "controller")
        .unwrap();
    assert_eq!(
        (&entry["subresource"], &entry["fieldsV1"]),
        (&json!("status"), &json!({"f:status": {"f:replicas": {}}}))
    );
    assert_eq!(after["metadata"]["generation"], 1);
}

#[tokio::test]
async fn an_apply_that_creates_needs_the_right_to_create() {
    let world = world().await;
    world.create("roles", json!({"metadata": {"name": "patcher"}, "rules": [{"verbs": ["patch"], "apiGroups": [""], "resources": ["configmaps"]}]})).await.unwrap();
    world.create("rolebindings", json!({"metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "patcher"}, "subjects": [{"kind": "User", "name": "pat"}]})).await.unwrap();
    let body = bytes::Bytes::from(config("a").to_string());
    let refused = world
        .api
        .patch(&crate::world::user("pat"), &path("configmaps").object("a"), PatchKind::Apply, body, &by("m", false))
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::Forbidden);
}
