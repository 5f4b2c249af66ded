//! The few messages of `pb` that are needed. Source: BuildKit 0.25, solver/pb/ops.proto.

use std::collections::HashMap;

use prost::Message;

/// `Platform`
#[derive(Clone, PartialEq, Message)]
pub struct Platform {
    #[prost(string, tag = "1")]
    pub architecture: String,
    #[prost(string, tag = "2")]
    pub os: String,
    #[prost(string, tag = "3")]
    pub variant: String,
}

/// `Definition`: a graph in BuildKit's low-level language, which is not evaluated here.
#[derive(Clone, PartialEq, Message)]
pub struct Definition {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub def: Vec<Vec<u8>>,
}

/// `SourceOp`
#[derive(Clone, PartialEq, Message)]
pub struct SourceOp {
    #[prost(string, tag = "1")]
    pub identifier: String,
    #[prost(map = "string, string", tag = "2")]
    pub attrs: HashMap<String, String>,
}
