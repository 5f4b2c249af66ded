//! Options of the verbs, and what writes answer. `Source:` `metav1.GetOptions`, `ListOptions`, `DeleteOptions`…

use bytes::Bytes;
use serde_json::Value;

use crate::object::Object;

/// What to do about fields that the schema does not know and about duplicate keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and warn; the default of the API.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

/// How `resource_version` of a read is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceVersionMatch {
    /// Exactly that version.
    Exact,
    /// That version or any newer one.
    NotOlderThan,
}

/// Options of a get.
#[derive(Clone, Debug, Default)]
pub struct GetOptions {
    /// `None`/empty: the newest; `0`: any; else at least this version.
    pub resource_version: Option<String>,
}

/// Options of lists and watches.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Label selector in its text form.
    pub label_selector: Option<String>,
    /// Field selector in its text form.
    pub field_selector: Option<String>,
    /// Most items to answer; 0 or `None` for all.
    pub limit: Option<u64>,
    /// Token of an earlier, cut-off list.
    pub continue_token: Option<String>,
    /// See [`ResourceVersionMatch`].
    pub resource_version: Option<String>,
    /// See [`ResourceVersionMatch`].
    pub resource_version_match: Option<ResourceVersionMatch>,
    /// End a watch after so many seconds.
    pub timeout_seconds: Option<u64>,
    /// Send bookmarks in a watch.
    pub allow_bookmarks: bool,
    /// Start a watch with the present state and mark its end by a bookmark.
    pub send_initial_events: Option<bool>,
}

/// Options of create, update and patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Go through everything, write nothing.
    pub dry_run: bool,
    /// Name of the field manager; required for apply.
    pub field_manager: Option<String>,
    /// What to do about unknown and duplicate fields.
    pub field_validation: FieldValidation,
    /// Apply takes over fields that others manage.
    pub force: bool,
}

/// What must hold of the object that is to be deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// The object has this uid.
    pub uid: Option<String>,
    /// The object is at this version.
    pub resource_version: Option<String>,
}

/// What happens to an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They stay, without their owner.
    Orphan,
    /// They go after the owner.
    Background,
    /// They go before the owner.
    Foreground,
}

/// Options of delete and deletecollection.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds that a workload gets to end; `None`: the object's own default.
    pub grace_period_seconds: Option<i64>,
    /// Conditions on the object.
    pub preconditions: Preconditions,
    /// What happens to dependents.
    pub propagation: Option<Propagation>,
    /// Go through everything, delete nothing.
    pub dry_run: bool,
}

/// The four patch formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' merge patch that knows merge keys.
    Strategic,
    /// Server-side apply; the body may be YAML turned into JSON by the dialect.
    Apply,
}

/// The body of a write: raw JSON where a client sent it (duplicate keys are still visible), a tree where code built it.
#[derive(Clone, Debug)]
pub enum Body {
    /// JSON text.
    Json(Bytes),
    /// An object that was already decoded.
    Value(Value),
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        Body::Json(bytes)
    }
}

impl From<Value> for Body {
    fn from(value: Value) -> Body {
        Body::Value(value)
    }
}

/// What create, update and patch answer.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object as it is now.
    pub object: Object,
    /// Whether the object is new.
    pub created: bool,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// What delete answers.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The object: its last state when it is gone, its present state when it waits for finalizers or its grace period.
    pub object: Object,
    /// Whether it is gone.
    pub gone: bool,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}
