//! Before the first container: sandbox and volumes, tried again with growing pauses; and volumes kept fresh after.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Volume};
use kube::Api;
use kube::runtime::watcher;
use tokio::time::Instant;

use super::{Driver, Input, Sandbox, reference};
use crate::context::Context;
use crate::error::chain;
use crate::events::Kind;
use crate::pod::{sandbox, storage, volumes};

/// First and longest pause after the sandbox or a volume could not be made. Source: kubelet `DefaultBackOff` of volumes.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));
/// Where pods find their token. Source: Kubernetes, "Configure Service Accounts for Pods".
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What the volume that admission adds is called. Source: Kubernetes, ServiceAccount admission.
const TOKEN_VOLUME: &str = "kube-api-access-";
/// Pause after a volume could not be written anew: a fifth of a token's life, two minutes at least, is left for it.
const REFRESH_RETRY: Duration = Duration::from_secs(10);

impl Driver {
    pub(super) fn prepare(&mut self) {
        if self.preparing || self.prepare_at.is_some() {
            return;
        }
        self.preparing = true;
        let (context, pod, uid, sender) =
            (self.context.clone(), self.pod.clone(), self.uid().to_owned(), self.sender.clone());
        tokio::spawn(async move {
            let result = prepare(&context, &pod, &uid).await;
            let _ = sender.send(Input::Prepared(result)).await;
        });
    }

    pub(super) fn prepared(&mut self, result: Result<(Sandbox, BTreeMap<String, PathBuf>), String>) {
        self.preparing = false;
        match result {
            Ok((sandbox, volumes)) => {
                self.prepare_failures = 0;
                self.around.sandbox_ready = true;
                self.around.pod_ip = sandbox.address.to_string();
                self.context.directory.set_pod(&self.key.namespace, sandbox.address, true);
                self.sandbox = Some(sandbox);
                self.volumes = Arc::new(volumes);
                self.keep_fresh();
                self.watch_size();
            }
            Err(text) => {
                let pause = BACKOFF.0.saturating_mul(1 << self.prepare_failures.min(8)).min(BACKOFF.1);
                self.prepare_failures += 1;
                self.prepare_at = Some(Instant::now() + pause);
                self.event(
                    None,
                    Kind::Warning,
                    if text.contains("olume") || text.contains("not found") {
                        "FailedMount"
                    } else {
                        "FailedCreatePodSandBox"
                    },
                    text,
                );
            }
        }
    }

    /// Measures the pod's files, when it has bounds on them.
    fn watch_size(&mut self) {
        let bounds = self.pod.spec.as_ref().map(storage::bounds).unwrap_or_default();
        if !bounds.is_empty() {
            let job = storage::watch(self.context.clone(), self.handle.clone(), bounds, self.sender.clone());
            self.watchers.push(tokio::spawn(job));
        }
    }

    /// Watches what the pod's volumes show, and writes it again when it changes.
    pub(super) fn keep_fresh(&mut self) {
        let spec = self.pod.spec.clone().unwrap_or_default();
        for volume in spec.volumes.into_iter().flatten() {
            let (mut maps, secrets) = volumes::references(&volume);
            if volumes::has_token(&volume) {
                // Written anew with each token: no watch for every pod on what all of them share.
                maps.retain(|name| name != volumes::CA_CONFIG_MAP);
            }
            let changing = !maps.is_empty() || !secrets.is_empty() || volumes::has_token(&volume);
            if changing && self.volumes.contains_key(&volume.name) {
                let job = follow(self.context.clone(), self.pod.clone(), self.uid().to_owned(), volume, maps, secrets);
                self.watchers.push(tokio::spawn(job));
            }
        }
    }
}

async fn prepare(context: &Context, pod: &Pod, uid: &str) -> Result<(Sandbox, BTreeMap<String, PathBuf>), String> {
    let sandbox =
        sandbox::ensure(context, pod, uid).await.map_err(|e| format!("Failed to create pod sandbox: {}", chain(&e)))?;
    let mut paths = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        if !crate::context::is_path_safe(&volume.name) {
            return Err(format!("volume name {:?} is not valid", volume.name));
        }
        match volumes::ensure(context, pod, &sandbox.directory, volume).await {
            Ok(path) => drop(paths.insert(volume.name.clone(), path)),
            Err(error) if is_injected_token(pod, volume) => {
                // A pod that never speaks to the apiserver runs without its token too.
                tracing::warn!(pod = pod.metadata.name, error = %chain(&error), "no service account token");
                paths.insert(volume.name.clone(), sandbox.directory.join("volumes").join(&volume.name));
            }
            Err(error) => {
                return Err(format!("MountVolume.SetUp failed for volume \"{}\" : {}", volume.name, chain(&error)));
            }
        }
    }
    Ok((sandbox, paths))
}

/// The volume that admission adds to every pod.
fn is_injected_token(pod: &Pod, volume: &Volume) -> bool {
    let containers = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let mut mounts = containers.flat_map(|c| c.volume_mounts.iter().flatten());
    volume.name.starts_with(TOKEN_VOLUME) && mounts.any(|m| m.name == volume.name && m.mount_path == TOKEN_PATH)
}

async fn follow(
    context: Arc<Context>,
    pod: Arc<Pod>,
    uid: String,
    volume: Volume,
    maps: Vec<String>,
    secrets: Vec<String>,
) {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let named = |name: &String| watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut streams = Vec::new();
    for name in &maps {
        let api = Api::<ConfigMap>::namespaced(context.client.clone(), &namespace);
        streams.push(crate::informer::reflect(api, named(name)).1.map(drop).boxed());
    }
    for name in &secrets {
        let api = Api::<Secret>::namespaced(context.client.clone(), &namespace);
        streams.push(crate::informer::reflect(api, named(name)).1.map(drop).boxed());
    }
    let mut due = Due::new(futures::stream::select_all(streams), volumes::token_renewal(&volume));
    let directory = context.pod_dir(&uid);
    while due.wait().await {
        let written = volumes::refresh(&context, &pod, &directory, &volume).await;
        if let Err(error) = &written {
            context.events.record(&reference(&pod, None), Kind::Warning, "FailedMount", chain(error));
        }
        due.written(written.is_ok());
    }
}

/// When a volume must be written again: at each change, and when its tokens come of age.
struct Due<S> {
    changes: S,
    renewal: Option<Duration>,
    next: Option<Instant>,
}

impl<S: Stream<Item = ()> + Unpin> Due<S> {
    /// Of a volume that was written just now.
    fn new(changes: S, renewal: Option<Duration>) -> Self {
        Self { changes, renewal, next: renewal.map(|after| Instant::now() + after) }
    }

    /// Waits; false when it will never be due again.
    async fn wait(&mut self) -> bool {
        tokio::select! {
            Some(()) = self.changes.next() => true,
            () = super::sleep_until(self.next), if self.next.is_some() => true,
            else => false,
        }
    }

    /// It was written, or could not be and must be soon.
    fn written(&mut self, fine: bool) {
        let pause = if fine { self.renewal } else { Some(REFRESH_RETRY) };
        self.next = pause.map(|after| Instant::now() + after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tokens_are_renewed_in_time_and_failures_tried_again() {
        let begin = Instant::now();
        let mut due = Due::new(futures::stream::pending(), Some(Duration::from_secs(480)));
        let mut written = Vec::new();
        for fine in [true, false, false, true, true] {
            assert!(due.wait().await);
            written.push(begin.elapsed().as_secs());
            due.written(fine);
        }
        assert_eq!(written, [480, 960, 970, 980, 1_460]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_written_at_once_and_without_tokens_nothing_else_is() {
        let begin = Instant::now();
        let mut due = Due::new(futures::stream::iter([(), ()]), None);
        for _ in 0..2 {
            assert!(due.wait().await);
            due.written(true);
        }
        assert!(!due.wait().await && begin.elapsed().is_zero());
    }
}
