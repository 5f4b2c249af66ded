//! Secrets: list, create, inspect, remove, update. Each is a `Secret` object.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::swarm::CONTENT_MEMBER;
use http::{Method, StatusCode};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
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
    Operation::new("SecretList", Method::GET, "/secrets", "list", "swarm", run!(secret_list)),
    Operation::new("SecretCreate", Method::POST, "/secrets/create", "create", "swarm", run!(secret_create))
        .partial("drivers, templates"),
    Operation::new("SecretInspect", Method::GET, "/secrets/{id}", "get", "swarm", run!(secret_inspect)),
    Operation::new("SecretDelete", Method::DELETE, "/secrets/{id}", "delete", "swarm", run!(secret_delete)),
    Operation::new("SecretUpdate", Method::POST, "/secrets/{id}/update", "update", "swarm", run!(secret_update)),
];

/// Size that a secret stays below. Units: bytes. `Source:` swarmkit, `MaxSecretSize`.
const SECRET_BYTES_MAX: usize = 500 << 10;

fn objects(docker: &Docker) -> Api<Secret> {
    Api::namespaced(docker.state.client.clone(), &docker.state.namespace)
}

fn content(object: &Secret) -> Vec<u8> {
    stored::content_of(None, object.data.as_ref())
}

impl Docker {
    /// All secrets of the swarm.
    pub(super) async fn secrets(&self) -> Result<Vec<Secret>> {
        Ok(objects(self).list(&stored::selection("secret")).await?.items)
    }

    async fn secret(&self, reference: &str) -> Result<Secret> {
        find(self.secrets().await?, "secret", reference, stored::id, stored::name)
    }
}

async fn secret_list(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm().await?;
    let mut all = docker.secrets().await?;
    stored::select(&call.query, &mut all)?;
    body::json(&all.iter().map(|object| stored::describe(object, None)).collect::<Vec<_>>())
}

async fn secret_create(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Request = call.json().await?;
    docker.swarm().await?;
    let content = request.content("secret", SECRET_BYTES_MAX)?;
    let mut object = Secret { immutable: Some(true), ..Secret::default() };
    stored::mark(&mut object, "secret", &request.name, &request.labels.unwrap_or_default());
    object.data = Some(BTreeMap::from([(CONTENT_MEMBER.to_owned(), ByteString(content))]));
    object.type_ = Some("Opaque".to_owned());
    let made = objects(&docker).create(&PostParams::default(), &object).await;
    let made = made.map_err(|error| stored::create_error(error, "secret", &request.name))?;
    docker.events.swarm("secret", "create", &stored::id(&made), &[("name", request.name)]);
    body::json_with(StatusCode::CREATED, &json!({ "ID": stored::id(&made) }))
}

async fn secret_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm().await?;
    let object = &docker.secret(call.parameter("id")).await?;
    body::json(&stored::describe(object, None))
}

async fn secret_delete(docker: Arc<Docker>, call: Call) -> Reply {
    docker.swarm().await?;
    let object = docker.secret(call.parameter("id")).await?;
    let name = stored::name(&object);
    stored::check_unused(&docker, "secret", &object.name_any(), &name).await?;
    objects(&docker).delete(&object.name_any(), &DeleteParams::default()).await?;
    docker.events.swarm("secret", "remove", &stored::id(&object), &[("name", name)]);
    Ok(body::empty(StatusCode::NO_CONTENT))
}

async fn secret_update(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Request = call.json().await?;
    docker.swarm().await?;
    let mut object = docker.secret(call.parameter("id")).await?;
    check_version(&call, &object)?;
    let name = stored::name(&object);
    request.check_update(&name, &content(&object))?;
    stored::relabel(&mut object, &request.labels.unwrap_or_default());
    let written = objects(&docker).replace(&object.name_any(), &PostParams::default(), &object).await;
    written.map_err(write_error)?;
    docker.events.swarm("secret", "update", &stored::id(&object), &[("name", name)]);
    Ok(body::empty(StatusCode::OK))
}
