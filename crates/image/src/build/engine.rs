//! Drives a plan: every stage is a task, stages that do not need each other run side by side, and what they say comes out in
//! the order that the builder's clients expect.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;
use tokio::sync::{Mutex, OnceCell, mpsc};
use tokio::task::JoinSet;

use crate::build::evaluate;
use crate::build::flags::Dialect;
use crate::build::lines::cut;
use crate::build::plan::{self, Plan};
use crate::build::report::{Reporter, StepEvent};
use crate::build::squash::squash;
use crate::build::stage::build_stage;
use crate::build::{BuildEvent, BuildInputs, BuildOptions, StepRunner};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::ImageStore;

/// Events of one stage that wait for the stages before it to be told first (classic builder). Behind them the stage waits.
const STAGE_QUEUE: usize = 4096;

/// What all stages of a build share.
pub(super) struct Build {
    pub store: Arc<ImageStore>,
    pub options: BuildOptions,
    pub runner: Arc<dyn StepRunner>,
    pub inputs: Arc<dyn BuildInputs>,
    pub plan: Plan,
    /// A directory of this build's own.
    pub scratch: PathBuf,
    /// Names of the stages.
    pub names: Vec<(Option<String>, usize)>,
    /// The image on which the target is built, once that is known; nothing for `scratch`.
    pub base: OnceLock<Digest>,
    /// Number of the step that is told next (BuildKit).
    pub vertexes: Arc<std::sync::atomic::AtomicUsize>,
    cells: Vec<OnceCell<Outcome>>,
    reporters: Vec<Reporter>,
    /// Directories of contexts that were fetched, by name.
    contexts: Mutex<BTreeMap<String, Arc<OnceCell<PathBuf>>>>,
    failures: std::sync::Mutex<BTreeMap<usize, Error>>,
    /// Lines of the instructions that failed, by stage.
    failed_at: std::sync::Mutex<BTreeMap<usize, (usize, usize)>>,
}

/// How a stage ended.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// With an image; `None` is a stage that is empty.
    Image(Option<Digest>),
    /// With an error, which is told apart.
    Failed,
}

/// What a build is given.
pub(super) struct Parts {
    pub store: Arc<ImageStore>,
    pub options: BuildOptions,
    pub runner: Arc<dyn StepRunner>,
    pub inputs: Arc<dyn BuildInputs>,
    pub scratch: PathBuf,
    pub events: mpsc::Sender<BuildEvent>,
}

/// Builds the target and returns its image.
///
/// Errors: of the first stage (in the order of the file) that failed.
pub(super) async fn run(parts: Parts, dockerfile: &str) -> Result<Digest> {
    let lines = cut(dockerfile)?;
    let plan = plan::plan(&lines, &parts.options)?;
    let classic = parts.options.dialect == Dialect::Classic;
    // The classic builder builds every stage up to the target.
    let wanted: Vec<usize> =
        if classic { (0..=plan.target).collect() } else { plan::needed(&plan).into_iter().collect() };
    let events = parts.events.clone();
    let warning = classic.then(|| unused_arguments(&parts.options, &plan.declared)).flatten();
    let (build, mut queues) = Build::new(parts, plan);
    let build = Arc::new(build);
    if classic {
        for (i, step) in build.plan.head.iter().enumerate() {
            let text = format!("Step {}/{} : {}\n", i + 1, build.plan.total, step.original);
            let _ = events.send(BuildEvent::Stream(text)).await;
        }
    }
    let mut tasks = JoinSet::new();
    for number in &wanted {
        let (build, number) = (build.clone(), *number);
        tasks.spawn(async move {
            let outcome = build.outcome(number).await;
            build.close(number);
            (number, outcome)
        });
    }
    if classic {
        for number in &wanted {
            while let Some(event) = queues[*number].recv().await {
                // Nobody reads any more: the build is dropped by its caller, not from here.
                let _ = events.send(event).await;
            }
            if build.failed(*number) {
                break;
            }
        }
    }
    let mut image = None;
    while !(classic && wanted.iter().any(|number| build.failed(*number)))
        && let Some(joined) = tasks.join_next().await
    {
        match joined? {
            (number, Outcome::Image(id)) if number == build.plan.target => image = id,
            (_, Outcome::Image(_)) => {}
            (_, Outcome::Failed) => break,
        }
    }
    tasks.shutdown().await;
    if let Some((error, lines)) = build.first_failure() {
        if let (false, Some(lines)) = (classic, lines) {
            let _ = events.send(BuildEvent::Step(StepEvent::FailedAt { lines })).await;
        }
        return Err(error);
    }
    if let Some(text) = warning {
        let _ = events.send(BuildEvent::Stream(text)).await;
    }
    let image = image.ok_or_else(|| Error::Invalid("No image was generated. Is your Dockerfile empty?".to_owned()))?;
    if build.options.squash { squash(&build, &image).await } else { Ok(image) }
}

impl Build {
    fn new(parts: Parts, plan: Plan) -> (Build, Vec<mpsc::Receiver<BuildEvent>>) {
        let names = plan.stages.iter().map(|stage| (stage.name.clone(), stage.number)).collect();
        let mut reporters = Vec::new();
        let mut queues = Vec::new();
        for _ in &plan.stages {
            match parts.options.dialect {
                Dialect::Classic => {
                    let (sender, queue) = mpsc::channel(STAGE_QUEUE);
                    queues.push(queue);
                    reporters.push(Reporter::new(sender, Dialect::Classic));
                }
                Dialect::BuildKit => reporters.push(Reporter::new(parts.events.clone(), Dialect::BuildKit)),
            }
        }
        let build = Build {
            cells: plan.stages.iter().map(|_| OnceCell::new()).collect(),
            store: parts.store,
            options: parts.options,
            runner: parts.runner,
            inputs: parts.inputs,
            plan,
            scratch: parts.scratch,
            names,
            base: OnceLock::new(),
            vertexes: Arc::default(),
            reporters,
            contexts: Mutex::default(),
            failures: std::sync::Mutex::default(),
            failed_at: std::sync::Mutex::default(),
        };
        (build, queues)
    }

    /// The result of a stage, which is built by whoever asks first. Boxed: a stage may wait for another stage.
    pub fn outcome<'a>(self: &'a Arc<Self>, number: usize) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let Some(cell) = self.cells.get(number) else { return Outcome::Failed };
            cell.get_or_init(|| self.build(number)).await.clone()
        })
    }

    async fn build(self: &Arc<Self>, number: usize) -> Outcome {
        match build_stage(self, number, self.reporters[number].clone()).await {
            Ok(image) => Outcome::Image(image),
            Err(error) => {
                if let Some(error) = error {
                    crate::store::blobs::lock(&self.failures).insert(number, error);
                }
                Outcome::Failed
            }
        }
    }

    /// Nothing more is told of a stage.
    fn close(&self, number: usize) {
        self.reporters[number].close();
    }

    fn failed(&self, number: usize) -> bool {
        matches!(self.cells[number].get(), Some(Outcome::Failed))
    }

    /// An instruction of a stage, at these lines, failed.
    pub fn failed_at(&self, stage: usize, lines: (usize, usize)) {
        crate::store::blobs::lock(&self.failed_at).insert(stage, lines);
    }

    fn first_failure(&self) -> Option<(Error, Option<(usize, usize)>)> {
        let (stage, error) = crate::store::blobs::lock(&self.failures).pop_first()?;
        Some((error, crate::store::blobs::lock(&self.failed_at).get(&stage).copied()))
    }

    /// The directory of a context, fetched once. The empty name is the main context.
    pub async fn context(&self, name: &str) -> Result<PathBuf> {
        let cell = self.contexts.lock().await.entry(name.to_owned()).or_default().clone();
        let fetch = || self.inputs.context(name, &self.scratch);
        cell.get_or_try_init(fetch).await.cloned()
    }
}

fn unused_arguments(options: &BuildOptions, declared: &BTreeSet<String>) -> Option<String> {
    let unused: Vec<&str> = options
        .build_args
        .keys()
        .filter(|name| !declared.contains(*name) && !evaluate::is_predefined(name))
        .map(String::as_str)
        .collect();
    (!unused.is_empty()).then(|| format!("[Warning] One or more build-args [{}] were not consumed\n", unused.join(" ")))
}
