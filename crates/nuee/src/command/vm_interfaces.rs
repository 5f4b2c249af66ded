//! `nuee vm attach-interface` and `nuee vm detach-interface`.

use anyhow::{Result, bail};
use api::VirtualMachineStatus;
use api::interface::MachineInterface;
use serde_json::{Value, json};

use super::image::Place;
use super::vm_change;

/// The condition that says whether the guest has the interfaces that it should have.
const CONDITION: &str = "InterfacesAttached";

/// Flags of both.
#[derive(clap::Args)]
pub struct Arguments {
    /// The machine
    name: String,
    #[command(flatten)]
    which: Which,
    /// Return at once
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    place: Place,
}

/// What is said of an interface.
#[derive(clap::Args, Default)]
struct Which {
    /// The network that the interface is on
    #[arg(long, value_name = "NETWORK", conflicts_with = "port", required_unless_present_any = ["port", "mac"])]
    network: Option<String>,
    /// The port that the interface is on, which says network, address and security groups
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Its hardware address
    #[arg(long, value_name = "ADDRESS", conflicts_with = "port")]
    mac: Option<String>,
}

/// Gives the machine an interface.
pub async fn attach(arguments: &Arguments, groups: &[String]) -> Result<()> {
    let wish = MachineInterface {
        network: arguments.which.network.clone().unwrap_or_default(),
        port: arguments.which.port.clone().unwrap_or_default(),
        mac_address: arguments.which.mac.clone().unwrap_or_default(),
        security_groups: groups.to_vec(),
    };
    change(arguments, |mut interfaces| {
        interfaces.push(wish.clone());
        Ok(interfaces)
    })
    .await
}

/// Takes an interface from the machine.
pub async fn detach(arguments: &Arguments) -> Result<()> {
    change(arguments, |mut interfaces| {
        // Another interface may be on the same network: the one that came last goes.
        let Some(at) = interfaces.iter().rposition(|one| is_meant(one, &arguments.which)) else {
            bail!("virtual machine {} does not have such an interface", arguments.name);
        };
        interfaces.remove(at);
        if interfaces.is_empty() {
            bail!("virtual machine {} has one interface, which stays", arguments.name);
        }
        Ok(interfaces)
    })
    .await
}

fn is_meant(one: &MachineInterface, which: &Which) -> bool {
    let says = |wanted: &Option<String>, own: Option<&str>| wanted.as_deref().is_none_or(|wanted| own == Some(wanted));
    says(&which.network, one.network())
        && says(&which.port, Some(&one.port))
        && which.mac.as_deref().is_none_or(|mac| one.mac_address.eq_ignore_ascii_case(mac))
}

async fn change(
    arguments: &Arguments,
    edit: impl Fn(Vec<MachineInterface>) -> Result<Vec<MachineInterface>>,
) -> Result<()> {
    let changed = vm_change::change(&arguments.place, &arguments.name, |spec| Ok(patch(&edit(spec.interfaces())?)));
    let generation = changed.await?;
    if arguments.no_wait {
        return Ok(());
    }
    let is_so = |status: &VirtualMachineStatus| {
        let found = status.conditions.iter().find(|one| one.type_ == CONDITION);
        found.is_some_and(|one| one.status == "True" && one.observed_generation >= Some(generation))
    };
    vm_change::settled(&arguments.place, &arguments.name, CONDITION, is_so).await
}

/// A list says all; the single fields are a shorthand without one.
fn patch(interfaces: &[MachineInterface]) -> Value {
    json!({"interfaces": interfaces, "network": null, "port": null, "securityGroups": null})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_found_by_what_was_said_of_it() {
        let which = |network: Option<&str>, port: Option<&str>, mac: Option<&str>| Which {
            network: network.map(str::to_owned),
            port: port.map(str::to_owned),
            mac: mac.map(str::to_owned),
        };
        let spec = api::VirtualMachineSpec { port: "p".into(), ..Default::default() };
        let first = spec.interfaces().remove(0);
        assert!(is_meant(&first, &which(None, Some("p"), None)));
        assert!(!is_meant(&first, &which(Some("bridge"), None, None)));
        let other = MachineInterface { mac_address: "52:54:00:00:00:0A".into(), ..MachineInterface::default() };
        assert!(is_meant(&other, &which(Some("bridge"), None, Some("52:54:00:00:00:0a"))));
        assert!(!is_meant(&other, &which(Some("lan"), None, None)));
        assert_eq!(patch(&[other])["network"], Value::Null);
    }
}
