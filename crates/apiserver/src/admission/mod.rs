//! What happens to a write between decoding and storing: changes first, then checks.

mod external_ips;
mod limit_range;
mod machine_moves;
mod matching;
mod node_restriction;
mod pod_defaults;
mod pod_security;
mod policy;
mod quota;
mod subnets;
mod webhook;

pub use quota::{QuotaGuard, QuotaLocks};
pub use webhook::{WebhookEndpoint, WebhookTransport};

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
    /// Fills in what depends on other objects, and lets webhooks change the object; answers whether one did.
    pub(crate) async fn mutate(&self, request: &mut Request<'_>, object: &mut Value) -> Result<bool, Status> {
        let kind = request.kind;
        if request.path.subresource.is_none() {
            if kind.is("", "pods") && request.verb == Verb::Create {
                pod_defaults::service_account(self, object)?;
                pod_defaults::priority(self, object)?;
                pod_defaults::tolerations(object);
                limit_range::fill_defaults(self, object);
            }
            if kind.allocator.is_some() {
                // What a swarm publishes is any port of the machines, and asked for by the controllers alone.
                let any_port = request.ctx.user.name == api::names::CONTROLLER_USER;
                crate::allocation::allocate(self, kind, object, request.old, any_port)?;
            }
            if crate::custom::is_definition(kind) {
                crate::custom::complete(self, object);
            }
        }
        webhook::mutate(self, request, object).await
    }

    /// Judges a connection: policies and webhooks see it as `CONNECT`.
    pub(crate) async fn admit_connect(
        &self,
        ctx: &RequestContext,
        kind: &Kind,
        path: &ResourcePath,
        options: &Value,
    ) -> Result<Vec<String>, Status> {
        let (verb, warnings) = (Verb::Connect, Vec::new());
        let mut request = Request { ctx, kind, path, verb, old: None, dry_run: false, warnings };
        webhook::mutate(self, &mut request, &mut options.clone()).await?;
        policy::check(self, &mut request, options)?;
        webhook::validate(self, &mut request, options).await?;
        Ok(request.warnings)
    }

    /// Checks the result. The guard, when there is one, must be held until the write is done.
    pub(crate) async fn validate_and_admit(
        &self,
        request: &mut Request<'_>,
        object: &Value,
    ) -> Result<Option<QuotaGuard>, Status> {
        let kind = request.kind;
        node_restriction::check(self, request, object)?;
        machine_moves::check(self, request, object)?;
        if request.verb == Verb::Delete {
            webhook::mutate(self, request, &mut Value::Null).await?;
            policy::check(self, request, object)?;
            webhook::validate(self, request, object).await?;
            return Ok(None);
        }
        if request.path.subresource.as_deref() != Some("finalize") {
            let mut causes = crate::validation::metadata::validate(kind, object);
            if let Some(old) = request.old {
                causes.extend(crate::validation::metadata::validate_update(object, old));
            }
            if kind.structural {
                let mut found = crate::schema::validate(kind, object, &self.patterns);
                if let Some(old) = request.old.filter(|_| !found.is_empty()) {
                    // What was wrong before and did not change does not hold up the rest.
                    let before = crate::schema::validate(kind, old, &self.patterns);
                    found.retain(|cause| !before.contains(cause));
                }
                if found.is_empty() {
                    found = crate::schema::validate_rules(kind, object, request.old);
                }
                causes.extend(found);
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
        subnets::check(self, request, object)?;
        if kind.is("", "services") {
            external_ips::check(self, request, object)?;
        }
        if kind.is("", "pods") && request.verb == Verb::Create {
            limit_range::check(self, object)?;
        }
        let runs = matches!(request.path.subresource.as_deref(), None | Some("ephemeralcontainers"));
        let is_judged = kind.is("", "pods")
            || (kind.group == api::names::GROUP && pod_security::OWN_KINDS.contains(&&*kind.plural));
        if is_judged && runs && request.old.is_none_or(|old| old["spec"] != object["spec"]) {
            let namespace = crate::json::text(object, "/metadata/namespace");
            request.warnings.extend(pod_security::check(self, kind, namespace, object, request.old)?);
        }
        policy::check(self, request, object)?;
        webhook::validate(self, request, object).await?;
        if request.verb == Verb::Create && kind.namespaced {
            return quota::reserve(self, kind, object, request.dry_run).await;
        }
        Ok(None)
    }
}
