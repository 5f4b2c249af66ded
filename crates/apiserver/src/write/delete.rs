//! delete and deletecollection: preconditions, grace periods, finalizers and what happens to dependents.

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::finalize::{FOREGROUND, ORPHAN, may_go, terminate_namespace};
use super::graceful::grace_seconds;
use super::metadata::time;
use super::update::ATTEMPTS;
use super::{Commit, Expect, Outcome, Verb};
use crate::admission::Request;
use crate::kind::Kind;
use crate::object::{Object, ObjectList};
use crate::options::{DeleteOptions, Deleted, ListOptions, Propagation};
use crate::path::ResourcePath;
use crate::server::ApiServer;
use crate::status::{Reason, Status};
use crate::user::RequestContext;

/// Namespaces that the cluster itself lives in.
const IMMORTAL_NAMESPACES: [&str; 3] = ["default", "kube-system", "kube-public"];

impl ApiServer {
    pub(crate) async fn delete_object(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        o: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let kind = self.kind(path)?;
        if !kind.stored || path.subresource.is_some() || path.name.is_none() {
            return Err(Status::method_not_allowed(&kind.group, &kind.plural, "delete"));
        }
        if o.grace_period_seconds.is_some_and(|seconds| seconds < 0) {
            return Err(Status::bad_request("gracePeriodSeconds must not be negative"));
        }
        let name = path.name.as_deref().unwrap_or_default();
        if kind.is("", "namespaces") && IMMORTAL_NAMESPACES.contains(&name) {
            return Err(Status::forbidden("", "namespaces", name, "this namespace may not be deleted"));
        }
        if crate::custom::is_definition(&kind) && !o.dry_run {
            self.delete_instances(ctx, path).await?;
        }
        for _ in 0..ATTEMPTS {
            let present = self.present(&kind, path)?;
            if let Some(deleted) = self.try_delete(ctx, &kind, path, o, &present).await? {
                return Ok(deleted);
            }
            self.catch_up(&present).await;
        }
        Err(Status::modified(&kind.group, &kind.plural, name))
    }

    /// A definition takes its objects with it.
    async fn delete_instances(&self, ctx: &RequestContext, path: &ResourcePath) -> Result<(), Status> {
        let Some((plural, group)) = path.name.as_deref().unwrap_or_default().split_once('.') else { return Ok(()) };
        let Some(kind) = self.kinds.load().lookup_any_version(group, plural).filter(|kind| kind.custom).cloned() else {
            return Ok(());
        };
        let all = ResourcePath::collection(group, &kind.version, plural, None);
        Box::pin(self.delete_objects(ctx, &all, &DeleteOptions::default(), &ListOptions::default())).await?;
        Ok(())
    }

    /// One attempt; `None` when someone came in between.
    async fn try_delete(
        &self,
        ctx: &RequestContext,
        kind: &Kind,
        path: &ResourcePath,
        o: &DeleteOptions,
        present: &Object,
    ) -> Result<Option<Deleted>, Status> {
        let mut old = kind.to_shown(present.to_value());
        check_preconditions(kind, o, &old, present)?;
        let mut request =
            Request { ctx, kind, path, verb: Verb::Delete, old: Some(&old), dry_run: o.dry_run, warnings: Vec::new() };
        let _quota = self.validate_and_admit(&mut request, &Value::Null).await?;
        let warnings = std::mem::take(&mut request.warnings);
        crate::json::metadata_mut(&mut old).map(|metadata| metadata.remove("resourceVersion"));
        let mut marked = old.clone();
        set_propagation(&mut marked, o.propagation);
        mark(kind, &mut marked, o.grace_period_seconds, (self.options.now)());
        let gone = may_go(kind, &marked);
        if (!gone && marked == old) || o.dry_run {
            return Ok(Some(Deleted { object: crate::read::show(kind, present.clone()), gone, warnings }));
        }
        let commit = Commit {
            kind,
            relative: &present.meta.key,
            expect: Expect::Revision(present.revision()),
            old: Some(&old),
            new: if gone { None } else { Some(&marked) },
        };
        match self.commit(commit).await? {
            Outcome::Done(object) => Ok(Some(Deleted { object, gone, warnings })),
            _ => Ok(None),
        }
    }

    pub(crate) async fn delete_objects(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        o: &DeleteOptions,
        selection: &ListOptions,
    ) -> Result<ObjectList, Status> {
        let kind = self.kind(path)?;
        let mut list = self.list_objects(path, selection).await?;
        let mut deleted = Vec::with_capacity(list.items.len());
        for item in &list.items {
            let mut one = path.object(item.name());
            if kind.namespaced {
                one.namespace = Some(item.namespace().to_owned());
            }
            match self.delete_object(ctx, &one, o).await {
                Ok(result) => deleted.push(result.object),
                Err(status) if status.reason == Reason::NotFound => {}
                Err(status) => return Err(status),
            }
        }
        list.items = deleted;
        Ok(list)
    }
}

fn check_preconditions(kind: &Kind, o: &DeleteOptions, old: &Value, present: &Object) -> Result<(), Status> {
    let conflict = |detail: &str| Err(Status::conflict(&kind.group, &kind.plural, present.name(), detail));
    if let Some(uid) = &o.preconditions.uid {
        let own = crate::json::text(old, "/metadata/uid");
        if uid != own {
            return conflict(&format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {own}"));
        }
    }
    if let Some(version) = &o.preconditions.resource_version {
        let own = present.revision().to_string();
        if *version != own {
            return conflict(&format!(
                "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {own}"
            ));
        }
    }
    Ok(())
}

fn set_propagation(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let mut finalizers = crate::json::strings(object, "/metadata/finalizers");
    finalizers.retain(|finalizer| finalizer != FOREGROUND && finalizer != ORPHAN);
    match propagation {
        Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
        Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
        Propagation::Background => {}
    }
    if let Some(metadata) = crate::json::metadata_mut(object) {
        if finalizers.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".into(), json!(finalizers));
        }
    }
}

/// Sets the deletion time; a second deletion may only shorten it.
fn mark(kind: &Kind, object: &mut Value, asked: Option<i64>, now: jiff::Timestamp) {
    let grace = grace_seconds(kind, object, asked);
    let marked = !object["metadata"]["deletionTimestamp"].is_null();
    let before = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    if marked && (asked.is_none() && before > 0 || grace >= before) {
        return;
    }
    let at = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
    let generation = object["metadata"]["generation"].as_i64();
    crate::json::set_metadata(object, "deletionTimestamp", json!(time(at)));
    crate::json::set_metadata(object, "deletionGracePeriodSeconds", json!(grace));
    if let Some(generation) = generation.filter(|_| !marked) {
        crate::json::set_metadata(object, "generation", json!(generation.saturating_add(1)));
    }
    terminate_namespace(kind, object);
}
