//! What `RUN --mount` puts beside the root file system of a command.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use crate::build::evaluate::join;
use crate::build::flags::{MountKind, MountSpec, Sharing};
use crate::build::stage::{Stage, StageResult};
use crate::build::work::{Work, container_id};
use crate::build::{ContextSource, StepMount, StepMountKind};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::tree;

/// Where secrets go unless told otherwise.
const SECRETS: &str = "/run/secrets";
/// Longest secret. BuildKit's own bound.
const MAX_SECRET: usize = 500 << 10;

/// Mounts that are ready.
#[derive(Default)]
pub(super) struct Prepared {
    pub mounts: Vec<StepMount>,
    /// `NAME=value` of secrets that go into the environment; never part of a cache key.
    pub environment: Vec<String>,
    /// What of the mounts' content counts for the cache.
    pub key: String,
    works: Vec<Work>,
    /// Mount points that were not in the root file system before.
    stubs: Vec<String>,
    _locks: Vec<OwnedMutexGuard<()>>,
}

impl Prepared {
    /// Unmounts what was mounted for them.
    pub async fn remove(self) -> Result<()> {
        for work in self.works {
            work.remove().await?;
        }
        Ok(())
    }

    /// Takes mount points away again that were made for the mounts only: they are no part of the layer.
    pub async fn remove_stubs(&self, work: &Work) -> Result<()> {
        if self.mounts.is_empty() {
            return Ok(());
        }
        let upper = work.snapshot.upper.clone();
        let paths: Vec<String> = self.mounts.iter().map(|mount| mount.destination.clone()).collect();
        let known = self.stubs.clone();
        tokio::task::spawn_blocking(move || {
            let upper = tree::open_root(&upper)?;
            for path in paths.iter().filter(|path| known.contains(path)) {
                remove_stub(upper.as_fd(), path);
            }
            Ok(())
        })
        .await?
    }
}

/// Removes an empty file or directory, and the empty directories above it that the layer itself made.
fn remove_stub(upper: std::os::fd::BorrowedFd<'_>, path: &str) {
    let Ok(parts) = tree::components(path.as_bytes()) else { return };
    for length in (1..=parts.len()).rev() {
        let Ok(parent) = tree::open_in(upper, &parts[..length - 1].join(&b'/'), rustix::fs::OFlags::RDONLY) else {
            return;
        };
        let Ok(name) = tree::part(parts[length - 1]) else { return };
        let gone = match rustix::fs::statat(&parent, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory => {
                // Only what is empty goes.
                rustix::fs::unlinkat(&parent, &name, rustix::fs::AtFlags::REMOVEDIR).is_ok()
            }
            Ok(stat) if length == parts.len() && stat.st_size == 0 => {
                rustix::fs::unlinkat(&parent, &name, rustix::fs::AtFlags::empty()).is_ok()
            }
            _ => false,
        };
        if !gone {
            return;
        }
    }
}

/// Makes the mounts of a RUN ready.
pub(super) async fn prepare(stage: &Stage<'_>, specs: &[MountSpec], directory: &str) -> StageResult<Prepared> {
    let mut prepared = Prepared::default();
    for spec in specs {
        match spec.kind {
            MountKind::Bind => bind(stage, spec, directory, &mut prepared).await?,
            MountKind::Cache => cache(stage, spec, directory, &mut prepared).await.map_err(Some)?,
            MountKind::Tmpfs => {
                let destination = join(directory, spec.target.as_deref().unwrap_or_default());
                let kind = StepMountKind::Tmpfs { size_bytes: spec.size_bytes };
                prepared.mounts.push(StepMount { destination, kind, read_only: false });
            }
            MountKind::Secret => secret(stage, spec, directory, &mut prepared).await.map_err(Some)?,
            MountKind::Ssh => ssh(stage, spec, directory, &mut prepared).await.map_err(Some)?,
        }
    }
    prepared.stubs = absent(stage, &prepared.mounts).await.map_err(Some)?;
    Ok(prepared)
}

/// The mount points that the stage's own files do not have.
async fn absent(stage: &Stage<'_>, mounts: &[StepMount]) -> Result<Vec<String>> {
    let paths: Vec<String> = mounts.iter().map(|mount| mount.destination.clone()).collect();
    if paths.is_empty() {
        return Ok(paths);
    }
    let work = Work::mount(&stage.build.store, stage.image.as_ref(), &stage.build.scratch, true).await?;
    let root = work.snapshot.rootfs.clone();
    let absent = tokio::task::spawn_blocking(move || -> Result<Vec<String>> {
        let root = tree::open_root(&root)?;
        let gone = |path: &String| tree::open_in(root.as_fd(), path.as_bytes(), rustix::fs::OFlags::PATH).is_err();
        Ok(paths.into_iter().filter(gone).collect())
    })
    .await??;
    work.remove().await?;
    Ok(absent)
}

async fn bind(stage: &Stage<'_>, spec: &MountSpec, directory: &str, prepared: &mut Prepared) -> StageResult<()> {
    let named = spec.from.as_ref().map(|name| (name, stage.build.options.contexts.get(&name.to_ascii_lowercase())));
    let source = spec.source.clone().unwrap_or_default();
    let root = match named {
        None => stage.build.context("").await.map_err(Some)?,
        Some((name, Some(ContextSource::Local))) => {
            stage.build.context(&name.to_ascii_lowercase()).await.map_err(Some)?
        }
        Some((name, _)) => {
            let image = stage.source_image(name).await?;
            prepared.key.push_str(&format!("{image:?} {source}\n"));
            let work = Work::mount(&stage.build.store, image.as_ref(), &stage.build.scratch, true).await;
            let work = work.map_err(Some)?;
            let root = work.snapshot.rootfs.clone();
            prepared.works.push(work);
            root
        }
    };
    let hashed = named.is_none_or(|(_, context)| matches!(context, Some(ContextSource::Local)));
    let path = source.clone();
    let (found, hash) = tokio::task::spawn_blocking(move || -> Result<(PathBuf, String)> {
        let root = tree::open_root(&root)?;
        let hash = if hashed { super::files::hash(root.as_fd(), &clean(&path)?, None)?.1 } else { String::new() };
        // Links in the source are followed inside its root; the path that comes out has none.
        let fd = tree::open_in(root.as_fd(), clean(&path)?.as_bytes(), rustix::fs::OFlags::PATH)
            .map_err(|_| Error::NotFound(format!("{path:?}: not found")))?;
        use std::os::fd::AsRawFd;
        let real = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Ok((real.map_err(Error::io("cannot find the source of a mount"))?, hash))
    })
    .await
    .map_err(|error| Some(error.into()))?
    .map_err(Some)?;
    prepared.key.push_str(&hash);
    // What is written there is thrown away after the step, so the step gets a copy of its own.
    let source = match spec.read_only {
        Some(false) => copy_of(stage, found).await.map_err(Some)?,
        _ => found,
    };
    let kind = StepMountKind::Bind { source };
    let destination = join(directory, spec.target.as_deref().unwrap_or_default());
    prepared.mounts.push(StepMount { destination, kind, read_only: spec.read_only != Some(false) });
    Ok(())
}

/// A copy of a file or directory below the build's own directory.
async fn copy_of(stage: &Stage<'_>, source: PathBuf) -> Result<PathBuf> {
    let dir = stage.build.scratch.join(format!("copy-{}", &container_id()[..12]));
    tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&dir).map_err(Error::io(format!("cannot make {}", dir.display())))?;
        let (parent, name) = (source.parent().unwrap_or(&source), source.file_name().unwrap_or_default());
        let (parent, into) = (tree::open_root(parent)?, tree::open_root(&dir)?);
        let text = name.to_string_lossy();
        let is_file = source.is_file();
        let file = tree::part(name.as_encoded_bytes())?;
        let target = is_file.then_some(file.as_c_str());
        super::files::copy(parent.as_fd(), &text, into.as_fd(), target, Default::default(), None)?;
        Ok(if is_file { dir.join(name) } else { dir })
    })
    .await?
}

fn clean(source: &str) -> Result<String> {
    let parts = tree::components(source.as_bytes())?;
    Ok(parts.iter().map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join("/"))
}

async fn cache(stage: &Stage<'_>, spec: &MountSpec, directory: &str, prepared: &mut Prepared) -> Result<()> {
    let target = spec.target.clone().unwrap_or_default();
    let destination = join(directory, &target);
    let id = spec.id.clone().unwrap_or_else(|| destination.clone());
    let caches = stage.build.store.dir.join(crate::store::CACHE_MOUNTS);
    let name = match spec.sharing {
        // A private one is this build's alone.
        Sharing::Private => format!("{}-{}", Digest::of(id.as_bytes()).hex(), &container_id()[..12]),
        _ => Digest::of(id.as_bytes()).hex().to_owned(),
    };
    let private = spec.sharing == Sharing::Private;
    let path = if private { stage.build.scratch.join(name) } else { caches.join(name) };
    if spec.sharing == Sharing::Locked {
        let lock = stage.build.store.cache_lock(&path);
        prepared._locks.push(lock.lock_owned().await);
    }
    let (mode, uid, gid, made) = (spec.mode.unwrap_or(0o755), spec.uid, spec.gid, path.clone());
    tokio::task::spawn_blocking(move || -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let doing = || format!("cannot make the cache {}", made.display());
        if made.exists() {
            return Ok(());
        }
        std::fs::create_dir_all(&made).map_err(Error::io(doing()))?;
        std::os::unix::fs::chown(&made, Some(uid), Some(gid)).map_err(Error::io(doing()))?;
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(mode)).map_err(Error::io(doing()))
    })
    .await??;
    let read_only = spec.read_only == Some(true);
    prepared.mounts.push(StepMount { destination, kind: StepMountKind::Bind { source: path }, read_only });
    Ok(())
}

async fn secret(stage: &Stage<'_>, spec: &MountSpec, directory: &str, prepared: &mut Prepared) -> Result<()> {
    let last = |path: &String| path.rsplit('/').next().unwrap_or(path).to_owned();
    let id = spec.id.clone().or_else(|| spec.source.clone()).or_else(|| spec.target.as_ref().map(last));
    let id = id.unwrap_or_default();
    let Some(data) = stage.build.inputs.secret(&id).await? else {
        if spec.required {
            return Err(Error::Invalid(format!("secret {id}: not found")));
        }
        return Ok(());
    };
    if data.len() > MAX_SECRET {
        return Err(Error::Invalid(format!("secret {id}: larger than {MAX_SECRET} bytes")));
    }
    if let Some(name) = &spec.env {
        prepared.environment.push(format!("{name}={}", String::from_utf8_lossy(&data)));
        if spec.target.is_none() {
            return Ok(());
        }
    }
    let destination = match &spec.target {
        Some(target) => join(directory, target),
        None => format!("{SECRETS}/{}", last(&id)),
    };
    let kind = StepMountKind::Secret { data, mode: spec.mode.unwrap_or(0o400), uid: spec.uid, gid: spec.gid };
    prepared.mounts.push(StepMount { destination, kind, read_only: true });
    Ok(())
}

async fn ssh(stage: &Stage<'_>, spec: &MountSpec, directory: &str, prepared: &mut Prepared) -> Result<()> {
    let id = spec.id.clone().unwrap_or_else(|| "default".to_owned());
    let Some(socket) = stage.build.inputs.ssh(&id, &stage.build.scratch).await? else {
        if spec.required {
            return Err(Error::Invalid(format!("unset ssh forward key {id}")));
        }
        return Ok(());
    };
    let destination = match &spec.target {
        Some(target) => join(directory, target),
        None => format!("/run/buildkit/ssh_agent.{}", prepared.mounts.len()),
    };
    let (uid, gid, mode, path) = (spec.uid, spec.gid, spec.mode.unwrap_or(0o600), socket.clone());
    tokio::task::spawn_blocking(move || -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let doing = "cannot give the agent's socket to a step";
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).map_err(Error::io(doing))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(Error::io(doing))
    })
    .await??;
    prepared.environment.push(format!("SSH_AUTH_SOCK={destination}"));
    let kind = StepMountKind::Bind { source: socket };
    prepared.mounts.push(StepMount { destination, kind, read_only: false });
    Ok(())
}

/// Locks of cache mounts, by directory.
pub(crate) type CacheLocks = std::sync::Mutex<std::collections::BTreeMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>;
