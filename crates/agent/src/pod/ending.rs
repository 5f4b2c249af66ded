//! Graceful end of one container: the preStop hook, the stop signal, patience, SIGKILL.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;

use super::probe::{self, Target};
use crate::container::step::{KILL_REPEAT, SIGKILL};
use crate::context::Context;
use crate::events::Kind;

/// Least time between the stop signal and SIGKILL after a hook used up the grace time. Source: kubelet `minimumGracePeriodInSeconds`.
const GRACE_LEAST: Duration = Duration::from_secs(2);

/// Ends a container; goes on with SIGKILL until the task is aborted at its exit.
pub async fn stop(
    context: Arc<Context>,
    target: Target,
    about: ObjectReference,
    signal: i32,
    grace: Duration,
    why: String,
) {
    context.events.record(&about, Kind::Normal, "Killing", why);
    let begin = tokio::time::Instant::now();
    let hook = target.container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    if let Some(handler) = hook.filter(|_| !grace.is_zero()) {
        match tokio::time::timeout(grace, probe::hook(&context, &target, handler)).await {
            Ok(Ok(())) => {}
            Ok(Err(text)) => {
                context.events.record(&about, Kind::Warning, "FailedPreStopHook", format!("PreStopHook failed: {text}"))
            }
            Err(_) => {
                context.events.record(&about, Kind::Warning, "FailedPreStopHook", "PreStopHook did not end in time")
            }
        }
    }
    if !grace.is_zero() {
        if let Err(error) = context.runtime.kill(&target.id, signal).await {
            tracing::debug!(id = target.id, %error, "stop signal not delivered");
        }
        tokio::time::sleep(grace.saturating_sub(begin.elapsed()).max(if hook.is_some() {
            GRACE_LEAST.min(grace)
        } else {
            Duration::ZERO
        }))
        .await;
    }
    loop {
        if let Err(error) = context.runtime.kill(&target.id, SIGKILL).await {
            tracing::debug!(id = target.id, %error, "SIGKILL not delivered");
        }
        tokio::time::sleep(KILL_REPEAT).await;
    }
}
