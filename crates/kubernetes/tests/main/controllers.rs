//! What operators are built of: kube-rs's controller, watchers with streamed lists, finalizers and server-side apply.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{Event as Finalizer, finalizer};
use kube::runtime::{WatchStreamExt, conditions, wait::await_condition, watcher};
use kube::{Api, CustomResource, CustomResourceExt, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::server::Server;

#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(group = "example.com", version = "v1", kind = "Orchard", namespaced, status = "OrchardStatus")]
struct OrchardSpec {
    trees: i32,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
struct OrchardStatus {
    planted: i32,
}

async fn define(client: &kube::Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let apply = PatchParams::apply("test").force();
    api.patch("orchards.example.com", &apply, &Patch::Apply(Orchard::crd())).await.unwrap();
    let established = await_condition(api, "orchards.example.com", conditions::is_crd_established());
    tokio::time::timeout(Duration::from_secs(30), established).await.unwrap().unwrap();
}

async fn plant(orchard: Arc<Orchard>, client: kube::Client) -> kube::Result<Action> {
    let name = orchard.name_any();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let apply = PatchParams::apply("orchardist").force();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"trees": orchard.spec.trees.to_string()}});
    maps.patch(&name, &apply, &Patch::Apply(&map)).await?;
    let orchards: Api<Orchard> = Api::namespaced(client, "default");
    let status = json!({"status": {"planted": orchard.spec.trees}});
    orchards.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(Action::await_change())
}

async fn reconcile(
    orchard: Arc<Orchard>,
    client: Arc<kube::Client>,
) -> Result<Action, kube::runtime::finalizer::Error<kube::Error>> {
    let orchards: Api<Orchard> = Api::namespaced((*client).clone(), "default");
    let client = (*client).clone();
    finalizer(&orchards, "example.com/fell", orchard, async |event| match event {
        Finalizer::Apply(orchard) => plant(orchard, client.clone()).await,
        Finalizer::Cleanup(orchard) => {
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
            maps.delete(&orchard.name_any(), &DeleteParams::default()).await?;
            Ok(Action::await_change())
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_reconciles_and_cleans_up() {
    let server = Server::start().await;
    let client = kubernetes::client(&server.router, apiserver::UserInfo::master("operator"));
    define(&client).await;
    let orchards: Api<Orchard> = Api::namespaced(client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let controller = Controller::new(orchards.clone(), watcher::Config::default().streaming_lists())
        .owns(maps.clone(), watcher::Config::default())
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_millis(200)), Arc::new(client));
    let running = tokio::spawn(controller.for_each(|_| std::future::ready(())));
    orchards.create(&PostParams::default(), &Orchard::new("apples", OrchardSpec { trees: 3 })).await.unwrap();
    let planted = await_condition(orchards.clone(), "apples", |orchard: Option<&Orchard>| {
        orchard.and_then(|orchard| orchard.status.as_ref()).is_some_and(|status| status.planted == 3)
    });
    tokio::time::timeout(Duration::from_secs(30), planted).await.unwrap().unwrap();
    assert_eq!(maps.get("apples").await.unwrap().data.unwrap()["trees"], "3");
    orchards.delete("apples", &DeleteParams::default()).await.unwrap();
    let gone = await_condition(maps, "apples", |map: Option<&ConfigMap>| map.is_none());
    tokio::time::timeout(Duration::from_secs(30), gone).await.unwrap().unwrap();
    running.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_see_each_change_once_by_list_and_by_stream() {
    let server = Server::start().await;
    let client = kubernetes::client(&server.router, apiserver::UserInfo::master("operator"));
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let make = |name: String| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"mine": "yes"}}})).unwrap()
    };
    for number in 0..10 {
        maps.create(&PostParams::default(), &make(format!("early-{number}"))).await.unwrap();
    }
    for config in [watcher::Config::default().page_size(3), watcher::Config::default().streaming_lists()] {
        let watching = watcher(maps.clone(), config.labels("mine=yes")).default_backoff().touched_objects();
        let mut seen = Box::pin(watching);
        let mut names = Vec::new();
        while names.len() < 10 {
            let found = tokio::time::timeout(Duration::from_secs(30), seen.try_next()).await.unwrap();
            names.push(found.unwrap().unwrap().name_any());
        }
        let late = format!("late-{}", uuid::Uuid::new_v4());
        maps.create(&PostParams::default(), &make(late.clone())).await.unwrap();
        let found = tokio::time::timeout(Duration::from_secs(30), seen.try_next()).await.unwrap().unwrap().unwrap();
        assert_eq!(found.name_any(), late);
        maps.delete(&late, &DeleteParams::default()).await.unwrap();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appliers_conflict_and_force() {
    let server = Server::start().await;
    let client = kubernetes::client(&server.router, apiserver::UserInfo::master("operator"));
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let map =
        |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": value}});
    maps.patch("a", &PatchParams::apply("one"), &Patch::Apply(map("1"))).await.unwrap();
    let refused = maps.patch("a", &PatchParams::apply("two"), &Patch::Apply(map("2"))).await.unwrap_err();
    let kube::Error::Api(status) = refused else { panic!("no status") };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let forced = maps.patch("a", &PatchParams::apply("two").force(), &Patch::Apply(map("2"))).await.unwrap();
    let managers: Vec<Option<String>> = forced.managed_fields().iter().map(|entry| entry.manager.clone()).collect();
    assert_eq!(managers, [Some("two".to_owned())]);
}
