//! A `Subnet` says which addresses a network gives, and what its workloads are told: seen from inside guests and containers, as they are
//! told by DHCP, by metadata and on a configuration drive.

use anyhow::{Context, Result};
use testkit::{Nuee, Output};

use crate::join::{field, pool};
use crate::spanning_users::{address, inside, on_the_second};

/// How long a guest may take to boot on a machine under load that translates every instruction.
const BOOT: &str = "--timeout=300s";
/// How many times as long as for anything else to wait for a guest's ssh server.
const SSH_ROUNDS: u32 = 5;
/// Prints what a DHCP server says, and changes nothing.
const SHOW: &str = "#!/bin/sh\n[ \"$1\" = bound ] && echo \"$ip|$router|$dns|$staticroutes\"\ntrue\n";
/// What a guest makes of its configuration drive where nobody answers DHCP.
const BY_HAND: &str = "#!/bin/sh\\nd=/run/seed/openstack/latest/network_data.json\\ngrep -q ipv4_dhcp $d && exit 1\\n\
    a=$(sed 's/.*ip_address[^0-9]*\\\\([0-9.]*\\\\).*/\\\\1/' $d)\\nip addr add $a/24 dev eth0\\nip route add default via 10.98.0.1\\n";

fn object(nuee: &Nuee, kind: &str, name: &str, spec: &str) -> Result<Output> {
    nuee.apply(&format!("apiVersion: nuee.dev/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"))
}

fn ready(nuee: &Nuee, name: &str) -> Result<()> {
    nuee.kubectl(&["wait", "--for=condition=Ready", &format!("subnet.nuee.dev/{name}"), "--timeout=60s"])?
        .success()
        .map(drop)
}

fn patch(nuee: &Nuee, name: &str, spec: &str) -> Result<Output> {
    nuee.kubectl(&["patch", "subnet.nuee.dev", name, "--type=merge", "-p", &format!("{{\"spec\": {{{spec}}}}}")])
}

/// A container on a network; its address there.
fn container(nuee: &Nuee, name: &str, network: &str) -> Result<String> {
    nuee.docker(&["run", "-d", "--name", name, "--network", network, "web:test"])?.success()?;
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    Ok(nuee.docker(&["inspect", "-f", format, name])?.success()?.text().to_owned())
}

/// The last number of an address.
fn last(address: &str) -> Result<u8> {
    Ok(address.rsplit('.').next().context("no address")?.parse()?)
}

struct Guest<'a> {
    nuee: &'a Nuee,
    key: String,
    address: String,
}

impl Guest<'_> {
    /// Runs a line in the guest, once its ssh server is up.
    fn ssh(&self, line: &str) -> Result<Output> {
        let words = format!(
            "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes -o ConnectTimeout=5 \
             -o LogLevel=ERROR -i {} root@{} '{line}'",
            self.key, self.address
        );
        let mut last = None;
        let mut run = || {
            self.nuee.eventually(&format!("ssh runs {line:?}"), || {
                let output = self.nuee.run("sh", &["-c", &words])?;
                let fine = output.status != 255;
                last = Some(output);
                Ok(fine)
            })
        };
        // A guest whose every instruction is translated, on a machine that has other things to do.
        let mut done = run();
        for _ in 1..SSH_ROUNDS {
            if done.is_ok() {
                break;
            }
            done = run();
        }
        done?;
        last.context("ssh never ran")
    }

    /// What it is told by DHCP when it asks now; empty when nobody answers.
    fn lease(&self) -> Result<String> {
        let told = self.ssh("udhcpc -i eth0 -q -n -f -t 3 -T 1 -s /show 2>/dev/null")?;
        Ok(told.text().to_owned())
    }

    fn network_data(&self) -> Result<serde_json::Value> {
        let text = self.ssh("wget -q -O - http://169.254.169.254/openstack/latest/network_data.json")?.success()?;
        Ok(serde_json::from_str(&text.stdout)?)
    }
}

#[test]
fn guests_and_containers_have_and_are_told_what_a_subnet_says() -> Result<()> {
    hypervisor::test_guest::build(std::path::Path::new("/var/cache/nuee"))?;
    let whole = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    let nuee = &whole;
    nuee.build_images()?;
    nuee.nuee(&["image", "build-test-guest", "-o", "tiny"])?.success()?;
    let key = nuee.files().join("key").display().to_string();
    nuee.run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key])?.success()?;
    let public = std::fs::read_to_string(format!("{key}.pub"))?;
    object(nuee, "KeyPair", "me", &format!("publicKey: \"{}\"", public.trim()))?.success()?;
    // All at once: the machines wait for what the subnets say.
    let part = |kind: &str, name: &str, spec: &str| {
        format!("apiVersion: nuee.dev/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
    };
    let machine = "image: tiny, cpus: 1, memory: 128Mi, keyPairs: [me]";
    let all = [
        part("Network", "net", "name: net"),
        part(
            "Subnet",
            "plan",
            "network: net, cidr: 10.97.0.0/24, allocationPools: [{start: 10.97.0.140, end: 10.97.0.147}], \
             dnsNameservers: [192.0.2.53, 192.0.2.54], hostRoutes: [{destination: 192.168.77.0/25, nextHop: 10.97.0.200}]",
        ),
        part("VirtualMachine", "one", &format!("{machine}, network: net")),
        part("Network", "still", "name: still"),
        part("Subnet", "silent", "network: still, cidr: 10.98.0.0/24, enableDHCP: false"),
        part(
            "VirtualMachine",
            "two",
            &format!("{machine}, network: still, configDrive: OpenStack, userData: \"{BY_HAND}\""),
        ),
    ];
    nuee.apply(&all.concat())?.success()?;
    ready(nuee, "plan")?;
    ready(nuee, "silent")?;
    refusals(nuee)?;

    // A container has an address of the pool, and the route.
    let address = container(nuee, "web", "net")?;
    assert!((140..=147).contains(&last(&address)?), "{address}");
    let routes = nuee.docker(&["exec", "web", "ip", "route"])?.success()?.stdout;
    assert!(routes.contains("192.168.77.0/25 via 10.97.0.200") && routes.contains("default via 10.97.0.1"), "{routes}");

    for name in ["one", "two"] {
        let waited = nuee.kubectl(&["wait", "--for=condition=Ready", &format!("vm/{name}"), BOOT])?;
        waited.success().with_context(|| nuee.log_end())?;
    }
    let guest = |name: &str| {
        let address = field(nuee, &["vm", name], ".status.addresses[0].ip")?;
        Ok::<_, anyhow::Error>(Guest { nuee, key: key.clone(), address })
    };
    told_by_dhcp(nuee, &guest("one")?)?;
    // Who is told by its configuration drive alone is reached.
    let two = guest("two")?;
    assert!(two.address.starts_with("10.98.0."), "{}", two.address);
    assert!(two.ssh("ip -4 addr show dev eth0")?.success()?.stdout.contains(&format!("{}/24", two.address)));

    // Without a gateway there is no way out.
    object(nuee, "Network", "apart", "name: apart")?.success()?;
    object(nuee, "Subnet", "apart", "network: apart, cidr: 10.99.0.0/24, gatewayIP: \"\"")?.success()?;
    ready(nuee, "apart")?;
    container(nuee, "alone", "apart")?;
    let routes = nuee.docker(&["exec", "alone", "ip", "route"])?.success()?.stdout;
    assert!(routes.contains("10.99.0.0/24") && !routes.contains("default"), "{routes}");
    assert_eq!(field(nuee, &["subnet.nuee.dev", "apart"], ".status.gatewayIP")?, "");

    held_until_nobody_uses_it(nuee)?;
    whole.finish()
}

/// What is no subnet, or another one, and what stays as it is.
fn refusals(nuee: &Nuee) -> Result<()> {
    object(nuee, "Subnet", "second", "network: net, cidr: 10.90.0.0/24")?.failure(1, "has subnet plan already")?;
    object(nuee, "Network", "inline", "name: inline, subnet: 10.96.0.0/24")?.success()?;
    object(nuee, "Subnet", "inline", "network: inline, cidr: 10.90.0.0/24")?.failure(1, "says its subnet itself")?;
    object(nuee, "Subnet", "shared", "network: bridge, cidr: 10.90.0.0/24")?.failure(1, "is everybody's")?;
    let pools = "network: new, cidr: 10.90.0.0/24, allocationPools: [{start: 10.90.0.9, end: 10.90.1.9}]";
    object(nuee, "Subnet", "wide", pools)?.failure(1, "spec.allocationPools[0]")?;
    patch(nuee, "plan", "\"cidr\": \"10.97.0.0/25\"")?.failure(1, "immutable")?;
    patch(nuee, "plan", "\"gatewayIP\": \"10.97.0.2\"")?.failure(1, "immutable")?;
    // A tenant's network has no addresses that are others' on the internet, or of services.
    nuee.kubectl(&["create", "namespace", "tenant"])?.success()?;
    for (name, cidr, word) in [("public", "1.1.1.0/24", "is not private"), ("services", "10.96.4.0/24", "of services")]
    {
        nuee.apply(&format!(
            "apiVersion: nuee.dev/v1\nkind: Network\nmetadata: {{name: {name}, namespace: tenant}}\nspec: {{name: {name}}}\n---\n\
             apiVersion: nuee.dev/v1\nkind: Subnet\nmetadata: {{name: {name}, namespace: tenant}}\n\
             spec: {{network: {name}, cidr: {cidr}}}\n"
        ))?
        .success()?;
        nuee.eventually("a tenant is told why not", || {
            Ok(field(nuee, &["subnet.nuee.dev", name, "-n", "tenant"], ".status.message")?.contains(word))
        })?;
    }
    nuee.kubectl(&["delete", "namespace", "tenant", "--timeout=60s"])?.success()?;
    // It may be there before its network, and what the network has that is in use stays.
    object(nuee, "Subnet", "early", "network: none-such, cidr: 10.90.0.0/24")?.success()?;
    let said = |name: &str, word: &str| {
        nuee.eventually(&format!("{name} says {word:?}"), || {
            Ok(field(nuee, &["subnet.nuee.dev", name], ".status.message")?.contains(word))
        })
    };
    said("early", "network none-such not found")?;
    nuee.docker(&["network", "create", "used"])?.success()?;
    container(nuee, "user", "used")?;
    object(nuee, "Subnet", "late", "network: used, cidr: 10.90.0.0/24")?.success()?;
    said("late", "is in use with addresses of")?;
    nuee.docker(&["rm", "-f", "user"])?.success()?;
    ready(nuee, "late")?;
    nuee.kubectl(&["delete", "subnet.nuee.dev", "early", "late", "--timeout=60s"])?.success()?;
    nuee.docker(&["network", "rm", "used"])?.success()?;
    nuee.kubectl(&["delete", "network.nuee.dev", "inline", "--timeout=60s"])?.success().map(drop)
}

/// What DHCP and metadata say, and say after an edit, whoever is killed.
fn told_by_dhcp(nuee: &Nuee, one: &Guest) -> Result<()> {
    assert!((140..=147).contains(&last(&one.address)?), "{}", one.address);
    assert!(
        one.ssh("cat /etc/resolv.conf")?.success()?.stdout.contains("nameserver 192.0.2.53\nnameserver 192.0.2.54")
    );
    let script = SHOW.replace('\n', "\\n").replace('$', "\\$").replace('"', "\\\"");
    one.ssh(&format!("printf \"{script}\" > /show && chmod +x /show"))?.success()?;
    let own = &one.address;
    let routes = "0.0.0.0/0 10.97.0.1 192.168.77.0/25 10.97.0.200";
    let planned = format!("{own}|10.97.0.1|192.0.2.53 192.0.2.54|{routes}");
    nuee.eventually("the plan is told", || Ok(one.lease()?.trim() == planned))?;
    let network = one.network_data()?["networks"][0].clone();
    assert_eq!((&network["type"], &network["routes"][1]["gateway"]), (&"ipv4_dhcp".into(), &"10.97.0.200".into()));
    assert_eq!(network["services"][0]["address"], "192.0.2.53");
    let used = |path: &str| field(nuee, &["subnet.nuee.dev", "plan"], path);
    nuee.eventually("the subnet counts", || {
        Ok(used(".status.usedAddresses")? == "2" && used(".status.availableAddresses")? == "6")
    })?;

    let shown = nuee.kubectl(&["get", "subn", "plan", "--no-headers"])?.success()?.stdout;
    let words: Vec<&str> = shown.split_whitespace().take(7).collect();
    assert_eq!(words, ["plan", "net", "10.97.0.0/24", "10.97.0.1", "True", "2", "6"]);

    // An edit is told at the next question, and to the next workload.
    let pool = "\"allocationPools\": [{\"start\": \"10.97.0.20\", \"end\": \"10.97.0.29\"}]";
    patch(nuee, "plan", &format!("{pool}, \"dnsNameservers\": [], \"hostRoutes\": []"))?.success()?;
    let plain = format!("{own}|10.97.0.1|10.97.0.1|");
    nuee.eventually("the edit is told", || Ok(one.lease()?.trim() == plain))?;
    let address = container(nuee, "next", "net")?;
    assert!((20..=29).contains(&last(&address)?), "{address}");
    nuee.kill_daemon()?;
    nuee.up()?;
    nuee.eventually("the next daemon tells the same", || Ok(one.lease()?.trim() == plain))?;

    patch(nuee, "plan", "\"enableDHCP\": false")?.success()?;
    nuee.eventually("nobody answers", || Ok(one.lease()?.trim().is_empty()))?;
    let network = one.network_data()?["networks"][0].clone();
    assert_eq!((&network["type"], &network["ip_address"]), (&"ipv4".into(), &own.as_str().into()));
    Ok(())
}

/// The end of a subnet waits for those who have its addresses; then its network may have others.
fn held_until_nobody_uses_it(nuee: &Nuee) -> Result<()> {
    nuee.kubectl(&["delete", "subnet.nuee.dev", "plan", "--wait=false"])?.success()?;
    nuee.eventually("it says what it waits for", || {
        Ok(field(nuee, &["subnet.nuee.dev", "plan"], ".status.message")?.contains("of its addresses are in use"))
    })?;
    nuee.docker(&["rm", "-f", "web", "next", "alone"])?.success()?;
    nuee.kubectl(&["delete", "vm", "one", "two", "--timeout=120s"])?.success()?;
    nuee.kubectl(&["wait", "--for=delete", "subnet.nuee.dev/plan", "--timeout=60s"])?.success()?;
    object(nuee, "Subnet", "other", "network: net, cidr: 10.95.0.0/24")?.success()?;
    ready(nuee, "other")?;
    assert_eq!(field(nuee, &["network.nuee.dev", "net"], ".status.subnet")?, "10.95.0.0/24");
    assert!(container(nuee, "web", "net")?.starts_with("10.95.0."));
    nuee.docker(&["rm", "-f", "web"])?.success()?;
    nuee.kubectl(&["delete", "subnet.nuee.dev", "other", "silent", "apart", "--timeout=60s"])?.success()?;
    nuee.kubectl(&["delete", "network.nuee.dev", "net", "still", "apart", "--timeout=60s"])?.success().map(drop)
}

/// All machines give what the subnet says, each from its own part, and tell it; and the end of the subnet waits for those on all of them.
#[test]
fn a_subnet_holds_on_all_machines_of_a_pool() -> Result<()> {
    let pool = pool()?;
    let first = pool.first();
    object(first, "Network", "net", "name: net")?.success()?;
    let pools = "[{start: 10.97.0.140, end: 10.97.0.150}, {start: 10.97.0.200, end: 10.97.0.210}]";
    object(first, "Subnet", "plan", &format!("network: net, cidr: 10.97.0.0/24, allocationPools: {pools}"))?
        .success()?;
    object(first, "Port", "kept", "network: net")?.success()?;
    // Nobody waits for the subnet: whoever comes first finds it all the same.
    first.docker(&["run", "-d", "--name", "one", "--network", "net", "busybox:test", "sleep", "6000"])?.success()?;
    on_the_second(first, 1, "two", "net", "busybox:test")?;
    let is_pooled = |address: &str| Ok::<_, anyhow::Error>(matches!(last(address)?, 140..=150 | 200..=210));
    for name in ["one", "two"] {
        assert!(is_pooled(&address(first, name)?)?, "{name}: {}", address(first, name)?);
    }
    first.eventually("the port has an address of the pools", || {
        let address = field(first, &["port", "kept"], ".status.address")?;
        Ok(!address.is_empty() && is_pooled(&address)?)
    })?;
    first.eventually("they reach each other", || Ok(inside(first, "two", "ping -c 1 -W 2 one")?.status == 0))?;
    first.eventually("all are counted", || {
        Ok(field(first, &["subnet.nuee.dev", "plan"], ".status.usedAddresses")? == "3")
    })?;

    let route = "\"hostRoutes\": [{\"destination\": \"192.168.77.0/25\", \"nextHop\": \"10.97.0.9\"}]";
    patch(first, "plan", route)?.success()?;
    let mut number = 1;
    first.eventually("the second machine tells the next one of the route", || {
        number += 1;
        let name = format!("next-{number}");
        on_the_second(first, number, &name, "net", "busybox:test")?;
        let routes = inside(first, &name, "ip route")?.success()?.stdout;
        first.docker(&["rm", "-f", &name])?.success()?;
        Ok(routes.contains("192.168.77.0/25 via 10.97.0.9"))
    })?;

    first.docker(&["rm", "-f", "one"])?.success()?;
    first.kubectl(&["delete", "port", "kept", "--timeout=60s"])?.success()?;
    first.kubectl(&["delete", "subnet.nuee.dev", "plan", "--wait=false"])?.success()?;
    first.eventually("it waits for the one on the second machine", || {
        Ok(field(first, &["subnet.nuee.dev", "plan"], ".status.message")? == "1 of its addresses are in use")
    })?;
    first.docker(&["rm", "-f", "two"])?.success()?;
    first.kubectl(&["wait", "--for=delete", "subnet.nuee.dev/plan", "--timeout=60s"])?.success()?;
    first.kubectl(&["delete", "network.nuee.dev", "net", "--timeout=60s"])?.success()?;
    pool.finish()
}
