//! update: replaces an object or its status; also the common last stretch of every patch.

use serde_json::Value;

use super::body::match_path;
use super::commit::taken;
use super::{Commit, Expect, Outcome, Verb, metadata};
use crate::admission::Request;
use crate::kind::Kind;
use crate::object::Object;
use crate::options::{Body, WriteOptions, Written};
use crate::path::ResourcePath;
use crate::server::ApiServer;
use crate::status::Status;
use crate::user::RequestContext;

/// How often a change that names no version is computed anew when the object changed meanwhile.
pub(crate) const ATTEMPTS: usize = 16;

/// What changes an object: computes the new state from the present one.
pub(crate) struct Change {
    /// The new state before server-side rules.
    pub(crate) object: Value,
    /// The configuration when the change is an apply.
    pub(crate) applied: Option<Value>,
    pub(crate) warnings: Vec<String>,
}

impl ApiServer {
    pub(crate) async fn update_object(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        body: Body,
        o: &WriteOptions,
    ) -> Result<Written, Status> {
        let kind = self.kind(path)?;
        if !kind.stored || path.name.is_none() {
            return Err(Status::method_not_allowed(&kind.group, &kind.plural, "update"));
        }
        match path.subresource.as_deref() {
            None => {}
            Some("status") if kind.status_subresource => {}
            Some("finalize") if kind.is("", "namespaces") => {}
            Some("ephemeralcontainers" | "resize") if kind.is("", "pods") => {}
            Some("approval") if kind.is("certificates.k8s.io", "certificatesigningrequests") => {}
            Some("scale") => return crate::scale::put(self, ctx, &kind, path, body, o).await,
            Some(_) => return Err(Status::no_such_resource()),
        }
        let decoded = self.decode(&kind, body, o.field_validation)?;
        let mut object = decoded.value;
        match_path(path, &kind, &mut object)?;
        // Without a version the client means "whatever it is now", so a race is ours to solve.
        let warnings = decoded.warnings;
        self.change(ctx, &kind, path, o, |_, _| {
            Ok(Change { object: object.clone(), applied: None, warnings: warnings.clone() })
        })
        .await
    }

    /// Changes an object by a function of its present state, as often as needed until no one came in between.
    pub(crate) async fn change(
        &self,
        ctx: &RequestContext,
        kind: &Kind,
        path: &ResourcePath,
        o: &WriteOptions,
        change: impl Fn(&Object, &Value) -> Result<Change, Status>,
    ) -> Result<Written, Status> {
        let name = path.name.as_deref().unwrap_or_default();
        for _ in 0..ATTEMPTS {
            let present = self.present(kind, path)?;
            let mut old = kind.to_shown(present.to_value());
            let Change { mut object, applied, mut warnings } = change(&present, &old)?;
            match_path(path, kind, &mut object)?;
            metadata::carry_over(kind, &mut object, &old, present.revision())?;
            restrict(kind, path, &mut object, &old);
            let mut request = Request {
                ctx,
                kind,
                path,
                verb: Verb::Update,
                old: Some(&old),
                dry_run: o.dry_run,
                warnings: Vec::new(),
            };
            if path.subresource.as_deref() != Some("finalize") {
                self.fill_defaults(kind, &mut object);
                if path.subresource.is_none() {
                    (kind.prepare_update)(&mut object, &old);
                }
                if self.mutate(&mut request, &mut object).await? {
                    // A webhook may change no more than the client may.
                    metadata::carry_over(kind, &mut object, &old, present.revision())?;
                    restrict(kind, path, &mut object, &old);
                    self.fill_defaults(kind, &mut object);
                }
            }
            metadata::bump_generation(kind, &mut object, &old);
            let _quota = self.validate_and_admit(&mut request, &object).await?;
            warnings.append(&mut request.warnings);
            crate::apply::record_write(
                kind,
                &mut object,
                Some(&old),
                applied.as_ref(),
                ctx,
                o,
                (self.options.now)(),
                path.subresource.as_deref(),
            )?;
            if let Some(map) = old.get_mut("metadata").and_then(Value::as_object_mut) {
                map.remove("resourceVersion");
            }
            if same(&object, &old) {
                return Ok(Written { object: crate::read::show(kind, present), created: false, warnings });
            }
            let gone = super::finalize::may_go(kind, &object);
            if o.dry_run {
                let object = self.as_if_written(kind, &present.meta.key, &object, present.revision());
                return Ok(Written { object, created: false, warnings });
            }
            let commit = Commit {
                kind,
                relative: &present.meta.key,
                expect: Expect::Revision(present.revision()),
                old: Some(if gone { &object } else { &old }),
                new: if gone { None } else { Some(&object) },
            };
            match self.commit(commit).await? {
                Outcome::Done(object) => return Ok(Written { object, created: false, warnings }),
                // The cache may be a moment behind; the next round sees the newer state.
                Outcome::Stale | Outcome::Exists => self.catch_up(&present).await,
                Outcome::Taken(key, holder) => {
                    return Err(crate::allocation::refusal(kind, &object, &key)
                        .unwrap_or_else(|| taken(kind, name, &key, &holder)));
                }
            }
        }
        Err(Status::modified(&kind.group, &kind.plural, name))
    }

    /// Waits until the cache knows more than `seen`.
    pub(crate) async fn catch_up(&self, seen: &Object) {
        if let Ok(newest) = self.store.revision().await
            && newest > seen.revision()
        {
            self.progress.wait(newest, std::time::Duration::from_secs(1)).await;
        }
    }
}

/// Leaves of the new state only what the addressed (sub)resource may change.
fn restrict(kind: &Kind, path: &ResourcePath, object: &mut Value, old: &Value) {
    let keep = |object: &mut Value, member: &str, from: &Value| match from.get(member) {
        Some(value) => object[member] = value.clone(),
        None => {
            if let Some(map) = object.as_object_mut() {
                map.remove(member);
            }
        }
    };
    match path.subresource.as_deref() {
        None => {
            if kind.status_subresource {
                keep(object, "status", old);
            }
            if kind.is("", "namespaces") && object.get("spec").is_some() {
                object["spec"] = old["spec"].clone();
            }
        }
        Some("status") => {
            let mut result = old.clone();
            keep(&mut result, "status", object);
            if !kind.custom {
                // Built-in kinds let the status writer change labels and annotations too.
                for member in ["labels", "annotations", "finalizers"] {
                    match object["metadata"].get(member) {
                        Some(value) => result["metadata"][member] = value.clone(),
                        None => {
                            if let Some(metadata) = crate::json::metadata_mut(&mut result) {
                                metadata.remove(member);
                            }
                        }
                    }
                }
            }
            carry_managed_fields(&mut result, object);
            *object = result;
        }
        Some("binding") => {}
        Some("finalize") => {
            let mut result = old.clone();
            result["spec"] = object["spec"].clone();
            *object = result;
        }
        Some("ephemeralcontainers") => {
            let mut result = old.clone();
            result["spec"]["ephemeralContainers"] = object["spec"]["ephemeralContainers"].clone();
            carry_managed_fields(&mut result, object);
            *object = result;
        }
        Some("approval") => {
            let mut result = old.clone();
            result["status"]["conditions"] = object["status"]["conditions"].clone();
            carry_managed_fields(&mut result, object);
            *object = result;
        }
        Some(_) => keep(object, "status", old),
    }
    if let Some(metadata) = crate::json::metadata_mut(object) {
        metadata.remove("resourceVersion");
    }
}

fn carry_managed_fields(result: &mut Value, object: &Value) {
    if let Some(managers) = object["metadata"].get("managedFields") {
        crate::json::set_metadata(result, "managedFields", managers.clone());
    }
}

/// Whether nothing changed; the time of the last manager does not count.
fn same(new: &Value, old: &Value) -> bool {
    let without_times = |object: &Value| {
        let mut object = object.clone();
        for entry in object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(map) = entry.as_object_mut() {
                map.remove("time");
            }
        }
        object
    };
    new == old
        || (new["spec"] == old["spec"] && new["status"] == old["status"] && without_times(new) == without_times(old))
}
