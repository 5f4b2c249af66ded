//! What a container sees mounted: volumes, host paths, memory, and its own files under /etc.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use api::container::{ContainerSpec, Mount};
use api::names::DOCKER_NAMESPACE;
use api::privilege::{BIND_WORDS, mount_words};
use api::volume::Volume;
use kube::Api;
use node::patience;

use crate::context::{Context, is_path_safe};
use crate::error::{Error, Result};
use crate::in_root;
use crate::launch::{Access, MountPoint, Place};
use crate::sub_path;

/// Mode of a tmpfs when none is given.
const TMPFS_MODE: u32 = 0o1777;

/// Mounts, and what of the image is to be copied where.
#[derive(Debug, Default)]
pub struct Mounts {
    /// In the order of the spec.
    pub points: Vec<MountPoint>,
    /// New volumes that take over the image's content: path in the image, directory of the volume.
    pub copies: Vec<(PathBuf, PathBuf)>,
    /// Where volumes lie, by target.
    pub volume_paths: BTreeMap<String, String>,
}

/// Name of a volume's directory: unique over namespaces, since `_` is in no object's name.
pub fn volume_directory(namespace: &str, name: &str) -> String {
    if namespace == DOCKER_NAMESPACE { name.to_owned() } else { format!("{namespace}_{name}") }
}

/// Resolves the mounts of a spec; makes what is missing.
pub async fn resolve(context: &Context, namespace: &str, id: &str, spec: &ContainerSpec) -> Result<Mounts> {
    let mut mounts = Mounts::default();
    let kernel_can = runtime::can_seal_mounts_throughout();
    // It is asked for those alone that want nothing less: for others, one that does not know it does what it can.
    let is_forced = spec.mounts.iter().any(|mount| mount.read_only_throughout);
    let runtime_can = !is_forced || context.runtime.seals_mounts_throughout().await;
    for (number, mount) in spec.mounts.iter().enumerate() {
        if !Path::new(&mount.target).is_absolute() {
            return Err(Error::Invalid(format!("invalid mount path: '{}' mount path must be absolute", mount.target)));
        }
        let place = match mount.kind.as_str() {
            "tmpfs" => Place::Tmpfs {
                size_bytes: mount.tmpfs_size_bytes,
                mode: if mount.tmpfs_mode == 0 { TMPFS_MODE } else { mount.tmpfs_mode },
                options: mount.tmpfs_options.clone(),
            },
            "volume" => volume(context, namespace, mount, &mut mounts).await?,
            "bind" => bind(mount).await?,
            "image" => {
                let source = context.images.mount_beside(id, number, &mount.source).await?;
                Place::Bind { source, propagation: String::new() }
            }
            other => return Err(Error::Invalid(format!("mount type unknown: {other:?}"))),
        };
        let place = if mount.sub_path.is_empty() {
            place
        } else {
            let (whole, propagation) = divisible(place)?;
            // The image's content is for the whole volume.
            mounts.copies.retain(|(target, _)| target != Path::new(&mount.target));
            let both_ways = propagation.contains("shared");
            Place::Bind { source: part(context, id, number, whole, mount, both_ways).await?, propagation }
        };
        let access = at_most(&place, access(mount, kernel_can, runtime_can)?).await?;
        mounts.points.push(MountPoint { target: mount.target.clone(), place, access });
    }
    Ok(mounts)
}

/// Whether a mount can be written. What is for reading alone is so with all that is mounted below it, where the kernel can do
/// that and nobody asks for less. Pure. `Source:` moby, `WithMounts`.
///
/// Errors: the kernel or the OCI runtime cannot, and nothing else will do; the wish contradicts itself.
pub fn access(mount: &Mount, kernel_can: bool, runtime_can: bool) -> Result<Access> {
    match mount.kind.as_str() {
        "image" => return Ok(Access::ReadOnly),
        _ if !mount.read_only => return Ok(Access::Writable),
        _ => {}
    }
    match (mount.read_only_alone, mount.read_only_throughout, kernel_can) {
        (true, true, _) => {
            let text = "mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive";
            Err(Error::Invalid(text.to_owned()))
        }
        (false, true, false) => {
            let text = "rro is not supported: the kernel cannot make mounts recursively read-only";
            Err(Error::Invalid(text.to_owned()))
        }
        (false, true, true) if !runtime_can => {
            let text = "rro is not supported: the OCI runtime cannot make mounts recursively read-only";
            Err(Error::Invalid(text.to_owned()))
        }
        (true, false, _) | (false, false, false) => Ok(Access::ReadOnly),
        (false, _, true) => Ok(Access::ReadOnlyThroughout),
    }
}

/// The access to a place that the OCI runtime can give: nothing is mounted below what is no directory, and crun 1.8 fails when it
/// is told to look there.
///
/// Errors: the place does not answer.
async fn at_most(place: &Place, access: Access) -> Result<Access> {
    let Place::Bind { source, .. } = place else { return Ok(access) };
    if access != Access::ReadOnlyThroughout {
        return Ok(access);
    }
    let found = patience::ask_path(source, Path::metadata).await?;
    Ok(if found.is_ok_and(|found| !found.is_dir()) { Access::ReadOnly } else { access })
}

/// The directory of which a part is wanted, and how its mounts spread.
///
/// Errors: it is not there before the container is. All of it is more than was granted.
fn divisible(place: Place) -> Result<(PathBuf, String)> {
    let what = match place {
        Place::Bind { source, propagation } => return Ok((source, propagation)),
        Place::BindAlone { .. } => "a host path without what is mounted below it".to_owned(),
        Place::Tmpfs { .. } => "a tmpfs".to_owned(),
        Place::FileSystem { kind, .. } => format!("a volume of type {kind}"),
    };
    Err(Error::Invalid(format!("no part (subpath) of {what} can be mounted")))
}

/// A part of a volume or image, pinned for the container's run.
async fn part(
    context: &Context,
    id: &str,
    number: usize,
    whole: PathBuf,
    mount: &Mount,
    both_ways: bool,
) -> Result<PathBuf> {
    let options = sub_path::Options { make: false, both_ways };
    let pins = context.pins_dir(id);
    let (sub, pin) = (PathBuf::from(&mount.sub_path), pins.join(number.to_string()));
    let made = pin.clone();
    let job = move || {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&pins).map_err(Error::io("create", &pins))?;
        sub_path::pin(&whole, &sub, &made, options)
    };
    tokio::task::spawn_blocking(job).await.map_err(|error| Error::Invalid(error.to_string()))??;
    Ok(pin)
}

/// Takes away what [`resolve`] mounted for a container.
pub async fn release(context: &Context, id: &str) {
    let pins = context.pins_dir(id);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || sub_path::unpin_all(&pins)).await {
        tracing::warn!(id, %error, "cannot take away the parts of volumes");
    }
    if let Err(error) = context.images.remove_beside(id).await {
        tracing::warn!(id, error = %crate::error::chain(&error), "cannot take away the mounted images");
    }
}

async fn bind(mount: &Mount) -> Result<Place> {
    let source = PathBuf::from(&mount.source);
    if !source.is_absolute() {
        return Err(Error::Invalid(format!("invalid mount path: '{}' must be absolute", mount.source)));
    }
    // What `docker run -v` does; clients that want an error ask before.
    let make = |path: &Path| if path.exists() { Ok(()) } else { std::fs::create_dir_all(path) };
    patience::ask_path(&source, make).await?.map_err(Error::io("create", &source))?;
    let propagation = mount.propagation.clone();
    Ok(if mount.not_recursive { Place::BindAlone { source, propagation } } else { Place::Bind { source, propagation } })
}

async fn volume(context: &Context, namespace: &str, mount: &Mount, mounts: &mut Mounts) -> Result<Place> {
    let objects: Api<Volume> = Api::namespaced(context.client.clone(), namespace);
    let object = objects.get_opt(&mount.source).await.map_err(Error::api("read volume"))?;
    let object = object.ok_or_else(|| Error::Invalid(format!("get {}: no such volume", mount.source)))?;
    if object.is_block() {
        let message =
            format!("volume {} is a disk for virtual machines (spec.mode Block), not a directory", mount.source);
        return Err(Error::Invalid(message));
    }
    if let Some(place) = by_options(&object) {
        if let Place::Bind { source, .. } = &place {
            // Only whether it answers: what comes after looks at it without a limit.
            patience::ask_path(source, Path::exists).await?;
        }
        return Ok(place);
    }
    let path = make_volume(context, namespace, &mount.source)?;
    if !mount.no_copy {
        mounts.copies.push((mount.target.clone().into(), path.clone()));
    }
    mounts.volume_paths.insert(mount.target.clone(), path.display().to_string());
    Ok(Place::Bind { source: path, propagation: mount.propagation.clone() })
}

/// Volumes of the local driver that stand for something else: a host path (`o=bind,device=/path`), or a file system as
/// mount(8) takes it (`type=tmpfs,o=size=1m`, `type=nfs,o=addr=10.0.0.1,device=:/share`).
fn by_options(object: &Volume) -> Option<Place> {
    let options = &object.spec.options;
    let device = options.get("device").cloned().unwrap_or_default();
    if mount_words(options).any(|word| BIND_WORDS.contains(&word)) {
        return device.starts_with('/').then(|| Place::Bind { source: device.into(), propagation: String::new() });
    }
    let kind = options.get("type").filter(|kind| !matches!(kind.as_str(), "" | "none"))?;
    let options = mount_words(options).map(str::to_owned).collect();
    Some(Place::FileSystem { kind: kind.clone(), source: device, options })
}

/// Makes a volume's directory.
pub fn make_volume(context: &Context, namespace: &str, name: &str) -> Result<PathBuf> {
    let directory = volume_directory(namespace, name);
    if !is_path_safe(&directory) {
        return Err(Error::Invalid(format!("{name:?} is no name of a volume")));
    }
    let path = context.volume_dir(&directory);
    if !path.is_dir() {
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(parent)
                .map_err(Error::io("create", parent))?;
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(Error::io("create", &path))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .map_err(Error::io("change mode of", &path))?;
    }
    Ok(path)
}

/// Copies the image's content into new volumes.
pub fn copy_up(rootfs: &Path, copies: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (inside, volume) in copies {
        in_root::copy_up(rootfs, inside, volume).map_err(Error::io("copy the image's content into", volume))?;
    }
    Ok(())
}

/// Writes a file of ours and says where it is mounted.
pub fn own_file(directory: &Path, name: &str, target: &str, text: &str) -> Result<MountPoint> {
    let path = directory.join(name);
    std::fs::write(&path, text).map_err(Error::io("write", &path))?;
    Ok(file(&path, target))
}

/// Says where a file is mounted.
pub fn file(path: &Path, target: &str) -> MountPoint {
    MountPoint {
        target: target.to_owned(),
        place: Place::Bind { source: path.to_owned(), propagation: String::new() },
        access: Access::Writable,
    }
}

#[cfg(test)]
mod tests {
    use api::volume::VolumeSpec;

    use super::*;

    #[test]
    fn reading_alone_means_all_that_is_below_unless_less_will_do() {
        let mount = |alone: bool, throughout: bool| Mount {
            kind: "bind".into(),
            read_only: true,
            read_only_alone: alone,
            read_only_throughout: throughout,
            ..Mount::default()
        };
        assert_eq!(access(&mount(false, false), true, true).unwrap(), Access::ReadOnlyThroughout);
        assert_eq!(access(&mount(false, false), false, true).unwrap(), Access::ReadOnly, "an old kernel");
        assert_eq!(access(&mount(true, false), true, true).unwrap(), Access::ReadOnly);
        assert_eq!(access(&mount(false, true), true, true).unwrap(), Access::ReadOnlyThroughout);
        let refused = access(&mount(false, true), false, true).unwrap_err().to_string();
        assert!(refused.contains("the kernel cannot make mounts recursively read-only"), "{refused}");
        let refused = access(&mount(false, true), true, false).unwrap_err().to_string();
        assert!(refused.contains("the OCI runtime cannot make mounts recursively read-only"), "{refused}");
        assert_eq!(access(&mount(false, false), true, false).unwrap(), Access::ReadOnlyThroughout);
        assert!(access(&mount(true, true), true, true).unwrap_err().to_string().contains("conflict"));
        let writable = Mount { read_only: false, ..mount(false, true) };
        assert_eq!(access(&writable, false, true).unwrap(), Access::Writable);
        let image = Mount { kind: "image".into(), ..Mount::default() };
        assert_eq!(access(&image, true, true).unwrap(), Access::ReadOnly);
    }

    #[test]
    fn a_part_is_mounted_of_directories_alone() {
        let place = |options: &[(&str, &str)]| {
            let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            by_options(&Volume::new("v", VolumeSpec { options, ..VolumeSpec::default() })).unwrap()
        };
        let host = divisible(place(&[("o", "bind"), ("device", "/srv"), ("type", "none")])).unwrap();
        assert_eq!(host, ("/srv".into(), String::new()));
        let shared = place(&[("type", "nfs"), ("o", "addr=10.0.0.1"), ("device", ":/share")]);
        assert!(divisible(shared).unwrap_err().to_string().contains("type nfs"));
        assert!(divisible(place(&[("type", "tmpfs")])).is_err());
        let alone = Place::BindAlone { source: "/srv".into(), propagation: String::new() };
        assert!(divisible(alone).is_err());
        let memory = Place::Tmpfs { size_bytes: 0, mode: TMPFS_MODE, options: Vec::new() };
        assert!(divisible(memory).is_err());
    }

    #[tokio::test]
    async fn what_is_no_directory_has_nothing_below_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let place = |source: &Path| Place::Bind { source: source.to_owned(), propagation: String::new() };
        let throughout = Access::ReadOnlyThroughout;
        assert_eq!(at_most(&place(&file), throughout).await.unwrap(), Access::ReadOnly);
        assert_eq!(at_most(&place(&file), Access::Writable).await.unwrap(), Access::Writable);
        assert_eq!(at_most(&place(directory.path()), throughout).await.unwrap(), throughout);
        assert_eq!(at_most(&place(&directory.path().join("none")), throughout).await.unwrap(), throughout);
    }
}
