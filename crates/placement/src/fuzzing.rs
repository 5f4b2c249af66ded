//! A target for fuzzing: what reads documents that strangers send. It panics when a claim does not hold.

use crate::plan::{Policy, document, explain, plan};

/// A snapshot as a document: what is taken in gives a plan, and all numbers of that are numbers.
pub fn snapshot(data: &[u8]) {
    let Ok(snapshot) = document::read(data) else { return };
    for use_balloon in [false, true] {
        let policy = Policy { use_balloon, wake_ahead: true, ..Policy::default() };
        let made = plan(&snapshot, &policy, 0);
        for watts in [made.watts_before, made.watts_after, made.watts_bound] {
            assert!(watts.is_finite(), "{made:?}");
        }
        assert!(!explain::explain(&snapshot, &made).is_empty());
    }
}

#[cfg(test)]
mod tests {
    use testkit::fuzzing::smoke;

    #[test]
    fn the_target_holds_on_changed_documents() {
        let whole = br#"{"machines": [
            {"name": "a", "cpu": 4, "memory": 8e3, "disk": 10, "coreCpu": 2.5, "powerWatts": [90, 100.5, 130], "sleepWatts": 5, "wakeSeconds": 60, "labels": {"zone": "x"}},
            {"name": "b", "cpu": 4, "memory": 8000, "powerWatts": [90, 130], "state": "asleep"},
            {"name": "c", "cpu": 9, "memory": 9000, "powerWatts": [0, 0], "protected": true}],
            "workloads": [
            {"id": "v", "machine": "a", "cpu": 3, "memory": 100, "expectedCpu": 1, "deviation": 0.5, "leastMemory": 50, "moveSeconds": 9, "apart": [1]},
            {"id": "w", "machine": "a", "cpu": 2, "memory": 4000, "movable": true, "selector": {"zone": "x"}, "apart": [1, 2]},
            {"id": "x", "machine": "c", "cpu": 0.1, "memory": 1, "moveSeconds": 1e-300},
            {"id": "y", "cpu": 1, "memory": 1}]}"#;
        let numbers = b"1e-300 -0.0 1e15 1e-9 0 0.1 999999999999999 draining asleep failed";
        smoke(&[whole, br#"{"machines": []}"#, numbers], 20_000, super::snapshot);
    }
}
