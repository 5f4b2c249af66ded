//! From a webhook's `clientConfig` to the place where it answers. A Service is resolved to one of its ready endpoints,
//! so that a webhook works before (and without) the machine's own service addresses.

use std::time::Duration;

use base64::Engine as _;
use serde_json::Value;

use super::WebhookEndpoint;
use crate::server::ApiServer;

/// The place to ask. Errors: text for people.
pub(super) fn resolve(server: &ApiServer, config: &Value, timeout: Duration) -> Result<WebhookEndpoint, String> {
    let bundle = crate::json::text(config, "/caBundle");
    let authorities = match base64::engine::general_purpose::STANDARD.decode(bundle) {
        Ok(pem) if pem.is_empty() => None,
        Ok(pem) => Some(pem),
        Err(_) => return Err("failed to call webhook: caBundle is not base64".to_owned()),
    };
    let seconds = timeout.as_secs();
    if let Some(url) = config["url"].as_str() {
        let (host, port, path) = split(url).ok_or_else(|| format!("failed to call webhook: invalid url {url:?}"))?;
        let path = with_timeout(&path, seconds);
        let url = format!("https://{host}:{port}{path}");
        return Ok(WebhookEndpoint { server_name: host.clone(), host, port, path, authorities, url });
    }
    let (namespace, name) =
        (crate::json::text(config, "/service/namespace"), crate::json::text(config, "/service/name"));
    let port = config["service"]["port"].as_u64().unwrap_or(443);
    let path =
        with_timeout(&format!("/{}", crate::json::text(config, "/service/path").trim_start_matches('/')), seconds);
    let server_name = format!("{name}.{namespace}.svc");
    let url = format!("https://{server_name}:{port}{path}");
    let failed = |problem: &str| format!("failed to call webhook: Post {url:?}: {problem}");
    let (host, port) = backend(server, namespace, name, port).map_err(|problem| failed(&problem))?;
    Ok(WebhookEndpoint { host, port, server_name, path, authorities, url })
}

fn with_timeout(path: &str, seconds: u64) -> String {
    let sign = if path.contains('?') { '&' } else { '?' };
    format!("{path}{sign}timeout={seconds}s")
}

/// Host, port and path of an `https` URL without user, query or fragment.
fn split(url: &str) -> Option<(String, u16, String)> {
    let rest = url.strip_prefix("https://")?;
    if rest.contains(['@', '?', '#', ' ', '\r', '\n', '\t']) {
        return None;
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, 443),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| (host.to_owned(), port, format!("/{path}")))
}

/// One of the ready backends of a Service's port.
fn backend(server: &ApiServer, namespace: &str, name: &str, port: u64) -> Result<(String, u16), String> {
    let key = crate::keys::relative(namespace, name);
    let service = server.cache_of("", "services").get(&key).ok_or_else(|| format!("service {name:?} not found"))?;
    let service = service.to_value();
    let narrow = |port: u64| u16::try_from(port).map_err(|_| format!("invalid port {port}"));
    if service["spec"]["type"] == "ExternalName" {
        return Ok((crate::json::text(&service, "/spec/externalName").to_owned(), narrow(port)?));
    }
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(wanted) = ports.iter().find(|one| one["port"].as_u64() == Some(port)) else {
        return Err(format!("no service port {port} found for service {name:?}"));
    };
    let port_name = crate::json::text(wanted, "/name");
    let mut backends = Vec::new();
    for slice in server.cache_of("discovery.k8s.io", "endpointslices").all(&format!("{namespace}/")) {
        let slice = slice.to_value();
        if crate::json::text(&slice["metadata"]["labels"], "/kubernetes.io~1service-name") == name {
            collect(&slice["ports"], &slice["endpoints"], port_name, &mut backends);
        }
    }
    if backends.is_empty()
        && let Some(endpoints) = server.cache_of("", "endpoints").get(&key)
    {
        for subset in endpoints.to_value()["subsets"].as_array().into_iter().flatten() {
            let addresses = subset["addresses"].as_array().into_iter().flatten();
            let addresses: Vec<Value> = addresses.map(|one| serde_json::json!({"addresses": [one["ip"]]})).collect();
            collect(&subset["ports"], &Value::Array(addresses), port_name, &mut backends);
        }
    }
    if backends.is_empty() {
        return Err(format!("no endpoints available for service {name:?}"));
    }
    let chosen = rand::random_range(0..backends.len());
    let (host, port) = backends.swap_remove(chosen);
    Ok((host, narrow(port)?))
}

fn collect(ports: &Value, endpoints: &Value, port_name: &str, backends: &mut Vec<(String, u64)>) {
    let ports = ports.as_array().into_iter().flatten();
    let port = ports.filter(|one| crate::json::text(one, "/name") == port_name).find_map(|one| one["port"].as_u64());
    let Some(port) = port else { return };
    for endpoint in endpoints.as_array().into_iter().flatten() {
        let ready = endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
        if let Some(address) = endpoint["addresses"][0].as_str().filter(|_| ready) {
            backends.push((address.to_owned(), port));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_https_and_plain() {
        let check = |url: &str| split(url);
        assert_eq!(check("https://a.b:8443/x/y"), Some(("a.b".into(), 8443, "/x/y".into())));
        assert_eq!(check("https://[::1]:1/"), Some(("::1".into(), 1, "/".into())));
        assert_eq!(check("https://a"), Some(("a".into(), 443, "/".into())));
        for bad in ["http://a", "https://u@a/", "https://a/x?y", "https://a/#x", "https:///x", "https://a\r\nHost: b/"]
        {
            assert_eq!(check(bad), None, "{bad}");
        }
    }
}
