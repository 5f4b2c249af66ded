//! A short soak in every run of the tests, and the proof that it would notice.

use std::time::Duration;

use anyhow::Result;
use bench_api::client::Access;
use bench_api::soak::{Load, run};

/// What a shared machine of two cores bears in a debug build.
fn load(seconds: u64) -> Load {
    Load {
        objects: 500,
        watchers: 16,
        writers: 8,
        rate: 10,
        length: Duration::from_secs(seconds),
        seed: std::process::id().into(),
        lose_one: false,
    }
}

async fn soak(load: &Load) -> Result<bench_api::soak::Outcome> {
    let directory = tempfile::tempdir()?;
    let _api = bench_api::serve::start(directory.path()).await?;
    run(&Access::from_kubeconfig(&directory.path().join("kubeconfig"))?, load).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_watch_misses_or_repeats_a_change_while_many_write() -> Result<()> {
    let load = load(15);
    eprintln!("seed {}", load.seed);
    let outcome = soak(&load).await?;
    assert!(outcome.faults.is_empty(), "seed {}: {:#?}", load.seed, outcome.faults);
    assert!(outcome.changes > 20, "{}", outcome.changes);
    assert_eq!(outcome.events, u64::try_from(outcome.changes * load.watchers)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_lost_event_of_one_watcher_is_found() -> Result<()> {
    let load = Load { lose_one: true, objects: 50, watchers: 2, writers: 2, ..load(2) };
    let outcome = soak(&load).await?;
    assert!(outcome.faults.iter().any(|fault| fault.starts_with("watcher 1:")), "{:#?}", outcome.faults);
    Ok(())
}
