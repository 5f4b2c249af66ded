//! Sessions: connections over which a client answers our calls: for its files, secrets, credentials and agents.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::BuildKit;
use crate::wire::session::{BytesMessage, CredentialsRequest, CredentialsResponse, GetSecretRequest};

/// Sessions of one endpoint at once.
const MAX_SESSIONS: usize = 1_000;
/// How long a build waits for its session, which comes over another connection.
const ARRIVAL: Duration = Duration::from_secs(30);
/// How long a client may take for a question without files.
const ANSWER: Duration = Duration::from_secs(60);
/// Largest message of a client: fsutil sends pieces of 32 KiB.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// What a client says of its session.
#[derive(Clone, Debug, Default)]
pub struct SessionInfo {
    /// Its id, which the client chose.
    pub id: String,
    /// What it answers: `/moby.filesync.v1.FileSync/diffcopy`, ….
    pub methods: Vec<String>,
}

/// A session that is open.
#[derive(Clone)]
pub(crate) struct Session {
    client: Grpc<Channel>,
    methods: Arc<BTreeSet<String>>,
}

/// The open sessions.
#[derive(Default)]
pub(crate) struct Sessions {
    open: Mutex<HashMap<String, Session>>,
    changed: Notify,
}

impl Sessions {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session of an id, for which it waits a while. A build that names none has nobody to ask, and needs nobody when its context comes
    /// beside it.
    pub async fn get(&self, id: &str) -> Result<Session, Status> {
        if id.is_empty() {
            return Ok(Session::nobody());
        }
        let missing = || Status::new(Code::NotFound, format!("no active session for {id}: context deadline exceeded"));
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(session) = self.lock().get(id) {
                    return session.clone();
                }
                changed.await;
            }
        };
        tokio::time::timeout(ARRIVAL, wait).await.map_err(|_| missing())
    }
}

impl BuildKit {
    /// Holds a session until its connection ends.
    pub async fn hold_session<C>(self: Arc<Self>, info: SessionInfo, connection: C)
    where
        C: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    {
        let (gone, ended) = oneshot::channel();
        let id = info.id.clone();
        match open(info, Watched { inner: connection, _gone: gone }).await {
            Ok(session) => {
                {
                    let mut open = self.sessions.lock();
                    if open.len() >= MAX_SESSIONS || open.contains_key(&id) {
                        tracing::debug!(%id, "a session was refused");
                        return;
                    }
                    open.insert(id.clone(), session);
                }
                self.sessions.changed.notify_waiters();
                let _ = ended.await;
                self.sessions.lock().remove(&id);
            }
            Err(error) => tracing::debug!(%error, "a session did not open"),
        }
    }
}

async fn open<C>(info: SessionInfo, connection: C) -> Result<Session, tonic::transport::Error>
where
    C: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let slot = Arc::new(Mutex::new(Some(connection)));
    let connector = tower::service_fn(move |_: http::Uri| {
        // There is this one connection; when it is gone, so is the session.
        let connection = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { connection.ok_or_else(|| std::io::Error::other("the session has ended")) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
    let methods = info.methods.iter().map(|method| method.to_ascii_lowercase()).collect();
    let client = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    Ok(Session { client, methods: Arc::new(methods) })
}

impl Session {
    /// One over which nothing is answered.
    fn nobody() -> Session {
        let connector = tower::service_fn(|_: http::Uri| async {
            Err::<TokioIo<UnixStream>, _>(std::io::Error::other("the build has no session"))
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Session { client: Grpc::new(channel), methods: Arc::default() }
    }

    /// Whether the client answers a method, named as in `/moby.sshforward.v1.SSH/CheckAgent`.
    pub fn supports(&self, method: &str) -> bool {
        self.methods.contains(&method.to_ascii_lowercase())
    }

    /// Asks one question.
    pub async fn ask<Q, A>(&self, method: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.client.clone();
        let asked = async {
            client.ready().await.map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
            let path = PathAndQuery::from_static(method);
            client.unary(Request::new(question), path, ProstCodec::<Q, A>::default()).await
        };
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::new(Code::DeadlineExceeded, "the client did not answer in time")),
        }
    }

    /// Opens a stream both ways, with metadata.
    pub async fn converse<Q, A>(
        &self,
        method: &'static str,
        metadata: &[(&str, Vec<String>)],
        messages: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut request = Request::new(messages);
        for (name, values) in metadata {
            for (key, value) in encoded(name, values)? {
                request.metadata_mut().append(key, value);
            }
        }
        let mut client = self.client.clone();
        client.ready().await.map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
        let path = PathAndQuery::from_static(method);
        client.streaming(request, path, ProstCodec::<Q, A>::default()).await.map(tonic::Response::into_inner)
    }

    /// A secret; `None` when the client has none of that name.
    pub async fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, Status> {
        const METHOD: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
        if !self.supports(METHOD) {
            return Ok(None);
        }
        match self.ask::<_, BytesMessage>(METHOD, GetSecretRequest { id: id.to_owned() }).await {
            Ok(answer) => Ok(Some(answer.data)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Credentials for a registry; `None` when the client has none.
    pub async fn credentials(&self, host: &str) -> Result<Option<(String, String)>, Status> {
        const METHOD: &str = "/moby.filesync.v1.Auth/Credentials";
        if !self.supports(METHOD) {
            return Ok(None);
        }
        let answer: CredentialsResponse = self.ask(METHOD, CredentialsRequest { host: host.to_owned() }).await?;
        let there = !answer.username.is_empty() || !answer.secret.is_empty();
        Ok(there.then_some((answer.username, answer.secret)))
    }
}

type Header = (MetadataKey<tonic::metadata::Ascii>, MetadataValue<tonic::metadata::Ascii>);

/// Values that have more than ASCII go percent-encoded, all of a name alike, and a second header says so.
fn encoded(name: &str, values: &[String]) -> Result<Vec<Header>, Status> {
    let invalid = |_| Status::new(Code::InvalidArgument, format!("{name} has a value that cannot be sent"));
    let key = |name: &str| {
        MetadataKey::from_bytes(name.as_bytes())
            .map_err(|_| Status::new(Code::Internal, format!("{name} is no header")))
    };
    let plain = |value: &String| value.bytes().all(|b| (0x20..0x7f).contains(&b));
    let encode = !values.iter().all(plain);
    let mut headers = Vec::new();
    for value in values {
        let value = if encode { query_escape(value) } else { value.clone() };
        headers.push((key(name)?, MetadataValue::try_from(value.as_str()).map_err(invalid)?));
    }
    if encode {
        headers.push((key(&format!("{name}-encoded"))?, MetadataValue::from_static("1")));
    }
    Ok(headers)
}

fn query_escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            b' ' => escaped.push('+'),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// A connection whose end is noticed.
struct Watched<C> {
    inner: C,
    _gone: oneshot::Sender<()>,
}

impl<C: hyper::rt::Read + Unpin> hyper::rt::Read for Watched<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<C: hyper::rt::Write + Unpin> hyper::rt::Write for Watched<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_build_without_a_session_asks_nobody() {
        let session = Sessions::default().get("").await.unwrap();
        assert!(!session.supports("/moby.filesync.v1.FileSync/DiffCopy"));
        assert_eq!(session.secret("one").await.unwrap(), None);
        assert_eq!(session.credentials("registry.test").await.unwrap(), None);
        let asked = session.ask::<BytesMessage, BytesMessage>("/any/Method", BytesMessage::default()).await;
        assert!(asked.is_err());
    }
}
