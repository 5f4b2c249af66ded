//! Whether `nuee down --all` left anything behind: process, mount, interface, namespace, nft table, cgroup.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{LOOK, Nuee, census};

/// How long what was ended may take to be gone on a busy machine.
const GRACE: Duration = Duration::from_secs(10);

/// Fails with a list of what is left.
pub fn check(nuee: &Nuee) -> Result<()> {
    let begun = Instant::now();
    loop {
        let left = found(nuee)?;
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > GRACE {
            bail!("left behind:\n{}", left.join("\n"));
        }
        std::thread::sleep(LOOK);
    }
}

fn found(nuee: &Nuee) -> Result<Vec<String>> {
    let data = nuee.data();
    let needle = data.display().to_string();
    let mut left: Vec<String> =
        census::processes(&needle).into_iter().map(|(pid, line)| format!("process {pid} {line}")).collect();
    left.extend(census::mounts(nuee)?.into_iter().map(|point| format!("mount {point}")));
    left.extend(census::interfaces(nuee)?.into_iter().map(|name| format!("interface {name}")));
    let tables = nuee.run("nft", &["list", "tables"])?.success()?.stdout;
    left.extend(tables.lines().map(|line| format!("nft {line}")));
    let groups =
        census::control_groups(Path::new("/sys/fs/cgroup"), &format!("nuee-{}", census::instance_id(&data)), 0);
    left.extend(groups.into_iter().map(|path| format!("cgroup {path}")));
    Ok(left)
}
