//! The steps that write files: RUN, COPY, ADD, WORKDIR.

use std::os::fd::AsFd;

use tokio::sync::mpsc;

use crate::build::copy;
use crate::build::evaluate::{Action, nop};
use crate::build::files::CHOWN_REFUSED;
use crate::build::parse::CopySpec;
use crate::build::report::StepEvent;
use crate::build::stage::{Stage, StageResult};
use crate::build::work::Work;
use crate::build::{ContextSource, RunStep, StepOutput, mounts};
use crate::error::{Error, Result};
use crate::layer::tree;

/// Pieces of a command's output that wait to be read.
const OUTPUT_QUEUE: usize = 64;

impl Stage<'_> {
    /// Mounts a writable snapshot of the stage as it is now.
    async fn work(&self) -> Result<Work> {
        Work::mount(&self.build.store, self.image.as_ref(), &self.build.scratch, false).await
    }

    async fn say_running(&self, work: &Work, verb: &str) {
        self.report.say(format!(" ---> {verb} {}\n", &work.id[..12])).await;
    }

    pub async fn make_directory(&mut self, comment: &str, path: String) -> Result<()> {
        // Docker has one space here, and two for all other instructions that run nothing.
        let classic = nop(&self.state, comment).replacen("#(nop)  ", "#(nop) ", 1);
        let (by, key) = self.labels(classic, comment, &[]);
        if self.take_cached(&by, &key).await? {
            return Ok(());
        }
        let work = self.work().await?;
        self.say_running(&work, "Running in").await;
        let root = work.snapshot.rootfs.clone();
        tokio::task::spawn_blocking(move || -> Result<()> {
            let root = tree::open_root(&root)?;
            let parts = tree::components(path.as_bytes())?;
            tree::make_directories(root.as_fd(), &parts).map(drop)
        })
        .await??;
        self.say_running(&work, "Removed intermediate container").await;
        self.commit(&by, &key, Some(work)).await
    }

    pub async fn run(&mut self, action: Action) -> StageResult<()> {
        let Action::Run { created_by, command, environment, mounts, network, insecure } = action else {
            return Ok(());
        };
        if insecure {
            return Err(Some(Error::NotSupported("security.insecure is not allowed".to_owned())));
        }
        let working_directory = match self.state.config.working_dir.as_str() {
            "" => "/".to_owned(),
            path => path.to_owned(),
        };
        let prepared = mounts::prepare(self, &mounts, &working_directory).await?;
        let modern = format!("RUN {created_by}");
        let network = network.filter(|n| n != "default").unwrap_or_else(|| self.build.options.network.clone());
        let described = format!("{mounts:?}");
        let environment_key = environment.join("\0");
        let inputs =
            [&environment_key, &working_directory, &self.state.config.user, &network, &described, &prepared.key];
        let (by, key) = self.labels(created_by, &modern, &inputs.map(String::as_str));
        if self.take_cached(&by, &key).await.map_err(Some)? {
            return prepared.remove().await.map_err(Some);
        }
        let work = self.work().await.map_err(Some)?;
        self.say_running(&work, "Running in").await;
        let options = &self.build.options;
        let mut environment = environment;
        environment.extend(prepared.environment.iter().cloned());
        let step = RunStep {
            id: work.id.clone(),
            rootfs: work.snapshot.rootfs.clone(),
            command: command.clone(),
            environment,
            working_directory,
            user: self.state.config.user.clone(),
            network,
            extra_hosts: options.extra_hosts.clone(),
            bounds: options.bounds.clone(),
            mounts: prepared.mounts.clone(),
        };
        let code = self.watch(step).await.map_err(Some)?;
        prepared.remove_stubs(&work).await.map_err(Some)?;
        prepared.remove().await.map_err(Some)?;
        self.say_running(&work, "Removed intermediate container").await;
        if code != 0 {
            let command = command.join(" ");
            return Err(Some(if self.classic() {
                Error::StepFailed { command, code }
            } else {
                let why = format!("process \"{command}\" did not complete successfully: exit code: {code}");
                Error::Invalid(why)
            }));
        }
        self.commit(&by, &key, Some(work)).await.map_err(Some)
    }

    /// Runs a command and tells what it prints.
    async fn watch(&self, step: RunStep) -> Result<i32> {
        let (output, mut received) = mpsc::channel::<StepOutput>(OUTPUT_QUEUE);
        let forward = async {
            while let Some(piece) = received.recv().await {
                if self.classic() {
                    self.report.say(String::from_utf8_lossy(&piece.data)).await;
                } else {
                    let stream = if piece.error { 2 } else { 1 };
                    self.report.step(StepEvent::Output { step: self.vertex, stream, data: piece.data }).await;
                }
            }
        };
        let (code, ()) = tokio::join!(self.build.runner.run(step, output), forward);
        code.map_err(Error::Invalid)
    }

    pub async fn copy(&mut self, spec: CopySpec) -> StageResult<()> {
        let verb = if spec.add { "ADD" } else { "COPY" };
        let classic = self.classic();
        let wrap = move |error: Error| match error {
            // Docker says of these alone that they are no failure of the copy itself.
            Error::Invalid(why)
                if classic && [copy::SEVERAL_REFUSED, CHOWN_REFUSED].iter().any(|start| why.starts_with(start)) =>
            {
                Some(Error::Invalid(why))
            }
            Error::Invalid(why) | Error::NotFound(why) if classic => {
                Some(Error::Invalid(format!("{verb} failed: {why}")))
            }
            Error::Invalid(why) | Error::NotFound(why) => {
                Some(Error::Invalid(format!("failed to compute cache key: {why}")))
            }
            other => Some(other),
        };
        // What to copy from: the context, or a stage's or image's file system.
        let named = spec.from.as_ref().map(|name| (name, self.build.options.contexts.get(&name.to_ascii_lowercase())));
        let (mounted, root) = match named {
            None if spec.needs_context() => (None, self.build.context("").await.map_err(Some)?),
            None => (None, self.build.scratch.clone()),
            Some((name, Some(ContextSource::Local))) => {
                (None, self.build.context(&name.to_ascii_lowercase()).await.map_err(Some)?)
            }
            Some((name, _)) => {
                let image = self.source_image(name).await?;
                let mounted = Work::mount(&self.build.store, image.as_ref(), &self.build.scratch, true).await;
                let mounted = mounted.map_err(Some)?;
                let root = mounted.snapshot.rootfs.clone();
                (Some(mounted), root)
            }
        };
        let fetched = super::fetch::all(self.build, &spec).await.map_err(wrap)?;
        let (spec, plan) = tokio::task::spawn_blocking(move || {
            let plan = copy::plan(&root, &spec, fetched);
            plan.map(|plan| (spec, plan))
        })
        .await
        .map_err(|error| Some(error.into()))?
        .map_err(wrap)?;
        let directory = self.state.config.working_dir.clone();
        let classic_by = format!(
            "{} #(nop) {verb} {}{} in {} ",
            self.state.shell().join(" "),
            copy::flags(&spec),
            plan.hash,
            spec.destination
        );
        let sources = copy::shown_sources(&spec);
        let modern = format!("{verb} {}{sources} {}", copy::flags(&spec), spec.destination);
        let (by, key) = self.labels(classic_by, &modern, &[&plan.hash, &directory, &copy::hidden_flags(&spec)]);
        if !self.take_cached(&by, &key).await.map_err(Some)? {
            let work = self.work().await.map_err(Some)?;
            let (root, limits) = (work.snapshot.rootfs.clone(), self.build.store.options.limits);
            tokio::task::spawn_blocking(move || copy::execute(&plan, &spec, &root, &directory, limits))
                .await
                .map_err(|error| Some(error.into()))?
                .map_err(wrap)?;
            self.commit(&by, &key, Some(work)).await.map_err(Some)?;
        }
        match mounted {
            Some(mounted) => mounted.remove().await.map_err(Some),
            None => Ok(()),
        }
    }
}
