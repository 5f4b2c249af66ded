//! Guests that move between machines: the kind `Migration`. Who may run the guest meanwhile is decided by the rules of
//! [`api::migration`]; this carries them out.
//!
//! | module | owns |
//! |---|---|
//! | [`handover`] | what the store says of who runs it, how the source gives it away, and how it takes it back |
//! | `carry` | what the two hypervisors say to each other |
//! | `give` | gives the rest of a guest that runs on the target already |
//! | [`post_copy`] | a guest that runs on the target before all of it is there |
//! | [`source`] | drives a migration from the machine that has the guest |
//! | [`target`] | takes a guest in |
//! | [`wire`] | what the two say to each other |

mod carry;
mod give;
pub mod handover;
pub mod post_copy;
pub mod source;
pub mod target;
pub mod wire;

use std::path::PathBuf;

use api::virtual_machine::{ConfigDrive, MachineBoot};
use async_trait::async_trait;
use hypervisor::Chipset;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::guest::shared::{Guests, write_durably};

/// Opens connections to other machines of the pool.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// A connection that ends at [`crate::Agent::take_in`] of that machine.
    async fn open(&self, node: &str) -> std::result::Result<Box<dyn node::Duplex>, String>;
}

/// How a guest was launched: the other machine must launch it alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// What its devices sit on.
    #[serde(default)]
    pub chipset: Chipset,
    /// Processors at its start.
    pub cpus: u32,
    /// The most that it may have.
    pub cpus_max: u32,
    /// Its memory. Units: bytes.
    pub memory_bytes: i64,
    /// The most memory that it may have; 0 means no more. Units: bytes.
    #[serde(default)]
    pub memory_max: i64,
    /// Its configuration drive.
    #[serde(default)]
    pub config_drive: Option<ConfigDrive>,
    /// The image that it was booted from to be rescued; empty means its own disk.
    #[serde(default)]
    pub rescue: String,
    /// The id by which it is reached over vsock; `None` means that it has no such device.
    #[serde(default)]
    pub vsock_cid: Option<u32>,
    /// How it booted; `None` is as its object says.
    #[serde(default)]
    pub boot: Option<MachineBoot>,
}

impl Launched {
    /// Whether a guest that was launched so can move.
    ///
    /// Errors: why not, and what to do about it.
    pub fn check_moves(&self) -> Result<()> {
        let why = if !self.rescue.is_empty() {
            "it is being rescued; end that first (nuee vm unrescue)"
        } else if self.vsock_cid.is_some() {
            "it has vsock, with an id of its host; take spec.vsock away, then stop and start it first"
        } else {
            return Ok(());
        };
        Err(Error::Invalid(why.into()))
    }
}

fn launched_file(guests: &Guests, uid: &str) -> PathBuf {
    guests.directory(uid).join("launched.json")
}

/// Notes how a guest is launched.
pub fn note_launch(guests: &Guests, uid: &str, launched: &Launched) -> Result<()> {
    write_durably(&launched_file(guests, uid), launched)
}

/// How it was launched.
pub fn launched(guests: &Guests, uid: &str) -> Result<Launched> {
    let path = launched_file(guests, uid);
    let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
    serde_json::from_slice(&text).map_err(|error| Error::Invalid(format!("{}: {error}", path.display())))
}

/// What the devices of a guest sit on that boots anew: what they sat on before, since a system may know its devices by their places.
pub fn chipset(guests: &Guests, uid: &str) -> Chipset {
    launched(guests, uid).map_or(Chipset::PciExpress, |before| before.chipset)
}

/// What went wrong with a guest. A hypervisor that ended said itself why.
pub(super) fn told(context: &Context, uid: &str, error: Error) -> Error {
    match error {
        Error::Hypervisor(hypervisor::Error::Gone) => {
            Error::Invalid(hypervisor::qemu::driver::log_end(&context.guests.run_dir(uid)))
        }
        other => other,
    }
}

/// A guest that was sent here and has never run here: which migration brings it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// Namespace of the machine and of its migration.
    pub namespace: String,
    /// The machine's name.
    pub machine: String,
    /// The migration's name.
    pub migration: String,
    /// The migration's uid.
    pub migration_uid: String,
}

/// Where it is noted, for as long as it has never run here.
pub fn marker(context: &Context, uid: &str) -> PathBuf {
    context.guests.directory(uid).join("incoming")
}

/// Guests that were on their way here when the last agent ended, with their uids.
pub fn unsettled(context: &Context) -> Vec<(String, Incoming)> {
    let found = std::fs::read_dir(context.data_dir.join("guests")).into_iter().flatten().flatten();
    let read = |uid: String| {
        let text = std::fs::read(marker(context, &uid)).ok()?;
        Some((uid, serde_json::from_slice(&text).ok()?))
    };
    found.filter_map(|entry| read(entry.file_name().into_string().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_its_hosts_alone_does_not_move_and_says_why() {
        assert!(Launched::default().check_moves().is_ok());
        let rescued = Launched { rescue: "tiny".into(), ..Launched::default() };
        let reached = Launched { vsock_cid: Some(1 << 30), ..Launched::default() };
        for (launched, expected) in [(rescued, "nuee vm unrescue"), (reached, "spec.vsock")] {
            let text = launched.check_moves().unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
        // What was noted before there was vsock, and another chipset.
        let old: Launched = serde_json::from_str("{\"cpus\":1,\"cpus_max\":1,\"memory_bytes\":1}").unwrap();
        assert_eq!((old.vsock_cid, old.chipset), (None, Chipset::Pci));
    }

    #[test]
    fn a_machine_keeps_the_chipset_that_it_began_with() {
        let directory = tempfile::tempdir().unwrap();
        let guests = Guests::new(directory.path(), PathBuf::new(), String::new());
        assert_eq!(chipset(&guests, "new"), Chipset::PciExpress);
        for began in [Chipset::Pci, Chipset::PciExpress] {
            std::fs::create_dir_all(guests.directory("old")).unwrap();
            note_launch(&guests, "old", &Launched { chipset: began, ..Launched::default() }).unwrap();
            assert_eq!(chipset(&guests, "old"), began);
        }
    }
}
