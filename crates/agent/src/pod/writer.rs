//! Writes a pod's status: one write at a time, the newest wins, and what nobody waits for waits a moment for more.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::status::urgent_part;
use crate::context::{Context, Key};
use crate::error::{chain, is_not_found};
use crate::patch;

/// How long a change that nobody waits for may be held back.
const PATIENCE: Duration = Duration::from_millis(200);
/// Pause before a refused write is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Writes until the sender is dropped; the last status is always written.
pub async fn run(
    context: Arc<Context>,
    key: Key,
    uid: String,
    before: Option<PodStatus>,
    mut newest: watch::Receiver<Option<Arc<PodStatus>>>,
) {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    let mut written = serde_json::to_value(before.clone().unwrap_or_default()).unwrap_or_default();
    let mut urgent = urgent_part(&before.unwrap_or_default());
    while newest.changed().await.is_ok() {
        loop {
            let Some(status) = newest.borrow_and_update().clone() else { break };
            let part = urgent_part(&status);
            if part == urgent && tokio::time::timeout(PATIENCE, newest.changed()).await.is_ok_and(|c| c.is_ok()) {
                continue;
            }
            let value = serde_json::to_value(&*status).unwrap_or_default();
            match write(&pods, &key, &uid, &written, &value).await {
                Ok(()) => {
                    (written, urgent) = (value, part);
                    break;
                }
                Err(error) if is_not_found(&error) => return,
                Err(kube::Error::Api(status)) if status.code == 409 => return,
                Err(error) => {
                    tracing::warn!(pod = key.name, error = %chain(&error), "cannot write the pod's status; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

async fn write(pods: &Api<Pod>, key: &Key, uid: &str, old: &Value, new: &Value) -> kube::Result<()> {
    let Some(change) = patch::difference(old, new) else { return Ok(()) };
    // The uid makes a pod of the same name that came later refuse.
    let patch = Patch::Merge(json!({"metadata": {"uid": uid}, "status": change}));
    pods.patch_status(&key.name, &PatchParams::default(), &patch).await.map(drop)
}
