//! A disk that boots from BIOS and by UEFI: a FAT partition with kernel, RAM disk, syslinux and systemd-boot, and an ext4 root. Made without
//! mounts.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::run;
use crate::error::{Error, Result};

/// Units: bytes.
const SECTOR: u64 = 512;
/// Where the first partition begins, as everybody aligns it. Units: bytes.
const ALIGNMENT: u64 = 1 << 20;
/// Room in the FAT partition beside the files. Units: bytes.
const BOOT_SPARE: u64 = 3 << 20;
/// The code of a master boot record ends here. Units: bytes.
const CODE_BYTES: usize = 440;
const TYPE_FAT16: u8 = 0x0e;
const TYPE_LINUX: u8 = 0x83;
/// Where Debian puts the master boot record.
const RECORDS: &[&str] = &["/usr/lib/syslinux/mbr/mbr.bin", "/usr/lib/SYSLINUX/mbr.bin"];

/// Name of systemd-boot beside the other files of a built guest.
pub(super) const LOADER: &str = "loader.efi";
/// Its only entry. `Source:` the Boot Loader Specification
const ENTRY: &str = "linux.conf";

/// What goes onto the disk.
pub struct Parts<'a> {
    /// Directory of the root file system.
    pub root: &'a Path,
    /// Kernel.
    pub kernel: &'a Path,
    /// RAM disk.
    pub initrd: &'a Path,
    /// What UEFI starts: systemd-boot.
    pub loader: &'a Path,
    /// Command line of the kernel.
    pub command_line: &'a str,
    /// Size of the root file system. Units: bytes.
    pub root_bytes: u64,
}

fn size(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).map_err(Error::io("look at", path))?.len())
}

/// Makes the disk, as compressed qcow2.
///
/// Errors: a program is missing (syslinux, mtools, dosfstools, e2fsprogs, qemu-utils).
pub fn make(parts: &Parts<'_>, work: &Path, target: &Path) -> Result<()> {
    let boot_bytes = (size(parts.kernel)? + size(parts.initrd)? + BOOT_SPARE).next_multiple_of(ALIGNMENT);
    let (boot, root, disk) = (work.join("boot.img"), work.join("root.img"), work.join("disk.raw"));
    make_boot(parts, work, &boot, boot_bytes)?;
    truncate(&root, parts.root_bytes)?;
    let (directory, file) = (parts.root.to_string_lossy(), root.to_string_lossy());
    let uuid = "5ad0c0de-0000-4000-8000-000000000001";
    // Without metadata checksums, old boot loaders and busybox' tools read it too.
    run(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            "^metadata_csum,^64bit",
            "-m",
            "0",
            "-L",
            "root",
            "-U",
            uuid,
            "-E",
            &format!("hash_seed={uuid}"),
            "-d",
            &directory,
            &file,
        ],
        work,
    )?;
    let mut output = File::create(&disk).map_err(Error::io("create", &disk))?;
    let starts = [ALIGNMENT, ALIGNMENT + boot_bytes];
    output.write_all(&record(starts, [boot_bytes, parts.root_bytes])?).map_err(Error::io("write", &disk))?;
    for (start, part) in starts.into_iter().zip([&boot, &root]) {
        output.seek(SeekFrom::Start(start)).map_err(Error::io("write", &disk))?;
        let mut input = File::open(part).map_err(Error::io("open", part))?;
        std::io::copy(&mut input, &mut output).map_err(Error::io("write", &disk))?;
    }
    let end = starts[1] + parts.root_bytes + ALIGNMENT;
    output.set_len(end).and_then(|()| output.sync_all()).map_err(Error::io("write", &disk))?;
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", "-c", &disk.to_string_lossy(), &target.to_string_lossy()],
        work,
    )?;
    for path in [boot, root, disk] {
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

fn truncate(path: &Path, bytes: u64) -> Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).open(path).map_err(Error::io("create", path))?;
    file.set_len(bytes).map_err(Error::io("size", path))
}

fn make_boot(parts: &Parts<'_>, work: &Path, image: &Path, bytes: u64) -> Result<()> {
    truncate(image, bytes)?;
    let config = work.join("syslinux.cfg");
    let text = format!(
        "DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n  KERNEL kernel\n  INITRD initrd\n  APPEND {}\n",
        parts.command_line
    );
    fs::write(&config, text).map_err(Error::io("write", &config))?;
    let image = image.to_string_lossy();
    let hidden = (ALIGNMENT / SECTOR).to_string();
    run("mkfs.vfat", &["-F", "16", "-h", &hidden, "-i", "4e554545", "-n", "BOOT", &image], work)?;
    // UEFI reads any FAT partition of the disk, whatever its type, and starts this program of one that it does not know.
    run("mmd", &["-i", &image, "::EFI", "::EFI/BOOT", "::loader", "::loader/entries"], work)?;
    let entry = work.join(ENTRY);
    let text = format!("title Linux\nlinux /kernel\ninitrd /initrd\noptions {}\n", parts.command_line);
    fs::write(&entry, text).map_err(Error::io("write", &entry))?;
    let copies = [
        (parts.kernel, "::kernel"),
        (parts.initrd, "::initrd"),
        (&config, "::syslinux.cfg"),
        (parts.loader, "::EFI/BOOT/BOOTX64.EFI"),
        (&entry, "::loader/entries/linux.conf"),
    ];
    for (from, to) in copies {
        run("mcopy", &["-i", &image, &from.to_string_lossy(), to], work)?;
    }
    run("syslinux", &["--install", &image], work).map(drop)
}

/// The master boot record: syslinux' code, and two partitions of which the first is active.
fn record(starts: [u64; 2], lengths: [u64; 2]) -> Result<Vec<u8>> {
    let path = RECORDS.iter().map(Path::new).find(|path| path.exists());
    let path = path.ok_or_else(|| Error::NotFound("mbr.bin of syslinux".into()))?;
    let mut code = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut code)).map_err(Error::io("read", path))?;
    let mut bytes = vec![0u8; 512];
    let length = code.len().min(CODE_BYTES);
    bytes[..length].copy_from_slice(&code[..length]);
    for (index, ((start, length), kind)) in starts.into_iter().zip(lengths).zip([TYPE_FAT16, TYPE_LINUX]).enumerate() {
        let sectors =
            |bytes: u64| u32::try_from(bytes / SECTOR).map_err(|_| Error::Invalid("the disk is too large".into()));
        let entry = &mut bytes[446 + 16 * index..462 + 16 * index];
        entry[0] = if index == 0 { 0x80 } else { 0 };
        // Cylinders are not used any more: the largest says so.
        entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
        entry[4] = kind;
        entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
        entry[8..12].copy_from_slice(&sectors(start)?.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors(length)?.to_le_bytes());
    }
    bytes[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(bytes)
}
