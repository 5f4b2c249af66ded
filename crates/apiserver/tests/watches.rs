//! Lists, pages and watches.

use apiserver::{DeleteOptions, EventKind, ListOptions, Reason, ResourceVersionMatch, WatchEvent, WriteOptions};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::world::{World, config, path, pod, world};

async fn fill(world: &World, count: usize) {
    for index in 0..count {
        let mut object = config(&format!("c{index:03}"));
        object["metadata"]["labels"] = json!({"parity": if index % 2 == 0 { "even" } else { "odd" }});
        world.create("configmaps", object).await.unwrap();
    }
}

fn summary(event: &WatchEvent) -> (EventKind, String) {
    let object: Value = serde_json::from_slice(&event.object).unwrap();
    (event.kind, object["metadata"]["name"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn selectors_and_pages_cut_lists() {
    let world = world().await;
    fill(&world, 10).await;
    let odd = ListOptions { label_selector: Some("parity=odd".into()), ..ListOptions::default() };
    assert_eq!(world.names("configmaps", odd).await.len(), 5);
    let one = ListOptions { field_selector: Some("metadata.name=c003".into()), ..ListOptions::default() };
    assert_eq!(world.names("configmaps", one).await, ["c003"]);
    let bad = ListOptions { field_selector: Some("spec.bogus=1".into()), ..ListOptions::default() };
    assert_eq!(world.api.list(&world.root, &path("configmaps"), &bad).await.unwrap_err().code, 400);
    let first = world
        .api
        .list(&world.root, &path("configmaps"), &ListOptions { limit: Some(4), ..ListOptions::default() })
        .await
        .unwrap();
    assert_eq!((first.items.len(), first.remaining), (4, Some(6)));
    // What changes between the pages does not show: the list is that of the first page's version.
    world.api.delete(&world.root, &path("configmaps").object("c005"), &DeleteOptions::default()).await.unwrap();
    world.create("configmaps", config("c0055")).await.unwrap();
    let mut names = Vec::new();
    let mut token = first.continue_token.clone();
    while let Some(next) = token {
        let options = ListOptions { limit: Some(4), continue_token: Some(next), ..ListOptions::default() };
        let page = world.api.list(&world.root, &path("configmaps"), &options).await.unwrap();
        assert_eq!(page.resource_version, first.resource_version);
        names.extend(page.items.iter().map(|item| item.name().to_owned()));
        token = page.continue_token;
    }
    assert_eq!(names, ["c004", "c005", "c006", "c007", "c008", "c009"]);
    let json: Value = serde_json::from_slice(&first.to_json("v1", "ConfigMapList")).unwrap();
    assert_eq!((&json["kind"], json["items"].as_array().unwrap().len()), (&json!("ConfigMapList"), 4));
}

#[tokio::test]
async fn old_pages_expire_with_a_token_to_go_on() {
    let world = world().await;
    fill(&world, 4).await;
    let first = world
        .api
        .list(&world.root, &path("configmaps"), &ListOptions { limit: Some(2), ..ListOptions::default() })
        .await
        .unwrap();
    world.create("configmaps", config("z")).await.unwrap();
    world.store.compact(world.store.revision().await.unwrap()).await.unwrap();
    let next = ListOptions { continue_token: first.continue_token, ..ListOptions::default() };
    let expired = world.api.list(&world.root, &path("configmaps"), &next).await.unwrap_err();
    assert_eq!((expired.code, expired.reason), (410, Reason::Expired));
    let rest =
        ListOptions { continue_token: Some(expired.details.causes[0].message.clone()), ..ListOptions::default() };
    assert_eq!(world.names("configmaps", rest).await, ["c002", "c003", "z"]);
    let forged = ListOptions { continue_token: Some("garbage".into()), ..ListOptions::default() };
    assert_eq!(world.api.list(&world.root, &path("configmaps"), &forged).await.unwrap_err().code, 400);
}

#[tokio::test]
async fn versions_are_exact_or_at_least_and_never_from_the_future() {
    let world = world().await;
    let first = world.create("configmaps", config("a")).await.unwrap();
    world.create("configmaps", config("b")).await.unwrap();
    let version = first["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let exact = ListOptions {
        resource_version: Some(version.clone()),
        resource_version_match: Some(ResourceVersionMatch::Exact),
        ..ListOptions::default()
    };
    assert_eq!(world.names("configmaps", exact).await, ["a"]);
    let at_least = ListOptions {
        resource_version: Some(version),
        resource_version_match: Some(ResourceVersionMatch::NotOlderThan),
        ..ListOptions::default()
    };
    assert_eq!(world.names("configmaps", at_least).await, ["a", "b"]);
    let future = ListOptions { resource_version: Some("999999".into()), ..ListOptions::default() };
    let late = world.api.list(&world.root, &path("configmaps"), &future).await.unwrap_err();
    assert_eq!((late.code, late.details.causes[0].reason.as_str()), (504, "ResourceVersionTooLarge"));
    let lonely = ListOptions { resource_version_match: Some(ResourceVersionMatch::Exact), ..ListOptions::default() };
    assert_eq!(world.api.list(&world.root, &path("configmaps"), &lonely).await.unwrap_err().code, 422);
}

#[tokio::test]
async fn a_watch_follows_what_its_selector_wants() {
    let world = world().await;
    let start = world.api.list(&world.root, &path("pods"), &ListOptions::default()).await.unwrap().resource_version;
    let options = ListOptions {
        field_selector: Some("spec.nodeName=n1".into()),
        resource_version: Some(start.to_string()),
        ..ListOptions::default()
    };
    let mut watch = world.api.watch(&world.root, &path("pods"), &options).await.unwrap();
    world.create("pods", pod("a")).await.unwrap();
    world.create("pods", pod("b")).await.unwrap();
    let bind = path("pods").object("b").sub("binding");
    world.api.create(&world.root, &bind, json!({"target": {"name": "n1"}}), &WriteOptions::default()).await.unwrap();
    let delete = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    world.api.delete(&world.root, &path("pods").object("b"), &delete).await.unwrap();
    assert_eq!(summary(&watch.next().await.unwrap()), (EventKind::Added, "b".into()));
    let gone = watch.next().await.unwrap();
    assert_eq!(summary(&gone), (EventKind::Deleted, "b".into()));
    let last: Value = serde_json::from_slice(&gone.object).unwrap();
    assert_eq!(last["metadata"]["resourceVersion"], world.api.revision().to_string());
}

#[tokio::test]
async fn initial_events_end_with_a_marked_bookmark() {
    let world = world().await;
    fill(&world, 2).await;
    let options = ListOptions {
        send_initial_events: Some(true),
        resource_version_match: Some(ResourceVersionMatch::NotOlderThan),
        allow_bookmarks: true,
        ..ListOptions::default()
    };
    let watch = world.api.watch(&world.root, &path("configmaps"), &options).await.unwrap();
    let events: Vec<WatchEvent> = watch.take(3).collect().await;
    assert_eq!(summary(&events[1]), (EventKind::Added, "c001".into()));
    let bookmark: Value = serde_json::from_slice(&events[2].object).unwrap();
    assert_eq!(events[2].kind, EventKind::Bookmark);
    assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let wrong = ListOptions { send_initial_events: Some(true), ..ListOptions::default() };
    assert_eq!(world.api.watch(&world.root, &path("configmaps"), &wrong).await.err().unwrap().code, 422);
}

#[tokio::test]
async fn a_watch_from_a_forgotten_version_is_expired() {
    let world = world().await;
    world.create("configmaps", config("a")).await.unwrap();
    let again = crate::world::kinds();
    let restarted =
        apiserver::ApiServer::open(world.store.clone(), again, apiserver::Options::default()).await.unwrap();
    let options = ListOptions { resource_version: Some("1".into()), ..ListOptions::default() };
    let expired = restarted.watch(&world.root, &path("configmaps"), &options).await.err().unwrap();
    assert_eq!((expired.code, expired.reason), (410, Reason::Expired));
}

#[tokio::test]
async fn a_thousand_watchers_share_one_frame_per_event() {
    let world = world().await;
    let options = ListOptions { resource_version: Some(world.api.revision().to_string()), ..ListOptions::default() };
    let mut watches = Vec::new();
    for _ in 0..1_000 {
        watches.push(world.api.watch(&world.root, &path("configmaps"), &options).await.unwrap());
    }
    world.create("configmaps", config("a")).await.unwrap();
    let mut frames = std::collections::HashSet::new();
    for watch in &mut watches {
        frames.insert(watch.next().await.unwrap().frame().as_ptr() as usize);
    }
    assert_eq!(frames.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_in_time_and_sends_bookmarks_meanwhile() {
    let world = world().await;
    let options = ListOptions { timeout_seconds: Some(100), allow_bookmarks: true, ..ListOptions::default() };
    let watch = world.api.watch(&world.root, &path("configmaps"), &options).await.unwrap();
    let events: Vec<WatchEvent> = watch.collect().await;
    assert!((3..=4).contains(&events.len()), "{}", events.len());
    assert!(events.iter().all(|event| event.kind == EventKind::Bookmark));
}
