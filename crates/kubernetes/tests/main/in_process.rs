//! The in-process `kube::Client`: identity by extension, watches without a socket.

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{PostParams, WatchEvent, WatchParams};

use crate::server::Server;

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "data": {"a": "b"}})).unwrap()
}

#[tokio::test]
async fn a_client_creates_and_watches_as_its_user() {
    let server = Server::start().await;
    let client = kubernetes::client(&server.router, apiserver::UserInfo::master("test"));
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let mut events = Box::pin(api.watch(&WatchParams::default().timeout(10), "0").await.unwrap());
    api.create(&PostParams::default(), &config_map("x")).await.unwrap();
    loop {
        if let WatchEvent::Added(found) = events.try_next().await.unwrap().unwrap()
            && found.metadata.name.as_deref() == Some("x")
        {
            return;
        }
    }
}

#[tokio::test]
async fn a_user_without_rights_is_refused() {
    let server = Server::start().await;
    let client = kubernetes::client(&server.router, apiserver::UserInfo::new("mallory", &[]));
    let error = Api::<ConfigMap>::namespaced(client, "default").create(&PostParams::default(), &config_map("x")).await;
    let kube::Error::Api(status) = error.unwrap_err() else { panic!("no status") };
    assert_eq!(status.code, 403);
    assert!(status.message.contains("User \"mallory\" cannot create resource \"configmaps\""), "{}", status.message);
}
