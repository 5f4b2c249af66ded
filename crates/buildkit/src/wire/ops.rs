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

/// `Op`: a node of a graph. Of its kinds only sources are known.
#[derive(Clone, PartialEq, Message)]
pub struct Op {
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<Input>,
    #[prost(message, optional, tag = "3")]
    pub source: Option<SourceOp>,
}

/// `Input`: the result of another node.
#[derive(Clone, PartialEq, Message)]
pub struct Input {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub index: i64,
}

/// `Definition`: a graph in BuildKit's low-level language, of which only those that we gave are taken back.
#[derive(Clone, PartialEq, Message)]
pub struct Definition {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub def: Vec<Vec<u8>>,
    #[prost(map = "string, message", tag = "2")]
    pub metadata: HashMap<String, NodeMetadata>,
}

/// `OpMetadata`, of which nothing is said.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct NodeMetadata {}

/// `SourceOp`
#[derive(Clone, PartialEq, Message)]
pub struct SourceOp {
    #[prost(string, tag = "1")]
    pub identifier: String,
    #[prost(map = "string, string", tag = "2")]
    pub attrs: HashMap<String, String>,
}
