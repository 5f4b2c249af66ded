//! Between tasks and their `Container` objects: what a container says of its task, and the container of a new task. Pure, but
//! for the random id.

use api::container::{Container, ContainerSpec, Desired, NetworkEndpoint, State as Running};
use api::names::{AGENT_FINALIZER, DEFAULT_NETWORK};
use api::swarm::{SERVICE_LABEL, SwarmService, TaskDesired, TaskInfo, id_of};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{Resource, ResourceExt};
use rand::RngCore as _;
use serde_json::{Value, json};

use super::plan::{Slot, State, Task};
use crate::{Error, Result};

/// Longest host name. `Source:` hostname(7).
const HOSTNAME_MAX: usize = 63;

/// A container's task, if it is one.
pub fn task(container: &Container) -> Option<Task> {
    let info = container.spec.task.as_ref()?;
    let status = container.status.clone().unwrap_or_default();
    let created = container.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let leaves = container.metadata.deletion_timestamp.is_some();
    let instant = |time: &Option<MicroTime>| time.as_ref().map(|time| time.0);
    Some(Task {
        name: container.name_any(),
        id: info.id.clone(),
        slot: if info.slot > 0 { Slot::Number(info.slot) } else { Slot::Machine(info.machine.clone()) },
        desired: if leaves { TaskDesired::Remove } else { info.desired },
        stopped: info.stopped,
        version: info.version.clone(),
        state: state(container),
        created: instant(&info.created_at).unwrap_or(created),
        started: instant(&status.started_at),
        ended: instant(&status.finished_at),
        start_after: instant(&info.start_after),
        restarts: info.restarts,
        restarted_at: info.restarted_at.iter().map(|time| time.0).collect(),
        machine: container.spec.node_name.clone(),
    })
}

/// How far it is.
pub fn state(container: &Container) -> State {
    let (spec, status) = (&container.spec, container.status.clone().unwrap_or_default());
    let due = spec.start_request > status.observed_start && spec.desired == Desired::Running;
    let well = status.exit_code == 0 && status.error.is_empty();
    match status.state {
        Running::Created if spec.desired == Desired::Stopped => State::Ended { well: false },
        Running::Created if spec.node_name.is_none() => State::Pending,
        Running::Created if spec.desired == Desired::Created => State::Placed,
        Running::Created if !due && !status.error.is_empty() => State::Ended { well: false },
        Running::Created | Running::Restarting => State::Starting,
        Running::Exited | Running::Dead if due => State::Starting,
        Running::Exited | Running::Dead => State::Ended { well },
        Running::Running | Running::Paused => match status.health.as_str() {
            "starting" => State::Starting,
            "unhealthy" => State::Unhealthy,
            _ => State::Running,
        },
    }
}

/// What a new task follows.
#[derive(Debug)]
pub struct Birth<'a> {
    /// Where.
    pub slot: &'a Slot,
    /// Version of the template.
    pub version: &'a str,
    /// Tasks of its slot and version before it.
    pub restarts: u32,
    /// When they were followed.
    pub restarted_at: &'a [Timestamp],
    /// It does not start before this.
    pub start_after: Option<Timestamp>,
    /// The network of tasks that have published ports and no network of their own.
    pub ingress: Option<&'a str>,
    /// Name in the task's name, where it belongs to a machine.
    pub machine_id: String,
    /// Now.
    pub now: Timestamp,
}

/// The container of a new task.
///
/// Errors: the service has no uid.
pub fn container(service: &SwarmService, birth: &Birth<'_>) -> Result<Container> {
    let mut bytes = [0_u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    let name = hex::encode(bytes);
    let id = id_of(&name);
    let version = &service.spec.current;
    let mut spec = version.task.container.clone();
    let (slot, machine, place) = match birth.slot {
        // Swarm counts the slots of jobs from nought.
        Slot::Number(number) => (*number, String::new(), (number - u32::from(version.mode.is_job())).to_string()),
        Slot::Machine(machine) => (0, machine.clone(), birth.machine_id.clone()),
    };
    spec.name = format!("{}.{place}.{id}", service.spec.name);
    spec.desired = Desired::Created;
    join_networks(&mut spec, service, birth.ingress);
    let facts = [
        (".Service.ID", service.name_any()),
        (".Service.Name", service.spec.name.clone()),
        (".Task.ID", id.clone()),
        (".Task.Name", spec.name.clone()),
        (".Task.Slot", place),
    ];
    expand_all(&mut spec, &facts);
    spec.task = Some(TaskInfo {
        id,
        service: service.name_any(),
        slot,
        machine,
        desired: TaskDesired::Running,
        stopped: false,
        version: birth.version.to_owned(),
        created_at: Some(MicroTime(birth.now)),
        start_after: birth.start_after.map(MicroTime),
        restarts: birth.restarts,
        restarted_at: birth.restarted_at.iter().copied().map(MicroTime).collect(),
        placement: version.task.placement.clone(),
    });
    let mut container = Container::new(&name, spec);
    container.labels_mut().insert(SERVICE_LABEL.into(), service.name_any());
    container.metadata.owner_references =
        Some(vec![service.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?]);
    Ok(container)
}

fn join_networks(spec: &mut ContainerSpec, service: &SwarmService, ingress: Option<&str>) {
    if matches!(spec.network_mode.as_str(), "host" | "none") {
        return;
    }
    let version = &service.spec.current;
    for network in &version.task.networks {
        let mut aliases = vec![format!("tasks.{}", service.spec.name)];
        if version.round_robin_names {
            aliases.push(service.spec.name.clone());
            aliases.extend(network.aliases.iter().cloned());
        }
        spec.networks.insert(network.network.clone(), NetworkEndpoint { aliases, ..NetworkEndpoint::default() });
    }
    let own = version.task.networks.first().map(|network| network.network.as_str());
    let ingress = ingress.filter(|_| !version.ports.is_empty());
    let mode = own.or(ingress).unwrap_or(DEFAULT_NETWORK);
    if own.is_none() && mode != DEFAULT_NETWORK {
        spec.networks.insert(mode.to_owned(), NetworkEndpoint::default());
    }
    mode.clone_into(&mut spec.network_mode);
}

/// Replaces `{{.Task.Slot}}` and its like in what may hold them.
fn expand_all(spec: &mut ContainerSpec, facts: &[(&str, String)]) {
    let texts = std::iter::once(&mut spec.hostname)
        .chain(&mut spec.environment)
        .chain(spec.labels.values_mut())
        .chain(spec.mounts.iter_mut().map(|mount| &mut mount.source));
    texts.filter(|text| text.contains("{{")).for_each(|text| *text = expand(text, facts));
}

/// Replaces the placeholders that are known; others stay.
fn expand(text: &str, facts: &[(&str, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let Some((inside, behind)) = after.split_once("}}") else {
            out.push_str("{{");
            rest = after;
            continue;
        };
        match facts.iter().find(|(name, _)| *name == inside.trim()) {
            Some((_, value)) => out.push_str(value),
            None => out.extend(["{{", inside, "}}"]),
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// The change that starts a placed task: what depends on the machine is known now.
pub fn start(container: &Container, machine_id: &str, hostname: &str) -> Value {
    let mut spec = container.spec.clone();
    expand_all(&mut spec, &[(".Node.ID", machine_id.to_owned()), (".Node.Hostname", hostname.to_owned())]);
    let cut: String = spec.hostname.chars().take(HOSTNAME_MAX).collect();
    json!({
        "metadata": { "uid": container.metadata.uid, "finalizers": [AGENT_FINALIZER] },
        "spec": {
            "desired": "running", "startRequest": 1, "hostname": cut, "environment": spec.environment,
            "labels": spec.labels, "mounts": spec.mounts,
        },
    })
}

/// The change that ends a task, or notes that it ended.
pub fn stop(container: &Container, desired: TaskDesired, stopped: bool) -> Value {
    json!({
        "metadata": { "uid": container.metadata.uid },
        "spec": { "desired": "stopped", "task": { "desired": desired, "stopped": stopped } },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::swarm::SwarmServiceSpec;

    #[test]
    fn placeholders_are_replaced_and_unknown_ones_stay() {
        let facts = [(".Task.Slot", "3".to_owned())];
        assert_eq!(expand("n-{{.Task.Slot}}-{{ .Task.Slot }}", &facts), "n-3-3");
        assert_eq!(expand("{{.Node.ID}} {{ {{.Task.Slot", &facts), "{{.Node.ID}} {{ {{.Task.Slot");
    }

    #[test]
    fn a_task_is_named_after_its_service_slot_and_id() {
        let mut service = SwarmService::new("s1", SwarmServiceSpec { name: "web".into(), ..Default::default() });
        service.metadata.uid = Some("u".into());
        service.spec.current.task.container.hostname = "{{.Service.Name}}-{{.Task.Slot}}".into();
        let birth = Birth {
            slot: &Slot::Number(2),
            version: "v",
            restarts: 0,
            restarted_at: &[],
            start_after: None,
            ingress: None,
            machine_id: String::new(),
            now: Timestamp::UNIX_EPOCH,
        };
        let made = container(&service, &birth).unwrap_or_default();
        let id = made.spec.task.as_ref().map(|task| task.id.clone()).unwrap_or_default();
        assert_eq!(made.spec.name, format!("web.2.{id}"));
        assert_eq!((made.spec.hostname.as_str(), id.len(), made.name_any().len()), ("web-2", 25, 64));
        assert_eq!(task(&made).map(|task| task.state), Some(State::Pending));
    }
}
