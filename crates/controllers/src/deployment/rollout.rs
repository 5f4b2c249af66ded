//! The steps of a rollout, as pure functions of a Deployment and its ReplicaSets.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serde_json::Value;

use super::REVISION;

/// Revisions kept when the Deployment does not say. `Source:` Kubernetes API reference, DeploymentSpec.
const DEFAULT_HISTORY: i32 = 10;

/// Pods wanted in all.
pub fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0)
}

/// How many pods may be above the wanted number, and how many may be missing, during a rolling update.
pub fn bounds(deployment: &Deployment) -> (i32, i32) {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
        return (0, wanted(deployment));
    }
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let share = IntOrString::String("25%".into());
    let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref()).unwrap_or(&share);
    let missing = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&share);
    let wanted = wanted(deployment);
    match (amount(surge, wanted, true), amount(missing, wanted, false)) {
        (0, 0) => (0, 1),
        (surge, missing) => (surge, missing.min(wanted)),
    }
}

/// A number, or a share of the whole.
pub(crate) fn amount(value: &IntOrString, of: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0).clamp(0, 1_000_000);
            let product = i64::from(of) * percent;
            let share = if round_up { (product + 99) / 100 } else { product / 100 };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}

/// Number of the rollout that a ReplicaSet belongs to; 0 when it says none.
pub fn revision(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The highest revision among these.
pub fn highest_revision(owned: &[ReplicaSet]) -> i64 {
    owned.iter().map(revision).max().unwrap_or(0)
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn existing(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// With how many pods a new ReplicaSet begins.
pub fn first_replicas(deployment: &Deployment, owned: &[ReplicaSet]) -> i32 {
    let wanted = wanted(deployment);
    let old: i32 = owned.iter().map(replicas).sum();
    if recreates(deployment) {
        return if owned.iter().all(|set| existing(set) == 0 && replicas(set) == 0) { wanted } else { 0 };
    }
    (wanted + bounds(deployment).0 - old).clamp(0, wanted)
}

/// The next step: which sets (by index) get which number of pods. Empty when there is nothing to change now.
pub fn plan(deployment: &Deployment, owned: &[ReplicaSet], newest: Option<usize>) -> Vec<(usize, i32)> {
    let old: Vec<usize> = (0..owned.len()).filter(|index| Some(*index) != newest).collect();
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
    let Some(newest) = newest else { return Vec::new() };
    if paused {
        return scale_in_place(deployment, owned, newest, &old);
    }
    if recreates(deployment) {
        return recreate(deployment, owned, newest, &old);
    }
    let mut changes = Vec::new();
    let target = grow(deployment, owned, newest);
    if target != replicas(&owned[newest]) {
        changes.push((newest, target));
    }
    changes.extend(shrink_old(deployment, owned, newest, &old));
    changes
}

/// A paused Deployment is still scaled: the only set with pods follows the wanted number.
fn scale_in_place(deployment: &Deployment, owned: &[ReplicaSet], newest: usize, old: &[usize]) -> Vec<(usize, i32)> {
    let only_newest = old.iter().all(|index| replicas(&owned[*index]) == 0);
    let wanted = wanted(deployment);
    if only_newest && replicas(&owned[newest]) != wanted { vec![(newest, wanted)] } else { Vec::new() }
}

fn recreate(deployment: &Deployment, owned: &[ReplicaSet], newest: usize, old: &[usize]) -> Vec<(usize, i32)> {
    let stopping: Vec<(usize, i32)> =
        old.iter().filter(|index| replicas(&owned[**index]) > 0).map(|index| (*index, 0)).collect();
    if !stopping.is_empty() {
        return stopping;
    }
    let gone = old.iter().all(|index| existing(&owned[*index]) == 0);
    let wanted = wanted(deployment);
    if gone && replicas(&owned[newest]) != wanted { vec![(newest, wanted)] } else { Vec::new() }
}

fn grow(deployment: &Deployment, owned: &[ReplicaSet], newest: usize) -> i32 {
    let wanted = wanted(deployment);
    let current = replicas(&owned[newest]);
    if current >= wanted {
        return wanted;
    }
    let total: i32 = owned.iter().map(replicas).sum();
    let room = (wanted + bounds(deployment).0 - total).max(0);
    current + room.min(wanted - current)
}

/// Takes pods from old sets: first those that do not work anyway, then as many as availability allows.
fn shrink_old(deployment: &Deployment, owned: &[ReplicaSet], newest: usize, old: &[usize]) -> Vec<(usize, i32)> {
    let minimum = wanted(deployment) - bounds(deployment).1;
    let total: i32 = owned.iter().map(replicas).sum();
    let new_unavailable = replicas(&owned[newest]) - available(&owned[newest]);
    let mut removable = (total - minimum - new_unavailable).max(0);
    let mut targets: Vec<(usize, i32)> = old.iter().map(|index| (*index, replicas(&owned[*index]))).collect();
    for (index, target) in &mut targets {
        let broken = (*target - available(&owned[*index])).clamp(0, removable);
        *target -= broken;
        removable -= broken;
    }
    let total_available: i32 = owned.iter().map(available).sum();
    let mut spare = (total_available - minimum).clamp(0, removable);
    for (_, target) in &mut targets {
        let taken = (*target).min(spare);
        *target -= taken;
        spare -= taken;
    }
    targets.retain(|(index, target)| *target != replicas(&owned[*index]));
    targets
}

/// Old sets (by index) beyond the history that is kept.
pub fn forgettable(deployment: &Deployment, owned: &[ReplicaSet], newest: Option<usize>) -> Vec<usize> {
    let kept = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(DEFAULT_HISTORY);
    let kept = usize::try_from(kept).unwrap_or(0);
    let mut empty: Vec<usize> = (0..owned.len())
        .filter(|index| {
            let set = &owned[*index];
            let observed = set.status.as_ref().and_then(|status| status.observed_generation);
            Some(*index) != newest
                && replicas(set) == 0
                && existing(set) == 0
                && observed >= set.metadata.generation
                && set.metadata.deletion_timestamp.is_none()
        })
        .collect();
    empty.sort_by_key(|index| revision(&owned[*index]));
    let surplus = empty.len().saturating_sub(kept);
    empty.truncate(surplus);
    empty
}

/// Name part of a template: FNV-1a, written with letters that make no words. `Source:` Kubernetes' SafeEncodeString.
pub fn hash(template: &Value, collisions: i32) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let text = format!("{template}{collisions}");
    let digest = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    digest.to_string().bytes().map(|byte| char::from(LETTERS[usize::from(byte) % LETTERS.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(replicas: i32, surge: Value, missing: Value) -> Deployment {
        let object = json!({
            "metadata": { "name": "d" },
            "spec": {
                "replicas": replicas, "selector": {}, "template": {},
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge, "maxUnavailable": missing } },
            },
        });
        serde_json::from_value(object).unwrap_or_default()
    }

    fn set(wanted: i32, ready: i32) -> ReplicaSet {
        let object = json!({
            "metadata": { "name": "s", "generation": 1 },
            "spec": { "replicas": wanted, "selector": {} },
            "status": { "replicas": wanted, "availableReplicas": ready, "observedGeneration": 1 },
        });
        serde_json::from_value(object).unwrap_or_default()
    }

    #[test]
    fn a_rolling_update_first_adds_the_surge() {
        let owned = [set(4, 4), set(0, 0)];
        assert_eq!(plan(&deployment(4, json!("25%"), json!("25%")), &owned, Some(1)), [(1, 1), (0, 3)]);
    }

    #[test]
    fn nothing_is_taken_while_the_new_pods_are_not_ready() {
        let owned = [set(4, 4), set(1, 0)];
        assert_eq!(plan(&deployment(4, json!(1), json!(0)), &owned, Some(1)), []);
    }

    #[test]
    fn broken_old_pods_go_first() {
        let owned = [set(2, 0), set(3, 3), set(0, 0)];
        let changes = plan(&deployment(4, json!(1), json!(1)), &owned, Some(2));
        assert!(changes.contains(&(0, 0)), "{changes:?}");
    }

    proptest::proptest! {
        /// Played against a pool in which every pod becomes ready at once, any rollout ends, and on the way never has more
        /// pods than the surge allows nor fewer available ones than it must.
        #[test]
        fn every_rollout_ends_within_its_bounds(wanted in 1i32..20, old in 0i32..20, surge in 0i32..6, missing in 0i32..6) {
            let deployment = deployment(wanted, json!(surge), json!(missing));
            let (surge, missing) = bounds(&deployment);
            let mut owned = vec![set(old, old), set(0, 0)];
            let ceiling = (wanted + surge).max(old);
            let floor = (wanted - missing).min(old);
            for _ in 0..200 {
                let changes = plan(&deployment, &owned, Some(1));
                if changes.is_empty() {
                    break;
                }
                for (index, replicas) in changes {
                    owned[index] = set(replicas, available(&owned[index]).min(replicas));
                }
                proptest::prop_assert!(owned.iter().map(existing).sum::<i32>() <= ceiling);
                proptest::prop_assert!(owned.iter().map(available).sum::<i32>() >= floor);
                owned = owned.iter().map(|each| set(replicas(each), replicas(each))).collect();
            }
            proptest::prop_assert_eq!((replicas(&owned[0]), replicas(&owned[1])), (0, wanted));
        }
    }
}
