//! What happens to a write between decoding and storing: changes first, then checks.

mod limit_range;
mod pod_defaults;
mod pod_security;
mod policy;
mod quota;

pub use quota::{QuotaGuard, QuotaLocks};

use serde_json::Value;

use crate::kind::Kind;
use crate::path::ResourcePath;
use crate::server::ApiServer;
use crate::status::Status;
use crate::user::RequestContext;
use crate::write::Verb;

/// A write on its way.
pub(crate) struct Request<'a> {
    pub(crate) ctx: &'a RequestContext,
    pub(crate) kind: &'a Kind,
    pub(crate) path: &'a ResourcePath,
    pub(crate) verb: Verb,
    pub(crate) old: Option<&'a Value>,
    pub(crate) dry_run: bool,
    pub(crate) warnings: Vec<String>,
}

impl ApiServer {
    /// Fills in what depends on other objects.
    pub(crate) async fn mutate(&self, request: &mut Request<'_>, object: &mut Value) -> Result<(), Status> {
        let kind = request.kind;
        if request.path.subresource.is_none() {
            if kind.is("", "pods") && request.verb == Verb::Create {
                pod_defaults::service_account(self, object)?;
                pod_defaults::priority(self, object)?;
                limit_range::fill_defaults(self, object);
            }
            if kind.allocator.is_some() {
                crate::allocation::allocate(self, kind, object, request.old)?;
            }
            if crate::custom::is_definition(kind) {
                crate::custom::complete(self, object);
            }
        }
        Ok(())
    }

    /// Checks the result. The guard, when there is one, must be held until the write is done.
    pub(crate) async fn validate_and_admit(
        &self,
        request: &mut Request<'_>,
        object: &Value,
    ) -> Result<Option<QuotaGuard>, Status> {
        let kind = request.kind;
        if request.verb == Verb::Delete {
            return policy::check(self, request, object).map(|()| None);
        }
        if request.path.subresource.as_deref() != Some("finalize") {
            let mut causes = crate::validation::metadata::validate(kind, object);
            if let Some(old) = request.old {
                causes.extend(crate::validation::metadata::validate_update(object, old));
            }
            if kind.structural {
                causes.extend(crate::schema::validate(kind, object, &self.patterns));
            }
            if crate::custom::is_definition(kind) {
                causes.extend(crate::custom::check(object));
            }
            if kind.is("admissionregistration.k8s.io", "validatingadmissionpolicies") {
                causes.extend(policy::check_policy(object));
            }
            causes.extend((kind.validate)(object, request.old));
            if !causes.is_empty() {
                let name = crate::json::text(object, "/metadata/name");
                return Err(Status::invalid(&kind.group, &kind.kind, name, causes));
            }
        }
        crate::authorization::check_escalation(self, &request.ctx.user, kind, object, request.old)?;
        if kind.is("", "pods") && request.verb == Verb::Create {
            limit_range::check(self, object)?;
        }
        let runs = matches!(request.path.subresource.as_deref(), None | Some("ephemeralcontainers"));
        if kind.is("", "pods") && runs && request.old.is_none_or(|old| old["spec"] != object["spec"]) {
            let namespace = crate::json::text(object, "/metadata/namespace");
            request.warnings.extend(pod_security::check(self, namespace, object)?);
        }
        if kind.group == "admissionregistration.k8s.io" && kind.plural.ends_with("webhookconfigurations") {
            // Nobody shall believe in a check that does not happen.
            request.warnings.push("admission webhooks are stored but not called by this server".to_owned());
        }
        policy::check(self, request, object)?;
        if request.verb == Verb::Create && kind.namespaced {
            return quota::reserve(self, kind, object, request.dry_run).await;
        }
        Ok(None)
    }
}
