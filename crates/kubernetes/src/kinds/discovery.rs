//! Group `discovery.k8s.io`: EndpointSlices.

use apiserver::Cause;
use k8s_openapi::api::discovery::v1 as api;
use serde_json::Value;

use super::columns::{age, column, or_none, path};
use super::fields::{check_immutable, check_word, default, items, items_mut, text};
use super::{Registration, register};

/// Most entries of a list that a cell shows.
const SHOWN: usize = 3;

pub(super) fn kinds() -> Vec<Registration> {
    vec![register::<api::EndpointSlice>("endpointslices", |kind| {
        kind.columns = vec![
            path("AddressType", "string", ".addressType"),
            column("Ports", "string", |object, _| {
                let ports = items(object, "ports")
                    .iter()
                    .map(|port| port["port"].as_i64().map_or("*".into(), |port| port.to_string()));
                shorten(ports.collect(), "<unset>")
            }),
            column("Endpoints", "string", |object, _| {
                let addresses = items(object, "endpoints")
                    .iter()
                    .filter_map(|one| one.pointer("/addresses/0")?.as_str().map(str::to_owned));
                shorten(addresses.collect(), "<unset>")
            }),
            age(),
        ];
        kind.default = |object| {
            for port in items_mut(object, "ports") {
                default(port, "protocol", "TCP");
                default(port, "name", "");
            }
        };
        kind.validate = |new, old| {
            let mut causes = Vec::new();
            if text(new, "/addressType").is_empty() {
                causes.push(Cause::required("addressType", ""));
            }
            check_word("addressType", new.get("addressType"), &["FQDN", "IPv4", "IPv6"], &mut causes);
            if let Some(old) = old {
                check_immutable("addressType", new.get("addressType"), old.get("addressType"), &mut causes);
            }
            causes
        };
    })]
}

fn shorten(mut list: Vec<String>, empty: &str) -> Value {
    let more = list.len().saturating_sub(SHOWN);
    list.truncate(SHOWN);
    match (list.is_empty(), more) {
        (true, _) => empty.into(),
        (false, 0) => or_none(list.join(",")),
        (false, more) => format!("{} + {more} more...", list.join(",")).into(),
    }
}
