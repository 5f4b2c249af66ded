//! The life cycle of a guest, pure: what to do next, from what is wished and what happened.
//!
//! ```text
//!            Start                    Pause
//!   Down ----------> Starting --> Running <------> Paused
//!    ^  ^               |          |  |  Resume      |
//!    |  |  start failed |          |  | power button |
//!    |  +------(wait)---+   crash  |  v              | kill
//!    |<------------(wait)----------+ Stopping        |
//!    |<------------------------------+ off, or kill -+
//!    |                             Suspending --> Suspended <--> (Start, resuming)
//!    +--> Gone (deleted, cleared)
//! ```

use std::time::Duration;

/// First wait before a guest that crashed twice is started again; doubled each time.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The longest such wait.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A guest that ran so long has its earlier crashes forgiven.
pub const STABLE_AFTER: Duration = Duration::from_secs(120);

/// What the guest should be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Desired {
    /// Running.
    #[default]
    Running,
    /// Off; its disks stay.
    Stopped,
    /// Its processors stopped.
    Paused,
    /// Its memory on disk.
    Suspended,
}

/// When a guest that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Policy {
    /// After a crash, and after it switched itself off.
    Always,
    /// After a crash.
    #[default]
    OnFailure,
    /// Never.
    Never,
}

/// What a guest is to boot from, seen from what it was booted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Root {
    /// The same.
    #[default]
    Same,
    /// Another disk, or what its disks held earlier; what it leaves behind is whole.
    Other,
    /// A new disk; what it has now is thrown away.
    New,
}

/// What is wished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wish {
    /// What it should be doing.
    pub desired: Desired,
    /// What it is to boot from; each start makes this so.
    pub root: Root,
    /// Counts requests to start over; each is acted on once.
    pub restart_request: i64,
    /// What to do after its end.
    pub policy: Policy,
    /// How long it may take to switch itself off.
    pub stop_timeout: Duration,
    /// It is to be deleted.
    pub deleted: bool,
}

/// Where a guest is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No process.
    Down,
    /// No process; the next start is at this time.
    Waiting(Duration),
    /// A start is under way.
    Starting,
    /// It runs, since this time.
    Running(Duration),
    /// Its processors are stopped.
    Paused,
    /// It was asked to switch itself off, and is killed at this time.
    Stopping(Duration),
    /// Its memory is being written.
    Suspending,
    /// No process; its memory is on disk, and is not given up for an error.
    Suspended,
    /// Deleted and cleared away.
    Gone,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something else is wished.
    Wished(Wish),
    /// The start is done.
    Started,
    /// The start failed, and there is no memory to resume from, or there is none any more.
    StartFailed,
    /// A start that was to resume failed, and its memory is still there.
    WakeFailed,
    /// Something that it needs is not there yet: no failure, and tried again whatever the policy.
    StartLater,
    /// The guest switched itself off.
    Off,
    /// The guest's process ended, or its kernel gave up.
    Crashed,
    /// The time that was asked for has come.
    Timer,
    /// Its memory is on disk and its process gone.
    Suspended,
    /// Its memory could not be written; it runs on.
    SuspendFailed,
    /// Everything of it is cleared away.
    Cleared,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start it; answer with `Started`, `StartFailed` or `WakeFailed`.
    Start {
        /// From its memory on disk.
        resuming: bool,
    },
    /// Press the power button.
    PressPower,
    /// End it at once. Nothing is running afterwards.
    Kill,
    /// Start it over in place.
    Reset,
    /// Stop its processors.
    Pause,
    /// Let them go on.
    Resume,
    /// Write its memory; answer with `Suspended` or `SuspendFailed`.
    Suspend,
    /// Forget its memory on disk.
    DropMemory,
    /// Call with `Timer` then.
    Wake(Duration),
    /// Take away everything; answer with `Cleared`.
    Clear,
    /// Tell what is.
    Report,
}

/// A guest's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Where it is.
    pub phase: Phase,
    /// What is wished.
    pub wish: Wish,
    /// The restart request that was acted on last.
    pub observed_restart: i64,
    /// It switched itself off, and nobody has asked for it since.
    pub stays_off: bool,
    /// Crashes and failed starts in a row.
    pub failures: u32,
    /// Suspended, it is not woken before this time.
    pub wake_at: Duration,
}

impl Life {
    /// A guest that has no process. `stays_off`: it had switched itself off before.
    pub fn down(observed_restart: i64, stays_off: bool, suspended: bool) -> Self {
        let phase = if suspended { Phase::Suspended } else { Phase::Down };
        Self { phase, wish: Wish::default(), observed_restart, stays_off, failures: 0, wake_at: Duration::ZERO }
    }

    /// A guest that was found running or paused.
    pub fn adopted(observed_restart: i64, paused: bool, now: Duration) -> Self {
        let phase = if paused { Phase::Paused } else { Phase::Running(now) };
        Self { phase, ..Self::down(observed_restart, false, false) }
    }

    /// Whether it has a process that somebody has to end.
    pub fn has_process(&self) -> bool {
        matches!(
            self.phase,
            Phase::Starting | Phase::Running(_) | Phase::Paused | Phase::Stopping(_) | Phase::Suspending
        )
    }
}

/// The next step.
pub fn step(life: &mut Life, event: Event, now: Duration) -> Vec<Action> {
    let mut actions = Vec::new();
    match event {
        Event::Wished(wish) => {
            if wish.desired != life.wish.desired {
                life.stays_off = false;
                life.failures = 0;
                life.wake_at = Duration::ZERO;
            }
            life.wish = wish;
        }
        Event::Started if life.phase == Phase::Starting => {
            life.phase = Phase::Running(now);
            actions.push(Action::Report);
        }
        Event::StartFailed if life.phase == Phase::Starting => fail(life, now, &mut actions),
        Event::WakeFailed if life.phase == Phase::Starting => {
            life.failures = life.failures.saturating_add(1);
            life.wake_at = now + backoff(life.failures);
            life.phase = Phase::Suspended;
            actions.push(Action::Report);
        }
        Event::StartLater if life.phase == Phase::Starting => {
            life.phase = Phase::Waiting(now + BACKOFF_FIRST);
            actions.push(Action::Report);
        }
        Event::Off if life.has_process() => {
            actions.push(Action::Kill);
            let asked = matches!(life.phase, Phase::Stopping(_)) || life.wish.desired == Desired::Stopped;
            life.stays_off = !asked && life.wish.policy != Policy::Always;
            life.phase = Phase::Down;
            actions.push(Action::Report);
        }
        Event::Crashed if life.has_process() => {
            actions.push(Action::Kill);
            if matches!(life.phase, Phase::Running(since) if now.saturating_sub(since) >= STABLE_AFTER) {
                life.failures = 0;
            }
            fail(life, now, &mut actions);
        }
        Event::Suspended if life.phase == Phase::Suspending => {
            life.phase = Phase::Suspended;
            actions.push(Action::Report);
        }
        Event::SuspendFailed if life.phase == Phase::Suspending => {
            // Not tried again until something else is wished: the user reads why.
            life.phase = Phase::Running(now);
            life.wish.desired = Desired::Running;
            actions.push(Action::Report);
        }
        Event::Cleared => life.phase = Phase::Gone,
        _ => {}
    }
    pursue(life, event, now, &mut actions);
    actions
}

/// How long to wait after so many failures in a row. The first one is repaired at once.
fn backoff(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        n => BACKOFF_FIRST.saturating_mul(1 << (n - 2).min(6)).min(BACKOFF_MAX),
    }
}

fn fail(life: &mut Life, now: Duration, actions: &mut Vec<Action>) {
    life.failures = life.failures.saturating_add(1);
    let wait = backoff(life.failures);
    if life.wish.policy == Policy::Never || life.wish.desired == Desired::Stopped {
        life.stays_off = true;
        life.phase = Phase::Down;
    } else {
        life.phase = Phase::Waiting(now + wait);
    }
    actions.push(Action::Report);
}

/// Moves toward what is wished, from wherever it is.
fn pursue(life: &mut Life, event: Event, now: Duration, actions: &mut Vec<Action>) {
    let timer = event == Event::Timer;
    if life.wish.deleted {
        return bury(life, actions);
    }
    let restart = life.wish.restart_request > life.observed_restart;
    let desired = life.wish.desired;
    match life.phase {
        Phase::Down if desired != Desired::Stopped && (restart || !life.stays_off) && desired != Desired::Suspended => {
            start(life, false, actions);
        }
        Phase::Waiting(_) if matches!(desired, Desired::Stopped | Desired::Suspended) => {
            life.phase = Phase::Down;
            actions.push(Action::Report);
        }
        Phase::Waiting(at) if at <= now || restart => start(life, false, actions),
        Phase::Waiting(at) => actions.push(Action::Wake(at)),
        // It is given no time to write to a disk that is thrown away.
        Phase::Running(_) if desired == Desired::Running && life.wish.root == Root::New => {
            life.phase = Phase::Down;
            actions.push(Action::Kill);
            start(life, false, actions);
        }
        Phase::Running(_)
            if desired == Desired::Stopped || (desired == Desired::Running && life.wish.root == Root::Other) =>
        {
            let at = now + life.wish.stop_timeout;
            life.phase = Phase::Stopping(at);
            actions.extend([Action::PressPower, Action::Wake(at), Action::Report]);
        }
        Phase::Running(_) if desired == Desired::Paused => {
            life.phase = Phase::Paused;
            actions.extend([Action::Pause, Action::Report]);
        }
        Phase::Running(_) | Phase::Paused if desired == Desired::Suspended => {
            life.phase = Phase::Suspending;
            actions.extend([Action::Report, Action::Suspend]);
        }
        Phase::Running(_) if restart => {
            life.observed_restart = life.wish.restart_request;
            actions.extend([Action::Reset, Action::Report]);
        }
        // Paused, it cannot answer the power button.
        Phase::Paused if desired == Desired::Stopped => {
            life.phase = Phase::Down;
            actions.extend([Action::Kill, Action::Report]);
        }
        Phase::Paused if desired == Desired::Running => {
            life.phase = Phase::Running(now);
            actions.extend([Action::Resume, Action::Report]);
            pursue(life, event, now, actions);
        }
        Phase::Stopping(at) if timer && at <= now => {
            life.phase = Phase::Down;
            actions.extend([Action::Kill, Action::Report]);
            pursue(life, Event::Cleared, now, actions);
        }
        Phase::Suspended if desired == Desired::Stopped => {
            life.phase = Phase::Down;
            actions.extend([Action::DropMemory, Action::Report]);
        }
        Phase::Suspended if desired == Desired::Suspended => {}
        // Who has it started over after it could not be woken does without what it had in mind.
        Phase::Suspended if restart && life.failures > 0 => start(life, false, actions),
        Phase::Suspended if life.wake_at <= now => start(life, true, actions),
        Phase::Suspended => actions.push(Action::Wake(life.wake_at)),
        _ => {}
    }
}

fn start(life: &mut Life, resuming: bool, actions: &mut Vec<Action>) {
    if !resuming {
        life.wish.root = Root::Same;
    }
    life.observed_restart = life.wish.restart_request;
    life.stays_off = false;
    life.phase = Phase::Starting;
    actions.extend([Action::Report, Action::Start { resuming }]);
}

fn bury(life: &mut Life, actions: &mut Vec<Action>) {
    match life.phase {
        Phase::Gone => {}
        // The answer to the start or the suspension comes first.
        Phase::Starting | Phase::Suspending => {}
        _ => {
            if life.has_process() {
                actions.push(Action::Kill);
            }
            life.phase = Phase::Down;
            actions.push(Action::Clear);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn wish(desired: Desired) -> Wish {
        Wish { desired, stop_timeout: 10 * SECOND, ..Wish::default() }
    }

    fn running() -> Life {
        let mut life = Life::down(0, false, false);
        assert!(
            step(&mut life, Event::Wished(wish(Desired::Running)), SECOND).contains(&Action::Start { resuming: false })
        );
        step(&mut life, Event::Started, SECOND);
        life
    }

    #[test]
    fn a_crash_is_repaired_at_once_and_later_ones_with_growing_waits() {
        let mut life = running();
        assert!(step(&mut life, Event::Crashed, 2 * SECOND).contains(&Action::Start { resuming: false }));
        step(&mut life, Event::Started, 2 * SECOND);
        let actions = step(&mut life, Event::Crashed, 3 * SECOND);
        assert!(actions.contains(&Action::Wake(4 * SECOND)) && life.phase == Phase::Waiting(4 * SECOND));
        assert!(step(&mut life, Event::Timer, 4 * SECOND).contains(&Action::Start { resuming: false }));
        step(&mut life, Event::Started, 4 * SECOND);
        assert!(
            step(&mut life, Event::Crashed, 4 * SECOND + STABLE_AFTER).contains(&Action::Start { resuming: false })
        );
    }

    #[test]
    fn a_guest_that_switched_itself_off_stays_off_until_asked() {
        let mut life = running();
        step(&mut life, Event::Off, 2 * SECOND);
        assert_eq!(life.phase, Phase::Down);
        step(&mut life, Event::Wished(wish(Desired::Running)), 3 * SECOND);
        assert_eq!(life.phase, Phase::Down);
        let again = Wish { restart_request: 1, ..wish(Desired::Running) };
        assert!(step(&mut life, Event::Wished(again), 3 * SECOND).contains(&Action::Start { resuming: false }));
    }

    #[test]
    fn who_does_not_switch_off_in_time_is_killed() {
        let mut life = running();
        let actions = step(&mut life, Event::Wished(wish(Desired::Stopped)), 2 * SECOND);
        assert_eq!(actions[..2], [Action::PressPower, Action::Wake(12 * SECOND)]);
        assert!(step(&mut life, Event::Timer, 12 * SECOND).contains(&Action::Kill));
        assert_eq!(life.phase, Phase::Down);
    }

    #[test]
    fn a_suspended_guest_resumes_from_its_memory() {
        let mut life = running();
        assert!(step(&mut life, Event::Wished(wish(Desired::Suspended)), SECOND).contains(&Action::Suspend));
        step(&mut life, Event::Suspended, SECOND);
        let actions = step(&mut life, Event::Wished(wish(Desired::Running)), SECOND);
        assert!(actions.contains(&Action::Start { resuming: true }));
    }

    #[test]
    fn a_guest_that_cannot_be_woken_sleeps_on_and_is_woken_again() {
        let mut life = Life::down(0, false, true);
        let never = Wish { policy: Policy::Never, ..wish(Desired::Running) };
        assert!(step(&mut life, Event::Wished(never), SECOND).contains(&Action::Start { resuming: true }));
        assert!(step(&mut life, Event::WakeFailed, SECOND).contains(&Action::Start { resuming: true }));
        let actions = step(&mut life, Event::WakeFailed, SECOND);
        assert_eq!((actions, life.phase), (vec![Action::Report, Action::Wake(2 * SECOND)], Phase::Suspended));
        // Another word of the same wish does not hurry it.
        assert_eq!(step(&mut life, Event::Wished(never), SECOND), [Action::Wake(2 * SECOND)]);
        assert!(step(&mut life, Event::Timer, 2 * SECOND).contains(&Action::Start { resuming: true }));
        let actions = step(&mut life, Event::WakeFailed, 2 * SECOND);
        assert!(actions.contains(&Action::Wake(4 * SECOND)), "{actions:?}");
        // What is wished anew is tried at once.
        assert!(step(&mut life, Event::Wished(wish(Desired::Suspended)), 2 * SECOND).is_empty());
        let actions = step(&mut life, Event::Wished(never), 2 * SECOND);
        assert!(actions.contains(&Action::Start { resuming: true }), "{actions:?}");
        step(&mut life, Event::Started, 2 * SECOND);
        assert_eq!(life.phase, Phase::Running(2 * SECOND));
    }

    #[test]
    fn a_guest_that_cannot_be_woken_is_switched_off_or_started_over_by_who_asks_for_that() {
        let mut life = Life::down(0, false, true);
        step(&mut life, Event::Wished(wish(Desired::Running)), SECOND);
        step(&mut life, Event::WakeFailed, SECOND);
        step(&mut life, Event::WakeFailed, SECOND);
        let mut over = life.clone();
        let actions = step(&mut life, Event::Wished(wish(Desired::Stopped)), SECOND);
        assert_eq!((actions, life.phase), (vec![Action::DropMemory, Action::Report], Phase::Down));
        let again = Wish { restart_request: 1, ..wish(Desired::Running) };
        let actions = step(&mut over, Event::Wished(again), SECOND);
        assert!(actions.contains(&Action::Start { resuming: false }), "{actions:?}");
        // With nothing to resume from, it is a start like any other.
        let mut life = Life::down(0, false, true);
        step(&mut life, Event::Wished(wish(Desired::Running)), SECOND);
        let actions = step(&mut life, Event::StartFailed, SECOND);
        assert!(actions.contains(&Action::Start { resuming: false }), "{actions:?}");
    }

    #[test]
    fn a_guest_with_another_disk_is_switched_off_and_one_with_a_new_disk_killed() {
        let mut life = running();
        let other = Wish { root: Root::Other, ..wish(Desired::Running) };
        let actions = step(&mut life, Event::Wished(other), 2 * SECOND);
        assert_eq!(actions[..2], [Action::PressPower, Action::Wake(12 * SECOND)]);
        let actions = step(&mut life, Event::Off, 3 * SECOND);
        assert!(actions.contains(&Action::Start { resuming: false }), "{actions:?}");
        let actions = step(&mut life, Event::Started, 3 * SECOND);
        assert_eq!(actions, [Action::Report], "it is done once");
        let new = Wish { root: Root::New, ..wish(Desired::Running) };
        let actions = step(&mut life, Event::Wished(new), 4 * SECOND);
        assert_eq!(actions, [Action::Kill, Action::Report, Action::Start { resuming: false }]);
        // A start that fails is tried again after its wait, not at each word about it.
        step(&mut life, Event::StartFailed, 5 * SECOND);
        step(&mut life, Event::StartFailed, 6 * SECOND);
        let waiting = life.phase;
        assert!(matches!(waiting, Phase::Waiting(_) | Phase::Starting), "{waiting:?}");
    }

    #[test]
    fn a_sleeping_guest_wakes_with_the_disk_that_it_had() {
        let mut life = Life::down(0, false, true);
        let new = Wish { root: Root::New, ..wish(Desired::Running) };
        assert!(step(&mut life, Event::Wished(new), SECOND).contains(&Action::Start { resuming: true }));
        let actions = step(&mut life, Event::Started, SECOND);
        assert_eq!(actions, [Action::Report, Action::Kill, Action::Report, Action::Start { resuming: false }]);
    }

    fn event() -> impl Strategy<Value = Event> {
        let desired = prop_oneof![
            Just(Desired::Running),
            Just(Desired::Stopped),
            Just(Desired::Paused),
            Just(Desired::Suspended)
        ];
        let policy = prop_oneof![Just(Policy::Always), Just(Policy::OnFailure), Just(Policy::Never)];
        let root = prop_oneof![3 => Just(Root::Same), 1 => Just(Root::Other), 1 => Just(Root::New)];
        let wish = (desired, policy, root, 0i64..3, prop::bool::weighted(0.05)).prop_map(
            |(desired, policy, root, request, deleted)| {
                let stop_timeout = 3 * SECOND;
                Event::Wished(Wish { desired, root, policy, restart_request: request, stop_timeout, deleted })
            },
        );
        prop_oneof![
            4 => wish,
            2 => Just(Event::Started),
            1 => Just(Event::StartFailed),
            1 => Just(Event::WakeFailed),
            1 => Just(Event::StartLater),
            1 => Just(Event::Off),
            1 => Just(Event::Crashed),
            2 => Just(Event::Timer),
            1 => Just(Event::Suspended),
            1 => Just(Event::SuspendFailed),
        ]
    }

    #[test]
    fn a_machine_that_waits_for_something_is_started_whatever_its_policy() {
        let mut life = Life::down(0, false, false);
        step(&mut life, Event::Wished(Wish { policy: Policy::Never, ..wish(Desired::Running) }), SECOND);
        let actions = step(&mut life, Event::StartLater, SECOND);
        assert!(actions.contains(&Action::Wake(SECOND + BACKOFF_FIRST)), "{actions:?}");
        assert_eq!(life.failures, 0);
        let actions = step(&mut life, Event::Timer, SECOND + BACKOFF_FIRST);
        assert!(actions.contains(&Action::Start { resuming: false }), "{actions:?}");
    }

    proptest! {
        /// The world: a process is there from a start until it is killed or suspended, and memory on disk from a suspension until its
        /// guest has gone on from it, or without it.
        #[test]
        fn there_are_never_two_processes_of_one_guest_and_no_error_costs_its_memory(
            events in prop::collection::vec(event(), 1..60)
        ) {
            let mut life = Life::down(0, false, false);
            let (mut alive, mut sleeps, mut resuming) = (false, false, false);
            for (index, event) in events.into_iter().enumerate() {
                let starting = life.phase == Phase::Starting;
                // The world answers a start before anything else about the process can happen, and as it is.
                let event = match event {
                    Event::Off | Event::Crashed | Event::StartFailed | Event::StartLater | Event::WakeFailed
                        if starting =>
                    {
                        match (resuming, event) {
                            (true, _) => Event::WakeFailed,
                            (false, Event::StartLater) => Event::StartLater,
                            (false, _) => Event::StartFailed,
                        }
                    }
                    other => other,
                };
                if starting && matches!(event, Event::StartFailed | Event::StartLater | Event::WakeFailed) {
                    alive = false;
                }
                if starting && event == Event::Started {
                    sleeps = false;
                }
                if event == Event::Suspended && life.phase == Phase::Suspending {
                    (alive, sleeps) = (false, true);
                }
                let now = SECOND * u32::try_from(index).unwrap();
                let observed = life.observed_restart;
                for action in step(&mut life, event, now) {
                    match action {
                        Action::Start { resuming: from_memory } => {
                            prop_assert!(!alive, "started twice");
                            let asked = life.wish.restart_request > observed;
                            prop_assert!(from_memory == sleeps || (asked && !from_memory), "started without its memory");
                            (alive, resuming) = (true, from_memory);
                            sleeps &= from_memory;
                        }
                        Action::DropMemory => {
                            prop_assert_eq!(life.wish.desired, Desired::Stopped);
                            sleeps = false;
                        }
                        Action::Kill => alive = false,
                        Action::Clear => {
                            prop_assert!(!alive, "cleared under a running guest");
                            sleeps = false;
                        }
                        _ => {}
                    }
                }
                prop_assert_eq!(alive, life.has_process());
                let is_waking = life.phase == Phase::Starting && resuming;
                prop_assert_eq!(sleeps, life.phase == Phase::Suspended || is_waking);
            }
        }
    }
}
