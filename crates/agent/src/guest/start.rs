//! From the object to a running guest: size, disk, network, control group.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use api::quantity::whole;
use api::virtual_machine::{MachineAddress, MachineBoot};
use api::{DiskImage, Flavor, KeyPair, VirtualMachine};
use hypervisor::{Boot, Disk, Guest, GuestConfig, Interface, Start};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use network::{AttachRequest, Attachment, Mac, PortMapping};
use runtime::cgroup::{DeviceRule, Limits};

use super::image_copies;
use super::metadata::Entry;
use super::moving::{self, Launched};
use super::shared::Guests;
use crate::context::{Context, Key};
use crate::error::{Error, Result};
use crate::security;

/// Memory of a machine that does not say. Units: bytes.
const MEMORY_DEFAULT: i64 = 512 << 20;
/// The least memory that a guest is given. Units: bytes.
const MEMORY_MIN: i64 = 32 << 20;
/// Memory for the hypervisor beside the guest's own: translated code, and the buffers of a disk that is copied with
/// compression. Units: bytes.
const MEMORY_OVERHEAD: i64 = 512 << 20;
/// Tasks of one hypervisor: processors, and threads for its disks.
const TASKS_MAX: i64 = 512;
/// Relative weight of one processor.
const SHARES_PER_CPU: u64 = 1024;
/// Length of a CFS period, and time beside the guest's processors for its devices. Units: microseconds.
const PERIOD_US: u64 = 100_000;
const DEVICES_QUOTA_US: u64 = 50_000;
/// Name of the boot disk.
pub const ROOT_DISK: &str = "root";
/// Firmware images for UEFI. `Source:` Debian's package ovmf.
const UEFI: &[&str] = &["/usr/share/ovmf/OVMF.fd", "/usr/share/OVMF/OVMF_CODE.fd"];

/// A machine's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Processors.
    pub cpus: u32,
    /// Memory. Units: bytes.
    pub memory_bytes: i64,
    /// Disk; `None` means the image's. Units: bytes.
    pub disk_bytes: Option<u64>,
}

/// The size that an object and its flavor ask for.
pub fn size(object: &VirtualMachine, flavor: Option<&Flavor>) -> Result<Size> {
    let spec = &object.spec;
    let bytes = |quantity: &Quantity| {
        let read = whole(&quantity.0).filter(|bytes| *bytes > 0);
        read.ok_or_else(|| Error::Invalid(format!("{:?} is no size", quantity.0)))
    };
    let memory = spec.memory.as_ref().or(flavor.map(|flavor| &flavor.spec.memory)).map(bytes).transpose()?;
    let disk = spec.disk.as_ref().or(flavor.and_then(|flavor| flavor.spec.disk.as_ref())).map(bytes).transpose()?;
    let cpus = if spec.cpus > 0 { spec.cpus } else { flavor.map_or(1, |flavor| flavor.spec.cpus.max(1)) };
    Ok(Size {
        cpus,
        memory_bytes: memory.unwrap_or(MEMORY_DEFAULT).max(MEMORY_MIN),
        disk_bytes: disk.and_then(|bytes| u64::try_from(bytes).ok()),
    })
}

/// Reads the size of an object from the API.
pub async fn size_of(context: &Context, object: &VirtualMachine) -> Result<Size> {
    let flavors: Api<Flavor> = Api::all(context.client.clone());
    let flavor = match object.spec.flavor.as_str() {
        "" => None,
        name => Some(
            flavors
                .get_opt(name)
                .await
                .map_err(Error::api("read the flavor"))?
                .ok_or_else(|| Error::Invalid(format!("flavor {name} not found")))?,
        ),
    };
    size(object, flavor.as_ref())
}

/// A place on the network.
#[derive(Clone, Debug)]
pub struct Place {
    /// The port.
    pub attachment: Attachment,
    /// The network.
    pub network: Arc<network::Network>,
    /// The network's name for users.
    pub name: String,
}

impl Place {
    /// As the object shows it.
    pub fn address(&self) -> MachineAddress {
        MachineAddress {
            network: self.name.clone(),
            ip: self.attachment.address.to_string(),
            mac: self.attachment.mac.to_string(),
        }
    }
}

/// Puts the machine on its network, and answers what its guest will ask there. Doing it again changes nothing.
pub async fn join(context: &Context, object: &VirtualMachine, uid: &str) -> Result<Place> {
    let key = Key::of(object);
    let wanted = match object.spec.network.as_str() {
        "" => api::names::DEFAULT_NETWORK,
        name => name,
    };
    let network_key = Key { namespace: key.namespace.clone(), name: wanted.to_owned() };
    let network = context.networks.ensure(&context.client, &context.directory, &network_key).await?;
    // One that came from another machine keeps its address.
    let status = object.status.clone().unwrap_or_default();
    let kept = status.addresses.into_iter().find(|address| address.network == wanted);
    let request = AttachRequest {
        owner: uid.to_owned(),
        network: network.id.clone(),
        tap: true,
        address: kept.as_ref().and_then(|kept| kept.ip.parse().ok()),
        mac: kept.as_ref().and_then(|kept| kept.mac.parse().ok()),
        groups: security::ids(&key.namespace, &object.spec.security_groups),
        ..AttachRequest::default()
    };
    let attachment = context.fabric.attach(request).await?;
    let hostname = hostname(object);
    let lease = network::dhcp::Lease {
        address: attachment.address,
        prefix: attachment.prefix,
        server: network.gateway,
        gateway: (!network.internal).then_some(network.gateway),
        dns: network.gateway,
        hostname: hostname.clone(),
        domain: String::new(),
        mtu: u16::try_from(network.mtu).unwrap_or(u16::MAX),
    };
    context.guests.dhcp.offer(&network.bridge, attachment.mac, lease)?;
    // On the default network, as with containers, names are told to nobody.
    if network.id != network::DEFAULT_NETWORK && network.uplink.is_none() {
        let mut names = vec![key.name.clone(), hostname.clone()];
        names.dedup();
        context.directory.join(&network, wanted, uid, vec![attachment.address.into()], names, Vec::new());
    }
    // Nobody of ours is on a bridged network to be asked.
    if network.uplink.is_some() {
        return Ok(Place { attachment, network, name: wanted.to_owned() });
    }
    let entry = Entry {
        uid: uid.to_owned(),
        name: key.name.clone(),
        hostname,
        address: attachment.address.to_string(),
        mac: attachment.mac.to_string(),
        flavor: object.spec.flavor.clone(),
        keys: keys(context, object).await?,
        user_data: object.spec.user_data.clone(),
    };
    context.guests.tell(network.gateway, attachment.address, entry).await?;
    Ok(Place { attachment, network, name: wanted.to_owned() })
}

fn hostname(object: &VirtualMachine) -> String {
    match object.spec.hostname.as_str() {
        "" => object.metadata.name.clone().unwrap_or_default(),
        name => name.to_owned(),
    }
}

async fn keys(context: &Context, object: &VirtualMachine) -> Result<Vec<(String, String)>> {
    let pairs: Api<KeyPair> = Api::namespaced(context.client.clone(), &Key::of(object).namespace);
    let mut keys = Vec::new();
    for name in &object.spec.key_pairs {
        let pair = pairs.get_opt(name).await.map_err(Error::api("read the key pair"))?;
        let pair = pair.ok_or_else(|| Error::Invalid(format!("key pair {name} not found")))?;
        keys.push((name.clone(), pair.spec.public_key.trim().to_owned()));
    }
    Ok(keys)
}

/// Puts the machine under the security groups that its object names now.
pub async fn guard(context: &Context, object: &VirtualMachine, uid: &str) -> Result<()> {
    let (namespace, names) = (Key::of(object).namespace, &object.spec.security_groups);
    context.fabric.guard(uid, security::ids(&namespace, names)).await?;
    security::check(context, &namespace, names).await
}

/// Publishes the machine's ports.
pub async fn publish(
    context: &Context,
    object: &VirtualMachine,
    uid: &str,
    place: &Place,
) -> Result<Vec<api::container::PortMapping>> {
    let ports = object.spec.ports.iter().map(|port| {
        let host = |text: &str| text.parse::<Ipv4Addr>().map(IpAddr::V4);
        let host = (!port.host_ip.is_empty()).then(|| host(&port.host_ip)).transpose();
        Ok(PortMapping {
            host_address: host.map_err(|_| Error::Invalid(format!("invalid IPv4 address: {}", port.host_ip)))?,
            host_port: port.host_port,
            host_port_end: 0,
            target_port: port.container_port,
            protocol: port.protocol.parse()?,
        })
    });
    let ports: Vec<PortMapping> = ports.collect::<Result<_>>()?;
    let bound = context.fabric.publish(uid, place.attachment.address, ports).await?;
    Ok(bound
        .into_iter()
        .map(|port| api::container::PortMapping {
            container_port: port.target_port,
            protocol: port.protocol.to_string(),
            host_ip: port
                .host_address
                .filter(|host| !host.is_unspecified())
                .map(|host| host.to_string())
                .unwrap_or_default(),
            host_port: port.host_port,
        })
        .collect())
}

/// Takes the machine off its network.
pub async fn leave(context: &Context, uid: &str, place: Option<&Place>) -> Result<()> {
    if let Some(place) = place {
        context.guests.dhcp.withdraw(place.attachment.mac);
        context.guests.forget(place.network.gateway, place.attachment.address);
    }
    context.directory.leave(uid, None);
    Ok(context.fabric.release(uid).await?)
}

async fn image(context: &Context, object: &VirtualMachine) -> Result<DiskImage> {
    let images: Api<DiskImage> = Api::namespaced(context.client.clone(), &Key::of(object).namespace);
    let name = &object.spec.image;
    let image = images.get_opt(name).await.map_err(Error::api("read the disk image"))?;
    let image = image.ok_or_else(|| Error::Invalid(format!("disk image {name} not found")))?;
    match image.status.as_ref().map(|status| status.phase.as_str()) {
        Some("Ready") => Ok(image),
        Some("Failed") => Err(Error::Invalid(format!("disk image {name} could not be made"))),
        _ => Err(Error::NotYet(format!("disk image {name} is not ready yet"))),
    }
}

/// The top layer of the machine's disk; cloned from its image the first time.
async fn disk(context: &Context, uid: &str, image: &DiskImage, size: &Size) -> Result<String> {
    let layers = context.guests.layers().await?;
    if let Some(top) = layers.owned_by(uid).pop() {
        return Ok(top);
    }
    let base = image_copies::layer(context, image).await?;
    let (owner, bytes) = (uid.to_owned(), size.disk_bytes);
    let made = tokio::task::spawn_blocking(move || layers.create(Some(&base), bytes, &owner));
    Ok(made.await.map_err(|_| Error::Timeout("cloning the disk"))??)
}

/// How it boots.
fn boot(context: &Context, object: &VirtualMachine, image: &DiskImage) -> Result<Boot> {
    match object.spec.boot.unwrap_or(image.spec.boot) {
        MachineBoot::Bios => Ok(Boot::Bios),
        MachineBoot::Uefi => {
            let firmware = UEFI.iter().map(std::path::Path::new).find(|path| path.exists());
            firmware
                .map(|path| Boot::Uefi(path.to_owned()))
                .ok_or_else(|| Error::Invalid("no UEFI firmware (Debian: ovmf)".into()))
        }
        MachineBoot::Kernel => {
            let directory = context.guests.image_directory(image.metadata.uid.as_deref().unwrap_or_default());
            let (kernel, initrd) = (directory.join("kernel"), directory.join("initrd"));
            if !kernel.exists() {
                return Err(Error::Invalid(format!("disk image {} has no kernel", object.spec.image)));
            }
            let initrd = initrd.exists().then_some(initrd);
            Ok(Boot::Kernel { kernel, initrd, command_line: image.spec.command_line.clone() })
        }
    }
}

/// The control group of a machine, with its bounds.
fn control_group(
    object: &VirtualMachine,
    uid: &str,
    size: &Size,
    context: &Context,
) -> Result<runtime::cgroup::Cgroup> {
    let group = context.guests.control_group(uid)?;
    let rule = |allow, major, minor| DeviceRule {
        allow,
        block: if allow { Some(false) } else { None },
        major,
        minor,
        read: true,
        write: true,
        mknod: true,
    };
    let mut devices = vec![rule(false, None, None)];
    // null, zero, random, urandom; tun, kvm, vhost-net.
    for (major, minor) in [(1, 3), (1, 5), (1, 8), (1, 9), (10, 200), (10, 232), (10, 238)] {
        devices.push(rule(true, Some(major), Some(minor)));
    }
    group.create(&devices)?;
    let cpus = u64::from(size.cpus);
    let shares = u64::try_from(object.spec.cpu_shares).ok().filter(|shares| *shares > 0);
    let quota = cpus.saturating_mul(PERIOD_US).saturating_add(DEVICES_QUOTA_US);
    group.apply(&Limits {
        cpu_shares: Some(shares.unwrap_or(cpus.saturating_mul(SHARES_PER_CPU)).clamp(2, 262_144)),
        cpu_quota_us: i64::try_from(quota).ok(),
        cpu_period_us: Some(PERIOD_US),
        cpuset_cpus: (!object.spec.cpu_set.is_empty()).then(|| object.spec.cpu_set.clone()),
        memory_bytes: Some(size.memory_bytes.saturating_add(size.memory_bytes / 16).saturating_add(MEMORY_OVERHEAD)),
        pids: Some(TASKS_MAX),
        ..Limits::default()
    })?;
    Ok(group)
}

/// Starts the guest, with these disks beside its own.
#[allow(clippy::too_many_arguments)]
pub async fn start(
    context: &Context,
    object: &VirtualMachine,
    uid: &str,
    size: &Size,
    place: &Place,
    how: Start,
    cpus_max: Option<u32>,
    volumes: Vec<Disk>,
) -> Result<Arc<dyn Guest>> {
    security::check(context, &Key::of(object).namespace, &object.spec.security_groups).await?;
    let image = image(context, object).await?;
    let top = disk(context, uid, &image, size).await?;
    let layers = context.guests.layers().await?.chain(&top)?;
    let directory = context.guests.directory(uid);
    std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    let group = control_group(object, uid, size, context)?;
    let cpus_max = cpus_max.unwrap_or_else(|| u32::try_from(crate::machine::cpus()).unwrap_or(1)).max(size.cpus);
    let launched = Launched { cpus: size.cpus, cpus_max, memory_bytes: size.memory_bytes };
    moving::note_launch(context, uid, &launched)?;
    let mut disks = vec![Disk { name: ROOT_DISK.into(), layers, ..Disk::default() }];
    disks.extend(volumes);
    let config = GuestConfig {
        id: uid.to_owned(),
        cpus: size.cpus,
        cpus_max,
        memory_bytes: u64::try_from(size.memory_bytes).unwrap_or(0),
        boot: boot(context, object, &image)?,
        disks,
        interfaces: vec![Interface {
            tap: place.attachment.host_interface.clone(),
            mac: place.attachment.mac.to_string(),
            mtu: place.network.mtu,
        }],
        run_dir: context.guests.run_dir(uid),
        console_log: directory.join("console.log"),
        user_id: Guests::user_id(uid),
        control_group_entries: group.entry_files(),
    };
    Ok(context.guests.hypervisor().await?.start(&config, how).await?)
}

/// Whether an acknowledged address is this machine's.
pub fn is_of(place: Option<&Place>, mac: Mac) -> bool {
    place.is_some_and(|place| place.attachment.mac == mac)
}
