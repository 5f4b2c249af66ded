//! Service load-balancing as nftables objects, and the difference between two states of it as one script. Pure.
//!
//! A service port is one chain with one rule that picks an endpoint at random. With session affinity, each endpoint has a
//! chain that also remembers the client in a set of its own, so that clients stay where they are when other endpoints come
//! and go.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;

use super::TABLE;
use crate::kernel::conntrack::Frontends;
use crate::names::{bridge_name, hash};
use crate::types::{Endpoint, Protocol, ServiceRule};

/// Clients that one endpoint remembers.
const AFFINITY_CLIENTS_MAX: u32 = 65_535;
/// Kubernetes allows a day at most.
const AFFINITY_SECONDS_MAX: u32 = 86_400;

/// All nftables objects of all services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    /// Sets by name, with their definitions.
    sets: BTreeMap<String, String>,
    /// Chains by name, with their rules.
    chains: BTreeMap<String, Vec<String>>,
    /// Elements of the verdict maps: `(map, key)` to chain.
    elements: BTreeMap<(&'static str, String), String>,
    /// UDP frontends with their endpoints.
    datagrams: BTreeMap<(Option<Ipv4Addr>, u16), Vec<Endpoint>>,
}

impl Tables {
    /// Compiles rules. Of two rules with the same address, protocol and port the first one by name wins.
    pub(crate) fn compile(rules: &[ServiceRule]) -> Tables {
        let mut sorted: Vec<&ServiceRule> = rules.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut tables = Tables::default();
        for rule in sorted {
            tables.add_rule(rule);
        }
        tables
    }

    fn add_rule(&mut self, rule: &ServiceRule) {
        let inside = rule.cluster_ip.iter().map(|a| Some(*a));
        let outside = rule.external_addresses.iter().map(|a| Some(*a)).chain(rule.node_port.map(|_| None));
        match &rule.external_endpoints {
            None => self.add_frontends(rule, "", inside.chain(outside).collect(), &rule.endpoints),
            Some(external) => {
                self.add_frontends(rule, "", inside.collect(), &rule.endpoints);
                self.add_frontends(rule, "#external", outside.collect(), external);
            }
        }
    }

    /// Leads addresses (`None`: the node port) to endpoints.
    fn add_frontends(
        &mut self,
        rule: &ServiceRule,
        part: &str,
        addresses: Vec<Option<Ipv4Addr>>,
        endpoints: &[Endpoint],
    ) {
        let endpoints: Vec<Endpoint> = endpoints.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        if rule.protocol == Protocol::Udp && rule.port != 0 {
            for address in &addresses {
                let port = if address.is_some() { rule.port } else { rule.node_port.unwrap_or_default() };
                self.datagrams.entry((*address, port)).or_insert_with(|| endpoints.clone());
            }
        }
        // Without endpoints nothing is translated, and what is sent to a virtual address is refused by the filter chains.
        if endpoints.is_empty() || addresses.is_empty() {
            return;
        }
        let chain = format!("svc-{:016x}", hash(&format!("{}{part}", rule.name)));
        for address in addresses {
            let key = match address {
                Some(address) if rule.port == 0 => {
                    self.add_whole_address(rule, address, &chain);
                    continue;
                }
                Some(address) => ("services", format!("{address} . {} . {}", rule.protocol, rule.port)),
                None => ("node_ports", format!("{} . {}", rule.protocol, rule.node_port.unwrap_or_default())),
            };
            self.elements.entry(key).or_insert_with(|| chain.clone());
        }
        match rule.affinity_seconds {
            _ if rule.port == 0 => {
                self.chains.insert(chain, vec![random_address_rule(&endpoints)]);
            }
            None => {
                self.chains.insert(chain, vec![random_rule(rule.protocol, &endpoints)]);
            }
            Some(seconds) => {
                self.add_affinity(&chain, rule.protocol, &endpoints, seconds.clamp(1, AFFINITY_SECONDS_MAX))
            }
        }
    }

    /// An address that leads on from every port: from the machine itself, and from the bridge of its network.
    fn add_whole_address(&mut self, rule: &ServiceRule, address: Ipv4Addr, chain: &str) {
        let key = ("service_addresses", address.to_string());
        self.elements.entry(key).or_insert_with(|| chain.to_owned());
        if let Some(network) = &rule.from_network {
            let key = ("network_services", format!("\"{}\" . {address}", bridge_name(network)));
            self.elements.entry(key).or_insert_with(|| chain.to_owned());
        }
    }

    fn add_affinity(&mut self, chain: &str, protocol: Protocol, endpoints: &[Endpoint], seconds: u32) {
        let mut rules = Vec::new();
        let mut choices = Vec::new();
        for (index, endpoint) in endpoints.iter().enumerate() {
            let id = format!("{:016x}", hash(&format!("{chain} {endpoint} {protocol}")));
            let (set, target) = (format!("aff-{id}-{seconds}"), format!("ep-{id}-{seconds}"));
            self.sets.insert(
                set.clone(),
                format!("type ipv4_addr; size {AFFINITY_CLIENTS_MAX}; flags dynamic,timeout; timeout {seconds}s;"),
            );
            let remember = format!("update @{set} {{ ip saddr }}");
            self.chains.insert(target.clone(), vec![remember, random_rule(protocol, &[*endpoint])]);
            rules.push(format!("ip saddr @{set} goto {target}"));
            choices.push(format!("{index} : goto {target}"));
        }
        rules.push(format!("numgen random mod {} vmap {{ {} }}", endpoints.len(), choices.join(", ")));
        self.chains.insert(chain.to_owned(), rules);
    }

    /// The script that turns the objects of `old` into these; empty when nothing changed.
    ///
    /// The order keeps every reference valid at every line: elements go before their chains, chains come before the rules
    /// that jump to them, and sets outlive the rules that look into them.
    pub(crate) fn script_from(&self, old: &Tables) -> String {
        let mut text = String::new();
        for ((map, key), chain) in &old.elements {
            if self.elements.get(&(*map, key.clone())) != Some(chain) {
                let _ = writeln!(text, "delete element inet {TABLE} {map} {{ {key} : goto {chain} }}");
            }
        }
        for (set, definition) in &self.sets {
            if !old.sets.contains_key(set) {
                let _ = writeln!(text, "add set inet {TABLE} {set} {{ {definition} }}");
            }
        }
        for chain in self.chains.keys().filter(|c| !old.chains.contains_key(*c)) {
            let _ = writeln!(text, "add chain inet {TABLE} {chain}");
        }
        for (chain, rules) in &old.chains {
            if self.chains.get(chain) != Some(rules) {
                let _ = writeln!(text, "flush chain inet {TABLE} {chain}");
            }
        }
        for (chain, rules) in &self.chains {
            if old.chains.get(chain) != Some(rules) {
                for rule in rules {
                    let _ = writeln!(text, "add rule inet {TABLE} {chain} {rule}");
                }
            }
        }
        for chain in old.chains.keys().filter(|c| !self.chains.contains_key(*c)) {
            let _ = writeln!(text, "delete chain inet {TABLE} {chain}");
        }
        for set in old.sets.keys().filter(|s| !self.sets.contains_key(*s)) {
            let _ = writeln!(text, "delete set inet {TABLE} {set}");
        }
        for ((map, key), chain) in &self.elements {
            if old.elements.get(&(*map, key.clone())) != Some(chain) {
                let _ = writeln!(text, "add element inet {TABLE} {map} {{ {key} : goto {chain} }}");
            }
        }
        text
    }

    /// The UDP frontends that changed against `old`: tracked flows to them that lead elsewhere must be forgotten.
    pub(crate) fn changed_datagrams(&self, old: &Tables) -> Frontends {
        let mut frontends = Frontends::default();
        for (key, endpoints) in &self.datagrams {
            if old.datagrams.get(key) != Some(endpoints) {
                frontends.insert(key.0.map(Into::into), key.1, endpoints.iter().map(|e| (e.address, e.port).into()));
            }
        }
        for key in old.datagrams.keys().filter(|k| !self.datagrams.contains_key(*k)) {
            frontends.insert(key.0.map(Into::into), key.1, []);
        }
        frontends
    }
}

/// The rule that leads to one of the endpoints, each as likely as the others.
fn random_rule(protocol: Protocol, endpoints: &[Endpoint]) -> String {
    if let [only] = endpoints {
        return format!("meta l4proto {protocol} dnat ip to {}:{}", only.address, only.port);
    }
    let choices: Vec<String> = endpoints.iter().enumerate().map(|(index, e)| format!("{index} : {e}")).collect();
    let count = endpoints.len();
    format!("meta l4proto {protocol} dnat ip to numgen random mod {count} map {{ {} }}", choices.join(", "))
}

/// The same for every protocol and port: only the address is translated.
fn random_address_rule(endpoints: &[Endpoint]) -> String {
    if let [only] = endpoints {
        return format!("dnat ip to {}", only.address);
    }
    let choices: Vec<String> =
        endpoints.iter().enumerate().map(|(index, e)| format!("{index} : {}", e.address)).collect();
    format!("dnat ip to numgen random mod {} map {{ {} }}", endpoints.len(), choices.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A kernel that knows as much of nftables as our scripts use, and is as strict about references.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    struct Kernel {
        sets: BTreeSet<String>,
        chains: BTreeMap<String, Vec<String>>,
        elements: BTreeMap<(String, String), String>,
    }

    impl Kernel {
        fn run(&mut self, script: &str) {
            for line in script.lines() {
                let words: Vec<&str> = line.splitn(6, ' ').collect();
                let (name, rest) = (words[4].to_owned(), words.get(5).copied().unwrap_or_default());
                match (words[0], words[1]) {
                    ("add", "set") => assert!(self.sets.insert(name), "{line}"),
                    ("add", "chain") => assert!(self.chains.insert(name, Vec::new()).is_none(), "{line}"),
                    ("flush", "chain") => self.chains.get_mut(&name).expect(line).clear(),
                    ("add", "rule") => {
                        for referred in references(rest) {
                            assert!(self.sets.contains(&referred) || self.chains.contains_key(&referred), "{line}");
                        }
                        self.chains.get_mut(&name).expect(line).push(rest.to_owned());
                    }
                    ("delete", "chain") => {
                        assert!(self.chains.remove(&name).expect(line).is_empty());
                        assert!(!self.is_referred(&name), "{line}");
                    }
                    ("delete", "set") => assert!(self.sets.remove(&name) && !self.is_referred(&name), "{line}"),
                    (verb, "element") => {
                        let (key, chain) = rest.trim_matches(['{', '}', ' ']).split_once(" : goto ").expect(line);
                        let key = (name, key.to_owned());
                        if verb == "add" {
                            assert!(self.chains.contains_key(chain), "{line}");
                            assert!(self.elements.insert(key, chain.to_owned()).is_none(), "{line}");
                        } else {
                            assert_eq!(self.elements.remove(&key).as_deref(), Some(chain), "{line}");
                        }
                    }
                    _ => panic!("{line}"),
                }
            }
        }

        fn is_referred(&self, name: &str) -> bool {
            self.elements.values().any(|c| c == name)
                || self.chains.values().flatten().any(|r| references(r).any(|referred| referred == name))
        }
    }

    fn references(rule: &str) -> impl Iterator<Item = String> {
        rule.split([' ', ',', '@'])
            .filter(|w| ["svc-", "ep-", "aff-"].iter().any(|p| w.starts_with(p)))
            .map(str::to_owned)
    }

    fn rule() -> impl Strategy<Value = ServiceRule> {
        let endpoint = (1u8..6).prop_map(|i| Endpoint { address: Ipv4Addr::new(10, 88, 0, i), port: 8080 });
        (
            (0u8..4, 0u8..4, any::<bool>(), proptest::option::of(30_000u16..30_003), any::<bool>()),
            proptest::collection::vec(endpoint.clone(), 0..4),
            proptest::option::of(proptest::collection::vec(endpoint, 0..3)),
            proptest::option::of(1u32..3),
        )
            .prop_map(
                |((name, ip, udp, node_port, every_port), endpoints, external_endpoints, affinity_seconds)| {
                    ServiceRule {
                        name: format!("s{name}"),
                        cluster_ip: (ip > 0).then(|| Ipv4Addr::new(10, 96, 0, ip)),
                        external_addresses: Vec::new(),
                        port: if every_port { 0 } else { 80 },
                        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                        node_port,
                        endpoints,
                        external_endpoints,
                        from_network: every_port.then(|| "n".to_owned()),
                        affinity_seconds,
                    }
                },
            )
    }

    fn rules() -> impl Strategy<Value = Vec<ServiceRule>> {
        proptest::collection::vec(rule(), 0..5).prop_map(|mut rules| {
            rules.sort_by(|a, b| a.name.cmp(&b.name));
            rules.dedup_by(|a, b| a.name == b.name);
            rules
        })
    }

    proptest! {
        #[test]
        fn every_step_is_valid_and_ends_where_a_fresh_installation_would(states in proptest::collection::vec(rules(), 1..6)) {
            let (mut kernel, mut old) = (Kernel::default(), Tables::default());
            for rules in &states {
                let new = Tables::compile(rules);
                kernel.run(&new.script_from(&old));
                let mut fresh = Kernel::default();
                fresh.run(&new.script_from(&Tables::default()));
                prop_assert_eq!(&kernel, &fresh);
                prop_assert_eq!(new.script_from(&new), "");
                old = new;
            }
        }
    }

    #[test]
    fn only_what_changed_is_touched() {
        let service = |name: &str, ip, endpoints: &[u8]| ServiceRule {
            name: name.into(),
            cluster_ip: Some(Ipv4Addr::new(10, 96, 0, ip)),
            external_addresses: Vec::new(),
            port: 80,
            protocol: Protocol::Tcp,
            node_port: None,
            endpoints: endpoints.iter().map(|i| Endpoint { address: Ipv4Addr::new(10, 88, 0, *i), port: 80 }).collect(),
            external_endpoints: None,
            from_network: None,
            affinity_seconds: None,
        };
        let old = Tables::compile(&[service("a", 1, &[1, 2]), service("b", 2, &[3])]);
        let new = Tables::compile(&[service("a", 1, &[2]), service("b", 2, &[3])]);
        let chain = format!("svc-{:016x}", hash("a"));
        let expected = format!(
            "flush chain inet nuee {chain}\nadd rule inet nuee {chain} meta l4proto tcp dnat ip to 10.88.0.2:80\n"
        );
        assert_eq!(new.script_from(&old), expected);
    }
}
