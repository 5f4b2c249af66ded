//! Security groups as nftables objects. Pure.
//!
//! Rules look at the *flow* that a packet belongs to, as connection tracking knows it, never at the packet's own addresses:
//! `ct original ip saddr` is who began to speak, `ct reply ip saddr` is who answers, behind every translation. Both read the
//! same in either direction, so a rule is asked for each packet of a flow, questions and answers alike: an edit ends what is
//! not allowed any more at once, and touches nothing else. (Errors that ICMP tells of a flow are of another protocol than the
//! flow, so they are let through before: they quote one that was allowed when it began.)
//!
//! The rules are asked on [`HOOKS`], which are there only while a port is under guard: even a filter without a match costs each
//! packet of the machine.
//!
//! Each combination of groups that a port has is one chain per direction; each group that others name is a set of addresses.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write;
use std::net::Ipv4Addr;

use super::TABLE;
use crate::names::hash;
use crate::types::{Attachment, METADATA_PORT, Remote, SecurityGroup, SecurityRule, Traffic};

/// Whoever is asked by DHCP answers on this port; the guest's side of it. `Source:` RFC 2131.
const DHCP_CLIENT_PORT: u16 = 68;
const DHCP_SERVER_PORT: u16 = 67;
const DNS_PORT: u16 = 53;

/// Where packets are held against the rules: name of the chain, its type, and its rule.
pub(crate) const HOOKS: [(&str, &str, &str); 3] = [
    // Nobody outside of our networks speaks for a member.
    (
        "guard_members",
        "filter hook prerouting priority raw",
        "ip saddr @members iifname != @bridges iifname != @overlays drop",
    ),
    ("secure_input", "filter hook input priority filter", "jump secure"),
    ("secure_postrouting", "filter hook postrouting priority srcnat - 10", "jump secure"),
];

/// All nftables objects of all groups that matter on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guards {
    /// Members of the groups that rules name.
    sets: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    chains: BTreeMap<String, Vec<String>>,
    /// Ports under guard: the chains for what comes in and what goes out.
    ports: BTreeMap<Ipv4Addr, (String, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

impl Guards {
    /// Compiles the groups of the ports that have any.
    pub(crate) fn compile(groups: &BTreeMap<String, SecurityGroup>, attachments: &[&Attachment]) -> Guards {
        let mut guards = Guards::default();
        for attachment in attachments.iter().filter(|one| !one.groups.is_empty()) {
            let named: BTreeSet<&str> = attachment.groups.iter().map(String::as_str).collect();
            let key = hash(&named.iter().copied().collect::<Vec<_>>().join(" "));
            let known: Vec<&SecurityGroup> = named.iter().filter_map(|name| groups.get(*name)).collect();
            let chain = |direction| match direction {
                Direction::In => format!("sg-in-{key:016x}"),
                Direction::Out => format!("sg-out-{key:016x}"),
            };
            for direction in [Direction::In, Direction::Out] {
                let rules = || rules(&known, direction);
                guards.chains.entry(chain(direction)).or_insert_with(rules);
            }
            guards.ports.insert(attachment.address, (chain(Direction::In), chain(Direction::Out)));
            for other in known.iter().flat_map(|group| group.ingress.iter().chain(&group.egress)) {
                let Remote::Group(id) = &other.remote else { continue };
                guards.sets.entry(set_name(id)).or_insert_with(|| members(id, groups, attachments));
            }
        }
        guards
    }

    /// The script that puts these objects in place of `old`, whatever of them is in the kernel, in one transaction. Empty when
    /// nothing changed.
    pub(crate) fn script(&self, old: Option<&Guards>) -> String {
        if old == Some(self) {
            return String::new();
        }
        let mut text = String::new();
        for name in ["guarded_in", "guarded_out"] {
            let _ = writeln!(text, "flush map inet {TABLE} {name}");
        }
        for name in ["guarded", "members"] {
            let _ = writeln!(text, "flush set inet {TABLE} {name}");
        }
        for (set, addresses) in &self.sets {
            let _ = writeln!(text, "add set inet {TABLE} {set} {{ type ipv4_addr; }}\nflush set inet {TABLE} {set}");
            add_all(&mut text, set, addresses.iter().map(Ipv4Addr::to_string));
        }
        for (chain, rules) in &self.chains {
            let _ = writeln!(text, "add chain inet {TABLE} {chain}\nflush chain inet {TABLE} {chain}");
            for rule in rules {
                let _ = writeln!(text, "add rule inet {TABLE} {chain} {rule}");
            }
        }
        let ports = || self.ports.iter();
        add_all(&mut text, "guarded", ports().map(|(address, _)| address.to_string()));
        add_all(&mut text, "guarded_in", ports().map(|(address, (chain, _))| format!("{address} : jump {chain}")));
        add_all(&mut text, "guarded_out", ports().map(|(address, (_, chain))| format!("{address} : jump {chain}")));
        let members: BTreeSet<&Ipv4Addr> = self.sets.values().flatten().collect();
        add_all(&mut text, "members", members.iter().map(|address| address.to_string()));
        text.push_str(&self.hooks(old));
        let Some(old) = old else { return text };
        for chain in old.chains.keys().filter(|chain| !self.chains.contains_key(*chain)) {
            let _ = writeln!(text, "flush chain inet {TABLE} {chain}\ndelete chain inet {TABLE} {chain}");
        }
        for set in old.sets.keys().filter(|set| !self.sets.contains_key(*set)) {
            let _ = writeln!(text, "delete set inet {TABLE} {set}");
        }
        text
    }

    /// The script by which the hooks come with the first port under guard and go with the last.
    fn hooks(&self, old: Option<&Guards>) -> String {
        let wanted = !self.ports.is_empty();
        let mut text = String::new();
        if old.is_some_and(|old| old.ports.is_empty() != wanted) {
            return text;
        }
        for (chain, kind, rule) in HOOKS {
            // First of all it is there, so that what follows succeeds whether or not it was.
            let _ = writeln!(text, "add chain inet {TABLE} {chain} {{ type {kind}; policy accept; }}");
            let _ = writeln!(text, "flush chain inet {TABLE} {chain}");
            let _ = match wanted {
                true => writeln!(text, "add rule inet {TABLE} {chain} {rule}"),
                false => writeln!(text, "delete chain inet {TABLE} {chain}"),
            };
        }
        text
    }
}

fn add_all(text: &mut String, set: &str, elements: impl Iterator<Item = String>) {
    let elements: Vec<String> = elements.collect();
    if !elements.is_empty() {
        let _ = writeln!(text, "add element inet {TABLE} {set} {{ {} }}", elements.join(", "));
    }
}

fn set_name(group: &str) -> String {
    format!("sg-of-{:016x}", hash(group))
}

/// The addresses of a group. Of an address that is here, what is known here holds; of others, what the pool says.
fn members(id: &str, groups: &BTreeMap<String, SecurityGroup>, attachments: &[&Attachment]) -> BTreeSet<Ipv4Addr> {
    let here: HashSet<Ipv4Addr> = attachments.iter().map(|one| one.address).collect();
    let told = groups.get(id).into_iter().flat_map(|group| &group.members);
    let elsewhere = told.filter(|address| !here.contains(address)).copied();
    let own = attachments.iter().filter(|one| one.groups.iter().any(|name| name == id)).map(|one| one.address);
    elsewhere.chain(own).collect()
}

/// What any of the groups lets through returns to the caller; the rest ends here.
fn rules(groups: &[&SecurityGroup], direction: Direction) -> Vec<String> {
    let of_group = |group: &&SecurityGroup| match direction {
        Direction::In => group.ingress.clone(),
        Direction::Out => group.egress.clone(),
    };
    let allowed: BTreeSet<String> = groups.iter().flat_map(of_group).map(|rule| text(&rule, direction)).collect();
    let mut rules: Vec<String> = allowed.into_iter().collect();
    // Without these no guest learns its address, its names or its keys, and none of them leads past its own gateway.
    match direction {
        Direction::In => {
            let peer = "ct original ip saddr @gateways";
            rules.push(format!("{peer} meta l4proto udp ct reply proto-src {DHCP_CLIENT_PORT} return"));
        }
        Direction::Out => {
            let peer = "ct reply ip saddr @gateways";
            let ports = format!("{{ {DNS_PORT}, {METADATA_PORT} }}");
            rules.push(format!("{peer} meta l4proto tcp ct reply proto-src {ports} return"));
            let ports = format!("{{ {DNS_PORT}, {DHCP_SERVER_PORT} }}");
            rules.push(format!("{peer} meta l4proto udp ct reply proto-src {ports} return"));
        }
    }
    rules.push("drop".into());
    rules
}

fn text(rule: &SecurityRule, direction: Direction) -> String {
    let peer = match direction {
        Direction::In => "ct original ip saddr",
        Direction::Out => "ct reply ip saddr",
    };
    let remote = match &rule.remote {
        Remote::Anywhere => String::new(),
        Remote::Subnet(subnet) => format!("{peer} {subnet} "),
        Remote::Group(id) => format!("{peer} @{} ", set_name(id)),
    };
    let traffic = match rule.traffic {
        Traffic::Any => String::new(),
        Traffic::Protocol(number) => format!("meta l4proto {number} "),
        Traffic::Ports { protocol, first, last } => {
            format!("meta l4proto {protocol} ct reply proto-src {first}-{last} ")
        }
        // Connection tracking keeps type and code where others have their destination port.
        Traffic::Icmp { kind, code } => {
            let kind = u16::from(kind) << 8;
            let (first, last) = match code {
                Some(code) => (kind | u16::from(code), kind | u16::from(code)),
                None => (kind, kind | 0xff),
            };
            format!("meta l4proto icmp ct original proto-dst {first}-{last} ")
        }
    };
    format!("{remote}{traffic}return")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Mac, Protocol};

    fn attachment(last: u8, groups: &[&str]) -> Attachment {
        let address = Ipv4Addr::new(10, 88, 0, last);
        Attachment {
            owner: format!("o{last}"),
            network: "default".into(),
            namespace: "/".into(),
            interface: String::new(),
            host_interface: format!("nuv{last}"),
            address,
            prefix: 16,
            gateway: Ipv4Addr::new(10, 88, 0, 1),
            ipv6: None,
            mac: Mac::from_address(address),
            tap: true,
            groups: groups.iter().map(|one| (*one).to_owned()).collect(),
            port: None,
        }
    }

    fn group(id: &str, ingress: Vec<SecurityRule>, members: &[u8]) -> SecurityGroup {
        SecurityGroup {
            id: id.into(),
            ingress,
            egress: vec![SecurityRule { traffic: Traffic::Any, remote: Remote::Anywhere }],
            members: members.iter().map(|last| Ipv4Addr::new(10, 88, 0, *last)).collect(),
        }
    }

    fn web() -> BTreeMap<String, SecurityGroup> {
        let http = Traffic::Ports { protocol: Protocol::Tcp, first: 80, last: 80 };
        let rules = vec![SecurityRule { traffic: http, remote: Remote::Group("n/web".into()) }];
        BTreeMap::from([("n/web".to_owned(), group("n/web", rules, &[2, 3, 9]))])
    }

    #[test]
    fn what_is_known_here_of_an_address_outweighs_what_was_told() {
        // 2 is a member; 3 was one and is now somebody else's address; 9 is on another machine.
        let (two, three) = (attachment(2, &["n/web"]), attachment(3, &[]));
        let guards = Guards::compile(&web(), &[&two, &three]);
        let members: Vec<Ipv4Addr> = guards.sets[&set_name("n/web")].iter().copied().collect();
        assert_eq!(members, [Ipv4Addr::new(10, 88, 0, 2), Ipv4Addr::new(10, 88, 0, 9)]);
        assert_eq!(guards.ports.keys().collect::<Vec<_>>(), [&two.address]);
    }

    #[test]
    fn a_group_that_is_not_known_lets_nothing_through() {
        let guards = Guards::compile(&BTreeMap::new(), &[&attachment(2, &["n/none"])]);
        for rules in guards.chains.values() {
            let (last, before) = rules.split_last().unwrap();
            assert_eq!(last, "drop");
            assert!(before.iter().all(|rule| rule.contains("@gateways")), "{rules:?}");
        }
        assert_eq!(guards.chains.len(), 2);
    }

    #[test]
    fn rules_speak_of_the_flow() {
        let rule = |traffic| SecurityRule { traffic, remote: Remote::Subnet("192.0.2.0/24".parse().unwrap()) };
        let ping = rule(Traffic::Icmp { kind: 8, code: None });
        assert_eq!(
            text(&ping, Direction::In),
            "ct original ip saddr 192.0.2.0/24 meta l4proto icmp ct original proto-dst 2048-2303 return"
        );
        let unreachable = rule(Traffic::Icmp { kind: 3, code: Some(1) });
        assert!(text(&unreachable, Direction::Out).starts_with("ct reply ip saddr 192.0.2.0/24 "));
        assert!(text(&unreachable, Direction::Out).contains(" 769-769 "));
        assert_eq!(text(&rule(Traffic::Protocol(47)), Direction::In).matches("l4proto 47").count(), 1);
    }

    #[test]
    fn a_script_names_what_is_gone_last_and_nothing_twice() {
        let (two, three) = (attachment(2, &["n/web"]), attachment(3, &["n/web"]));
        let both = Guards::compile(&web(), &[&two, &three]);
        assert_eq!((both.chains.len(), both.ports.len()), (2, 2));
        assert_eq!(both.script(Some(&both)), "");
        let none = Guards::compile(&web(), &[]);
        let script = none.script(Some(&both));
        let last: Vec<&str> = script.lines().rev().take(1).collect();
        assert!(last[0].starts_with("delete set inet nuee sg-of-"), "{script}");
        assert!(!script.contains("add element") && !script.contains("add rule"), "{script}");
    }

    #[test]
    fn hooks_come_with_the_first_port_under_guard_and_go_with_the_last() {
        let (two, three) = (attachment(2, &["n/web"]), attachment(3, &["n/web"]));
        let [none, one, both] = [&[][..], &[&two], &[&two, &three]].map(|ports| Guards::compile(&web(), ports));
        for (chain, ..) in HOOKS {
            let adds = |script: &str| script.contains(&format!("add rule inet nuee {chain} "));
            let deletes = |script: &str| script.contains(&format!("delete chain inet nuee {chain}\n"));
            for (from, to, expected) in [
                (Some(&none), &one, (true, false)),
                (Some(&one), &both, (false, false)),
                (Some(&both), &one, (false, false)),
                (Some(&one), &none, (false, true)),
                (None, &one, (true, false)),
                (None, &none, (false, true)),
            ] {
                let script = to.script(from);
                assert_eq!((adds(&script), deletes(&script)), expected, "{chain}: {script}");
            }
        }
    }
}
