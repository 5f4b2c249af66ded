//! What the scheduler writes: bindings, and the reasons why there is none.

use api::{Container, VirtualMachine};
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;

use crate::{chain, events};

/// The object to bind.
#[derive(Clone)]
pub struct Target {
    reference: ObjectReference,
}

impl Target {
    /// A pod.
    pub fn pod(pod: &Pod) -> Self {
        Self { reference: events::reference(pod) }
    }

    /// A container.
    pub fn container(container: &Container) -> Self {
        Self { reference: events::reference(container) }
    }

    /// A virtual machine.
    pub fn guest(guest: &VirtualMachine) -> Self {
        Self { reference: events::reference(guest) }
    }

    fn name(&self) -> &str {
        self.reference.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.reference.namespace.as_deref().unwrap_or_default()
    }

    /// Whether it is a pod.
    pub fn is_pod(&self) -> bool {
        self.reference.kind.as_deref() == Some("Pod")
    }

    /// Binds it to a machine. The uid goes along, so that a namesake born meanwhile is not hit.
    pub async fn bind(&self, client: &Client, machine: &str) -> Result<(), kube::Error> {
        if !self.is_pod() {
            let patch = json!({ "metadata": { "uid": self.reference.uid }, "spec": { "nodeName": machine } });
            let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
            if self.reference.kind.as_deref() == Some("VirtualMachine") {
                let api = Api::<VirtualMachine>::namespaced(client.clone(), self.namespace());
                api.patch(self.name(), &parameters, &patch).await?;
            } else {
                let api = Api::<Container>::namespaced(client.clone(), self.namespace());
                api.patch(self.name(), &parameters, &patch).await?;
            }
            return Ok(());
        }
        let binding = Binding {
            metadata: ObjectMeta {
                name: self.reference.name.clone(),
                namespace: self.reference.namespace.clone(),
                uid: self.reference.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(machine.into()),
                ..ObjectReference::default()
            },
        };
        let body = serde_json::to_vec(&binding).map_err(kube::Error::SerdeError)?;
        let url = format!("/api/v1/namespaces/{}/pods", self.namespace());
        let request = kube::api::Request::new(url)
            .create_subresource("binding", self.name(), &PostParams::default(), body)
            .map_err(kube::Error::BuildRequest)?;
        client.request_text(request).await?;
        Ok(())
    }

    /// Tells the user where it went.
    pub async fn report_success(&self, client: &Client, machine: &str) {
        if self.is_pod() {
            let text = format!("Successfully assigned {}/{} to {machine}", self.namespace(), self.name());
            events::publish(client, &self.reference, "Normal", "Scheduled", &text).await;
        }
    }

    /// Takes the victims' places: tells where it will go, and has them end gracefully.
    pub async fn preempt(&self, client: &Client, machine: &str, victims: &[Self]) {
        let api = Api::<Pod>::namespaced(client.clone(), self.namespace());
        let patch = json!({ "metadata": { "uid": self.reference.uid }, "status": { "nominatedNodeName": machine } });
        if let Err(error) = api.patch_status(self.name(), &PatchParams::default(), &Patch::Merge(patch)).await {
            tracing::debug!(pod = self.name(), error = chain(&error), "cannot write where it will go");
        }
        for victim in victims {
            let text =
                format!("Preempted by pod {} on node {machine}", self.reference.uid.as_deref().unwrap_or_default());
            events::publish(client, &victim.reference, "Normal", "Preempted", &text).await;
            let api = Api::<Pod>::namespaced(client.clone(), victim.namespace());
            let same = Preconditions { uid: victim.reference.uid.clone(), resource_version: None };
            match api.delete(victim.name(), &DeleteParams::default().preconditions(same)).await {
                Err(error) if !crate::is_missing(&error) => {
                    tracing::warn!(pod = victim.name(), error = chain(&error), "cannot preempt");
                }
                _ => {}
            }
        }
    }

    /// Tells the user why there is no place.
    pub async fn report_failure(&self, client: &Client, reason: &str) {
        events::publish(client, &self.reference, "Warning", "FailedScheduling", reason).await;
        if self.reference.kind.as_deref() == Some("Container") {
            let patch = json!({ "metadata": { "uid": self.reference.uid }, "status": { "waiting": reason } });
            let api = Api::<Container>::namespaced(client.clone(), self.namespace());
            if let Err(error) = api.patch_status(self.name(), &PatchParams::default(), &Patch::Merge(patch)).await {
                tracing::debug!(container = self.name(), error = chain(&error), "cannot write why it waits");
            }
        }
        if !self.is_pod() {
            return;
        }
        let api = Api::<Pod>::namespaced(client.clone(), self.namespace());
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": reason,
            "lastTransitionTime": jiff::Timestamp::now(),
        });
        let patch = json!({ "metadata": { "uid": self.reference.uid }, "status": { "conditions": [condition] } });
        let written = api.patch_status(self.name(), &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Err(error) = written {
            tracing::debug!(pod = self.name(), error = chain(&error), "cannot write why it waits");
        }
    }
}

/// Says how much memory a guest is to be left with.
pub async fn leave_memory(api: &Api<VirtualMachine>, name: &str, bytes: u64) {
    let patch = json!({ "spec": { "memoryTarget": bytes.to_string() } });
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(error) if !crate::is_missing(&error) => {
            tracing::warn!(machine = name, error = chain(&error), "cannot say how much memory a guest is left with");
        }
        _ => {}
    }
}
