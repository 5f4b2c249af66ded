//! Hostile registries: each harmless to the store that pulls from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::StatusCode;
use image::{Digest, Error, ImageStore, ListFilter, Progress, PullOptions, Reference};

use crate::helpers::{Item, tar_of};

/// Serves routes on a loopback port.
async fn listen(router: Router) -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (address, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
}

/// What the registry does with a request for a layer.
type Serve = Arc<dyn Fn(&Request, &[u8]) -> Response + Send + Sync>;

/// A registry with one image of one layer, whose blob is served by `serve`.
async fn registry(serve: Serve) -> (Reference, tokio::task::JoinHandle<()>, Vec<u8>) {
    let data: Vec<u8> = (0..200_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let layer = tar_of(&[Item::File("file", &data, 0o644)]);
    let (reference, task) = registry_of(vec![layer.clone()], serve).await;
    (reference, task, layer)
}

/// A registry with one image of these layers, whose blobs are served by `serve`.
async fn registry_of(layers: Vec<Vec<u8>>, serve: Serve) -> (Reference, tokio::task::JoinHandle<()>) {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = serde_json::json!({"architecture": image::config::host_architecture(), "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string();
    let blob = |layer: &Vec<u8>| serde_json::json!({"mediaType": image::manifest::OCI_LAYER, "digest": Digest::of(layer), "size": layer.len()});
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": image::manifest::OCI_MANIFEST,
        "config": {"mediaType": image::manifest::OCI_CONFIG, "digest": Digest::of(config.as_bytes()), "size": config.len()},
        "layers": layers.iter().map(blob).collect::<Vec<_>>()});
    let manifest = manifest.to_string();
    let config_digest = Digest::of(config.as_bytes()).to_string();
    let router = Router::new().fallback(move |request: Request| {
        let path = request.uri().path().to_owned();
        let response = if path == "/v2/" {
            StatusCode::OK.into_response()
        } else if path.contains("/manifests/") {
            manifest.clone().into_response()
        } else if path.ends_with(&config_digest) {
            config.clone().into_response()
        } else {
            let asked = diff_ids.iter().position(|id| path.ends_with(&id.to_string())).unwrap();
            serve(&request, &layers[asked])
        };
        async move { response }
    });
    let (address, task) = listen(router).await;
    (Reference::parse_tagged(&format!("{address}/evil:1")).unwrap(), task)
}

async fn pull(store: &Arc<ImageStore>, reference: &Reference) -> image::Result<image::Pulled> {
    store.pull(reference, &PullOptions::default(), &Progress::none()).await
}

fn nothing_visible(store: &Arc<ImageStore>) -> bool {
    store.list(&ListFilter { all: true, ..ListFilter::default() }).unwrap().is_empty()
}

#[tokio::test]
async fn a_blob_with_another_digest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let (reference, task, _) = registry(Arc::new(|_, layer| {
        let mut other = layer.to_vec();
        other[600] ^= 1;
        other.into_response()
    }))
    .await;
    let error = pull(&store, &reference).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)) && nothing_visible(&store), "{error}");
    task.abort();
}

#[tokio::test]
async fn an_endless_blob_is_cut_at_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let (reference, task, _) = registry(Arc::new(|_, _| {
        let piece = || Ok::<_, std::io::Error>(bytes::Bytes::from(vec![0; 65536]));
        Response::new(Body::from_stream(futures::stream::repeat_with(piece)))
    }))
    .await;
    let error = pull(&store, &reference).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)) && nothing_visible(&store), "{error}");
    task.abort();
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_was_and_is_fetched_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let (requests, resumed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (seen, gone_on, ingest) = (requests.clone(), resumed.clone(), dir.path().join("ingest"));
    let (reference, task, layer) = registry(Arc::new(move |request, layer| {
        let first = seen.fetch_add(1, Ordering::SeqCst) == 0;
        let range = request.headers().get("range").and_then(|v| v.to_str().ok());
        let from = range.and_then(|text| text.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().ok());
        if first {
            // Half of it, and when that has arrived the connection breaks.
            let half = bytes::Bytes::copy_from_slice(&layer[..layer.len() / 2]);
            let (arrived, length) = (ingest.clone(), half.len() as u64);
            let broken = async move {
                while !std::fs::read_dir(&arrived)
                    .unwrap()
                    .flatten()
                    .any(|e| e.metadata().is_ok_and(|m| m.len() == length))
                {
                    tokio::task::yield_now().await;
                }
                Err(std::io::Error::other("broken"))
            };
            let pieces = futures::stream::iter([Ok(half)]).chain(futures::stream::once(broken));
            return Response::new(Body::from_stream(pieces));
        }
        match from {
            Some(from) => {
                gone_on.store(from, Ordering::SeqCst);
                (StatusCode::PARTIAL_CONTENT, layer[from..].to_vec()).into_response()
            }
            None => layer.to_vec().into_response(),
        }
    }))
    .await;
    let pulls = (0..4).map(|_| pull(&store, &reference));
    for result in futures::future::join_all(pulls).await {
        result.unwrap();
    }
    assert_eq!(requests.load(Ordering::SeqCst), 2, "four pulls, one fetch that broke off once");
    assert_eq!(resumed.load(Ordering::SeqCst), layer.len() / 2);
    task.abort();
}

#[tokio::test]
async fn many_layers_come_three_at_a_time_each_once_and_are_all_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let data = |number: u8| -> Vec<u8> { (0..700_000_u32).map(|at| at.to_le_bytes()[0] ^ number).collect() };
    let layers: Vec<Vec<u8>> = (0..9).map(|number| tar_of(&[Item::File("file", &data(number), 0o644)])).collect();
    let (at_once, most, requests) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (most_seen, seen) = (most.clone(), requests.clone());
    let (reference, task) = registry_of(
        layers,
        Arc::new(move |_, layer| {
            seen.fetch_add(1, Ordering::SeqCst);
            most_seen.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let mut rest = bytes::Bytes::copy_from_slice(layer);
            let last = rest.split_off(rest.len() - 1);
            let at_once = at_once.clone();
            // The client may ask for the next layer as soon as it has the last byte of this one.
            let end = async move {
                tokio::task::yield_now().await;
                at_once.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, std::io::Error>(last)
            };
            let pieces = futures::stream::iter([Ok(rest)]).chain(futures::stream::once(end));
            Response::new(Body::from_stream(pieces))
        }),
    )
    .await;
    let pulled = pull(&store, &reference).await.unwrap();
    assert!(most.load(Ordering::SeqCst) <= 3, "{} layers at once", most.load(Ordering::SeqCst));
    assert_eq!(requests.load(Ordering::SeqCst), 9);
    // The last layer is on top, and all of it went through the digests.
    let snapshot = store.prepare("seen", &pulled.id.to_string(), &dir.path().join("seen")).await.unwrap();
    let top = std::fs::read(snapshot.lower.first().unwrap().join("file")).unwrap();
    assert!(top == data(8), "another file of {} bytes", top.len());
    task.abort();
}

#[tokio::test]
async fn a_manifest_that_is_not_its_digest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let (reference, task, _) = registry(Arc::new(|_, layer| layer.to_vec().into_response())).await;
    let wrong = Reference { tag: None, digest: Some(Digest::of(b"another")), ..reference.clone() };
    let error = pull(&store, &wrong).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    // The control: by its tag the same image comes.
    pull(&store, &reference).await.unwrap();
    task.abort();
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let hits = Arc::new(AtomicUsize::new(0));
    let seen = hits.clone();
    let (reference, task, _) = registry(Arc::new(move |request, _| {
        seen.fetch_add(1, Ordering::SeqCst);
        (StatusCode::TEMPORARY_REDIRECT, [("location", request.uri().path().to_owned())]).into_response()
    }))
    .await;
    // Give up after the first round of attempts: the pauses between them are not what is tested.
    let outcome = tokio::time::timeout(std::time::Duration::from_millis(300), pull(&store, &reference)).await;
    assert!(outcome.is_err() || outcome.unwrap().is_err());
    assert!(nothing_visible(&store) && hits.load(Ordering::SeqCst) <= 12);
    task.abort();
}

#[tokio::test]
async fn a_token_is_fetched_with_the_password_and_never_sent_elsewhere() {
    // A second server, as a content network: what it is sent is written down.
    let leaked = Arc::new(AtomicUsize::new(0));
    let seen = leaked.clone();
    let layer = tar_of(&[Item::File("file", b"content", 0o644)]);
    let served = layer.clone();
    let away = Router::new().fallback(move |request: Request| {
        seen.fetch_add(usize::from(request.headers().contains_key("authorization")), Ordering::SeqCst);
        let served = served.clone();
        async move { served }
    });
    let (away, away_task) = listen(away).await;
    let config = serde_json::json!({"architecture": image::config::host_architecture(), "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}})
    .to_string();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": image::manifest::OCI_MANIFEST,
        "config": {"mediaType": image::manifest::OCI_CONFIG, "digest": Digest::of(config.as_bytes()), "size": config.len()},
        "layers": [{"mediaType": image::manifest::OCI_LAYER, "digest": Digest::of(&layer), "size": layer.len()}]})
    .to_string();
    let config_digest = Digest::of(config.as_bytes()).to_string();
    let router = Router::new().fallback(move |request: Request| {
        let header =
            |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let response = if path == "/token" {
            // `me:right`
            let right =
                header("authorization") == "Basic bWU6cmlnaHQ=" && query.contains("scope=repository%3Aapp%3Apull");
            let status = if right { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            (status, r#"{"token":"t0ken"}"#.to_owned()).into_response()
        } else if header("authorization") != "Bearer t0ken" {
            let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", header("host"));
            (StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)]).into_response()
        } else if path.contains("/manifests/") {
            manifest.clone().into_response()
        } else if path.ends_with(&config_digest) {
            config.clone().into_response()
        } else {
            (StatusCode::TEMPORARY_REDIRECT, [("location", format!("http://{away}{path}"))]).into_response()
        };
        async move { response }
    });
    let (address, task) = listen(router).await;
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let reference = Reference::parse_tagged(&format!("{address}/app:1")).unwrap();
    let with = |password: &str| PullOptions {
        credentials: Some(image::Credentials {
            username: "me".to_owned(),
            password: password.to_owned(),
            ..image::Credentials::default()
        }),
        ..PullOptions::default()
    };
    let error = store.pull(&reference, &with("wrong"), &Progress::none()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized(_)), "{error}");
    store.pull(&reference, &with("right"), &Progress::none()).await.unwrap();
    assert_eq!(leaked.load(Ordering::SeqCst), 0, "no credentials for the other server");
    task.abort();
    away_task.abort();
}
