//! A machine goes back to a snapshot in place: all its disks, or one, also when the daemon is killed on the way.

use anyhow::{Result, ensure};

use crate::virtual_machine::Lab;

struct Web {
    lab: Lab,
    address: String,
}

impl Web {
    fn ssh(&self, line: &str) -> Result<String> {
        self.lab.ssh(&self.address, line)
    }

    fn nuee(&self, arguments: &[&str]) -> Result<()> {
        self.lab.nuee.nuee(arguments)?.success().map(drop)
    }

    /// Writes to both disks, and says by which sums that is known.
    fn write(&self, word: &str) -> Result<String> {
        self.ssh(&format!(
            "echo {word} > /root/word; d=$(grep -l data /sys/block/vd*/serial); d=/dev/$(basename $(dirname $d)); \
             (echo {word}; dd if=/dev/urandom bs=64k count=8 2>/dev/null) | dd of=$d bs=64k conv=fsync 2>/dev/null; sync"
        ))?;
        self.sums()
    }

    fn sums(&self) -> Result<String> {
        self.ssh(
            "echo 3 > /proc/sys/vm/drop_caches; d=$(grep -l data /sys/block/vd*/serial); d=/dev/$(basename $(dirname $d)); \
             cat /root/word; md5sum < $d",
        )
    }

    /// What was told of starts that failed, and how often.
    fn failed_starts(&self) -> Result<String> {
        let path = "jsonpath={range .items[?(@.reason==\"FailedStart\")]}{.count} {.message}{\"\\n\"}{end}";
        Ok(self.lab.nuee.kubectl(&["get", "events", "-o", path])?.success()?.text().to_owned())
    }

    fn is_back(&self, request: &str, sums: &str) -> Result<()> {
        let (lab, nuee) = (&self.lab, &self.lab.nuee);
        nuee.eventually("its disks have gone back", || Ok(lab.get("web", ".status.observedRevert")? == request))?;
        lab.ready("web")?;
        ensure!(self.sums()? == sums, "{} is not {sums}", self.sums()?);
        ensure!(lab.get("web", ".status.phase")? == "Running" && lab.get("web", ".status.message")?.is_empty());
        Ok(())
    }
}

#[test]
fn a_machine_goes_back_to_a_snapshot() -> Result<()> {
    let lab = Lab::new()?;
    lab.nuee.nuee(&["volume", "create", "data", "--size", "16Mi"])?.success()?;
    lab.machine("web", "image: tiny, cpus: 1, memory: 128Mi, keyPairs: [me], disks: [{volume: data}]")?;
    lab.ready("web")?;
    let address = lab.get("web", ".status.addresses[0].ip")?;
    let web = Web { lab, address };
    let nuee = &web.lab.nuee;
    let then = web.write("then")?;
    web.nuee(&["vm", "snapshot", "web", "monday"])?;
    let later = web.write("later")?;
    ensure!(then != later);

    // What makes no sense changes nothing, and does not stop it.
    let pid = web.lab.get("web", ".status.pid")?;
    nuee.nuee(&["vm", "revert", "web", "nowhere"])?.failure(1, "snapshot nowhere not found")?;
    let bare = "{\"spec\":{\"revertRequest\":1}}";
    nuee.kubectl(&["patch", "vm", "web", "--type=merge", "-p", bare])?.failure(1, "spec.revertSnapshot")?;
    let missing = "{\"spec\":{\"revertRequest\":1,\"revertSnapshot\":\"nowhere\"}}";
    nuee.kubectl(&["patch", "vm", "web", "--type=merge", "-p", missing])?.success()?;
    nuee.eventually("it says what is missing", || {
        Ok(web.lab.get("web", ".status.message")?.contains("snapshot nowhere not found"))
    })?;
    ensure!(web.lab.get("web", ".status.pid")? == pid && web.sums()? == later);

    // All disks go back, without a start that fails on the way; the snapshot is there for another time.
    let failures = web.failed_starts()?;
    web.nuee(&["vm", "revert", "web", "monday"])?;
    web.is_back("2", &then)?;
    ensure!(web.failed_starts()? == failures, "{}", web.failed_starts()?);
    let tuesday = web.write("tuesday")?;
    web.nuee(&["snapshot", "create", "volume-alone", "--volume", "data"])?;
    let after = web.write("after")?;

    // The daemon dies right after it was asked, and again while it is done.
    web.nuee(&["vm", "revert", "web", "monday"])?;
    nuee.kill_daemon()?;
    nuee.up()?;
    // It may be through before anybody looks.
    nuee.eventually("it is on its way", || {
        Ok(web.lab.get("web", ".status.phase")? != "Running" || web.lab.get("web", ".status.observedRevert")? == "3")
    })?;
    nuee.kill_daemon()?;
    nuee.up()?;
    web.is_back("3", &then)?;

    // One disk alone, and what was written to the other stays.
    ensure!(web.write("root stays")? != tuesday);
    web.nuee(&["vm", "revert", "web", "volume-alone"])?;
    let (_, sum) = tuesday.split_once('\n').unwrap_or_default();
    web.is_back("4", &format!("root stays\n{sum}"))?;
    ensure!(after != tuesday);

    // Off, it goes back when it starts.
    web.nuee(&["vm", "stop", "web"])?;
    nuee.eventually("it is off", || Ok(web.lab.get("web", ".status.phase")? == "Stopped"))?;
    let back = "{\"spec\":{\"revertRequest\":5,\"revertSnapshot\":\"monday\"}}";
    nuee.kubectl(&["patch", "vm", "web", "--type=merge", "-p", back])?.success()?;
    web.nuee(&["vm", "start", "web"])?;
    web.is_back("5", &then)?;

    // What was made from a snapshot needs it no more.
    nuee.kubectl(&["delete", "snapshots", "--all", "--timeout=60s"])?.success()?;
    ensure!(web.sums()? == then);
    nuee.kubectl(&["delete", "vm,volumes,diskimages", "--all", "--timeout=60s"])?.success()?;
    let layers = nuee.data().join("disks/layers");
    nuee.eventually("no layer is left", || Ok(std::fs::read_dir(&layers)?.next().is_none()))?;
    web.lab.nuee.finish()
}
