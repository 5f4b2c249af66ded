//! A network has its addresses from one place: from itself, or from one `Subnet`. What comes at the same instant passes here, and is told in
//! the status of the younger one.

use serde_json::Value;

use super::Request;
use crate::keys;
use crate::server::ApiServer;
use crate::status::{Cause, Status};
use crate::write::Verb;

/// Checks a new subnet. Errors: invalid.
pub(super) fn check(server: &ApiServer, request: &Request<'_>, object: &Value) -> Result<(), Status> {
    let kind = request.kind;
    if request.verb != Verb::Create || !kind.is("nuee.dev", "subnets") || request.path.subresource.is_some() {
        return Ok(());
    }
    let text = |pointer: &str| crate::json::text(object, pointer);
    let (namespace, name, wanted) = (text("/metadata/namespace"), text("/metadata/name"), text("/spec/network"));
    let subnets = server.caches.get(&keys::resource("nuee.dev", "subnets")).all(&format!("{namespace}/"));
    let is_other = |found: &Value| found["spec"]["network"] == wanted && found["metadata"]["name"] != name;
    let other = subnets.iter().map(|found| found.to_value()).find(is_other);
    let networks = server.caches.get(&keys::resource("nuee.dev", "networks"));
    let network = networks.get(&keys::relative(namespace, wanted)).map(|found| found.to_value());
    let says_it = network.is_some_and(|network| !crate::json::text(&network, "/spec/subnet").is_empty());
    let flaw = match other {
        Some(other) => {
            format!("has subnet {} already, and a network has one", crate::json::text(&other, "/metadata/name"))
        }
        None if wanted == api::names::DEFAULT_NETWORK => {
            "is everybody's, and has its addresses from the machine's settings".into()
        }
        None if says_it => "says its subnet itself".into(),
        None => return Ok(()),
    };
    let cause = Cause::invalid("spec.network", &object["spec"]["network"], &flaw);
    Err(Status::invalid(&kind.group, &kind.kind, name, vec![cause]))
}
