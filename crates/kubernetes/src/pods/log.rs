//! `log` as a text stream.

use std::pin::Pin;

use apiserver::{Cause, Status};
use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, future};
use http::StatusCode;
use jiff::Timestamp;
use node::{LogLine, LogOptions, LogStream};
use serde_json::Value;

use super::{node_status, workload};
use crate::query::Query;
use crate::resource::Call;
use crate::router::typed_response;

const NANOSECONDS: i64 = 1_000_000_000;

pub(super) async fn serve(call: &Call, pod: &Value) -> Result<Response, Status> {
    let (options, limit) = options(&call.query, (call.state.now)())?;
    let workload = workload(call, pod)?;
    if pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default().is_empty() {
        // Not bound to a machine yet: there is no log, and Kubernetes answers an empty one.
        return Ok(typed_response(StatusCode::OK, "text/plain", Body::empty()));
    }
    let lines = call.state.node.logs(&workload, options).await.map_err(node_status)?;
    let text = limited(text(lines, call.query.flag("timestamps")), limit);
    Ok(typed_response(StatusCode::OK, "text/plain", Body::from_stream(text)))
}

/// What part of the log is wanted, and how many bytes of it at most.
fn options(query: &Query, now: Timestamp) -> Result<(LogOptions, Option<u64>), Status> {
    let mut causes = Vec::new();
    let mut at_least = |name: &str, least: i64| -> Result<Option<i64>, Status> {
        let number = query.number(name)?;
        if let Some(wrong) = number.filter(|number| *number < least) {
            let detail = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            causes.push(Cause::invalid(name, &wrong.into(), detail));
        }
        Ok(number.filter(|number| *number >= least))
    };
    let (tail, limit, seconds) = (at_least("tailLines", 0)?, at_least("limitBytes", 1)?, at_least("sinceSeconds", 1)?);
    let time = query.text("sinceTime");
    if seconds.is_some() && time.is_some() {
        causes.push(Cause::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if !causes.is_empty() {
        return Err(Status::invalid("", "PodLogOptions", "", causes));
    }
    let nanoseconds = |instant: Timestamp| i64::try_from(instant.as_nanosecond()).unwrap_or(i64::MAX);
    let since_ns = match (seconds, time) {
        (Some(seconds), _) => Some(nanoseconds(now).saturating_sub(seconds.saturating_mul(NANOSECONDS))),
        (None, Some(time)) => {
            let instant: Timestamp =
                time.parse().map_err(|_| Status::bad_request(format!("sinceTime is no RFC 3339 time: {time}")))?;
            Some(nanoseconds(instant))
        }
        (None, None) => None,
    };
    let stream = query.text("stream");
    let options = LogOptions {
        follow: query.flag("follow"),
        tail: tail.and_then(|tail| usize::try_from(tail).ok()),
        since_ns,
        previous: query.flag("previous"),
        without_stdout: stream.as_deref() == Some("Stderr"),
        without_stderr: stream.as_deref() == Some("Stdout"),
        ..LogOptions::default()
    };
    Ok((options, limit.and_then(|limit| u64::try_from(limit).ok())))
}

type Text = Pin<Box<dyn Stream<Item = Result<Bytes, std::io::Error>> + Send>>;

fn text(lines: LogStream, timestamps: bool) -> Text {
    let mut at_start = true;
    Box::pin(lines.map(move |line| {
        let line = line.map_err(std::io::Error::other)?;
        let starts = std::mem::replace(&mut at_start, line.data.ends_with(b"\n"));
        Ok(if timestamps && starts { stamped(&line) } else { line.data })
    }))
}

fn stamped(line: &LogLine) -> Bytes {
    let instant = Timestamp::from_nanosecond(i128::from(line.timestamp_ns)).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut out = BytesMut::from(format!("{instant:.9} ").as_bytes());
    out.extend_from_slice(&line.data);
    out.freeze()
}

fn limited(text: Text, limit: Option<u64>) -> Text {
    let Some(mut left) = limit else { return text };
    Box::pin(text.scan((), move |(), piece| {
        let item = match piece {
            _ if left == 0 => None,
            Err(error) => Some(Err(error)),
            Ok(mut bytes) => {
                bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                left = left.saturating_sub(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                Some(Ok(bytes))
            }
        };
        future::ready(item)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::OutputStream;

    fn lines() -> LogStream {
        let line = |text: &'static str| {
            Ok(LogLine { timestamp_ns: 1_000_000_001, stream: OutputStream::Stdout, data: text.into() })
        };
        Box::pin(futures::stream::iter(["one\n", "tw", "o\n"].map(line)))
    }

    async fn collect(text: Text) -> String {
        let pieces: Vec<Bytes> = text.map(Result::unwrap).collect().await;
        String::from_utf8(pieces.concat()).unwrap()
    }

    #[tokio::test]
    async fn timestamps_stand_before_whole_lines_only() {
        let expected = "1970-01-01T00:00:01.000000001Z one\n1970-01-01T00:00:01.000000001Z two\n";
        assert_eq!(collect(text(lines(), true)).await, expected);
    }

    #[tokio::test]
    async fn the_byte_limit_cuts_within_a_line() {
        assert_eq!(collect(limited(text(lines(), false), Some(5))).await, "one\nt");
    }

    #[test]
    fn bad_options_are_refused() {
        let check =
            |text: &str| options(&Query::parse(text).unwrap(), Timestamp::UNIX_EPOCH).err().map(|status| status.code);
        assert_eq!(check("tailLines=-1"), Some(422));
        assert_eq!(check("limitBytes=0"), Some(422));
        assert_eq!(check("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z"), Some(422));
        assert_eq!(check("sinceTime=yesterday"), Some(400));
        assert_eq!(check("follow=true&tailLines=0"), None);
    }
}
