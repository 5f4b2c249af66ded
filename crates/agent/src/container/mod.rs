//! Docker containers (kind `Container`): one task per object, with a pure core.
//!
//! | module | owns |
//! |---|---|
//! | [`step`] | the life cycle, pure |
//! | [`driver`] | the task that carries out what the life cycle says: its runs, its networks, what it reports |
//! | [`start`] | one start, and the end of a run |
//! | [`spec`] | from the object to a launch, pure |
//! | `complete` | what the image says, for containers that were made without looking at it |
//! | `secrets` | files out of secrets and config maps |
//! | [`mounts`] | volumes, host paths, memory |
//! | `shared_memory` | the /dev/shm that a container offers to others |
//! | [`health`] | health checks |
//! | [`init`] | the process 1 of `--init` |
//! | [`handle`] | how the rest of the agent talks to a driver |
//! | `late` | work that may outlast its time |
//! | `told` | what a status that is not taken means |
//! | [`places`] | which driver a name has, and who follows it |

mod complete;
pub mod driver;
pub mod handle;
pub mod health;
pub mod init;
mod journal;
mod late;
mod links;
mod log_options;
pub mod mounts;
pub mod places;
mod publication;
mod secrets;
mod shared_memory;
pub mod spec;
pub mod start;
pub mod step;
mod template;
mod told;

pub use handle::Handle;

use std::collections::HashMap;
use std::sync::Arc;

use api::container::Container;
use api::names::DOCKER_NAMESPACE;
use kube::Api;
use kube::runtime::watcher;
use runtime::ContainerState;
use tokio::sync::oneshot;

use crate::context::{Context, Key, is_path_safe};
use crate::informer::{self, Change};

/// Runtime id of a container: the object's name (Docker's id) in Docker's namespace, made unique elsewhere.
pub fn runtime_id(object: &Container) -> Option<String> {
    let key = Key::of(object);
    id_of(&key.namespace, &key.name)
}

/// The same of one of this name.
pub fn id_of(namespace: &str, name: &str) -> Option<String> {
    let id = if namespace == DOCKER_NAMESPACE {
        name.to_owned()
    } else {
        hex::encode(<sha2::Sha256 as sha2::Digest>::digest(format!("container {namespace} {name}")))
    };
    is_path_safe(&id).then_some(id)
}

/// Follows `Container` objects bound to this machine until the agent is dropped. Sends the ids of all of them once the
/// first list is complete.
pub async fn run(
    context: Arc<Context>,
    mut found: HashMap<String, ContainerState>,
    listed: oneshot::Sender<Vec<String>>,
) {
    let api = Api::<Container>::all(context.client.clone());
    let mut listed = Some(listed);
    let known = || context.containers.lock().keys().cloned().collect();
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", context.node_name));
    informer::follow(api, config, known, |change| match change {
        Change::Here(object) => apply(&context, object, &mut found),
        Change::Gone(key, _) => places::vanish(&context.containers, &key),
        Change::Listed => {
            if let Some(listed) = listed.take() {
                let ids = context.containers.lock().values().map(|h| h.id.clone()).collect();
                let _ = listed.send(ids);
                found.clear();
            }
        }
    })
    .await;
}

/// Tells the driver of a container that something of it has changed on this machine.
pub fn look_again(context: &Context, id: &str) {
    context.containers.lock().values().filter(|handle| handle.id == id).for_each(|handle| handle.look_again());
}

fn apply(context: &Arc<Context>, object: Container, found: &mut HashMap<String, ContainerState>) {
    if object.spec.node_name.as_deref() != Some(context.node_name.as_str()) {
        return;
    }
    let Some(id) = runtime_id(&object) else {
        tracing::warn!(name = object.metadata.name, "this name cannot be a container's id");
        return;
    };
    let running = found.get(&id).is_some_and(driver::is_alive);
    if let Some(taken) = places::arrive(&context.containers, &id, Arc::new(object), running) {
        driver::spawn(context.clone(), taken, found.remove(&id));
    }
}
