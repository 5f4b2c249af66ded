//! Errors with the lines of the Dockerfile that they are about, which clients show.
//! `Source:` BuildKit, util/grpcerrors (details are JSON) and solver/errdefs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::json;
use tonic::Status;

use crate::wire::google::{self, Any};

/// The name of the detail that has the source.
const SOURCE: &str = "github.com/moby/buildkit/errdefs.Source+json";
/// Lines after the last one that clients show.
const LINES_AFTER: usize = 5;
/// Longest part of a Dockerfile that goes with an error, which travels in a header. Units: bytes.
const MAX_SHOWN: usize = 64 << 10;

/// An error at lines of a file, the first and the last one, from 1.
pub fn located(status: Status, file: &str, text: &str, (first, last): (usize, usize)) -> Status {
    let shown: String = text.split_inclusive('\n').take(last.saturating_add(LINES_AFTER)).collect();
    if shown.len() > MAX_SHOWN {
        return status;
    }
    let position = |line: usize| json!({ "line": line });
    let source = json!({
        "info": { "filename": file, "language": "Dockerfile", "data": STANDARD.encode(shown) },
        "ranges": [{ "start": position(first), "end": position(last) }],
    });
    let detail = Any { type_url: SOURCE.to_owned(), value: source.to_string().into_bytes() };
    with_details(&google::Status {
        code: i32::from(status.code()),
        message: status.message().to_owned(),
        details: vec![detail],
    })
}

/// An error with all that its message carries.
pub fn with_details(error: &google::Status) -> Status {
    Status::with_details(error.code.into(), error.message.clone(), error.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn an_error_carries_the_lines_around_it_unless_they_are_too_many() {
        let status = || Status::new(Code::Unknown, "why");
        let located_at = located(status(), "Dockerfile", &"line\n".repeat(100), (2, 3));
        let told = google::Status::decode(located_at.details()).unwrap();
        assert_eq!((told.message.as_str(), told.details[0].type_url.as_str()), ("why", SOURCE));
        let source: serde_json::Value = serde_json::from_slice(&told.details[0].value).unwrap();
        assert_eq!(source["ranges"][0]["end"]["line"], 3);
        let data = STANDARD.decode(source["info"]["data"].as_str().unwrap()).unwrap();
        assert_eq!(data.len(), "line\n".len() * 8);
        assert!(located(status(), "Dockerfile", &"x".repeat(MAX_SHOWN + 1), (1, 1)).details().is_empty());
    }
}
