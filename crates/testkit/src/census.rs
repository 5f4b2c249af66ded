//! What one instance has on the machine: processes, mounts, interfaces, nftables rules, control groups, and the files that
//! stand for them. Two counts that are equal mean that nothing was leaked between them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::{Nuee, pool};

/// Directories of the data directory that hold one entry per container, address, publication, namespace or snapshot.
const BOOKS: [&str; 7] =
    ["containers", "pins", "pods", "network/addresses", "network/publications", "run/netns", "images/snapshots"];
/// How deep control groups are looked for.
const GROUP_DEPTH: usize = 4;
/// How deep the books are.
const BOOK_DEPTH: usize = 2;

/// What was found, by sort of thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    found: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Census {
    /// Counts now.
    pub fn take(nuee: &Nuee) -> Result<Self> {
        let data = nuee.data();
        let mut census = Self::default();
        // The process that forks shims comes anew with each daemon: one is right, two are not.
        let (servers, shims): (Vec<_>, Vec<_>) =
            shims(&data).into_iter().partition(|(_, line)| line.contains(" --serve "));
        census.add("servers of shims", [servers.len().to_string()]);
        census.add("shim", shims.into_iter().map(|(pid, line)| format!("{pid} {line}")));
        census.add("mount", mounts(nuee)?);
        census.add("interface", interfaces(nuee)?);
        let rules = nuee.run("nft", &["--stateless", "list", "ruleset"])?.success()?.stdout;
        // Sets print several elements per line, in no fixed order.
        census.add("nft", rules.split([',', '\n']).map(|part| part.trim_matches([' ', '\t', '{', '}']).to_owned()));
        census.add("cgroup", control_groups(Path::new("/sys/fs/cgroup"), &format!("nuee-{}", instance_id(&data)), 0));
        for book in BOOKS {
            census.add(book, files(&data.join(book), BOOK_DEPTH));
        }
        Ok(census)
    }

    fn add(&mut self, sort: &'static str, entries: impl IntoIterator<Item = String>) {
        self.found.entry(sort).or_default().extend(entries);
    }

    /// What is here and was not in `before`, one line each.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        self.found
            .iter()
            .flat_map(|(sort, entries)| {
                entries.difference(before.found.get(sort).unwrap_or(&none)).map(move |entry| format!("{sort}: {entry}"))
            })
            .collect()
    }
}

/// Shims of the instance: process id and command line.
fn shims(data: &Path) -> Vec<(u32, String)> {
    let needle = data.display().to_string();
    processes(&needle).into_iter().filter(|(_, line)| line.contains(" shim ")).collect()
}

/// Processes whose command line holds this text.
pub fn processes(needle: &str) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_string_lossy().parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(needle).then_some((pid, line))
        })
        .collect()
}

/// Command lines, word by word, that hold this text.
pub fn command_lines(needle: &str) -> Vec<Vec<String>> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let lines = entries.flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(needle))
        .map(|line| line.split_terminator('\0').map(str::to_owned).collect())
        .collect()
}

/// Mount points below the data directory.
pub fn mounts(nuee: &Nuee) -> Result<Vec<String>> {
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", nuee.space().pid()))?;
    let below = nuee.data().display().to_string();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|point| point.starts_with(&below)).map(str::to_owned).collect())
}

/// Interfaces in the instance's namespace, without those that the kernel itself puts into each new one.
pub fn interfaces(nuee: &Nuee) -> Result<Vec<String>> {
    let own = |name: &str| {
        !matches!(
            name,
            "lo" | "tunl0"
                | "sit0"
                | "ip6tnl0"
                | "gre0"
                | "gretap0"
                | "erspan0"
                | "ip_vti0"
                | "ip6_vti0"
                | "ip6gre0"
                | pool::UPLINK
        )
    };
    let text = nuee.run("ip", &["-o", "link"])?.success()?.stdout;
    let names = text.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
    Ok(names.filter(|name| own(name)).map(str::to_owned).collect())
}

/// Control groups of this name and all below.
pub fn control_groups(directory: &Path, name: &str, depth: usize) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let path = entry.path();
        if path.to_string_lossy().contains(name) {
            found.push(path.display().to_string());
        }
        if depth < GROUP_DEPTH {
            found.extend(control_groups(&path, name, depth + 1));
        }
    }
    found
}

/// The same name that the daemon gives its control groups: FNV-1a of the data directory's path.
pub fn instance_id(data: &Path) -> String {
    let bytes = data.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

fn files(directory: &Path, depth: usize) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if depth > 1 && path.is_dir() {
            found.extend(files(&path, depth - 1));
        }
        found.push(path.display().to_string());
    }
    found
}
