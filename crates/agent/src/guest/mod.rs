//! Virtual machines (kinds `VirtualMachine` and `DiskImage`): one task per object, over crate `hypervisor`.
//!
//! | module | owns |
//! |---|---|
//! | [`shared`] | what all of them share: the hypervisor, layers, DHCP, who is known |
//! | [`driver`] | the task that carries out what the life cycle says |
//! | [`start`] | from the object to a running guest: disk, network, control group |
//! | [`status`] | what is told of a guest, pure |
//! | [`images`] | disk images |
//! | [`metadata`] | what guests are told about themselves |

pub mod driver;
pub mod images;
pub mod metadata;
pub mod shared;
pub mod start;
pub mod status;

pub use shared::Guests;

use std::sync::Arc;

use api::VirtualMachine;
use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher::{self, Event};
use tokio::sync::oneshot;

use crate::context::{Context, Key};
use crate::informer;

/// Follows `VirtualMachine` objects bound to this machine until the agent is dropped. Sends their uids once the first list
/// is complete.
pub async fn run(context: Arc<Context>, listed: oneshot::Sender<Vec<String>>) {
    let (_, stream) = informer::reflect(Api::<VirtualMachine>::all(context.client.clone()), watcher::Config::default());
    let mut stream = std::pin::pin!(stream);
    let mut listed = Some(listed);
    let mut listing: Vec<Key> = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Event::Init => listing.clear(),
            Event::InitApply(object) => {
                listing.push(Key::of(&object));
                apply(&context, object);
            }
            Event::Apply(object) => apply(&context, object),
            Event::Delete(object) => context.guests.set(&Key::of(&object), None),
            Event::InitDone => {
                for key in context.guests.keys().into_iter().filter(|key| !listing.contains(key)) {
                    context.guests.set(&key, None);
                }
                if let Some(listed) = listed.take() {
                    let _ = listed.send(context.guests.uids());
                }
            }
        }
    }
}

fn apply(context: &Arc<Context>, object: VirtualMachine) {
    if object.spec.node_name.as_deref() != Some(context.node_name.as_str()) {
        return;
    }
    let key = Key::of(&object);
    if context.guests.knows(&key, object.metadata.uid.as_deref().unwrap_or_default()) {
        context.guests.set(&key, Some(Arc::new(object)));
    } else {
        driver::spawn(context.clone(), key, Arc::new(object));
    }
}
