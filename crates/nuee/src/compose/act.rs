//! What the commands do: the difference between the project and what is there, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper::Method;
use serde_json::{Value, json};

use super::engine::{Engine, escape};
use super::load::{Project, with_dependencies};
use super::service::{self, HASH, NUMBER, PROJECT, SERVICE};

/// How long a dependency may take to become healthy or to end.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A project on an engine.
pub struct Work {
    /// Where.
    pub engine: Engine,
    /// What.
    pub project: Project,
    /// The variables of the environment.
    pub variables: BTreeMap<String, String>,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn label<'a>(container: &'a Value, name: &str) -> &'a str {
    container.get("Labels").map_or("", |labels| text(labels, name))
}

fn number(container: &Value) -> u64 {
    label(container, NUMBER).parse().unwrap_or(0)
}

fn container_name(container: &Value) -> String {
    let name = container.get("Names").and_then(|names| names.get(0)).and_then(Value::as_str).unwrap_or_default();
    name.trim_start_matches('/').to_owned()
}

impl Work {
    /// The project's containers, whoever made them: Compose's labels are the same.
    pub async fn containers(&self) -> Result<Vec<Value>> {
        let filters = json!({ "label": [format!("{PROJECT}={}", self.project.name)] }).to_string();
        let listed = self.engine.get(&format!("/containers/json?all=1&filters={}", escape(&filters))).await?;
        let mut containers = listed.as_array().cloned().unwrap_or_default();
        containers.sort_by_key(|container| (label(container, SERVICE).to_owned(), number(container)));
        Ok(containers)
    }

    /// Makes and starts what the project says; removes what it no longer says.
    pub async fn up(&self, wanted: &[String], build: bool) -> Result<()> {
        let services = self.project.section("services");
        let chosen = with_dependencies(&services, wanted)?;
        for name in &chosen {
            self.image(name, &services[name], build).await?;
        }
        self.networks(&chosen).await?;
        self.volumes().await?;
        for name in service::ordered(&services)?.iter().filter(|name| chosen.contains(*name)) {
            for (dependency, condition, _) in service::dependencies(&services[name]) {
                if services.contains_key(&dependency) {
                    self.wait(&dependency, &condition).await?;
                }
            }
            self.converge(name, &services[name]).await?;
        }
        Ok(())
    }

    async fn image(&self, name: &str, service: &Value, build: bool) -> Result<()> {
        let image = service::image(&self.project, name, service);
        let here = self.engine.find_one(&format!("/images/{}/json", escape(&image))).await?.is_some();
        let policy = text(service, "pull_policy");
        if service.get("build").is_some() {
            if !here || build || policy == "build" { self.build_one(name, service).await } else { Ok(()) }
        } else if !here || policy == "always" {
            self.pull_one(&image).await
        } else {
            Ok(())
        }
    }

    /// Pulls the images of services that have no build.
    pub async fn pull(&self, wanted: &[String]) -> Result<()> {
        let services = self.project.section("services");
        for name in with_dependencies(&services, wanted)? {
            if services[&name].get("build").is_none() {
                self.pull_one(&service::image(&self.project, &name, &services[&name])).await?;
            }
        }
        Ok(())
    }

    async fn pull_one(&self, image: &str) -> Result<()> {
        println!("{image} Pulling");
        let last = image.rsplit('/').next().unwrap_or(image);
        let name = if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") };
        self.said(&format!("/images/create?fromImage={}", escape(&name)), Vec::new(), false).await
    }

    /// Builds the images of services that have a build.
    pub async fn build(&self, wanted: &[String]) -> Result<()> {
        let services = self.project.section("services");
        let chosen: Vec<String> = if wanted.is_empty() { services.keys().cloned().collect() } else { wanted.to_vec() };
        for name in chosen {
            let service = services.get(&name).with_context(|| format!("no such service: {name}"))?;
            if service.get("build").is_some() {
                self.build_one(&name, service).await?;
            }
        }
        Ok(())
    }

    async fn build_one(&self, name: &str, service: &Value) -> Result<()> {
        let build = service.get("build").cloned().unwrap_or_default();
        let context = text(&build, "context").to_owned();
        let args = super::load::pairs(build.get("args").unwrap_or(&Value::Null));
        let args: BTreeMap<String, String> = args
            .into_iter()
            .filter_map(|(name, value)| {
                let value = value.as_str().map(str::to_owned).or_else(|| self.variables.get(&name).cloned());
                value.map(|value| (name, value))
            })
            .collect();
        let mut labels = super::load::pairs(build.get("labels").unwrap_or(&Value::Null));
        labels.insert(PROJECT.to_owned(), json!(self.project.name));
        labels.insert(SERVICE.to_owned(), json!(name));
        let mut query = format!(
            "/build?t={}&buildargs={}&labels={}",
            escape(&service::image(&self.project, name, service)),
            escape(&json!(args).to_string()),
            escape(&Value::Object(labels).to_string())
        );
        for (key, parameter) in [("dockerfile", "dockerfile"), ("target", "target"), ("network", "networkmode")] {
            if let Some(value) = build.get(key).and_then(Value::as_str) {
                query.push_str(&format!("&{parameter}={}", escape(value)));
            }
        }
        let archive = if super::load::is_remote(&context) {
            query.push_str(&format!("&remote={}", escape(&context)));
            Vec::new()
        } else {
            tokio::task::spawn_blocking(move || archive(context.as_ref())).await??
        };
        self.said(&query, archive, true).await
    }

    /// Posts, and shows what the engine says line by line; an error among it is ours.
    async fn said(&self, path: &str, body: Vec<u8>, show: bool) -> Result<()> {
        let mut rest = Vec::new();
        self.engine
            .stream(Method::POST, path, body, |piece| {
                rest.extend_from_slice(piece);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let said: Value = serde_json::from_slice(&line).unwrap_or_default();
                    if let Some(error) = said.get("error").and_then(Value::as_str) {
                        bail!("{error}");
                    }
                    if show {
                        print!("{}", text(&said, "stream"));
                    }
                }
                Ok(())
            })
            .await
    }

    async fn networks(&self, chosen: &BTreeSet<String>) -> Result<()> {
        let services = self.project.section("services");
        let used: BTreeSet<String> = chosen.iter().flat_map(|name| service::networks(&services[name])).collect();
        let defined = self.project.section("networks");
        for key in used {
            let spec = defined.get(&key).cloned().unwrap_or_default();
            let name = service::resource(&self.project, "networks", &key);
            if self.engine.find_one(&format!("/networks/{}", escape(&name))).await?.is_some() {
                continue;
            }
            if spec.get("external").and_then(Value::as_bool) == Some(true) {
                bail!("network {name} declared as external, but could not be found");
            }
            let mut body = json!({
                "Name": name,
                "CheckDuplicate": true,
                "Driver": spec.get("driver").cloned().unwrap_or_else(|| json!("bridge")),
                "Internal": spec.get("internal").cloned().unwrap_or(json!(false)),
                "EnableIPv6": spec.get("enable_ipv6").cloned().unwrap_or(json!(false)),
                "Options": super::load::pairs(spec.get("driver_opts").unwrap_or(&Value::Null)),
                "Labels": self.labels(&spec, "com.docker.compose.network", &key),
            });
            if let Some(pools) = spec.get("ipam").and_then(|ipam| ipam.get("config")).and_then(Value::as_array) {
                let pool = |pool: &Value| json!({ "Subnet": text(pool, "subnet"), "Gateway": text(pool, "gateway") });
                body["IPAM"] = json!({ "Config": pools.iter().map(pool).collect::<Vec<_>>() });
            }
            self.engine.post("/networks/create", &body).await?;
            println!("Network {name} Created");
        }
        Ok(())
    }

    fn labels(&self, spec: &Value, kind: &str, key: &str) -> Value {
        let mut labels = super::load::pairs(spec.get("labels").unwrap_or(&Value::Null));
        labels.insert(PROJECT.to_owned(), json!(self.project.name));
        labels.insert("com.docker.compose.version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
        labels.insert(kind.to_owned(), json!(key));
        Value::Object(labels)
    }

    async fn volumes(&self) -> Result<()> {
        for (key, spec) in self.project.section("volumes") {
            let name = service::resource(&self.project, "volumes", &key);
            if self.engine.find_one(&format!("/volumes/{}", escape(&name))).await?.is_some() {
                continue;
            }
            if spec.get("external").and_then(Value::as_bool) == Some(true) {
                bail!("external volume {name:?} not found");
            }
            let body = json!({
                "Name": name,
                "Driver": spec.get("driver").cloned().unwrap_or_else(|| json!("local")),
                "DriverOpts": super::load::pairs(spec.get("driver_opts").unwrap_or(&Value::Null)),
                "Labels": self.labels(&spec, "com.docker.compose.volume", &key),
            });
            self.engine.post("/volumes/create", &body).await?;
            println!("Volume {name} Created");
        }
        Ok(())
    }

    /// Waits until all containers of a service are as a dependent wants them.
    async fn wait(&self, name: &str, condition: &str) -> Result<()> {
        let begun = tokio::time::Instant::now();
        loop {
            let all = self.containers().await?;
            let mut fine = true;
            for container in all.iter().filter(|container| label(container, SERVICE) == name) {
                let state = self.engine.get(&format!("/containers/{}/json", text(container, "Id"))).await?;
                let state = state.get("State").cloned().unwrap_or_default();
                let ended = text(&state, "Status") == "exited";
                let code = state.get("ExitCode").and_then(Value::as_i64).unwrap_or(0);
                let health = state.get("Health").map_or("", |health| text(health, "Status"));
                fine &= match condition {
                    "service_healthy" if ended || health == "unhealthy" => {
                        bail!("dependency failed to start: container {} is unhealthy", container_name(container))
                    }
                    "service_healthy" => health == "healthy",
                    "service_completed_successfully" if ended && code != 0 => {
                        bail!("service {name:?} didn't complete successfully: exit {code}")
                    }
                    "service_completed_successfully" => ended,
                    _ => true,
                };
            }
            if fine {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("service {name:?} was not {condition} within {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Makes the containers of one service what the project says.
    async fn converge(&self, name: &str, service: &Value) -> Result<()> {
        let all = self.containers().await?;
        let own = |container: &&Value| {
            label(container, SERVICE) == name && label(container, "com.docker.compose.oneoff") != "True"
        };
        let mut held: Vec<&Value> = all.iter().filter(own).collect();
        let files = self.environment_files(service)?;
        let environment = service::environment(service, &files, &self.variables);
        let count = usize::try_from(service::replicas(service)).unwrap_or(usize::MAX);
        while held.len() > count {
            if let Some(extra) = held.pop() {
                self.remove(extra).await?;
            }
        }
        for index in 1..=count as u64 {
            let body = service::create_body(&self.project, name, service, index, &environment)?;
            let found = held.iter().find(|container| number(container) == index);
            if let Some(found) = found {
                let image = self.engine.get(&format!("/images/{}/json", escape(text(&body, "Image")))).await?;
                let same =
                    label(found, HASH) == text(&body["Labels"], HASH) && text(found, "ImageID") == text(&image, "Id");
                if same {
                    if text(found, "State") != "running" {
                        self.start(text(found, "Id"), &container_name(found)).await?;
                    }
                    continue;
                }
                self.remove(found).await?;
            }
            self.create(name, service, body, index).await?;
        }
        Ok(())
    }

    fn environment_files(&self, service: &Value) -> Result<Vec<BTreeMap<String, String>>> {
        let mut files = Vec::new();
        for entry in service.get("env_file").and_then(Value::as_array).into_iter().flatten() {
            let path = entry.as_str().unwrap_or_else(|| text(entry, "path"));
            match std::fs::read_to_string(path) {
                Ok(lines) => files.push(super::environment_file(&lines)),
                Err(_) if entry.get("required").and_then(Value::as_bool) == Some(false) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read the env file {path}")),
            }
        }
        Ok(files)
    }

    async fn create(&self, service_name: &str, service: &Value, mut body: Value, index: u64) -> Result<()> {
        let name = match service.get("container_name").and_then(Value::as_str) {
            Some(name) => name.to_owned(),
            None => format!("{}-{service_name}-{index}", self.project.name),
        };
        let all = self.containers().await?;
        for key in ["NetworkMode", "IpcMode", "PidMode"] {
            let mode = text(&body["HostConfig"], key).to_owned();
            if let Some(other) = mode.strip_prefix("service:") {
                let container = all.iter().find(|container| label(container, SERVICE) == other);
                let id = container.map(|container| text(container, "Id")).context("the service has no container")?;
                body["HostConfig"][key] = json!(format!("container:{id}"));
            }
        }
        let alias = json!(name);
        for (_, settings) in body["NetworkingConfig"]["EndpointsConfig"].as_object_mut().into_iter().flatten() {
            if let Some(aliases) = settings.get_mut("Aliases").and_then(Value::as_array_mut) {
                aliases.push(alias.clone());
            }
        }
        let created = self.engine.post(&format!("/containers/create?name={}", escape(&name)), &body).await?;
        self.start(text(&created, "Id"), &name).await
    }

    async fn start(&self, id: &str, name: &str) -> Result<()> {
        self.engine.post(&format!("/containers/{id}/start"), &Value::Null).await?;
        println!("Container {name} Started");
        Ok(())
    }

    async fn remove(&self, container: &Value) -> Result<()> {
        let id = text(container, "Id");
        self.engine.post(&format!("/containers/{id}/stop"), &Value::Null).await?;
        self.engine.delete(&format!("/containers/{id}?force=1")).await?;
        println!("Container {} Removed", container_name(container));
        Ok(())
    }

    /// Stops and removes the project's containers and networks, and its volumes if asked.
    pub async fn down(&self, volumes: bool) -> Result<()> {
        let containers = self.containers().await?;
        futures::future::try_join_all(containers.iter().map(|container| self.remove(container))).await?;
        let filters = escape(&json!({ "label": [format!("{PROJECT}={}", self.project.name)] }).to_string());
        let networks = self.engine.get(&format!("/networks?filters={filters}")).await?;
        for network in networks.as_array().into_iter().flatten() {
            self.engine.delete(&format!("/networks/{}", text(network, "Id"))).await?;
            println!("Network {} Removed", text(network, "Name"));
        }
        if volumes {
            let listed = self.engine.get(&format!("/volumes?filters={filters}")).await?;
            for volume in listed.get("Volumes").and_then(Value::as_array).into_iter().flatten() {
                self.engine.delete(&format!("/volumes/{}", escape(text(volume, "Name")))).await?;
                println!("Volume {} Removed", text(volume, "Name"));
            }
        }
        Ok(())
    }

    /// Prints the project's containers.
    pub async fn ps(&self, all: bool, quiet: bool) -> Result<()> {
        let containers = self.containers().await?;
        if !quiet {
            println!("{:<28} {:<24} {:<14} {:<26} PORTS", "NAME", "IMAGE", "SERVICE", "STATUS");
        }
        for container in containers.iter().filter(|container| all || text(container, "State") == "running") {
            if quiet {
                println!("{}", text(container, "Id"));
                continue;
            }
            let port = |port: &Value| {
                let public = port.get("PublicPort").and_then(Value::as_u64)?;
                let private = port.get("PrivatePort").and_then(Value::as_u64)?;
                Some(format!("{}:{public}->{private}/{}", text(port, "IP"), text(port, "Type")))
            };
            let ports: Vec<String> =
                container.get("Ports").and_then(Value::as_array).into_iter().flatten().filter_map(port).collect();
            println!(
                "{:<28} {:<24} {:<14} {:<26} {}",
                container_name(container),
                text(container, "Image"),
                label(container, SERVICE),
                text(container, "Status"),
                ports.join(", ")
            );
        }
        Ok(())
    }

    /// Prints what the containers of services have written, each line with its container's name.
    pub async fn logs(&self, wanted: &[String], follow: bool, tail: &str) -> Result<()> {
        let containers = self.containers().await?;
        let chosen = containers
            .iter()
            .filter(|container| wanted.is_empty() || wanted.iter().any(|name| label(container, SERVICE) == name));
        let shown = chosen.map(|container| async move {
            let name = format!("{}-{}", label(container, SERVICE), label(container, NUMBER));
            let id = text(container, "Id");
            let inspected = self.engine.get(&format!("/containers/{id}/json")).await?;
            let terminal = inspected["Config"]["Tty"].as_bool().unwrap_or(false);
            let path =
                format!("/containers/{id}/logs?stdout=1&stderr=1&follow={}&tail={}", u8::from(follow), escape(tail));
            let mut lines = Lines { name, terminal, pending: Vec::new(), line: Vec::new() };
            self.engine
                .stream(Method::GET, &path, Vec::new(), |piece| {
                    lines.take(piece);
                    Ok(())
                })
                .await?;
            lines.end();
            anyhow::Ok(())
        });
        futures::future::try_join_all(shown).await.map(drop)
    }
}

/// Takes a log's frames apart and prints whole lines.
struct Lines {
    name: String,
    terminal: bool,
    pending: Vec<u8>,
    line: Vec<u8>,
}

impl Lines {
    fn take(&mut self, piece: &[u8]) {
        if self.terminal {
            self.show(piece);
            return;
        }
        self.pending.extend_from_slice(piece);
        while let Some(header) = self.pending.first_chunk::<8>() {
            let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
            if self.pending.len() < 8 + length {
                return;
            }
            let frame: Vec<u8> = self.pending.drain(..8 + length).skip(8).collect();
            self.show(&frame);
        }
    }

    fn show(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.end();
            } else {
                self.line.push(*byte);
            }
        }
    }

    fn end(&mut self) {
        if !self.line.is_empty() {
            println!("{:<12} | {}", self.name, String::from_utf8_lossy(&self.line).trim_end_matches('\r'));
            self.line.clear();
        }
    }
}

/// A context as an archive. The engine itself leaves out what `.dockerignore` names.
fn archive(context: &std::path::Path) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.append_dir_all(".", context).with_context(|| format!("cannot read {}", context.display()))?;
    Ok(archive.into_inner()?)
}
