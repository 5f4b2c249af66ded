//! What the containers of a pod share: the network namespace with its address, IPC and UTS namespaces, /dev/shm, the
//! files under /etc. Namespaces are pinned by mounts; only one of processes needs a process ([`super::pause`]).

use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use network::AttachRequest;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::container::start::leave_network;
use crate::context::{Context, Key};
use crate::error::{Error, Result};
use crate::files::{self, Resolver};
use crate::launch::Namespace;
use crate::{ports, security};

/// Size of a pod's /dev/shm. Source: containerd `defaultShmSize`.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";
/// Longest host name of Linux. Source: sethostname(2), HOST_NAME_MAX.
const HOSTNAME_LENGTH: usize = 63;

/// A pod's shared parts.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Address; that of the machine for pods on the host's network.
    pub address: Ipv4Addr,
    /// Network namespace.
    pub network: Namespace,
    /// IPC namespace.
    pub ipc: Namespace,
    /// UTS namespace.
    pub uts: Namespace,
    /// Directory of shared files.
    pub directory: PathBuf,
    /// Host name.
    pub hostname: String,
}

/// The pod's host name.
pub fn hostname(pod: &Pod, spec: &PodSpec) -> String {
    if spec.host_network == Some(true) && spec.hostname.is_none() {
        return crate::machine::hostname();
    }
    let name = spec.hostname.clone().or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    name.chars().take(HOSTNAME_LENGTH).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

fn published(spec: &PodSpec) -> Vec<network::PortMapping> {
    let ports = spec.init_containers.iter().flatten().chain(&spec.containers).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(network::PortMapping {
                host_address: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: u16::try_from(port.host_port?).ok().filter(|p| *p > 0)?,
                host_port_end: 0,
                target_port: u16::try_from(port.container_port).ok()?,
                protocol: port.protocol.as_deref().unwrap_or("TCP").parse().ok()?,
            })
        })
        .collect()
}

/// Makes the sandbox, or finds the one that is there: every step may be repeated.
pub async fn ensure(context: &Context, pod: &Pod, uid: &str) -> Result<Sandbox> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let directory = context.pod_dir(uid);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(&directory)
        .map_err(Error::io("create", &directory))?;
    let host_network = spec.host_network == Some(true);
    let hostname = hostname(pod, spec);
    let (network, address) = if host_network {
        (Namespace::Host, context.host_address)
    } else {
        let namespace = context.fabric.create_namespace(uid).await?;
        let place = place(context, pod, uid, &namespace).await?;
        let ports = published(spec);
        if !ports.is_empty() {
            context.fabric.publish(uid, place.address, ports).await?;
        }
        (Namespace::Path(namespace), place.address)
    };
    let own_ipc = spec.host_ipc != Some(true);
    let (pins, name) = (directory.join("ns"), (!host_network).then(|| hostname.clone()));
    tokio::task::spawn_blocking({
        let pins = pins.clone();
        let shm = directory.join("shm");
        move || {
            if own_ipc {
                make_shm(&shm)?;
            }
            pin_namespaces(&pins, name.as_deref())
        }
    })
    .await
    .map_err(|error| Error::Invalid(error.to_string()))??;
    write_files(context, pod, spec, &directory, &hostname, address)?;
    Ok(Sandbox {
        address,
        network,
        ipc: if own_ipc { Namespace::Path(pins.join("ipc")) } else { Namespace::Host },
        uts: if host_network { Namespace::Host } else { Namespace::Path(pins.join("uts")) },
        directory,
        hostname,
    })
}

/// The pod's place on the network of pods: that of the port that it names, or any.
async fn place(context: &Context, pod: &Pod, uid: &str, namespace: &Path) -> Result<network::Attachment> {
    let key = Key::of(pod);
    let annotation = |name: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(name));
    let request = AttachRequest {
        owner: uid.to_owned(),
        namespace: namespace.to_owned(),
        network: network::DEFAULT_NETWORK.to_owned(),
        interface: "eth0".to_owned(),
        groups: security::of_label(&key.namespace, annotation(security::LABEL)),
        ..AttachRequest::default()
    };
    let Some(held) = ports::of_label(context, &key, annotation(api::port::LABEL), uid).await? else {
        return Ok(context.fabric.attach(request).await?);
    };
    if held.network != api::names::DEFAULT_NETWORK {
        let text = format!("port {} is on network {}, and pods are on the default one", held.name, held.network);
        return Err(Error::Invalid(text));
    }
    let groups = security::ids(&key.namespace, &held.groups);
    let network = context.networks.default_network();
    ports::attach(context, &network, &held, AttachRequest { groups, ..request }).await
}

fn is_mount(path: &Path) -> bool {
    let (Ok(own), Some(parent)) = (std::fs::metadata(path), path.parent()) else { return false };
    std::fs::metadata(parent)
        .is_ok_and(|p| std::os::linux::fs::MetadataExt::st_dev(&p) != std::os::linux::fs::MetadataExt::st_dev(&own))
}

fn make_shm(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::io("create", path))?;
    if !is_mount(path) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), path, Some("tmpfs"), flags, Some(SHM_OPTIONS))
            .map_err(|e| Error::io("mount", path)(e.into()))?;
    }
    Ok(())
}

/// Makes IPC and UTS namespaces from a thread of its own, which ends; the mounts keep them.
fn pin_namespaces(directory: &Path, hostname: Option<&str>) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    if is_mount(&directory.join("ipc")) {
        return Ok(());
    }
    let (directory, hostname) = (directory.to_owned(), hostname.map(str::to_owned));
    let work = move || -> Result<()> {
        let mut flags = CloneFlags::CLONE_NEWIPC;
        if hostname.is_some() {
            flags |= CloneFlags::CLONE_NEWUTS;
        }
        unshare(flags).map_err(|e| Error::io("unshare for", &directory)(e.into()))?;
        if let Some(name) = &hostname {
            nix::unistd::sethostname(name).map_err(|e| Error::io("set the host name for", &directory)(e.into()))?;
        }
        for (kind, wanted) in [("ipc", true), ("uts", hostname.is_some())] {
            if wanted {
                let pin = directory.join(kind);
                std::fs::File::create(&pin).map_err(Error::io("create", &pin))?;
                let source = format!("/proc/thread-self/ns/{kind}");
                mount(Some(source.as_str()), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .map_err(|e| Error::io("pin", &pin)(e.into()))?;
            }
        }
        Ok(())
    };
    let thread = std::thread::Builder::new()
        .name("pin-namespaces".into())
        .spawn(work)
        .map_err(Error::io("start a thread for", "namespaces"))?;
    thread.join().unwrap_or_else(|_| Err(Error::Invalid("the thread that pins namespaces failed".into())))
}

fn write_files(
    context: &Context,
    pod: &Pod,
    spec: &PodSpec,
    directory: &Path,
    hostname: &str,
    address: Ipv4Addr,
) -> Result<()> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        // Rewriting a file that containers have mounted must keep its inode.
        std::fs::write(&path, text).map_err(Error::io("write", &path))
    };
    let mut names = Vec::new();
    if let Some(subdomain) = spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
        names.push(format!("{hostname}.{subdomain}.{namespace}.svc.{}", context.cluster_domain));
    }
    names.push(hostname.to_owned());
    let mut entries = vec![(address.to_string(), names)];
    entries.extend(spec.host_aliases.iter().flatten().map(|a| (a.ip.clone(), a.hostnames.clone().unwrap_or_default())));
    let host = spec.host_network == Some(true) && spec.host_aliases.is_none();
    let hosts = if host { std::fs::read_to_string("/etc/hosts").unwrap_or_default() } else { files::hosts(&entries) };
    write("hosts", &hosts)?;
    write("hostname", &format!("{hostname}\n"))?;
    write("resolv.conf", &resolver(context, spec, namespace).text())
}

/// Resolver settings. Source: Kubernetes, "Pod's DNS Policy" and "Pod's DNS Config".
fn resolver(context: &Context, spec: &PodSpec, namespace: &str) -> Resolver {
    let host_network = spec.host_network == Some(true);
    let host = Resolver::of_host(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), host_network);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !host_network);
    let mut resolver = match policy {
        "None" => Resolver::default(),
        _ if cluster => {
            let domain = &context.cluster_domain;
            let server = context.cluster_dns.unwrap_or_else(|| context.networks.default_network().gateway);
            let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            searches.extend(host.searches);
            Resolver { servers: vec![server.to_string()], searches, options: vec!["ndots:5".to_owned()] }
        }
        _ => host,
    };
    if let Some(config) = &spec.dns_config {
        resolver.servers.extend(config.nameservers.iter().flatten().cloned());
        resolver.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            resolver.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            resolver.options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    resolver
}

/// Takes the sandbox away: processes and network first, then directory with its mounts.
pub async fn remove(context: &Context, uid: &str) {
    super::pause::remove(context, uid).await;
    leave_network(context, uid).await;
    remove_directory(context, uid).await;
}

/// Unmounts everything below a pod's directory and removes it.
pub async fn remove_directory(context: &Context, uid: &str) {
    let directory = context.pod_dir(uid);
    let removed = tokio::task::spawn_blocking(move || crate::directories::remove_with_mounts(&directory));
    if let Ok(Err(error)) = removed.await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(uid, %error, "cannot remove the pod's directory");
    }
}
