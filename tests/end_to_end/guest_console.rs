//! The serial console over the API: for whoever may, on whichever machine the guest runs.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use testkit::{Nuee, Output};

use crate::join::field;
use crate::journal::Held;
use crate::migration::Lab;

/// Credentials of a service account of namespace `default`, as a user would have them.
fn credentials(nuee: &Nuee, account: &str) -> Result<String> {
    let token = nuee.kubectl(&["create", "token", account])?.success()?.text().to_owned();
    let own = nuee.kubectl(&[
        "config",
        "view",
        "--raw",
        "-o",
        "jsonpath={.clusters[0].cluster.server} {.clusters[0].cluster.certificate-authority-data}",
    ])?;
    let own = own.success()?;
    let (server, authority) = own.text().split_once(' ').context("no cluster")?;
    let path = nuee.files().join(format!("{account}.yaml"));
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
         clusters: [{{name: a, cluster: {{server: \"{server}\", certificate-authority-data: {authority}}}}}]\n\
         users: [{{name: a, user: {{token: {token}}}}}]\n"
    );
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

/// Types a line on the console, and says what was answered.
fn types(nuee: &Nuee, line: &str, more: &[&str]) -> Result<Output> {
    let script = format!("printf '{line}\\r' | \"$0\" vm console web \"$@\"");
    let arguments = [&["-c", script.as_str(), env!("CARGO_BIN_EXE_nuee")], more].concat();
    let mut command = nuee.space().command("sh");
    command.args(arguments).env("NUEE_DATA_DIR", nuee.data());
    Output::of(command)
}

/// The shell answers once it is up; what is typed before may be lost. Says what it answered, which it never did before: a new session is
/// shown the past.
fn answers(nuee: &Nuee, more: &[&str]) -> Result<String> {
    static NEXT: AtomicU32 = AtomicU32::new(1000);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let answer = format!("sum {}", number + 2);
    nuee.eventually("the guest's shell answers", || {
        let said = types(nuee, &format!("echo sum $(({number}+2))"), more)?;
        Ok(said.success()?.stdout.contains(&answer))
    })?;
    Ok(answer)
}

#[test]
fn who_may_talks_to_a_guest_wherever_it_runs() -> Result<()> {
    let lab = Lab::new(&[])?;
    let first = lab.first();
    first
        .apply(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: typist}\n---\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: reader}\n---\n\
         apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: viewer}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: typist}\nrules:\n\
         - {apiGroups: [nuee.dev], resources: [virtualmachines/console], resourceNames: [web], verbs: [create]}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: typist}\n\
         roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: typist}\n\
         subjects: [{kind: ServiceAccount, name: typist, namespace: default}]\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: viewer}\n\
         roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}\n\
         subjects: [{kind: ServiceAccount, name: viewer, namespace: default}]\n",
        )?
        .success()?;
    let (typist, reader, viewer) =
        (credentials(first, "typist")?, credentials(first, "reader")?, credentials(first, "viewer")?);

    for node in ["n1", "n2"] {
        if node == "n2" {
            first.nuee(&["vm", "migrate", "web", "--to", "n2"])?.success()?;
            ensure!(field(first, &["vm", "web"], ".spec.nodeName")? == "n2");
        }
        answers(first, &[])?;
        let answer = answers(first, &["--kubeconfig", &typist])?;
        // The log has the same.
        let said = first.nuee(&["vm", "console", "web", "--log"])?.success()?.stdout;
        ensure!(said.contains(&answer), "no {answer:?} in {said}");
        let raw = ["get", "--raw", "/apis/nuee.dev/v1/namespaces/default/virtualmachines/web/log?tailLines=3"];
        let tail = first.kubectl(&raw)?.success()?.stdout;
        ensure!(!tail.is_empty() && tail.lines().count() <= 3, "{tail:?}");
    }

    // Who may not is told so, and which right is missing.
    types(first, "echo", &["--kubeconfig", &reader])?
        .failure(1, "cannot create resource \"virtualmachines/console\"")?;
    types(first, "echo", &["--kubeconfig", &viewer])?
        .failure(1, "cannot create resource \"virtualmachines/console\"")?;
    let log = ["vm", "console", "web", "--log", "--kubeconfig"];
    first.nuee(&[&log[..], &[&viewer]].concat())?.success()?;
    first.nuee(&[&log[..], &[&typist]].concat())?.failure(1, "cannot get resource \"virtualmachines/log\"")?;
    // The one that a role names is not the other.
    types(first, "echo", &["--kubeconfig", &typist, "--namespace", "kube-system"])?.failure(1, "cannot create")?;

    a_new_session_ends_the_one_before(first)?;

    // Off, it has a log and no console.
    first.nuee(&["vm", "stop", "web"])?.success()?;
    first.eventually("it is off", || Ok(field(first, &["vm", "web"], ".status.phase")? == "Stopped"))?;
    types(first, "echo", &[])?.failure(1, "does not run")?;
    first.nuee(&["vm", "console", "web", "--log"])?.success()?;
    types(first, "echo", &["--namespace", "kube-system"])?.failure(1, "not found")?;
    first.kubectl(&["delete", "vm", "web", "--timeout=60s"])?.success()?;
    lab.pool.finish()
}

fn a_new_session_ends_the_one_before(nuee: &Nuee) -> Result<()> {
    let (shown, told) = (nuee.files().join("held.out"), nuee.files().join("held.err"));
    let mut command = nuee.space().command(env!("CARGO_BIN_EXE_nuee"));
    command.args(["vm", "console", "web"]).env("NUEE_DATA_DIR", nuee.data());
    // Files, so that it never waits for somebody to read.
    command.stdin(std::process::Stdio::piped());
    command.stdout(std::fs::File::create(&shown)?).stderr(std::fs::File::create(&told)?);
    let mut held = Held(command.spawn()?);
    // It has the console once it shows something.
    nuee.eventually("the first session has the console", || Ok(std::fs::metadata(&shown)?.len() > 0))?;
    answers(nuee, &[])?;
    nuee.eventually("the first session has ended", || Ok(held.0.try_wait()?.is_some()))?;
    let told = std::fs::read_to_string(&told)?;
    ensure!(told.contains("another session has the console"), "{told}");
    Ok(())
}
