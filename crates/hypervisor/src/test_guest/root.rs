//! What is in the tiny guest's root file system and RAM disk.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::run;
use crate::error::{Error, Result};

/// Room for the guest's files, with some to spare. Units: bytes.
pub(super) const ROOT_BYTES: u64 = 24 << 20;
/// Programs, and where they come from in the tree.
const PROGRAMS: &[(&str, &str)] = &[
    ("bin/busybox", "bin/busybox"),
    ("usr/sbin/dropbear", "usr/sbin/dropbear"),
    ("usr/bin/dropbearkey", "usr/bin/dropbearkey"),
    ("usr/sbin/qemu-ga", "usr/sbin/qemu-ga"),
    ("usr/bin/lsblk", "bin/lsblk"),
    ("usr/sbin/blkid", "sbin/blkid"),
    ("usr/sbin/mke2fs", "sbin/mke2fs"),
    ("usr/sbin/resize2fs", "sbin/resize2fs"),
];
const LIBRARIES: &[&str] = &[
    "libblkid.so.1",
    "libc.so.6",
    "libcom_err.so.2",
    "libcrypt.so.1",
    "libe2p.so.2",
    "libext2fs.so.2",
    "libglib-2.0.so.0",
    "libgmodule-2.0.so.0",
    "libgmp.so.10",
    "libm.so.6",
    "libmount.so.1",
    "libnuma.so.1",
    "libpcre2-8.so.0",
    "libresolv.so.2",
    "libselinux.so.1",
    "libsmartcols.so.1",
    "libtomcrypt.so.1",
    "libtommath.so.1",
    "libudev.so.1",
    "liburing.so.2",
    "libuuid.so.1",
    "libz.so.1",
];
/// Drivers that the RAM disk needs to find the root, and that the guest needs later.
const EARLY_MODULES: &[&str] = &["virtio_pci", "virtio_blk"];
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_balloon",
    "virtio_mem",
    "virtio-rng",
    "isofs",
    "virtio_console",
    "button",
    "evdev",
    "pvpanic-pci",
    "vmw_vsock_virtio_transport",
    "efivarfs",
];

const EARLY_INIT: &str = r#"#!/bin/busybox sh
bb=/bin/busybox
$bb mkdir -p /proc /dev /root
$bb mount -t proc proc /proc
$bb mount -t devtmpfs dev /dev
for m in virtio_pci virtio_blk; do $bb modprobe $m; done
n=0
while [ ! -b /dev/vda2 ] && [ $n -lt 200 ]; do n=$((n+1)); $bb usleep 20000; done
$bb mount -t ext4 /dev/vda2 /root || { echo "no root file system"; $bb sleep 5; $bb reboot -f; }
$bb umount /dev
$bb umount /proc
exec $bb switch_root /root /sbin/init
"#;

const START: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
echo "nuee test guest userland"
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /run
mount -t devpts devpts /dev/pts
mount -t tmpfs run /run
echo online > /sys/devices/system/memory/auto_online_blocks
for m in virtio_net virtio_balloon virtio_mem virtio-rng button evdev pvpanic-pci; do modprobe $m; done
ip link set lo up
acpid -l /run/acpid.log -p /run/acpid.pid
hostname guest
configure() {
    [ -n "$1" ] && hostname "$1" && echo "$1" > /etc/hostname
}
drive=$(blkid | sed -n 's/^\([^:]*\):.*LABEL="\(cidata\|config-2\)".*/\1/p' | head -n 1)
if [ -n "$drive" ]; then
    modprobe isofs
    mkdir -p /run/seed && mount -t iso9660 -o ro "$drive" /run/seed
    m=/run/seed/meta-data
    if [ -f $m ]; then
        configure "$(sed -n 's/^local-hostname: *"*\([^"]*\)"*$/\1/p' $m)"
        sed -n 's/^  - *"*\(ssh-[^"]*\|ecdsa-[^"]*\)"*$/\1/p' $m > /run/keys
        cp /run/seed/user-data /run/user-data
    fi
    m=/run/seed/openstack/latest/meta_data.json
    if [ -f $m ]; then
        configure "$(sed -n 's/.*"hostname": *"\([^"]*\)".*/\1/p' $m)"
        sed 's/"/\n/g' $m | sed -n '/^ssh-/p; /^ecdsa-/p' | sort -u > /run/keys
        [ -f /run/seed/openstack/latest/user_data ] && cp /run/seed/openstack/latest/user_data /run/user-data
    fi
fi
get() { timeout 10 wget -q -O - "http://169.254.169.254/latest/$1" 2>/dev/null; }
ask() {
    grep -q eth0 /proc/net/route || udhcpc -i eth0 -q -n -t 20 -T 1 -s /etc/udhcpc.script -x hostname:"$(hostname)" > /run/udhcpc.log 2>&1 || return 1
    [ -z "$drive" ] || return 0
    name=$(get meta-data/local-hostname) || return 1
    get meta-data/public-keys/0/openssh-key > /run/keys.new && get user-data > /run/user-data.new ||
        # What is not there looks like a service that has gone; then this fails too.
        get meta-data/instance-id > /dev/null || return 1
    configure "$name"
    mv /run/keys.new /run/keys
    [ -e /run/user-data.new ] && mv /run/user-data.new /run/user-data
}
obey() {
    [ -s /run/keys ] && cp /run/keys /root/.ssh/authorized_keys
    case "$(head -n 1 /run/user-data 2>/dev/null)" in
        '#!'*) cp /run/user-data /run/user-script; chmod +x /run/user-script; /run/user-script > /run/user-script.log 2>&1 & ;;
    esac
}
# Whoever answers may be away for a while: it is asked again, less and less often, for two minutes.
later() {
    for pause in 1 1 2 2 4 4 8 8 15 15 30 30; do
        sleep $pause
        ask && { obey; echo "nuee test guest configured late: $(hostname)"; return; }
    done
}
mkdir -p /root/.ssh /etc/dropbear
chmod 700 /root /root/.ssh
known=yes
if [ -d /sys/class/net/eth0 ]; then
    ip link set eth0 up
    ask || known=no
fi
for i in /sys/class/net/eth*; do
    i=${i##*/}
    [ "$i" = eth0 ] || [ ! -d "/sys/class/net/$i" ] && continue
    ip link set "$i" up
    udhcpc -i "$i" -q -n -t 20 -T 1 -s /etc/udhcpc.script -x hostname:"$(hostname)" > "/run/udhcpc.$i.log" 2>&1 &
done
obey
dropbear -R -s
modprobe virtio_console
for p in /sys/class/virtio-ports/*; do
    [ "$(cat "$p/name")" = org.qemu.guest_agent.0 ] || continue
    qemu-ga -d -m virtio-serial -p "/dev/${p##*/}" -t /run -f /run/qemu-ga.pid -l /run/qemu-ga.log -F/etc/freeze
done
[ $known = yes ] || later > /dev/console 2>&1 &
echo "nuee test guest ready: $(hostname)"
"#;

const WORKLOAD_INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mkdir -p /proc /sys /dev /run /root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for m in virtio_pci virtio_blk virtio_net virtio_balloon virtio-rng button evdev pvpanic-pci; do modprobe $m; done
n=0
while [ ! -b /dev/vda2 ] && [ $n -lt 200 ]; do n=$((n+1)); usleep 20000; done
mount -t ext4 /dev/vda2 /root || { echo "no root file system"; sleep 5; reboot -f; }
mkdir -p /root/proc /root/sys /root/dev /root/tmp /root/etc
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs -o mode=1777 shm /root/dev/shm
ip link set lo up
if [ -d /sys/class/net/eth0 ]; then
    ip link set eth0 up
    udhcpc -i eth0 -q -n -t 20 -T 1 -s /etc/udhcpc.script > /run/udhcpc.log 2>&1
    name=$(timeout 10 wget -q -O - http://169.254.169.254/latest/meta-data/local-hostname 2>/dev/null)
    hostname "${name:-guest}"
    address=$(ip -4 -o address show dev eth0 | sed -n 's/.* inet \([0-9.]*\).*/\1/p')
    rm -f /root/etc/resolv.conf /root/etc/hosts /root/etc/hostname
    cp /etc/resolv.conf /root/etc/resolv.conf
    printf '127.0.0.1 localhost\n%s %s\n' "$address" "$(hostname)" > /root/etc/hosts
    hostname > /root/etc/hostname
fi
acpid -l /run/acpid.log -p /run/acpid.pid
echo "nuee workload starts: $(hostname)"
sh /workload < /dev/null &
echo $! > /run/workload.pid
wait $!
echo "nuee workload ended: $?"
sync
umount -a -r 2> /dev/null
poweroff -f
"#;

const WORKLOAD_STOP: &str = "#!/bin/sh\nkill -s \"$(cat /stop-signal)\" \"$(cat /run/workload.pid)\"\n";

const UDHCPC: &str = r#"#!/bin/sh
case "$1" in
bound|renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/$mask" dev "$interface"
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    for r in $router; do ip route replace default via "$r" dev "$interface"; break; done
    [ "$interface" = eth0 ] || exit 0
    : > /etc/resolv.conf
    [ -n "$domain" ] && echo "search $domain" >> /etc/resolv.conf
    for d in $dns; do echo "nameserver $d" >> /etc/resolv.conf; done
    ;;
esac
"#;

const INITTAB: &str = "\
::sysinit:/etc/start
ttyS0::respawn:/bin/busybox getty -n -l /bin/sh 115200 ttyS0 vt100
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/busybox sync
::shutdown:/bin/busybox umount -a -r
";

fn write(path: &Path, content: &str, mode: u32) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    fs::write(path, content).map_err(Error::io("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io("protect", path))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    fs::copy(from, to).map(drop).map_err(Error::io("copy", from))
}

fn library(tree: &Path, name: &str) -> Result<PathBuf> {
    let places = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64"];
    let found = places.iter().map(|place| tree.join(place).join(name)).find(|path| path.exists());
    found.ok_or_else(|| Error::NotFound(format!("library {name}")))
}

fn busybox(tree: &Path) -> Result<PathBuf> {
    let found = ["bin/busybox", "usr/bin/busybox"].iter().map(|place| tree.join(place)).find(|path| path.exists());
    found.ok_or_else(|| Error::NotFound("busybox".into()))
}

/// The modules of a list with all that they need, in the order in which they can be loaded. `Source:` modules.dep(5)
fn with_dependencies(tree: &Path, release: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let path = tree.join("lib/modules").join(release).join("modules.dep");
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let mut modules = BTreeSet::new();
    for line in text.lines() {
        let Some((module, needed)) = line.split_once(':') else { continue };
        let name = module.rsplit('/').next().unwrap_or_default().trim_end_matches(".ko");
        if wanted.contains(&name) {
            modules.insert(module.to_owned());
            modules.extend(needed.split_whitespace().map(str::to_owned));
        }
    }
    Ok(modules.into_iter().collect())
}

/// Makes the root directory.
pub(super) fn make(work: &Path, tree: &Path, release: &str) -> Result<PathBuf> {
    run("busybox", &["depmod", "-b", &tree.to_string_lossy(), release], work)?;
    let root = work.join("root");
    for name in ["bin", "sbin", "dev", "proc", "sys", "run", "tmp", "root", "mnt", "var"] {
        let path = root.join(name);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    }
    for (to, from) in PROGRAMS {
        let from = [tree.join(from), tree.join("usr").join(from)].into_iter().find(|path| path.exists());
        let from = from.ok_or_else(|| Error::NotFound(format!("program {to}")))?;
        copy(&from, &root.join(to))?;
    }
    for name in LIBRARIES {
        copy(&library(tree, name)?, &root.join("lib/x86_64-linux-gnu").join(name))?;
    }
    copy(&library(tree, "ld-linux-x86-64.so.2")?, &root.join("lib64/ld-linux-x86-64.so.2"))?;
    let modules = Path::new("lib/modules").join(release);
    for module in with_dependencies(tree, release, MODULES)? {
        copy(&tree.join(&modules).join(&module), &root.join(&modules).join(&module))?;
    }
    run("busybox", &["depmod", "-b", &root.to_string_lossy(), release], work)?;
    for applet in run(&busybox(tree)?.to_string_lossy(), &["--list"], work)?.lines() {
        let link = root.join("bin").join(applet);
        if !link.exists() && applet != "busybox" {
            symlink("busybox", &link).map_err(Error::io("link", &link))?;
        }
    }
    for (name, target) in
        [("sbin/init", "../bin/busybox"), ("sbin/reboot", "../bin/busybox"), ("usr/bin/mkfs.ext4", "../sbin/mke2fs")]
    {
        symlink(target, root.join(name)).map_err(Error::io("link", root.join(name)))?;
    }
    for (name, content, mode) in [
        ("etc/start", START, 0o755),
        ("etc/udhcpc.script", UDHCPC, 0o755),
        ("etc/freeze", "#!/bin/sh\necho \"$1\" >> /run/freezes\n", 0o755),
        ("etc/inittab", INITTAB, 0o644),
        ("etc/acpi/PWRF/00000080", "#!/bin/sh\npoweroff\n", 0o755),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644),
        ("etc/shadow", "root:*:19000:0:99999:7:::\n", 0o600),
        ("etc/group", "root:x:0:\n", 0o644),
        ("etc/shells", "/bin/sh\n", 0o644),
        ("etc/nsswitch.conf", "passwd: files\nhosts: files dns\n", 0o644),
        ("etc/hosts", "127.0.0.1 localhost\n", 0o644),
    ] {
        write(&root.join(name), content, mode)?;
    }
    Ok(root)
}

/// Makes the RAM disk of the test guest: busybox, the drivers of the root disk, and a script.
pub(super) fn make_initrd(tree: &Path, release: &str, target: &Path) -> Result<()> {
    let archive = with_busybox(tree, release, EARLY_MODULES, EARLY_INIT)?;
    pack(archive, target)
}

/// Makes the RAM disk that a workload's image boots with: it stays the first process, since the image may have no program but
/// its own, brings the network up, and runs what is in `/workload`.
pub(super) fn make_workload_initrd(tree: &Path, release: &str, target: &Path) -> Result<()> {
    let mut archive = with_busybox(tree, release, MODULES, WORKLOAD_INIT)?;
    archive.directory("usr");
    archive.directory("usr/bin");
    archive.file("usr/bin/unshare", &tree.join("usr/bin/unshare"))?;
    archive.directory("etc");
    archive.bytes("etc/udhcpc.script", 0o100_755, UDHCPC.as_bytes());
    for name in ["etc/acpi", "etc/acpi/PWRF"] {
        archive.directory(name);
    }
    archive.bytes("etc/acpi/PWRF/00000080", 0o100_755, WORKLOAD_STOP.as_bytes());
    pack(archive, target)
}

/// Makes what is unpacked over [`make_workload_initrd`]'s files: what to run, and how to stop it.
pub(super) fn append_workload(base: &Path, script: &str, stop_signal: &str, target: &Path) -> Result<()> {
    let mut archive = Archive::default();
    archive.bytes("workload", 0o100_700, script.as_bytes());
    archive.bytes("stop-signal", 0o100_600, stop_signal.as_bytes());
    pack(archive, target)?;
    let mut bytes = fs::read(base).map_err(Error::io("read", base))?;
    bytes.extend(fs::read(target).map_err(Error::io("read", target))?);
    fs::write(target, bytes).map_err(Error::io("write", target))
}

fn with_busybox(tree: &Path, release: &str, wanted: &[&str], init: &str) -> Result<Archive> {
    let mut archive = Archive::default();
    let modules = Path::new("lib/modules").join(release);
    for name in ["bin", "lib", "lib/x86_64-linux-gnu", "lib64", "lib/modules"] {
        archive.directory(name);
    }
    archive.file("bin/busybox", &busybox(tree)?)?;
    archive.link("bin/sh", "busybox");
    for name in ["libc.so.6", "libresolv.so.2"] {
        archive.file(&format!("lib/x86_64-linux-gnu/{name}"), &library(tree, name)?)?;
    }
    archive.file("lib64/ld-linux-x86-64.so.2", &library(tree, "ld-linux-x86-64.so.2")?)?;
    archive.directory(&modules.to_string_lossy());
    let mut made = BTreeSet::new();
    for module in with_dependencies(tree, release, wanted)? {
        let path = modules.join(&module);
        let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents.into_iter().filter(|parent| parent.starts_with(&modules) && **parent != modules) {
            if made.insert(parent.to_owned()) {
                archive.directory(&parent.to_string_lossy());
            }
        }
        archive.file(&path.to_string_lossy(), &tree.join(&path))?;
    }
    archive.file(&modules.join("modules.dep").to_string_lossy(), &tree.join(&modules).join("modules.dep"))?;
    archive.bytes("init", 0o100_755, init.as_bytes());
    Ok(archive)
}

fn pack(archive: Archive, target: &Path) -> Result<()> {
    let bytes = archive.finish();
    let file = fs::File::create(target).map_err(Error::io("create", target))?;
    let mut encoder = GzEncoder::new(file, Compression::best());
    encoder.write_all(&bytes).and_then(|()| encoder.finish()?.sync_all()).map_err(Error::io("write", target))
}

/// A cpio archive as the kernel unpacks it. `Source:` Linux, Documentation/driver-api/early-userspace/buffer-format.rst
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    count: usize,
}

impl Archive {
    fn bytes(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.count += 1;
        let fields = [self.count, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn directory(&mut self, name: &str) {
        self.bytes(name, 0o040_755, &[]);
    }

    fn link(&mut self, name: &str, target: &str) {
        self.bytes(name, 0o120_777, target.as_bytes());
    }

    fn file(&mut self, name: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).map_err(Error::io("read", from))?;
        self.bytes(name, 0o100_755, &content);
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
