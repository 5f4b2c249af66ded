//! Group `events.k8s.io`: the events of the core group in newer words. One object, two ways to say it: what a new recorder
//! writes, `kubectl get events` shows.

use apiserver::{Cause, View};
use k8s_openapi::api::events::v1 as api;
use serde_json::Value;

use super::columns::{column, path};
use super::fields::{check_word, text};
use super::{Registration, core, core_columns as show, register, texts};

/// The words of this group, and those of the core group.
const WORDS: [(&str, &str); 7] = [
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

pub(super) fn kinds() -> Vec<Registration> {
    vec![register::<api::Event>("events", |kind| {
        kind.short_names = texts(&["ev"]);
        kind.view = Some(View { group: "", version: "v1", read: to_new, write: to_old });
        kind.selectable_fields = core::event_fields();
        kind.columns = vec![
            column("Last Seen", "string", |object, now| show::event_last_seen(&old(object), now)),
            path("Type", "string", ".type"),
            path("Reason", "string", ".reason"),
            column("Object", "string", |object, now| show::event_object(&old(object), now)),
            column("Message", "string", |object, _| text(object, "/note").trim().into()),
        ];
        kind.validate = validate;
    })]
}

fn rename(object: &mut Value, pairs: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in pairs {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

fn to_new(object: &mut Value) {
    rename(object, WORDS.into_iter().map(|(new, old)| (old, new)));
}

fn to_old(object: &mut Value) {
    rename(object, WORDS.into_iter());
    // The core kind cannot do without.
    if let Some(map) = object.as_object_mut() {
        map.entry("involvedObject").or_insert_with(|| serde_json::json!({}));
    }
}

fn old(object: &Value) -> Value {
    let mut object = object.clone();
    to_old(&mut object);
    object
}

fn validate(new: &Value, before: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (own, about) = (text(new, "/metadata/namespace"), text(new, "/regarding/namespace"));
    if own != about && !(about.is_empty() && own == "default") {
        causes.push(Cause::invalid("regarding.namespace", &about.into(), "does not match event.namespace"));
    }
    // Events of old recorders lack these; they may still be changed through here.
    if before.is_some() {
        return causes;
    }
    for field in ["eventTime", "reportingController", "reportingInstance", "action", "reason"] {
        if text(new, &format!("/{field}")).is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    check_word("type", new.get("type"), &["Normal", "Warning"], &mut causes);
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_the_same_after_both_ways() {
        let said = json!({"metadata": {"name": "a"}, "note": "n", "regarding": {"name": "p"}, "reportingController": "c",
            "deprecatedCount": 2, "reason": "r", "eventTime": "t", "series": {"count": 3}});
        let mut object = said.clone();
        to_old(&mut object);
        assert_eq!((&object["message"], &object["count"], &object["note"]), (&json!("n"), &json!(2), &Value::Null));
        to_new(&mut object);
        assert_eq!(object, said);
    }
}
