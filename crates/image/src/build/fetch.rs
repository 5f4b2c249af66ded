//! ADD of a URL: the file comes into the build's own directory, within bounds and, if told so, only with the right digest.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{LAST_MODIFIED, LOCATION, USER_AGENT};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncWriteExt;

use crate::build::engine::Build;
use crate::build::parse::CopySpec;
use crate::build::work::container_id;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::remote::connect::{Class, Connector, tls};
use crate::store::ImageStore;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 10;
/// Time until the head of an answer is there, and between two pieces of a body.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Largest file.
const MAX_FILE: u64 = 16 << 30;

/// A file that came from a URL.
pub(super) struct Fetched {
    /// The source as the Dockerfile has it.
    pub source: String,
    /// The directory that holds nothing but the file.
    pub directory: PathBuf,
    /// The file's name.
    pub name: String,
}

/// Whether a source is a URL.
pub(super) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// Fetches all sources that are URLs.
pub(super) async fn all(build: &Build, spec: &CopySpec) -> Result<Vec<Fetched>> {
    let mut fetched = Vec::new();
    if !spec.add {
        return Ok(fetched);
    }
    for source in &spec.sources {
        if source.starts_with("git@") || source.starts_with("git://") || (is_url(source) && source.ends_with(".git")) {
            return Err(Error::NotSupported("ADD of a git repository is not supported".to_owned()));
        }
        if is_url(source) {
            fetched.push(one(build, source, spec).await?);
        }
    }
    if spec.checksum.is_some() && fetched.is_empty() {
        return Err(Error::Invalid("checksum requires a remote source".to_owned()));
    }
    Ok(fetched)
}

async fn one(build: &Build, source: &str, spec: &CopySpec) -> Result<Fetched> {
    let wanted = spec.checksum.as_deref().map(str::parse::<Digest>).transpose()?;
    let name = name_of(source, &spec.destination)?;
    let directory = build.scratch.join(format!("url-{}", &container_id()[..12]));
    std::fs::create_dir_all(&directory).map_err(Error::io(format!("cannot make {}", directory.display())))?;
    let mut response = request(&build.store, build.options.local_urls, source).await?;
    if !response.status().is_success() {
        return Err(Error::Invalid(format!("{source}: invalid response status {}", response.status().as_u16())));
    }
    let modified = response.headers().get(LAST_MODIFIED).and_then(|value| http_date(value.to_str().ok()?));
    let path = directory.join(&name);
    let doing = || format!("cannot write {}", path.display());
    let mut file = tokio::fs::File::create_new(&path).await.map_err(Error::io(doing()))?;
    let algorithm = wanted.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
    let mut hasher = Hasher::new(algorithm);
    let mut size = 0_u64;
    let late = || Error::Unavailable(format!("{source}: no answer in time"));
    while let Some(frame) = tokio::time::timeout(PATIENCE, response.body_mut().frame()).await.map_err(|_| late())? {
        let frame = frame.map_err(|error| Error::Unavailable(format!("{source}: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        size += data.len() as u64;
        if size > MAX_FILE {
            return Err(Error::Invalid(format!("{source} is larger than {MAX_FILE} bytes")));
        }
        hasher.update(data);
        file.write_all(data).await.map_err(Error::io(doing()))?;
    }
    file.flush().await.map_err(Error::io(doing()))?;
    let file = file.into_std().await;
    let found = hasher.finish();
    if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
        return Err(Error::Invalid(format!("digest mismatch {found}: {wanted}")));
    }
    finish(&file, modified)?;
    Ok(Fetched { source: source.to_owned(), directory, name })
}

/// What comes from a URL is for its owner alone, and as old as the server says. Source: the Dockerfile reference.
fn finish(file: &std::fs::File, modified: Option<i64>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let doing = "cannot set the attributes of a fetched file";
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(Error::io(doing))?;
    let seconds = u64::try_from(modified.unwrap_or(0)).unwrap_or(0);
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).map_err(Error::io(doing))
}

/// Asks for what is at a URL, and for where it leads to; the answer may be a refusal.
pub(super) async fn request(store: &ImageStore, local_urls: bool, source: &str) -> Result<Response<Incoming>> {
    // A build of one who does not own the machine must not reach the machine's own services by its hand.
    let nearest = if local_urls { Class::Local } else { Class::Public };
    let client: Client<Connector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build(Connector::new(tls(&store.options)?, nearest));
    let invalid = |_| Error::Invalid(format!("invalid URL {source:?}"));
    let mut url: Uri = source.split('#').next().unwrap_or_default().parse().map_err(invalid)?;
    for _ in 0..=MAX_REDIRECTS {
        let request = Request::get(url.clone())
            .header(USER_AGENT, concat!("nuee/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| Error::Invalid(error.to_string()))?;
        let sent = tokio::time::timeout(PATIENCE, client.request(request)).await;
        let response = sent
            .map_err(|_| Error::Unavailable(format!("{source}: no answer in time")))?
            .map_err(|error| Error::Unavailable(format!("{source}: {}", cause(&error))))?;
        if !response.status().is_redirection() {
            return Ok(response);
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        url = absolute(&url, location)?;
    }
    Err(Error::Invalid(format!("{source}: too many redirects")))
}

fn cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn absolute(base: &Uri, location: &str) -> Result<Uri> {
    let bad = || Error::Invalid(format!("invalid redirect to {location:?}"));
    if is_url(location) {
        return location.parse().map_err(|_| bad());
    }
    let authority = base.authority().ok_or_else(bad)?;
    let path = if location.starts_with('/') { location.to_owned() } else { return Err(bad()) };
    Uri::builder()
        .scheme(base.scheme_str().unwrap_or("http"))
        .authority(authority.as_str())
        .path_and_query(path)
        .build()
        .map_err(|_| bad())
}

/// The file's name: the last part of the URL's path. A destination that is a directory needs one.
fn name_of(source: &str, destination: &str) -> Result<String> {
    let path = source.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let name = path.split_once('/').and_then(|(_, path)| path.rsplit('/').next()).unwrap_or_default();
    let name = String::from_utf8_lossy(&percent_decode(name)).into_owned();
    let usable = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    if usable {
        return Ok(name);
    }
    if destination.ends_with('/') {
        return Err(Error::Invalid(format!("cannot determine filename from url: {source}")));
    }
    Ok("download".to_owned())
}

fn percent_decode(text: &str) -> Vec<u8> {
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

/// `Sun, 06 Nov 1994 08:49:37 GMT` to seconds since the Unix epoch.
fn http_date(text: &str) -> Option<i64> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok().map(jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_path() {
        assert_eq!(name_of("http://x/a/b.tar?c=d", "/").unwrap(), "b.tar");
        assert_eq!(name_of("http://x/a%20b", "/").unwrap(), "a b");
        assert_eq!(name_of("http://x", "/file").unwrap(), "download");
        assert!(name_of("http://x/", "/dir/").is_err());
        assert_eq!(name_of("http://x/%2e%2e", "/y").unwrap(), "download");
        assert_eq!(name_of("http://x/a%2fb", "/y").unwrap(), "download");
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
    }
}
