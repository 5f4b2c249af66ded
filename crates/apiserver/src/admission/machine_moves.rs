//! A virtual machine that is bound stays where it is, unless its host gives it to another one by a migration.

use serde_json::Value;

use super::Request;
use crate::authorization::may_give_away;
use crate::server::ApiServer;
use crate::status::{Cause, Status};

/// Checks a write of a virtual machine. Errors: invalid.
pub(super) fn check(server: &ApiServer, request: &Request<'_>, object: &Value) -> Result<(), Status> {
    let kind = request.kind;
    let Some(old) = request.old.filter(|_| kind.is("nuee.dev", "virtualmachines") && !object.is_null()) else {
        return Ok(());
    };
    let (from, to) = (&old["spec"]["nodeName"], &object["spec"]["nodeName"]);
    if !from.is_string() || from == to || may_give_away(&server.caches, &request.ctx.user, old, to) {
        return Ok(());
    }
    let cause = Cause::invalid("spec.nodeName", to, "field is immutable");
    Err(Status::invalid(&kind.group, &kind.kind, crate::json::text(object, "/metadata/name"), vec![cause]))
}
