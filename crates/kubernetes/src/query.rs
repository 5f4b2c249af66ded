//! Query parameters to the options of the verbs. Pure.

use apiserver::{
    Cause, DeleteOptions, FieldValidation, GetOptions, ListOptions, Preconditions, Propagation, ResourceVersionMatch,
    Status, WriteOptions,
};
use serde_json::Value;

/// Longest query string that is looked at. Units: bytes.
const MAX_QUERY_BYTES: usize = 64 * 1024;
/// Most parameters in one query.
const MAX_PARAMETERS: usize = 256;
/// Longest name of a field manager, as Kubernetes has it. Units: bytes.
const MAX_FIELD_MANAGER_BYTES: usize = 128;

/// A decoded query; of parameters given more than once the first counts, unless asked for all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

/// Decodes `%XX` and, where wanted, `+`; leaves broken escapes as they are.
pub(crate) fn percent_decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |index: usize| bytes.get(index).and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
            }
            (b'+', _, _) if plus_is_space => {
                out.push(b' ');
                at += 1;
            }
            (byte, _, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Query {
    /// Decodes a query string within bounds.
    pub(crate) fn parse(text: &str) -> Result<Query, Status> {
        if text.len() > MAX_QUERY_BYTES {
            return Err(Status::bad_request("query string is too long"));
        }
        let pairs: Vec<_> = text
            .split('&')
            .filter(|pair| !pair.is_empty())
            .take(MAX_PARAMETERS + 1)
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (percent_decode(name, true), percent_decode(value, true))
            })
            .collect();
        if pairs.len() > MAX_PARAMETERS {
            return Err(Status::bad_request("too many query parameters"));
        }
        Ok(Query(pairs))
    }

    /// A parameter's first value.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a parameter.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    /// A parameter's value unless it is empty.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.get(name).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// A boolean as Kubernetes reads it: given without a value, `1` or `true` mean yes.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "0" | "false"))
    }

    /// A number; anything else is a bad request.
    pub(crate) fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        let Some(text) = self.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        text.parse::<i64>().map(Some).map_err(|_| {
            Status::bad_request(format!("strconv.ParseInt: parsing {}: invalid syntax", Value::from(text)))
        })
    }

    /// Options of a get.
    pub(crate) fn get_options(&self) -> GetOptions {
        GetOptions { resource_version: self.text("resourceVersion") }
    }

    /// Options of a list or watch.
    pub(crate) fn list_options(&self) -> Result<ListOptions, Status> {
        let forbidden = |field: &str, detail: &str| {
            Status::invalid("meta.k8s.io", "ListOptions", "", vec![Cause::forbidden(field, detail)])
        };
        let watch = self.flag("watch");
        let resource_version = self.text("resourceVersion");
        let continue_token = self.text("continue");
        let matching = self.text("resourceVersionMatch");
        let send_initial_events = self.get("sendInitialEvents").map(|_| self.flag("sendInitialEvents"));
        let resource_version_match = match matching.as_deref() {
            None => None,
            Some("Exact") => Some(ResourceVersionMatch::Exact),
            Some("NotOlderThan") => Some(ResourceVersionMatch::NotOlderThan),
            Some(other) => {
                let cause =
                    Cause::not_supported("resourceVersionMatch", &Value::from(other), &["Exact", "NotOlderThan", ""]);
                return Err(Status::invalid("meta.k8s.io", "ListOptions", "", vec![cause]));
            }
        };
        if send_initial_events.is_some() {
            if !watch {
                return Err(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
            }
            if resource_version_match != Some(ResourceVersionMatch::NotOlderThan) {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
        } else if watch && resource_version_match.is_some() {
            return Err(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        } else if let Some(matching) = resource_version_match {
            if resource_version.is_none() {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if continue_token.is_some() {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if matching == ResourceVersionMatch::Exact && resource_version.as_deref() == Some("0") {
                return Err(forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        Ok(ListOptions {
            label_selector: self.text("labelSelector"),
            field_selector: self.text("fieldSelector"),
            limit: self.number("limit")?.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0),
            continue_token,
            resource_version,
            resource_version_match,
            timeout_seconds: self
                .number("timeoutSeconds")?
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|s| *s > 0),
            allow_bookmarks: self.flag("allowWatchBookmarks"),
            send_initial_events,
        })
    }

    /// Options of create, update and patch; `kind` names the options object in errors.
    pub(crate) fn write_options(&self, kind: &str, apply: bool) -> Result<WriteOptions, Status> {
        let field_validation = match self.get("fieldValidation").unwrap_or_default() {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let cause =
                    Cause::not_supported("fieldValidation", &Value::from(other), &["", "Ignore", "Strict", "Warn"]);
                return Err(Status::invalid("meta.k8s.io", kind, "", vec![cause]));
            }
        };
        let field_manager = self.text("fieldManager");
        if field_manager.as_ref().is_some_and(|name| name.len() > MAX_FIELD_MANAGER_BYTES) {
            let cause = Cause::too_long("fieldManager", MAX_FIELD_MANAGER_BYTES);
            return Err(Status::invalid("meta.k8s.io", kind, "", vec![cause]));
        }
        if apply && field_manager.is_none() {
            let cause = Cause::required("fieldManager", "is required for apply patch");
            return Err(Status::invalid("meta.k8s.io", kind, "", vec![cause]));
        }
        if !apply && self.get("force").is_some() {
            let cause = Cause::forbidden("force", "may not be specified for non-apply patch");
            return Err(Status::invalid("meta.k8s.io", kind, "", vec![cause]));
        }
        Ok(WriteOptions {
            dry_run: dry_run(&self.all("dryRun"), kind)?,
            field_manager,
            field_validation,
            force: apply && self.flag("force"),
        })
    }

    /// Options of a delete: the body's `DeleteOptions` when there is one, else the query.
    pub(crate) fn delete_options(&self, body: Option<&Value>) -> Result<DeleteOptions, Status> {
        let from_query = || -> Result<Value, Status> {
            let mut value = serde_json::json!({});
            if let Some(seconds) = self.number("gracePeriodSeconds")? {
                value["gracePeriodSeconds"] = seconds.into();
            }
            if let Some(policy) = self.text("propagationPolicy") {
                value["propagationPolicy"] = policy.into();
            }
            if let Some(orphan) = self.get("orphanDependents") {
                value["orphanDependents"] = (orphan == "true").into();
            }
            if self.get("dryRun").is_some() {
                value["dryRun"] = self.all("dryRun").into();
            }
            Ok(value)
        };
        let queried;
        let value = match body {
            Some(value) => value,
            None => {
                queried = from_query()?;
                &queried
            }
        };
        let text =
            |pointer: &str| value.pointer(pointer).and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned);
        let policy = text("/propagationPolicy");
        if let (Some(policy), true) = (&policy, value["orphanDependents"].is_boolean()) {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            let cause = Cause::invalid("propagationPolicy", &Value::from(policy.as_str()), detail);
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause]));
        }
        let propagation = match policy.as_deref() {
            None => match value.get("orphanDependents").and_then(Value::as_bool) {
                Some(true) => Some(Propagation::Orphan),
                Some(false) => Some(Propagation::Background),
                None => None,
            },
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                let supported = ["Foreground", "Background", "Orphan", "nil"];
                let cause = Cause::not_supported("propagationPolicy", &Value::from(other), &supported);
                return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause]));
            }
        };
        let runs: Vec<String> = value
            .get("dryRun")
            .and_then(Value::as_array)
            .map(|all| all.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect())
            .unwrap_or_default();
        let grace_period_seconds = value.get("gracePeriodSeconds").and_then(Value::as_i64);
        if let Some(seconds) = grace_period_seconds.filter(|seconds| *seconds < 0) {
            let cause =
                Cause::invalid("gracePeriodSeconds", &Value::from(seconds), "must be greater than or equal to 0");
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause]));
        }
        Ok(DeleteOptions {
            grace_period_seconds,
            preconditions: Preconditions {
                uid: text("/preconditions/uid"),
                resource_version: text("/preconditions/resourceVersion"),
            },
            propagation,
            dry_run: dry_run(&runs, "DeleteOptions")?,
        })
    }
}

fn dry_run(values: &[String], kind: &str) -> Result<bool, Status> {
    match values {
        [] => Ok(false),
        all if all.iter().all(|one| one == "All") => Ok(true),
        all => {
            let wrong = all.iter().find(|one| *one != "All").cloned().unwrap_or_default();
            let cause = Cause::not_supported("dryRun", &serde_json::json!([wrong]), &["All"]);
            Err(Status::invalid("meta.k8s.io", kind, "", vec![cause]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::parse(text).unwrap()
    }

    #[test]
    fn escapes_are_decoded_once() {
        let query = query("labelSelector=a%3Db%2Cc+in+(d)&broken=%zz&watch");
        assert_eq!(query.get("labelSelector"), Some("a=b,c in (d)"));
        assert_eq!(query.get("broken"), Some("%zz"));
        assert!(query.flag("watch"));
    }

    #[test]
    fn bad_values_are_refused_as_kubernetes_does() {
        assert_eq!(query("limit=x").list_options().unwrap_err().code, 400);
        assert_eq!(query("resourceVersionMatch=Exact").list_options().unwrap_err().code, 422);
        assert_eq!(query("sendInitialEvents=true&watch=1").list_options().unwrap_err().code, 422);
        assert_eq!(query("fieldValidation=Loud").write_options("CreateOptions", false).unwrap_err().code, 422);
        assert_eq!(query("dryRun=Some").write_options("CreateOptions", false).unwrap_err().code, 422);
        assert_eq!(query("").write_options("PatchOptions", true).unwrap_err().code, 422);
        assert_eq!(query("propagationPolicy=Now").delete_options(None).unwrap_err().code, 422);
    }

    #[test]
    fn delete_options_come_from_the_body_or_else_the_query() {
        let body = serde_json::json!({"gracePeriodSeconds": 3, "preconditions": {"uid": "u"}});
        let options = query("gracePeriodSeconds=9").delete_options(Some(&body)).unwrap();
        assert_eq!((options.grace_period_seconds, options.preconditions.uid.as_deref()), (Some(3), Some("u")));
        let options = query("gracePeriodSeconds=9&propagationPolicy=Orphan").delete_options(None).unwrap();
        assert_eq!((options.grace_period_seconds, options.propagation), (Some(9), Some(Propagation::Orphan)));
    }
}
