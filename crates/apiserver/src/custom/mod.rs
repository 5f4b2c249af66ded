//! CustomResourceDefinitions: kinds that arrive at run time. They are accepted, established and served within the write
//! that makes them.

mod check;
mod kinds;
mod rules;

pub use check::check;

use std::sync::{Arc, OnceLock, Weak};

use serde_json::{Value, json};

use crate::cache::Listener;
use crate::keys;
use crate::kind::Kind;
use crate::kind_table::KindTable;
use crate::server::ApiServer;

/// Group of CustomResourceDefinitions.
pub const GROUP: &str = "apiextensions.k8s.io";
/// Plural of CustomResourceDefinitions.
pub const PLURAL: &str = "customresourcedefinitions";

/// Whether this is the kind of definitions.
pub fn is_definition(kind: &Kind) -> bool {
    kind.is(GROUP, PLURAL)
}

/// The feed's listener, which needs the server that is only made after it, and the place to put that.
pub fn change_channel() -> (Arc<OnceLock<Weak<ApiServer>>>, Listener) {
    let slot: Arc<OnceLock<Weak<ApiServer>>> = Arc::default();
    let server = slot.clone();
    let definitions = keys::resource(GROUP, PLURAL);
    let listener = Box::new(move |resource: &str| {
        if resource == definitions
            && let Some(server) = server.get().and_then(Weak::upgrade)
        {
            refresh(&server);
        }
    });
    (slot, listener)
}

/// Builds the table of kinds anew from the built-in ones and the established definitions.
pub fn refresh(server: &ApiServer) {
    let mut kinds: Vec<Arc<Kind>> = server.builtin.clone();
    for definition in server.cache_of(GROUP, PLURAL).all("") {
        kinds.extend(kinds::of_definition(&definition.to_value()).into_iter().map(Arc::new));
    }
    for kind in kinds.iter().filter(|kind| kind.custom && kind.version == kind.storage_version) {
        server.cache(kind).set_selectable(&kind.selectable_fields);
    }
    let generation = server.kinds.load().generation() + 1;
    server.kinds.store(Arc::new(KindTable::new(kinds, generation)));
}

/// Fills in names and the status of a definition. Names that another definition or kind has are not accepted.
pub(crate) fn complete(server: &ApiServer, definition: &mut Value) {
    let now = crate::write::time((server.options.now)());
    let names = &mut definition["spec"]["names"];
    if !names.is_object() {
        return;
    }
    let kind = crate::json::text(names, "/kind").to_owned();
    if crate::json::text(names, "/singular").is_empty() {
        names["singular"] = json!(kind.to_lowercase());
    }
    if crate::json::text(names, "/listKind").is_empty() {
        names["listKind"] = json!(format!("{kind}List"));
    }
    let names = names.clone();
    if crate::json::is_empty(definition["spec"].get("conversion")) {
        definition["spec"]["conversion"] = json!({"strategy": "None"});
    }
    let conflict = name_conflict(server, definition);
    let accepted = conflict.is_none();
    let storage =
        definition["spec"]["versions"].as_array().into_iter().flatten().find(|version| version["storage"] == true);
    let storage = storage.map(|version| version["name"].clone());
    let mut stored = definition["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
    stored.extend(storage.filter(|version| !stored.contains(version)));
    let before = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let condition = |class: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let same = before.iter().find(|old| old["type"] == class && old["status"] == status);
        let since = same.map_or_else(|| json!(now), |old| old["lastTransitionTime"].clone());
        json!({"type": class, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
    };
    let conditions = match &conflict {
        None => json!([
            condition("NamesAccepted", true, "NoConflicts", "no conflicts found"),
            condition("Established", true, "InitialNamesAccepted", "the initial names have been accepted"),
        ]),
        Some(message) => json!([
            condition("NamesAccepted", false, "NameConflict", message),
            condition("Established", false, "NotAccepted", "not all names are accepted"),
        ]),
    };
    let accepted_names = if accepted { names } else { json!({"plural": "", "kind": ""}) };
    definition["status"] = json!({"acceptedNames": accepted_names, "storedVersions": stored, "conditions": conditions});
}

fn name_conflict(server: &ApiServer, definition: &Value) -> Option<String> {
    let group = crate::json::text(definition, "/spec/group");
    let plural = crate::json::text(definition, "/spec/names/plural");
    let kind = crate::json::text(definition, "/spec/names/kind");
    let table = server.kinds.load();
    let other = table.iter().find(|other| {
        other.group == group
            && (other.plural != plural && (other.kind == kind || other.short_names.iter().any(|name| name == plural))
                || other.plural == plural && !other.custom)
    })?;
    Some(format!("{kind:?} or {plural:?} is already in use by {:?}", other.qualified()))
}
