//! `Volume` objects: a directory each, made when it appears and removed with it. Those that are disks are `guest::disks`' business.

use std::sync::Arc;

use api::volume::{Volume, VolumeStatus};
use futures::StreamExt;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use serde_json::json;
use tokio::sync::oneshot;

use crate::container::mounts::{make_volume, volume_directory};
use crate::context::{Context, Key, is_path_safe};
use crate::error::{Error, Result, chain};
use crate::guest::disks::volumes;
use crate::informer;

/// Follows `Volume` objects until the agent is dropped.
/// Sends the uids of all once the first list is complete.
pub async fn run(context: Arc<Context>, listed: oneshot::Sender<Vec<String>>) {
    let mut listed = Some(listed);
    let mut uids = Vec::new();
    let (_, stream) = informer::reflect(Api::<Volume>::all(context.client.clone()), watcher::Config::default());
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        let (key, done) = match event {
            Event::Init => {
                uids.clear();
                continue;
            }
            Event::InitDone => {
                if let Some(listed) = listed.take() {
                    let _ = listed.send(uids.clone());
                }
                continue;
            }
            Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) if object.is_block() => {
                if listed.is_some() {
                    uids.extend(object.metadata.uid.clone());
                }
                volumes::look_after(&context, &object);
                continue;
            }
            Event::Apply(object) | Event::InitApply(object) => (Key::of(&object), ensure(&context, &object).await),
            Event::Delete(object) => (Key::of(&object), remove(&context, &object).await),
        };
        if let Err(error) = done {
            tracing::warn!(volume = key.name, error = %chain(&error), "cannot make the volume match its object");
        }
    }
}

fn is_ours(context: &Context, object: &Volume) -> bool {
    object.spec.node_name.as_ref().is_none_or(|n| *n == context.node_name)
}

async fn ensure(context: &Context, object: &Volume) -> Result<()> {
    if !is_ours(context, object) || object.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let key = Key::of(object);
    let path = make_volume(context, &key.namespace, &key.name)?;
    let status = VolumeStatus { path: path.display().to_string(), phase: "Ready".into(), ..VolumeStatus::default() };
    if object.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let objects: Api<Volume> = Api::namespaced(context.client.clone(), &key.namespace);
    let patch = Patch::Merge(json!({ "status": status }));
    objects
        .patch_status(&key.name, &PatchParams::default(), &patch)
        .await
        .map_err(Error::api("write the volume's status"))?;
    Ok(())
}

async fn remove(context: &Context, object: &Volume) -> Result<()> {
    let key = Key::of(object);
    let directory = volume_directory(&key.namespace, &key.name);
    if !is_ours(context, object) || !is_path_safe(&directory) {
        return Ok(());
    }
    let path = context.data_dir.join("volumes").join(directory);
    let removed = tokio::task::spawn_blocking({
        let path = path.clone();
        move || std::fs::remove_dir_all(path)
    });
    match removed.await {
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
