//! What to do next about one service: which tasks to make, start, stop and forget. Pure; the steps of a roll-out are in
//! [`super::rollout`].
//!
//! A *slot* is the place of one task: a number, or a machine. It holds at most one task that should run (two while a new one
//! takes over from an old one), and the ended ones that are remembered.

use std::collections::{BTreeMap, BTreeSet};

use api::swarm::{Mode, RestartCondition, RestartRules, Rollout, SwarmServiceSpec, TaskDesired};
use jiff::{SignedDuration, Timestamp};

use super::rollout;

/// The place of one task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// Of a replicated service.
    Number(u32),
    /// Of a global service.
    Machine(String),
}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Has no machine.
    Pending,
    /// Has a machine, and was not told to start.
    Placed,
    /// Was told to start, or is not yet healthy.
    Starting,
    /// Runs, and is not known to be ill.
    Running,
    /// Runs and is ill.
    Unhealthy,
    /// Does not run any more.
    Ended {
        /// As a success.
        well: bool,
    },
}

impl State {
    /// Whether something of it runs or may yet.
    pub fn is_alive(self) -> bool {
        !matches!(self, Self::Ended { .. })
    }
}

/// A task as the plan sees it.
#[derive(Clone, Debug)]
pub struct Task {
    /// Name of its object.
    pub name: String,
    /// Its id, for messages.
    pub id: String,
    /// Its place.
    pub slot: Slot,
    /// What becomes of it.
    pub desired: TaskDesired,
    /// It was told to stop while it ran.
    pub stopped: bool,
    /// Version of its template.
    pub version: String,
    /// How far it is.
    pub state: State,
    /// When it was made.
    pub created: Timestamp,
    /// When it came up.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// It does not start before this.
    pub start_after: Option<Timestamp>,
    /// Tasks of its slot and version before it.
    pub restarts: u32,
    /// When they were followed.
    pub restarted_at: Vec<Timestamp>,
    /// Where it is.
    pub machine: Option<String>,
}

impl Task {
    /// It is over by itself: ended, or ill.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Ended { .. } | State::Unhealthy)
    }
}

/// A machine as the plan sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// New tasks may come.
    pub takes_new: bool,
    /// Tasks must leave: it is drained, or lost.
    pub drains: bool,
    /// It is lost: what ran there cannot be waited for.
    pub lost: bool,
    /// It meets the service's rules.
    pub fits: bool,
}

/// What the plan is made from.
pub struct View<'a> {
    /// What is wanted.
    pub spec: &'a SwarmServiceSpec,
    /// Version of the template that is wanted.
    pub version: &'a str,
    /// The last roll-out.
    pub rollout: Option<&'a Rollout>,
    /// The service is to go.
    pub removed: bool,
    /// All machines.
    pub machines: &'a [Machine],
    /// Tasks to remember in each slot.
    pub history: usize,
    /// Now.
    pub now: Timestamp,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make a task of the wanted version.
    Create {
        /// Where.
        slot: Slot,
        /// Tasks of its slot and version before it.
        restarts: u32,
        /// When they were followed.
        restarted_at: Vec<Timestamp>,
        /// It does not start before this.
        start_after: Option<Timestamp>,
    },
    /// Have a placed task start.
    Start(String),
    /// Have a task end, or note that it did.
    Stop {
        /// Its object.
        name: String,
        /// What becomes of it then.
        desired: TaskDesired,
        /// It is told to while it runs.
        stopped: bool,
    },
    /// Forget an ended task.
    Delete(String),
    /// Write how the roll-out stands.
    Rollout(Rollout),
    /// Bring the version before back, for this reason.
    Rollback(String),
    /// The last task is gone: let the service go.
    Release,
}

/// What to do, and when to look again though nothing changed.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// The next instant that matters.
    pub again: Option<Timestamp>,
}

impl Plan {
    /// Looks again at an instant, unless it does so before.
    pub fn wake(&mut self, at: Timestamp) {
        self.again = Some(self.again.map_or(at, |before| before.min(at)));
    }

    pub(super) fn stop(&mut self, task: &Task, desired: TaskDesired) {
        let stopped = task.stopped || !task.is_over();
        if task.desired != desired || task.stopped != stopped {
            self.actions.push(Action::Stop { name: task.name.clone(), desired, stopped });
        }
    }

    pub(super) fn create(&mut self, slot: &Slot, follows: Option<&Task>) {
        let (restarts, restarted_at) =
            follows.map_or((0, Vec::new()), |last| (last.restarts, last.restarted_at.clone()));
        self.actions.push(Action::Create { slot: slot.clone(), restarts, restarted_at, start_after: None });
    }
}

/// Tasks of one slot that count, oldest first.
pub(super) type Tasks<'a> = Vec<&'a Task>;

/// What to do next.
pub fn plan(view: &View<'_>, tasks: &[Task]) -> Plan {
    let mut plan = Plan::default();
    let (going, staying): (Vec<&Task>, Vec<&Task>) =
        tasks.iter().partition(|task| view.removed || task.desired == TaskDesired::Remove);
    remove(&mut plan, &going);
    if view.removed {
        if tasks.is_empty() {
            plan.actions.push(Action::Release);
        }
        return plan;
    }
    let mut slots: BTreeMap<Slot, Tasks<'_>> = BTreeMap::new();
    for task in staying {
        slots.entry(task.slot.clone()).or_default().push(task);
    }
    slots.values_mut().for_each(|tasks| tasks.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name))));
    let wanted = wanted(view, &slots);
    let surplus: Vec<Slot> = slots.keys().filter(|slot| !wanted.contains(slot)).cloned().collect();
    for slot in surplus {
        leave(&mut plan, view, &slot, &slots.remove(&slot).unwrap_or_default());
    }
    for slot in wanted {
        slots.entry(slot).or_default();
    }
    if view.spec.current.mode.is_job() {
        job(&mut plan, view, &slots);
    } else {
        rollout::service(&mut plan, view, &slots);
    }
    start(&mut plan, view, &slots);
    forget(&mut plan, view, &slots);
    plan
}

/// Ends and forgets tasks that are to go.
fn remove(plan: &mut Plan, tasks: &[&Task]) {
    for task in tasks {
        if task.state.is_alive() {
            plan.stop(task, TaskDesired::Remove);
        } else {
            plan.actions.push(Action::Delete(task.name.clone()));
        }
    }
}

/// The slots that should have a task.
fn wanted(view: &View<'_>, slots: &BTreeMap<Slot, Tasks<'_>>) -> BTreeSet<Slot> {
    if !view.spec.current.mode.is_global() {
        return (1..=view.spec.current.replicas).map(Slot::Number).collect();
    }
    let stays = |machine: &&Machine| {
        let slot = Slot::Machine(machine.name.clone());
        let has = slots.get(&slot).is_some_and(|tasks| tasks.iter().any(|task| task.desired == TaskDesired::Running));
        machine.fits && !machine.drains && (machine.takes_new || has)
    };
    view.machines.iter().filter(stays).map(|machine| Slot::Machine(machine.name.clone())).collect()
}

/// A slot that should have no task: forgotten, or on a machine that may take it back later.
fn leave(plan: &mut Plan, view: &View<'_>, slot: &Slot, tasks: &[&Task]) {
    let known = |name: &String| view.machines.iter().any(|machine| machine.name == *name);
    let comes_back = view.spec.current.mode.is_global() && matches!(slot, Slot::Machine(name) if known(name));
    if comes_back {
        for task in tasks.iter().filter(|task| task.desired == TaskDesired::Running) {
            plan.stop(task, TaskDesired::Shutdown);
        }
    } else {
        remove(plan, tasks);
    }
}

/// Whether a task must leave its machine.
pub(super) fn is_displaced(view: &View<'_>, task: &Task) -> bool {
    let machine = task.machine.as_ref().and_then(|name| view.machines.iter().find(|machine| machine.name == *name));
    machine.is_some_and(|machine| machine.drains) && task.state != State::Pending
}

/// Whether it is no use to wait for a task's end.
pub(super) fn is_lost(view: &View<'_>, task: &Task) -> bool {
    let name = task.machine.as_ref();
    name.is_some_and(|name| view.machines.iter().find(|machine| machine.name == *name).is_none_or(|m| m.lost))
}

/// What follows a task that is over by itself.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Another, from this instant on.
    Another(Follower),
    /// Nothing.
    Nothing,
}

/// A task that follows one that is over.
#[derive(Debug, PartialEq)]
pub(super) struct Follower {
    pub(super) start_after: Timestamp,
    pub(super) restarts: u32,
    pub(super) restarted_at: Vec<Timestamp>,
}

/// Applies the rules to a task that is over by itself.
pub(super) fn next(rules: &RestartRules, is_job: bool, last: &Task, now: Timestamp) -> Next {
    let well = last.state == State::Ended { well: true };
    let follows = match rules.condition {
        RestartCondition::Any => !(is_job && well),
        RestartCondition::OnFailure => !well,
        RestartCondition::None => false,
    };
    let window = SignedDuration::from_nanos(rules.window_ns.max(0));
    let counts = |at: &Timestamp| rules.window_ns <= 0 || now.duration_since(*at) < window;
    let mut restarted_at: Vec<Timestamp> = last.restarted_at.iter().copied().filter(counts).collect();
    let made = if rules.window_ns > 0 { u32::try_from(restarted_at.len()).unwrap_or(u32::MAX) } else { last.restarts };
    if !follows || (rules.max_attempts > 0 && made >= rules.max_attempts) {
        return Next::Nothing;
    }
    if rules.window_ns > 0 && rules.max_attempts > 0 {
        restarted_at.push(now);
    }
    let delay = SignedDuration::from_nanos(rules.delay_ns.max(0));
    let start_after = now.checked_add(delay).unwrap_or(now);
    Next::Another(Follower { start_after, restarts: last.restarts.saturating_add(1), restarted_at })
}

pub(super) fn follow(plan: &mut Plan, slot: &Slot, follower: Follower) {
    plan.actions.push(Action::Create {
        slot: slot.clone(),
        restarts: follower.restarts,
        restarted_at: follower.restarted_at,
        start_after: Some(follower.start_after),
    });
}

/// Tasks that end by themselves: as many at once as may be, each slot until one ended well.
fn job(plan: &mut Plan, view: &View<'_>, slots: &BTreeMap<Slot, Tasks<'_>>) {
    let current = &view.spec.current;
    let bound = match current.max_concurrent {
        0 => usize::MAX,
        _ if current.mode == Mode::GlobalJob => usize::MAX,
        bound => usize::try_from(bound).unwrap_or(usize::MAX),
    };
    let (mut active, mut needed) = (0, Vec::new());
    for (slot, tasks) in slots {
        let (own, old): (Tasks<'_>, Tasks<'_>) = tasks.iter().partition(|task| task.version == view.version);
        remove(plan, &old);
        let mut live = false;
        for task in own.iter().filter(|task| task.desired == TaskDesired::Running) {
            if task.is_over() || is_displaced(view, task) {
                plan.stop(task, TaskDesired::Shutdown);
            } else {
                live = true;
            }
        }
        active += usize::from(live);
        let is_done = own.iter().any(|task| task.state == State::Ended { well: true } && !task.stopped);
        let waits = own.last().is_some_and(|last| last.stopped && last.state.is_alive() && !is_lost(view, last));
        if !live && !is_done && !waits {
            needed.push((slot, own.last().copied()));
        }
    }
    for (slot, last) in needed.into_iter().take(bound.saturating_sub(active)) {
        match last.filter(|last| !last.stopped && last.is_over()) {
            None => plan.create(slot, None),
            Some(last) => match next(&current.task.restart, true, last, view.now) {
                Next::Another(follower) => follow(plan, slot, follower),
                Next::Nothing => {}
            },
        }
    }
}

/// Starts what is placed and due.
fn start(plan: &mut Plan, view: &View<'_>, slots: &BTreeMap<Slot, Tasks<'_>>) {
    let stopping: BTreeSet<String> = plan
        .actions
        .iter()
        .filter_map(|action| if let Action::Stop { name, .. } = action { Some(name.clone()) } else { None })
        .collect();
    for task in slots.values().flatten().filter(|task| task.desired == TaskDesired::Running) {
        if task.state != State::Placed || stopping.contains(&task.name) {
            continue;
        }
        match task.start_after.filter(|at| *at > view.now) {
            Some(at) => plan.wake(at),
            None => plan.actions.push(Action::Start(task.name.clone())),
        }
    }
}

/// Forgets the oldest ended tasks. The last one of a slot stays: what follows it depends on it.
fn forget(plan: &mut Plan, view: &View<'_>, slots: &BTreeMap<Slot, Tasks<'_>>) {
    let gone: BTreeSet<String> = plan
        .actions
        .iter()
        .filter_map(|action| if let Action::Delete(name) = action { Some(name.clone()) } else { None })
        .collect();
    for tasks in slots.values() {
        let keep = view.history.max(1);
        let ended = |task: &&&Task| !task.state.is_alive() && task.desired == TaskDesired::Shutdown;
        let older = tasks.iter().rev().skip(keep).filter(ended).filter(|task| !gone.contains(&task.name));
        plan.actions.extend(older.map(|task| Action::Delete(task.name.clone())));
    }
}
