//! One real guest, driven through the trait: launch without rights, console, disks, snapshot, copy, suspend, crash.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use hypervisor::disk::{LayerStore, header, tool};
use hypervisor::qemu::{Options, Qemu};
use hypervisor::{
    Acceleration, Boot, Chipset, Disk, DiskCopy, DiskLimits, Guest, GuestConfig, GuestEvent, Hypervisor, RunState,
    Start, test_guest,
};

/// How long to wait for what must become true; a machine under load translates slowly.
const PATIENCE: Duration = Duration::from_secs(120);
const READY: &str = "nuee test guest ready";
const PROMPT: &str = "/ # ";

struct Lab {
    directory: tempfile::TempDir,
    store: LayerStore,
    qemu: Arc<Qemu>,
    guest: test_guest::TestGuest,
}

impl Lab {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(&directory.path().join("disks")).unwrap();
        let launcher = PathBuf::from(env!("CARGO_BIN_EXE_hypervisor-test-launcher"));
        let qemu = Qemu::open(Options { launcher, acceleration: Some(Acceleration::Emulation) }).await.unwrap();
        let built = tokio::task::spawn_blocking(|| test_guest::build(Path::new("/var/cache/nuee")));
        Self { directory, store, qemu, guest: built.await.unwrap().unwrap() }
    }

    async fn import(&self) -> String {
        let (id, path) = self.store.scratch();
        let upload = self.directory.path().join("upload");
        std::fs::copy(&self.guest.disk, &upload).unwrap();
        let header = tool::import(&upload, None, &path).await.unwrap();
        self.store.adopt(&id, header.virtual_bytes, "image").unwrap();
        id
    }

    fn config(&self, layers: Vec<PathBuf>, boot: Boot) -> GuestConfig {
        GuestConfig {
            id: "5a0c1c7e-0000-4000-8000-000000000001".into(),
            cpus: 1,
            cpus_max: 1,
            memory_bytes: 128 << 20,
            memory_max: 0,
            chipset: Chipset::PciExpress,
            boot,
            disks: vec![Disk { name: "root".into(), layers, ..Disk::default() }],
            interfaces: Vec::new(),
            vsock_cid: None,
            run_dir: self.directory.path().join("run"),
            console_log: self.console(),
            user_id: 1_900_000_001,
            control_group_entries: Vec::new(),
        }
    }

    fn direct(&self) -> Boot {
        Boot::Kernel {
            kernel: self.guest.kernel.clone(),
            initrd: Some(self.guest.initrd.clone()),
            command_line: test_guest::COMMAND_LINE.into(),
        }
    }

    fn console(&self) -> PathBuf {
        self.directory.path().join("console.log")
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.console()).unwrap_or_default()).into_owned()
    }

    async fn until(&self, what: &str, holds: impl Fn(&str) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !holds(&self.said()) {
            assert!(tokio::time::Instant::now() < deadline, "not in time: {what}\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a line in the guest's shell; what it printed.
    async fn shell(&self, guest: &Arc<dyn Guest>, line: &str) -> String {
        let before = self.said().len();
        // The markers are cut in two, so that an echo of the line is not taken for them; it may come twice, and late.
        let [begin, end] = ["begin", "done"].map(|word| format!("{word}-{before}"));
        let typed = format!("echo begin''-{before}; {line}; echo done''-{before}\n");
        let mut console = guest.console().await.unwrap();
        console.write_all(typed.as_bytes()).await.unwrap();
        self.until(line, |said| said[before.min(said.len())..].contains(&end)).await;
        let said = self.said();
        let text = said[before..].split(&end).next().unwrap_or_default();
        text.split_once(&begin).map(|(_, rest)| rest.trim().to_owned()).unwrap_or_default()
    }
}

async fn event(events: &mut tokio::sync::broadcast::Receiver<GuestEvent>, wanted: impl Fn(GuestEvent) -> bool) {
    let seen = async {
        while let Ok(event) = events.recv().await {
            if wanted(event) {
                return;
            }
        }
        panic!("the events ended");
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("the event came");
}

/// Whether a process holds a file open.
fn is_open(pid: u32, file: &Path) -> bool {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // Its root is another, so that paths say nothing.
    let wanted = std::fs::metadata(file).unwrap();
    open.filter_map(|entry| std::fs::metadata(entry.unwrap().path()).ok())
        .any(|found| found.ino() == wanted.ino() && found.dev() == wanted.dev())
}

fn status_line(pid: u32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
}

/// QEMU owns nothing and sees nothing but its own disks.
fn assert_confined(pid: u32) {
    assert!(status_line(pid, "Uid:").contains("1900000001"), "{}", status_line(pid, "Uid:"));
    assert!(status_line(pid, "CapEff:").ends_with("0000000000000000"));
    assert!(status_line(pid, "NoNewPrivs:").ends_with('1'));
    assert!(status_line(pid, "Seccomp:").ends_with('2'));
    let names: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!names.iter().any(|name| matches!(name.as_str(), "root" | "home" | "work" | "var")), "{names:?}");
    for kind in ["net", "mnt", "pid", "ipc"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_lives_through_all_that_can_be_asked_of_it() {
    let lab = Lab::new().await;
    let image = lab.import().await;
    let top = lab.store.create(Some(&image), Some(1 << 30), "guest").unwrap();
    let config = lab.config(lab.store.chain(&top).unwrap(), lab.direct());
    let guest = lab.qemu.start(&config, Start::Boot).await.unwrap();
    assert_confined(guest.pid());
    assert!(lab.qemu.start(&config, Start::Boot).await.is_err(), "one guest, one process");
    lab.until("the guest is ready", |said| said.contains(READY) && said.contains(PROMPT)).await;
    assert_eq!(guest.state().await.unwrap(), RunState::Running);

    // Found again after the daemon was killed.
    let pid = guest.pid();
    drop(guest);
    let guest = lab.qemu.adopt(&config.run_dir).await.unwrap().expect("it runs");
    assert_eq!(guest.pid(), pid);

    // A disk comes, grows, and goes.
    let volume = lab.store.create(None, Some(64 << 20), "volume").unwrap();
    let layers = lab.store.chain(&volume).unwrap();
    let disk = Disk {
        name: "data".into(),
        serial: "ledger".into(),
        slot: Some(20),
        layers: layers.clone(),
        ..Disk::default()
    };
    guest.attach_disk(&disk).await.unwrap();
    assert!(guest.attach_disk(&disk).await.is_err());
    lab.shell(&guest, "while [ ! -b /dev/vdb ]; do sleep 0.1; done").await;
    assert_eq!(lab.shell(&guest, "cat /sys/block/vdb/serial").await, "ledger");
    assert!(lab.shell(&guest, "readlink /sys/block/vdb").await.contains("0000:01:14.0"));
    let mut disks = guest.disks().await.unwrap();
    disks.sort();
    assert_eq!(disks, ["data", "root"]);
    // Thirty writes at ten a second; a machine under load takes longer without any bound, never shorter with one.
    guest.limit_disk("data", DiskLimits { operations: 10, bytes: 10 << 20 }).await.unwrap();
    let begun = std::time::Instant::now();
    let write = "dd if=/dev/zero of=/dev/vdb bs=4k count=1 seek=$i conv=fsync,notrunc 2>/dev/null";
    lab.shell(&guest, &format!("for i in $(seq 30); do {write}; done")).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    guest.limit_disk("data", DiskLimits::default()).await.unwrap();
    guest.grow_disk("data", 96 << 20).await.unwrap();
    let size = lab.shell(&guest, "lsblk -bdno SIZE /dev/vdb").await;
    assert_eq!(size, (96 << 20).to_string());
    guest.detach_disk("data").await.unwrap();
    assert_eq!(lab.shell(&guest, "ls /dev/vdb 2>/dev/null").await, "");
    assert!(!is_open(guest.pid(), &layers[0]), "a disk that is out is closed");
    guest.attach_disk(&disk).await.unwrap();
    assert!(is_open(guest.pid(), &layers[0]));
    guest.detach_disk("data").await.unwrap();
    assert!(!is_open(guest.pid(), &layers[0]));

    // What is written after a snapshot is not in it; a copy has both.
    lab.shell(&guest, "echo before > /first; sync").await;
    let overlay = lab.store.create(Some(&top), None, "guest").unwrap();
    guest.snapshot_disks(&[("root".into(), lab.store.chain(&overlay).unwrap().swap_remove(0))]).await.unwrap();
    let frozen = std::fs::metadata(&lab.store.chain(&top).unwrap()[0]).unwrap().modified().unwrap();
    lab.shell(&guest, "echo after > /second; sync").await;
    assert_eq!(std::fs::metadata(&lab.store.chain(&top).unwrap()[0]).unwrap().modified().unwrap(), frozen);
    let copy = lab.store.create(None, Some(1 << 30), "copy").unwrap();
    let (told, progress) =
        (tokio::sync::watch::Sender::new((0, 0)), DiskCopy { name: "root".into(), ..DiskCopy::default() });
    let target = lab.store.chain(&copy).unwrap().swap_remove(0);
    guest.copy_disks(&[DiskCopy { target, ..progress }], &told).await.unwrap();
    assert_eq!(*told.borrow(), (1 << 30, 1 << 30));

    // The balloon takes memory and gives it back.
    guest.set_memory(96 << 20).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while guest.memory().await.unwrap().actual_bytes > 96 << 20 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    guest.set_memory(128 << 20).await.unwrap();

    // Suspended to disk and resumed, it is where it was.
    lab.shell(&guest, "x=remembered").await;
    let memory = lab.directory.path().join("memory");
    guest.suspend(&memory).await.unwrap();
    drop(guest);
    assert!(lab.qemu.adopt(&config.run_dir).await.unwrap().is_none());
    let config = GuestConfig {
        disks: vec![Disk { layers: lab.store.chain(&overlay).unwrap(), ..config.disks[0].clone() }],
        ..config
    };
    let guest = lab.qemu.start(&config, Start::Resume(memory.clone())).await.unwrap();
    assert!(!memory.exists() && !hypervisor::guest::unfinished(&memory).exists());
    assert_eq!(lab.shell(&guest, "echo $x").await, "remembered");

    // Switched off by its button, it says so, and its disk holds what was synced.
    let mut events = guest.events();
    guest.power_button().await.unwrap();
    event(&mut events, |event| event == GuestEvent::Changed).await;
    while guest.state().await.unwrap() != RunState::Off {
        event(&mut events, |event| event == GuestEvent::Changed).await;
    }
    guest.kill().await.unwrap();
    drop(guest);

    // The copy boots from BIOS with what was on the disk; its end is noticed.
    std::fs::remove_file(lab.console()).unwrap();
    let config = lab.config(lab.store.chain(&copy).unwrap(), Boot::Bios);
    let guest = lab.qemu.start(&config, Start::Boot).await.unwrap();
    lab.until("the copy is ready", |said| said.contains(READY) && said.contains(PROMPT)).await;
    assert_eq!(lab.shell(&guest, "cat /first /second | tr '\\n' ' '").await, "before after");
    let mut events = guest.events();
    hypervisor::qemu::driver::kill(&config.run_dir).await.unwrap();
    event(&mut events, |event| event == GuestEvent::Gone).await;
    assert!(lab.qemu.adopt(&config.run_dir).await.unwrap().is_none());
}

/// Firmware that Debian's package ovmf brings, and what it remembers at first.
const FIRMWARE: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];
/// Sets a variable of the firmware that lasts. `Source:` Linux, Documentation/filesystems/efivarfs.rst
const REMEMBER: &str = "v=/mnt/Nuee-5ad0c0de-0000-4000-8000-000000000001; modprobe efivarfs; mount -t efivarfs efivarfs /mnt; \
    printf '\\007\\000\\000\\000kept' > $v";
const RECALL: &str = "modprobe efivarfs; mount -t efivarfs efivarfs /mnt 2>/dev/null; tail -c 4 /mnt/Nuee-*";

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_by_uefi_which_remembers_what_it_is_told() {
    let lab = Lab::new().await;
    let image = lab.import().await;
    let top = lab.store.create(Some(&image), None, "guest").unwrap();
    let variables = lab.directory.path().join("variables.fd");
    std::fs::copy(FIRMWARE[1], &variables).unwrap();
    let boot = Boot::Uefi { code: FIRMWARE[0].into(), variables };
    // In less, what the kernel unpacks itself to lies over the firmware.
    let config = GuestConfig { memory_bytes: 256 << 20, ..lab.config(lab.store.chain(&top).unwrap(), boot) };
    let boots = |said: &str| said.contains(READY) && said.contains(PROMPT);
    let guest = lab.qemu.start(&config, Start::Boot).await.unwrap();
    assert_confined(guest.pid());
    lab.until("it is ready", boots).await;
    assert_eq!(guest.disks().await.unwrap(), ["root"], "firmware is no disk");
    lab.shell(&guest, REMEMBER).await;

    // Suspended, and woken with all that it had.
    let memory = lab.directory.path().join("memory");
    guest.suspend(&memory).await.unwrap();
    let guest = lab.qemu.start(&config, Start::Resume(memory)).await.unwrap();
    assert_eq!(lab.shell(&guest, RECALL).await, "kept");

    // Started anew.
    guest.kill().await.unwrap();
    std::fs::remove_file(lab.console()).unwrap();
    let guest = lab.qemu.start(&config, Start::Boot).await.unwrap();
    lab.until("it is ready again", boots).await;
    assert_eq!(lab.shell(&guest, RECALL).await, "kept");
    guest.kill().await.unwrap();
}

/// Attack: images that name other files, against a secret on the machine. The control shows that the tool alone would read it.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_images_read_nothing_of_the_machine() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let secret = "nuee-secret-0123456789";
    std::fs::write(path("secret"), secret.repeat(100)).unwrap();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new("qemu-img").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["create", "-q", "-f", "qcow2", "-b", &path("secret"), "-F", "raw", &path("backing.qcow2")]);
    run(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &format!("data_file={},data_file_raw=on", path("data")),
        &path("data.qcow2"),
        "1M",
    ]);
    run(&["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", &path("flat.vmdk"), "1M"]);
    run(&["create", "-q", "-f", "qcow2", &path("huge.qcow2"), "1M"]);
    let mut huge = std::fs::read(path("huge.qcow2")).unwrap();
    huge[24..32].copy_from_slice(&(8u64 << 60).to_be_bytes());
    std::fs::write(path("huge.qcow2"), huge).unwrap();
    for (index, name) in ["backing.qcow2", "data.qcow2", "flat.vmdk", "huge.qcow2"].into_iter().enumerate() {
        let target = directory.path().join(format!("out{index}"));
        let refused = tool::import(Path::new(&path(name)), None, &target).await;
        assert!(matches!(refused, Err(hypervisor::Error::Invalid(_))), "{name}: {refused:?}");
        assert!(!target.exists(), "{name} left something behind");
    }
    // Said to be raw, it is not opened as what it is.
    let said =
        tool::import(Path::new(&path("backing.qcow2")), Some(header::Format::Raw), &directory.path().join("out")).await;
    assert!(said.is_err());
    // The control.
    run(&["convert", "-O", "raw", &path("backing.qcow2"), &path("leak")]);
    assert!(std::fs::read_to_string(path("leak")).unwrap().contains(secret));
}
