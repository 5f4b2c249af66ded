//! create: a new object, or a post to a subresource.

use serde_json::Value;

use super::body::match_path;
use super::commit::taken;
use super::{Commit, Expect, Outcome, Verb, metadata};
use crate::admission::Request;
use crate::keys;
use crate::kind::Kind;
use crate::options::{Body, WriteOptions, Written};
use crate::path::ResourcePath;
use crate::server::ApiServer;
use crate::status::Status;
use crate::user::RequestContext;

/// How often a generated name or a handed-out address is tried anew when it turns out to be taken.
const ATTEMPTS: usize = 8;

impl ApiServer {
    pub(crate) async fn create_object(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        body: Body,
        o: &WriteOptions,
    ) -> Result<Written, Status> {
        let kind = self.kind(path)?;
        if path.subresource.is_some() {
            return crate::subresource::post(self, ctx, &kind, path, body, o).await;
        }
        if path.name.is_some() {
            return Err(Status::method_not_allowed(&kind.group, &kind.plural, "create"));
        }
        let decoded = self.decode(&kind, body, o.field_validation)?;
        if !kind.stored {
            return crate::review::answer(self, ctx, &kind, path.namespace.as_deref(), decoded);
        }
        let mut written = self.create_decoded(ctx, &kind, path, decoded.value, o, None).await?;
        written.warnings.splice(0..0, decoded.warnings);
        Ok(written)
    }

    /// Creates an object that was decoded already. `applied` is the configuration when it comes from an apply.
    pub(crate) async fn create_decoded(
        &self,
        ctx: &RequestContext,
        kind: &Kind,
        path: &ResourcePath,
        mut object: Value,
        o: &WriteOptions,
        applied: Option<&Value>,
    ) -> Result<Written, Status> {
        if kind.namespaced && path.namespace.as_deref().unwrap_or_default().is_empty() {
            return Err(Status::bad_request("an object of a namespaced kind needs a namespace"));
        }
        match_path(path, kind, &mut object)?;
        if !crate::json::text(&object, "/metadata/resourceVersion").is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        if kind.status_subresource
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
        self.fill_defaults(kind, &mut object);
        (kind.prepare_create)(&mut object);
        super::finalize::prepare_namespace(kind, &mut object);
        metadata::stamp_new(kind, &mut object, (self.options.now)());
        let prefix = crate::json::text(&object, "/metadata/generateName").to_owned();
        let generated = crate::json::text(&object, "/metadata/name").is_empty() && !prefix.is_empty();
        let mut warnings = Vec::new();
        // Only what may turn out to be taken is tried more than once, and so copied.
        let may_repeat = generated || kind.allocator.is_some();
        for attempt in 1..=ATTEMPTS {
            let mut candidate = if may_repeat { object.clone() } else { std::mem::take(&mut object) };
            if generated {
                crate::json::set_metadata(&mut candidate, "name", Value::from(metadata::generate_name(&prefix)));
            }
            let name = crate::json::text(&candidate, "/metadata/name").to_owned();
            let relative = keys::relative(path.namespace.as_deref().unwrap_or_default(), &name);
            self.check_namespace(kind, path, &name)?;
            if !generated && self.cache(kind).get(&relative).is_some() {
                return Err(Status::already_exists(&kind.group, &kind.plural, &name));
            }
            let mut request =
                Request { ctx, kind, path, verb: Verb::Create, old: None, dry_run: o.dry_run, warnings: Vec::new() };
            if self.mutate(&mut request, &mut candidate).await? && kind.status_subresource && kind.custom {
                candidate.as_object_mut().map(|map| map.remove("status"));
            }
            self.fill_defaults(kind, &mut candidate);
            let _quota = self.validate_and_admit(&mut request, &candidate).await?;
            warnings.clone_from(&request.warnings);
            crate::apply::record_write(
                kind,
                &mut candidate,
                None,
                applied,
                ctx,
                o,
                (self.options.now)(),
                path.subresource.as_deref(),
            )?;
            if o.dry_run {
                let object = self.as_if_written(kind, &relative, &candidate, 0);
                return Ok(Written { object, created: true, warnings });
            }
            let commit = Commit { kind, relative: &relative, expect: Expect::Absent, old: None, new: Some(&candidate) };
            match self.commit(commit).await? {
                Outcome::Done(object) => {
                    self.after_create(kind, &name).await;
                    return Ok(Written { object, created: true, warnings });
                }
                Outcome::Exists if generated && attempt < ATTEMPTS => {}
                Outcome::Exists => return Err(Status::already_exists(&kind.group, &kind.plural, &name)),
                Outcome::Stale => return Err(Status::modified(&kind.group, &kind.plural, &name)),
                Outcome::Taken(key, holder) => {
                    if attempt == ATTEMPTS || !crate::allocation::may_retry(&object, &key) {
                        return Err(crate::allocation::refusal(kind, &object, &key)
                            .unwrap_or_else(|| taken(kind, &name, &key, &holder)));
                    }
                }
            }
        }
        Err(Status::timeout("no free name was found; try again", 1))
    }

    /// A new namespace gets its default service account at once, so that pods can follow without a pause.
    async fn after_create(&self, kind: &Kind, name: &str) {
        if kind.is("", "namespaces")
            && let Err(error) = crate::bootstrap::default_account(self, name).await
        {
            tracing::warn!(namespace = name, %error, "cannot create the default service account");
        }
    }

    pub(crate) fn fill_defaults(&self, kind: &Kind, object: &mut Value) {
        if kind.structural {
            crate::schema::fill_defaults(kind, object);
        }
        (kind.default)(object);
    }

    /// A namespace must be there, and not on its way out, before something is created in it.
    fn check_namespace(&self, kind: &Kind, path: &ResourcePath, name: &str) -> Result<(), Status> {
        let Some(namespace) = path.namespace.as_deref().filter(|_| kind.namespaced && self.knows_namespaces()) else {
            return Ok(());
        };
        let Some(object) = self.cache_of("", "namespaces").get(namespace) else {
            return Err(Status::not_found("", "namespaces", namespace));
        };
        let object = object.to_value();
        if crate::json::text(&object, "/status/phase") == "Terminating"
            || !object["metadata"]["deletionTimestamp"].is_null()
        {
            let detail =
                format!("unable to create new content in namespace {namespace} because it is being terminated");
            let mut status = Status::forbidden(&kind.group, &kind.plural, name, &detail);
            status.details.causes.push(crate::status::Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            });
            return Err(status);
        }
        Ok(())
    }
}
