//! Leader election over a Lease: of several daemons, one runs the controllers.
//!
//! A lease is taken over when nobody was seen to renew it for its whole duration, measured on the watcher's own clock, so that
//! clocks that differ do no harm. The holder stops its work when it could not renew for [`GIVE_UP`], which is less than the
//! duration: two never work at a time. `Source:` client-go `leaderelection`.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::Instant;

use crate::{Result, chain};

/// Namespace of the lease.
const NAMESPACE: &str = "kube-system";
/// Its name.
const NAME: &str = "nuee-controllers";
/// How long the others wait after the last renewal. Units: seconds.
const DURATION_SECONDS: i32 = 15;
/// The holder stops when it could not renew for this long.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Time between two renewals, and between two looks of those who wait.
const PERIOD: Duration = Duration::from_secs(4);

const _: () = assert!(GIVE_UP.as_secs() + PERIOD.as_secs() < DURATION_SECONDS.unsigned_abs() as u64);

/// What to do about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write one's own name, with the number of changes of holder.
    Take {
        /// Changes of holder so far, this one included.
        transitions: i32,
    },
    /// It is one's own: write the time.
    Renew,
    /// Another holds it.
    Wait,
}

/// Decides. `unchanged` is how long the lease was seen as it is.
#[must_use]
pub fn step(lease: Option<&LeaseSpec>, own: &str, unchanged: Duration) -> Step {
    let Some(spec) = lease else { return Step::Take { transitions: 0 } };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder == own {
        return Step::Renew;
    }
    let duration = u64::try_from(spec.lease_duration_seconds.unwrap_or(DURATION_SECONDS)).unwrap_or(0);
    if holder.is_empty() || unchanged > Duration::from_secs(duration) {
        return Step::Take { transitions: spec.lease_transitions.unwrap_or(0).saturating_add(1) };
    }
    Step::Wait
}

/// Runs the work while this daemon leads, for ever. `own` must be the same after a restart, and no other daemon's.
pub async fn lead<F, W>(client: Client, own: String, work: F)
where
    F: Fn() -> W,
    W: Future<Output = ()>,
{
    let leases = Api::<Lease>::namespaced(client, NAMESPACE);
    let mut seen: Option<(Option<LeaseSpec>, Instant)> = None;
    loop {
        match attempt(&leases, &own, &mut seen).await {
            Ok(true) => {
                tracing::info!(identity = own, "leading: controllers start");
                tokio::select! {
                    () = work() => tracing::warn!("the controllers ended; starting them again"),
                    () = hold(&leases, &own) => tracing::warn!(identity = own, "no longer leading: controllers stop"),
                }
            }
            Ok(false) => tokio::time::sleep(PERIOD).await,
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot read or write the leader's lease; trying again");
                tokio::time::sleep(crate::RETRY).await;
            }
        }
    }
}

/// Renews until that has failed for too long, or another holds the lease.
async fn hold(leases: &Api<Lease>, own: &str) {
    let mut renewed = Instant::now();
    let mut seen = None;
    loop {
        tokio::time::sleep(PERIOD).await;
        let left = GIVE_UP.saturating_sub(renewed.elapsed());
        match tokio::time::timeout(left, attempt(leases, own, &mut seen)).await {
            Ok(Ok(true)) => renewed = Instant::now(),
            Ok(Ok(false)) => return,
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "cannot renew the leader's lease"),
            Err(_) => return,
        }
        if renewed.elapsed() >= GIVE_UP {
            return;
        }
    }
}

/// One look, and one write if it is time. True: the lease is ours.
async fn attempt(leases: &Api<Lease>, own: &str, seen: &mut Option<(Option<LeaseSpec>, Instant)>) -> Result<bool> {
    let lease = leases.get_opt(NAME).await?;
    let spec = lease.as_ref().and_then(|lease| lease.spec.clone());
    let since = match seen {
        Some((before, since)) if *before == spec => *since,
        _ => {
            let now = Instant::now();
            *seen = Some((spec.clone(), now));
            now
        }
    };
    let mut next = spec.clone().unwrap_or_default();
    let now = Some(MicroTime(Timestamp::now()));
    match step(spec.as_ref(), own, since.elapsed()) {
        Step::Wait => return Ok(false),
        Step::Renew => {}
        Step::Take { transitions } => {
            next.holder_identity = Some(own.to_owned());
            next.acquire_time.clone_from(&now);
            next.lease_transitions = Some(transitions);
        }
    }
    next.renew_time = now;
    next.lease_duration_seconds = Some(DURATION_SECONDS);
    let written = match lease {
        None => {
            let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
            leases.create(&PostParams::default(), &Lease { metadata, spec: Some(next) }).await
        }
        // With the version that was read: of two who take it at once, one is refused.
        Some(mut lease) => {
            lease.spec = Some(next);
            leases.replace(NAME, &PostParams::default(), &lease).await
        }
    };
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn held(by: &str, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(by.into()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_free_or_forsaken_and_otherwise_left() {
        let long = Duration::from_secs(16);
        assert_eq!(step(None, "a", Duration::ZERO), Step::Take { transitions: 0 });
        assert_eq!(step(Some(&held("a", 3)), "a", Duration::ZERO), Step::Renew);
        assert_eq!(step(Some(&held("b", 3)), "a", Duration::from_secs(15)), Step::Wait);
        assert_eq!(step(Some(&held("b", 3)), "a", long), Step::Take { transitions: 4 });
        assert_eq!(step(Some(&held("", 3)), "a", Duration::ZERO), Step::Take { transitions: 4 });
    }

    proptest! {
        /// Three daemons, of which any may be cut off or stand still for any time: never do two work at once.
        #[test]
        fn two_never_lead_at_a_time(pauses in proptest::collection::vec((0usize..3, 1u64..40), 0..12)) {
            let (mut lease, mut version): (Option<LeaseSpec>, u64) = (None, 0);
            // Per daemon: what it saw (version) and when; since when it may work; until when it is cut off.
            let mut seen = [(u64::MAX, 0_u64); 3];
            let mut renewed: [Option<u64>; 3] = [None; 3];
            let mut cut = [0_u64; 3];
            let mut pauses = pauses.into_iter();
            for second in 0..400_u64 {
                if second % 30 == 10 && let Some((who, length)) = pauses.next() {
                    cut[who] = second + length;
                }
                for who in 0..3 {
                    // What `hold` does by its own clock, reachable or not.
                    if renewed[who].is_some_and(|at| second - at >= GIVE_UP.as_secs()) {
                        renewed[who] = None;
                    }
                    if second < cut[who] || second % PERIOD.as_secs() != who as u64 {
                        continue;
                    }
                    if seen[who].0 != version {
                        seen[who] = (version, second);
                    }
                    let own = who.to_string();
                    match step(lease.as_ref(), &own, Duration::from_secs(second - seen[who].1)) {
                        Step::Wait => renewed[who] = None,
                        _ => {
                            lease = Some(held(&own, 0));
                            version += 1;
                            renewed[who] = Some(second);
                        }
                    }
                }
                let leading = renewed.iter().filter(|at| at.is_some_and(|at| second - at < GIVE_UP.as_secs())).count();
                prop_assert!(leading <= 1, "second {}: {:?}", second, renewed);
            }
        }
    }
}
