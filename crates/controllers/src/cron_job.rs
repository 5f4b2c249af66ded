//! CronJob: makes a Job whenever its schedule says so.

use std::sync::Arc;
use std::time::Duration;

use api::cron::Schedule;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;

use crate::{Error, Result, drive, events, gone, job, pods, watching};

/// Times that may have been missed before it counts as an error. `Source:` Kubernetes, "CronJob limitations".
const MISSED_MAX: usize = 100;
/// Annotation of a Job with the time that it stands for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Who speaks.
const NAME: &str = "cronjob-controller";

/// Runs the controller.
pub async fn run(client: Client) {
    let controller = Controller::new(Api::<CronJob>::all(client.clone()), watching())
        .owns(Api::<Job>::all(client.clone()), watching());
    drive(controller, "cronjob", reconcile, Arc::new(client)).await;
}

/// What a schedule says at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// The latest time that has come and was not served yet.
    pub now: Option<Timestamp>,
    /// How many have come and were not served.
    pub missed: usize,
    /// The next time to come.
    pub next: Option<Timestamp>,
}

/// Reads the schedule. Pure.
pub fn due(schedule: &Schedule, zone: &TimeZone, served: Timestamp, now: Timestamp) -> Due {
    let (mut last, mut missed, mut at) = (None, 0, schedule.next(served, zone));
    while let Some(time) = at.filter(|time| *time <= now) {
        (last, missed) = (Some(time), missed + 1);
        if missed > MISSED_MAX {
            // The rest is skipped: the latest one is found from a point shortly before now.
            let near = [60, 3_600, 86_400, 31 * 86_400, 366 * 86_400];
            let starts = near.iter().filter_map(|seconds| now.checked_sub(SignedDuration::from_secs(*seconds)).ok());
            let found = starts.filter(|start| *start > time).find_map(|start| {
                let first = schedule.next(start, zone).filter(|first| *first <= now)?;
                std::iter::successors(Some(first), |one| schedule.next(*one, zone).filter(|one| *one <= now)).last()
            });
            last = found.or(last);
            return Due { now: last, missed, next: schedule.next(now, zone) };
        }
        at = schedule.next(time, zone);
    }
    Due { now: last, missed, next: at }
}

async fn reconcile(object: Arc<CronJob>, client: Arc<Client>) -> Result<Action> {
    let namespace = object.namespace().ok_or(Error::Incomplete("namespace"))?;
    let cron_jobs = Api::<CronJob>::namespaced((*client).clone(), &namespace);
    let Some(object) = cron_jobs.get_opt(&object.name_any()).await? else { return Ok(Action::await_change()) };
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let jobs = Api::<Job>::namespaced((*client).clone(), &namespace);
    let mut owned = jobs.list(&ListParams::default()).await?.items;
    owned.retain(|one| pods::controller_of(one).map(|owner| &owner.uid) == object.metadata.uid.as_ref());
    let spec = object.spec.clone();
    forget(&jobs, &spec, &owned).await?;
    let mut status = object.status.clone().unwrap_or_default();
    let action = if spec.suspend == Some(true) {
        Action::await_change()
    } else {
        serve(&client, &jobs, &object, &spec, &mut owned, &mut status).await?
    };
    let active = owned.iter().filter(|one| !is_over(one));
    let references: Vec<_> = active.map(events::reference).collect();
    status.active = (!references.is_empty()).then_some(references);
    let well = owned.iter().filter_map(|one| one.status.as_ref()?.completion_time.as_ref().map(|time| time.0));
    let well = well.chain(status.last_successful_time.as_ref().map(|time| time.0)).max();
    status.last_successful_time = well.map(Time);
    if object.status.as_ref() != Some(&status) {
        // A null takes away the list of active Jobs.
        let patch = json!({ "status": {
            "active": status.active, "lastScheduleTime": status.last_schedule_time,
            "lastSuccessfulTime": status.last_successful_time,
        } });
        cron_jobs.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(action)
}

fn is_over(job: &Job) -> bool {
    job.status.as_ref().is_some_and(job::plan::is_over)
}

/// Makes the Job that is due, if the policy lets it.
async fn serve(
    client: &Client,
    jobs: &Api<Job>,
    object: &CronJob,
    spec: &CronJobSpec,
    owned: &mut Vec<Job>,
    status: &mut CronJobStatus,
) -> Result<Action> {
    let about = events::reference(object);
    let (Ok(schedule), zone) = (spec.schedule.parse::<Schedule>(), zone(spec)) else {
        return Ok(Action::await_change());
    };
    let now = Timestamp::now();
    let made = object.creation_timestamp().map_or(now, |time| time.0);
    let mut served = status.last_schedule_time.as_ref().map_or(made, |time| time.0);
    if let Some(deadline) = spec.starting_deadline_seconds {
        served = served.max(now.checked_sub(SignedDuration::from_secs(deadline)).unwrap_or(served));
    }
    let due = due(&schedule, &zone, served, now);
    let wait = due.next.map_or_else(Action::await_change, |next| {
        let left = Duration::try_from(next.duration_since(Timestamp::now())).unwrap_or_default();
        Action::requeue(left + Duration::from_millis(20))
    });
    if due.missed > MISSED_MAX {
        let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        events::publish_from(client, &about, "Warning", "TooManyMissedTimes", text, NAME).await;
    }
    let Some(time) = due.now else { return Ok(wait) };
    let active: Vec<Job> = owned.iter().filter(|one| !is_over(one)).cloned().collect();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
            events::publish_from(client, &about, "Normal", "JobAlreadyActive", text, NAME).await;
            return Ok(wait);
        }
        Some("Replace") => {
            for one in &active {
                delete(jobs, one).await?;
                owned.retain(|other| other.metadata.uid != one.metadata.uid);
            }
        }
        _ => {}
    }
    let wanted = make(object, spec, time)?;
    match jobs.create(&PostParams::default(), &wanted).await {
        Ok(made) => {
            let text = format!("Created job {}", made.name_any());
            events::publish_from(client, &about, "Normal", "SuccessfulCreate", &text, NAME).await;
            owned.push(made);
        }
        // Made before, by one who died before writing it down.
        Err(kube::Error::Api(answer)) if answer.code == 409 => {}
        Err(error) => return Err(error.into()),
    }
    status.last_schedule_time = Some(Time(time));
    Ok(wait)
}

fn zone(spec: &CronJobSpec) -> TimeZone {
    let name = spec.time_zone.as_deref().filter(|name| !name.is_empty());
    name.and_then(|name| TimeZone::get(name).ok()).unwrap_or_else(TimeZone::system)
}

/// The Job for one time; the same time gives the same name, so that none is made twice.
fn make(object: &CronJob, spec: &CronJobSpec, time: Timestamp) -> Result<Job> {
    let meta = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.into(), time.to_string());
    // Minutes, as Kubernetes names them; seconds where a schedule is that fine.
    let suffix = if time.as_second() % 60 == 0 { time.as_second() / 60 } else { time.as_second() };
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{suffix}", object.name_any())),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![object.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    })
}

/// Deletes ended Jobs beyond those that are to be kept.
async fn forget(jobs: &Api<Job>, spec: &CronJobSpec, owned: &[Job]) -> Result<()> {
    let well = |one: &Job| one.status.as_ref().is_some_and(|status| status.completion_time.is_some());
    for (limit, succeeded) in [(spec.successful_jobs_history_limit, true), (spec.failed_jobs_history_limit, false)] {
        let limit = usize::try_from(limit.unwrap_or(if succeeded { 3 } else { 1 })).unwrap_or(0);
        let mut ended: Vec<&Job> = owned.iter().filter(|one| is_over(one) && well(one) == succeeded).collect();
        ended.sort_by_key(|one| std::cmp::Reverse(one.creation_timestamp().map(|time| time.0)));
        for one in ended.into_iter().skip(limit) {
            delete(jobs, one).await?;
        }
    }
    Ok(())
}

async fn delete(jobs: &Api<Job>, job: &Job) -> Result<()> {
    gone(jobs.delete(&job.name_any(), &DeleteParams::background()).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &str, served: &str, now: &str, last: Option<&str>, missed: usize) {
        let found = due(&schedule.parse().unwrap(), &TimeZone::UTC, served.parse().unwrap(), now.parse().unwrap());
        assert_eq!(found.now.map(|time| time.to_string()).as_deref(), last);
        assert_eq!(found.missed, missed);
        assert!(found.next.unwrap() > now.parse().unwrap());
    }

    #[test]
    fn the_latest_missed_time_is_served_once() {
        check("*/10 * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:09:59Z", None, 0);
        check("*/10 * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:10:00Z", Some("2026-01-01T00:10:00Z"), 1);
        check("*/10 * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:35:00Z", Some("2026-01-01T00:30:00Z"), 3);
        check("*/10 * * * *", "2026-01-01T00:10:00Z", "2026-01-01T00:10:30Z", None, 0);
    }

    #[test]
    fn a_long_sleep_is_not_counted_through() {
        check(
            "* * * * *",
            "2020-01-01T00:00:00Z",
            "2026-01-01T00:00:30Z",
            Some("2026-01-01T00:00:00Z"),
            MISSED_MAX + 1,
        );
    }
}
