//! Mounts of a create request: `Binds`, `Mounts`, `Tmpfs`, the image's `VOLUME`s and `--volumes-from`. Pure.

use std::collections::BTreeMap;

use api::container::Mount;
use api::privilege::of_volume as volume_privileges;
use serde::{Deserialize, Serialize};

use super::config::{ImageDefaults, Surroundings, Translated};
use super::wire::{CreateRequest, HostConfig};
use crate::error::{Error, Result};
use crate::version::ApiVersion;

/// Since this version of the API, a bind for reading alone is so with all that is mounted below it.
pub(crate) const RECURSIVE_READ_ONLY: ApiVersion = ApiVersion::new(44);
/// Most mounts of one container.
const MOUNTS_MAX: usize = 1_000;

/// One of `HostConfig.Mounts`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct MountRequest {
    #[serde(rename = "Type")]
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) read_only: bool,
    pub(crate) bind_options: BindOptions,
    pub(crate) volume_options: VolumeOptions,
    pub(crate) tmpfs_options: TmpfsOptions,
    pub(crate) image_options: ImageOptions,
}

/// Options of an image.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ImageOptions {
    pub(crate) subpath: String,
}

/// Options of a bind.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct BindOptions {
    pub(crate) propagation: String,
    pub(crate) non_recursive: bool,
    pub(crate) create_mountpoint: bool,
    pub(crate) read_only_non_recursive: bool,
    pub(crate) read_only_force_recursive: bool,
}

/// Options of a volume.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct VolumeOptions {
    pub(crate) no_copy: bool,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) driver_config: DriverConfig,
    pub(crate) subpath: String,
}

/// A volume driver.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct DriverConfig {
    pub(crate) name: String,
    pub(crate) options: BTreeMap<String, String>,
}

/// Options of a tmpfs.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct TmpfsOptions {
    pub(crate) size_bytes: i64,
    pub(crate) mode: u32,
}

/// What a mount says about a volume that must be made.
#[derive(Clone, Debug, Default)]
pub(crate) struct VolumeSettings {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) options: BTreeMap<String, String>,
}

/// Fills in the mounts.
///
/// Errors: [`Error::Invalid`] in Docker's words.
pub(crate) fn translate(
    request: &CreateRequest,
    host: &HostConfig,
    image: &ImageDefaults,
    around: &dyn Surroundings,
    out: &mut Translated,
) -> Result<()> {
    let mut mounts: Vec<Mount> = Vec::new();
    for bind in &host.binds {
        add(&mut mounts, bind_line(bind)?)?;
    }
    for wanted in &host.mounts {
        let mount = mount_request(wanted, out)?;
        add(&mut mounts, mount)?;
    }
    for (target, options) in &host.tmpfs {
        add(&mut mounts, tmpfs_line(target, options)?)?;
    }
    for from in &host.volumes_from {
        inherit(from, around, &mut mounts)?;
    }
    for target in request.volumes.keys().chain(&image.volumes) {
        if !target.starts_with('/') {
            // `POST /containers/create` takes only paths here; a bind in the wrong place is Docker's own error.
            return Err(Error::Invalid(format!("invalid volume specification: '{target}'")));
        }
        if !mounts.iter().any(|mount| mount.target == clean(target)) {
            add(&mut mounts, anonymous(target))?;
        }
    }
    for mount in mounts.iter_mut().filter(|mount| mount.kind == "volume" && mount.source.is_empty()) {
        mount.source = crate::text::new_id();
        out.anonymous_volumes.push(mount.source.clone());
    }
    out.spec.mounts = mounts;
    Ok(())
}

fn anonymous(target: &str) -> Mount {
    Mount { kind: "volume".into(), target: clean(target), ..Mount::default() }
}

fn add(mounts: &mut Vec<Mount>, mount: Mount) -> Result<()> {
    if mounts.iter().any(|there| there.target == mount.target) {
        return Err(Error::Invalid(format!("Duplicate mount point: {}", mount.target)));
    }
    if mounts.len() == MOUNTS_MAX {
        return Err(Error::Invalid("too many mounts".into()));
    }
    mounts.push(mount);
    Ok(())
}

/// A path without `.`, `//` and trailing slashes; `..` climbs, never above the root.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `source:target[:options]` of `-v`.
fn bind_line(line: &str) -> Result<Mount> {
    let invalid = |why: &str| Error::Invalid(format!("invalid volume specification: '{line}'{why}"));
    let kind = if line.starts_with('/') { "bind" } else { "volume" };
    let parts: Vec<&str> = line.split(':').collect();
    let (source, target, options) = match parts[..] {
        [target] => ("", target, ""),
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => return Err(invalid("")),
    };
    if !target.starts_with('/') || (source.is_empty() && parts.len() > 1) {
        return Err(invalid(&format!(
            ": invalid mount config for type \"{kind}\": invalid mount path: '{target}' mount path must be absolute"
        )));
    }
    if clean(target) == "/" {
        return Err(invalid(
            ": invalid mount config for type \"bind\": invalid specification: destination can't be '/'",
        ));
    }
    let mut mount = Mount { target: clean(target), ..Mount::default() };
    if source.starts_with('/') {
        mount.kind = "bind".into();
        mount.source = clean(source);
    } else {
        if !source.is_empty() {
            check_volume_name(source).map_err(|error| named_volume(source, &error))?;
        }
        mount.kind = "volume".into();
        mount.source = source.to_owned();
    }
    // One word of each kind. `Source:` moby, `volume/mounts`, `linuxValidMountMode`.
    let kinds: [&[&str]; 4] =
        [&["ro", "rw", "readonly"], &["z", "Z"], &["nocopy"], &["cached", "delegated", "consistent"]];
    let words = || options.split(',').filter(|o| !o.is_empty());
    if kinds.iter().any(|kind| words().filter(|word| kind.contains(word)).count() > 1) {
        return Err(Error::Invalid(format!("invalid mode: {options}")));
    }
    for option in words() {
        match option {
            "ro" | "readonly" => mount.read_only = true,
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "nocopy" => mount.no_copy = true,
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" if mount.kind == "bind" => {
                mount.propagation = option.to_owned();
            }
            _ => return Err(Error::Invalid(format!("invalid mode: {options}"))),
        }
    }
    Ok(mount)
}

/// Docker's words for a volume that cannot be made.
pub(crate) fn named_volume(name: &str, error: &Error) -> Error {
    Error::Invalid(format!("create {name}: {error}"))
}

/// Docker's rule for the name of a volume, in its words.
pub(crate) fn check_volume_name(name: &str) -> Result<()> {
    if crate::text::is_restricted_name(name) {
        return Ok(());
    }
    if name.len() == 1 {
        return Err(Error::Invalid(
            "volume name is too short, names should be at least two alphanumeric characters".into(),
        ));
    }
    Err(Error::Invalid(format!(
        "{} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path",
        crate::text::quote(name)
    )))
}

/// One of `HostConfig.Mounts`.
fn mount_request(wanted: &MountRequest, out: &mut Translated) -> Result<Mount> {
    let invalid = |why: String| Error::Invalid(format!("invalid mount config for type \"{}\": {why}", wanted.kind));
    if wanted.target.is_empty() {
        return Err(invalid("field Target must not be empty".into()));
    }
    if !wanted.target.starts_with('/') {
        return Err(invalid(format!("invalid mount path: '{}' mount path must be absolute", wanted.target)));
    }
    if clean(&wanted.target) == "/" {
        return Err(invalid("invalid specification: destination can't be '/'".into()));
    }
    let mut mount = Mount {
        kind: wanted.kind.clone(),
        source: wanted.source.clone(),
        target: clean(&wanted.target),
        read_only: wanted.read_only,
        ..Mount::default()
    };
    match wanted.kind.as_str() {
        "bind" => {
            if !wanted.source.starts_with('/') {
                return Err(invalid(if wanted.source.is_empty() {
                    "field Source must not be empty".into()
                } else {
                    format!("invalid mount path: '{}' mount path must be absolute", wanted.source)
                }));
            }
            mount.source = clean(&wanted.source);
            mount.propagation.clone_from(&wanted.bind_options.propagation);
            mount.not_recursive = wanted.bind_options.non_recursive;
            mount.read_only_alone = wanted.bind_options.read_only_non_recursive;
            mount.read_only_throughout = wanted.bind_options.read_only_force_recursive;
        }
        "volume" => {
            let options = &wanted.volume_options;
            if !wanted.source.is_empty() {
                check_volume_name(&wanted.source)?;
                let settings =
                    VolumeSettings { labels: options.labels.clone(), options: options.driver_config.options.clone() };
                out.volume_settings.insert(wanted.source.clone(), settings);
            }
            check_driver(&options.driver_config.name)?;
            out.privileges.extend(volume_privileges(&options.driver_config.options));
            mount.no_copy = options.no_copy;
            mount.sub_path = sub_path(&options.subpath).map_err(|why| invalid(why.to_string()))?;
            if !mount.sub_path.is_empty() && wanted.source.is_empty() {
                return Err(invalid("must not set Subpath when using anonymous volumes".into()));
            }
        }
        "image" => {
            if wanted.source.is_empty() {
                return Err(invalid("field Source must not be empty".into()));
            }
            mount.sub_path = sub_path(&wanted.image_options.subpath).map_err(|why| invalid(why.to_string()))?;
        }
        "tmpfs" => {
            if !wanted.source.is_empty() {
                return Err(invalid("field Source must not be specified".into()));
            }
            mount.tmpfs_size_bytes = wanted.tmpfs_options.size_bytes.max(0);
            mount.tmpfs_mode = wanted.tmpfs_options.mode;
        }
        _ => return Err(invalid("mount type unknown".into())),
    }
    Ok(mount)
}

/// Gives binds the meaning that they have in an API before [`RECURSIVE_READ_ONLY`]: what is mounted below one is left as it is.
///
/// Errors: more is asked for.
pub(crate) fn read_only_alone(mounts: &mut [Mount]) -> Result<()> {
    for mount in mounts.iter_mut().filter(|mount| mount.kind == "bind") {
        if mount.read_only_throughout {
            let text = format!("BindOptions.ReadOnlyForceRecursive needs API v{RECURSIVE_READ_ONLY} or newer");
            return Err(Error::Invalid(text));
        }
        mount.read_only_alone = true;
    }
    Ok(())
}

/// A path within a volume or image, which neither leads out nor is absolute.
fn sub_path(text: &str) -> Result<String> {
    let path = std::path::Path::new(text);
    if path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Error::Invalid("subpath must be a relative path within the volume".into()));
    }
    Ok(text.to_owned())
}

/// Refuses drivers that are not there.
pub(crate) fn check_driver(name: &str) -> Result<()> {
    if matches!(name, "" | "local") {
        return Ok(());
    }
    Err(Error::NotFound(format!(
        "error looking up volume plugin {name}: plugin {} not found",
        crate::text::quote(name)
    )))
}

/// `--tmpfs /run:size=64m,mode=1777`.
fn tmpfs_line(target: &str, options: &str) -> Result<Mount> {
    if !target.starts_with('/') {
        return Err(Error::Invalid(format!("invalid mount path: '{target}' mount path must be absolute")));
    }
    let mut mount = Mount { kind: "tmpfs".into(), target: clean(target), ..Mount::default() };
    for option in options.split(',').filter(|o| !o.is_empty()) {
        let invalid = || Error::Invalid(format!("invalid tmpfs option {}", crate::text::quote(option)));
        match option.split_once('=') {
            None if option == "ro" => mount.read_only = true,
            Some(("size", size)) => {
                let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                let factor = match &size[digits.len()..] {
                    "" => 1,
                    "k" | "K" => 1 << 10,
                    "m" | "M" => 1 << 20,
                    "g" | "G" => 1 << 30,
                    _ => return Err(invalid()),
                };
                let bytes = digits.parse::<i64>().ok().and_then(|n| n.checked_mul(factor));
                mount.tmpfs_size_bytes = bytes.ok_or_else(invalid)?;
            }
            Some(("mode", mode)) => mount.tmpfs_mode = u32::from_str_radix(mode, 8).map_err(|_| invalid())?,
            Some(("uid" | "gid" | "nr_inodes" | "nr_blocks", number)) if number.parse::<u64>().is_ok() => {
                mount.tmpfs_options.push(option.to_owned());
            }
            None if option == "rw" => {}
            None if matches!(option, "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev") => {
                mount.tmpfs_options.push(option.to_owned());
            }
            _ => return Err(invalid()),
        }
    }
    Ok(mount)
}

/// Takes over the mounts of another container.
fn inherit(from: &str, around: &dyn Surroundings, mounts: &mut Vec<Mount>) -> Result<()> {
    let (reference, mode) = from.split_once(':').unwrap_or((from, "rw"));
    if !matches!(mode, "ro" | "rw" | "z" | "Z") {
        return Err(Error::Invalid(format!("invalid mode for volumes-from: {mode}")));
    }
    let (_, other) = around.other_container(reference)?;
    for mut mount in other.mounts.into_iter().filter(|mount| mount.kind != "tmpfs") {
        mount.read_only |= mode == "ro";
        mounts.retain(|there| there.target != mount.target);
        add(mounts, mount)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use api::privilege::Privilege;

    use super::*;

    #[test]
    fn binds_are_host_paths_or_volumes() {
        let bind = bind_line("/srv/../data/:/in//x:ro,rshared").unwrap();
        assert_eq!((bind.kind.as_str(), bind.source.as_str(), bind.target.as_str()), ("bind", "/data", "/in/x"));
        assert!(bind.read_only && bind.propagation == "rshared");
        let volume = bind_line("data:/x:nocopy").unwrap();
        assert_eq!((volume.kind.as_str(), volume.source.as_str(), volume.no_copy), ("volume", "data", true));
    }

    #[test]
    fn what_is_below_a_bind_is_named_as_it_is_meant() {
        let mount = |options: serde_json::Value| {
            let wanted = serde_json::json!(
                { "Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true, "BindOptions": options });
            mount_request(&serde_json::from_value(wanted).unwrap(), &mut Translated::default()).unwrap()
        };
        let plain = mount(serde_json::json!({}));
        assert!(!plain.not_recursive && !plain.read_only_alone && !plain.read_only_throughout);
        assert!(mount(serde_json::json!({ "NonRecursive": true })).not_recursive);
        assert!(mount(serde_json::json!({ "ReadOnlyNonRecursive": true })).read_only_alone);
        let forced = mount(serde_json::json!({ "ReadOnlyForceRecursive": true }));
        assert!(forced.read_only_throughout);
        let volume = bind_line("data:/x:ro").unwrap();
        let mut old = [plain, volume.clone()];
        read_only_alone(&mut old).unwrap();
        assert!(old[0].read_only_alone && old[1] == volume);
        let refused = read_only_alone(&mut [forced]).unwrap_err().to_string();
        assert_eq!(refused, "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer");
    }

    #[test]
    fn malformed_binds_are_refused_in_dockers_words() {
        for line in ["a:b", "::", "/a:/b:ro:x", ":/x"] {
            let text = bind_line(line).unwrap_err().to_string();
            assert!(text.starts_with("invalid volume specification"), "{line}: {text}");
        }
        assert!(bind_line("/a:/b:nope").unwrap_err().to_string().contains("invalid mode"));
        assert!(bind_line("/a:/").unwrap_err().to_string().contains("destination can't be '/'"));
        assert!(bind_line("a b:/x").unwrap_err().to_string().contains("includes invalid characters"));
    }

    #[test]
    fn tmpfs_options_are_read() {
        let mount = tmpfs_line("/run", "size=64m,mode=1770,exec,uid=5,rw").unwrap();
        assert_eq!((mount.tmpfs_size_bytes, mount.tmpfs_mode), (64 << 20, 0o1770));
        assert_eq!(mount.tmpfs_options, ["exec", "uid=5"]);
        assert!(tmpfs_line("/run", "uid=root").is_err());
        assert!(tmpfs_line("/run", "size=huge").is_err());
    }

    #[test]
    fn a_local_volume_with_a_device_is_a_host_path() {
        let options = BTreeMap::from([
            ("type".to_owned(), "none".to_owned()),
            ("o".to_owned(), "bind".to_owned()),
            ("device".to_owned(), "/".to_owned()),
        ]);
        assert_eq!(volume_privileges(&options), [Privilege::HostPath("/".into())]);
        assert_eq!(volume_privileges(&BTreeMap::new()), []);
    }

    proptest::proptest! {
        #[test]
        fn cleaned_paths_never_climb_and_cleaning_twice_changes_nothing(path in "[a-c./]{0,24}") {
            let once = clean(&path);
            proptest::prop_assert!(once.starts_with('/') && !once.split('/').any(|part| part == ".." || part == "."));
            proptest::prop_assert_eq!(clean(&once), once);
        }

        #[test]
        fn no_bind_line_reaches_the_host_without_being_seen_as_a_bind(line in "[a-z/:.]{1,16}") {
            if let Ok(mount) = bind_line(&line) {
                proptest::prop_assert!(mount.kind == "bind" || !mount.source.contains('/'));
            }
        }
    }
}
