//! What to do next for a pod: pure decisions over what is known of its containers. No I/O, no clock.
//!
//! Init containers run one after another, each to its end; a sidecar (an init container that always restarts) must only
//! have started before the next; then all main containers run together. When every main container is done for good, the
//! sidecars are stopped in reverse order. Source: Kubernetes, "Pod Lifecycle", "Init Containers", "Sidecar Containers".

use std::time::Duration;

/// First delay before a crashed container is started again (the very first restart is immediate).
pub const CRASH_BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// Longest delay before a crashed container is started again.
pub const CRASH_BACKOFF_LONGEST: Duration = Duration::from_secs(300);
/// A run of at least this length forgets earlier crashes.
pub const CRASH_BACKOFF_RESET: Duration = Duration::from_secs(600);

/// Instants are durations since an arbitrary origin of the caller.
pub type Instant = Duration;

/// What kind of container it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Runs to its end before the main ones.
    Init,
    /// Starts before the main ones and stays.
    Sidecar,
    /// An ordinary container.
    Main,
    /// Added to a running pod for a person's look at it; runs once, and nothing depends on it.
    Ephemeral,
}

/// When the pod's containers are started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// Whenever they end.
    #[default]
    Always,
    /// When they fail.
    OnFailure,
    /// Never.
    Never,
}

impl Restart {
    /// Reads `spec.restartPolicy`.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It never ran.
    Fresh,
    /// A start is under way.
    Starting,
    /// It runs.
    Running {
        /// Its start-up probe passed (or there is none).
        started: bool,
    },
    /// It was asked to end and has not yet.
    Stopping,
    /// It ended.
    Exited {
        /// Exit code.
        code: i32,
    },
}

/// One container, as far as decisions need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Kind.
    pub class: Class,
    /// Place in its life.
    pub life: Life,
    /// Must not be started before (back-off).
    pub not_before: Option<Instant>,
}

/// What to do with the container at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start it.
    Start(usize),
    /// Stop it gracefully.
    Stop(usize),
    /// Decide again at the instant.
    Wake(Instant),
}

/// The pod's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Some container has not run yet.
    Pending,
    /// At least one runs, or will again.
    Running,
    /// All ended well.
    Succeeded,
    /// All ended, at least one badly.
    Failed,
}

impl Phase {
    /// The word in `status.phase`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// Decides the next actions; `views` holds init containers and sidecars in order, then the main containers.
#[must_use]
pub fn decide(views: &[View], restart: Restart, now: Instant) -> Vec<Action> {
    let mut actions = Vec::new();
    if finished(views, restart) {
        stop_sidecars(views, &mut actions);
        return actions;
    }
    for (index, view) in views.iter().enumerate() {
        if view.class == Class::Ephemeral && view.life == Life::Fresh {
            want_running(index, view, now, &mut actions);
        }
    }
    let main_began = views.iter().any(|v| v.class == Class::Main && v.life != Life::Fresh);
    for (index, view) in views.iter().enumerate() {
        match view.class {
            Class::Init => {
                if main_began || view.life == (Life::Exited { code: 0 }) {
                    continue;
                }
                want_running(index, view, now, &mut actions);
                return actions;
            }
            Class::Sidecar => {
                if matches!(view.life, Life::Fresh | Life::Exited { .. }) {
                    want_running(index, view, now, &mut actions);
                }
                if !main_began && view.life != (Life::Running { started: true }) {
                    return actions;
                }
            }
            Class::Main => {
                if !done(view, restart) {
                    want_running(index, view, now, &mut actions);
                }
            }
            Class::Ephemeral => {}
        }
    }
    actions
}

fn want_running(index: usize, view: &View, now: Instant, actions: &mut Vec<Action>) {
    if !matches!(view.life, Life::Fresh | Life::Exited { .. }) {
        return;
    }
    match view.not_before {
        Some(at) if at > now => actions.push(Action::Wake(at)),
        _ => actions.push(Action::Start(index)),
    }
}

/// Stops the last sidecar that still lives; its exit leads to the one before.
fn stop_sidecars(views: &[View], actions: &mut Vec<Action>) {
    let living = views.iter().enumerate().rev().find(|(_, v)| {
        v.class == Class::Sidecar && matches!(v.life, Life::Running { .. } | Life::Starting | Life::Stopping)
    });
    if let Some((index, View { life: Life::Running { .. }, .. })) = living {
        actions.push(Action::Stop(index));
    }
}

/// A container that will not be started again by itself.
fn done(view: &View, restart: Restart) -> bool {
    match (view.class, view.life, restart) {
        (Class::Sidecar, ..) => false,
        (Class::Init, Life::Exited { code }, Restart::Never) => code != 0,
        (Class::Main, Life::Exited { .. }, Restart::Never) => true,
        (Class::Main, Life::Exited { code }, Restart::OnFailure) => code == 0,
        _ => false,
    }
}

/// The pod's work is over: an init container failed for good, or every main container is done.
#[must_use]
pub fn finished(views: &[View], restart: Restart) -> bool {
    let init_failed = views.iter().any(|v| v.class == Class::Init && done(v, restart));
    let mut mains = views.iter().filter(|v| v.class == Class::Main).peekable();
    let main_running =
        views.iter().any(|v| v.class == Class::Main && !matches!(v.life, Life::Fresh | Life::Exited { .. }));
    (init_failed && !main_running) || (mains.peek().is_some() && mains.all(|v| done(v, restart)))
}

/// Whether all init containers have done their part.
#[must_use]
pub fn initialized(views: &[View]) -> bool {
    views.iter().any(|v| v.class == Class::Main && v.life != Life::Fresh)
        || views.iter().all(|v| match v.class {
            Class::Init => v.life == (Life::Exited { code: 0 }),
            Class::Sidecar => v.life == (Life::Running { started: true }),
            Class::Main | Class::Ephemeral => true,
        })
}

/// The pod's phase. Source: Kubernetes, "Pod phase"; kubelet `getPhase`.
#[must_use]
pub fn phase(views: &[View], restart: Restart) -> Phase {
    let alive = |v: &View| matches!(v.life, Life::Running { .. } | Life::Stopping);
    if finished(views, restart) {
        if views.iter().any(|v| v.class != Class::Ephemeral && (alive(v) || v.life == Life::Starting)) {
            return Phase::Running;
        }
        let failed = views
            .iter()
            .any(|v| matches!((v.class, v.life), (Class::Main | Class::Init, Life::Exited { code }) if code != 0));
        let init_failed = views.iter().any(|v| v.class == Class::Main && v.life == Life::Fresh);
        return if failed || init_failed { Phase::Failed } else { Phase::Succeeded };
    }
    let mains = || views.iter().filter(|v| v.class == Class::Main);
    let all_ran = mains().all(|v| !matches!(v.life, Life::Fresh | Life::Starting));
    let any_ran = mains().any(|v| matches!(v.life, Life::Exited { .. }) || alive(v));
    if any_ran && (all_ran || mains().any(alive)) { Phase::Running } else { Phase::Pending }
}

/// The delay before the next start: `crashes` counts restarts since the last long run.
#[must_use]
pub fn crash_backoff(crashes: u32) -> Duration {
    match crashes {
        0 => Duration::ZERO,
        n => CRASH_BACKOFF_FIRST.saturating_mul(1 << (n - 1).min(10)).min(CRASH_BACKOFF_LONGEST),
    }
}

/// What the end of a run means: the delay before the next start, and how many crashes count from now on.
#[must_use]
pub fn after_run(crashes: u32, ran: Duration) -> (Duration, u32) {
    let counted = if ran >= CRASH_BACKOFF_RESET { 0 } else { crashes };
    (crash_backoff(counted), counted.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Instant = Duration::from_secs(1000);

    fn view(class: Class, life: Life) -> View {
        View { class, life, not_before: None }
    }

    const UP: Life = Life::Running { started: true };
    const OK: Life = Life::Exited { code: 0 };
    const BAD: Life = Life::Exited { code: 1 };

    fn check(views: &[View], restart: Restart, actions: &[Action], expected: Phase) {
        assert_eq!(decide(views, restart, NOW), actions, "{views:?}");
        assert_eq!(phase(views, restart), expected, "{views:?}");
    }

    #[test]
    fn init_containers_run_one_after_another_before_the_main_ones() {
        let (i, m) = (Class::Init, Class::Main);
        check(
            &[view(i, Life::Fresh), view(i, Life::Fresh), view(m, Life::Fresh)],
            Restart::Always,
            &[Action::Start(0)],
            Phase::Pending,
        );
        check(&[view(i, UP), view(i, Life::Fresh), view(m, Life::Fresh)], Restart::Always, &[], Phase::Pending);
        check(
            &[view(i, OK), view(i, Life::Fresh), view(m, Life::Fresh)],
            Restart::Always,
            &[Action::Start(1)],
            Phase::Pending,
        );
        check(
            &[view(i, OK), view(i, OK), view(m, Life::Fresh), view(m, Life::Fresh)],
            Restart::Always,
            &[Action::Start(2), Action::Start(3)],
            Phase::Pending,
        );
        check(&[view(i, BAD), view(m, Life::Fresh)], Restart::Always, &[Action::Start(0)], Phase::Pending);
        check(&[view(i, BAD), view(m, Life::Fresh)], Restart::Never, &[], Phase::Failed);
    }

    #[test]
    fn a_sidecar_must_have_started_before_the_next_and_stops_last() {
        let (s, m) = (Class::Sidecar, Class::Main);
        check(&[view(s, Life::Running { started: false }), view(m, Life::Fresh)], Restart::Never, &[], Phase::Pending);
        check(&[view(s, UP), view(m, Life::Fresh)], Restart::Never, &[Action::Start(1)], Phase::Pending);
        check(&[view(s, BAD), view(m, UP)], Restart::Never, &[Action::Start(0)], Phase::Running);
        check(&[view(s, UP), view(s, UP), view(m, OK)], Restart::Never, &[Action::Stop(1)], Phase::Running);
        check(&[view(s, UP), view(s, Life::Stopping), view(m, OK)], Restart::Never, &[], Phase::Running);
        check(&[view(s, UP), view(s, BAD), view(m, OK)], Restart::Never, &[Action::Stop(0)], Phase::Running);
        check(&[view(s, BAD), view(s, BAD), view(m, OK)], Restart::Never, &[], Phase::Succeeded);
    }

    #[test]
    fn a_container_for_a_look_starts_at_once_runs_once_and_keeps_nothing_alive() {
        let (i, m, e) = (Class::Init, Class::Main, Class::Ephemeral);
        check(
            &[view(i, UP), view(m, Life::Fresh), view(e, Life::Fresh)],
            Restart::Always,
            &[Action::Start(2)],
            Phase::Pending,
        );
        check(&[view(m, UP), view(e, BAD)], Restart::Always, &[], Phase::Running);
        check(&[view(m, OK), view(e, UP)], Restart::Never, &[], Phase::Succeeded);
    }

    #[test]
    fn the_restart_policy_decides_about_ended_containers() {
        let m = Class::Main;
        check(&[view(m, OK)], Restart::Always, &[Action::Start(0)], Phase::Running);
        check(&[view(m, OK)], Restart::OnFailure, &[], Phase::Succeeded);
        check(&[view(m, BAD)], Restart::OnFailure, &[Action::Start(0)], Phase::Running);
        check(&[view(m, BAD)], Restart::Never, &[], Phase::Failed);
        check(&[view(m, BAD), view(m, UP)], Restart::Never, &[], Phase::Running);
    }

    #[test]
    fn a_crash_loop_backs_off_from_ten_seconds_to_five_minutes() {
        let seconds: Vec<u64> = (0..9).map(|n| crash_backoff(n).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
        let waiting = View { class: Class::Main, life: BAD, not_before: Some(NOW + Duration::from_secs(3)) };
        check(&[waiting], Restart::Always, &[Action::Wake(NOW + Duration::from_secs(3))], Phase::Running);
    }

    #[test]
    fn ten_good_minutes_forget_the_crashes_before() {
        let (short, long) = (Duration::from_secs(1), CRASH_BACKOFF_RESET);
        let mut crashes = 0;
        let mut pauses = Vec::new();
        for ran in [short, short, short, long - short, long, short, short] {
            let (pause, counted) = after_run(crashes, ran);
            crashes = counted;
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [0, 10, 20, 40, 0, 10, 20]);
    }

    fn any_view() -> impl Strategy<Value = View> {
        let class = prop_oneof![Just(Class::Init), Just(Class::Sidecar), Just(Class::Main)];
        let life = prop_oneof![
            Just(Life::Fresh),
            Just(Life::Starting),
            any::<bool>().prop_map(|started| Life::Running { started }),
            Just(Life::Stopping),
            (0..3i32).prop_map(|code| Life::Exited { code }),
        ];
        (class, life).prop_map(|(class, life)| View { class, life, not_before: None })
    }

    proptest! {
        #[test]
        fn the_pause_never_shrinks_without_ten_good_minutes(runs in prop::collection::vec(0..1_200_u64, 1..40)) {
            let (mut crashes, mut last) = (0, Duration::ZERO);
            for seconds in runs {
                let ran = Duration::from_secs(seconds);
                let (pause, counted) = after_run(crashes, ran);
                prop_assert_eq!(pause < last, ran >= CRASH_BACKOFF_RESET && !last.is_zero());
                prop_assert!(pause <= CRASH_BACKOFF_LONGEST);
                (crashes, last) = (counted, pause);
            }
        }

        #[test]
        fn only_what_does_not_live_is_started_and_only_what_runs_is_stopped(
            mut views in prop::collection::vec(any_view(), 1..8), policy in 0..3u8,
        ) {
            views.sort_by_key(|v| v.class == Class::Main);
            let restart = [Restart::Always, Restart::OnFailure, Restart::Never][usize::from(policy)];
            for action in decide(&views, restart, NOW) {
                match action {
                    Action::Start(i) => {
                        let dead = matches!(views[i].life, Life::Fresh | Life::Exited { .. });
                        prop_assert!(dead);
                    }
                    Action::Stop(i) => {
                        let runs = matches!(views[i].life, Life::Running { .. });
                        prop_assert!(runs);
                    }
                    Action::Wake(at) => prop_assert!(at > NOW),
                }
            }
        }

        #[test]
        fn playing_the_decisions_always_reaches_an_end(codes in prop::collection::vec(0..2i32, 1..6), inits in 0..3usize) {
            // Every container ends with its code; OnFailure retries succeed the second time.
            let mut views: Vec<View> = codes.iter().enumerate()
                .map(|(i, _)| view(if i < inits && i + 1 < codes.len() { Class::Init } else { Class::Main }, Life::Fresh)).collect();
            let mut tries = vec![0; codes.len()];
            for _ in 0..50 {
                let actions = decide(&views, Restart::OnFailure, NOW);
                if actions.is_empty() { break; }
                for action in actions {
                    if let Action::Start(i) = action {
                        tries[i] += 1;
                        views[i].life = Life::Exited { code: if tries[i] > 1 { 0 } else { codes[i] } };
                    }
                }
            }
            prop_assert_eq!(phase(&views, Restart::OnFailure), Phase::Succeeded);
        }
    }
}
