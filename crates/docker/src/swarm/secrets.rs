//! Secrets: list, create, inspect, remove, update. Each is a `Secret` object; what they do is in `stored.rs`.

use std::collections::BTreeMap;

use api::swarm::CONTENT_MEMBER;
use http::Method;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::stored::{self, Stored};
use crate::operation::{Operation, run};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("SecretList", Method::GET, "/secrets", "list", "swarm", run!(stored::list::<Secret>)),
    Operation::new("SecretCreate", Method::POST, "/secrets/create", "create", "swarm", run!(stored::create::<Secret>))
        .partial("drivers, templates with control structures"),
    Operation::new("SecretInspect", Method::GET, "/secrets/{id}", "get", "swarm", run!(stored::inspect::<Secret>)),
    Operation::new("SecretDelete", Method::DELETE, "/secrets/{id}", "delete", "swarm", run!(stored::delete::<Secret>)),
    Operation::new(
        "SecretUpdate",
        Method::POST,
        "/secrets/{id}/update",
        "update",
        "swarm",
        run!(stored::update::<Secret>),
    ),
];

impl Stored for Secret {
    const WORD: &str = "secret";
    // `Source:` swarmkit, `MaxSecretSize`.
    const BYTES_MAX: usize = 500 << 10;
    const IS_SECRET: bool = true;

    fn holding(content: Vec<u8>) -> Self {
        Secret {
            immutable: Some(true),
            data: Some(BTreeMap::from([(CONTENT_MEMBER.to_owned(), ByteString(content))])),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        }
    }

    fn content(&self) -> Vec<u8> {
        let bytes = || Some(self.data.as_ref()?.get(CONTENT_MEMBER)?.0.clone());
        bytes().unwrap_or_default()
    }
}
