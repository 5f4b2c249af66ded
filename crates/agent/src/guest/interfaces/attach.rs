//! All interfaces of a machine: those that its guest starts with, those that it is found with, and what guards them.

use api::VirtualMachine;
use network::Attachment;

use super::join::{Joining, Place, join};
use super::record::{Nic, at_start, gone_at_start, in_order, live, load, owner, pair, save};
use super::serve::{check_keys, leave, serve};
use crate::context::{Context, Key};
use crate::error::{Error, Result};
use crate::{ports, security};

/// The record of a machine. One that was made before there were any had one interface, of which its status tells.
pub async fn recorded(context: &Context, object: &VirtualMachine, uid: &str) -> Result<Vec<Nic>> {
    match load(context, uid)? {
        Some(record) => Ok(record),
        None => Ok(of_status(object, context.fabric.list().await?.attachments.iter().find(|one| one.owner == uid))),
    }
}

/// The one interface that a machine without a record has. Pure.
fn of_status(object: &VirtualMachine, attachment: Option<&Attachment>) -> Vec<Nic> {
    let status = object.status.clone().unwrap_or_default();
    let Some(told) = status.addresses.into_iter().next() else { return Vec::new() };
    let place = told.ip.parse().ok().zip(told.mac.parse().ok());
    let groups = if told.port.is_empty() { object.spec.security_groups.clone() } else { Vec::new() };
    let (network, port, port_uid) = (told.network, told.port, attachment.and_then(|one| one.port.clone()));
    vec![Nic { slot: 0, network, port, port_uid, wished_mac: String::new(), place, groups }]
}

/// Puts a guest that is to start on the networks that its object names now, and gives up those that it does not.
///
/// Errors: [`Error::NotYet`] when a port is another's, or has no address; [`Error::Invalid`] when a key pair is missing at its first start.
pub async fn prepare(context: &Context, object: &VirtualMachine, uid: &str) -> Result<Vec<Place>> {
    let key = Key::of(object);
    let before = recorded(context, object, uid).await?;
    // One that let go of its only interface while it was off has a record all the same.
    if before.is_empty() && load(context, uid)?.is_none() {
        check_keys(context, object).await?;
    }
    let wishes = object.spec.interfaces();
    let record = at_start(&wishes, &before);
    // Before anything is taken: what others wait for is not held for nothing.
    for nic in record.iter().filter(|nic| !nic.port.is_empty()) {
        ports::held(context, &key, &nic.port, uid).await?;
    }
    for gone in gone_at_start(&wishes, &before) {
        leave(context, &owner(uid, gone.slot)).await?;
    }
    save(context, uid, &record)?;
    take(context, object, uid, record, Joining::Anew, None).await
}

/// Finds the places again of a guest that runs, sleeps or comes from another machine. `present` has the slots of those that it has, when it
/// can be asked.
pub async fn rejoin(
    context: &Context,
    object: &VirtualMachine,
    uid: &str,
    present: Option<&[u8]>,
) -> Result<Vec<Place>> {
    let mut record = recorded(context, object, uid).await?;
    let wishes = live(&object.spec, &record);
    for (wish, at) in wishes.iter().zip(pair(&wishes, &record)) {
        if let Some(nic) = at.map(|at| &mut record[at]).filter(|nic| nic.port.is_empty()) {
            nic.groups.clone_from(&wish.security_groups);
        }
    }
    take(context, object, uid, record, Joining::Again, present).await
}

/// Takes the places of the interfaces of a record, of those alone that are present if that is known; notes where they are, and answers
/// there.
async fn take(
    context: &Context,
    object: &VirtualMachine,
    uid: &str,
    mut record: Vec<Nic>,
    joining: Joining,
    present: Option<&[u8]>,
) -> Result<Vec<Place>> {
    let key = Key::of(object);
    let mut places = Vec::new();
    for nic in record.iter_mut().filter(|nic| present.is_none_or(|slots| slots.contains(&nic.slot))) {
        let place = join(context, &key, uid, nic.clone(), joining).await?;
        nic.clone_from(&place.nic);
        places.push(place);
    }
    save(context, uid, &record)?;
    serve(context, object, uid, &places).await?;
    Ok(places)
}

/// Forgets interfaces that a guest does not have which is to sleep: it must find there what it had, and nothing else.
pub async fn forget_absent(context: &Context, uid: &str, present: &[u8]) -> Result<()> {
    for gone in load(context, uid)?.unwrap_or_default().into_iter().filter(|nic| !present.contains(&nic.slot)) {
        forget(context, uid, gone.slot).await?;
    }
    Ok(())
}

/// Gives the place of an interface back that no guest has.
pub async fn forget(context: &Context, uid: &str, slot: u8) -> Result<()> {
    leave(context, &owner(uid, slot)).await?;
    let mut record = load(context, uid)?.unwrap_or_default();
    record.retain(|nic| nic.slot != slot);
    save(context, uid, &record)
}

/// Has the record, and the places, in the order of what is wished.
pub fn sort(context: &Context, object: &VirtualMachine, uid: &str, places: &mut [Place]) -> Result<()> {
    let record = load(context, uid)?.unwrap_or_default();
    let sorted = in_order(&live(&object.spec, &record), &record);
    if sorted != record {
        save(context, uid, &sorted)?;
    }
    places.sort_by_key(|place| sorted.iter().position(|nic| nic.slot == place.nic.slot));
    Ok(())
}

/// Puts the machine's interfaces under the security groups that its object, or their ports, name now.
///
/// Errors: the first, of whichever interface; the others are guarded all the same.
pub async fn guard(context: &Context, object: &VirtualMachine, uid: &str, places: &mut [Place]) -> Result<()> {
    let key = Key::of(object);
    let record: Vec<Nic> = places.iter().map(|place| place.nic.clone()).collect();
    let wishes = live(&object.spec, &record);
    let paired = pair(&wishes, &record);
    let mut failed = None;
    for (at, place) in places.iter_mut().enumerate() {
        let wish = paired.iter().position(|found| *found == Some(at)).map(|wish| &wishes[wish]);
        let guarded = async {
            let names = match (place.nic.port_uid.is_some(), wish) {
                (true, _) => of_port(context, &key, uid, &place.nic).await?,
                (false, Some(wish)) => wish.security_groups.clone(),
                // It is on its way out.
                (false, None) => return Ok(()),
            };
            let ids = security::ids(&key.namespace, &names);
            context.fabric.guard(&owner(uid, place.nic.slot), ids.clone()).await?;
            place.attachment.groups = ids;
            if place.nic.groups != names {
                place.nic.groups.clone_from(&names);
                note(context, uid, &place.nic)?;
            }
            security::check(context, &key.namespace, &names).await
        };
        let guarded: Result<()> = guarded.await;
        failed = failed.or(guarded.err());
    }
    failed.map_or(Ok(()), Err)
}

async fn of_port(context: &Context, key: &Key, uid: &str, nic: &Nic) -> Result<Vec<String>> {
    let held = ports::held(context, key, &nic.port, uid).await?;
    if nic.port_uid.as_ref() != Some(&held.uid) {
        let text = format!("port {} is another than the one that the machine is on", nic.port);
        return Err(Error::Invalid(text));
    }
    Ok(held.groups)
}

/// Writes what is known of an interface into the record.
pub fn note(context: &Context, uid: &str, nic: &Nic) -> Result<()> {
    let mut record = load(context, uid)?.unwrap_or_default();
    match record.iter_mut().find(|one| one.slot == nic.slot) {
        Some(known) => known.clone_from(nic),
        None => record.push(nic.clone()),
    }
    save(context, uid, &record)
}
