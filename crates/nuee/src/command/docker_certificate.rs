//! `nuee docker-certificate`: what a docker client needs to reach the endpoint of one namespace.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::config::Config;
use crate::daemon::{GROUP_PREFIX, open_pki};
use crate::instance::Instance;

/// Longest name of a namespace. `Source:` RFC 1123, a DNS label.
const MAX_NAMESPACE: usize = 63;

/// Flags of `nuee docker-certificate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Namespace that the client will work in
    namespace: String,
    /// Directory to write ca.pem, cert.pem and key.pem to; made if it is missing
    #[arg(long, short, value_name = "DIRECTORY")]
    output: PathBuf,
    /// Name of the user, for the audit log
    #[arg(long, default_value = "docker")]
    user: String,
    #[command(flatten)]
    data: super::DataDirectory,
}

/// Writes the certificate.
pub fn run(arguments: &Arguments) -> Result<()> {
    let instance = Instance::new(&arguments.data.path)?;
    let namespace = &arguments.namespace;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if namespace.is_empty() || namespace.len() > MAX_NAMESPACE || !namespace.chars().all(plain) {
        bail!("{namespace:?} is no name of a namespace");
    }
    let config = Config::load(&instance.path("config.yaml"))?;
    let pki = open_pki(&instance, &config)?;
    let group = format!("{GROUP_PREFIX}{namespace}");
    let (certificate, key) =
        pki.client_certificate(&arguments.user, Some(&group)).context("the certificate cannot be made")?;
    let output = &arguments.output;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(output)
        .with_context(|| format!("cannot make {}", output.display()))?;
    write(&output.join("ca.pem"), &pki.ca_pem)?;
    write(&output.join("cert.pem"), &certificate)?;
    write(&output.join("key.pem"), &key)?;
    let shown = output.display();
    match config.docker_listen {
        Some(address) => println!(
            "docker context create {namespace} --docker \
             host=tcp://{address},ca={shown}/ca.pem,cert={shown}/cert.pem,key={shown}/key.pem"
        ),
        None => println!("Written to {shown}. Set dockerListen in config.yaml to serve it."),
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
