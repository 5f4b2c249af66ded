//! What a service of a Compose file means in the Docker API. Pure. Source: the Compose specification; the Engine API 1.50.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::load::{Project, pairs};

/// Label of a container's, network's or volume's project. Source: Compose.
pub const PROJECT: &str = "com.docker.compose.project";
/// Label of a container's service.
pub const SERVICE: &str = "com.docker.compose.service";
/// Label of a container's number.
pub const NUMBER: &str = "com.docker.compose.container-number";
/// Label of what a container was made from; one that differs is made anew.
pub const HASH: &str = "com.docker.compose.config-hash";

fn text<'a>(service: &'a Value, key: &str) -> Option<&'a str> {
    service.get(key).and_then(Value::as_str)
}

/// Names in a list or the keys of a mapping; entries that are mappings have theirs under `source`.
pub fn names(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::Array(items)) => items
            .iter()
            .filter_map(|item| item.as_str().or_else(|| item.get("source").and_then(Value::as_str)))
            .map(str::to_owned)
            .collect(),
        Some(Value::Object(map)) => map.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

/// Services that a service waits for: name, condition, whether it must be there.
pub fn dependencies(service: &Value) -> Vec<(String, String, bool)> {
    let started = || "service_started".to_owned();
    let mut found: Vec<(String, String, bool)> = match service.get("depends_on") {
        Some(Value::Object(map)) => map
            .iter()
            .map(|(name, how)| {
                let required = how.get("required").and_then(Value::as_bool).unwrap_or(true);
                (name.clone(), text(how, "condition").map_or_else(started, str::to_owned), required)
            })
            .collect(),
        other => names(other).into_iter().map(|name| (name, started(), true)).collect(),
    };
    for key in ["network_mode", "ipc", "pid"] {
        if let Some(name) = text(service, key).and_then(|mode| mode.strip_prefix("service:")) {
            found.push((name.to_owned(), started(), true));
        }
    }
    found
}

/// Services in an order in which each comes after what it depends on.
///
/// Errors: when some depend on each other.
pub fn ordered(services: &Map<String, Value>) -> Result<Vec<String>> {
    let mut done: Vec<String> = Vec::new();
    let mut open: BTreeSet<&String> = services.keys().collect();
    while !open.is_empty() {
        let free = |name: &&&String| {
            let service = &services[name.as_str()];
            dependencies(service).iter().all(|(need, ..)| done.contains(need) || !services.contains_key(need))
        };
        let ready: Vec<&String> = open.iter().filter(free).copied().collect();
        if ready.is_empty() {
            bail!("services depend on each other: {}", open.into_iter().cloned().collect::<Vec<_>>().join(", "));
        }
        for name in ready {
            open.remove(name);
            done.push(name.clone());
        }
    }
    Ok(done)
}

/// The image of a service.
pub fn image(project: &Project, name: &str, service: &Value) -> String {
    text(service, "image").map_or_else(|| format!("{}-{name}", project.name), str::to_owned)
}

/// How many containers a service has.
pub fn replicas(service: &Value) -> u64 {
    let deployed = service.get("deploy").and_then(|deploy| deploy.get("replicas")).and_then(Value::as_u64);
    service.get("scale").and_then(Value::as_u64).or(deployed).unwrap_or(1)
}

/// The name of a network or volume of a project.
pub fn resource(project: &Project, section: &str, key: &str) -> String {
    let spec = project.section(section).get(key).cloned().unwrap_or_default();
    let external = spec.get("external").and_then(Value::as_bool).unwrap_or(false);
    match text(&spec, "name") {
        Some(name) => name.to_owned(),
        None if external => key.to_owned(),
        None => format!("{}_{key}", project.name),
    }
}

/// Where a volume entry goes.
pub fn volume_target(volume: &Value) -> Option<String> {
    match volume {
        Value::String(text) => {
            let mut parts = text.split(':');
            let first = parts.next()?;
            Some(parts.next().unwrap_or(first).to_owned())
        }
        other => text(other, "target").map(str::to_owned),
    }
}

/// `1m30s`, or a number of seconds. Units: nanoseconds.
fn duration_ns(value: &Value) -> Result<i64> {
    match value {
        Value::Number(seconds) => Ok(seconds.as_i64().unwrap_or(0).saturating_mul(1_000_000_000)),
        Value::String(text) => image::build::parse::duration(text).map_err(|error| anyhow::anyhow!("{error}")),
        other => bail!("{other} is no duration"),
    }
}

/// A number of bytes with a unit.
fn bytes(value: &Value) -> Result<u64> {
    match value {
        Value::Number(number) => number.as_u64().context("a size cannot be negative"),
        Value::String(text) => image::build::flags::size(text).map_err(|error| anyhow::anyhow!("{error}")),
        other => bail!("{other} is no size"),
    }
}

/// A command: a list, or a line in shell words.
fn command(value: &Value) -> Result<Value> {
    match value {
        Value::Array(words) => Ok(Value::Array(words.iter().map(|w| json!(plain(w))).collect())),
        Value::String(line) => Ok(json!(shell_words(line)?)),
        Value::Null => Ok(Value::Null),
        other => bail!("{other} is no command"),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Splits a line as a shell does, without replacing anything.
fn shell_words(line: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote, mut open) = (Vec::new(), String::new(), None, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                open = true;
            }
            (None | Some('"'), '\\') => word.extend(chars.next()),
            (None, c) if c.is_whitespace() => {
                if open || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            (_, c) => word.push(c),
        }
    }
    if quote.is_some() {
        bail!("a quote is not closed in {line:?}");
    }
    if open || !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// The environment, with the values of files below those of the service; a name alone takes its value from `variables`.
pub fn environment(
    service: &Value,
    files: &[BTreeMap<String, String>],
    variables: &BTreeMap<String, String>,
) -> Vec<String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for file in files {
        all.extend(file.clone());
    }
    for (name, value) in pairs(service.get("environment").unwrap_or(&Value::Null)) {
        match value.as_str().map(str::to_owned).or_else(|| variables.get(&name).cloned()) {
            Some(value) => drop(all.insert(name, value)),
            None => drop(all.remove(&name)),
        }
    }
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn healthcheck(service: &Value) -> Result<Option<Value>> {
    let Some(check) = service.get("healthcheck") else { return Ok(None) };
    if check.get("disable").and_then(Value::as_bool) == Some(true) {
        return Ok(Some(json!({ "Test": ["NONE"] })));
    }
    let mut wire = Map::new();
    match check.get("test") {
        Some(Value::String(line)) => drop(wire.insert("Test".into(), json!(["CMD-SHELL", line]))),
        Some(list @ Value::Array(_)) => drop(wire.insert("Test".into(), list.clone())),
        _ => {}
    }
    let durations = [
        ("interval", "Interval"),
        ("timeout", "Timeout"),
        ("start_period", "StartPeriod"),
        ("start_interval", "StartInterval"),
    ];
    for (key, name) in durations {
        if let Some(value) = check.get(key) {
            wire.insert(name.into(), json!(duration_ns(value)?));
        }
    }
    if let Some(retries) = check.get("retries").and_then(Value::as_u64) {
        wire.insert("Retries".into(), json!(retries));
    }
    Ok(Some(Value::Object(wire)))
}

/// `[address:][published:]target[/protocol]`, or a mapping: container port, host address, host port.
fn port(value: &Value) -> Result<(String, String, String)> {
    if let Value::Object(map) = value {
        let target = map.get("target").map(plain).context("a port needs a target")?;
        let protocol = map.get("protocol").map_or_else(|| "tcp".to_owned(), plain);
        let address = map.get("host_ip").map(plain).unwrap_or_default();
        return Ok((format!("{target}/{protocol}"), address, map.get("published").map(plain).unwrap_or_default()));
    }
    let whole = plain(value);
    let (ports, protocol) = whole.split_once('/').unwrap_or((&whole, "tcp"));
    let mut parts = ports.rsplitn(3, ':');
    let target = parts.next().unwrap_or_default();
    let published = parts.next().unwrap_or_default();
    let address = parts.next().unwrap_or_default();
    let range = |text: &str| text.contains('-');
    if target.parse::<u16>().is_err() || range(published) || !(published.is_empty() || published.parse::<u16>().is_ok())
    {
        bail!("invalid or unsupported port {whole:?}: one port for each entry");
    }
    Ok((format!("{target}/{protocol}"), address.trim_matches(['[', ']']).to_owned(), published.to_owned()))
}

fn mount(project: &Project, volume: &Value) -> Result<Value> {
    let named = |source: &str| project.section("volumes").contains_key(source);
    match volume {
        Value::String(line) => {
            let parts: Vec<&str> = line.split(':').collect();
            let (source, target, mode) = match parts.as_slice() {
                [target] => ("", *target, ""),
                [source, target] => (*source, *target, ""),
                [source, target, mode] => (*source, *target, *mode),
                _ => bail!("invalid volume {line:?}"),
            };
            let read_only = mode.split(',').any(|option| option == "ro");
            let host = source.starts_with('/');
            if !host && !source.is_empty() && !named(source) {
                bail!("undefined volume {source}: invalid compose project");
            }
            let kind = if host { "bind" } else { "volume" };
            let source =
                if host || source.is_empty() { source.to_owned() } else { resource(project, "volumes", source) };
            Ok(json!({ "Type": kind, "Source": source, "Target": target, "ReadOnly": read_only }))
        }
        Value::Object(map) => {
            let get = |key: &str| map.get(key).map(plain).unwrap_or_default();
            let kind = get("type");
            let source = match kind.as_str() {
                "volume" if !get("source").is_empty() => resource(project, "volumes", &get("source")),
                _ => get("source"),
            };
            let read_only = map.get("read_only").and_then(Value::as_bool).unwrap_or(false);
            let mut wire = json!({ "Type": kind, "Target": get("target"), "ReadOnly": read_only });
            if kind != "tmpfs" {
                wire["Source"] = json!(source);
            }
            if let Some(size) = map.get("tmpfs").and_then(|tmpfs| tmpfs.get("size")) {
                wire["TmpfsOptions"] = json!({ "SizeBytes": bytes(size)? });
            }
            Ok(wire)
        }
        other => bail!("{other} is no volume"),
    }
}

/// Files of secrets and configs, mounted read-only.
fn files(project: &Project, service: &Value, key: &str, place: &str) -> Result<Vec<Value>> {
    let defined = project.section(key);
    let mut mounts = Vec::new();
    for entry in service.get(key).and_then(Value::as_array).into_iter().flatten() {
        let name = entry.as_str().or_else(|| text(entry, "source")).context("a secret or config needs a source")?;
        let file = defined.get(name).and_then(|spec| text(spec, "file"));
        let file = file.with_context(|| format!("{key} {name} has no file, which is all that is supported"))?;
        let target = text(entry, "target").unwrap_or(name);
        let target = if target.starts_with('/') { target.to_owned() } else { format!("{place}/{target}") };
        mounts.push(json!({ "Type": "bind", "Source": file, "Target": target, "ReadOnly": true }));
    }
    Ok(mounts)
}

/// Keys of a service that are read here or need no reading.
const KNOWN: [&str; 52] = [
    "annotations",
    "attach",
    "build",
    "cap_add",
    "cap_drop",
    "command",
    "configs",
    "container_name",
    "cpu_shares",
    "cpus",
    "cpuset",
    "depends_on",
    "deploy",
    "develop",
    "devices",
    "dns",
    "dns_search",
    "entrypoint",
    "env_file",
    "environment",
    "expose",
    "extra_hosts",
    "group_add",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "ipc",
    "labels",
    "logging",
    "mem_limit",
    "mem_reservation",
    "memswap_limit",
    "network_mode",
    "networks",
    "pid",
    "pids_limit",
    "platform",
    "ports",
    "privileged",
    "profiles",
    "pull_policy",
    "read_only",
    "restart",
    "scale",
    "secrets",
    "security_opt",
    "shm_size",
    "stdin_open",
    "stop_grace_period",
    "stop_signal",
    "sysctls",
];
/// The rest of them.
const KNOWN_TOO: [&str; 7] = ["tmpfs", "tty", "ulimits", "user", "userns_mode", "volumes", "working_dir"];

/// What `POST /containers/create` takes for one container of a service.
pub fn create_body(
    project: &Project,
    name: &str,
    service: &Value,
    number: u64,
    environment: &[String],
) -> Result<Value> {
    for key in service.as_object().into_iter().flat_map(Map::keys) {
        let known = KNOWN.contains(&key.as_str()) || KNOWN_TOO.contains(&key.as_str()) || key.starts_with("x-");
        if !known {
            bail!("service {name:?}: {key} is not supported");
        }
    }
    let mut body = json!({ "Image": image(project, name, service), "Env": environment });
    for (key, wire) in
        [("user", "User"), ("working_dir", "WorkingDir"), ("hostname", "Hostname"), ("stop_signal", "StopSignal")]
    {
        if let Some(value) = service.get(key) {
            body[wire] = json!(plain(value));
        }
    }
    for (key, wire) in [("command", "Cmd"), ("entrypoint", "Entrypoint")] {
        if let Some(value) = service.get(key) {
            body[wire] = command(value)?;
        }
    }
    for (key, wire) in [("tty", "Tty"), ("stdin_open", "OpenStdin")] {
        if let Some(value) = service.get(key) {
            body[wire] = value.clone();
        }
    }
    if let Some(check) = healthcheck(service)? {
        body["Healthcheck"] = check;
    }
    if let Some(grace) = service.get("stop_grace_period") {
        body["StopTimeout"] = json!(duration_ns(grace)? / 1_000_000_000);
    }
    body["Labels"] = Value::Object(labels(project, name, service, number));
    body["HostConfig"] = host_config(project, name, service, &mut body)?;
    body["NetworkingConfig"] = networking(project, name, service);
    let hash = image::Digest::of(body.to_string().as_bytes()).hex().to_owned();
    body["Labels"][HASH] = json!(hash);
    body["Labels"][NUMBER] = json!(number.to_string());
    Ok(body)
}

fn labels(project: &Project, name: &str, service: &Value, _number: u64) -> Map<String, Value> {
    let mut labels = pairs(service.get("labels").unwrap_or(&Value::Null));
    labels.values_mut().filter(|value| value.is_null()).for_each(|value| *value = json!(""));
    let files: Vec<String> = project.files.iter().map(|file| file.display().to_string()).collect();
    let depends: Vec<String> =
        dependencies(service).into_iter().map(|(name, condition, _)| format!("{name}:{condition}:false")).collect();
    for (key, value) in [
        (PROJECT, project.name.clone()),
        (SERVICE, name.to_owned()),
        ("com.docker.compose.oneoff", "False".to_owned()),
        ("com.docker.compose.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("com.docker.compose.project.working_dir", project.directory.display().to_string()),
        ("com.docker.compose.project.config_files", files.join(",")),
        ("com.docker.compose.depends_on", depends.join(",")),
    ] {
        labels.insert(key.to_owned(), json!(value));
    }
    labels
}

fn host_config(project: &Project, name: &str, service: &Value, body: &mut Value) -> Result<Value> {
    let mut host = json!({ "NetworkMode": network_mode(project, service) });
    let (mut bindings, mut exposed) = (Map::new(), Map::new());
    for entry in service.get("ports").and_then(Value::as_array).into_iter().flatten() {
        let (target, address, published) = port(entry)?;
        exposed.insert(target.clone(), json!({}));
        let list = bindings.entry(target).or_insert_with(|| json!([]));
        list.as_array_mut().context("a list")?.push(json!({ "HostIp": address, "HostPort": published }));
    }
    for entry in service.get("expose").and_then(Value::as_array).into_iter().flatten() {
        let text = plain(entry);
        exposed.insert(if text.contains('/') { text } else { format!("{text}/tcp") }, json!({}));
    }
    body["ExposedPorts"] = Value::Object(exposed);
    host["PortBindings"] = Value::Object(bindings);
    let mut mounts = Vec::new();
    for volume in service.get("volumes").and_then(Value::as_array).into_iter().flatten() {
        mounts.push(mount(project, volume).with_context(|| format!("service {name:?}"))?);
    }
    mounts.extend(files(project, service, "secrets", "/run/secrets")?);
    mounts.extend(files(project, service, "configs", "")?);
    host["Mounts"] = Value::Array(mounts);
    let tmpfs = match service.get("tmpfs") {
        Some(Value::String(one)) => vec![one.clone()],
        other => names(other),
    };
    host["Tmpfs"] = tmpfs
        .iter()
        .map(|entry| entry.split_once(':').unwrap_or((entry, "")))
        .map(|(path, options)| (path.to_owned(), json!(options)))
        .collect::<Map<_, _>>()
        .into();
    if let Some(restart) = text(service, "restart") {
        let (policy, count) = restart.split_once(':').unwrap_or((restart, "0"));
        let count: u64 = count.parse().with_context(|| format!("invalid restart policy {restart:?}"))?;
        host["RestartPolicy"] = json!({ "Name": policy, "MaximumRetryCount": count });
    }
    resources(service, &mut host)?;
    Ok(host)
}

fn resources(service: &Value, host: &mut Value) -> Result<()> {
    for (key, wire) in [
        ("cap_add", "CapAdd"),
        ("cap_drop", "CapDrop"),
        ("security_opt", "SecurityOpt"),
        ("group_add", "GroupAdd"),
        ("privileged", "Privileged"),
        ("read_only", "ReadonlyRootfs"),
        ("init", "Init"),
        ("cpuset", "CpusetCpus"),
        ("cpu_shares", "CpuShares"),
        ("pids_limit", "PidsLimit"),
        ("ipc", "IpcMode"),
        ("pid", "PidMode"),
        ("userns_mode", "UsernsMode"),
    ] {
        if let Some(value) = service.get(key) {
            host[wire] = value.clone();
        }
    }
    for (key, wire) in [("dns", "Dns"), ("dns_search", "DnsSearch")] {
        match service.get(key) {
            Some(Value::String(one)) => host[wire] = json!([one]),
            Some(list) => host[wire] = list.clone(),
            None => {}
        }
    }
    let limits = service.get("deploy").and_then(|d| d.get("resources")).and_then(|r| r.get("limits"));
    let limit = |key: &str| limits.and_then(|limits| limits.get(key));
    let sizes = [
        ("mem_limit", "Memory"),
        ("mem_reservation", "MemoryReservation"),
        ("memswap_limit", "MemorySwap"),
        ("shm_size", "ShmSize"),
    ];
    for (key, wire) in sizes {
        if let Some(value) = service.get(key).or_else(|| (key == "mem_limit").then(|| limit("memory")).flatten()) {
            host[wire] = json!(bytes(value)?);
        }
    }
    if let Some(cpus) = service.get("cpus").or_else(|| limit("cpus")) {
        let cpus: f64 = plain(cpus).parse().context("cpus is no number")?;
        #[allow(clippy::cast_possible_truncation)] // bounded by the test before
        let nano = if (0.0..=1e6).contains(&cpus) { (cpus * 1e9) as i64 } else { bail!("cpus {cpus} is out of range") };
        host["NanoCpus"] = json!(nano);
    }
    let hosts = pairs(service.get("extra_hosts").unwrap_or(&Value::Null));
    let line = |(name, value): (String, Value)| match value.as_str() {
        Some(address) => format!("{name}:{address}"),
        None => name,
    };
    host["ExtraHosts"] = json!(hosts.into_iter().map(line).collect::<Vec<_>>());
    let sysctls = pairs(service.get("sysctls").unwrap_or(&Value::Null));
    host["Sysctls"] = Value::Object(sysctls);
    if let Some(logging) = service.get("logging") {
        host["LogConfig"] = json!({
            "Type": text(logging, "driver").unwrap_or("json-file"),
            "Config": pairs(logging.get("options").unwrap_or(&Value::Null)),
        });
    }
    let ulimits = service.get("ulimits").and_then(Value::as_object).into_iter().flatten().map(|(name, value)| {
        let soft = value.get("soft").unwrap_or(value);
        json!({ "Name": name, "Soft": soft, "Hard": value.get("hard").unwrap_or(soft) })
    });
    host["Ulimits"] = Value::Array(ulimits.collect());
    for device in names(service.get("devices")) {
        let mut parts = device.split(':');
        let outside = parts.next().unwrap_or_default().to_owned();
        let inside = parts.next().map_or_else(|| outside.clone(), str::to_owned);
        let devices = host.as_object_mut().context("a mapping")?.entry("Devices").or_insert_with(|| json!([]));
        let entry = json!({
            "PathOnHost": outside, "PathInContainer": inside, "CgroupPermissions": parts.next().unwrap_or("rwm"),
        });
        devices.as_array_mut().context("a list")?.push(entry);
    }
    Ok(())
}

/// The networks of a service, the first one first.
pub fn networks(service: &Value) -> Vec<String> {
    if service.get("network_mode").is_some() {
        return Vec::new();
    }
    let found = names(service.get("networks"));
    if found.is_empty() { vec!["default".to_owned()] } else { found }
}

fn network_mode(project: &Project, service: &Value) -> String {
    match text(service, "network_mode") {
        // Named by its service here, by its container once that is known.
        Some(mode) => mode.to_owned(),
        None => networks(service).first().map_or_else(String::new, |name| resource(project, "networks", name)),
    }
}

fn networking(project: &Project, name: &str, service: &Value) -> Value {
    let settings = |network: &str| {
        let spec = service.get("networks").and_then(|networks| networks.get(network)).cloned().unwrap_or_default();
        let mut aliases = names(spec.get("aliases"));
        aliases.push(name.to_owned());
        let mut settings = json!({ "Aliases": aliases });
        let addresses = [("ipv4_address", "IPv4Address"), ("ipv6_address", "IPv6Address")];
        for (key, wire) in addresses {
            if let Some(address) = text(&spec, key) {
                settings["IPAMConfig"][wire] = json!(address);
            }
        }
        settings
    };
    let all: Map<String, Value> =
        networks(service).iter().map(|network| (resource(project, "networks", network), settings(network))).collect();
    json!({ "EndpointsConfig": all })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(document: Value) -> Project {
        let Value::Object(document) = document else { panic!("a mapping") };
        Project { name: "p".into(), directory: "/p".into(), files: vec!["/p/compose.yaml".into()], document }
    }

    #[test]
    fn a_service_becomes_what_the_api_takes() {
        let service = json!({
            "image": "x", "command": "sh -c 'a b' \"c\"", "ports": ["8080:80", "127.0.0.1:53:53/udp", "9"], "volumes": ["data:/d:ro", "/h:/h"],
            "networks": {"back": {"aliases": ["db"]}}, "mem_limit": "64m", "cpus": 0.5, "restart": "on-failure:3",
            "healthcheck": {"test": "true", "interval": "1m30s", "retries": 3}, "secrets": ["s"], "stop_grace_period": "3s",
        });
        let p = project(json!({
            "services": {"a": service}, "volumes": {"data": {}}, "networks": {"back": {"name": "other"}}, "secrets": {"s": {"file": "/f"}},
        }));
        let body = create_body(&p, "a", &p.section("services")["a"], 1, &[]).unwrap();
        assert_eq!(body["Cmd"], json!(["sh", "-c", "a b", "c"]));
        let host = &body["HostConfig"];
        assert_eq!(host["PortBindings"]["53/udp"], json!([{ "HostIp": "127.0.0.1", "HostPort": "53" }]));
        assert_eq!(
            host["Mounts"][0],
            json!({ "Type": "volume", "Source": "p_data", "Target": "/d", "ReadOnly": true })
        );
        assert_eq!(host["Mounts"][2]["Target"], "/run/secrets/s");
        assert_eq!((host["Memory"].as_u64(), host["NanoCpus"].as_i64()), (Some(64 << 20), Some(500_000_000)));
        assert_eq!(host["RestartPolicy"]["MaximumRetryCount"], 3);
        assert_eq!(
            (body["Healthcheck"]["Interval"].as_i64(), body["StopTimeout"].as_i64()),
            (Some(90_000_000_000), Some(3))
        );
        assert_eq!(body["NetworkingConfig"]["EndpointsConfig"]["other"]["Aliases"], json!(["db", "a"]));
        // Two containers of one service differ in their number only.
        let second = create_body(&p, "a", &p.section("services")["a"], 2, &[]).unwrap();
        assert_eq!(body["Labels"][HASH], second["Labels"][HASH]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let p = project(json!({}));
        for service in [
            json!({"image": "x", "blkio_config": {}}),
            json!({"image": "x", "ports": ["1-2:1-2"]}),
            json!({"image": "x", "volumes": ["nowhere:/x"]}),
            json!({"image": "x", "command": "a 'b"}),
            json!({"image": "x", "cpus": "many"}),
        ] {
            assert!(create_body(&p, "a", &service, 1, &[]).is_err(), "{service}");
        }
    }
}
