//! The text of our two tables. Pure.
//!
//! `inet nuee`: where packets of our bridges may go, what is masqueraded, published ports, services. `bridge nuee`: what a
//! workload may put on the wire (its own MAC and address, and nothing that only a router or DHCP server says).
//!
//! The sets are named here once; [`super::elements`] fills them as workloads come and go.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::TABLE;
use super::elements::{Element, Family, Field};
use super::services::Tables;
use crate::types::{Attachment, METADATA_PORT, Network, PortMapping, Publication};

/// First characters of the names of our veth ends on the machine; the bridge table looks at no other ports.
pub(crate) const PORT_PREFIX: &str = "nuv";

/// What the text is made from.
pub(crate) struct Input<'a> {
    pub(crate) elements: Vec<Element>,
    pub(crate) services: &'a Tables,
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
}

impl Fixed {
    /// Name of a chain that is there when the installed tables have this very layout.
    pub(crate) fn marker(&self) -> String {
        let text = format!("{self:?}{INET_CHAINS}{BRIDGE_TABLE}");
        format!("layout-{:016x}", crate::names::hash(&text))
    }
}

// In every chain what most packets meet comes first, and what is cheap to see comes before look-ups: these rules are run
// for each packet of established connections, too.
const INET_CHAINS: &str = r#"
	chain guard {
		type filter hook prerouting priority raw; policy accept;
		ip daddr 127.0.0.0/8 iifname @bridges drop
		udp dport 4789 iifname @bridges drop
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname @bridges ip daddr 169.254.169.254 tcp dport 80 redirect to :METADATA_PORT
		ip daddr . meta l4proto . th dport vmap @services
		iifname . ip daddr vmap @network_services
		fib daddr type local goto local
	}
	chain output {
		type nat hook output priority -100; policy accept;
		ip daddr . meta l4proto . th dport vmap @services
		ip daddr vmap @service_addresses
		fib daddr type local goto local
	}
	chain local {
		dnat ip to ip daddr . meta l4proto . th dport map @published
		dnat ip to meta l4proto . th dport map @published_any
		meta l4proto . th dport vmap @node_ports
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		ip daddr @virtual goto refuse
		iifname . oifname @within accept
		iifname @internal drop
		oifname @internal drop
		ct status dnat accept
		oifname @bridges goto inbound
	}
	chain inbound {
		iifname @bridges drop
		oifname @routed accept
		drop
	}
	chain refuse_output {
		type filter hook output priority filter; policy accept;
		ct state established,related accept
		ip daddr @virtual fib daddr type != local goto refuse
	}
	chain refuse {
		meta l4proto tcp reject with tcp reset
		reject with icmpx port-unreachable
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "lo" return
		ip saddr . ip daddr @hairpin masquerade
		ip saddr 127.0.0.0/8 oifname @bridges masquerade
		WITHIN
		oifname @bridges return
		ip daddr @direct return
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
	set guests {
		type ifname . ether_addr
	}
	chain prerouting {
		type filter hook prerouting priority -300; policy accept;
		ether type ip iifname . ether saddr . ip saddr @ports accept
		iifname != "PREFIX*" accept
		ip saddr 0.0.0.0 udp sport 68 udp dport 67 iifname . ether saddr @guests accept
		ether type arp iifname . ether saddr . arp saddr ip @ports iifname . arp saddr ether . arp saddr ip @ports accept
		drop
	}
	chain forward {
		type filter hook forward priority -200; policy accept;
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
    let chains = INET_CHAINS.replace("WITHIN", within).replace("NODE_PORTS", &input.fixed.node_ports);
    text.push_str(&chains.replace("METADATA_PORT", &METADATA_PORT.to_string()));
    let _ = writeln!(text, "}}\ntable bridge {TABLE} {{{}}}", BRIDGE_TABLE.replace("PREFIX", PORT_PREFIX));
    for element in &input.elements {
        text.push_str(&element.text());
    }
    text.push_str(&input.services.script_from(&Tables::default()));
    text
}

fn sets(fixed: &Fixed) -> String {
    let mut text = String::new();
    for (name, kind, elements) in [
        ("bridges", "type ifname;", &[][..]),
        ("internal", "type ifname;", &[]),
        ("routed", "type ifname;", &[]),
        ("within", "type ifname . ifname;", &[]),
        ("hairpin", "type ipv4_addr . ipv4_addr;", &[]),
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
        "\tmap services { type ipv4_addr . inet_proto . inet_service : verdict; }\n",
        "\tmap service_addresses { type ipv4_addr : verdict; }\n",
        "\tmap network_services { type ifname . ipv4_addr : verdict; }\n",
        "\tmap node_ports { type inet_proto . inet_service : verdict; }\n",
    ));
    text
}

/// The elements that go with a network: which rules hold for its bridge.
pub(crate) fn of_network(network: &Network) -> Vec<Element> {
    let bridge = Field::Interface(network.bridge.clone());
    let element = |set, key| Element { family: Family::Inet, set, key, value: Vec::new() };
    let mut elements = vec![element("bridges", vec![bridge.clone()])];
    if network.internal {
        elements.push(element("internal", vec![bridge.clone()]));
    }
    if network.routed {
        elements.push(element("routed", vec![bridge.clone()]));
    }
    if !network.isolated_ports {
        elements.push(element("within", vec![bridge.clone(), bridge]));
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
    elements
}

/// The elements of published ports.
pub(crate) fn of_publication(publication: &Publication) -> Vec<Element> {
    publication.ports.iter().map(|mapping| of_mapping(publication.target, mapping)).collect()
}

fn of_mapping(target: Ipv4Addr, mapping: &PortMapping) -> Element {
    let value = vec![Field::Address(target), Field::Port(mapping.target_port)];
    let mut key = vec![Field::Protocol(mapping.protocol), Field::Port(mapping.host_port)];
    let set = if mapping.host_address.is_unspecified() {
        "published_any"
    } else {
        key.insert(0, Field::Address(mapping.host_address));
        "published"
    };
    Element { family: Family::Inet, set, key, value }
}
