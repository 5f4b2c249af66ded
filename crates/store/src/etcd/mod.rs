//! The engine over an etcd v3 cluster: translates the contract to etcd's and back.
//! Knows gRPC and etcd's messages; must never keep state of its own.

mod translate;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use self::translate::{from_wire, from_wire_revision, to_wire};
use crate::error::{Error, Result};
use crate::types::{
    KeyRange, LeaseId, RangeRequest, RangeResponse, Revision, Transaction, TransactionResponse, WatchItem,
};
use crate::{Store, WatchStream, validate};

/// Longest message that is taken from etcd: a list of many objects comes as one.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024 * 1024;
/// Time for a connection, and for a call that is not a stream.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// A silent connection is tried this often, so that a dead member is left.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Messages of etcd that wait for a slow reader; behind them HTTP/2 flow control stops the sender.
const REQUEST_QUEUE: usize = 1;

/// How an etcd cluster is reached.
#[derive(Clone, Debug, Default)]
pub struct EtcdOptions {
    /// Client URLs of the members, `http://` or `https://`.
    pub endpoints: Vec<String>,
    /// TLS; needed for `https://`.
    pub tls: Option<EtcdTls>,
}

/// The TLS side of a connection to etcd. All in PEM.
#[derive(Clone, Default)]
pub struct EtcdTls {
    /// Certificate of the authority that signed the members' certificates.
    pub authority: Vec<u8>,
    /// Our own certificate and key, when the members ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Name to expect in the members' certificates, in place of the URL's host.
    pub server_name: Option<String>,
}

impl std::fmt::Debug for EtcdTls {
    /// Keys are never printed.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("EtcdTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// A store that lives in an etcd cluster.
///
/// A call that ends with `Unavailable` may or may not have taken effect, as with any remote store.
#[derive(Clone)]
pub struct EtcdStore {
    client: Grpc<Channel>,
}

impl EtcdStore {
    /// Connects to the cluster and makes sure that it answers.
    ///
    /// Errors: `Invalid` for options that make no sense; `Unavailable` when no member answers.
    pub async fn connect(options: EtcdOptions) -> Result<Arc<Self>> {
        let endpoints: Vec<Endpoint> =
            options.endpoints.iter().map(|url| endpoint(url, options.tls.as_ref())).collect::<Result<_>>()?;
        let channel = match &endpoints[..] {
            [] => return Err(Error::Invalid("no etcd endpoint is given".into())),
            [one] => one.connect_lazy(),
            many => Channel::balance_list(many.iter().cloned()),
        };
        let client = Grpc::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let store = Arc::new(Self { client });
        store.revision().await?;
        Ok(store)
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> std::result::Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        let call = client.unary(Request::new(request), PathAndQuery::from_static(path), codec);
        let answer = tokio::time::timeout(CALL_TIMEOUT, call).await;
        Ok(answer.map_err(|_| Status::deadline_exceeded("etcd did not answer in time"))??.into_inner())
    }

    async fn stream<Q, A>(
        &self,
        path: &'static str,
        requests: impl Stream<Item = Q> + Send + 'static,
    ) -> std::result::Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        let call = client.streaming(Request::new(requests), PathAndQuery::from_static(path), codec);
        let answer = tokio::time::timeout(CALL_TIMEOUT, call).await;
        Ok(answer.map_err(|_| Status::deadline_exceeded("etcd did not answer in time"))??.into_inner())
    }

    async fn ready(&self) -> std::result::Result<Grpc<Channel>, Status> {
        let mut client = self.client.clone();
        let ready = tokio::time::timeout(CALL_TIMEOUT, client.ready()).await;
        ready
            .map_err(|_| Status::unavailable("no etcd member can be reached"))?
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(client)
    }

    /// Turns an error into the store's, and asks etcd for what its own errors leave out.
    async fn explain(&self, status: Status, asked: Revision) -> Error {
        match translate::error(&status) {
            Error::FutureRevision { .. } => match self.revision().await {
                Ok(newest) => Error::FutureRevision { newest },
                Err(error) => error,
            },
            Error::Compacted { .. } => match self.open_watch(&KeyRange::Key("\0".into()), asked).await {
                Ok(mut watch) => match watch.next().await {
                    Some(Err(error)) => error,
                    _ => Error::Compacted { oldest: asked + 1 },
                },
                Err(error) => error,
            },
            other => other,
        }
    }

    async fn open_watch(&self, range: &KeyRange, start_revision: Revision) -> Result<WatchStream> {
        let (key, range_end) = translate::range(range);
        let create = wire::WatchCreateRequest {
            key,
            range_end,
            start_revision: to_wire(start_revision),
            progress_notify: true,
            prev_kv: true,
        };
        let request = wire::WatchRequest { request_union: Some(wire::WatchRequestKind::Create(create)) };
        // The sender lives as long as the watch: when it goes, the stream closes and etcd cancels.
        let (sender, receiver) = mpsc::channel(REQUEST_QUEUE);
        sender.send(request).await.map_err(|_| Error::Unavailable("the watch was closed".into()))?;
        let mut answers: Streaming<wire::WatchResponse> = self
            .stream("/etcdserverpb.Watch/Watch", ReceiverStream::new(receiver))
            .await
            .map_err(|status| translate::error(&status))?;
        // From etcd's first answer on the watch is in place, and "now" is settled.
        let first = answers.message().await.map_err(|status| translate::error(&status))?;
        if !first.as_ref().is_some_and(|first| first.created) {
            return Err(Error::Unavailable("etcd did not begin the watch".into()));
        }
        let items = futures::stream::unfold((Some(answers), sender), |(answers, sender)| async move {
            let mut answers = answers?;
            let (items, live) = match answers.message().await {
                Ok(Some(answer)) if answer.canceled => (vec![Err(translate::cancelled(&answer))], None),
                Ok(Some(answer)) => (translate::watch_items(answer), Some(answers)),
                Ok(None) => (vec![Err(Error::Unavailable("etcd ended the watch".into()))], None),
                Err(status) => (vec![Err(translate::error(&status))], None),
            };
            Some((futures::stream::iter(items), (live, sender)))
        });
        Ok(Box::pin(items.flatten()))
    }
}

fn endpoint(url: &str, tls: Option<&EtcdTls>) -> Result<Endpoint> {
    let invalid = |error: tonic::transport::Error| Error::Invalid(format!("etcd endpoint {url}: {error}"));
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(invalid)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    if let Some(tls) = tls {
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.authority));
        if let Some((certificate, key)) = &tls.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = &tls.server_name {
            config = config.domain_name(name);
        }
        endpoint = endpoint.tls_config(config).map_err(invalid)?;
    }
    Ok(endpoint)
}

#[async_trait]
impl Store for EtcdStore {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        let (key, range_end) = translate::range(&request.range);
        let revision = request.revision.unwrap_or(0);
        if let KeyRange::Between(from, to) = &request.range
            && from >= to
        {
            return Ok(RangeResponse { revision: self.revision().await?, ..RangeResponse::default() });
        }
        let wire = wire::RangeRequest {
            key,
            range_end,
            limit: to_wire(request.limit as u64),
            revision: to_wire(revision),
            keys_only: request.keys_only,
        };
        let answer: wire::RangeResponse = match self.call("/etcdserverpb.KV/Range", wire).await {
            Ok(answer) => answer,
            Err(status) => return Err(self.explain(status, revision).await),
        };
        Ok(RangeResponse {
            items: answer.kvs.into_iter().map(translate::key_value).collect(),
            count: usize::try_from(answer.count).unwrap_or(0),
            revision: from_wire_revision(answer.header.as_ref()),
        })
    }

    async fn transact(&self, transaction: Transaction) -> Result<TransactionResponse> {
        validate::transaction(&transaction)?;
        let leases = translate::leases(&transaction);
        let answer: wire::TxnResponse = self
            .call("/etcdserverpb.KV/Txn", translate::transaction(transaction))
            .await
            .map_err(|status| translate::transaction_error(&status, &leases))?;
        Ok(TransactionResponse {
            succeeded: answer.succeeded,
            revision: from_wire_revision(answer.header.as_ref()),
            results: answer.responses.into_iter().map(translate::result).collect::<Result<_>>()?,
        })
    }

    async fn watch(&self, range: KeyRange, from: Option<Revision>) -> Result<WatchStream> {
        let from = from.unwrap_or(0);
        let watch = self.open_watch(&range, from).await?;
        if from == 0 {
            return Ok(watch);
        }
        // etcd may send older events of the revisions that it batches together; the contract starts at `from`.
        Ok(Box::pin(watch.filter(move |item| {
            let early = matches!(item, Ok(WatchItem::Events { revision, .. }) if *revision < from);
            std::future::ready(!early)
        })))
    }

    async fn revision(&self) -> Result<Revision> {
        let request = wire::RangeRequest { key: "\0".into(), keys_only: true, ..wire::RangeRequest::default() };
        let answer: wire::RangeResponse =
            self.call("/etcdserverpb.KV/Range", request).await.map_err(|status| translate::error(&status))?;
        Ok(from_wire_revision(answer.header.as_ref()))
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let request = wire::CompactionRequest { revision: to_wire(revision) };
        let answer: std::result::Result<wire::CompactionResponse, Status> =
            self.call("/etcdserverpb.KV/Compact", request).await;
        match answer {
            Ok(_) => Ok(()),
            Err(status) => match translate::error(&status) {
                // What was asked for is done already.
                Error::Compacted { .. } => Ok(()),
                _ => Err(self.explain(status, revision).await),
            },
        }
    }

    async fn lease_grant(&self, ttl_seconds: u64) -> Result<LeaseId> {
        validate::lease_seconds(ttl_seconds)?;
        let request = wire::LeaseGrantRequest { ttl: to_wire(ttl_seconds) };
        let answer: wire::LeaseGrantResponse =
            self.call("/etcdserverpb.Lease/LeaseGrant", request).await.map_err(|status| translate::error(&status))?;
        Ok(from_wire(answer.id))
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<()> {
        let request = wire::LeaseRequest { id: to_wire(lease) };
        let mut answers: Streaming<wire::LeaseKeepAliveResponse> = self
            .stream("/etcdserverpb.Lease/LeaseKeepAlive", futures::stream::iter([request]))
            .await
            .map_err(|status| translate::error(&status))?;
        match answers.message().await.map_err(|status| translate::error(&status))? {
            Some(answer) if answer.ttl > 0 => Ok(()),
            _ => Err(Error::LeaseNotFound(lease)),
        }
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<()> {
        let request = wire::LeaseRequest { id: to_wire(lease) };
        let answer: std::result::Result<wire::LeaseRevokeResponse, Status> =
            self.call("/etcdserverpb.Lease/LeaseRevoke", request).await;
        answer.map(|_| ()).map_err(|status| translate::transaction_error(&status, &[lease]))
    }

    /// Writes etcd's own snapshot, with its own checksum at the end; `etcdctl snapshot restore` reads it.
    async fn backup(&self, file: &Path) -> Result<Revision> {
        // The snapshot holds at least this revision; etcd does not say which it is.
        let revision = self.revision().await?;
        let mut client = self.ready().await.map_err(|status| translate::error(&status))?;
        let codec = ProstCodec::<wire::SnapshotRequest, wire::SnapshotResponse>::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Maintenance/Snapshot");
        let answers = client.server_streaming(Request::new(wire::SnapshotRequest {}), path, codec).await;
        let answers = answers.map_err(|status| translate::error(&status))?.into_inner();
        let mut name = file.as_os_str().to_os_string();
        name.push(".partial");
        let partial = Path::new(&name);
        let outcome = save(partial, answers).await;
        let outcome = match outcome {
            Ok(()) => tokio::fs::rename(partial, file).await.map_err(|error| write_error(&error)),
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            // Best effort: the name says that it is not a backup.
            let _ = tokio::fs::remove_file(partial).await;
        }
        outcome.map(|()| revision)
    }
}

async fn save(partial: &Path, mut answers: Streaming<wire::SnapshotResponse>) -> Result<()> {
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut out = options.open(partial).await.map_err(|error| write_error(&error))?;
    while let Some(answer) = answers.message().await.map_err(|status| translate::error(&status))? {
        out.write_all(&answer.blob).await.map_err(|error| write_error(&error))?;
    }
    out.flush().await.map_err(|error| write_error(&error))?;
    out.sync_all().await.map_err(|error| write_error(&error))
}

fn write_error(error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::NoSpace,
        _ => Error::Unavailable(format!("cannot write the backup: {error}")),
    }
}
