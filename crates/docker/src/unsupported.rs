//! Rows of operations that we lack, or that have an honest empty answer: swarm, plugins, BuildKit. Each missing one answers
//! 501 with its reason.

use std::sync::Arc;

use http::Method;
use serde_json::json;

use crate::body;
use crate::call::Call;
use crate::error::Error;
use crate::operation::{Operation, OperationInfo, Reply, run};
use crate::state::Docker;

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("PluginList", Method::GET, "/plugins", "list", "plugins", run!(plugin_list)),
    Operation::new("SwarmInspect", Method::GET, "/swarm", "get", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("SwarmInit", Method::POST, "/swarm/init", "create", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("SwarmJoin", Method::POST, "/swarm/join", "create", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("SwarmLeave", Method::POST, "/swarm/leave", "delete", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("SwarmUpdate", Method::POST, "/swarm/update", "update", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("SwarmUnlockkey", Method::GET, "/swarm/unlockkey", "get", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("SwarmUnlock", Method::POST, "/swarm/unlock", "update", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("NodeList", Method::GET, "/nodes", "list", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("NodeInspect", Method::GET, "/nodes/{id}", "get", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("NodeDelete", Method::DELETE, "/nodes/{id}", "delete", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("NodeUpdate", Method::POST, "/nodes/{id}/update", "update", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("ServiceList", Method::GET, "/services", "list", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("ServiceCreate", Method::POST, "/services/create", "create", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("ServiceInspect", Method::GET, "/services/{id}", "get", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("ServiceDelete", Method::DELETE, "/services/{id}", "delete", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("ServiceUpdate", Method::POST, "/services/{id}/update", "update", "swarm", run!(refuse))
        .missing(SWARM),
    Operation::new("ServiceLogs", Method::GET, "/services/{id}/logs", "get", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("TaskList", Method::GET, "/tasks", "list", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("TaskInspect", Method::GET, "/tasks/{id}", "get", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("TaskLogs", Method::GET, "/tasks/{id}/logs", "get", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("SecretList", Method::GET, "/secrets", "list", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("SecretCreate", Method::POST, "/secrets/create", "create", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("SecretInspect", Method::GET, "/secrets/{id}", "get", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("SecretDelete", Method::DELETE, "/secrets/{id}", "delete", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("SecretUpdate", Method::POST, "/secrets/{id}/update", "update", "swarm", run!(refuse))
        .missing(SWARM),
    Operation::new("ConfigList", Method::GET, "/configs", "list", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("ConfigCreate", Method::POST, "/configs/create", "create", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("ConfigInspect", Method::GET, "/configs/{id}", "get", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("ConfigDelete", Method::DELETE, "/configs/{id}", "delete", "swarm", run!(refuse)).missing(SWARM),
    Operation::new("ConfigUpdate", Method::POST, "/configs/{id}/update", "update", "swarm", run!(refuse))
        .missing(SWARM),
    Operation::new("GetPluginPrivileges", Method::GET, "/plugins/privileges", "get", "plugins", run!(refuse))
        .missing(PLUGINS),
    Operation::new("PluginPull", Method::POST, "/plugins/pull", "create", "plugins", run!(refuse)).missing(PLUGINS),
    Operation::new("PluginCreate", Method::POST, "/plugins/create", "create", "plugins", run!(refuse)).missing(PLUGINS),
    Operation::new("PluginInspect", Method::GET, "/plugins/{name...}/json", "get", "plugins", run!(plugin_inspect)),
    Operation::new("PluginEnable", Method::POST, "/plugins/{name...}/enable", "update", "plugins", run!(refuse))
        .missing(PLUGINS),
    Operation::new("PluginDisable", Method::POST, "/plugins/{name...}/disable", "update", "plugins", run!(refuse))
        .missing(PLUGINS),
    Operation::new("PluginUpgrade", Method::POST, "/plugins/{name...}/upgrade", "update", "plugins", run!(refuse))
        .missing(PLUGINS),
    Operation::new("PluginPush", Method::POST, "/plugins/{name...}/push", "get", "plugins", run!(refuse))
        .missing(PLUGINS),
    Operation::new("PluginSet", Method::POST, "/plugins/{name...}/set", "update", "plugins", run!(refuse))
        .missing(PLUGINS),
    Operation::new("PluginDelete", Method::DELETE, "/plugins/{name...}", "delete", "plugins", run!(refuse))
        .missing(PLUGINS),
];

const SWARM: &str = "swarm is not built";
const PLUGINS: &str = "plugins are not built";

/// The answer of an operation that we lack. A machine that is in no swarm says so as Docker does, which clients tell from
/// a defect; what would put it into one is not available.
pub(crate) fn refusal(info: &OperationInfo, reason: &str) -> Error {
    match (info.access.kind, info.id) {
        ("swarm", "SwarmLeave") => Error::Unavailable("This node is not part of a swarm".into()),
        ("swarm", id) if !matches!(id, "SwarmInit" | "SwarmJoin") => Error::Unavailable(
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node \
             to swarm and try again."
                .into(),
        ),
        (_, id) => Error::NotImplemented(format!("{id} is not available yet: {reason}")),
    }
}

/// There are no plugins.
async fn plugin_list(_docker: Arc<Docker>, _call: Call) -> Reply {
    body::json(&json!([]))
}

/// There are no plugins, so none has this name; `docker inspect` asks here last.
async fn plugin_inspect(_docker: Arc<Docker>, call: Call) -> Reply {
    Err(Error::NotFound(format!("plugin \"{}\" not found", call.parameter("name"))))
}

/// Never reached through the router, which answers missing operations itself.
async fn refuse(_docker: Arc<Docker>, _call: Call) -> Reply {
    Err(Error::NotImplemented("not available yet".into()))
}
