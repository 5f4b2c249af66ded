//! The machinery that serves any kind: CRUD, list and watch, patches, apply, admission, authentication, authorization,
//! audit. Knows the store and schemas; must never know HTTP routing or any dialect.
//!
//! A kind is one registration ([`Kind`]); everything else is generic. The way of a write: [`ApiServer::create`] and its
//! siblings authorize, decode, default, admit, validate, record the field managers and commit one store transaction
//! that compares revisions; then they wait until the watch cache has seen the write, so a writer reads its own writes.

mod admission;
mod allocation;
mod apply;
mod audit;
mod authentication;
mod authorization;
mod bootstrap;
mod cache;
mod custom;
mod encoding;
mod expression;
mod fairness;
#[doc(hidden)]
pub mod fuzzing;
mod json;
mod keys;
mod kind;
mod kind_table;
mod maintenance;
mod object;
mod options;
mod patch;
mod path;
pub mod quantity;
mod read;
mod review;
mod scale;
mod schema;
pub mod selector;
mod server;
mod status;
mod subresource;
mod user;
mod validation;
mod watch;
mod write;

pub use admission::{WebhookEndpoint, WebhookTransport};
pub use authorization::node_name;
pub use fairness::FairnessLimits;
pub use kind::{Allocator, Column, ColumnValue, Kind, KindSchema, ScalePaths, Subresource, View};
pub use kind_table::{GroupVersion, KindTable};
pub use object::{Meta, Object, ObjectList};
pub use options::{
    Body, DeleteOptions, Deleted, FieldValidation, GetOptions, ListOptions, PatchKind, Preconditions, Propagation,
    ResourceVersionMatch, WriteOptions, Written,
};
pub use path::ResourcePath;
pub use server::{ApiServer, Error, Options, StaticToken};
pub use status::{Cause, Details, Reason, Status};
pub use user::{
    Attributes, AuditNotes, Decision, GROUP_AUTHENTICATED, GROUP_MASTERS, GROUP_UNAUTHENTICATED, RequestContext,
    UserInfo,
};
pub use watch::{EventKind, WatchEvent, WatchStream};
