//! Messages of `moby.buildkit.v1.frontend.LLBBridge`. Source: BuildKit 0.25, frontend/gateway/pb/gateway.proto.

use std::collections::HashMap;

use prost::Message;

use super::control::WorkerRecord;
use super::google::Status;
use super::ops::{Definition, Platform, SourceOp};

/// `Result`
#[derive(Clone, PartialEq, Message)]
pub struct BuildResult {
    #[prost(oneof = "References", tags = "1, 3, 4")]
    pub references: Option<References>,
    #[prost(map = "string, bytes", tag = "10")]
    pub metadata: HashMap<String, Vec<u8>>,
}

/// What a result refers to.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum References {
    #[prost(string, tag = "1")]
    Deprecated(String),
    #[prost(message, tag = "3")]
    One(Reference),
    #[prost(message, tag = "4")]
    Many(ReferenceMap),
}

/// `Ref`
#[derive(Clone, PartialEq, Message)]
pub struct Reference {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub definition: Option<Definition>,
}

/// `RefMap`
#[derive(Clone, PartialEq, Message)]
pub struct ReferenceMap {
    #[prost(map = "string, message", tag = "1")]
    pub references: HashMap<String, Reference>,
}

/// `ReturnRequest`
#[derive(Clone, PartialEq, Message)]
pub struct ReturnRequest {
    #[prost(message, optional, tag = "1")]
    pub result: Option<BuildResult>,
    #[prost(message, optional, tag = "2")]
    pub error: Option<Status>,
}

/// `ResolveImageConfigRequest`
#[derive(Clone, PartialEq, Message)]
pub struct ResolveImageConfigRequest {
    #[prost(string, tag = "1")]
    pub reference: String,
    #[prost(message, optional, tag = "2")]
    pub platform: Option<Platform>,
}

/// `ResolveImageConfigResponse`
#[derive(Clone, PartialEq, Message)]
pub struct ResolveImageConfigResponse {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(bytes = "vec", tag = "2")]
    pub config: Vec<u8>,
    #[prost(string, tag = "3")]
    pub reference: String,
}

/// `ResolveSourceMetaRequest`
#[derive(Clone, PartialEq, Message)]
pub struct ResolveSourceMetaRequest {
    #[prost(message, optional, tag = "1")]
    pub source: Option<SourceOp>,
    #[prost(message, optional, tag = "2")]
    pub platform: Option<Platform>,
}

/// `ResolveSourceMetaResponse`
#[derive(Clone, PartialEq, Message)]
pub struct ResolveSourceMetaResponse {
    #[prost(message, optional, tag = "1")]
    pub source: Option<SourceOp>,
    #[prost(message, optional, tag = "2")]
    pub image: Option<ResolveImageConfigResponse>,
}

/// `SolveRequest`
#[derive(Clone, PartialEq, Message)]
pub struct SolveRequest {
    #[prost(message, optional, tag = "1")]
    pub definition: Option<Definition>,
    #[prost(string, tag = "2")]
    pub frontend: String,
    #[prost(map = "string, string", tag = "3")]
    pub frontend_opt: HashMap<String, String>,
    #[prost(map = "string, message", tag = "13")]
    pub frontend_inputs: HashMap<String, Definition>,
    #[prost(bool, tag = "14")]
    pub evaluate: bool,
}

/// `SolveResponse`
#[derive(Clone, PartialEq, Message)]
pub struct SolveResponse {
    #[prost(message, optional, tag = "3")]
    pub result: Option<BuildResult>,
}

/// `PongResponse`
#[derive(Clone, PartialEq, Message)]
pub struct PongResponse {
    #[prost(message, repeated, tag = "1")]
    pub frontend_capabilities: Vec<Capability>,
    #[prost(message, repeated, tag = "2")]
    pub definition_capabilities: Vec<Capability>,
    #[prost(message, repeated, tag = "3")]
    pub workers: Vec<WorkerRecord>,
}

/// `APICap`
#[derive(Clone, PartialEq, Message)]
pub struct Capability {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bool, tag = "2")]
    pub enabled: bool,
}
