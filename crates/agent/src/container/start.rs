//! One start of a container: image, network, mounts, files, process. And the end of a run: everything of it is given back.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::container::{Container, ContainerSpec, NetworkAttachment, NetworkEndpoint, PortMapping};
use api::names::DEFAULT_NETWORK;
use network::AttachRequest;
use runtime::{ContainerConfig, LogConfig};
use tokio_util::sync::CancellationToken;

use super::Handle;
use super::init;
use super::journal;
use super::links::{self, Linked};
use super::log_options;
use super::mounts::{self, Mounts};
use super::publication;
use super::secrets;
use super::shared_memory;
use super::spec::{self, Findings};
use crate::context::{Context, Key};
use crate::error::{Error, Result};
use crate::excerpt;
use crate::files::{self, Resolver};
use crate::hands;
use crate::launch::{MountPoint, Namespace};
use crate::ports::{self, Held};
use crate::security;

/// Name of the log file in a container's directory.
pub const LOG_FILE: &str = "container.log";
/// Most of another container's host name that is read. Source: `HOST_NAME_MAX` is 64. Units: bytes.
const HOSTNAME_FILE_BYTES: u64 = 256;
/// Where the machine's resolver settings are.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";
/// Docker's words around what the OCI runtime says.
const START_PREFIX: &str = "failed to create task for container: failed to create shim task: OCI runtime create failed: \
    runc create failed: unable to start container process: ";
const START_SUFFIX: &str = ": unknown";
/// Files of a container's directory that it sees under /etc.
const ETC_FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// What a start gave.
#[derive(Debug, Default)]
pub struct Running {
    /// Process id on the machine.
    pub pid: u32,
    /// Places on networks.
    pub networks: BTreeMap<String, NetworkAttachment>,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// Where volumes lie.
    pub volume_paths: BTreeMap<String, String>,
}

/// The network side of a start.
#[derive(Debug, Default)]
pub struct Connected {
    /// Namespace for the process.
    pub namespace: Namespace,
    /// Places by network name.
    pub networks: BTreeMap<String, NetworkAttachment>,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// Name server that knows the names of user networks.
    pub name_server: Option<Ipv4Addr>,
    /// Gateway of the first network.
    pub gateway: Option<Ipv4Addr>,
}

/// Makes everything ready and starts the process, unless it was given up meanwhile.
pub async fn start(
    context: &Arc<Context>,
    object: &Container,
    id: &str,
    handle: &Handle,
    given_up: &CancellationToken,
) -> Result<Running> {
    let (spec, namespace) = (&object.spec, object.metadata.namespace.as_deref().unwrap_or_default());
    log_options::check(spec, id, &crate::machine::hostname())?;
    let directory = context.container_dir(id);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(Error::io("create", &directory))?;
    // Each is waited for, also when another failed: what one of them mounts must be there when the failed start is cleared.
    let (prepared, connected, mounts, files) = tokio::join!(
        async {
            context.images.prepare_marked(id, &spec.image_id, given_up).await?;
            Ok::<_, Error>(match spec.auto_remove {
                true => context.images.mount_scratch(id, &spec.image_id).await?,
                false => context.images.mount(id, &spec.image_id).await?,
            })
        },
        connect(context, object, id),
        mounts::resolve(context, namespace, id, spec),
        secrets::files(context, namespace, &directory, spec),
    );
    // Nothing is to be written or run that was told to have failed.
    let go_on = || if given_up.is_cancelled() { Err(Error::Timeout("the start")) } else { Ok(()) };
    go_on()?;
    let (rootfs, connected, mounts, files) = (prepared?.rootfs, connected?, mounts?, files?);
    let shared = shared_files(context, &spec.network_mode);
    let hostname = match &shared {
        Some(directory) => shared_hostname(directory.join("hostname")).await,
        None => hostname(spec, id),
    };
    let linked = links::resolve(context, namespace, spec).await?;
    let mut points = match &shared {
        Some(other) => ETC_FILES.map(|(name, target)| mounts::file(&other.join(name), target)).to_vec(),
        None => etc_files(spec, &hostname, &connected, &linked, &directory)?,
    };
    let Mounts { points: wanted, copies, volume_paths } = mounts;
    points.retain(|p| !wanted.iter().any(|w| w.target == p.target));
    points.extend(wanted);
    points.extend(files);
    let mut init_command = Vec::new();
    if spec.init {
        let program = init::program(&["init", "--"])?;
        points.extend(program.mounts);
        init_command = program.command;
    }
    let user = spec.user.clone();
    let (root, user) = tokio::task::spawn_blocking(move || {
        mounts::copy_up(&rootfs, &copies)?;
        let user = hands::find_user(&rootfs, &user)?;
        Ok::<_, Error>((rootfs, user))
    })
    .await
    .map_err(|error| Error::Invalid(error.to_string()))??;
    let (devices, device_rates) = spec::named_devices(spec).await?;
    let findings = Findings {
        rootfs: root,
        user,
        network: connected.namespace.clone(),
        pid: joined(context, namespace, &spec.security.pid_mode, "pid").await?,
        ipc: joined(context, namespace, &spec.security.ipc_mode, "ipc").await?,
        shared_memory: shared_memory(context, spec, &directory)?,
        mounts: points,
        devices,
        hostname,
        init_command,
        link_environment: linked.environment,
        device_rates,
    };
    let launch = spec::launch(spec, findings, context.container_pids_limit)?;
    let config = ContainerConfig {
        cgroup_parent: (!spec.resources.cgroup_parent.is_empty()).then(|| spec.resources.cgroup_parent.clone()),
        id: id.to_owned(),
        bundle_dir: directory.clone(),
        spec: launch.specification(&context.machine)?,
        terminal: spec.terminal,
        open_stdin: spec.open_stdin,
        stdin_once: spec.stdin_once,
        log: LogConfig { journal: journal::config(spec, id)?, ..log_config(spec, &directory) },
    };
    go_on()?;
    let pid = context.runtime.create(config).await.map_err(cannot_start)?;
    go_on()?;
    publication::carry(context, id).await?;
    handle.connect_waiting(context, id).await;
    context.runtime.start(id).await.map_err(cannot_start)?;
    Ok(Running { pid, networks: connected.networks, ports: connected.ports, volume_paths })
}

fn cannot_start(error: runtime::Error) -> Error {
    match error {
        runtime::Error::CannotStart { code, message } => {
            // Docker's words come from Go, which writes the kernel's errors in small letters; clients look for them.
            let message = message
                .replace("No such file or directory", "no such file or directory")
                .replace("Permission denied", "permission denied")
                .replace("Not a directory", "not a directory");
            Error::CannotStart { code, message: format!("{START_PREFIX}{message}{START_SUFFIX}") }
        }
        other => other.into(),
    }
}

/// Directory of the container whose network this one shares: names and name servers belong to the network.
pub fn shared_files(context: &Context, network_mode: &str) -> Option<PathBuf> {
    let directory = context.container_dir(network_mode.strip_prefix("container:")?);
    ETC_FILES.iter().all(|(name, _)| directory.join(name).is_file()).then_some(directory)
}

/// The name in a file that the other container can write to, too.
async fn shared_hostname(file: PathBuf) -> String {
    let read = tokio::task::spawn_blocking(move || excerpt::beginning(&file, HOSTNAME_FILE_BYTES)).await;
    let bytes = read.ok().and_then(std::io::Result::ok).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().trim().to_owned()
}

fn hostname(spec: &ContainerSpec, id: &str) -> String {
    if !spec.hostname.is_empty() {
        return spec.hostname.clone();
    }
    if spec.network_mode == "host" || spec.security.uts_mode == "host" {
        return crate::machine::hostname();
    }
    id.chars().take(12).collect()
}

fn log_config(spec: &ContainerSpec, directory: &Path) -> LogConfig {
    let mut log = LogConfig::bounded(directory.join(LOG_FILE));
    if let Ok(size @ 1..) = u64::try_from(spec.log_max_size_bytes) {
        log.max_size_bytes = size;
    }
    if let Ok(files @ 1..) = u32::try_from(spec.log_max_files) {
        log.max_files = files;
    }
    log
}

/// Where the memory lies that goes with a shared IPC namespace.
fn shared_memory(context: &Context, spec: &ContainerSpec, directory: &Path) -> Result<Option<PathBuf>> {
    match spec.security.ipc_mode.split_once(':') {
        Some(("container", other)) => Ok(Some(shared_memory::path(&context.container_dir(other)))),
        _ if spec.security.ipc_mode == "shareable" => shared_memory::offer(directory, spec.shm_size_bytes).map(Some),
        _ => Ok(None),
    }
}

/// `host`, `container:<id>`, or a namespace of its own.
async fn joined(context: &Context, namespace: &str, mode: &str, kind: &str) -> Result<Namespace> {
    match mode.split_once(':') {
        Some(("container", other)) => {
            Ok(Namespace::Path(format!("/proc/{}/ns/{kind}", pid_of(context, namespace, other).await?).into()))
        }
        _ if mode == "host" => Ok(Namespace::Host),
        _ => Ok(Namespace::Private),
    }
}

/// The process of a container of the same namespace: ids of others can be reckoned from their names.
async fn pid_of(context: &Context, namespace: &str, id: &str) -> Result<u32> {
    if !context.is_neighbour(namespace, id) {
        return Err(Error::Invalid(format!("No such container: {id}")));
    }
    let state = context.runtime.state(id).await.ok().filter(|s| s.pid > 0 && s.exit.is_none());
    state.map(|s| s.pid).ok_or_else(|| Error::Invalid(format!("cannot join network of a non running container: {id}")))
}

/// Puts the container on its networks and publishes its ports.
async fn connect(context: &Context, object: &Container, id: &str) -> Result<Connected> {
    let (spec, namespace) = (&object.spec, object.metadata.namespace.as_deref().unwrap_or_default());
    let port = port_of(context, object).await?;
    if let Some(held) = &port
        && !is_on(held, &wanted_networks(spec))?
    {
        let text = format!("port {} is on network {}, and the container is not", held.name, held.network);
        return Err(Error::Invalid(text));
    }
    match spec.network_mode.as_str() {
        "host" => return Ok(Connected { namespace: Namespace::Host, ..Connected::default() }),
        "none" => return Ok(Connected::default()),
        mode => {
            if let Some(other) = mode.strip_prefix("container:") {
                let path = format!("/proc/{}/ns/net", pid_of(context, namespace, other).await?).into();
                return Ok(Connected { namespace: Namespace::Path(path), ..Connected::default() });
            }
        }
    }
    let path = context.fabric.create_namespace(id).await?;
    let mut connected = Connected { namespace: Namespace::Path(path.clone()), ..Connected::default() };
    for (index, (name, endpoint)) in wanted_networks(spec).into_iter().enumerate() {
        let place =
            join_network(context, namespace, id, spec, &path, &name, &endpoint, port.as_ref(), index > 0).await?;
        if index == 0 {
            connected.gateway = place.0.gateway.parse().ok();
            connected.ports = publication::publish(context, id, &place.0, spec).await?;
        }
        connected.name_server = connected.name_server.or(place.1);
        connected.networks.insert(name, place.0);
    }
    Ok(connected)
}

/// The port that a container is on, if its label names one.
async fn port_of(context: &Context, object: &Container) -> Result<Option<Held>> {
    let (key, uid) = (Key::of(object), object.metadata.uid.clone().unwrap_or_default());
    ports::of_label(context, &key, object.spec.labels.get(api::port::LABEL), &uid).await
}

/// Whether one of these networks is the port's.
///
/// Errors: an address is asked for there, which the port says.
pub fn is_on(held: &Held, networks: &[(String, NetworkEndpoint)]) -> Result<bool> {
    match networks.iter().find(|(name, _)| *name == held.network) {
        None => Ok(false),
        Some((_, one)) if one.ipv4_address.is_empty() && one.mac_address.is_empty() => Ok(true),
        Some((name, _)) => {
            let text = format!("port {} says the addresses on network {name}; none can be asked for", held.name);
            Err(Error::Invalid(text))
        }
    }
}

/// Networks in the order of interfaces: the one that the mode names comes first.
pub fn wanted_networks(spec: &ContainerSpec) -> Vec<(String, NetworkEndpoint)> {
    let mode = match spec.network_mode.as_str() {
        "" | "default" => DEFAULT_NETWORK,
        other => other,
    };
    if matches!(mode, "host" | "none") || mode.starts_with("container:") {
        return Vec::new();
    }
    let mut list: Vec<_> = spec.networks.iter().map(|(n, e)| (n.clone(), e.clone())).collect();
    if list.is_empty() {
        list.push((mode.to_owned(), NetworkEndpoint::default()));
    }
    list.sort_by_key(|(name, _)| name != mode);
    list
}

/// Joins one network; gives the place, and the name server if the network has names.
#[allow(clippy::too_many_arguments)] // One call site each way; a struct would only rename the arguments.
pub async fn join_network(
    context: &Context,
    namespace: &str,
    id: &str,
    spec: &ContainerSpec,
    netns: &Path,
    name: &str,
    endpoint: &NetworkEndpoint,
    port: Option<&Held>,
    further: bool,
) -> Result<(NetworkAttachment, Option<Ipv4Addr>)> {
    let key = Key { namespace: namespace.to_owned(), name: name.to_owned() };
    let network = context.networks.ensure(&context.client, &context.directory, &key).await?;
    let invalid = |family: &str, text: &str| Error::Invalid(format!("invalid {family} address: {text}"));
    let (four, six) = (&endpoint.ipv4_address, &endpoint.ipv6_address);
    let request = AttachRequest {
        owner: id.to_owned(),
        namespace: netns.to_owned(),
        network: network.id.clone(),
        interface: String::new(),
        address: (!four.is_empty()).then(|| four.parse()).transpose().map_err(|_| invalid("IPv4", four))?,
        // A network without IPv6 may have a subnet of it for show; a wish for an address of that is no error to Docker.
        address6: (!six.is_empty() && network.ipv6.is_some())
            .then(|| six.parse())
            .transpose()
            .map_err(|_| invalid("IPv6", six))?,
        mac: (!endpoint.mac_address.is_empty()).then(|| endpoint.mac_address.parse()).transpose()?,
        without_default_route: further,
        tap: false,
        groups: security::of_label(namespace, spec.labels.get(security::LABEL)),
        port: None,
    };
    let attached = match port.filter(|held| held.network == name) {
        Some(held) => {
            ports::check_reach(context, &network, name)?;
            let groups = security::ids(namespace, &held.groups);
            ports::attach(context, &network, held, AttachRequest { groups, ..request }).await?
        }
        None => context.networks.attach(&network, request, false).await?,
    };
    // A subnet may have come in between.
    let network = context.networks.current(&network);
    let named = network.id != network::DEFAULT_NETWORK;
    let mut names = vec![spec.name.clone(), id.chars().take(12).collect()];
    names.extend(endpoint.aliases.iter().cloned());
    if !spec.hostname.is_empty() {
        names.push(spec.hostname.clone());
    }
    names.retain(|n| !n.is_empty());
    if named {
        let addresses =
            std::iter::once(IpAddr::V4(attached.address)).chain(attached.ipv6.map(|six| six.address.into()));
        context.directory.choose(id, &spec.dns, netns);
        context.directory.join(&network, name, id, addresses.collect(), names.clone(), links(endpoint));
    }
    let place = NetworkAttachment {
        ip: attached.address.to_string(),
        prefix_length: attached.prefix,
        gateway: attached.gateway.to_string(),
        ipv6: attached.ipv6.map(|six| six.address.to_string()).unwrap_or_default(),
        ipv6_prefix_length: attached.ipv6.map_or(0, |six| six.prefix),
        ipv6_gateway: attached.ipv6.map(|six| six.gateway.to_string()).unwrap_or_default(),
        mac: attached.mac.to_string(),
        aliases: if named { names } else { endpoint.aliases.clone() },
        interface: attached.interface,
    };
    Ok((place, named.then_some(attached.gateway)))
}

/// Names of others with what the container calls them.
pub fn links(endpoint: &NetworkEndpoint) -> Vec<(String, String)> {
    let pairs = endpoint.links.iter().filter_map(|link| link.split_once(':'));
    pairs.map(|(other, alias)| (other.to_owned(), alias.to_owned())).collect()
}

fn etc_files(
    spec: &ContainerSpec,
    hostname: &str,
    connected: &Connected,
    linked: &Linked,
    directory: &Path,
) -> Result<Vec<MountPoint>> {
    let host_network = connected.namespace == Namespace::Host;
    let gateway = connected.gateway.map(|g| g.to_string()).unwrap_or_default();
    let mut entries: Vec<_> = spec.extra_hosts.iter().filter_map(|h| files::extra_host(h, &gateway)).collect();
    let own = files::own_names(hostname, &spec.domainname);
    entries.extend(linked.hosts.iter().cloned());
    let addresses = |place: &NetworkAttachment| [place.ip.clone(), place.ipv6.clone()];
    let addresses = connected.networks.values().flat_map(addresses).filter(|address| !address.is_empty());
    entries.extend(addresses.map(|address| (address, own.clone())));
    let hosts = if host_network && spec.extra_hosts.is_empty() {
        std::fs::read_to_string("/etc/hosts").unwrap_or_else(|_| files::hosts(&[]))
    } else {
        files::hosts(&entries)
    };
    let host = std::fs::read_to_string(HOST_RESOLV_CONF).unwrap_or_default();
    let mut resolver = Resolver::of_host(&host, host_network);
    if let Some(server) = connected.name_server {
        resolver.servers = vec![server.to_string()];
    }
    // Names of user networks only our own server knows, so it stays in front of the user's servers.
    if !spec.dns.is_empty() && connected.name_server.is_none() {
        resolver.servers = spec.dns.clone();
    }
    if !spec.dns_search.is_empty() {
        resolver.searches = spec.dns_search.clone();
    }
    if !spec.dns_options.is_empty() {
        resolver.options = spec.dns_options.clone();
    }
    Ok(vec![
        mounts::own_file(directory, "hosts", "/etc/hosts", &hosts)?,
        mounts::own_file(directory, "hostname", "/etc/hostname", &format!("{hostname}\n"))?,
        mounts::own_file(directory, "resolv.conf", "/etc/resolv.conf", &resolver.text())?,
    ])
}

/// Gives back what belongs to one run. Goes on after failures: whatever is left is found by the next start or by the
/// collector.
pub async fn end_run(context: &Context, id: &str) {
    let process = async {
        if let Err(error) = context.runtime.delete(id).await {
            tracing::warn!(id, error = %crate::error::chain(&error), "cannot clear the process");
        }
    };
    let files = async {
        // The file system goes only after its last user.
        if let Err(error) = context.images.unmount(id).await {
            tracing::warn!(id, error = %crate::error::chain(&error), "cannot unmount the root file system");
        }
        let directory = context.container_dir(id);
        let _ = tokio::task::spawn_blocking(move || secrets::forget(&directory)).await;
        withdraw_memory(context, id).await;
        mounts::release(context, id).await;
    };
    // Who carries to its address ends with the process' shim, which may hang: until then the address must not be another's.
    match context.fabric.publication(id).await.unwrap_or_default().is_some_and(|one| one.carried6) {
        true => {
            process.await;
            tokio::join!(files, leave_network(context, id));
        }
        false => {
            let all = async {
                process.await;
                files.await;
            };
            tokio::join!(all, leave_network(context, id));
        }
    }
}

/// Takes an owner off all networks.
pub async fn leave_network(context: &Context, owner: &str) {
    context.directory.leave(owner, None);
    for result in [context.fabric.release(owner).await, context.fabric.remove_namespace(owner).await] {
        if let Err(error) = result {
            tracing::warn!(owner, error = %crate::error::chain(&error), "cannot leave the network");
        }
    }
}

async fn withdraw_memory(context: &Context, id: &str) {
    let directory = context.container_dir(id);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || shared_memory::withdraw(&directory)).await {
        tracing::warn!(id, error = %crate::error::chain(&error), "cannot take away the shared memory");
    }
}

/// Takes away everything that a container has on this machine.
pub async fn remove(context: &Context, id: &str) {
    // Copying files mounts what does not run.
    if let Err(error) = context.images.unmount(id).await {
        tracing::debug!(id, error = %crate::error::chain(&error), "was not mounted");
    }
    if let Err(error) = context.images.remove(id).await {
        tracing::warn!(id, error = %crate::error::chain(&error), "cannot remove the writable layer");
    }
    withdraw_memory(context, id).await;
    mounts::release(context, id).await;
    let directory = context.container_dir(id);
    let removed = tokio::task::spawn_blocking(move || crate::directories::remove_with_mounts(&directory)).await;
    if let Ok(Err(error)) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(id, %error, "cannot remove the container's directory");
    }
}

/// Path of the namespace that a running container's network is in.
pub fn netns_path(context: &Context, id: &str) -> PathBuf {
    context.fabric.namespace_path(id)
}

/// Unused parts of the map of a wish; kept apart so that live changes of networks can be computed.
pub fn network_changes(
    spec: &ContainerSpec,
    now: &BTreeMap<String, NetworkAttachment>,
) -> (Vec<(String, NetworkEndpoint)>, Vec<String>) {
    let wanted: HashMap<_, _> = wanted_networks(spec).into_iter().collect();
    let gone = now.keys().filter(|n| !wanted.contains_key(*n)).cloned().collect();
    let mut new: Vec<_> = wanted.into_iter().filter(|(n, _)| !now.contains_key(n)).collect();
    new.sort_by(|a, b| a.0.cmp(&b.0));
    (new, gone)
}

/// The network on which an owner has an address: the one that it is on, whatever its name means now. Pure.
pub fn network_behind<'a>(attachments: &'a [network::Attachment], owner: &str, address: &str) -> Option<&'a str> {
    let address: Ipv4Addr = address.parse().ok()?;
    let found = attachments.iter().find(|one| one.owner == owner && one.address == address);
    found.map(|one| one.network.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_leaves_the_network_that_it_is_on() {
        let attachment = |owner: &str, network: &str, last: u8| {
            let address = Ipv4Addr::new(10, 90, 0, last);
            network::Attachment {
                owner: owner.into(),
                network: network.into(),
                namespace: "/ns".into(),
                interface: "eth0".into(),
                host_interface: "nuv0".into(),
                address,
                prefix: 24,
                gateway: Ipv4Addr::new(10, 90, 0, 1),
                ipv6: None,
                mac: network::Mac::from_address(address),
                tap: false,
                groups: Vec::new(),
                port: None,
            }
        };
        let all = [attachment("a", "u-1", 2), attachment("a", "u-2", 3), attachment("b", "u-3", 4)];
        assert_eq!(network_behind(&all, "a", "10.90.0.3"), Some("u-2"));
        assert_eq!(network_behind(&all, "a", "10.90.0.4"), None);
        assert_eq!(network_behind(&all, "a", ""), None);
    }
}
