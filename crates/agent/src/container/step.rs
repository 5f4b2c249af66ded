//! The life of one `Container` as a pure state machine: `step(machine, event, now) -> actions`. No I/O, no clock.
//!
//! ```text
//!             start request            started
//!   Idle ─────────────────────▶ Starting ─────────▶ Running ◀──────────┐
//!    ▲ ▲      start failed         │                 │  │ stop wanted   │
//!    │ └───────────────────────────┘          exited │  ▼               │ start request
//!    │                                               │ Stopping ────────┤ (restart)
//!    │    policy says no                             ▼  │ exited        │
//!    └──────────────────────────────────────── (exit) ◀─┘               │
//!    │                                               │ policy says yes  │
//!    │                                               ▼      timer       │
//!    └────────────── stop wanted ─────────────── Waiting ───▶ Starting ─┘
//!   object deleted, from anywhere: stop at once, then Removing ─▶ Gone; auto-removed, likewise after its last run
//!   deleted, and SIGKILL is without effect for `KILL_REPEAT`: its shim may hang, and the run is ended without it
//! ```

use std::time::Duration;

use api::container::{Desired, RestartPolicy, State};

/// First delay before a restart by policy. Source: moby `restartmanager`.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest delay before a restart by policy. Source: moby `restartmanager`.
pub const BACKOFF_LONGEST: Duration = Duration::from_secs(60);
/// A run of at least this length forgets earlier failures. Source: moby `restartmanager`.
pub const BACKOFF_RESET: Duration = Duration::from_secs(10);
/// How long a stop waits before SIGKILL when nobody says otherwise. Source: Docker's default.
pub const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// SIGKILL is repeated at this pace while the exit is not seen; a deletion waits no longer for it, and ends the run without the shim.
pub const KILL_REPEAT: Duration = Duration::from_secs(5);
/// SIGKILL's number, the same on every Linux.
pub const SIGKILL: i32 = 9;

/// Instants are durations since an arbitrary origin of the caller.
pub type Instant = Duration;

/// The parts of the object that decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What it should be doing.
    pub desired: Desired,
    /// Counts requests to start.
    pub start_request: i64,
    /// When to start it again by itself.
    pub restart_policy: RestartPolicy,
    /// Delete the object when it ends.
    pub auto_remove: bool,
    /// The object has a deletion timestamp.
    pub deleted: bool,
    /// How long a stop waits; `None` means for ever.
    pub stop_timeout: Option<Duration>,
    /// Signal that asks it to stop.
    pub stop_signal: i32,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            desired: Desired::Created,
            start_request: 0,
            restart_policy: RestartPolicy::default(),
            auto_remove: false,
            deleted: false,
            stop_timeout: Some(STOP_TIMEOUT_DEFAULT),
            stop_signal: 15,
        }
    }
}

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Does not run; nothing is planned.
    Idle,
    /// Its start is under way.
    Starting,
    /// Runs (or is frozen) since the given instant.
    Running {
        /// When it came up.
        since: Instant,
        /// Frozen.
        paused: bool,
    },
    /// Was asked to stop.
    Stopping {
        /// When it came up.
        since: Instant,
        /// When to send SIGKILL; `None` means never.
        kill_at: Option<Instant>,
        /// It was sent before.
        killed: bool,
    },
    /// Ended; restarts by policy at the given instant.
    Waiting {
        /// When to start.
        until: Instant,
    },
    /// Everything of it is being taken away.
    Removing,
    /// Nothing is left.
    Gone,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The object changed (or was read first).
    Wished(Wish),
    /// The start worked.
    Started,
    /// The start failed; nothing of it runs.
    StartFailed,
    /// The main process ended.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// The timer that was asked for went off.
    Timer,
    /// Everything is taken away.
    Removed,
    /// The object is no more in the store.
    Vanished,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make ready and start; answer with `Started` or `StartFailed`.
    Start,
    /// Send a signal to the main process.
    Signal(i32),
    /// End the run without its shim, which does not say that it ended; answer with `Exited`, unless that fails.
    End,
    /// Freeze.
    Pause,
    /// Go on.
    Resume,
    /// Take away what belongs to one run: process state, network, mounts.
    EndRun,
    /// Send `Timer` at the instant; replaces an earlier one.
    Wake(Instant),
    /// Write the status (state as `Machine::state` says).
    Report,
    /// Take everything away; answer with `Removed`.
    Remove,
    /// Let go of the object: delete it unless somebody did, and remove the finalizer.
    Release,
}

/// The state of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Where it is.
    pub phase: Phase,
    /// What is wanted.
    pub wish: Wish,
    /// The start request that was acted on last.
    pub observed_start: i64,
    /// Restarts by policy since the last start request.
    pub restart_count: i64,
    /// Last back-off.
    pub backoff: Duration,
    /// Whether it ever ran, for `Machine::state`.
    pub ever_started: bool,
    /// The object is gone from the store: nothing can be written.
    pub vanished: bool,
}

impl Machine {
    /// A container of which nothing runs yet.
    #[must_use]
    pub fn new(observed_start: i64, restart_count: i64, ever_started: bool) -> Self {
        Self {
            phase: Phase::Idle,
            wish: Wish::default(),
            observed_start,
            restart_count,
            backoff: Duration::ZERO,
            ever_started,
            vanished: false,
        }
    }

    /// A container that was found running when the daemon came back.
    #[must_use]
    pub fn adopted(observed_start: i64, restart_count: i64, since: Instant, paused: bool) -> Self {
        Self { phase: Phase::Running { since, paused }, ..Self::new(observed_start, restart_count, true) }
    }

    /// The state to report.
    #[must_use]
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Idle | Phase::Starting if !self.ever_started => State::Created,
            Phase::Idle | Phase::Starting => State::Exited,
            Phase::Running { paused: true, .. } => State::Paused,
            Phase::Running { .. } | Phase::Stopping { .. } => State::Running,
            Phase::Waiting { .. } => State::Restarting,
            Phase::Removing | Phase::Gone if self.ever_started => State::Exited,
            Phase::Removing | Phase::Gone => State::Created,
        }
    }

    /// Whether a start was requested that was not acted on.
    fn start_due(&self) -> bool {
        matches!(self.wish.desired, Desired::Running | Desired::Paused)
            && self.wish.start_request > self.observed_start
            && !self.wish.deleted
    }

    /// Whether it should be down.
    fn stop_due(&self) -> bool {
        self.wish.deleted || matches!(self.wish.desired, Desired::Stopped)
    }

    fn restart_by_policy(&self, code: i32) -> bool {
        if self.stop_due() || self.wish.desired == Desired::Created {
            return false;
        }
        let policy = &self.wish.restart_policy;
        match policy.name.as_str() {
            "always" | "unless-stopped" => true,
            "on-failure" => {
                code != 0 && (policy.maximum_retry_count == 0 || self.restart_count < policy.maximum_retry_count)
            }
            _ => false,
        }
    }
}

/// Advances the machine by one event.
#[must_use]
pub fn step(machine: &mut Machine, event: Event, now: Instant) -> Vec<Action> {
    let mut actions = Vec::new();
    match event {
        Event::Wished(wish) => {
            machine.wish = wish;
            settle(machine, now, &mut actions);
        }
        Event::Started => {
            if machine.phase == Phase::Starting {
                machine.phase = Phase::Running { since: now, paused: false };
                machine.ever_started = true;
                actions.push(Action::Report);
                settle(machine, now, &mut actions);
            }
        }
        Event::StartFailed => {
            if machine.phase == Phase::Starting {
                machine.phase = Phase::Idle;
                actions.push(Action::EndRun);
                actions.push(Action::Report);
                finish(machine, &mut actions);
                settle(machine, now, &mut actions);
            }
        }
        Event::Exited { code } => exited(machine, code, now, &mut actions),
        Event::Timer => timer(machine, now, &mut actions),
        Event::Removed => {
            if machine.phase == Phase::Removing {
                machine.phase = Phase::Gone;
                actions.push(Action::Release);
            }
        }
        Event::Vanished => {
            machine.vanished = true;
            machine.wish.deleted = true;
            settle(machine, now, &mut actions);
        }
    }
    actions
}

fn exited(machine: &mut Machine, code: i32, now: Instant, actions: &mut Vec<Action>) {
    let since = match machine.phase {
        Phase::Running { since, .. } | Phase::Stopping { since, .. } => since,
        _ => return,
    };
    machine.phase = Phase::Idle;
    if !machine.start_due() && machine.restart_by_policy(code) {
        machine.backoff = next_backoff(machine.backoff, now.saturating_sub(since));
        machine.restart_count += 1;
        let until = now + machine.backoff;
        machine.phase = Phase::Waiting { until };
        actions.extend([Action::EndRun, Action::Report, Action::Wake(until)]);
        return;
    }
    actions.extend([Action::EndRun, Action::Report]);
    if !machine.start_due() {
        finish(machine, actions);
    }
    settle(machine, now, actions);
}

/// A run is over for good: take everything away if it was to be removed.
fn finish(machine: &mut Machine, actions: &mut Vec<Action>) {
    if machine.wish.auto_remove && !machine.wish.deleted {
        remove(machine, actions);
    }
}

fn timer(machine: &mut Machine, now: Instant, actions: &mut Vec<Action>) {
    match &mut machine.phase {
        Phase::Waiting { until } if now >= *until => {
            machine.phase = Phase::Starting;
            actions.push(Action::Start);
        }
        Phase::Stopping { kill_at: Some(at), killed, .. } if now >= *at => {
            *at = now + KILL_REPEAT;
            let kill = if *killed && machine.wish.deleted { Action::End } else { Action::Signal(SIGKILL) };
            *killed = true;
            actions.extend([kill, Action::Wake(*at)]);
        }
        Phase::Waiting { until: at } | Phase::Stopping { kill_at: Some(at), .. } => actions.push(Action::Wake(*at)),
        _ => {}
    }
}

/// Compares what is with what is wanted, and starts the way there.
fn settle(machine: &mut Machine, now: Instant, actions: &mut Vec<Action>) {
    match machine.phase.clone() {
        Phase::Idle if machine.wish.deleted => remove(machine, actions),
        Phase::Idle | Phase::Waiting { .. } if machine.start_due() => start(machine, actions),
        Phase::Waiting { .. } if machine.wish.deleted => remove(machine, actions),
        Phase::Waiting { .. } if machine.stop_due() => {
            machine.phase = Phase::Idle;
            actions.push(Action::Report);
            finish(machine, actions);
        }
        Phase::Running { since, paused } => settle_running(machine, since, paused, now, actions),
        // SIGKILL is on its way, and is repeated: nothing is shorter, and news of the object must not put off what follows it.
        Phase::Stopping { killed: true, .. } => {}
        Phase::Stopping { since, .. } => {
            // A deletion does not wait any longer; a second stop may shorten the wait, never lengthen it.
            let wanted = if machine.wish.deleted { Some(now) } else { machine.wish.stop_timeout.map(|t| now + t) };
            shorten_stop(machine, since, wanted, now, actions);
        }
        _ => {}
    }
}

fn shorten_stop(
    machine: &mut Machine,
    since: Instant,
    wanted: Option<Instant>,
    now: Instant,
    actions: &mut Vec<Action>,
) {
    let Phase::Stopping { kill_at, .. } = machine.phase else { return };
    let Some(wanted) = wanted else { return };
    if kill_at.is_none_or(|at| wanted < at) {
        if wanted <= now {
            actions.push(Action::Signal(SIGKILL));
            let again = now + KILL_REPEAT;
            machine.phase = Phase::Stopping { since, kill_at: Some(again), killed: true };
            actions.push(Action::Wake(again));
        } else {
            machine.phase = Phase::Stopping { since, kill_at: Some(wanted), killed: false };
            actions.push(Action::Wake(wanted));
        }
    }
}

fn settle_running(machine: &mut Machine, since: Instant, paused: bool, now: Instant, actions: &mut Vec<Action>) {
    if machine.stop_due() || machine.start_due() {
        if paused {
            actions.push(Action::Resume);
        }
        let timeout = if machine.wish.deleted { Some(Duration::ZERO) } else { machine.wish.stop_timeout };
        let kill_now = timeout == Some(Duration::ZERO);
        actions.push(Action::Signal(if kill_now { SIGKILL } else { machine.wish.stop_signal }));
        let kill_at = timeout.map(|t| now + if kill_now { KILL_REPEAT } else { t });
        machine.phase = Phase::Stopping { since, kill_at, killed: kill_now };
        if let Some(at) = kill_at {
            actions.push(Action::Wake(at));
        }
        return;
    }
    match (machine.wish.desired, paused) {
        (Desired::Paused, false) => {
            machine.phase = Phase::Running { since, paused: true };
            actions.extend([Action::Pause, Action::Report]);
        }
        (Desired::Running, true) => {
            machine.phase = Phase::Running { since, paused: false };
            actions.extend([Action::Resume, Action::Report]);
        }
        _ => {}
    }
}

fn start(machine: &mut Machine, actions: &mut Vec<Action>) {
    machine.observed_start = machine.wish.start_request;
    machine.restart_count = 0;
    machine.backoff = Duration::ZERO;
    machine.phase = Phase::Starting;
    actions.push(Action::Start);
}

fn remove(machine: &mut Machine, actions: &mut Vec<Action>) {
    machine.phase = Phase::Removing;
    actions.push(Action::Remove);
}

fn next_backoff(last: Duration, ran: Duration) -> Duration {
    if ran >= BACKOFF_RESET || last.is_zero() { BACKOFF_FIRST } else { (last * 2).min(BACKOFF_LONGEST) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn running(wish: Wish) -> Machine {
        let mut machine = Machine::new(0, 0, false);
        assert_eq!(step(&mut machine, Event::Wished(wish), T0), [Action::Start]);
        assert_eq!(step(&mut machine, Event::Started, T0), [Action::Report]);
        machine
    }

    const T0: Instant = Duration::from_secs(100);

    fn wish(start_request: i64, policy: &str) -> Wish {
        let restart_policy = RestartPolicy { name: policy.into(), maximum_retry_count: 0 };
        Wish { desired: Desired::Running, start_request, restart_policy, ..Wish::default() }
    }

    #[test]
    fn a_created_container_waits_for_its_first_start() {
        let mut machine = Machine::new(0, 0, false);
        assert_eq!(step(&mut machine, Event::Wished(Wish::default()), T0), []);
        assert_eq!(machine.state(), State::Created);
        assert_eq!(step(&mut machine, Event::Wished(wish(1, "no")), T0), [Action::Start]);
        assert_eq!(machine.observed_start, 1);
    }

    #[test]
    fn a_container_that_ends_by_itself_stays_down_without_a_policy() {
        let mut machine = running(wish(1, "no"));
        assert_eq!(step(&mut machine, Event::Exited { code: 3 }, T0), [Action::EndRun, Action::Report]);
        assert_eq!(machine.state(), State::Exited);
        assert_eq!(step(&mut machine, Event::Wished(wish(1, "no")), T0), []);
        assert_eq!(step(&mut machine, Event::Wished(wish(2, "no")), T0), [Action::Start]);
    }

    #[test]
    fn a_stop_asks_first_and_kills_later() {
        let mut machine = running(wish(1, "always"));
        let stopped =
            Wish { desired: Desired::Stopped, stop_timeout: Some(Duration::from_secs(3)), ..wish(1, "always") };
        let kill_at = T0 + Duration::from_secs(3);
        assert_eq!(step(&mut machine, Event::Wished(stopped.clone()), T0), [Action::Signal(15), Action::Wake(kill_at)]);
        assert_eq!(step(&mut machine, Event::Wished(stopped), T0 + Duration::from_secs(1)), [], "never later");
        let again = kill_at + KILL_REPEAT;
        assert_eq!(step(&mut machine, Event::Timer, kill_at), [Action::Signal(SIGKILL), Action::Wake(again)]);
        assert_eq!(step(&mut machine, Event::Exited { code: 137 }, kill_at), [Action::EndRun, Action::Report]);
        assert_eq!(machine.state(), State::Exited);
    }

    #[test]
    fn a_restart_stops_before_it_starts() {
        let mut machine = running(wish(1, "no"));
        let actions = step(&mut machine, Event::Wished(wish(2, "no")), T0);
        assert_eq!(actions[0], Action::Signal(15));
        assert_eq!(
            step(&mut machine, Event::Exited { code: 143 }, T0),
            [Action::EndRun, Action::Report, Action::Start]
        );
        assert_eq!(machine.observed_start, 2);
    }

    #[test]
    fn a_restart_policy_backs_off_from_100_ms_to_a_minute_and_forgives_long_runs() {
        let mut machine = running(wish(1, "always"));
        let mut now = T0;
        let mut delays = Vec::new();
        for _ in 0..12 {
            let _ = step(&mut machine, Event::Exited { code: 0 }, now);
            let Phase::Waiting { until } = machine.phase else { panic!("{machine:?}") };
            delays.push((until - now).as_millis());
            now = until;
            assert_eq!(step(&mut machine, Event::Timer, now), [Action::Start]);
            let _ = step(&mut machine, Event::Started, now);
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        let _ = step(&mut machine, Event::Exited { code: 0 }, now + BACKOFF_RESET);
        assert_eq!(machine.backoff, BACKOFF_FIRST);
        assert_eq!(machine.restart_count, 13);
    }

    #[test]
    fn on_failure_gives_up_after_its_retries() {
        let mut limited = wish(1, "on-failure");
        limited.restart_policy.maximum_retry_count = 1;
        let mut machine = running(limited);
        let _ = step(&mut machine, Event::Exited { code: 1 }, T0);
        let _ = step(&mut machine, Event::Timer, T0 + BACKOFF_FIRST);
        let _ = step(&mut machine, Event::Started, T0 + BACKOFF_FIRST);
        assert_eq!(step(&mut machine, Event::Exited { code: 1 }, T0 + BACKOFF_FIRST), [Action::EndRun, Action::Report]);
        let mut machine = running(wish(1, "on-failure"));
        assert_eq!(step(&mut machine, Event::Exited { code: 0 }, T0), [Action::EndRun, Action::Report]);
    }

    #[test]
    fn a_deleted_container_is_killed_removed_and_let_go() {
        let mut machine = running(wish(1, "always"));
        let deleted = Wish { deleted: true, ..wish(1, "always") };
        assert_eq!(step(&mut machine, Event::Wished(deleted), T0)[0], Action::Signal(SIGKILL));
        assert_eq!(
            step(&mut machine, Event::Exited { code: 137 }, T0),
            [Action::EndRun, Action::Report, Action::Remove]
        );
        assert_eq!(step(&mut machine, Event::Removed, T0), [Action::Release]);
    }

    #[test]
    fn a_deletion_ends_a_run_whose_shim_does_not_say_that_it_ended() {
        for gone in [Event::Vanished, Event::Wished(Wish { deleted: true, ..wish(1, "always") })] {
            let mut machine = running(wish(1, "always"));
            let due = T0 + KILL_REPEAT;
            assert_eq!(step(&mut machine, gone.clone(), T0), [Action::Signal(SIGKILL), Action::Wake(due)]);
            assert_eq!(step(&mut machine, gone, T0 + KILL_REPEAT / 2), [], "what is told of it puts nothing off");
            assert_eq!(step(&mut machine, Event::Timer, due), [Action::End, Action::Wake(due + KILL_REPEAT)]);
            // It failed, and is tried again.
            let again = step(&mut machine, Event::Timer, due + KILL_REPEAT);
            assert_eq!(again, [Action::End, Action::Wake(due + KILL_REPEAT * 2)]);
            let end = [Action::EndRun, Action::Report, Action::Remove];
            assert_eq!(step(&mut machine, Event::Exited { code: 137 }, due + KILL_REPEAT), end);
        }
    }

    #[test]
    fn a_stop_leaves_the_end_to_the_shim_until_the_container_is_deleted() {
        let mut machine = running(wish(1, "no"));
        let stopped = Wish { desired: Desired::Stopped, stop_timeout: Some(Duration::ZERO), ..wish(1, "no") };
        let kill = |at: Instant| [Action::Signal(SIGKILL), Action::Wake(at + KILL_REPEAT)];
        assert_eq!(step(&mut machine, Event::Wished(stopped.clone()), T0), kill(T0));
        let (second, third) = (T0 + KILL_REPEAT, T0 + KILL_REPEAT * 2);
        assert_eq!(step(&mut machine, Event::Timer, second), kill(second));
        assert_eq!(step(&mut machine, Event::Wished(Wish { deleted: true, ..stopped }), second), []);
        assert_eq!(step(&mut machine, Event::Timer, third), [Action::End, Action::Wake(third + KILL_REPEAT)]);
    }

    #[test]
    fn auto_remove_takes_everything_away_at_the_end_and_lets_go() {
        let auto = Wish { auto_remove: true, ..wish(1, "no") };
        let end = [Action::EndRun, Action::Report, Action::Remove];
        let mut machine = running(auto.clone());
        assert_eq!(step(&mut machine, Event::Exited { code: 0 }, T0), end);
        assert_eq!(machine.state(), State::Exited);
        // Too late.
        assert_eq!(step(&mut machine, Event::Wished(Wish { start_request: 2, ..auto.clone() }), T0), []);
        assert_eq!(step(&mut machine, Event::Wished(Wish { deleted: true, ..auto.clone() }), T0), []);
        assert_eq!(step(&mut machine, Event::Removed, T0), [Action::Release]);
        let mut machine = Machine::new(0, 0, false);
        let _ = step(&mut machine, Event::Wished(auto), T0);
        assert_eq!(step(&mut machine, Event::StartFailed, T0), end);
        assert_eq!(machine.state(), State::Created);
    }

    #[test]
    fn pausing_freezes_and_a_stop_thaws_first() {
        let mut machine = running(wish(1, "no"));
        let paused = Wish { desired: Desired::Paused, ..wish(1, "no") };
        assert_eq!(step(&mut machine, Event::Wished(paused), T0), [Action::Pause, Action::Report]);
        assert_eq!(machine.state(), State::Paused);
        let stopped = Wish { desired: Desired::Stopped, ..wish(1, "no") };
        assert_eq!(step(&mut machine, Event::Wished(stopped), T0)[..2], [Action::Resume, Action::Signal(15)]);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let desired =
            prop_oneof![Just(Desired::Created), Just(Desired::Running), Just(Desired::Stopped), Just(Desired::Paused)];
        let policy = prop_oneof![Just("no"), Just("always"), Just("on-failure")];
        prop_oneof![
            (desired, 0..4i64, policy, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
                |(desired, start_request, policy, auto_remove, deleted)| {
                    Event::Wished(Wish { desired, auto_remove, deleted, ..wish(start_request, policy) })
                }
            ),
            Just(Event::Started),
            Just(Event::StartFailed),
            (0..2i32).prop_map(|code| Event::Exited { code }),
            Just(Event::Timer),
        ]
    }

    proptest! {
        #[test]
        fn it_never_starts_what_runs_and_always_ends_when_deleted(events in prop::collection::vec(any_event(), 0..40)) {
            let mut machine = Machine::new(0, 0, false);
            let (mut now, mut live) = (T0, false);
            for event in events {
                now += Duration::from_secs(1);
                // The world only reports what can be.
                match event {
                    Event::Started | Event::StartFailed if machine.phase != Phase::Starting => continue,
                    Event::Exited { .. } if !live => continue,
                    _ => {}
                }
                live = match event { Event::Started => true, Event::Exited { .. } => false, _ => live };
                for action in step(&mut machine, event, now) {
                    if action == Action::Start || action == Action::Remove {
                        prop_assert!(!live, "{machine:?}");
                    }
                }
            }
            let _ = step(&mut machine, Event::Vanished, now);
            for _ in 0..4 {
                let event = match machine.phase {
                    Phase::Starting => Event::Started,
                    Phase::Running { .. } | Phase::Stopping { .. } => Event::Exited { code: 137 },
                    Phase::Removing => Event::Removed,
                    _ => Event::Timer,
                };
                let _ = step(&mut machine, event, now);
            }
            prop_assert_eq!(machine.phase, Phase::Gone);
        }
    }
}
