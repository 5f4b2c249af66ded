//! `Migration`: a running virtual machine moves to another machine; and who may run its guest meanwhile.
//!
//! The guest is run where the `VirtualMachine`'s `spec.nodeName` says, and one write changes that: the one of the controller, which is
//! made only when the source has said in the same object (`status.handover`) that its guest stands still and the target has all of
//! it. Whoever changes either does so against the version of the object that it read, so that the write of the controller and the
//! withdrawal of the source exclude each other. The pure functions [`at_source`], [`at_target`] and [`may_commit`] are all that
//! decides; the property test at the end kills everybody at any point.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// First part of a handover that the source declared; the migration's uid follows.
pub const READY: &str = "ready:";

/// Whether a machine's `status.handover` says that its guest is handed over by this migration.
pub fn is_handed_over(handover: &str, migration: &str) -> bool {
    handover.strip_prefix(READY) == Some(migration)
}

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
    /// The guest stands still, and the store decides.
    Handover,
    /// The machine is on the target.
    Succeeded,
    /// The machine is on the source.
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

/// What the store says of a machine that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// `spec.nodeName` names the asking machine.
    pub bound_here: bool,
    /// `status.handover`: the source has stopped the guest, and the target has all of it.
    pub handed_over: bool,
}

/// A guest on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Nothing,
    /// It runs.
    Running,
    /// On the source: stopped by its migration, all of it sent.
    Sent,
    /// On the target: not all of it is there.
    Receiving,
    /// On the target: all of it is there, and it has never run.
    Received,
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
    /// Take `status.handover` back, against the version that was read, and look again.
    Withdraw,
    /// Start the guest from its disk.
    Boot,
}

/// What the source does. `driving`: the agent that drives this migration is alive and has not given it up. `withdrawn`: this very agent
/// has taken the handover back since. Without that nobody runs a guest that was sent: the word that it was may still be on its way
/// into the store, from an agent that is dead, and only a later version keeps it out. Pure.
#[must_use]
pub fn at_source(record: Record, seen: Seen, driving: bool, withdrawn: bool) -> Act {
    match (record.bound_here, seen) {
        (false, Seen::Nothing) => Act::Wait,
        (false, _) => Act::End,
        (true, Seen::Nothing | Seen::Receiving | Seen::Received) => Act::Boot,
        (true, Seen::Running) => Act::Wait,
        (true, Seen::Sent) if driving => Act::Wait,
        (true, Seen::Sent) if withdrawn && !record.handed_over => Act::Run,
        (true, Seen::Sent) => Act::Withdraw,
    }
}

/// What the target does. `connected`: the source still speaks to it. Pure.
#[must_use]
pub fn at_target(record: Record, seen: Seen, connected: bool) -> Act {
    match (record.bound_here, seen) {
        (true, Seen::Received) => Act::Run,
        (true, Seen::Running) => Act::Wait,
        // Nothing is handed over before all is here, so what is incomplete is left from another attempt.
        (true, Seen::Receiving | Seen::Sent) => Act::End,
        (true, Seen::Nothing) => Act::Boot,
        (false, Seen::Nothing) => Act::Wait,
        (false, Seen::Received) if record.handed_over || connected => Act::Wait,
        (false, Seen::Receiving) if connected => Act::Wait,
        (false, _) => Act::End,
    }
}

/// Whether the controller binds the machine to the target. Pure.
#[must_use]
pub fn may_commit(record: Record, cancelled: bool) -> bool {
    record.bound_here && record.handed_over && !cancelled
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The world: one store, a controller, and an agent and perhaps a guest on either machine.
    #[derive(Clone, Debug)]
    struct World {
        bound_to_source: bool,
        handed_over: bool,
        version: u32,
        source: Seen,
        target: Seen,
        /// The agent lives; and drives, or is spoken to.
        source_agent: Option<bool>,
        target_agent: Option<bool>,
        cancelled: bool,
        withdrawn: bool,
        /// What somebody has read and will write against: the version.
        commit: Option<u32>,
        hand_over: Option<u32>,
        withdrawal: Option<u32>,
    }

    #[derive(Clone, Copy, Debug)]
    enum Move {
        Transfer,
        ReadToHandOver,
        WriteHandOver,
        ReadToCommit,
        WriteCommit,
        Source,
        WriteWithdrawal,
        Target,
        Cancel,
        GiveUp,
        KillSourceAgent,
        StartSourceAgent,
        KillTargetAgent,
        StartTargetAgent,
    }
    const MOVES: [Move; 14] = [
        Move::Transfer,
        Move::ReadToHandOver,
        Move::WriteHandOver,
        Move::ReadToCommit,
        Move::WriteCommit,
        Move::Source,
        Move::WriteWithdrawal,
        Move::Target,
        Move::Cancel,
        Move::GiveUp,
        Move::KillSourceAgent,
        Move::StartSourceAgent,
        Move::KillTargetAgent,
        Move::StartTargetAgent,
    ];

    impl World {
        fn new() -> World {
            World {
                bound_to_source: true,
                handed_over: false,
                version: 1,
                source: Seen::Running,
                target: Seen::Receiving,
                source_agent: Some(true),
                target_agent: Some(true),
                cancelled: false,
                withdrawn: false,
                commit: None,
                hand_over: None,
                withdrawal: None,
            }
        }

        fn record(&self, source: bool) -> Record {
            Record { bound_here: self.bound_to_source == source, handed_over: self.handed_over }
        }

        /// A write against a version; `None` means that nobody has read.
        fn write(&mut self, read: Option<u32>, change: impl FnOnce(&mut World)) {
            if read == Some(self.version) {
                change(self);
                self.version += 1;
            }
        }

        fn connected(&self) -> bool {
            self.source_agent == Some(true) && self.target_agent == Some(true)
        }

        fn step(&mut self, step: Move) {
            match step {
                Move::Transfer
                    if self.connected() && self.source == Seen::Running && self.target == Seen::Receiving =>
                {
                    self.source = Seen::Sent;
                    self.target = Seen::Received;
                }
                Move::ReadToHandOver if self.connected() && self.source == Seen::Sent && self.bound_to_source => {
                    self.hand_over = Some(self.version);
                }
                // It may arrive after its sender's end.
                Move::WriteHandOver => {
                    let read = self.hand_over.take();
                    self.write(read, |world| world.handed_over = true);
                }
                Move::ReadToCommit if may_commit(self.record(true), self.cancelled) => self.commit = Some(self.version),
                Move::WriteCommit => {
                    let read = self.commit.take();
                    self.write(read, |world| world.bound_to_source = false);
                }
                Move::Source => self.source_step(),
                Move::WriteWithdrawal => {
                    let read = self.withdrawal.take();
                    self.write(read, |world| {
                        world.handed_over = false;
                        world.withdrawn = world.source_agent == Some(false);
                    });
                }
                Move::Target if self.target_agent.is_some() => {
                    match at_target(self.record(false), self.target, self.connected()) {
                        Act::Run | Act::Boot => self.target = Seen::Running,
                        Act::End => self.target = Seen::Nothing,
                        Act::Wait | Act::Withdraw => {}
                    }
                }
                Move::Cancel => self.cancelled = true,
                Move::GiveUp => self.source_agent = self.source_agent.map(|_| false),
                Move::KillSourceAgent => {
                    self.source_agent = None;
                    self.withdrawn = false;
                    // Its answer would reach nobody.
                    self.withdrawal = None;
                }
                Move::StartSourceAgent if self.source_agent.is_none() => self.source_agent = Some(false),
                Move::KillTargetAgent => self.target_agent = None,
                Move::StartTargetAgent if self.target_agent.is_none() => self.target_agent = Some(false),
                _ => {}
            }
        }

        fn source_step(&mut self) {
            let Some(driving) = self.source_agent else { return };
            match at_source(self.record(true), self.source, driving, self.withdrawn) {
                Act::Run | Act::Boot => self.source = Seen::Running,
                Act::End => self.source = Seen::Nothing,
                Act::Withdraw => self.withdrawal = Some(self.version),
                Act::Wait => {}
            }
        }

        fn running(&self) -> usize {
            usize::from(self.source == Seen::Running) + usize::from(self.target == Seen::Running)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn never_two_guests_run_and_in_the_end_one_does(moves in proptest::collection::vec(0..MOVES.len(), 0..60)) {
            let mut world = World::new();
            for at in moves {
                world.step(MOVES[at]);
                prop_assert!(world.running() <= 1, "{world:?}");
            }
            // Everybody comes back, and nobody drives it any more; the controller may or may not be first.
            world.step(Move::GiveUp);
            for _ in 0..4 {
                for last in [Move::StartSourceAgent, Move::StartTargetAgent, Move::ReadToCommit, Move::WriteCommit,
                    Move::Source, Move::WriteWithdrawal, Move::Target] {
                    world.step(last);
                    prop_assert!(world.running() <= 1, "{world:?}");
                }
            }
            prop_assert_eq!(world.running(), 1, "{:?}", world);
            prop_assert_eq!(world.bound_to_source, world.source == Seen::Running, "{:?}", world);
        }
    }

    #[test]
    fn the_checker_finds_a_source_that_resumes_without_asking() {
        let mut world = World::new();
        for step in [Move::Transfer, Move::ReadToHandOver, Move::WriteHandOver, Move::ReadToCommit, Move::GiveUp] {
            world.step(step);
        }
        // What the rules forbid: to run on with the handover in the store.
        assert_eq!(at_source(world.record(true), world.source, false, false), Act::Withdraw);
        world.source = Seen::Running;
        for step in [Move::WriteCommit, Move::Target] {
            world.step(step);
        }
        assert_eq!(world.running(), 2);
    }
}
