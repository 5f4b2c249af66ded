//! From a guest's configuration to a launch plan. Pure. Values go into JSON, so that no comma or colon in a name becomes
//! another option; files and taps go in as descriptors, so that QEMU needs no path and no right of its own.
//!
//! `Source:` QEMU 7.2, qemu-system-x86_64(1), docs/interop/qemu-qmp-ref

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::launch::{Access, OpenFile, Plan, Tap};
use super::vsock;
use crate::guest::{Acceleration, Boot, Chipset, Disk, GuestConfig, Interface, Start};

/// First number for descriptors; those below belong to the launcher.
const FIRST_DESCRIPTOR: i32 = 100;
/// Memory for translated code; without a bound it grows to 1 GiB and counts against the guest's own. Units: MiB.
const TRANSLATIONS_MIB: u32 = 128;
/// How often the guest tells about its memory. Units: seconds.
pub(super) const MEMORY_POLL_SECONDS: u32 = 2;
/// Memory is plugged in by multiples of this. Units: bytes. `Source:` the least that QEMU takes with huge pages
pub(super) const MEMORY_BLOCK: u64 = 2 << 20;
/// The device of memory that is plugged in.
pub(super) const MEMORY_DEVICE: &str = "memory";
/// Where the kernel and its RAM disk are in the guest's root.
const KERNEL: &str = "/kernel";
const INITRD: &str = "/initrd";
/// The bus of what can come and go while the guest runs.
const BUS: &str = "pci.0";
/// Where the bridge to that bus is, on a chipset whose own bus takes nothing while the guest runs.
const BRIDGE_PLACE: &str = "0x1e";
/// The place of the first network interface on the guest's bus: below all that is given to others, and not 0, which is for nothing that comes
/// and goes.
const FIRST_NIC_PLACE: &str = "0x1";
/// The place of the vsock device on the guest's bus: the last one, above all that is given to disks and interfaces.
const VSOCK_PLACE: &str = "0x1f";
/// Characters of a disk's serial number. `Source:` virtio 1.2, 5.2.6.4.
const SERIAL_CHARACTERS: usize = 20;

/// Collects arguments and descriptors.
struct Builder {
    arguments: Vec<String>,
    plan: Plan,
    next: i32,
    sets: u32,
}

impl Builder {
    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.arguments.extend([format!("-{name}"), value.into()]);
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.option(name, value.to_string());
    }

    fn descriptor(&mut self) -> i32 {
        self.next += 1;
        self.next - 1
    }

    fn open(&mut self, path: &Path, access: Access) -> i32 {
        let descriptor = self.descriptor();
        self.plan.files.push(OpenFile { path: path.to_owned(), access, descriptor });
        descriptor
    }

    /// A set of descriptors of one file; QEMU takes the one that fits how it opens it.
    fn set(&mut self, path: &Path, ways: &[Access]) -> String {
        self.sets += 1;
        let set = self.sets;
        for access in ways {
            let descriptor = self.open(path, *access);
            self.option("add-fd", format!("fd={descriptor},set={set}"));
        }
        format!("/dev/fdset/{set}")
    }

    fn socket(&mut self, name: &str) -> i32 {
        let descriptor = self.descriptor();
        self.plan.sockets.push((name.to_owned(), descriptor));
        descriptor
    }
}

/// The plan of a guest's launch.
pub(super) fn plan(config: &GuestConfig, program: PathBuf, acceleration: Acceleration, start: &Start) -> Plan {
    let plan = Plan {
        program,
        arguments: Vec::new(),
        files: Vec::new(),
        taps: Vec::new(),
        sockets: Vec::new(),
        bound_files: Vec::new(),
        devices_kvm: acceleration == Acceleration::Hardware,
        late_memory: false,
        run_dir: config.run_dir.clone(),
        user_id: config.user_id,
        control_group_entries: config.control_group_entries.clone(),
    };
    let mut builder = Builder { arguments: Vec::new(), plan, next: FIRST_DESCRIPTOR, sets: 0 };
    machine(&mut builder, config, acceleration);
    chipset(&mut builder, config.chipset);
    boot(&mut builder, &config.boot);
    consoles(&mut builder, config);
    for (index, disk) in config.disks.iter().enumerate() {
        add_disk(&mut builder, disk, (index == 0).then_some(1));
    }
    for interface in &config.interfaces {
        let descriptor = builder.descriptor();
        builder.plan.taps.push(Tap { name: interface.tap.clone(), descriptor });
        builder.option("netdev", format!("tap,id={},fd={descriptor}", netdev_id(interface.slot)));
        let mut device = nic(interface);
        if config.chipset == Chipset::PciExpress {
            // The first one may go, too.
            device["bus"] = BUS.into();
            if interface.slot == 0 {
                device["addr"] = FIRST_NIC_PLACE.into();
            }
        }
        builder.json("device", &device);
    }
    if let Some(id) = config.vsock_cid {
        add_vsock(&mut builder, id);
    }
    if let Start::Resume(file) = start {
        let descriptor = builder.open(file, Access::Read);
        builder.option("incoming", format!("fd:{descriptor}"));
    }
    if matches!(start, Start::Receive { .. }) {
        builder.option("incoming", "defer");
    }
    if *start != Start::Boot {
        // When it goes on is never its own to say.
        builder.arguments.push("-S".to_owned());
    }
    let Builder { arguments, mut plan, .. } = builder;
    plan.arguments = arguments;
    plan
}

fn machine(builder: &mut Builder, config: &GuestConfig, acceleration: Acceleration) {
    let (accelerator, processor) = match acceleration {
        Acceleration::Hardware => ("kvm".to_owned(), "host"),
        Acceleration::Emulation => (format!("tcg,tb-size={TRANSLATIONS_MIB}"), "max"),
    };
    builder.arguments.extend(["-nodefaults", "-no-user-config", "-no-shutdown"].map(str::to_owned));
    builder.option("name", "guest=nuee");
    builder.option("uuid", config.id.clone());
    builder.option("accel", accelerator);
    builder.option("cpu", processor);
    builder.option("smp", format!("cpus={},maxcpus={}", config.cpus, config.cpus_max.max(config.cpus)));
    memory(builder, config);
    builder.option("display", "none");
    builder.option("vga", "none");
    builder.option("rtc", "base=utc");
    builder.option("action", "reboot=reset,panic=pause");
    builder.option("sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    builder.json("object", &json!({"qom-type": "rng-builtin", "id": "rng"}));
    builder.json("device", &json!({"driver": "virtio-rng-pci", "id": "random", "rng": "rng"}));
    builder.json(
        "device",
        &json!({"driver": "virtio-balloon-pci", "id": "balloon", "deflate-on-oom": true, "free-page-reporting": true,
            "guest-stats-polling-interval": MEMORY_POLL_SECONDS}),
    );
    builder.json("device", &json!({"driver": "pvpanic-pci", "id": "panic"}));
}

/// What all devices sit on. The bus of those that come and go has the same name everywhere, and nothing but these.
fn chipset(builder: &mut Builder, chipset: Chipset) {
    let kind = match chipset {
        Chipset::Pci => "pc",
        Chipset::PciExpress => "q35",
    };
    builder.option("machine", format!("type={kind},usb=off,vmport=off,graphics=off"));
    if chipset == Chipset::PciExpress {
        builder.json("device", &json!({"driver": "pcie-pci-bridge", "id": BUS, "bus": "pcie.0", "addr": BRIDGE_PLACE}));
    }
}

/// What a guest may have beside its first memory is a device of its own, of which nothing is plugged in at first.
fn memory(builder: &mut Builder, config: &GuestConfig) {
    let size = config.memory_bytes / 1024;
    let more = config.memory_max.saturating_sub(config.memory_bytes) / MEMORY_BLOCK * MEMORY_BLOCK;
    if more == 0 {
        return builder.option("m", format!("size={size}k"));
    }
    // The region begins at a boundary of its own; the hypervisor counts its whole size.
    builder.option("m", format!("size={size}k,maxmem={}k,slots=1", size + more / 1024));
    builder.json("object", &json!({"qom-type": "memory-backend-ram", "id": "more", "size": more}));
    builder.json(
        "device",
        &json!({"driver": "virtio-mem-pci", "id": MEMORY_DEVICE, "memdev": "more", "block-size": MEMORY_BLOCK,
            "requested-size": 0}),
    );
}

fn boot(builder: &mut Builder, boot: &Boot) {
    match boot {
        Boot::Bios => builder.option("boot", "strict=on"),
        Boot::Uefi { code, variables } => {
            for (node, path, writable) in [("firmware", code, false), ("variables", variables, true)] {
                let ways: &[Access] = if writable { &[Access::Write, Access::Read] } else { &[Access::Read] };
                let file = json!({"driver": "file", "filename": builder.set(path, ways), "read-only": !writable});
                builder.json(
                    "blockdev",
                    &json!({"driver": "raw", "node-name": node, "read-only": !writable, "file": file}),
                );
            }
            builder.option("machine", "pflash0=firmware,pflash1=variables");
        }
        Boot::Kernel { kernel, initrd, command_line } => {
            builder.plan.bound_files.push((kernel.clone(), KERNEL.into()));
            builder.option("kernel", KERNEL);
            if let Some(initrd) = initrd {
                builder.plan.bound_files.push((initrd.clone(), INITRD.into()));
                builder.option("initrd", INITRD);
            }
            builder.option("append", command_line.clone());
        }
    }
}

fn consoles(builder: &mut Builder, config: &GuestConfig) {
    let control = builder.socket("qmp.sock");
    builder.option("chardev", format!("socket,id=control,fd={control},server=on,wait=off"));
    builder.option("mon", "chardev=control,mode=control");
    let console = builder.socket("console.sock");
    let log = builder.set(&config.console_log, &[Access::Append]);
    builder.option("chardev", format!("socket,id=console,fd={console},server=on,wait=off,logfile={log},logappend=on"));
    builder.option("serial", "chardev:console");
    let agent = builder.socket("agent.sock");
    builder.json("device", &json!({"driver": "virtio-serial-pci", "id": "serial"}));
    builder.option("chardev", format!("socket,id=agent,fd={agent},server=on,wait=off"));
    builder.json(
        "device",
        &json!({"driver": "virtserialport", "id": "port", "bus": "serial.0", "chardev": "agent",
            "name": "org.qemu.guest_agent.0"}),
    );
}

fn add_disk(builder: &mut Builder, disk: &Disk, boot_index: Option<u32>) {
    let mut below = None;
    for (index, path) in disk.layers.iter().enumerate().rev() {
        let writable = index == 0 && !disk.read_only;
        let ways: &[Access] = if writable { &[Access::Write, Access::Read] } else { &[Access::Read] };
        let file = builder.set(path, ways);
        let node = node_name(&disk.name, index);
        let (file, format) = nodes(disk, &node, &file, below.as_deref(), writable);
        builder.json("blockdev", &file);
        builder.json("blockdev", &format);
        below = Some(node);
    }
    builder.json("device", &device(disk, &node_name(&disk.name, 0), boot_index));
}

/// The launcher opens the device while it is in the machine's network namespace, on whose side the guest is reached from then on.
fn add_vsock(builder: &mut Builder, id: u32) {
    let descriptor = builder.open(Path::new(vsock::DEVICE), Access::Write);
    builder.json(
        "device",
        &json!({"driver": "vhost-vsock-pci", "id": "vsock", "bus": BUS, "addr": VSOCK_PLACE, "guest-cid": id,
            "vhostfd": descriptor.to_string()}),
    );
}

/// Name of the node of one layer of a disk.
pub(super) fn node_name(disk: &str, index: usize) -> String {
    format!("{disk}.{index}")
}

/// The two nodes of a layer: its file, and its format on top.
pub(super) fn nodes(disk: &Disk, node: &str, file: &str, below: Option<&str>, writable: bool) -> (Value, Value) {
    let file_node = format!("{node}f");
    let file = json!({"driver": "file", "node-name": file_node, "filename": file, "discard": "unmap",
        "read-only": !writable, "aio": "threads"});
    let mut format = json!({"driver": if disk.raw { "raw" } else { "qcow2" }, "node-name": node, "file": file_node,
        "discard": "unmap", "read-only": !writable});
    if !disk.raw {
        // Null says that there is nothing below, whatever the file may say.
        format["backing"] = below.map_or(Value::Null, Value::from);
    }
    (file, format)
}

/// The device through which the guest sees a disk.
pub(super) fn device(disk: &Disk, node: &str, boot_index: Option<u32>) -> Value {
    let serial = if disk.serial.is_empty() { &disk.name } else { &disk.serial };
    let serial: String = serial.chars().take(SERIAL_CHARACTERS).collect();
    let mut device = json!({"driver": "virtio-blk-pci", "id": device_id(&disk.name), "drive": node, "serial": serial});
    if let Some(index) = boot_index {
        device["bootindex"] = index.into();
    }
    if let Some(slot) = disk.slot {
        device["bus"] = BUS.into();
        device["addr"] = format!("{slot:#x}").into();
    }
    device
}

/// The device through which the guest sees a network.
pub(super) fn nic(interface: &Interface) -> Value {
    let mut device = json!({"driver": "virtio-net-pci", "id": nic_id(interface.slot), "netdev": netdev_id(interface.slot),
        "mac": interface.mac, "host_mtu": interface.mtu, "romfile": ""});
    if interface.slot != 0 {
        device["bus"] = BUS.into();
        device["addr"] = format!("{:#x}", interface.slot).into();
    }
    device
}

/// What the ids of network interfaces' devices begin with.
const NIC_PREFIX: &str = "nic";

/// Id of a network interface's device.
pub(super) fn nic_id(slot: u8) -> String {
    format!("{NIC_PREFIX}{slot}")
}

/// The slot of a network interface's device, by its id.
pub(super) fn slot_of_nic(id: &str) -> Option<u8> {
    id.strip_prefix(NIC_PREFIX)?.parse().ok()
}

/// Id of the machine's end of a network interface.
pub(super) fn netdev_id(slot: u8) -> String {
    format!("net{slot}")
}

/// What the ids of disks' devices begin with.
pub(super) const DEVICE_PREFIX: &str = "disk-";

/// Path of the part of a disk's device that asks for reads and writes.
pub(super) fn backend_path(disk: &str) -> String {
    format!("/machine/peripheral/{}/virtio-backend", device_id(disk))
}

/// Id of a disk's device.
pub(super) fn device_id(disk: &str) -> String {
    format!("{DEVICE_PREFIX}{disk}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GuestConfig {
        GuestConfig {
            id: "5a0c1c7e-0000-4000-8000-000000000001".into(),
            cpus: 1,
            cpus_max: 2,
            memory_bytes: 128 << 20,
            memory_max: 0,
            chipset: Chipset::PciExpress,
            boot: Boot::Kernel { kernel: "/k".into(), initrd: None, command_line: "a,b quiet".into() },
            disks: vec![Disk { name: "root".into(), layers: vec!["/a,b".into(), "/c".into()], ..Disk::default() }],
            interfaces: vec![Interface { slot: 0, tap: "nuv0".into(), mac: "02:42:0a:58:00:02".into(), mtu: 1500 }],
            vsock_cid: None,
            run_dir: "/run/x".into(),
            console_log: "/log".into(),
            user_id: 1_900_000_001,
            control_group_entries: Vec::new(),
        }
    }

    #[test]
    fn no_path_of_the_machine_is_in_the_arguments() {
        let plan = plan(&config(), "/usr/bin/qemu".into(), Acceleration::Emulation, &Start::Boot);
        let text = plan.arguments.join(" ");
        for path in ["/a,b", "/c", "/log", "/run/x", "nuv0"] {
            assert!(!text.contains(path), "{path} in {text}");
        }
        assert!(text.contains("-sandbox on"));
        let writable = plan.files.iter().filter(|file| file.access == Access::Write).count();
        assert_eq!(writable, 1, "only the top layer can be written");
    }

    #[test]
    fn a_guest_with_foreign_memory_does_not_go_on_by_itself() {
        let receive = Start::Receive { post_copy: false };
        for (start, stands) in [(Start::Boot, false), (Start::Resume("/m".into()), true), (receive, true)] {
            let plan = plan(&config(), "/usr/bin/qemu".into(), Acceleration::Emulation, &start);
            assert_eq!(plan.arguments.iter().any(|one| one == "-S"), stands, "{start:?}");
        }
    }

    #[test]
    fn the_lowest_layer_lies_on_nothing_whatever_it_says() {
        let plan = plan(&config(), "/usr/bin/qemu".into(), Acceleration::Emulation, &Start::Boot);
        let nodes: Vec<Value> = plan.arguments.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
        let find = |name: &str| nodes.iter().find(|node| node["node-name"] == name).unwrap().clone();
        assert_eq!(find("root.1")["backing"], Value::Null);
        assert!(find("root.1").as_object().unwrap().contains_key("backing"));
        assert_eq!(find("root.0")["backing"], "root.1");
    }

    #[test]
    fn each_interface_has_its_own_tap_and_its_place() {
        let mut config = config();
        config.interfaces.push(Interface { slot: 12, tap: "nuv1".into(), mac: "02:42:0a:59:00:02".into(), mtu: 1450 });
        let plan = plan(&config, "/usr/bin/qemu".into(), Acceleration::Emulation, &Start::Boot);
        assert_eq!(plan.taps.iter().map(|tap| tap.name.as_str()).collect::<Vec<_>>(), ["nuv0", "nuv1"]);
        let nodes: Vec<Value> = plan.arguments.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
        let nic = |id: &str| nodes.iter().find(|node| node["id"] == id).unwrap().clone();
        assert_eq!((nic("nic0")["addr"].clone(), nic("nic0")["netdev"].clone()), ("0x1".into(), "net0".into()));
        assert_eq!(nic("nic0")["bus"], BUS, "it can be taken away while the guest runs");
        assert_eq!((nic("nic12")["addr"].clone(), nic("nic12")["netdev"].clone()), ("0xc".into(), "net12".into()));
        assert_eq!((slot_of_nic("nic12"), slot_of_nic("nicx"), slot_of_nic("disk-1")), (Some(12), None, None));
    }

    #[test]
    fn vsock_comes_as_a_descriptor_and_only_where_it_is_wished() {
        let made = |vsock_cid: Option<u32>| {
            let config = GuestConfig { vsock_cid, ..config() };
            plan(&config, "/usr/bin/qemu".into(), Acceleration::Emulation, &Start::Boot)
        };
        let without = made(None);
        assert!(!without.arguments.iter().any(|text| text.contains("vsock")));
        assert!(!without.files.iter().any(|file| file.path == Path::new(vsock::DEVICE)));
        let with = made(Some(1 << 30));
        assert!(!with.arguments.iter().any(|text| text.contains(vsock::DEVICE)));
        let file = with.files.iter().find(|file| file.path == Path::new(vsock::DEVICE)).unwrap();
        assert_eq!(file.access, Access::Write);
        let expected = json!({"driver": "vhost-vsock-pci", "id": "vsock", "bus": "pci.0", "addr": "0x1f",
            "guest-cid": 1 << 30, "vhostfd": file.descriptor.to_string()});
        let nodes: Vec<Value> = with.arguments.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
        assert_eq!(nodes.iter().find(|node| node["id"] == "vsock"), Some(&expected));
    }
}
