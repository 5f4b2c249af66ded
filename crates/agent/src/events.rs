//! Events about workloads: written in the background, the same message again only raises a count.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;

/// Events waiting to be written; more are dropped, for they only inform.
const QUEUE: usize = 1_000;
/// Events remembered for counting. Source: client-go `maxLruCacheEntries`.
const REMEMBERED: usize = 4_096;
/// Events about one object at once. Source: client-go `defaultSpamBurst`.
const BURST: f64 = 25.0;
/// Time after which one more event about an object is allowed. Source: client-go `defaultSpamQPS`.
const REFILL: Duration = Duration::from_secs(300);

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

struct Entry {
    about: ObjectReference,
    kind: Kind,
    reason: &'static str,
    message: String,
}

/// Writes events.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Entry>,
}

impl Recorder {
    /// Starts the writer; it ends when the last recorder is dropped.
    pub fn start(client: Client, node_name: String) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        tokio::spawn(write(client, node_name, entries));
        Self { queue }
    }

    /// Says something about an object.
    pub fn record(&self, about: &ObjectReference, kind: Kind, reason: &'static str, message: impl Into<String>) {
        let entry = Entry { about: about.clone(), kind, reason, message: message.into() };
        if self.queue.try_send(entry).is_err() {
            tracing::debug!(reason, "event dropped: too many are waiting");
        }
    }
}

type Identity = (String, Option<String>, &'static str, String);

struct Seen {
    name: String,
    count: i32,
}

async fn write(client: Client, node_name: String, mut entries: mpsc::Receiver<Entry>) {
    let mut seen: HashMap<Identity, Seen> = HashMap::new();
    let mut budgets: HashMap<String, (f64, tokio::time::Instant)> = HashMap::new();
    let mut serial: u64 = 0;
    while let Some(entry) = entries.recv().await {
        let uid = entry.about.uid.clone().unwrap_or_default();
        if seen.len() >= REMEMBERED {
            seen.clear();
        }
        if budgets.len() >= REMEMBERED {
            budgets.clear();
        }
        let now = tokio::time::Instant::now();
        let (tokens, last) = budgets.entry(uid.clone()).or_insert((BURST, now));
        *tokens = (*tokens + now.duration_since(*last).as_secs_f64() / REFILL.as_secs_f64()).min(BURST);
        *last = now;
        if *tokens < 1.0 {
            continue;
        }
        *tokens -= 1.0;
        let namespace = entry.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let time = Timestamp::now();
        let identity = (uid, entry.about.field_path.clone(), entry.reason, entry.message.clone());
        if let Some(known) = seen.get_mut(&identity) {
            known.count += 1;
            let patch = Patch::Merge(serde_json::json!({ "count": known.count, "lastTimestamp": Time(time) }));
            if events.patch(&known.name, &PatchParams::default(), &patch).await.is_ok() {
                continue;
            }
            seen.remove(&identity);
        }
        serial += 1;
        let name = format!("{}.{:x}{serial:x}", entry.about.name.clone().unwrap_or_default(), time.as_nanosecond());
        let event = event(&entry, &name, &namespace, &node_name, time);
        match events.create(&PostParams::default(), &event).await {
            Ok(_) => drop(seen.insert(identity, Seen { name, count: 1 })),
            Err(error) => tracing::debug!(error = %crate::error::chain(&error), "event not written"),
        }
    }
}

fn event(entry: &Entry, name: &str, namespace: &str, node_name: &str, time: Timestamp) -> Event {
    Event {
        metadata: ObjectMeta { name: Some(name.into()), namespace: Some(namespace.into()), ..ObjectMeta::default() },
        involved_object: entry.about.clone(),
        type_: Some(if entry.kind == Kind::Normal { "Normal" } else { "Warning" }.to_owned()),
        reason: Some(entry.reason.to_owned()),
        message: Some(entry.message.chars().take(1_024).collect()),
        count: Some(1),
        first_timestamp: Some(Time(time)),
        last_timestamp: Some(Time(time)),
        event_time: None::<MicroTime>,
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(node_name.to_owned()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node_name.to_owned()),
        ..Event::default()
    }
}
