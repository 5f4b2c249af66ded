//! From the object to a running guest: size, disks, control group.

use std::path::Path;
use std::sync::Arc;

use api::quantity::whole;
use api::requests::GUEST_MEMORY_DEFAULT;
use api::virtual_machine::MachineBoot;
use api::{Flavor, VirtualMachine};
use hypervisor::qemu::vsock::DEVICE as VSOCK;
use hypervisor::{Boot, Disk, DiskLimits, Guest, GuestConfig, Start};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use runtime::cgroup::{DeviceRule, Limits};

use super::interfaces::{Place, serve};
use super::moving::{self, Launched};
use super::shared::Guests;
use super::{config_drive, disks, firmware, root, vsock};
use crate::context::{Context, Key};
use crate::error::{Error, Result};
use crate::security;

/// Memory of a machine that does not say. Units: bytes.
const MEMORY_DEFAULT: i64 = GUEST_MEMORY_DEFAULT.cast_signed();
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

/// A machine's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Processors.
    pub cpus: u32,
    /// Memory. Units: bytes.
    pub memory_bytes: i64,
    /// The most memory that it may have without a restart; at least `memory_bytes`. Units: bytes.
    pub memory_max: i64,
    /// Disk; `None` means the image's. Units: bytes.
    pub disk_bytes: Option<u64>,
    /// Bounds of the disk's use.
    pub limits: DiskLimits,
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
    let memory_bytes = memory.unwrap_or(MEMORY_DEFAULT).max(MEMORY_MIN);
    let most = spec.memory_maximum.as_ref().map(bytes).transpose()?;
    let limits = spec.disk_limits.as_ref().or(flavor.and_then(|flavor| flavor.spec.disk_limits.as_ref()));
    Ok(Size {
        cpus,
        memory_bytes,
        memory_max: most.unwrap_or(0).max(memory_bytes),
        disk_bytes: disk.and_then(|bytes| u64::try_from(bytes).ok()),
        limits: disks::limits(limits),
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
        memory_bytes: Some(memory_bound(size.memory_bytes)),
        pids: Some(TASKS_MAX),
        ..Limits::default()
    })?;
    Ok(group)
}

/// The bound of a guest's hypervisor, for so much memory of the guest. Units: bytes.
fn memory_bound(bytes: i64) -> i64 {
    bytes.saturating_add(bytes / 16).saturating_add(MEMORY_OVERHEAD)
}

/// Bounds the hypervisor of a guest that has so much memory now. Units: bytes.
pub fn bound_memory(context: &Context, uid: &str, bytes: i64) -> Result<()> {
    let limits = Limits { memory_bytes: Some(memory_bound(bytes)), ..Limits::default() };
    Ok(context.guests.control_group(uid)?.apply(&limits)?)
}

/// Starts the guest, with these disks beside its own. One that resumes or is received is launched `like` before.
#[allow(clippy::too_many_arguments)]
pub async fn start(
    context: &Context,
    object: &VirtualMachine,
    uid: &str,
    size: &Size,
    places: &[Place],
    how: Start,
    like: Option<&Launched>,
    volumes: Vec<Disk>,
) -> Result<Arc<dyn Guest>> {
    let namespace = Key::of(object).namespace;
    for place in places {
        security::check(context, &namespace, &place.nic.groups).await?;
    }
    let cpus_max = u32::try_from(crate::machine::cpus()).unwrap_or(1).max(size.cpus);
    let mut launched = like.cloned().unwrap_or_else(|| Launched {
        chipset: moving::chipset(&context.guests, uid),
        cpus: size.cpus,
        cpus_max,
        memory_bytes: size.memory_bytes,
        memory_max: size.memory_max,
        config_drive: object.spec.config_drive,
        rescue: object.spec.rescue_image.clone(),
        vsock_cid: None,
        boot: None,
    });
    launched.cpus = size.cpus;
    let is_rescued = !launched.rescue.is_empty();
    let (name, boot) = match is_rescued {
        true => (&launched.rescue, None),
        false => (&object.spec.image, object.spec.boot),
    };
    let image = root::image(context, &namespace, name).await?;
    // What the machine says may have changed since.
    let way = launched.boot.or(boot).unwrap_or(image.spec.boot);
    if way == MachineBoot::Uefi && like.is_some_and(|like| like.boot.is_none()) {
        let why = "it was started by UEFI by an older version, which kept its firmware otherwise; stop and start it";
        return Err(Error::Invalid(why.into()));
    }
    launched.boot = Some(way);
    let boot = root::boot(context, uid, way, &image, is_rescued)?;
    let mut disks = root::disks(context, uid, is_rescued).await?;
    let directory = context.guests.directory(uid);
    std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    if let Boot::Uefi { variables, .. } = &boot {
        firmware::make_variables(variables, like.is_some())?;
    }
    if let Some(form) = launched.config_drive {
        let entry = serve::entry(context, object, uid, places).await?;
        disks.push(config_drive::make(context, uid, form, &entry, matches!(how, Start::Resume(_)))?);
    }
    disks.extend(volumes);
    let group = control_group(object, uid, size, context)?;
    match like.map_or(object.spec.vsock, |like| like.vsock_cid.is_some()) {
        true => vsock::note_launch(&context.guests, uid, &mut launched, Path::new(VSOCK))?,
        false => moving::note_launch(&context.guests, uid, &launched)?,
    }
    let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
    let config = GuestConfig {
        id: uid.to_owned(),
        cpus: size.cpus,
        cpus_max: launched.cpus_max.max(size.cpus),
        memory_bytes: bytes(launched.memory_bytes),
        memory_max: bytes(launched.memory_max),
        chipset: launched.chipset,
        boot,
        disks,
        interfaces: places.iter().map(Place::interface).collect(),
        vsock_cid: launched.vsock_cid,
        run_dir: context.guests.run_dir(uid),
        console_log: directory.join("console.log"),
        user_id: Guests::user_id(uid),
        control_group_entries: group.entry_files(),
    };
    Ok(context.guests.hypervisor().await?.start(&config, how).await?)
}
