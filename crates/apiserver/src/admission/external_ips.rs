//! `spec.externalIPs` of Services takes traffic for any address away from whoever has it: only for those who may do so in the
//! whole cluster. `Source:` CVE-2020-8554; Kubernetes, DenyServiceExternalIPs admission.

use serde_json::Value;

use super::Request;
use crate::server::ApiServer;
use crate::status::Status;
use crate::user::Attributes;

/// Refuses addresses that the Service did not have before, unless the user may `update` `services/externalips` everywhere.
pub(super) fn check(server: &ApiServer, request: &Request<'_>, service: &Value) -> Result<(), Status> {
    let before = request.old.map(|old| crate::json::strings(old, "/spec/externalIPs")).unwrap_or_default();
    let added = crate::json::strings(service, "/spec/externalIPs").into_iter().any(|ip| !before.contains(&ip));
    if !added {
        return Ok(());
    }
    let wanted = Attributes {
        subresource: "externalips".into(),
        namespace: String::new(),
        name: String::new(),
        ..request.path.attributes("update")
    };
    if server.authorize(&request.ctx.user, &wanted).allowed {
        return Ok(());
    }
    let detail =
        "use of external IPs is denied: it needs the right to update services/externalips in the whole cluster";
    Err(Status::forbidden("", "services", crate::json::text(service, "/metadata/name"), detail))
}
