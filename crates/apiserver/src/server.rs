//! The server: its options, its life, and the table of contents of its verbs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use jiff::Timestamp;
use store::SharedStore;

use crate::audit::AuditLog;
use crate::authentication::Authenticator;
use crate::authorization::RbacCache;
use crate::cache::{Caches, Feed, Progress, WatchCache};
use crate::fairness::{Fairness, FairnessLimits};
use crate::keys;
use crate::kind::Kind;
use crate::kind_table::KindTable;
use crate::object::{Object, ObjectList};
use crate::options::{Body, DeleteOptions, Deleted, GetOptions, ListOptions, PatchKind, WriteOptions, Written};
use crate::path::ResourcePath;
use crate::status::Status;
use crate::user::{Attributes, Decision, GROUP_MASTERS, RequestContext, UserInfo};
use crate::watch::WatchStream;

/// A bearer token that never expires; only its hash is kept.
#[derive(Clone, Debug)]
pub struct StaticToken {
    /// SHA-256 of the token.
    pub sha256: [u8; 32],
    /// Whom it stands for.
    pub user: UserInfo,
}

impl StaticToken {
    /// Hashes a token.
    pub fn new(token: &str, user: UserInfo) -> StaticToken {
        StaticToken { sha256: crate::authentication::sha256(token.as_bytes()), user }
    }
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
    /// Whether new pods get a projected volume with their service account's token; needs an agent that serves it.
    pub mount_service_account_tokens: bool,
    /// File of the audit log; `None`: no audit log.
    pub audit_log: Option<std::path::PathBuf>,
    /// How admission webhooks are called; `None`: a webhook that must be called fails.
    pub webhooks: Option<Arc<dyn crate::admission::WebhookTransport>>,
    /// How many requests and watches are let in at once.
    pub fairness: FairnessLimits,
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
            mount_service_account_tokens: false,
            audit_log: None,
            webhooks: None,
            fairness: FairnessLimits::default(),
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
    /// The audit log cannot be opened.
    #[error("cannot open the audit log {path}")]
    AuditLog {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
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
    pub(crate) store: SharedStore,
    pub(crate) options: Options,
    pub(crate) kinds: ArcSwap<KindTable>,
    pub(crate) builtin: Vec<Arc<Kind>>,
    pub(crate) caches: Arc<Caches>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) rbac: RbacCache,
    pub(crate) authenticator: Authenticator,
    pub(crate) fairness: Fairness,
    pub(crate) addresses: crate::allocation::AddressRanges,
    pub(crate) quota_locks: crate::admission::QuotaLocks,
    pub(crate) patterns: crate::schema::Patterns,
    pub(crate) event_lease: crate::maintenance::EventLease,
    audit: Option<AuditLog>,
    feed: Feed,
    open: AtomicBool,
}

impl ApiServer {
    /// Loads the watch caches, creates the default namespaces, roles and bindings, and starts the feed.
    ///
    /// Errors: the store cannot be read or written, or an option makes no sense.
    pub async fn open(store: SharedStore, kinds: Vec<Kind>, options: Options) -> Result<Arc<ApiServer>, Error> {
        let addresses = crate::allocation::AddressRanges::new(&options)?;
        let audit = options.audit_log.as_deref().map(AuditLog::open).transpose()?;
        let caches = Arc::new(Caches::default());
        let builtin: Vec<Arc<Kind>> = kinds.into_iter().map(Arc::new).collect();
        for kind in builtin.iter().filter(|kind| kind.view.is_none()) {
            caches.get(&keys::resource(&kind.group, &kind.plural)).set_selectable(&kind.selectable_fields);
        }
        let revision = crate::cache::load(&store, &caches).await?;
        let progress = Arc::new(Progress::default());
        let (changed, listener) = crate::custom::change_channel();
        let feed = Feed::start(store.clone(), caches.clone(), &progress, revision, listener);
        let authenticator = Authenticator::open(&store, &options).await?;
        let server = Arc::new(ApiServer {
            kinds: ArcSwap::from_pointee(KindTable::new(builtin.iter().cloned(), 1)),
            builtin,
            caches,
            progress,
            rbac: RbacCache::default(),
            authenticator,
            fairness: Fairness::new(options.fairness),
            addresses,
            quota_locks: crate::admission::QuotaLocks::default(),
            patterns: crate::schema::Patterns::default(),
            event_lease: crate::maintenance::EventLease::default(),
            audit,
            feed,
            open: AtomicBool::new(false),
            store,
            options,
        });
        // From here on the feed itself keeps the kinds in step, before a writer hears of its write.
        let _ = changed.set(Arc::downgrade(&server));
        crate::custom::refresh(&server);
        crate::bootstrap::run(&server).await?;
        server.open.store(true, Ordering::Release);
        crate::maintenance::start(&server);
        Ok(server)
    }

    /// All kinds at this moment.
    pub fn kinds(&self) -> Arc<KindTable> {
        self.kinds.load_full()
    }

    /// The newest revision that the caches know.
    pub fn revision(&self) -> u64 {
        self.progress.revision()
    }

    /// Whether the default objects are made. Before that, nobody outside is asked about them: a webhook that runs on this
    /// very cluster could never answer.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Whether the caches still follow the store.
    pub fn is_live(&self) -> bool {
        self.feed.is_running()
    }

    /// The address that the `kubernetes` Service is to have: the first of the range.
    pub fn service_address(&self) -> std::net::Ipv4Addr {
        self.addresses.api_address()
    }

    /// The public half of the key that signs service account tokens, as a JWK set.
    pub fn token_keys(&self) -> serde_json::Value {
        self.authenticator.jwks()
    }

    /// Reads one object, or its `status`/`scale` subresource.
    pub async fn get(&self, ctx: &RequestContext, path: &ResourcePath, o: &GetOptions) -> Result<Object, Status> {
        let _turn = self.admit(ctx, path, "get").await?;
        self.recorded(ctx, path, "get", self.get_object(path, o).await)
    }

    /// Lists a collection.
    pub async fn list(&self, ctx: &RequestContext, path: &ResourcePath, o: &ListOptions) -> Result<ObjectList, Status> {
        let _turn = self.admit_selection(ctx, path, o, "list").await?;
        self.recorded(ctx, path, "list", self.list_objects(path, o).await)
    }

    /// Watches a collection, or one object when the path has a name.
    pub async fn watch(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        o: &ListOptions,
    ) -> Result<WatchStream, Status> {
        let turn = self.admit_selection(ctx, path, o, "watch").await?;
        drop(turn);
        let place = self.fairness.watch(&ctx.user)?;
        self.recorded(ctx, path, "watch", self.watch_objects(path, o, place).await)
    }

    /// Creates an object, or posts to a subresource (`binding`, `eviction`, `token`).
    pub async fn create(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        body: impl Into<Body> + Send,
        o: &WriteOptions,
    ) -> Result<Written, Status> {
        let _turn = self.admit(ctx, path, "create").await?;
        self.recorded(ctx, path, "create", self.create_object(ctx, path, body.into(), o).await)
    }

    /// Replaces an object or its `status`/`scale`.
    pub async fn update(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        body: impl Into<Body> + Send,
        o: &WriteOptions,
    ) -> Result<Written, Status> {
        let _turn = self.admit(ctx, path, "update").await?;
        self.recorded(ctx, path, "update", self.update_object(ctx, path, body.into(), o).await)
    }

    /// Patches an object or its `status`/`scale`; apply creates what is missing.
    pub async fn patch(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        format: PatchKind,
        body: Bytes,
        o: &WriteOptions,
    ) -> Result<Written, Status> {
        let _turn = self.admit(ctx, path, "patch").await?;
        self.recorded(ctx, path, "patch", self.patch_object(ctx, path, format, body, o).await)
    }

    /// Deletes an object, at once or after its grace period and finalizers.
    pub async fn delete(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        o: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let _turn = self.admit(ctx, path, "delete").await?;
        self.recorded(ctx, path, "delete", self.delete_object(ctx, path, o).await)
    }

    /// Deletes all selected objects of a collection; answers those that it deleted.
    pub async fn delete_collection(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        o: &DeleteOptions,
        selection: &ListOptions,
    ) -> Result<ObjectList, Status> {
        let _turn = self.admit(ctx, path, "deletecollection").await?;
        self.recorded(ctx, path, "deletecollection", self.delete_objects(ctx, path, o, selection).await)
    }

    /// Lets admission judge a connection that the dialect serves itself (exec, attach, port-forward); `options` is the
    /// object that describes it. Answers warnings.
    pub async fn admit_connection(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        options: &serde_json::Value,
    ) -> Result<Vec<String>, Status> {
        let kind = self.kind(path)?;
        self.admit_connect(ctx, &kind, path, options).await
    }

    /// Whether `user` may do this.
    pub fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        let decision = self.rbac.authorize(&self.caches, user, attributes);
        let node = crate::authorization::node_name(user).filter(|_| decision.allowed && !user.is_in(GROUP_MASTERS));
        match node.and_then(|node| crate::authorization::objection(&self.caches, node, attributes)) {
            Some(reason) => Decision { allowed: false, reason },
            None => decision,
        }
    }

    /// Whom a bearer token stands for.
    ///
    /// Errors: unauthorized when it is unknown, expired, revoked, or its service account or pod is gone.
    pub async fn authenticate_token(&self, token: &str) -> Result<UserInfo, Status> {
        self.authenticator.authenticate(token, &self.caches, (self.options.now)()).map(|known| known.user)
    }

    /// Whether a certificate still stands for its machine: it ends with the `Node` object that it was given for.
    pub fn machine_is_known(&self, user: &UserInfo) -> bool {
        let Some(name) = crate::authorization::node_name(user).filter(|_| !user.uid.is_empty()) else { return true };
        let node = self.cache_of("", "nodes").get(name);
        node.is_some_and(|node| crate::json::text(&node.to_value(), "/metadata/uid") == user.uid)
    }

    /// Writes the audit record of a request that the dialect serves itself (exec, log, proxy…).
    pub fn audit(&self, ctx: &RequestContext, path: &ResourcePath, verb: &str, code: u16) {
        if let Some(audit) = &self.audit {
            audit.record(ctx, path, verb, code, (self.options.now)());
        }
    }

    /// Authorizes, then waits for the user's turn.
    async fn admit(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        verb: &str,
    ) -> Result<crate::fairness::Turn, Status> {
        self.admit_attributes(ctx, path, path.attributes(verb)).await
    }

    /// The same for a part of a collection, which may be allowed where the whole is not.
    async fn admit_selection(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        o: &ListOptions,
        verb: &str,
    ) -> Result<crate::fairness::Turn, Status> {
        let path = self.named_by_field(path, o);
        let mut attributes = path.attributes(verb);
        attributes.field_selector = o.field_selector.clone().unwrap_or_default();
        self.admit_attributes(ctx, &path, attributes).await
    }

    async fn admit_attributes(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        attributes: Attributes,
    ) -> Result<crate::fairness::Turn, Status> {
        let verb = attributes.verb.as_str();
        let decision = self.authorize(&ctx.user, &attributes);
        if !decision.allowed {
            let status = crate::authorization::refusal(&ctx.user, &attributes, &decision.reason);
            self.audit(ctx, path, verb, status.code);
            return Err(status);
        }
        self.fairness.turn(&ctx.user).await
    }

    fn recorded<T>(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        verb: &str,
        result: Result<T, Status>,
    ) -> Result<T, Status> {
        let code = match &result {
            Ok(_) => 200,
            Err(status) => status.code,
        };
        self.audit(ctx, path, verb, code);
        result
    }

    pub(crate) fn kind(&self, path: &ResourcePath) -> Result<Arc<Kind>, Status> {
        let kinds = self.kinds.load();
        let kind = kinds.lookup(&path.group, &path.version, &path.resource).ok_or_else(Status::no_such_resource)?;
        if !kind.namespaced && path.namespace.is_some() {
            return Err(Status::no_such_resource());
        }
        Ok(kind.clone())
    }

    pub(crate) fn cache(&self, kind: &Kind) -> Arc<WatchCache> {
        self.caches.get(&keys::resource(kind.storage_group(), &kind.plural))
    }

    pub(crate) fn cache_of(&self, group: &str, plural: &str) -> Arc<WatchCache> {
        self.caches.get(&keys::resource(group, plural))
    }

    /// The present object, or not found.
    pub(crate) fn present(&self, kind: &Kind, path: &ResourcePath) -> Result<Object, Status> {
        let name = path.name.as_deref().unwrap_or_default();
        if kind.namespaced && path.namespace.is_none() {
            return Err(Status::bad_request("an object of a namespaced kind needs a namespace"));
        }
        let relative = keys::relative(path.namespace.as_deref().unwrap_or_default(), name);
        self.cache(kind).get(&relative).ok_or_else(|| Status::not_found(&kind.group, &kind.plural, name))
    }
}
