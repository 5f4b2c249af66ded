//! Conversations with a git server, over HTTP or git's own transport. Every connection is judged where it is made, as for all else that
//! a build fetches.

use base64::Engine as _;
use futures::StreamExt;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::StreamReader;

use super::address::Address;
use super::packets::{self, Packets};
use crate::error::{Error, Result};
use crate::store::StoreOptions;
use crate::web::{self, Reach, percent_decode};

/// Where git servers without HTTP listen. `Source:` git-daemon(1).
const GIT_PORT: u16 = 9418;
/// The service that is asked.
const SERVICE: &str = "git-upload-pack";
/// What says that version 2 is meant. `Source:` gitprotocol-v2(5).
const VERSION: &str = "version=2";

type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// What was fetched.
pub(super) struct Fetched {
    /// The object's name: of a commit, or of a tag.
    pub object: String,
    /// Size of its pack. Units: bytes.
    pub pack_bytes: u64,
}

/// Fetches what an address means, and writes the pack to `out`.
///
/// Errors: `NotFound` for repositories and references that are not there; `Unauthorized`; `Unavailable`; `NotSupported` for old servers;
/// `Invalid` for packs of more than `bytes_max` bytes.
pub(super) async fn fetch(
    options: &StoreOptions,
    reach: &Reach,
    address: &Address,
    out: &mut (impl AsyncWrite + Unpin),
    bytes_max: u64,
) -> Result<Fetched> {
    if address.url.starts_with("git://") {
        return over_git(options, reach, address, out, bytes_max).await;
    }
    let mut headers = headers(address)?;
    let (base, said) = discover(options, reach, address, &headers).await?;
    if host(&base) != host(&address.url) {
        headers.remove(AUTHORIZATION);
    }
    let capabilities = Packets::new(said).capabilities().await?;
    let ask = |body: Vec<u8>| post(options, reach, &base, &headers, body);
    let object = match packets::is_object(&address.reference) {
        true => address.reference.clone(),
        false => {
            let list = ask(packets::ask_reference(&address.reference)).await?;
            Packets::new(list).reference(&address.reference).await?
        }
    };
    let answer = ask(packets::ask_pack(&object, capabilities)).await?;
    let pack_bytes = Packets::new(answer).pack(out, bytes_max).await?;
    Ok(Fetched { object, pack_bytes })
}

/// Name and port of a URL's host.
fn host(url: &str) -> Option<&str> {
    url.split_once("://")?.1.split('/').next()
}

fn headers(address: &Address) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert("git-protocol", HeaderValue::from_static(VERSION));
    if let Some(credentials) = &address.credentials {
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let plain = [percent_decode(user), percent_decode(password)].join(&b':');
        let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain));
        let mut value = HeaderValue::try_from(text).map_err(|error| Error::Invalid(error.to_string()))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

/// Asks a server what it can do, and where it wants to be asked.
async fn discover(
    options: &StoreOptions,
    reach: &Reach,
    address: &Address,
    headers: &HeaderMap,
) -> Result<(String, Reader)> {
    let path = format!("/info/refs?service={SERVICE}");
    let asked = format!("{}{path}", address.url);
    let (answered, response) = web::get_at(options, reach, &asked, headers).await?;
    let response = checked(&address.url, response)?;
    // A repository that has moved is asked where it is now. Source: git-config(1), `http.followRedirects`
    let answered = answered.to_string();
    let base = answered.strip_suffix(&path).unwrap_or(&address.url).to_owned();
    Ok((base, reader(response)))
}

async fn post(options: &StoreOptions, reach: &Reach, base: &str, headers: &HeaderMap, body: Vec<u8>) -> Result<Reader> {
    let mut headers = headers.clone();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-git-upload-pack-request"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/x-git-upload-pack-result"));
    let url = format!("{base}/{SERVICE}");
    let response = web::post(options, reach, &url, &headers, body.into()).await?;
    Ok(reader(checked(base, response)?))
}

fn checked(url: &str, response: http::Response<Incoming>) -> Result<http::Response<Incoming>> {
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => Err(Error::NotFound(format!("repository '{url}' not found"))),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(Error::Unauthorized(format!("authentication failed for '{url}'")))
        }
        status => Err(Error::Unavailable(format!("the git server at {url} answers {status}"))),
    }
}

fn reader(response: http::Response<Incoming>) -> Reader {
    let pieces = response.into_body().into_data_stream().map(|piece| piece.map_err(std::io::Error::other));
    Box::new(StreamReader::new(Box::pin(pieces)))
}

/// The same on one connection. `Source:` gitprotocol-pack(5), "Git Transport"; gitprotocol-v2(5).
async fn over_git(
    options: &StoreOptions,
    reach: &Reach,
    address: &Address,
    out: &mut (impl AsyncWrite + Unpin),
    bytes_max: u64,
) -> Result<Fetched> {
    let url: Uri = address.url.parse().map_err(|_| Error::Invalid(format!("invalid URL {:?}", address.url)))?;
    let host = url.authority().map(ToString::to_string).unwrap_or_default();
    let connection = web::connect(options, reach, &url, GIT_PORT).await?;
    let (reader, mut writer) = tokio::io::split(connection);
    let mut server = Packets::new(reader);
    let request = format!("{SERVICE} {}\0host={host}\0\0{VERSION}\0", url.path());
    let length = request.len() + 4;
    let cut = |error: std::io::Error| Error::Unavailable(format!("cannot ask {host}: {error}"));
    writer.write_all(format!("{length:04x}{request}").as_bytes()).await.map_err(cut)?;
    let capabilities = server.capabilities().await?;
    let object = match packets::is_object(&address.reference) {
        true => address.reference.clone(),
        false => {
            writer.write_all(&packets::ask_reference(&address.reference)).await.map_err(cut)?;
            server.reference(&address.reference).await?
        }
    };
    writer.write_all(&packets::ask_pack(&object, capabilities)).await.map_err(cut)?;
    let pack_bytes = server.pack(out, bytes_max).await?;
    // Says that nothing more is asked.
    let _ = writer.write_all(packets::FLUSH).await;
    Ok(Fetched { object, pack_bytes })
}
