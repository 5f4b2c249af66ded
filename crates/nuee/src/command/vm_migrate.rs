//! `nuee vm migrate`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::{Migration, MigrationPhase, MigrationSpec, MigrationStatus};
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};

use super::image::Place;

/// How long what comes after the end of a migration, and tells how long the guest stood still, is waited for.
const FIGURES_TIMEOUT: Duration = Duration::from_secs(2);

/// How often in a row it may be impossible to read how far it is; each attempt is made later than the last.
const FAILURES_MAX: usize = 5;

/// Flags of `nuee vm migrate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The machine
    name: String,
    /// Host to move it to; one that can take it if not given
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// Most that memory and disk may each take of the network, per second, such as 50Mi
    #[arg(long, value_name = "BYTES")]
    bandwidth: Option<String>,
    /// When its memory changes faster than it is carried, let it go on there before all of it has come; should the rest not
    /// come, it starts anew from its disks
    #[arg(long)]
    post_copy: bool,
    /// Return at once; `kubectl get migrations` shows how it goes
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    place: Place,
}

/// Moves it, and shows how far it is.
pub async fn run(arguments: Arguments) -> Result<()> {
    let migrations: Api<Migration> = arguments.place.api()?;
    let object = Migration {
        metadata: ObjectMeta { generate_name: Some(format!("{}-", arguments.name)), ..ObjectMeta::default() },
        spec: MigrationSpec {
            virtual_machine: arguments.name.clone(),
            target_node: arguments.to,
            bandwidth: arguments.bandwidth.map(Quantity),
            post_copy: arguments.post_copy,
            cancel: false,
        },
        status: None,
    };
    let made = migrations.create(&PostParams::default(), &object).await.context("the migration cannot be made")?;
    let name = made.metadata.name.unwrap_or_default();
    if arguments.no_wait {
        println!("{name}");
        return Ok(());
    }
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut seen = std::pin::pin!(watcher::watch_object(migrations, &name).default_backoff());
    let (mut succeeded, mut failures) = (None, 0);
    loop {
        let patience = if succeeded.is_some() { FIGURES_TIMEOUT } else { Duration::MAX };
        let found = match (tokio::time::timeout(patience, seen.next()).await, &succeeded) {
            (Err(_), Some(last)) => return said(&arguments.name, last),
            (Ok(Some(Ok(found))), _) => found,
            (Ok(Some(Err(error))), _) => {
                failures += 1;
                if failures > FAILURES_MAX {
                    return Err(error).context("the migration cannot be read");
                }
                continue;
            }
            (Ok(None) | Err(_), _) => bail!("the migration is not followed any more"),
        };
        failures = 0;
        let status = found.context("somebody deleted the migration")?.status.unwrap_or_default();
        let part = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        let memory = status.memory.total_bytes.saturating_sub(status.memory.remaining_bytes);
        let memory = if status.memory.sent_bytes > 0 { memory } else { 0 };
        bar.set_length(part(status.memory.total_bytes) + part(status.disk.total_bytes));
        bar.set_position(part(memory) + part(status.disk.sent_bytes));
        bar.set_message(format!("{:?}", status.phase));
        if status.phase.is_final() {
            bar.finish_and_clear();
            if status.phase != MigrationPhase::Succeeded {
                bail!("{:?}: {}", status.phase, status.message);
            }
            // Its host tells that while the pool takes note that it has moved.
            if status.downtime_ms > 0 {
                return said(&arguments.name, &status);
            }
            succeeded = Some(status);
        }
    }
}

fn said(name: &str, status: &MigrationStatus) -> Result<()> {
    println!("{name} is on {} now; it stood still for {} ms.", status.target_node, status.downtime_ms);
    Ok(())
}
