//! Events: what happened to containers, images, networks and volumes, in Docker's words. Those about state come from the
//! caches (so they are the same whoever made the change); those about requests (exec, attach, kill…) from the operations.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use api::container::{Container, State};
use api::{Network, Volume};
use kube::ResourceExt;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::broadcast;

use crate::time;

/// Events that are kept for `since`. Docker keeps 256.
const HISTORY_MAX: usize = 1_024;
/// Exit code of a process that SIGKILL ended.
const KILLED: i64 = 137;
/// Events that a slow listener may lag behind before it loses some.
const LAG_MAX: usize = 1_024;

/// One event as it goes over the wire.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Event {
    /// Old form of the action, for containers and images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<String>,
    #[serde(rename = "Type")]
    pub(crate) kind: &'static str,
    #[serde(rename = "Action")]
    pub(crate) action: String,
    #[serde(rename = "Actor")]
    pub(crate) actor: Actor,
    pub(crate) scope: &'static str,
    pub(crate) time: i64,
    #[serde(rename = "timeNano")]
    pub(crate) time_ns: i64,
}

/// Whom an event is about.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Actor {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) attributes: BTreeMap<String, String>,
}

/// What is remembered of a network to name it in an event.
#[derive(Clone)]
struct NetworkFacts {
    id: String,
    name: String,
    driver: String,
}

struct Inner {
    sender: broadcast::Sender<Arc<Event>>,
    history: Mutex<VecDeque<Arc<Event>>>,
    networks: Mutex<BTreeMap<String, NetworkFacts>>,
    /// Containers that were asked to stop, and whether to start again; their end is told with what led to it.
    stopping: Mutex<BTreeMap<String, bool>>,
}

/// Where events are published and listened to; cheap to clone.
#[derive(Clone)]
pub(crate) struct Events(Arc<Inner>);

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Inner {
            sender: broadcast::Sender::new(LAG_MAX),
            history: Mutex::default(),
            networks: Mutex::default(),
            stopping: Mutex::default(),
        }))
    }
}

impl Events {
    /// Publishes one event about something of this machine.
    pub(crate) fn publish(
        &self,
        kind: &'static str,
        action: impl Into<String>,
        id: &str,
        attributes: BTreeMap<String, String>,
    ) {
        self.publish_in("local", kind, action, id, attributes);
    }

    /// Publishes one event about something of the swarm.
    pub(crate) fn swarm(&self, kind: &'static str, action: &str, id: &str, attributes: &[(&str, String)]) {
        let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        self.publish_in("swarm", kind, action, id, attributes.collect());
    }

    fn publish_in(
        &self,
        scope: &'static str,
        kind: &'static str,
        action: impl Into<String>,
        id: &str,
        attributes: BTreeMap<String, String>,
    ) {
        let (action, at) = (action.into(), time::now_ns());
        let legacy = matches!(kind, "container" | "image");
        let event = Arc::new(Event {
            status: legacy.then(|| action.clone()),
            id: legacy.then(|| id.to_owned()),
            from: attributes.get("image").filter(|_| kind == "container").cloned(),
            kind,
            action,
            actor: Actor { id: id.to_owned(), attributes },
            scope,
            time: at.div_euclid(1_000_000_000),
            time_ns: at,
        });
        let mut history = self.0.history.lock();
        if history.len() == HISTORY_MAX {
            history.pop_front();
        }
        history.push_back(event.clone());
        // Sent under the lock, so that history and stream have one order. Nobody listening is no error.
        let _ = self.0.sender.send(event);
    }

    /// Publishes an event about a container.
    pub(crate) fn container(&self, container: &Container, action: impl Into<String>, extra: &[(&str, String)]) {
        let mut attributes = container.spec.labels.clone();
        attributes.insert("image".into(), container.spec.image.clone());
        attributes.insert("name".into(), container.spec.name.clone());
        attributes.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.publish("container", action, &container.name_any(), attributes);
    }

    /// A container was asked to stop (and, with `restart`, to start again): its end belongs to that.
    pub(crate) fn will_stop(&self, id: &str, restart: bool) {
        self.0.stopping.lock().insert(id.to_owned(), restart);
    }

    /// Publishes an event about an image.
    pub(crate) fn image(&self, id: &str, name: &str, action: &str) {
        self.publish("image", action, id, BTreeMap::from([("name".to_owned(), name.to_owned())]));
    }

    /// What happened since an instant, and what happens from now on, with nothing lost between.
    pub(crate) fn subscribe(&self, since_ns: Option<i64>) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let history = self.0.history.lock();
        let past = match since_ns {
            Some(since) => history.iter().filter(|event| event.time_ns >= since).cloned().collect(),
            None => Vec::new(),
        };
        (past, self.0.sender.subscribe())
    }

    /// A container joined or left a network.
    pub(crate) fn network_member(&self, object: &str, container: &str, action: &str) {
        let facts = self.0.networks.lock().get(object).cloned();
        let facts = facts.unwrap_or_else(|| {
            let network = crate::networks::predefined(object);
            NetworkFacts { id: network.spec.id, name: object.to_owned(), driver: network.spec.driver }
        });
        let attributes = BTreeMap::from([
            ("container".to_owned(), container.to_owned()),
            ("name".to_owned(), facts.name),
            ("type".to_owned(), facts.driver),
        ]);
        self.publish("network", action, &facts.id, attributes);
    }
}

/// Whether a process lives in the container.
fn lives(container: &Container) -> bool {
    container.status.as_ref().is_some_and(|s| matches!(s.state, State::Running | State::Paused))
}

/// What a change of a container means.
pub(crate) fn container_changed(
    events: &Events,
    old: Option<&Arc<Container>>,
    new: Option<&Arc<Container>>,
    live: bool,
) {
    if !live {
        return;
    }
    let Some(new) = new else {
        if let Some(last) = old {
            if lives(last) {
                died(events, last);
            }
            events.container(last, "destroy", &[]);
        }
        return;
    };
    let before = match old {
        Some(old) => old.clone(),
        None => {
            events.container(new, "create", &[]);
            let mut fresh = (**new).clone();
            fresh.status = None;
            Arc::new(fresh)
        }
    };
    if before.spec.name != new.spec.name {
        events.container(new, "rename", &[("oldName", format!("/{}", before.spec.name))]);
    }
    status_changed(events, &before, new);
}

fn status_changed(events: &Events, before: &Container, new: &Container) {
    let (was, is) = (before.status.clone().unwrap_or_default(), new.status.clone().unwrap_or_default());
    // Times are told in whole seconds: a run within the second of another shows by its number only.
    let another = is.started_at != was.started_at || is.observed_start != was.observed_start;
    let started = another && is.started_at.is_some() && (is.error.is_empty() || lives(new));
    let died_first = lives(before) && (started || !lives(new));
    if died_first {
        died(events, new);
    }
    if started {
        for network in is.networks.keys() {
            events.network_member(network, &new.name_any(), "connect");
        }
        volume_members(events, new, "mount");
        events.container(new, "start", &[]);
        if !lives(new) {
            died(events, new);
        }
    } else if lives(before) && lives(new) {
        for network in is.networks.keys().filter(|n| !was.networks.contains_key(*n)) {
            events.network_member(network, &new.name_any(), "connect");
        }
        for network in was.networks.keys().filter(|n| !is.networks.contains_key(*n)) {
            events.network_member(network, &new.name_any(), "disconnect");
        }
    }
    match (was.state, is.state) {
        (State::Running, State::Paused) => events.container(new, "pause", &[]),
        (State::Paused, State::Running) => events.container(new, "unpause", &[]),
        _ => {}
    }
    if was.health != is.health && !is.health.is_empty() && is.health != "starting" {
        events.container(new, format!("health_status: {}", is.health), &[]);
    }
}

fn died(events: &Events, container: &Container) {
    let status = container.status.clone().unwrap_or_default();
    if status.oom_killed {
        events.container(container, "oom", &[]);
    }
    let asked = events.0.stopping.lock().remove(&container.name_any());
    let stop_signal = container.spec.stop_signal.as_str();
    if asked.is_some()
        && status.exit_code == KILLED
        && !status.oom_killed
        && !matches!(stop_signal, "KILL" | "SIGKILL" | "9")
    {
        // It did not end by the signal that asked it to.
        events.container(container, "kill", &[("signal", "9".to_owned())]);
    }
    let run_ns = time::of_object_ns(status.finished_at.as_ref()) - time::of_object_ns(status.started_at.as_ref());
    let seconds = (run_ns / 1_000_000_000).max(0).to_string();
    events.container(container, "die", &[("execDuration", seconds), ("exitCode", status.exit_code.to_string())]);
    for network in status.networks.keys() {
        events.network_member(network, &container.name_any(), "disconnect");
    }
    volume_members(events, container, "unmount");
    if asked == Some(true) {
        events.container(container, "stop", &[]);
    }
}

fn volume_members(events: &Events, container: &Container, action: &str) {
    for mount in container.spec.mounts.iter().filter(|mount| mount.kind == "volume") {
        let mut attributes =
            BTreeMap::from([("container".to_owned(), container.name_any()), ("driver".to_owned(), "local".to_owned())]);
        if action == "mount" {
            attributes.insert("destination".into(), mount.target.clone());
            attributes.insert("propagation".into(), mount.propagation.clone());
            attributes.insert("read/write".into(), (!mount.read_only).to_string());
        }
        events.publish("volume", action, &mount.source, attributes);
    }
}

/// What a change of a network means.
pub(crate) fn network_changed(events: &Events, old: Option<&Arc<Network>>, new: Option<&Arc<Network>>, live: bool) {
    let Some(network) = new.or(old) else { return };
    let spec = &network.spec;
    let facts = NetworkFacts { id: spec.id.clone(), name: spec.name.clone(), driver: spec.driver.clone() };
    let attributes = BTreeMap::from([("name".to_owned(), spec.name.clone()), ("type".to_owned(), spec.driver.clone())]);
    let mut known = events.0.networks.lock();
    match new {
        Some(_) => known.insert(network.name_any(), facts),
        None => known.remove(&network.name_any()),
    };
    drop(known);
    if live && old.is_none() != new.is_none() {
        events.publish("network", if old.is_none() { "create" } else { "destroy" }, &spec.id, attributes);
    }
}

/// What a change of a volume means.
pub(crate) fn volume_changed(events: &Events, old: Option<&Arc<Volume>>, new: Option<&Arc<Volume>>, live: bool) {
    let Some(volume) = new.or(old) else { return };
    if live && old.is_none() != new.is_none() {
        let attributes = BTreeMap::from([("driver".to_owned(), "local".to_owned())]);
        events.publish("volume", if old.is_none() { "create" } else { "destroy" }, &volume.spec.name, attributes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::ContainerStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    fn at(seconds: i64) -> Option<MicroTime> {
        Some(MicroTime(jiff::Timestamp::from_second(seconds).unwrap()))
    }

    fn container(change: impl FnOnce(&mut ContainerStatus)) -> Arc<Container> {
        let mut container = Container::new("abc", api::ContainerSpec { name: "web".into(), ..Default::default() });
        let mut status = ContainerStatus::default();
        change(&mut status);
        container.status = Some(status);
        Arc::new(container)
    }

    type Change<'a> = (Option<&'a Arc<Container>>, Option<&'a Arc<Container>>);

    fn actions(changes: &[Change]) -> Vec<String> {
        let events = Events::default();
        for (old, new) in changes {
            container_changed(&events, *old, *new, true);
        }
        let (past, _) = events.subscribe(Some(0));
        past.iter().filter(|event| event.kind == "container").map(|event| event.action.clone()).collect()
    }

    #[test]
    fn a_whole_life_gives_dockers_events_in_order_even_when_states_are_skipped() {
        let made = container(|_| ());
        let done = container(|s| {
            s.state = State::Exited;
            (s.started_at, s.finished_at, s.exit_code) = (at(1), at(2), 3);
        });
        let seen = actions(&[(None, Some(&made)), (Some(&made), Some(&done)), (Some(&done), None)]);
        assert_eq!(seen, ["create", "start", "die", "destroy"]);
    }

    #[test]
    fn a_restart_seen_as_one_change_dies_before_it_starts() {
        let first = container(|s| (s.state, s.started_at) = (State::Running, at(1)));
        let again = container(|s| (s.state, s.started_at, s.finished_at) = (State::Running, at(3), at(2)));
        assert_eq!(actions(&[(Some(&first), Some(&again))]), ["die", "start"]);
    }

    #[test]
    fn a_short_run_over_the_turn_of_a_second_lasted_no_second() {
        let ended = container(|s| {
            s.state = State::Exited;
            let moment = |text: &str| Some(MicroTime(text.parse().unwrap()));
            (s.started_at, s.finished_at) = (moment("2026-01-01T00:00:00.9Z"), moment("2026-01-01T00:00:01.1Z"));
        });
        // As the object comes back from the API.
        let ended: Arc<Container> = Arc::new(serde_json::from_value(serde_json::to_value(&*ended).unwrap()).unwrap());
        let events = Events::default();
        container_changed(&events, None, Some(&ended), true);
        let (past, _) = events.subscribe(Some(0));
        let die = past.iter().find(|event| event.action == "die").unwrap();
        assert_eq!(die.actor.attributes["execDuration"], "0");
    }

    #[test]
    fn pauses_and_health_are_told() {
        let runs = container(|s| (s.state, s.started_at) = (State::Running, at(1)));
        let frozen = container(|s| (s.state, s.started_at) = (State::Paused, at(1)));
        let ill = container(|s| (s.state, s.started_at, s.health) = (State::Running, at(1), "unhealthy".into()));
        let seen = actions(&[(Some(&runs), Some(&frozen)), (Some(&frozen), Some(&ill))]);
        assert_eq!(seen, ["pause", "unpause", "health_status: unhealthy"]);
    }
}
