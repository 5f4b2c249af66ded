//! Configs: list, create, inspect, remove, update. Each is a `ConfigMap` object; what they do is in `stored.rs`.

use std::collections::BTreeMap;

use api::swarm::CONTENT_MEMBER;
use http::Method;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;

use super::stored::{self, Stored};
use crate::operation::{Operation, run};

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ConfigList", Method::GET, "/configs", "list", "swarm", run!(stored::list::<ConfigMap>)),
    Operation::new(
        "ConfigCreate",
        Method::POST,
        "/configs/create",
        "create",
        "swarm",
        run!(stored::create::<ConfigMap>),
    )
    .partial("templates with control structures"),
    Operation::new("ConfigInspect", Method::GET, "/configs/{id}", "get", "swarm", run!(stored::inspect::<ConfigMap>)),
    Operation::new(
        "ConfigDelete",
        Method::DELETE,
        "/configs/{id}",
        "delete",
        "swarm",
        run!(stored::delete::<ConfigMap>),
    ),
    Operation::new(
        "ConfigUpdate",
        Method::POST,
        "/configs/{id}/update",
        "update",
        "swarm",
        run!(stored::update::<ConfigMap>),
    ),
];

impl Stored for ConfigMap {
    const WORD: &str = "config";
    // `Source:` swarmkit, `MaxConfigSize`.
    const BYTES_MAX: usize = 1000 << 10;
    const IS_SECRET: bool = false;

    fn holding(content: Vec<u8>) -> Self {
        let mut object = ConfigMap { immutable: Some(true), ..ConfigMap::default() };
        match String::from_utf8(content) {
            Ok(text) => object.data = Some(BTreeMap::from([(CONTENT_MEMBER.to_owned(), text)])),
            Err(error) => {
                let bytes = ByteString(error.into_bytes());
                object.binary_data = Some(BTreeMap::from([(CONTENT_MEMBER.to_owned(), bytes)]));
            }
        }
        object
    }

    fn content(&self) -> Vec<u8> {
        let text = self.data.as_ref().and_then(|data| data.get(CONTENT_MEMBER)).map(|text| text.clone().into_bytes());
        let bytes = || Some(self.binary_data.as_ref()?.get(CONTENT_MEMBER)?.0.clone());
        text.or_else(bytes).unwrap_or_default()
    }
}
