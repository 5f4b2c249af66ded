//! One image, `busybox:latest`, and nothing else.

use async_trait::async_trait;
use docker::Images;
use image::build::{BuildEvent, BuildOptions};
use image::*;
use tokio::sync::mpsc;

pub struct FakeImages;

fn busybox() -> ImageRecord {
    let mut config = ImageConfig { architecture: "amd64".into(), os: "linux".into(), ..ImageConfig::default() };
    config.config.cmd = Some(vec!["sleep".into()]);
    config.config.env = vec!["PATH=/bin".into()];
    ImageRecord {
        id: Digest::of(b"busybox"),
        references: vec!["busybox:latest".into()],
        digests: Vec::new(),
        config,
        size_bytes: 1_000_000,
        created_ns: 0,
        layers: Vec::new(),
        parent: None,
        last_tagged_ns: 0,
    }
}

fn none<T>() -> Result<T> {
    Err(Error::NotSupported("not here".into()))
}

#[async_trait]
impl Images for FakeImages {
    async fn get(&self, name: &str) -> Result<ImageRecord> {
        let image = busybox();
        let id = image.id.to_string();
        if matches!(name, "busybox" | "busybox:latest") || name == id || id["sha256:".len()..].starts_with(name) {
            return Ok(image);
        }
        Err(Error::NotFound(format!("no such image: {name}")))
    }
    async fn list(&self, _filter: &ListFilter) -> Result<Vec<ImageSummary>> {
        let ImageRecord { id, references, digests, size_bytes, created_ns, parent, .. } = busybox();
        Ok(vec![ImageSummary { id, references, digests, labels: Default::default(), size_bytes, created_ns, parent }])
    }
    async fn tag(&self, _source: &str, _target: &str) -> Result<()> {
        Ok(())
    }
    async fn remove(&self, _name: &str, _options: &RemoveOptions) -> Result<Vec<Removal>> {
        Ok(vec![Removal::Untagged("busybox:latest".into())])
    }
    async fn prune(&self, _filter: &ListFilter, _users: &[ImageUser]) -> Result<(Vec<Removal>, u64)> {
        Ok((Vec::new(), 0))
    }
    async fn history(&self, _name: &str) -> Result<Vec<HistoryEntry>> {
        Ok(Vec::new())
    }
    async fn load(&self, _archive: ByteStream, _progress: &Progress) -> Result<Vec<Loaded>> {
        none()
    }
    async fn save(&self, _names: &[String]) -> Result<ByteStream> {
        none()
    }
    async fn import(&self, _archive: ByteStream, _options: ImportOptions) -> Result<String> {
        none()
    }
    async fn commit(&self, _layer: ByteStream, _options: CommitOptions) -> Result<String> {
        Ok(Digest::of(b"commit").to_string())
    }
    async fn pull(&self, reference: &Reference, _options: &PullOptions, progress: &Progress) -> Result<Pulled> {
        if reference.repository != "library/pullme" {
            return Err(Error::NotFound("manifest unknown".into()));
        }
        progress.status("latest", "Pulling from library/pullme").await;
        progress.figure("0123456789ab", "Downloading", 5, 10);
        Ok(Pulled { id: Digest::of(b"pullme"), digest: Digest::of(b"manifest"), up_to_date: false })
    }
    async fn push(&self, _reference: &Reference, _c: Option<&Credentials>, _progress: &Progress) -> Result<Pushed> {
        Ok(Pushed { tag: "latest".into(), digest: Digest::of(b"manifest"), size_bytes: 7 })
    }
    async fn describe_remote(&self, _: &Reference, _: Option<&Credentials>) -> Result<RemoteImage> {
        none()
    }
    async fn search(&self, _: &str, _: Option<&Credentials>) -> Result<Vec<Found>> {
        none()
    }
    async fn login(&self, _registry: &str, _credentials: &Credentials) -> Result<()> {
        Ok(())
    }
    async fn build(
        &self,
        mut context: ByteStream,
        options: BuildOptions,
        events: mpsc::Sender<BuildEvent>,
    ) -> Result<String> {
        use futures::StreamExt;
        while context.next().await.is_some() {}
        let _ = events.send(BuildEvent::Stream("Step 1/2 : FROM scratch\n".into())).await;
        if options.build_args.contains_key("FAIL") {
            return Err(Error::StepFailed { command: "/bin/sh -c false".into(), code: 3 });
        }
        let _ = events.send(BuildEvent::Built(Digest::of(b"built"))).await;
        let _ = events.send(BuildEvent::Stream("Successfully tagged mine:latest\n".into())).await;
        Ok(Digest::of(b"built").to_string())
    }
}

/// No RUN steps here.
pub struct NoSteps;

#[async_trait]
impl image::build::StepRunner for NoSteps {
    async fn run(
        &self,
        _step: image::build::RunStep,
        _output: mpsc::Sender<image::build::StepOutput>,
    ) -> std::result::Result<i32, String> {
        Err("no steps here".into())
    }
}
