//! Builds one stage: its base, its steps, the cache, the commits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::archive::{Step, empty_config};
use crate::build::engine::{Build, Outcome};
use crate::build::evaluate::{Action, State, evaluate, nop};
use crate::build::lines::Line;
use crate::build::parse::{CopySpec, Instruction, Parsed, parse_line};
use crate::build::plan::{Base, StagePlan, at, stage_named};
use crate::build::report::{Reporter, StepEvent};
use crate::build::work::{Work, container_id, pack_to_file};
use crate::build::{BuildEvent, ContextSource};
use crate::config::{History, ImageConfig};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::types::{Progress, PullOptions};

/// What BuildKit's images say of their maker.
const BUILDKIT_COMMENT: &str = "buildkit.dockerfile.v0";

/// A stage that is being built.
pub(super) struct Stage<'a> {
    pub build: &'a Arc<Build>,
    pub plan: &'a StagePlan,
    pub report: Reporter,
    pub state: State,
    pub config: ImageConfig,
    pub image: Option<Digest>,
    /// Whether ids of images are told: not between triggers.
    tells_ids: bool,
    /// Whether some step was not found in the cache, so that none may be looked for any more.
    cache_missed: bool,
    /// The step that is being told (BuildKit).
    pub vertex: usize,
    /// Steps of this stage that were told, and that will be (BuildKit).
    told: (usize, usize),
}

/// `None`: another stage failed, which tells why.
pub(super) type StageResult<T> = std::result::Result<T, Option<Error>>;

/// Builds a stage and returns its image; `None` is a stage from nothing that stayed empty.
pub(super) async fn build_stage(build: &Arc<Build>, number: usize, report: Reporter) -> StageResult<Option<Digest>> {
    let Some(plan) = build.plan.stages.get(number) else { return Err(None) };
    let total = build.plan.total;
    let visible = |step: &&Parsed| {
        matches!(step.instruction, Instruction::Run(_) | Instruction::Copy(_) | Instruction::WorkingDirectory(_))
    };
    let from = usize::from(matches!(plan.base, Base::Image(_)));
    let count = from + plan.steps.iter().filter(visible).count();
    let mut stage = Stage {
        build,
        plan,
        report,
        state: State::default(),
        config: empty_config(&build.options.platform),
        image: None,
        tells_ids: true,
        cache_missed: false,
        vertex: 0,
        told: (0, count),
    };
    for (i, step) in plan.steps.iter().enumerate() {
        stage.report.say(format!("Step {}/{total} : {}\n", plan.first + i + 1, step.original)).await;
        let done = match &step.instruction {
            Instruction::From { .. } => stage.begin(step).await,
            _ => stage.step(step).await,
        };
        if let Err(error) = done {
            if let Some(error) = &error {
                stage.end_step(false, Some(error)).await;
                build.failed_at(number, (step.line, step.last));
            }
            return Err(error);
        }
    }
    stage.finish().await.map_err(Some)
}

impl Stage<'_> {
    pub fn classic(&self) -> bool {
        self.report.classic()
    }

    /// Tells BuildKit's clients that a step begins.
    pub async fn begin_step(&mut self, text: &str) {
        if self.classic() {
            return;
        }
        self.told.0 += 1;
        let (number, count) = self.told;
        let width = count.to_string().len();
        let single = self.build.plan.stages.len() == 1;
        let stage = match &self.plan.name {
            Some(name) => format!("{name} "),
            None if single => String::new(),
            None => format!("stage-{} ", self.plan.number),
        };
        let before = self.vertex;
        self.vertex = self.build.vertexes.fetch_add(1, Ordering::Relaxed) + 1;
        let inputs = if before == 0 { Vec::new() } else { vec![before] };
        let name = format!("[{stage}{number:>width$}/{count}] {text}");
        self.report.step(StepEvent::Started { step: self.vertex, name, inputs }).await;
    }

    /// Tells that the step that began has ended.
    pub async fn end_step(&self, cached: bool, error: Option<&Error>) {
        if self.vertex > 0 {
            let error = error.map(Error::chain);
            self.report.step(StepEvent::Ended { step: self.vertex, cached, error }).await;
        }
    }

    async fn begin(&mut self, from: &Parsed) -> StageResult<()> {
        let platform = if self.plan.platform.is_empty() { &self.build.options.platform } else { &self.plan.platform };
        match &self.plan.base {
            Base::Scratch => {
                self.config = empty_config(platform);
                self.report.say(" ---> \n").await;
                return Ok(());
            }
            Base::Stage(number) => match self.build.outcome(*number).await {
                Outcome::Image(image) => self.image = image,
                Outcome::Failed => return Err(None),
            },
            Base::Image(name) if self.local_context(name) => {
                // Its files are the base, without any configuration.
                self.config = empty_config(platform);
                self.state = State::default();
                self.begin_step(&format!("FROM {name}")).await;
                let everything = vec!["/".to_owned()];
                let from = Some(name.clone());
                let destination = "/".to_owned();
                self.copy(CopySpec { sources: everything, destination, from, ..CopySpec::default() }).await?;
                return Ok(());
            }
            Base::Image(name) => {
                self.begin_step(&format!("FROM {}", shown_image(name))).await;
                let image = self.external_image(name, platform).await.map_err(|error| at(from.line, error));
                self.image = image.map_err(Some)?;
                self.end_step(false, None).await;
            }
        }
        if let (true, Some(image)) = (self.plan.number == self.build.plan.target, &self.image) {
            let _ = self.build.base.set(image.clone());
        }
        self.config = match &self.image {
            Some(id) => self.build.store.config(id).map_err(Some)?,
            None => empty_config(platform),
        };
        self.state = State::new(self.config.config.clone(), self.config.author.clone());
        self.triggers().await?;
        self.say_id().await;
        Ok(())
    }

    /// Tells the image that the stage is now.
    async fn say_id(&self) {
        if self.tells_ids {
            let short = self.image.as_ref().map_or("", Digest::short);
            self.report.say(format!(" ---> {short}\n")).await;
        }
    }

    /// ONBUILD of the base image.
    async fn triggers(&mut self) -> StageResult<()> {
        let triggers = std::mem::take(&mut self.state.config.on_build);
        if !triggers.is_empty() {
            let plural = if triggers.len() == 1 { "trigger" } else { "triggers" };
            self.report.say(format!("# Executing {} build {plural}\n", triggers.len())).await;
        }
        self.tells_ids = false;
        for text in triggers {
            let line = Line { number: 1, last: 1, comment: Vec::new(), text, documents: Vec::new() };
            let step = parse_line(&line, self.build.plan.globals.escape, self.report.dialect).map_err(Some)?;
            self.step(&step).await?;
        }
        self.tells_ids = true;
        Ok(())
    }

    fn local_context(&self, name: &str) -> bool {
        self.build.options.contexts.get(&name.to_ascii_lowercase()) == Some(&ContextSource::Local)
    }

    /// An image of the store or of a registry, or of a named context that stands for one.
    async fn external_image(&self, name: &str, platform: &str) -> Result<Option<Digest>> {
        let name = match self.build.options.contexts.get(&name.to_ascii_lowercase()) {
            Some(ContextSource::Image(image)) => image,
            Some(ContextSource::Built(id)) => return Ok(Some(id.clone())),
            Some(ContextSource::Local) => {
                return Err(Error::NotSupported(format!("the local context {name:?} is no image")));
            }
            None => name,
        };
        let store = &self.build.store;
        if !self.build.options.pull
            && let Ok(id) = store.resolve(name)
            && (self.classic() || self.is_for(&id, platform)?)
        {
            return Ok(Some(id));
        }
        let reference = Reference::parse_tagged(name).map_err(|_| {
            Error::Invalid(format!("failed to parse image reference {name:?}: invalid reference format"))
        })?;
        let (progress, mut received) = Progress::channel();
        let report = self.report.clone();
        let forward = async move {
            while let Some(event) = received.recv().await {
                report.event(BuildEvent::Pull(event)).await;
            }
        };
        let credentials = match self.build.options.credentials.get(&reference.registry) {
            Some(credentials) => Some(credentials.clone()),
            None => self.build.inputs.credentials(&reference.registry).await?,
        };
        let platform = Some(crate::archive::parse_platform(platform));
        let options = PullOptions { credentials, platform };
        let pull = async move { store.pull(&reference, &options, &progress).await };
        let (pulled, ()) = tokio::join!(pull, forward);
        Ok(Some(pulled?.id))
    }

    /// Whether an image is for a platform that was asked for.
    fn is_for(&self, id: &Digest, platform: &str) -> Result<bool> {
        let config = self.build.store.config(id)?;
        let mut wanted = crate::archive::parse_platform(platform);
        // Other names of the same. Source: containerd, platforms.Normalize.
        match wanted.architecture.as_str() {
            "x86_64" | "x86-64" => "amd64".clone_into(&mut wanted.architecture),
            "aarch64" => "arm64".clone_into(&mut wanted.architecture),
            _ => {}
        }
        let told = !platform.is_empty() && !config.architecture.is_empty();
        Ok(!told || (config.architecture == wanted.architecture && config.os == wanted.os))
    }

    /// The image of a stage (by name or number), of a named context, of the store, or of a registry.
    pub async fn source_image(&self, name: &str) -> StageResult<Option<Digest>> {
        let stage = match name.parse::<usize>() {
            Ok(number) if number < self.plan.number => Some(number),
            Ok(_) => {
                let why = format!("invalid from flag value {name}: refers to no earlier stage");
                return Err(Some(Error::Invalid(why)));
            }
            Err(_) => stage_named(&self.build.names, self.plan.number, name),
        };
        match stage {
            Some(number) => match self.build.outcome(number).await {
                Outcome::Image(image) => Ok(image),
                Outcome::Failed => Err(None),
            },
            None => self.external_image(name, &self.build.options.platform).await.map_err(Some),
        }
    }

    async fn step(&mut self, step: &Parsed) -> StageResult<()> {
        let globals = &self.build.plan.globals;
        let action = evaluate(&mut self.state, &step.instruction, globals);
        let action = action.map_err(|error| Some(at(step.line, error)))?;
        match action {
            Action::Commit { comment } => self.commit_configuration(&comment).await.map_err(Some),
            Action::MakeDirectory { comment, path } => {
                self.begin_step(&step.original).await;
                self.make_directory(&comment, path).await.map_err(Some)
            }
            Action::Run { .. } => {
                self.begin_step(&step.original).await;
                self.run(action).await
            }
            Action::Copy(spec) => {
                self.begin_step(&step.original).await;
                self.copy(spec).await
            }
        }
    }

    async fn commit_configuration(&mut self, comment: &str) -> Result<()> {
        if !self.classic() {
            // No image of its own: it goes into the next one, with the time of the last.
            let created = self.config.created.clone();
            let history = History {
                created,
                created_by: comment.to_owned(),
                comment: Some(BUILDKIT_COMMENT.to_owned()),
                empty_layer: true,
                ..History::default()
            };
            self.config.history.push(history);
            return Ok(());
        }
        let created_by = nop(&self.state, comment);
        if self.take_cached(&created_by, &created_by).await? {
            return Ok(());
        }
        let id = container_id();
        self.report.say(format!(" ---> Running in {}\n", &id[..12])).await;
        self.report.say(format!(" ---> Removed intermediate container {}\n", &id[..12])).await;
        self.commit(&created_by, &created_by, None).await
    }

    /// What the history says of an instruction, and the key under which the cache has it.
    pub fn labels(&self, classic: String, modern: &str, inputs: &[&str]) -> (String, String) {
        if self.classic() {
            return (classic.clone(), classic);
        }
        let key = Digest::of([&[modern], inputs].concat().join("\0").as_bytes());
        (format!("{modern} # buildkit"), format!("{}{}", crate::store::BUILDKIT_KEY, key.hex()))
    }

    /// Whether this stage is one of those that are to be built anew.
    fn no_cache(&self) -> bool {
        let name = self.plan.name.as_deref().unwrap_or_default();
        self.build.options.no_cache_stages.iter().any(|stage| stage.eq_ignore_ascii_case(name))
    }

    /// Takes the result of a step from the cache. Once a step was not there, none after it is looked for.
    pub async fn take_cached(&mut self, created_by: &str, key: &str) -> Result<bool> {
        if self.build.options.no_cache || self.cache_missed || self.no_cache() {
            return Ok(false);
        }
        let parent = self.image.clone();
        let hit = self.build.store.look(|index| {
            let fits =
                |entry: &&crate::store::index::Entry| entry.cache_key.as_deref() == Some(key) && entry.parent == parent;
            let mut hits: Vec<_> = index.images.iter().filter(|(_, entry)| fits(entry)).collect();
            hits.sort_by_key(|(_, entry)| entry.created_ns);
            hits.pop().map(|(id, _)| id.clone())
        });
        let config = hit.as_ref().and_then(|id| self.build.store.config(id).ok());
        // A hit whose configuration went another way (another platform, say) is none. BuildKit's keys say all that counts.
        let fits = |config: &ImageConfig| !self.classic() || config.config == self.state.config;
        let (Some(id), Some(config)) = (hit, config.filter(fits)) else {
            self.cache_missed = self.classic();
            return Ok(false);
        };
        self.report.say(" ---> Using cache\n").await;
        if self.classic() {
            self.config = config;
        } else {
            let empty_layer = config.rootfs.diff_ids.len() == self.config.rootfs.diff_ids.len();
            self.config.history.push(History { empty_layer, ..modern_history(created_by, config.created.clone()) });
            (self.config.rootfs, self.config.created) = (config.rootfs, config.created);
            self.end_step(true, None).await;
        }
        self.image = Some(id);
        self.say_id().await;
        Ok(true)
    }

    /// Makes an image of the stage as it is now, with what the work wrote.
    pub async fn commit(&mut self, created_by: &str, key: &str, work: Option<Work>) -> Result<()> {
        let mut config = self.config.clone();
        config.config = self.state.config.clone();
        config.author.clone_from(&self.state.author);
        if let Some(work) = &work {
            work.unmount().await?;
        }
        let (store, parent) = (self.build.store.clone(), self.image.clone());
        let upper = work.as_ref().map(|work| work.snapshot.upper.clone());
        let (by, key) = (created_by.to_owned(), Some(key.to_owned()));
        let comment = (!self.classic()).then(|| BUILDKIT_COMMENT.to_owned());
        let id = tokio::task::spawn_blocking(move || {
            let layer = match upper {
                Some(upper) => pack_to_file(&store, &upper)?,
                None => None,
            };
            let mut layer = layer.map(std::io::BufReader::new);
            let layer = layer.as_mut().map(|layer| layer as &mut dyn std::io::Read);
            store.commit_step(Step { parent: parent.as_ref(), config, layer, created_by: &by, comment, cache_key: key })
        })
        .await??;
        if let Some(work) = work {
            work.remove().await?;
        }
        self.config = self.build.store.config(&id)?;
        self.image = Some(id);
        self.say_id().await;
        if !self.classic() {
            self.end_step(false, None).await;
        }
        Ok(())
    }

    /// The last image of the stage. For BuildKit, configuration that no step took along gets an image now.
    async fn finish(mut self) -> Result<Option<Digest>> {
        if self.classic() {
            return Ok(self.image);
        }
        self.config.config = self.state.config.clone();
        self.config.author.clone_from(&self.state.author);
        if let Some(id) = &self.image
            && self.build.store.config(id)? == self.config
        {
            return Ok(self.image);
        }
        if self.image.is_none() && self.config.history.is_empty() {
            return Ok(None);
        }
        let (store, parent, config) = (self.build.store.clone(), self.image.clone(), self.config.clone());
        let committed = tokio::task::spawn_blocking(move || store.commit_configuration(parent.as_ref(), &config));
        committed.await?.map(Some)
    }
}

fn modern_history(created_by: &str, created: Option<String>) -> History {
    History {
        created,
        created_by: created_by.to_owned(),
        comment: Some(BUILDKIT_COMMENT.to_owned()),
        ..History::default()
    }
}

/// A name as BuildKit shows it: in full.
fn shown_image(name: &str) -> String {
    Reference::parse_tagged(name).map_or_else(|_| name.to_owned(), |reference| reference.to_string())
}
