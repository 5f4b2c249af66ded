//! Admission webhooks: servers outside that may change or refuse a write. This module decides whom to ask, in which
//! order, and what an answer means; [`WebhookTransport`] carries the question. Knows no HTTP.

mod answer;
mod endpoint;
mod review;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;

use super::Request;
use super::matching::{self, GROUP};
use crate::options::PatchKind;
use crate::server::ApiServer;
use crate::status::Status;
use answer::Answer;

/// Plural of the configurations that may change objects.
const MUTATING: &str = "mutatingwebhookconfigurations";
/// Plural of the configurations that may only refuse.
const VALIDATING: &str = "validatingwebhookconfigurations";
/// Time for an answer when the webhook says nothing; its most. Units: seconds.
const TIMEOUT_SECONDS: (u64, u64) = (10, 30);
/// Most webhooks that are asked about one write.
const MAX_HOOKS: usize = 200;

/// Where a webhook answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookEndpoint {
    /// Host name or address to connect to.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Name that the server's certificate must have.
    pub server_name: String,
    /// Path and query.
    pub path: String,
    /// PEM of the authorities to trust; `None`: those of the system.
    pub authorities: Option<Vec<u8>>,
    /// The URL as error messages show it.
    pub url: String,
}

/// Carries a review to a webhook: one HTTPS POST of JSON, no redirects.
#[async_trait]
pub trait WebhookTransport: Send + Sync + std::fmt::Debug {
    /// The body of the answer, which must be a success.
    ///
    /// Errors: text for people, in the words of Go's HTTP client where clients look at them.
    async fn post(&self, endpoint: &WebhookEndpoint, body: Bytes, timeout: Duration) -> Result<Bytes, String>;
}

/// A webhook of a configuration that this write concerns.
struct Hook {
    configuration: String,
    value: Value,
    version: String,
}

impl Hook {
    fn name(&self) -> &str {
        crate::json::text(&self.value, "/name")
    }

    fn ignores_failure(&self) -> bool {
        self.value["failurePolicy"] == "Ignore"
    }

    fn timeout(&self) -> Duration {
        let (default, most) = TIMEOUT_SECONDS;
        Duration::from_secs(self.value["timeoutSeconds"].as_u64().unwrap_or(default).clamp(1, most))
    }
}

/// Lets the webhooks change the object. Answers whether one did.
pub(super) async fn mutate(server: &ApiServer, request: &mut Request<'_>, object: &mut Value) -> Result<bool, Status> {
    let mut changed = false;
    let mut asked: Vec<(String, String, bool)> = Vec::new();
    for hook in configured(server, request, MUTATING) {
        let before = object.clone();
        if ask_to_change(server, request, &hook, object, 0).await? {
            let differs = before != *object;
            changed |= differs;
            if differs {
                // What a later webhook changed may concern those before it once more.
                asked.iter_mut().for_each(|(_, _, again)| *again = true);
            }
            asked.push((hook.configuration.clone(), hook.name().to_owned(), false));
        }
    }
    if asked.iter().any(|(_, _, again)| *again) {
        for hook in configured(server, request, MUTATING) {
            let due = hook.value["reinvocationPolicy"] == "IfNeeded"
                && asked.iter().any(|(configuration, name, again)| {
                    *again && *configuration == hook.configuration && *name == hook.name()
                });
            if due {
                changed |= ask_to_change(server, request, &hook, object, 1).await?;
            }
        }
    }
    Ok(changed)
}

/// Asks one webhook; answers whether it was asked.
async fn ask_to_change(
    server: &ApiServer,
    request: &mut Request<'_>,
    hook: &Hook,
    object: &mut Value,
    round: u32,
) -> Result<bool, Status> {
    if !concerned(server, request, hook, object)? {
        return Ok(false);
    }
    let Some(answer) = ask(server, request, hook, object).await? else { return Ok(true) };
    note(request, hook, &answer, round);
    answer.denial(hook.name())?;
    if let Some(patch) = &answer.patch {
        let shown = review::in_version(request.kind, object, &hook.version);
        let patched = crate::patch::apply(request.kind, PatchKind::Json, &shown, patch);
        let patched = patched.map_err(|problem| Status::internal(problem.message))?;
        let mut patched = review::in_version(request.kind, &patched, &request.kind.version);
        let unknown = crate::schema::prune(request.kind, &mut patched);
        if !unknown.is_empty() {
            tracing::debug!(webhook = hook.name(), ?unknown, "a webhook's patch sets unknown fields");
        }
        for member in ["name", "namespace", "uid"] {
            patched["metadata"][member] = object["metadata"][member].clone();
            if patched["metadata"][member].is_null() {
                crate::json::metadata_mut(&mut patched).map(|metadata| metadata.remove(member));
            }
        }
        *object = patched;
    }
    Ok(true)
}

/// Asks all webhooks that may refuse, at once. Errors: the first refusal in order.
pub(super) async fn validate(server: &ApiServer, request: &mut Request<'_>, object: &Value) -> Result<(), Status> {
    let mut hooks = Vec::new();
    for hook in configured(server, request, VALIDATING) {
        if concerned(server, request, &hook, object)? {
            hooks.push(hook);
        }
    }
    if hooks.is_empty() {
        return Ok(());
    }
    let asking = hooks.iter().map(|hook| ask(server, request, hook, object));
    let answers = futures::future::join_all(asking).await;
    for (hook, answer) in hooks.iter().zip(answers) {
        if let Some(answer) = answer? {
            note(request, hook, &answer, 0);
            answer.denial(hook.name())?;
        }
    }
    Ok(())
}

/// All webhooks of these configurations, in the order of the configurations' names.
fn configured(server: &ApiServer, request: &Request<'_>, plural: &str) -> Vec<Hook> {
    let cache = server.cache_of(GROUP, plural);
    // Configurations of admission are never shown to webhooks: a broken one could not be mended.
    if cache.len() == 0 || request.kind.group == GROUP || !server.is_open() {
        return Vec::new();
    }
    let mut hooks = Vec::new();
    for configuration in cache.all("") {
        let name = configuration.name().to_owned();
        let value = configuration.to_value();
        for hook in value["webhooks"].as_array().into_iter().flatten() {
            let equivalent = hook["matchPolicy"] != "Exact";
            if let Some(version) = matching::covered(server, request, &hook["rules"], equivalent) {
                hooks.push(Hook { configuration: name.clone(), value: hook.clone(), version });
            }
        }
    }
    hooks.truncate(MAX_HOOKS);
    hooks
}

/// Whether the webhook's selectors and conditions want this object.
fn concerned(server: &ApiServer, request: &Request<'_>, hook: &Hook, object: &Value) -> Result<bool, Status> {
    if !matching::selected(server, request, object, &hook.value) {
        return Ok(false);
    }
    if crate::json::is_empty(hook.value.get("matchConditions")) {
        return Ok(true);
    }
    let mut scope = matching::scope(server, request, object, None);
    match matching::conditions(&mut scope, &hook.value["matchConditions"]) {
        Ok(holds) => Ok(holds),
        Err(_) if hook.ignores_failure() => Ok(false),
        Err(problem) => {
            let (group, plural) = (&request.kind.group, &request.kind.plural);
            let name = request.path.name.as_deref().unwrap_or_default();
            Err(Status::forbidden(group, plural, name, &format!("webhook {:?}: {problem}", hook.name())))
        }
    }
}

/// One question. `None`: it failed, and its failures do not count.
async fn ask(server: &ApiServer, request: &Request<'_>, hook: &Hook, object: &Value) -> Result<Option<Answer>, Status> {
    let effects = crate::json::text(&hook.value, "/sideEffects");
    if request.dry_run && !matches!(effects, "None" | "NoneOnDryRun") {
        return Err(Status::bad_request(format!("admission webhook {:?} does not support dry run", hook.name())));
    }
    let problem = match ask_once(server, request, hook, object).await {
        Ok(answer) => return Ok(Some(answer)),
        Err(problem) => problem,
    };
    if hook.ignores_failure() {
        tracing::warn!(webhook = hook.name(), problem, "a webhook failed, and its policy is to go on");
        request.ctx.notes.add("failed-open.webhook.admission.k8s.io/round_0_index_0", hook.name().to_owned());
        return Ok(None);
    }
    Err(Status::internal(format!("failed calling webhook {:?}: {problem}", hook.name())))
}

async fn ask_once(server: &ApiServer, request: &Request<'_>, hook: &Hook, object: &Value) -> Result<Answer, String> {
    let Some(transport) = &server.options.webhooks else {
        return Err("failed to call webhook: this server has no way to call webhooks".to_owned());
    };
    let endpoint = endpoint::resolve(server, &hook.value["clientConfig"], hook.timeout())?;
    let uid = uuid::Uuid::new_v4().to_string();
    let (version, body) = review::request(request, hook, object, &uid)?;
    let called = transport.post(&endpoint, body, hook.timeout()).await;
    let text = called.map_err(|problem| format!("failed to call webhook: Post {:?}: {problem}", endpoint.url))?;
    Answer::read(&text, &uid, &version)
}

/// Warnings for the client, annotations for the audit log.
fn note(request: &mut Request<'_>, hook: &Hook, answer: &Answer, round: u32) {
    request.warnings.extend(answer.warnings.iter().cloned());
    for (key, text) in &answer.annotations {
        request.ctx.notes.add(&format!("{}/{key}", hook.name()), text.clone());
    }
    if answer.patch.is_some() {
        let key = format!("mutation.webhook.admission.k8s.io/round_{round}_{}", hook.name());
        let text = serde_json::json!({"configuration": hook.configuration, "webhook": hook.name(), "mutated": true});
        request.ctx.notes.add(&key, text.to_string());
    }
}
