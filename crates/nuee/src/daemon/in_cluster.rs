//! How clients inside pods reach the API: the address of the Service `kubernetes`, and where it leads.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use controllers::api_service::ApiPlace;
use tokio::net::TcpListener;

use super::hands;
use crate::config::Config;

/// The first address of the Service range, which the machinery never gives away by itself.
pub fn service_address(config: &Config) -> Result<Ipv4Addr> {
    let range = hands::cidr(&config.service_cidr, "serviceCidr")?;
    Ok(range.first_host())
}

/// Where the Service `kubernetes` is, and leads.
pub fn place(config: &Config, agent: &agent::Agent) -> Result<ApiPlace> {
    let address = match config.kubernetes_listen.ip() {
        IpAddr::V4(own) if !own.is_unspecified() && !own.is_loopback() => own,
        _ if !config.kubernetes_listen.ip().is_loopback() && !agent.host_address().is_loopback() => {
            agent.host_address()
        }
        // Loopback is another one inside each pod; the bridge is there for all of them.
        _ => agent.gateway(),
    };
    let endpoint = SocketAddrV4::new(address, config.kubernetes_listen.port());
    Ok(ApiPlace { service: service_address(config)?, endpoint })
}

/// A second socket, on the pods' bridge, when the API listens on loopback alone.
pub async fn listen(config: &Config, agent: &agent::Agent) -> Result<Option<TcpListener>> {
    if !config.kubernetes_listen.ip().is_loopback() {
        return Ok(None);
    }
    let address = (agent.gateway(), config.kubernetes_listen.port());
    let listener = TcpListener::bind(address).await;
    listener.map(Some).with_context(|| format!("cannot listen on {}:{} for pods", address.0, address.1))
}
