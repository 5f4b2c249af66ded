//! Pods, by the real kubectl: one Nuée for each group of questions, many pods in it.

use anyhow::Result;
use testkit::Nuee;

mod lifecycle;
mod looks;
mod probes;
mod processes;
mod pulls;
mod security;
mod storage;

/// The value at a JSONPath of an object, such as `pod/web`.
fn value(nuee: &Nuee, object: &str, path: &str) -> Result<String> {
    let output = nuee.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])?;
    Ok(output.success()?.stdout)
}

/// Waits until the value at a JSONPath is this one.
fn becomes(nuee: &Nuee, object: &str, path: &str, wanted: &str) -> Result<()> {
    let mut last = String::new();
    let outcome = nuee.eventually(&format!("{object} {path} is {wanted:?}"), || {
        last = value(nuee, object, path)?;
        Ok(last == wanted)
    });
    outcome.map_err(|error| error.context(format!("last seen: {last:?}")))
}

/// Waits until an event with this reason and text is there.
fn told(nuee: &Nuee, object: &str, reason: &str, text: &str) -> Result<()> {
    let (kind, name) = object.split_once('/').unwrap_or(("pod", object));
    let selector = format!("involvedObject.name={name},reason={reason}");
    nuee.eventually(&format!("an event {reason} about {kind} {name} says {text:?}"), || {
        let listed =
            nuee.kubectl(&["get", "events", "--field-selector", &selector, "-o", "jsonpath={.items[*].message}"])?;
        Ok(listed.success()?.stdout.contains(text))
    })
}

/// A pod of one container from the tests' image; `more` continues the container's fields.
fn pod(name: &str, script: &str, spec: &str, more: &str) -> String {
    let script = serde_json::Value::from(script);
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}\n  containers:\n  - name: c\n    image: busybox:test\n    command: [sh, -c, {script}]\n{more}\n"
    )
}

/// Waits until all these pods are ready.
fn ready(nuee: &Nuee, pods: &[&str]) -> Result<()> {
    let names = pods.iter().map(|name| format!("pod/{name}")).collect::<Vec<_>>();
    let mut arguments = vec!["wait", "--for=condition=Ready", "--timeout=60s"];
    arguments.extend(names.iter().map(String::as_str));
    nuee.kubectl(&arguments)?.success().map(drop)
}
