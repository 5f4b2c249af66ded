//! The sockets, opened before anything else so that a taken port is told at once.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, UnixListener};

use crate::config::Config;
use crate::instance::{DEFAULT_SOCKET, GROUP, Instance};

/// The open sockets.
pub struct Listeners {
    /// For the Kubernetes API.
    pub kubernetes: TcpListener,
    /// For the Docker API of tenants, when it is served.
    pub tenants: Option<TcpListener>,
    /// For the image registry, when it is served.
    pub registry: Option<TcpListener>,
    /// For the Docker API: in the data directory, and for the default instance at the well-known place too.
    pub docker: Vec<UnixListener>,
}

/// Opens them.
pub async fn bind(instance: &Instance, config: &Config) -> Result<Listeners> {
    let mut paths: Vec<PathBuf> = vec![instance.path("docker.sock")];
    if instance.is_default() {
        paths.push(DEFAULT_SOCKET.into());
    }
    let registry = match config.registry_listen {
        // A port that nobody asked for by name must not keep the daemon from its work.
        Some(address) if address == crate::config::REGISTRY_DEFAULT => {
            let bound = TcpListener::bind(address).await;
            bound.inspect_err(|error| tracing::warn!(%address, %error, "no image registry: the port is taken")).ok()
        }
        Some(address) => Some(tcp(address, "registryListen").await?),
        None => None,
    };
    let tenants = match config.docker_listen {
        Some(address) => Some(tcp(address, "dockerListen").await?),
        None => None,
    };
    Ok(Listeners {
        tenants,
        kubernetes: tcp(config.kubernetes_listen, "kubernetesListen").await?,
        registry,
        docker: paths.iter().map(|path| unix(path)).collect::<Result<_>>()?,
    })
}

async fn tcp(address: std::net::SocketAddr, setting: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; stop what listens there, or set {setting} in config.yaml")
    })
}

/// A unix socket for root and the group; the lock on the data directory proves that an old one is dead.
fn unix(path: &Path) -> Result<UnixListener> {
    let say = || format!("cannot listen on {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(say)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(say),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(say)?;
    let group = nix::unistd::Group::from_name(GROUP).ok().flatten().map(|group| group.gid);
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).with_context(say)?;
    nix::unistd::chown(path, None, group).with_context(say)?;
    Ok(listener)
}
