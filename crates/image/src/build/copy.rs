//! COPY and ADD: first what is to be copied and its digest (for the cache), then the copying.

use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};

use crate::build::evaluate::join;
use crate::build::fetch::{self, Fetched};
use crate::build::files::{self, Attributes};
use crate::build::ignore::Ignore;
use crate::build::parse::CopySpec;
use crate::error::{Error, Result};
use crate::layer::read::Archive;
use crate::layer::tree::{self, components, make_directories_as, open_in, part};
use crate::layer::{Decompressor, Limits, UnpackOptions, unpack};

/// What is to be copied.
pub(super) struct Plan {
    root: OwnedFd,
    sources: Vec<Source>,
    /// What is left out.
    excludes: Option<Ignore>,
    /// Digest as the history shows it: `file:…`, `dir:…`, `multi:…`.
    pub hash: String,
}

struct Source {
    path: String,
    directory: bool,
    /// The directory that holds what came from a URL.
    fetched: Option<OwnedFd>,
    /// Directories below the destination that are made for it (`--parents`).
    below: String,
}

impl CopySpec {
    /// Whether any source is a file of the context.
    pub(super) fn needs_context(&self) -> bool {
        self.sources.iter().any(|source| !self.add || !fetch::is_remote(source))
    }
}

/// Finds and hashes the sources.
pub(super) fn plan(root: &Path, spec: &CopySpec, fetched: Vec<Fetched>) -> Result<Plan> {
    let root = tree::open_root(root)?;
    let excludes = match spec.excludes.as_slice() {
        [] => None,
        patterns => Some(Ignore::parse(&patterns.join("\n"))?),
    };
    let (mut sources, mut hashes) = (Vec::new(), Vec::new());
    for document in &spec.documents {
        hashes.push(format!("file:{}", crate::digest::Digest::of(document.content.as_bytes()).hex()));
    }
    let mut fetched = fetched.into_iter();
    for source in &spec.sources {
        if spec.add && fetch::is_remote(source) {
            let file = fetched.next().filter(|file| file.source == *source);
            let file = file.ok_or_else(|| Error::Internal(format!("{source} was not fetched")))?;
            let dir = tree::open_root(&file.directory)?;
            let (directory, hash) = files::hash(dir.as_fd(), &file.name, excludes.as_ref())?;
            hashes.push(format!("{}:{hash}", if directory { "dir" } else { "file" }));
            sources.push(Source { path: file.name, directory, fetched: Some(dir), below: String::new() });
            continue;
        }
        for path in named(root.as_fd(), source)? {
            if excludes.as_ref().is_some_and(|excludes| is_file_excluded(root.as_fd(), &path, excludes)) {
                continue;
            }
            let (directory, hash) = files::hash(root.as_fd(), &path, excludes.as_ref())?;
            hashes.push(format!("{}:{hash}", if directory { "dir" } else { "file" }));
            let below = if spec.parents { parents_of(source, &path, directory) } else { String::new() };
            sources.push(Source { path, directory, fetched: None, below });
        }
    }
    let hash = match hashes.as_slice() {
        [one] => one.clone(),
        several => format!("multi:{}", crate::digest::Digest::of(several.join(",").as_bytes()).hex()),
    };
    if hashes.len() > 1 && !spec.destination.ends_with('/') && spec.destination != "." {
        let verb = if spec.add { "ADD" } else { "COPY" };
        return Err(Error::Invalid(format!(
            "{SEVERAL_REFUSED} {verb} with more than one source file, the destination must be a directory and end with a /"
        )));
    }
    Ok(Plan { root, sources, excludes, hash })
}

/// The paths that a source names.
fn named(root: BorrowedFd<'_>, source: &str) -> Result<Vec<String>> {
    let found = files::find(root, source)?;
    if !found.is_empty() {
        return Ok(found);
    }
    if crate::pattern::is_pattern(source) {
        return Err(Error::Invalid("no source files were specified".to_owned()));
    }
    let why = "file not found in build context or excluded by .dockerignore";
    Err(Error::Invalid(format!("{why}: stat {source}: file does not exist")))
}

fn is_file_excluded(root: BorrowedFd<'_>, path: &str, excludes: &Ignore) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    !is_directory(root, path) && excludes.ignores(name)
}

/// What `--parents` keeps of a path: all but the last part, or what follows a `./` in the source.
fn parents_of(source: &str, path: &str, directory: bool) -> String {
    let cut = source.find("/./").map_or(0, |at| {
        let before = source[..at].split('/').filter(|part| !part.is_empty() && *part != ".").count();
        path.match_indices('/').nth(before.saturating_sub(1)).map_or(0, |(at, _)| if before == 0 { 0 } else { at + 1 })
    });
    let kept = path.get(cut..).unwrap_or(path);
    if directory { kept.to_owned() } else { kept.rsplit_once('/').map_or(String::new(), |(dir, _)| dir.to_owned()) }
}

/// The sources as BuildKit's history shows them.
pub(super) fn shown_sources(spec: &CopySpec) -> String {
    let documents = spec.documents.iter().map(|document| format!("<<{}", document.name));
    documents.chain(spec.sources.iter().cloned()).collect::<Vec<_>>().join(" ")
}

/// The flags that change the result but that the history does not show.
pub(super) fn hidden_flags(spec: &CopySpec) -> String {
    format!("{} {:?}", spec.parents, spec.excludes)
}

/// The flags that change the result, as the history shows them.
pub(super) fn flags(spec: &CopySpec) -> String {
    let mut text = String::new();
    for (name, value) in [("chown", &spec.chown), ("chmod", &spec.chmod)] {
        if let Some(value) = value {
            text.push_str(&format!("--{name}={value} "));
        }
    }
    text
}

/// Copies into a mounted root file system.
pub(super) fn execute(
    plan: &Plan,
    spec: &CopySpec,
    root: &Path,
    working_directory: &str,
    limits: Limits,
) -> Result<()> {
    let root = tree::open_root(root)?;
    let attributes = attributes(root.as_fd(), spec)?;
    let destination = join(working_directory, &spec.destination);
    let into_directory = spec.destination.ends_with('/')
        || matches!(spec.destination.as_str(), "." | "..")
        || spec.destination.ends_with("/.")
        || destination == "/"
        || is_directory(root.as_fd(), &destination);
    let owner = Some(attributes.owner);
    let open = |path: &str| make_directories_as(root.as_fd(), &components(path.as_bytes())?, owner);
    for document in &spec.documents {
        let (dir, name) =
            if into_directory { (open(&destination)?, document.name.clone()) } else { split(&destination, &open)? };
        files::write(dir.as_fd(), &part(name.as_bytes())?, document.content.as_bytes(), attributes)?;
    }
    for source in &plan.sources {
        if source.directory {
            let dir = open(&join(&destination, &source.below))?;
            let from = source.fetched.as_ref().unwrap_or(&plan.root).as_fd();
            files::copy(from, &source.path, dir.as_fd(), None, attributes, plan.excludes.as_ref())?;
            continue;
        }
        if let Some(fetched) = &source.fetched {
            let (dir, name) =
                if into_directory { (open(&destination)?, source.path.clone()) } else { split(&destination, &open)? };
            files::copy(fetched.as_fd(), &source.path, dir.as_fd(), Some(&part(name.as_bytes())?), attributes, None)?;
            continue;
        }
        if spec.add && extract(plan.root.as_fd(), &source.path, limits, &|| open(&destination), spec, attributes)? {
            continue;
        }
        let (dir, name) = if into_directory || spec.parents {
            let dir = open(&join(&destination, &source.below))?;
            (dir, source.path.rsplit('/').next().unwrap_or(&source.path).to_owned())
        } else {
            split(&destination, &open)?
        };
        files::copy(plan.root.as_fd(), &source.path, dir.as_fd(), Some(&part(name.as_bytes())?), attributes, None)?;
    }
    Ok(())
}

/// The directory and name of a file to make.
fn split(path: &str, open: &dyn Fn(&str) -> Result<OwnedFd>) -> Result<(OwnedFd, String)> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((open(parent)?, name.to_owned()))
}

fn is_directory(root: BorrowedFd<'_>, path: &str) -> bool {
    matches!(files::open_source(root, path.as_bytes()),
        Ok(Some((_, stat))) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn attributes(root: BorrowedFd<'_>, spec: &CopySpec) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    if let Some(text) = &spec.chown {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let (uid, primary) = match user {
            "" => (0, None),
            user => files::lookup_id(root, "/etc/passwd", user)?,
        };
        let gid = match group {
            // Without a group Docker takes the user's number for it too.
            "" => primary.unwrap_or(uid),
            group => files::lookup_id(root, "/etc/group", group)?.0,
        };
        attributes.owner = (uid, gid);
    }
    if let Some(text) = &spec.chmod {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
        let bad = || {
            Error::Invalid(format!(
                "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
            ))
        };
        attributes.mode = Some(mode.ok_or_else(bad)?);
    }
    Ok(attributes)
}

/// How Docker begins to say that several files need a directory.
pub(super) const SEVERAL_REFUSED: &str = "When using";

/// ADD unpacks a local archive. Says whether the file was one.
fn extract(
    root: BorrowedFd<'_>,
    path: &str,
    limits: Limits,
    destination: &dyn Fn() -> Result<OwnedFd>,
    spec: &CopySpec,
    attributes: Attributes,
) -> Result<bool> {
    let file = open_in(root, path.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)
        .map_err(Error::io(format!("cannot open {path:?}")))?;
    let mut file = std::fs::File::from(file);
    let mut start = [0; 1];
    if !matches!(file.read(&mut start), Ok(1)) {
        return Ok(false);
    }
    let rewind = |file: &mut std::fs::File| file.rewind().map_err(Error::io(format!("cannot read {path:?}")));
    rewind(&mut file)?;
    // It is an archive when its first header is one, whatever its name.
    let is_archive = Decompressor::new(&mut file, limits)
        .and_then(|plain| Archive::new(plain, limits.entries).next())
        .is_ok_and(|first| first.is_some());
    if !is_archive {
        return Ok(false);
    }
    rewind(&mut file)?;
    let owner = spec.chown.is_some().then_some(attributes.owner);
    let options = UnpackOptions { limits, whiteouts: false, owner };
    unpack(Decompressor::new(&mut file, limits)?, destination()?.as_fd(), &options)?;
    Ok(true)
}
