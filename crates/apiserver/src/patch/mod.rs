//! The patch formats: pure functions of an object and a patch.

pub mod json_patch;
pub mod merge;
pub mod strategic;

use serde_json::Value;

use crate::kind::Kind;
use crate::options::PatchKind;
use crate::status::Status;

/// The object after the patch. Errors: bad request for a malformed patch, invalid for one that does not fit.
pub fn apply(kind: &Kind, format: PatchKind, object: &Value, patch: &Value) -> Result<Value, Status> {
    match format {
        PatchKind::Json => json_patch::apply(object, patch).map_err(|problem| match problem {
            json_patch::Problem::Malformed(detail) => Status::bad_request(detail),
            json_patch::Problem::TooLarge(detail) => Status::request_entity_too_large(detail),
            json_patch::Problem::Misfit(detail) => Status::new(
                422,
                crate::status::Reason::Invalid,
                format!("the server rejected our request due to an error in our request: {detail}"),
            ),
        }),
        PatchKind::Merge => {
            need_object(patch)?;
            let mut result = object.clone();
            merge::apply(&mut result, patch);
            Ok(result)
        }
        PatchKind::Strategic => {
            need_object(patch)?;
            strategic::apply(kind, object, patch).map_err(Status::bad_request)
        }
        PatchKind::Apply => Err(Status::internal("apply is no plain patch")),
    }
}

fn need_object(patch: &Value) -> Result<(), Status> {
    if patch.is_object() { Ok(()) } else { Err(Status::bad_request("the patch must be a JSON object")) }
}
