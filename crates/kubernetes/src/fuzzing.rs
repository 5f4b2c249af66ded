//! Targets for fuzzing: what reads bytes that strangers send. A target panics when a claim does not hold.

use serde_json::Value;

/// Protobuf bodies: what is read is an object with its type, and it is JSON.
pub fn protobuf(data: &[u8]) {
    if let Ok(object) = crate::protobuf::decode(data) {
        assert!(object["kind"].is_string() && object["apiVersion"].is_string());
        let text = object.to_string();
        assert!(serde_json::from_str::<Value>(&text).expect("own text").is_object());
    }
}

/// The guard before anything recursive: what it lets through nests no deeper than serde takes.
pub fn json_depth(data: &[u8]) {
    if crate::body::check_depth(data).is_ok()
        && let Err(error) = serde_json::from_slice::<Value>(data)
    {
        assert!(!error.to_string().contains("recursion"), "{error}");
    }
}

/// Paths and queries.
pub fn request_target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    if let Some(crate::resource::Target::Resource(path, ..)) = crate::resource::parse_path(path) {
        assert!(!path.resource.is_empty());
        assert!(path.namespace.as_ref().is_none_or(|namespace| !namespace.is_empty()));
        assert!(path.name.as_ref().is_none_or(|name| !name.is_empty()));
    }
    if let Ok(query) = crate::query::Query::parse(query) {
        let _ = query.list_options();
        let _ = query.get_options();
        let _ = query.delete_options(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::fuzzing::smoke;

    /// `k8s\0`, an envelope, and a ConfigMap with a name and one entry.
    const CONFIG_MAP: &[u8] =
        b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0f\x0a\x05\x0a\x03abc\x12\x06\x0a\x01k\x12\x01v\x1a\x01x";

    #[test]
    fn protobuf_of_any_content_is_read_or_refused() {
        assert!(crate::protobuf::decode(CONFIG_MAP).is_ok());
        smoke(&[CONFIG_MAP], 20_000, protobuf);
    }

    #[test]
    fn json_of_any_depth_is_refused_before_it_hurts() {
        let (deep, mixed) = ("[".repeat(99), r#"{"a\"[":[{"b":"]"}]}"#);
        smoke(&[deep.as_bytes(), mixed.as_bytes()], 20_000, json_depth);
    }

    #[test]
    fn targets_of_any_content_are_read_or_refused() {
        let corpus: [&[u8]; 3] = [
            b"/api/v1/namespaces/a/pods/b/log?follow=true&tailLines=5",
            b"/apis/apps/v1/watch/deployments?labelSelector=a%3Db&timeoutSeconds=5&limit=3&continue=x",
            b"/api/v1/namespaces/%61%2f/status?resourceVersion=0&resourceVersionMatch=Exact&gracePeriodSeconds=-1",
        ];
        smoke(&corpus, 20_000, request_target);
    }
}
