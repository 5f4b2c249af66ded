//! Rows of operations that we lack, or that have an honest empty answer: plugins. Each missing one answers
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

const PLUGINS: &str = "plugins are not built";

/// The answer of an operation that we lack.
pub(crate) fn refusal(info: &OperationInfo, reason: &str) -> Error {
    Error::NotImplemented(format!("{} is not available yet: {reason}", info.id))
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
