//! The text of our two tables. Pure.
//!
//! `inet nuee`: where packets of our bridges may go, what is masqueraded, published ports, services. `bridge nuee`: what a
//! workload may put on the wire (its own MAC and address, and nothing that only a router or DHCP server says).
//!
//! The sets are named here once; [`super::elements`] fills them as workloads come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use super::TABLE;
use super::elements::{Element, Family, Field};
use super::groups::{Guards, HOOKS};
use super::services::Tables;
use crate::subnet6::link_local;
use crate::types::{Attachment, METADATA_PORT, Network, PortMapping, Publication, Target};

/// First characters of the names of our veth ends on the machine; the bridge table looks at no other ports.
pub(crate) const PORT_PREFIX: &str = "nuv";

/// What the text is made from.
pub(crate) struct Input<'a> {
    pub(crate) elements: Vec<Element>,
    pub(crate) services: &'a Tables,
    pub(crate) guards: &'a Guards,
    /// Floating addresses and where they lead.
    pub(crate) floating: &'a BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// Pairs of bridges that routers connect.
    pub(crate) joined: BTreeSet<(&'a str, &'a str)>,
    pub(crate) fixed: &'a Fixed,
}

/// What does not change while the fabric is open.
#[derive(Clone, Debug)]
pub(crate) struct Fixed {
    pub(crate) service_cidr: String,
    pub(crate) node_ports: String,
    pub(crate) unmasqueraded: Vec<String>,
    /// Bridged packets do not pass the IP hooks (no `br_netfilter`): answers must be drawn to us by masquerading.
    pub(crate) masquerade_within: bool,
    /// Ports may be published on `::1`: answers of workloads are not translated back before the kernel has looked at them
    /// as coming from outside, where it lets nothing come to `::1`.
    pub(crate) loopback6: bool,
}

impl Fixed {
    /// Name of a chain that is there when the installed tables have this very layout.
    pub(crate) fn marker(&self) -> String {
        let text = format!("{self:?}{INET_CHAINS}{BRIDGE_TABLE}{HOOKS:?}");
        format!("layout-{:016x}", crate::names::hash(&text))
    }
}

// In every chain what most packets meet comes first, and what is cheap to see comes before look-ups: rules of filters are run
// for each packet of established connections, too, those of `nat` for the first one alone. What only ports under guard need
// hangs on hooks that come and go with them ([`super::groups::HOOKS`]).
const INET_CHAINS: &str = r#"
	chain guard {
		type filter hook prerouting priority raw; policy accept;
		ip daddr 127.0.0.0/8 iifname @bridges drop
		meta l4proto udp goto guard_udp
	}
	chain guard_udp {
		udp dport { 4789, OVERLAY_PORT } iifname @bridges drop
		udp dport OVERLAY_PORT ip saddr != @machines drop
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname @bridges ip daddr 169.254.169.254 tcp dport 80 redirect to :METADATA_PORT
		dnat ip to ip daddr map @floating_in
		ip daddr . meta l4proto . th dport vmap @services
		iifname . ip daddr vmap @network_services
		fib daddr type local goto local
	}
	chain output {
		type nat hook output priority -100; policy accept;
		dnat ip to ip daddr map @floating_in
		ip daddr . meta l4proto . th dport vmap @services
		ip daddr vmap @service_addresses
		fib daddr type local goto local
		ip daddr @virtual goto refuse
	}
	chain local {
		dnat ip to ip daddr . meta l4proto . th dport map @published
		dnat ip to meta l4proto . th dport map @published_any
		LOOPBACK6
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @published6
		dnat ip6 to meta l4proto . th dport map @published6_any
		meta l4proto . th dport vmap @node_ports
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		oifname @overlays tcp flags syn tcp option maxseg size set rt mtu
		ip daddr @virtual goto refuse
		iifname . oifname @within accept
		iifname . oifname @joined accept
		iifname @internal drop
		oifname @internal drop
		ct status dnat accept
		iifname @bridges oifname @overlays drop
		iifname @overlays iifname != "OVERLAY_DEVICE" drop
		oifname @overlays oifname != "OVERLAY_DEVICE" drop
		oifname @bridges goto inbound
	}
	chain inbound {
		iifname @bridges drop
		oifname @routed accept
		drop
	}
	chain refuse {
		meta l4proto tcp reject with tcp reset
		reject with icmpx port-unreachable
	}
	chain secure {
		ct state { invalid, untracked } jump unknown
		meta l4proto icmp ct state related return
		ct original ip saddr vmap @guarded_out
		ct reply ip saddr vmap @guarded_in
	}
	chain unknown {
		ip daddr @guarded drop
		ip saddr @guarded drop
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "lo" return
		ip saddr . ip daddr @hairpin masquerade
		ip saddr 127.0.0.0/8 oifname @bridges masquerade
		meta nfproto ipv6 iifname . oifname @within ct status dnat masquerade
		ip6 saddr ::1 oifname @bridges masquerade
		WITHIN
		oifname @bridges return
		iifname . oifname @within return
		iifname . oifname @joined return
		oifname @overlays ct status dnat masquerade
		iifname @bridges ip daddr @direct return
		iifname @bridges snat ip to ip saddr map @floating_out
		iifname @plain return
		iifname @bridges masquerade
		ct status dnat ct original ip daddr @virtual masquerade
		meta l4proto tcp ct status dnat ct original proto-dst NODE_PORTS masquerade
		meta l4proto udp ct status dnat ct original proto-dst NODE_PORTS masquerade
	}
"#;

const BRIDGE_TABLE: &str = r#"
	set ports {
		type ifname . ether_addr . ipv4_addr
	}
	set ports6 {
		type ifname . ether_addr . ipv6_addr
	}
	set speakers6 {
		type ifname . ether_addr
	}
	set owners6 {
		typeof meta iifname . @th,64,128
	}
	set guests {
		type ifname . ether_addr
	}
	set guarded {
		type ifname
	}
	set places {
		type ifname . ipv4_addr
	}
	chain prerouting {
		type filter hook prerouting priority -300; policy accept;
		ether type ip iifname . ether saddr . ip saddr @ports accept
		iifname != "PREFIX*" accept
		ether type ip6 goto six
		ip saddr 0.0.0.0 udp sport 68 udp dport 67 iifname . ether saddr @guests accept
		ether type arp iifname . ether saddr . arp saddr ip @ports iifname . arp saddr ether . arp saddr ip @ports accept
		drop
	}
	chain six {
		icmpv6 type { nd-router-advert, nd-redirect } drop
		icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @owners6 drop
		iifname . ether saddr . ip6 saddr @ports6 accept
		ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit, mld-listener-report, mld2-listener-report } iifname . ether saddr @speakers6 accept
		drop
	}
	chain forward {
		type filter hook forward priority -200; policy accept;
		ether type ip oifname @guarded oifname . ip daddr != @places drop
		ether type ip udp dport 67 drop
		ether type ip udp sport 67 udp dport 68 drop
	}
"#;

/// The whole of both tables, replacing what is there in one transaction.
pub(crate) fn full(input: &Input<'_>) -> String {
    let mut text = String::new();
    for family in [Family::Inet, Family::Bridge] {
        // Declared first, so that deleting succeeds whether or not it was there.
        let _ = writeln!(text, "table {family} {TABLE}\ndelete table {family} {TABLE}");
    }
    let _ = writeln!(text, "table inet {TABLE} {{");
    let _ = writeln!(text, "\tchain {} {{ }}", input.fixed.marker());
    text.push_str(&sets(input.fixed));
    let within = if input.fixed.masquerade_within { "iifname . oifname @within ct status dnat masquerade" } else { "" };
    let loopback6 = if input.fixed.loopback6 { "" } else { "ip6 daddr ::1 return" };
    let chains = INET_CHAINS
        .replace("LOOPBACK6", loopback6)
        .replace("WITHIN", within)
        .replace("NODE_PORTS", &input.fixed.node_ports);
    let chains = chains
        .replace("OVERLAY_DEVICE", crate::fabric::overlay::DEVICE)
        .replace("OVERLAY_PORT", &crate::fabric::overlay::PORT.to_string());
    text.push_str(&chains.replace("METADATA_PORT", &METADATA_PORT.to_string()));
    let _ = writeln!(text, "}}\ntable bridge {TABLE} {{{}}}", BRIDGE_TABLE.replace("PREFIX", PORT_PREFIX));
    for element in &input.elements {
        text.push_str(&element.text());
    }
    text.push_str(&input.services.script_from(&Tables::default()));
    text.push_str(&input.guards.script(None));
    text.push_str(&floating(input.floating));
    text.push_str(&joined(&input.joined));
    text
}

/// The script that lets these pairs of bridges, and no others, speak with each other.
pub(crate) fn joined(pairs: &BTreeSet<(&str, &str)>) -> String {
    let mut text = format!("flush set inet {TABLE} joined\n");
    for (from, to) in pairs {
        let _ = writeln!(text, "add element inet {TABLE} joined {{ \"{from}\" . \"{to}\" }}");
    }
    text
}

/// The script that makes the sets by which networks span machines hold what of these elements is theirs, and nothing else.
pub(crate) fn overlays(elements: impl Iterator<Item = Element>) -> String {
    const SETS: [&str; 4] = ["machines", "overlays", "within", "internal"];
    let mut text: String = SETS.iter().map(|set| format!("flush set inet {TABLE} {set}\n")).collect();
    elements.filter(|element| SETS.contains(&element.set)).for_each(|element| text.push_str(&element.text()));
    text
}

/// The script that makes floating addresses lead where they should, and nowhere else. A workload with several shows the first.
pub(crate) fn floating(addresses: &BTreeMap<Ipv4Addr, Ipv4Addr>) -> String {
    let mut text = format!("flush map inet {TABLE} floating_in\nflush map inet {TABLE} floating_out\n");
    let mut shown = BTreeMap::new();
    for (address, target) in addresses {
        let _ = writeln!(text, "add element inet {TABLE} floating_in {{ {address} : {target} }}");
        shown.entry(target).or_insert(address);
    }
    for (target, address) in shown {
        let _ = writeln!(text, "add element inet {TABLE} floating_out {{ {target} : {address} }}");
    }
    text
}

fn sets(fixed: &Fixed) -> String {
    let mut text = String::new();
    for (name, kind, elements) in [
        ("bridges", "type ifname;", &[][..]),
        ("internal", "type ifname;", &[]),
        ("routed", "type ifname;", &[]),
        ("within", "type ifname . ifname;", &[]),
        ("joined", "type ifname . ifname;", &[]),
        ("plain", "type ifname;", &[]),
        ("overlays", "type ifname;", &[]),
        ("hairpin", "type ipv4_addr . ipv4_addr;", &[]),
        ("machines", "type ipv4_addr;", &[]),
        ("gateways", "type ipv4_addr;", &[]),
        ("guarded", "type ipv4_addr;", &[]),
        ("members", "type ipv4_addr;", &[]),
        ("direct", "type ipv4_addr; flags interval; auto-merge;", &fixed.unmasqueraded),
        ("virtual", "type ipv4_addr; flags interval;", std::slice::from_ref(&fixed.service_cidr)),
    ] {
        let elements =
            if elements.is_empty() { String::new() } else { format!(" elements = {{ {} }};", elements.join(", ")) };
        let _ = writeln!(text, "\tset {name} {{ {kind}{elements} }}");
    }
    text.push_str(concat!(
        "\tmap published { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }\n",
        "\tmap published_any { type inet_proto . inet_service : ipv4_addr . inet_service; }\n",
        "\tmap published6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }\n",
        "\tmap published6_any { type inet_proto . inet_service : ipv6_addr . inet_service; }\n",
        "\tmap services { type ipv4_addr . inet_proto . inet_service : verdict; }\n",
        "\tmap service_addresses { type ipv4_addr : verdict; }\n",
        "\tmap network_services { type ifname . ipv4_addr : verdict; }\n",
        "\tmap node_ports { type inet_proto . inet_service : verdict; }\n",
        "\tmap floating_in { type ipv4_addr : ipv4_addr; }\n",
        "\tmap floating_out { type ipv4_addr : ipv4_addr; }\n",
        "\tmap guarded_in { type ipv4_addr : verdict; }\n",
        "\tmap guarded_out { type ipv4_addr : verdict; }\n",
    ));
    text
}

/// The elements that go with a network: which rules hold for its bridge.
pub(crate) fn of_network(network: &Network) -> Vec<Element> {
    let bridge = Field::Interface(network.bridge.clone());
    let element = |set, key| Element { family: Family::Inet, set, key, value: Vec::new() };
    let mut elements = vec![element("bridges", vec![bridge.clone()])];
    if network.uplink.is_none() {
        elements.push(element("gateways", vec![Field::Address(network.gateway)]));
    }
    if network.internal {
        elements.push(element("internal", vec![bridge.clone()]));
    }
    if network.plain {
        elements.push(element("plain", vec![bridge.clone()]));
    }
    if network.routed {
        elements.push(element("routed", vec![bridge.clone()]));
    }
    if !network.isolated_ports {
        elements.push(element("within", vec![bridge.clone(), bridge]));
    }
    elements
}

/// The elements that go with the device by which a network spans machines: packets pass between it and the network's own bridge.
pub(crate) fn of_overlay(network: &Network, device: &str) -> Vec<Element> {
    let (device, bridge) = (Field::Interface(device.to_owned()), Field::Interface(network.bridge.clone()));
    let element = |set, key| Element { family: Family::Inet, set, key, value: Vec::new() };
    let mut elements = vec![element("overlays", vec![device.clone()])];
    // What comes from another machine has no way out and none in either, not even by a published port.
    if network.internal {
        elements.push(element("internal", vec![device.clone()]));
    }
    if !network.isolated_ports {
        elements.push(element("within", vec![device.clone(), bridge.clone()]));
        elements.push(element("within", vec![bridge, device]));
    }
    elements
}

/// The elements that go with an attachment: the right to speak, and the way back to itself.
pub(crate) fn of_attachment(attachment: &Attachment) -> Vec<Element> {
    let address = Field::Address(attachment.address);
    let port = vec![Field::Interface(attachment.host_interface.clone()), Field::Mac(attachment.mac), address.clone()];
    let guest = attachment.tap.then(|| Element {
        family: Family::Bridge,
        set: "guests",
        key: port[..2].to_vec(),
        value: Vec::new(),
    });
    let mut elements = vec![
        Element { family: Family::Bridge, set: "ports", key: port, value: Vec::new() },
        Element { family: Family::Inet, set: "hairpin", key: vec![address.clone(), address], value: Vec::new() },
    ];
    elements.extend(guest);
    elements.extend(of_place6(attachment));
    elements.extend(of_guard(attachment));
    elements
}

/// The elements of a port under guard: nothing is flooded to it, only what bears its own address gets there, as that is what
/// the rules are found by.
pub(crate) fn of_guard(attachment: &Attachment) -> Vec<Element> {
    if attachment.groups.is_empty() {
        return Vec::new();
    }
    let port = Field::Interface(attachment.host_interface.clone());
    let element = |set, key| Element { family: Family::Bridge, set, key, value: Vec::new() };
    let place = vec![port.clone(), Field::Address(attachment.address)];
    vec![element("guarded", vec![port]), element("places", place)]
}

/// The elements of an attachment's IPv6 part: its address, and the link-local one that the kernel makes from its MAC.
fn of_place6(attachment: &Attachment) -> Vec<Element> {
    let Some(place) = attachment.ipv6 else { return Vec::new() };
    let (port, mac) = (Field::Interface(attachment.host_interface.clone()), Field::Mac(attachment.mac));
    let element = |set, key| Element { family: Family::Bridge, set, key, value: Vec::new() };
    let mut elements = vec![element("speakers6", vec![port.clone(), mac.clone()])];
    for address in [place.address, link_local(attachment.mac.0)] {
        elements.push(element("ports6", vec![port.clone(), mac.clone(), Field::Address6(address)]));
        elements.push(element("owners6", vec![port.clone(), Field::Raw6(address)]));
    }
    elements
}

/// The elements of published ports.
pub(crate) fn of_publication(publication: &Publication) -> Vec<Element> {
    let target = Target { address: publication.target, address6: publication.target6, carries6: false };
    publication.ports.iter().flat_map(|mapping| of_mapping(target, mapping)).collect()
}

fn of_mapping(target: Target, mapping: &PortMapping) -> Vec<Element> {
    let port = vec![Field::Protocol(mapping.protocol), Field::Port(mapping.host_port)];
    let element = |set, before: Option<Field>, to: Field| Element {
        family: Family::Inet,
        set,
        key: before.into_iter().chain(port.clone()).collect(),
        value: vec![to, Field::Port(mapping.target_port)],
    };
    let mut elements = Vec::new();
    match mapping.host_address {
        Some(IpAddr::V4(host)) if !host.is_unspecified() => {
            elements.push(element("published", Some(Field::Address(host)), Field::Address(target.address)));
        }
        None | Some(IpAddr::V4(_)) => elements.push(element("published_any", None, Field::Address(target.address))),
        Some(IpAddr::V6(_)) => {}
    }
    if let Some(to) = target.address6.map(Field::Address6) {
        match mapping.host_address {
            Some(IpAddr::V6(host)) if !host.is_unspecified() => {
                elements.push(element("published6", Some(Field::Address6(host)), to));
            }
            None | Some(IpAddr::V6(_)) => elements.push(element("published6_any", None, to)),
            Some(IpAddr::V4(_)) => {}
        }
    }
    elements
}
