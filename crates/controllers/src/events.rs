//! Events that tell a user what a controller did.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Resource, ResourceExt};

/// Longest message that an event keeps. Units: bytes. `Source:` Kubernetes API reference, Event.
const MESSAGE_BYTES: usize = 1024;

/// How an event names the object that it is about.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: object.namespace(),
        name: object.meta().name.clone(),
        uid: object.meta().uid.clone(),
        ..ObjectReference::default()
    }
}

/// Who speaks when the scheduler does.
pub const SCHEDULER: &str = "default-scheduler";
/// Who speaks when a controller does.
pub const CONTROLLER: &str = "controller-manager";

/// Publishes an event of the scheduler; a failure is logged and does no harm.
pub async fn publish(client: &Client, about: &ObjectReference, kind: &str, reason: &str, message: &str) {
    publish_from(client, about, kind, reason, message, SCHEDULER).await;
}

/// Publishes an event; a failure is logged and does no harm.
pub async fn publish_from(
    client: &Client,
    about: &ObjectReference,
    kind: &str,
    reason: &str,
    message: &str,
    component: &str,
) {
    let namespace = about.namespace.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into());
    let now = Time(jiff::Timestamp::now());
    let mut end = message.len().min(MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let event = Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}.", about.name.as_deref().unwrap_or("object"))),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: about.clone(),
        type_: Some(kind.into()),
        reason: Some(reason.into()),
        message: Some(message[..end].into()),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        source: Some(EventSource { component: Some(component.into()), host: None }),
        ..Event::default()
    };
    if let Err(error) =
        Api::<Event>::namespaced(client.clone(), &namespace).create(&PostParams::default(), &event).await
    {
        tracing::debug!(reason, error = crate::chain(&error), "cannot publish an event");
    }
}
