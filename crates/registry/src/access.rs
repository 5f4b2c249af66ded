//! Who may do what. The registry reads credentials off requests and asks its owner, who knows the users. Must never know
//! where users come from.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Code, Failure};
use crate::path::Path;

/// Longest credentials that are looked at. Units: bytes.
const CREDENTIALS_MAX: usize = 16 << 10;

/// Longest `User-Agent` that is written down. Units: characters.
const USER_AGENT_MAX: usize = 256;

/// What a request shows of who sent it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name; empty with a bearer token.
    pub user: String,
    /// Password or token.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What a request is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// See whether the credentials are good; concerns no repository.
    LogIn,
    /// List all repositories.
    List,
    /// Read a repository's tags, manifests and blobs.
    Pull,
    /// Add to a repository.
    Push,
    /// Take tags, manifests or blobs away.
    Delete,
}

/// What the owner says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request may go on.
    Allowed,
    /// Nobody knows these credentials, or there are none.
    Unknown,
    /// The user may not do this.
    Denied,
}

/// Whom credentials stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Person {
    /// Name.
    pub name: String,
    /// Unique id; empty when there is none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// A verdict, and about whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What the owner says.
    pub verdict: Verdict,
    /// Who asks, when that is known.
    pub person: Option<Person>,
}

impl From<Verdict> for Judgement {
    fn from(verdict: Verdict) -> Judgement {
        Judgement { verdict, person: None }
    }
}

/// Where a request came from: whoever serves the connection puts it among the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(pub IpAddr);

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who asked, when that is known.
    pub person: Option<Person>,
    /// What was asked for.
    pub action: Action,
    /// Of which repository; empty where none is concerned.
    pub repository: String,
    /// Where it came from.
    pub source: Option<IpAddr>,
    /// The client's `User-Agent`.
    pub user_agent: String,
    /// Status of the answer.
    pub status: u16,
}

/// Judges requests.
#[async_trait::async_trait]
pub trait Access: Send + Sync {
    /// Whether the bearer of `credentials` may do `action` with `repository` (empty where none is concerned).
    async fn judge(&self, credentials: Option<&Credentials>, action: Action, repository: &str) -> Judgement;

    /// Takes note of a request that was answered, be it refused or not.
    fn record(&self, _record: Record) {}
}

/// What of a request is written down, before it is served; `None` when it is about nothing that the registry has.
pub(crate) fn note(request: &Request) -> Option<Record> {
    let path = Path::parse(request.uri().path()).ok()?;
    let (action, repository) = wish(&path, request.method());
    let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Some(Record {
        person: None,
        action,
        repository: repository.to_owned(),
        source: request.extensions().get::<Source>().map(|source| source.0),
        user_agent: agent.chars().take(USER_AGENT_MAX).collect(),
        status: 0,
    })
}

/// Refuses a request that its sender may not make; says who it is. Without a judge everything is allowed.
pub(crate) async fn check(
    judge: Option<&Arc<dyn Access>>,
    path: &Path,
    request: &Parts,
    person: &mut Option<Person>,
) -> Result<(), Failure> {
    let Some(judge) = judge else { return Ok(()) };
    let (action, repository) = wish(path, &request.method);
    let credentials = credentials(&request.headers);
    let judgement = judge.judge(credentials.as_ref(), action, repository).await;
    *person = judgement.person;
    match judgement.verdict {
        Verdict::Allowed => Ok(()),
        Verdict::Unknown => {
            let failure = Failure::with_status(StatusCode::UNAUTHORIZED, Code::Unauthorized, "authentication required");
            Err(failure.header(header::WWW_AUTHENTICATE, "Basic realm=\"nuee\""))
        }
        Verdict::Denied => Err(Failure::new(Code::Denied, "requested access to the resource is denied")),
    }
}

/// Whether the sender may read another repository, from which a blob is to be mounted.
pub(crate) async fn may_read(judge: Option<&Arc<dyn Access>>, repository: &str, headers: &HeaderMap) -> bool {
    let Some(judge) = judge else { return true };
    let credentials = credentials(headers);
    judge.judge(credentials.as_ref(), Action::Pull, repository).await.verdict == Verdict::Allowed
}

fn wish<'a>(path: &'a Path, method: &Method) -> (Action, &'a str) {
    let read = matches!(*method, Method::GET | Method::HEAD);
    match path {
        Path::Root => (Action::LogIn, ""),
        Path::Catalog => (Action::List, ""),
        // An upload that is looked at or given up is part of a push.
        Path::Uploads(name) | Path::Upload(name, _) => (Action::Push, name),
        Path::Tags(name) | Path::Referrers(name, _) => (Action::Pull, name),
        Path::Blob(name, _) | Path::Manifest(name, _) if read => (Action::Pull, name),
        Path::Blob(name, _) | Path::Manifest(name, _) if *method == Method::DELETE => (Action::Delete, name),
        Path::Blob(name, _) | Path::Manifest(name, _) => (Action::Push, name),
    }
}

/// Reads `Authorization`; what makes no sense counts as nothing.
fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok().filter(|value| value.len() <= CREDENTIALS_MAX)?;
    if values.next().is_some() {
        // Two could be read as two users by two readers.
        return None;
    }
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Credentials { user: String::new(), secret: rest.to_owned() });
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
    let (user, secret) = text.split_once(':')?;
    Some(Credentials { user: user.to_owned(), secret: secret.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Option<Credentials> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, value.parse().unwrap());
        }
        credentials(&headers)
    }

    #[test]
    fn credentials_are_basic_or_bearer_and_one_only() {
        let basic = Credentials { user: "u".into(), secret: "p:q".into() };
        assert_eq!(read(&[&format!("Basic {}", STANDARD.encode("u:p:q"))]), Some(basic));
        assert_eq!(read(&["bearer abc"]).unwrap().secret, "abc");
        for bad in [&["Basic %%%"][..], &["Basic"], &["Digest x"], &["Bearer a", "Bearer b"], &[]] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(read(&[&format!("Bearer {}", "x".repeat(CREDENTIALS_MAX))]), None);
        assert!(!format!("{:?}", read(&["Bearer secret"])).contains("secret\""), "secrets are never printed");
    }

    #[test]
    fn every_request_is_of_one_action() {
        let wish_of = |method: Method, path: &str| {
            let path = Path::parse(path).unwrap();
            let (action, name) = wish(&path, &method);
            (action, name.to_owned())
        };
        let blob = format!("/v2/a/b/blobs/{}", image::Digest::of(b""));
        let named = |action| (action, "a/b".to_owned());
        assert_eq!(wish_of(Method::GET, "/v2/"), (Action::LogIn, String::new()));
        assert_eq!(wish_of(Method::GET, "/v2/_catalog"), (Action::List, String::new()));
        assert_eq!(wish_of(Method::HEAD, &blob), named(Action::Pull));
        assert_eq!(wish_of(Method::DELETE, &blob), named(Action::Delete));
        assert_eq!(wish_of(Method::GET, "/v2/a/b/blobs/uploads/x"), named(Action::Push));
        assert_eq!(wish_of(Method::PUT, "/v2/a/b/manifests/v1"), named(Action::Push));
        assert_eq!(wish_of(Method::GET, "/v2/a/b/tags/list"), named(Action::Pull));
    }
}
