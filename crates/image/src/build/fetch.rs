//! ADD of a URL: the file, or the repository, comes into the build's own directory, within bounds and, if told so, only with the right digest.

use std::path::PathBuf;
use std::time::Duration;

use http::header::LAST_MODIFIED;
use http::{HeaderMap, Response};
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt;

use crate::build::engine::Build;
use crate::build::parse::CopySpec;
use crate::build::work::container_id;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::git::{self, is_repository};
use crate::store::ImageStore;
use crate::web::{self, Class, Reach, is_url, percent_decode};

/// Largest file.
const MAX_FILE: u64 = 16 << 30;

/// What came from a URL.
pub(super) struct Fetched {
    /// The source as the Dockerfile has it.
    pub source: String,
    /// The directory that holds nothing but what came.
    pub directory: PathBuf,
    /// The name of the file, or of the repository's directory.
    pub name: String,
}

/// Fetches all sources that are URLs.
pub(super) async fn all(build: &Build, spec: &CopySpec) -> Result<Vec<Fetched>> {
    let mut fetched = Vec::new();
    if !spec.add {
        return Ok(fetched);
    }
    for source in &spec.sources {
        if is_repository(source) {
            fetched.push(repository(build, source, spec).await?);
        } else if is_url(source) {
            fetched.push(one(build, source, spec).await?);
        }
    }
    if spec.checksum.is_some() && fetched.is_empty() {
        return Err(Error::Invalid("checksum requires a remote source".to_owned()));
    }
    Ok(fetched)
}

/// Whether ADD fetches a source.
pub(super) fn is_remote(source: &str) -> bool {
    is_url(source) || is_repository(source)
}

async fn repository(build: &Build, source: &str, spec: &CopySpec) -> Result<Fetched> {
    if spec.checksum.is_some() {
        return Err(Error::NotSupported("checksums of git repositories are not supported; name a commit".to_owned()));
    }
    if spec.keep_git_dir {
        return Err(Error::NotSupported("the history of git repositories is not kept: --keep-git-dir".to_owned()));
    }
    let directory = new_directory(build)?;
    let name = "tree".to_owned();
    git::checkout(&build.store, reach(build.options.local_urls), source, &directory.join(&name)).await?;
    Ok(Fetched { source: source.to_owned(), directory, name })
}

fn new_directory(build: &Build) -> Result<PathBuf> {
    let directory = build.scratch.join(format!("url-{}", &container_id()[..12]));
    std::fs::create_dir_all(&directory).map_err(Error::io(format!("cannot make {}", directory.display())))?;
    Ok(directory)
}

async fn one(build: &Build, source: &str, spec: &CopySpec) -> Result<Fetched> {
    let wanted = spec.checksum.as_deref().map(str::parse::<Digest>).transpose()?;
    let name = name_of(source, &spec.destination)?;
    let directory = new_directory(build)?;
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
    while let Some(data) = web::piece(source, response.body_mut()).await? {
        size += data.len() as u64;
        if size > MAX_FILE {
            return Err(Error::Invalid(format!("{source} is larger than {MAX_FILE} bytes")));
        }
        hasher.update(&data);
        file.write_all(&data).await.map_err(Error::io(doing()))?;
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
    web::get(&store.options, &reach(local_urls), source, &HeaderMap::new()).await
}

/// Which addresses a build may fetch from. Who does not own the machine must not reach the machine's own services by its hand.
pub(super) fn reach(local_urls: bool) -> Reach {
    if local_urls { Class::Local.into() } else { Class::Public.into() }
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
