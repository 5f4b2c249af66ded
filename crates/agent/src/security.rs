//! Follows `SecurityGroup` objects, and has the network let through what they say. Who is in a group here, ports know; who is in it
//! elsewhere, the objects' status tells.

use std::sync::Arc;
use std::time::Duration;

use api::SecurityGroup;
use api::security_group::{Direction, Remote, SecurityGroupRule, Traffic};
use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher;
use network::{Protocol, SecurityRule, Subnet};

use crate::context::{Context, Key};
use crate::error::{Error, Result, chain};
use crate::informer;

pub use api::security_group::LABEL;

/// How long to wait after the kernel refused.
const RETRY: Duration = Duration::from_secs(1);

/// What the network calls the groups of these names.
pub fn ids(namespace: &str, names: &[String]) -> Vec<String> {
    names.iter().map(|name| format!("{namespace}/{name}")).collect()
}

/// The same of a label's text.
pub fn of_label(namespace: &str, label: Option<&String>) -> Vec<String> {
    ids(namespace, &label.map(|text| api::security_group::names(text)).unwrap_or_default())
}

/// Whether there are groups of these names. One that is not there lets nothing through, which is seldom what was meant.
pub async fn check(context: &Context, namespace: &str, names: &[String]) -> Result<()> {
    let groups: Api<SecurityGroup> = Api::namespaced(context.client.clone(), namespace);
    for name in names {
        let found = groups.get_opt(name).await.map_err(Error::api("read the security group"))?;
        found.ok_or_else(|| Error::Invalid(format!("security group {name} not found")))?;
    }
    Ok(())
}

/// Runs until the agent is dropped.
pub async fn run(context: Arc<Context>) {
    let api = Api::<SecurityGroup>::all(context.client.clone());
    let mut states = std::pin::pin!(informer::states(api, watcher::Config::default()));
    while let Some(known) = states.next().await {
        let groups: Vec<_> = known.values().map(|object| group(object)).collect();
        while let Err(error) = context.fabric.sync_security_groups(groups.clone()).await {
            tracing::warn!(error = %chain(&error), "cannot apply the security groups");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// What a group means for the network. Pure.
fn group(object: &SecurityGroup) -> network::SecurityGroup {
    let key = Key::of(object);
    let id = format!("{}/{}", key.namespace, key.name);
    let rules = |wanted| {
        let own: Vec<&SecurityGroupRule> = object.spec.rules.iter().filter(|rule| rule.direction == wanted).collect();
        match (own.is_empty(), wanted) {
            (true, Direction::Egress) => vec![any(network::Remote::Anywhere)],
            (true, Direction::Ingress) => vec![any(network::Remote::Group(id.clone()))],
            // A rule that means nothing allows nothing.
            (false, _) => own.into_iter().filter_map(|one| rule(&key.namespace, one)).collect(),
        }
    };
    let addresses = object.status.iter().flat_map(|status| &status.addresses);
    network::SecurityGroup {
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
        members: addresses.filter_map(|address| address.parse().ok()).collect(),
        id,
    }
}

fn any(remote: network::Remote) -> SecurityRule {
    SecurityRule { traffic: network::Traffic::Any, remote }
}

fn rule(namespace: &str, rule: &SecurityGroupRule) -> Option<SecurityRule> {
    let (traffic, remote) = rule.read().ok()?;
    let traffic = match traffic {
        Traffic::Any => network::Traffic::Any,
        Traffic::Protocol(number) => network::Traffic::Protocol(number),
        Traffic::Icmp(kind, code) => network::Traffic::Icmp { kind, code },
        Traffic::Ports(number, first, last) => {
            let protocol =
                [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|one| one.number() == number)?;
            network::Traffic::Ports { protocol, first, last }
        }
    };
    let remote = match remote {
        Remote::Anywhere => network::Remote::Anywhere,
        Remote::Addresses(address, prefix) => network::Remote::Subnet(Subnet::containing(address, prefix).ok()?),
        Remote::Group(name) => network::Remote::Group(format!("{namespace}/{name}")),
    };
    Some(SecurityRule { traffic, remote })
}

#[cfg(test)]
mod tests {
    use api::{SecurityGroupSpec, SecurityGroupStatus};

    use super::*;

    fn object(rules: Vec<SecurityGroupRule>) -> SecurityGroup {
        let mut object = SecurityGroup::new("web", SecurityGroupSpec { rules, ..Default::default() });
        object.metadata.namespace = Some("shop".into());
        object.status = Some(SecurityGroupStatus { addresses: vec!["10.88.0.9".into()], ..Default::default() });
        object
    }

    #[test]
    fn a_direction_without_rules_has_the_default() {
        let plain = group(&object(Vec::new()));
        assert_eq!(plain.ingress, [any(network::Remote::Group("shop/web".into()))]);
        assert_eq!(plain.egress, [any(network::Remote::Anywhere)]);
        assert_eq!(plain.members.len(), 1);
        let rule = SecurityGroupRule { protocol: "tcp".into(), port_range_min: Some(80), ..Default::default() };
        let web = group(&object(vec![rule]));
        let traffic = network::Traffic::Ports { protocol: Protocol::Tcp, first: 80, last: 80 };
        assert_eq!(web.ingress, [SecurityRule { traffic, remote: network::Remote::Anywhere }]);
        assert_eq!(web.egress, plain.egress);
    }

    #[test]
    fn a_rule_names_groups_of_its_own_namespace_alone() {
        let rule = |remote_group: &str, protocol: &str| SecurityGroupRule {
            remote_group: remote_group.into(),
            protocol: protocol.into(),
            ..Default::default()
        };
        let both = group(&object(vec![rule("db", ""), rule("x", "nonsense")]));
        assert_eq!(both.ingress, [any(network::Remote::Group("shop/db".into()))]);
        assert_eq!(of_label("shop", Some(&"a, b".into())), ["shop/a", "shop/b"]);
        assert!(of_label("shop", None).is_empty());
    }
}
