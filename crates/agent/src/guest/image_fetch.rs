//! Disk images that come from a URL: fetched whole and checked before anything is made of them. What breaks off goes on where it was, when
//! the server can say that it is the same file still; what the end of this process interrupts is begun anew.

use std::path::Path;
use std::time::Duration;

use api::DiskImage;
use api::virtual_machine::DiskImageSource;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use http::{Response, StatusCode};
use hyper::body::Incoming;
use image::web;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use sha2::{Digest, Sha256, Sha512};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::context::{Context, Key};
use crate::error::{Error, Result, is_not_found};

/// The largest file that is fetched. Units: bytes.
const BYTES_MAX: u64 = 64 << 30;
/// How often a transfer that broke off is taken up again.
const ATTEMPTS: usize = 5;
/// Pause before that.
const RETRY: Duration = Duration::from_secs(1);
/// The longest that a file may be on its way.
const TIME_MAX: Duration = Duration::from_secs(12 * 3600);
/// Time between two looks at how fast it comes, and the least that must have come meanwhile: a server that dribbles keeps others waiting.
const SPEED_LOOK: Duration = Duration::from_secs(60);
const SPEED_BYTES: u64 = 1 << 20;
/// Time between two reports of progress.
const REPORT: Duration = Duration::from_secs(1);

/// Checksums of a file, as far as they are asked for.
pub struct Sums {
    sha256: Option<(Sha256, String)>,
    sha512: Option<(Sha512, String)>,
}

impl Sums {
    /// Those that a source names.
    pub fn of(source: &DiskImageSource) -> Self {
        let named = |sum: &str| (!sum.is_empty()).then(|| sum.to_ascii_lowercase());
        Self {
            sha256: named(&source.sha256).map(|sum| (Sha256::new(), sum)),
            sha512: named(&source.sha512).map(|sum| (Sha512::new(), sum)),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        if let Some((hash, _)) = &mut self.sha256 {
            hash.update(bytes);
        }
        if let Some((hash, _)) = &mut self.sha512 {
            hash.update(bytes);
        }
    }

    /// Errors: one is another.
    fn check(self) -> Result<()> {
        let sha256 = self.sha256.map(|(hash, wanted)| ("SHA-256", hex::encode(hash.finalize()), wanted));
        let sha512 = self.sha512.map(|(hash, wanted)| ("SHA-512", hex::encode(hash.finalize()), wanted));
        match [sha256, sha512].into_iter().flatten().find(|(_, found, wanted)| found != wanted) {
            Some((name, found, wanted)) => Err(Error::Invalid(format!("the file's {name} is {found}, not {wanted}"))),
            None => Ok(()),
        }
    }

    /// Reads a file. Blocking.
    ///
    /// Errors: it is not the file that is meant.
    pub fn check_file(mut self, path: &Path) -> Result<()> {
        use std::io::Read;
        let mut file = std::fs::File::open(path).map_err(Error::io("open", path))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(Error::io("read", path))? {
                0 => return self.check(),
                count => self.update(&buffer[..count]),
            }
        }
    }
}

/// One file on its way.
struct Fetch<'a> {
    context: &'a Context,
    object: &'a DiskImage,
    url: &'a str,
    file: tokio::fs::File,
    path: std::path::PathBuf,
    sums: Sums,
    bytes: u64,
    total: Option<u64>,
    /// The server has answered, so that it may do so again.
    answered: bool,
    /// Says whether the file there is the same still.
    tag: Option<HeaderValue>,
    begun: Instant,
    reported: Instant,
    /// When its speed was looked at, and how much was there.
    looked: (Instant, u64),
}

/// Fetches the file of an image as `disk` into a directory; how large it is. Units: bytes.
///
/// Errors: it cannot be had, is too large, comes too slowly, or is not what its checksum says.
pub async fn fetch(context: &Context, object: &DiskImage, directory: &Path) -> Result<i64> {
    use std::os::unix::fs::DirBuilderExt;
    crate::directories::remove(directory)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(Error::io("create", directory))?;
    let path = directory.join("disk");
    let file = tokio::fs::File::create(&path).await.map_err(Error::io("create", &path))?;
    let source = &object.spec.source;
    let now = Instant::now();
    let fetch = Fetch {
        context,
        object,
        url: &source.url,
        file,
        path,
        sums: Sums::of(source),
        bytes: 0,
        total: None,
        answered: false,
        tag: None,
        begun: now,
        reported: now,
        looked: (now, 0),
    };
    fetch.run().await
}

impl Fetch<'_> {
    async fn run(mut self) -> Result<i64> {
        let mut attempt = 1;
        loop {
            match self.attempt().await {
                Ok(()) => break,
                // What was cut off may come at the next attempt; what is refused never does.
                Err(Error::Image(image::Error::Unavailable(why))) if attempt < ATTEMPTS && self.answered => {
                    tracing::info!(url = self.url, why, bytes = self.bytes, "a disk image broke off; going on");
                    attempt += 1;
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
        self.file.flush().await.map_err(Error::io("write", &self.path))?;
        self.sums.check()?;
        Ok(i64::try_from(self.bytes).unwrap_or(i64::MAX))
    }

    async fn attempt(&mut self) -> Result<()> {
        let mut headers = HeaderMap::new();
        if let Some(tag) = self.tag.clone().filter(|_| self.bytes > 0)
            && let Ok(range) = HeaderValue::try_from(format!("bytes={}-", self.bytes))
        {
            headers.insert(RANGE, range);
            headers.insert(IF_RANGE, tag);
        }
        let (images, reach) = (self.context.images.web_options(), &self.context.image_reach);
        let mut response = web::get(images, reach, self.url, &headers).await?;
        self.begin(&response).await?;
        while let Some(piece) = web::piece(self.url, response.body_mut()).await? {
            self.bytes += piece.len() as u64;
            if self.bytes > BYTES_MAX {
                return Err(too_large());
            }
            self.sums.update(&piece);
            self.file.write_all(&piece).await.map_err(Error::io("write", &self.path))?;
            self.look().await?;
        }
        match self.total {
            Some(total) if self.bytes < total => {
                Err(unavailable(format!("{} ended after {} of {total} bytes", self.url, self.bytes)))
            }
            _ => Ok(()),
        }
    }

    /// Takes in the head of an answer: what follows is the rest, or all of it again.
    async fn begin(&mut self, response: &Response<Incoming>) -> Result<()> {
        self.answered = true;
        let (status, headers) = (response.status(), response.headers());
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if status == StatusCode::PARTIAL_CONTENT && self.bytes > 0 && range_start(headers) == Some(self.bytes) {
            return Ok(());
        }
        if is_busy(status) {
            return Err(unavailable(format!("{} answers {status}", self.url)));
        }
        if status != StatusCode::OK {
            return Err(Error::Invalid(format!("{} answers {status}", self.url)));
        }
        (self.bytes, self.total, self.looked) = (0, length, (Instant::now(), 0));
        self.sums = Sums::of(&self.object.spec.source);
        // A weak one may stand for other bytes.
        self.tag = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")).cloned();
        self.file.set_len(0).await.map_err(Error::io("empty", &self.path))?;
        self.file.rewind().await.map_err(Error::io("empty", &self.path))?;
        if length.is_some_and(|length| length > BYTES_MAX) {
            return Err(too_large());
        }
        // It lies here twice until it is converted.
        let room = crate::disk::room(self.context);
        match (length, room) {
            (Some(length), Some(room)) if length.saturating_mul(2) > room => {
                Err(Error::Invalid(format!("{length} bytes are too much for the machine's disk: {room} are free")))
            }
            _ => Ok(()),
        }
    }

    /// Bounds what it takes, and tells how far it is.
    async fn look(&mut self) -> Result<()> {
        let now = Instant::now();
        if *self.context.disk_pressure.borrow() {
            return Err(Error::Invalid("the machine's disk is full".into()));
        }
        if now.duration_since(self.begun) > TIME_MAX {
            return Err(Error::Timeout("fetching the disk image"));
        }
        let (looked, had) = self.looked;
        if now.duration_since(looked) >= SPEED_LOOK {
            if self.bytes.saturating_sub(had) < SPEED_BYTES {
                return Err(Error::Invalid(format!("{} comes too slowly", self.url)));
            }
            self.looked = (now, self.bytes);
        }
        if now.duration_since(self.reported) >= REPORT {
            self.reported = now;
            return self.report().await;
        }
        Ok(())
    }

    /// Errors: the object is gone, and nobody wants it any more.
    async fn report(&self) -> Result<()> {
        let key = Key::of(self.object);
        let objects: Api<DiskImage> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let status = json!({"phase": "Pending", "fetchedBytes": self.bytes, "totalBytes": self.total.unwrap_or(0)});
        let patch = Patch::Merge(json!({"metadata": {"uid": self.object.metadata.uid}, "status": status}));
        match objects.patch_status(&key.name, &PatchParams::default(), &patch).await {
            Err(error) if is_not_found(&error) || matches!(&error, kube::Error::Api(status) if status.code == 409) => {
                Err(Error::api("tell how far the disk image is")(error))
            }
            Err(error) => {
                tracing::debug!(image = key.name, %error, "cannot tell how far the disk image is");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}

fn unavailable(why: String) -> Error {
    Error::Image(image::Error::Unavailable(why))
}

/// Whether a refusal may be over soon: it says nothing of the file.
fn is_busy(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

fn too_large() -> Error {
    Error::Invalid(format!("disk images of more than {BYTES_MAX} bytes are not fetched"))
}

/// Where the part of a file begins that an answer has. `Source:` RFC 9110, 14.4
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_all_its_checksums_say() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        let good256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let good512 = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                       2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        let source = |sha256: &str, sha512: &str| DiskImageSource {
            sha256: sha256.to_ascii_uppercase(),
            sha512: sha512.into(),
            ..DiskImageSource::default()
        };
        for (sha256, sha512, is) in [
            ("", "", true),
            (good256, "", true),
            (good256, good512, true),
            (&good256.replace('b', "c"), good512, false),
            (good256, &good512.replace('d', "e"), false),
        ] {
            assert_eq!(Sums::of(&source(sha256, sha512)).check_file(&path).is_ok(), is);
        }
    }

    #[test]
    fn what_may_be_over_soon_is_asked_for_again() {
        let busy = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
        assert!(busy.into_iter().all(is_busy));
        assert!(![StatusCode::NOT_FOUND, StatusCode::FORBIDDEN, StatusCode::OK].into_iter().any(is_busy));
    }

    #[test]
    fn the_start_of_a_part_is_read() {
        let headers = |text: &'static str| HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_static(text))]);
        assert_eq!(range_start(&headers("bytes 5-9/10")), Some(5));
        assert_eq!(range_start(&headers("bytes */10")), None);
        assert_eq!(range_start(&HeaderMap::new()), None);
    }
}
