//! Job: runs pods until enough of them ended well. What to do is decided by the pure [`plan`]; this file reads and acts.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::{Error, Result, drive, events, gone, is_missing, members, watching};

pub mod indexes;
pub mod plan;
pub mod policy;

/// Environment variable with the index of a pod of an indexed Job.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Annotation by which a Job is handed to another controller.
const MANAGED_BY_US: &str = "kubernetes.io/job-controller";

/// Runs the controller.
pub async fn run(client: Client) {
    let controller =
        Controller::new(Api::<Job>::all(client.clone()), watching()).owns(Api::<Pod>::all(client.clone()), watching());
    drive(controller, "job", reconcile, Arc::new(client)).await;
}

async fn reconcile(job: Arc<Job>, client: Arc<Client>) -> Result<Action> {
    let namespace = job.namespace().ok_or(Error::Incomplete("namespace"))?;
    let jobs = Api::<Job>::namespaced((*client).clone(), &namespace);
    let Some(job) = jobs.get_opt(&job.name_any()).await? else { return Ok(Action::await_change()) };
    let spec = job.spec.clone().unwrap_or_default();
    if spec.managed_by.as_deref().is_some_and(|name| name != MANAGED_BY_US) {
        return Ok(Action::await_change());
    }
    let api = Api::<Pod>::namespaced((*client).clone(), &namespace);
    let selector = spec.selector.clone().ok_or(Error::Incomplete("selector"))?;
    let owned = members::owned(&api, &job, &selector).await?;
    let now = Timestamp::now();
    if job.status.as_ref().is_some_and(plan::is_over) {
        release(&api, &owned, |_| true).await?;
        return clean_up(&jobs, &job, now).await;
    }
    let plan = plan::plan(&job, &owned, now);
    if job.status.as_ref() != Some(&plan.status) {
        write_status(&jobs, &job, &plan.status).await?;
        tell(&client, &job, &plan.status).await;
    }
    release(&api, &owned, |name| plan.release.iter().any(|one| one == name)).await?;
    let victims: Vec<&Pod> = owned.iter().filter(|pod| plan.delete.contains(&pod.name_any())).collect();
    members::delete(&api, &victims).await?;
    let wanted: Result<Vec<Pod>> = plan.create.iter().map(|index| make(&job, &spec, *index)).collect();
    members::create(&client, &api, &job, &wanted?).await?;
    Ok(plan.wake.map_or_else(Action::await_change, Action::requeue))
}

/// Writes the status, on the version that was read: two writers must not count one pod twice.
async fn write_status(jobs: &Api<Job>, job: &Job, status: &JobStatus) -> Result<()> {
    let mut next = job.clone();
    next.status = Some(status.clone());
    jobs.replace_status(&job.name_any(), &kube::api::PostParams::default(), &next).await?;
    Ok(())
}

async fn tell(client: &Client, job: &Job, status: &JobStatus) {
    let before = job.status.clone().unwrap_or_default();
    let known = |kind: &str| before.conditions.iter().flatten().any(|one| one.type_ == kind && one.status == "True");
    for one in status.conditions.iter().flatten().filter(|one| one.status == "True" && !known(&one.type_)) {
        let (level, reason, message) = match one.type_.as_str() {
            "Complete" => ("Normal", "Completed", "Job completed"),
            "Suspended" => ("Normal", "Suspended", "Job suspended"),
            "Failed" => {
                ("Warning", one.reason.as_deref().unwrap_or_default(), one.message.as_deref().unwrap_or_default())
            }
            _ => continue,
        };
        events::publish_from(client, &events::reference(job), level, reason, message, "job-controller").await;
    }
}

/// Takes the finalizer off pods that were counted.
async fn release(api: &Api<Pod>, owned: &[Pod], counted: impl Fn(&str) -> bool) -> Result<()> {
    let held = |pod: &&Pod| pod.finalizers().iter().any(|name| name == plan::TRACKING);
    for pod in owned.iter().filter(held).filter(|pod| counted(&pod.name_any())) {
        let kept: Vec<&String> = pod.finalizers().iter().filter(|name| *name != plan::TRACKING).collect();
        let patch = json!({ "metadata": {
            "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "finalizers": kept,
        } });
        match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if !is_missing(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Deletes a Job that has been over for as long as it says.
async fn clean_up(jobs: &Api<Job>, job: &Job, now: Timestamp) -> Result<Action> {
    let Some(keep) = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished) else {
        return Ok(Action::await_change());
    };
    let status = job.status.clone().unwrap_or_default();
    let ends =
        status.conditions.into_iter().flatten().filter(|one| matches!(one.type_.as_str(), "Complete" | "Failed"));
    let Some(end) = ends.filter_map(|one| one.last_transition_time).map(|time| time.0).max() else {
        return Ok(Action::await_change());
    };
    let left = i64::from(keep) - now.duration_since(end).as_secs();
    if left > 0 {
        return Ok(Action::requeue(Duration::from_secs(u64::try_from(left).unwrap_or(1))));
    }
    let same = Preconditions { uid: job.metadata.uid.clone(), resource_version: job.metadata.resource_version.clone() };
    gone(jobs.delete(&job.name_any(), &DeleteParams::background().preconditions(same)).await)?;
    Ok(Action::await_change())
}

/// A pod of the Job, with its index in an indexed one.
fn make(job: &Job, spec: &JobSpec, index: Option<i32>) -> Result<Pod> {
    let mut pod = members::from_template(job, &spec.template)?;
    pod.metadata.finalizers.get_or_insert_default().push(plan::TRACKING.into());
    let Some(index) = index else { return Ok(pod) };
    pod.metadata.generate_name = Some(format!("{}-{index}-", job.name_any()));
    pod.annotations_mut().insert(plan::INDEX.into(), index.to_string());
    pod.labels_mut().insert(plan::INDEX.into(), index.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.hostname.get_or_insert_with(|| format!("{}-{index}", job.name_any()));
        let field = ObjectFieldSelector {
            field_path: format!("metadata.annotations['{}']", plan::INDEX),
            ..ObjectFieldSelector::default()
        };
        let variable = EnvVar {
            name: INDEX_VARIABLE.into(),
            value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
            ..EnvVar::default()
        };
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            let list = container.env.get_or_insert_default();
            if list.iter().all(|one| one.name != INDEX_VARIABLE) {
                list.push(variable.clone());
            }
        }
    }
    Ok(pod)
}
