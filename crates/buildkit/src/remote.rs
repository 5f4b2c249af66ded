//! Contexts that are no directory of the client: repositories, archives and Dockerfiles at URLs, and those that the client itself
//! sends, when it is asked over its session or beside its build. All are unpacked within the same sizes.
//! Source: BuildKit's session/upload and source/http.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, TryStreamExt, stream};
use image::{ByteStream, ImageStore};
use tonic::{Code, Status, Streaming};

use crate::build::Running;
use crate::frontend::status;
use crate::session::Session;
use crate::wire::session::BytesMessage;

/// How the URL of a context begins that the client sends when it is asked for it by the rest.
const CLIENTS_OWN: &str = "http://buildkit-session/";
/// What errors call a context that a client sends.
const SENT: &str = "the context from the client";
/// What users see of a context on its way.
const STEP: &str = "[internal] load remote build context";

/// Whether a context is not a directory of the client. What the client sends when it is asked has a URL, too.
pub fn is_remote(context: &str) -> bool {
    image::is_repository(context) || image::is_url(context)
}

/// What fetches repositories, archives and files.
pub struct Remote {
    pub store: Arc<ImageStore>,
    pub session: Session,
    pub local_urls: bool,
}

impl Remote {
    /// Says whether it is a Dockerfile alone.
    pub async fn fetch(&self, url: &str, target: &Path, running: &Running) -> Result<bool, Status> {
        if let Some(name) = url.strip_prefix(CLIENTS_OWN) {
            return self.pull(name, target, running).await;
        }
        // A step is shown to whoever looks at builds: nobody need see credentials there.
        let shown = image::build::shown_repository(url);
        if !image::is_repository(url) {
            let step = running.begin_step(STEP);
            let done = image::build::unpack_remote(&self.store, url, self.local_urls, target).await;
            let done = done.map_err(|error| without_credentials(&status(error), url, &shown));
            running.end_step(&step, false, done.as_ref().err().map(Status::message));
            return done;
        }
        let step = running.begin_step(&format!("[internal] load git source {shown}"));
        let done = image::build::checkout(&self.store, url, self.local_urls, target).await.map_err(status);
        running.end_step(&step, false, done.as_ref().err().map(Status::message));
        done.map(|()| false)
    }

    /// Unpacks what a client sends beside its build; says whether it is a Dockerfile alone.
    pub async fn unpack(&self, sent: ByteStream, target: &Path, running: &Running) -> Result<bool, Status> {
        let step = running.begin_step(STEP);
        let done = image::build::unpack_sent(&self.store, SENT, sent, target).await.map_err(status);
        running.end_step(&step, false, done.as_ref().err().map(Status::message));
        done
    }

    /// Asks the client for what it sends under a name.
    async fn pull(&self, name: &str, target: &Path, running: &Running) -> Result<bool, Status> {
        let step = running.begin_step(STEP);
        let done = async {
            let pieces = pull(&self.session, name).await?;
            image::build::unpack_sent(&self.store, SENT, pieces, target).await.map_err(status)
        };
        let done: Result<bool, Status> = done.await;
        running.end_step(&step, false, done.as_ref().err().map(Status::message));
        done
    }
}

/// The bytes that a client has under a name. The first must come in time; the bounds of the rest are for who reads them.
async fn pull(
    session: &Session,
    name: &str,
) -> Result<impl Stream<Item = Result<Bytes, std::io::Error>> + Send + use<>, Status> {
    const METHOD: &str = "/moby.upload.v1.Upload/Pull";
    if !session.supports(METHOD) {
        return Err(Status::new(Code::Unimplemented, format!("method {METHOD} not supported by the client")));
    }
    let host = CLIENTS_OWN.trim_start_matches("http://").trim_end_matches('/');
    let metadata = [("urlpath", vec![format!("/{name}")]), ("urlhost", vec![host.to_owned()])];
    let asked = session.converse(METHOD, &metadata, stream::empty::<BytesMessage>());
    let late = |_| Status::new(Code::DeadlineExceeded, format!("{SENT}: no answer in time"));
    let messages: Streaming<BytesMessage> = tokio::time::timeout(image::web::PATIENCE, asked).await.map_err(late)??;
    let failed = |status: Status| std::io::Error::other(format!("{SENT}: {}", status.message()));
    Ok(messages.map_ok(|message| Bytes::from(message.data)).map_err(failed))
}

/// An error that names a URL as it may be shown.
fn without_credentials(error: &Status, url: &str, shown: &str) -> Status {
    Status::new(error.code(), error.message().replace(url, shown))
}

#[cfg(test)]
mod tests;
