//! Which volumes a machine has. The record lies beside the guest's other files: it says where each disk is on the guest's bus, so that
//! a suspended guest finds them there again, and what has to be given back when a machine goes.

use std::ops::RangeInclusive;

use api::virtual_machine::MachineDisk;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::guest::shared::write_durably;

/// Places for volumes on a guest's bus, above all other devices but vsock, which has the last one.
pub const SLOTS: RangeInclusive<u8> = 16..=30;

/// A volume that a machine has, or is about to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugged {
    /// The volume's name.
    pub volume: String,
    /// Its uid.
    pub uid: String,
    /// Its place on the bus.
    pub slot: u8,
    /// The guest may not write to it.
    pub read_only: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take it out and give it back.
    Unplug(Plugged),
    /// Claim this volume and put it in.
    Plug {
        /// The volume's name.
        volume: String,
        /// The guest may not write to it.
        read_only: bool,
        /// Its place on the bus.
        slot: u8,
    },
}

/// The way from what is recorded to what is wanted; those that `present` does not name are recorded, but not in the guest. Pure.
pub fn plan(wanted: &[MachineDisk], recorded: &[Plugged], present: impl Fn(&Plugged) -> bool) -> Vec<Step> {
    let fits = |one: &Plugged, wish: &MachineDisk| one.volume == wish.volume && one.read_only == wish.read_only;
    let (stay, go): (Vec<&Plugged>, Vec<&Plugged>) =
        recorded.iter().partition(|one| wanted.iter().any(|wish| fits(one, wish)));
    let mut taken: Vec<u8> = recorded.iter().map(|one| one.slot).collect();
    let mut steps: Vec<Step> = go.into_iter().cloned().map(Step::Unplug).collect();
    for wish in wanted {
        let there = stay.iter().find(|one| fits(one, wish));
        let slot = match there {
            Some(one) if present(one) => continue,
            Some(one) => Some(one.slot),
            None => SLOTS.clone().find(|slot| !taken.contains(slot)),
        };
        // More than the bus has places for are refused when they are asked for.
        let Some(slot) = slot else { continue };
        taken.push(slot);
        steps.push(Step::Plug { volume: wish.volume.clone(), read_only: wish.read_only, slot });
    }
    steps
}

fn file(context: &Context, uid: &str) -> std::path::PathBuf {
    context.guests.directory(uid).join("disks.json")
}

/// Reads the record of a machine.
pub fn load(context: &Context, uid: &str) -> Result<Vec<Plugged>> {
    let path = file(context, uid);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(std::io::Error::from).map_err(Error::io("decode", path)),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Whether a guest here has a volume: one that runs, is on its way here, or is not cleared away yet.
pub fn is_recorded(context: &Context, volume_uid: &str) -> Result<bool> {
    let guests = context.data_dir.join("guests");
    for entry in std::fs::read_dir(&guests).into_iter().flatten() {
        let name = entry.map_err(Error::io("list", &guests))?.file_name().into_string();
        if let Ok(uid) = name
            && load(context, &uid)?.iter().any(|one| one.uid == volume_uid)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes it, durable when this returns.
pub fn save(context: &Context, uid: &str, record: &[Plugged]) -> Result<()> {
    write_durably(&file(context, uid), &record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(volume: &str) -> MachineDisk {
        MachineDisk { volume: volume.into(), read_only: false }
    }

    fn plugged(volume: &str, slot: u8) -> Plugged {
        Plugged { volume: volume.into(), uid: format!("uid-{volume}"), slot, read_only: false }
    }

    fn plug(volume: &str, slot: u8) -> Step {
        Step::Plug { volume: volume.into(), read_only: false, slot }
    }

    #[test]
    fn disks_come_and_go_and_keep_their_places() {
        let all = |_: &Plugged| true;
        assert_eq!(plan(&[wish("a"), wish("b")], &[], all), [plug("a", 16), plug("b", 17)]);
        let record = [plugged("a", 16), plugged("b", 17)];
        assert_eq!(plan(&[wish("b"), wish("a")], &record, all), []);
        // A place is free for another only once its disk is out.
        assert_eq!(plan(&[wish("b"), wish("c")], &record, all), [Step::Unplug(plugged("a", 16)), plug("c", 18)]);
        // Recorded, and not in the guest: a crash came between.
        assert_eq!(plan(&[wish("a"), wish("b")], &record, |one| one.volume == "b"), [plug("a", 16)]);
        let read_only = MachineDisk { read_only: true, ..wish("a") };
        let steps = plan(&[read_only, wish("b")], &record, all);
        assert_eq!(steps[0], Step::Unplug(plugged("a", 16)));
        assert_eq!(steps[1], Step::Plug { volume: "a".into(), read_only: true, slot: 18 });
    }
}
