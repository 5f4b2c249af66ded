//! Not served yet.
use super::session::{Queues, Wanted};
use crate::resource::Call;
use apiserver::Status;
use axum::response::Response;
pub(super) fn serve(_: Call, _: Queues, _: Wanted) -> Result<Response, Status> {
    Err(Status::unavailable("SPDY is not served yet"))
}
