//! A registry on a loopback port, and small images.

use std::path::Path;
use std::sync::Arc;

use image::{Digest, ImageStore, Progress};
use registry::RegistryOptions;

/// A registry that is served until it is dropped.
pub struct Server {
    pub address: String,
    pub store: Arc<ImageStore>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn serve(dir: &Path) -> Server {
    let store = ImageStore::open(dir).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = registry::router(store.clone(), RegistryOptions { names: vec![address.clone()], access: None });
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Server { address, store, task }
}

fn file(builder: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, data).unwrap();
}

/// Layers with one file each; the data packs badly, so that sizes are real.
pub fn layers(count: usize, bytes: usize) -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..count)
        .map(|i| {
            let mut builder = tar::Builder::new(Vec::new());
            let data: Vec<u8> = (0..bytes / 8).flat_map(|_| next()).collect();
            file(&mut builder, &format!("file-{i}"), &data);
            builder.into_inner().unwrap()
        })
        .collect()
}

pub fn config(layers: &[Vec<u8>]) -> String {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    serde_json::json!({"architecture": image::config::host_architecture(), "os": "linux",
        "config": {"Cmd": ["/file-0"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
}

/// A docker-archive of an image.
pub fn archive(layers: &[Vec<u8>], tag: &str) -> Vec<u8> {
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}.tar")).collect();
    let mut builder = tar::Builder::new(Vec::new());
    file(&mut builder, "config.json", config(layers).as_bytes());
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]);
    file(&mut builder, "manifest.json", manifest.to_string().as_bytes());
    for (name, layer) in names.iter().zip(layers) {
        file(&mut builder, name, layer);
    }
    builder.into_inner().unwrap()
}

pub async fn load(store: &Arc<ImageStore>, layers: &[Vec<u8>], tag: &str) -> Digest {
    let archive = std::io::Cursor::new(archive(layers, tag));
    store.load(archive, &Progress::none()).await.unwrap().remove(0).id
}
