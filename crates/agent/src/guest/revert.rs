//! Takes the disks of a machine back to a snapshot: all of them or none, whenever this process is ended.
//!
//! ```text
//!   a new layer on each layer of the snapshot --> note --> the new layers become the disks --> told --> the note goes
//! ```
//! Until the note is written, nothing has happened; from then on it is finished by whoever comes first: the same start, the next one, the
//! next agent, or who gives one of the volumes back. No guest has the disks meanwhile.

use std::path::PathBuf;

use api::{Snapshot, VirtualMachine};
use hypervisor::disk::LayerStore;
use kube::Api;
use serde::{Deserialize, Serialize};

use super::disks::snapshots::check_layer;
use super::disks::{blocking, load};
use super::root;
use super::shared::write_durably;
use super::start::ROOT_DISK;
use crate::context::{Context, Key};
use crate::error::{Error, Result};

/// What is being done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The request.
    request: i64,
    /// The disks that go back.
    disks: Vec<Swap>,
}

/// One disk that goes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Swap {
    /// The owner of its layers.
    disk: String,
    /// The layer that it gets.
    new: String,
    /// Those that it had. The order of names does not tell them apart: they follow the machine's clock, which may be set back.
    old: Vec<String>,
}

/// Who owns the new layers until they are disks.
pub fn owner(uid: &str) -> String {
    format!("revert-{uid}")
}

fn record(context: &Context, uid: &str) -> PathBuf {
    context.guests.directory(uid).join("revert.json")
}

fn noted(context: &Context, uid: &str) -> Result<Option<Note>> {
    let path = record(context, uid);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(std::io::Error::from),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
    .map_err(Error::io("read", path))
}

/// Drops the note of what is done and told.
pub fn forget(context: &Context, uid: &str) -> Result<()> {
    crate::directories::remove_file(&record(context, uid))
}

/// Takes the disks back if that is asked for and was not done, and answers which request was acted on last. The caller has called [`finish`],
/// holds the locks of the disks, and tells of the answer before it calls [`forget`].
///
/// Errors: [`Error::NotYet`] when the snapshot is not ready; [`Error::Invalid`] when it is of other disks. Nothing has changed then.
pub async fn make(context: &Context, object: &VirtualMachine, uid: &str, observed: i64) -> Result<i64> {
    let request = object.spec.revert_request;
    if request <= observed {
        return Ok(observed);
    }
    let layers = context.guests.layers().await?;
    let wanted = wanted(context, object, uid).await?;
    let (store, temporary) = (layers.clone(), owner(uid));
    let disks = blocking(move || {
        // What an attempt left of which nobody was told.
        store.release(&temporary)?;
        let made = wanted.into_iter().map(|(disk, below)| {
            let old = store.owned_by(&disk);
            let bytes = old.last().map(|top| store.get(top)).transpose()?.map(|top| top.virtual_bytes);
            // A disk never shrinks.
            let bytes = store.get(&below)?.virtual_bytes.max(bytes.unwrap_or(0));
            let new = store.create(Some(&below), Some(bytes), &temporary)?;
            Ok(Swap { disk, new, old })
        });
        let made: hypervisor::Result<Vec<_>> = made.collect();
        if made.is_err() {
            store.release(&temporary)?;
        }
        made
    })
    .await?;
    let note = Note { request, disks };
    write_durably(&record(context, uid), &note)?;
    tracing::info!(uid, snapshot = object.spec.revert_snapshot, "the disks of a machine go back");
    blocking(move || switch(&layers, &note)).await?;
    Ok(request)
}

/// Finishes what was begun earlier, by this agent or the one before it. The caller holds no lock of the disks.
pub async fn finish(context: &Context, uid: &str) -> Result<()> {
    let Some(note) = noted(context, uid)? else { return Ok(()) };
    let owners = note.disks.iter().map(|swap| swap.disk.clone()).chain([uid.to_owned()]);
    let _locks = context.guests.lock_disks(owners.collect()).await;
    let layers = context.guests.layers().await?;
    let mut made = root::made(context, uid)?;
    made.revert = made.revert.max(note.request);
    blocking(move || switch(&layers, &note)).await?;
    root::note(context, uid, &made)?;
    forget(context, uid)
}

/// Makes the new layers the disks. Doing it again changes nothing, also when disks were frozen or given up since.
fn switch(layers: &LayerStore, note: &Note) -> hypervisor::Result<()> {
    for swap in &note.disks {
        let Ok(found) = layers.get(&swap.new) else { continue };
        // Now there are two tops, until the old ones are nobody's.
        if found.owner.as_deref().is_some_and(|owner| owner.starts_with("revert-")) {
            layers.set_owner(&swap.new, Some(&swap.disk))?;
        }
        for old in &swap.old {
            if layers.get(old).is_ok_and(|old| old.owner.as_deref() == Some(swap.disk.as_str())) {
                layers.set_owner(old, None)?;
            }
        }
    }
    Ok(())
}

/// Whether the disks could be taken back now.
///
/// Errors: as of [`make`].
pub async fn check(context: &Context, object: &VirtualMachine) -> Result<()> {
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    wanted(context, object, uid).await.map(drop)
}

/// Owners of the disks that go back, and the layers of the snapshot.
async fn wanted(context: &Context, object: &VirtualMachine, uid: &str) -> Result<Vec<(String, String)>> {
    let (key, name) = (Key::of(object), object.spec.revert_snapshot.as_str());
    let snapshots: Api<Snapshot> = Api::namespaced(context.client.clone(), &key.namespace);
    let found = snapshots.get_opt(name).await.map_err(Error::api("read the snapshot"))?;
    let found = found.ok_or_else(|| Error::Invalid(format!("snapshot {name} not found")))?;
    let volumes: Vec<(String, String)> =
        load(context, uid)?.into_iter().map(|plugged| (plugged.volume, plugged.uid)).collect();
    let disks = choose(&found, &key.name, &context.node_name, uid, &volumes)?;
    let layers = context.guests.layers().await?;
    disks.iter().try_for_each(|(_, layer)| check_layer(&layers, &found, layer))?;
    Ok(disks)
}

/// The same, pure. `volumes`: names and uids of those that the machine has.
fn choose(
    snapshot: &Snapshot,
    machine: &str,
    node: &str,
    uid: &str,
    volumes: &[(String, String)],
) -> Result<Vec<(String, String)>> {
    let name = snapshot.metadata.name.as_deref().unwrap_or_default();
    let (spec, status) = (&snapshot.spec, snapshot.status.clone().unwrap_or_default());
    if status.phase == "Failed" {
        return Err(Error::Invalid(format!("snapshot {name} could not be taken")));
    }
    if !status.ready_to_use {
        return Err(Error::NotYet(format!("snapshot {name} is not ready yet")));
    }
    if spec.node_name.as_deref() != Some(node) {
        let place = spec.node_name.as_ref().map_or("no machine".to_owned(), |holder| format!("machine {holder}"));
        return Err(Error::Invalid(format!("snapshot {name} is on {place}, virtual machine {machine} on {node}")));
    }
    if !spec.virtual_machine.is_empty() && spec.virtual_machine != machine {
        return Err(Error::Invalid(format!("snapshot {name} is of virtual machine {}", spec.virtual_machine)));
    }
    let is_root = |disk: &str| disk == ROOT_DISK && spec.volume.is_empty();
    let owner_of = |disk: &str| match is_root(disk) {
        true => Some(uid.to_owned()),
        false => volumes.iter().find(|(volume, _)| volume == disk).map(|(_, uid)| uid.clone()),
    };
    let disks = status.disks.iter().filter_map(|disk| Some((owner_of(&disk.name)?, disk.layer.clone())));
    let disks: Vec<(String, String)> = disks.collect();
    if disks.is_empty() {
        return Err(Error::Invalid(format!("snapshot {name} holds none of the disks of virtual machine {machine}")));
    }
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn snapshot(spec: Value, status: Value) -> Snapshot {
        serde_json::from_value(json!({"apiVersion": "nuee.dev/v1", "kind": "Snapshot", "metadata": {"name": "s"},
            "spec": spec, "status": status}))
        .unwrap()
    }

    #[test]
    fn only_what_the_machine_has_goes_back() {
        let disks =
            json!([{"name": "root", "layer": "l0"}, {"name": "data", "layer": "l1"}, {"name": "gone", "layer": "l2"}]);
        let ready = json!({"phase": "Ready", "readyToUse": true, "disks": disks});
        let all = json!({"virtualMachine": "web", "nodeName": "n1"});
        let volumes = [("data".to_owned(), "v1".to_owned()), ("other".to_owned(), "v2".to_owned())];
        let ask =
            |spec: &Value, status: &Value| choose(&snapshot(spec.clone(), status.clone()), "web", "n1", "u", &volumes);
        let pair = |owner: &str, layer: &str| (owner.to_owned(), layer.to_owned());
        assert_eq!(ask(&all, &ready).unwrap(), [pair("u", "l0"), pair("v1", "l1")]);
        for (spec, status, word) in [
            (json!({"virtualMachine": "db", "nodeName": "n1"}), ready.clone(), "is of virtual machine db"),
            (json!({"virtualMachine": "web", "nodeName": "n2"}), ready.clone(), "is on machine n2"),
            (json!({"virtualMachine": "web"}), ready.clone(), "is on no machine"),
            (all.clone(), json!({"phase": "Pending"}), "not ready yet"),
            (all.clone(), json!({"phase": "Failed"}), "could not be taken"),
            (all, json!({"phase": "Ready", "readyToUse": true}), "holds none"),
            // A volume that is called like the disk that every machine has.
            (
                json!({"volume": "root", "nodeName": "n1"}),
                json!({"phase": "Ready", "readyToUse": true, "disks": [{"name": "root", "layer": "l"}]}),
                "holds none",
            ),
        ] {
            let said = ask(&spec, &status).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
    }

    /// Ended after each of its writes and begun again, it comes to the same.
    #[test]
    fn disks_go_back_together_whenever_it_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        let kept: Vec<String> =
            ["u", "v1"].iter().map(|_| store.create(None, Some(1 << 20), "snapshot").unwrap()).collect();
        // Named as if the clock had been set back since the old ones were made.
        let new: Vec<String> = kept.iter().map(|below| store.create(Some(below), None, &owner("u")).unwrap()).collect();
        let tops: Vec<String> =
            kept.iter().zip(["u", "v1"]).map(|(below, disk)| store.create(Some(below), None, disk).unwrap()).collect();
        let swap = |(index, disk): (usize, &str)| Swap {
            disk: disk.to_owned(),
            new: new[index].clone(),
            old: vec![tops[index].clone()],
        };
        let note = Note { request: 1, disks: ["u", "v1"].into_iter().enumerate().map(swap).collect() };
        // Half of it was done.
        store.set_owner(&new[0], Some("u")).unwrap();
        for _ in 0..2 {
            switch(&store, &note).unwrap();
            assert_eq!([store.owned_by("u"), store.owned_by("v1")], [vec![new[0].clone()], vec![new[1].clone()]]);
        }
        assert!(tops.iter().all(|top| store.get(top).is_err()), "what was written since is gone");
        // Frozen since, with a new top: that stays.
        let top = store.create(Some(&new[1]), None, "v1").unwrap();
        store.set_owner(&new[1], Some("other-snapshot")).unwrap();
        switch(&store, &note).unwrap();
        assert_eq!(store.owned_by("v1"), [top]);
        assert_eq!(store.owned_by("other-snapshot"), [new[1].clone()]);
    }
}
