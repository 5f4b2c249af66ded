//! Does what the evaluator decides: stages, cache, snapshots, commits, and the classic builder's text.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::archive::{Step, empty_config};
use crate::build::evaluate::{self, Action, Globals, State, base_image, evaluate, global_arg, nop};
use crate::build::lines::{Line, cut, error_at};
use crate::build::parse::{CopySpec, Instruction, Parsed, parse, parse_line};
use crate::build::{BuildEvent, BuildOptions, RunStep, StepRunner};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::{pack_changes, tree};
use crate::reference::Reference;
use crate::store::ImageStore;
use crate::types::{Progress, PullOptions, Snapshot};

/// The longest output of one command that is waiting to be read.
const OUTPUT_QUEUE: usize = 64;
/// An archive with nothing in it but its end.
const EMPTY_ARCHIVE: u64 = 1024;

pub(super) struct Engine {
    pub store: Arc<ImageStore>,
    pub options: BuildOptions,
    pub runner: Arc<dyn StepRunner>,
    pub events: mpsc::Sender<BuildEvent>,
    /// Where the context lies.
    pub context: PathBuf,
    /// A directory of this build's own.
    pub scratch: PathBuf,
    /// Ids of the results of stages, and the names of the stages.
    pub stages: Vec<(Option<String>, Option<Digest>)>,
    /// Whether some step was not found in the cache, so that none may be looked for any more.
    pub cache_missed: bool,
    pub used_args: BTreeSet<String>,
}

/// A stage that is being built.
struct Stage {
    state: State,
    config: ImageConfig,
    image: Option<Digest>,
}

impl Engine {
    pub async fn run(&mut self, dockerfile: &str) -> Result<Digest> {
        let lines = cut(dockerfile)?;
        let mut parsed = parse(&lines)?;
        if parsed.is_empty() {
            return Err(Error::Invalid(format!("the Dockerfile ({}) cannot be empty", self.options.dockerfile)));
        }
        let mut globals =
            Globals { build_args: self.options.build_args.clone(), args: BTreeMap::new(), escape: lines.escape };
        self.cut_at_target(&mut parsed)?;
        self.add_labels(&mut parsed);
        let total = parsed.len();
        let mut stage: Option<Stage> = None;
        for (i, step) in parsed.iter().enumerate() {
            self.say(format!("Step {}/{total} : {}\n", i + 1, step.original)).await;
            match (&step.instruction, &mut stage) {
                (Instruction::From { image, name }, _) => {
                    if let Some(done) = stage.take() {
                        self.finish_stage(done);
                    }
                    let image = base_image(image, &globals).map_err(|error| at(step.line, error))?;
                    self.stages.push((name.clone(), None));
                    stage = Some(self.begin(&image, &globals).await?);
                }
                (Instruction::Arg(args), None) => {
                    self.used_args.extend(args.iter().map(|(name, _)| name.clone()));
                    global_arg(&mut globals, args).map_err(|error| at(step.line, error))?;
                }
                (_, None) => return Err(error_at(step.line, "no build stage in current context")),
                (_, Some(stage)) => self.step(stage, step, &globals).await?,
            }
        }
        let last = stage.and_then(|stage| {
            let image = stage.image.clone();
            self.finish_stage(stage);
            image
        });
        let id = last.ok_or_else(|| Error::Invalid("No image was generated. Is your Dockerfile empty?".to_owned()))?;
        self.warn_of_unused_args().await;
        Ok(id)
    }

    async fn say(&self, text: String) {
        // Nobody reads any more: the build is dropped by its caller, not from here.
        let _ = self.events.send(BuildEvent::Stream(text)).await;
    }

    fn finish_stage(&mut self, done: Stage) {
        if let Some(last) = self.stages.last_mut() {
            last.1 = done.image;
        }
    }

    fn cut_at_target(&self, parsed: &mut Vec<Parsed>) -> Result<()> {
        let target = self.options.target.to_ascii_lowercase();
        if target.is_empty() {
            return Ok(());
        }
        let mut stages = parsed.iter().enumerate().filter_map(|(i, step)| match &step.instruction {
            Instruction::From { name, .. } => Some((i, name.clone())),
            _ => None,
        });
        let found = stages.clone().position(|(_, name)| name.as_deref() == Some(target.as_str()));
        let number = found.or_else(|| target.parse().ok().filter(|n| *n < stages.clone().count()));
        let Some(number) = number else {
            return Err(Error::Invalid(format!("failed to reach build target {target} in Dockerfile")));
        };
        if let Some((next, _)) = stages.nth(number + 1) {
            parsed.truncate(next);
        }
        Ok(())
    }

    /// `--label` is one more instruction at the end.
    fn add_labels(&self, parsed: &mut Vec<Parsed>) {
        if self.options.labels.is_empty() {
            return;
        }
        let quote = |text: &str| format!("'{}'", text.replace('\'', "'\"'\"'"));
        let pairs: Vec<(String, String)> = self.options.labels.iter().map(|(k, v)| (quote(k), quote(v))).collect();
        let shown: Vec<String> = self.options.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let line = parsed.last().map_or(1, |step| step.line);
        let original = format!("LABEL {}", shown.join(" "));
        parsed.push(Parsed { line, original, instruction: Instruction::Label(pairs) });
    }

    async fn begin(&mut self, image: &str, globals: &Globals) -> Result<Stage> {
        self.cache_missed = false;
        if image == "scratch" {
            self.say(" ---> \n".to_owned()).await;
            let config = empty_config(&self.options.platform);
            return Ok(Stage { state: State::default(), config, image: None });
        }
        let id = self.image_of(image).await?;
        let config = match &id {
            Some(id) => self.store.config(id)?,
            None => empty_config(&self.options.platform),
        };
        self.say(format!(" ---> {}\n", id.as_ref().map_or("", Digest::short))).await;
        let mut state = State::new(config.config.clone(), config.author.clone());
        let triggers = std::mem::take(&mut state.config.on_build);
        let mut stage = Stage { state, config, image: id };
        if !triggers.is_empty() {
            let plural = if triggers.len() == 1 { "trigger" } else { "triggers" };
            self.say(format!("# Executing {} build {plural}\n", triggers.len())).await;
        }
        for text in triggers {
            let line = Line { number: 1, text, documents: Vec::new() };
            let step = parse_line(&line, globals.escape)?;
            self.step(&mut stage, &step, globals).await?;
        }
        Ok(stage)
    }

    /// The image of an earlier stage (by name or number), or of the store, or of a registry. `None`: a stage that is empty.
    async fn image_of(&self, name: &str) -> Result<Option<Digest>> {
        let earlier = &self.stages[..self.stages.len().saturating_sub(1)];
        let lower = name.to_ascii_lowercase();
        if let Some((_, id)) = earlier.iter().rev().find(|(stage, _)| stage.as_deref() == Some(lower.as_str())) {
            return Ok(id.clone());
        }
        if !self.options.pull
            && let Ok(id) = self.store.resolve(name)
        {
            return Ok(Some(id));
        }
        let reference = Reference::parse_tagged(name).map_err(|_| {
            Error::Invalid(format!("failed to parse image reference {name:?}: invalid reference format"))
        })?;
        let (progress, mut received) = Progress::channel();
        let events = self.events.clone();
        let forward = tokio::spawn(async move {
            while let Some(event) = received.recv().await {
                let _ = events.send(BuildEvent::Pull(event)).await;
            }
        });
        let credentials = self.options.credentials.get(&reference.registry).cloned();
        let platform = Some(crate::archive::parse_platform(&self.options.platform));
        let pulled = self.store.pull(&reference, &PullOptions { credentials, platform }, &progress).await;
        drop(progress);
        forward.await?;
        Ok(Some(pulled?.id))
    }

    async fn step(&mut self, stage: &mut Stage, step: &Parsed, globals: &Globals) -> Result<()> {
        if let Instruction::Arg(args) = &step.instruction {
            self.used_args.extend(args.iter().map(|(name, _)| name.clone()));
        }
        let action = evaluate(&mut stage.state, &step.instruction, globals).map_err(|error| at(step.line, error))?;
        match action {
            Action::Commit { comment } => {
                let created_by = nop(&stage.state, &comment);
                if self.take_cached(stage, &created_by).await? {
                    return Ok(());
                }
                let id = container_id();
                self.say(format!(" ---> Running in {}\n", &id[..12])).await;
                self.say(format!(" ---> Removed intermediate container {}\n", &id[..12])).await;
                self.commit(stage, &created_by, None).await
            }
            Action::MakeDirectory { comment, path } => {
                let created_by = nop(&stage.state, &comment);
                if self.take_cached(stage, &created_by).await? {
                    return Ok(());
                }
                let work = self.work(stage).await?;
                self.say(format!(" ---> Running in {}\n", &work.id[..12])).await;
                let root = work.snapshot.rootfs.clone();
                work.blocking(move || {
                    let root = tree::open_root(&root)?;
                    let parts = tree::components(path.as_bytes())?;
                    tree::make_directories(root.as_fd(), &parts).map(drop)
                })
                .await?;
                self.say(format!(" ---> Removed intermediate container {}\n", &work.id[..12])).await;
                self.commit(stage, &created_by, Some(work)).await
            }
            Action::Run { created_by, command, environment } => {
                if self.take_cached(stage, &created_by).await? {
                    return Ok(());
                }
                self.run_command(stage, created_by, command, environment).await
            }
            Action::Copy(spec) => self.copy(stage, spec).await,
        }
    }

    /// Takes the result of a step from the cache. Once a step was not there, none after it is looked for.
    async fn take_cached(&mut self, stage: &mut Stage, created_by: &str) -> Result<bool> {
        if self.options.no_cache || self.cache_missed {
            return Ok(false);
        }
        let parent = stage.image.clone();
        let hit = self.store.look(|index| {
            let fits = |entry: &&crate::store::index::Entry| {
                entry.cache_key.as_deref() == Some(created_by) && entry.parent == parent
            };
            let mut hits: Vec<_> = index.images.iter().filter(|(_, entry)| fits(entry)).collect();
            hits.sort_by_key(|(_, entry)| entry.created_ns);
            hits.pop().map(|(id, _)| id.clone())
        });
        // A hit whose configuration went another way (another platform, say) is none.
        let config = hit.as_ref().and_then(|id| self.store.config(id).ok());
        let (Some(id), Some(config)) = (hit, config.filter(|config| config.config == stage.state.config)) else {
            self.cache_missed = true;
            return Ok(false);
        };
        self.say(format!(" ---> Using cache\n ---> {}\n", id.short())).await;
        (stage.config, stage.image) = (config, Some(id));
        Ok(true)
    }

    /// Mounts a writable snapshot of the stage as it is now.
    async fn work(&self, stage: &Stage) -> Result<Work> {
        let id = container_id();
        let dir = self.scratch.join(&id[..12]);
        let snapshot = match &stage.image {
            Some(image) => self.store.prepare(&build_id(&id), &image.to_string(), &dir).await?,
            None => self.store.prepare_empty(&build_id(&id), &dir)?,
        };
        let work = Work { store: self.store.clone(), id, snapshot };
        self.store.mount(&work.snapshot).await?;
        Ok(work)
    }

    async fn run_command(
        &self,
        stage: &mut Stage,
        created_by: String,
        command: Vec<String>,
        environment: Vec<String>,
    ) -> Result<()> {
        let work = self.work(stage).await?;
        self.say(format!(" ---> Running in {}\n", &work.id[..12])).await;
        let working_directory = match stage.state.config.working_dir.as_str() {
            "" => "/".to_owned(),
            path => path.to_owned(),
        };
        let step = RunStep {
            id: work.id.clone(),
            rootfs: work.snapshot.rootfs.clone(),
            command: command.clone(),
            environment,
            working_directory,
            user: stage.state.config.user.clone(),
            network: self.options.network.clone(),
            extra_hosts: self.options.extra_hosts.clone(),
            memory_bytes: self.options.memory_bytes,
        };
        let (output, mut received) = mpsc::channel::<bytes::Bytes>(OUTPUT_QUEUE);
        let forward = async {
            while let Some(piece) = received.recv().await {
                self.say(String::from_utf8_lossy(&piece).into_owned()).await;
            }
        };
        let (code, ()) = tokio::join!(self.runner.run(step, output), forward);
        let code = code.map_err(Error::Invalid)?;
        self.say(format!(" ---> Removed intermediate container {}\n", &work.id[..12])).await;
        if code != 0 {
            return Err(Error::StepFailed { command: command.join(" "), code });
        }
        self.commit(stage, &created_by, Some(work)).await
    }

    async fn copy(&mut self, stage: &mut Stage, spec: CopySpec) -> Result<()> {
        // What to copy from: the context, or a stage's or image's file system.
        let from = match &spec.from {
            None => None,
            Some(name) => Some(self.source_image(name).await?),
        };
        let verb = if spec.add { "ADD" } else { "COPY" };
        let work_from = match &from {
            None => None,
            Some(image) => {
                let id = container_id();
                let dir = self.scratch.join(&id[..12]);
                let snapshot = match image {
                    Some(image) => self.store.prepare(&build_id(&id), &image.to_string(), &dir).await?,
                    None => self.store.prepare_empty(&build_id(&id), &dir)?,
                };
                let work = Work { store: self.store.clone(), id, snapshot };
                self.store.mount_read_only(&work.snapshot).await?;
                Some(work)
            }
        };
        let root = work_from.as_ref().map_or_else(|| self.context.clone(), |work| work.snapshot.rootfs.clone());
        let wrap = move |error: Error| match error {
            Error::Invalid(why) | Error::NotFound(why) => Error::Invalid(format!("{verb} failed: {why}")),
            other => other,
        };
        let (spec, plan) = tokio::task::spawn_blocking(move || {
            let plan = super::copy::plan(&root, &spec);
            plan.map(|plan| (spec, plan))
        })
        .await?
        .map_err(wrap)?;
        let created_by = format!(
            "{} #(nop) {verb} {}{} in {} ",
            stage.state.shell().join(" "),
            super::copy::flags(&spec),
            plan.hash,
            spec.destination
        );
        if self.take_cached(stage, &created_by).await? {
            return Ok(());
        }
        let work = self.work(stage).await?;
        let (root, limits) = (work.snapshot.rootfs.clone(), self.store.options.limits);
        let working_directory = stage.state.config.working_dir.clone();
        work.blocking(move || super::copy::execute(&plan, &spec, &root, &working_directory, limits))
            .await
            .map_err(wrap)?;
        if let Some(from) = work_from {
            from.remove().await?;
        }
        self.commit(stage, &created_by, Some(work)).await
    }

    async fn source_image(&self, name: &str) -> Result<Option<Digest>> {
        if let Ok(number) = name.parse::<usize>() {
            let earlier = &self.stages[..self.stages.len().saturating_sub(1)];
            return match earlier.get(number) {
                Some((_, id)) => Ok(id.clone()),
                None => Err(Error::Invalid(format!("invalid from flag value {name}: refers to no earlier stage"))),
            };
        }
        self.image_of(name).await
    }

    /// Makes an image of the stage as it is now, with what the work wrote.
    async fn commit(&self, stage: &mut Stage, created_by: &str, work: Option<Work>) -> Result<()> {
        let mut config = stage.config.clone();
        config.config = stage.state.config.clone();
        config.author.clone_from(&stage.state.author);
        let (store, parent) = (self.store.clone(), stage.image.clone());
        let by = created_by.to_owned();
        let mut work = work;
        if let Some(work) = &work {
            self.store.unmount(&work.snapshot).await?;
        }
        let upper = work.as_ref().map(|work| work.snapshot.upper.clone());
        let id = tokio::task::spawn_blocking(move || {
            let layer = match upper {
                Some(upper) => pack_to_file(&store, &upper)?,
                None => None,
            };
            let mut layer = layer.map(std::io::BufReader::new);
            let layer = layer.as_mut().map(|layer| layer as &mut dyn std::io::Read);
            let cache_key = Some(by.clone());
            store.commit_step(Step { parent: parent.as_ref(), config, layer, created_by: &by, cache_key })
        })
        .await??;
        if let Some(work) = work.take() {
            work.remove().await?;
        }
        stage.config = self.store.config(&id)?;
        self.say(format!(" ---> {}\n", id.short())).await;
        stage.image = Some(id);
        Ok(())
    }

    async fn warn_of_unused_args(&self) {
        let unused: Vec<&str> = self
            .options
            .build_args
            .keys()
            .filter(|name| !self.used_args.contains(*name) && !evaluate::is_predefined(name))
            .map(String::as_str)
            .collect();
        if !unused.is_empty() {
            let list = unused.join(" ");
            self.say(format!("[Warning] One or more build-args [{list}] were not consumed\n")).await;
        }
    }
}

fn at(line: usize, error: Error) -> Error {
    match error {
        Error::Invalid(why) => error_at(line, why),
        other => other,
    }
}

/// Packs changes into a file without a name. `None` when there are none.
fn pack_to_file(store: &ImageStore, upper: &std::path::Path) -> Result<Option<std::fs::File>> {
    use std::io::Seek;
    let doing = "cannot pack a layer";
    let path = store.dir.join("ingest").join(format!("{:032x}", rand::random::<u128>()));
    let file =
        std::fs::File::options().read(true).write(true).create_new(true).open(&path).map_err(Error::io(doing))?;
    std::fs::remove_file(&path).map_err(Error::io(doing))?;
    let out = pack_changes(upper, std::io::BufWriter::with_capacity(128 << 10, file))?;
    let mut file = out.into_inner().map_err(|error| Error::io(doing)(error.into_error()))?;
    let size = file.stream_position().map_err(Error::io(doing))?;
    file.rewind().map_err(Error::io(doing))?;
    Ok((size > EMPTY_ARCHIVE).then_some(file))
}

fn container_id() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}

/// Snapshots of builds are known by their name, so that a start can sweep up what a crash left.
fn build_id(id: &str) -> String {
    format!("{}{}", crate::store::BUILD_PREFIX, id)
}

/// A mounted snapshot of a build. After an error or a cancelled build it goes with the build's own directory.
struct Work {
    store: Arc<ImageStore>,
    id: String,
    snapshot: Snapshot,
}

impl Work {
    async fn blocking(&self, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        tokio::task::spawn_blocking(work).await?
    }

    async fn remove(self) -> Result<()> {
        let dir = self.snapshot.rootfs.parent().map(std::path::Path::to_owned);
        self.store.remove_snapshot(&self.snapshot.container_id).await?;
        if let Some(dir) = dir {
            let _ = std::fs::remove_dir(dir);
        }
        Ok(())
    }
}
