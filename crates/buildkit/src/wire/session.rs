//! Messages of the services that a client offers in its session.
//! Source: BuildKit 0.25, session/*/*.proto; fsutil, types/wire.proto and types/stat.proto.

use std::collections::HashMap;

use prost::Message;

/// `fsutil.types.Packet`
#[derive(Clone, PartialEq, Message)]
pub struct Packet {
    #[prost(enumeration = "PacketKind", tag = "1")]
    pub kind: i32,
    #[prost(message, optional, tag = "2")]
    pub stat: Option<Stat>,
    #[prost(uint32, tag = "3")]
    pub id: u32,
    #[prost(bytes = "vec", tag = "4")]
    pub data: Vec<u8>,
}

/// `PacketType`
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum PacketKind {
    Stat = 0,
    Request = 1,
    Data = 2,
    End = 3,
    Error = 4,
}

/// `fsutil.types.Stat`. The mode has Go's bits.
#[derive(Clone, PartialEq, Message)]
pub struct Stat {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    #[prost(uint32, tag = "4")]
    pub gid: u32,
    #[prost(int64, tag = "5")]
    pub size: i64,
    #[prost(int64, tag = "6")]
    pub modified_ns: i64,
    #[prost(string, tag = "7")]
    pub link: String,
    #[prost(int64, tag = "8")]
    pub major: i64,
    #[prost(int64, tag = "9")]
    pub minor: i64,
    #[prost(map = "string, bytes", tag = "10")]
    pub attributes: HashMap<String, Vec<u8>>,
}

/// `BytesMessage` of several services
#[derive(Clone, PartialEq, Message)]
pub struct BytesMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

/// `GetSecretRequest`
#[derive(Clone, PartialEq, Message)]
pub struct GetSecretRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `CheckAgentRequest`
#[derive(Clone, PartialEq, Message)]
pub struct CheckAgentRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `CredentialsRequest`
#[derive(Clone, PartialEq, Message)]
pub struct CredentialsRequest {
    #[prost(string, tag = "1")]
    pub host: String,
}

/// `CredentialsResponse`
#[derive(Clone, PartialEq, Message)]
pub struct CredentialsResponse {
    #[prost(string, tag = "1")]
    pub username: String,
    #[prost(string, tag = "2")]
    pub secret: String,
}
