//! Resources of pods as cgroup settings. Pure.

use std::collections::BTreeMap;

pub use api::quantity::{milli, whole};
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Length of a CFS period. Units: microseconds. Source: kubelet `quotaPeriod`.
pub const CPU_PERIOD_US: i64 = 100_000;
/// Least CFS quota that the kernel takes. Units: microseconds.
const CPU_QUOTA_LEAST_US: i64 = 1_000;
/// Least and most CPU shares. Source: kernel, cgroup v1 cpu controller.
const SHARES: (i64, i64) = (2, 262_144);

/// Bounds for a cgroup; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Relative weight.
    pub cpu_shares: i64,
    /// CFS quota per [`CPU_PERIOD_US`].
    pub cpu_quota_us: i64,
    /// Memory.
    pub memory_bytes: i64,
}

/// A container's bounds. Source: kubelet `kuberuntime_container_linux.go`.
#[must_use]
pub fn bounds(resources: &ResourceRequirements) -> Bounds {
    let read = |map: &Option<BTreeMap<String, Quantity>>, name: &str| {
        map.as_ref().and_then(|m| m.get(name)).map(|q| q.0.clone())
    };
    let cpu_limit = read(&resources.limits, "cpu").and_then(|q| milli(&q)).unwrap_or(0);
    let cpu_request = read(&resources.requests, "cpu").and_then(|q| milli(&q)).unwrap_or(cpu_limit);
    let memory = read(&resources.limits, "memory").and_then(|q| whole(&q)).unwrap_or(0);
    Bounds {
        cpu_shares: (cpu_request.saturating_mul(1024) / 1000).clamp(SHARES.0, SHARES.1),
        cpu_quota_us: if cpu_limit > 0 {
            (cpu_limit.saturating_mul(CPU_PERIOD_US) / 1000).max(CPU_QUOTA_LEAST_US)
        } else {
            0
        },
        memory_bytes: memory.max(0),
    }
}

/// How readily the kernel kills it when memory runs out. Source: kubelet `GetContainerOOMScoreAdjust`.
#[must_use]
pub fn oom_score_adj(qos_class: &str, memory_request_bytes: i64, machine_memory_bytes: i64) -> i32 {
    match qos_class {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let part = memory_request_bytes.saturating_mul(1000) / machine_memory_bytes.max(1);
            i32::try_from((1000 - part).clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.5", Some(500)),
            ("1.5k", Some(1_500_000)),
            ("1Ki", Some(1_024_000)),
            ("1e3", Some(1_000_000)),
            ("1E", None),
            ("-1", Some(-1000)),
            ("1n", Some(1)),
            ("", None),
            ("x", None),
            ("1.2.3", None),
            ("0.1m", Some(1)),
            ("NaN", None),
            ("1e400", None),
            ("9223372036854775808", None),
        ] {
            assert_eq!(milli(text), expected, "{text}");
        }
        assert_eq!(whole("64Mi"), Some(64 << 20));
        assert_eq!(whole("1500m"), Some(2));
        assert_eq!(whole("4Ei"), Some(4 << 60));
    }

    #[test]
    fn limits_become_quota_and_requests_become_shares() {
        let resources: ResourceRequirements = serde_json::from_value(serde_json::json!({
            "limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}
        }))
        .unwrap();
        assert_eq!(bounds(&resources), Bounds { cpu_shares: 256, cpu_quota_us: 50_000, memory_bytes: 64 << 20 });
        assert_eq!(bounds(&ResourceRequirements::default()), Bounds { cpu_shares: 2, ..Bounds::default() });
    }

    #[test]
    fn the_best_effort_die_first() {
        assert_eq!(oom_score_adj("Guaranteed", 0, 1 << 30), -997);
        assert_eq!(oom_score_adj("BestEffort", 0, 1 << 30), 1000);
        assert_eq!(oom_score_adj("Burstable", 1 << 29, 1 << 30), 500);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,24}") {
            let _ = milli(&text);
            let _ = whole(&text);
        }
    }
}
