//! Referrers: the manifests of a repository that say something about another.

use axum::extract::{Query, Request};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use image::Digest;
use image::manifest::{Index, OCI_INDEX};
use serde::Deserialize;

use crate::error::{Code, Failure};
use crate::view::Registry;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    artifact_type: Option<String>,
}

pub(crate) fn list(registry: &Registry, name: &str, subject: &Digest, request: &Request) -> Result<Response, Failure> {
    let Query(filter): Query<Filter> =
        Query::try_from_uri(request.uri()).map_err(|_| Failure::new(Code::Unsupported, "invalid filter"))?;
    let wanted = filter.artifact_type.as_deref();
    let manifests = registry.repositories().look(name, |repository| {
        let about = repository.manifests.values().filter(|manifest| manifest.subject.as_ref() == Some(subject));
        let descriptors = about.map(|manifest| manifest.descriptor.clone());
        descriptors.filter(|one| wanted.is_none() || one.artifact_type.as_deref() == wanted).collect()
    });
    let index = Index {
        schema_version: 2,
        media_type: OCI_INDEX.to_owned(),
        artifact_type: None,
        manifests: manifests.unwrap_or_default(),
        subject: None,
        annotations: None,
    };
    let body = serde_json::to_vec(&index).map_err(|_| Failure::new(Code::Unknown, "unknown error"))?;
    let mut response = ([(header::CONTENT_TYPE, OCI_INDEX)], body).into_response();
    if wanted.is_some() {
        response.headers_mut().insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}
