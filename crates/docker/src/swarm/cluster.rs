//! The swarm itself: init, inspect, update, leave. There is one where the `Secret` of its settings is.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::bootstrap_token;
use api::network::NetworkSpec;
use api::swarm::{HISTORY_LIMIT, HISTORY_MEMBER, MANAGED_LABEL, SETTINGS_NAME, SwarmService, id_of};
use http::{Method, StatusCode};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::token::JoinToken;
use super::{CLUSTER_PORT, UPDATED_ANNOTATION, check_version, networks, nodes, now_text, stamps, write_error};
use crate::cache::Cache;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::{body, text};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("SwarmInspect", Method::GET, "/swarm", "get", "swarm", run!(swarm_inspect)),
    Operation::new("SwarmInit", Method::POST, "/swarm/init", "create", "swarm", run!(swarm_init))
        .partial("autolock; settings of raft and of the dispatcher are kept, there is nothing that they could set"),
    Operation::new("SwarmJoin", Method::POST, "/swarm/join", "create", "swarm", run!(swarm_join))
        .partial("a machine joins by `nuee join`: the answer is the command to run"),
    Operation::new("SwarmLeave", Method::POST, "/swarm/leave", "delete", "swarm", run!(swarm_leave)),
    Operation::new("SwarmUpdate", Method::POST, "/swarm/update", "update", "swarm", run!(swarm_update))
        .partial("autolock, rotation of the authority"),
    Operation::new("SwarmUnlockkey", Method::GET, "/swarm/unlockkey", "get", "swarm", run!(swarm_unlock_key)),
    Operation::new("SwarmUnlock", Method::POST, "/swarm/unlock", "update", "swarm", run!(swarm_unlock)),
];

/// Members of the `Secret`.
const SETTINGS_MEMBER: &str = "settings";
/// Identifier of the workers' token. The token itself lets machines join, so it lies with its like and not beside the services'
/// secrets, which more people may read.
const WORKER_MEMBER: &str = "workerTokenId";
/// Member of the bootstrap token's `Secret` with the token as Docker's clients have it.
const TOKEN_MEMBER: &str = "swarm-token";
const MANAGER_MEMBER: &str = "managerToken";
/// Port of the API that machines join at, unless the pool's settings say another.
const API_PORT: u16 = 6443;
/// Shown where the user chose no pools: the machine takes subnets from a part of it first. `Source:` dockerd's default.
const ADDRESS_POOL: &str = "10.0.0.0/8";
/// Size of the subnets of overlay networks. Units: bits.
const SUBNET_SIZE: u32 = 24;
/// Port of the data path when none is given. `Source:` RFC 7348.
const DATA_PATH_PORT: u32 = 4789;
/// Name of the network of published ports.
const INGRESS: &str = "ingress";
/// Config map with the certificates of the authority, in every namespace.
const AUTHORITY: &str = "kube-root-ca.crt";

/// What a swarm was made with.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Settings {
    spec: Value,
    address_pools: Option<Vec<String>>,
    subnet_size: u32,
    data_path_port: u32,
}

/// A swarm.
pub(crate) struct Swarm {
    object: Secret,
    settings: Settings,
}

/// Body of init.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Init {
    default_addr_pool: Option<Vec<String>>,
    subnet_size: u32,
    data_path_port: u32,
    availability: String,
    spec: Option<Value>,
}

impl Docker {
    /// The swarm, if there is one. A tenant's endpoint is in none.
    pub(crate) fn swarm_if_any(&self) -> Option<Swarm> {
        let object = (*self.swarm.as_ref()?.get(SETTINGS_NAME)?).clone();
        let data = object.data.as_ref().and_then(|data| data.get(SETTINGS_MEMBER));
        let settings = data.and_then(|bytes| serde_json::from_slice(&bytes.0).ok()).unwrap_or_default();
        Some(Swarm { object, settings })
    }

    /// Whether there is one.
    pub(crate) fn in_swarm(&self) -> bool {
        self.swarm.as_ref().is_some_and(|swarm| swarm.get(SETTINGS_NAME).is_some())
    }

    /// Where the swarm's own object is written.
    ///
    /// Errors: [`Error::Unavailable`] on an endpoint that can be in none.
    fn swarm_object(&self) -> Result<&Cache<Secret>> {
        self.swarm.as_ref().ok_or_else(not_a_manager)
    }

    /// The swarm.
    ///
    /// Errors: [`Error::Unavailable`] in Docker's words when there is none.
    pub(crate) fn swarm(&self) -> Result<Swarm> {
        self.swarm_if_any().ok_or_else(not_a_manager)
    }

    pub(super) fn swarm_secrets(&self) -> Api<Secret> {
        Api::namespaced(self.state.client.clone(), &self.state.namespace)
    }

    /// Certificates of the authority that all machines trust.
    pub(super) async fn trust_root(&self) -> Result<String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.state.client.clone(), &self.state.namespace);
        let map = maps.get_opt(AUTHORITY).await?;
        Ok(map.and_then(|map| map.data?.remove("ca.crt")).unwrap_or_default())
    }
}

/// Docker's words on a machine that is in no swarm.
pub(crate) fn not_a_manager() -> Error {
    Error::Unavailable(
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to \
         swarm and try again."
            .into(),
    )
}

fn already() -> Error {
    Error::Unavailable(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
            .into(),
    )
}

impl Swarm {
    fn member(&self, name: &str) -> String {
        let bytes = self.object.data.as_ref().and_then(|data| data.get(name));
        bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
    }

    /// Subnets that overlay networks are taken from, when the user chose; and the size of each. Units: bits.
    pub(crate) fn address_pools(&self) -> (&[String], u32) {
        (self.settings.address_pools.as_deref().unwrap_or_default(), self.settings.subnet_size)
    }

    /// As `docker info` shows it, without the tokens.
    fn describe(&self, trust_root: &str) -> Value {
        let mut shown = stamps(&self.object);
        super::extend(
            &mut shown,
            json!({
                "ID": id_of(&self.object.uid().unwrap_or_default()),
                "Spec": self.settings.spec,
                "TLSInfo": { "TrustRoot": trust_root, "CertIssuerSubject": "", "CertIssuerPublicKey": "" },
                "RootRotationInProgress": false,
                "DefaultAddrPool": self.settings.address_pools.as_deref().unwrap_or(&[ADDRESS_POOL.to_owned()]),
                "SubnetSize": self.settings.subnet_size,
                "DataPathPort": self.settings.data_path_port,
            }),
        );
        shown
    }
}

/// The member `Swarm` of `docker info`.
pub(crate) async fn info(docker: &Docker) -> Result<Value> {
    let Some(swarm) = docker.swarm_if_any() else {
        return Ok(json!({
            "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "",
            "RemoteManagers": null,
        }));
    };
    let all = docker.nodes().await?;
    let managers: Vec<&Node> = all.iter().filter(|node| nodes::is_manager(node)).collect();
    let own = docker.own_node(&all);
    Ok(json!({
        "NodeID": own.map(nodes::id).unwrap_or_default(),
        "NodeAddr": own.map(nodes::address).unwrap_or_default(),
        "LocalNodeState": "active",
        "ControlAvailable": true,
        "Error": "",
        "RemoteManagers": managers.iter().map(|node| json!({
            "NodeID": nodes::id(node), "Addr": format!("{}:{CLUSTER_PORT}", nodes::address(node)),
        })).collect::<Vec<_>>(),
        "Nodes": all.len(),
        "Managers": managers.len(),
        "Cluster": swarm.describe(&docker.trust_root().await?),
    }))
}

async fn swarm_inspect(docker: Arc<Docker>, _call: Call) -> Reply {
    let swarm = docker.swarm()?;
    let mut shown = swarm.describe(&docker.trust_root().await?);
    let worker = worker_token(&docker, &swarm.member(WORKER_MEMBER)).await?;
    shown["JoinTokens"] = json!({ "Worker": worker, "Manager": swarm.member(MANAGER_MEMBER) });
    body::json(&shown)
}

/// Swarm's defaults under what the user says.
fn full_spec(given: Option<Value>) -> Value {
    let mut spec = json!({
        "Name": "default",
        "Labels": {},
        "Orchestration": { "TaskHistoryRetentionLimit": HISTORY_LIMIT },
        "Raft": { "SnapshotInterval": 10000, "KeepOldSnapshots": 0, "LogEntriesForSlowFollowers": 500, "ElectionTick": 10, "HeartbeatTick": 1 },
        "Dispatcher": { "HeartbeatPeriod": 5_000_000_000_i64 },
        "CAConfig": { "NodeCertExpiry": 7_776_000_000_000_000_i64 },
        "TaskDefaults": {},
        "EncryptionConfig": { "AutoLockManagers": false },
    });
    let Some(Value::Object(given)) = given else { return spec };
    for (name, value) in given.into_iter().filter(|(_, value)| !value.is_null()) {
        match (spec.get_mut(&name), value) {
            (Some(Value::Object(target)), Value::Object(members)) if name != "Labels" => {
                // Clients write 0 and "" for what they do not set.
                let is_set = |value: &Value| !value.is_null() && *value != json!(0) && *value != json!("");
                let history = name == "Orchestration";
                target.extend(members.into_iter().filter(|(_, value)| is_set(value) || (history && value.is_number())));
            }
            (_, Value::String(text)) if name == "Name" && text.is_empty() => {}
            (_, value) => spec[&name] = value,
        }
    }
    spec
}

/// Refuses settings that would have to mean something here and do not.
fn check_spec(spec: &Value) -> Result<()> {
    if spec.pointer("/EncryptionConfig/AutoLockManagers") == Some(&json!(true)) {
        return Err(Error::NotImplemented("autolock is not available: what is stored is not locked by a key".into()));
    }
    let authority = &spec["CAConfig"];
    let own = |name: &str| !matches!(authority.get(name), None | Some(Value::Null)) && authority[name] != json!("");
    if ["ExternalCAs", "SigningCACert", "SigningCAKey"]
        .into_iter()
        .any(|name| own(name) && authority[name] != json!([]))
    {
        return Err(Error::NotImplemented("another authority than Nuée's own is not available".into()));
    }
    let limit = spec.pointer("/Orchestration/TaskHistoryRetentionLimit").and_then(Value::as_i64).unwrap_or(0);
    if limit < 0 {
        return Err(super::invalid("task history retention limit must not be negative"));
    }
    Ok(())
}

async fn swarm_init(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Init = call.json().await?;
    if docker.swarm_if_any().is_some() {
        return Err(already());
    }
    let spec = full_spec(request.spec);
    check_spec(&spec)?;
    for pool in request.default_addr_pool.iter().flatten() {
        networks::check_pool(pool)?;
    }
    if request.data_path_port != 0 && !(1024..=49151).contains(&request.data_path_port) {
        return Err(super::invalid("data path port must be between 1024 and 49151 or 0 for the default"));
    }
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let settings = Settings {
        spec,
        address_pools: request.default_addr_pool.filter(|pools| !pools.is_empty()),
        subnet_size: or(request.subnet_size, SUBNET_SIZE),
        data_path_port: or(request.data_path_port, DATA_PATH_PORT),
    };
    let worker = new_token(&docker);
    let mut object = Secret {
        metadata: ObjectMeta {
            name: Some(SETTINGS_NAME.to_owned()),
            labels: Some(BTreeMap::from([(MANAGED_LABEL.to_owned(), "settings".to_owned())])),
            ..ObjectMeta::default()
        },
        type_: Some("nuee.dev/swarm".to_owned()),
        ..Secret::default()
    };
    put(&mut object, WORKER_MEMBER, worker.bootstrap().0);
    put(&mut object, MANAGER_MEMBER, &new_token(&docker).text());
    keep(&mut object, &settings);
    match docker.swarm_object()?.create(&object).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => return Err(already()),
        Err(error) => return Err(error.into()),
    }
    admit_by(&docker, &worker).await?;
    make_ingress(&docker).await?;
    let all = docker.nodes().await?;
    let own = docker.own_node(&all).ok_or_else(|| Error::Unavailable("this machine is not registered yet".into()))?;
    if !matches!(request.availability.as_str(), "" | "active") {
        nodes::set_availability(&docker, own, &request.availability).await?;
    }
    body::json(&json!(nodes::id(own)))
}

/// The network of tasks that have published ports and no network of their own.
async fn make_ingress(docker: &Docker) -> Result<()> {
    if docker.all_networks().iter().any(|network| network.spec.ingress) {
        return Ok(());
    }
    let id = id_of(&text::new_id());
    let spec = NetworkSpec {
        name: INGRESS.to_owned(),
        id: id.clone(),
        driver: "overlay".into(),
        subnet: networks::free_subnet(docker, &docker.swarm()?)?,
        ingress: true,
        ..NetworkSpec::default()
    };
    docker.networks.create(&networks::object(spec)).await?;
    Ok(())
}

fn put(object: &mut Secret, name: &str, value: &str) {
    object.data.get_or_insert_default().insert(name.to_owned(), ByteString(value.as_bytes().to_vec()));
}

fn keep(object: &mut Secret, settings: &Settings) {
    let history = settings.spec.pointer("/Orchestration/TaskHistoryRetentionLimit").and_then(Value::as_i64);
    put(object, HISTORY_MEMBER, &history.map_or_else(|| HISTORY_LIMIT.to_string(), |limit| limit.to_string()));
    put(object, SETTINGS_MEMBER, &serde_json::to_string(settings).unwrap_or_default());
    object.annotations_mut().insert(UPDATED_ANNOTATION.into(), now_text());
}

fn new_token(docker: &Docker) -> JoinToken {
    JoinToken::new(&docker.state.authority, &text::new_id())
}

fn bootstrap_tokens(docker: &Docker) -> Api<Secret> {
    Api::namespaced(docker.state.client.clone(), bootstrap_token::NAMESPACE)
}

/// Lets machines join by a token: it is one for `nuee join`, too.
async fn admit_by(docker: &Docker, token: &JoinToken) -> Result<()> {
    let (identifier, secret) = token.bootstrap();
    let mut object = bootstrap_token::join_token(identifier, secret, None, "lets a machine join; made by docker swarm");
    put(&mut object, TOKEN_MEMBER, &token.text());
    bootstrap_tokens(docker).create(&PostParams::default(), &object).await?;
    Ok(())
}

fn bootstrap_name(identifier: &str) -> String {
    format!("{}{identifier}", bootstrap_token::NAME_PREFIX)
}

/// The workers' token; empty when somebody took it back.
async fn worker_token(docker: &Docker, identifier: &str) -> Result<String> {
    let object = bootstrap_tokens(docker).get_opt(&bootstrap_name(identifier)).await?;
    let text = object.and_then(|object| object.data?.remove(TOKEN_MEMBER));
    Ok(text.map(|text| String::from_utf8_lossy(&text.0).into_owned()).unwrap_or_default())
}

/// Lets machines join by a token no more; those that did stay.
async fn refuse(docker: &Docker, identifier: &str) -> Result<()> {
    match bootstrap_tokens(docker).delete(&bootstrap_name(identifier), &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Body of join.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Join {
    remote_addrs: Option<Vec<String>>,
    join_token: String,
}

/// A machine with a Docker endpoint is a pool of its own: it cannot become a part of another while it runs. So the answer is
/// what to do.
async fn swarm_join(docker: Arc<Docker>, mut call: Call) -> Reply {
    let request: Join = call.json().await?;
    if docker.in_swarm() {
        return Err(already());
    }
    let remote = request.remote_addrs.iter().flatten().next().filter(|address| !address.is_empty());
    let remote = remote.ok_or_else(|| super::invalid("at least 1 remote address is required"))?;
    let token = JoinToken::parse(&request.join_token).ok_or_else(|| super::invalid("invalid join token"))?;
    let host = remote.strip_suffix(&format!(":{CLUSTER_PORT}")).unwrap_or(remote);
    let server = if host == remote && remote.contains(':') { remote.clone() } else { format!("{host}:{API_PORT}") };
    Err(Error::NotImplemented(format!(
        "this machine is a pool of its own. To make it a machine of that swarm, stop Nuée here (`nuee down`) and run, as root and \
         with an empty data directory: nuee join --token {} {server}",
        token.for_join()
    )))
}

async fn swarm_update(docker: Arc<Docker>, mut call: Call) -> Reply {
    let given: Value = call.json().await?;
    let mut swarm = docker.swarm()?;
    check_version(&call, &swarm.object)?;
    let spec = full_spec(Some(given));
    check_spec(&spec)?;
    let rotation = |spec: &Value| spec.pointer("/CAConfig/ForceRotate").and_then(Value::as_u64).unwrap_or(0);
    if rotation(&spec) > rotation(&swarm.settings.spec) {
        return Err(Error::NotImplemented("rotation of the authority is not available".into()));
    }
    if call.query.flag("rotateManagerUnlockKey") {
        return Err(Error::NotImplemented("autolock is not available".into()));
    }
    swarm.settings.spec = spec;
    let old = swarm.member(WORKER_MEMBER);
    let fresh = call.query.flag("rotateWorkerToken").then(|| new_token(&docker));
    if let Some(fresh) = &fresh {
        put(&mut swarm.object, WORKER_MEMBER, fresh.bootstrap().0);
    }
    if call.query.flag("rotateManagerToken") {
        put(&mut swarm.object, MANAGER_MEMBER, &new_token(&docker).text());
    }
    keep(&mut swarm.object, &swarm.settings);
    docker.swarm_object()?.replace(&swarm.object).await.map_err(write_error)?;
    if let Some(fresh) = &fresh {
        refuse(&docker, &old).await?;
        admit_by(&docker, fresh).await?;
    }
    Ok(body::empty(StatusCode::OK))
}

/// Ends everything of the swarm: services with their tasks, secrets, configs and overlay networks.
async fn swarm_leave(docker: Arc<Docker>, call: Call) -> Reply {
    let Some(swarm) = docker.swarm_if_any() else {
        return Err(Error::Unavailable("This node is not part of a swarm".into()));
    };
    if !call.query.flag("force") {
        return Err(Error::Unavailable(
            "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last \
             manager erases all current state of the swarm. Use `--force` to ignore this message."
                .into(),
        ));
    }
    let client = &docker.state.client;
    let services: Api<SwarmService> = Api::namespaced(client.clone(), &docker.state.namespace);
    for service in services.list(&ListParams::default()).await?.items {
        super::services::remove(&docker, &service).await?;
    }
    for network in docker.networks.all().into_iter().filter(|network| networks::is_overlay(network)) {
        networks::remove(&docker, &network).await?;
    }
    let own = ListParams::default().labels(&format!("{MANAGED_LABEL} in (secret,config,registry)"));
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &docker.state.namespace);
    maps.delete_collection(&DeleteParams::default(), &own).await?;
    docker.swarm_secrets().delete_collection(&DeleteParams::default(), &own).await?;
    for node in docker.nodes().await? {
        nodes::forget(&docker, &node).await?;
    }
    refuse(&docker, &swarm.member(WORKER_MEMBER)).await?;
    docker.swarm_object()?.delete(SETTINGS_NAME).await?;
    Ok(body::empty(StatusCode::OK))
}

async fn swarm_unlock_key(docker: Arc<Docker>, _call: Call) -> Reply {
    docker.swarm()?;
    body::json(&json!({ "UnlockKey": "" }))
}

async fn swarm_unlock(docker: Arc<Docker>, _call: Call) -> Reply {
    docker.swarm()?;
    Err(Error::Conflict("swarm is not locked".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_does_not_set_is_as_swarm_has_it() {
        let spec =
            full_spec(Some(json!({ "Raft": { "SnapshotInterval": 7, "ElectionTick": 0 }, "Labels": { "a": "b" },
            "Orchestration": { "TaskHistoryRetentionLimit": 0 } })));
        assert_eq!(spec["Raft"]["SnapshotInterval"], 7);
        assert_eq!(spec["Raft"]["ElectionTick"], 10);
        assert_eq!(spec["Orchestration"]["TaskHistoryRetentionLimit"], 0);
        assert_eq!((spec["Name"].as_str(), spec["Labels"]["a"].as_str()), (Some("default"), Some("b")));
    }

    #[test]
    fn what_is_not_acted_upon_is_refused() {
        let locked = full_spec(Some(json!({ "EncryptionConfig": { "AutoLockManagers": true } })));
        assert_eq!(check_spec(&locked).map_err(|error| error.status().as_u16()), Err(501));
        assert!(check_spec(&full_spec(None)).is_ok());
    }
}
