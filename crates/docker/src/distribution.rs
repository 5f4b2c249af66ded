//! Looking into registries: what an image's name stands for there, and which repositories there are.

use std::sync::Arc;

use http::Method;
use image::Reference;
use serde_json::{Value, json};

use crate::body;
use crate::call::Call;
use crate::error::Error;
use crate::filters::Filters;
use crate::images::transfer::registry_auth;
use crate::operation::{Operation, Reply, run};
use crate::state::Docker;

/// The rows of this file.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation::new("ImageSearch", Method::GET, "/images/search", "list", "images", run!(image_search)),
    Operation::new(
        "DistributionInspect",
        Method::GET,
        "/distribution/{name...}/json",
        "get",
        "images",
        run!(distribution_inspect),
    )
    .since(30),
];

/// Most results that Docker lets a client ask for.
const RESULTS_MAX: usize = 100;

async fn image_search(docker: Arc<Docker>, call: Call) -> Reply {
    let term = call.query.text("term").unwrap_or("").to_owned();
    if term.contains("://") {
        return Err(Error::Invalid(format!(
            "invalid repository name: repository name ({term}) should not have a scheme"
        )));
    }
    let limit = call.query.number::<usize>("limit")?.filter(|limit| *limit > 0).unwrap_or(RESULTS_MAX);
    if limit > RESULTS_MAX {
        return Err(Error::Invalid(format!("limit {limit} is outside the range of [1, {RESULTS_MAX}]")));
    }
    let filters = Filters::of(&call.query, &["is-official", "is-automated", "stars"])?;
    let official = filters.boolean("is-official")?;
    // Registries count no stars and know of no automated builds, so these select all or nothing.
    let automated = filters.boolean("is-automated")?;
    let mut starred = false;
    for value in filters.values("stars") {
        let stars: u32 = value.parse().map_err(|_| Error::Invalid(format!("invalid filter 'stars=[{value}]'")))?;
        starred |= stars > 0;
    }
    let credentials = registry_auth(&call)?;
    let found = docker.images.search(&term, credentials.as_ref()).await?;
    let wanted = found
        .into_iter()
        .filter(|one| official.is_none_or(|wanted| wanted == one.official) && automated != Some(true) && !starred);
    let rows: Vec<Value> = wanted
        .take(limit)
        .map(|one| {
            json!({
                "star_count": 0,
                "is_official": one.official,
                "name": one.name,
                "is_automated": false,
                "description": "",
            })
        })
        .collect();
    body::json(&rows)
}

async fn distribution_inspect(docker: Arc<Docker>, call: Call) -> Reply {
    let name = call.parameter("name");
    let reference = Reference::parse_tagged(&crate::images::with_tag(name))?;
    let credentials = registry_auth(&call)?;
    let found = docker.images.describe_remote(&reference, credentials.as_ref()).await.map_err(refused)?;
    let platforms: Vec<Value> = found
        .platforms
        .iter()
        .map(|platform| {
            let mut shown = json!({ "architecture": platform.architecture, "os": platform.os });
            if !platform.variant.is_empty() {
                shown["variant"] = json!(platform.variant);
            }
            shown
        })
        .collect();
    let descriptor = &found.descriptor;
    body::json(&json!({
        "Descriptor": {
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest.to_string(),
            "size": descriptor.size,
        },
        "Platforms": platforms,
    }))
}

/// Docker tells a client that may not see an image the same as one that asks for what is not there.
fn refused(error: image::Error) -> Error {
    match error {
        image::Error::Unauthorized(text) => Error::Forbidden(text),
        other => other.into(),
    }
}
