//! How a stage tells what it does: the classic builder's text, or BuildKit's steps.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::build::BuildEvent;
use crate::build::flags::Dialect;

/// What happens to a step, for clients that show steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepEvent {
    /// It began.
    Started {
        /// Unique in the build.
        step: usize,
        /// As it is shown: `[build 2/4] RUN make`.
        name: String,
        /// Steps that it builds on.
        inputs: Vec<usize>,
    },
    /// It said something.
    Output {
        /// Which.
        step: usize,
        /// 1 standard output, 2 standard error.
        stream: u8,
        /// What.
        data: Bytes,
    },
    /// It ended.
    Ended {
        /// Which.
        step: usize,
        /// Whether the cache had it.
        cached: bool,
        /// Why it failed.
        error: Option<String>,
    },
    /// The build failed at these lines of the Dockerfile, the first and the last of an instruction, from 1.
    FailedAt {
        /// Which.
        lines: (usize, usize),
    },
    /// Something a user should know.
    Warning {
        /// What.
        text: String,
    },
}

/// Tells events of one stage.
#[derive(Clone)]
pub(super) struct Reporter {
    sender: Arc<std::sync::Mutex<Option<mpsc::Sender<BuildEvent>>>>,
    pub dialect: Dialect,
}

impl Reporter {
    pub fn new(sender: mpsc::Sender<BuildEvent>, dialect: Dialect) -> Reporter {
        Reporter { sender: Arc::new(std::sync::Mutex::new(Some(sender))), dialect }
    }

    pub fn classic(&self) -> bool {
        self.dialect == Dialect::Classic
    }

    /// Sends an event. When nobody reads any more, the build is dropped by its caller, not from here.
    pub async fn event(&self, event: BuildEvent) {
        let sender = crate::store::blobs::lock(&self.sender).clone();
        if let Some(sender) = sender {
            let _ = sender.send(event).await;
        }
    }

    /// Says a text of the classic builder.
    pub async fn say(&self, text: impl Into<String>) {
        if self.classic() {
            self.event(BuildEvent::Stream(text.into())).await;
        }
    }

    /// Tells about a step of BuildKit.
    pub async fn step(&self, event: StepEvent) {
        if !self.classic() {
            self.event(BuildEvent::Step(event)).await;
        }
    }

    /// The end: a reader of this stage's events sees theirs.
    pub fn close(&self) {
        crate::store::blobs::lock(&self.sender).take();
    }
}
