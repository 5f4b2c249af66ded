//! `GET /containers/json`: `docker ps` with all its filters.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use api::Container;
use api::container::State;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::echo::Echo;
use super::inspect::{self, created_ns, list_ports, state_word};
use crate::call::Call;
use crate::error::{Error, Result};
use crate::filters::{Filters, Names};
use crate::operation::Reply;
use crate::state::Docker;
use crate::{body, time};

const FILTERS: [&str; 15] = [
    "ancestor",
    "before",
    "expose",
    "exited",
    "health",
    "id",
    "isolation",
    "is-task",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];
const STATES: [&str; 7] = ["created", "restarting", "running", "removing", "paused", "exited", "dead"];

/// Lists containers, newest first.
pub(crate) async fn container_list(docker: Arc<Docker>, call: Call) -> Reply {
    let filters = Filters::of(&call.query, &FILTERS)?;
    check(&filters)?;
    let names = filters.names()?;
    let limit: Option<usize> =
        call.query.number::<i64>("limit")?.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    let all = call.query.flag("all") || limit.is_some() || filters.has("status") || filters.has("exited");
    let ancestors = ancestors(&docker, &filters).await;
    let reference = |name: &str| -> Result<Option<i64>> {
        filters.values(name).last().map(|value| docker.container(value).map(|c| created_ns(&c))).transpose()
    };
    let (before, since) = (reference("before")?, reference("since")?);
    let mut found: Vec<(i64, Arc<Container>)> =
        docker.containers.all().into_iter().map(|c| (created_ns(&c), c)).collect();
    found.retain(|(created, container)| {
        // A task whose image was not looked at yet is a plan, not a container.
        let is_plan = container.spec.task.is_some() && container.spec.image_id.is_empty();
        !is_plan
            && (all || is_up(container))
            && before.is_none_or(|bound| *created < bound)
            && since.is_none_or(|bound| *created > bound)
            && ancestors
                .as_ref()
                .is_none_or(|ids| ids.contains(&container.spec.image_id) || ids.contains(&container.spec.image))
            && matches(&docker, &filters, &names, container)
    });
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.name_any().cmp(&b.1.name_any())));
    found.truncate(limit.unwrap_or(usize::MAX));
    let mut shown = Vec::with_capacity(found.len());
    for (created, container) in &found {
        shown.push(match call.query.flag("size") {
            true => row_with_sizes(&docker, container).await,
            false => row(&docker, *created, container),
        });
    }
    body::json(&shown)
}

fn is_up(container: &Container) -> bool {
    container.status.as_ref().is_some_and(|s| matches!(s.state, State::Running | State::Paused | State::Restarting))
}

fn check(filters: &Filters) -> Result<()> {
    if let Some(bad) = filters.values("status").iter().find(|s| !STATES.contains(&s.as_str())) {
        return Err(Error::Invalid(format!("invalid filter 'status={bad}'")));
    }
    if let Some(bad) = filters.values("exited").iter().find(|s| s.parse::<i64>().is_err()) {
        return Err(Error::Invalid(format!("invalid filter 'exited=[{bad}]'")));
    }
    let healths = ["starting", "healthy", "unhealthy", "none"];
    if let Some(bad) = filters.values("health").iter().find(|s| !healths.contains(&s.as_str())) {
        return Err(Error::Invalid(format!("invalid filter 'health={bad}'")));
    }
    filters.boolean("is-task")?;
    Ok(())
}

/// Image ids and references that the `ancestor` filter means; `None` without the filter.
async fn ancestors(docker: &Docker, filters: &Filters) -> Option<HashSet<String>> {
    if !filters.has("ancestor") {
        return None;
    }
    let mut ids = HashSet::new();
    for reference in filters.values("ancestor") {
        ids.insert(reference.clone());
        if let Ok(image) = docker.image_defaults(reference).await {
            ids.insert(image.id);
        }
    }
    Some(ids)
}

fn matches(docker: &Docker, filters: &Filters, names: &Names, container: &Container) -> bool {
    let spec = &container.spec;
    let status = container.status.clone().unwrap_or_default();
    let id = container.name_any();
    let health = if spec.healthcheck.is_none() {
        "none"
    } else if status.health.is_empty() {
        "starting"
    } else {
        &status.health
    };
    let port_in = |range: &str, ports: &[(u16, String)]| {
        let (range, protocol) = range.split_once('/').unwrap_or((range, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => ports.iter().any(|(p, proto)| (first..=last).contains(p) && proto == protocol),
            _ => false,
        }
    };
    let exposed: Vec<(u16, String)> =
        spec.exposed_ports.iter().filter_map(|port| super::connections::parse_port(port).ok()).collect();
    // Only what runs has published ports.
    let published: Vec<(u16, String)> = match status.state {
        State::Running | State::Paused => &status.ports[..],
        _ => &[],
    }
    .iter()
    .map(|port| (port.container_port, port.protocol.clone()))
    .collect();
    filters.any("id", |prefix| id.starts_with(prefix))
        && names.accept(&[&spec.name, &format!("/{}", spec.name)])
        && filters.labels(&spec.labels)
        && filters.any("status", |state| state_word(container) == state)
        && filters.any("exited", |code| status.state == State::Exited && code.parse() == Ok(status.exit_code))
        && filters.any("health", |wanted| wanted == health)
        && filters.any("volume", |wanted| {
            spec.mounts.iter().any(|mount| {
                let named = docker.volumes.get(&mount.source).is_some_and(|v| v.spec.name == wanted);
                mount.source == wanted || mount.target == wanted || (mount.kind == "volume" && named)
            })
        })
        && filters.any("network", |wanted| {
            inspect::endpoints(docker, container).iter().any(|(name, endpoint)| {
                let network_id = endpoint["NetworkID"].as_str().unwrap_or("");
                name == wanted || (crate::text::is_id_prefix(wanted) && network_id.starts_with(wanted))
            })
        })
        && filters.any("expose", |range| port_in(range, &exposed))
        && filters.any("publish", |range| port_in(range, &published))
        && filters.boolean("is-task").ok().flatten().is_none_or(|wanted| wanted == container.spec.task.is_some())
}

/// A row of the list, with the bytes that the container takes.
pub(crate) async fn row_with_sizes(docker: &Docker, container: &Container) -> Value {
    let mut row = row(docker, created_ns(container), container);
    let (own, total) = inspect::sizes(docker, container).await;
    row["SizeRw"] = json!(own);
    row["SizeRootFs"] = json!(total);
    row
}

fn row(docker: &Docker, created: i64, container: &Container) -> Value {
    let spec = &container.spec;
    let echo = Echo::of(container);
    let host_config = inspect::host_config(docker, container, &echo);
    let networks: serde_json::Map<String, Value> = inspect::endpoints(docker, container);
    let labels: &BTreeMap<String, String> = &spec.labels;
    json!({
        "Id": container.name_any(),
        "Names": [format!("/{}", spec.name)],
        "Image": spec.image,
        "ImageID": spec.image_id,
        "Command": command_line(&spec.command),
        "Created": created.div_euclid(1_000_000_000),
        "Ports": list_ports(container),
        "Labels": labels,
        "State": state_word(container),
        "Status": status_line(container, time::now_ns()),
        "HostConfig": { "NetworkMode": host_config["NetworkMode"] },
        "NetworkSettings": { "Networks": networks },
        "Mounts": inspect::mounts(docker, container),
    })
}

/// The command as Docker prints it: words with blanks are quoted.
fn command_line(command: &[String]) -> String {
    let quoted = |word: &String| if word.contains(' ') { format!("'{word}'") } else { word.clone() };
    command.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// The STATUS column.
fn status_line(container: &Container, now_ns: i64) -> String {
    let status = container.status.clone().unwrap_or_default();
    let since = |at: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime>| {
        time::human_duration(now_ns - time::of_object_ns(at))
    };
    if container.metadata.deletion_timestamp.is_some() {
        return "Removal In Progress".into();
    }
    match status.state {
        State::Created => "Created".into(),
        State::Dead => "Dead".into(),
        State::Paused => format!("Up {} (Paused)", since(status.started_at.as_ref())),
        State::Restarting => format!("Restarting ({}) {} ago", status.exit_code, since(status.finished_at.as_ref())),
        State::Exited => format!("Exited ({}) {} ago", status.exit_code, since(status.finished_at.as_ref())),
        State::Running => {
            let up = since(status.started_at.as_ref());
            match status.health.as_str() {
                "" => format!("Up {up}"),
                "starting" => format!("Up {up} (health: starting)"),
                health => format!("Up {up} ({health})"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{ContainerSpec, ContainerStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    #[test]
    fn status_lines_read_as_dockers() {
        let at = |seconds| Some(MicroTime(jiff::Timestamp::from_second(seconds).unwrap()));
        let mut container = Container::new("x", ContainerSpec::default());
        let now = 1_000 * 1_000_000_000;
        assert_eq!(status_line(&container, now), "Created");
        let base = ContainerStatus { started_at: at(700), finished_at: at(940), exit_code: 3, ..Default::default() };
        container.status = Some(ContainerStatus { state: State::Running, ..base.clone() });
        assert_eq!(status_line(&container, now), "Up 5 minutes");
        container.status = Some(ContainerStatus { state: State::Running, health: "healthy".into(), ..base.clone() });
        assert_eq!(status_line(&container, now), "Up 5 minutes (healthy)");
        container.status = Some(ContainerStatus { state: State::Exited, ..base.clone() });
        assert_eq!(status_line(&container, now), "Exited (3) About a minute ago");
        container.status = Some(ContainerStatus { state: State::Paused, ..base });
        assert_eq!(status_line(&container, now), "Up 5 minutes (Paused)");
    }

    #[test]
    fn commands_with_blanks_are_quoted() {
        assert_eq!(command_line(&["sh".into(), "-c".into(), "echo hi".into()]), "sh -c 'echo hi'");
    }
}
