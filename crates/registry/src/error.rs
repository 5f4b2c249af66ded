//! Errors in the specification's words and JSON form.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

/// The specification's error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Denied,
    Unauthorized,
    Unsupported,
    TooManyRequests,
    /// Not of the specification: what distribution says when it fails itself.
    Unknown,
}

impl Code {
    fn row(self) -> (&'static str, StatusCode) {
        match self {
            Code::BlobUnknown => ("BLOB_UNKNOWN", StatusCode::NOT_FOUND),
            Code::BlobUploadInvalid => ("BLOB_UPLOAD_INVALID", StatusCode::BAD_REQUEST),
            Code::BlobUploadUnknown => ("BLOB_UPLOAD_UNKNOWN", StatusCode::NOT_FOUND),
            Code::DigestInvalid => ("DIGEST_INVALID", StatusCode::BAD_REQUEST),
            Code::ManifestBlobUnknown => ("MANIFEST_BLOB_UNKNOWN", StatusCode::BAD_REQUEST),
            Code::ManifestInvalid => ("MANIFEST_INVALID", StatusCode::BAD_REQUEST),
            Code::ManifestUnknown => ("MANIFEST_UNKNOWN", StatusCode::NOT_FOUND),
            Code::NameInvalid => ("NAME_INVALID", StatusCode::BAD_REQUEST),
            Code::NameUnknown => ("NAME_UNKNOWN", StatusCode::NOT_FOUND),
            Code::SizeInvalid => ("SIZE_INVALID", StatusCode::BAD_REQUEST),
            Code::Denied => ("DENIED", StatusCode::FORBIDDEN),
            Code::Unauthorized => ("UNAUTHORIZED", StatusCode::UNAUTHORIZED),
            Code::Unsupported => ("UNSUPPORTED", StatusCode::BAD_REQUEST),
            Code::TooManyRequests => ("TOOMANYREQUESTS", StatusCode::TOO_MANY_REQUESTS),
            Code::Unknown => ("UNKNOWN", StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    code: Code,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure::with_status(code.row().1, code, message)
    }

    pub fn with_status(status: StatusCode, code: Code, message: impl Into<String>) -> Failure {
        Failure { status, code, message: message.into(), headers: Vec::new() }
    }

    pub fn header(mut self, name: HeaderName, value: &str) -> Failure {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }
}

impl From<image::Error> for Failure {
    fn from(error: image::Error) -> Failure {
        use image::Error as E;
        let code = match &error {
            E::NotFound(_) => Code::BlobUnknown,
            E::Invalid(_) | E::Hostile(_) | E::NotSupported(_) => Code::ManifestInvalid,
            E::Conflict(_) => Code::Denied,
            E::Unavailable(_) => Code::TooManyRequests,
            _ => {
                tracing::error!(error = error.chain(), "the registry failed");
                // Paths of this machine are nobody's business.
                return Failure::new(Code::Unknown, "unknown error");
            }
        };
        Failure::new(code, error.to_string())
    }
}

impl From<tokio::task::JoinError> for Failure {
    fn from(error: tokio::task::JoinError) -> Failure {
        Failure::from(image::Error::from(error))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body =
            serde_json::json!({"errors": [{"code": self.code.row().0, "message": self.message, "detail": null}]});
        let mut response = (self.status, Json(body)).into_response();
        response.headers_mut().extend(self.headers);
        response
    }
}
