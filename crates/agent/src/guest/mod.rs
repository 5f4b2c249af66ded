//! Virtual machines (kinds `VirtualMachine` and `DiskImage`): one task per object, over crate `hypervisor`.
//!
//! | module | owns |
//! |---|---|
//! | [`shared`] | what all of them share: the hypervisor, layers, DHCP, who is known |
//! | [`driver`] | the task that carries out what the life cycle says |
//! | [`start`] | from the object to a running guest: size, disks, control group |
//! | [`interfaces`] | its network interfaces |
//! | [`root`] | the disk that a machine boots from |
//! | [`firmware`] | UEFI, and what it remembers of a machine |
//! | [`config_drive`] | a small disk with what guests are told about themselves |
//! | [`revert`] | disks that go back to a snapshot |
//! | [`console`] | what a guest says on its serial line, and is told there |
//! | [`status`] | what is told of a guest, pure |
//! | [`images`] | disk images |
//! | [`image_fetch`] | disk images that come from a URL |
//! | [`image_copies`] | disk images that another machine has |
//! | [`disks`] | volumes, snapshots, copies of disks |
//! | [`moving`] | guests that move between machines |
//! | [`metadata`] | what guests are told about themselves |
//! | [`vsock`] | the ids by which programs on this machine reach guests without a network |

pub mod config_drive;
pub mod console;
pub mod disks;
pub mod driver;
pub mod firmware;
pub mod image_copies;
pub mod image_fetch;
pub mod images;
pub mod interfaces;
pub mod metadata;
pub mod moving;
pub mod revert;
pub mod root;
pub mod shared;
pub mod start;
pub mod status;
pub mod vsock;

pub use shared::Guests;

use std::sync::Arc;

use api::VirtualMachine;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::oneshot;

use crate::context::{Context, Key};
use crate::informer::{self, Change};

/// Follows `VirtualMachine` objects bound to this machine until the agent is dropped. Sends their uids once the first list
/// is complete.
pub async fn run(context: Arc<Context>, listed: oneshot::Sender<Vec<String>>) {
    let api = Api::<VirtualMachine>::all(context.client.clone());
    let mut listed = Some(listed);
    let known = || context.guests.keys();
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", context.node_name));
    informer::follow(api, config, known, |change| match change {
        Change::Here(object) => apply(&context, object),
        Change::Gone(key, _) => context.guests.set(&key, None),
        Change::Listed => {
            if let Some(listed) = listed.take() {
                let _ = listed.send(context.guests.uids());
            }
        }
    })
    .await;
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
