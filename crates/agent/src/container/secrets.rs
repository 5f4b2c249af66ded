//! Files out of `Secret` and `ConfigMap` objects, which only their container sees.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use api::container::ContainerSpec;
use api::swarm::{CONTENT_MEMBER, FileMount};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;

use super::mounts;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::launch::MountPoint;

/// Name of the files' directory in a container's directory.
const DIRECTORY: &str = "files";

/// Writes the files of a container and says where they are mounted.
///
/// Errors: an object is not there, or has no content.
pub async fn files(
    context: &Context,
    namespace: &str,
    directory: &Path,
    spec: &ContainerSpec,
) -> Result<Vec<MountPoint>> {
    let mut points = Vec::new();
    for (index, file) in spec.files.iter().enumerate() {
        let content = content(context, namespace, file).await?;
        let path = directory.join(DIRECTORY).join(index.to_string());
        write(&path, file, &content)?;
        points.push(MountPoint { read_only: true, ..mounts::file(&path, &file.target) });
    }
    Ok(points)
}

/// Takes the files away: what a run was told in secret does not outlive it.
pub fn forget(directory: &Path) {
    let path = directory.join(DIRECTORY);
    match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove the files of secrets");
        }
        _ => {}
    }
}

async fn content(context: &Context, namespace: &str, file: &FileMount) -> Result<Vec<u8>> {
    let missing = |kind: &str| Error::Invalid(format!("{kind} {} is not there", file.object));
    if file.secret {
        let objects: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
        let object = objects.get_opt(&file.object).await.map_err(Error::api("read a secret"))?;
        let data = object.and_then(|object| object.data?.remove(CONTENT_MEMBER));
        return data.map(|bytes| bytes.0).ok_or_else(|| missing("secret"));
    }
    let objects: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let object = objects.get_opt(&file.object).await.map_err(Error::api("read a config map"))?;
    let object = object.ok_or_else(|| missing("config"))?;
    let text = object.data.and_then(|mut data| data.remove(CONTENT_MEMBER)).map(String::into_bytes);
    let bytes = object.binary_data.and_then(|mut data| data.remove(CONTENT_MEMBER)).map(|bytes| bytes.0);
    text.or(bytes).ok_or_else(|| missing("config"))
}

fn write(path: &PathBuf, file: &FileMount, content: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let parent = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(Error::io("create", parent))?;
    // Written anew, so that nobody who holds the old one sees the new content, nor the new one the old rights.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", path)(error)),
        _ => {}
    }
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.and_then(|mut open| open.write_all(content)).map_err(Error::io("write", path))?;
    std::os::unix::fs::chown(path, Some(file.uid), Some(file.gid)).map_err(Error::io("change owner of", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(file.mode & 0o7777))
        .map_err(Error::io("change mode of", path))
}
