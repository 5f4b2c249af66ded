//! Guests beside guests: one that takes whatever it can leaves the others what is theirs; and ten from one image are each their own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::virtual_machine::Lab;

/// How long both take all that they get. Shares hold over many turns of the scheduler, not over few.
const CONTEST: Duration = Duration::from_secs(10);
/// Processor time of one beside the other's where one has four times the shares; without shares it would be 1.
const LEAST_RATIO: f64 = 2.0;
const CLONES: usize = 10;

/// Processor time that a guest's hypervisor has taken. Units: ticks.
fn taken(lab: &Lab, name: &str) -> Result<f64> {
    let pid = lab.get(name, ".status.pid")?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field may hold anything but ends with the last parenthesis; user and system time are fields 14 and 15.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("no such field");
    Ok(field(11)? + field(12)?)
}

#[test]
fn a_noisy_guest_leaves_its_neighbour_its_share_and_ten_clones_are_each_their_own() -> Result<()> {
    let lab = Lab::new()?;
    let nuee = &lab.nuee;
    // Both on one processor, so that there is something to contend for.
    for (name, shares) in [("quiet", 2048), ("noisy", 512)] {
        let spec = "image: tiny, cpus: 1, memory: 128Mi, keyPairs: [me], cpuSet: \"0\"";
        lab.machine(name, &format!("{spec}, cpuShares: {shares}"))?;
    }
    for name in ["quiet", "noisy"] {
        lab.ready(name)?;
        let address = lab.get(name, ".status.addresses[0].ip")?;
        lab.ssh(&address, "(while :; do :; done) >/dev/null 2>&1 & echo $! > /spinner")?;
    }
    let before = (taken(&lab, "quiet")?, taken(&lab, "noisy")?);
    std::thread::sleep(CONTEST);
    let (quiet, noisy) = (taken(&lab, "quiet")? - before.0, taken(&lab, "noisy")? - before.1);
    ensure!(quiet > LEAST_RATIO * noisy, "the quiet one had {quiet} ticks, the noisy one {noisy}");
    ensure!(noisy > 0.0, "the noisy one had nothing at all");

    // Saved with what it has synced, it is the template of many.
    let address = lab.get("quiet", ".status.addresses[0].ip")?;
    lab.ssh(&address, "kill $(cat /spinner); echo kept > /kept; sync")?;
    nuee.nuee(&["vm", "save", "quiet", "saved"])?.success()?;
    nuee.kubectl(&["delete", "vm", "quiet", "noisy", "--timeout=60s"])?.success()?;
    let node =
        nuee.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?.success()?.text().to_owned();
    let names: Vec<String> = (0..CLONES).map(|index| format!("clone{index}")).collect();
    for name in &names {
        // Bound by hand: so many processors are not there to be promised.
        let spec = format!("image: saved, cpus: 1, memory: 128Mi, keyPairs: [me], nodeName: {node}");
        lab.machine(name, &spec)?;
    }
    nuee.eventually("all clones run", || {
        let phases = nuee.kubectl(&["get", "vm", "-o", "jsonpath={.items[*].status.phase}"])?.success()?;
        Ok(phases.text().split_whitespace().filter(|phase| *phase == "Running").count() == CLONES)
    })?;
    // Two of them are looked at: each boot is emulated, and others want the processors, too.
    let (looked_at, rest) = names.split_at(2);
    let mut delete = vec!["delete", "vm", "--timeout=120s"];
    delete.extend(rest.iter().map(String::as_str));
    nuee.kubectl(&delete)?.success()?;
    let addresses = looked_at.iter().map(|name| {
        lab.ready(name)?;
        lab.get(name, ".status.addresses[0].ip")
    });
    let addresses = addresses.collect::<Result<Vec<String>>>()?;
    for (name, address) in looked_at.iter().zip(&addresses) {
        assert_eq!(
            lab.ssh(address, &format!("cat /kept; hostname; echo {name} > /own; sync"))?,
            format!("kept\n{name}")
        );
    }
    for (name, address) in looked_at.iter().zip(&addresses) {
        assert_eq!(lab.ssh(address, "cat /own")?, *name, "another one's disk");
    }
    let mut delete = vec!["delete", "vm", "--timeout=60s"];
    delete.extend(looked_at.iter().map(String::as_str));
    nuee.kubectl(&delete)?.success()?;
    lab.nuee.finish()
}
