//! The runs of a container: one start within its time, what waits for its end, and how the end is cleared.

use std::sync::Arc;
use std::time::Duration;

use api::container::{Container, ContainerStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use runtime::ExitRecord;
use tokio_util::sync::CancellationToken;

use super::{Driver, EXIT_UNKNOWN, Input, now_ns, time};
use crate::container::handle::Handle;
use crate::container::late::Late;
use crate::container::places::{self, Places, Taken};
use crate::container::start::{self, Running};
use crate::container::step::Event;
use crate::container::{complete, health};
use crate::context::Context;
use crate::error::{Error, Result, chain};

/// Exit code of a container that was ended without its shim: that of SIGKILL.
const EXIT_KILLED: i32 = 137;
/// Exit code of a start that failed for reasons other than the program. Source: moby `exitcode`.
const EXIT_START_FAILED: i64 = 128;
/// How long one start may take.
const START_TIMEOUT: Duration = Duration::from_secs(180);

impl Driver {
    pub(super) async fn start(&mut self) -> Event {
        self.status.observed_start = self.machine.observed_start;
        self.status.restart_count = self.machine.restart_count;
        self.bounds = self.object.spec.resources.clone();
        match self.attempt().await {
            Ok(Running { pid, networks, ports, volume_paths }) => {
                let log_path = self.context.container_dir(&self.id).join(start::LOG_FILE);
                self.status = ContainerStatus {
                    pid: pid.into(),
                    networks,
                    ports,
                    volume_paths,
                    log_path: log_path.display().to_string(),
                    started_at: Some(MicroTime(Timestamp::now())),
                    observed_start: self.machine.observed_start,
                    restart_count: self.machine.restart_count,
                    finished_at: self.status.finished_at.clone(),
                    health: if health::wanted(&self.object.spec).is_some() { "starting".into() } else { String::new() },
                    ..ContainerStatus::default()
                };
                self.watch_run();
                Event::Started
            }
            Err(error) => {
                self.status.exit_code = match error {
                    Error::CannotStart { code, .. } => code.into(),
                    _ => EXIT_START_FAILED,
                };
                self.status.error = chain(&error);
                self.handle.disconnect(true);
                Event::StartFailed
            }
        }
    }

    /// One start within its time. What is late may still mount something, which is cleared then.
    async fn attempt(&mut self) -> Result<Running> {
        let (context, object, handle) = (self.context.clone(), self.object.clone(), self.handle.clone());
        let work = |given_up: CancellationToken| async move {
            let stop = context.stop.clone();
            let start = async {
                let complete = given_up.run_until_cancelled(complete::complete(&context, &object)).await;
                let object = complete.unwrap_or(Err(Error::Timeout("the start")))?;
                start::start(&context, &object, &handle.id, &handle, &given_up).await
            };
            stop.run_until_cancelled(start).await.unwrap_or(Err(Error::Timeout("the start")))
        };
        let (context, id) = (self.context.clone(), self.id.clone());
        let clear = move || async move { clear_late(&context, &id, false).await };
        self.late.within(START_TIMEOUT, work, clear).await.unwrap_or(Err(Error::Timeout("the start")))
    }

    /// Waits for the exit, and checks health.
    pub(super) fn watch_run(&mut self) {
        let (context, id, sender) = (self.context.clone(), self.id.clone(), self.sender.clone());
        self.helpers.push(tokio::spawn(async move {
            let exit = context.runtime.wait_record(&id).await.unwrap_or_else(|error| {
                tracing::warn!(id, error = %chain(&error), "lost sight of the container");
                ExitRecord { code: EXIT_UNKNOWN, out_of_memory: false, finished_at_ns: now_ns() }
            });
            let _ = sender.send(Input::Exited(exit)).await;
        }));
        if let Some(check) = health::wanted(&self.object.spec) {
            let (context, id, sender) = (self.context.clone(), self.id.clone(), self.sender.clone());
            self.helpers.push(tokio::spawn(async move { health::run(&context, &id, &check, sender).await }));
        }
    }

    pub(super) fn stop_helpers(&mut self) {
        self.helpers.drain(..).for_each(|helper| helper.abort());
    }

    pub(super) fn exited(&mut self, exit: ExitRecord) -> Event {
        self.status.exit_code = exit.code.into();
        self.status.oom_killed = exit.out_of_memory;
        self.status.finished_at = time(exit.finished_at_ns);
        self.status.pid = 0;
        self.status.ports.clear();
        self.status.error = self.handle.take_reason();
        Event::Exited { code: exit.code }
    }

    pub(super) async fn end_run(&mut self) {
        self.stop_helpers();
        self.handle.disconnect(false);
        start::end_run(&self.context, &self.id).await;
    }

    pub(super) async fn end_run_and_report(&mut self, last: bool) {
        self.stop_helpers();
        self.handle.disconnect(false);
        let (context, id) = (self.context.clone(), self.id.clone());
        let tell = async {
            if !(last && self.report_last().await) {
                self.report().await;
            }
        };
        tokio::join!(start::end_run(&context, &id), tell);
    }

    /// Ends the run though its shim, which may hang, does not say that it ended. When that fails, it is tried again.
    pub(super) async fn end_without_shim(&mut self) -> Option<Event> {
        tracing::warn!(id = self.id, "the end of the container is not seen; ending it without its shim");
        if let Err(error) = self.context.runtime.delete(&self.id).await {
            tracing::warn!(id = self.id, error = %chain(&error), "cannot end the container without its shim");
            return None;
        }
        // Who waits for its exit may have to wait for the shim.
        self.stop_helpers();
        Some(self.exited(ExitRecord { code: EXIT_KILLED, out_of_memory: false, finished_at_ns: now_ns() }))
    }
}

/// Clears what a start made after it was given up; all of it, when the container is removed.
pub(super) async fn clear_late(context: &Context, id: &str, removed: bool) {
    tracing::debug!(id, "clearing what came of a start that was given up");
    start::end_run(context, id).await;
    if removed {
        start::remove(context, id).await;
    }
}

/// Leaves the place of a container that is gone, for the next one of its name if that has come. First a start that was given up has to
/// end, and is cleared: what it mounts, writes and removes is found by the name, and would be the next one's.
pub(super) async fn leave<C: Future<Output = ()>>(
    places: &Places,
    handle: &Arc<Handle>,
    object: &Container,
    late: Late,
    clear: impl FnOnce() -> C,
) -> Option<Taken> {
    late.ended(clear).await;
    places::leave(places, handle, object)
}

#[cfg(test)]
mod tests {
    use api::container::ContainerSpec;
    use tokio::sync::oneshot;

    use super::*;

    const SHORT: Duration = Duration::from_millis(10);
    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    fn container(uid: &str) -> Arc<Container> {
        let mut object = Container::new("c", ContainerSpec::default());
        object.metadata.namespace = Some("n".into());
        object.metadata.uid = Some(uid.into());
        Arc::new(object)
    }

    #[tokio::test]
    async fn the_next_of_a_name_has_its_place_once_a_late_start_is_cleared() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("hosts");
        let (places, mut late) = (Places::default(), Late::default());
        let first = places::arrive(&places, "id", container("1"), false).unwrap();
        let (open, opened) = oneshot::channel::<()>();
        let late_file = file.clone();
        let work = |_: CancellationToken| async move {
            let _ = opened.await;
            std::fs::write(late_file, "the first one's").unwrap();
        };
        assert!(late.within(SHORT, work, || async {}).await.is_none());
        let clear = || async { std::fs::remove_file(&file).unwrap() };
        let mut left = Box::pin(leave(&places, &first.handle, &first.object, late, clear));
        assert!(places::arrive(&places, "id", container("2"), false).is_none());
        assert!(tokio::time::timeout(SHORT, &mut left).await.is_err(), "the place was left too early");
        open.send(()).unwrap();
        let second = tokio::time::timeout(LONG, left).await.unwrap().expect("nobody follows");
        assert_eq!(second.object.metadata.uid.as_deref(), Some("2"));
        assert!(!file.exists(), "it was not cleared before");
    }
}
