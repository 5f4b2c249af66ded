//! CustomResourceDefinitions.

use apiserver::{DeleteOptions, Reason, WriteOptions};
use serde_json::{Value, json};

use crate::world::{World, path, world};

fn definition() -> Value {
    json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wg"]},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
            "selectableFields": [{"jsonPath": ".spec.color"}],
            "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "required": ["size"], "properties": {
                    "size": {"type": "integer", "minimum": 1}, "color": {"type": "string", "default": "blue", "enum": ["blue", "red"]}}},
                "status": {"type": "object", "properties": {"size": {"type": "integer"}}}}}}},
            {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
}

async fn with_widgets() -> World {
    let world = world().await;
    let made = world.create("customresourcedefinitions", definition()).await.unwrap();
    assert_eq!(made["status"]["conditions"][1]["type"], "Established");
    world
}

fn widget(spec: Value) -> Value {
    json!({"metadata": {"name": "w"}, "spec": spec})
}

#[tokio::test]
async fn a_new_kind_is_served_within_the_write_that_defines_it() {
    let world = with_widgets().await;
    let kinds = world.api.kinds();
    let kind = kinds.lookup("example.com", "v1", "widgets").unwrap();
    assert_eq!((kind.columns[1].name.as_str(), kind.short_names[0].as_str()), ("Size", "wg"));
    let made = world.create("widgets", widget(json!({"size": 2, "bogus": 1}))).await.unwrap();
    assert_eq!(made["spec"], json!({"size": 2, "color": "blue"}));
    let mut beta = path("widgets").object("w");
    beta.version = "v1beta1".into();
    let other = world.api.get(&world.root, &beta, &Default::default()).await.unwrap().to_value();
    assert_eq!((&other["apiVersion"], &other["spec"]["size"]), (&json!("example.com/v1beta1"), &json!(2)));
    let scale = world
        .api
        .get(&world.root, &path("widgets").object("w").sub("scale"), &Default::default())
        .await
        .unwrap()
        .to_value();
    assert_eq!(scale["spec"]["replicas"], 2);
    let blue = apiserver::ListOptions { field_selector: Some("spec.color=blue".into()), ..Default::default() };
    assert_eq!(world.names("widgets", blue).await, ["w"]);
}

#[tokio::test]
async fn objects_that_break_the_schema_are_refused_with_causes() {
    let world = with_widgets().await;
    for (spec, reason, field) in [
        (json!({}), "FieldValueRequired", "spec.size"),
        (json!({"size": 0}), "FieldValueInvalid", "spec.size"),
        (json!({"size": "x"}), "FieldValueTypeInvalid", "spec.size"),
        (json!({"size": 1, "color": "green"}), "FieldValueNotSupported", "spec.color"),
    ] {
        let status = world.create("widgets", widget(spec)).await.unwrap_err();
        let cause = &status.details.causes[0];
        assert_eq!((status.code, cause.reason.as_str(), cause.field.as_str()), (422, reason, field));
    }
    let (at, o) = (path("widgets").object("w"), WriteOptions::default());
    let strategic =
        world.api.patch(&world.root, &at, apiserver::PatchKind::Strategic, bytes::Bytes::from("{}"), &o).await;
    assert_eq!(strategic.unwrap_err().code, 415);
}

#[tokio::test]
async fn hostile_and_misnamed_definitions_are_refused() {
    let world = world().await;
    let mut misnamed = definition();
    misnamed["metadata"]["name"] = json!("gadgets.example.com");
    let mut without_type = definition();
    without_type["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = json!({"properties": {}});
    let mut two_stored = definition();
    two_stored["spec"]["versions"][1]["storage"] = json!(true);
    let mut deep = json!({"type": "string"});
    for _ in 0..60 {
        deep = json!({"type": "object", "properties": {"x": deep}});
    }
    let mut too_deep = definition();
    too_deep["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = deep;
    let mut bad_pattern = definition();
    bad_pattern["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] =
        json!({"type": "string", "pattern": "(((a{99}){99}){99}){99}"});
    let mut reference = definition();
    reference["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = json!({"$ref": "#"});
    for bad in [misnamed, without_type, two_stored, too_deep, bad_pattern, reference] {
        assert_eq!(world.create("customresourcedefinitions", bad).await.unwrap_err().reason, Reason::Invalid);
    }
}

#[tokio::test]
async fn a_definition_takes_its_objects_with_it() {
    let world = with_widgets().await;
    world.create("widgets", widget(json!({"size": 2}))).await.unwrap();
    world
        .api
        .delete(
            &world.root,
            &path("customresourcedefinitions").object("widgets.example.com"),
            &DeleteOptions::default(),
        )
        .await
        .unwrap();
    assert!(world.api.kinds().lookup("example.com", "v1", "widgets").is_none());
    assert_eq!(world.get("widgets", "w").await.unwrap_err().code, 404);
    world.create("customresourcedefinitions", definition()).await.unwrap();
    assert!(world.names("widgets", Default::default()).await.is_empty());
}
