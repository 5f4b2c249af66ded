//! Who asks, and for what: identities, request contexts and the attributes that authorization looks at.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// The group of everyone who proved who they are.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// The group of everyone who did not.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group that may do everything, whatever RBAC says.
pub const GROUP_MASTERS: &str = "system:masters";

/// An authenticated identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// Unique name, e.g. `alice` or `system:serviceaccount:default:builder`.
    pub name: String,
    /// Identity that survives re-creation of the name; may be empty.
    pub uid: String,
    /// Groups, including `system:authenticated`.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user with these groups, plus `system:authenticated`.
    pub fn new(name: &str, groups: &[&str]) -> UserInfo {
        let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        if !groups.iter().any(|group| group == GROUP_AUTHENTICATED) {
            groups.push(GROUP_AUTHENTICATED.to_owned());
        }
        UserInfo { name: name.to_owned(), groups, ..UserInfo::default() }
    }

    /// A member of `system:masters`, for in-process parts of the server itself.
    pub fn master(name: &str) -> UserInfo {
        UserInfo::new(name, &[GROUP_MASTERS])
    }

    /// Whoever did not authenticate.
    pub fn anonymous() -> UserInfo {
        UserInfo {
            name: "system:anonymous".to_owned(),
            groups: vec![GROUP_UNAUTHENTICATED.to_owned()],
            ..UserInfo::default()
        }
    }

    /// Whether the user is a member of `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }
}

/// What comes with a request beside its path, options and body.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// The client's `User-Agent`; names the field manager when the client names none.
    pub user_agent: String,
    /// Identity of the request in the audit log.
    pub audit_id: String,
    /// Where it came from, when it came over the network.
    pub source: Option<IpAddr>,
    /// What admission wants the audit log to say beside.
    pub notes: AuditNotes,
}

/// Annotations of a request's audit record. Cheap to clone; all clones share them.
#[derive(Clone, Debug, Default)]
pub struct AuditNotes(Arc<Mutex<BTreeMap<String, String>>>);

/// Most annotations of one record, and the longest. Units: bytes.
const MAX_NOTES: usize = 64;
const MAX_NOTE_BYTES: usize = 10 * 1024;

impl AuditNotes {
    /// Adds an annotation; the first of a name stays.
    pub fn add(&self, name: &str, text: String) {
        let mut notes = self.0.lock();
        if notes.len() < MAX_NOTES && name.len() + text.len() <= MAX_NOTE_BYTES {
            notes.entry(name.to_owned()).or_insert(text);
        }
    }

    /// All annotations.
    pub fn all(&self) -> BTreeMap<String, String> {
        self.0.lock().clone()
    }
}

impl RequestContext {
    /// The context of an in-process part of the server with full rights.
    pub fn internal(name: &str) -> RequestContext {
        RequestContext::of(UserInfo::master(name))
    }

    /// A context for `user` with a new audit id.
    pub fn of(user: UserInfo) -> RequestContext {
        RequestContext {
            user_agent: user.name.clone(),
            user: Arc::new(user),
            audit_id: uuid::Uuid::new_v4().to_string(),
            source: None,
            notes: AuditNotes::default(),
        }
    }
}

/// What a request wants to do. `Source:` Kubernetes' `SubjectAccessReviewSpec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or a special verb.
    pub verb: String,
    /// API group; empty for the core group.
    pub group: String,
    /// API version, for information only.
    pub version: String,
    /// Plural resource name.
    pub resource: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// Namespace, or empty for cluster scope or "all namespaces".
    pub namespace: String,
    /// Object name, or empty.
    pub name: String,
    /// Field selector of a list or watch, or empty.
    pub field_selector: String,
    /// Set for requests outside resources, e.g. `/version`; then the resource fields do not count.
    pub non_resource_path: Option<String>,
}

/// What authorization answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Why, for people.
    pub reason: String,
}
