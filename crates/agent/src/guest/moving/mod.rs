//! Guests that move between machines: the kind `Migration`. Who may run the guest meanwhile is decided by the rules of
//! [`api::migration`]; this carries them out.
//!
//! | module | owns |
//! |---|---|
//! | [`source`] | drives a migration from the machine that has the guest |
//! | [`target`] | takes a guest in |
//! | [`wire`] | what the two say to each other |

pub mod source;
pub mod target;
pub mod wire;

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result};

/// Opens connections to other machines of the pool.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// A connection that ends at [`crate::Agent::take_in`] of that machine.
    async fn open(&self, node: &str) -> std::result::Result<Box<dyn node::Duplex>, String>;
}

/// How a guest was launched: the other machine must launch it alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// Processors at its start.
    pub cpus: u32,
    /// The most that it may have.
    pub cpus_max: u32,
    /// Its memory. Units: bytes.
    pub memory_bytes: i64,
}

fn launched_file(context: &Context, uid: &str) -> PathBuf {
    context.guests.directory(uid).join("launched.json")
}

/// Notes how a guest is launched.
pub fn note_launch(context: &Context, uid: &str, launched: &Launched) -> Result<()> {
    let path = launched_file(context, uid);
    let text = serde_json::to_vec(launched).unwrap_or_default();
    std::fs::write(&path, text).map_err(Error::io("write", path))
}

/// How it was launched.
pub fn launched(context: &Context, uid: &str) -> Result<Launched> {
    let path = launched_file(context, uid);
    let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
    serde_json::from_slice(&text).map_err(|error| Error::Invalid(format!("{}: {error}", path.display())))
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
