//! Content negotiation: in which form an answer goes out. Pure.

use apiserver::Status;
use http::HeaderMap;
use http::header::ACCEPT;

/// Which shape of an object the client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The object itself.
    #[default]
    Object,
    /// `meta.k8s.io/v1` `Table`.
    Table,
    /// `meta.k8s.io/v1` `PartialObjectMetadata`, or its list.
    Metadata,
}

/// How the answer is spelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// JSON.
    #[default]
    Json,
    /// YAML.
    Yaml,
}

/// The outcome of negotiation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    /// Which shape.
    pub(crate) shape: Shape,
    /// Which spelling.
    pub(crate) spelling: Spelling,
}

/// Most media ranges of one `Accept` header that are looked at.
const MAX_RANGES: usize = 32;

/// Picks the first acceptable form, in the client's order (clients of Kubernetes order by preference, `q` or not).
pub(crate) fn negotiate(headers: &HeaderMap) -> Result<Form, Status> {
    let Some(accept) = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).filter(|text| !text.trim().is_empty())
    else {
        return Ok(Form::default());
    };
    accept.split(',').take(MAX_RANGES).find_map(form_of).ok_or_else(|| {
        Status::not_acceptable("only the following media types are accepted: application/json, application/yaml")
    })
}

fn form_of(range: &str) -> Option<Form> {
    let mut parts = range.split(';').map(str::trim);
    let spelling = match parts.next()?.to_ascii_lowercase().as_str() {
        "application/json" | "*/*" | "application/*" => Spelling::Json,
        "application/yaml" => Spelling::Yaml,
        _ => return None,
    };
    let (mut kind, mut group, mut version) = ("", "", "");
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        match name.trim() {
            "as" => kind = value.trim(),
            "g" => group = value.trim(),
            "v" => version = value.trim(),
            _ => {}
        }
    }
    let shape = match (kind, group, version) {
        ("", _, _) => Shape::Object,
        ("Table", "meta.k8s.io", "v1" | "v1beta1") => Shape::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1" | "v1beta1") => Shape::Metadata,
        _ => return None,
    };
    Some(Form { shape, spelling })
}

/// Whether the client prefers the aggregated discovery document (`v2`).
pub(crate) fn wants_aggregated(headers: &HeaderMap) -> bool {
    let Some(accept) = headers.get(ACCEPT).and_then(|value| value.to_str().ok()) else { return false };
    accept.split(',').take(MAX_RANGES).any(|range| {
        let range = range.replace(' ', "");
        range.starts_with("application/json")
            && range.contains(";g=apidiscovery.k8s.io")
            && range.contains(";v=v2;")
            && range.ends_with(";as=APIGroupDiscoveryList")
            || range == "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList;profile=unmerged"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str) -> Option<(Shape, Spelling)> {
        let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
        negotiate(&headers).ok().map(|form| (form.shape, form.spelling))
    }

    #[test]
    fn the_clients_first_acceptable_form_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(check(kubectl), Some((Shape::Table, Spelling::Json)));
        assert_eq!(
            check("application/vnd.kubernetes.protobuf,application/json"),
            Some((Shape::Object, Spelling::Json))
        );
        assert_eq!(
            check("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
            Some((Shape::Metadata, Spelling::Json))
        );
        assert_eq!(check("application/yaml"), Some((Shape::Object, Spelling::Yaml)));
        assert_eq!(check("*/*"), Some((Shape::Object, Spelling::Json)));
        assert_eq!(check("application/vnd.kubernetes.protobuf"), None);
        assert_eq!(check("text/html"), None);
    }

    #[test]
    fn aggregated_discovery_is_recognised() {
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        assert!(wants_aggregated(&HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())])));
        assert!(!wants_aggregated(&HeaderMap::from_iter([(ACCEPT, "application/json".parse().unwrap())])));
    }
}
