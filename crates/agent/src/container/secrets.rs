//! Files out of `Secret` and `ConfigMap` objects, which only their container sees.

use std::collections::HashMap;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use api::container::ContainerSpec;
use api::swarm::{CONTENT_MEMBER, FileMount, TEMPLATE_DRIVER, TEMPLATING_ANNOTATION};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, ResourceExt};

use super::mounts;
use super::template::{self, Piece};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::launch::{Access, MountPoint};

/// Largest that a template may become: what a config may hold. Units: bytes. `Source:` swarmkit, `MaxConfigSize`.
const EXPANDED_MAX: usize = 1000 << 10;
/// Most of included secrets and configs that is kept while the files of a container are made. Units: bytes.
const INCLUDED_MAX: usize = 8 << 20;
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
    let mut included = Included { context, namespace, spec, read: HashMap::new(), bytes: 0 };
    for (index, file) in spec.files.iter().enumerate() {
        let content = content(&mut included, file).await?;
        let path = directory.join(DIRECTORY).join(index.to_string());
        write(&path, file, &content)?;
        points.push(MountPoint { access: Access::ReadOnly, ..mounts::file(&path, &file.target) });
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

/// What a file holds, with its template expanded if it is one.
async fn content(included: &mut Included<'_>, file: &FileMount) -> Result<Vec<u8>> {
    let (context, spec) = (included.context, included.spec);
    let stored = read(context, included.namespace, file).await?;
    match stored.template.as_deref() {
        None => return Ok(stored.content),
        Some(TEMPLATE_DRIVER) => {}
        Some(driver) => {
            let driver = template::shortened(driver);
            return Err(Error::Invalid(format!("the template driver {driver:?} is not available")));
        }
    }
    let failed = |why: String| failure(file, &why);
    let text = String::from_utf8(stored.content).map_err(|_| failed("the template is no text".into()))?;
    let mut out = Vec::new();
    for piece in template::parse(&text).map_err(failed)? {
        match piece {
            Piece::Text(text) => out.extend(text.into_bytes()),
            Piece::Field(path) => {
                let value = field(&context.node_name, spec, path);
                let value = value.ok_or_else(|| failed(format!("there is no {}", template::shortened(path))))?;
                out.extend(value.into_bytes());
            }
            Piece::Environment(name) => {
                let value = spec.environment.iter().find_map(|line| line.strip_prefix(&name)?.strip_prefix('='));
                // One that is not set is empty, as it is for Docker.
                out.extend(value.unwrap_or_default().bytes());
            }
            Piece::Secret(name) => out.extend(included.content(file, true, &name).await?),
            Piece::Config(name) => out.extend(included.content(file, false, &name).await?),
        }
        if out.len() > EXPANDED_MAX {
            let target = &file.target;
            return Err(Error::Invalid(format!("expanding {target} failed: more than {EXPANDED_MAX} bytes")));
        }
    }
    Ok(out)
}

/// Why a template cannot be expanded. What a task says is read by many: nothing of a secret is in it.
fn failure(file: &FileMount, why: &str) -> Error {
    let why = if file.secret { "the template is not understood" } else { why };
    Error::Invalid(format!("expanding {} failed: {why}", file.target))
}

/// Other secrets and configs of the same task that its templates include, as they are. Each is read once, not once for each
/// time that it is named.
struct Included<'a> {
    context: &'a Context,
    namespace: &'a str,
    spec: &'a ContainerSpec,
    /// What was read, by its place in the container's list of files.
    read: HashMap<usize, Vec<u8>>,
    bytes: usize,
}

impl Included<'_> {
    /// What a template includes by this name.
    async fn content(&mut self, within: &FileMount, secret: bool, name: &str) -> Result<&[u8]> {
        let base = if secret { "/run/secrets" } else { "" };
        let target = if name.starts_with('/') { name.to_owned() } else { format!("{base}/{name}") };
        let index = self.spec.files.iter().position(|file| file.secret == secret && file.target == target);
        let kind = if secret { "secret" } else { "config" };
        let missing = || failure(within, &format!("{kind} target {} not found", template::shortened(name)));
        let index = index.ok_or_else(missing)?;
        let known = self.read.contains_key(&index);
        if !known {
            let content = read(self.context, self.namespace, &self.spec.files[index]).await?.content;
            self.bytes += content.len();
            if self.bytes > INCLUDED_MAX {
                self.read.clear();
                self.bytes = content.len();
            }
            self.read.insert(index, content);
        }
        Ok(self.read.get(&index).map(Vec::as_slice).unwrap_or_default())
    }
}

/// What a placeholder stands for. The labels of a task say which it is.
fn field(node_name: &str, spec: &ContainerSpec, path: &str) -> Option<String> {
    let label = |name: &str| spec.labels.get(&format!("com.docker.swarm.{name}")).cloned();
    match path {
        ".Service.ID" => label("service.id"),
        ".Service.Name" => label("service.name"),
        ".Node.ID" => label("node.id"),
        ".Node.Hostname" => Some(node_name.to_owned()),
        ".Node.Platform.OS" => Some("linux".to_owned()),
        // As Docker names it here, unlike everywhere else.
        ".Node.Platform.Architecture" => Some(std::env::consts::ARCH.to_owned()),
        ".Task.ID" => label("task.id"),
        ".Task.Name" => label("task.name"),
        // `service.slot.id`, where the name of the service may have dots.
        ".Task.Slot" => label("task.name")?.rsplit('.').nth(1).map(str::to_owned),
        _ => None,
    }
}

/// A secret or config as it is stored.
struct Stored {
    content: Vec<u8>,
    /// Name of the driver that makes the file of it.
    template: Option<String>,
}

async fn read(context: &Context, namespace: &str, file: &FileMount) -> Result<Stored> {
    let missing = |kind: &str| Error::Invalid(format!("{kind} {} is not there", file.object));
    if file.secret {
        let objects: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
        let object = objects.get_opt(&file.object).await.map_err(Error::api("read a secret"))?;
        let object = object.ok_or_else(|| missing("secret"))?;
        let template = driver(&object);
        let data = object.data.and_then(|mut data| data.remove(CONTENT_MEMBER));
        return Ok(Stored { content: data.ok_or_else(|| missing("secret"))?.0, template });
    }
    let objects: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let object = objects.get_opt(&file.object).await.map_err(Error::api("read a config map"))?;
    let object = object.ok_or_else(|| missing("config"))?;
    let template = driver(&object);
    let text = object.data.and_then(|mut data| data.remove(CONTENT_MEMBER)).map(String::into_bytes);
    let bytes = object.binary_data.and_then(|mut data| data.remove(CONTENT_MEMBER)).map(|bytes| bytes.0);
    Ok(Stored { content: text.or(bytes).ok_or_else(|| missing("config"))?, template })
}

fn driver(object: &impl ResourceExt) -> Option<String> {
    let said = object.annotations().get(TEMPLATING_ANNOTATION)?;
    let said: serde_json::Value = serde_json::from_str(said).unwrap_or_default();
    Some(said["Name"].as_str().unwrap_or_default().to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_secret_is_told() {
        let told = |secret| {
            let file = FileMount { secret, target: "/x".into(), ..FileMount::default() };
            failure(&file, "{{ hunter2 }} is not understood").to_string()
        };
        assert_eq!(told(false), "expanding /x failed: {{ hunter2 }} is not understood");
        assert_eq!(told(true), "expanding /x failed: the template is not understood");
    }

    #[test]
    fn a_tasks_labels_say_what_placeholders_stand_for() {
        let label = |name: &str, value: &str| (format!("com.docker.swarm.{name}"), value.to_owned());
        let labels = [label("task.name", "a.web.3.xyz"), label("service.name", "a.web")].into_iter().collect();
        let spec = ContainerSpec { labels, ..ContainerSpec::default() };
        let of = |path: &str| field("host", &spec, path);
        assert_eq!(of(".Task.Slot").as_deref(), Some("3"));
        assert_eq!(of(".Service.Name").as_deref(), Some("a.web"));
        assert_eq!(of(".Node.Hostname").as_deref(), Some("host"));
        assert_eq!((of(".Task.ID"), of(".Nothing")), (None, None));
    }
}
