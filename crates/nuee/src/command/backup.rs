//! `nuee backup` and `nuee backup verify`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{Format, Output};
use crate::backup;
use crate::instance::Instance;

/// Largest passphrase file that is read. Units: bytes.
const MAX_PASSPHRASE_BYTES: u64 = 4096;

/// Flags of `nuee backup`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Subcommand>,
    #[command(flatten)]
    data: super::DataDirectory,
    #[command(flatten)]
    passphrase: Passphrase,
    #[command(flatten)]
    output: Output,
    /// File to write; it must not be there yet
    #[arg(required = true)]
    file: Option<PathBuf>,
}

#[derive(clap::Subcommand)]
enum Subcommand {
    /// Check a backup without restoring it
    Verify {
        /// The backup
        file: PathBuf,
        #[command(flatten)]
        passphrase: Passphrase,
        #[command(flatten)]
        output: Output,
    },
}

/// Where the passphrase is. Never an argument: other users of the machine can read those.
#[derive(clap::Args)]
pub struct Passphrase {
    /// File whose first line is the passphrase that encrypts the backup
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    /// Reads it.
    pub fn read(&self) -> Result<Option<String>> {
        let Some(path) = &self.passphrase_file else { return Ok(None) };
        let say = || format!("cannot read {}", path.display());
        if std::fs::metadata(path).with_context(say)?.len() > MAX_PASSPHRASE_BYTES {
            bail!("{} is too long for a passphrase", path.display());
        }
        let text = std::fs::read_to_string(path).with_context(say)?;
        Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
    }
}

/// Takes a backup, or checks one.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(Subcommand::Verify { file, passphrase, output }) = &arguments.command {
        let passphrase = passphrase.read()?;
        let manifest = backup::verify(file, passphrase.as_deref())?;
        let opened = manifest.encryption.is_none() || passphrase.is_some();
        let how = if opened { "is whole" } else { "is whole; its content was not opened without the passphrase" };
        return print(&manifest, output, &format!("{} {how}", file.display()));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can back Nuée up; try `sudo nuee backup`");
    }
    let file = arguments.file.as_ref().context("name the file to write")?;
    let instance = Instance::new(&arguments.data.path)?;
    if !instance.directory().exists() {
        bail!("there is no Nuée in {}", instance.directory().display());
    }
    let manifest = backup::create(&instance, file, arguments.passphrase.read()?.as_deref())?;
    print(&manifest, &arguments.output, &format!("{} is written", file.display()))?;
    if arguments.output.output == Format::Text {
        if manifest.encryption.is_none() {
            println!("  It is not encrypted and holds Secrets as they are; certificates and keys are left out.");
        }
        println!("  Images, volumes and the files of containers are not in it.");
    }
    Ok(())
}

fn print(manifest: &backup::Manifest, output: &Output, said: &str) -> Result<()> {
    match output.output {
        Format::Json => {
            let value = json!({
                "revision": manifest.revision,
                "program": manifest.program,
                "createdAt": manifest.created_at,
                "encrypted": manifest.encryption.is_some(),
                "parts": manifest.parts,
            });
            println!("{}", serde_json::to_string_pretty(&value)?);
        }
        Format::Text => {
            println!("{said}: revision {}, taken {}.", manifest.revision, manifest.created_at);
            for part in &manifest.parts {
                println!("  {:<28} {:>12} bytes  sha256 {}", part.name, part.bytes, part.sha256);
            }
        }
    }
    Ok(())
}
