//! The one generic path for every kind: from method, path and query to a verb of the machinery, and its result back to
//! HTTP. No kind is named here but where Kubernetes itself gives a subresource a protocol of its own (see `pods`).

use std::sync::Arc;

use apiserver::{Deleted, Kind, Object, PatchKind, RequestContext, ResourcePath, Status, Written};
use axum::response::Response;
use http::{Method, StatusCode, request::Parts};
use serde_json::{Value, json};

use crate::negotiate::{Form, Shape, negotiate};
use crate::query::Query;
use crate::router::{State, answer, json_response, with_warnings};
use crate::table::{self, Include};
use crate::{beside_pods, body, pods, watch};

/// A path below `/api` or `/apis`, taken apart.
#[derive(Debug, PartialEq)]
pub(crate) enum Target {
    /// `/apis/G/V` or `/api/v1`: discovery of one group and version.
    Version(String, String),
    /// A resource, collection or subresource; `true` for the old `/watch/` prefix. Further segments are the last part.
    Resource(ResourcePath, bool, String),
}

/// Longest path segment that is looked at. Units: bytes.
const MAX_SEGMENT_BYTES: usize = 512;
/// Subresources of `Namespace`, which look like resources inside it.
const NAMESPACE_SUBRESOURCES: &[&str] = &["status", "finalize"];

/// Takes a path apart; `None` when it is none of ours.
pub(crate) fn parse_path(path: &str) -> Option<Target> {
    let decoded: Vec<String> = path
        .strip_prefix('/')?
        .trim_end_matches('/')
        .split('/')
        .map(|segment| crate::query::percent_decode(segment, false))
        .collect();
    if decoded.iter().any(|segment| segment.is_empty() || segment.len() > MAX_SEGMENT_BYTES) {
        return None;
    }
    let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
    let (group, version, mut rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    if rest.is_empty() {
        return Some(Target::Version(group.to_owned(), version.to_owned()));
    }
    let mut watching = false;
    if let ["watch", after @ ..] = rest {
        (watching, rest) = (true, after);
    }
    let mut resource = ResourcePath { group: group.into(), version: version.into(), ..ResourcePath::default() };
    if let ["namespaces", namespace, inner, ..] = rest
        && !(group.is_empty() && NAMESPACE_SUBRESOURCES.contains(inner))
    {
        resource.namespace = Some((*namespace).to_owned());
        rest = &rest[2..];
    }
    resource.resource = (*rest.first()?).to_owned();
    resource.name = rest.get(1).map(|name| (*name).to_owned());
    resource.subresource = rest.get(2).map(|name| (*name).to_owned());
    let tail = rest.get(3..).unwrap_or_default().join("/");
    Some(Target::Resource(resource, watching, tail))
}

/// A request for a resource, with all that its handler needs.
pub(crate) struct Call {
    /// The server.
    pub(crate) state: State,
    /// Who asks.
    pub(crate) context: RequestContext,
    /// The kind addressed.
    pub(crate) kind: Arc<Kind>,
    /// Where.
    pub(crate) path: ResourcePath,
    /// The parameters.
    pub(crate) query: Query,
    /// Method, headers, extensions.
    pub(crate) parts: Parts,
    /// The body, unread; in a mutex only so that the whole can be shared between threads.
    body: std::sync::Mutex<axum::body::Body>,
}

impl Call {
    /// Reads the body; a second reading finds it empty.
    async fn read_body(&mut self) -> Result<bytes::Bytes, Status> {
        let body = self.body.get_mut().map(std::mem::take).unwrap_or_default();
        body::read(body).await
    }
}

/// Serves a request for a resource.
pub(crate) async fn serve(
    state: State,
    context: RequestContext,
    (path, watching, tail): (ResourcePath, bool, String),
    query: Query,
    request: (Parts, axum::body::Body),
) -> Result<Response, Status> {
    let table = state.api.kinds();
    let kind = table.lookup(&path.group, &path.version, &path.resource).cloned();
    let Some(kind) = kind else { return Err(Status::no_such_resource()) };
    let misplaced = !tail.is_empty()
        || (path.namespace.is_some() && !kind.namespaced)
        || (path.namespace.is_none() && kind.namespaced && path.name.is_some())
        || !known_subresource(&kind, path.subresource.as_deref());
    if misplaced {
        return Err(Status::no_such_resource());
    }
    let (parts, body) = request;
    let call = Call { state, context, kind, path, query, parts, body: body.into() };
    if !call.kind.stored && call.parts.method != Method::POST {
        return Err(not_allowed(&call));
    }
    if let Some(stream) = pods::protocol(&call.path) {
        return pods::serve(stream, call).await;
    }
    let method = call.parts.method.clone();
    let named = call.path.name.is_some();
    if method == Method::GET || method == Method::HEAD {
        match (named, watching || call.query.flag("watch")) {
            (_, true) => start_watch(call).await,
            (true, false) => get(call).await,
            (false, false) => list(call).await,
        }
    } else if method == Method::POST && (!named || call.path.subresource.is_some()) {
        create(call).await
    } else if method == Method::PUT && named {
        update(call).await
    } else if method == Method::PATCH && named {
        patch(call).await
    } else if method == Method::DELETE {
        if named { delete(call).await } else { delete_collection(call).await }
    } else {
        Err(not_allowed(&call))
    }
}

fn known_subresource(kind: &Kind, subresource: Option<&str>) -> bool {
    match subresource {
        None => true,
        Some("status") => kind.status_subresource,
        Some("scale") => kind.scale.is_some() || kind.subresources.iter().any(|one| one.name == "scale"),
        Some(other) => kind.subresources.iter().any(|one| one.name == other),
    }
}

pub(crate) fn not_allowed(_: &Call) -> Status {
    Status::new(
        405,
        apiserver::Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    )
}

async fn get(call: Call) -> Result<Response, Status> {
    let form = negotiate(&call.parts.headers)?;
    let object = call.state.api.get(&call.context, &call.path, &call.query.get_options()).await?;
    one(&call, form, &object, StatusCode::OK)
}

async fn list(call: Call) -> Result<Response, Status> {
    let form = negotiate(&call.parts.headers)?;
    let options = call.query.list_options()?;
    let mut list = call.state.api.list(&call.context, &call.path, &options).await?;
    if let (Shape::Object, Some(machine)) = (form.shape, beside_pods::machine(&call.path, &options)) {
        beside_pods::add(&call.state.api, &call.context, machine, &mut list).await;
    }
    many(&call, form, &list)
}

fn many(call: &Call, form: Form, list: &apiserver::ObjectList) -> Result<Response, Status> {
    let bytes = match form.shape {
        Shape::Object => list.to_json(&call.kind.api_version(), &format!("{}List", call.kind.kind)),
        Shape::Metadata => {
            let items: Vec<Value> = list.items.iter().map(|item| table::partial_metadata(item.to_value())).collect();
            let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": table::list_metadata(list), "items": items});
            list.to_string().into()
        }
        Shape::Table => {
            let (include, now) = (Include::parse(call.query.get("includeObject"))?, (call.state.now)());
            let rows = list.items.iter().map(|item| table::row(&call.kind, item.to_value(), include, now)).collect();
            let heads = table::column_definitions(&call.kind);
            table::table(Some(heads), rows, table::list_metadata(list)).to_string().into()
        }
    };
    answer(StatusCode::OK, form.spelling, bytes)
}

/// One object in the form that was asked for.
fn one(call: &Call, form: Form, object: &Object, code: StatusCode) -> Result<Response, Status> {
    let bytes = match form.shape {
        Shape::Object => object.bytes.clone(),
        Shape::Metadata => table::partial_metadata(object.to_value()).to_string().into(),
        Shape::Table => {
            let value = object.to_value();
            if value.get("kind").and_then(Value::as_str) != Some(&call.kind.kind) {
                return answer(code, form.spelling, object.bytes.clone());
            }
            let include = Include::parse(call.query.get("includeObject"))?;
            let metadata = table::single_metadata(&value);
            let row = table::row(&call.kind, value, include, (call.state.now)());
            table::table(Some(table::column_definitions(&call.kind)), vec![row], metadata).to_string().into()
        }
    };
    answer(code, form.spelling, bytes)
}

async fn start_watch(call: Call) -> Result<Response, Status> {
    let form = negotiate(&call.parts.headers)?;
    let include = Include::parse(call.query.get("includeObject"))?;
    let options = call.query.list_options()?;
    let events = match call.state.api.watch(&call.context, &call.path, &options).await {
        // As kube-apiserver says it: clients list anew on this event, and some try the same watch again on a status alone.
        Err(status) if status.reason == apiserver::Reason::Expired => {
            let object = bytes::Bytes::from(status.to_value().to_string());
            let event = apiserver::WatchEvent::new(apiserver::EventKind::Error, object);
            Box::pin(futures::stream::iter([event]))
        }
        started => started?,
    };
    Ok(watch::response(events, watch::Dress { kind: call.kind, shape: form.shape, include, now: call.state.now }))
}

fn written(call: &Call, form: Form, written: &Written) -> Result<Response, Status> {
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = one(call, form, &written.object, code)?;
    let deprecation = call.kind.deprecation.iter().cloned();
    with_warnings(&mut response, deprecation.chain(written.warnings.iter().cloned()));
    Ok(response)
}

async fn create(mut call: Call) -> Result<Response, Status> {
    let form = negotiate(&call.parts.headers)?;
    let options = call.query.write_options("CreateOptions", false)?;
    let bytes = call.read_body().await?;
    let body = body::object(&call.parts.headers, bytes)?;
    let mut result = call.state.api.create(&call.context, &call.path, body, &options).await?;
    // Posting to a subresource (binding, eviction, token) is answered 201 whatever it did to the object.
    result.created = true;
    written(&call, form, &result)
}

async fn update(mut call: Call) -> Result<Response, Status> {
    let form = negotiate(&call.parts.headers)?;
    let options = call.query.write_options("UpdateOptions", false)?;
    let bytes = call.read_body().await?;
    let body = body::object(&call.parts.headers, bytes)?;
    let result = call.state.api.update(&call.context, &call.path, body, &options).await?;
    written(&call, form, &result)
}

async fn patch(mut call: Call) -> Result<Response, Status> {
    let form = negotiate(&call.parts.headers)?;
    let kind = match body::media_type(&call.parts.headers).as_str() {
        "application/json-patch+json" => PatchKind::Json,
        "application/merge-patch+json" => PatchKind::Merge,
        "application/strategic-merge-patch+json" if !call.kind.custom => PatchKind::Strategic,
        "application/apply-patch+yaml" => PatchKind::Apply,
        _ => {
            return Err(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml\
                 , application/strategic-merge-patch+json",
            ));
        }
    };
    let options = call.query.write_options("PatchOptions", kind == PatchKind::Apply)?;
    let mut bytes = call.read_body().await?;
    if kind == PatchKind::Apply {
        bytes = body::apply_patch(&bytes)?;
    } else {
        body::check_depth(&bytes)?;
    }
    let result = call.state.api.patch(&call.context, &call.path, kind, bytes, &options).await?;
    written(&call, form, &result)
}

async fn delete_body(call: &mut Call) -> Result<Option<Value>, Status> {
    let bytes = call.read_body().await?;
    if bytes.is_empty() { Ok(None) } else { body::value(&call.parts.headers, bytes).map(Some) }
}

async fn delete(mut call: Call) -> Result<Response, Status> {
    let form = negotiate(&call.parts.headers)?;
    let body = delete_body(&mut call).await?;
    let options = call.query.delete_options(body.as_ref())?;
    let Deleted { object, gone, warnings } = call.state.api.delete(&call.context, &call.path, &options).await?;
    let answers_object = !gone || call.kind.is("", "pods") || call.kind.is("", "services");
    let mut response = if answers_object {
        one(&call, form, &object, StatusCode::OK)?
    } else {
        let uid = object.to_value().pointer("/metadata/uid").cloned().unwrap_or_default();
        let details = json!({"name": call.path.name, "group": call.path.group, "kind": call.path.resource, "uid": uid});
        json_response(
            StatusCode::OK,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
        )
    };
    with_warnings(&mut response, warnings);
    Ok(response)
}

async fn delete_collection(mut call: Call) -> Result<Response, Status> {
    let form = negotiate(&call.parts.headers)?;
    let body = delete_body(&mut call).await?;
    let options = call.query.delete_options(body.as_ref())?;
    let selection = call.query.list_options()?;
    let list = call.state.api.delete_collection(&call.context, &call.path, &options, &selection).await?;
    many(&call, form, &list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str) -> (String, Option<String>, String, Option<String>, Option<String>) {
        match parse_path(path) {
            Some(Target::Resource(p, _, _)) => (p.group, p.namespace, p.resource, p.name, p.subresource),
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_are_taken_apart() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(check("/api/v1/pods"), (String::new(), None, "pods".into(), None, None));
        assert_eq!(check("/api/v1/namespaces/a"), (String::new(), None, "namespaces".into(), some("a"), None));
        assert_eq!(
            check("/api/v1/namespaces/a/status"),
            (String::new(), None, "namespaces".into(), some("a"), some("status"))
        );
        assert_eq!(
            check("/api/v1/namespaces/a/pods/b/log"),
            (String::new(), some("a"), "pods".into(), some("b"), some("log"))
        );
        assert_eq!(
            check("/apis/apps/v1/namespaces/a/deployments/"),
            ("apps".into(), some("a"), "deployments".into(), None, None)
        );
        assert_eq!(check("/apis/g/v1/things/a%3Ab"), ("g".into(), None, "things".into(), some("a:b"), None));
        assert_eq!(parse_path("/apis/apps/v1"), Some(Target::Version("apps".into(), "v1".into())));
        assert!(matches!(parse_path("/api/v1/watch/pods"), Some(Target::Resource(_, true, _))));
        for bad in ["/", "/api", "/apis/apps", "/api/v1//pods", "/nothing"] {
            assert_eq!(parse_path(bad), None, "{bad}");
        }
    }
}
