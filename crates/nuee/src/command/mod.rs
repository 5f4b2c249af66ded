//! The command line: what each word means is in the file of that name.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::instance::DEFAULT_DATA_DIRECTORY;

mod backup;
mod docker_certificate;
mod down;
mod image;
mod image_build;
mod join;
mod leave;
mod plan;
mod restore;
mod simulate;
mod snapshot;
mod status;
mod token;
mod up;
mod vm;
mod vm_backup;
mod vm_change;
mod vm_console;
mod vm_disks;
mod vm_interfaces;
mod vm_migrate;
mod vm_restore;
mod volume;

const EXAMPLES: &str = "\
Examples:
  nuee up --detach                  start in the background, return when ready
  nuee status                       is it ready, and where do clients find it
  nuee doctor                       what this machine lacks, and how to mend it
  nuee down                         stop the daemon; workloads keep running
  nuee down --all                   stop the workloads too and leave nothing behind

Then use the clients you have:
  export DOCKER_HOST=unix:///run/nuee/docker.sock
  export KUBECONFIG=/var/lib/nuee/kubeconfig";

/// Turns Linux machines into a cloud that docker and kubectl work against.
#[derive(Parser)]
#[command(name = "nuee", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start Nuée on this machine, and bring back everything that was on it
    #[command(
        after_help = "Examples:\n  nuee up --detach\n  nuee up --data-dir /srv/nuee --kubernetes-listen 127.0.0.1:7443"
    )]
    Up(up::Arguments),
    /// Make this machine a part of another Nuée's pool, and start it
    #[command(
        after_help = "Examples:\n  nuee token create                              on the pool's first machine; prints the next line\n  nuee join --token TOKEN 10.0.0.1:6443 --detach"
    )]
    Join(join::Arguments),
    /// Stop this machine's workloads and take it out of its pool
    #[command(after_help = "Examples:\n  nuee leave\n  nuee leave --force    when the pool does not answer any more")]
    Leave(leave::Arguments),
    /// Make, list and take back the tokens with which machines join
    #[command(
        after_help = "Examples:\n  nuee token create\n  nuee token create --life 10m\n  nuee token list\n  nuee token delete abcdef"
    )]
    Token(token::Arguments),
    /// Stop the daemon; workloads keep running unless --all is given
    #[command(after_help = "Examples:\n  nuee down\n  nuee down --all --data-dir /srv/nuee")]
    Down(down::Arguments),
    /// Show whether it runs, and where clients find it
    #[command(after_help = "Examples:\n  nuee status\n  nuee status -o json | jq .endpoints")]
    Status(status::Arguments),
    /// Write everything but images and volumes to one file, while it runs
    #[command(
        after_help = "Examples:\n  nuee backup /srv/backup/monday.nuee --passphrase-file /root/passphrase\n  nuee backup verify /srv/backup/monday.nuee"
    )]
    Backup(backup::Arguments),
    /// Make a new Nuée of a backup, in an empty data directory
    #[command(
        after_help = "Examples:\n  nuee restore /srv/backup/monday.nuee --passphrase-file /root/passphrase && nuee up --detach"
    )]
    Restore(restore::Arguments),
    /// Check what this machine offers, and say how to mend what is missing
    Doctor(crate::doctor::Arguments),
    /// Replay a trace of demand under a consolidation policy
    #[command(
        after_help = "Examples:\n  nuee simulate --trace 20110303.csv.gz --policy nuee\n  nuee simulate --trace 20110303.csv.gz --policy mfped -o json\n  nuee simulate --trace 20110303.csv.gz --memory enforced --report day.html"
    )]
    Simulate(simulate::Arguments),
    /// Ask what the consolidator would do with a pool, and why
    #[command(
        after_help = "Examples:\n  nuee plan --from snapshot.json --explain\n  nuee plan --from snapshot.json -o json"
    )]
    Plan(plan::Arguments),
    /// Work with virtual machines
    #[command(
        after_help = "Examples:\n  nuee vm list\n  nuee vm console web\n  nuee vm ssh web -- uptime\n  nuee vm save web web-template\n  nuee vm rebuild web --image debian-13\n  nuee vm revert web monday\n  nuee vm attach web data\n  nuee vm attach-interface web --network backend\n  nuee vm backup web -o web-monday.vm"
    )]
    Vm(vm::Arguments),
    /// Work with disks of virtual machines
    #[command(
        after_help = "Examples:\n  nuee volume create data --size 10Gi\n  nuee vm attach web data\n  nuee volume grow data 20Gi\n  nuee volume ls"
    )]
    Volume(volume::Arguments),
    /// Keep disks as they are at one instant
    #[command(
        after_help = "Examples:\n  nuee snapshot create monday --volume data\n  nuee volume create data-again --from-snapshot monday"
    )]
    Snapshot(snapshot::Arguments),
    /// Work with disk images
    #[command(
        after_help = "Examples:\n  nuee image build-test-guest -o tiny\n  nuee image import debian debian-12-nocloud-amd64.qcow2\n  nuee image import debian https://images.example/debian-12.qcow2"
    )]
    Image(image::Arguments),
    /// Write the certificate with which a docker client reaches one namespace over TLS
    #[command(
        after_help = "Examples:\n  nuee docker-certificate team-a --output team-a-docker\n  nuee docker-certificate team-a --days 7 --output ci-docker\n  nuee docker-certificate team-a --revoke ci-docker/cert.pem"
    )]
    DockerCertificate(docker_certificate::Arguments),
    /// Run projects of several containers from a Compose file
    #[command(after_help = "Examples:\n  nuee compose up --detach\n  nuee compose -f shop.yaml logs --follow web")]
    Compose(crate::compose::Arguments),
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  nuee completion bash > /etc/bash_completion.d/nuee\n  nuee completion zsh > ~/.zfunc/_nuee"
    )]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version {
        #[command(flatten)]
        output: Output,
    },
}

/// Where the data directory is.
#[derive(clap::Args)]
pub struct DataDirectory {
    /// Directory that holds everything of this Nuée
    #[arg(long = "data-dir", value_name = "DIRECTORY", env = "NUEE_DATA_DIR", default_value = DEFAULT_DATA_DIRECTORY)]
    pub path: PathBuf,
}

/// How to print.
#[derive(clap::Args)]
pub struct Output {
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Runs what the command line says.
pub fn run() -> ExitCode {
    let command = Arguments::parse().command;
    if !matches!(command, Command::Up(up::Arguments { detach: false, .. })) {
        end_with_the_reader();
    }
    let done = match command {
        Command::Up(arguments) => up::run(&arguments),
        Command::Down(arguments) => down::run(&arguments),
        Command::Join(arguments) => join::run(&arguments),
        Command::Leave(arguments) => leave::run(&arguments),
        Command::Token(arguments) => token::run(&arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Status(arguments) => return or_complain(status::run(&arguments)),
        Command::DockerCertificate(arguments) => docker_certificate::run(&arguments),
        Command::Doctor(arguments) => return or_complain(crate::doctor::run(&arguments)),
        Command::Vm(arguments) => vm::run(arguments),
        Command::Image(arguments) => image::run(arguments),
        Command::Volume(arguments) => volume::run(arguments),
        Command::Snapshot(arguments) => snapshot::run(arguments),
        Command::Compose(arguments) => crate::compose::run(&arguments),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "nuee", &mut std::io::stdout());
            Ok(())
        }
        Command::Simulate(arguments) => simulate::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Version { output } => version(&output),
    };
    or_complain(done.map(|()| ExitCode::SUCCESS))
}

/// Lets a command end quietly when whoever reads its output is gone (`nuee status | head -1`). Not for the daemon, which must
/// outlive its readers.
#[allow(unsafe_code)]
fn end_with_the_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action is no handler, so no code of ours runs in signal context.
    let set = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    if let Err(error) = set {
        eprintln!("nuee: cannot set the action of SIGPIPE: {error}");
    }
}

/// Runs a command that talks to the API.
fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Reads to the end, for `what` in messages.
///
/// `Errors:` it cannot be read, or is of `bytes_max` bytes or more.
fn read_bounded(from: impl Read, bytes_max: u64, what: &str) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    let size = from.take(bytes_max).read_to_end(&mut content).with_context(|| format!("cannot read {what}"))?;
    anyhow::ensure!((size as u64) < bytes_max, "{what} is larger than {bytes_max} bytes");
    Ok(content)
}

fn or_complain(done: anyhow::Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|error| {
        eprintln!("nuee: {error:#}");
        ExitCode::FAILURE
    })
}

fn version(output: &Output) -> anyhow::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    match output.output {
        Format::Text => println!("nuee {version}"),
        Format::Json => println!("{}", serde_json::json!({ "version": version })),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
