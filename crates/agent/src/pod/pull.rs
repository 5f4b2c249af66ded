//! Images for pods: pull policies, pull secrets, and the reasons that users know.

use std::sync::Arc;

use image::{Credentials, PullOptions, Reference};
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use kube::Api;
use serde_json::Value;

use super::driver::reference;
use super::start::Failure;
use crate::context::Context;
use crate::error::chain;
use crate::events::Kind;
use crate::hands::FoundImage;

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
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    for wanted in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()) {
        let Ok(Some(secret)) = secrets.get_opt(&wanted.name).await else { continue };
        let data = secret.data.unwrap_or_default();
        let text = data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg"));
        let Some(config) = text.and_then(|t| serde_json::from_slice::<Value>(&t.0).ok()) else { continue };
        if let Some(found) = from_config(&config, &image.to_string()) {
            return Some(found);
        }
    }
    None
}

/// The entry of a Docker configuration whose server the image's name begins with.
fn from_config(config: &Value, image: &str) -> Option<Credentials> {
    let servers = config.get("auths").unwrap_or(config).as_object()?;
    let host = |text: &str| {
        text.trim_start_matches("https://")
            .trim_start_matches("http://")
            .split('/')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let wanted = host(image);
    let (_, entry) = servers.iter().find(|(server, _)| host(server) == wanted)?;
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    if username.is_empty() {
        let decoded: k8s_openapi::ByteString = serde_json::from_value(entry.get("auth")?.clone()).ok()?;
        let pair = String::from_utf8(decoded.0).ok()?;
        let (user, secret) = pair.split_once(':')?;
        (username, password) = (user.to_owned(), secret.to_owned());
    }
    Some(Credentials { username, password, ..Credentials::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn credentials_are_found_by_server() {
        let config = json!({"auths": {"https://registry.example/v1/": {"auth": "YTpi"}, "other.example": {"username": "x", "password": "y"}}});
        let found = from_config(&config, "registry.example/team/web:1").unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("a", "b"));
        assert!(from_config(&config, "third.example/web").is_none());
    }

    #[test]
    fn latest_is_always_pulled() {
        assert_eq!(default_policy("web"), "Always");
        assert_eq!(default_policy("host:5000/web:latest"), "Always");
        assert_eq!(default_policy("host:5000/web:1"), "IfNotPresent");
        assert_eq!(default_policy("web@sha256:0"), "IfNotPresent");
    }
}
