//! Volumes: list, inspect, create, remove, prune.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::Container;
use api::privilege::of_volume as volume_privileges;
use api::volume::{Volume, VolumeSpec};
use http::{Method, StatusCode};
use kube::ResourceExt;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cache::Slot;
use crate::call::Call;
use crate::containers::mounts::{check_driver, check_volume_name, named_volume};
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::{body, policy, text, time};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("VolumeList", Method::GET, "/volumes", "list", "volumes", run!(volume_list)),
    Operation::new("VolumeCreate", Method::POST, "/volumes/create", "create", "volumes", run!(volume_create))
        .partial("driver local"),
    Operation::new("VolumePrune", Method::POST, "/volumes/prune", "delete", "volumes", run!(volume_prune)).since(25),
    Operation::new("VolumeInspect", Method::GET, "/volumes/{name}", "get", "volumes", run!(volume_inspect)),
    Operation::new("VolumeUpdate", Method::PUT, "/volumes/{name}", "update", "volumes", run!(volume_update)).since(42),
    Operation::new("VolumeDelete", Method::DELETE, "/volumes/{name}", "delete", "volumes", run!(volume_delete)),
];

/// Longest wait for the machine to say where a new volume lies.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);
/// Label of volumes that nobody named.
const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// Body of create.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    name: String,
    driver: String,
    driver_opts: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    cluster_volume_spec: Value,
}

impl Docker {
    /// Name of the object that stands for a volume.
    pub(crate) fn volume_object(&self, name: &str) -> String {
        self.volume(name).map_or_else(|_| text::object_name(name), |volume| volume.name_any())
    }

    /// Containers that mount a volume (by its object's name), running or not.
    pub(crate) fn volume_users(&self, object: &str) -> Vec<Arc<Container>> {
        let mut users = self.containers.all();
        users.retain(|c| c.spec.mounts.iter().any(|mount| mount.kind == "volume" && mount.source == object));
        users
    }

    /// Makes a volume unless it is there.
    pub(crate) async fn ensure_volume(&self, name: &str, spec: VolumeSpec) -> Result<Arc<Volume>> {
        if let Ok(there) = self.volume(name) {
            if there.is_block() {
                return Err(Error::Conflict(format!("volume {name} is a disk for virtual machines")));
            }
            return Ok(there);
        }
        match self.volumes.create(&Volume::new(&text::object_name(name), spec)).await {
            Ok(made) => Ok(made),
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => self.volume(name),
            Err(error) => Err(error.into()),
        }
    }
}

/// Disks for virtual machines are shown, but no container can mount one.
fn driver(volume: &Volume) -> &str {
    match volume.spec.driver.as_str() {
        _ if volume.is_block() => "block",
        "" => "local",
        driver => driver,
    }
}

fn describe(volume: &Volume) -> Value {
    let spec = &volume.spec;
    json!({
        "CreatedAt": time::of_object(volume.metadata.creation_timestamp.as_ref()),
        "Driver": driver(volume),
        "Labels": if spec.labels.is_empty() { Value::Null } else { json!(spec.labels) },
        "Mountpoint": volume.status.as_ref().map_or("", |s| s.path.as_str()),
        "Name": spec.name,
        "Options": if spec.options.is_empty() { Value::Null } else { json!(spec.options) },
        "Scope": "local",
    })
}

/// All volumes as `docker system df -v` shows them.
pub(crate) fn describe_all_with_use(docker: &Docker) -> Vec<Value> {
    let rows = docker.volumes.all().into_iter().map(|volume| {
        let mut row = describe(&volume);
        // Docker's word for a size that was not measured is -1.
        row["UsageData"] = json!({ "Size": -1, "RefCount": docker.volume_users(&volume.name_any()).len() });
        row
    });
    rows.collect()
}

async fn volume_list(docker: Arc<Docker>, call: Call) -> Reply {
    let filters = Filters::of(&call.query, &["dangling", "driver", "label", "name"])?;
    let (dangling, names) = (filters.boolean("dangling")?, filters.names()?);
    let mut volumes = docker.volumes.all();
    volumes.retain(|volume| {
        filters.any("driver", |wanted| wanted == driver(volume))
            && names.accept(&[&volume.spec.name])
            && filters.labels(&volume.spec.labels)
            && dangling.is_none_or(|wanted| docker.volume_users(&volume.name_any()).is_empty() == wanted)
    });
    volumes.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let shown: Vec<Value> = volumes.iter().map(|volume| describe(volume)).collect();
    body::json(&json!({ "Volumes": shown, "Warnings": null }))
}

async fn volume_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    body::json(&describe(&*docker.volume(call.parameter("name"))?))
}

async fn volume_create(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Create = call.json().await?;
    if !request.cluster_volume_spec.is_null() {
        return Err(Error::Unavailable("This node is not a swarm manager.".into()));
    }
    check_driver(&request.driver).map_err(|error| match error {
        Error::NotFound(text) => Error::NotFound(format!("create {}: {text}", request.name)),
        other => other,
    })?;
    check_options(&request.driver_opts).map_err(|error| named_volume(&request.name, &error))?;
    policy::judge(docker.state.endpoint, &volume_privileges(&request.driver_opts))?;
    let mut labels = request.labels;
    let name = if request.name.is_empty() {
        labels.insert(ANONYMOUS_LABEL.into(), String::new());
        text::new_id()
    } else {
        check_volume_name(&request.name).map_err(|error| named_volume(&request.name, &error))?;
        request.name
    };
    if let Ok(there) = docker.volume(&name) {
        if !request.driver_opts.is_empty() && there.spec.options != request.driver_opts {
            return Err(Error::Conflict(format!("volume {name} already exists with other options")));
        }
        return body::json_with(StatusCode::CREATED, &describe(&there));
    }
    let spec = VolumeSpec {
        name: name.clone(),
        driver: "local".into(),
        labels,
        options: request.driver_opts,
        node_name: docker.state.node_name.clone(),
        ..VolumeSpec::default()
    };
    let made = docker.ensure_volume(&name, spec).await?;
    // Clients read where it lies out of this answer. A machine that does not answer leaves the place empty.
    let object = made.name_any();
    let placed = docker.volumes.wait_for(&object, |slot| match slot {
        Slot::There(volume) => volume.status.as_ref().is_some_and(|status| !status.path.is_empty()),
        Slot::Gone(_) => true,
    });
    let placed = tokio::time::timeout(PLACE_TIMEOUT, placed).await.ok().flatten();
    body::json_with(StatusCode::CREATED, &describe(placed.as_ref().map_or(&made, |slot| slot.object())))
}

/// Docker lets a client change cluster volumes only, which exist under swarm mode; ours are the machine's.
async fn volume_update(docker: Arc<Docker>, mut call: Call) -> Reply {
    let _request: Value = call.json().await?;
    docker.volume(call.parameter("name"))?;
    Err(Error::Unavailable("volume update only valid for cluster volumes, but swarm is unavailable".into()))
}

/// The local driver's rules.
fn check_options(options: &BTreeMap<String, String>) -> Result<()> {
    if let Some(bad) = options.keys().find(|key| !matches!(key.as_str(), "type" | "o" | "device" | "size")) {
        return Err(Error::Invalid(format!("invalid option: {}", text::quote(bad))));
    }
    // A bound that nothing holds must not be taken as if it held. `Source:` moby, `volume/local`.
    if options.contains_key("size") {
        return Err(Error::Invalid("quota size requested but no quota support".into()));
    }
    let lacking = ["device", "type"].into_iter().find(|key| !options.contains_key(*key));
    if let Some(lacking) = lacking.filter(|_| !options.is_empty()) {
        return Err(Error::Invalid(format!("missing required option: {}", text::quote(lacking))));
    }
    Ok(())
}

async fn volume_delete(docker: Arc<Docker>, call: Call) -> Reply {
    let name = call.parameter("name");
    let volume = match docker.volume(name) {
        Ok(volume) => volume,
        Err(Error::NotFound(_)) if call.query.flag("force") => return Ok(body::empty(StatusCode::NO_CONTENT)),
        Err(error) => return Err(error),
    };
    let mut users: Vec<String> = docker.volume_users(&volume.name_any()).iter().map(|c| c.name_any()).collect();
    users.extend(volume.status.iter().flat_map(|status| &status.attached_to).map(|one| one.virtual_machine.clone()));
    if !users.is_empty() {
        return Err(Error::Conflict(format!("remove {name}: volume is in use - [{}]", users.join(", "))));
    }
    docker.volumes.delete(&volume.name_any()).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

async fn volume_prune(docker: Arc<Docker>, call: Call) -> Reply {
    let filters = Filters::of(&call.query, &["all", "label", "label!"])?;
    // Since 1.42 only volumes that nobody named go, unless all are asked for.
    let all = filters.boolean("all")?.unwrap_or(call.version.minor < 42);
    let mut deleted = Vec::new();
    for volume in docker.volumes.all() {
        let object = volume.name_any();
        let anonymous = volume.spec.labels.contains_key(ANONYMOUS_LABEL);
        // One that stands for something else is not taken for unused because nobody mounts it now.
        let plain = volume.spec.options.is_empty() && !volume.is_block();
        if plain && (all || anonymous) && filters.labels(&volume.spec.labels) && docker.volume_users(&object).is_empty()
        {
            docker.volumes.delete(&object).await?;
            deleted.push(volume.spec.name.clone());
        }
    }
    docker.events.publish("volume", "prune", "", [("reclaimed".to_owned(), "0".to_owned())].into());
    let list = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    body::json(&json!({ "VolumesDeleted": list, "SpaceReclaimed": 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_local_driver_are_checked() {
        let options = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert!(check_options(&options(&[])).is_ok());
        assert!(check_options(&options(&[("type", "none"), ("device", "/x"), ("o", "bind")])).is_ok());
        assert!(check_options(&options(&[("type", "none")])).is_err());
        assert!(check_options(&options(&[("nope", "1")])).is_err());
    }
}
