//! A `Port` is there before its machine and outlives it: its address and hardware address are the same for the next machine, on whichever
//! host that is, and nobody else gets them.

use anyhow::{Context, Result};
use testkit::Nuee;

use crate::join::{field, pool};

/// How long a guest may take to boot on a machine under load that translates every instruction.
const BOOT: &str = "--timeout=300s";

fn object(nuee: &Nuee, kind: &str, name: &str, spec: &str) -> Result<()> {
    let text = format!("apiVersion: nuee.dev/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n");
    nuee.apply(&text)?.success().map(drop)
}

fn ready(nuee: &Nuee, name: &str) -> Result<()> {
    let waited = nuee.kubectl(&["wait", "--for=condition=Ready", &format!("vm/{name}"), BOOT])?;
    waited.success().with_context(|| nuee.log_end()).map(drop)
}

#[test]
fn a_port_keeps_its_addresses_between_machines_and_hosts() -> Result<()> {
    hypervisor::test_guest::build(std::path::Path::new("/var/cache/nuee"))?;
    let pool = pool()?;
    let first = pool.first();
    first.nuee(&["image", "build-test-guest", "-o", "tiny"])?.success()?;
    let show = |what: &[&str], path: &str| field(first, what, path);
    object(first, "Network", "net", "name: net, subnet: 10.97.0.0/24")?;
    object(first, "SecurityGroup", "open", "rules: [{protocol: icmp}]")?;
    object(first, "SecurityGroup", "shut", "rules: [{protocol: tcp, portRangeMin: 22}]")?;
    let mac = "52:54:00:6e:75:65";
    object(
        first,
        "Port",
        "front",
        &format!("network: net, address: 10.97.0.7, macAddress: \"{mac}\", securityGroups: [open]"),
    )?;
    object(first, "Port", "any", "network: net")?;
    for name in ["front", "any"] {
        first
            .kubectl(&["wait", "--for=jsonpath={.status.phase}=Available", &format!("port/{name}"), "--timeout=60s"])?
            .success()?;
    }
    assert_eq!(show(&["port", "front"], ".status.address")?, "10.97.0.7");
    assert!(show(&["port", "any"], ".status.address")?.starts_with("10.97.0."));

    // Nobody takes what is kept for it: no other port, no container by its address or its hardware address. The next one is free.
    for (name, spec, word) in [
        ("thief", "network: net, address: 10.97.0.7".to_owned(), "already in use"),
        ("twin", format!("network: net, macAddress: \"{mac}\""), "in use on the network"),
        ("gateway", "network: net, address: 10.97.0.1".to_owned(), "invalid address"),
        ("elsewhere", "network: net, address: 10.97.0.200".to_owned(), "invalid address"),
        ("nowhere", "network: none-such".to_owned(), "not found"),
    ] {
        object(first, "Port", name, &spec)?;
        first.eventually(&format!("{name} is told why not"), || {
            Ok(show(&["port", name], ".status.message")?.contains(word)
                && show(&["port", name], ".status.phase")? == "Pending")
        })?;
    }
    first
        .kubectl(&["delete", "port", "thief", "twin", "gateway", "elsewhere", "nowhere", "--timeout=60s"])?
        .success()?;
    let run = |words: &[&str]| first.docker(&[&["run", "-d", "--network", "net"], words, &["web:test"]].concat());
    run(&["--rm", "--ip", "10.97.0.7"])?.failure(125, "Address already in use")?;
    run(&["--rm", "--mac-address", mac])?.failure(125, "in use on the network")?;
    run(&["--name", "peer", "--ip", "10.97.0.8"])?.success()?;

    // A machine on the port has its addresses and its groups, which may change.
    let vm = |name: &str, more: &str| {
        object(first, "VirtualMachine", name, &format!("image: tiny, memory: 128Mi, port: front{more}"))
    };
    vm("one", ", nodeName: n1")?;
    ready(first, "one")?;
    let place = |name: &str| show(&["vm", name], ".status.addresses[0]");
    let wanted = format!("{{\"ip\":\"10.97.0.7\",\"mac\":\"{mac}\",\"network\":\"net\",\"port\":\"front\"}}");
    assert_eq!(place("one")?, wanted);
    first.eventually("the port says whose it is", || {
        Ok(show(&["port", "front"], ".status.attachedTo.virtualMachine")? == "one"
            && show(&["port", "front"], ".status.nodeName")? == "n1"
            && show(&["port", "front"], ".status.phase")? == "Active")
    })?;
    assert_eq!(show(&["sg", "open"], ".status.members[0]")?, "Port/front");
    let reaches = || {
        Ok::<_, anyhow::Error>(first.docker(&["exec", "peer", "ping", "-c", "1", "-W", "2", "10.97.0.7"])?.status == 0)
    };
    first.eventually("a neighbour reaches it", reaches)?;
    let patch = |groups: &str| {
        let change = format!("{{\"spec\": {{\"securityGroups\": [\"{groups}\"]}}}}");
        first.kubectl(&["patch", "port", "front", "--type=merge", "-p", &change])?.success().map(drop)
    };
    patch("shut")?;
    first.eventually("the other group holds", || Ok(!reaches()?))?;
    patch("open")?;
    first.eventually("the first group holds again", reaches)?;
    // What was given stays.
    let other = "{\"spec\": {\"address\": \"10.97.0.9\"}}";
    first.kubectl(&["patch", "port", "front", "--type=merge", "-p", other])?.failure(1, "immutable")?;

    // A second machine waits for the port, and gets it with its addresses, on another host, when it is taken from the first, which is off.
    vm("two", ", nodeName: n2")?;
    first.eventually("the second machine says what it waits for", || {
        Ok(show(&["vm", "two"], ".status.message")? == "port front is in use by virtual machine one")
    })?;
    first.kill_daemon()?;
    first.up()?;
    first.eventually("it is reached as before", reaches)?;
    assert_eq!(place("one")?, wanted);
    assert_eq!(show(&["port", "front"], ".status.attachedTo.virtualMachine")?, "one");
    first.nuee(&["vm", "stop", "one"])?.success()?;
    first.eventually("the first is off", || Ok(show(&["vm", "one"], ".status.phase")? == "Stopped"))?;
    assert_eq!(show(&["port", "front"], ".status.attachedTo.virtualMachine")?, "one");
    first.kubectl(&["patch", "vm", "one", "--type=merge", "-p", "{\"spec\": {\"port\": null}}"])?.success()?;
    ready(first, "two")?;
    assert_eq!(place("two")?, wanted);
    // The end of the first takes nothing from the second.
    first.kubectl(&["delete", "vm", "one", "--timeout=120s"])?.success()?;
    assert_eq!(show(&["port", "front"], ".status.nodeName")?, "n2");
    first.eventually("the neighbour on the first host reaches it on the second", reaches)?;
    run(&["--rm", "--ip", "10.97.0.7"])?.failure(125, "Address already in use")?;
    patch("shut")?;
    first.eventually("the other group holds there too", || Ok(!reaches()?))?;
    patch("open")?;
    first.eventually("the first group holds there again", reaches)?;

    // It goes along when its machine moves.
    let go = |target: &str| object(first, "Migration", target, &format!("virtualMachine: two, targetNode: {target}"));
    for target in ["n1", "n2"] {
        go(target)?;
        first.eventually(&format!("it has moved to {target}"), || {
            let phase = show(&["migration", target], ".status.phase")?;
            anyhow::ensure!(phase != "Failed", show(&["migration", target], ".status.message")?);
            Ok(phase == "Succeeded" && show(&["port", "front"], ".status.nodeName")? == target)
        })?;
        assert_eq!(place("two")?, wanted);
        first.eventually("the neighbour reaches it where it is now", reaches)?;
    }

    // A port that is to go waits for its machine; then what it had may be another's.
    first.kubectl(&["delete", "port", "any", "--timeout=60s"])?.success()?;
    first.kubectl(&["delete", "port", "front", "--wait=false"])?.success()?;
    assert_eq!(show(&["port", "front"], ".status.attachedTo.virtualMachine")?, "two");
    first.eventually("it is reached still", reaches)?;
    first.kubectl(&["delete", "vm", "two", "--timeout=120s"])?.success()?;
    first.kubectl(&["wait", "--for=delete", "port/front", "--timeout=60s"])?.success()?;
    run(&["--name", "next", "--ip", "10.97.0.7"])?.success()?;
    first.docker(&["rm", "-f", "next", "peer"])?.success()?;
    first.kubectl(&["delete", "network.nuee.dev", "net", "--timeout=60s"])?.success()?;
    pool.finish()
}

/// A port is a container's, a pod's or a machine's, one at a time; each has its addresses, on either host, and its groups.
#[test]
fn a_port_goes_from_container_to_pod() -> Result<()> {
    let pool = pool()?;
    let first = pool.first();
    let show = |what: &[&str], path: &str| field(first, what, path);
    object(first, "Network", "net", "name: net, subnet: 10.97.0.0/24")?;
    object(first, "SecurityGroup", "open", "rules: [{protocol: icmp}]")?;
    object(first, "SecurityGroup", "shut", "rules: [{protocol: tcp, portRangeMin: 22}]")?;
    let mac = "52:54:00:6e:75:65";
    let front = format!("network: net, address: 10.97.0.7, macAddress: \"{mac}\", securityGroups: [open]");
    object(first, "Port", "front", &front)?;
    object(first, "Port", "plain", "address: 10.88.0.77")?;
    for name in ["front", "plain"] {
        let available = "--for=jsonpath={.status.phase}=Available";
        first.kubectl(&["wait", available, &format!("port/{name}"), "--timeout=60s"])?.success()?;
    }
    let run = |words: &[&str]| first.docker(&[&["run", "-d"], words, &["web:test"]].concat());
    run(&["--name", "peer", "--network", "net"])?.success()?;
    run(&["--name", "other"])?.success()?;
    let on_front = ["--network", "net", "--label", "nuee.dev/port=front"];

    // A container has its address and hardware address, and its groups, as they change.
    run(&[&["--name", "one"], &on_front[..]].concat())?.success()?;
    let seen = |name: &str| {
        let format = "{{with .NetworkSettings.Networks.net}}{{.IPAddress}} {{.MacAddress}}{{end}}";
        Ok::<_, anyhow::Error>(first.docker(&["inspect", "-f", format, name])?.success()?.text().to_owned())
    };
    assert_eq!(seen("one")?, format!("10.97.0.7 {mac}"));
    assert_eq!(first.docker(&["exec", "one", "cat", "/sys/class/net/eth0/address"])?.success()?.text(), mac);
    let pings = |from: &str, to: &str| {
        Ok::<_, anyhow::Error>(first.docker(&["exec", from, "ping", "-c", "1", "-W", "2", to])?.status == 0)
    };
    first.eventually("a neighbour reaches it", || pings("peer", "10.97.0.7"))?;
    let patch = |groups: &str| {
        let change = format!("{{\"spec\": {{\"securityGroups\": [\"{groups}\"]}}}}");
        first.kubectl(&["patch", "port", "front", "--type=merge", "-p", &change])?.success().map(drop)
    };
    patch("shut")?;
    first.eventually("the other group holds", || Ok(!pings("peer", "10.97.0.7")?))?;
    first.kill_daemon()?;
    first.up()?;
    assert!(!pings("peer", "10.97.0.7")?);
    patch("open")?;
    first.eventually("the first group holds again", || pings("peer", "10.97.0.7"))?;
    assert_eq!(show(&["port", "front"], ".status.attachedTo.container")?.len(), 64);

    // One at a time; what contradicts it is refused.
    run(&[&["--name", "two"], &on_front[..]].concat())?.failure(125, "port front is in use by container")?;
    for (words, flaw) in [
        (
            &["--network", "net", "--label", "nuee.dev/port=front", "--label", "nuee.dev/security-groups=open"][..],
            "cannot go with",
        ),
        (&["--label", "nuee.dev/port=plain", "--network", "net"], "is on network bridge, and the container is not"),
        (&["--label", "nuee.dev/port=plain", "--label", "nuee.dev/port=../x"], "nuee.dev/port"),
    ] {
        run(&[&["--rm"], words].concat())?.failure(125, flaw)?;
    }
    first.docker(&["rm", "-f", "one"])?.success()?;
    first.docker(&["start", "two"])?.success()?;
    assert_eq!(seen("two")?, format!("10.97.0.7 {mac}"));
    first.eventually("a neighbour reaches the heir", || pings("peer", "10.97.0.7"))?;
    first.docker(&["rm", "-f", "two"])?.success()?;

    // A pod on the second host has the address of a port of the pods' network, and is reached on the first.
    let pod = |name: &str, node: &str, port: &str| {
        let text = crate::join::pod(name, node, "web:test", "");
        let annotated = text.replacen(
            &format!("name: {name}"),
            &format!("name: {name}, annotations: {{nuee.dev/port: {port}}}"),
            1,
        );
        anyhow::ensure!(annotated != text, "the pod is written otherwise: {text}");
        first.apply(&annotated)?.success().map(drop)
    };
    let waits_for = |name: &str, holder: &str| {
        first.eventually(&format!("pod {name} says what it waits for"), || {
            let events =
                first.kubectl(&["get", "events", "--field-selector", &format!("involvedObject.name={name}")])?;
            Ok(events.stdout.contains(&format!("port plain is in use by {holder}")))
        })
    };
    // It waits while a container has it; then the port is the pod's alone, by name too.
    run(&["--name", "holder", "--label", "nuee.dev/port=plain"])?.success()?;
    first.eventually("the container is reached", || pings("other", "10.88.0.77"))?;
    pod("away", "n2", "plain")?;
    waits_for("away", "container")?;
    first.docker(&["rm", "-f", "holder"])?.success()?;
    crate::join::ready(first, "pod/away")?;
    assert_eq!(show(&["pod", "away"], ".status.podIP")?, "10.88.0.77");
    assert_eq!(show(&["port", "plain"], ".status.attachedTo.pod")?, "away");
    assert_eq!(show(&["port", "plain"], ".status.attachedTo.container")?, "");
    first.eventually("it is reached from the first host", || pings("other", "10.88.0.77"))?;
    let change = ["annotate", "--overwrite", "pod", "away", "nuee.dev/port=front"];
    first.kubectl(&change)?.failure(1, "immutable")?;
    pod("waits", "n1", "plain")?;
    waits_for("waits", "pod away")?;
    first.kubectl(&["delete", "pod", "away", "--timeout=60s"])?.success()?;
    crate::join::ready(first, "pod/waits")?;
    assert_eq!(show(&["pod", "waits"], ".status.podIP")?, "10.88.0.77");
    first.eventually("the heir is reached", || pings("other", "10.88.0.77"))?;
    first.kubectl(&["delete", "pod", "waits", "--timeout=60s"])?.success()?;
    first.kubectl(&["delete", "port", "front", "plain", "--timeout=60s"])?.success()?;
    first.docker(&["rm", "-f", "peer", "other"])?.success()?;
    first.kubectl(&["delete", "network.nuee.dev", "net", "--timeout=60s"])?.success()?;
    pool.finish()
}
