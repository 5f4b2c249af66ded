//! The tasks of a service that runs on: each slot gets a task of the wanted version, never more slots at once than the
//! policy says, and what fails meanwhile decides whether the roll-out goes on. Pure.
//!
//! ```text
//!   old version wanted no more        all replaced and watched
//!   ───────────────▶ running ──────────────────────▶ completed
//!                     │   ▲
//!      too many fail  │   │ a user asks anew
//!                     ▼   │
//!                   paused ┘      or: the version before comes back, and a roll-out of its own begins
//! ```

use std::collections::BTreeMap;

use api::swarm::{FailureAction, Rollout, RolloutPhase, RolloutPolicy, TaskDesired};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::plan::{Action, Next, Plan, Slot, State, Task, Tasks, View, follow, is_displaced, is_lost, next};

/// Millionths in a whole.
const WHOLE: u64 = 1_000_000;

/// What a slot holds of tasks that should run.
#[derive(Clone, Copy)]
enum Holds<'a> {
    /// None; the last one, if there was any.
    Nothing(Option<&'a Task>),
    /// One of an earlier version.
    Old(&'a Task),
    /// One of the wanted version.
    New,
    /// One of each.
    Both { old: &'a Task, new: &'a Task },
}

/// A slot in the middle of a roll-out.
struct Place<'a> {
    slot: &'a Slot,
    holds: Holds<'a>,
    tasks: &'a Tasks<'a>,
    /// When a task of the wanted version came up here, or ended before it did.
    done: Option<Timestamp>,
}

/// Where the roll-out is.
enum Stage<'a> {
    /// There is none.
    Still,
    /// One must begin.
    Begin,
    /// It is under way since then.
    Moving(&'a Rollout, Timestamp),
    /// A user must decide.
    Paused,
}

/// Plans the slots of a service.
pub(super) fn service(plan: &mut Plan, view: &View<'_>, slots: &BTreeMap<Slot, Tasks<'_>>) {
    let mut places: Vec<Place<'_>> = Vec::new();
    for (slot, tasks) in slots {
        let holds = settle(plan, view, tasks);
        places.push(Place { slot, holds, tasks, done: None });
    }
    let stage = stage(view, &places);
    let began = if let Stage::Moving(_, began) = &stage { *began } else { Timestamp::MIN };
    for place in &mut places {
        place.done = done(view, place, began);
    }
    for place in &places {
        if let Holds::Both { old, new } = place.holds
            && new.state == State::Running
        {
            plan.stop(old, TaskDesired::Shutdown);
        }
    }
    match stage {
        Stage::Begin => plan.actions.push(Action::Rollout(begin(view))),
        Stage::Moving(rollout, began) => advance(plan, view, &places, rollout, began),
        Stage::Still | Stage::Paused => {
            for place in &places {
                refill(plan, view, place);
            }
        }
    }
}

/// Notes tasks that are over or must leave, and those that are too many; says what the slot holds then.
fn settle<'a>(plan: &mut Plan, view: &View<'_>, tasks: &Tasks<'a>) -> Holds<'a> {
    let (mut old, mut new) = (None, None);
    for task in tasks.iter().filter(|task| task.desired == TaskDesired::Running) {
        if task.is_over() || is_displaced(view, task) {
            plan.stop(task, TaskDesired::Shutdown);
            continue;
        }
        let place = if task.version == view.version { &mut new } else { &mut old };
        match place {
            None => *place = Some(*task),
            Some(_) => plan.stop(task, TaskDesired::Remove),
        }
    }
    match (old, new) {
        (Some(old), Some(new)) => Holds::Both { old, new },
        (Some(old), None) => Holds::Old(old),
        (None, Some(_)) => Holds::New,
        (None, None) => Holds::Nothing(tasks.last().copied()),
    }
}

fn stage<'a>(view: &View<'a>, places: &[Place<'_>]) -> Stage<'a> {
    let spec = view.spec;
    let is_dirty = places.iter().any(|place| matches!(place.holds, Holds::Old(_) | Holds::Both { .. }));
    let same = view.rollout.filter(|rollout| {
        rollout.request == spec.request && rollout.rollback == spec.rolling_back && rollout.started_at.is_some()
    });
    match same {
        Some(rollout) => match (rollout.phase, &rollout.started_at) {
            (RolloutPhase::Paused, _) => Stage::Paused,
            (RolloutPhase::Running, Some(began)) => Stage::Moving(rollout, began.0),
            _ if is_dirty => Stage::Begin,
            _ => Stage::Still,
        },
        None if is_dirty || spec.rolling_back => Stage::Begin,
        None => Stage::Still,
    }
}

fn begin(view: &View<'_>) -> Rollout {
    let spec = view.spec;
    let message = match (spec.rolling_back, spec.rollback_reason.as_str()) {
        (false, _) => "update in progress",
        (true, "") => "manually requested rollback",
        (true, reason) => reason,
    };
    Rollout {
        request: spec.request,
        rollback: spec.rolling_back,
        phase: RolloutPhase::Running,
        message: message.to_owned(),
        started_at: Some(MicroTime(view.now)),
        completed_at: None,
    }
}

fn policy<'a>(view: &View<'a>) -> &'a RolloutPolicy {
    if view.spec.rolling_back { &view.spec.current.rollback } else { &view.spec.current.update }
}

/// When the slot was done: its new task came up. One whose task was over once since the roll-out began has been judged: it
/// counts as done from the beginning, however often it is tried again.
fn done(view: &View<'_>, place: &Place<'_>, began: Timestamp) -> Option<Timestamp> {
    let own = || place.tasks.iter().filter(|task| task.version == view.version);
    if own().any(|task| task.created >= began && (task.is_over() || task.restarts > 0)) {
        return Some(began);
    }
    let up = own().filter(|task| task.state == State::Running && task.desired == TaskDesired::Running);
    up.filter_map(|task| task.started).max()
}

/// Takes the next steps of a roll-out that is under way.
fn advance(plan: &mut Plan, view: &View<'_>, places: &[Place<'_>], rollout: &Rollout, began: Timestamp) {
    let policy = policy(view);
    let monitor = SignedDuration::from_nanos(policy.monitor_ns.max(0));
    if let Some(task) = too_many_failed(view, places, policy, monitor, began) {
        return fail(plan, view, policy, rollout, task);
    }
    let delay = SignedDuration::from_nanos(policy.delay_ns.max(0));
    let mut room = match policy.parallelism {
        0 => usize::MAX,
        bound => usize::try_from(bound).unwrap_or(usize::MAX),
    };
    let mut is_busy = false;
    for place in places {
        let busy = is_in_flight(view, place);
        is_busy |= busy;
        let rests_until = place.done.filter(|_| !busy && was_replaced(view, place, began)).map(|at| later(at, delay));
        let rests = rests_until.is_some_and(|until| until > view.now);
        if let (true, Some(until)) = (rests, rests_until) {
            plan.wake(until);
        }
        room = room.saturating_sub(usize::from(busy || rests));
    }
    let mut waiting = false;
    for place in places {
        match place.holds {
            Holds::Nothing(Some(last)) if last.version != view.version && !last.stopped => {
                // It is down already, so it comes first; but it counts.
                waiting |= room == 0;
                if room > 0 {
                    room -= 1;
                    is_busy = true;
                    plan.create(place.slot, None);
                }
            }
            Holds::Nothing(_) => refill(plan, view, place),
            _ => {}
        }
    }
    for place in places {
        let Holds::Old(old) = place.holds else { continue };
        waiting |= room == 0;
        if room > 0 {
            room -= 1;
            is_busy = true;
            replace(plan, view, place, old, policy.start_first);
        }
    }
    if !is_busy && !waiting {
        complete(plan, view, places, rollout, began, monitor);
    }
}

/// Takes the first step of replacing an old task.
fn replace(plan: &mut Plan, view: &View<'_>, place: &Place<'_>, old: &Task, start_first: bool) {
    // The new task was over before it could take over; it is followed as the rules say, and the old one stays until then.
    let failed = place.tasks.iter().rev().find(|task| task.version == view.version).filter(|task| task.is_over());
    match failed.map(|failed| next(&view.spec.current.task.restart, false, failed, view.now)) {
        Some(Next::Another(follower)) if start_first => follow(plan, place.slot, follower),
        None if start_first => plan.create(place.slot, None),
        _ => plan.stop(old, TaskDesired::Shutdown),
    }
}

/// A roll-out whose slots are all replaced is complete once the last one was watched.
fn complete(
    plan: &mut Plan,
    view: &View<'_>,
    places: &[Place<'_>],
    rollout: &Rollout,
    began: Timestamp,
    monitor: SignedDuration,
) {
    let replaced = places.iter().filter(|place| was_replaced(view, place, began));
    let until = replaced.filter_map(|place| place.done).max().map(|at| later(at, monitor));
    match until.filter(|until| *until > view.now) {
        Some(until) => plan.wake(until),
        None => plan.actions.push(Action::Rollout(Rollout {
            phase: RolloutPhase::Completed,
            message: if rollout.rollback { "rollback completed" } else { "update completed" }.to_owned(),
            completed_at: Some(MicroTime(view.now)),
            ..rollout.clone()
        })),
    }
}

fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(at)
}

/// Whether the slot is between its old and its new task.
fn is_in_flight(view: &View<'_>, place: &Place<'_>) -> bool {
    match place.holds {
        Holds::Both { .. } => true,
        Holds::New => place.done.is_none(),
        Holds::Nothing(Some(last)) if last.version != view.version => last.stopped,
        Holds::Nothing(Some(last)) => last.stopped && place.done.is_none(),
        Holds::Nothing(None) => true,
        Holds::Old(_) => false,
    }
}

/// Whether the slot got a task since the roll-out began.
fn was_replaced(view: &View<'_>, place: &Place<'_>, began: Timestamp) -> bool {
    place.tasks.iter().any(|task| task.version == view.version && task.created >= began)
}

/// The task that made the failures too many.
fn too_many_failed<'a>(
    view: &View<'_>,
    places: &[Place<'a>],
    policy: &RolloutPolicy,
    monitor: SignedDuration,
    began: Timestamp,
) -> Option<&'a Task> {
    let early = |task: &&&'a Task| {
        let ran = task.started.zip(task.ended).is_some_and(|(from, to)| to.duration_since(from) > monitor);
        let own = task.version == view.version && task.created >= began;
        own && !task.stopped && task.is_over() && (task.state == State::Unhealthy || !ran)
    };
    let failed: Vec<&Task> = places.iter().filter_map(|place| place.tasks.iter().find(early).copied()).collect();
    let (failures, total) = (failed.len() as u64, places.len() as u64);
    let is_too_many = failures * WHOLE > u64::from(policy.max_failure_millionths) * total;
    failed.last().copied().filter(|_| is_too_many && policy.on_failure != FailureAction::Continue)
}

/// Acts on too many failures.
fn fail(plan: &mut Plan, view: &View<'_>, policy: &RolloutPolicy, rollout: &Rollout, task: &Task) {
    let because = format!("due to failure or early termination of task {}", task.id);
    let can_go_back = !rollout.rollback && view.spec.previous.is_some();
    if policy.on_failure == FailureAction::Rollback && can_go_back {
        plan.actions.push(Action::Rollback(format!("update rolled back {because}")));
        return;
    }
    let what = if rollout.rollback { "rollback" } else { "update" };
    plan.actions.push(Action::Rollout(Rollout {
        phase: RolloutPhase::Paused,
        message: format!("{what} paused {because}"),
        ..rollout.clone()
    }));
}

/// Gives an empty slot a task when it is due.
fn refill(plan: &mut Plan, view: &View<'_>, place: &Place<'_>) {
    let Holds::Nothing(last) = place.holds else { return };
    let Some(last) = last else { return plan.create(place.slot, None) };
    let waits = last.state.is_alive() && !is_lost(view, last);
    if last.version != view.version {
        if !waits {
            plan.create(place.slot, None);
        }
        return;
    }
    if last.stopped || is_displaced(view, last) {
        if !waits {
            plan.create(place.slot, Some(last));
        }
        return;
    }
    if waits {
        return;
    }
    if let Next::Another(follower) = next(&view.spec.current.task.restart, false, last, view.now) {
        follow(plan, place.slot, follower);
    }
}
