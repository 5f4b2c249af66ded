//! Kills everybody at any point of a migration, and checks that one guest runs and nothing that was written is lost.

use proptest::prelude::*;

use super::*;

/// The world: one store, and an agent and perhaps a guest on either machine.
#[derive(Clone, Debug)]
struct World {
    bound_to_source: bool,
    version: u32,
    source: Seen,
    target: Seen,
    /// The agent lives; and drives, or is spoken to.
    source_agent: Option<bool>,
    target_agent: Option<bool>,
    cancelled: bool,
    withdrawn: bool,
    /// The source has said that the machine stays.
    over: bool,
    /// Somebody has deleted the migration; and nothing is left of it.
    deleted: bool,
    gone: bool,
    /// What the source has read and will write against: the version. It may arrive after its sender's end.
    decision: Option<u32>,
    withdrawal: Option<u32>,
    /// The source knows that its write was made, and has said so on a connection that still stands.
    word: bool,
    /// It is one by post-copy, and the guest stands still for it: its disks are on the target.
    post_copy: bool,
    in_part: bool,
    disk: Disk,
}

/// A volume of the machine.
#[derive(Clone, Debug)]
struct Disk {
    attached: bool,
    holder: &'static str,
    moved_to: Option<&'static str>,
    /// How often it was written, and what of that either side has.
    written: u32,
    at_source: Option<u32>,
    at_target: Option<u32>,
}

impl Disk {
    fn copy(&mut self, source: bool) -> &mut Option<u32> {
        if source { &mut self.at_source } else { &mut self.at_target }
    }
}

const SOURCE: &str = "source";
const TARGET: &str = "target";

fn host(source: bool) -> &'static str {
    if source { SOURCE } else { TARGET }
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Transfer,
    Part,
    Rest,
    ReadToDecide,
    WriteDecision,
    Word,
    Source,
    WriteWithdrawal,
    Target,
    Cancel,
    Delete,
    Forget,
    GiveUp,
    KillSourceAgent,
    StartSourceAgent,
    KillTargetAgent,
    StartTargetAgent,
    KillSourceGuest,
    Write,
    Detach,
    Lead,
    SourceDisk,
    TargetDisk,
}
const MOVES: [Move; 23] = [
    Move::Transfer,
    Move::Part,
    Move::Rest,
    Move::ReadToDecide,
    Move::WriteDecision,
    Move::Word,
    Move::Source,
    Move::WriteWithdrawal,
    Move::Target,
    Move::Cancel,
    Move::Delete,
    Move::Forget,
    Move::GiveUp,
    Move::KillSourceAgent,
    Move::StartSourceAgent,
    Move::KillTargetAgent,
    Move::StartTargetAgent,
    Move::KillSourceGuest,
    Move::Write,
    Move::Detach,
    Move::Lead,
    Move::SourceDisk,
    Move::TargetDisk,
];

impl World {
    fn by_post_copy() -> World {
        World { post_copy: true, ..World::new() }
    }

    fn new() -> World {
        World {
            bound_to_source: true,
            version: 1,
            source: Seen::Running,
            target: Seen::Receiving,
            source_agent: Some(true),
            target_agent: Some(true),
            cancelled: false,
            withdrawn: false,
            over: false,
            deleted: false,
            gone: false,
            decision: None,
            withdrawal: None,
            word: false,
            post_copy: false,
            in_part: false,
            disk: Disk {
                attached: true,
                holder: SOURCE,
                moved_to: None,
                written: 1,
                at_source: Some(1),
                at_target: Some(0),
            },
        }
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

    /// What is missing of the guest on the target still comes.
    fn is_fed(&self) -> bool {
        self.connected() && self.source == Seen::Sent
    }

    /// What the store says of the migration.
    fn phase(&self) -> MigrationPhase {
        match (self.bound_to_source, self.over) {
            (false, _) if self.target == Seen::Partial => MigrationPhase::PostCopy,
            (false, _) => MigrationPhase::Succeeded,
            (true, true) => MigrationPhase::Failed,
            (true, false) => MigrationPhase::Copying,
        }
    }

    fn step(&mut self, step: Move) {
        match step {
            Move::Transfer if self.connected() && self.source == Seen::Running && self.target == Seen::Receiving => {
                self.source = Seen::Sent;
                self.target = Seen::Received;
                self.disk.at_target = self.disk.at_source;
            }
            Move::Part
                if self.post_copy
                    && self.connected()
                    && self.source == Seen::Running
                    && self.target == Seen::Receiving =>
            {
                (self.source, self.in_part) = (Seen::Sent, true);
                self.disk.at_target = self.disk.at_source;
            }
            Move::Rest if self.is_fed() && self.target == Seen::Partial => self.target = Seen::Running,
            // One that drives and has heard that all is there.
            Move::ReadToDecide
                if self.connected()
                    && may_decide(
                        self.bound_to_source,
                        self.source,
                        self.target == Seen::Received,
                        self.in_part && self.target == Seen::Receiving,
                        self.cancelled,
                    ) =>
            {
                self.decision = Some(self.version);
            }
            Move::WriteDecision => {
                let read = self.decision.take();
                self.write(read, |world| {
                    world.bound_to_source = false;
                    // Its answer may be lost with its connection.
                    world.word = world.connected();
                });
            }
            Move::Word if self.word && self.target_agent == Some(true) => {
                let in_part = self.in_part && self.is_fed();
                if at_word(self.target, in_part) == Act::Run {
                    self.target = if self.target == Seen::Received { Seen::Running } else { Seen::Partial };
                }
            }
            Move::Source => self.source_step(),
            Move::WriteWithdrawal => {
                let read = self.withdrawal.take();
                self.write(read, |world| world.withdrawn = world.source_agent == Some(false));
            }
            Move::Target if self.target_agent.is_some() => {
                let is_under_way = !self.over && !self.gone;
                let connected = match self.target {
                    Seen::Received => is_under_way,
                    _ if !self.bound_to_source => self.is_fed(),
                    _ if self.post_copy => is_under_way,
                    _ => self.connected(),
                };
                match at_target(!self.bound_to_source, self.target, connected) {
                    Act::Run | Act::Boot => self.target = Seen::Running,
                    Act::End => self.target = Seen::Nothing,
                    Act::Wait | Act::Withdraw => {}
                }
            }
            Move::Cancel => self.cancelled = true,
            Move::Delete => (self.cancelled, self.deleted) = (true, true),
            Move::Forget => self.gone |= self.deleted && !must_stay(self.phase()),
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
            Move::KillSourceGuest if matches!(self.source, Seen::Sent | Seen::Running) => self.source = Seen::Nothing,
            Move::Write if self.disk.attached => {
                for source in [true, false] {
                    if matches!(self.seen(source), Seen::Running | Seen::Partial) {
                        self.disk.written += 1;
                        *self.disk.copy(source) = Some(self.disk.written);
                    }
                }
            }
            // The guest lets go of it, and its host says so. While it is sent its disks stay as they are.
            Move::Detach if self.disk.attached && self.seen(self.bound_to_source) == Seen::Running => {
                let (agent, idle) = match self.bound_to_source {
                    true => (self.source_agent, self.source_agent == Some(false)),
                    false => (self.target_agent, true),
                };
                if agent.is_some() && idle && may_give_back(self.disk.holder == host(self.bound_to_source)) {
                    self.disk.attached = false;
                }
            }
            Move::Lead if self.disk.attached => {
                let to = host(self.bound_to_source);
                match lead(Some(self.disk.holder), self.disk.moved_to, Some(to)) {
                    Lead::Nothing => {}
                    Lead::Announce => self.disk.moved_to = Some(to),
                    Lead::Follow => self.disk.holder = to,
                }
            }
            Move::SourceDisk if self.source_agent.is_some() => self.look_at_disk(true),
            Move::TargetDisk if self.target_agent.is_some() => self.look_at_disk(false),
            _ => {}
        }
    }

    fn seen(&self, source: bool) -> Seen {
        if source { self.source } else { self.target }
    }

    fn look_at_disk(&mut self, source: bool) {
        // The record of a machine that is bound here stays when its guest has ended.
        let has_guest = self.seen(source) != Seen::Nothing || source == self.bound_to_source;
        if !keeps_copy(self.disk.holder == host(source), has_guest) {
            *self.disk.copy(source) = None;
        }
    }

    /// Whoever runs the guest, or has the volume when nobody does, has everything that was ever written.
    fn has_its_disk(&mut self) -> bool {
        let written = Some(self.disk.written);
        let holder = self.disk.holder == SOURCE;
        let held = self.disk.attached || *self.disk.copy(holder) == written;
        held && [true, false].into_iter().all(|source| {
            let runs = matches!(self.seen(source), Seen::Running | Seen::Partial);
            !self.disk.attached || !runs || *self.disk.copy(source) == written
        })
    }

    fn source_step(&mut self) {
        let Some(driving) = self.source_agent else { return };
        match at_source(self.bound_to_source, self.source, driving, self.withdrawn) {
            Act::Run | Act::Boot => self.source = Seen::Running,
            Act::End => self.source = Seen::Nothing,
            Act::Withdraw => self.withdrawal = Some(self.version),
            Act::Wait => {}
        }
        self.over |= !driving && self.source == Seen::Running;
    }

    fn running(&self) -> usize {
        let runs = |seen| matches!(seen, Seen::Running | Seen::Partial);
        usize::from(runs(self.source)) + usize::from(runs(self.target))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn never_two_guests_run_and_in_the_end_one_does(
        moves in proptest::collection::vec(0..MOVES.len(), 0..60),
        post_copy: bool,
    ) {
        let mut world = World { post_copy, ..World::new() };
        for at in moves {
            world.step(MOVES[at]);
            prop_assert!(world.running() <= 1, "{world:?}");
            prop_assert!(world.has_its_disk(), "{world:?}");
        }
        // Everybody comes back, and nobody drives it any more; what was asked for may or may not arrive first.
        world.step(Move::GiveUp);
        for _ in 0..4 {
            for last in [Move::StartSourceAgent, Move::StartTargetAgent, Move::WriteDecision, Move::Source,
                Move::WriteWithdrawal, Move::Target, Move::Lead, Move::SourceDisk, Move::TargetDisk] {
                world.step(last);
                prop_assert!(world.running() <= 1, "{world:?}");
                prop_assert!(world.has_its_disk(), "{world:?}");
            }
        }
        prop_assert_eq!(world.running(), 1, "{:?}", world);
        prop_assert_eq!(world.bound_to_source, world.source == Seen::Running, "{:?}", world);
        // One host has the volume, and no other has anything of it.
        let here = world.disk.holder == SOURCE;
        prop_assert!(world.disk.copy(!here).is_none(), "{:?}", world);
        if world.disk.attached {
            prop_assert_eq!(world.disk.holder, host(world.bound_to_source), "{:?}", world);
        }
    }
}

#[test]
fn the_checker_finds_a_source_that_resumes_without_asking() {
    let mut world = World::new();
    for step in [Move::Transfer, Move::ReadToDecide, Move::GiveUp] {
        world.step(step);
    }
    // What the rules forbid: to run on while the decision may be on its way.
    assert_eq!(at_source(world.bound_to_source, world.source, false, false), Act::Withdraw);
    world.source = Seen::Running;
    for step in [Move::WriteDecision, Move::Target] {
        world.step(step);
    }
    assert_eq!(world.running(), 2);
}

const DECIDED_IN_PART: [Move; 3] = [Move::Part, Move::ReadToDecide, Move::WriteDecision];

#[test]
fn by_post_copy_it_runs_with_a_part_and_the_source_keeps_the_rest_until_all_is_there() {
    let mut world = World::by_post_copy();
    for step in DECIDED_IN_PART.into_iter().chain([Move::Word, Move::Write, Move::Source, Move::Target]) {
        world.step(step);
    }
    assert_eq!((world.source, world.target), (Seen::Sent, Seen::Partial), "{world:?}");
    for step in [Move::Rest, Move::GiveUp, Move::Source] {
        world.step(step);
    }
    assert_eq!((world.source, world.target), (Seen::Nothing, Seen::Running));
    assert!(world.has_its_disk(), "{world:?}");
}

#[test]
fn whoever_dies_during_post_copy_the_guest_starts_anew_from_its_disks_on_the_target_alone() {
    for last in [Move::KillSourceAgent, Move::KillTargetAgent, Move::KillSourceGuest, Move::GiveUp] {
        let mut world = World::by_post_copy();
        let dies = [Move::Word, Move::Write, last, Move::StartSourceAgent, Move::StartTargetAgent];
        for step in DECIDED_IN_PART.into_iter().chain(dies).chain([Move::Target]) {
            world.step(step);
            assert!(world.running() <= 1, "{world:?}");
        }
        assert_eq!(world.target, Seen::Nothing, "{last:?}");
        for step in [Move::Source, Move::WriteWithdrawal, Move::Target, Move::Source] {
            world.step(step);
        }
        assert_eq!((world.running(), world.target), (1, Seen::Running), "{last:?}");
        assert!(world.has_its_disk(), "{world:?}");
    }
}

#[test]
fn the_checker_finds_a_target_that_runs_a_part_before_it_is_decided() {
    let mut world = World::by_post_copy();
    for step in [Move::Part, Move::ReadToDecide] {
        world.step(step);
    }
    assert_eq!(at_word(world.target, false), Act::Wait);
    // What the rules forbid: the word before the write was acknowledged.
    world.word = true;
    for step in [Move::Word, Move::GiveUp, Move::Source, Move::WriteWithdrawal, Move::Source] {
        world.step(step);
    }
    assert_eq!(world.running(), 2);
}

#[test]
fn the_checker_finds_a_target_that_drops_disks_while_it_may_be_decided_for_it() {
    let mut world = World::by_post_copy();
    for step in [Move::Part, Move::ReadToDecide, Move::KillSourceAgent, Move::Target, Move::TargetDisk] {
        world.step(step);
    }
    assert_eq!((world.target, world.disk.at_target), (Seen::Receiving, Some(1)), "{world:?}");
    // What the rules forbid: to clear what came when the source is silent.
    world.target = Seen::Nothing;
    for step in [Move::TargetDisk, Move::WriteDecision, Move::Target] {
        world.step(step);
    }
    assert!(!world.has_its_disk(), "{world:?}");
}

#[test]
fn the_checker_finds_a_source_that_says_what_it_does_not_know() {
    let mut world = World::new();
    for step in [Move::Transfer, Move::ReadToDecide] {
        world.step(step);
    }
    // What the rules forbid: the word before the write was acknowledged.
    world.word = true;
    for step in [Move::Word, Move::GiveUp, Move::Source, Move::WriteWithdrawal, Move::Source] {
        world.step(step);
    }
    assert_eq!(world.running(), 2);
}

#[test]
fn the_checker_finds_a_migration_that_is_forgotten_too_early() {
    let until_deleted = || {
        let mut world = World::new();
        for step in [Move::Transfer, Move::ReadToDecide, Move::Delete, Move::Forget] {
            world.step(step);
        }
        world
    };
    let late = [Move::Target, Move::TargetDisk, Move::WriteDecision, Move::Source, Move::Target];
    let mut world = until_deleted();
    late.into_iter().for_each(|step| world.step(step));
    assert!(!world.gone && world.target == Seen::Running && world.has_its_disk(), "{world:?}");
    // What the rules forbid: nothing is left of it while its decision is on its way.
    let mut world = until_deleted();
    world.gone = true;
    late.into_iter().for_each(|step| world.step(step));
    assert!(!world.has_its_disk(), "{world:?}");
}

#[test]
fn the_target_runs_at_a_word_and_without_it() {
    for last in [Move::Word, Move::Target] {
        let mut world = World::new();
        for step in [Move::Transfer, Move::ReadToDecide, Move::WriteDecision, last] {
            world.step(step);
        }
        assert!(world.target == Seen::Running && world.has_its_disk(), "{world:?}");
    }
}

#[test]
fn the_target_keeps_what_it_has_while_the_decision_may_be_on_its_way() {
    let mut world = World::new();
    for step in [Move::Transfer, Move::ReadToDecide, Move::GiveUp, Move::Target, Move::TargetDisk] {
        world.step(step);
    }
    assert_eq!((world.target, world.disk.at_target), (Seen::Received, Some(1)));
    for step in [Move::WriteDecision, Move::Target] {
        world.step(step);
    }
    assert!(world.target == Seen::Running && world.has_its_disk(), "{world:?}");
}

#[test]
fn what_was_asked_for_is_made_void_before_the_guest_goes_on() {
    let mut world = World::new();
    for step in [Move::Transfer, Move::ReadToDecide, Move::Cancel, Move::GiveUp, Move::Source] {
        world.step(step);
    }
    assert_eq!((world.source, world.running()), (Seen::Sent, 0));
    for step in [Move::WriteWithdrawal, Move::Source, Move::WriteDecision, Move::Target] {
        world.step(step);
    }
    assert_eq!((world.source, world.target), (Seen::Running, Seen::Nothing));
}

#[test]
fn the_checker_finds_a_volume_that_is_given_back_before_it_has_followed() {
    let mut world = World::new();
    for step in
        [Move::Write, Move::Transfer, Move::ReadToDecide, Move::WriteDecision, Move::Target, Move::Write, Move::Detach]
    {
        world.step(step);
    }
    assert!(world.disk.attached && world.has_its_disk(), "it stays attached until it has followed: {world:?}");
    // What the rules forbid: the store would say that it is where its old bytes are.
    world.disk.attached = false;
    assert!(!world.has_its_disk());
}
