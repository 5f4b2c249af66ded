//! No client can starve another: each user has a bounded number of requests under way and waiting, and of watches.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::status::Status;
use crate::user::{GROUP_MASTERS, UserInfo};

/// Requests of one user that run at the same time.
const CONCURRENT: usize = 64;
/// Requests of one user that wait for their turn.
const QUEUED: usize = 256;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// Watches of one user; in-process controllers and administrators may have more.
const WATCHES: usize = 2_000;
/// Watches of a member of `system:masters`.
const MASTER_WATCHES: usize = 20_000;
/// Users remembered before idle ones are forgotten.
const REMEMBERED_USERS: usize = 4_096;

struct Lane {
    running: Arc<Semaphore>,
    places: Arc<Semaphore>,
    watches: Arc<Semaphore>,
}

/// The lanes of all users.
#[derive(Default)]
pub struct Fairness {
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
}

/// A request's turn; given back when dropped.
pub struct Turn {
    _running: Option<OwnedSemaphorePermit>,
}

/// A watch's place; given back when dropped.
pub struct WatchPlace {
    _place: OwnedSemaphorePermit,
}

impl Fairness {
    /// Waits for the user's turn. Errors: too many requests when the user's queue is full or the wait too long.
    pub async fn turn(&self, user: &UserInfo) -> Result<Turn, Status> {
        if user.is_in(GROUP_MASTERS) {
            return Ok(Turn { _running: None });
        }
        let lane = self.lane(user);
        let refused = || Status::too_many_requests("too many requests, please try again later", 1);
        if let Ok(running) = lane.running.clone().try_acquire_owned() {
            return Ok(Turn { _running: Some(running) });
        }
        let _place = lane.places.clone().try_acquire_owned().map_err(|_| refused())?;
        match tokio::time::timeout(PATIENCE, lane.running.clone().acquire_owned()).await {
            Ok(Ok(running)) => Ok(Turn { _running: Some(running) }),
            _ => Err(refused()),
        }
    }

    /// Takes a place for a watch. Errors: too many requests.
    pub fn watch(&self, user: &UserInfo) -> Result<WatchPlace, Status> {
        match self.lane(user).watches.clone().try_acquire_owned() {
            Ok(place) => Ok(WatchPlace { _place: place }),
            Err(_) => Err(Status::too_many_requests("too many watches of one user", 10)),
        }
    }

    fn lane(&self, user: &UserInfo) -> Arc<Lane> {
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get(&user.name) {
            return lane.clone();
        }
        if lanes.len() >= REMEMBERED_USERS {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || lane.watches.available_permits() < WATCHES);
        }
        let watches = if user.is_in(GROUP_MASTERS) { MASTER_WATCHES } else { WATCHES };
        let lane = Arc::new(Lane {
            running: Arc::new(Semaphore::new(CONCURRENT)),
            places: Arc::new(Semaphore::new(QUEUED)),
            watches: Arc::new(Semaphore::new(watches)),
        });
        lanes.insert(user.name.clone(), lane.clone());
        lane
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_user_waits_while_another_is_served() {
        let fairness = Fairness::default();
        let (greedy, modest) = (UserInfo::new("greedy", &[]), UserInfo::new("modest", &[]));
        let mut held = Vec::new();
        for _ in 0..CONCURRENT {
            held.push(fairness.turn(&greedy).await.unwrap());
        }
        assert_eq!(fairness.turn(&greedy).await.err().unwrap().code, 429);
        assert!(fairness.turn(&modest).await.is_ok());
        held.pop();
        assert!(fairness.turn(&greedy).await.is_ok());
    }
}
