//! `config.yaml` in the data directory: written with comments on the first start, read on every start.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The text that the first start writes: every setting with its default and what it is for.
const COMMENTED: &str = "\
# Settings of this Nuée. Each line shows the default; take away the '#' to change one, then `nuee down && nuee up`.

# Name of this machine in the pool. Default: its host name.
# nodeName: server-1

# Address and port of the Kubernetes API (HTTPS).
# kubernetesListen: 0.0.0.0:6443

# Address and port of the image registry; null serves none. Users log in with a token as the password: kubectl create token NAME.
# registryListen: 127.0.0.1:5000

# Whether the registry speaks HTTPS, with the certificate of the API; clients trust it by pki/ca.crt (as
# /etc/docker/certs.d/HOST:PORT/ca.crt, or skopeo's --cert-dir). Without it, keep it on loopback: tokens go over the wire.
# registryTls: false

# Address and port of the Docker API for tenants, such as 0.0.0.0:2376: HTTPS with the client certificates that
# `nuee docker-certificate` writes, each for one namespace. Not served by default.
# dockerListen: null

# Further names and addresses for the API's certificate.
# alternativeNames: []

# Network of pods, and of containers that name no other network.
# podCidr: 10.88.0.0/16

# Addresses of Services. No machine of yours may use them.
# serviceCidr: 10.96.0.0/16

# Ports of NodePort Services, first and last.
# nodePorts: [30000, 32767]

# Domain of the cluster's DNS.
# clusterDomain: cluster.local

# Name servers for names outside the cluster. Default: those of /etc/resolv.conf.
# nameServers: []

# Addresses that FloatingIP objects give to workloads: subnets, or lone addresses, that nothing else uses and that are led to
# this machine or lie on its network, such as [192.0.2.64/27, 192.0.2.100].
# floatingAddresses: []

# Addresses that networks of mode `routed` may have, of any namespace: others send what is for them to this machine, and it is not
# translated.
# routedAddresses: []

# Interfaces of this machine that networks of mode `bridged` may be on. They must have no address of the machine. Whoever may make
# networks, in any namespace, may then take addresses there.
# bridgedInterfaces: []

# Networks, or lone addresses, from which disk images may be fetched (`nuee image import NAME URL`) besides public addresses, such as
# [10.0.5.0/24]. Whoever may make disk images, in any namespace, may then have this machine ask there.
# diskImageNetworks: []

# Percent of the disk below the data directory that workloads must leave free (small disks: 2 GiB, at most a fifth). When they
# do not, the one that fills it is ended: a pod is evicted, a Docker container is stopped and kept. 0 lets them fill the disk.
# diskReserve: 5

# Most processes and threads of a Docker container that sets no bound of its own (docker run --pids-limit; -1 there asks for
# none). 0 sets no bound, as Docker does.
# containerPidsLimit: 0

# Offer Docker clients what dockerd has only with its experimental features: docker build --squash.
# dockerExperimental: false

# Registries that may be reached without TLS, besides loopback.
# insecureRegistries: []

# Registries that are asked before Docker Hub for its images, such as http://mirror.example:5000.
# registryMirrors: []

# Keep the objects in an etcd v3 cluster instead of the data directory. All paths name PEM files; certificate and key are for
# clusters that ask for one. An empty cluster is filled; nothing moves from one place to the other by itself. For example
#   {endpoints: ['https://10.0.0.1:2379'], authority: /etc/nuee/etcd-ca.pem, certificate: /etc/nuee/etcd.pem, key: /etc/nuee/etcd.key}
# etcd: null
";

/// Where the image registry listens when nothing else is said.
pub const REGISTRY_DEFAULT: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5000);

/// Largest configuration file that is read. Units: bytes.
const MAX_BYTES: u64 = 256 * 1024;

/// The settings.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Name of this machine in the pool; empty means its host name.
    pub node_name: String,
    /// Where the Kubernetes API listens.
    pub kubernetes_listen: std::net::SocketAddr,
    /// Where the image registry listens; `None`: it is not served.
    pub registry_listen: Option<std::net::SocketAddr>,
    /// The registry speaks HTTPS.
    pub registry_tls: bool,
    /// Where the Docker API for tenants listens; `None`: it is not served.
    pub docker_listen: Option<std::net::SocketAddr>,
    /// Further names and addresses for the API's certificate.
    pub alternative_names: Vec<String>,
    /// Network of pods and of containers without a network of their own.
    pub pod_cidr: String,
    /// Addresses of Services.
    pub service_cidr: String,
    /// First and last port of NodePort Services.
    pub node_ports: (u16, u16),
    /// Domain of the cluster's DNS.
    pub cluster_domain: String,
    /// Name servers for names outside the cluster; empty means the host's.
    pub name_servers: Vec<std::net::IpAddr>,
    /// Addresses that `FloatingIP` objects give.
    pub floating_addresses: Vec<String>,
    /// Addresses that networks of mode `routed` may have.
    pub routed_addresses: Vec<String>,
    /// Interfaces that networks of mode `bridged` may be on.
    pub bridged_interfaces: Vec<String>,
    /// Networks from which disk images may be fetched besides public addresses.
    pub disk_image_networks: Vec<String>,
    /// Part of the disk that workloads must leave free; 0 lets them fill it. Units: percent.
    pub disk_reserve: u8,
    /// Most tasks of a Docker container that sets no bound of its own; 0 means none.
    pub container_pids_limit: u32,
    /// Offer Docker clients what dockerd has with experimental features alone.
    pub docker_experimental: bool,
    /// Registries that may be reached without TLS.
    pub insecure_registries: Vec<String>,
    /// Registries that are asked before Docker Hub for its images.
    pub registry_mirrors: Vec<String>,
    /// The etcd cluster that keeps the objects; `None`: the data directory does.
    pub etcd: Option<Etcd>,
}

/// An etcd cluster.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Etcd {
    /// Client URLs of its members.
    pub endpoints: Vec<String>,
    /// File with the certificate of the authority that signed the members' certificates; needed for `https`.
    #[serde(default)]
    pub authority: Option<std::path::PathBuf>,
    /// File with our certificate, when the members ask for one.
    #[serde(default)]
    pub certificate: Option<std::path::PathBuf>,
    /// File with its key.
    #[serde(default)]
    pub key: Option<std::path::PathBuf>,
    /// Name to expect in the members' certificates, in place of the URL's host.
    #[serde(default)]
    pub server_name: Option<String>,
}

impl Etcd {
    /// Reads the files.
    ///
    /// `Errors:` a file cannot be read; `https` without an authority; a certificate without its key.
    pub fn options(&self) -> Result<store::EtcdOptions> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("etcd: cannot read {}", path.display()));
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            (None, None) => None,
            _ => bail!("etcd: certificate and key go together"),
        };
        let tls = match &self.authority {
            Some(authority) => {
                Some(store::EtcdTls { authority: read(authority)?, identity, server_name: self.server_name.clone() })
            }
            None if identity.is_some() || self.endpoints.iter().any(|url| url.starts_with("https:")) => {
                bail!("etcd: name the authority that signed the certificates of its members")
            }
            None => None,
        };
        Ok(store::EtcdOptions { endpoints: self.endpoints.clone(), tls })
    }
}

impl Default for Config {
    fn default() -> Self {
        let any = std::net::Ipv4Addr::UNSPECIFIED;
        Self {
            node_name: String::new(),
            kubernetes_listen: (any, 6443).into(),
            registry_listen: Some(REGISTRY_DEFAULT),
            registry_tls: false,
            docker_listen: None,
            alternative_names: Vec::new(),
            pod_cidr: "10.88.0.0/16".into(),
            service_cidr: "10.96.0.0/16".into(),
            node_ports: (30000, 32767),
            cluster_domain: "cluster.local".into(),
            name_servers: Vec::new(),
            floating_addresses: Vec::new(),
            routed_addresses: Vec::new(),
            bridged_interfaces: Vec::new(),
            disk_image_networks: Vec::new(),
            disk_reserve: 5,
            container_pids_limit: 0,
            docker_experimental: false,
            insecure_registries: Vec::new(),
            registry_mirrors: Vec::new(),
            etcd: None,
        }
    }
}

impl Config {
    /// Reads the file; writes the commented default first when there is none.
    ///
    /// `Errors:` the file cannot be read, or says something that is no setting.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.exists() {
            fs::write(path, COMMENTED).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let length = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        if length > MAX_BYTES {
            bail!("{} has {length} bytes; at most {MAX_BYTES} are read", path.display());
        }
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let meaningful = text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
        if !meaningful {
            return Ok(Self::default());
        }
        let mut config: Self = serde_saphyr::from_str(text)?;
        if config.node_ports.0 > config.node_ports.1 {
            bail!("nodePorts: the first port is above the last");
        }
        if config.disk_reserve > 50 {
            bail!("diskReserve: at most 50 percent can be kept free");
        }
        config.floating_ranges()?;
        config.disk_image_networks()?;
        config.node_name = config.node_name.to_ascii_lowercase();
        Ok(config)
    }

    /// The pool of floating addresses: first addresses and prefix lengths.
    ///
    /// `Errors:` something is no subnet, or of a network of ours.
    pub fn floating_ranges(&self) -> Result<Vec<(std::net::Ipv4Addr, u8)>> {
        let ours: Vec<network::Subnet> =
            [&self.pod_cidr, &self.service_cidr].iter().filter_map(|text| text.parse().ok()).collect();
        let range = |text: &String| {
            let (address, prefix) = api::security_group::parse_cidr(text)
                .with_context(|| format!("floatingAddresses: {text} is no subnet, and no address"))?;
            let subnet = network::Subnet::containing(address, prefix)?;
            if ours.iter().any(|own| own.overlaps(&subnet)) {
                bail!("floatingAddresses: {text} is of podCidr or serviceCidr");
            }
            Ok((address, prefix))
        };
        self.floating_addresses.iter().map(range).collect()
    }

    /// Networks from which disk images may be fetched: addresses and prefix lengths.
    ///
    /// `Errors:` something is no network.
    pub fn disk_image_networks(&self) -> Result<Vec<(std::net::IpAddr, u8)>> {
        let read = |text: &String| {
            image::web::network(text)
                .with_context(|| format!("diskImageNetworks: {text} is no network, and no address"))
        };
        self.disk_image_networks.iter().map(read).collect()
    }

    /// The machine's name in the pool: the one set, or the host name as a DNS name.
    pub fn node_name(&self) -> Result<String> {
        if !self.node_name.is_empty() {
            return Ok(self.node_name.clone());
        }
        let host = nix::unistd::gethostname().context("cannot read the host name")?;
        let mut name: String = host
            .to_string_lossy()
            .to_ascii_lowercase()
            .chars()
            .map(|letter| if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' })
            .collect();
        name = name.trim_matches(['-', '.']).to_owned();
        Ok(if name.is_empty() { "localhost".into() } else { name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commented_file_says_the_defaults() -> Result<()> {
        assert_eq!(Config::parse(COMMENTED)?, Config::default());
        let uncommented: String = COMMENTED
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|rest| {
                        rest.split(' ')
                            .next()
                            .is_some_and(|word| word.ends_with(':') && !word.starts_with(char::is_uppercase))
                    })
                    .unwrap_or("# ")
            })
            .collect::<Vec<_>>()
            .join("\n");
        let mut parsed = Config::parse(&uncommented)?;
        assert_eq!(parsed.node_name, "server-1");
        parsed.node_name.clear();
        assert_eq!(parsed, Config::default());
        Ok(())
    }

    #[test]
    fn an_etcd_is_reached_in_the_clear_only_when_its_url_says_so() -> Result<()> {
        let etcd = |text: &str| -> Result<store::EtcdOptions> {
            Config::parse(&format!("etcd: {text}"))?.etcd.context("no etcd")?.options()
        };
        assert!(etcd("{endpoints: ['http://127.0.0.1:2379']}")?.tls.is_none());
        assert!(etcd("{endpoints: ['https://127.0.0.1:2379']}").is_err());
        assert!(etcd("{endpoints: ['http://127.0.0.1:2379'], key: /dev/null}").is_err());
        assert!(etcd("{endpoints: ['https://127.0.0.1:2379'], authority: /dev/null}")?.tls.is_some());
        Ok(())
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        assert!(Config::parse("podcidr: 10.0.0.0/8").is_err());
        assert!(Config::parse("nodePorts: [5, 4]").is_err());
        assert!(Config::parse("etcd: {endpoint: x}").is_err());
        assert!(Config::parse("diskImageNetworks: [10.0.0.0/33]").is_err());
        assert!(Config::parse("floatingAddresses: [10.88.3.0/24]").is_err());
        assert!(Config::parse("floatingAddresses: [192.0.2.1/24]").is_err());
        assert!(Config::parse("floatingAddresses: [192.0.2.0/24, 198.51.100.7]").is_ok());
    }
}
