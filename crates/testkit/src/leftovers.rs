//! Whether `nuee down --all` left anything behind: process, mount, interface, namespace, nft table, cgroup.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::Nuee;

/// Fails with a list of what is left.
pub fn check(nuee: &Nuee) -> Result<()> {
    let data = nuee.data();
    let mut left = processes(&data);
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", nuee.space().pid()))?;
    let below = data.display().to_string();
    left.extend(mounts.lines().filter(|line| line.contains(&below)).map(|line| format!("mount {line}")));
    for line in nuee.run("ip", &["-o", "link"])?.success()?.stdout.lines() {
        let name = line.split(": ").nth(1).unwrap_or_default();
        // Module defaults that the kernel itself puts into each new namespace are no leftovers.
        if !matches!(
            name.split('@').next().unwrap_or_default(),
            "lo" | "tunl0" | "sit0" | "ip6tnl0" | "gre0" | "gretap0" | "erspan0" | "ip_vti0" | "ip6_vti0" | "ip6gre0"
        ) {
            left.push(format!("interface {line}"));
        }
    }
    let tables = nuee.run("nft", &["list", "tables"])?.success()?.stdout;
    left.extend(tables.lines().map(|line| format!("nft {line}")));
    left.extend(control_groups(Path::new("/sys/fs/cgroup"), &format!("nuee-{}", instance_id(&data)), 0));
    if left.is_empty() { Ok(()) } else { bail!("left behind:\n{}", left.join("\n")) }
}

fn processes(data: &Path) -> Vec<String> {
    let needle = data.display().to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(&needle).then(|| format!("process {} {line}", entry.file_name().to_string_lossy()))
        })
        .collect()
}

/// The same name that the daemon gives its control groups: FNV-1a of the data directory's path.
fn instance_id(data: &Path) -> String {
    let bytes = data.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

fn control_groups(directory: &Path, name: &str, depth: usize) -> Vec<String> {
    const DEPTH: usize = 3;
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().to_string_lossy().contains(name) {
            found.push(format!("cgroup {}", entry.path().display()));
        } else if depth < DEPTH {
            found.extend(control_groups(&entry.path(), name, depth + 1));
        }
    }
    found
}
