//! Volumes of virtual machines. An attached volume is where its machine is: when the machine was bound to another host, which has the
//! volume's content by then, this writes it into the volume too. When the machine is no more, it says so. See [`api::migration`].

use std::sync::Arc;

use api::migration::{Lead, lead};
use api::{VirtualMachine, Volume};
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::{Error, Result, drive, gone, watching};

/// Runs the controller.
pub async fn run(client: Client) {
    let controller = Controller::new(Api::<Volume>::all(client.clone()), watching());
    let volumes = controller.store();
    let controller = controller.watches(Api::<VirtualMachine>::all(client.clone()), watching(), move |machine| {
        attached_to(&volumes, &machine.namespace().unwrap_or_default(), &machine.name_any())
    });
    drive(controller, "volume", reconcile, Arc::new(client)).await;
}

/// The volumes that a machine of this name has.
fn attached_to(volumes: &Store<Volume>, namespace: &str, machine: &str) -> Vec<ObjectRef<Volume>> {
    let is_its = |one: &Arc<Volume>| {
        let attached = one.status.as_ref().and_then(|status| status.attached_to.as_ref());
        one.namespace().as_deref() == Some(namespace)
            && attached.is_some_and(|attached| attached.virtual_machine == machine)
    };
    volumes.state().into_iter().filter(is_its).map(|one| ObjectRef::from_obj(&*one)).collect()
}

/// What is to be written of a volume. Pure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Its machine is no more.
    Gone,
    /// It went with its machine: `status.movedTo`.
    Announce(String),
    /// It is on its machine's host: `spec.nodeName`.
    Follow(String),
}

/// Decides. `machine`: the one of the name to which the volume is attached. Pure.
#[must_use]
pub fn step(volume: &Volume, machine: Option<&VirtualMachine>) -> Step {
    let status = volume.status.clone().unwrap_or_default();
    let Some(attached) = status.attached_to else { return Step::Nothing };
    let Some(machine) = machine.filter(|machine| machine.metadata.uid.as_deref() == Some(attached.uid.as_str())) else {
        return if attached.gone { Step::Nothing } else { Step::Gone };
    };
    let host = machine.spec.node_name.as_deref();
    let to = host.unwrap_or_default().to_owned();
    match lead(volume.spec.node_name.as_deref(), status.moved_to.as_deref(), host) {
        Lead::Nothing => Step::Nothing,
        Lead::Announce => Step::Announce(to),
        Lead::Follow => Step::Follow(to),
    }
}

async fn reconcile(seen: Arc<Volume>, client: Arc<Client>) -> Result<Action> {
    if seen.status.as_ref().is_none_or(|status| status.attached_to.is_none()) {
        return Ok(Action::await_change());
    }
    let namespace = seen.namespace().ok_or(Error::Incomplete("namespace"))?;
    let volumes: Api<Volume> = Api::namespaced((*client).clone(), &namespace);
    if let Some(volume) = volumes.get_opt(&seen.name_any()).await? {
        settle(&client, &namespace, volume).await?;
    }
    Ok(Action::await_change())
}

/// Writes all that is to be written of a volume now.
async fn settle(client: &Client, namespace: &str, volume: Volume) -> Result<()> {
    let attached = volume.status.as_ref().and_then(|status| status.attached_to.as_ref());
    let Some(name) = attached.map(|attached| attached.virtual_machine.clone()) else { return Ok(()) };
    let machines: Api<VirtualMachine> = Api::namespaced(client.clone(), namespace);
    let machine = machines.get_opt(&name).await?;
    let mut volume = volume;
    loop {
        let (status, spec) = match step(&volume, machine.as_ref()) {
            Step::Nothing => return Ok(()),
            Step::Gone => (json!({"attachedTo": {"gone": true}}), Value::Null),
            Step::Announce(to) => (json!({"movedTo": to}), Value::Null),
            Step::Follow(to) => (Value::Null, json!({"nodeName": to})),
        };
        let volumes: Api<Volume> = Api::namespaced(client.clone(), namespace);
        // Had somebody else written meanwhile, what is true now is looked at anew.
        let metadata = json!({"uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version});
        let (name, parameters) = (volume.name_any(), PatchParams::default());
        let written = if spec.is_null() {
            let patch = Patch::Merge(json!({"metadata": metadata, "status": status}));
            volumes.patch_status(&name, &parameters, &patch).await
        } else {
            let patch = Patch::Merge(json!({"metadata": metadata, "spec": spec}));
            volumes.patch(&name, &parameters, &patch).await
        };
        volume = match written {
            Ok(volume) => volume,
            Err(error) => return gone::<()>(Err(error)),
        };
    }
}

/// Brings all volumes of a machine after it.
///
/// `Errors:` not all of them are there.
pub(crate) async fn follow_machine(client: &Client, machine: &VirtualMachine) -> Result<()> {
    let namespace = machine.namespace().ok_or(Error::Incomplete("namespace"))?;
    let volumes: Api<Volume> = Api::namespaced(client.clone(), &namespace);
    for volume in volumes.list(&ListParams::default()).await?.items {
        let attached = volume.status.as_ref().and_then(|status| status.attached_to.as_ref());
        if attached.is_some_and(|attached| Some(&attached.uid) == machine.metadata.uid.as_ref()) {
            settle(client, &namespace, volume).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attached_volume_comes_after_its_machine_and_no_other_moves() {
        let volume = |status: Value| -> Volume {
            serde_json::from_value(json!({"metadata": {"name": "data", "namespace": "default"},
                "spec": {"mode": "Block", "size": "1Gi", "nodeName": "n1"}, "status": status}))
            .unwrap()
        };
        let machine = |uid: &str, node: &str| -> VirtualMachine {
            serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "default", "uid": uid},
                "spec": {"image": "i", "nodeName": node}}))
            .unwrap()
        };
        let attached = json!({"phase": "Ready", "attachedTo": {"virtualMachine": "db", "uid": "u1"}});
        let announced = json!({"attachedTo": {"virtualMachine": "db", "uid": "u1"}, "movedTo": "n2"});
        let left = json!({"attachedTo": {"virtualMachine": "db", "uid": "u1", "gone": true}});
        assert_eq!(step(&volume(attached.clone()), Some(&machine("u1", "n1"))), Step::Nothing);
        assert_eq!(step(&volume(attached.clone()), Some(&machine("u1", "n2"))), Step::Announce("n2".into()));
        assert_eq!(step(&volume(announced.clone()), Some(&machine("u1", "n2"))), Step::Follow("n2".into()));
        // It went on before the first move was written down.
        assert_eq!(step(&volume(announced), Some(&machine("u1", "n3"))), Step::Announce("n3".into()));
        assert_eq!(step(&volume(json!({"phase": "Ready"})), Some(&machine("u1", "n2"))), Step::Nothing);
        // Another of the same name is not the one.
        assert_eq!(step(&volume(attached.clone()), Some(&machine("u2", "n2"))), Step::Gone);
        assert_eq!(step(&volume(attached), None), Step::Gone);
        assert_eq!(step(&volume(left), None), Step::Nothing);
    }
}
