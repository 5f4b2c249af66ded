//! What can go wrong, and how it is told: `{"message": …}` with Docker's status code. Rendered in one place.

use axum::body::Body;
use axum::response::Response;
use http::{StatusCode, header};
use kube::core::response::StatusSummary;

/// Why a request was not done. The text is what the user sees.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no such object, or no such path in it.
    #[error("{0}")]
    NotFound(String),
    /// The object is in the wrong state, or a name is taken.
    #[error("{0}")]
    Conflict(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// Credentials are missing or wrong.
    #[error("{0}")]
    Unauthorized(String),
    /// It is already as wanted (no body).
    #[error("not modified")]
    NotModified,
    /// A body or an answer exceeds its bound.
    #[error("{0}")]
    TooLarge(String),
    /// Not built yet.
    #[error("{0}")]
    NotImplemented(String),
    /// A part that is needed does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// Anything else.
    #[error("{0}")]
    Internal(String),
}

/// Result of an operation.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Docker's answer for a path or method that it does not know.
    pub(crate) fn page_not_found() -> Self {
        Error::NotFound("page not found".into())
    }

    /// The status code that Docker uses for this kind of error.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Error::NotFound(_) => StatusCode::NOT_FOUND,
            Error::Conflict(_) => StatusCode::CONFLICT,
            Error::Invalid(_) => StatusCode::BAD_REQUEST,
            Error::Forbidden(_) => StatusCode::FORBIDDEN,
            Error::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Error::NotModified => StatusCode::NOT_MODIFIED,
            Error::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Error::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Error::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Error::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The one place where an error becomes an answer.
    pub(crate) fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::warn!(%status, error = %self, "request failed");
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        if status != StatusCode::NOT_MODIFIED {
            let mut text = serde_json::json!({ "message": self.to_string() }).to_string();
            text.push('\n');
            *response.body_mut() = Body::from(text);
            response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        }
        response
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        if let kube::Error::Api(status) = &error {
            let message = match &status.status {
                Some(StatusSummary::Failure) | None => status.message.clone(),
                Some(StatusSummary::Success) => status.reason.clone(),
            };
            return match status.code {
                400 | 422 => Error::Invalid(message),
                401 => Error::Unauthorized(message),
                403 => Error::Forbidden(message),
                404 => Error::NotFound(message),
                409 => Error::Conflict(message),
                413 => Error::TooLarge(message),
                429 | 503 | 504 => Error::Unavailable(message),
                _ => Error::Internal(message),
            };
        }
        Error::Unavailable(format!("cannot reach the object store: {}", chain(&error)))
    }
}

impl From<node::Error> for Error {
    fn from(error: node::Error) -> Self {
        let message = error.to_string();
        match error {
            node::Error::NotFound(_) => Error::NotFound(message),
            node::Error::Conflict(_) => Error::Conflict(message),
            node::Error::Invalid(_) | node::Error::CannotStart { .. } => Error::Invalid(message),
            node::Error::Forbidden(_) => Error::Forbidden(message),
            node::Error::NotSupported(_) => Error::NotImplemented(message),
            node::Error::Unavailable(_) => Error::Unavailable(message),
            node::Error::Internal(_) => Error::Internal(message),
        }
    }
}

/// The whole chain of causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
