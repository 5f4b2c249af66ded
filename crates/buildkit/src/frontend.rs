//! The Dockerfile frontend: from the attributes that a client sends to a build of the `image` crate.
//! Source: BuildKit's frontend/dockerfile/docs and frontend/dockerui.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use image::build::outline::Place as Lines;
use image::build::{BuildEvent, BuildInputs, BuildOptions, ContextSource, Dialect, Scratch, StepBounds, StepEvent};
use image::{ByteStream, Credentials, Digest, Error};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use crate::build::Running;
use crate::ignore::patterns;
use crate::receive::{Wanted, receive};
use crate::remote::{Remote, is_remote};
use crate::session::Session;
use crate::subrequest::{self, Metadata};
use crate::wire::ops::Definition;
use crate::{BuildKit, linked, source};

/// The only frontend.
pub const DOCKERFILE: &str = "dockerfile.v0";
/// Steps of one evaluation that wait to be told.
const EVENT_QUEUE: usize = 256;
/// The argument that asks for the history of the main context, when that is a git repository.
const KEEP_GIT_DIR: &str = "build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR";
/// Longest Dockerfile and ignore file.
const MAX_FILE: u64 = 4 << 20;

/// What a build made.
#[derive(Clone, Debug)]
pub struct Built {
    /// The image.
    pub image: Digest,
}

/// What the frontend answers.
pub enum Answer {
    /// What it built.
    Built(Built),
    /// What it was asked in place of a build.
    Told(Metadata),
}

/// What a build of the daemon's own is given beside its attributes, which any client may set.
#[derive(Default)]
pub struct Given {
    /// Make one layer of all that the build added to the last stage's base image.
    pub squash: bool,
    /// The main context, as an archive or a Dockerfile alone, in place of the session's.
    pub context: Option<ByteStream>,
    /// Results of other builds, by name.
    pub inputs: HashMap<String, Definition>,
}

/// An error of the builder as the protocol has it.
pub fn status(error: Error) -> Status {
    let code = match error {
        Error::NotFound(_) => Code::NotFound,
        Error::NotSupported(_) => Code::Unimplemented,
        Error::Unauthorized(_) => Code::PermissionDenied,
        _ => Code::Unknown,
    };
    Status::new(code, error.chain())
}

fn invalid(why: impl Into<String>) -> Status {
    Status::new(Code::InvalidArgument, why.into())
}

/// Evaluates a Dockerfile with the files of a session.
pub async fn solve(
    buildkit: &Arc<BuildKit>,
    session: &str,
    frontend: &str,
    attributes: HashMap<String, String>,
    given: Given,
    running: &Arc<Running>,
) -> Result<Answer, Status> {
    check_frontend(frontend, &attributes)?;
    let asked = attributes.get("requestid");
    if let Some(request) = asked.filter(|request| !subrequest::needs_dockerfile(request)) {
        return subrequest::answer(request, "", &BuildOptions::default()).map(Answer::Told).map_err(status);
    }
    let session = buildkit.sessions.get(session).await?;
    let (mut options, locals) = options(&attributes, &given.inputs, buildkit.options.host_network)?;
    let scratch = Scratch::new(&buildkit.options.store).map_err(status)?;
    options.squash = given.squash;
    options.local_urls = buildkit.options.host_network;
    let store = buildkit.options.store.clone();
    let remote = Remote { store, session: session.clone(), local_urls: options.local_urls };
    let here = scratch.path().join("remote");
    let (main, dockerfile_only) = match (given.context, attributes.get("context").filter(|url| is_remote(url))) {
        (Some(sent), _) => (Main::Here(here.clone()), remote.unpack(sent, &here, running).await?),
        (None, Some(url)) => (Main::Here(here.clone()), remote.fetch(url, &here, running).await?),
        (None, None) => {
            let directory = attributes.get("contextkey").cloned().unwrap_or_else(|| "context".to_owned());
            (Main::Session(directory), false)
        }
    };
    if dockerfile_only {
        // There is no other file, whatever name the client gives.
        "Dockerfile".clone_into(&mut options.dockerfile);
    }
    let name = &options.dockerfile;
    let dockerfile = match &main {
        // It is what was fetched, unless the client says that it has its own.
        Main::Here(directory) if !attributes.contains_key("dockerfilekey") => read_dockerfile(directory, name).await?,
        _ => load_dockerfile(&session, &attributes, name, scratch.path(), running).await?,
    };
    if let Some(request) = asked {
        let told = subrequest::answer(request, &dockerfile.text, &options);
        return told.map(Answer::Told).map_err(|error| located(error, name, &dockerfile.text, None));
    }
    if let Main::Here(directory) = &main {
        let ignore = match &dockerfile.ignore {
            Some(own) => Some(own.clone()),
            None => read(directory, ".dockerignore").await?,
        };
        let directory = directory.clone();
        let excluding = move || image::build::exclude_ignored(&directory, &ignore.unwrap_or_default());
        let excluded = tokio::task::spawn_blocking(excluding).await;
        excluded.map_err(|error| Status::new(Code::Internal, error.to_string()))?.map_err(status)?;
    }
    let ignore = dockerfile.ignore;
    let inputs =
        Arc::new(SessionInputs { session: session.clone(), running: running.clone(), locals, main, ignore, remote });
    let (sender, mut events) = mpsc::channel::<BuildEvent>(EVENT_QUEUE);
    let evaluation = format!("{:032x}", rand::random::<u128>());
    let name = options.dockerfile.clone();
    let forward = async {
        let mut failed_at = None;
        while let Some(event) = events.recv().await {
            match event {
                BuildEvent::Step(StepEvent::FailedAt { lines }) => failed_at = Some(lines),
                event => running.event(&evaluation, event),
            }
        }
        failed_at
    };
    let store = &buildkit.options.store;
    let runner = buildkit.options.runner.clone();
    let build = image::build::build_from(store, &dockerfile.text, inputs, options, runner, sender);
    let (built, failed_at) = tokio::join!(build, forward);
    let image = built.map_err(|error| located(error, &name, &dockerfile.text, failed_at))?;
    Ok(Answer::Built(Built { image }))
}

/// An error with the lines that it is about: those that are known, or the one that it names.
fn located(error: Error, name: &str, text: &str, lines: Option<Lines>) -> Status {
    let status = status(error);
    let named = || image::build::lines::line_of(status.message()).map(|line| (line, line));
    match lines.or_else(named) {
        Some(lines) => source::located(status, name, text, lines),
        None => status,
    }
}

/// Frontends that are images are not run: what they would evaluate, the Dockerfile, is evaluated here.
fn check_frontend(frontend: &str, attributes: &HashMap<String, String>) -> Result<(), Status> {
    let gateway_of_dockerfile =
        frontend == "gateway.v0" && attributes.get("source").is_some_and(|source| source.contains("docker/dockerfile"));
    if frontend != DOCKERFILE && !gateway_of_dockerfile {
        return Err(Status::new(Code::Unimplemented, format!("frontend {frontend} is not available")));
    }
    if let Some(request) = attributes.get("requestid").filter(|request| !subrequest::is_known(request)) {
        return Err(Status::new(Code::Unimplemented, format!("subrequest {request} is not available")));
    }
    for (key, what) in [("attest:sbom", "SBOM"), ("attest:provenance", "provenance")] {
        // buildx asks for provenance by itself; only an outright wish is refused.
        let asked = attributes.get(key).is_some_and(|value| !value.contains("disabled=true"));
        if asked && key == "attest:sbom" {
            return Err(Status::new(Code::Unimplemented, format!("{what} attestations are not available")));
        }
    }
    Ok(())
}

/// A Dockerfile and what its builds leave out of the context.
struct Dockerfile {
    text: String,
    /// The ignore file that belongs to this Dockerfile alone.
    ignore: Option<String>,
}

fn own_ignore(name: &str) -> String {
    format!("{name}.dockerignore")
}

async fn read_dockerfile(directory: &Path, name: &str) -> Result<Dockerfile, Status> {
    let text = read(directory, name).await?;
    let missing =
        || Status::new(Code::Unknown, format!("failed to read dockerfile: open {name}: no such file or directory"));
    Ok(Dockerfile { text: text.ok_or_else(missing)?, ignore: read(directory, &own_ignore(name)).await? })
}

async fn load_dockerfile(
    session: &Session,
    attributes: &HashMap<String, String>,
    name: &str,
    scratch: &Path,
    running: &Running,
) -> Result<Dockerfile, Status> {
    let step = running.begin_step(&format!("[internal] load build definition from {name}"));
    let key = attributes.get("dockerfilekey").cloned().unwrap_or_else(|| "dockerfile".to_owned());
    let wanted = Wanted { name: key, follow: vec![name.to_owned(), own_ignore(name)], exclude: Vec::new() };
    let loaded = async {
        let target = scratch.join("dockerfile");
        make(&target)?;
        receive(session, &wanted, &target).await?;
        read_dockerfile(&target, name).await
    };
    let loaded: Result<Dockerfile, Status> = loaded.await;
    match &loaded {
        Ok(dockerfile) => {
            let size = i64::try_from(dockerfile.text.len()).unwrap_or(i64::MAX);
            running.progress(&step, "transferring dockerfile:", size);
            running.end_step(&step, false, None);
        }
        Err(status) => running.end_step(&step, false, Some(status.message())),
    }
    loaded
}

fn make(path: &Path) -> Result<(), Status> {
    std::fs::create_dir_all(path)
        .map_err(|error| Status::new(Code::Internal, format!("cannot make {}: {error}", path.display())))
}

/// A file of a directory that a client sent; no link is followed.
async fn read(directory: &Path, name: &str) -> Result<Option<String>, Status> {
    let (directory, name) = (directory.to_owned(), name.to_owned());
    let read = tokio::task::spawn_blocking(move || -> std::io::Result<Option<String>> {
        use rustix::fs::{Mode, OFlags, ResolveFlags};
        use std::io::Read;
        let root = rustix::fs::open(&directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat2(&root, &*name, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(file) => std::fs::File::from(file),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    });
    read.await
        .map_err(|error| Status::new(Code::Internal, error.to_string()))?
        .map_err(|error| Status::new(Code::Internal, format!("cannot read a file of the client: {error}")))
}

/// Named contexts that are directories of the client, or repositories.
type Locals = BTreeMap<String, Place>;

/// Where the files of a named context are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// A directory of the client, by its name.
    Client(String),
    /// A git repository, an archive or a file, by its URL.
    Remote(String),
}

/// Where the files of the main context are.
enum Main {
    /// In the client's directory of this name.
    Session(String),
    /// In a directory of the build.
    Here(PathBuf),
}

/// From attributes to the builder's options. Pure.
fn options(
    attributes: &HashMap<String, String>,
    inputs: &HashMap<String, Definition>,
    host_network: bool,
) -> Result<(BuildOptions, Locals), Status> {
    let get = |name: &str| attributes.get(name).cloned().unwrap_or_default();
    let mut options = BuildOptions {
        dockerfile: Some(get("filename")).filter(|name| !name.is_empty()).unwrap_or_else(|| "Dockerfile".to_owned()),
        target: get("target"),
        no_cache: attributes.get("no-cache").is_some_and(String::is_empty),
        no_cache_stages: names(&get("no-cache")),
        pull: get("image-resolve-mode") == "pull",
        platform: get("platform"),
        network: match get("force-network-mode").as_str() {
            "" | "sandbox" | "default" => "default".to_owned(),
            "none" => "none".to_owned(),
            "host" if host_network => "host".to_owned(),
            "host" => return Err(Status::new(Code::PermissionDenied, "network.host is not allowed")),
            other => return Err(invalid(format!("invalid netmode {other}"))),
        },
        dialect: Dialect::BuildKit,
        bounds: bounds(attributes)?,
        ..BuildOptions::default()
    };
    if options.platform.contains(',') {
        return Err(Status::new(Code::Unimplemented, "builds for several platforms at once are not supported"));
    }
    let known = |context: &str| context.is_empty() || context.starts_with("local:") || is_remote(context);
    if attributes.get("context").is_some_and(|context| !known(context)) {
        return Err(Status::new(Code::Unimplemented, format!("context {} is not supported", get("context"))));
    }
    let keeps = attributes.get(KEEP_GIT_DIR).is_some_and(|value| is_true(value));
    if keeps && attributes.get("context").is_some_and(|context| image::is_repository(context)) {
        let why = "the history of git repositories is not kept: BUILDKIT_CONTEXT_KEEP_GIT_DIR";
        return Err(Status::new(Code::Unimplemented, why));
    }
    for host in get("add-hosts").split(',').filter(|host| !host.is_empty()) {
        let (name, address) = host.split_once('=').ok_or_else(|| invalid(format!("invalid hosts {host}")))?;
        options.extra_hosts.push(format!("{name}:{address}"));
    }
    let mut locals = Locals::new();
    for (key, value) in attributes {
        if let Some(name) = key.strip_prefix("build-arg:") {
            // These speak to BuildKit itself, not to the Dockerfile.
            if !name.starts_with("BUILDKIT_") {
                options.build_args.insert(name.to_owned(), Some(value.clone()));
            }
        } else if let Some(name) = key.strip_prefix("label:") {
            options.labels.insert(name.to_owned(), value.clone());
        } else if let Some(name) = key.strip_prefix("context:") {
            let name = name.to_ascii_lowercase();
            let source = named_context(&name, value, inputs, &mut locals)?;
            options.contexts.insert(name, source);
        }
    }
    Ok((options, locals))
}

/// `Source:` Go, `strconv.ParseBool`.
fn is_true(value: &str) -> bool {
    ["1", "t", "T", "true", "TRUE", "True"].contains(&value)
}

/// What a list names.
fn names(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn named_context(
    name: &str,
    value: &str,
    inputs: &HashMap<String, Definition>,
    locals: &mut Locals,
) -> Result<ContextSource, Status> {
    if let Some(input) = value.strip_prefix("input:") {
        let missing = || Status::new(Code::NotFound, format!("no input is named {input}"));
        return linked::image(inputs.get(input).ok_or_else(missing)?).map(ContextSource::Built);
    }
    if let Some(image) = value.strip_prefix("docker-image://") {
        return Ok(ContextSource::Image(image.to_owned()));
    }
    if let Some(local) = value.strip_prefix("local:") {
        locals.insert(name.to_owned(), Place::Client(local.to_owned()));
        return Ok(ContextSource::Local);
    }
    if is_remote(value) {
        locals.insert(name.to_owned(), Place::Remote(value.to_owned()));
        return Ok(ContextSource::Local);
    }
    Err(Status::new(Code::Unimplemented, format!("context {value} is not supported")))
}

fn bounds(attributes: &HashMap<String, String>) -> Result<StepBounds, Status> {
    let mut bounds = StepBounds::default();
    if let Some(parent) = attributes.get("cgroup-parent") {
        let bad = || invalid("invalid cgroup parent");
        bounds.cgroup_parent = image::build::clean_cgroup_parent(parent).ok_or_else(bad)?;
    }
    if let Some(size) = attributes.get("shm-size") {
        bounds.shm_bytes = size.parse().map_err(|_| invalid(format!("failed to parse shm size {size}")))?;
    }
    for limit in attributes.get("ulimit").map(String::as_str).unwrap_or_default().split(',').filter(|l| !l.is_empty()) {
        let bad = || invalid(format!("failed to parse ulimit {limit}"));
        let (name, values) = limit.split_once('=').ok_or_else(bad)?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        bounds.ulimits.push((name.to_owned(), soft.parse().map_err(|_| bad())?, hard.parse().map_err(|_| bad())?));
    }
    Ok(bounds)
}

/// The files and secrets of a session.
struct SessionInputs {
    session: Session,
    running: Arc<Running>,
    locals: Locals,
    main: Main,
    /// The ignore file of the Dockerfile alone, for the main context.
    ignore: Option<String>,
    remote: Remote,
}

impl SessionInputs {
    async fn load(&self, name: &str, directory: &str, target: &Path) -> Result<(), Status> {
        let ignore = match (&self.ignore, name) {
            (Some(ignore), "") => Some(ignore.clone()),
            _ => {
                let wanted = Wanted {
                    name: directory.to_owned(),
                    follow: vec![".dockerignore".to_owned()],
                    exclude: Vec::new(),
                };
                let place = target.with_extension("ignore");
                make(&place)?;
                receive(&self.session, &wanted, &place).await?;
                read(&place, ".dockerignore").await?
            }
        };
        make(target)?;
        let exclude = ignore.as_deref().map(patterns).unwrap_or_default();
        let wanted = Wanted { name: directory.to_owned(), follow: Vec::new(), exclude };
        receive(&self.session, &wanted, target).await
    }
}

fn from_status(status: Status) -> Error {
    Error::Unavailable(status.message().to_owned())
}

#[async_trait]
impl BuildInputs for SessionInputs {
    async fn context(&self, name: &str, scratch: &Path) -> image::Result<PathBuf> {
        let target = scratch.join(format!("context-{}", &Digest::of(name.as_bytes()).hex()[..12]));
        let directory = match (name, &self.main, self.locals.get(name)) {
            ("", Main::Here(directory), _) => return Ok(directory.clone()),
            ("", Main::Session(directory), _) | (_, _, Some(Place::Client(directory))) => directory,
            (_, _, Some(Place::Remote(url))) => {
                self.remote.fetch(url, &target, &self.running).await.map_err(from_status)?;
                return Ok(target);
            }
            (name, _, None) => return Err(Error::NotFound(format!("no context is named {name}"))),
        };
        let shown = if name.is_empty() { String::new() } else { format!("{name} ") };
        let step = self.running.begin_step(&format!("[{shown}internal] load build context").replace("[ ", "["));
        let loaded = self.load(name, directory, &target).await;
        match &loaded {
            Ok(()) => {
                self.running.progress(&step, "transferring context:", 0);
                self.running.end_step(&step, false, None);
            }
            Err(status) => self.running.end_step(&step, false, Some(status.message())),
        }
        loaded.map_err(from_status)?;
        Ok(target)
    }

    async fn secret(&self, id: &str) -> image::Result<Option<Vec<u8>>> {
        self.session.secret(id).await.map_err(from_status)
    }

    async fn ssh(&self, id: &str, scratch: &Path) -> image::Result<Option<PathBuf>> {
        crate::ssh::forward(&self.session, id, scratch).await.map_err(from_status)
    }

    async fn credentials(&self, registry: &str) -> image::Result<Option<Credentials>> {
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let found = self.session.credentials(host).await.map_err(from_status)?;
        Ok(found.map(|(username, secret)| {
            // An empty name with a secret is a refresh token.
            if username.is_empty() {
                return Credentials { identity_token: secret, ..Credentials::default() };
            }
            Credentials { username, password: secret, ..Credentials::default() }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<(BuildOptions, Locals), Status> {
        options(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), &HashMap::new(), false)
    }

    #[test]
    fn attributes_become_options() {
        let (options, locals) = from(&[
            ("filename", "Other"),
            ("build-arg:A", "1"),
            ("build-arg:BUILDKIT_INLINE_CACHE", "1"),
            ("label:l", "v"),
            ("no-cache", ""),
            ("context:Base", "docker-image://alpine"),
            ("context:src", "local:src0"),
            ("context:code", "https://x/y.git#v1"),
            ("context", "https://x/z.git"),
            ("add-hosts", "a=10.0.0.1,b=10.0.0.2"),
            ("ulimit", "nofile=10:20"),
            ("shm-size", "1024"),
            ("cgroup-parent", "../builds"),
            ("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR", "0"),
            ("force-network-mode", "none"),
        ])
        .unwrap();
        assert_eq!((options.dockerfile.as_str(), options.network.as_str(), options.no_cache), ("Other", "none", true));
        assert_eq!(options.build_args.len(), 1);
        assert_eq!(options.contexts["base"], ContextSource::Image("alpine".to_owned()));
        assert_eq!(options.contexts["src"], ContextSource::Local);
        assert_eq!(locals["src"], Place::Client("src0".to_owned()));
        assert_eq!(options.contexts["code"], ContextSource::Local);
        assert_eq!(locals["code"], Place::Remote("https://x/y.git#v1".to_owned()));
        assert_eq!(options.extra_hosts, ["a:10.0.0.1", "b:10.0.0.2"]);
        assert_eq!(options.bounds.cgroup_parent, "/builds");
        assert_eq!(options.bounds.ulimits, [("nofile".to_owned(), 10, 20)]);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for (pair, code) in [
            (("force-network-mode", "host"), Code::PermissionDenied),
            (("force-network-mode", "what"), Code::InvalidArgument),
            (("context", "oci-layout://x"), Code::Unimplemented),
            (("platform", "linux/amd64,linux/arm64"), Code::Unimplemented),
            (("context:x", "input:x"), Code::NotFound),
            (("add-hosts", "x"), Code::InvalidArgument),
            (("ulimit", "x"), Code::InvalidArgument),
            (("cgroup-parent", "a\0b"), Code::InvalidArgument),
        ] {
            assert_eq!(from(&[pair]).unwrap_err().code(), code, "{pair:?}");
        }
        let kept = [("context", "https://x/z.git"), (KEEP_GIT_DIR, "true")];
        assert_eq!(from(&kept).unwrap_err().code(), Code::Unimplemented);
        assert!(from(&[("context", "local:context"), (KEEP_GIT_DIR, "true")]).is_ok(), "there is no git directory");
    }
}
