//! `nuee docker-certificate`: what a docker client needs to reach the endpoint of one namespace.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::config::Config;
use crate::daemon::{GROUP_PREFIX, open_pki};
use crate::instance::Instance;
use crate::revoked::Revoked;

/// Longest name of a namespace. `Source:` RFC 1123, a DNS label.
const MAX_NAMESPACE: usize = 63;

/// Flags of `nuee docker-certificate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Namespace that the client will work in
    namespace: String,
    /// Directory to write ca.pem, cert.pem and key.pem to; made if it is missing
    #[arg(long, short, value_name = "DIRECTORY", required_unless_present = "revoke")]
    output: Option<PathBuf>,
    /// Name of the user, for the audit log
    #[arg(long, default_value = "docker")]
    user: String,
    /// How long it is good
    #[arg(long, value_name = "NUMBER", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Revoke this certificate (a cert.pem of the namespace) in place of writing one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "days"])]
    revoke: Option<PathBuf>,
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
    if let Some(certificate) = &arguments.revoke {
        return revoke(&instance, namespace, certificate);
    }
    let Some(output) = &arguments.output else { bail!("--output is missing") };
    let config = Config::load(&instance.path("config.yaml"))?;
    let pki = open_pki(&instance, &config)?;
    let group = format!("{GROUP_PREFIX}{namespace}");
    let life = Duration::from_secs(u64::from(arguments.days) * 24 * 3600);
    let (certificate, key) =
        pki.client_certificate(&arguments.user, Some(&group), life).context("the certificate cannot be made")?;
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

/// Puts a certificate on the list of those that are good no more.
fn revoke(instance: &Instance, namespace: &str, path: &Path) -> Result<()> {
    let pem = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let wrong = || format!("{} is no certificate", path.display());
    let certificate = CertificateDer::from_pem_slice(&pem).map_err(|_| anyhow!(wrong()))?;
    let user = kubernetes::user_of_certificate(&certificate).with_context(wrong)?;
    let group = format!("{GROUP_PREFIX}{namespace}");
    if !user.groups.contains(&group) {
        bail!("{} is no certificate of the namespace {namespace}", path.display());
    }
    Revoked::of(instance).add(&certificate)?;
    println!("Revoked {}", path.display());
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
