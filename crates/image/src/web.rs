//! Fetching what is at a URL, for somebody who may not be let to where the machine itself is: the address is judged where the connection
//! is made, after names are resolved, and again at every redirect.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, LOCATION, USER_AGENT};
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpStream;

pub use crate::remote::connect::{Class, Reach};

use crate::error::{Error, Result};
use crate::remote::connect::{Connector, tls};
use crate::store::StoreOptions;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 10;
/// Time until the head of an answer is there, and between two pieces of a body.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether a text is a URL that can be fetched.
pub fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// Asks for what is at a URL, with these headers, and for where it leads to; the answer may be a refusal.
///
/// Errors: `Invalid` for what is no URL, and too many redirects; `Unavailable` when it is not reached, or may not be.
pub async fn get(
    options: &StoreOptions,
    reach: &Reach,
    source: &str,
    headers: &HeaderMap,
) -> Result<Response<Incoming>> {
    Ok(get_at(options, reach, source, headers).await?.1)
}

/// As [`get`], with the URL that answered. Credentials are shown to the host that they are meant for alone.
///
/// Errors: as for [`get`].
pub(crate) async fn get_at(
    options: &StoreOptions,
    reach: &Reach,
    source: &str,
    headers: &HeaderMap,
) -> Result<(Uri, Response<Incoming>)> {
    let client = client(options, reach)?;
    let mut url: Uri = source.split('#').next().unwrap_or_default().parse().map_err(|_| no_url(source))?;
    let mut headers = headers.clone();
    for _ in 0..=MAX_REDIRECTS {
        let response = send(&client, Request::get(url.clone()), &headers, Bytes::new(), source).await?;
        if !response.status().is_redirection() {
            return Ok((url, response));
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let next = follow(&url, location)?;
        if next.authority() != url.authority() {
            headers.remove(AUTHORIZATION);
        }
        url = next;
    }
    Err(Error::Invalid(format!("{source}: too many redirects")))
}

/// Sends a body to a URL; a redirect is an answer like any other.
///
/// Errors: as for [`get`].
pub(crate) async fn post(
    options: &StoreOptions,
    reach: &Reach,
    url: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response<Incoming>> {
    let target: Uri = url.parse().map_err(|_| no_url(url))?;
    send(&client(options, reach)?, Request::post(target), headers, body, url).await
}

/// Connects to where a URL leads, without TLS and without a word.
///
/// Errors: `Unavailable` when it is not reached, or may not be.
pub(crate) async fn connect(options: &StoreOptions, reach: &Reach, url: &Uri, port: u16) -> Result<TcpStream> {
    Connector::new(tls(options)?, reach.clone())
        .plain(url.host().unwrap_or_default(), url.port_u16().unwrap_or(port))
        .await
}

fn no_url(source: &str) -> Error {
    Error::Invalid(format!("invalid URL {source:?}"))
}

fn client(options: &StoreOptions, reach: &Reach) -> Result<Client<Connector, Full<Bytes>>> {
    Ok(Client::builder(TokioExecutor::new()).build(Connector::new(tls(options)?, reach.clone())))
}

async fn send(
    client: &Client<Connector, Full<Bytes>>,
    request: http::request::Builder,
    headers: &HeaderMap,
    body: Bytes,
    source: &str,
) -> Result<Response<Incoming>> {
    let mut request = request
        .header(USER_AGENT, concat!("nuee/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(body))
        .map_err(|error| Error::Invalid(error.to_string()))?;
    request.headers_mut().extend(headers.clone());
    let sent = tokio::time::timeout(PATIENCE, client.request(request)).await;
    sent.map_err(|_| Error::Unavailable(format!("{source}: no answer in time")))?
        .map_err(|error| Error::Unavailable(format!("{source}: {}", cause(&error))))
}

/// The next piece of an answer's body; `None` at its end.
///
/// Errors: `Unavailable` when it breaks off, or does not go on in time.
pub async fn piece(source: &str, body: &mut Incoming) -> Result<Option<Bytes>> {
    loop {
        let late = || Error::Unavailable(format!("{source}: no answer in time"));
        match tokio::time::timeout(PATIENCE, body.frame()).await.map_err(|_| late())? {
            None => return Ok(None),
            Some(Err(error)) => return Err(Error::Unavailable(format!("{source}: {error}"))),
            // What is no data is a trailer.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

fn cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Where a redirect leads. What was asked for over TLS is never taken from anybody who cannot show who it is.
fn follow(base: &Uri, location: &str) -> Result<Uri> {
    let bad = || Error::Invalid(format!("invalid redirect to {location:?}"));
    let target = absolute(base, location).ok_or_else(bad)?;
    match (base.scheme_str(), target.scheme_str()) {
        (_, Some("https")) | (Some("http"), Some("http")) if target.authority().is_some() => Ok(target),
        (_, Some("http")) => Err(Error::Invalid(format!("a redirect from https to {location:?} is not followed"))),
        _ => Err(bad()),
    }
}

/// What a reference means beside a URL; an empty one means nothing here. Pure. `Source:` RFC 3986, section 5.2
fn absolute(base: &Uri, reference: &str) -> Option<Uri> {
    let reference = reference.split('#').next().filter(|rest| !rest.is_empty())?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if has_scheme(reference) {
        return reference.parse().ok();
    }
    if reference.starts_with("//") {
        return format!("{scheme}:{reference}").parse().ok();
    }
    let (path, query) = reference.split_once('?').map_or((reference, None), |(path, query)| (path, Some(query)));
    let merged = match path {
        "" => base.path().to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("{}/{path}", base.path().rsplit_once('/').map_or("", |(directory, _)| directory)),
    };
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{scheme}://{authority}{}{query}", without_dots(&merged)).parse().ok()
}

/// `Source:` RFC 3986, section 3.1
fn has_scheme(reference: &str) -> bool {
    reference.split_once(':').is_some_and(|(name, _)| {
        name.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.chars().all(|one| one.is_ascii_alphanumeric() || "+-.".contains(one))
    })
}

/// A path that begins with a slash, with `.` and `..` resolved. `Source:` RFC 3986, section 5.2.4
fn without_dots(path: &str) -> String {
    let mut kept = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
        if segments.peek().is_none() && matches!(segment, "." | "..") {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

/// The bytes that a part of a URL stands for.
pub(crate) fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

/// A part of all addresses, as `ADDRESS/LENGTH` or a lone address; `None` for anything else.
pub fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Some(most), |length| length.parse().ok())?;
    (length <= most).then_some((address, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read() {
        assert_eq!(network("10.1.2.0/24"), Some(("10.1.2.0".parse().unwrap(), 24)));
        assert_eq!(network("::1"), Some(("::1".parse().unwrap(), 128)));
        for text in ["10.0.0.0/33", "10.0.0.0/", "x", "", "10.0.0.0/8/8"] {
            assert_eq!(network(text), None, "{text}");
        }
    }

    #[test]
    fn a_redirect_leads_to_http_alone() {
        let base: Uri = "http://a:8/b".parse().unwrap();
        assert_eq!(follow(&base, "/c?d").unwrap(), "http://a:8/c?d");
        assert_eq!(follow(&base, "https://x/").unwrap(), "https://x/");
        assert_eq!(follow(&base, "http://x/").unwrap(), "http://x/");
        for location in ["file:///etc/shadow", "gopher://x/", "mailto:x", "", "#c"] {
            assert!(follow(&base, location).is_err(), "{location}");
        }
    }

    #[test]
    fn a_redirect_never_leads_out_of_tls() {
        let base: Uri = "https://a/b".parse().unwrap();
        assert_eq!(follow(&base, "//x/c").unwrap(), "https://x/c");
        for location in ["http://x/", "HTTP://a/b"] {
            assert!(follow(&base, location).is_err(), "{location}");
        }
    }

    #[test]
    fn a_relative_reference_means_what_the_standard_says() {
        // Source: RFC 3986, section 5.4
        let base: Uri = "http://a/b/c/d;p?q".parse().unwrap();
        for (reference, meant) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g/", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y/./x", "http://a/b/c/g?y/./x"),
            ("g#s", "http://a/b/c/g"),
            (".", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../..", "http://a/"),
            ("../../../g", "http://a/g"),
            ("/./g", "http://a/g"),
            ("g;x=1/../y", "http://a/b/c/y"),
            ("..g", "http://a/b/c/..g"),
        ] {
            assert_eq!(absolute(&base, reference).unwrap(), meant, "{reference}");
        }
    }
}
