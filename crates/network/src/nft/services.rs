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
use crate::names::hash;
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
    fn add_frontends(&mut self, rule: &ServiceRule, part: &str, addresses: Vec<Option<Ipv4Addr>>, endpoints: &[Endpoint]) {
        let endpoints: Vec<Endpoint> = endpoints.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        if rule.protocol == Protocol::Udp {
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
                Some(address) => ("services", format!("{address} . {} . {}", rule.protocol, rule.port)),
                None => ("node_ports", format!("{} . {}", rule.protocol, rule.node_port.unwrap_or_default())),
            };
            self.elements.entry(key).or_insert_with(|| chain.clone());
        }
        match rule.affinity_seconds {
            None => {
                self.chains.insert(chain, vec![random_rule(rule.protocol, &endpoints)]);
            }
            Some(seconds) => self.add_affinity(&chain, rule.protocol, &endpoints, seconds.clamp(1, AFFINITY_SECONDS_MAX)),
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
                frontends.insert(key.0, key.1, endpoints);
            }
        }
        for key in old.datagrams.keys().filter(|k| !self.datagrams.contains_key(*k)) {
            frontends.insert(key.0, key.1, &[]);
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
