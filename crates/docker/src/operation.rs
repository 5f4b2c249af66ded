//! The rows: what one operation of the Engine API is, the table of all of them, and finding the row for a request.

use std::sync::Arc;

use axum::response::Response;
use futures::future::BoxFuture;
use http::Method;

use crate::call::Call;
use crate::error::Error;
use crate::state::Docker;
use crate::version::{ApiVersion, MAXIMUM_VERSION, MINIMUM_VERSION};
use crate::{containers, distribution, exec, images, networks, swarm, system, unsupported, volumes};

/// Answer of an operation.
pub(crate) type Reply = Result<Response, Error>;
/// The function behind a row.
pub(crate) type Handler = fn(Arc<Docker>, Call) -> BoxFuture<'static, Reply>;

/// What a caller must be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// `get`, `list`, `create`, `update`, `delete` or `connect`.
    pub verb: &'static str,
    /// What it is done to: `containers`, `images`, `networks`, `volumes`, `system`, `swarm`, `plugins`.
    pub kind: &'static str,
}

/// How far an operation is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// As documented.
    Done,
    /// Works, with this part lacking.
    Partial(&'static str),
    /// Answers 501 with this text.
    Missing(&'static str),
}

/// One row.
pub(crate) struct Operation {
    pub(crate) info: OperationInfo,
    pub(crate) run: Handler,
}

/// The public part of a row: all but the function.
#[derive(Clone, Debug)]
pub struct OperationInfo {
    /// Docker's own operation id.
    pub id: &'static str,
    /// HTTP method.
    pub method: Method,
    /// Literal path without the version; `{name}` is one segment, `{name...}` one or more.
    pub path: &'static str,
    /// First version that has it.
    pub since: ApiVersion,
    /// Last version that has it.
    pub until: ApiVersion,
    /// What the caller must be allowed to do.
    pub access: Access,
    /// How far it is built.
    pub support: Support,
}

impl Operation {
    /// A finished operation of all versions.
    pub(crate) const fn new(
        id: &'static str,
        method: Method,
        path: &'static str,
        verb: &'static str,
        kind: &'static str,
        run: Handler,
    ) -> Self {
        let access = Access { verb, kind };
        let info = OperationInfo {
            id,
            method,
            path,
            since: MINIMUM_VERSION,
            until: MAXIMUM_VERSION,
            access,
            support: Support::Done,
        };
        Self { info, run }
    }

    /// Only since version `1.minor`.
    pub(crate) const fn since(mut self, minor: u16) -> Self {
        self.info.since = ApiVersion::new(minor);
        self
    }

    /// Works but for a part.
    pub(crate) const fn partial(mut self, lacking: &'static str) -> Self {
        self.info.support = Support::Partial(lacking);
        self
    }

    /// Does not work yet.
    pub(crate) const fn missing(mut self, reason: &'static str) -> Self {
        self.info.support = Support::Missing(reason);
        self
    }
}

/// Turns an `async fn(Arc<Docker>, Call) -> Reply` into a [`Handler`].
macro_rules! run {
    ($function:path) => {
        |docker, call| Box::pin($function(docker, call))
    };
}
pub(crate) use run;

/// All rows, group by group.
fn tables() -> [&'static [Operation]; 21] {
    [
        containers::OPERATIONS,
        containers::lifecycle::OPERATIONS,
        containers::streams::OPERATIONS,
        containers::archive::OPERATIONS,
        exec::OPERATIONS,
        images::OPERATIONS,
        images::build::OPERATIONS,
        images::buildkit::OPERATIONS,
        images::transfer::OPERATIONS,
        distribution::OPERATIONS,
        networks::OPERATIONS,
        volumes::OPERATIONS,
        system::OPERATIONS,
        swarm::cluster::OPERATIONS,
        swarm::nodes::OPERATIONS,
        swarm::services::OPERATIONS,
        swarm::tasks::OPERATIONS,
        swarm::logs::OPERATIONS,
        swarm::secrets::OPERATIONS,
        swarm::configs::OPERATIONS,
        unsupported::OPERATIONS,
    ]
}

/// Every operation that has a row, for status pages and coverage tests.
pub fn operations() -> Vec<OperationInfo> {
    tables().into_iter().flatten().map(|row| row.info.clone()).collect()
}

/// Finds the row for a request and the values of its placeholders (percent-decoded).
pub(crate) fn find(
    method: &Method,
    version: ApiVersion,
    path: &str,
) -> Option<(&'static Operation, Vec<(&'static str, String)>)> {
    tables()
        .into_iter()
        .flatten()
        .filter(|row| row.info.method == *method && row.info.since <= version && version <= row.info.until)
        .find_map(|row| capture(row.info.path, path).map(|values| (row, values)))
}

/// Matches a literal path with placeholders.
fn capture(pattern: &'static str, path: &str) -> Option<Vec<(&'static str, String)>> {
    let mut values = Vec::new();
    let mut wanted = pattern.split('/').peekable();
    let mut given: Vec<&str> = path.split('/').collect();
    given.reverse();
    while let Some(want) = wanted.next() {
        if let Some(name) = want.strip_prefix('{').and_then(|w| w.strip_suffix("...}")) {
            let after = wanted.clone().count();
            let take = given.len().checked_sub(after).filter(|n| *n > 0)?;
            let joined: Vec<&str> = (0..take).filter_map(|_| given.pop()).collect();
            let joined = crate::text::percent_decode(&joined.join("/"));
            if joined.is_empty() {
                return None;
            }
            values.push((name, joined));
        } else if let Some(name) = want.strip_prefix('{').and_then(|w| w.strip_suffix('}')) {
            let value = crate::text::percent_decode(given.pop()?);
            if value.is_empty() {
                return None;
            }
            values.push((name, value));
        } else if given.pop()? != want {
            return None;
        }
    }
    given.is_empty().then_some(values)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn lines(text: &str) -> BTreeSet<&str> {
        text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect()
    }

    #[test]
    fn every_documented_operation_has_exactly_one_row() {
        let documented = lines(include_str!("../spec/operations.txt"));
        let rows = operations();
        let ids: BTreeSet<&str> = rows.iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), rows.len(), "an operation id is there twice");
        assert_eq!(documented.difference(&ids).collect::<Vec<_>>(), Vec::<&&str>::new(), "without a row");
        assert_eq!(ids.difference(&documented).collect::<Vec<_>>(), Vec::<&&str>::new(), "not documented");
    }

    #[test]
    fn missing_txt_lists_exactly_the_operations_that_we_lack() {
        let listed = lines(include_str!("../spec/missing.txt"));
        let rows = operations();
        let lacking: BTreeSet<&str> =
            rows.iter().filter(|r| matches!(r.support, Support::Missing(_))).map(|r| r.id).collect();
        assert_eq!(listed, lacking);
    }

    #[test]
    fn no_row_hides_another() {
        for row in operations() {
            let path = row.path.replace("...}", "}").replace('{', "x").replace('}', "");
            let (found, _) = find(&row.method, MAXIMUM_VERSION, &path).expect("a row finds itself");
            assert_eq!(found.info.id, row.id, "{path}");
        }
    }

    #[test]
    fn placeholders_take_segments_and_image_names_take_several() {
        assert_eq!(capture("/containers/{id}/json", "/containers/abc/json").unwrap(), [("id", "abc".to_owned())]);
        assert_eq!(capture("/images/{name...}/json", "/images/a/b:c/json").unwrap(), [("name", "a/b:c".to_owned())]);
        assert_eq!(capture("/images/{name...}/json", "/images/a%2Fb/json").unwrap(), [("name", "a/b".to_owned())]);
        assert_eq!(capture("/images/{name...}", "/images/a/b").unwrap(), [("name", "a/b".to_owned())]);
        assert!(capture("/images/{name...}/json", "/images/json").is_none());
        assert!(capture("/containers/{id}/json", "/containers//json").is_none());
        assert!(capture("/containers/{id}/json", "/containers/a/b/json").is_none());
    }
}
