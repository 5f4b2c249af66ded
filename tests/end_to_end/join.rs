//! A second machine joins the pool: it shows as a node, its workloads are reached as those of the first, it survives a crash of
//! either side, and its credential reaches what concerns it alone.

use anyhow::{Context, Result};
use testkit::{Nuee, Output, Pool};

pub fn pool() -> Result<Pool> {
    let mut pool = Pool::start(env!("CARGO_BIN_EXE_nuee"))?;
    pool.first().build_images()?;
    pool.join()?;
    Ok(pool)
}

pub fn pod(name: &str, node: &str, image: &str, command: &str) -> String {
    let command = if command.is_empty() { String::new() } else { format!(", command: [sh, -c, {command:?}]") };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec: {{nodeName: {node}, terminationGracePeriodSeconds: 0, \
         containers: [{{name: main, image: {image}{command}}}]}}\n---\n"
    )
}

pub fn ready(nuee: &Nuee, what: &str) -> Result<()> {
    let waited = nuee.kubectl(&["wait", "--for=condition=Ready", what, "--timeout=60s"])?;
    let details = || {
        let described = nuee.kubectl(&["describe", what]).map(|output| output.stdout).unwrap_or_default();
        format!("{described}\n{}", nuee.log_end())
    };
    waited.success().with_context(details).map(drop)
}

pub fn field(nuee: &Nuee, what: &[&str], path: &str) -> Result<String> {
    let path = format!("jsonpath={{{path}}}");
    let mut arguments = vec!["get"];
    arguments.extend(what);
    arguments.extend(["-o", &path]);
    Ok(nuee.kubectl(&arguments)?.success()?.text().to_owned())
}

#[test]
fn a_second_machine_joins_and_its_workloads_are_reached_like_those_of_the_first() -> Result<()> {
    let pool = pool()?;
    let (first, second) = (pool.first(), &pool.machines[1]);
    ready(first, "node/n2")?;
    let nodes = first.kubectl(&["get", "nodes"])?.success()?.stdout;
    assert_eq!(nodes.matches(" Ready ").count(), 2, "{nodes}");
    let heartbeat = || field(first, &["lease", "n2", "-n", "kube-node-lease"], ".spec.renewTime");
    let before = heartbeat()?;
    first.eventually("the second machine gives signs of life", || Ok(heartbeat()? != before))?;

    first.apply(&pod("far", "n2", "busybox:test", "echo hello from far; exec sleep 6000"))?.success()?;
    first.apply(&pod("page", "n2", "web:test", ""))?.success()?;
    ready(first, "pod/far")?;
    ready(first, "pod/page")?;
    assert_eq!(first.kubectl(&["logs", "far"])?.success()?.text(), "hello from far");
    let said = first.kubectl(&["exec", "far", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!((said.stdout.trim(), said.status), ("out", 7));
    assert!(said.stderr.contains("err"));
    let fed = Output::fed(first.kubectl_command(&["exec", "-i", "far", "--", "wc", "-c"]), &[b'x'; 300_000])?;
    assert_eq!(fed.success()?.text(), "300000");
    std::fs::write(first.files().join("note"), "over there")?;
    let note = first.files().join("note").display().to_string();
    first.kubectl(&["cp", &note, "far:/tmp/note"])?.success()?;
    assert_eq!(first.kubectl(&["exec", "far", "--", "cat", "/tmp/note"])?.success()?.text(), "over there");
    let forward = "kubectl port-forward pod/page 18080:80 >/dev/null & pid=$!; \
                   for i in $(seq 100); do curl -sf http://127.0.0.1:18080/ && break; sleep 0.1; done; kill $pid";
    let mut command = first.space().command("sh");
    command.env("KUBECONFIG", first.data().join("kubeconfig")).args(["-c", forward]);
    assert_eq!(Output::of(command)?.stdout, "hello from a cloud\n");

    // The processes are on the other machine.
    let process = |nuee: &Nuee| -> Result<bool> {
        let groups = nuee.data().join("containers");
        Ok(std::fs::read_dir(groups)?.next().is_some())
    };
    assert!(!process(first)? && process(second)?);
    docker_reaches_the_second_machine(first)?;
    pool.finish()
}

/// A `Container` bound to the second machine, as a client that places containers makes it.
fn docker_reaches_the_second_machine(first: &Nuee) -> Result<()> {
    let script = "echo from docker; exec sleep 6000";
    let id = first.docker(&["create", "--name", "near", "busybox:test", "sh", "-c", script])?.success()?;
    let text = first.kubectl(&["get", "containers", id.text(), "-o", "json"])?.success()?.stdout;
    let mut object: serde_json::Value = serde_json::from_str(&text)?;
    let other = format!("{:064x}", 0x0c0f_fee0_u64);
    object["metadata"] = serde_json::json!({"name": other, "namespace": "default"});
    object["spec"]["name"] = "distant".into();
    object["spec"]["nodeName"] = "n2".into();
    object["spec"]["startRequest"] = 1.into();
    object["spec"]["desired"] = "running".into();
    object.as_object_mut().context("no object")?.remove("status");
    first.apply(&object.to_string())?.success()?;
    first.eventually("the distant container runs", || {
        Ok(first.docker(&["inspect", "-f", "{{.State.Running}}", "distant"])?.text() == "true")
    })?;
    assert_eq!(first.docker(&["logs", "distant"])?.success()?.text(), "from docker");
    assert_eq!(first.docker(&["exec", "distant", "echo", "hi"])?.success()?.text(), "hi");
    assert!(first.docker(&["top", "distant"])?.success()?.stdout.contains("sleep 6000"));
    first.docker(&["rm", "-f", "distant", "near"])?.success()?;
    Ok(())
}

#[test]
fn either_side_is_killed_and_workloads_run_on() -> Result<()> {
    let pool = pool()?;
    let (first, second) = (pool.first(), &pool.machines[1]);
    let ticker = "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.1; done";
    first.apply(&pod("ticker", "n2", "busybox:test", ticker))?.success()?;
    ready(first, "pod/ticker")?;
    let identity = || field(first, &["pod", "ticker"], ".status.containerStatuses[0].containerID");
    let ticks = || Ok::<usize, anyhow::Error>(first.kubectl(&["logs", "ticker"])?.success()?.stdout.lines().count());
    let before = identity()?;
    second.kill_daemon()?;
    let gone = first.kubectl(&["logs", "ticker"])?;
    assert!(gone.status != 0 && gone.stderr.contains("n2"), "{}", gone.stderr);
    second.up()?;
    first.kill_daemon()?;
    // The second machine does not need the first one to start again.
    second.kill_daemon()?;
    first.up()?;
    second.up()?;
    ready(first, "node/n2")?;
    let count = ticks()?;
    first.eventually("the log grows", || Ok(ticks()? > count))?;
    assert_eq!(identity()?, before);
    assert_eq!(field(first, &["pod", "ticker"], ".status.containerStatuses[0].restartCount")?, "0");
    for (number, line) in first.kubectl(&["logs", "ticker"])?.success()?.stdout.lines().enumerate() {
        assert_eq!(line, format!("tick {number}"));
    }
    pool.finish()
}

#[test]
fn a_machines_credential_reaches_its_own_objects_and_ends_with_its_node() -> Result<()> {
    let pool = pool()?;
    let (first, second) = (pool.first(), &pool.machines[1]);
    let far = "apiVersion: v1\nkind: Pod\nmetadata: {name: far}\nspec: {nodeName: n2, terminationGracePeriodSeconds: 0, containers: \
               [{name: main, image: 'busybox:test', command: [sleep, '6000'], envFrom: [{secretRef: {name: mine}}]}]}\n";
    for name in ["mine", "other"] {
        first.kubectl(&["create", "secret", "generic", name, "--from-literal=key=value"])?.success()?;
    }
    first.apply(far)?.success()?;
    ready(first, "pod/far")?;
    // A copy, as a thief has it.
    let stolen = first.files().join("stolen");
    std::fs::create_dir(&stolen)?;
    for name in ["ca.crt", "machine.crt", "machine.key"] {
        std::fs::copy(second.data().join("machine").join(name), stolen.join(name))?;
    }
    let thief = |arguments: &[&str]| -> Result<Output> {
        let path = |name: &str| stolen.join(name).display().to_string();
        let mut command = first.space().command("kubectl");
        command.arg("--kubeconfig=/dev/null").arg("--server=https://198.18.0.1:6443");
        command.arg(format!("--certificate-authority={}", path("ca.crt")));
        command.arg(format!("--client-certificate={}", path("machine.crt")));
        command.arg(format!("--client-key={}", path("machine.key"))).args(arguments);
        Output::of(command)
    };
    thief(&["get", "node", "n2"])?.success()?;
    thief(&["get", "secret", "mine"])?.success()?;
    for refused in [
        &["get", "secret", "other"][..],
        &["get", "secrets", "-A"],
        &["get", "node", "n1"],
        &["label", "node", "n1", "x=y"],
        &["delete", "node", "n2"],
        &["get", "pods", "-A"],
        &["get", "virtualmachines.nuee.dev", "-A"],
        &["create", "networkroutes.nuee.dev", "x"],
        &["get", "--raw", "/metrics"],
        &["exec", "far", "--", "true"],
    ] {
        assert_ne!(thief(refused)?.status, 0, "{refused:?}");
    }
    // Nobody but the pool's first machine may call the second one.
    let call = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--request", "POST", "--insecure"];
    let url = "https://198.18.0.2:6443/nuee/v1/machine";
    assert_ne!(pool.outside("curl", &[&call[..], &[url]].concat())?.status, 0);
    let certificate = stolen.join("machine.crt").display().to_string();
    let key = stolen.join("machine.key").display().to_string();
    let with = ["--cert", &certificate, "--key", &key, url];
    assert_eq!(pool.outside("curl", &[&call[..], &with].concat())?.success()?.text(), "403");

    second.nuee(&["leave"])?.success()?;
    assert!(!first.kubectl(&["get", "nodes"])?.success()?.stdout.contains("n2"));
    assert_ne!(thief(&["get", "node", "n2"])?.status, 0);
    assert!(thief(&["get", "secret", "mine"])?.stderr.contains("logged in"));
    pool.finish()
}

#[test]
fn a_token_is_for_joining_alone_and_ends() -> Result<()> {
    let pool = Pool::start(env!("CARGO_BIN_EXE_nuee"))?;
    let first = pool.first();
    let line = first.nuee(&["token", "create"])?.success()?.text().to_owned();
    let whole = line.split_whitespace().nth(3).context("no token")?.to_owned();
    let (token, authority) = whole.rsplit_once('.').context("no fingerprint")?;
    let id = token.split('.').next().unwrap_or_default();
    assert!(first.nuee(&["token", "list"])?.success()?.stdout.contains(id));
    let with_token = |token: &str, arguments: &[&str]| -> Result<Output> {
        let ca = first.data().join("pki/ca.crt").display().to_string();
        let mut command = first.space().command("kubectl");
        command.arg("--kubeconfig=/dev/null").arg("--server=https://127.0.0.1:6443");
        command.arg(format!("--certificate-authority={ca}")).arg(format!("--token={token}")).args(arguments);
        Output::of(command)
    };
    for refused in [&["get", "nodes"][..], &["get", "secrets", "-A"], &["create", "namespace", "x"]] {
        assert!(with_token(token, refused)?.stderr.contains("system:bootstrap:"), "{refused:?}");
    }
    let second = pool.prepare()?;
    let join = |token: &str| second.nuee(&["join", "--token", token, "198.18.0.1:6443", "--detach"]);
    // Another authority's fingerprint: the machine does not even say its token.
    let forged = format!("{token}.{}", "0".repeat(authority.len()));
    assert!(join(&forged)?.stderr.contains("certificate"));
    let taken = second.nuee(&["join", "--token", &whole, "198.18.0.1:6443", "--node-name", "n1"])?;
    assert!(taken.stderr.contains("a machine n1 is in the pool"), "{}", taken.stderr);
    first.nuee(&["token", "delete", id])?.success()?;
    assert!(join(&whole)?.stderr.contains("not accepted"));
    let line = first.nuee(&["token", "create", "--life", "1s"])?.success()?.text().to_owned();
    let brief = line.split_whitespace().nth(3).context("no token")?.to_owned();
    let (bearer, _) = brief.rsplit_once('.').context("no fingerprint")?;
    first.eventually("the token has ended", || {
        Ok(with_token(bearer, &["get", "nodes"])?.stderr.contains("logged in"))
    })?;
    assert!(join(&brief)?.stderr.contains("not accepted"));
    let brief = brief.split('.').next().unwrap_or_default();
    first.eventually("the token is cleared away", || {
        Ok(!first.nuee(&["token", "list"])?.success()?.stdout.contains(brief))
    })?;
    assert!(!first.kubectl(&["get", "nodes"])?.success()?.stdout.contains("n2"));
    second.finish()?;
    pool.finish()
}
