//! Configs: list, create, inspect, remove, update. Each is a `ConfigMap` object.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::swarm::CONTENT_MEMBER;
use http::{Method, StatusCode};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::stored::{self, Request};
use super::{check_version, find, write_error};
use crate::body;
use crate::call::Call;
use crate::error::Result;
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ConfigList", Method::GET, "/configs", "list", "swarm", run!(config_list)),
    Operation::new("ConfigCreate", Method::POST, "/configs/create", "create", "swarm", run!(config_create))
        .partial("drivers, templates"),
    Operation::new("ConfigInspect", Method::GET, "/configs/{id}", "get", "swarm", run!(config_inspect)),
    Operation::new("ConfigDelete", Method::DELETE, "/configs/{id}", "delete", "swarm", run!(config_delete)),
    Operation::new("ConfigUpdate", Method::POST, "/configs/{id}/update", "update", "swarm", run!(config_update)),
];

/// Size that a config stays below. Units: bytes. `Source:` swarmkit, `MaxConfigSize`.
const CONFIG_BYTES_MAX: usize = 1000 << 10;

fn objects(docker: &Docker) -> Api<ConfigMap> {
    Api::namespaced(docker.state.client.clone(), &docker.state.namespace)
}

fn content(object: &ConfigMap) -> Vec<u8> {
    stored::content_of(object.data.as_ref(), object.binary_data.as_ref())
}

impl Docker {
    /// All configs of the swarm.
    pub(super) async fn configs(&self) -> Result<Vec<ConfigMap>> {
        Ok(objects(self).list(&stored::selection("config")).await?.items)
    }

    async fn config(&self, reference: &str) -> Result<ConfigMap> {
        find(self.configs().await?, "config", reference, stored::id, stored::name)
    }
}

async fn config_list(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm().await?;
    let mut all = docker.configs().await?;
    stored::select(&call.query, &mut all)?;
    body::json(&all.iter().map(|object| stored::describe(object, Some(&content(object)))).collect::<Vec<_>>())
}

async fn config_create(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Request = call.json().await?;
    docker.swarm().await?;
    let content = request.content("config", CONFIG_BYTES_MAX)?;
    let mut object = ConfigMap { immutable: Some(true), ..ConfigMap::default() };
    stored::mark(&mut object, "config", &request.name, &request.labels.unwrap_or_default());
    match String::from_utf8(content) {
        Ok(text) => object.data = Some(BTreeMap::from([(CONTENT_MEMBER.to_owned(), text)])),
        Err(error) => {
            object.binary_data = Some(BTreeMap::from([(CONTENT_MEMBER.to_owned(), ByteString(error.into_bytes()))]));
        }
    }
    let made = objects(&docker).create(&PostParams::default(), &object).await;
    let made = made.map_err(|error| stored::create_error(error, "config", &request.name))?;
    docker.events.swarm("config", "create", &stored::id(&made), &[("name", request.name)]);
    body::json_with(StatusCode::CREATED, &json!({ "ID": stored::id(&made) }))
}

async fn config_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm().await?;
    let object = &docker.config(call.parameter("id")).await?;
    body::json(&stored::describe(object, Some(&content(object))))
}

async fn config_delete(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm().await?;
    let object = docker.config(call.parameter("id")).await?;
    let name = stored::name(&object);
    stored::check_unused(&docker, "config", &object.name_any(), &name).await?;
    objects(&docker).delete(&object.name_any(), &DeleteParams::default()).await?;
    docker.events.swarm("config", "remove", &stored::id(&object), &[("name", name)]);
    Ok(body::empty(StatusCode::NO_CONTENT))
}

async fn config_update(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Request = call.json().await?;
    docker.swarm().await?;
    let mut object = docker.config(call.parameter("id")).await?;
    check_version(&call, &object)?;
    let name = stored::name(&object);
    request.check_update(&name, &content(&object))?;
    stored::relabel(&mut object, &request.labels.unwrap_or_default());
    let written = objects(&docker).replace(&object.name_any(), &PostParams::default(), &object).await;
    written.map_err(write_error)?;
    docker.events.swarm("config", "update", &stored::id(&object), &[("name", name)]);
    Ok(body::empty(StatusCode::OK))
}
