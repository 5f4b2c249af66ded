//! Images on their way: pull and import (`create`), push, load, save.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{alphabet, engine::DecodePaddingMode};
use bytes::Bytes;
use http::Method;
use image::{Credentials, ImportOptions, Progress, ProgressEvent, PullOptions, Reference};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{named, with_tag};
use crate::body;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::operation::{Operation, Reply, run};
use crate::policy::{self, Privilege};
use crate::state::Docker;

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ImageCreate", Method::POST, "/images/create", "create", "images", run!(image_create))
        .partial("one platform"),
    Operation::new("ImageLoad", Method::POST, "/images/load", "create", "images", run!(image_load)),
    Operation::new("ImageGetAll", Method::GET, "/images/get", "get", "images", run!(image_get_all)),
    Operation::new("ImagePush", Method::POST, "/images/{name...}/push", "get", "images", run!(image_push)),
    Operation::new("ImageGet", Method::GET, "/images/{name...}/get", "get", "images", run!(image_get)),
];

/// One line of a progress stream.
pub(crate) fn line(value: &Value) -> Bytes {
    let mut text = value.to_string();
    text.push_str("\r\n");
    Bytes::from(text)
}

/// The line that ends a stream with an error.
pub(crate) fn error_line(error: &image::Error) -> Bytes {
    let message = error.chain();
    let mut detail = json!({ "message": message });
    if let image::Error::StepFailed { code, .. } = error {
        detail["code"] = json!(code);
    }
    line(&json!({ "errorDetail": detail, "error": message }))
}

pub(crate) fn progress_line(progress: &ProgressEvent) -> Bytes {
    let mut value = json!({ "status": progress.status });
    if !progress.id.is_empty() {
        value["id"] = json!(progress.id);
        value["progressDetail"] = json!({});
    }
    if let (Some(done), Some(total)) = (progress.current, progress.total) {
        value["progressDetail"] = json!({ "current": done, "total": total });
        value["progress"] = json!(bar(done, total));
    }
    line(&value)
}

/// Docker's progress bar, which its own client draws anew and others print.
fn bar(done: u64, total: u64) -> String {
    const WIDTH: u64 = 50;
    let filled = usize::try_from(done.min(total).saturating_mul(WIDTH).checked_div(total).unwrap_or(0)).unwrap_or(0);
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

/// Decodes base64 of either alphabet, padded or not.
pub(crate) fn decode_header(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text = text.replace('+', "-").replace('/', "_");
    GeneralPurpose::new(&alphabet::URL_SAFE, config).decode(text).ok()
}

/// `X-Registry-Auth`: base64 (of either alphabet) of JSON.
pub(crate) fn registry_auth(call: &Call) -> Result<Option<Credentials>> {
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
    let invalid = || Error::Invalid("invalid X-Registry-Auth header".into());
    let bytes = decode_header(text).ok_or_else(invalid)?;
    if bytes.is_empty() || bytes == b"null" {
        return Ok(None);
    }
    let auth: Auth = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    let mut result = Credentials {
        username: auth.username,
        password: auth.password,
        identity_token: auth.identitytoken,
        registry_token: auth.registrytoken,
    };
    if result.username.is_empty() && !auth.auth.is_empty() {
        let plain = decode_header(&auth.auth).and_then(|b| String::from_utf8(b).ok()).ok_or_else(invalid)?;
        if let Some((user, password)) = plain.split_once(':') {
            result.username = user.to_owned();
            result.password = password.to_owned();
        }
    }
    Ok((result != Credentials::default()).then_some(result))
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
    let wanted = Reference::parse_tagged(&reference)?;
    let options = PullOptions { credentials: registry_auth(&call)?, platform: platform(&call) };
    let (progress, mut lines) = Progress::channel();
    let worker = docker.clone();
    let parsed = wanted.clone();
    let mut pull = tokio::spawn(async move { worker.images.pull(&parsed, &options, &progress).await });
    // Docker answers with a status code when nothing was sent yet, so wait for the first line.
    let first = lines.recv().await;
    let mut done = None;
    if first.is_none() {
        match (&mut pull).await {
            Ok(Err(error)) => return Err(pull_refused(error, &wanted.familiar_name())),
            Ok(Ok(pulled)) => done = Some(Ok(pulled)),
            Err(error) => return Err(Error::Internal(format!("the pull ended: {error}"))),
        }
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
        let result = match done {
            Some(result) => result,
            None => match pull.await {
                Ok(result) => result,
                Err(error) => Err(image::Error::Internal(format!("the pull ended: {error}"))),
            },
        };
        let last = match result {
            Ok(pulled) => {
                let name = wanted.familiar();
                docker.events.image(&name, &name, "pull");
                let word = if pulled.up_to_date { "Image is up to date" } else { "Downloaded newer image" };
                let _ = sender.send(line(&json!({ "status": format!("Digest: {}", pulled.digest) }))).await;
                line(&json!({ "status": format!("Status: {word} for {name}") }))
            }
            Err(error) => error_line(&error),
        };
        let _ = sender.send(last).await;
    });
    Ok(body::stream("application/json", pieces))
}

/// `platform=linux/arm64/v8`; absent means the machine's.
fn platform(call: &Call) -> Option<image::Platform> {
    let mut parts = call.query.text("platform")?.split('/').map(str::to_owned);
    let os = parts.next()?;
    let architecture = parts.next()?;
    Some(image::Platform { os, architecture, variant: parts.next().unwrap_or_default() })
}

struct AbortOnDrop(tokio::task::AbortHandle);
impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Docker's words for a pull that cannot begin.
fn pull_refused(error: image::Error, repository: &str) -> Error {
    match error {
        image::Error::NotFound(_) | image::Error::Unauthorized(_) => Error::NotFound(format!(
            "pull access denied for {repository}, repository does not exist or may require 'docker login': {error}"
        )),
        other => other.into(),
    }
}

async fn image_import(docker: Arc<Docker>, call: Call) -> Reply {
    let source = call.query.text("fromSrc").unwrap_or("-").to_owned();
    // Without a scheme it is http, as for dockerd.
    let url = if source.contains("://") { source } else { format!("http://{source}") };
    let from_url = call.query.text("fromSrc") != Some("-");
    let shown = if from_url { &url } else { "-" };
    let request = ImportOptions {
        reference: named(&call, "repo", "tag"),
        changes: super::changes(&call),
        message: call.query.text("message").map_or_else(|| format!("Imported from {shown}"), str::to_owned),
        platform: call.query.text("platform").unwrap_or("").to_owned(),
    };
    let mut lines = Vec::new();
    // A client that leaves ends the fetch.
    let (archive, _waiting) = if from_url {
        let local_urls = policy::judge(docker.state.endpoint, &[Privilege::HostNamespace("network")]).is_ok();
        lines.push(line(&json!({ "status": format!("Downloading from {url}") })));
        let (archive, waiting) = image::build::remote_file(&docker.state.images, &url, local_urls).await?;
        (archive, Some(waiting))
    } else {
        (body::byte_stream(call.body), None)
    };
    let id = docker.images.import(archive, request).await?;
    docker.events.image(&id, &id, "import");
    lines.push(line(&json!({ "status": id })));
    Ok(lines_response(lines))
}

fn lines_response(lines: Vec<Bytes>) -> axum::response::Response {
    body::stream("application/json", futures::stream::iter(lines.into_iter().map(Ok::<_, std::io::Error>)))
}

async fn image_load(docker: Arc<Docker>, call: Call) -> Reply {
    let loaded = match docker.images.load(body::byte_stream(call.body), &Progress::none()).await {
        Ok(loaded) => loaded,
        // Docker tells in the stream what is wrong with an archive.
        Err(error) => return Ok(lines_response(vec![error_line(&error)])),
    };
    let mut lines = Vec::new();
    for image in loaded {
        let id = image.id.to_string();
        for name in &image.references {
            docker.events.image(&id, name, "load");
            lines.push(line(&json!({ "stream": format!("Loaded image: {name}\n") })));
        }
        if image.references.is_empty() {
            docker.events.image(&id, &id, "load");
            lines.push(line(&json!({ "stream": format!("Loaded image ID: {id}\n") })));
        }
    }
    Ok(lines_response(lines))
}

async fn save(docker: Arc<Docker>, references: Vec<String>) -> Reply {
    for reference in &references {
        let image = docker.image(reference).await?;
        docker.events.image(&image.id.to_string(), reference, "save");
    }
    let archive = docker.images.save(&references).await?;
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
    let wanted = Reference::parse_tagged(&reference)?;
    let reference = wanted.familiar();
    let Ok(image) = docker.images.get(&reference).await else {
        let text = format!("An image does not exist locally with the tag: {}", wanted.familiar_name());
        let first = json!({ "status": format!("The push refers to repository [{}]", wanted.name()) });
        return Ok(lines_response(vec![line(&first), error_line(&image::Error::NotFound(text))]));
    };
    let auth = registry_auth(&call)?;
    let shown_name = wanted.name();
    let (progress, mut lines) = Progress::channel();
    let worker = docker.clone();
    let push = tokio::spawn(async move { worker.images.push(&wanted, auth.as_ref(), &progress).await });
    let (sender, pieces) = body::channel();
    tokio::spawn(async move {
        let _abort = AbortOnDrop(push.abort_handle());
        let first = json!({ "status": format!("The push refers to repository [{shown_name}]") });
        if sender.send(line(&first)).await.is_err() {
            return;
        }
        while let Some(progress) = lines.recv().await {
            if sender.send(progress_line(&progress)).await.is_err() {
                return;
            }
        }
        match push.await {
            Ok(Ok(image::Pushed { tag, digest, size_bytes: size })) => {
                docker.events.image(&image.id.to_string(), &reference, "push");
                let digest = digest.to_string();
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
