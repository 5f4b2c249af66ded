//! One request, taken apart: placeholders, query, headers, body, upgrade. Knows HTTP, not what an operation does.

use axum::body::Body;
use axum::extract::Request;
use http::{HeaderMap, header};
use serde::de::DeserializeOwned;

use crate::body;
use crate::error::{Error, Result};
use crate::json;
use crate::text::percent_decode_plus;
use crate::version::ApiVersion;

/// Most pairs in a query string; Docker's own clients send a dozen.
const QUERY_PAIRS_MAX: usize = 1_000;

/// A request on its way to an operation.
pub(crate) struct Call {
    pub(crate) version: ApiVersion,
    pub(crate) parameters: Vec<(&'static str, String)>,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// Set when the client asked to go on with another protocol on this connection.
    pub(crate) upgrade: Option<hyper::upgrade::OnUpgrade>,
}

impl Call {
    /// Takes a request apart.
    pub(crate) fn new(version: ApiVersion, parameters: Vec<(&'static str, String)>, request: Request) -> Result<Self> {
        let (mut parts, body) = request.into_parts();
        let query = Query::parse(parts.uri.query().unwrap_or(""))?;
        let wants_upgrade = parts.headers.contains_key(header::UPGRADE);
        let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>().filter(|_| wants_upgrade);
        Ok(Self { version, parameters, query, headers: parts.headers, body, upgrade })
    }

    /// The value of a placeholder of the row's path.
    pub(crate) fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(n, _)| *n == name).map_or("", |(_, value)| value)
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// Takes the body and reads it as JSON; `None` when there is none.
    pub(crate) async fn json_or_empty<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let bytes = body::read_bounded(std::mem::take(&mut self.body), body::JSON_BODY_BYTES_MAX).await?;
        let content_type = self.header("content-type").unwrap_or("");
        if bytes.is_empty() {
            return Ok(None);
        }
        json::check_content_type(content_type)?;
        json::parse(&bytes).map(Some)
    }

    /// Takes the body and reads it as JSON; an empty body means the default value, as Docker has it.
    pub(crate) async fn json<T: DeserializeOwned + Default>(&mut self) -> Result<T> {
        Ok(self.json_or_empty().await?.unwrap_or_default())
    }
}

/// A query string.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Result<Self> {
        let pairs: Vec<_> = text
            .split('&')
            .filter(|pair| !pair.is_empty())
            .take(QUERY_PAIRS_MAX + 1)
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (percent_decode_plus(name), percent_decode_plus(value))
            })
            .collect();
        if pairs.len() > QUERY_PAIRS_MAX {
            return Err(Error::Invalid("too many parameters in the query".into()));
        }
        Ok(Self(pairs))
    }

    /// First value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// First value of a name, or nothing when it is empty.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// All values of a name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Docker's boolean: anything but empty, `0`, `no`, `false`, `none` is true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    /// Docker's boolean with a value for an absent name.
    pub(crate) fn flag_or(&self, name: &str, absent: bool) -> bool {
        match self.get(name) {
            None => absent,
            Some(value) => !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none"),
        }
    }

    /// A whole number.
    ///
    /// Errors: [`Error::Invalid`] in Go's words when it is none.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        match self.text(name) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                Error::Invalid(format!("strconv.Atoi: parsing {}: invalid syntax", crate::text::quote(text)))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_flags_read_as_docker_does() {
        let query = Query::parse("a=1&b=x%20y+z&c&d=false&t=1&t=2").unwrap();
        assert_eq!(query.get("b"), Some("x y z"));
        assert!(query.flag("a") && !query.flag("c") && !query.flag("d") && !query.flag("absent"));
        assert!(query.flag_or("absent", true));
        assert_eq!(query.all("t").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.number::<i64>("a").unwrap(), Some(1));
        assert!(query.number::<i64>("d").unwrap_err().to_string().contains("invalid syntax"));
    }
}
