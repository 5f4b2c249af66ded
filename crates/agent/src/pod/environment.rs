//! The environment of a pod's container: service variables, `envFrom`, `env` with `valueFrom`, and `$(NAME)` expansion.
//! Pure: objects that are referred to are given.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret, Service,
};

use crate::quantity;

/// What the fields and references are read from.
pub struct Material<'a> {
    /// The pod, with its status (addresses) as far as known.
    pub pod: &'a Pod,
    /// Config maps of the pod's namespace, by name; absent ones are missing.
    pub config_maps: &'a BTreeMap<String, ConfigMap>,
    /// Secrets of the pod's namespace, by name.
    pub secrets: &'a BTreeMap<String, Secret>,
    /// What the machine offers, for resource fields without a limit.
    pub machine: Machine,
}

/// The machine's size.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine {
    /// Thousandths of CPUs.
    pub cpu_milli: i64,
    /// Memory.
    pub memory_bytes: i64,
}

/// Why the environment cannot be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A config map is missing.
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    /// A secret is missing.
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    /// A key is missing.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The pod's namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field path that is not supported.
    #[error("field label not supported: {0}")]
    Field(String),
    /// A resource that is not supported.
    #[error("unsupported container resource: {0}")]
    Resource(String),
}

/// Names of config maps and secrets that a container's environment refers to.
#[must_use]
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for source in container.env_from.iter().flatten() {
        maps.extend(source.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_ref.iter().map(|r| r.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(from.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(from.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

/// The environment, in order; later entries win.
///
/// Errors: a reference that is not optional leads nowhere.
pub fn build(
    container: &Container,
    material: &Material,
    services: Vec<(String, String)>,
) -> Result<Vec<(String, String)>, Error> {
    let mut list: Vec<(String, String)> = services;
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match material.config_maps.get(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        set(&mut list, format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(Error::NoConfigMap(reference.name.clone())),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match material.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        set(&mut list, format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(Error::NoSecret(reference.name.clone())),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value(variable, container, material, &list)? {
            set(&mut list, variable.name.clone(), value);
        }
    }
    Ok(list)
}

fn set(list: &mut Vec<(String, String)>, name: String, value: String) {
    match list.iter_mut().find(|(n, _)| *n == name) {
        Some(entry) => entry.1 = value,
        None => list.push((name, value)),
    }
}

fn value(
    variable: &EnvVar,
    container: &Container,
    material: &Material,
    known: &[(String, String)],
) -> Result<Option<String>, Error> {
    let Some(from) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), known)));
    };
    if let Some(field) = &from.field_ref {
        return self::field(field, material.pod).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        return resource(selector, container, material).map(Some);
    }
    let namespace = || material.pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(key) = &from.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(map) = material.config_maps.get(&key.name) else {
            return if optional { Ok(None) } else { Err(Error::NoConfigMap(key.name.clone())) };
        };
        return match map.data.as_ref().and_then(|d| d.get(&key.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(Error::NoKey {
                kind: "ConfigMap",
                namespace: namespace(),
                name: key.name.clone(),
                key: key.key.clone(),
            }),
        };
    }
    if let Some(key) = &from.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = material.secrets.get(&key.name) else {
            return if optional { Ok(None) } else { Err(Error::NoSecret(key.name.clone())) };
        };
        return match secret.data.as_ref().and_then(|d| d.get(&key.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(Error::NoKey {
                kind: "Secret",
                namespace: namespace(),
                name: key.name.clone(),
                key: key.key.clone(),
            }),
        };
    }
    Ok(None)
}

/// Reads a field of the pod. Source: Kubernetes, "Downward API".
pub fn field(selector: &ObjectFieldSelector, pod: &Pod) -> Result<String, Error> {
    let (meta, empty_spec, empty_status) = (&pod.metadata, Default::default(), Default::default());
    let (spec, status) = (pod.spec.as_ref().unwrap_or(&empty_spec), pod.status.as_ref().unwrap_or(&empty_status));
    let subscript = |path: &str, map: &Option<BTreeMap<String, String>>| {
        let key = path.strip_suffix("']")?;
        map.as_ref().and_then(|m| m.get(key)).cloned().or(Some(String::new()))
    };
    let path = selector.field_path.as_str();
    let found = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(quoted_lines(&meta.labels)),
        "metadata.annotations" => Some(quoted_lines(&meta.annotations)),
        "spec.nodeName" => spec.node_name.clone(),
        "spec.serviceAccountName" => spec.service_account_name.clone().or(Some("default".to_owned())),
        "status.hostIP" => status.host_ip.clone(),
        "status.hostIPs" => {
            status.host_ips.as_ref().map(|l| l.iter().map(|i| i.ip.as_str()).collect::<Vec<_>>().join(","))
        }
        "status.podIP" => status.pod_ip.clone(),
        "status.podIPs" => {
            status.pod_ips.as_ref().map(|l| l.iter().map(|i| i.ip.as_str()).collect::<Vec<_>>().join(","))
        }
        _ => {
            let label = path.strip_prefix("metadata.labels['").and_then(|p| subscript(p, &meta.labels));
            let annotation =
                || path.strip_prefix("metadata.annotations['").and_then(|p| subscript(p, &meta.annotations));
            return label.or_else(annotation).ok_or_else(|| Error::Field(path.to_owned()));
        }
    };
    Ok(found.unwrap_or_default())
}

fn quoted_lines(map: &Option<BTreeMap<String, String>>) -> String {
    let lines: Vec<_> =
        map.iter().flatten().map(|(k, v)| format!("{k}={}", serde_json::Value::from(v.as_str()))).collect();
    lines.join("\n")
}

/// Reads a resource of a container, in units of the divisor, rounded up.
pub fn resource(selector: &ResourceFieldSelector, container: &Container, material: &Material) -> Result<String, Error> {
    let empty = Default::default();
    let own = container.resources.as_ref().unwrap_or(&empty);
    let of = |map: &Option<BTreeMap<String, _>>, name: &str| {
        map.as_ref()
            .and_then(|m| m.get(name))
            .map(|q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| q.0.clone())
    };
    let (kind, name) = selector.resource.split_once('.').unwrap_or_default();
    if !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
        return Err(Error::Resource(selector.resource.clone()));
    }
    let text = match kind {
        "limits" => of(&own.limits, name),
        "requests" => of(&own.requests, name),
        _ => return Err(Error::Resource(selector.resource.clone())),
    };
    let divisor = selector.divisor.as_ref().map_or("1", |d| d.0.as_str());
    let number = match (name, text) {
        ("cpu", Some(text)) => quantity::milli(&text).unwrap_or(0),
        ("cpu", None) if kind == "limits" => material.machine.cpu_milli,
        (_, Some(text)) => quantity::whole(&text).unwrap_or(0),
        ("memory", None) if kind == "limits" => material.machine.memory_bytes,
        _ => 0,
    };
    let per = if name == "cpu" { quantity::milli(divisor) } else { quantity::whole(divisor) }.filter(|d| *d > 0);
    let per = per.unwrap_or(if name == "cpu" { 1000 } else { 1 });
    Ok((number / per + i64::from(number % per != 0)).to_string())
}

/// Replaces `$(NAME)` by its value; `$$` is a dollar sign; unknown names stay. Source: Kubernetes `third_party/forked/golang/expansion`.
#[must_use]
pub fn expand(text: &str, known: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match known.iter().find(|(n, _)| n == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables by which containers find services, as Docker links had them. Source: kubelet `envvars`.
#[must_use]
pub fn services<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> Vec<(String, String)> {
    let mut list = Vec::new();
    for service in services {
        let (meta, Some(spec)) = (&service.metadata, &service.spec) else { continue };
        let (name, ns) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default());
        let master = ns == "default" && name == "kubernetes";
        if !(master || (links && ns == namespace)) {
            continue;
        }
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let Some(ports) = spec.ports.as_ref().filter(|p| !p.is_empty()) else { continue };
        let prefix = name.to_uppercase().replace('-', "_");
        list.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
        list.push((format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string()));
        for port in ports.iter().filter(|p| p.name.as_ref().is_some_and(|n| !n.is_empty())) {
            let name = port.name.as_deref().unwrap_or_default().to_uppercase().replace('-', "_");
            list.push((format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string()));
        }
        for (index, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{ip}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                list.push((format!("{prefix}_PORT"), url.clone()));
            }
            let base = format!("{prefix}_PORT_{}_{protocol}", port.port);
            list.push((base.clone(), url));
            list.push((format!("{base}_PROTO"), protocol.to_lowercase()));
            list.push((format!("{base}_PORT"), port.port.to_string()));
            list.push((format!("{base}_ADDR"), ip.to_owned()));
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn check(container: serde_json::Value) -> Result<Vec<(String, String)>, Error> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", "labels": {"app": "web", "tier": "a\"b"}},
            "spec": {"nodeName": "n1", "containers": []}, "status": {"podIP": "10.1.2.3", "hostIP": "192.0.2.1"}
        }))
        .unwrap();
        let map: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "c"}, "data": {"color": "blue"}})).unwrap();
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": "s"}, "data": {"pass": "czNjcmV0"}})).unwrap();
        let (maps, secrets) = (BTreeMap::from([("c".into(), map)]), BTreeMap::from([("s".into(), secret)]));
        let machine = Machine { cpu_milli: 2000, memory_bytes: 1 << 30 };
        let material = Material { pod: &pod, config_maps: &maps, secrets: &secrets, machine };
        let container: Container = serde_json::from_value(container).unwrap();
        build(&container, &material, vec![("X_SERVICE_HOST".into(), "10.0.0.1".into())])
    }

    #[test]
    fn every_source_of_a_value_works() {
        let list = check(json!({"name": "a", "resources": {"limits": {"memory": "64Mi", "cpu": "250m"}},
            "envFrom": [{"configMapRef": {"name": "c"}, "prefix": "CM_"}, {"secretRef": {"name": "s"}}, {"secretRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(X_SERVICE_HOST)-$$(A)-$(NO)"},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "color"}}},
                {"name": "PASS", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pass"}}},
                {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": true}}}
            ]})).unwrap();
        let text: Vec<_> = list.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            text,
            [
                "X_SERVICE_HOST=10.0.0.1",
                "CM_color=blue",
                "pass=s3cret",
                "A=1",
                "B=1-10.0.0.1-$(A)-$(NO)",
                "NAME=web",
                "IP=10.1.2.3",
                "APP=web",
                "MEM=64",
                "CPU=1",
                "COLOR=blue",
                "PASS=s3cret",
            ]
        );
    }

    #[test]
    fn a_missing_reference_is_named() {
        let key = check(
            json!({"name": "a", "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "no"}}}]}),
        );
        assert_eq!(key.unwrap_err().to_string(), "couldn't find key no in ConfigMap shop/c");
        let map = check(json!({"name": "a", "envFrom": [{"configMapRef": {"name": "nope"}}]}));
        assert_eq!(map.unwrap_err().to_string(), "configmap \"nope\" not found");
    }

    #[test]
    fn services_are_announced_as_variables() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "my-db", "namespace": "shop"},
            "spec": {"clusterIP": "10.0.0.9", "ports": [{"port": 5432, "name": "sql", "protocol": "TCP"}]}}))
        .unwrap();
        let text: Vec<_> =
            services([&service].into_iter(), "shop", true).iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            text,
            [
                "MY_DB_SERVICE_HOST=10.0.0.9",
                "MY_DB_SERVICE_PORT=5432",
                "MY_DB_SERVICE_PORT_SQL=5432",
                "MY_DB_PORT=tcp://10.0.0.9:5432",
                "MY_DB_PORT_5432_TCP=tcp://10.0.0.9:5432",
                "MY_DB_PORT_5432_TCP_PROTO=tcp",
                "MY_DB_PORT_5432_TCP_PORT=5432",
                "MY_DB_PORT_5432_TCP_ADDR=10.0.0.9",
            ]
        );
        assert!(services([&service].into_iter(), "other", true).is_empty());
    }

    proptest! {
        #[test]
        fn text_without_dollars_is_not_touched(text in "[^$]{0,40}") {
            prop_assert_eq!(expand(&text, &[]), text);
        }

        #[test]
        fn expansion_never_panics(text in "[$()A-C]{0,24}") {
            let _ = expand(&text, &[("A".into(), "$(B)".into())]);
        }
    }
}
