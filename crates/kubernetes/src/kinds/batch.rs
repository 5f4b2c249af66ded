//! Group `batch`: Jobs and CronJobs. `Source:` pkg/apis/batch of Kubernetes 1.36.

use apiserver::Cause;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1 as api;
use serde_json::{Value, json};

use super::columns::{age, column, container_images, container_names, or_none, path, selector_text, wide};
use super::fields::{check_immutable, check_not_negative, check_word, default, items, number, object_mut, text};
use super::{Registration, pod_defaults, pod_validation, register, selectable, texts};
use crate::time::age as human_age;

/// Retries of a Job that says nothing.
const BACKOFF_LIMIT: i64 = 6;
/// Finished Jobs that a CronJob keeps: well and badly ended ones.
const HISTORY: (i64, i64) = (3, 1);
/// Longest name of a CronJob, for its Jobs' names are 11 bytes longer. Units: bytes.
const CRON_JOB_NAME_BYTES: usize = 52;

pub(super) fn kinds() -> Vec<Registration> {
    vec![job(), cron_job()]
}

fn job() -> Registration {
    register::<api::Job>("jobs", |kind| {
        kind.categories = texts(&["all"]);
        kind.status_subresource = true;
        kind.selectable_fields = selectable(&["status.successful"]);
        kind.columns = vec![
            column("Status", "string", |object, _| job_status(object).into()),
            column("Completions", "string", |object, _| {
                let done = number(object, "/status/succeeded");
                match object.pointer("/spec/completions").and_then(Value::as_i64) {
                    Some(wanted) => format!("{done}/{wanted}").into(),
                    None if number(object, "/spec/parallelism") > 1 => {
                        format!("{done}/1 of {}", number(object, "/spec/parallelism")).into()
                    }
                    None => format!("{done}/1").into(),
                }
            }),
            column("Duration", "string", |object, now| duration(object, now).into()),
            age(),
            wide(column("Containers", "string", container_names)),
            wide(column("Images", "string", container_images)),
            wide(column("Selector", "string", |object, _| selector_text(object.pointer("/spec/selector")))),
        ];
        kind.default = |object| {
            default_job(object);
            select_own_pods(object);
        };
        kind.validate = validate_job;
        kind.prepare_create = |object| object["status"] = json!({});
    })
}

fn default_job(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else { return };
    let empty = |spec: &Value, field: &str| spec.get(field).is_none_or(Value::is_null);
    if empty(spec, "completions") && empty(spec, "parallelism") {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    let unlimited = !empty(spec, "backoffLimitPerIndex");
    default(spec, "backoffLimit", if unlimited { i64::from(i32::MAX) } else { BACKOFF_LIMIT });
    let replacement = if empty(spec, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    default(spec, "podReplacementPolicy", replacement);
    default_template(spec);
}

fn default_template(spec: &mut Value) {
    if let Some(template) = object_mut(spec, "template")
        && let Some(pod) = object_mut(template, "spec")
    {
        pod_defaults::pod_spec(pod);
    }
}

/// A Job owns exactly the pods that carry its uid. The uid comes after the first defaulting and before the second.
fn select_own_pods(object: &mut Value) {
    let (uid, name) = (text(object, "/metadata/uid").to_owned(), text(object, "/metadata/name").to_owned());
    let Some(spec) = object_mut(object, "spec") else { return };
    let selected = spec.get("selector").is_some_and(|selector| !selector.is_null());
    if uid.is_empty() || name.is_empty() || selected || spec["manualSelector"] == true {
        return;
    }
    spec["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    if let Some(template) = object_mut(spec, "template")
        && let Some(meta) = object_mut(template, "metadata")
        && let Some(labels) = object_mut(meta, "labels")
    {
        for (key, value) in [("controller-uid", &uid), ("job-name", &name)] {
            labels[key] = value.as_str().into();
            labels[format!("batch.kubernetes.io/{key}")] = value.as_str().into();
        }
    }
}

fn job_status(object: &Value) -> &'static str {
    let holds = |kind: &str| {
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        conditions.into_iter().flatten().any(|one| one["type"] == kind && one["status"] == "True")
    };
    if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if !text(object, "/metadata/deletionTimestamp").is_empty() {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn duration(object: &Value, now: Timestamp) -> String {
    let start = object.pointer("/status/startTime");
    let Some(begin) = start.and_then(Value::as_str) else { return String::new() };
    let end = object.pointer("/status/completionTime").and_then(Value::as_str).and_then(|end| end.parse().ok());
    if begin.parse::<Timestamp>().is_err() {
        return String::new();
    }
    human_age(start, end.unwrap_or(now))
}

fn job_spec(spec: &Value, at: &str, causes: &mut Vec<Cause>) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
    ] {
        check_not_negative(&format!("{at}.{field}"), spec.get(field), causes);
    }
    check_word(&format!("{at}.completionMode"), spec.get("completionMode"), &["Indexed", "NonIndexed"], causes);
    let indexed = spec["completionMode"] == "Indexed";
    if indexed && spec.get("completions").is_none_or(Value::is_null) {
        causes.push(Cause::required(&format!("{at}.completions"), "when completion mode is Indexed"));
    }
    if !indexed && spec.get("backoffLimitPerIndex").is_some_and(|limit| !limit.is_null()) {
        let detail = "requires indexed completion mode";
        causes.push(Cause::invalid(&format!("{at}.backoffLimitPerIndex"), &spec["backoffLimitPerIndex"], detail));
    }
    // What the controller cannot do is refused, not ignored.
    let lacking = ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"];
    for field in lacking.iter().filter(|field| spec.get(**field).is_some_and(|value| !value.is_null())) {
        causes.push(Cause::forbidden(&format!("{at}.{field}"), "not implemented"));
    }
    let template = &spec["template"]["spec"];
    pod_validation::pod_spec(template, &format!("{at}.template.spec"), causes);
    let policy = text(template, "/restartPolicy");
    if !matches!(policy, "OnFailure" | "Never") {
        let at = format!("{at}.template.spec.restartPolicy");
        causes.push(match policy {
            "" => Cause::required(&at, "valid values: \"OnFailure\", \"Never\""),
            other => Cause::not_supported(&at, &other.into(), &["OnFailure", "Never"]),
        });
    }
    if !items(&spec["podFailurePolicy"], "rules").is_empty() && policy != "Never" {
        let detail = "only \"Never\" is supported when podFailurePolicy is specified";
        causes.push(Cause::invalid(&format!("{at}.template.spec.restartPolicy"), &policy.into(), detail));
    }
}

fn validate_job(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &new["spec"];
    job_spec(spec, "spec", &mut causes);
    if let Some(old) = old.map(|old| &old["spec"]) {
        let elastic = spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
        let suspended = old["suspend"] == true;
        let mut fixed = vec!["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy"];
        fixed.extend((!elastic).then_some("completions"));
        fixed.extend((!suspended).then_some("template"));
        for field in fixed {
            let (new, old) = (spec.get(field), old.get(field));
            check_immutable(&format!("spec.{field}"), new, old, &mut causes);
        }
    }
    causes
}

fn cron_job() -> Registration {
    register::<api::CronJob>("cronjobs", |kind| {
        kind.short_names = texts(&["cj"]);
        kind.categories = texts(&["all"]);
        kind.status_subresource = true;
        kind.columns = vec![
            path("Schedule", "string", ".spec.schedule"),
            column("Timezone", "string", |object, _| or_none(text(object, "/spec/timeZone").to_owned())),
            column("Suspend", "boolean", |object, _| {
                if object["spec"]["suspend"] == true { "True" } else { "False" }.into()
            }),
            column("Active", "integer", |object, _| {
                object.pointer("/status/active").and_then(Value::as_array).map_or(0, Vec::len).into()
            }),
            column("Last Schedule", "string", |object, now| match object.pointer("/status/lastScheduleTime") {
                Some(time) => human_age(Some(time), now).into(),
                None => "<none>".into(),
            }),
            age(),
            wide(column("Containers", "string", |object, _| of_template(object, container_names))),
            wide(column("Images", "string", |object, _| of_template(object, container_images))),
            wide(column("Selector", "string", |object, _| {
                selector_text(object.pointer("/spec/jobTemplate/spec/selector"))
            })),
        ];
        kind.default = |object| {
            let Some(spec) = object_mut(object, "spec") else { return };
            default(spec, "concurrencyPolicy", "Allow");
            default(spec, "suspend", false);
            default(spec, "successfulJobsHistoryLimit", HISTORY.0);
            default(spec, "failedJobsHistoryLimit", HISTORY.1);
            if let Some(template) = object_mut(spec, "jobTemplate")
                && let Some(job) = object_mut(template, "spec")
            {
                default_template(job);
            }
        };
        kind.validate = validate_cron_job;
        kind.prepare_create = |object| object["status"] = json!({});
    })
}

fn of_template(object: &Value, show: fn(&Value, Timestamp) -> Value) -> Value {
    let job = object.pointer("/spec/jobTemplate").cloned().unwrap_or_default();
    show(&job, Timestamp::UNIX_EPOCH)
}

fn validate_cron_job(new: &Value, _: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &new["spec"];
    let name = text(new, "/metadata/name");
    if name.len() > CRON_JOB_NAME_BYTES {
        causes.push(Cause::invalid("metadata.name", &name.into(), "must be no more than 52 characters"));
    }
    let schedule = text(spec, "/schedule");
    if schedule.is_empty() {
        causes.push(Cause::required("spec.schedule", ""));
    } else if schedule.contains("TZ") {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        causes.push(Cause::invalid("spec.schedule", &schedule.into(), detail));
    } else if let Err(error) = schedule.parse::<::api::cron::Schedule>() {
        causes.push(Cause::invalid("spec.schedule", &schedule.into(), &error.to_string()));
    }
    let zone = text(spec, "/timeZone");
    if !zone.is_empty() && jiff::tz::TimeZone::get(zone).is_err() {
        causes.push(Cause::invalid("spec.timeZone", &zone.into(), "unknown time zone"));
    }
    let words: &[&str] = &["Allow", "Forbid", "Replace"];
    check_word("spec.concurrencyPolicy", spec.get("concurrencyPolicy"), words, &mut causes);
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        check_not_negative(&format!("spec.{field}"), spec.get(field), &mut causes);
    }
    let job = &spec["jobTemplate"]["spec"];
    job_spec(job, "spec.jobTemplate.spec", &mut causes);
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "a", "uid": "u"}, "spec": spec});
        default_job(&mut object);
        select_own_pods(&mut object);
        object
    }

    #[test]
    fn a_job_selects_its_own_pods_by_uid() {
        let made =
            job(json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}));
        assert_eq!(made["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], "u");
        assert_eq!(made["spec"]["template"]["metadata"]["labels"]["job-name"], "a");
        assert_eq!((made["spec"]["completions"].clone(), made["spec"]["backoffLimit"].clone()), (json!(1), json!(6)));
        assert!(validate_job(&made, Some(&made)).is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_job_is_named_by_field() {
        let fields = |spec: Value| validate_job(&job(spec), None).into_iter().map(|c| c.field).collect::<Vec<_>>();
        let pod = json!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert_eq!(fields(json!({"template": pod})), ["spec.template.spec.restartPolicy"]);
        let mut never = pod;
        never["spec"]["restartPolicy"] = "Never".into();
        assert_eq!(
            fields(json!({"template": never, "completionMode": "Indexed", "parallelism": 2})),
            ["spec.completions"]
        );
    }

    #[test]
    fn a_schedule_is_checked_when_it_is_written() {
        let fields = |schedule: &str, zone: &str| {
            let object = json!({"metadata": {"name": "a"}, "spec": {"schedule": schedule, "timeZone": zone, "jobTemplate": {"spec":
                {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}});
            validate_cron_job(&object, None).into_iter().map(|c| c.field).collect::<Vec<_>>()
        };
        assert!(fields("*/5 * * * *", "Etc/UTC").is_empty());
        assert_eq!(fields("61 * * * *", ""), ["spec.schedule"]);
        assert_eq!(fields("* * * * *", "Nowhere/Land"), ["spec.timeZone"]);
    }
}
