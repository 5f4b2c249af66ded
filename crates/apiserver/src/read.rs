//! get, list and watch: all from the cache, except pages of a list that must show an older revision.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use store::{KeyRange, RangeRequest};

use crate::cache::{Watcher, WatcherOptions};
use crate::encoding;
use crate::fairness::WatchPlace;
use crate::keys;
use crate::kind::Kind;
use crate::object::{Object, ObjectList};
use crate::options::{GetOptions, ListOptions, ResourceVersionMatch};
use crate::path::ResourcePath;
use crate::selector::{FieldSelector, LabelSelector};
use crate::server::ApiServer;
use crate::status::{Cause, Status};
use crate::watch::WatchStream;

/// How long a read waits for the cache to reach the version that it asks for; as kube-apiserver does.
const FRESHNESS_WAIT: Duration = Duration::from_secs(3);
/// Longest and default life of a watch. Units: seconds.
const WATCH_SECONDS: std::ops::RangeInclusive<u64> = 1800..=3600;
/// Objects read from the store at once when a list shows an old revision.
const STORE_PAGE: usize = 1_000;

pub(crate) struct Selection {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Selection {
    pub(crate) fn parse(kind: &Kind, path: &ResourcePath, o: &ListOptions) -> Result<Selection, Status> {
        let labels = LabelSelector::parse(o.label_selector.as_deref().unwrap_or_default())
            .map_err(|problem| Status::bad_request(format!("unable to parse requirement: {problem}")))?;
        let mut fields =
            FieldSelector::parse(o.field_selector.as_deref().unwrap_or_default(), kind).map_err(Status::bad_request)?;
        if let Some(name) = &path.name {
            fields = fields.and_name(name);
        }
        Ok(Selection { labels, fields })
    }

    pub(crate) fn wants(&self, object: &Object) -> bool {
        self.labels.matches(&object.meta.labels) && self.fields.matches(&object.meta)
    }

    fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }
}

impl ApiServer {
    /// A collection request that selects one name is authorized like a request for that name.
    pub(crate) fn named_by_field(&self, path: &ResourcePath, o: &ListOptions) -> ResourcePath {
        let mut path = path.clone();
        if path.name.is_none()
            && let (Ok(kind), Some(text)) = (self.kind(&path), &o.field_selector)
            && let Ok(selector) = FieldSelector::parse(text, &kind)
        {
            path.name = selector.name().map(str::to_owned);
        }
        path
    }

    pub(crate) async fn get_object(&self, path: &ResourcePath, o: &GetOptions) -> Result<Object, Status> {
        let kind = self.kind(path)?;
        if !kind.stored {
            return Err(Status::method_not_allowed(&kind.group, &kind.plural, "get"));
        }
        if let Some(version) = parse_version(o.resource_version.as_deref())? {
            self.reach(version).await?;
        }
        let object = self.present(&kind, path)?;
        match path.subresource.as_deref() {
            None | Some("status" | "ephemeralcontainers" | "resize" | "approval") => Ok(show(&kind, object)),
            Some("scale") => crate::scale::get(&kind, &object),
            Some(_) => Err(Status::no_such_resource()),
        }
    }

    pub(crate) async fn list_objects(&self, path: &ResourcePath, o: &ListOptions) -> Result<ObjectList, Status> {
        let kind = self.kind(path)?;
        if !kind.stored || path.subresource.is_some() {
            return Err(Status::method_not_allowed(&kind.group, &kind.plural, "list"));
        }
        check_list_options(o)?;
        let selection = Selection::parse(&kind, path, o)?;
        let prefix = prefix_of(path);
        let limit = o.limit.filter(|limit| *limit > 0).map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        if let Some(token) = o.continue_token.as_deref().filter(|token| !token.is_empty()) {
            let (revision, start) = read_token(token)?;
            return self.list_continued(&kind, &prefix, &selection, limit, revision, &start).await;
        }
        let version = parse_version(o.resource_version.as_deref())?;
        if let (Some(version), Some(ResourceVersionMatch::Exact)) = (version, o.resource_version_match) {
            self.reach(version).await?;
            return self.list_at(&kind, &prefix, &selection, limit, version, None).await;
        }
        if let Some(version) = version {
            self.reach(version).await?;
        }
        let known = self.progress.revision();
        let (items, last) = self.cache(&kind).collect(&prefix, None, |object| selection.wants(object));
        Ok(page(&kind, items, last.max(known), limit, selection.is_everything()))
    }

    /// A further page: from the cache when nothing changed since the first, else from the store's history.
    async fn list_continued(
        &self,
        kind: &Kind,
        prefix: &str,
        selection: &Selection,
        limit: Option<usize>,
        revision: u64,
        start: &str,
    ) -> Result<ObjectList, Status> {
        if !start.starts_with(prefix) {
            return Err(Status::bad_request("continue key is not valid: it is of another collection"));
        }
        let cache = self.cache(kind);
        let known = self.progress.revision();
        let (items, last) = cache.collect(prefix, Some(start), |object| selection.wants(object));
        if last <= revision || revision == 0 {
            let revision = if revision == 0 { last.max(known) } else { revision };
            return Ok(page(kind, items, revision, limit, selection.is_everything()));
        }
        match self.list_at(kind, prefix, selection, limit, revision, Some(start)).await {
            Err(status) if status.reason == crate::status::Reason::Expired => {
                let mut expired = Status::expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
                     the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
                     Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
                     deleted between the time the first chunk was returned and now may show up in the list.",
                );
                expired.details.causes.push(Cause {
                    reason: "continue".into(),
                    message: token(0, start),
                    field: String::new(),
                });
                Err(expired)
            }
            other => other,
        }
    }

    /// A list as of an old revision, from the store.
    async fn list_at(
        &self,
        kind: &Kind,
        prefix: &str,
        selection: &Selection,
        limit: Option<usize>,
        revision: u64,
        after: Option<&str>,
    ) -> Result<ObjectList, Status> {
        let base = keys::object(kind, "");
        let first = format!("{base}{prefix}");
        let end = Bytes::from(crate::cache::prefix_end(&first));
        let mut start = match after {
            Some(after) => Bytes::from(format!("{base}{after}\0")),
            None => Bytes::from(first),
        };
        let wanted = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
        let mut items: Vec<Object> = Vec::new();
        loop {
            let range = KeyRange::Between(start.clone(), end.clone());
            let found = self
                .store
                .range(RangeRequest { range, revision: Some(revision), limit: STORE_PAGE, keys_only: false })
                .await?;
            for item in &found.items {
                let Some((_, relative)) = std::str::from_utf8(&item.key).ok().and_then(keys::split) else { continue };
                let object = encoding::object(relative, &item.value, item.mod_revision, &kind.selectable_fields);
                if selection.wants(&object) && items.len() < wanted {
                    items.push(object);
                }
            }
            match found.items.last() {
                Some(last) if found.items.len() == STORE_PAGE && items.len() < wanted => {
                    start = Bytes::from([&last.key[..], b"\0"].concat());
                }
                _ => break,
            }
        }
        Ok(page(kind, items, revision, limit, false))
    }

    pub(crate) async fn watch_objects(
        &self,
        path: &ResourcePath,
        o: &ListOptions,
        place: WatchPlace,
    ) -> Result<WatchStream, Status> {
        let kind = self.kind(path)?;
        if !kind.stored || path.subresource.is_some() {
            return Err(Status::method_not_allowed(&kind.group, &kind.plural, "watch"));
        }
        check_watch_options(o)?;
        let selection = Selection::parse(&kind, path, o)?;
        let seconds = o
            .timeout_seconds
            .filter(|seconds| *seconds > 0)
            .map_or_else(|| rand::random_range(WATCH_SECONDS), |seconds| seconds.min(*WATCH_SECONDS.end()));
        let options = WatcherOptions {
            prefix: prefix_of(path),
            labels: selection.labels,
            fields: selection.fields,
            bookmarks: o.allow_bookmarks,
            mark_initial: o.send_initial_events == Some(true),
            ends: tokio::time::Instant::now() + Duration::from_secs(seconds),
            kind: kind.clone(),
        };
        let (cache, progress) = (self.cache(&kind), self.progress.clone());
        let version = parse_version(o.resource_version.as_deref())?;
        let watcher = match (o.send_initial_events, version) {
            (Some(true), version) => {
                self.reach(version.unwrap_or(0)).await?;
                Watcher::from_present(cache, progress, options)
            }
            (Some(false), None) => Watcher::since(cache, progress, options, self.progress.revision())?,
            (_, None | Some(0)) => Watcher::from_present(cache, progress, options),
            (_, Some(version)) => {
                self.reach(version).await?;
                Watcher::since(cache, progress, options, version)?
            }
        };
        Ok(watcher
            .stream()
            .map(move |event| {
                // The place is given back when the stream is dropped.
                let _held = &place;
                event
            })
            .boxed())
    }

    /// Waits until the cache knows `version`. Errors: a version from the future.
    async fn reach(&self, version: u64) -> Result<(), Status> {
        if self.progress.revision() >= version {
            return Ok(());
        }
        // Do not keep clients waiting for a version that the store itself does not have.
        let newest = self.store.revision().await?;
        if version <= newest && self.progress.wait(version, FRESHNESS_WAIT).await {
            return Ok(());
        }
        Err(Status::too_large_version(version, newest))
    }
}

fn prefix_of(path: &ResourcePath) -> String {
    path.namespace
        .as_deref()
        .filter(|namespace| !namespace.is_empty())
        .map_or(String::new(), |namespace| format!("{namespace}/"))
}

pub(crate) fn show(kind: &Kind, object: Object) -> Object {
    Object { bytes: encoding::shown(kind, &object.bytes), meta: object.meta }
}

fn page(kind: &Kind, mut items: Vec<Object>, revision: u64, limit: Option<usize>, count_known: bool) -> ObjectList {
    let total = items.len();
    let mut list = ObjectList { resource_version: revision, ..ObjectList::default() };
    if let Some(limit) = limit.filter(|limit| *limit < total) {
        items.truncate(limit);
        list.continue_token = items.last().map(|last| token(revision, &last.meta.key));
        list.remaining = count_known.then(|| u64::try_from(total - limit).unwrap_or(u64::MAX));
    }
    for item in &mut items {
        item.bytes = encoding::shown(kind, &item.bytes);
    }
    list.items = items;
    list
}

fn token(revision: u64, start: &str) -> String {
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string())
}

fn read_token(token: &str) -> Result<(u64, String), Status> {
    let read = || -> Option<(u64, String)> {
        let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).ok()?).ok()?;
        Some((value["rv"].as_u64()?, value["start"].as_str()?.to_owned()))
    };
    read().ok_or_else(|| Status::bad_request("continue key is not valid: it was not made by this server"))
}

pub(crate) fn parse_version(text: Option<&str>) -> Result<Option<u64>, Status> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Status::bad_request(format!("Invalid value: {text:?}: invalid resource version"))),
    }
}

fn check_list_options(o: &ListOptions) -> Result<(), Status> {
    let version = o.resource_version.as_deref().unwrap_or_default();
    let continued = o.continue_token.as_deref().is_some_and(|token| !token.is_empty());
    let mut causes = Vec::new();
    if o.resource_version_match.is_some() {
        if version.is_empty() {
            causes.push(Cause::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if continued {
            causes.push(Cause::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if o.resource_version_match == Some(ResourceVersionMatch::Exact) && version == "0" {
            causes.push(Cause::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    if o.send_initial_events.is_some() {
        causes.push(Cause::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if continued && !matches!(version, "" | "0") {
        return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
    }
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", causes)) }
}

fn check_watch_options(o: &ListOptions) -> Result<(), Status> {
    let mut causes = Vec::new();
    match (o.send_initial_events, o.resource_version_match) {
        (Some(_), Some(ResourceVersionMatch::NotOlderThan)) | (None, None) => {}
        (Some(_), _) => causes.push(Cause::forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )),
        (None, Some(_)) => causes.push(Cause::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
    }
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", causes)) }
}
