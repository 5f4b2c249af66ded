//! Files of containers: `docker cp` (archive), `docker diff` (changes), `docker export`.

use std::sync::Arc;

use api::container::ContainerSpec;
use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, StatusCode};
use kube::ResourceExt;
use node::{FileChangeKind, PathStatistics};
use serde_json::{Value, json};

use crate::body;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;
use crate::time;

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new(
        "ContainerArchiveInfo",
        Method::HEAD,
        "/containers/{id}/archive",
        "get",
        "containers",
        run!(archive_info),
    ),
    Operation::new(
        "ContainerArchive",
        Method::GET,
        "/containers/{id}/archive",
        "get",
        "containers",
        run!(archive_read),
    ),
    Operation::new(
        "PutContainerArchive",
        Method::PUT,
        "/containers/{id}/archive",
        "update",
        "containers",
        run!(archive_write),
    ),
    Operation::new(
        "ContainerChanges",
        Method::GET,
        "/containers/{id}/changes",
        "get",
        "containers",
        run!(container_changes),
    ),
    Operation::new(
        "ContainerExport",
        Method::GET,
        "/containers/{id}/export",
        "get",
        "containers",
        run!(container_export),
    ),
];

/// Content type of tar streams.
const TAR: &str = "application/x-tar";
/// Name of the header that describes a path.
const PATH_STATISTICS: &str = "X-Docker-Container-Path-Stat";

/// Go's bits for kinds of files, which are not those of stat(2).
fn go_mode(mode: u32) -> u32 {
    let kind = match mode & 0o170_000 {
        0o040_000 => 1 << 31,
        0o120_000 => 1 << 27,
        0o060_000 => 1 << 26,
        0o020_000 => (1 << 26) | (1 << 21),
        0o010_000 => 1 << 25,
        0o140_000 => 1 << 24,
        _ => 0,
    };
    let special = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    special.iter().filter(|(bit, _)| mode & bit != 0).fold(kind | (mode & 0o777), |all, (_, go)| all | go)
}

fn statistics_header(statistics: &PathStatistics) -> Result<HeaderValue> {
    let text = json!({
        "name": statistics.name,
        "size": statistics.size_bytes,
        "mode": go_mode(statistics.mode),
        "mtime": time::rfc3339(statistics.modified_ns),
        "linkTarget": statistics.link_target,
    });
    HeaderValue::from_str(&STANDARD.encode(text.to_string())).map_err(|e| Error::Internal(e.to_string()))
}

fn path(call: &Call) -> Result<&str> {
    call.query.text("path").ok_or_else(|| Error::Invalid("bad parameter: 'path' cannot be empty".into()))
}

/// Docker's words for a path that is not there.
fn no_such_path(error: node::Error, id: &str, path: &str) -> Error {
    match error {
        node::Error::NotFound(_) => Error::NotFound(format!("Could not find the file {path} in container {id}")),
        other => other.into(),
    }
}

async fn archive_info(docker: Arc<Docker>, call: Call) -> Reply {
    let path = path(&call)?;
    let id = docker.container(call.parameter("id"))?.name_any();
    let statistics = docker.state.node.path_statistics(&docker.workload(&id), path).await;
    let statistics = statistics.map_err(|error| no_such_path(error, call.parameter("id"), path))?;
    let mut response = body::empty(StatusCode::OK);
    response.headers_mut().insert(PATH_STATISTICS, statistics_header(&statistics)?);
    Ok(response)
}

async fn archive_read(docker: Arc<Docker>, call: Call) -> Reply {
    let path = path(&call)?;
    let container = docker.container(call.parameter("id"))?;
    let read = docker.state.node.read_archive(&docker.workload(&container.name_any()), path).await;
    let (statistics, archive) = read.map_err(|error| no_such_path(error, call.parameter("id"), path))?;
    docker.events.container(&container, "archive-path", &[]);
    let mut response = body::stream(TAR, archive);
    response.headers_mut().insert(PATH_STATISTICS, statistics_header(&statistics)?);
    Ok(response)
}

async fn archive_write(docker: Arc<Docker>, mut call: Call) -> Reply {
    let path = path(&call)?.to_owned();
    let container = docker.container(call.parameter("id"))?;
    if let Some(reason) = read_only(&container.spec, &path) {
        return Err(Error::Forbidden(reason.into()));
    }
    let workload = docker.workload(&container.name_any());
    if call.query.flag("noOverwriteDirNonDir") {
        let there = docker.state.node.path_statistics(&workload, &path).await;
        let there = there.map_err(|error| no_such_path(error, call.parameter("id"), &path))?;
        if there.mode & 0o170_000 != 0o040_000 && there.link_target.is_empty() {
            return Err(Error::Invalid("extraction point is not a directory".into()));
        }
    }
    let archive = body::byte_stream(std::mem::take(&mut call.body));
    let written = docker.state.node.write_archive(&workload, &path, archive).await;
    written.map_err(|error| no_such_path(error, call.parameter("id"), &path))?;
    docker.events.container(&container, "extract-to-dir", &[]);
    Ok(body::empty(StatusCode::OK))
}

/// Why a path may not be written to: the innermost mount that it lies on says so, or the root file system. Links are followed by
/// the machine.
fn read_only(spec: &ContainerSpec, path: &str) -> Option<&'static str> {
    let path = super::mounts::clean(path);
    let inside = |target: &str| path == target || path.strip_prefix(target).is_some_and(|rest| rest.starts_with('/'));
    match spec.mounts.iter().filter(|mount| inside(&mount.target)).max_by_key(|mount| mount.target.len()) {
        Some(mount) => mount.is_for_reading().then_some("mounted volume is marked read-only"),
        None => spec.security.read_only_root.then_some("container rootfs is marked read-only"),
    }
}

async fn container_changes(docker: Arc<Docker>, call: Call) -> Reply {
    let id = docker.container(call.parameter("id"))?.name_any();
    let changes = docker.state.node.changes(&docker.workload(&id)).await?;
    let shown: Vec<Value> = changes
        .into_iter()
        .map(|change| {
            let kind = match change.kind {
                FileChangeKind::Modified => 0,
                FileChangeKind::Added => 1,
                FileChangeKind::Deleted => 2,
            };
            json!({ "Path": change.path, "Kind": kind })
        })
        .collect();
    body::json(&shown)
}

async fn container_export(docker: Arc<Docker>, call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    let archive = docker.state.node.export(&docker.workload(&container.name_any())).await?;
    docker.events.container(&container, "export", &[]);
    Ok(body::typed(StatusCode::OK, "application/octet-stream", Body::from_stream(archive)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_modes_are_told_in_gos_bits() {
        assert_eq!(go_mode(0o100_644), 0o644);
        assert_eq!(go_mode(0o040_755), (1 << 31) | 0o755);
        assert_eq!(go_mode(0o041_777), (1 << 31) | (1 << 20) | 0o777);
        assert_eq!(go_mode(0o120_777), (1 << 27) | 0o777);
        assert_eq!(go_mode(0o104_755), (1 << 23) | 0o755);
    }

    #[test]
    fn the_innermost_mount_says_whether_a_path_may_be_written() {
        let mount = |target: &str, kind: &str, read_only| api::container::Mount {
            target: target.to_owned(),
            kind: kind.to_owned(),
            read_only,
            ..api::container::Mount::default()
        };
        let mut spec = ContainerSpec {
            mounts: vec![
                mount("/v", "volume", true),
                mount("/v/in", "bind", false),
                mount("/w", "volume", false),
                mount("/w/in", "bind", true),
                mount("/i", "image", false),
            ],
            ..ContainerSpec::default()
        };
        let (volume, root) = (Some("mounted volume is marked read-only"), Some("container rootfs is marked read-only"));
        for root in [None, root] {
            spec.security.read_only_root = root.is_some();
            let cases = [
                ("/v", volume),
                ("/v/", volume),
                ("/x/../v/deep", volume),
                ("/v/in/deep", None),
                ("/w", None),
                ("/w/in", volume),
                ("/i/bin", volume),
                ("/vv", root),
                ("/", root),
            ];
            for (path, expected) in cases {
                assert_eq!(read_only(&spec, path), expected, "{path}");
            }
        }
    }
}
