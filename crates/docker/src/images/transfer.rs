//! Images on their way: pull and import (`create`), push, load, save.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{alphabet, engine::DecodePaddingMode};
use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::library::{CommitRequest, ImageError, Progress, RegistryAuth};
use super::{named, with_tag};
use crate::body;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ImageCreate", Method::POST, "/images/create", "create", "images", run!(image_create))
        .partial("one platform; import from the request only"),
    Operation::new("ImageLoad", Method::POST, "/images/load", "create", "images", run!(image_load)),
    Operation::new("ImageGetAll", Method::GET, "/images/get", "get", "images", run!(image_get_all)),
    Operation::new("ImagePush", Method::POST, "/images/{name...}/push", "get", "images", run!(image_push)),
    Operation::new("ImageGet", Method::GET, "/images/{name...}/get", "get", "images", run!(image_get)),
];

/// Progress lines that wait for a slow client; the transfer waits with them.
const PROGRESS_QUEUE: usize = 64;

/// One line of a progress stream.
pub(crate) fn line(value: &Value) -> Bytes {
    let mut text = value.to_string();
    text.push_str("\r\n");
    Bytes::from(text)
}

/// The line that ends a stream with an error.
pub(crate) fn error_line(error: &ImageError) -> Bytes {
    let message = error.to_string();
    let mut detail = json!({ "message": message });
    if let ImageError::BuildStep { code, .. } = error {
        detail["code"] = json!(code);
    }
    line(&json!({ "errorDetail": detail, "error": message }))
}

fn progress_line(progress: &Progress) -> Bytes {
    let mut value = json!({ "status": progress.status });
    if !progress.id.is_empty() {
        value["id"] = json!(progress.id);
        value["progressDetail"] = json!({});
    }
    if let Some((done, total)) = progress.bytes {
        value["progressDetail"] = json!({ "current": done, "total": total });
        value["progress"] = json!(bar(done, total));
    }
    line(&value)
}

/// Docker's progress bar, which its own client draws anew and others print.
fn bar(done: u64, total: u64) -> String {
    const WIDTH: u64 = 50;
    let filled = usize::try_from(if total == 0 { 0 } else { done.min(total) * WIDTH / total }).unwrap_or(0);
    let head = if filled < 50 { ">" } else { "" };
    let rest = 50_usize.saturating_sub(filled + head.len());
    format!(
        "[{}{head}{}] {:>8}/{}",
        "=".repeat(filled),
        " ".repeat(rest),
        crate::text::human_bytes(done),
        crate::text::human_bytes(total)
    )
}

/// `X-Registry-Auth`: base64 (of either alphabet) of JSON.
pub(crate) fn registry_auth(call: &Call) -> Result<Option<RegistryAuth>> {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Auth {
        username: String,
        password: String,
        auth: String,
        identitytoken: String,
        registrytoken: String,
    }
    let Some(text) = call.header("x-registry-auth").filter(|text| !text.is_empty()) else { return Ok(None) };
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text = text.replace('+', "-").replace('/', "_");
    let invalid = || Error::Invalid("invalid X-Registry-Auth header".into());
    let bytes = GeneralPurpose::new(&alphabet::URL_SAFE, config).decode(text).map_err(|_| invalid())?;
    if bytes.is_empty() || bytes == b"null" {
        return Ok(None);
    }
    let auth: Auth = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    let mut result = RegistryAuth { username: auth.username, password: auth.password, token: auth.registrytoken };
    if result.token.is_empty() {
        result.token = auth.identitytoken;
    }
    if result.username.is_empty() && !auth.auth.is_empty() {
        let standard = GeneralPurpose::new(&alphabet::STANDARD, config);
        let plain = standard.decode(auth.auth).ok().and_then(|b| String::from_utf8(b).ok()).ok_or_else(invalid)?;
        if let Some((user, password)) = plain.split_once(':') {
            result.username = user.to_owned();
            result.password = password.to_owned();
        }
    }
    let given = !result.username.is_empty() || !result.token.is_empty();
    Ok(given.then_some(result))
}

async fn image_create(docker: Arc<Docker>, call: Call) -> Reply {
    if call.query.text("fromSrc").is_some() {
        return image_import(docker, call).await;
    }
    let from = call.query.text("fromImage").ok_or_else(|| Error::Invalid("fromImage or fromSrc is required".into()))?;
    let reference = match call.query.text("tag") {
        Some(digest) if digest.starts_with("sha256:") => format!("{from}@{digest}"),
        Some(tag) => format!("{from}:{tag}"),
        None => with_tag(from),
    };
    let auth = registry_auth(&call)?;
    let before = docker.state.images.find(&reference).await.ok().map(|image| image.id);
    let (progress, mut lines) = mpsc::channel(PROGRESS_QUEUE);
    let (worker, wanted) = (docker.clone(), reference.clone());
    let mut pull = tokio::spawn(async move { worker.state.images.pull(&wanted, auth, progress).await });
    // Docker answers with a status code when nothing was sent yet, so wait for the first line.
    let first = lines.recv().await;
    if first.is_none()
        && let Ok(Err(error)) = (&mut pull).await
    {
        return Err(pull_refused(error, from));
    }
    let (sender, pieces) = body::channel();
    tokio::spawn(async move {
        // A client that leaves ends the pull.
        let _abort = AbortOnDrop(pull.abort_handle());
        let mut next = first;
        while let Some(progress) = next {
            if sender.send(progress_line(&progress)).await.is_err() {
                return;
            }
            next = lines.recv().await;
        }
        let last = match pull.await {
            Ok(Ok(image)) => {
                docker.events.image(&reference, &reference, "pull");
                let news = before.is_none_or(|id| id != image.id);
                let word = if news { "Downloaded newer image" } else { "Image is up to date" };
                if let Some((_, digest)) = image.digests.iter().find_map(|d| d.split_once('@')) {
                    let _ = sender.send(line(&json!({ "status": format!("Digest: {digest}") }))).await;
                }
                line(&json!({ "status": format!("Status: {word} for {reference}") }))
            }
            Ok(Err(error)) => error_line(&error),
            Err(_) => return,
        };
        let _ = sender.send(last).await;
    });
    Ok(body::stream("application/json", pieces))
}

struct AbortOnDrop(tokio::task::AbortHandle);
impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Docker's words for a pull that cannot begin.
fn pull_refused(error: ImageError, repository: &str) -> Error {
    match error {
        ImageError::NotFound(_) | ImageError::Unauthorized(_) => Error::NotFound(format!(
            "pull access denied for {repository}, repository does not exist or may require 'docker login': {error}"
        )),
        other => other.into(),
    }
}

async fn image_import(docker: Arc<Docker>, call: Call) -> Reply {
    if call.query.text("fromSrc") != Some("-") {
        return Err(Error::NotImplemented("import from a URL is not available yet".into()));
    }
    let mut config = json!({});
    for change in call.query.all("changes").flat_map(str::lines) {
        super::apply_change(&mut config, change)?;
    }
    let request = CommitRequest {
        config,
        reference: named(&call, "repo", "tag").unwrap_or_default(),
        comment: call.query.text("message").unwrap_or("Imported from -").to_owned(),
        ..CommitRequest::default()
    };
    let id = docker.state.images.import(body::byte_stream(call.body), request).await?;
    docker.events.image(&id, &id, "import");
    Ok(lines_response(vec![line(&json!({ "status": id }))]))
}

fn lines_response(lines: Vec<Bytes>) -> axum::response::Response {
    body::stream("application/json", futures::stream::iter(lines.into_iter().map(Ok::<_, std::io::Error>)))
}

async fn image_load(docker: Arc<Docker>, call: Call) -> Reply {
    let loaded = docker.state.images.load(body::byte_stream(call.body)).await?;
    let mut lines = Vec::new();
    for name in loaded {
        let id = docker.state.images.find(&name).await.map_or_else(|_| name.clone(), |image| image.id);
        docker.events.image(&id, &name, "load");
        let text = if name.starts_with("sha256:") {
            format!("Loaded image ID: {name}\n")
        } else {
            format!("Loaded image: {name}\n")
        };
        lines.push(line(&json!({ "stream": text })));
    }
    Ok(lines_response(lines))
}

async fn save(docker: Arc<Docker>, references: Vec<String>) -> Reply {
    for reference in &references {
        let image = docker.image(reference).await?;
        docker.events.image(&image.id, reference, "save");
    }
    let archive = docker.state.images.save(&references).await?;
    Ok(body::stream("application/x-tar", archive))
}

async fn image_get(docker: Arc<Docker>, call: Call) -> Reply {
    save(docker, vec![call.parameter("name").to_owned()]).await
}

async fn image_get_all(docker: Arc<Docker>, call: Call) -> Reply {
    let names: Vec<String> =
        call.query.all("names").flat_map(|n| n.split(',')).filter(|n| !n.is_empty()).map(str::to_owned).collect();
    if names.is_empty() {
        return Err(Error::Invalid("no image names given".into()));
    }
    save(docker, names).await
}

async fn image_push(docker: Arc<Docker>, call: Call) -> Reply {
    let name = call.parameter("name");
    let reference = match call.query.text("tag") {
        Some(tag) => format!("{name}:{tag}"),
        None => with_tag(name),
    };
    let image = docker
        .state
        .images
        .find(&reference)
        .await
        .map_err(|_| Error::NotFound(format!("An image does not exist locally with the tag: {name}")))?;
    let auth = registry_auth(&call)?;
    let (progress, mut lines) = mpsc::channel(PROGRESS_QUEUE);
    let (worker, wanted) = (docker.clone(), reference.clone());
    let push = tokio::spawn(async move { worker.state.images.push(&wanted, auth, progress).await });
    let (sender, pieces) = body::channel();
    let tag = reference.rsplit(':').next().unwrap_or("latest").to_owned();
    let name = name.to_owned();
    tokio::spawn(async move {
        let _abort = AbortOnDrop(push.abort_handle());
        let first = json!({ "status": format!("The push refers to repository [{name}]") });
        if sender.send(line(&first)).await.is_err() {
            return;
        }
        while let Some(progress) = lines.recv().await {
            if sender.send(progress_line(&progress)).await.is_err() {
                return;
            }
        }
        match push.await {
            Ok(Ok((digest, size))) => {
                docker.events.image(&image.id, &reference, "push");
                let status = format!("{tag}: digest: {digest} size: {size}");
                let _ = sender.send(line(&json!({ "status": status }))).await;
                let aux = json!({ "Tag": tag, "Digest": digest, "Size": size });
                let _ = sender.send(line(&json!({ "progressDetail": {}, "aux": aux }))).await;
            }
            Ok(Err(error)) => {
                let _ = sender.send(error_line(&error)).await;
            }
            Err(_) => {}
        }
    });
    Ok(body::stream("application/json", pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_bars_have_dockers_shape() {
        assert!(bar(5, 10).starts_with("[=========================>                        ]"));
        assert!(bar(10, 10).starts_with(&format!("[{}]", "=".repeat(50))));
    }

    #[test]
    fn credentials_come_in_either_base64_alphabet() {
        let request = |header: &str| {
            let request =
                http::Request::builder().header("X-Registry-Auth", header).body(axum::body::Body::empty()).unwrap();
            Call::new(crate::version::MAXIMUM_VERSION, Vec::new(), request).unwrap()
        };
        let text = r#"{"username":"a","password":"b??>"}"#;
        for engine in [&base64::engine::general_purpose::STANDARD, &base64::engine::general_purpose::URL_SAFE] {
            let auth = registry_auth(&request(&engine.encode(text))).unwrap().unwrap();
            assert_eq!((auth.username.as_str(), auth.password.as_str()), ("a", "b??>"));
        }
        assert!(registry_auth(&request("e30=")).unwrap().is_none());
        assert!(registry_auth(&request("%%%")).is_err());
    }
}
