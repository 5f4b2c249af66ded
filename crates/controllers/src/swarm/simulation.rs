//! Property tests of the plan: a small world in which tasks are placed, start, fail and end at will, driven by nothing but the
//! plan.

use std::collections::{BTreeMap, BTreeSet};

use api::swarm::{
    FailureAction, Mode, RestartCondition, RestartRules, Rollout, RolloutPhase, RolloutPolicy, ServiceVersion,
    SwarmServiceSpec, TaskDesired,
};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::plan::{Action, Machine, Slot, State, Task, View, plan};

const SECOND_NS: i64 = 1_000_000_000;
/// Steps within which every roll-out must end.
const STEPS_MAX: usize = 600;

/// What becomes of a task of a version: steps until it is up, and seconds until it then fails; `None` runs on.
#[derive(Clone, Copy, Debug)]
struct Fate {
    start_steps: u32,
    fails_after: Option<i64>,
}

struct World {
    spec: SwarmServiceSpec,
    rollout: Option<Rollout>,
    removed: bool,
    released: bool,
    tasks: BTreeMap<String, Task>,
    /// Steps left of what is under way.
    pending: BTreeMap<String, u32>,
    fates: BTreeMap<String, Vec<Fate>>,
    machines: Vec<Machine>,
    now: Timestamp,
    made: usize,
    history: usize,
}

fn version_of(spec: &SwarmServiceSpec) -> String {
    spec.current.task.container.image.clone()
}

impl World {
    fn new(spec: SwarmServiceSpec, fates: BTreeMap<String, Vec<Fate>>) -> Self {
        let machine = |name: &str| Machine { name: name.into(), takes_new: true, fits: true, ..Machine::default() };
        Self {
            spec,
            rollout: None,
            removed: false,
            released: false,
            tasks: BTreeMap::new(),
            pending: BTreeMap::new(),
            fates,
            machines: ["a", "b", "c"].map(machine).to_vec(),
            now: Timestamp::UNIX_EPOCH,
            made: 0,
            history: 3,
        }
    }

    /// One pass of the controller, then one step of the world.
    fn step(&mut self) -> Vec<Action> {
        let tasks: Vec<Task> = self.tasks.values().cloned().collect();
        let view = View {
            spec: &self.spec,
            version: &version_of(&self.spec),
            rollout: self.rollout.as_ref(),
            removed: self.removed,
            machines: &self.machines,
            history: self.history,
            now: self.now,
        };
        let plan = plan(&view, &tasks);
        for action in plan.actions.clone() {
            self.act(action);
        }
        self.now = self.now.checked_add(SignedDuration::from_millis(500)).unwrap_or(self.now);
        self.live();
        plan.actions
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Create { slot, restarts, restarted_at, start_after } => {
                self.made += 1;
                let name = format!("t{:05}", self.made);
                let task = Task {
                    name: name.clone(),
                    id: name.clone(),
                    slot,
                    desired: TaskDesired::Running,
                    stopped: false,
                    version: version_of(&self.spec),
                    state: State::Pending,
                    created: self.now,
                    started: None,
                    ended: None,
                    start_after,
                    restarts,
                    restarted_at,
                    machine: None,
                };
                self.tasks.insert(name, task);
            }
            Action::Start(name) => {
                let fate = self.fate(&name);
                let Some(task) = self.tasks.get_mut(&name) else { return };
                assert!(task.start_after.is_none_or(|at| at <= self.now), "started before its time");
                task.state = State::Starting;
                self.pending.insert(name, fate.start_steps);
            }
            Action::Stop { name, desired, stopped } => {
                let Some(task) = self.tasks.get_mut(&name) else { return };
                (task.desired, task.stopped) = (desired, stopped);
                match task.state {
                    State::Pending | State::Placed => {
                        task.state = State::Ended { well: false };
                        task.ended = Some(self.now);
                    }
                    State::Ended { .. } => {}
                    _ => drop(self.pending.insert(name, 1)),
                }
            }
            Action::Delete(name) => {
                let gone = self.tasks.remove(&name);
                assert!(gone.is_none_or(|task| !task.state.is_alive()), "a living task was forgotten");
            }
            Action::Rollout(rollout) => self.rollout = Some(rollout),
            Action::Rollback(reason) => {
                let previous = self.spec.previous.take().expect("a rollback needs a version before");
                self.spec.current = previous;
                self.spec.rolling_back = true;
                self.spec.rollback_reason = reason;
            }
            Action::Release => self.released = true,
        }
    }

    fn fate(&self, name: &str) -> Fate {
        let task = &self.tasks[name];
        let fates = &self.fates[&task.version];
        let number: usize = name[1..].parse().unwrap_or(0);
        fates[number % fates.len()]
    }

    fn live(&mut self) {
        let names: Vec<String> = self.tasks.keys().cloned().collect();
        for name in names {
            let fate = self.fate(&name);
            let left = self.pending.get(&name).copied();
            let Some(task) = self.tasks.get_mut(&name) else { continue };
            match (task.state, left) {
                (State::Pending, _) => {
                    task.machine = Some(match &task.slot {
                        Slot::Machine(name) => name.clone(),
                        Slot::Number(number) => ["a", "b", "c"][*number as usize % 3].to_owned(),
                    });
                    task.state = State::Placed;
                }
                (State::Starting | State::Running, Some(0)) if task.desired != TaskDesired::Running => {
                    task.state = State::Ended { well: false };
                    task.ended = Some(self.now);
                    self.pending.remove(&name);
                }
                (State::Starting, Some(0)) => {
                    task.state = State::Running;
                    task.started = Some(self.now);
                    self.pending.remove(&name);
                }
                (_, Some(steps)) => drop(self.pending.insert(name, steps - 1)),
                (State::Running, None) => {
                    let ran = task.started.map_or(0, |at| self.now.duration_since(at).as_secs());
                    if fate.fails_after.is_some_and(|after| ran >= after) {
                        task.state = State::Ended { well: false };
                        task.ended = Some(self.now);
                    }
                }
                _ => {}
            }
        }
    }

    fn running(&self, version: &str) -> usize {
        let fits = |task: &&Task| task.state == State::Running && task.version == version;
        self.tasks.values().filter(fits).count()
    }

    /// Slots between an old and a new task: no task of theirs runs, or two should.
    fn in_flight(&self, total: u32) -> usize {
        let up = |number: u32| {
            let own = self.tasks.values().filter(|task| task.slot == Slot::Number(number));
            let alive = own.filter(|task| task.desired == TaskDesired::Running && task.state.is_alive());
            alive.map(|task| task.state == State::Running).collect::<Vec<_>>()
        };
        (1..=total).filter(|number| !matches!(up(*number)[..], [true])).count()
    }

    fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            if self.step().is_empty() && self.pending.is_empty() {
                return;
            }
        }
    }

    fn update(&mut self, image: &str) {
        let mut next = self.spec.current.clone();
        next.task.container.image = image.into();
        self.spec.previous = Some(std::mem::replace(&mut self.spec.current, next));
        self.spec.request += 1;
        self.spec.rolling_back = false;
    }
}

fn spec(replicas: u32, update: RolloutPolicy) -> SwarmServiceSpec {
    let mut current = ServiceVersion {
        mode: Mode::Replicated,
        replicas,
        rollback: RolloutPolicy { on_failure: FailureAction::Pause, ..update.clone() },
        update,
        ..ServiceVersion::default()
    };
    current.task.container.image = "old".into();
    current.task.restart = RestartRules { delay_ns: SECOND_NS, ..RestartRules::default() };
    SwarmServiceSpec { name: "web".into(), current, request: 1, ..SwarmServiceSpec::default() }
}

fn policy() -> impl Strategy<Value = RolloutPolicy> {
    let action = prop_oneof![Just(FailureAction::Pause), Just(FailureAction::Continue), Just(FailureAction::Rollback)];
    (0u32..4, 0i64..3, 1i64..4, action, any::<bool>(), 0u32..500_000).prop_map(
        |(parallelism, delay, monitor, on_failure, start_first, max_failure_millionths)| RolloutPolicy {
            parallelism,
            delay_ns: delay * SECOND_NS,
            monitor_ns: monitor * SECOND_NS,
            max_failure_millionths,
            on_failure,
            start_first,
        },
    )
}

fn good() -> impl Strategy<Value = Vec<Fate>> {
    proptest::collection::vec((0u32..4).prop_map(|start_steps| Fate { start_steps, fails_after: None }), 1..4)
}

fn any_fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = (0u32..4, proptest::option::of(0i64..6));
    let fate = fate.prop_map(|(start_steps, fails_after)| Fate { start_steps, fails_after });
    proptest::collection::vec(fate, 1..4)
}

fn fates(old: Vec<Fate>, new: Vec<Fate>) -> BTreeMap<String, Vec<Fate>> {
    [("old".to_owned(), old), ("new".to_owned(), new)].into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_roll_out_of_a_good_version_ends_with_all_replaced(
        replicas in 1u32..7, policy in policy(), old in good(), new in good(),
    ) {
        let mut world = World::new(spec(replicas, policy), fates(old, new));
        world.settle();
        prop_assert_eq!(world.running("old"), replicas as usize);
        world.update("new");
        let ended = (0..STEPS_MAX).any(|_| {
            world.step();
            world.rollout.as_ref().is_some_and(|rollout| rollout.phase == RolloutPhase::Completed)
        });
        prop_assert!(ended);
        prop_assert_eq!((world.running("new"), world.running("old")), (replicas as usize, 0));
    }

    #[test]
    fn never_more_slots_at_once_than_the_policy_says(
        replicas in 1u32..7, policy in policy(), old in good(), new in good(),
    ) {
        let bound = if policy.parallelism == 0 { replicas } else { policy.parallelism } as usize;
        let mut world = World::new(spec(replicas, policy), fates(old, new));
        world.settle();
        world.update("new");
        for _ in 0..STEPS_MAX {
            world.step();
            prop_assert!(world.in_flight(replicas) <= bound, "{} of {bound}", world.in_flight(replicas));
        }
    }

    #[test]
    fn a_version_that_fails_at_once_is_rolled_back_and_all_run_as_before(
        replicas in 1u32..7, mut policy in policy(), old in good(), start_steps in 0u32..4,
    ) {
        policy.on_failure = FailureAction::Rollback;
        let before = spec(replicas, policy);
        let new = vec![Fate { start_steps, fails_after: Some(0) }];
        let mut world = World::new(before.clone(), fates(old, new));
        world.settle();
        world.update("new");
        let ended = (0..STEPS_MAX).any(|_| {
            world.step();
            let rollout = world.rollout.as_ref();
            rollout.is_some_and(|rollout| rollout.rollback && rollout.phase == RolloutPhase::Completed)
        });
        prop_assert!(ended, "{:?}", world.rollout);
        prop_assert_eq!(&world.spec.current, &before.current);
        prop_assert_eq!((world.running("old"), world.running("new")), (replicas as usize, 0));
    }

    #[test]
    fn whatever_tasks_do_the_roll_out_ends_and_slots_hold_no_more_than_they_may(
        replicas in 1u32..6, policy in policy(), old in good(), new in any_fates(),
    ) {
        let mut world = World::new(spec(replicas, policy), fates(old, new));
        world.settle();
        world.update("new");
        let mut ended = false;
        for _ in 0..STEPS_MAX {
            world.step();
            let mut slots: BTreeMap<&Slot, usize> = BTreeMap::new();
            let alive = |task: &&Task| task.desired == TaskDesired::Running && task.state.is_alive();
            world.tasks.values().filter(alive).for_each(|task| *slots.entry(&task.slot).or_default() += 1);
            prop_assert!(slots.values().all(|count| *count <= 2), "{slots:?}");
            let wanted: BTreeSet<Slot> = (1..=replicas).map(Slot::Number).collect();
            prop_assert!(world.tasks.values().all(|task| wanted.contains(&task.slot)));
            let kept = world.tasks.values().filter(|task| !task.state.is_alive()).count();
            prop_assert!(kept <= (world.history + 2) * replicas as usize, "{kept} ended tasks are kept");
            ended |= world.rollout.as_ref().is_some_and(|rollout| rollout.phase != RolloutPhase::Running);
        }
        prop_assert!(ended, "{:?}", world.rollout);
    }

    #[test]
    fn attempts_to_start_again_are_bounded(attempts in 1u32..5, condition in prop_oneof![
        Just(RestartCondition::Any), Just(RestartCondition::OnFailure), Just(RestartCondition::None)],
    ) {
        let mut spec = spec(1, RolloutPolicy { parallelism: 1, ..RolloutPolicy::default() });
        spec.current.task.restart.condition = condition;
        spec.current.task.restart.max_attempts = attempts;
        let bad = vec![Fate { start_steps: 0, fails_after: Some(0) }];
        let mut world = World::new(spec, fates(bad.clone(), bad));
        (0..STEPS_MAX).for_each(|_| drop(world.step()));
        let expected = if condition == RestartCondition::None { 1 } else { attempts as usize + 1 };
        prop_assert_eq!(world.made, expected);
    }

    #[test]
    fn a_drained_machine_is_left_and_a_removed_service_leaves_nothing(replicas in 1u32..6, is_global in any::<bool>()) {
        let mut spec = spec(replicas, RolloutPolicy { parallelism: 1, ..RolloutPolicy::default() });
        if is_global {
            spec.current.mode = Mode::Global;
        }
        let run = vec![Fate { start_steps: 1, fails_after: None }];
        let mut world = World::new(spec, fates(run.clone(), run));
        (0..40).for_each(|_| drop(world.step()));
        let total = if is_global { 3 } else { replicas as usize };
        prop_assert_eq!(world.running("old"), total);
        world.machines[0].drains = true;
        world.machines[0].takes_new = false;
        for _ in 0..40 {
            world.step();
        }
        if is_global {
            prop_assert_eq!(world.running("old"), 2);
        }
        world.removed = true;
        (0..40).for_each(|_| drop(world.step()));
        prop_assert!(world.released && world.tasks.is_empty());
    }

    #[test]
    fn a_job_runs_each_slot_once_and_no_more_at_once_than_it_may(total in 1u32..7, bound in 1u32..4) {
        let mut spec = spec(total, RolloutPolicy::default());
        spec.current.mode = Mode::ReplicatedJob;
        spec.current.max_concurrent = bound;
        let run = vec![Fate { start_steps: 1, fails_after: None }];
        let mut world = World::new(spec, fates(run.clone(), run));
        for _ in 0..STEPS_MAX {
            world.step();
            let alive = world.tasks.values().filter(|task| task.state.is_alive()).count();
            prop_assert!(alive <= bound as usize);
            for task in world.tasks.values_mut().filter(|task| task.state == State::Running) {
                (task.state, task.ended) = (State::Ended { well: true }, Some(world.now));
            }
        }
        prop_assert_eq!(world.made, total as usize);
    }
}
