//! Builds whose context a client sends over its session, by a client that says what each test wants.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use image::StoreOptions;
use image::build::{RunStep, StepOutput, StepRunner};
use image::layer::Limits;
use prost::Message;
use tokio::sync::mpsc;

use super::*;
use crate::{Build, BuildKit, Options, SessionInfo};

const METHOD: &str = "/moby.upload.v1.Upload/Pull";
const BUILD: &str = "FROM scratch\nCOPY x /x\n";

#[test]
fn an_error_of_a_context_tells_no_credentials() {
    let url = "http://me:secret@files.test/context.tar";
    let error = Status::new(Code::NotFound, format!("failed to GET {url} with status 404: {url}"));
    let shown = without_credentials(&error, url, &image::build::shown_repository(url));
    assert_eq!(shown.code(), Code::NotFound);
    let there = "http://files.test/context.tar";
    assert_eq!(shown.message(), format!("failed to GET {there} with status 404: {there}"));
}

struct Nothing;

#[async_trait]
impl StepRunner for Nothing {
    async fn run(&self, _: RunStep, _: mpsc::Sender<StepOutput>) -> Result<i32, String> {
        Err("nothing is run here".to_owned())
    }
}

/// What the client does with its answer.
#[derive(Clone, Copy)]
enum End {
    /// It ends it.
    Done,
    /// It says why it cannot go on.
    Refused,
    /// It is gone.
    Gone,
}

/// A client that answers with these pieces.
struct Client {
    pieces: Vec<Vec<u8>>,
    end: End,
    methods: Vec<String>,
    limits: Limits,
}

fn client(pieces: Vec<Vec<u8>>) -> Client {
    Client { pieces, end: End::Done, methods: vec![METHOD.to_owned()], limits: Limits::default() }
}

/// A tar archive whose names are written as they are.
fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

type Frames = std::pin::Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send>>;

impl Client {
    /// The answer, and what ends the connection in the middle of it.
    fn answer(&self, gone: mpsc::Sender<()>) -> Frames {
        let message = |data: &Vec<u8>| {
            let message = BytesMessage { data: data.clone() }.encode_to_vec();
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            Ok(Frame::data(Bytes::from([&[0], &length[..], &message[..]].concat())))
        };
        let pieces: Vec<_> = self.pieces.iter().map(message).collect();
        let pieces = stream::iter(pieces);
        let status = match self.end {
            End::Done => HeaderValue::from_static("0"),
            End::Refused => HeaderValue::from_static("2"),
            End::Gone => {
                let leave = stream::once(async move {
                    let _ = gone.send(()).await;
                    std::future::pending().await
                });
                return Box::pin(pieces.chain(leave));
            }
        };
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status);
        trailers.insert("grpc-message", HeaderValue::from_static("the pipe is broken"));
        Box::pin(pieces.chain(stream::iter([Ok(Frame::trailers(trailers))])))
    }

    /// Builds with these attributes. The build leaves nothing behind but its image.
    async fn build(self, attributes: &[(&str, &str)]) -> Outcome {
        let directory = tempfile::tempdir().unwrap();
        let options = StoreOptions { limits: self.limits, ..StoreOptions::default() };
        let store = ImageStore::open_with(&directory.path().join("images"), options).unwrap();
        let runner = Arc::new(Nothing);
        let buildkit = BuildKit::new(Options { store: store.clone(), runner, host_network: true });
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let info = SessionInfo { id: "session".to_owned(), methods: self.methods.clone() };
        let held = tokio::spawn(buildkit.clone().hold_session(info, TokioIo::new(ours)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (gone, mut leaving) = mpsc::channel(1);
        let seen = asked.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            assert_eq!(request.uri().path(), METHOD);
            assert_eq!(request.headers()["urlhost"], "buildkit-session");
            seen.lock().unwrap().push(request.headers()["urlpath"].to_str().unwrap().to_owned());
            let body = StreamBody::new(self.answer(gone.clone()));
            let answer = Response::builder().header("content-type", "application/grpc").body(body).unwrap();
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let served = tokio::spawn(async move {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::select! {
                _ = server.serve_connection(TokioIo::new(theirs), service) => {}
                _ = leaving.recv() => {}
            }
        });
        let build = Build {
            reference: "build".to_owned(),
            session: "session".to_owned(),
            attributes: attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            exports: vec![("moby".to_owned(), HashMap::from([("name".to_owned(), "sent:1".to_owned())]))],
            ..Build::default()
        };
        let built = buildkit.build(build, |_| std::future::ready(())).await;
        served.abort();
        let _ = served.await;
        held.await.unwrap();
        // What a build that failed leaves is removed behind it.
        let builds = directory.path().join("images/builds");
        let left = || std::fs::read_dir(&builds).map_or(0, Iterator::count);
        let gone = async {
            while left() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(image::web::PATIENCE, gone).await.expect("of a build nothing stays but its image");
        let asked = asked.lock().unwrap().clone();
        Outcome { built, asked, store, directory }
    }

    async fn fails(self, why: &str) {
        let error = self.build(&[("context", "http://buildkit-session/one")]).await.built.unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

/// What comes of a build.
struct Outcome {
    built: Result<Option<String>, String>,
    /// The paths that the client was asked for.
    asked: Vec<String>,
    store: Arc<ImageStore>,
    directory: tempfile::TempDir,
}

impl Outcome {
    /// A file of the image.
    async fn read(&self, path: &str) -> String {
        let id = self.built.clone().unwrap().unwrap().parse().unwrap();
        let mounted = self.store.mount_for_export(&id, self.directory.path()).await.unwrap();
        let text = std::fs::read_to_string(mounted.rootfs().join(path)).unwrap();
        mounted.remove().await.unwrap();
        text
    }
}

#[tokio::test]
async fn a_context_comes_over_the_session() {
    let archive = tar_of(&[("Other", BUILD.as_bytes()), ("x", b"hello"), ("ignored", b"")]);
    let sent = client(archive.chunks(700).map(<[u8]>::to_vec).collect());
    let outcome = sent.build(&[("context", "http://buildkit-session/one"), ("filename", "Other")]).await;
    let image = outcome.store.get("sent:1").unwrap();
    assert_eq!((outcome.built.clone().unwrap().unwrap(), image.layers.len()), (image.id.to_string(), 1));
    assert_eq!(outcome.asked, ["/one"]);
    assert_eq!(outcome.read("x").await, "hello");
}

#[tokio::test]
async fn a_context_over_the_session_may_be_a_dockerfile_alone() {
    let sent = client(vec![b"FROM scratch\nENV A=1\n".to_vec()]);
    let outcome = sent.build(&[("context", "http://buildkit-session/one"), ("filename", "Other")]).await;
    outcome.built.unwrap();
    assert_eq!(outcome.store.get("sent:1").unwrap().config.config.env, ["A=1"]);
}

#[tokio::test]
async fn named_contexts_come_over_the_session_too() {
    // The same archive is both.
    let archive = tar_of(&[("Dockerfile", b"FROM scratch\nCOPY --from=more x /x\n"), ("x", b"hello")]);
    let main = ("context", "http://buildkit-session/one");
    let outcome = client(vec![archive]).build(&[main, ("context:more", "http://buildkit-session/two")]).await;
    outcome.built.unwrap();
    assert_eq!(outcome.asked, ["/one", "/two"]);
}

#[tokio::test]
async fn names_of_a_context_over_the_session_stay_inside() {
    let archive = |name| vec![tar_of(&[("Dockerfile", BUILD.as_bytes()), (name, b"hostile")])];
    for name in ["../x", "../../../../../../../../x", "a/../../x"] {
        client(archive(name)).fails("leaves the root").await;
    }
    let outcome = client(archive("/x")).build(&[("context", "http://buildkit-session/one")]).await;
    assert_eq!(outcome.read("x").await, "hostile");
    assert!(!Path::new("/x").exists());
}

#[tokio::test]
async fn a_context_over_the_session_has_a_largest_size() {
    let archive = tar_of(&[("Dockerfile", BUILD.as_bytes()), ("x", &[1; 4096])]);
    let limits = Limits { total_bytes: 4096, ..Limits::default() };
    Client { limits, ..client(vec![archive]) }.fails("4096").await;
    let comments = "# a Dockerfile that is too long\n".repeat(100_000);
    client(comments.as_bytes().chunks(32 << 10).map(<[u8]>::to_vec).collect()).fails("is larger than").await;
}

#[tokio::test]
async fn a_client_that_stops_in_the_middle_ends_its_build() {
    let archive = tar_of(&[("Dockerfile", BUILD.as_bytes()), ("x", &[1; 100_000])]);
    let half = || vec![archive[..50_000].to_vec()];
    client(half()).fails("the data ends early").await;
    Client { end: End::Refused, ..client(half()) }.fails("the context from the client: the pipe is broken").await;
    // How much of it was there when the connection broke is not promised.
    let gone = Client { end: End::Gone, ..client(half()) };
    let error = gone.build(&[("context", "http://buildkit-session/one")]).await.built.unwrap_err();
    assert!(["the data ends early", "transport error", SENT].iter().any(|why| error.contains(why)), "{error}");
    Client { end: End::Refused, ..client(Vec::new()) }.fails("the context from the client: the pipe is broken").await;
    client(Vec::new()).fails("empty").await;
}

#[tokio::test]
async fn a_context_beside_the_build_needs_no_session() {
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open_with(&directory.path().join("images"), StoreOptions::default()).unwrap();
    let runner = Arc::new(Nothing);
    let buildkit = BuildKit::new(Options { store: store.clone(), runner, host_network: true });
    let archive = tar_of(&[("Dockerfile", BUILD.as_bytes()), ("x", b"hello")]);
    let sent: ByteStream = Box::pin(stream::iter([Ok::<_, std::io::Error>(Bytes::from(archive))]));
    let exports = vec![("moby".to_owned(), HashMap::from([("name".to_owned(), "sent:1".to_owned())]))];
    let build = Build { reference: "build".to_owned(), exports, context: Some(sent), ..Build::default() };
    let built = buildkit.build(build, |_| std::future::ready(())).await.unwrap();
    assert_eq!(built, Some(store.get("sent:1").unwrap().id.to_string()));
}

#[tokio::test]
async fn a_client_that_sends_no_contexts_is_told() {
    Client { methods: Vec::new(), ..client(Vec::new()) }.fails("not supported by the client").await;
}
