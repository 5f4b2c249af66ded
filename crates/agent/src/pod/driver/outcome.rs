//! What the outcomes of starts, runs, probes and hooks mean for a pod's records.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use runtime::ExitRecord;

use super::{CONFIG_RETRY, Driver, Input, LAST_WORDS_BYTES, PULL_BACKOFF};
use crate::events::Kind;
use crate::excerpt;
use crate::pod::decide::{self, Class, Life, Restart};
use crate::pod::model::{Ended, Waiting};
use crate::pod::probe;
use crate::pod::start::{Failure, Started};

impl Driver {
    pub(super) fn started(&mut self, index: usize, id: String, result: Result<Started, Failure>) {
        let now = self.context.now();
        match result {
            Ok(started) => {
                let container = self.containers[index].clone();
                self.event(Some(index), Kind::Normal, "Created", format!("Created container: {}", container.name));
                self.event(Some(index), Kind::Normal, "Started", format!("Started container {}", container.name));
                self.stop_signals[index] = started.stop_signal.unwrap_or(libc::SIGTERM);
                let hook = container.lifecycle.as_ref().and_then(|l| l.post_start.clone());
                let record = &mut self.records[index];
                record.container_id = id;
                record.image_id = started.image_id;
                record.life = Life::Running { started: container.startup_probe.is_none() && hook.is_none() };
                record.ready =
                    container.startup_probe.is_none() && container.readiness_probe.is_none() && hook.is_none();
                (record.since, record.started_at) = (now, Some(Timestamp::now()));
                (record.waiting, record.pull_failures) = (None, 0);
                self.watch_run(index);
                if let Some(handler) = hook {
                    let (target, context, sender) = (self.target(index), self.context.clone(), self.sender.clone());
                    self.helpers[index].push(tokio::spawn(async move {
                        let result = probe::hook(&context, &target, &handler).await;
                        let _ = sender.send(Input::PostStart { index, id: target.id.clone(), result }).await;
                    }));
                }
            }
            Err(Failure::Run(code, text)) => {
                self.event(Some(index), Kind::Warning, "Failed", format!("Error: {text}"));
                let record = &mut self.records[index];
                (record.container_id, record.since) = (id, now);
                let time = Some(Timestamp::now());
                let ended = Ended {
                    code,
                    reason: "StartError".into(),
                    message: text,
                    started_at: time,
                    finished_at: time,
                    container_id: record.container_id.clone(),
                };
                self.run_ended(index, ended);
            }
            Err(failure) => self.not_started(index, failure),
        }
    }

    pub(super) fn not_started(&mut self, index: usize, failure: Failure) {
        let now = self.context.now();
        let (reason, text, image) = match failure {
            Failure::Image(reason, text) => (reason, text, true),
            Failure::Config(reason, text) => (reason, text, false),
            Failure::Run(_, text) => ("RunContainerError", text, false),
        };
        if !image {
            self.event(Some(index), Kind::Warning, "Failed", format!("Error: {text}"));
        }
        let record = &mut self.records[index];
        record.life = match record.last.take() {
            // The start counted as a restart; the run before is the last one still.
            Some(last) => {
                let code = last.code;
                record.ended = Some(last);
                record.restart_count -= 1;
                Life::Exited { code }
            }
            None => Life::Fresh,
        };
        if image && reason == "ErrImagePull" {
            let pause = PULL_BACKOFF.0.saturating_mul(1 << record.pull_failures.min(8)).min(PULL_BACKOFF.1);
            record.pull_failures += 1;
            (record.not_before, record.since) = (Some(now + pause), now);
            let name = record.image.clone();
            record.waiting = Some(Waiting { reason: reason.into(), message: text });
            self.event(Some(index), Kind::Normal, "BackOff", format!("Back-off pulling image \"{name}\""));
        } else {
            record.not_before = Some(now + CONFIG_RETRY);
            record.waiting = Some(Waiting { reason: reason.into(), message: text });
        }
    }

    pub(super) fn exited(&mut self, index: usize, exit: ExitRecord, words: String) {
        let record = &self.records[index];
        let reason = match (exit.out_of_memory, exit.code) {
            (true, _) => "OOMKilled",
            (_, 0) => "Completed",
            _ => "Error",
        };
        let ended = Ended {
            code: exit.code,
            reason: reason.into(),
            message: words,
            started_at: record.started_at,
            finished_at: Timestamp::from_nanosecond(exit.finished_at_ns.into()).ok(),
            container_id: record.container_id.clone(),
        };
        self.run_ended(index, ended);
    }

    pub(super) fn run_ended(&mut self, index: usize, ended: Ended) {
        self.helpers[index].drain(..).for_each(|helper| helper.abort());
        self.set_running(index, false);
        let (now, restart) = (self.context.now(), self.restart());
        let ending = self.is_ending();
        let record = &mut self.records[index];
        // By the clock on the wall where it is known: a run may be older than this daemon.
        let ran = ended.started_at.zip(ended.finished_at).map(|(begin, end)| end.duration_since(begin));
        let ran = ran.and_then(|ran| Duration::try_from(ran).ok()).unwrap_or(now.saturating_sub(record.since));
        record.life = Life::Exited { code: ended.code };
        record.ready = false;
        let code = ended.code;
        record.ended = Some(ended);
        let again = match (record.class, restart) {
            (Class::Sidecar, _) | (Class::Main, Restart::Always) => true,
            (Class::Init, Restart::Always | Restart::OnFailure) | (Class::Main, Restart::OnFailure) => code != 0,
            (Class::Ephemeral, _) | (_, Restart::Never) => false,
        };
        let (pause, crashes) = decide::after_run(record.crashes, ran);
        record.crashes = crashes;
        record.waiting = None;
        record.not_before = None;
        if again && !ending && !pause.is_zero() {
            record.not_before = Some(now + pause);
            let (name, pod) =
                (record.name.clone(), format!("{}_{}({})", self.key.name, self.key.namespace, self.handle.uid));
            let message = format!("back-off {}s restarting failed container={name} pod={pod}", pause.as_secs());
            record.waiting = Some(Waiting { reason: "CrashLoopBackOff".into(), message: message.clone() });
            let text = format!("Back-off restarting failed container {name} in pod {pod}");
            self.event(Some(index), Kind::Warning, "BackOff", text);
        }
    }

    pub(super) fn probed(&mut self, index: usize, kind: probe::Kind, passed: Option<bool>, text: &str) {
        if !matches!(self.records[index].life, Life::Running { .. }) {
            return;
        }
        if passed != Some(true) {
            self.event(Some(index), Kind::Warning, "Unhealthy", format!("{} probe failed: {text}", kind.word()));
        }
        let has_readiness = self.containers[index].readiness_probe.is_some();
        let name = self.records[index].name.clone();
        let record = &mut self.records[index];
        match (kind, passed) {
            (probe::Kind::Readiness, Some(verdict)) => record.ready = verdict,
            (probe::Kind::Startup, Some(true)) => {
                record.life = Life::Running { started: true };
                record.ready = !has_readiness;
            }
            (probe::Kind::Startup | probe::Kind::Liveness, Some(false)) => {
                let own = if kind == probe::Kind::Startup {
                    &self.containers[index].startup_probe
                } else {
                    &self.containers[index].liveness_probe
                };
                let own =
                    own.as_ref().and_then(|p| p.termination_grace_period_seconds).and_then(|s| u64::try_from(s).ok());
                let grace = own.map_or_else(|| self.grace(), Duration::from_secs);
                let why = format!("Container {name} failed {} probe, will be restarted", kind.word().to_lowercase());
                self.stop(index, grace, why);
            }
            _ => {}
        }
    }

    pub(super) fn post_start(&mut self, index: usize, result: Result<(), String>) {
        match result {
            Ok(()) => {
                let container = &self.containers[index];
                let (startup, readiness) = (container.startup_probe.is_some(), container.readiness_probe.is_some());
                let record = &mut self.records[index];
                if matches!(record.life, Life::Running { .. }) && !startup {
                    record.life = Life::Running { started: true };
                    record.ready |= !readiness;
                }
            }
            Err(text) => {
                self.event(Some(index), Kind::Warning, "FailedPostStartHook", format!("PostStartHook failed: {text}"));
                self.stop(index, self.grace(), format!("FailedPostStartHook: container {}", self.records[index].name));
            }
        }
    }
}

/// What a container left in the file for its last words; when there is nothing, the end of its log where that is wanted. Blocking:
/// the container can make the file as large as it likes.
pub(super) fn last_words(file: &Path, log: Option<&Path>) -> String {
    let read = |path: &Path| {
        let bytes = excerpt::end(path, LAST_WORDS_BYTES).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let words = read(file);
    let Some(log) = log.filter(|_| words.is_empty()) else { return words };
    read(log).lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;

    #[test]
    fn the_last_words_are_the_end_of_a_file_that_may_be_larger_than_memory() {
        let directory = tempfile::tempdir().unwrap();
        let (path, log) = (directory.path().join("words"), directory.path().join("log"));
        std::fs::write(&log, "2026-01-01T00:00:00Z stderr F it broke\n").unwrap();
        let mut file = std::fs::File::create(&path).unwrap();
        assert_eq!(last_words(&path, None), "");
        assert_eq!(last_words(&path, Some(&log)), "it broke");
        file.set_len(1 << 40).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b"good bye").unwrap();
        let words = last_words(&path, Some(&log));
        assert_eq!((words.len(), words.trim_start_matches('\0')), (4_096, "good bye"));
    }
}
