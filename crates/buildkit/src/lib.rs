//! BuildKit's protocol, as `docker buildx`, Compose 2 and `DOCKER_BUILDKIT=1` speak it: sessions, the control API and the
//! gateway, over gRPC on connections that the Docker API hands over. The Dockerfile frontend is evaluated by the `image`
//! crate itself: no frontend image is ever pulled or run, and of graphs of BuildKit's low-level language only those are taken
//! that stand for a result of ours.
//! Must never know HTTP routes, containers or kinds.
//!
//! | module | what it owns |
//! |---|---|
//! | `server` | gRPC on a connection that was handed over |
//! | `session` | what clients offer: files, secrets, credentials, agents |
//! | `receive`, `send` | fsutil's copy protocol, both ways |
//! | `remote` | contexts from URLs, and archives that clients send |
//! | `control`, `gateway` | the two services |
//! | `build` | one build: its steps as clients see them, its result |
//! | `frontend` | from BuildKit's attributes to a build of the `image` crate |
//! | `subrequest` | what a Dockerfile says of itself: its targets, what they take |
//! | `source` | errors with the lines of the Dockerfile that they are about |
//! | `linked` | results that clients give to other builds |
//! | `export` | where results go |
//! | `wire` | messages |

mod build;
mod control;
mod export;
mod frontend;
mod gateway;
mod ignore;
mod linked;
mod receive;
mod remote;
mod send;
mod server;
mod session;
mod source;
mod ssh;
mod subrequest;
mod wire;

use std::sync::Arc;

use image::ImageStore;
use image::build::StepRunner;

use crate::build::Builds;
use crate::session::Sessions;

pub use crate::control::Build;
pub use crate::session::SessionInfo;

/// What the protocol works with.
pub struct Options {
    /// Where images are.
    pub store: Arc<ImageStore>,
    /// Runs the RUN steps.
    pub runner: Arc<dyn StepRunner>,
    /// Whether builds may use the machine's own network and reach its addresses.
    pub host_network: bool,
}

/// Told of every name that a build gives: id and name.
pub type Tagged = Box<dyn Fn(&str, &str) + Send + Sync>;

/// The protocol's server. One for each endpoint: clients of one never see another's sessions or builds.
pub struct BuildKit {
    options: Options,
    sessions: Sessions,
    builds: Builds,
    tagged: std::sync::OnceLock<Tagged>,
}

impl BuildKit {
    /// A server.
    pub fn new(options: Options) -> Arc<BuildKit> {
        Arc::new(BuildKit {
            options,
            sessions: Sessions::default(),
            builds: Builds::default(),
            tagged: std::sync::OnceLock::new(),
        })
    }

    /// From now on tells of every name that a build gives. Only the first listener counts.
    pub fn on_tag(&self, told: Tagged) {
        let _ = self.tagged.set(told);
    }
}
