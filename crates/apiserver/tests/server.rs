//! The life of the server: restarts, audit, figures.

use apiserver::{ApiServer, Options, WriteOptions};
use serde_json::Value;

use crate::world::{config, kinds, path, world};

#[tokio::test]
async fn a_restart_brings_everything_back() {
    let world = world().await;
    let made = world.create("configmaps", config("a")).await.unwrap();
    let again = ApiServer::open(world.store.clone(), kinds(), Options::default()).await.unwrap();
    let found = again.get(&world.root, &path("configmaps").object("a"), &Default::default()).await.unwrap().to_value();
    assert_eq!(found, made);
    assert_eq!(again.token_keys(), world.api.token_keys());
    assert!(again.is_live());
}

#[tokio::test]
async fn two_servers_on_one_store_see_each_others_writes() {
    let world = world().await;
    let other = ApiServer::open(world.store.clone(), kinds(), Options::default()).await.unwrap();
    let made = other.create(&world.root, &path("configmaps"), config("a"), &WriteOptions::default()).await.unwrap();
    let options = apiserver::GetOptions { resource_version: Some(made.object.revision().to_string()) };
    assert_eq!(
        world.api.get(&world.root, &path("configmaps").object("a"), &options).await.unwrap().bytes,
        made.object.bytes
    );
}

#[tokio::test]
async fn changing_requests_and_refusals_are_in_the_audit_log() {
    let directory = std::env::temp_dir().join(format!("nuee-audit-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&directory).unwrap();
    let log = directory.join("audit.log");
    let world = world().await;
    let options = Options { audit_log: Some(log.clone()), ..Options::default() };
    let api = ApiServer::open(world.store.clone(), kinds(), options).await.unwrap();
    api.create(&world.root, &path("configmaps"), config("audited"), &WriteOptions::default()).await.unwrap();
    api.create(&crate::world::user("eve"), &path("configmaps"), config("b"), &WriteOptions::default())
        .await
        .unwrap_err();
    let find = |user: &str, code: u64| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.any(|line| {
            line["user"]["username"] == user
                && line["responseStatus"]["code"] == code
                && line["objectRef"]["resource"] == "configmaps"
        })
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), async {
        while !(find("admin", 200) && find("eve", 403)) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}

#[tokio::test]
async fn bad_options_are_named() {
    let store: store::SharedStore = store::MemoryStore::new();
    for cidr in ["10.0.0.0", "x/16", "10.0.0.0/40"] {
        let options = Options { service_cidr: cidr.into(), ..Options::default() };
        assert!(ApiServer::open(store.clone(), kinds(), options).await.is_err());
    }
}

#[tokio::test]
async fn events_hang_on_a_lease_and_other_objects_do_not() {
    let world = world().await;
    world.create("events", serde_json::json!({"metadata": {"name": "e"}})).await.unwrap();
    world.create("configmaps", config("c")).await.unwrap();
    let lease = |key: &'static str| {
        let store = world.store.clone();
        async move {
            let range = store::KeyRange::Key(bytes::Bytes::from(key));
            let found =
                store.range(store::RangeRequest { range, revision: None, limit: 1, keys_only: true }).await.unwrap();
            found.items[0].lease
        }
    };
    let event = lease("/registry/core/events/default/e").await;
    assert_ne!(event, 0);
    assert_eq!(lease("/registry/core/configmaps/default/c").await, 0);
    world.store.lease_revoke(event).await.unwrap();
    let options = apiserver::GetOptions { resource_version: Some(world.store.revision().await.unwrap().to_string()) };
    let gone = world.api.get(&world.root, &path("events").object("e"), &options).await.unwrap_err();
    assert_eq!(gone.code, 404);
}
