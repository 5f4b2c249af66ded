//! `LimitRange`: defaults and bounds for the resources of containers.

use serde_json::{Value, json};

use crate::quantity;
use crate::server::ApiServer;
use crate::status::Status;

fn limits(server: &ApiServer, pod: &Value) -> Vec<Value> {
    let prefix = format!("{}/", crate::json::text(pod, "/metadata/namespace"));
    let ranges = server.cache_of("", "limitranges").all(&prefix);
    let items =
        ranges.into_iter().flat_map(|range| range.to_value()["spec"]["limits"].as_array().cloned().unwrap_or_default());
    items.filter(|item| item["type"] == "Container").collect()
}

/// Fills in requests and limits that a container leaves out.
pub(super) fn fill_defaults(server: &ApiServer, pod: &mut Value) {
    for range in limits(server, pod) {
        for list in ["initContainers", "containers"] {
            for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                for (from, into) in [("default", "limits"), ("defaultRequest", "requests")] {
                    for (name, value) in range[from].as_object().into_iter().flatten() {
                        if container["resources"][into].get(name).is_none() {
                            if !container["resources"].is_object() {
                                container["resources"] = json!({});
                            }
                            container["resources"][into][name] = value.clone();
                        }
                    }
                }
            }
        }
    }
}

/// Checks the bounds.
pub(super) fn check(server: &ApiServer, pod: &Value) -> Result<(), Status> {
    let mut problems = Vec::new();
    for range in limits(server, pod) {
        for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
            for (bound, list, above) in [("max", "limits", true), ("min", "requests", false)] {
                for (name, limit) in range[bound].as_object().into_iter().flatten() {
                    let (Some(own), Some(limit_value)) =
                        (quantity::of_value(&container["resources"][list][name]), quantity::of_value(limit))
                    else {
                        continue;
                    };
                    if (above && own > limit_value) || (!above && own < limit_value) {
                        let (word, what) = if above { ("maximum", "limit") } else { ("minimum", "request") };
                        problems.push(format!(
                            "{word} {name} usage per Container is {}, but {what} is {}",
                            limit.as_str().unwrap_or_default(),
                            container["resources"][list][name].as_str().unwrap_or_default()
                        ));
                    }
                }
            }
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Status::forbidden("", "pods", crate::json::text(pod, "/metadata/name"), &problems.join(", ")))
}
