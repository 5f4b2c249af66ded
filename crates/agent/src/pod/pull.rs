//! Images for pods: pull policies, pull secrets, and the reasons that users know.

use std::sync::Arc;

use image::{Credentials, PullOptions, Reference};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::driver::reference;
use super::start::Failure;
use crate::context::Context;
use crate::error::chain;
use crate::events::Kind;
use crate::hands::FoundImage;
use crate::pull_secret;

/// Finds the image, or fetches it, as the policy says.
pub async fn ensure(context: &Arc<Context>, pod: &Pod, container: &Container) -> Result<FoundImage, Failure> {
    let name = container.image.clone().unwrap_or_default();
    let about = reference(pod, Some(&container.name));
    let policy = container.image_pull_policy.as_deref().unwrap_or_else(|| default_policy(&name));
    let mut present = context.images.find(&name);
    if policy != "Never" && present.as_ref().is_none_or(|image| policy == "Always" && !image.from_registry) {
        context.images.bring(&name).await;
        present = context.images.find(&name);
    }
    let parsed = Reference::parse_tagged(&name).map_err(|error| {
        Failure::Image("InvalidImageName", format!("Failed to apply default image tag \"{name}\": {}", chain(&error)))
    })?;
    // What was built or loaded here has no registry to be fresher than.
    let keep = present.as_ref().is_some_and(|image| policy != "Always" || !image.from_registry);
    if let (true, Some(image)) = (keep, present) {
        let text = format!("Container image \"{name}\" already present on machine");
        context.events.record(&about, Kind::Normal, "Pulled", text);
        return Ok(image);
    }
    if policy == "Never" {
        let text = format!("Container image \"{name}\" is not present with pull policy of Never");
        context.events.record(&about, Kind::Warning, "ErrImageNeverPull", text.clone());
        return Err(Failure::Image("ErrImageNeverPull", text));
    }
    context.events.record(&about, Kind::Normal, "Pulling", format!("Pulling image \"{name}\""));
    let begin = tokio::time::Instant::now();
    let options = PullOptions { credentials: credentials(context, pod, &parsed).await, ..PullOptions::default() };
    match context.images.pull(&name, &options).await {
        Ok(image) => {
            let text = format!("Successfully pulled image \"{name}\" in {:.3}s", begin.elapsed().as_secs_f64());
            context.events.record(&about, Kind::Normal, "Pulled", text);
            Ok(image)
        }
        Err(error) => {
            let text = format!("Failed to pull image \"{name}\": {}", chain(&error));
            context.events.record(&about, Kind::Warning, "Failed", text.clone());
            context.events.record(&about, Kind::Warning, "Failed", "Error: ErrImagePull");
            Err(Failure::Image("ErrImagePull", text))
        }
    }
}

/// `Always` for the tag `latest`, as the apiserver defaults it.
fn default_policy(name: &str) -> &'static str {
    let last = name.rsplit('/').next().unwrap_or_default();
    let latest = !name.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
    if latest { "Always" } else { "IfNotPresent" }
}

async fn credentials(context: &Context, pod: &Pod, image: &Reference) -> Option<Credentials> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let names = pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()).map(|one| one.name.as_str());
    pull_secret::credentials(&context.client, namespace, names, image).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_is_always_pulled() {
        assert_eq!(default_policy("web"), "Always");
        assert_eq!(default_policy("host:5000/web:latest"), "Always");
        assert_eq!(default_policy("host:5000/web:1"), "IfNotPresent");
        assert_eq!(default_policy("web@sha256:0"), "IfNotPresent");
    }
}
