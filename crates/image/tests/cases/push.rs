//! Pushes to a registry that keeps what it gets.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode, Uri};
use image::{Digest, Error, ImageStore, Progress, Reference};

use crate::helpers::{Item, docker_archive, tar_of};

/// What a registry was asked and holds.
#[derive(Default)]
struct Held {
    asked: Vec<String>,
    pending: HashMap<String, Vec<u8>>,
    blobs: HashMap<String, Vec<u8>>,
    manifest: Vec<u8>,
    patches: Patches,
}

/// What the registry does with a piece of an upload.
#[derive(Clone, Copy, Default)]
enum Patches {
    /// Takes it, and says all of where the upload goes on.
    #[default]
    Takes,
    /// Takes it, and says where relative to where it came.
    Relative,
    /// Takes it, and does not say where.
    Silent,
    Refuses(StatusCode),
}

impl Held {
    fn count(&self, method: &Method) -> usize {
        self.asked.iter().filter(|line| line.starts_with(method.as_str())).count()
    }
}

fn answer(held: &Mutex<Held>, method: &Method, uri: &Uri, body: Bytes) -> Response {
    let mut held = held.lock().unwrap();
    let path = uri.path().to_owned();
    let last = path.rsplit('/').next().unwrap_or_default().to_owned();
    held.asked.push(format!("{method} {path}"));
    let begun = |id: &str| (StatusCode::ACCEPTED, [("location", format!("/v2/some/blobs/uploads/{id}?state=x"))]);
    match method.as_str() {
        "GET" => StatusCode::OK.into_response(),
        "HEAD" if held.blobs.contains_key(&last) => StatusCode::OK.into_response(),
        "HEAD" => StatusCode::NOT_FOUND.into_response(),
        "POST" => {
            let id = held.asked.len().to_string();
            held.pending.insert(id.clone(), Vec::new());
            begun(&id).into_response()
        }
        "PATCH" => {
            if let Patches::Refuses(status) = held.patches {
                return status.into_response();
            }
            held.pending.get_mut(&last).unwrap().extend_from_slice(&body);
            match held.patches {
                Patches::Relative => (StatusCode::ACCEPTED, [("location", format!("{last}?state=y"))]).into_response(),
                Patches::Silent => StatusCode::ACCEPTED.into_response(),
                _ => begun(&last).into_response(),
            }
        }
        "PUT" if path.contains("/manifests/") => {
            held.manifest = body.to_vec();
            StatusCode::CREATED.into_response()
        }
        "PUT" => {
            let digest = uri.query().unwrap().rsplit_once("digest=").unwrap().1.to_owned();
            let mut blob = held.pending.remove(&last).unwrap();
            blob.extend_from_slice(&body);
            if Digest::of(&blob).to_string() != digest {
                return StatusCode::BAD_REQUEST.into_response();
            }
            held.blobs.insert(digest, blob);
            StatusCode::CREATED.into_response()
        }
        "DELETE" => {
            held.pending.remove(&last);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    }
}

/// A registry, and the image's name there.
async fn registry() -> (Arc<Mutex<Held>>, Reference) {
    let held = Arc::new(Mutex::new(Held::default()));
    let kept = held.clone();
    let serve = move |method: Method, uri: Uri, body: Bytes| {
        let response = answer(&kept, &method, &uri, body);
        async move { response }
    };
    let router = Router::new().fallback(serve).layer(axum::extract::DefaultBodyLimit::disable());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (held, Reference::parse_tagged(&format!("{address}/some:1")).unwrap())
}

/// Layers of several blocks: one that compresses, one that does not, the first again.
fn layers() -> Vec<Vec<u8>> {
    let text: Vec<u8> = (0..60_000_u32).flat_map(|n| format!("line {n} of a text\n").into_bytes()).collect();
    let noise: Vec<u8> =
        (0..300_000_u32).flat_map(|n| Digest::of(&n.to_be_bytes()).hex()[..4].to_owned().into_bytes()).collect();
    let text = tar_of(&[Item::File("text", &text, 0o644)]);
    vec![text.clone(), tar_of(&[Item::File("noise", &noise, 0o644)]), text]
}

async fn store_with(layers: &[Vec<u8>], name: &Reference) -> (tempfile::TempDir, Arc<ImageStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let archive = docker_archive(layers, &name.to_string());
    store.load(std::io::Cursor::new(archive), &Progress::none()).await.unwrap();
    (dir, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_sent_once_whole_and_the_same_wherever_it_goes() {
    let layers = layers();
    let (held, name) = registry().await;
    let (dir, store) = store_with(&layers, &name).await;
    let blobs = || std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count();
    let before = blobs();
    let pushed = store.push(&name, None, &Progress::none()).await.unwrap();
    assert_eq!(blobs(), before, "what is sent is not kept here too");
    {
        let held = held.lock().unwrap();
        assert_eq!(held.count(&Method::PATCH), 2, "the layer that stands there twice is sent once");
        assert_eq!(Digest::of(&held.manifest), pushed.digest);
        let manifest: serde_json::Value = serde_json::from_slice(&held.manifest).unwrap();
        let sent = manifest["layers"].as_array().unwrap();
        assert_eq!(sent.len(), layers.len());
        for (layer, sent) in layers.iter().zip(sent) {
            let blob = &held.blobs[sent["digest"].as_str().unwrap()];
            assert_eq!(blob.len() as u64, sent["size"].as_u64().unwrap());
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut plain).unwrap();
            assert!(plain == *layer, "what the registry has is not the layer");
        }
    }
    // Again: nothing but questions, and the manifest.
    held.lock().unwrap().asked.clear();
    assert_eq!(store.push(&name, None, &Progress::none()).await.unwrap().digest, pushed.digest);
    assert_eq!(held.lock().unwrap().count(&Method::PATCH), 0);
    assert_eq!(held.lock().unwrap().count(&Method::PUT), 1, "the manifest alone");
    // Another registry, and another machine: the same digest.
    let (elsewhere, other) = registry().await;
    store.tag(&name.to_string(), &other.to_string()).unwrap();
    assert_eq!(store.push(&other, None, &Progress::none()).await.unwrap().digest, pushed.digest);
    assert_eq!(elsewhere.lock().unwrap().count(&Method::PATCH), 2);
    let (third, name) = registry().await;
    let (_dir, store) = store_with(&layers, &name).await;
    assert_eq!(store.push(&name, None, &Progress::none()).await.unwrap().digest, pushed.digest);
    assert_eq!(third.lock().unwrap().blobs.len(), 3, "two layers and the configuration");
}

/// Turns a bit of a layer over, where it lies on the disk.
fn damage(store: &std::path::Path, layer: &[u8]) {
    let path = store.join("blobs/sha256").join(Digest::of(layer).hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[700] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_damaged_on_the_disk_never_becomes_a_blob() {
    let layers = layers();
    let (held, name) = registry().await;
    let (dir, store) = store_with(&layers, &name).await;
    damage(dir.path(), &layers[0]);
    let error = store.push(&name, None, &Progress::none()).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    let held = held.lock().unwrap();
    assert!(held.manifest.is_empty() && held.count(&Method::DELETE) == 1, "{:?}", held.asked);
    assert!(
        held.blobs
            .values()
            .all(|blob| !blob.starts_with(&[0x1f, 0x8b]) || *blob == held.blobs[&Digest::of(blob).to_string()])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_comes_the_same_to_registries_of_other_manners() {
    let layers = layers();
    let (_usual, name) = registry().await;
    let (_dir, store) = store_with(&layers, &name).await;
    let wanted = store.push(&name, None, &Progress::none()).await.unwrap().digest;
    for patches in [
        Patches::Relative,
        Patches::Silent,
        Patches::Refuses(StatusCode::LENGTH_REQUIRED),
        Patches::Refuses(StatusCode::NOT_FOUND),
    ] {
        let (held, name) = registry().await;
        held.lock().unwrap().patches = patches;
        let (_dir, store) = store_with(&layers, &name).await;
        assert_eq!(store.push(&name, None, &Progress::none()).await.unwrap().digest, wanted);
        let held = held.lock().unwrap();
        assert_eq!(held.blobs.len(), 3, "two layers and the configuration: {:?}", held.asked);
        assert!(held.pending.is_empty(), "an upload is left behind: {:?}", held.asked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_is_not_packed_either() {
    let layers = layers();
    let (held, name) = registry().await;
    held.lock().unwrap().patches = Patches::Refuses(StatusCode::NOT_IMPLEMENTED);
    let (dir, store) = store_with(&layers, &name).await;
    damage(dir.path(), &layers[0]);
    let error = store.push(&name, None, &Progress::none()).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    assert!(held.lock().unwrap().manifest.is_empty());
}
