//! The `--name=value` words of an instruction, and what `RUN --mount` says. Pure.
//! Source: the Dockerfile reference; BuildKit's frontend/dockerfile/instructions.

use crate::error::{Error, Result};

/// Most mounts of one RUN.
const MAX_MOUNTS: usize = 64;

/// Which builder a Dockerfile is written for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// The classic builder: every instruction is an image, and no flag that needs BuildKit.
    #[default]
    Classic,
    /// BuildKit's `dockerfile.v0`.
    BuildKit,
}

/// What a mount of RUN is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the context, of a stage or of an image.
    #[default]
    Bind,
    /// A directory that outlives the build.
    Cache,
    /// A file in memory that comes from the client.
    Secret,
    /// The client's SSH agent.
    Ssh,
    /// Memory.
    Tmpfs,
}

/// How builds share a cache mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// All at once.
    #[default]
    Shared,
    /// Each writer has one of its own.
    Private,
    /// One after the other.
    Locked,
}

/// One `RUN --mount`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountSpec {
    /// What it is.
    pub kind: MountKind,
    /// Where it goes.
    pub target: Option<String>,
    /// Path within what it comes from.
    pub source: Option<String>,
    /// Stage, image or named context that it comes from.
    pub from: Option<String>,
    /// Name of a cache, secret or agent.
    pub id: Option<String>,
    /// Whether it may be written to; `None` is the kind's own way.
    pub read_only: Option<bool>,
    /// How a cache is shared.
    pub sharing: Sharing,
    /// Whether a secret or agent must be there.
    pub required: bool,
    /// Environment variable that holds a secret.
    pub env: Option<String>,
    /// Most bytes of a tmpfs; 0 leaves it to the kernel. Units: bytes.
    pub size_bytes: u64,
    /// Owner of a cache or secret.
    pub uid: u32,
    /// Group of a cache or secret.
    pub gid: u32,
    /// Mode of a cache or secret.
    pub mode: Option<u32>,
}

fn invalid<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(why.into()))
}

/// Splits the `--name=value` words at the start from what follows.
pub fn split(mut rest: &str) -> (Vec<(&str, &str)>, &str) {
    let mut flags = Vec::new();
    while let Some(flag) = rest.strip_prefix("--") {
        let end = flag.find(char::is_whitespace).unwrap_or(flag.len());
        let (flag, after) = flag.split_at(end);
        rest = after.trim_start();
        if flag.is_empty() {
            break;
        }
        flags.push(flag.split_once('=').unwrap_or((flag, "")));
    }
    (flags, rest)
}

/// The error for a flag that does not exist, or not for this builder.
pub fn unknown<T>(name: &str, dialect: Dialect) -> Result<T> {
    let known = ["mount", "network", "security", "link", "parents", "exclude", "checksum", "keep-git-dir"];
    if dialect == Dialect::Classic && known.contains(&name) {
        return invalid(format!(
            "the --{name} option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ to learn how to build images with BuildKit enabled"
        ));
    }
    invalid(format!("unknown flag: --{name}"))
}

/// A flag that stands for itself, or says `true` or `false`.
pub fn boolean(name: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => invalid(format!("expecting boolean value for flag {name}, not: {other}")),
    }
}

/// Parses the value of `--mount`.
pub fn mount(text: &str) -> Result<MountSpec> {
    let mut spec = MountSpec::default();
    for field in text.split(',').filter(|field| !field.is_empty()) {
        let (key, value) = field.split_once('=').map_or((field, None), |(key, value)| (key, Some(value)));
        let key = key.to_ascii_lowercase();
        match (key.as_str(), value) {
            ("readonly" | "ro", value) => spec.read_only = Some(boolean(&key, value.unwrap_or(""))?),
            ("readwrite" | "rw", value) => spec.read_only = Some(!boolean(&key, value.unwrap_or(""))?),
            ("required", value) => spec.required = boolean(&key, value.unwrap_or(""))?,
            ("type", Some(value)) => spec.kind = kind(value)?,
            ("target" | "dst" | "destination", Some(value)) => spec.target = Some(value.to_owned()),
            ("source" | "src", Some(value)) => spec.source = Some(value.to_owned()),
            ("from", Some(value)) => spec.from = Some(value.to_owned()),
            ("id", Some(value)) => spec.id = Some(value.to_owned()),
            ("env", Some(value)) => spec.env = Some(value.to_owned()),
            ("sharing", Some(value)) => spec.sharing = sharing(value)?,
            ("size", Some(value)) => spec.size_bytes = size(value)?,
            ("uid", Some(value)) => spec.uid = number(&key, value)?,
            ("gid", Some(value)) => spec.gid = number(&key, value)?,
            ("mode", Some(value)) => match u32::from_str_radix(value, 8) {
                Ok(mode) if mode <= 0o7777 => spec.mode = Some(mode),
                _ => return invalid(format!("invalid value {value} for {key}")),
            },
            (key, Some(_)) => return invalid(format!("unexpected key '{key}' in '{field}'")),
            (_, None) => return invalid(format!("invalid field '{field}' must be a key=value pair")),
        }
    }
    check(&spec)?;
    Ok(spec)
}

fn kind(text: &str) -> Result<MountKind> {
    match text {
        "bind" => Ok(MountKind::Bind),
        "cache" => Ok(MountKind::Cache),
        "secret" => Ok(MountKind::Secret),
        "ssh" => Ok(MountKind::Ssh),
        "tmpfs" => Ok(MountKind::Tmpfs),
        other => invalid(format!("unsupported mount type {other:?}")),
    }
}

fn sharing(text: &str) -> Result<Sharing> {
    match text {
        "shared" => Ok(Sharing::Shared),
        "private" => Ok(Sharing::Private),
        "locked" => Ok(Sharing::Locked),
        other => invalid(format!("unsupported sharing value {other:?}")),
    }
}

fn number(key: &str, value: &str) -> Result<u32> {
    value.parse().or_else(|_| invalid(format!("invalid value {value} for {key}")))
}

/// A size as Docker's units have it: `64m`, `1g`, `4096`. Units: bytes.
pub fn size(text: &str) -> Result<u64> {
    let lower = text.to_ascii_lowercase();
    let plain = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let (digits, shift) = match plain.strip_suffix(['k', 'm', 'g', 't']) {
        Some(digits) => (digits, [('k', 10), ('m', 20), ('g', 30), ('t', 40)]),
        None => (plain, [(' ', 0); 4]),
    };
    let shift = shift.iter().find(|(unit, _)| plain.ends_with(*unit)).map_or(0, |(_, shift)| *shift);
    let value: Option<u64> = digits.parse().ok();
    value.and_then(|v: u64| v.checked_mul(1 << shift)).ok_or_else(|| Error::Invalid(format!("invalid size: '{text}'")))
}

fn check(spec: &MountSpec) -> Result<()> {
    let needs_target = matches!(spec.kind, MountKind::Bind | MountKind::Cache | MountKind::Tmpfs);
    if needs_target && spec.target.as_deref().unwrap_or("").is_empty() {
        let name = match spec.kind {
            MountKind::Cache => "cache",
            MountKind::Tmpfs => "tmpfs",
            _ => "bind",
        };
        return invalid(format!("target is required for mount type {name:?}"));
    }
    if spec.kind == MountKind::Secret && spec.id.is_none() && spec.target.is_none() && spec.source.is_none() {
        return invalid("invalid secret mount. one of source, target required");
    }
    if spec.env.is_some() && spec.kind != MountKind::Secret {
        return invalid("env is only allowed for secret mounts");
    }
    Ok(())
}

/// Takes another mount into a list that has a bound.
pub fn push_mount(mounts: &mut Vec<MountSpec>, text: &str) -> Result<()> {
    if mounts.len() >= MAX_MOUNTS {
        return invalid(format!("more than {MAX_MOUNTS} mounts"));
    }
    mounts.push(mount(text)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mounts_are_read_in_all_their_forms() {
        let cache = mount("type=cache,target=/c,id=x,sharing=locked,mode=0700,uid=5,ro").unwrap();
        assert_eq!((cache.kind, cache.sharing, cache.mode), (MountKind::Cache, Sharing::Locked, Some(0o700)));
        assert_eq!((cache.uid, cache.read_only, cache.id.as_deref()), (5, Some(true), Some("x")));
        let bind = mount("target=/b,src=a,from=build,rw").unwrap();
        assert_eq!((bind.kind, bind.read_only, bind.from.as_deref()), (MountKind::Bind, Some(false), Some("build")));
        let secret = mount("type=secret,id=token,required,env=TOKEN").unwrap();
        assert!(secret.required && secret.env.as_deref() == Some("TOKEN"));
        assert_eq!(mount("type=tmpfs,dst=/t,size=64m").unwrap().size_bytes, 64 << 20);
        for (text, why) in [
            ("type=cache", "target is required for mount type \"cache\""),
            ("type=what,target=/x", "unsupported mount type \"what\""),
            ("type=secret", "invalid secret mount. one of source, target required"),
            ("target=/a,colour=red", "unexpected key 'colour' in 'colour=red'"),
            ("target", "invalid field 'target' must be a key=value pair"),
            ("type=cache,target=/c,sharing=some", "unsupported sharing value \"some\""),
            ("type=tmpfs,target=/c,size=99999999999999t", "invalid size: '99999999999999t'"),
        ] {
            assert_eq!(mount(text).unwrap_err().to_string(), why, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "(type=|cache|secret|target=|size=|mode=|[a-z0-9=,/]|\\PC){0,40}") {
            let _ = mount(&text);
            let _ = size(&text);
            let _ = split(&text);
        }
    }
}
