//! Volumes of pods: emptyDir, hostPath, and files from config maps, secrets, the downward API and tokens, which change
//! atomically. Source: Kubernetes, "Volumes"; kubelet `atomic_writer.go`.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume,
};
use kube::Api;
use nix::mount::{MsFlags, mount};
use node::patience;
use serde_json::{Value, json};

use super::environment::{self, Material};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::quantity;

/// Mode of files when none is given. Source: Kubernetes API reference, `defaultMode`.
const FILE_MODE: i32 = 0o644;
/// Lifetime of tokens when none is given. Units: seconds. Source: Kubernetes API reference, `ServiceAccountTokenProjection`.
const TOKEN_SECONDS: i64 = 3_600;
/// Shortest life of a token. Source: Kubernetes API reference, minimum of `expirationSeconds`.
const TOKEN_LIFE_LEAST: Duration = Duration::from_secs(600);
/// A token older than this is renewed however long it lives. Source: kubelet `token_manager.go`, `maxTTL`.
const TOKEN_AGE_MOST: Duration = Duration::from_secs(24 * 3_600);
/// Config map that holds the cluster's certificates.
pub const CA_CONFIG_MAP: &str = "kube-root-ca.crt";
/// Name of the link to the current files. Source: kubelet `atomic_writer.go`.
const DATA_LINK: &str = "..data";

/// A file to be: content and mode.
type Files = BTreeMap<PathBuf, (Vec<u8>, u32)>;

/// Makes one volume ready and says where it lies on the machine.
///
/// Errors: what a `FailedMount` event tells.
pub async fn ensure(context: &Context, pod: &Pod, directory: &Path, volume: &Volume) -> Result<PathBuf> {
    let path = directory.join("volumes").join(&volume.name);
    let fs_group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group);
    if let Some(host) = &volume.host_path {
        let (path, kind) = (host.path.clone(), host.type_.clone().unwrap_or_default());
        return patience::ask(host.path.as_str(), move || host_path(&path, &kind)).await?;
    }
    std::fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    if let Some(empty) = &volume.empty_dir {
        if empty.medium.as_deref() == Some("Memory") {
            memory(&path, empty.size_limit.as_ref().and_then(|q| quantity::whole(&q.0)))?;
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))
            .map_err(Error::io("change mode of", &path))?;
        own(&path, fs_group)?;
        return Ok(path);
    }
    match files(context, pod, volume).await? {
        Some(files) => write_atomically(&path, &files, fs_group).map(|()| path),
        None => Err(Error::Invalid(format!(
            "volume {:?}: this kind of volume is not supported on this machine",
            volume.name
        ))),
    }
}

/// Writes changing content again; only what changed touches the disk.
pub async fn refresh(context: &Context, pod: &Pod, directory: &Path, volume: &Volume) -> Result<()> {
    let path = directory.join("volumes").join(&volume.name);
    let fs_group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group);
    match files(context, pod, volume).await? {
        Some(files) => write_atomically(&path, &files, fs_group),
        None => Ok(()),
    }
}

fn own(path: &Path, fs_group: Option<i64>) -> Result<()> {
    let Some(group) = fs_group.and_then(|g| u32::try_from(g).ok()) else { return Ok(()) };
    std::os::unix::fs::lchown(path, None, Some(group)).map_err(Error::io("change group of", path))?;
    if path.is_dir() {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o2777))
            .map_err(Error::io("change mode of", path))?;
    }
    Ok(())
}

fn memory(path: &Path, size: Option<i64>) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = path.display().to_string();
    if mounts.lines().any(|l| l.split(' ').nth(4) == Some(wanted.as_str())) {
        return Ok(());
    }
    let options = size.filter(|s| *s > 0).map_or_else(|| "mode=777".to_owned(), |s| format!("mode=777,size={s}"));
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))
        .map_err(|e| Error::io("mount", path)(e.into()))
}

/// Blocking, for as long as the file system likes.
fn host_path(path: &str, kind: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(Error::Invalid(format!("hostPath {} must be absolute and without ..", path.display())));
    }
    let wrong =
        |what: &str| Err(Error::Invalid(format!("hostPath type check failed: {} is not a {what}", path.display())));
    let meta = std::fs::metadata(&path).ok();
    let file_type = meta.as_ref().map(std::fs::Metadata::file_type);
    use std::os::unix::fs::FileTypeExt;
    match kind {
        "DirectoryOrCreate" if meta.is_none() => std::fs::create_dir_all(&path).map_err(Error::io("create", &path))?,
        "FileOrCreate" if meta.is_none() => drop(std::fs::File::create(&path).map_err(Error::io("create", &path))?),
        "Directory" | "DirectoryOrCreate" if !file_type.is_some_and(|t| t.is_dir()) => return wrong("directory"),
        "File" | "FileOrCreate" if !file_type.is_some_and(|t| t.is_file()) => return wrong("file"),
        "Socket" if !file_type.is_some_and(|t| t.is_socket()) => return wrong("socket file"),
        "CharDevice" if !file_type.is_some_and(|t| t.is_char_device()) => return wrong("character device"),
        "BlockDevice" if !file_type.is_some_and(|t| t.is_block_device()) => return wrong("block device"),
        "" if meta.is_none() => std::fs::create_dir_all(&path).map_err(Error::io("create", &path))?,
        _ => {}
    }
    Ok(path)
}

/// Names of config maps and secrets that a volume shows.
pub fn references(volume: &Volume) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    maps.extend(volume.config_map.iter().map(|c| c.name.clone()));
    secrets.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()));
    for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        maps.extend(source.config_map.iter().map(|c| c.name.clone()));
        secrets.extend(source.secret.iter().map(|s| s.name.clone()));
    }
    (maps, secrets)
}

/// Whether the machine itself writes what a volume holds, again and again. No container may write to it, whatever it asks for: by a
/// link there it would lead the machine elsewhere. Source: CVE-2017-1002102.
pub fn is_of_files(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// Whether a volume holds a token, which must be renewed.
pub fn has_token(volume: &Volume) -> bool {
    volume.projected.iter().flat_map(|p| p.sources.iter().flatten()).any(|s| s.service_account_token.is_some())
}

/// How long after a volume was written its tokens must be written anew: after four fifths of the shortest life, and after a
/// day. `None` without tokens. Source: kubelet `token_manager.go`, `requiresRefresh`.
pub fn token_renewal(volume: &Volume) -> Option<Duration> {
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    let lives = sources.filter_map(|s| s.service_account_token.as_ref());
    let shortest = lives.map(|t| t.expiration_seconds.unwrap_or(TOKEN_SECONDS)).min()?;
    let life = Duration::from_secs(u64::try_from(shortest).unwrap_or(0)).max(TOKEN_LIFE_LEAST);
    Some((life * 4 / 5).min(TOKEN_AGE_MOST))
}

/// Content of volumes that hold files of ours; `None` for other kinds.
async fn files(context: &Context, pod: &Pod, volume: &Volume) -> Result<Option<Files>> {
    let mut files = Files::new();
    let mode = |m: Option<i32>| m.unwrap_or(FILE_MODE);
    if let Some(source) = &volume.config_map {
        let map = config_map(context, pod, &source.name, source.optional == Some(true)).await?;
        let data = map.map(config_map_data).unwrap_or_default();
        pick(
            &mut files,
            &source.name,
            data,
            source.items.as_deref(),
            mode(source.default_mode),
            source.optional == Some(true),
        )?;
    } else if let Some(source) = &volume.secret {
        let (name, optional) = (source.secret_name.clone().unwrap_or_default(), source.optional == Some(true));
        let secret = secret(context, pod, &name, optional).await?;
        let data = secret.map(secret_data).unwrap_or_default();
        pick(&mut files, &name, data, source.items.as_deref(), mode(source.default_mode), optional)?;
    } else if let Some(source) = &volume.downward_api {
        downward(context, pod, &mut files, source.items.as_deref().unwrap_or(&[]), mode(source.default_mode))?;
    } else if let Some(source) = &volume.projected {
        projected(context, pod, &mut files, source, mode(source.default_mode)).await?;
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

async fn projected(
    context: &Context,
    pod: &Pod,
    files: &mut Files,
    volume: &ProjectedVolumeSource,
    mode: i32,
) -> Result<()> {
    for source in volume.sources.iter().flatten() {
        if let Some(map) = &source.config_map {
            let optional = map.optional == Some(true);
            let found = config_map(context, pod, &map.name, optional).await;
            let data = match found {
                Err(_) if map.name == CA_CONFIG_MAP && !context.cluster_ca.is_empty() => {
                    BTreeMap::from([("ca.crt".to_owned(), context.cluster_ca.clone().into_bytes())])
                }
                found => found?.map(config_map_data).unwrap_or_default(),
            };
            pick(files, &map.name, data, map.items.as_deref(), mode, optional)?;
        }
        if let Some(wanted) = &source.secret {
            let optional = wanted.optional == Some(true);
            let data = secret(context, pod, &wanted.name, optional).await?.map(secret_data).unwrap_or_default();
            pick(files, &wanted.name, data, wanted.items.as_deref(), mode, optional)?;
        }
        if let Some(fields) = &source.downward_api {
            downward(context, pod, files, fields.items.as_deref().unwrap_or(&[]), mode)?;
        }
        if let Some(wanted) = &source.service_account_token {
            let seconds = wanted.expiration_seconds.unwrap_or(TOKEN_SECONDS);
            let token = token(context, pod, wanted.audience.as_deref(), seconds).await?;
            insert(files, &wanted.path, token.into_bytes(), mode)?;
        }
    }
    Ok(())
}

async fn config_map(context: &Context, pod: &Pod, name: &str, optional: bool) -> Result<Option<ConfigMap>> {
    let api: Api<ConfigMap> =
        Api::namespaced(context.client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
    match api.get_opt(name).await.map_err(Error::api("read config map"))? {
        None if !optional => Err(Error::Invalid(format!("configmap \"{name}\" not found"))),
        found => Ok(found),
    }
}

async fn secret(context: &Context, pod: &Pod, name: &str, optional: bool) -> Result<Option<Secret>> {
    let api: Api<Secret> =
        Api::namespaced(context.client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
    match api.get_opt(name).await.map_err(Error::api("read secret"))? {
        None if !optional => Err(Error::Invalid(format!("secret \"{name}\" not found"))),
        found => Ok(found),
    }
}

fn config_map_data(map: ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
    text.chain(map.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0))).collect()
}

fn secret_data(secret: Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect()
}

fn pick(
    files: &mut Files,
    source: &str,
    data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<()> {
    let Some(items) = items else {
        for (key, value) in data {
            insert(files, &key, value, mode)?;
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => insert(files, &item.path, value.clone(), item.mode.unwrap_or(mode))?,
            None if optional => {}
            None => return Err(Error::Invalid(format!("{source}: references non-existent key: {}", item.key))),
        }
    }
    Ok(())
}

fn insert(files: &mut Files, path: &str, content: Vec<u8>, mode: i32) -> Result<()> {
    let relative = Path::new(path);
    let plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || !plain || path.starts_with("..") {
        return Err(Error::Invalid(format!("{path:?} is no path inside a volume")));
    }
    files.insert(relative.to_owned(), (content, u32::try_from(mode).unwrap_or(0o644) & 0o777));
    Ok(())
}

fn downward(context: &Context, pod: &Pod, files: &mut Files, items: &[DownwardAPIVolumeFile], mode: i32) -> Result<()> {
    let empty = BTreeMap::new();
    let (maps, secrets) = (BTreeMap::new(), empty);
    let material = Material { pod, config_maps: &maps, secrets: &secrets, machine: context.size };
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            environment::field(field, pod)
        } else if let Some(selector) = &item.resource_field_ref {
            let containers = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
            let mut named = containers.filter(|c| Some(&c.name) == selector.container_name.as_ref());
            let container = named.next().cloned().unwrap_or_default();
            environment::resource(selector, &container, &material)
        } else {
            continue;
        };
        let text = text.map_err(|error| Error::Invalid(error.to_string()))?;
        insert(files, &item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
    }
    Ok(())
}

/// Asks for a token bound to the pod. Source: Kubernetes API reference, `TokenRequest`.
async fn token(context: &Context, pod: &Pod, audience: Option<&str>, seconds: i64) -> Result<String> {
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let account = pod
        .spec
        .as_ref()
        .and_then(|s| s.service_account_name.as_deref())
        .filter(|n| !n.is_empty())
        .unwrap_or("default");
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {
            "audiences": audience.into_iter().collect::<Vec<_>>(), "expirationSeconds": seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta.name, "uid": meta.uid}
        }
    });
    let bytes = serde_json::to_vec(&body).unwrap_or_default();
    let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"))
        .header("content-type", "application/json")
        .body(bytes)
        .map_err(|error| Error::Invalid(error.to_string()))?;
    let answer: Value = context.client.request(request).await.map_err(Error::api("fetch a service account token"))?;
    let token = answer.pointer("/status/token").and_then(Value::as_str);
    token.map(str::to_owned).ok_or_else(|| Error::Invalid("the apiserver gave no token".to_owned()))
}

/// Replaces the files of a volume at once: a new directory, then the link `..data` is turned to it.
fn write_atomically(path: &Path, files: &Files, fs_group: Option<i64>) -> Result<()> {
    let link = path.join(DATA_LINK);
    // Ours is a name in the same directory. Anything else is not followed, and not removed.
    let named = std::fs::read_link(&link).ok().filter(|target| target.file_name() == Some(target.as_os_str()));
    let current = named.map(|target| path.join(target));
    if current.as_ref().is_some_and(|c| is_same(c, files)) {
        return Ok(());
    }
    let name = format!("..{}", jiff::Timestamp::now().as_nanosecond());
    let fresh = path.join(&name);
    std::fs::create_dir_all(&fresh).map_err(Error::io("create", &fresh))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755))
        .map_err(Error::io("change mode of", &fresh))?;
    for (file, (content, mode)) in files {
        let target = fresh.join(file);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        std::fs::write(&target, content).map_err(Error::io("write", &target))?;
        // A group that may read what only the owner could. Source: kubelet `SetVolumeOwnership`.
        let mode = if fs_group.is_some() { mode | 0o440 } else { *mode };
        own(&target, fs_group)?;
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(mode))
            .map_err(Error::io("change mode of", &target))?;
    }
    let new_link = path.join("..data_tmp");
    let _ = std::fs::remove_file(&new_link);
    symlink(&name, &new_link).map_err(Error::io("link", &new_link))?;
    std::fs::rename(&new_link, &link).map_err(Error::io("rename", &link))?;
    let tops: std::collections::BTreeSet<_> =
        files.keys().filter_map(|f| f.components().next()).map(|c| c.as_os_str().to_owned()).collect();
    for entry in std::fs::read_dir(path).map_err(Error::io("list", path))?.flatten() {
        let known = tops.contains(&entry.file_name());
        if !known && !entry.file_name().to_string_lossy().starts_with("..") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    for top in tops {
        let visible = path.join(&top);
        if visible.symlink_metadata().is_err() {
            symlink(Path::new(DATA_LINK).join(&top), &visible).map_err(Error::io("link", &visible))?;
        }
    }
    if let Some(old) = current {
        let _ = std::fs::remove_dir_all(old);
    }
    Ok(())
}

fn is_same(directory: &Path, files: &Files) -> bool {
    fn count(directory: &Path) -> usize {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|e| if e.path().is_dir() { count(&e.path()) } else { 1 }).sum()
    }
    count(directory) == files.len()
        && files.iter().all(|(f, (content, _))| std::fs::read(directory.join(f)).is_ok_and(|c| c == *content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let mut files = Files::new();
        for (path, text) in list {
            insert(&mut files, path, text.as_bytes().to_vec(), 0o600).unwrap();
        }
        files
    }

    #[test]
    fn only_volumes_of_files_are_for_the_machine_to_write() {
        let volume = |kind: &str| -> Volume { serde_json::from_value(json!({"name": "v", kind: {}})).unwrap() };
        for kind in ["configMap", "secret", "downwardAPI", "projected"] {
            assert!(is_of_files(&volume(kind)), "{kind}");
        }
        assert!(!is_of_files(&volume("emptyDir")));
        let host = json!({"name": "v", "hostPath": {"path": "/"}});
        assert!(!is_of_files(&serde_json::from_value(host).unwrap()));
    }

    #[test]
    fn a_link_to_elsewhere_is_replaced_and_nothing_there_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        for target in [outside.as_path(), Path::new("../outside"), Path::new("..")] {
            std::fs::create_dir_all(&volume).unwrap();
            std::fs::create_dir_all(&outside).unwrap();
            std::fs::write(outside.join("kept"), "").unwrap();
            symlink(target, volume.join(DATA_LINK)).unwrap();
            write_atomically(&volume, &files(&[("a", "1")]), None).unwrap();
            assert!(outside.join("kept").exists(), "{}", target.display());
            assert_eq!(std::fs::read_to_string(volume.join("a")).unwrap(), "1");
            std::fs::remove_dir_all(&volume).unwrap();
        }
    }

    #[test]
    fn files_are_replaced_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        write_atomically(dir.path(), &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("sub/b")).unwrap(), "2");
        let before = std::fs::read_link(dir.path().join(DATA_LINK)).unwrap();
        write_atomically(dir.path(), &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(std::fs::read_link(dir.path().join(DATA_LINK)).unwrap(), before, "nothing changed");
        write_atomically(dir.path(), &files(&[("a", "3")]), None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        assert!(!dir.path().join("sub").exists());
        assert!(!dir.path().join(before).exists());
    }

    #[test]
    fn tokens_are_renewed_after_four_fifths_of_their_life() {
        let check = |sources: Value, seconds: Option<u64>| {
            let volume = json!({"name": "v", "projected": {"sources": sources}});
            let volume: Volume = serde_json::from_value(volume).unwrap();
            assert_eq!(token_renewal(&volume).map(|after| after.as_secs()), seconds);
        };
        let token = |seconds: i64| json!({"serviceAccountToken": {"path": "t", "expirationSeconds": seconds}});
        check(json!([token(600)]), Some(480));
        check(json!([token(7_200), token(3_600)]), Some(2_880));
        check(json!([token(1)]), Some(480));
        check(json!([token(10_000_000)]), Some(86_400));
        check(json!([{"serviceAccountToken": {"path": "t"}}]), Some(2_880));
        check(json!([{"configMap": {"name": "c"}}]), None);
    }

    #[test]
    fn a_key_never_becomes_a_path_outside() {
        for path in ["../x", "/x", "", "a/../../x", "..data"] {
            assert!(insert(&mut Files::new(), path, Vec::new(), 0o644).is_err(), "{path}");
        }
    }
}
