//! Request counters in Prometheus' text form.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use apiserver::Status;
use axum::response::Response;
use http::{Method, StatusCode};

use crate::endpoints::EndpointCall;
use crate::router::typed_response;

const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "other"];
/// Classes of HTTP codes, 1xx to 5xx.
const CLASSES: usize = 5;

/// Counters; a request is a few atomic additions.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: [[AtomicU64; CLASSES]; METHODS.len()],
    inflight: AtomicI64,
}

/// A request under way.
pub(crate) struct Running(Arc<Metrics>);

impl Metrics {
    /// Counts a request in.
    pub(crate) fn start(self: &Arc<Metrics>) -> Running {
        self.inflight.fetch_add(1, Ordering::Relaxed);
        Running(self.clone())
    }

    fn render(&self) -> String {
        let mut text = String::from(
            "# HELP apiserver_request_total Requests by method and class of code.\n# TYPE apiserver_request_total counter\n",
        );
        for (method, classes) in METHODS.iter().zip(&self.requests) {
            for (class, count) in classes.iter().enumerate() {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    text.push_str(&format!(
                        "apiserver_request_total{{method=\"{method}\",code=\"{}xx\"}} {count}\n",
                        class + 1
                    ));
                }
            }
        }
        let inflight = self.inflight.load(Ordering::Relaxed);
        text.push_str("# HELP apiserver_current_inflight_requests Requests under way.\n# TYPE apiserver_current_inflight_requests gauge\n");
        text.push_str(&format!("apiserver_current_inflight_requests {inflight}\n"));
        text
    }
}

impl Running {
    /// Counts the outcome. The answer's body may still be streaming.
    pub(crate) fn finish(self, method: &Method, code: StatusCode) {
        let place = METHODS.iter().position(|name| *name == method.as_str()).unwrap_or(METHODS.len() - 1);
        let class = usize::from(code.as_u16() / 100).clamp(1, CLASSES) - 1;
        self.0.requests[place][class].fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.inflight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `GET /metrics`.
pub(crate) async fn read(call: EndpointCall) -> Result<Response, Status> {
    Ok(typed_response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", call.state.metrics.render()))
}
