//! A conversation with one registry: scheme, authorization, redirects, time-outs. Must never know what is transferred.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RANGE, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::reference::{DEFAULT_REGISTRY, Reference};
use crate::remote::challenge::{self, Challenge};
use crate::remote::connect::{Class, Connector, classify, resolve, tls};
use crate::remote::pace::Pace;
use crate::store::StoreOptions;
use crate::store::blobs::lock;
use crate::types::Credentials;

/// The body of a request.
pub type RequestBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// Docker Hub's registry has another name than its images.
const HUB_HOST: &str = "registry-1.docker.io";
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// Time until the head of an answer is there, from when the registry last took a piece of the request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two pieces of a body.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer of a token server, and longest error that is read.
const MAX_ANSWER: usize = 256 << 10;

/// What is wanted of a registry.
#[derive(Default)]
pub struct Wanted<'a> {
    /// `Accept`.
    pub accept: &'a [&'a str],
    /// First byte wanted.
    pub from: u64,
    /// `Content-Type`.
    pub content_type: &'a str,
    /// Bytes of the body.
    pub length: Option<u64>,
}

/// Where a request went in the end, after all redirects; it stands among the extensions of the answer.
#[derive(Clone)]
pub struct Went(pub Uri);

/// A conversation.
pub struct Session {
    base: String,
    host: String,
    plain: bool,
    direct: Client<Connector, RequestBody>,
    away: Client<Connector, RequestBody>,
    credentials: Option<Credentials>,
    scope: String,
    authorization: Mutex<Option<String>>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Session {
    /// Starts a conversation about one repository; `actions` are `pull` or `pull,push`.
    pub async fn open(
        options: &StoreOptions,
        reference: &Reference,
        credentials: Option<&Credentials>,
        actions: &str,
    ) -> Result<Session> {
        let scope = format!("repository:{}:{actions}", reference.repository);
        Session::with_scope(options, &reference.registry, credentials, scope).await
    }

    /// Starts a conversation about one repository with a mirror of its registry.
    pub async fn mirror(options: &StoreOptions, mirror: &str, reference: &Reference) -> Result<Session> {
        Session::anonymous(options, mirror, format!("repository:{}:pull", reference.repository)).await
    }

    /// Starts a conversation about the names of repositories with a registry of the settings.
    pub async fn catalogue(options: &StoreOptions, registry: &str) -> Result<Session> {
        Session::anonymous(options, registry, "registry:catalog:*".to_owned()).await
    }

    async fn anonymous(options: &StoreOptions, registry: &str, scope: String) -> Result<Session> {
        let mut options = options.clone();
        let host = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        if registry.starts_with("http://") {
            options.plain_http.push(host.to_owned());
        }
        Session::with_scope(&options, host, None, scope).await
    }

    /// Starts a conversation with a registry.
    pub async fn with_scope(
        options: &StoreOptions,
        registry: &str,
        credentials: Option<&Credentials>,
        scope: String,
    ) -> Result<Session> {
        let host = if registry == DEFAULT_REGISTRY { HUB_HOST } else { registry }.to_owned();
        let uri: Uri =
            format!("https://{host}/").parse().map_err(|_| Error::Invalid(format!("invalid registry {registry:?}")))?;
        let name = uri.host().unwrap_or_default().to_owned();
        let addresses = resolve(&name, uri.port_u16().unwrap_or(443)).await?;
        let class = addresses.iter().map(|address| classify(address.ip())).min().unwrap_or(Class::Public);
        let listed = options.plain_http.iter().any(|allowed| *allowed == host || *allowed == name);
        let loopback = addresses.iter().all(|address| address.ip().is_loopback()) && !addresses.is_empty();
        let tls = tls(options)?;
        let client = |nearest| {
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(4).build(Connector::new(tls.clone(), nearest))
        };
        let mut session = Session {
            base: format!("https://{host}"),
            host,
            plain: listed || loopback,
            // The user named the registry itself: any address will do for it. Not for where it sends us.
            direct: client(Class::Local),
            away: client(class),
            credentials: credentials.cloned(),
            scope,
            authorization: Mutex::new(None),
        };
        session.choose_scheme().await?;
        Ok(session)
    }

    /// TLS first; plain only where it is allowed and TLS does not answer.
    async fn choose_scheme(&mut self) -> Result<()> {
        if !self.plain {
            return Ok(());
        }
        let probe = Request::get(format!("{}/v2/", self.base)).body(empty()).map_err(invalid_request)?;
        if self.send_raw(&self.direct, probe).await.is_err() {
            self.base = format!("http://{}", self.host);
        }
        Ok(())
    }

    /// Sends a request without a body, with authorization and redirects.
    ///
    /// Errors: what the registry says, as [`failure`] reads it, for all but success.
    pub async fn request(&self, method: Method, path: &str, wanted: &Wanted<'_>) -> Result<Response<Incoming>> {
        let response = self.try_request(&method, path, wanted).await?;
        if response.status().is_success() { Ok(response) } else { Err(failure(response).await) }
    }

    /// As [`Session::request`], with any status.
    pub async fn try_request(&self, method: &Method, path: &str, wanted: &Wanted<'_>) -> Result<Response<Incoming>> {
        self.try_send(method, path, wanted, &empty).await
    }

    /// Sends a request with a body, which is made anew when authorization has to be got first.
    pub async fn send(
        &self,
        method: &Method,
        path: &str,
        wanted: &Wanted<'_>,
        body: &(dyn Fn() -> RequestBody + Send + Sync),
    ) -> Result<Response<Incoming>> {
        let response = self.try_send(method, path, wanted, body).await?;
        if response.status().is_success() { Ok(response) } else { Err(failure(response).await) }
    }

    /// As [`Session::send`], with any status.
    pub async fn try_send(
        &self,
        method: &Method,
        path: &str,
        wanted: &Wanted<'_>,
        body: &(dyn Fn() -> RequestBody + Send + Sync),
    ) -> Result<Response<Incoming>> {
        let response = self.follow(method, path, wanted, body).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges: Vec<Challenge> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| challenge::parse(value.to_str().ok()?))
            .collect();
        let Some(authorization) = self.authorize(challenges).await? else { return Err(failure(response).await) };
        *lock(&self.authorization) = Some(authorization);
        self.follow(method, path, wanted, body).await
    }

    async fn follow(
        &self,
        method: &Method,
        path: &str,
        wanted: &Wanted<'_>,
        body: &(dyn Fn() -> RequestBody + Send + Sync),
    ) -> Result<Response<Incoming>> {
        let mut url = self.absolute(path, None)?;
        for _ in 0..=MAX_REDIRECTS {
            let own = url.authority().map(http::uri::Authority::as_str) == Some(self.host.as_str());
            let mut request = Request::builder().method(method).uri(url.clone());
            request = request.header(USER_AGENT, concat!("nuee/", env!("CARGO_PKG_VERSION")));
            for accept in wanted.accept {
                request = request.header(ACCEPT, *accept);
            }
            if wanted.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", wanted.from));
            }
            if !wanted.content_type.is_empty() {
                request = request.header(CONTENT_TYPE, wanted.content_type);
            }
            if let Some(length) = wanted.length {
                request = request.header(CONTENT_LENGTH, length);
            }
            // Credentials are for the registry, never for where it sends us.
            if own && let Some(authorization) = lock(&self.authorization).clone() {
                request = request.header(AUTHORIZATION, authorization);
            }
            let request = request.body(body()).map_err(invalid_request)?;
            let client = if own { &self.direct } else { &self.away };
            let mut response = self.send_raw(client, request).await?;
            if !response.status().is_redirection() {
                response.extensions_mut().insert(Went(url));
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| Error::Unavailable("a redirect that leads nowhere".to_owned()))?;
            url = self.absolute(location, Some(&url))?;
        }
        Err(Error::Unavailable(format!("{} redirects too often", self.host)))
    }

    async fn send_raw(
        &self,
        client: &Client<Connector, RequestBody>,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>> {
        let uri = request.uri().clone();
        let describe = |error: hyper_util::client::legacy::Error| {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = cause.to_string();
                source = cause.source();
            }
            let host = uri.host().unwrap_or_default();
            Error::Unavailable(format!("cannot reach registry {host}: {text}"))
        };
        let now = tokio::time::Instant::now();
        let taking = Arc::new(Mutex::new(Taking { began: now, last: now, pace: Pace::default(), failed: None }));
        let watches = taking.clone();
        let watched = request.map(|inner| Watched { inner, taking: watches }.boxed_unsync());
        let mut answer = std::pin::pin!(client.request(watched));
        loop {
            let last = lock(&taking).last;
            match tokio::time::timeout_at(last + HEAD_TIMEOUT, &mut answer).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => {
                    // What failed here is not the registry's fault.
                    let own = lock(&taking).failed.take();
                    return Err(own.unwrap_or_else(|| describe(error)));
                }
                Err(_) if lock(&taking).last > last => {}
                Err(_) => return Err(Error::Unavailable(format!("registry {} does not answer in time", self.host))),
            }
        }
    }

    /// An absolute address from what a registry says in its answer to a request to `current`; TLS is never left.
    pub fn absolute(&self, location: &str, current: Option<&Uri>) -> Result<Uri> {
        let base = current.and_then(|uri| Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?)));
        let base = base.as_deref().unwrap_or(&self.base);
        let whole = location.split('?').next().is_some_and(|path| path.contains("://"));
        let text = if location.starts_with('/') {
            format!("{base}{location}")
        } else if let Some(current) = current
            && !whole
        {
            format!("{base}{}{location}", beside(current.path(), location))
        } else {
            location.to_owned()
        };
        let bad = || Error::Unavailable(format!("registry {} sends us to a bad address", self.host));
        let uri: Uri = text.parse().map_err(|_| bad())?;
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if self.base.starts_with("http://") => {}
            _ => return Err(bad()),
        }
        if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(bad());
        }
        Ok(uri)
    }

    async fn authorize(&self, challenges: Vec<Challenge>) -> Result<Option<String>> {
        if let Some(credentials) = &self.credentials
            && !credentials.registry_token.is_empty()
        {
            return Ok(Some(format!("Bearer {}", credentials.registry_token)));
        }
        for challenge in challenges {
            match challenge {
                Challenge::Bearer { realm, service, scope } => {
                    let scope = if self.scope.is_empty() { scope } else { self.scope.clone() };
                    return self.token(&realm, &service, &scope).await.map(Some);
                }
                Challenge::Basic => {
                    if let Some(basic) = self.basic() {
                        return Ok(Some(basic));
                    }
                }
            }
        }
        Ok(None)
    }

    fn basic(&self) -> Option<String> {
        let credentials = self.credentials.as_ref().filter(|held| !held.username.is_empty())?;
        let pair = format!("{}:{}", credentials.username, credentials.password);
        Some(format!("Basic {}", STANDARD.encode(pair)))
    }

    async fn token(&self, realm: &str, service: &str, scope: &str) -> Result<String> {
        let realm = self.absolute(realm, None)?;
        let refresh = self.credentials.as_ref().map(|held| held.identity_token.as_str()).filter(|t| !t.is_empty());
        let request = if let Some(refresh) = refresh {
            let form = [
                ("grant_type", "refresh_token"),
                ("service", service),
                ("scope", scope),
                ("client_id", "nuee"),
                ("refresh_token", refresh),
            ];
            let form: Vec<String> = form.iter().map(|(k, v)| format!("{k}={}", escape(v))).collect();
            Request::post(realm)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(full(form.join("&").into()))
        } else {
            let separator = if realm.query().is_some() { '&' } else { '?' };
            let mut url = format!("{realm}{separator}service={}", escape(service));
            if !scope.is_empty() {
                url.push_str(&format!("&scope={}", escape(scope)));
            }
            let mut request = Request::get(url);
            if let Some(basic) = self.basic() {
                request = request.header(AUTHORIZATION, basic);
            }
            request.body(empty())
        };
        let request = request.map_err(invalid_request)?;
        let response = self.send_raw(&self.away, request).await?;
        if !response.status().is_success() {
            return Err(failure(response).await);
        }
        let body = read_all(response.into_body(), MAX_ANSWER).await?;
        let token: Token = serde_json::from_slice(&body)
            .map_err(|_| Error::Unavailable("the token server's answer is no token".to_owned()))?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        token
            .map(|token| format!("Bearer {token}"))
            .ok_or_else(|| Error::Unauthorized("the token server gave no token".to_owned()))
    }
}

/// What of a path comes before a reference that is relative to it: all of it before a query, otherwise its directory.
fn beside<'a>(path: &'a str, reference: &str) -> &'a str {
    let directory = path.rfind('/').map_or(0, |at| at + 1);
    if reference.starts_with('?') { path } else { &path[..directory] }
}

/// How a body is taken that is being sent.
struct Taking {
    began: tokio::time::Instant,
    /// When a piece of it was last taken.
    last: tokio::time::Instant,
    pace: Pace,
    /// Why it was not sent to its end: the client of the protocol tells that as if the registry had failed.
    failed: Option<Error>,
}

/// A body that notes how it is taken.
struct Watched {
    inner: RequestBody,
    taking: Arc<Mutex<Taking>>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, std::io::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else { return Poll::Pending };
        let mut taking = lock(&self.taking);
        taking.last = tokio::time::Instant::now();
        let failed: std::io::Error = match frame {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => {
                let (bytes, passed) = (frame.data_ref().map_or(0, Bytes::len), taking.last - taking.began);
                if taking.pace.passed(bytes, passed) {
                    return Poll::Ready(Some(Ok(frame)));
                }
                taking.failed = Some(Error::Unavailable("the registry takes what is sent too slowly".to_owned()));
                std::io::ErrorKind::TimedOut.into()
            }
            Some(Err(error)) => {
                let kind = error.kind();
                taking.failed = Some(Error::io("cannot read what is sent to a registry")(error));
                kind.into()
            }
        };
        Poll::Ready(Some(Err(failed)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn invalid_request(error: http::Error) -> Error {
    Error::Invalid(format!("invalid request to a registry: {error}"))
}

/// No body.
pub fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body in memory.
pub fn full(bytes: Bytes) -> RequestBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Percent-encodes a query value.
pub fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Reads a body of at most so many bytes.
pub async fn read_all(body: Incoming, most: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut pieces = Pieces::new(body);
    while let Some(piece) = pieces.next().await? {
        if bytes.len() + piece.len() > most {
            return Err(Error::Unavailable(format!("the registry's answer is longer than {most} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// A body, piece by piece, in time.
pub struct Pieces {
    body: Incoming,
    pace: Pace,
    began: tokio::time::Instant,
}

impl Pieces {
    /// The pieces of this body.
    pub fn new(body: Incoming) -> Pieces {
        Pieces { body, pace: Pace::default(), began: tokio::time::Instant::now() }
    }

    /// The next one.
    ///
    /// Errors: `Unavailable` when the registry breaks off, stops, or drips.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let data = match tokio::time::timeout(IDLE_TIMEOUT, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(error))) => return Err(Error::Unavailable(format!("the registry broke off: {error}"))),
                Err(_) => return Err(Error::Unavailable("the registry stopped sending".to_owned())),
            };
            if !self.pace.passed(data.len(), self.began.elapsed()) {
                return Err(Error::Unavailable("the registry sends too slowly".to_owned()));
            }
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }
}

/// Reads what a registry says went wrong. Source: OCI distribution specification, error codes.
pub async fn failure(response: Response<Incoming>) -> Error {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        code: Option<String>,
        message: Option<String>,
    }
    let status = response.status();
    let body = read_all(response.into_body(), MAX_ANSWER).await.unwrap_or_default();
    let said: Option<Errors> = serde_json::from_slice(&body).ok();
    let one = said.and_then(|errors| errors.errors.into_iter().next());
    let code = one.as_ref().and_then(|one| one.code.clone()).unwrap_or_default();
    // Answers to HEAD have no body.
    let plain = match status {
        StatusCode::UNAUTHORIZED => "authentication required",
        StatusCode::FORBIDDEN => "requested access to the resource is denied",
        _ => status.canonical_reason().unwrap_or("error"),
    };
    let message: String = one
        .and_then(|one| one.message)
        .unwrap_or_else(|| plain.to_owned())
        .chars()
        .filter(|c| !c.is_control())
        .take(500)
        .collect();
    match (status, code.as_str()) {
        (StatusCode::UNAUTHORIZED, _) | (_, "UNAUTHORIZED") => Error::Unauthorized(format!("unauthorized: {message}")),
        (StatusCode::FORBIDDEN, _) | (_, "DENIED") => Error::Unauthorized(format!("denied: {message}")),
        (_, "MANIFEST_UNKNOWN") => Error::NotFound(format!("manifest unknown: {message}")),
        (_, "NAME_UNKNOWN") => Error::NotFound(format!("name unknown: {message}")),
        (StatusCode::NOT_FOUND, _) => Error::NotFound(format!("not found: {message}")),
        (StatusCode::TOO_MANY_REQUESTS, _) => Error::Unavailable(format!("toomanyrequests: {message}")),
        _ => Error::Unavailable(format!("unexpected answer {status} from the registry: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_place_lies_beside_the_one_that_was_asked() {
        assert_eq!(beside("/v2/some/blobs/uploads/id", "next?state=x"), "/v2/some/blobs/uploads/");
        assert_eq!(beside("/v2/some/blobs/uploads/id", "?state=x"), "/v2/some/blobs/uploads/id");
        assert_eq!(beside("/", "next"), "/");
    }

    #[tokio::test]
    async fn a_body_that_fails_here_says_why() {
        let now = tokio::time::Instant::now();
        let taking = Arc::new(Mutex::new(Taking { began: now, last: now, pace: Pace::default(), failed: None }));
        let pieces = futures::stream::iter([Err::<Frame<Bytes>, _>(std::io::Error::other("the disk is gone"))]);
        let inner: RequestBody = http_body_util::StreamBody::new(pieces).boxed_unsync();
        assert!(Watched { inner, taking: taking.clone() }.collect().await.is_err());
        let failed = lock(&taking).failed.take();
        assert!(failed.is_some_and(|error| error.chain().contains("the disk is gone")));
    }
}
