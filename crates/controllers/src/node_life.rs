//! Machines that stop answering: marked, tainted, and their pods sent elsewhere. What a machine's conditions mean is decided by
//! the pure [`taints`] and [`eviction`]; this file reads and acts. `Source:` Kubernetes, "Nodes", "Taint-based Evictions".

use std::collections::HashMap;
use std::time::Duration;

use futures::stream::{BoxStream, select_all};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::time::Instant;

use crate::{Result, chain, events, follow, is_missing, pods, watching};

pub mod rules;

/// Namespace of the machines' leases.
const LEASES: &str = "kube-node-lease";
/// A machine that gave no sign of life for this long does not answer. `Source:` kube-controller-manager `node-monitor-grace-period`.
const GRACE: Duration = Duration::from_secs(40);
/// Time between two looks. `Source:` kube-controller-manager `node-monitor-period`.
const PERIOD: Duration = Duration::from_secs(5);
/// Looks between two searches for pods without a machine, which read all pods.
const ORPHANS_EVERY: u32 = 12;
/// Requests under way at once.
const PARALLEL: usize = 16;
/// Who speaks.
const NAME: &str = "node-controller";

enum Change {
    Node(Box<Event<Node>>),
    Lease(Box<Event<Lease>>),
}

/// The last sign of life, and when it was seen here: the machine's own clock does not matter.
struct Sign {
    stamp: String,
    seen: Instant,
}

struct Watch {
    client: Client,
    nodes: HashMap<String, Node>,
    signs: HashMap<String, Sign>,
    synced: bool,
    listed: Vec<String>,
}

/// Runs until the watches end.
pub async fn run(client: Client) -> Result<()> {
    let nodes = follow(Api::<Node>::all(client.clone()), watching());
    let leases = follow(Api::<Lease>::namespaced(client.clone(), LEASES), watching());
    let sources: Vec<BoxStream<'static, Change>> = vec![
        nodes.map(|event| Change::Node(Box::new(event))).boxed(),
        leases.map(|event| Change::Lease(Box::new(event))).boxed(),
    ];
    let mut changes = select_all(sources);
    let mut watch = Watch { client, nodes: HashMap::new(), signs: HashMap::new(), synced: false, listed: Vec::new() };
    let mut turn: u32 = 0;
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(change) => watch.take_in(change).await,
                None => return Ok(()),
            },
            _ = ticks.tick() => {
                turn = turn.wrapping_add(1);
                watch.look_at_all().await;
                if turn.is_multiple_of(ORPHANS_EVERY) {
                    watch.collect_orphans().await;
                }
            }
        }
    }
}

impl Watch {
    async fn take_in(&mut self, change: Change) {
        match change {
            Change::Lease(event) => {
                let (Event::Apply(lease) | Event::InitApply(lease)) = *event else { return };
                let time = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0.to_string());
                self.sign(&lease.name_any(), time.unwrap_or_default());
            }
            Change::Node(event) => match *event {
                Event::Init => self.listed.clear(),
                Event::InitApply(node) => {
                    self.listed.push(node.name_any());
                    self.see(node);
                }
                Event::InitDone => {
                    let listed = std::mem::take(&mut self.listed);
                    self.nodes.retain(|name, _| listed.contains(name));
                    self.synced = true;
                    self.look_at_all().await;
                    self.collect_orphans().await;
                }
                Event::Apply(node) => {
                    let name = node.name_any();
                    self.see(node);
                    self.look_at(&name).await;
                }
                Event::Delete(node) => {
                    self.nodes.remove(&node.name_any());
                    self.signs.remove(&node.name_any());
                    self.collect_orphans().await;
                }
            },
        }
    }

    fn see(&mut self, node: Node) {
        // A machine without a lease shows its life by the heartbeats of its status.
        let name = node.name_any();
        if let Some(time) = rules::heartbeat(&node) {
            self.sign(&format!("status of {name}"), time.to_string());
        }
        let now = Instant::now();
        self.signs.entry(name.clone()).or_insert_with(|| Sign { stamp: String::new(), seen: now });
        self.nodes.insert(name, node);
    }

    fn sign(&mut self, name: &str, stamp: String) {
        let new = self.signs.get(name).is_none_or(|known| known.stamp != stamp);
        if new {
            self.signs.insert(name.to_owned(), Sign { stamp, seen: Instant::now() });
        }
    }

    fn is_silent(&self, name: &str) -> bool {
        let own = self.signs.get(name).map(|sign| sign.seen);
        let last = own.max(self.signs.get(&format!("status of {name}")).map(|sign| sign.seen));
        last.is_some_and(|seen| seen.elapsed() > GRACE)
    }

    async fn look_at_all(&mut self) {
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            self.look_at(&name).await;
        }
    }

    async fn look_at(&self, name: &str) {
        let Some(node) = self.nodes.get(name) else { return };
        if let Err(error) = self.settle(node, self.is_silent(name)).await
            && !matches!(&error, crate::Error::Api(api) if is_missing(api))
        {
            tracing::warn!(node = name, error = chain(&error), "cannot settle the machine's state; trying again");
        }
    }

    async fn settle(&self, node: &Node, silent: bool) -> Result<()> {
        let name = node.name_any();
        let nodes = Api::<Node>::all(self.client.clone());
        if silent && rules::ready(node) != Some("Unknown") {
            let patch = json!({ "status": { "conditions": rules::unknown(node, Timestamp::now()) } });
            nodes.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
            let text = format!("Node {name} status is now: NodeNotReady");
            events::publish_from(&self.client, &events::reference(node), "Normal", "NodeNotReady", &text, NAME).await;
            // The change comes back by the watch, and goes on from there.
            return self.mark_pods(&name).await;
        }
        let own = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let wanted = rules::taints(node, &own, Timestamp::now());
        if wanted != own {
            let patch = json!({
                "metadata": { "resourceVersion": node.metadata.resource_version }, "spec": { "taints": wanted },
            });
            return match nodes.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                done => Ok(done.map(drop)?),
            };
        }
        if own.iter().any(|taint| taint.effect == "NoExecute") { self.evict(&name, &own).await } else { Ok(()) }
    }

    async fn pods_of(&self, name: &str) -> Result<Vec<Pod>> {
        let query = ListParams::default().fields(&format!("spec.nodeName={name}"));
        Ok(Api::<Pod>::all(self.client.clone()).list(&query).await?.items)
    }

    /// Pods of a silent machine get no traffic.
    async fn mark_pods(&self, name: &str) -> Result<()> {
        let ready = self.pods_of(name).await?.into_iter().filter(pods::is_ready);
        let marked = stream::iter(ready).map(|pod| async move {
            let condition = json!({
                "type": "Ready", "status": "False", "reason": "NodeNotReady", "message": "Node is not ready",
                "lastTransitionTime": Timestamp::now(),
            });
            let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
            let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(error) if !is_missing(&error) => Err(error),
                _ => Ok(()),
            }
        });
        marked.buffer_unordered(PARALLEL).try_for_each(|()| async { Ok(()) }).await?;
        Ok(())
    }

    /// Deletes the pods whose time on a tainted machine is over.
    async fn evict(&self, name: &str, taints: &[k8s_openapi::api::core::v1::Taint]) -> Result<()> {
        let now = Timestamp::now();
        for pod in self.pods_of(name).await? {
            let due = rules::eviction(&pod, taints, now).is_some_and(|at| at <= now);
            if !due || pod.metadata.deletion_timestamp.is_some() || pods::has_ended(&pod) {
                continue;
            }
            let text = format!("Marking for deletion Pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            events::publish_from(
                &self.client,
                &events::reference(&pod),
                "Normal",
                "TaintManagerEviction",
                &text,
                "taint-eviction-controller",
            )
            .await;
            self.delete(&pod, DeleteParams::default()).await?;
        }
        Ok(())
    }

    /// Pods of machines that are gone for good: nobody else could take them away.
    async fn collect_orphans(&self) {
        if !self.synced {
            return;
        }
        let listed = match Api::<Pod>::all(self.client.clone()).list(&ListParams::default()).await {
            Ok(listed) => listed.items,
            Err(error) => return tracing::warn!(error = chain(&error), "cannot list the pods; trying again"),
        };
        let lost = |pod: &Pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty());
            node.is_some_and(|name| !self.nodes.contains_key(name))
        };
        for pod in listed.iter().filter(|pod| lost(pod)) {
            // The machine may have come since; its pods may not go with an old view.
            let name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            let gone = Api::<Node>::all(self.client.clone()).get_opt(&name).await;
            if !matches!(gone, Ok(None)) {
                continue;
            }
            let parameters = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            if let Err(error) = self.delete(pod, parameters).await {
                tracing::warn!(pod = pod.name_any(), error = chain(&error), "cannot collect a lost pod; trying again");
            }
        }
    }

    async fn delete(&self, pod: &Pod, parameters: DeleteParams) -> Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let same = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        match api.delete(&pod.name_any(), &parameters.preconditions(same)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) if !is_missing(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}
