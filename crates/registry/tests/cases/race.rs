//! Garbage collection among pushes, pulls and deletions never takes what is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use image::{ImageStore, Progress, PullOptions, Reference};

use crate::helpers::{layers, load, serve};

/// Images that come and go.
const IMAGES: usize = 4;
/// How often each.
const TURNS: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn garbage_collection_never_removes_what_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(&dir.path().join("registry")).await;
    let ended = Arc::new(AtomicBool::new(false));
    let collector = {
        let (store, ended) = (server.store.clone(), ended.clone());
        tokio::spawn(async move {
            let mut rounds = 0;
            while !ended.load(Ordering::SeqCst) {
                store.collect_garbage().await.unwrap();
                rounds += 1;
                tokio::task::yield_now().await;
            }
            rounds
        })
    };
    let clients = (0..IMAGES).map(|index| {
        let (address, base) = (server.address.clone(), dir.path().join(format!("client-{index}")));
        let local = server.store.clone();
        tokio::spawn(async move {
            for turn in 0..TURNS {
                // All share the lower layers, so that one's deletion meets another's push.
                let shared = layers(3, 20_000);
                let name = format!("{address}/race/app-{index}:{turn}");
                let reference = Reference::parse_tagged(&name).unwrap();
                let store = ImageStore::open(&base.join(format!("{turn}-a"))).unwrap();
                load(&store, &shared, &name).await;
                store.push(&reference, None, &Progress::none()).await.unwrap();
                // In use by a container of the registry's own machine, while its tag goes.
                let container = format!("c-{index}-{turn}");
                let place = base.join(&container);
                local.prepare(&container, &name, &place).await.unwrap();
                let other = ImageStore::open(&base.join(format!("{turn}-b"))).unwrap();
                other.pull(&reference, &PullOptions::default(), &Progress::none()).await.unwrap();
                assert_eq!(other.get(&name).unwrap().layers.len(), 3);
                let options = image::RemoveOptions { force: true, ..Default::default() };
                local.remove(&name, &options).unwrap();
                let snapshot = local.snapshot(&container).unwrap();
                for lower in &snapshot.lower {
                    assert!(std::fs::read_dir(lower).unwrap().next().is_some(), "{} is empty", lower.display());
                }
                local.remove_snapshot(&container).await.unwrap();
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    ended.store(true, Ordering::SeqCst);
    assert!(collector.await.unwrap() > TURNS, "the collector ran among them");
}
