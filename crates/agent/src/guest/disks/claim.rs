//! A volume is one machine's at a time: `status.attachedTo` of its object, written against the version that was read.

use api::Volume;
use api::migration::may_give_back;
use api::volume::VolumeAttachment;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::volume;
use crate::context::{Context, Key};
use crate::error::{Error, Result};

/// Attempts to write against the newest version, which others write too.
const ATTEMPTS: usize = 8;

/// Whether a machine may have a volume. Pure.
fn judge(volume: &Volume, node: &str, machine: &Key, uid: &str) -> Result<bool> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let status = volume.status.clone().unwrap_or_default();
    let not_yet = |why: String| Err(Error::NotYet(why));
    if let Some(other) = status.attached_to.as_ref().filter(|one| one.uid != uid) {
        return not_yet(format!("volume {name} is attached to virtual machine {}", other.virtual_machine));
    }
    if status.attached_to.is_some() {
        return Ok(false);
    }
    if !volume.is_block() {
        return not_yet(format!("volume {name} is a directory; a disk has spec.mode Block"));
    }
    if volume.metadata.deletion_timestamp.is_some() {
        return not_yet(format!("volume {name} is being deleted"));
    }
    if let Some(holder) = volume.spec.node_name.as_ref().filter(|holder| *holder != node) {
        return not_yet(format!("volume {name} is on machine {holder}, virtual machine {} on {node}", machine.name));
    }
    match status.phase.as_str() {
        "Ready" => Ok(true),
        "Failed" => not_yet(format!("volume {name} could not be made: {}", status.message)),
        _ => not_yet(format!("volume {name} is not ready yet")),
    }
}

/// Makes a volume a machine's own; it may be so already.
///
/// Errors: [`Error::NotYet`] says why it cannot be now.
pub async fn claim(context: &Context, name: &str, machine: &Key, uid: &str) -> Result<Volume> {
    let attached = VolumeAttachment { virtual_machine: machine.name.clone(), uid: uid.to_owned(), gone: false };
    for _ in 0..ATTEMPTS {
        let found = volume(context, &machine.namespace, name).await?;
        if !judge(&found, &context.node_name, machine, uid)? {
            return Ok(found);
        }
        if let Some(changed) = write(context, &found, json!({"attachedTo": attached})).await? {
            return Ok(changed);
        }
    }
    Err(Error::NotYet(format!("volume {name} is written by others all the time")))
}

/// Gives a volume back; it may be another's or gone already.
pub async fn release(context: &Context, namespace: &str, name: &str, uid: &str) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let found = match volume(context, namespace, name).await {
            Ok(found) => found,
            Err(Error::NotYet(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let attached = found.status.as_ref().and_then(|status| status.attached_to.as_ref());
        if attached.is_none_or(|attached| attached.uid != uid) {
            return Ok(());
        }
        if !may_give_back(found.spec.node_name.as_deref() == Some(context.node_name.as_str())) {
            return Err(Error::NotYet(format!("volume {name} has not come after its machine yet")));
        }
        if write(context, &found, json!({"attachedTo": null})).await?.is_some() {
            return Ok(());
        }
    }
    Err(Error::NotYet(format!("volume {name} is written by others all the time")))
}

/// Writes the status if it is still the version that was read.
async fn write(context: &Context, volume: &Volume, status: Value) -> Result<Option<Volume>> {
    let namespace = volume.metadata.namespace.as_deref().unwrap_or_default();
    let objects: Api<Volume> = Api::namespaced(context.client.clone(), namespace);
    let metadata = json!({"uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version});
    let patch = Patch::Merge(json!({"metadata": metadata, "status": status}));
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match objects.patch_status(name, &PatchParams::default(), &patch).await {
        Ok(changed) => Ok(Some(changed)),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
        Err(error) => Err(Error::api("write the volume's status")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_one_machines_at_a_time_and_on_its_host() {
        let key = Key { namespace: "default".into(), name: "web".into() };
        let volume = |spec: Value, status: Value| -> Volume {
            serde_json::from_value(json!({"apiVersion": "nuee.dev/v1", "kind": "Volume", "metadata": {"name": "data"},
                "spec": spec, "status": status}))
            .unwrap()
        };
        let block = json!({"mode": "Block", "size": "1Gi", "nodeName": "n1"});
        let ask = |spec: &Value, status: Value| judge(&volume(spec.clone(), status), "n1", &key, "u1");
        let refused = |spec: &Value, status: Value, word: &str| {
            let said = ask(spec, status).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        };
        let with = |uid: &str| json!({"phase": "Ready", "attachedTo": {"virtualMachine": "db", "uid": uid}});
        assert!(ask(&block, json!({"phase": "Ready"})).unwrap());
        assert!(!ask(&block, with("u1")).unwrap(), "it has it already");
        refused(&block, with("u2"), "attached to virtual machine db");
        refused(&block, json!({"phase": "Pending"}), "not ready yet");
        refused(&json!({"driver": "local"}), json!({"phase": "Ready"}), "is a directory");
        let elsewhere = json!({"mode": "Block", "size": "1Gi", "nodeName": "n2"});
        refused(&elsewhere, json!({"phase": "Ready"}), "is on machine n2");
    }
}
