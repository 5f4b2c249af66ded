//! The border: what a guest is made of, and what can be asked of one. Nothing here names a hypervisor.

use std::fmt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use crate::error::Result;

/// A guest as wanted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestConfig {
    /// Identity, 36 characters as in RFC 4122; also the guest's firmware identity.
    pub id: String,
    /// Processors.
    pub cpus: u32,
    /// Processors that it may have later without a restart; at least `cpus`.
    pub cpus_max: u32,
    /// Memory. Units: bytes.
    pub memory_bytes: u64,
    /// The most memory that it may have later without a restart; no more than `memory_bytes` means none. Units: bytes.
    pub memory_max: u64,
    /// What its devices sit on.
    pub chipset: Chipset,
    /// How it starts.
    pub boot: Boot,
    /// Disks, the boot disk first.
    pub disks: Vec<Disk>,
    /// Network interfaces.
    pub interfaces: Vec<Interface>,
    /// The id by which programs on this machine reach it over vsock; `None` means that it has no such device.
    pub vsock_cid: Option<u32>,
    /// Directory of this run's sockets and files; made by the driver, gone with the guest.
    pub run_dir: PathBuf,
    /// What the guest writes to its serial console is appended here.
    pub console_log: PathBuf,
    /// Unprivileged user and group that the hypervisor's process becomes.
    pub user_id: u32,
    /// Control groups that it enters: files that take process ids.
    pub control_group_entries: Vec<PathBuf>,
}

/// What a guest's devices sit on. It is a part of the guest's state: one that moves or wakes needs the one that it had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Chipset {
    /// A PC with PCI alone. Its tables give the ways of interrupts by a program that the guest's kernel runs anew for each device,
    /// so a guest comes up later by a tenth of a second for each of them under emulation.
    #[default]
    Pci,
    /// A PC with PCI Express, whose tables are plain lists.
    PciExpress,
}

/// How a guest starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Boot {
    /// From its first disk, by a PC's BIOS.
    Bios,
    /// From its first disk, by UEFI.
    Uefi {
        /// The firmware, which is only read.
        code: PathBuf,
        /// What the firmware remembers. Of a guest that resumes or is received it is written anew, from its memory.
        variables: PathBuf,
    },
    /// Straight into a kernel.
    Kernel {
        /// Kernel image.
        kernel: PathBuf,
        /// Initial RAM disk.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        command_line: String,
    },
}

/// A disk of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Short name: letters, digits, dashes; at most 17 of them.
    pub name: String,
    /// The serial number that the guest sees, of which 20 characters count; empty means the name.
    pub serial: String,
    /// Its place on the guest's bus; `None` leaves that to the hypervisor. A guest that is resumed or received needs each disk
    /// where it was.
    pub slot: Option<u8>,
    /// Files of the layers, the writable one first, each over the next.
    pub layers: Vec<PathBuf>,
    /// Plain bytes instead of layers (configuration drives).
    pub raw: bool,
    /// Not writable.
    pub read_only: bool,
}

/// Bounds of a disk's use; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// Reads and writes together. Units: operations per second.
    pub operations: u64,
    /// Reads and writes together. Units: bytes per second.
    pub bytes: u64,
}

/// A copy of a disk that is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskCopy {
    /// The disk's name.
    pub name: String,
    /// An empty layer file of the disk's size.
    pub target: PathBuf,
    /// Copies only what was written since this mark was set; `None` copies everything.
    pub since: Option<String>,
    /// Sets a mark at the instant of the copy, from which a later one may go on.
    pub mark: Option<String>,
}

/// A network interface of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its place on the guest's bus, by which it is known; 0 leaves that to the hypervisor, for one interface that is there from the start.
    /// A guest that is resumed or received needs each interface where it was.
    pub slot: u8,
    /// The tap device on this machine.
    pub tap: String,
    /// Hardware address.
    pub mac: String,
    /// Largest packet. Units: bytes.
    pub mtu: u32,
}

/// How a guest comes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// From its firmware or kernel.
    Boot,
    /// From memory that [`Guest::suspend`] wrote. The file loses its name before the first instruction runs: while it is there, its
    /// guest has not gone on without it. After an error it has its name again, unless the guest may have run.
    Resume(PathBuf),
    /// Not at all: it waits for [`Guest::receive`], and then for [`Guest::resume`].
    Receive {
        /// It may have to run while a part of its memory is still on the other machine.
        post_copy: bool,
    },
}

/// Where [`Guest::suspend`] writes until all is written: what lies there was cut short, and nobody wakes from it.
#[must_use]
pub fn unfinished(memory: &Path) -> PathBuf {
    memory.with_extension("part")
}

/// What runs guests on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Acceleration {
    /// The processor runs the guest: fast, and isolated.
    Hardware,
    /// Instructions are translated: slow, and no isolation is claimed.
    Emulation,
}

impl fmt::Display for Acceleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Acceleration::Hardware => "hardware",
            Acceleration::Emulation => "emulation",
        })
    }
}

/// What a guest is doing, as its hypervisor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Running.
    Running,
    /// Its processors are stopped; memory stays.
    Paused,
    /// It stands still because it was sent to another machine, all of it or so much that it may run there.
    Sent,
    /// It waits for what another machine sends.
    Receiving,
    /// It switched itself off.
    Off,
    /// Its kernel gave up.
    Panicked,
    /// Its disk could not be written (no space): it waits.
    OutOfSpace,
}

/// What happens to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// Its state may have changed: look.
    Changed,
    /// It started over.
    Restarted,
    /// What is left to the guest of its memory has changed.
    Memory,
    /// The hypervisor's process is gone.
    Gone,
}

/// Figures of a guest's memory, as far as the guest tells them. Units: bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStatistics {
    /// What it has now.
    pub actual_bytes: u64,
    /// What of that was plugged in since it started.
    pub plugged_bytes: u64,
    /// All that its kernel manages.
    pub total_bytes: Option<u64>,
    /// Unused.
    pub free_bytes: Option<u64>,
    /// Unused, or cheap to take back.
    pub available_bytes: Option<u64>,
}

/// Where a guest is sent: connected sockets.
#[derive(Debug)]
pub struct Outgoing {
    /// For its memory.
    pub memory: UnixStream,
    /// For its disks, by name.
    pub disks: Vec<(String, UnixStream)>,
    /// Most that memory, and before it all disks together, may take; `None` means no bound. Units: bytes per second.
    pub bandwidth: Option<u64>,
    /// When its memory changes faster than it goes over, the guest runs on there while the rest follows ([`Guest::send_rest`]).
    pub post_copy: bool,
}

/// How much of a guest is on the other machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// All of it.
    All,
    /// Its disks, and a part of its memory.
    Part,
}

/// Where a guest comes from.
#[derive(Debug)]
pub struct Incoming {
    /// A connected socket for its memory.
    pub memory: UnixStream,
    /// A listening socket for its disks.
    pub disks: UnixListener,
    /// The names of its disks.
    pub names: Vec<String>,
    /// As of [`Start::Receive`].
    pub post_copy: bool,
}

/// How far a guest has been sent. Units: bytes, where not said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Its memory.
    pub memory_total: u64,
    /// Sent so far.
    pub memory_sent: u64,
    /// Still to be sent.
    pub memory_remaining: u64,
    /// How fast the guest changes its memory. Units: bytes per second.
    pub dirty_per_second: u64,
    /// How much the guest is slowed down. Units: percent.
    pub throttle_percent: u64,
    /// How long it stood still. Units: milliseconds.
    pub downtime_ms: u64,
    /// Since when it stands still, for the last part.
    pub stands_still_since: Option<tokio::time::Instant>,
    /// Its disks.
    pub disk_total: u64,
    /// Sent so far.
    pub disk_sent: u64,
}

/// Starts guests, and finds them again.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// How guests run here.
    fn acceleration(&self) -> Acceleration;

    /// Starts a guest; returns when it runs.
    ///
    /// Errors: [`crate::Error::Start`] with what the hypervisor said. Nothing is left running then.
    async fn start(&self, config: &GuestConfig, start: Start) -> Result<Arc<dyn Guest>>;

    /// Finds the guest that runs with this run directory; `None` when there is none.
    async fn adopt(&self, run_dir: &std::path::Path) -> Result<Option<Arc<dyn Guest>>>;
}

/// One guest. Dropping this leaves it running.
#[async_trait]
pub trait Guest: Send + Sync + 'static {
    /// Process on this machine.
    fn pid(&self) -> u32;
    /// What happens to it from now on.
    fn events(&self) -> broadcast::Receiver<GuestEvent>;
    /// What it is doing.
    async fn state(&self) -> Result<RunState>;
    /// Presses the power button: the guest may shut down, or not.
    async fn power_button(&self) -> Result<()>;
    /// Starts it over, as the reset button does.
    ///
    /// Errors: [`crate::Error::Refused`] while its memory is written or it is being sent, and when all of it was sent.
    async fn reset(&self) -> Result<()>;
    /// Stops its processors.
    async fn pause(&self) -> Result<()>;
    /// Lets its processors go on.
    ///
    /// Errors: [`crate::Error::Refused`] when all of it was sent to another machine ([`RunState::Sent`]).
    async fn resume(&self) -> Result<()>;
    /// Lets its processors go on, also those of a guest that was sent: only for who knows that it will not run there.
    async fn take_back(&self) -> Result<()>;
    /// Writes its memory to a file, and ends it. The file has its name when it is whole and durable, and not before.
    ///
    /// Errors: [`crate::Error::Refused`] while it is being sent, or was, or may hold its file systems still, and when it has ended.
    async fn suspend(&self, file: &std::path::Path) -> Result<()>;
    /// Ends it at once; returns when its process is gone.
    async fn kill(&self) -> Result<()>;
    /// Gives it processors, up to what it was started with as the most. Returns how many it has.
    async fn set_cpus(&self, count: u32) -> Result<u32>;
    /// Gives the guest so much memory beside what it was started with, or asks it to give back what is more. What it takes is told by
    /// [`GuestEvent::Memory`]; nothing of it is taken by a guest whose kernel has no driver for that.
    ///
    /// Errors: more than it may have.
    async fn plug_memory(&self, bytes: u64) -> Result<()>;
    /// Asks the guest to make do with so much memory, plugged in or not; what it reaches is told by [`GuestEvent::Memory`].
    async fn set_memory(&self, bytes: u64) -> Result<()>;
    /// Figures of its memory.
    async fn memory(&self) -> Result<MemoryStatistics>;
    /// Plugs a disk in.
    async fn attach_disk(&self, disk: &Disk) -> Result<()>;
    /// Takes a disk out; returns when the guest has let go of it.
    async fn detach_disk(&self, name: &str) -> Result<()>;
    /// Plugs a network interface in, whose slot is not 0.
    ///
    /// Errors: one is plugged in there.
    async fn attach_interface(&self, interface: &Interface) -> Result<()>;
    /// Takes the network interface of a slot out; returns when the guest has let go of it. It is fine when there is none.
    async fn detach_interface(&self, slot: u8) -> Result<()>;
    /// The slots of its network interfaces.
    async fn interfaces(&self) -> Result<Vec<u8>>;
    /// Makes a disk larger.
    async fn grow_disk(&self, name: &str, bytes: u64) -> Result<()>;
    /// The names of its disks.
    async fn disks(&self) -> Result<Vec<String>>;
    /// Bounds what the guest may ask of a disk.
    async fn limit_disk(&self, name: &str, limits: DiskLimits) -> Result<()>;
    /// Puts a new empty layer on top of each of these disks at one instant: what was on top is never written again. Whether the guest held
    /// its file systems still then, as it does when it has an agent that can.
    ///
    /// Errors: [`crate::Error::Refused`] when none was put there; after any other it is not known.
    async fn snapshot_disks(&self, new_tops: &[(String, PathBuf)]) -> Result<bool>;
    /// Copies disks as they are at one instant; whether the guest held its file systems still then. Tells how many bytes are copied, and of how many. Dropping it leaves work going on that
    /// the next call ends, also one for no disks.
    async fn copy_disks(&self, copies: &[DiskCopy], progress: &watch::Sender<(u64, u64)>) -> Result<bool>;
    /// The marks of a disk that still tell what was written since: a mark ends with the guest's process.
    async fn marks(&self, name: &str) -> Result<Vec<String>>;
    /// Forgets a mark.
    async fn forget_mark(&self, name: &str, mark: &str) -> Result<()>;
    /// Sends it to another machine while it runs, and stops it for the last part. When this is done it stands still here
    /// ([`RunState::Sent`]), and only who knows that it will not run there may let it go on. Of a guest whose memory changes too fast only a
    /// part is there then, if it is sent by post-copy.
    ///
    /// Errors: it runs on. It is not sent while its memory is written to a file, or while it may hold its file systems still.
    async fn send(&self, to: Outgoing, progress: &watch::Sender<Progress>) -> Result<Sent>;
    /// Gives the rest of a guest of which a part was sent to the other machine, where it can run from now on; returns when all is there. From
    /// the first instant there is no way back: only for who knows that it will never run here again.
    ///
    /// Errors: what is missing there will never come.
    async fn send_rest(&self, progress: &watch::Sender<Progress>) -> Result<()>;
    /// Takes away what a transfer left that broke or was dropped. A guest that was sent stays so, any other runs on.
    async fn forget_send(&self) -> Result<()>;
    /// Lets it flow into a guest that was started with [`Start::Receive`].
    async fn receive(&self, from: Incoming) -> Result<()>;
    /// Waits until all of it is here.
    ///
    /// Errors: it will never be.
    async fn received(&self) -> Result<()>;
    /// Takes nothing more for the disks of a guest whose other side has stopped it, since all of them is here.
    async fn close_disks(&self) -> Result<()>;
    /// Waits until enough of a guest that comes by post-copy is here for it to run ([`Guest::resume`]).
    async fn can_run(&self) -> Result<()>;
    /// Its serial console. One caller has it at a time: the next one's bytes wait until this one's connection is closed.
    async fn console(&self) -> Result<tokio::net::UnixStream>;
}
