//! Rename, update, remove, prune.

use std::sync::Arc;
use std::time::Duration;

use api::Container;
use api::container::State;
use http::StatusCode;
use kube::ResourceExt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::bounds;
use super::config;
use super::create::{ANONYMOUS_LABEL, check_name, name_conflict};
use super::echo::Echo;
use super::inspect::{created_ns, sizes};
use super::lifecycle::status_of;
use super::wire::{HostConfig, RestartRequest};
use crate::cache::Slot;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::operation::Reply;
use crate::state::Docker;
use crate::{body, policy, time};

/// Longest wait for the machine to bring changed bounds into force.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the machine to clear what a container had that goes by itself, before its object is deleted all the same.
const GOING_TIMEOUT: Duration = Duration::from_secs(20);

/// Gives a container another name.
pub(crate) async fn container_rename(docker: Arc<Docker>, call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    let name = call.query.text("name").unwrap_or("");
    let name = name.strip_prefix('/').unwrap_or(name);
    if name.is_empty() {
        return Err(Error::Invalid("Neither old nor new names may be empty".into()));
    }
    check_name(name)?;
    if container.spec.name == name {
        return Err(Error::Conflict("Renaming a container with the same name as its current name".into()));
    }
    match docker.containers.patch(&container.name_any(), &json!({ "spec": { "name": name } })).await {
        Ok(_) => Ok(body::empty(StatusCode::NO_CONTENT)),
        Err(Error::Conflict(_)) => Err(name_conflict(&docker, name)),
        Err(error) => Err(error),
    }
}

/// Body of update. Each field is changed only when it is there and not zero, as Docker has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Update {
    restart_policy: RestartRequest,
    memory: i64,
    memory_swap: i64,
    memory_reservation: i64,
    nano_cpus: i64,
    cpu_shares: i64,
    cpu_quota: i64,
    cpu_period: i64,
    cpuset_cpus: String,
    pids_limit: Option<i64>,
}

/// Changes bounds and the restart policy.
pub(crate) async fn container_update(docker: Arc<Docker>, mut call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    let update: Update = call.json().await?;
    if container.metadata.deletion_timestamp.is_some() {
        return Err(Error::Conflict("Container is marked for removal and cannot be \"update\".".into()));
    }
    let mut resources = container.spec.resources.clone();
    let mut echo = Echo::of(&container);
    if !echo.host_config.is_object() {
        echo.host_config = json!({});
    }
    let numbers = [
        ("Memory", update.memory, &mut resources.memory_bytes),
        ("MemorySwap", update.memory_swap, &mut resources.memory_swap_bytes),
        ("MemoryReservation", update.memory_reservation, &mut resources.memory_reservation_bytes),
        ("NanoCpus", update.nano_cpus, &mut resources.nano_cpus),
        ("CpuShares", update.cpu_shares, &mut resources.cpu_shares),
        ("CpuQuota", update.cpu_quota, &mut resources.cpu_quota_us),
        ("CpuPeriod", update.cpu_period, &mut resources.cpu_period_us),
    ];
    for (name, value, place) in numbers {
        if value != 0 {
            *place = value;
            echo.host_config[name] = json!(value);
        }
    }
    if !update.cpuset_cpus.is_empty() {
        resources.cpuset_cpus.clone_from(&update.cpuset_cpus);
        echo.host_config["CpusetCpus"] = json!(update.cpuset_cpus);
    }
    if let Some(limit) = update.pids_limit {
        resources.pids_limit = bounds::pids_limit(limit);
        echo.host_config["PidsLimit"] = json!(limit);
    }
    if resources.memory_bytes > 0
        && resources.memory_swap_bytes > 0
        && resources.memory_bytes > resources.memory_swap_bytes
    {
        return Err(Error::Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
                .into(),
        ));
    }
    let asked = HostConfig {
        memory: update.memory,
        nano_cpus: update.nano_cpus,
        cpu_quota: update.cpu_quota,
        cpu_period: update.cpu_period,
        cpu_shares: update.cpu_shares,
        cpuset_cpus: update.cpuset_cpus.clone(),
        ..HostConfig::default()
    };
    bounds::resources(&asked)?;
    let mut after = container.spec.clone();
    after.resources = resources.clone();
    policy::judge(docker.state.endpoint, &policy::added(&container.spec, &after))?;
    let mut change = json!({ "spec": { "resources": resources, "dialectConfig": "" } });
    if !update.restart_policy.name.is_empty() {
        config::check_restart(&update.restart_policy, container.spec.auto_remove)?;
        change["spec"]["restartPolicy"] = json!({
            "name": update.restart_policy.name,
            "maximumRetryCount": update.restart_policy.maximum_retry_count,
        });
        echo.host_config["RestartPolicy"] = json!(update.restart_policy);
    }
    change["spec"]["dialectConfig"] = json!(echo.to_text());
    let changed = docker.containers.patch(&container.name_any(), &change).await?;
    if changed.spec.resources != container.spec.resources {
        updated(&docker, &changed).await?;
    }
    docker.events.container(&changed, "update", &[]);
    body::json(&json!({ "Warnings": [] }))
}

/// Waits until the machine has brought the bounds of a running container into force.
async fn updated(docker: &Docker, container: &Container) -> Result<()> {
    let id = container.name_any();
    let wanted = &container.spec.resources;
    let reached = docker.containers.wait_for(&id, |slot| match slot {
        Slot::Gone(_) => true,
        Slot::There(object) => {
            let status = status_of(object);
            let alive = matches!(status.state, State::Running | State::Paused);
            !alive || status.resource_update.is_some_and(|update| update.resources == *wanted)
        }
    });
    let slot = tokio::time::timeout(UPDATE_TIMEOUT, reached)
        .await
        .map_err(|_| Error::Unavailable(format!("the bounds of container {id} were not changed in time")))?;
    match slot.and_then(|slot| status_of(slot.object()).resource_update) {
        Some(update) if !update.error.is_empty() => {
            Err(Error::Internal(format!("Cannot update container {id}: {}", update.error)))
        }
        _ => Ok(()),
    }
}

/// Removes a container.
pub(crate) async fn container_delete(docker: Arc<Docker>, call: Call) -> Reply {
    if call.query.flag("link") {
        return remove_link(&docker, call.parameter("id")).await;
    }
    let container = docker.container(call.parameter("id"))?;
    let state = status_of(&container).state;
    let name = &container.spec.name;
    if container.metadata.deletion_timestamp.is_some() {
        if call.query.flag("force") {
            docker.containers.wait_gone(&container.name_any()).await;
            return Ok(body::empty(StatusCode::NO_CONTENT));
        }
        return Err(Error::Conflict(format!("removal of container {} is already in progress", container.name_any())));
    }
    if !call.query.flag("force") {
        let why = match state {
            State::Running => Some("container is running: stop the container before removing or force remove"),
            State::Paused => Some("container is paused and must be unpaused first"),
            State::Restarting => Some("container is restarting: stop the container before removing or force remove"),
            _ => None,
        };
        if let Some(why) = why {
            return Err(Error::Conflict(format!("cannot remove container \"/{name}\": {why}")));
        }
    } else if matches!(state, State::Running | State::Paused) {
        docker.events.container(&container, "kill", &[("signal", "9".into())]);
    }
    remove(&docker, &container, call.query.flag("v")).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// Takes a link (`container/alias`) away; the container learns of it at its next start.
async fn remove_link(docker: &Docker, reference: &str) -> Reply {
    let bad = || Error::Invalid(format!("Conflict, cannot remove the default link name of the container: {reference}"));
    let (name, alias) = reference.trim_start_matches('/').rsplit_once('/').ok_or_else(bad)?;
    let container = docker.container(name)?;
    let mut links = container.spec.links.clone();
    links.retain(|link| link.alias != alias);
    if links.len() == container.spec.links.len() {
        return Err(Error::NotFound(format!("No such link: {reference}")));
    }
    let mut echo = Echo::of(&container);
    if let Some(shown) = echo.host_config.get_mut("Links").and_then(Value::as_array_mut) {
        shown.retain(|link| link.as_str().and_then(|text| text.rsplit(':').next()) != Some(alias));
    }
    let change = json!({ "spec": { "links": links, "dialectConfig": echo.to_text() } });
    docker.containers.patch(&container.name_any(), &change).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// Waits, within a bound, until a container is gone that goes by itself: its object could be deleted at once; but while its machine still
/// clears what it had, its ports and addresses are taken.
pub(crate) async fn wait_cleared(docker: &Docker, id: &str) {
    let _ = tokio::time::timeout(GOING_TIMEOUT, docker.containers.wait_gone(id)).await;
}

/// Deletes the object, waits until the agent let go of it, and takes its anonymous volumes along when asked.
async fn remove(docker: &Docker, container: &Container, with_volumes: bool) -> Result<()> {
    let id = container.name_any();
    // It may have ended since it was looked at.
    if docker.containers.get(&id).as_deref().unwrap_or(container).goes_by_itself() {
        wait_cleared(docker, &id).await;
    }
    docker.containers.delete(&id).await?;
    docker.containers.wait_gone(&id).await;
    docker.execs.lock().retain(|_, exec| exec.container != id);
    if with_volumes {
        for mount in container.spec.mounts.iter().filter(|mount| mount.kind == "volume") {
            let Some(volume) = docker.volumes.get(&mount.source) else { continue };
            if volume.spec.labels.contains_key(ANONYMOUS_LABEL) && docker.volume_users(&mount.source).is_empty() {
                docker.volumes.delete(&mount.source).await?;
            }
        }
    }
    Ok(())
}

/// Removes all containers that do not run.
pub(crate) async fn container_prune(docker: Arc<Docker>, call: Call) -> Reply {
    let filters = Filters::of(&call.query, &["until", "label", "label!"])?;
    let until = filters.values("until").first().map(|text| time::parse_point(text, time::now_ns())).transpose()?;
    let mut deleted: Vec<Value> = Vec::new();
    let mut reclaimed = 0;
    for container in docker.containers.all() {
        let idle = matches!(status_of(&container).state, State::Created | State::Exited | State::Dead);
        let old = until.is_none_or(|until| created_ns(&container) < until);
        if !idle || !old || !filters.labels(&container.spec.labels) || container.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let (own, _) = sizes(&docker, &container).await;
        remove(&docker, &container, false).await?;
        reclaimed += own;
        deleted.push(json!(container.name_any()));
    }
    docker.events.publish("container", "prune", "", [("reclaimed".to_owned(), reclaimed.to_string())].into());
    let list = if deleted.is_empty() { Value::Null } else { Value::Array(deleted) };
    body::json(&json!({ "ContainersDeleted": list, "SpaceReclaimed": reclaimed }))
}
