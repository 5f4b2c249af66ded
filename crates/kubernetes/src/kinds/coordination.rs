//! Group `coordination.k8s.io`: Leases.

use apiserver::Cause;
use k8s_openapi::api::coordination::v1 as api;

use super::columns::{age, path};
use super::{Registration, register};

pub(super) fn kinds() -> Vec<Registration> {
    vec![register::<api::Lease>("leases", |kind| {
        kind.columns = vec![path("Holder", "string", ".spec.holderIdentity"), age()];
        kind.validate = |new, _| {
            let mut causes = Vec::new();
            for (field, least) in [("leaseDurationSeconds", 1), ("leaseTransitions", 0)] {
                if let Some(value) =
                    new["spec"].get(field).filter(|value| value.as_i64().is_some_and(|number| number < least))
                {
                    let detail =
                        if least == 1 { "must be greater than 0" } else { "must be greater than or equal to 0" };
                    causes.push(Cause::invalid(&format!("spec.{field}"), value, detail));
                }
            }
            causes
        };
    })]
}
