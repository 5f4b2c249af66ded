//! The machine's hands: runtime, images, network.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};

use super::places;
use crate::config::Config;
use crate::instance::Instance;

/// All hands, open.
pub struct Hands {
    /// Runs containers.
    pub runtime: runtime::Runtime,
    /// Holds images.
    pub images: Arc<image::ImageStore>,
    /// Connects workloads.
    pub fabric: Arc<network::Fabric>,
}

impl Hands {
    /// Opens them side by side. Registries that show a certificate of our own authority, as ours may, are trusted.
    pub async fn open(instance: &Instance, config: &Config, authority: &str) -> Result<Self> {
        let runtime = open_runtime(instance)?;
        let images_directory = instance.path("images");
        let images_options = image::StoreOptions {
            plain_http: config.insecure_registries.clone(),
            mirrors: config.registry_mirrors.clone(),
            authorities: vec![authority.to_owned()],
            ..image::StoreOptions::default()
        };
        let (images, fabric) = tokio::try_join!(
            async {
                let open = move || image::ImageStore::open_with(&images_directory, images_options);
                let opened = tokio::task::spawn_blocking(open).await?;
                opened.context("the image store cannot be opened")
            },
            open_fabric(instance, config),
        )?;
        Ok(Self { runtime, images, fabric })
    }

    /// What the agent is given, the hands among it.
    pub fn agent_options(
        self,
        instance: &Instance,
        config: &Config,
        node_name: &str,
        client: kube::Client,
        cluster_ca: &str,
    ) -> Result<agent::AgentOptions> {
        Ok(agent::AgentOptions {
            data_dir: instance.directory().to_owned(),
            node_name: node_name.into(),
            host_address: None,
            client,
            runtime: self.runtime,
            images: self.images,
            fabric: self.fabric,
            default_subnet: Some(cidr(&config.pod_cidr, "podCidr")?),
            cluster_domain: config.cluster_domain.clone(),
            cluster_dns: None,
            cluster_ca: cluster_ca.into(),
            labels: BTreeMap::new(),
            launcher: own_program()?,
            cgroup_root: format!("/nuee-{}", instance.id()),
            version: env!("CARGO_PKG_VERSION").into(),
            api_port: config.kubernetes_listen.port(),
            disk_reserve_percent: config.disk_reserve,
            container_pids_limit: config.container_pids_limit.into(),
            image_reach: image::web::Reach { nearest: image::web::Class::Public, also: config.disk_image_networks()? },
            pod_range: own_half(&config.pod_cidr)?,
            outside: agent::Outside {
                routed: config
                    .routed_addresses
                    .iter()
                    .map(|text| cidr(text, "routedAddresses"))
                    .collect::<Result<_>>()?,
                interfaces: config.bridged_interfaces.clone(),
            },
            is_member: false,
            origin: None,
            peers: None,
        })
    }
}

/// The part of the pods' network that the first machine gives addresses from.
fn own_half(pod_cidr: &str) -> Result<Option<network::Subnet>> {
    let half = pod_cidr.parse().ok().and_then(api::share::first);
    half.map(|half| cidr(&half.to_string(), "podCidr")).transpose()
}

/// Reads a setting that names a network.
pub fn cidr(text: &str, setting: &str) -> Result<network::Subnet> {
    text.parse().map_err(|error| anyhow!("{setting} in config.yaml: {error}"))
}

/// Opens the runtime alone.
pub fn open_runtime(instance: &Instance) -> Result<runtime::Runtime> {
    let options = runtime::RuntimeOptions {
        containers_dir: instance.path("containers"),
        run_dir: instance.path("run/oci"),
        shim_program: own_program()?,
        cgroup_root: format!("/nuee-{}", instance.id()),
        oci_runtime: runtime::OciRuntimeChoice::Auto,
        crowds: places::crowds(instance),
    };
    runtime::Runtime::open(options)
        .context("the container runtime cannot be opened; `nuee doctor` says what is missing")
}

/// Opens the network alone.
pub async fn open_fabric(instance: &Instance, config: &Config) -> Result<Arc<network::Fabric>> {
    let mut options = network::FabricOptions::new(instance.directory(), instance.id());
    options.service_cidr = cidr(&config.service_cidr, "serviceCidr")?;
    options.unmasqueraded = vec![cidr(&config.pod_cidr, "podCidr")?];
    options.node_ports = config.node_ports.0..=config.node_ports.1;
    network::Fabric::open(options).await.context("the network cannot be opened")
}

/// This program's file, by which shims are started. It is opened anew for each shim, so an upgrade in place takes effect.
pub fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}
