//! `nuee vm migrate`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::{Migration, MigrationPhase, MigrationSpec};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;

use super::image::Place;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(200);

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
    loop {
        let found = migrations.get_opt(&name).await.context("the migration cannot be read")?;
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
            println!(
                "{} is on {} now; it stood still for {} ms.",
                arguments.name, status.target_node, status.downtime_ms
            );
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}
