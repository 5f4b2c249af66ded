//! Where results go: names in the image store, registries, archives and directories of the client.

use std::collections::HashMap;
use std::sync::Arc;

use image::build::Scratch;
use image::{Credentials, Progress, Reference};
use tonic::{Code, Status};

use crate::BuildKit;
use crate::build::Running;
use crate::frontend::{Built, status};
use crate::send;

/// One wish.
#[derive(Clone, Debug)]
pub struct Export {
    /// `moby`, `image`, `docker`, `oci`, `local`, `tar`, `cacheonly`.
    pub kind: String,
    /// `name`, `push`, ….
    pub attributes: HashMap<String, String>,
}

impl Export {
    fn names(&self) -> Result<Vec<Reference>, Status> {
        let names = self.attributes.get("name").map(String::as_str).unwrap_or_default();
        let parse = |name: &str| {
            Reference::parse_tagged(name)
                .map_err(|_| Status::new(Code::InvalidArgument, format!("invalid reference format: {name}")))
        };
        names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(parse).collect()
    }

    fn flag(&self, name: &str) -> bool {
        self.attributes.get(name).is_some_and(|value| value == "true" || value == "1")
    }
}

/// Exports a result; what the client is told of it.
pub async fn export(
    buildkit: &Arc<BuildKit>,
    session: &str,
    wish: &Export,
    number: usize,
    built: &Built,
    running: &Arc<Running>,
) -> Result<HashMap<String, String>, Status> {
    let what = match wish.kind.as_str() {
        "" | "cacheonly" => return Ok(HashMap::new()),
        "moby" | "image" => "exporting to image",
        "docker" => "exporting to docker image format",
        "oci" => "exporting to oci image format",
        "local" => "exporting to client directory",
        "tar" => "exporting to client tarball",
        other => return Err(Status::new(Code::NotFound, format!("exporter {other:?} could not be found"))),
    };
    let step = running.begin_step(what);
    let done = match wish.kind.as_str() {
        "moby" | "image" => name(buildkit, session, wish, built, running, &step).await,
        "docker" | "oci" => archive(buildkit, session, wish, number, built).await,
        kind => files(buildkit, session, kind == "tar", number, built).await,
    };
    running.end_step(&step, false, done.as_ref().err().map(Status::message));
    done
}

fn digests(built: &Built) -> HashMap<String, String> {
    let id = built.image.to_string();
    HashMap::from([("containerimage.digest".to_owned(), id.clone()), ("containerimage.config.digest".to_owned(), id)])
}

async fn name(
    buildkit: &Arc<BuildKit>,
    session: &str,
    wish: &Export,
    built: &Built,
    running: &Running,
    step: &str,
) -> Result<HashMap<String, String>, Status> {
    let store = &buildkit.options.store;
    let id = built.image.to_string();
    running.progress(step, "exporting layers", 0);
    running.progress(step, &format!("writing image {id}"), 0);
    let names = wish.names()?;
    for name in &names {
        store.tag(&id, &name.to_string()).map_err(status)?;
        if let Some(told) = buildkit.tagged.get() {
            told(&id, &name.to_string());
        }
        running.progress(step, &format!("naming to {name}"), 0);
    }
    let mut response = digests(built);
    if wish.flag("push") {
        let session = buildkit.sessions.get(session).await?;
        for name in &names {
            let found = session.credentials(&name.registry).await?;
            let credentials =
                found.map(|(username, password)| Credentials { username, password, ..Credentials::default() });
            let failed = |error| {
                let status = status(error);
                Status::new(status.code(), format!("failed to push {name}: {}", status.message()))
            };
            let pushed = store.push(name, credentials.as_ref(), &Progress::none()).await.map_err(failed)?;
            running.progress(step, &format!("pushing manifest for {name}@{}", pushed.digest), 0);
            response.insert("containerimage.digest".to_owned(), pushed.digest.to_string());
        }
    }
    if !names.is_empty() {
        let list: Vec<String> = names.iter().map(ToString::to_string).collect();
        response.insert("image.name".to_owned(), list.join(","));
    }
    Ok(response)
}

async fn archive(
    buildkit: &Arc<BuildKit>,
    session: &str,
    wish: &Export,
    number: usize,
    built: &Built,
) -> Result<HashMap<String, String>, Status> {
    if wish.attributes.get("tar").is_some_and(|value| value == "false") {
        return Err(Status::new(Code::Unimplemented, "an image layout that is no archive is not supported"));
    }
    let store = &buildkit.options.store;
    let id = built.image.to_string();
    let mut names = Vec::new();
    for name in wish.names()? {
        store.tag(&id, &name.to_string()).map_err(status)?;
        names.push(name.to_string());
    }
    if names.is_empty() {
        names.push(id);
    }
    let session = buildkit.sessions.get(session).await?;
    let stream = store.save(&names).await.map_err(status)?;
    send::bytes(&session, number, stream).await?;
    Ok(digests(built))
}

async fn files(
    buildkit: &Arc<BuildKit>,
    session: &str,
    tar: bool,
    number: usize,
    built: &Built,
) -> Result<HashMap<String, String>, Status> {
    let session = buildkit.sessions.get(session).await?;
    let store = &buildkit.options.store;
    let scratch = Scratch::new(store).map_err(status)?;
    let mounted = store.mount_for_export(&built.image, scratch.path()).await.map_err(status)?;
    let root = mounted.rootfs().to_owned();
    let sent = if tar {
        let stream = image::archive::stream_of(move |out| image::layer::pack_tree(&root, out).map(drop));
        send::bytes(&session, number, stream).await
    } else {
        send::directory(&session, number, &root).await
    };
    mounted.remove().await.map_err(status)?;
    sent.map(|()| HashMap::new())
}
