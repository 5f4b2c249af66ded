//! `Subnet` of group `nuee.dev`.

use apiserver::Cause;
use serde_json::Value;

use super::Registration;
use super::columns::{age, path, wide};
use super::fields::{check_immutable, text};
use super::nuee::{own, plain};
use super::nuee_network::check_name;

fn validate_subnet(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &new["spec"];
    match text(new, "/spec/network") {
        "" => causes.push(Cause::required("spec.network", "the network whose addresses it says")),
        name => check_name("spec.network", name, &mut causes),
    }
    if text(new, "/spec/cidr").is_empty() {
        causes.push(Cause::required("spec.cidr", ""));
        return causes;
    }
    // What is of another shape is the schema's to refuse.
    if let Ok(read) = serde_json::from_value::<api::SubnetSpec>(spec.clone()) {
        for (field, flaw) in read.read().err().unwrap_or_default() {
            let pointer = field.replace(['.', '['], "/").replace(']', "");
            let value = spec.pointer(&format!("/{pointer}")).unwrap_or(&Value::Null);
            causes.push(Cause::invalid(&format!("spec.{field}"), value, &flaw));
        }
    }
    if let Some(old) = old {
        for field in ["network", "cidr", "gatewayIP"] {
            check_immutable(&format!("spec.{field}"), spec.get(field), old["spec"].get(field), &mut causes);
        }
    }
    causes
}

pub(super) fn kinds() -> Vec<Registration> {
    vec![own::<api::Subnet>(|kind| {
        plain(kind);
        kind.selectable_fields = vec![("spec.network".into(), "/spec/network".into())];
        kind.columns = vec![
            path("Network", "string", ".spec.network"),
            path("CIDR", "string", ".spec.cidr"),
            path("Gateway", "string", ".status.gatewayIP"),
            path("Ready", "string", ".status.conditions[?(@.type==\"Ready\")].status"),
            path("Used", "integer", ".status.usedAddresses"),
            path("Available", "integer", ".status.availableAddresses"),
            age(),
            wide(path("Message", "string", ".status.message")),
        ];
        kind.validate = validate_subnet;
    })]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(spec: &Value, old: Option<&Value>) -> Vec<String> {
        let object = |spec: &Value| json!({"metadata": {"name": "s"}, "spec": spec});
        let causes = validate_subnet(&object(spec), old.map(object).as_ref());
        causes.into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn a_subnet_says_what_a_network_can_have() {
        let spec = json!({"network": "a", "cidr": "10.90.0.0/24", "gatewayIP": "10.90.0.1",
            "allocationPools": [{"start": "10.90.0.9", "end": "10.90.0.19"}], "enableDHCP": false,
            "dnsNameservers": ["192.0.2.53"], "hostRoutes": [{"destination": "10.0.0.0/9", "nextHop": "10.90.0.7"}]});
        assert!(fields(&spec, None).is_empty());
        let with = |field: &str, value: Value| {
            let mut spec = spec.clone();
            spec[field] = value;
            spec
        };
        for (field, value, flaw) in [
            ("network", json!(""), "spec.network"),
            ("network", json!("a/b"), "spec.network"),
            ("cidr", json!(""), "spec.cidr"),
            ("cidr", json!("10.90.0.7/24"), "spec.cidr"),
            ("gatewayIP", json!("10.91.0.1"), "spec.gatewayIP"),
            ("allocationPools", json!([{"start": "10.90.0.9", "end": "10.90.0.2"}]), "spec.allocationPools[0]"),
            ("dnsNameservers", json!(["a"]), "spec.dnsNameservers[0]"),
            (
                "hostRoutes",
                json!([{"destination": "10.0.0.0/8", "nextHop": "10.91.0.7"}]),
                "spec.hostRoutes[0].nextHop",
            ),
        ] {
            assert_eq!(fields(&with(field, value.clone()), None), [flaw], "{field} {value}");
        }
        for (field, value) in
            [("network", json!("b")), ("cidr", json!("10.90.0.0/23")), ("gatewayIP", json!("10.90.0.2"))]
        {
            assert_eq!(fields(&with(field, value), Some(&spec)), [format!("spec.{field}")]);
        }
        for (field, value) in [("enableDHCP", json!(true)), ("allocationPools", json!([])), ("hostRoutes", json!([]))] {
            assert!(fields(&with(field, value), Some(&spec)).is_empty(), "{field} may change");
        }
    }
}
