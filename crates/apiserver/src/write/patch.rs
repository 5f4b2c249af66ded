//! patch: computes the new state by one of the four formats and goes the way of an update from there.

use bytes::Bytes;
use serde_json::Value;

use super::update::Change;
use crate::kind::Kind;
use crate::options::{FieldValidation, PatchKind, WriteOptions, Written};
use crate::path::ResourcePath;
use crate::server::ApiServer;
use crate::status::{Cause, Reason, Status};
use crate::user::{Attributes, RequestContext};

impl ApiServer {
    pub(crate) async fn patch_object(
        &self,
        ctx: &RequestContext,
        path: &ResourcePath,
        format: PatchKind,
        body: Bytes,
        o: &WriteOptions,
    ) -> Result<Written, Status> {
        let kind = self.kind(path)?;
        if !kind.stored || path.name.is_none() {
            return Err(Status::method_not_allowed(&kind.group, &kind.plural, "patch"));
        }
        if format == PatchKind::Strategic && kind.custom {
            return Err(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, \
                 application/merge-patch+json, application/apply-patch+yaml",
            ));
        }
        match path.subresource.as_deref() {
            None | Some("ephemeralcontainers" | "resize") => {}
            Some("status") if kind.status_subresource => {}
            Some("approval") if kind.is("certificates.k8s.io", "certificatesigningrequests") => {}
            Some("scale") => return crate::scale::patch(self, ctx, &kind, path, format, &body, o).await,
            Some(_) => return Err(Status::no_such_resource()),
        }
        let (patch, duplicates) = crate::json::decode(&body)?;
        if o.field_validation == FieldValidation::Strict && !duplicates.is_empty() {
            return Err(Status::bad_request(format!(
                "strict decoding error: duplicate field \"{}\"",
                duplicates.join("\", duplicate field \"")
            )));
        }
        if format == PatchKind::Apply {
            return self.apply_object(ctx, &kind, path, patch, &duplicates, o).await;
        }
        self.change(ctx, &kind, path, o, |_, old| {
            let patched = crate::patch::apply(&kind, format, old, &patch)?;
            let decoded = self.check_fields(&kind, patched, &duplicates, o.field_validation)?;
            Ok(Change { object: decoded.value, applied: None, warnings: decoded.warnings })
        })
        .await
    }

    async fn apply_object(
        &self,
        ctx: &RequestContext,
        kind: &Kind,
        path: &ResourcePath,
        patch: Value,
        duplicates: &[String],
        o: &WriteOptions,
    ) -> Result<Written, Status> {
        let manager = o.field_manager.as_deref().unwrap_or_default();
        if manager.is_empty() {
            let cause = Cause::required("fieldManager", "is required for apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", vec![cause]));
        }
        let mut decoded = self.check_fields(kind, patch, duplicates, o.field_validation)?;
        let expected = kind.api_version();
        if crate::json::text(&decoded.value, "/apiVersion") != expected
            || crate::json::text(&decoded.value, "/kind") != kind.kind
        {
            return Err(Status::bad_request(format!(
                "apply needs apiVersion {expected:?} and kind {:?} in the body",
                kind.kind
            )));
        }
        if !crate::json::is_empty(decoded.value["metadata"].get("managedFields")) {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        super::body::match_path(path, kind, &mut decoded.value)?;
        // Two rounds: an object that appears or disappears between them is met by the other branch.
        for _ in 0..2 {
            if self.present(kind, path).is_ok() {
                let result = self
                    .change(ctx, kind, path, o, |_, old| {
                        let merged = crate::apply::merge(kind, old, &decoded.value, o, path.subresource.as_deref())?;
                        Ok(Change {
                            object: merged,
                            applied: Some(decoded.value.clone()),
                            warnings: decoded.warnings.clone(),
                        })
                    })
                    .await;
                match result {
                    Err(status) if status.reason == Reason::NotFound && path.subresource.is_none() => {}
                    other => return other,
                }
            }
            if path.subresource.is_some() {
                return Err(self.present(kind, path).err().unwrap_or_else(Status::no_such_resource));
            }
            let mut created = decoded.value.clone();
            if !crate::json::text(&created, "/metadata/uid").is_empty() {
                return Err(Status::conflict(
                    &kind.group,
                    &kind.plural,
                    path.name.as_deref().unwrap_or_default(),
                    "uid mismatch: the provided object specified a uid, and no existing object was found",
                ));
            }
            self.may_create(ctx, path)?;
            crate::json::metadata_mut(&mut created).map(|metadata| metadata.remove("resourceVersion"));
            match self.create_decoded(ctx, kind, path, created, o, Some(&decoded.value)).await {
                Err(status) if status.reason == Reason::AlreadyExists => {}
                Ok(mut written) => {
                    written.warnings.splice(0..0, decoded.warnings.clone());
                    return Ok(written);
                }
                Err(status) => return Err(status),
            }
        }
        Err(Status::modified(&kind.group, &kind.plural, path.name.as_deref().unwrap_or_default()))
    }

    /// An apply that creates needs the right to create, too.
    fn may_create(&self, ctx: &RequestContext, path: &ResourcePath) -> Result<(), Status> {
        let attributes = Attributes { verb: "create".into(), ..path.attributes("create") };
        let decision = self.authorize(&ctx.user, &attributes);
        if decision.allowed {
            return Ok(());
        }
        Err(crate::authorization::refusal(&ctx.user, &attributes, &decision.reason))
    }
}
