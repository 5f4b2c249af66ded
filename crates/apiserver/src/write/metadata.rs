//! The metadata that the server owns: uid, timestamps, generation; given at creation, kept through updates.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::status::Status;

/// Letters of generated names; no vowels, so that they spell nothing.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of the random end of a generated name.
const SUFFIX: usize = 5;
/// Longest prefix that leaves room for the end within a DNS label.
const MAX_PREFIX: usize = 58;

/// RFC 3339 with whole seconds, as `metav1.Time`.
pub(crate) fn time(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A name made of a prefix.
pub(crate) fn generate_name(prefix: &str) -> String {
    let end = (0..=prefix.len().min(MAX_PREFIX)).rev().find(|end| prefix.is_char_boundary(*end)).unwrap_or(0);
    let mut name = prefix[..end].to_owned();
    for _ in 0..SUFFIX {
        name.push(char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]));
    }
    name
}

/// Fills in what a new object gets from the server.
pub(super) fn stamp_new(kind: &Kind, object: &mut Value, now: Timestamp) {
    let has_spec = object.get("spec").is_some();
    let Some(metadata) = crate::json::metadata_mut(object) else { return };
    for member in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion", "generation"] {
        metadata.remove(member);
    }
    metadata.insert("uid".into(), json!(uuid::Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".into(), json!(time(now)));
    if has_spec || kind.custom {
        metadata.insert("generation".into(), json!(1));
    }
    tidy(metadata);
}

/// Removes empty members that would only take room.
fn tidy(metadata: &mut Map<String, Value>) {
    metadata.retain(|_, value| match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    });
}

/// Carries over what an update may not change; checks uid and resourceVersion. `strict` demands a resourceVersion match
/// when one is given. Errors: conflict.
pub(super) fn carry_over(kind: &Kind, new: &mut Value, old: &Value, old_revision: u64) -> Result<(), Status> {
    let name = crate::json::text(old, "/metadata/name");
    let Some(metadata) = crate::json::metadata_mut(new) else { return Ok(()) };
    let given = metadata.get("resourceVersion").and_then(Value::as_str).unwrap_or_default();
    if !matches!(given, "" | "0") && given != old_revision.to_string() {
        return Err(Status::modified(&kind.group, &kind.plural, name));
    }
    let uid = metadata.get("uid").and_then(Value::as_str).unwrap_or_default();
    let own = crate::json::text(old, "/metadata/uid");
    if !uid.is_empty() && uid != own {
        let detail = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {own}");
        return Err(Status::conflict(&kind.group, &kind.plural, name, &detail));
    }
    metadata.remove("resourceVersion");
    metadata.remove("selfLink");
    for member in
        ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "generateName"]
    {
        match old["metadata"].get(member) {
            Some(value) => metadata.insert(member.into(), value.clone()),
            None => metadata.remove(member),
        };
    }
    tidy(metadata);
    Ok(())
}

/// Counts a change of the desired state: everything but `metadata` and `status`.
pub(super) fn bump_generation(kind: &Kind, new: &mut Value, old: &Value) {
    let Some(generation) = old["metadata"]["generation"].as_i64() else { return };
    let differs = |a: &Value, b: &Value| {
        a.as_object().into_iter().flatten().any(|(member, value)| {
            !matches!(member.as_str(), "metadata" | "status" | "apiVersion" | "kind") && b.get(member) != Some(value)
        })
    };
    let status_counts = kind.custom && !kind.status_subresource && new.get("status") != old.get("status");
    if differs(new, old) || differs(old, new) || status_counts {
        crate::json::set_metadata(new, "generation", json!(generation.saturating_add(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_keep_their_prefix_and_fit_a_label() {
        let name = generate_name(&"a".repeat(100));
        assert_eq!(name.len(), 63);
        assert!(generate_name("web-").starts_with("web-"));
        assert_ne!(generate_name("web-"), generate_name("web-"));
    }

    #[test]
    fn generation_counts_the_desired_state_only() {
        let kind = Kind::new("apps", "v1", "Deployment", "deployments");
        let old = json!({"metadata": {"generation": 1}, "spec": {"a": 1}, "status": {"b": 1}});
        let mut same = json!({"metadata": {"generation": 1, "labels": {}}, "spec": {"a": 1}, "status": {"b": 2}});
        bump_generation(&kind, &mut same, &old);
        assert_eq!(same["metadata"]["generation"], 1);
        let mut other = json!({"metadata": {}, "spec": {"a": 2}});
        bump_generation(&kind, &mut other, &old);
        assert_eq!(other["metadata"]["generation"], 2);
    }
}
