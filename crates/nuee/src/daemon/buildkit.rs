//! Puts the Docker API's connections and BuildKit's protocol together, which know nothing of each other.

use std::sync::Arc;

use image::ImageStore;
use image::build::StepRunner;
use tokio::sync::mpsc;

/// Messages of a build that wait for a slow client; the build waits with them.
const EVENT_QUEUE: usize = 256;

/// BuildKit behind the Docker API of this machine.
pub struct Host(Arc<buildkit::BuildKit>);

impl Host {
    /// For the machine's own endpoint, whose users may do with the machine as they like.
    pub fn start(store: Arc<ImageStore>, runner: Arc<dyn StepRunner>) -> Arc<Host> {
        Arc::new(Host(buildkit::BuildKit::new(buildkit::Options { store, runner, host_network: true })))
    }
}

impl docker::BuildKitHost for Host {
    fn serve(&self, connection: docker::Connection) {
        tokio::spawn(self.0.clone().serve(connection));
    }

    fn hold_session(&self, id: String, methods: Vec<String>, connection: docker::Connection) {
        tokio::spawn(self.0.clone().hold_session(buildkit::SessionInfo { id, methods }, connection));
    }

    fn build(&self, build: docker::SessionBuild) -> mpsc::Receiver<docker::SessionBuildEvent> {
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        let buildkit = self.0.clone();
        tokio::spawn(async move {
            let left = sender.clone();
            let told = sender.clone();
            let request = buildkit::Build {
                reference: build.reference,
                session: build.session,
                attributes: build.attributes,
                exports: build.exports,
                squash: build.squash,
                context: build.context,
            };
            let building = buildkit.build(request, |trace| {
                let told = told.clone();
                async move { drop(told.send(docker::SessionBuildEvent::Trace(trace)).await) }
            });
            tokio::select! {
                done = building => drop(sender.send(docker::SessionBuildEvent::Done(done)).await),
                () = left.closed() => {}
            }
        });
        events
    }

    fn on_tag(&self, told: buildkit::Tagged) {
        self.0.on_tag(told);
    }
}
