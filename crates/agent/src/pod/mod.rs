//! Pods: one task per pod, with pure decisions.
//!
//! | module | owns |
//! |---|---|
//! | [`decide`] | what to start and stop next, the phase; pure |
//! | [`model`], [`status`] | what is known of containers, and the status it makes; pure |
//! | [`driver`] | the task that carries it out |
//! | [`ending`] | graceful termination |
//! | [`writer`] | status writes: few, and in order |
//! | [`sandbox`], [`pause`], [`volumes`], [`environment`] | what containers share and see |
//! | [`start`], [`pull`] | one start of one container |
//! | [`probe`] | probes and hooks |
//! | [`admit`], [`storage`] | pods that must not run here, or must not go on |

pub mod admit;
pub mod decide;
pub mod driver;
pub mod ending;
pub mod environment;
pub mod model;
pub mod pause;
pub mod probe;
mod probe_tls;
pub mod pull;
pub mod sandbox;
pub mod start;
pub mod status;
pub mod storage;
pub mod volumes;
pub mod writer;

pub use driver::Handle;

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher;
use runtime::ContainerState;
use tokio::sync::oneshot;

use crate::context::{Context, Key, is_path_safe};
use crate::garbage::PodsListed;
use crate::informer::{self, Change};

/// Follows the pods bound to this machine until the agent is dropped. Tells what they own once the first list is complete.
pub async fn run(context: Arc<Context>, found: HashMap<String, ContainerState>, listed: oneshot::Sender<PodsListed>) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", context.node_name));
    let api = Api::<Pod>::all(context.client.clone());
    let mut listed = Some(listed);
    let known = || context.pods.lock().keys().cloned().collect();
    informer::follow(api, config, known, |change| match change {
        Change::Here(pod) => apply(&context, pod, &found),
        Change::Gone(key, uid) => vanish(&context, &key, uid.as_deref()),
        Change::Listed => {
            if let Some(listed) = listed.take() {
                let pods = context.pods.lock();
                let containers = pods.values().flat_map(|h| h.owned()).collect();
                let _ = listed.send(PodsListed { containers, uids: pods.values().map(|h| h.uid.clone()).collect() });
            }
        }
    })
    .await;
}

fn apply(context: &Arc<Context>, pod: Pod, found: &HashMap<String, ContainerState>) {
    let (key, uid) = (Key::of(&pod), pod.metadata.uid.clone().unwrap_or_default());
    let bound = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    if bound != Some(context.node_name.as_str()) || !is_path_safe(&uid) {
        return;
    }
    let known = context.pods.lock().get(&key).cloned();
    match known {
        Some(handle) if handle.uid == uid => handle.set_pod(Some(Arc::new(pod))),
        before => {
            // A pod of the same name that came after the old one was deleted by force.
            if let Some(before) = before {
                before.set_pod(None);
            }
            driver::spawn(context.clone(), key, uid, Arc::new(pod), found);
        }
    }
}

fn vanish(context: &Arc<Context>, key: &Key, uid: Option<&str>) {
    let handle = context.pods.lock().get(key).cloned();
    if let Some(handle) = handle.filter(|h| uid.is_none_or(|uid| uid == h.uid)) {
        handle.set_pod(None);
    }
}
