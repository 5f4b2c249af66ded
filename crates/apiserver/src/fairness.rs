//! No client can starve another. Requests take seats; when all are taken, those that wait are served by turns, one of each user,
//! however many each has sent. Watches hold no seat, but a bounded number of places.
//!
//! Members of `system:masters`, which the process's own controllers are, take no seat: what keeps the house must not wait for its
//! guests. `Source:` Kubernetes' API priority and fairness, level `exempt`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::status::Status;
use crate::user::{GROUP_MASTERS, UserInfo};

/// How much is let in.
#[derive(Clone, Copy, Debug)]
pub struct FairnessLimits {
    /// Requests of all users that run at the same time.
    pub seats: usize,
    /// Requests of one user that run at the same time.
    pub seats_of_one: usize,
    /// Requests of one user that wait for a seat.
    pub waiting_of_one: usize,
    /// Requests of all users that wait for a seat; bounds the memory that they hold.
    pub waiting: usize,
    /// How long a request waits for a seat.
    pub patience: Duration,
    /// Watches of one user.
    pub watches: usize,
    /// Watches of one member of `system:masters`.
    pub watches_of_master: usize,
}

impl Default for FairnessLimits {
    fn default() -> FairnessLimits {
        FairnessLimits {
            seats: 256,
            seats_of_one: 64,
            waiting_of_one: 256,
            waiting: 4_096,
            patience: Duration::from_secs(30),
            watches: 2_000,
            watches_of_master: 20_000,
        }
    }
}

/// Users whose watches are counted before idle ones are forgotten.
const REMEMBERED_USERS: usize = 4_096;

/// Seats and places of all users.
pub struct Fairness {
    seats: Arc<Seats>,
    watches: Mutex<HashMap<String, Arc<Semaphore>>>,
}

struct Seats {
    limits: FairnessLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: usize,
    users: HashMap<String, Lane>,
    /// Users with somebody waiting who may take a seat, in the order of their turns.
    turns: VecDeque<String>,
}

#[derive(Default)]
struct Lane {
    running: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
    /// Whether the user is in `turns`.
    queued: bool,
}

/// A request's seat; given back when dropped.
pub struct Turn {
    seat: Option<(Arc<Seats>, String)>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((seats, user)) = self.seat.take() {
            seats.release(&user);
        }
    }
}

/// A watch's place; given back when dropped.
pub struct WatchPlace {
    _place: OwnedSemaphorePermit,
}

impl Fairness {
    /// With these limits.
    pub fn new(limits: FairnessLimits) -> Fairness {
        Fairness { seats: Arc::new(Seats { limits, state: Mutex::default() }), watches: Mutex::default() }
    }

    /// Waits for a seat. Errors: too many requests when too many wait already, or the wait is too long.
    pub async fn turn(&self, user: &UserInfo) -> Result<Turn, Status> {
        if user.is_in(GROUP_MASTERS) {
            return Ok(Turn { seat: None });
        }
        let refused = || Status::too_many_requests("too many requests, please try again later", 1);
        let coming = match self.seats.ask(&user.name) {
            Asked::Seated(turn) => return Ok(turn),
            Asked::Refused => return Err(refused()),
            Asked::Waits(coming) => coming,
        };
        match tokio::time::timeout(self.seats.limits.patience, coming).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(refused()),
        }
    }

    /// Takes a place for a watch. Errors: too many requests.
    pub fn watch(&self, user: &UserInfo) -> Result<WatchPlace, Status> {
        let limits = &self.seats.limits;
        let most = if user.is_in(GROUP_MASTERS) { limits.watches_of_master } else { limits.watches };
        let places = {
            let mut watches = self.watches.lock();
            if watches.len() >= REMEMBERED_USERS {
                // Whoever watches holds a permit, and a permit holds its semaphore.
                watches.retain(|_, places| Arc::strong_count(places) > 1);
            }
            watches.entry(user.name.clone()).or_insert_with(|| Arc::new(Semaphore::new(most))).clone()
        };
        match places.try_acquire_owned() {
            Ok(place) => Ok(WatchPlace { _place: place }),
            Err(_) => Err(Status::too_many_requests("too many watches of one user", 10)),
        }
    }
}

enum Asked {
    Seated(Turn),
    Waits(oneshot::Receiver<Turn>),
    Refused,
}

impl Seats {
    fn ask(self: &Arc<Self>, user: &str) -> Asked {
        let mut state = self.state.lock();
        let state = &mut *state;
        let lane = state.users.entry(user.to_owned()).or_default();
        // Whoever comes while others wait for the same seats waits behind them.
        if state.running < self.limits.seats && lane.running < self.limits.seats_of_one && state.turns.is_empty() {
            state.running += 1;
            lane.running += 1;
            return Asked::Seated(self.seat(user));
        }
        if lane.waiting.len() >= self.limits.waiting_of_one || state.waiting >= self.limits.waiting {
            // Those who gave up still stand in the lane until their turn comes: they make room first.
            let before = lane.waiting.len();
            lane.waiting.retain(|waiter| !waiter.is_closed());
            state.waiting -= before - lane.waiting.len();
            if lane.waiting.len() >= self.limits.waiting_of_one || state.waiting >= self.limits.waiting {
                return Asked::Refused;
            }
        }
        let (sender, receiver) = oneshot::channel();
        lane.waiting.push_back(sender);
        state.waiting += 1;
        if !lane.queued && lane.running < self.limits.seats_of_one {
            lane.queued = true;
            state.turns.push_back(user.to_owned());
        }
        Asked::Waits(receiver)
    }

    fn seat(self: &Arc<Self>, user: &str) -> Turn {
        Turn { seat: Some((self.clone(), user.to_owned())) }
    }

    /// Takes a seat back and gives it to whose turn it is.
    fn release(self: &Arc<Self>, user: &str) {
        let mut given = Vec::new();
        {
            let mut state = self.state.lock();
            let state = &mut *state;
            state.running = state.running.saturating_sub(1);
            if let Some(lane) = state.users.get_mut(user) {
                lane.running = lane.running.saturating_sub(1);
                if !lane.queued && !lane.waiting.is_empty() {
                    lane.queued = true;
                    state.turns.push_back(user.to_owned());
                }
                if lane.running == 0 && lane.waiting.is_empty() && !lane.queued {
                    state.users.remove(user);
                }
            }
            while state.running < self.limits.seats {
                let Some(next) = state.turns.pop_front() else { break };
                let Some(lane) = state.users.get_mut(&next) else { continue };
                lane.queued = false;
                let Some(waiter) = lane.waiting.pop_front() else {
                    if lane.running == 0 {
                        state.users.remove(&next);
                    }
                    continue;
                };
                state.waiting -= 1;
                if !waiter.is_closed() {
                    state.running += 1;
                    lane.running += 1;
                    given.push((waiter, next.clone()));
                }
                if !lane.waiting.is_empty() && lane.running < self.limits.seats_of_one {
                    lane.queued = true;
                    state.turns.push_back(next);
                } else if lane.waiting.is_empty() && lane.running == 0 {
                    state.users.remove(&next);
                }
            }
        }
        for (waiter, user) in given {
            // A waiter that gave up meanwhile hands the seat back by dropping it, outside the lock.
            let _ = waiter.send(self.seat(&user));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: FairnessLimits = FairnessLimits {
        seats: 4,
        seats_of_one: 3,
        waiting_of_one: 5,
        waiting: 8,
        patience: Duration::from_secs(30),
        watches: 2,
        watches_of_master: 3,
    };

    fn user(name: &str) -> UserInfo {
        UserInfo::new(name, &[])
    }

    /// Starts a request that holds its seat until the sender goes.
    fn request(
        fairness: &Arc<Fairness>,
        name: &'static str,
        log: &Arc<Mutex<Vec<&'static str>>>,
    ) -> (oneshot::Sender<()>, tokio::task::JoinHandle<Result<(), u16>>) {
        let (end, ended) = oneshot::channel();
        let (fairness, log) = (fairness.clone(), log.clone());
        let task = tokio::spawn(async move {
            let _turn = fairness.turn(&user(name)).await.map_err(|status| status.code)?;
            log.lock().push(name);
            let _ = ended.await;
            Ok(())
        });
        (end, task)
    }

    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    /// In which order six requests of a greedy user and two of a modest one, who came last, get their seats.
    async fn order(limits: FairnessLimits) -> Vec<&'static str> {
        let (fairness, log) = (Arc::new(Fairness::new(limits)), Arc::default());
        let mut requests = Vec::new();
        for name in ["greedy"; 8].into_iter().chain(["modest"; 2]) {
            requests.push(request(&fairness, name, &log));
            settle().await;
        }
        for (end, _) in requests {
            drop(end);
            settle().await;
        }
        Arc::into_inner(log).unwrap().into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn a_modest_user_does_not_wait_behind_all_requests_of_a_greedy_one() {
        let fair = order(SMALL).await;
        assert_eq!(&fair[..4], ["greedy", "greedy", "greedy", "modest"], "{fair:?}");
        assert_eq!(fair.iter().filter(|name| **name == "modest").count(), 2);
        assert!(fair.iter().rposition(|name| *name == "modest") < Some(6), "{fair:?}");
        // Without a bound on one user, who comes first has everything: this is what the test must tell apart.
        let unfair = order(FairnessLimits { seats_of_one: 4, waiting_of_one: 8, ..SMALL }).await;
        assert_eq!(&unfair[..4], ["greedy"; 4], "{unfair:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_floods_is_refused_and_others_are_not() {
        let fairness = Arc::new(Fairness::new(SMALL));
        let log = Arc::default();
        let mut greedy: Vec<_> = (0..30).map(|_| request(&fairness, "greedy", &log)).collect();
        settle().await;
        let mut refused = 0;
        for (_, task) in &mut greedy {
            if task.is_finished() && task.await.unwrap() == Err(429) {
                refused += 1;
            }
        }
        assert_eq!(refused, 30 - SMALL.seats_of_one - SMALL.waiting_of_one);
        assert!(fairness.turn(&user("modest")).await.is_ok());
        assert!(fairness.turn(&UserInfo::master("controller")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn seats_come_back_whatever_way_a_request_ends() {
        let fairness = Arc::new(Fairness::new(SMALL));
        let mut held = Vec::new();
        for name in ["a", "a", "a", "b"] {
            held.push(fairness.turn(&user(name)).await.unwrap());
        }
        // Waits too long.
        assert_eq!(fairness.turn(&user("c")).await.err().unwrap().code, 429);
        // Gives up while it waits.
        let waiting = tokio::spawn({
            let fairness = fairness.clone();
            async move { fairness.turn(&user("d")).await.map(drop) }
        });
        settle().await;
        waiting.abort();
        settle().await;
        drop(held);
        for _ in 0..20 {
            let one = fairness.turn(&user("a")).await.unwrap();
            let two = fairness.turn(&user("b")).await.unwrap();
            drop((one, two));
        }
        let state = fairness.seats.state.lock();
        assert_eq!((state.running, state.waiting, state.users.len(), state.turns.len()), (0, 0, 0, 0));
    }

    #[test]
    fn watches_of_one_user_are_bounded_and_come_back() {
        let fairness = Fairness::new(SMALL);
        let one = fairness.watch(&user("a")).unwrap();
        let _two = fairness.watch(&user("a")).unwrap();
        assert_eq!(fairness.watch(&user("a")).err().unwrap().code, 429);
        assert!(fairness.watch(&user("b")).is_ok());
        drop(one);
        assert!(fairness.watch(&user("a")).is_ok());
    }
}
