//! One build: its steps as clients see them, what it refers to, and how it ended. Finished builds are kept for a while,
//! because clients ask for the steps over another call than the one that builds.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::Stream;
use image::Digest;
use image::build::{BuildEvent, StepEvent};
use tokio::sync::{Notify, oneshot};
use tonic::{Code, Status};

use crate::wire::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use crate::wire::gateway::ReturnRequest;
use crate::wire::google::Timestamp;

/// Builds that are remembered after their end.
const MAX_FINISHED: usize = 100;
/// Builds of one endpoint at once.
const MAX_BUILDS: usize = 1_000;
/// Bytes of output that are kept of one build; what comes after is not shown.
const MAX_OUTPUT: usize = 16 << 20;
/// Messages that are kept of one build.
const MAX_MESSAGES: usize = 200_000;
/// How long a client's other calls may come before the build itself.
const ARRIVAL: Duration = Duration::from_secs(30);

/// The builds of an endpoint.
#[derive(Default)]
pub struct Builds {
    all: Mutex<Table>,
    changed: Notify,
}

#[derive(Default)]
struct Table {
    by_reference: HashMap<String, Arc<Running>>,
    finished: VecDeque<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time now.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0) }
}

impl Builds {
    /// Enters a new build.
    pub fn begin(&self, reference: &str, session: &str) -> Result<Arc<Running>, Status> {
        let mut table = lock(&self.all);
        if table.by_reference.contains_key(reference) {
            return Err(Status::new(Code::AlreadyExists, format!("job ID {reference} exists already")));
        }
        if table.by_reference.len() >= MAX_BUILDS + MAX_FINISHED {
            return Err(Status::new(Code::ResourceExhausted, "too many builds at once"));
        }
        let running = Arc::new(Running::new(reference, session));
        table.by_reference.insert(reference.to_owned(), running.clone());
        drop(table);
        self.changed.notify_waiters();
        Ok(running)
    }

    /// A build, for which it waits a while.
    pub async fn get(&self, reference: &str) -> Result<Arc<Running>, Status> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(running) = lock(&self.all).by_reference.get(reference) {
                    return running.clone();
                }
                changed.await;
            }
        };
        let missing = |_| Status::new(Code::NotFound, format!("no such job {reference}"));
        tokio::time::timeout(ARRIVAL, wait).await.map_err(missing)
    }

    /// All builds, the running ones too.
    pub fn list(&self) -> Vec<Arc<Running>> {
        lock(&self.all).by_reference.values().cloned().collect()
    }

    /// A build has ended: it is forgotten when enough others have.
    pub fn end(&self, running: &Running) {
        running.close();
        let mut table = lock(&self.all);
        table.finished.push_back(running.reference.clone());
        while table.finished.len() > MAX_FINISHED {
            if let Some(old) = table.finished.pop_front() {
                table.by_reference.remove(&old);
            }
        }
    }
}

/// One build.
pub struct Running {
    pub reference: String,
    /// The session whose files it builds.
    pub session: String,
    pub began: Timestamp,
    log: Mutex<Log>,
    changed: Notify,
    /// Images by the names under which the client knows them.
    results: Mutex<HashMap<String, Digest>>,
    /// Where the client's answer goes when it evaluates the build itself. Both ends are there from the beginning: the answer
    /// may come as soon as others see the build.
    returned: Mutex<Option<oneshot::Sender<ReturnRequest>>>,
    expected: Mutex<Option<oneshot::Receiver<ReturnRequest>>>,
    /// What the client is told at the end.
    pub response: Mutex<HashMap<String, String>>,
}

#[derive(Default)]
struct Log {
    messages: Vec<Arc<StatusResponse>>,
    output: usize,
    names: HashMap<String, Vertex>,
    done: Option<Timestamp>,
    steps: usize,
}

impl Running {
    fn new(reference: &str, session: &str) -> Running {
        let (sender, receiver) = oneshot::channel();
        Running {
            reference: reference.to_owned(),
            session: session.to_owned(),
            began: now(),
            log: Mutex::default(),
            changed: Notify::new(),
            results: Mutex::default(),
            returned: Mutex::new(Some(sender)),
            expected: Mutex::new(Some(receiver)),
            response: Mutex::default(),
        }
    }

    /// Waits for the client to say how the build that it evaluates itself ended.
    ///
    /// Errors: it is waited for already.
    pub async fn client_return(&self) -> Result<ReturnRequest, Status> {
        let cancelled = || Status::new(Code::Cancelled, "context canceled");
        let receiver = lock(&self.expected).take().ok_or_else(cancelled)?;
        receiver.await.map_err(|_| cancelled())
    }

    /// The client has said it.
    ///
    /// Errors: it has said so before; the build has ended.
    pub fn give_back(&self, answer: ReturnRequest) -> Result<(), Status> {
        let ended = || Status::new(Code::Cancelled, "the build has ended");
        let sender = lock(&self.returned).take();
        let sender = sender.ok_or_else(|| match self.ended() {
            Some(_) => ended(),
            None => Status::new(Code::FailedPrecondition, "the build has returned already"),
        })?;
        sender.send(answer).map_err(|_| ended())
    }

    /// Remembers an image under a new name.
    pub fn keep(&self, image: &Digest) -> String {
        let name = format!("{:032x}", rand::random::<u128>());
        lock(&self.results).insert(name.clone(), image.clone());
        name
    }

    /// The image of a name.
    pub fn image(&self, name: &str) -> Option<Digest> {
        lock(&self.results).get(name).cloned()
    }

    fn push(&self, message: StatusResponse) {
        let mut log = lock(&self.log);
        if log.messages.len() < MAX_MESSAGES {
            log.messages.push(Arc::new(message));
        }
        drop(log);
        self.changed.notify_waiters();
    }

    /// When it ended.
    pub fn ended(&self) -> Option<Timestamp> {
        lock(&self.log).done
    }

    fn close(&self) {
        let mut log = lock(&self.log);
        let open: Vec<Vertex> = log.names.drain().map(|(_, vertex)| vertex).collect();
        log.done.get_or_insert_with(now);
        drop(log);
        // Nobody takes an answer from here on.
        lock(&self.returned).take();
        // Steps that were cut off are shown as such.
        for mut vertex in open {
            vertex.completed = Some(now());
            vertex.error = "context canceled".to_owned();
            self.push(StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() });
        }
        self.changed.notify_waiters();
    }

    fn digest(&self, step: &str) -> String {
        Digest::of(format!("{}\0{step}", self.reference).as_bytes()).to_string()
    }

    /// A step of the protocol's own begins; its digest.
    pub fn begin_step(&self, name: &str) -> String {
        let number = {
            let mut log = lock(&self.log);
            log.steps += 1;
            log.steps
        };
        let digest = self.digest(&format!("own {number}"));
        self.started(digest.clone(), name, Vec::new());
        digest
    }

    fn started(&self, digest: String, name: &str, inputs: Vec<String>) {
        let vertex =
            Vertex { digest: digest.clone(), inputs, name: name.to_owned(), started: Some(now()), ..Vertex::default() };
        lock(&self.log).names.insert(digest, vertex.clone());
        self.push(StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() });
    }

    /// A step has ended.
    pub fn end_step(&self, digest: &str, cached: bool, error: Option<&str>) {
        let Some(mut vertex) = lock(&self.log).names.remove(digest) else { return };
        vertex.completed = Some(now());
        vertex.cached = cached;
        vertex.error = error.unwrap_or_default().to_owned();
        self.push(StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() });
    }

    /// Something within a step has ended: `transferring context`, `naming to …`.
    pub fn progress(&self, digest: &str, id: &str, bytes: i64) {
        let time = Some(now());
        let status = VertexStatus {
            id: id.to_owned(),
            vertex: digest.to_owned(),
            name: id.to_owned(),
            current: bytes,
            timestamp: time,
            started: time,
            completed: time,
            ..VertexStatus::default()
        };
        self.push(StatusResponse { statuses: vec![status], ..StatusResponse::default() });
    }

    /// Something that the user should know.
    pub fn warn(&self, digest: &str, text: &str) {
        let warning = VertexWarning {
            vertex: digest.to_owned(),
            level: 1,
            short: text.as_bytes().to_vec(),
            ..VertexWarning::default()
        };
        self.push(StatusResponse { warnings: vec![warning], ..StatusResponse::default() });
    }

    /// Takes what the builder says, in the run of one evaluation.
    pub fn event(&self, evaluation: &str, event: BuildEvent) {
        let digest = |step: usize| self.digest(&format!("{evaluation} {step}"));
        match event {
            BuildEvent::Step(StepEvent::Started { step, name, inputs }) => {
                self.started(digest(step), &name, inputs.into_iter().map(digest).collect());
            }
            BuildEvent::Step(StepEvent::Output { step, stream, data }) => {
                let mut log = lock(&self.log);
                log.output += data.len();
                if log.output > MAX_OUTPUT {
                    return;
                }
                drop(log);
                let entry = VertexLog {
                    vertex: digest(step),
                    timestamp: Some(now()),
                    stream: i64::from(stream),
                    message: data.to_vec(),
                };
                self.push(StatusResponse { logs: vec![entry], ..StatusResponse::default() });
            }
            BuildEvent::Step(StepEvent::Ended { step, cached, error }) => {
                self.end_step(&digest(step), cached, error.as_deref());
            }
            BuildEvent::Step(StepEvent::Warning { text }) => self.warn("", &text),
            BuildEvent::Step(StepEvent::FailedAt { .. })
            | BuildEvent::Stream(_)
            | BuildEvent::Pull(_)
            | BuildEvent::Built(_) => {}
        }
    }

    /// All that was and will be told, to the end of the build.
    pub fn messages(self: Arc<Self>) -> impl Stream<Item = Result<StatusResponse, Status>> + Send {
        futures::stream::unfold((self, 0_usize), |(running, at)| async move {
            loop {
                let changed = running.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let (next, done) = {
                    let log = lock(&running.log);
                    (log.messages.get(at).cloned(), log.done.is_some())
                };
                if let Some(message) = next {
                    return Some((Ok(StatusResponse::clone(&message)), (running.clone(), at + 1)));
                }
                if done {
                    return None;
                }
                changed.await;
            }
        })
    }
}

/// Ends a build when the call that runs it goes away, however it goes.
pub struct Ending<'a> {
    pub builds: &'a Builds,
    pub running: Arc<Running>,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.builds.end(&self.running);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_may_come_before_it_is_waited_for_and_comes_once() {
        let builds = Builds::default();
        let running = builds.begin("build", "session").unwrap();
        // Clients that only ask what we can do answer at once, on a connection of their own.
        running.give_back(ReturnRequest::default()).unwrap();
        assert_eq!(running.give_back(ReturnRequest::default()).unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(running.client_return().await.unwrap(), ReturnRequest::default());
        assert_eq!(running.client_return().await.unwrap_err().code(), Code::Cancelled);
    }

    #[tokio::test]
    async fn an_answer_to_a_build_that_has_ended_is_refused() {
        let builds = Builds::default();
        let never_waited = builds.begin("other", "session").unwrap();
        builds.end(&never_waited);
        assert_eq!(never_waited.give_back(ReturnRequest::default()).unwrap_err().code(), Code::Cancelled);
        let running = builds.begin("build", "session").unwrap();
        let waiting = running.client_return();
        assert!(tokio::time::timeout(Duration::from_millis(1), waiting).await.is_err());
        // Its call went away, and the end of the build with it is yet to come.
        assert_eq!(running.give_back(ReturnRequest::default()).unwrap_err().code(), Code::Cancelled);
    }
}
