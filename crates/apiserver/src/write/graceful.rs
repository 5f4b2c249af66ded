//! How long a deleted pod gets to end. Other kinds go at once.

use serde_json::Value;

use crate::kind::Kind;

/// Grace period of a pod that names none. Units: seconds.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// The seconds that the object gets, given what the client asked for. A pod that runs nowhere gets none.
pub(super) fn grace_seconds(kind: &Kind, object: &Value, asked: Option<i64>) -> i64 {
    if !kind.is("", "pods") {
        return 0;
    }
    let unplaced = crate::json::text(object, "/spec/nodeName").is_empty();
    let ended = matches!(crate::json::text(object, "/status/phase"), "Succeeded" | "Failed");
    if unplaced || ended {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64();
    asked.or(own).unwrap_or(DEFAULT_GRACE_SECONDS).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_pods_that_run_get_time() {
        let kind = Kind::new("", "v1", "Pod", "pods");
        let placed = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 7}});
        assert_eq!(grace_seconds(&kind, &placed, None), 7);
        assert_eq!(grace_seconds(&kind, &placed, Some(0)), 0);
        assert_eq!(grace_seconds(&kind, &json!({"spec": {}}), Some(9)), 0);
        assert_eq!(grace_seconds(&Kind::new("", "v1", "ConfigMap", "configmaps"), &placed, Some(9)), 0);
    }
}
