//! Health checks of containers: a task runs the test, a pure function judges the results. Source: Docker, HEALTHCHECK.

use std::time::Duration;

use api::container::{ContainerSpec, ContainerStatus, HealthCheck, HealthResult};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::sync::mpsc;

use super::driver::Input;
use crate::context::Context;

/// Time between two checks, and for one. Source: moby `defaultProbeInterval`, `defaultProbeTimeout`.
const DEFAULT: Duration = Duration::from_secs(30);
/// Time between checks in the grace time. Source: moby `defaultStartInterval`.
const START_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
/// Failures that mean unhealthy. Source: moby `defaultProbeRetries`.
const RETRIES_DEFAULT: i64 = 3;
/// Output that is kept. Source: moby `maxOutputLen`.
const OUTPUT_LIMIT: usize = 4_096;
/// Results that are kept. Source: moby `maxLogEntries`.
const LOG_LIMIT: usize = 5;
/// Shortest time between two checks, against a spec that keeps the machine busy.
const INTERVAL_LEAST: Duration = Duration::from_millis(1);

/// The check of a container, if it has one.
pub fn wanted(spec: &ContainerSpec) -> Option<HealthCheck> {
    spec.healthcheck.clone().filter(|c| !matches!(c.test.first().map(String::as_str), None | Some("NONE" | "")))
}

fn duration(nanoseconds: i64, default: Duration) -> Duration {
    u64::try_from(nanoseconds).ok().filter(|n| *n > 0).map_or(default, Duration::from_nanos).max(INTERVAL_LEAST)
}

fn command(test: &[String]) -> Vec<String> {
    match test.split_first() {
        Some((kind, rest)) if kind == "CMD" => rest.to_vec(),
        Some((kind, rest)) if kind == "CMD-SHELL" => vec!["/bin/sh".into(), "-c".into(), rest.join(" ")],
        _ => test.to_vec(),
    }
}

/// Checks until the task is aborted.
pub async fn run(context: &Context, id: &str, check: &HealthCheck, sender: mpsc::Sender<Input>) {
    let begin = tokio::time::Instant::now();
    let grace = Duration::from_nanos(u64::try_from(check.start_period_ns).unwrap_or(0));
    let mut healthy = false;
    loop {
        let early = !healthy && begin.elapsed() < grace;
        let usual = duration(check.interval_ns, DEFAULT);
        let pause = if early { duration(check.start_interval_ns, START_INTERVAL_DEFAULT).min(usual) } else { usual };
        tokio::time::sleep(pause).await;
        let start = Timestamp::now();
        let timeout = duration(check.timeout_ns, DEFAULT);
        let (exit_code, output) = match tokio::time::timeout(timeout, once(context, id, check)).await {
            Ok(result) => result,
            Err(_) => (-1, format!("Health check exceeded timeout ({timeout:?})")),
        };
        healthy |= exit_code == 0;
        let result =
            HealthResult { start: Some(MicroTime(start)), end: Some(MicroTime(Timestamp::now())), exit_code, output };
        if sender.send(Input::Health(result)).await.is_err() {
            return;
        }
    }
}

async fn once(context: &Context, id: &str, check: &HealthCheck) -> (i64, String) {
    let request = node::ExecRequest { command: command(&check.test), ..node::ExecRequest::default() };
    let mut session = match context.runtime.exec(id, request).await {
        Ok(session) => session,
        Err(error) => return (-1, error.to_string()),
    };
    let mut text = Vec::new();
    while let Some(piece) = session.output.next().await {
        let room = OUTPUT_LIMIT.saturating_sub(text.len());
        text.extend_from_slice(&piece.data[..piece.data.len().min(room)]);
    }
    let output = String::from_utf8_lossy(&text).into_owned();
    match session.exit.await {
        Ok(exit) => (exit.code.into(), output),
        Err(error) => (-1, error.to_string()),
    }
}

/// Takes a result into the status.
pub fn judge(status: &mut ContainerStatus, check: &HealthCheck, result: HealthResult, since_start: Duration) {
    let grace = Duration::from_nanos(u64::try_from(check.start_period_ns).unwrap_or(0));
    let retries = if check.retries > 0 { check.retries } else { RETRIES_DEFAULT };
    if result.exit_code == 0 {
        status.health_failing_streak = 0;
        status.health = "healthy".to_owned();
    } else if !(status.health == "starting" && since_start < grace) {
        status.health_failing_streak += 1;
        if status.health_failing_streak >= retries {
            status.health = "unhealthy".to_owned();
        }
    }
    status.health_log.push(result);
    let surplus = status.health_log.len().saturating_sub(LOG_LIMIT);
    status.health_log.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(codes: &[i64], seconds: u64) -> (String, i64, usize) {
        let check = HealthCheck { start_period_ns: 10_000_000_000, ..HealthCheck::default() };
        let mut status = ContainerStatus { health: "starting".into(), ..ContainerStatus::default() };
        for code in codes {
            let result = HealthResult { exit_code: *code, ..HealthResult::default() };
            judge(&mut status, &check, result, Duration::from_secs(seconds));
        }
        (status.health, status.health_failing_streak, status.health_log.len())
    }

    #[test]
    fn three_failures_after_the_grace_time_mean_unhealthy() {
        assert_eq!(check(&[1, 1], 60), ("starting".into(), 2, 2));
        assert_eq!(check(&[1, 1, 1], 60), ("unhealthy".into(), 3, 3));
        assert_eq!(check(&[1, 1, 1, 0], 60), ("healthy".into(), 0, 4));
        assert_eq!(check(&[1, 1, 1, 1, 1, 1], 5), ("starting".into(), 0, 5));
        assert_eq!(check(&[0, 1, 1, 1], 5), ("unhealthy".into(), 3, 4), "the grace time ends with the first success");
    }

    #[test]
    fn the_two_forms_of_a_test_become_commands() {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(command(&own(&["CMD", "a", "b"])), own(&["a", "b"]));
        assert_eq!(command(&own(&["CMD-SHELL", "a b"])), own(&["/bin/sh", "-c", "a b"]));
    }
}
