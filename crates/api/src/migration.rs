//! `Migration`: a running virtual machine moves to another machine; and who may run its guest meanwhile.
//!
//! The guest is run where the `VirtualMachine`'s `spec.nodeName` says, and one write changes that: the one of the source, which it makes
//! only when its guest stands still and the target has all of it. It makes it against the version of the object that it read. One that
//! it has asked for may still be on its way when its sender is dead, so that nobody runs the guest on at the source before another write
//! (`status.handover`) has made that version an old one: the two exclude each other. The target hears of the decision from the source, and
//! should that not come, from the store. The pure functions [`at_source`], [`may_decide`], [`at_target`] and [`at_word`] are all that
//! decides; the property test (`tests.rs`) kills everybody at any point.
//!
//! By post-copy (`spec.postCopy`) that one write comes earlier: when the guest stands still and its disks are on the target, and before
//! the target runs it with a part of its memory. From then on nobody can take it back; what is missing comes from the source alone, and
//! should that end, the guest is lost and starts anew from its disks, on the target.
//!
//! A target that has all of a guest keeps it while its migration is not over, so the `Migration` must not go before that: from the choice of
//! the hosts until a final phase a finalizer holds it ([`must_stay`]), and its deletion is a cancellation.
//!
//! The volumes of a machine go along. While a volume is attached it is where its machine is bound, so that the one write decides for all of
//! them; its own `spec.nodeName` is brought after it ([`lead`]), and until then nobody takes it out or gives it away ([`may_give_back`]).
//! A host that has bytes of a volume drops them when the volume is another's and no guest here has it ([`keeps_copy`]).

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Holds a migration whose hosts have been chosen. See [`must_stay`].
pub const FINALIZER: &str = "nuee.dev/migration";

/// What the user wants. `spec: {virtualMachine}` alone is enough.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nuee.dev",
    version = "v1",
    kind = "Migration",
    namespaced,
    status = "MigrationStatus",
    shortname = "mig"
)]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase", default)]
pub struct MigrationSpec {
    /// Name of the virtual machine.
    pub virtual_machine: String,
    /// Where to; absent lets the pool choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_node: Option<String>,
    /// Most that memory and disks together may take of the network, per second; absent means no bound. Units: bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Quantity>,
    /// When its memory changes faster than it is carried, the machine goes on on the target before all of its memory is there. Should the
    /// rest not come (the source, either agent or the cable fails), the machine starts anew from its disks.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub post_copy: bool,
    /// Stop it; the machine stays where it is, unless it has moved already.
    pub cancel: bool,
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MigrationStatus {
    /// Where it is in its life.
    pub phase: MigrationPhase,
    /// Why it is so, when that needs a word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Where the machine comes from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source_node: String,
    /// Where it goes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target_node: String,
    /// The machine's uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub machine_uid: String,
    /// Its memory.
    pub memory: Transfer,
    /// Its disks.
    pub disk: Transfer,
    /// How fast the guest changes its memory. Units: bytes per second.
    pub dirty_bytes_per_second: i64,
    /// How much the guest is slowed down so that the transfer gets ahead of it. Units: percent.
    pub throttle_percent: i64,
    /// How long the guest stood still. Units: milliseconds.
    pub downtime_ms: i64,
    /// Of a migration with `postCopy`: all of the machine's memory is on the target.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub complete: bool,
    /// Start of the transfer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
}

/// How much of something has been moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Transfer {
    /// All of it. Units: bytes.
    pub total_bytes: i64,
    /// Sent so far; what changes is sent again. Units: bytes.
    pub sent_bytes: i64,
    /// Still to be sent. Units: bytes.
    pub remaining_bytes: i64,
}

/// Life of a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MigrationPhase {
    /// Nobody has taken it up.
    #[default]
    Pending,
    /// Source and target are known.
    Scheduled,
    /// Memory and disks are copied while the guest runs.
    Copying,
    /// The guest stands still, the target has all of it, and the store has not taken the decision yet.
    Handover,
    /// The machine is on the target, and a part of its memory still on the source.
    PostCopy,
    /// The machine is on the target.
    Succeeded,
    /// The machine is on the source; or on the target, where it started anew from its disks after the rest of its memory was lost.
    Failed,
    /// It was stopped; the machine is on the source.
    Cancelled,
}

impl MigrationPhase {
    /// Whether nothing follows any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A guest on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Nothing,
    /// It runs.
    Running,
    /// On the source: stopped by its migration, all of it sent; or, by post-copy, its disks and a part of its memory.
    Sent,
    /// On the target: not all of it is there.
    Receiving,
    /// On the target: all of it is there, and it has never run.
    Received,
    /// On the target: it runs, and a part of its memory is on the source.
    Partial,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing; something else comes first.
    Wait,
    /// Let the guest run (on).
    Run,
    /// End the guest and forget it.
    End,
    /// Write `status.handover` anew, against the version that was read, so that what was asked for before comes too late; and look again.
    Withdraw,
    /// Start the guest from its disk.
    Boot,
}

/// What the source does. `bound_here`: the machine's `spec.nodeName` names the asking host. `driving`: the agent that drives this
/// migration is alive and has not given it up; until then what was sent stays, since a part of the memory may be there alone. `withdrawn`: this very agent has written into the object since. Without that nobody runs a
/// guest that was sent, also when its process died since: the write that gives it away may still be on its way into the store, from an
/// agent that is dead, and only a later version keeps it out. Pure.
#[must_use]
pub fn at_source(bound_here: bool, seen: Seen, driving: bool, withdrawn: bool) -> Act {
    match (bound_here, seen) {
        (false, Seen::Nothing) => Act::Wait,
        (false, Seen::Sent) if driving => Act::Wait,
        (false, _) => Act::End,
        (true, Seen::Running) => Act::Wait,
        (true, _) if driving => Act::Wait,
        (true, _) if !withdrawn => Act::Withdraw,
        (true, Seen::Sent) => Act::Run,
        (true, Seen::Nothing | Seen::Receiving | Seen::Received | Seen::Partial) => Act::Boot,
    }
}

/// Whether the source gives the machine to the target, against the version that it read. `seen`: its own guest; `received`: the target
/// has said that it has all of it. `in_part`: it is sent by post-copy, and what is not memory has all arrived. Pure.
#[must_use]
pub fn may_decide(bound_here: bool, seen: Seen, received: bool, in_part: bool, cancelled: bool) -> bool {
    bound_here && seen == Seen::Sent && (received || in_part) && !cancelled
}

/// What the target does. `connected`: the source still speaks to it, and sends what is missing; or, when all of the guest is here, or its
/// disks may be, and it is not this machine's: its migration is not over, since the store may say until then that it is. Pure.
#[must_use]
pub fn at_target(bound_here: bool, seen: Seen, connected: bool) -> Act {
    match (bound_here, seen) {
        (true, Seen::Received) => Act::Run,
        (true, Seen::Running) => Act::Wait,
        // By post-copy it is given away before all is here.
        (true, Seen::Receiving | Seen::Partial) if connected => Act::Wait,
        // What is incomplete then stays so, or is left from another attempt.
        (true, Seen::Receiving | Seen::Partial | Seen::Sent) => Act::End,
        (true, Seen::Nothing) => Act::Boot,
        (false, Seen::Nothing) => Act::Wait,
        (false, Seen::Receiving | Seen::Received) if connected => Act::Wait,
        (false, _) => Act::End,
    }
}

/// What the target does at the source's word that it is decided. Only a source whose own write was acknowledged says so. `in_part`: the
/// guest comes by post-copy, and enough of it is here for it to run. Pure.
#[must_use]
pub fn at_word(seen: Seen, in_part: bool) -> Act {
    match seen {
        Seen::Received => Act::Run,
        Seen::Receiving if in_part => Act::Run,
        _ => Act::Wait,
    }
}

/// Whether a migration whose machine is the target's is over. By post-copy a part of the memory may be missing there, and only the source,
/// which gives it, knows when it is not. Pure.
#[must_use]
pub fn is_complete(spec: &MigrationSpec, status: &MigrationStatus) -> bool {
    !spec.post_copy || status.complete
}

/// Whether a migration that somebody deletes is held for now: its source may have begun, and asked the store for the decision, and a target
/// that finds no migration any more would drop a guest that is still to be decided for it. Pure.
#[must_use]
pub fn must_stay(phase: MigrationPhase) -> bool {
    phase != MigrationPhase::Pending && !phase.is_final()
}

/// What the pool's controller writes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// Nothing.
    Nothing,
    /// That it went to its machine's host: `status.movedTo`.
    Announce,
    /// That it is there: `spec.nodeName`.
    Follow,
}

/// Brings an attached volume after its machine. `holder`: the volume's `spec.nodeName`; `host`: that of its machine. Pure.
#[must_use]
pub fn lead(holder: Option<&str>, moved_to: Option<&str>, host: Option<&str>) -> Lead {
    match host {
        None => Lead::Nothing,
        _ if holder.is_none() || holder == host => Lead::Nothing,
        _ if moved_to == host => Lead::Follow,
        _ => Lead::Announce,
    }
}

/// Whether a host may write that a volume is no machine's any more. One that has not been brought after its machine yet would be taken
/// to be where it was. Pure.
#[must_use]
pub fn may_give_back(held_here: bool) -> bool {
    held_here
}

/// Whether a host keeps what it has of a volume. `has_guest`: a guest here has it, be it on its way, sent, ended or not cleared away. Pure.
#[must_use]
pub fn keeps_copy(held_here: bool, has_guest: bool) -> bool {
    held_here || has_guest
}

#[cfg(test)]
mod tests;
