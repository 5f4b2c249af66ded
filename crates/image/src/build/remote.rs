//! A build's context from a URL: a tar archive, a Dockerfile that has no context, or a git repository; and one that a client sends as a
//! server would. `Source:` moby `builder/remotecontext`, Docker Engine API, `ImageBuild`, `remote`.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::fetch;
use crate::error::{Error, Result, chain, into_io};
use crate::git::{self, is_repository};
use crate::layer::write::{Entry, Writer};
use crate::layer::{Decompressor, UnpackOptions, tree, unpack};
use crate::store::ImageStore;
use crate::types::ByteStream;
use crate::web::{PATIENCE, is_url};

/// How much of an answer is looked at to see whether it is text. `Source:` moby, `maxPreambleLength`.
const LOOKED_AT_BYTES: usize = 100;
/// Longest fetch, from the head of the answer on. A server that goes on with a byte now and then holds a thread all the while.
const FETCH_MAX: Duration = Duration::from_secs(3600);
/// How long a client may be silent in the middle of a context that it sends, and how long all of it may take: what makes the context may be
/// at work, or a person. When the client leaves, that is seen.
const SENT: Bounds = Bounds { between: Duration::from_secs(3600), longest: Duration::from_secs(24 * 3600) };
/// The same of a fetch.
const FETCHED: Bounds = Bounds { between: PATIENCE, longest: FETCH_MAX };
/// Fetches at once. Each may hold a thread on which images are unpacked, and containers started.
pub(crate) const FETCHES_MAX: usize = 32;
/// Largest Dockerfile. Units: bytes.
const DOCKERFILE_BYTES_MAX: usize = 2 << 20;
/// Name of the file in a context that is nothing but a Dockerfile.
const DOCKERFILE: &str = "Dockerfile";

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Archive,
}

/// A fetch goes on for as long as this is held, and ends with an error after that.
pub type Waiting = DropGuard;

/// A context that was found at a URL.
pub struct RemoteContext {
    /// The context, as a client would send it.
    pub stream: ByteStream,
    /// It is a Dockerfile alone, under that name.
    pub dockerfile_only: bool,
    /// What ends the fetch.
    pub waiting: Option<Waiting>,
}

/// Opens the context at a URL.
///
/// Errors, in Docker's words: those of repositories; `Invalid` for other schemes, and when the server gives neither an
/// archive nor text; `NotFound`, or `Unavailable` when it refuses or does not answer in time.
pub async fn remote_context(store: &Arc<ImageStore>, url: &str, local_urls: bool) -> Result<RemoteContext> {
    if is_repository(url) {
        let stream = git::archive(store, fetch::reach(local_urls), url).await?;
        return Ok(RemoteContext { stream, dockerfile_only: false, waiting: None });
    }
    if !is_url(url) {
        return Err(Error::Invalid(format!("remoteURL ({url}) could not be recognized as URL")));
    }
    let place = place(store, url).await?;
    let response = fetch::request(store, local_urls, url)
        .await
        .map_err(|error| Error::Unavailable(format!("error downloading remote context {url}: {}", cause(&error))))?;
    if !response.status().is_success() {
        return Err(refused(url, response.status(), &format!("error downloading remote context {url}: ")));
    }
    let said = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let (body, waiting) = bounded(url, response.into_body().into_data_stream(), FETCHED, place);
    judged(url, &said, body, waiting).await
}

/// Finds out what a body is, by what is said of it, or by its beginning.
async fn judged(url: &str, said: &str, body: ByteStream, waiting: Waiting) -> Result<RemoteContext> {
    // It is asked again after its end.
    let mut body = body.fuse();
    let mut first = Vec::new();
    while first.len() < LOOKED_AT_BYTES {
        match body.next().await.transpose().map_err(Error::io(format!("cannot read {url}")))? {
            Some(piece) => first.extend_from_slice(&piece),
            None => break,
        }
    }
    let undetected = |why: String| Error::Invalid(format!("error detecting content type for remote {url}: {why}"));
    if first.is_empty() {
        return Err(undetected("empty response".to_owned()));
    }
    let kind = kind(said, first.get(..LOOKED_AT_BYTES).unwrap_or(&first))
        .ok_or_else(|| undetected(format!("unsupported Content-Type {said:?}")))?;
    if kind == Kind::Archive {
        let start = futures::stream::once(std::future::ready(Ok(Bytes::from(first))));
        let stream = Box::pin(start.chain(body));
        return Ok(RemoteContext { stream, dockerfile_only: false, waiting: Some(waiting) });
    }
    while let Some(piece) = body.next().await.transpose().map_err(Error::io(format!("cannot read {url}")))? {
        first.extend_from_slice(&piece);
        if first.len() > DOCKERFILE_BYTES_MAX {
            return Err(Error::Invalid(format!("the Dockerfile at {url} is larger than {DOCKERFILE_BYTES_MAX} bytes")));
        }
    }
    let archive = Bytes::from(alone(&first)?);
    let stream = futures::stream::once(std::future::ready(Ok(archive)));
    Ok(RemoteContext { stream: Box::pin(stream), dockerfile_only: true, waiting: None })
}

/// Unpacks the context at a URL into a directory, which is made; says whether it is a Dockerfile alone, under that name.
///
/// Errors: as for [`remote_context`], and those of archives.
pub async fn unpack_remote(store: &Arc<ImageStore>, url: &str, local_urls: bool, target: &Path) -> Result<bool> {
    unpacked(store, remote_context(store, url, local_urls).await?, target).await
}

/// Unpacks a context that a client sends, within the sizes of one that is fetched, into a directory, which is made; says whether it
/// is a Dockerfile alone, under that name. The client may take its time. Errors call it by `name`.
///
/// Errors: `Invalid` when nothing comes; `Unavailable` when too many come at once; those of the client and of archives.
pub async fn unpack_sent<E>(
    store: &Arc<ImageStore>,
    name: &str,
    body: impl Stream<Item = std::result::Result<Bytes, E>> + Send + 'static,
    target: &Path,
) -> Result<bool>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let (body, waiting) = bounded(name, body, SENT, place(store, name).await?);
    unpacked(store, judged(name, "", body, waiting).await?, target).await
}

async fn unpacked(store: &ImageStore, remote: RemoteContext, target: &Path) -> Result<bool> {
    let (limits, target) = (store.options.limits, target.to_owned());
    let reader = tokio_util::io::StreamReader::new(remote.stream);
    crate::archive::in_background(reader, move |archive| {
        std::fs::create_dir_all(&target).map_err(Error::io(format!("cannot make {}", target.display())))?;
        let options = UnpackOptions { limits, whiteouts: false, owner: Some((0, 0)) };
        unpack(Decompressor::new(archive, limits)?, tree::open_root(&target)?.as_fd(), &options).map(drop)
    })
    .await?;
    Ok(remote.dockerfile_only)
}

/// What is at a URL, whatever it is: a file system to import. It comes for as long as the second part is held.
///
/// Errors, in Docker's words: `Invalid` for other schemes; `NotFound`, or `Unavailable` when the server refuses or does not
/// answer in time.
pub async fn remote_file(store: &Arc<ImageStore>, url: &str, local_urls: bool) -> Result<(ByteStream, Waiting)> {
    if !is_url(url) {
        return Err(Error::Invalid(format!("remoteURL ({url}) could not be recognized as URL")));
    }
    let place = place(store, url).await?;
    let response = fetch::request(store, local_urls, url).await;
    let response = response.map_err(|error| Error::Unavailable(cause(&error)))?;
    if !response.status().is_success() {
        return Err(refused(url, response.status(), ""));
    }
    Ok(bounded(url, response.into_body().into_data_stream(), FETCHED, place))
}

/// Go writes the kernel's errors in small letters; clients look for them.
fn cause(error: &Error) -> String {
    error.to_string().replace("Connection refused", "connection refused")
}

/// A server's refusal.
fn refused(url: &str, status: http::StatusCode, before: &str) -> Error {
    let text = format!("{before}failed to GET {url} with status {status}");
    if status == http::StatusCode::NOT_FOUND { Error::NotFound(text) } else { Error::Unavailable(text) }
}

/// Puts the files of a git repository into a directory, which is made.
///
/// Errors: those of repositories, as for [`remote_context`].
pub async fn checkout(store: &Arc<ImageStore>, url: &str, local_urls: bool, target: &Path) -> Result<()> {
    git::checkout(store, fetch::reach(local_urls), url, target).await
}

/// The address of a repository as anybody may see it.
pub fn shown_repository(url: &str) -> String {
    git::without_credentials(url)
}

/// A place among the fetches of this machine.
async fn place(store: &ImageStore, url: &str) -> Result<OwnedSemaphorePermit> {
    let place = tokio::time::timeout(PATIENCE, Arc::clone(&store.fetches).acquire_owned()).await;
    let place = place.ok().and_then(|place| place.ok());
    place.ok_or_else(|| Error::Unavailable(format!("{url}: too many downloads at once")))
}

/// How long a body may take.
#[derive(Clone, Copy)]
struct Bounds {
    /// Until its next piece.
    between: Duration,
    /// Until its end.
    longest: Duration,
}

/// The body of an answer, which must go on coming, and come to an end, while somebody waits for it. The place is held until
/// whoever reads it lets go of it.
fn bounded<E>(
    url: &str,
    body: impl Stream<Item = std::result::Result<Bytes, E>> + Send + 'static,
    bounds: Bounds,
    place: OwnedSemaphorePermit,
) -> (ByteStream, Waiting)
where
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let gone = CancellationToken::new();
    let waiting = gone.clone().drop_guard();
    let (url, end) = (url.to_owned(), Instant::now() + bounds.longest);
    let stream = futures::stream::unfold(Some((Box::pin(body), place)), move |state| {
        let (url, gone) = (url.clone(), gone.clone());
        async move {
            let (mut body, place) = state?;
            // As errors of ours, so that whoever unpacks what comes tells the reason, and not that it ended early.
            let failed = |why: &str| Some((Err(into_io(Error::Unavailable(format!("{url}: {why}")))), None));
            let now = Instant::now();
            // A body that never lets anybody wait is looked at here only.
            if now >= end {
                return failed("no end in time");
            }
            tokio::select! {
                biased;
                () = gone.cancelled() => failed("nobody waits for it"),
                next = tokio::time::timeout_at(end.min(now + bounds.between), body.next()) => match next {
                    Ok(None) => None,
                    Ok(Some(Ok(piece))) => Some((Ok(piece), Some((body, place)))),
                    Ok(Some(Err(error))) => {
                        let error: Box<dyn std::error::Error + Send + Sync> = error.into();
                        Some((Err(into_io(Error::Unavailable(chain(&*error)))), None))
                    }
                    Err(_) => failed("no answer in time"),
                },
            }
        }
    });
    (Box::pin(stream), waiting)
}

/// What an answer is, by what its server says, or by its beginning where that says nothing.
fn kind(said: &str, first: &[u8]) -> Option<Kind> {
    let said = said.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match said.as_str() {
        "text/plain" => Some(Kind::Text),
        "" | "application/octet-stream" => {
            // As browsers tell text from the rest: no byte of it is a control character. Source: WHATWG MIME Sniffing, 7.2.
            let control = |b: &u8| matches!(b, 0x00..=0x08 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
            Some(if first.iter().any(control) { Kind::Archive } else { Kind::Text })
        }
        other => {
            let known = ["tar", "gzip", "bzip", "bzip2", "xz"];
            let kind = other.strip_prefix("application/")?;
            known.contains(&kind.strip_prefix("x-").unwrap_or(kind)).then_some(Kind::Archive)
        }
    }
}

/// An archive with nothing but a Dockerfile.
fn alone(text: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Writer::new(Vec::new());
    archive.entry(DOCKERFILE.as_bytes(), &Entry { size: text.len() as u64, ..Entry::default() }, text)?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::from_io;

    /// A body that says one piece, and nothing more.
    fn stuck(bounds: Bounds, places: &Arc<tokio::sync::Semaphore>) -> (ByteStream, Waiting) {
        let first = futures::stream::once(std::future::ready(Ok::<_, std::io::Error>(Bytes::from_static(b"x"))));
        let place = Arc::clone(places).try_acquire_owned().unwrap();
        bounded("http://slow.test/", first.chain(futures::stream::pending()), bounds, place)
    }

    #[tokio::test]
    async fn a_fetch_ends_when_nobody_waits_for_it() {
        let places = Arc::new(tokio::sync::Semaphore::new(1));
        let (mut stream, waiting) = stuck(FETCHED, &places);
        assert_eq!(stream.next().await.unwrap().unwrap(), "x");
        assert_eq!(places.available_permits(), 0);
        let reader = tokio::spawn(async move { stream.next().await });
        drop(waiting);
        let error = reader.await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "http://slow.test/: nobody waits for it");
        assert_eq!(places.available_permits(), 1, "its place is another's");
    }

    #[tokio::test]
    async fn why_a_body_broke_off_is_told() {
        let places = Arc::new(tokio::sync::Semaphore::new(1));
        let body = futures::stream::iter([Err::<Bytes, _>(std::io::Error::other("the pipe is broken"))]);
        let (mut stream, _waiting) =
            bounded("http://torn.test/", body, FETCHED, Arc::clone(&places).try_acquire_owned().unwrap());
        let told = from_io("cannot read the archive", stream.next().await.unwrap().unwrap_err());
        assert!(matches!(told, Error::Unavailable(text) if text == "the pipe is broken"));
    }

    #[tokio::test]
    async fn a_fetch_ends_in_time_whatever_comes() {
        let places = Arc::new(tokio::sync::Semaphore::new(1));
        let (mut stream, _waiting) = stuck(Bounds { longest: Duration::ZERO, ..FETCHED }, &places);
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "http://slow.test/: no end in time");
        let told = from_io("cannot read the archive", error);
        assert!(matches!(told, Error::Unavailable(text) if text == "http://slow.test/: no end in time"));
        assert!(stream.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_a_context_may_take_longer_than_a_server() {
        let places = Arc::new(tokio::sync::Semaphore::new(1));
        for bounds in [FETCHED, SENT] {
            let (mut stream, _waiting) = stuck(bounds, &places);
            assert_eq!(stream.next().await.unwrap().unwrap(), "x");
            let before = Instant::now();
            let error = stream.next().await.unwrap().unwrap_err();
            assert_eq!(error.to_string(), "http://slow.test/: no answer in time");
            assert!(before.elapsed() >= bounds.between);
        }
        assert!(SENT.between > FETCHED.between && SENT.between < SENT.longest);
    }

    #[test]
    fn what_an_answer_is_follows_from_its_type_or_else_its_beginning() {
        for (said, first, wanted) in [
            ("text/plain; charset=utf-8", &b"\0"[..], Some(Kind::Text)),
            ("application/x-tar", b"FROM x", Some(Kind::Archive)),
            ("application/gzip", b"", Some(Kind::Archive)),
            ("application/octet-stream", b"FROM busybox\nRUN true\n", Some(Kind::Text)),
            ("", b"\x1f\x8b\x08\0", Some(Kind::Archive)),
            ("", b"Dockerfile\0\0\0", Some(Kind::Archive)),
            ("text/html", b"<html>", None),
            ("application/json", b"{}", None),
        ] {
            assert_eq!(kind(said, first), wanted, "{said} {first:?}");
        }
    }
}
