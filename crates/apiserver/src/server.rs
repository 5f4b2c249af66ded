//! The server: its options, its life, and the table of contents of its verbs.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use jiff::Timestamp;

use crate::kind::Kind;
use crate::kind_table::KindTable;
use crate::object::{Object, ObjectList};
use crate::options::{Body, DeleteOptions, Deleted, GetOptions, ListOptions, PatchKind, WriteOptions, Written};
use crate::path::ResourcePath;
use crate::status::Status;
use crate::user::{Attributes, Decision, RequestContext, UserInfo};
use crate::watch::WatchStream;

/// A bearer token that never expires; only its hash is kept.
#[derive(Clone, Debug)]
pub struct StaticToken {
    /// SHA-256 of the token.
    pub sha256: [u8; 32],
    /// Whom it stands for.
    pub user: UserInfo,
}

/// Options of [`ApiServer::open`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Range of Service addresses in CIDR notation.
    pub service_cidr: String,
    /// Range of node ports, both inclusive.
    pub node_ports: (u16, u16),
    /// Issuer named in service account tokens.
    pub token_issuer: String,
    /// PKCS#8 of the P-256 key that signs service account tokens; `None`: made once and kept in the store.
    pub token_key: Option<Vec<u8>>,
    /// Static bearer tokens.
    pub tokens: Vec<StaticToken>,
    /// File of the audit log; `None`: no audit log.
    pub audit_log: Option<std::path::PathBuf>,
    /// The clock.
    pub now: fn() -> Timestamp,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            service_cidr: "10.96.0.0/16".to_owned(),
            node_ports: (30000, 32767),
            token_issuer: "https://kubernetes.default.svc".to_owned(),
            token_key: None,
            tokens: Vec::new(),
            audit_log: None,
            now: Timestamp::now,
        }
    }
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error("cannot read the store")]
    Store(#[from] store::Error),
    /// A default object could not be written.
    #[error("cannot create the default objects")]
    Bootstrap(#[from] Status),
    /// An option makes no sense.
    #[error("invalid option {option}: {detail}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What is wrong.
        detail: String,
    },
}

/// The machinery over one store. Cheap to share; all methods take `&self`.
pub struct ApiServer {
    kinds: ArcSwap<KindTable>,
}

impl ApiServer {
    /// Loads the watch caches, creates the default namespaces, roles and bindings, and starts the feed.
    pub async fn open(
        _store: store::SharedStore,
        kinds: Vec<Kind>,
        _options: Options,
    ) -> Result<Arc<ApiServer>, Error> {
        let table = KindTable::new(kinds.into_iter().map(Arc::new), 1);
        Ok(Arc::new(ApiServer { kinds: ArcSwap::from_pointee(table) }))
    }

    /// All kinds at this moment.
    pub fn kinds(&self) -> Arc<KindTable> {
        self.kinds.load_full()
    }

    /// Reads one object, or its `status`/`scale` subresource.
    pub async fn get(&self, _: &RequestContext, path: &ResourcePath, _: &GetOptions) -> Result<Object, Status> {
        Err(not_yet(path))
    }

    /// Lists a collection.
    pub async fn list(&self, _: &RequestContext, path: &ResourcePath, _: &ListOptions) -> Result<ObjectList, Status> {
        Err(not_yet(path))
    }

    /// Watches a collection, or one object when the path has a name.
    pub async fn watch(&self, _: &RequestContext, path: &ResourcePath, _: &ListOptions) -> Result<WatchStream, Status> {
        Err(not_yet(path))
    }

    /// Creates an object, or posts to a subresource (`binding`, `eviction`, `token`).
    pub async fn create(
        &self,
        _: &RequestContext,
        path: &ResourcePath,
        _body: impl Into<Body> + Send,
        _: &WriteOptions,
    ) -> Result<Written, Status> {
        Err(not_yet(path))
    }

    /// Replaces an object or its `status`/`scale`.
    pub async fn update(
        &self,
        _: &RequestContext,
        path: &ResourcePath,
        _body: impl Into<Body> + Send,
        _: &WriteOptions,
    ) -> Result<Written, Status> {
        Err(not_yet(path))
    }

    /// Patches an object or its `status`/`scale`; apply creates what is missing.
    pub async fn patch(
        &self,
        _: &RequestContext,
        path: &ResourcePath,
        _: PatchKind,
        _body: Bytes,
        _: &WriteOptions,
    ) -> Result<Written, Status> {
        Err(not_yet(path))
    }

    /// Deletes an object, at once or after its grace period and finalizers.
    pub async fn delete(&self, _: &RequestContext, path: &ResourcePath, _: &DeleteOptions) -> Result<Deleted, Status> {
        Err(not_yet(path))
    }

    /// Deletes all selected objects of a collection; answers those that it deleted.
    pub async fn delete_collection(
        &self,
        _: &RequestContext,
        path: &ResourcePath,
        _: &DeleteOptions,
        _: &ListOptions,
    ) -> Result<ObjectList, Status> {
        Err(not_yet(path))
    }

    /// Whether `user` may do this.
    pub fn authorize(&self, user: &UserInfo, _: &Attributes) -> Decision {
        Decision { allowed: user.is_in(crate::user::GROUP_MASTERS), reason: String::new() }
    }

    /// Who a bearer token stands for.
    pub async fn authenticate_token(&self, _token: &str) -> Result<UserInfo, Status> {
        Err(Status::unauthorized())
    }
}

fn not_yet(path: &ResourcePath) -> Status {
    Status::unavailable(format!("{} cannot be served yet", path.qualified()))
}
