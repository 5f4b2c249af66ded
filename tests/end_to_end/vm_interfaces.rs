//! Virtual machines with several network interfaces, which come and go while the guest runs. One guest serves many checks, since each costs
//! a boot.

use anyhow::{Context, Result};
use testkit::{Nuee, Pool};

use crate::join::{field, pool};
use crate::virtual_machine::Lab;

/// How long a guest may take to boot on a machine under load that translates every instruction.
const BOOT: &str = "--timeout=300s";
/// The hardware address that is wished for.
const MAC: &str = "52:54:00:6e:75:65";

fn object(nuee: &Nuee, kind: &str, name: &str, spec: &str) -> Result<()> {
    let text = format!("apiVersion: nuee.dev/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n");
    nuee.apply(&text)?.success().map(drop)
}

/// A container on a network that serves a page.
fn serve(nuee: &Nuee, name: &str, network: &str) -> Result<()> {
    nuee.docker(&["run", "-d", "--name", name, "--network", network, "web:test"])?.success().map(drop)
}

fn pings(nuee: &Nuee, from: &str, to: &str) -> Result<bool> {
    Ok(nuee.docker(&["exec", from, "ping", "-c", "1", "-W", "2", to])?.status == 0)
}

fn patch(nuee: &Nuee, spec: &str) -> Result<()> {
    let change = format!("{{\"spec\": {spec}}}");
    nuee.kubectl(&["patch", "vm", "one", "--type=merge", "-p", &change])?.success().map(drop)
}

/// Waits until the guest has what its object says, as far as is told.
fn attached(lab: &Lab) -> Result<()> {
    lab.nuee.eventually("the interfaces are as wished", || {
        let condition = ".status.conditions[?(@.type==\"InterfacesAttached\")]";
        let seen = lab.get("one", &format!("{condition}.observedGeneration"))?;
        Ok(seen == lab.get("one", ".metadata.generation")? && lab.get("one", &format!("{condition}.status"))? == "True")
    })
}

/// Names of the guest's interfaces with their hardware addresses, as the guest sees them.
fn seen(lab: &Lab, address: &str) -> Result<Vec<String>> {
    let line = "cat /sys/class/net/eth*/address";
    let mut macs: Vec<String> = lab.ssh(address, line)?.split_whitespace().map(str::to_owned).collect();
    macs.sort();
    Ok(macs)
}

/// The same as the status tells it.
fn told(lab: &Lab) -> Result<Vec<String>> {
    let mut macs: Vec<String> =
        lab.get("one", ".status.addresses[*].mac")?.split_whitespace().map(str::to_owned).collect();
    macs.sort();
    Ok(macs)
}

fn taps(nuee: &Nuee) -> Result<usize> {
    let links = nuee.run("ip", &["-o", "link", "show", "type", "tun"])?.success()?;
    Ok(links.stdout.lines().count())
}

/// The guest asks for the address of an interface that came later.
fn configure(lab: &Lab, address: &str, mac: &str) -> Result<()> {
    let line = format!(
        "for d in /sys/class/net/eth*; do if [ \"$(cat $d/address)\" = {mac} ]; then i=${{d##*/}}; ip link set $i up; \
         udhcpc -i $i -q -n -t 10 -T 1 -s /etc/udhcpc.script > /dev/null 2>&1 && echo $i; fi; done"
    );
    lab.nuee.eventually("the guest configures the new interface", || Ok(!lab.ssh(address, &line)?.is_empty()))
}

#[test]
fn interfaces_come_and_go_while_the_guest_runs() -> Result<()> {
    let lab = Lab::new()?;
    let nuee = &lab.nuee;
    object(nuee, "Network", "back", "name: back, subnet: 10.97.0.0/24")?;
    object(nuee, "Network", "third", "name: third, subnet: 10.98.0.0/24")?;
    object(nuee, "SecurityGroup", "icmp", "rules: [{protocol: icmp}]")?;
    serve(nuee, "peer", "back")?;
    serve(nuee, "far", "third")?;
    serve(nuee, "front", "bridge")?;
    let first = "{network: bridge}";
    let second = format!("{{network: back, macAddress: \"{MAC}\", securityGroups: [icmp]}}");
    // Contradictions are refused, and so are more than there are places for.
    let refused = |spec: &str, word: &str| {
        let text = format!(
            "apiVersion: nuee.dev/v1\nkind: VirtualMachine\nmetadata: {{name: x}}\nspec: {{image: tiny, {spec}}}\n"
        );
        nuee.apply(&text)?.failure(1, word).map(drop)
    };
    refused(&format!("network: back, interfaces: [{first}]"), "spec.network")?;
    refused(&format!("interfaces: [{}]", [first; 6].join(", ")), "must have at most 5")?;
    lab.machine(
        "one",
        &format!("image: tiny, cpus: 1, memory: 128Mi, keyPairs: [me], configDrive: OpenStack, interfaces: [{first}, {second}]"),
    )?;
    lab.ready("one")?;
    attached(&lab)?;
    let address = lab.get("one", ".status.addresses[0].ip")?;
    let inner = lab.get("one", ".status.addresses[1].ip")?;
    assert!(inner.starts_with("10.97.0."), "{inner}");
    assert_eq!(lab.get("one", ".status.addresses[1].mac")?, MAC);
    assert_eq!(lab.get("one", ".status.addresses[1].securityGroups")?, "[\"icmp\"]");
    let on_guest = |line: &str| lab.ssh(&address, line);
    nuee.eventually(
        "the guest has both addresses",
        || Ok(on_guest("ip -4 -o addr")?.contains(&format!("{inner}/24"))),
    )?;
    // One way out, by the first; it is told of both, by the service and on its drive.
    assert_eq!(on_guest("ip route | grep default | cut -d ' ' -f 5")?, "eth0");
    for what in [
        "wget -q -O - http://169.254.169.254/openstack/latest/network_data.json",
        "cat /run/seed/openstack/latest/network_data.json",
    ] {
        let told = on_guest(what)?;
        assert!(told.contains(&inner) && told.contains(&address) && told.contains(MAC), "{told}");
    }
    let number =
        format!("wget -q -O - http://169.254.169.254/latest/meta-data/network/interfaces/macs/{MAC}/device-number");
    assert_eq!(on_guest(&number)?, "1");

    // Each interface has its own guard, and its own name on its network.
    on_guest("mkdir -p /www && echo from the guest > /www/page && httpd -p 80 -h /www")?;
    let gets = |from: &str, to: &str| {
        let got =
            nuee.docker(&["exec", from, "timeout", "3", "wget", "-q", "-O", "-", &format!("http://{to}/page")])?;
        Ok::<_, anyhow::Error>(got.text() == "from the guest")
    };
    nuee.eventually("a neighbour reaches it by name", || pings(nuee, "peer", "one"))?;
    nuee.eventually("the first interface is open", || gets("front", &address))?;
    assert!(!gets("peer", &inner)?);
    nuee.eventually("the group has that address alone", || {
        Ok(field(nuee, &["sg", "icmp"], ".status.addresses")? == format!("[\"{inner}\"]"))
    })?;
    // What it is not it cannot speak as: another address of the network, or its own of the other one.
    let peer = nuee.docker(&["inspect", "-f", "{{.NetworkSettings.Networks.back.IPAddress}}", "peer"])?.success()?;
    let peer = peer.text().to_owned();
    assert_eq!(on_guest(&format!("ping -c 1 -W 2 {peer} > /dev/null && echo fine"))?, "fine");
    for forged in ["10.97.0.200", address.as_str()] {
        let line = format!(
            "ip addr add {forged}/32 dev eth1; ping -c 1 -W 2 -I {forged} {peer} > /dev/null; echo $?; ip addr del {forged}/32 dev eth1"
        );
        assert_ne!(on_guest(&line)?, "0", "{forged}");
    }

    // One comes while it runs.
    nuee.nuee(&["vm", "attach-interface", "one", "--network", "third"])?.success()?;
    let third = lab.get("one", ".status.addresses[2].ip")?;
    assert!(third.starts_with("10.98.0."), "{third}");
    configure(&lab, &address, &lab.get("one", ".status.addresses[2].mac")?)?;
    nuee.eventually("a neighbour reaches the third interface", || pings(nuee, "far", &third))?;
    nuee.eventually("and by name", || gets("far", "one"))?;
    assert_eq!((seen(&lab, &address)?, taps(nuee)?), (told(&lab)?, 3));
    nuee.kill_daemon()?;
    nuee.up()?;
    attached(&lab)?;
    assert_eq!((seen(&lab, &address)?, taps(nuee)?), (told(&lab)?, 3));
    nuee.eventually("it is reached as before", || Ok(pings(nuee, "far", &third)? && gets("front", &address)?))?;
    assert!(!gets("peer", &inner)?);

    // Killed in the middle of either, whatever came of it: in the end it is as wished, and said.
    for list in [
        format!("[{{}}, {second_json}]", second_json = second_json()),
        format!("[{{}}, {}, {{\"network\": \"third\"}}]", second_json()),
    ] {
        patch(nuee, &format!("{{\"interfaces\": {list}}}"))?;
        nuee.kill_daemon()?;
        nuee.up()?;
        attached(&lab)?;
        assert_eq!((seen(&lab, &address)?, taps(nuee)?), (told(&lab)?, list.matches('{').count()));
    }
    sleeps_and_is_made_anew(&lab, &address, &inner)?;
    // A new daemon looks after it though its key pair is gone: what follows needs that.
    nuee.kubectl(&["delete", "keypair", "me", "--timeout=60s"])?.success()?;
    nuee.kill_daemon()?;
    nuee.up()?;

    // A port is had while it runs, by one at a time, and is free again at once.
    object(nuee, "Port", "spare", "network: third, address: 10.98.0.77")?;
    nuee.kubectl(&["wait", "--for=jsonpath={.status.phase}=Available", "port/spare", "--timeout=60s"])?.success()?;
    nuee.nuee(&["vm", "attach-interface", "one", "--port", "spare"])?.success()?;
    assert_eq!(lab.get("one", ".status.addresses[3].ip")?, "10.98.0.77");
    assert_eq!(field(nuee, &["port", "spare"], ".status.attachedTo.virtualMachine")?, "one");
    configure(&lab, &address, &lab.get("one", ".status.addresses[3].mac")?)?;
    nuee.nuee(&["vm", "detach-interface", "one", "--network", "third"])?.success()?;
    nuee.eventually("a neighbour reaches it by the port", || pings(nuee, "far", "10.98.0.77"))?;
    nuee.nuee(&["vm", "detach-interface", "one", "--port", "spare"])?.success()?;
    nuee.kubectl(&["wait", "--for=jsonpath={.status.phase}=Available", "port/spare", "--timeout=60s"])?.success()?;
    assert!(!pings(nuee, "far", "10.98.0.77")?);
    assert_eq!((seen(&lab, &address)?, taps(nuee)?), (told(&lab)?, 2));

    // What it gave back is anybody's; even the first one goes.
    nuee.docker(&["run", "-d", "--name", "heir", "--network", "third", "--ip", &third, "web:test"])?.success()?;
    nuee.nuee(&["vm", "detach-interface", "one", "--network", "bridge"])?.success()?;
    assert_eq!(lab.get("one", ".status.addresses[*].ip")?, inner);
    nuee.eventually("it is reached by what it still has", || pings(nuee, "peer", &inner))?;
    nuee.nuee(&["vm", "detach-interface", "one", "--network", "back"])?.failure(1, "one interface")?;
    nuee.kubectl(&["delete", "vm", "one", "--timeout=120s"])?.success()?;
    assert_eq!(taps(nuee)?, 0);
    nuee.docker(&["rm", "-f", "peer", "far", "front", "heir"])?.success()?;
    lab.nuee.finish()
}

fn second_json() -> String {
    format!("{{\"network\": \"back\", \"macAddress\": \"{MAC}\", \"securityGroups\": [\"icmp\"]}}")
}

/// The interfaces are where they were after a sleep, and after the disk was made anew.
fn sleeps_and_is_made_anew(lab: &Lab, address: &str, inner: &str) -> Result<()> {
    let nuee = &lab.nuee;
    let before = lab.get("one", ".status.addresses")?;
    nuee.nuee(&["vm", "suspend", "one"])?.success()?;
    nuee.eventually("it sleeps", || Ok(lab.get("one", ".status.phase")? == "Suspended"))?;
    nuee.nuee(&["vm", "start", "one"])?.success()?;
    lab.ready("one")?;
    attached(lab)?;
    assert_eq!(lab.get("one", ".status.addresses")?, before);
    nuee.eventually("a neighbour reaches it again", || pings(nuee, "peer", inner))?;
    nuee.nuee(&["vm", "rebuild", "one"])?.success()?;
    nuee.eventually("it is made anew", || Ok(lab.get("one", ".status.observedRebuild")? == "1"))?;
    lab.ready("one")?;
    attached(lab)?;
    assert_eq!(lab.get("one", ".status.addresses")?, before);
    nuee.eventually("a neighbour reaches the new one", || pings(nuee, "peer", inner))?;
    assert_eq!(seen(lab, address)?, told(lab)?);
    Ok(())
}

/// The ends of what the guest wrote on its console, on each host: whether it still ran when something failed.
fn consoles(pool: &Pool, uid: &str) -> String {
    let end = |machine: &Nuee| {
        let path = machine.data().join("guests").join(uid).join("console.log");
        let text = std::fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        format!("end of {}:\n{}", path.display(), lines[lines.len().saturating_sub(15)..].join("\n"))
    };
    pool.machines.iter().map(end).collect::<Vec<_>>().join("\n")
}

/// A machine with interfaces that moves between hosts.
struct Mover<'a> {
    first: &'a Nuee,
    /// What its status says of its addresses.
    addresses: String,
    /// Its address on the pods' network, and that on a network of users.
    open: [String; 2],
}

impl Mover<'_> {
    fn get(&self, path: &str) -> Result<String> {
        field(self.first, &["vm", "one"], path)
    }

    fn is_reached(&self) -> Result<bool> {
        Ok(pings(self.first, "pod", &self.open[0])? && pings(self.first, "peer", &self.open[1])?)
    }

    /// The port's group holds: shut when it is come to, and reached while the group is open, so that it is the group that shuts it.
    fn check_guard(&self) -> Result<()> {
        let rules = |rule: &str| {
            let change = format!("{{\"spec\": {{\"rules\": [{rule}]}}}}");
            self.first.kubectl(&["patch", "sg", "guard", "--type=merge", "-p", &change])?.success().map(drop)
        };
        let reaches = || pings(self.first, "far", "10.98.0.7");
        anyhow::ensure!(!reaches()?, "the port's group does not hold");
        rules("{\"protocol\": \"icmp\"}")?;
        self.first.eventually("the group is open", reaches)?;
        rules("{\"protocol\": \"tcp\", \"portRangeMin\": 22}")?;
        self.first.eventually("the group is shut again", || Ok(!reaches()?))
    }

    /// It moves, and is the same there.
    fn goes_to(&self, target: &str) -> Result<()> {
        let first = self.first;
        let before = self.get(".status.pid")?;
        object(first, "Migration", target, &format!("virtualMachine: one, targetNode: {target}"))?;
        first.eventually("it has moved", || {
            let phase = field(first, &["migration", target], ".status.phase")?;
            anyhow::ensure!(phase != "Failed", field(first, &["migration", target], ".status.message")?);
            Ok(phase == "Succeeded" && field(first, &["port", "front"], ".status.nodeName")? == target)
        })?;
        // Another process of the hypervisor is what the target alone tells.
        first.eventually("it is looked after there", || {
            let pid = self.get(".status.pid")?;
            Ok(![before.as_str(), "", "0"].contains(&pid.as_str()) && self.get(".status.phase")? == "Running")
        })?;
        anyhow::ensure!(self.get(".status.addresses")? == self.addresses, "it has other addresses");
        first.eventually("neighbours on both networks reach it where it is now", || self.is_reached())?;
        self.check_guard()?;
        // It changes there as anywhere.
        first.nuee(&["vm", "attach-interface", "one", "--network", "third"])?.success()?;
        let new = self.get(".status.addresses[3].ip")?;
        anyhow::ensure!(new.starts_with("10.98.0."), "the new interface has the address {new:?}");
        first.nuee(&["vm", "detach-interface", "one", "--network", "third"])?.success()?;
        anyhow::ensure!(self.get(".status.addresses")? == self.addresses, "it has other addresses afterwards");
        // A guest that ended and was started again may be reached as well: it has not moved.
        let restarts = self.get(".status.restartCount")?;
        anyhow::ensure!(["", "0"].contains(&restarts.as_str()), "the guest was started again {restarts} times");
        Ok(())
    }
}

/// Interfaces of a network of its own, of the pods' network and of a port move with their guest, and keep their addresses and guards.
#[test]
fn interfaces_go_along_when_a_guest_moves() -> Result<()> {
    hypervisor::test_guest::build(std::path::Path::new("/var/cache/nuee"))?;
    let pool = pool()?;
    let first = pool.first();
    first.nuee(&["image", "build-test-guest", "-o", "tiny"])?.success()?;
    object(first, "Network", "back", "name: back, subnet: 10.97.0.0/24")?;
    object(first, "Network", "third", "name: third, subnet: 10.98.0.0/24")?;
    object(first, "SecurityGroup", "guard", "rules: [{protocol: tcp, portRangeMin: 22}]")?;
    object(first, "Port", "front", "network: third, address: 10.98.0.7, securityGroups: [guard]")?;
    serve(first, "peer", "back")?;
    serve(first, "far", "third")?;
    serve(first, "pod", "bridge")?;
    let interfaces = format!("interfaces: [{{}}, {{network: back, macAddress: \"{MAC}\"}}, {{port: front}}]");
    object(first, "VirtualMachine", "one", &format!("image: tiny, memory: 128Mi, nodeName: n1, {interfaces}"))?;
    let waited = first.kubectl(&["wait", "--for=condition=Ready", "vm/one", BOOT])?;
    waited.success().with_context(|| first.log_end())?;
    let get = |path: &str| field(first, &["vm", "one"], path);
    let open = [get(".status.addresses[0].ip")?, get(".status.addresses[1].ip")?];
    let mover = Mover { first, addresses: get(".status.addresses")?, open };
    let uid = get(".metadata.uid")?;
    let state = |at: &str| {
        let status = mover.get(".status").unwrap_or_default();
        format!("{at}; the machine's status: {status}\n{}", consoles(&pool, &uid))
    };
    first.eventually("neighbours on both networks reach it", || mover.is_reached())?;
    mover.check_guard().with_context(|| state("before it moves"))?;
    for target in ["n2", "n1"] {
        mover.goes_to(target).with_context(|| state(&format!("on the leg to {target}")))?;
    }
    first.kubectl(&["delete", "vm", "one", "--timeout=120s"])?.success()?;
    first.kubectl(&["delete", "port", "front", "--timeout=60s"])?.success()?;
    first.docker(&["rm", "-f", "peer", "far", "pod"])?.success()?;
    pool.finish()
}
