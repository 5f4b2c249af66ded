//! Group `authentication.k8s.io`: reviews, which are answered and not stored.

use apiserver::Kind;
use k8s_openapi::api::authentication::v1 as api;

use super::{Registration, register};

fn review(kind: &mut Kind) {
    kind.namespaced = false;
    kind.stored = false;
}

pub(super) fn kinds() -> Vec<Registration> {
    vec![
        register::<api::TokenReview>("tokenreviews", review),
        register::<api::SelfSubjectReview>("selfsubjectreviews", review),
    ]
}
