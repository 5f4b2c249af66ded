//! `nuee token`: bootstrap tokens, as Kubernetes has them. They are Secrets, so `kubectl` shows and deletes them too.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::bootstrap_token::{NAME_PREFIX, NAMESPACE, SECRET_TYPE, join_token};
use clap::Subcommand;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use ring::rand::{SecureRandom, SystemRandom};

use crate::config::Config;
use crate::instance::Instance;

/// Longest life of a token.
const LIFE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Flags of `nuee token`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a token, and print the command by which a machine joins with it
    Create {
        /// How long it can be used, such as 30m or 24h
        #[arg(long, default_value = "1h", value_parser = life)]
        life: Duration,
        #[command(flatten)]
        data: super::DataDirectory,
    },
    /// List the tokens
    List {
        #[command(flatten)]
        data: super::DataDirectory,
    },
    /// Take a token back; machines that joined with it stay
    Delete {
        /// The token, or its first six characters
        token: String,
        #[command(flatten)]
        data: super::DataDirectory,
    },
}

fn life(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err("say a number with s, m, h or d".into()),
    };
    let number: u64 = number.parse().map_err(|_| "say a number with s, m, h or d".to_owned())?;
    let found = Duration::from_secs(number.saturating_mul(seconds));
    if found.is_zero() || found > LIFE_MAX { Err("between 1s and 7d".into()) } else { Ok(found) }
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (Action::Create { data, .. } | Action::List { data } | Action::Delete { data, .. }) = &arguments.action;
    let instance = Instance::new(&data.path)?;
    super::block_on(async {
        let client = crate::api_client::open(&instance.path("kubeconfig"))?;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
        match &arguments.action {
            Action::Create { life, .. } => create(&instance, client, &secrets, *life).await,
            Action::List { .. } => list(&secrets).await,
            Action::Delete { token, .. } => {
                let id = token.split('.').next().unwrap_or_default();
                let name = format!("{NAME_PREFIX}{id}");
                secrets.delete(&name, &DeleteParams::default()).await.with_context(|| format!("no token {id}"))?;
                println!("Token {id} is taken back.");
                Ok(())
            }
        }
    })
}

/// Lower-case letters and digits from the system's generator.
fn random(length: usize) -> Result<String> {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    // The largest multiple of 36 in a byte: what lies above would make some letters likelier.
    const FAIR: u8 = 252;
    let generator = SystemRandom::new();
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut byte = [0];
        generator.fill(&mut byte).map_err(|_| anyhow::anyhow!("no random bytes"))?;
        if byte[0] < FAIR {
            text.push(char::from(LETTERS[usize::from(byte[0]) % LETTERS.len()]));
        }
    }
    Ok(text)
}

async fn create(instance: &Instance, client: kube::Client, secrets: &Api<Secret>, life: Duration) -> Result<()> {
    let config = Config::load(&instance.path("config.yaml"))?;
    let (id, secret) = (random(6)?, random(16)?);
    let end = jiff::Timestamp::now().checked_add(jiff::SignedDuration::try_from(life)?)?;
    let end = end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let object = join_token(&id, &secret, Some(end), "lets a machine join; made by nuee token create");
    secrets.create(&PostParams::default(), &object).await.context("the token cannot be made")?;
    let pki = crate::daemon::open_pki(instance, &config)?;
    let token = format!("{id}.{secret}.{}", pki.fingerprint()?);
    let address = address(client, &config).await?;
    println!("nuee join --token {token} {address}");
    Ok(())
}

/// Where other machines reach the API: the address that this machine's node shows.
async fn address(client: kube::Client, config: &Config) -> Result<String> {
    if config.kubernetes_listen.ip().is_loopback() {
        bail!("the API listens on this machine alone (kubernetesListen in config.yaml); no other machine can join");
    }
    if !config.kubernetes_listen.ip().is_unspecified() {
        return Ok(config.kubernetes_listen.to_string());
    }
    let node = Api::<Node>::all(client).get(&config.node_name()?).await;
    let addresses = node.ok().and_then(|node| node.status).and_then(|status| status.addresses).unwrap_or_default();
    let own = addresses.into_iter().find(|address| address.type_ == "InternalIP").map(|address| address.address);
    let own = own.filter(|address| !address.starts_with("127.")).unwrap_or_else(|| "ADDRESS-OF-THIS-MACHINE".into());
    Ok(format!("{own}:{}", config.kubernetes_listen.port()))
}

async fn list(secrets: &Api<Secret>) -> Result<()> {
    let found = secrets.list(&ListParams::default().fields(&format!("type={SECRET_TYPE}"))).await;
    let found = found.context("the tokens cannot be listed")?.items;
    println!("{:<8} {:<22} USE", "TOKEN", "EXPIRES");
    for secret in found {
        let data = secret.data.unwrap_or_default();
        let text = |key: &str| data.get(key).map(|value| String::from_utf8_lossy(&value.0).into_owned());
        println!(
            "{:<8} {:<22} {}",
            text("token-id").unwrap_or_default(),
            text("expiration").unwrap_or_else(|| "never".into()),
            text("description").unwrap_or_default()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_has_a_unit_and_a_bound() {
        assert_eq!(life("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(life("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "h", "0m", "8d", "5", "-1h", "99999999999999999999h"] {
            assert!(life(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_are_of_the_known_form() -> Result<()> {
        let text = random(400)?;
        assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
        assert_ne!(random(16)?, random(16)?);
        Ok(())
    }
}
