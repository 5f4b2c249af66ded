//! `bench-api table`: the API's figures beside etcd. `bench-api soak`: many writers and watchers for minutes.

// A command-line program: its output is its purpose.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use bench_api::client::Access;
use bench_api::machine::{self, Server};
use bench_api::{serve, soak, table};
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Creates, lists, watches and memory, beside etcd on the same disk
    Table {
        #[command(flatten)]
        place: Place,
        /// Seconds of one measurement of creates
        #[arg(long, default_value_t = 3)]
        seconds: u64,
        /// Measurements of each; the median counts
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// No watch misses or repeats a change, memory is bounded, reads stay quick
    Soak {
        #[command(flatten)]
        place: Place,
        /// Objects that are there from the start
        #[arg(long, default_value_t = 50_000)]
        objects: usize,
        #[arg(long, default_value_t = 64)]
        watchers: usize,
        #[arg(long, default_value_t = 32)]
        writers: usize,
        /// Writes per second of each writer
        #[arg(long, default_value_t = 10)]
        rate: u32,
        #[arg(long, default_value_t = 300)]
        seconds: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Serve the API alone, without agent and controllers
    Serve { directory: PathBuf },
}

#[derive(clap::Args)]
struct Place {
    /// The `nuee` to measure; without it the API alone is measured
    #[arg(long)]
    nuee: Option<PathBuf>,
    /// Directory on the disk to measure on
    #[arg(long, default_value = ".")]
    directory: PathBuf,
}

/// Runtime of the clients; the server is a process of its own.
fn main() -> Result<()> {
    let command = Arguments::parse().command;
    if !matches!(command, Command::Serve { .. }) {
        machine::enter_namespaces()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(command))
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve { directory } => {
            let _api = serve::start(&directory).await?;
            std::future::pending().await
        }
        Command::Table { place, seconds, rounds } => {
            let scratch = tempfile::tempdir_in(&place.directory)?;
            let (ours, theirs) = table::directories(scratch.path());
            let server = start(&place, ours)?;
            let (_etcd, url) = Server::etcd(&theirs)?;
            println!("{:<72} {:>10} {:>10} {:>7}  bar", "", "nuee", "etcd", "ratio");
            let plan = table::Plan { measure: Duration::from_secs(seconds), rounds };
            table::run(&server, &url, &plan, &mut |row| print_row(&row)).await
        }
        Command::Soak { place, objects, watchers, writers, rate, seconds, seed } => {
            let scratch = tempfile::tempdir_in(&place.directory)?;
            let server = start(&place, scratch.path().join("nuee"))?;
            let length = Duration::from_secs(seconds);
            let load = soak::Load { objects, watchers, writers, rate, length, seed, lose_one: false };
            soak_and_report(&server, &load).await
        }
    }
}

fn start(place: &Place, data: PathBuf) -> Result<Server> {
    match &place.nuee {
        Some(program) => Server::nuee(program, &data),
        None => Server::api(&data),
    }
}

fn print_row(row: &table::Row) {
    let etcd = row.etcd.map_or_else(String::new, |value| format!("{value:.1}"));
    let ratio = row.etcd.map_or_else(String::new, |value| format!("{:.2}", row.ours / value));
    let verdict = row.met.map_or("", |met| if met { "met" } else { "MISSED" });
    let ours = format!("{:.1} {}", row.ours, row.unit);
    println!("{:<72} {ours:>10} {etcd:>10} {ratio:>7}  {} {verdict}", row.what, row.bar);
}

async fn soak_and_report(server: &Server, load: &soak::Load) -> Result<()> {
    let access = Access::from_kubeconfig(&server.data.join("kubeconfig"))?;
    let pid = server.pid();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let sampler = tokio::spawn(soak::sample_memory(move || machine::resident_kib(pid), stopped));
    println!("seed {}", load.seed);
    let outcome = soak::run(&access, load).await?;
    let _ = stop.send(());
    let memory = sampler.await?;
    println!("acknowledged changes   {}", outcome.changes);
    println!("events seen            {} by {} watchers, {} resumed", outcome.events, load.watchers, outcome.resumed);
    let times = |times: &bench_api::statistics::Times| {
        format!("{} (p50 {:.2} ms, p99 {:.2} ms)", times.len(), times.percentile_ms(50), times.percentile_ms(99))
    };
    println!("reads of one object    {}", times(&outcome.reads));
    println!("writes                 {}", times(&outcome.writes));
    println!("resident memory        {}", memory.describe());
    println!("processor of the server {:.1} s", machine::processor_seconds(pid));
    for fault in &outcome.faults {
        println!("FAULT {fault}");
    }
    if outcome.faults.is_empty() {
        println!("no watch missed or repeated a change");
        return Ok(());
    }
    bail!("the soak found {} faults", outcome.faults.len())
}
