//! The `scale` subresource: an `autoscaling/v1` `Scale` made of, and written back to, a kind's own fields.

use serde_json::{Value, json};

use crate::kind::{Kind, ScalePaths};
use crate::object::Object;
use crate::options::{Body, PatchKind, WriteOptions, Written};
use crate::path::ResourcePath;
use crate::server::ApiServer;
use crate::status::{Cause, Status};
use crate::user::RequestContext;
use crate::write::Change;

fn paths(kind: &Kind) -> Result<&ScalePaths, Status> {
    kind.scale.as_ref().ok_or_else(Status::no_such_resource)
}

fn render(paths: &ScalePaths, object: &Value) -> Value {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let member = |name: &str| object["metadata"][name].clone();
    let mut status = json!({"replicas": number(&paths.status_replicas)});
    match paths.selector.as_deref().and_then(|pointer| object.pointer(pointer)) {
        Some(Value::String(text)) => status["selector"] = json!(text),
        Some(structured @ Value::Object(_)) => status["selector"] = json!(selector_text(structured)),
        _ => {}
    }
    let mut metadata = json!({"name": member("name"), "namespace": member("namespace"), "uid": member("uid"),
        "resourceVersion": member("resourceVersion"), "creationTimestamp": member("creationTimestamp")});
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
    json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata,
        "spec": {"replicas": number(&paths.spec_replicas)}, "status": status})
}

/// The text form of a `LabelSelector`.
fn selector_text(selector: &Value) -> String {
    let mut terms = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        terms.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = crate::json::text(expression, "/key");
        let values = crate::json::strings(expression, "/values").join(",");
        terms.push(match crate::json::text(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}

fn with_text(object: &Object, value: &Value) -> Object {
    Object { bytes: value.to_string().into(), meta: object.meta.clone() }
}

/// Reads the scale of an object.
pub(crate) fn get(kind: &Kind, object: &Object) -> Result<Object, Status> {
    Ok(with_text(object, &render(paths(kind)?, &object.to_value())))
}

/// Replaces the scale of an object.
pub(crate) async fn put(
    server: &ApiServer,
    ctx: &RequestContext,
    kind: &Kind,
    path: &ResourcePath,
    body: Body,
    o: &WriteOptions,
) -> Result<Written, Status> {
    let (scale, _) = crate::write::tree(body)?;
    write(server, ctx, kind, path, o, |_| Ok(scale.clone())).await
}

/// Patches the scale of an object.
pub(crate) async fn patch(
    server: &ApiServer,
    ctx: &RequestContext,
    kind: &Kind,
    path: &ResourcePath,
    format: PatchKind,
    body: &[u8],
    o: &WriteOptions,
) -> Result<Written, Status> {
    let (patch, _) = crate::json::decode(body)?;
    let scale_kind = Kind::new("autoscaling", "v1", "Scale", "scale");
    let format = if format == PatchKind::Apply { PatchKind::Merge } else { format };
    write(server, ctx, kind, path, o, |present| crate::patch::apply(&scale_kind, format, present, &patch)).await
}

async fn write(
    server: &ApiServer,
    ctx: &RequestContext,
    kind: &Kind,
    path: &ResourcePath,
    o: &WriteOptions,
    next: impl Fn(&Value) -> Result<Value, Status>,
) -> Result<Written, Status> {
    let paths = paths(kind)?;
    let main = ResourcePath { subresource: None, ..path.clone() };
    let name = path.name.as_deref().unwrap_or_default();
    let mut written = server
        .change(ctx, kind, &main, o, |_, old| {
            let scale = next(&render(paths, old))?;
            let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
            if !(0..=i64::from(i32::MAX)).contains(&replicas) {
                let cause = Cause::invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0");
                return Err(Status::invalid("autoscaling", "Scale", name, vec![cause]));
            }
            let mut object = old.clone();
            if let Some(version) = scale["metadata"].get("resourceVersion") {
                crate::json::set_metadata(&mut object, "resourceVersion", version.clone());
            }
            set(&mut object, &paths.spec_replicas, json!(replicas));
            Ok(Change { object, applied: None, warnings: Vec::new() })
        })
        .await?;
    let scale = render(paths, &written.object.to_value());
    written.object = with_text(&written.object, &scale);
    Ok(written)
}

/// Sets the value at a pointer, making maps on the way.
fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for step in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[step];
    }
    *place = value;
}
