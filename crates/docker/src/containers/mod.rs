//! Containers: list, create, inspect, rename, update, remove, prune. Life cycle, streams and files are in their own files.

pub(crate) mod archive;
pub(crate) mod bounds;
pub(crate) mod config;
mod connections;
pub(crate) mod create;
pub(crate) mod echo;
mod inspect;
pub(crate) mod lifecycle;
mod list;
mod logging;
mod manage;
pub(crate) mod mounts;
pub(crate) mod signals;
pub(crate) mod stats;
pub(crate) mod streams;
pub(crate) mod wire;

use http::Method;

use crate::operation::{Operation, run};

pub(crate) use list::row_with_sizes;

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ContainerList", Method::GET, "/containers/json", "list", "containers", run!(list::container_list)),
    Operation::new(
        "ContainerCreate",
        Method::POST,
        "/containers/create",
        "create",
        "containers",
        run!(create::container_create),
    ),
    Operation::new(
        "ContainerPrune",
        Method::POST,
        "/containers/prune",
        "delete",
        "containers",
        run!(manage::container_prune),
    )
    .since(25),
    Operation::new(
        "ContainerInspect",
        Method::GET,
        "/containers/{id}/json",
        "get",
        "containers",
        run!(inspect::container_inspect),
    ),
    Operation::new(
        "ContainerRename",
        Method::POST,
        "/containers/{id}/rename",
        "update",
        "containers",
        run!(manage::container_rename),
    ),
    Operation::new(
        "ContainerUpdate",
        Method::POST,
        "/containers/{id}/update",
        "update",
        "containers",
        run!(manage::container_update),
    ),
    Operation::new(
        "ContainerDelete",
        Method::DELETE,
        // A link is named `container/alias`.
        "/containers/{id...}",
        "delete",
        "containers",
        run!(manage::container_delete),
    ),
];
