//! The registrations that a CustomResourceDefinition stands for: one for each served version.

use serde_json::{Value, json};

use crate::kind::{Column, ColumnValue, Kind, ScalePaths};

/// The kinds of an established definition.
pub fn of_definition(definition: &Value) -> Vec<Kind> {
    let established = definition["status"]["conditions"].as_array().is_some_and(|conditions| {
        conditions.iter().any(|condition| condition["type"] == "Established" && condition["status"] == "True")
    });
    if !established {
        return Vec::new();
    }
    let versions = definition["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage = versions
        .iter()
        .find(|version| version["storage"] == true)
        .map(|version| crate::json::text(version, "/name"))
        .unwrap_or_default();
    versions
        .iter()
        .filter(|version| version["served"] == true)
        .map(|version| of_version(definition, version, storage))
        .collect()
}

fn of_version(definition: &Value, version: &Value, storage: &str) -> Kind {
    let spec = &definition["spec"];
    let text = |pointer: &str| crate::json::text(spec, pointer).to_owned();
    let api_version = crate::json::text(version, "/name").to_owned();
    let schema = version.pointer("/schema/openAPIV3Schema").cloned().unwrap_or_else(|| json!({"type": "object"}));
    let deprecation = (version["deprecated"] == true).then(|| match version["deprecationWarning"].as_str() {
        Some(warning) => warning.to_owned(),
        None => format!("{}/{api_version} {} is deprecated", text("/group"), text("/names/kind")),
    });
    Kind {
        singular: text("/names/singular"),
        short_names: crate::json::strings(spec, "/names/shortNames"),
        categories: crate::json::strings(spec, "/names/categories"),
        namespaced: spec["scope"] == "Namespaced",
        schema: schema.into(),
        structural: spec["preserveUnknownFields"] != true,
        columns: columns(version),
        status_subresource: version["subresources"].get("status").is_some_and(|status| !status.is_null()),
        scale: version["subresources"].get("scale").filter(|scale| scale.is_object()).map(scale),
        selectable_fields: version["selectableFields"].as_array().into_iter().flatten().map(selectable).collect(),
        storage_version: storage.to_owned(),
        custom: true,
        deprecation,
        ..Kind::new(&text("/group"), &api_version, &text("/names/kind"), &text("/names/plural"))
    }
}

/// `.spec.replicas` as `/spec/replicas`.
fn pointer(json_path: &str) -> String {
    json_path.replace('.', "/")
}

fn selectable(field: &Value) -> (String, String) {
    let path = crate::json::text(field, "/jsonPath");
    (path.trim_start_matches('.').to_owned(), pointer(path))
}

fn scale(scale: &Value) -> ScalePaths {
    let selector = crate::json::text(scale, "/labelSelectorPath");
    ScalePaths {
        spec_replicas: pointer(crate::json::text(scale, "/specReplicasPath")),
        status_replicas: pointer(crate::json::text(scale, "/statusReplicasPath")),
        selector: (!selector.is_empty()).then(|| pointer(selector)),
    }
}

fn columns(version: &Value) -> Vec<Column> {
    let column = |name: &str, kind: &str, format: &str, description: &str, priority: i64, path: &str| Column {
        name: name.to_owned(),
        kind: kind.to_owned(),
        format: format.to_owned(),
        description: description.to_owned(),
        priority: i32::try_from(priority).unwrap_or(1),
        value: ColumnValue::JsonPath(path.to_owned()),
    };
    let mut columns =
        vec![column("Name", "string", "name", "Name must be unique within a namespace.", 0, ".metadata.name")];
    let own = version["additionalPrinterColumns"].as_array().map(Vec::as_slice).unwrap_or_default();
    if own.is_empty() {
        columns.push(column(
            "Age",
            "date",
            "",
            "CreationTimestamp is the time when this object was created.",
            0,
            ".metadata.creationTimestamp",
        ));
    }
    for one in own {
        let text = |member: &str| one[member].as_str().unwrap_or_default();
        columns.push(column(
            text("name"),
            text("type"),
            text("format"),
            text("description"),
            one["priority"].as_i64().unwrap_or(0),
            text("jsonPath"),
        ));
    }
    columns
}
