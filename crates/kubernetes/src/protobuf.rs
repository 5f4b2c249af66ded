//! Kubernetes' protobuf as request bodies: the typed clients of Go (and so `kubectl create`, `kubectl auth can-i`) send
//! nothing else. A small table of field numbers turns any message into the JSON of the same object; answers go out as
//! JSON, which every such client accepts. Pure.
//!
//! The table has a line per message: its name, then `number:json name:type`. Types: `s` text, `i` integer, `b` boolean,
//! `y` bytes, `d` double, `Q` quantity, `I` int-or-string, `T` time, `U` time with microseconds, `R` raw JSON, `F` field
//! set, `D` duration, `V` list of texts, else the name of a message; `*` before it means repeated, `{` a map from text.
//! The name `-` means that the message's fields belong to the parent. `Source:` the `generated.proto` files of Kubernetes.

use std::collections::HashMap;
use std::sync::LazyLock;

use apiserver::Status;
use base64::Engine;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// What every such body starts with.
const MAGIC: &[u8] = b"k8s\0";
/// Media type of such bodies.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// Deepest nesting of messages.
const MAX_DEPTH: usize = 64;
/// Most fields of one body.
const MAX_FIELDS: usize = 500_000;
const TABLE: &str = include_str!("protobuf/messages.txt");

/// Fields whose zero or `false` differs from their absence (pointers in Go, or always written); of all others clients send
/// zeros for "not set".
const ZERO_COUNTS: &[&str] = &[
    "replicas",
    "gracePeriodSeconds",
    "orphanDependents",
    "terminationGracePeriodSeconds",
    "activeDeadlineSeconds",
    "revisionHistoryLimit",
    "progressDeadlineSeconds",
    "minAvailable",
    "maxUnavailable",
    "maxSurge",
    "partition",
    "minReplicas",
    "stabilizationWindowSeconds",
    "parallelism",
    "completions",
    "backoffLimit",
    "backoffLimitPerIndex",
    "maxFailedIndexes",
    "ttlSecondsAfterFinished",
    "startingDeadlineSeconds",
    "successfulJobsHistoryLimit",
    "failedJobsHistoryLimit",
    "suspend",
    "manualSelector",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "shareProcessNamespace",
    "setHostnameAsFQDN",
    "hostUsers",
    "runAsUser",
    "runAsGroup",
    "runAsNonRoot",
    "fsGroup",
    "hostProcess",
    "readOnlyRootFilesystem",
    "allowPrivilegeEscalation",
    "privileged",
    "optional",
    "immutable",
    "controller",
    "blockOwnerDeletion",
    "defaultMode",
    "mode",
    "tolerationSeconds",
    "allocateLoadBalancerNodePorts",
    "ready",
    "serving",
    "terminating",
    "started",
    "attachRequired",
    "podInfoOnMount",
    "allowVolumeExpansion",
    "leaseTransitions",
    "leaseDurationSeconds",
    "expirationSeconds",
    "value",
    "revision",
    "priority",
    "weight",
    "exitCode",
    "restartCount",
    "disruptionsAllowed",
    "currentHealthy",
    "desiredHealthy",
    "expectedPods",
];
/// The same for empty texts: no storage class at all is not the default one.
const EMPTY_COUNTS: &[&str] = &["storageClassName"];

/// A body as JSON. Errors: it is not such a body, or not of a kind that is known here.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, Status> {
    let malformed = || Status::bad_request("the body is no valid Kubernetes protobuf");
    let envelope = bytes.strip_prefix(MAGIC).ok_or_else(malformed)?;
    let (mut kind, mut version, mut raw) = (String::new(), String::new(), &b""[..]);
    for field in Fields(envelope) {
        match field.ok_or_else(malformed)? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field.ok_or_else(malformed)? {
                        (1, Wire::Bytes(text)) => version = text_of(text).ok_or_else(malformed)?,
                        (2, Wire::Bytes(text)) => kind = text_of(text).ok_or_else(malformed)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(object)) => raw = object,
            _ => {}
        }
    }
    let name = message_name(&version, &kind);
    if row(&name).is_none() {
        return Err(Status::unsupported_media_type(format!("{version} {kind} is only taken as JSON or YAML")));
    }
    let mut budget = MAX_FIELDS;
    let mut value = message(&name, raw, 0, &mut budget).ok_or_else(malformed)?;
    value.insert("apiVersion".into(), version.into());
    value.insert("kind".into(), kind.into());
    Ok(Value::Object(value))
}

/// `apps/v1`, `Deployment` is `apps.v1.deployment`; delete options come under the version of what is deleted.
fn message_name(version: &str, kind: &str) -> String {
    if kind == "DeleteOptions" {
        return "meta.v1.deleteoptions".into();
    }
    let (group, version) = version.split_once('/').unwrap_or(("core", version));
    let group = group.split('.').next().unwrap_or_default();
    format!("{group}.{version}.{}", kind.to_lowercase())
}

fn row(name: &str) -> Option<&'static str> {
    static ROWS: LazyLock<HashMap<&str, &str>> =
        LazyLock::new(|| TABLE.lines().filter_map(|line| line.split_once(' ')).collect());
    ROWS.get(name).copied()
}

enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message; an item is `None` when the message is broken, and nothing follows it.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = next_field(&mut self.0);
        if field.is_none() {
            self.0 = b"";
        }
        Some(field)
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Wire<'a>)> {
    let key = varint(bytes)?;
    let wire = match key & 7 {
        0 => Wire::Number(varint(bytes)?),
        1 => Wire::Number(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?)),
        2 => {
            let count = usize::try_from(varint(bytes)?).ok()?;
            Wire::Bytes(take(bytes, count)?)
        }
        5 => Wire::Number(u64::from(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?))),
        _ => return None,
    };
    Some((key >> 3, wire))
}

fn text_of(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn message(name: &str, bytes: &[u8], depth: usize, budget: &mut usize) -> Option<Map<String, Value>> {
    if depth > MAX_DEPTH {
        return None;
    }
    let row = row(name)?;
    let mut map = Map::new();
    for field in Fields(bytes) {
        *budget = budget.checked_sub(1)?;
        let (number, wire) = field?;
        let number = number.to_string();
        let Some((json_name, code)) = row.split(' ').find_map(|entry| {
            let (tag, rest) = entry.split_once(':')?;
            (tag == number).then(|| rest.split_once(':')).flatten()
        }) else {
            continue;
        };
        if let Some(code) = code.strip_prefix('{') {
            let Wire::Bytes(entry) = wire else { return None };
            let (key, value) = map_entry(code, entry, depth, budget)?;
            let inner = map.entry(json_name).or_insert_with(|| json!({}));
            inner.as_object_mut()?.insert(key, value);
        } else if let Some(code) = code.strip_prefix('*') {
            let value = single(code, wire, depth, budget)?;
            map.entry(json_name).or_insert_with(|| json!([])).as_array_mut()?.push(value);
        } else {
            let value = single(code, wire, depth, budget)?;
            if json_name == "-" {
                map.extend(value.as_object().cloned()?);
            } else if counts(json_name, &value) {
                map.insert(json_name.into(), value);
            }
        }
    }
    Some(map)
}

/// Whether a value says anything: Go writes empty texts, zeros and empty messages for what is not set.
fn counts(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty() || EMPTY_COUNTS.contains(&name),
        Value::Bool(yes) => *yes || ZERO_COUNTS.contains(&name),
        Value::Number(number) => number.as_f64() != Some(0.0) || ZERO_COUNTS.contains(&name),
        Value::Object(map) => {
            !map.is_empty()
                || !matches!(
                    name,
                    "status" | "strategy" | "updateStrategy" | "resources" | "metadata" | "loadBalancer" | "source"
                )
        }
        Value::Array(_) => true,
    }
}

fn map_entry(code: &str, bytes: &[u8], depth: usize, budget: &mut usize) -> Option<(String, Value)> {
    let empty = match code {
        "s" | "y" | "Q" => Value::from(""),
        "i" => Value::from(0),
        "b" => Value::from(false),
        "V" => json!([]),
        _ => json!({}),
    };
    let (mut key, mut value) = (String::new(), empty);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Bytes(text)) => key = text_of(text)?,
            (2, wire) => value = single(code, wire, depth, budget)?,
            _ => {}
        }
    }
    Some((key, value))
}

fn single(code: &str, wire: Wire<'_>, depth: usize, budget: &mut usize) -> Option<Value> {
    Some(match (code, wire) {
        // Negative numbers are sign-extended to 64 bits.
        ("i", Wire::Number(number)) => Value::from(number.cast_signed()),
        ("b", Wire::Number(number)) => Value::from(number != 0),
        ("d", Wire::Number(bits)) => Value::from(f64::from_bits(bits)),
        ("s", Wire::Bytes(bytes)) => Value::from(text_of(bytes)?),
        ("y", Wire::Bytes(bytes)) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        ("Q" | "R" | "F" | "V" | "I" | "T" | "U" | "D", Wire::Bytes(bytes)) => special(code, bytes)?,
        (name, Wire::Bytes(bytes)) => Value::Object(message(name, bytes, depth + 1, budget)?),
        _ => return None,
    })
}

/// Messages whose JSON is not an object of their fields.
fn special(code: &str, bytes: &[u8]) -> Option<Value> {
    let mut numbers = [0u64; 4];
    let mut texts: Vec<&[u8]> = Vec::new();
    for field in Fields(bytes) {
        match field? {
            (number, Wire::Number(value)) => *numbers.get_mut(usize::try_from(number).ok()?)? = value,
            (_, Wire::Bytes(text)) => texts.push(text),
        }
    }
    let first = texts.first().copied().unwrap_or_default();
    Some(match code {
        "Q" => text_of(first)?.into(),
        "V" => texts.into_iter().map(text_of).collect::<Option<Vec<_>>>()?.into(),
        "R" | "F" if first.is_empty() => Value::Null,
        "R" | "F" => {
            crate::body::check_depth(first).ok()?;
            serde_json::from_slice(first).ok()?
        }
        "D" => Value::from(numbers[1].cast_signed()),
        "I" if numbers[1] == 1 => text_of(first)?.into(),
        "I" => Value::from(numbers[2].cast_signed()),
        _ if numbers[1] == 0 && numbers[2] == 0 => Value::Null,
        _ => {
            let nanoseconds = i32::try_from(numbers[2].cast_signed()).ok()?;
            let instant = Timestamp::new(numbers[1].cast_signed(), nanoseconds).ok()?;
            if code == "U" { format!("{instant:.6}").into() } else { format!("{instant:.0}").into() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    fn body(version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
        let meta = [bytes_field(1, version.as_bytes()), bytes_field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes_field(1, &meta), bytes_field(2, object)].concat()
    }

    #[test]
    fn a_config_map_becomes_json() {
        let metadata = bytes_field(1, &bytes_field(1, b"settings"));
        let data = bytes_field(2, &[bytes_field(1, b"key"), bytes_field(2, b"text")].concat());
        let value = decode(&body("v1", "ConfigMap", &[metadata, data].concat())).unwrap();
        assert_eq!(
            value,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"key": "text"}})
        );
    }

    #[test]
    fn zero_replicas_are_kept_and_other_zeros_dropped() {
        let spec = bytes_field(2, &[1 << 3, 0, 5 << 3, 0]);
        let value = decode(&body("apps/v1", "Deployment", &spec)).unwrap();
        assert_eq!(value["spec"], json!({"replicas": 0}));
    }

    /// "No disruption at all" must not become "no bound on disruption".
    #[test]
    fn a_disruption_budget_of_zero_is_kept() {
        let zero = [1 << 3, 0, 2 << 3, 0];
        let spec = bytes_field(2, &bytes_field(3, &zero));
        let value = decode(&body("policy/v1", "PodDisruptionBudget", &spec)).unwrap();
        assert_eq!(value["spec"], json!({"maxUnavailable": 0}));
        let port = bytes_field(2, &bytes_field(1, &bytes_field(4, &zero)));
        let value = decode(&body("v1", "Service", &port)).unwrap();
        assert_eq!(value["spec"]["ports"], json!([{}]), "a target port of zero means none");
    }

    #[test]
    fn a_job_and_a_claim_become_json() {
        let job = bytes_field(2, &[7 << 3, 0, 10 << 3, 0]);
        let value = decode(&body("batch/v1", "Job", &job)).unwrap();
        assert_eq!(value["spec"], json!({"backoffLimit": 0, "suspend": false}));
        let claim = bytes_field(2, &[bytes_field(1, b"ReadWriteOnce"), bytes_field(5, b"")].concat());
        let value = decode(&body("v1", "PersistentVolumeClaim", &claim)).unwrap();
        assert_eq!(value["spec"], json!({"accessModes": ["ReadWriteOnce"], "storageClassName": ""}));
    }

    #[test]
    fn every_message_has_one_row_and_every_number_one_name() {
        let mut names = std::collections::BTreeSet::new();
        for line in TABLE.lines() {
            let mut parts = line.split(' ');
            assert!(names.insert(parts.next().unwrap()), "{line}");
            let mut numbers = std::collections::BTreeSet::new();
            assert!(parts.all(|entry| numbers.insert(entry.split(':').next().unwrap())), "{line}");
        }
    }

    #[test]
    fn unknown_kinds_and_broken_bodies_are_refused() {
        assert_eq!(decode(&body("example.com/v1", "Thing", b"")).unwrap_err().code, 415);
        assert_eq!(decode(b"{}").unwrap_err().code, 400);
        assert_eq!(decode(&body("v1", "Pod", &[0xff])).unwrap_err().code, 400);
    }

    #[test]
    fn every_type_of_the_table_is_a_row_or_a_letter() {
        for line in TABLE.lines() {
            for entry in line.split(' ').skip(1) {
                let code = entry.rsplit(':').next().unwrap().trim_start_matches(['*', '{']);
                assert!(
                    matches!(code, "s" | "i" | "b" | "y" | "d" | "Q" | "I" | "T" | "U" | "R" | "F" | "D" | "V")
                        || row(code).is_some(),
                    "{line}: {code}"
                );
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_at_all_panics(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let _ = decode(&[MAGIC, &bytes].concat());
        }

        #[test]
        fn no_body_panics(object: Vec<u8>) {
            let object: Vec<u8> = object.into_iter().take(120).collect();
            let _ = decode(&body("v1", "Pod", &object));
        }
    }
}
