//! Not served yet.
use crate::resource::Call;
use apiserver::Status;
use axum::response::Response;
use serde_json::Value;
pub(super) async fn serve(_: Call, _: &Value) -> Result<Response, Status> {
    Err(Status::unavailable("SPDY is not served yet"))
}
