//! The kubectl client, unmodified.

use anyhow::Result;
use testkit::Nuee;

use crate::with_images;

#[test]
fn the_node_is_ready_and_the_api_explains_itself() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    assert!(nuee.kubectl(&["get", "nodes"])?.success()?.stdout.contains(" Ready "));
    nuee.kubectl(&["api-resources"])?.success()?;
    assert!(nuee.kubectl(&["explain", "deployment.spec.replicas"])?.success()?.stdout.contains("integer"));
    assert_eq!(nuee.kubectl(&["auth", "can-i", "create", "pods"])?.success()?.text(), "yes");
    nuee.finish()
}

#[test]
fn objects_are_created_listed_labelled_patched_and_deleted() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    nuee.kubectl(&["create", "configmap", "one", "--from-literal=key=value"])?.success()?;
    nuee.kubectl(&["label", "configmap", "one", "tier=front"])?.success()?;
    assert_eq!(
        nuee.kubectl(&["get", "configmap", "-l", "tier=front", "-o", "name"])?.success()?.text(),
        "configmap/one"
    );
    nuee.kubectl(&["patch", "configmap", "one", "--type=merge", "-p", r#"{"data":{"key":"other"}}"#])?.success()?;
    nuee.kubectl(&[
        "patch",
        "configmap",
        "one",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/data/more","value":"x"}]"#,
    ])?
    .success()?;
    assert_eq!(
        nuee.kubectl(&["get", "configmap", "one", "-o", "jsonpath={.data.key}{.data.more}"])?.success()?.text(),
        "otherx"
    );
    nuee.kubectl(&["create", "configmap", "one"])?.failure(1, "already exists")?;
    nuee.kubectl(&["delete", "configmap", "one"])?.success()?;
    nuee.kubectl(&["get", "configmap", "one"])?.failure(1, "NotFound")?;
    nuee.finish()
}

#[test]
fn a_deployment_serves_through_its_service() -> Result<()> {
    let nuee = with_images()?;
    nuee.kubectl(&["create", "deployment", "web", "--image=web:test", "--replicas=2"])?.success()?;
    nuee.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?.success()?;
    nuee.kubectl(&["expose", "deployment", "web", "--port=80", "--type=NodePort"])?.success()?;
    let address = nuee.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?.success()?.stdout;
    assert_eq!(nuee.fetch(&format!("http://{address}/"))?, "hello from a cloud\n");
    let port = nuee.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"])?.success()?.stdout;
    assert_eq!(nuee.fetch(&format!("http://127.0.0.1:{port}/"))?, "hello from a cloud\n");
    nuee.kubectl(&["scale", "deployment", "web", "--replicas=0"])?.success()?;
    nuee.eventually("no pod is left", || {
        Ok(nuee.kubectl(&["get", "pods", "-o", "name"])?.success()?.text().is_empty())
    })?;
    nuee.kubectl(&["delete", "deployment,service", "web"])?.success()?;
    nuee.eventually("its replica sets are collected", || {
        Ok(nuee.kubectl(&["get", "replicasets", "-o", "name"])?.success()?.text().is_empty())
    })?;
    nuee.finish()
}

#[test]
fn revisions_are_kept_and_undone_and_an_orphaning_deletion_leaves_them_all() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    let sets = |name: &str| -> Result<usize> {
        let label = format!("app={name}");
        Ok(nuee.kubectl(&["get", "replicasets", "-l", &label, "-o", "name"])?.success()?.text().lines().count())
    };
    // Several, as a controller that acts on what it knew a moment ago takes back what was just let go only now and then.
    for name in ["one", "two", "three", "four"] {
        let deployment = format!("deployment/{name}");
        nuee.kubectl(&["create", "deployment", name, "--image=first:1", "--replicas=0"])?.success()?;
        nuee.eventually("the first revision", || Ok(sets(name)? == 1))?;
        nuee.kubectl(&["set", "image", &deployment, "first=first:2"])?.success()?;
        nuee.eventually("the second revision", || Ok(sets(name)? == 2))?;
        let history = nuee.kubectl(&["rollout", "history", &deployment])?.success()?.stdout;
        assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
        nuee.kubectl(&["rollout", "undo", &deployment])?.success()?;
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        assert_eq!(nuee.kubectl(&["get", &deployment, "-o", image])?.success()?.text(), "first:1");
        nuee.kubectl(&["delete", &deployment, "--cascade=orphan"])?.success()?;
    }
    // What is deleted with its owner shows that the collector has come past.
    nuee.kubectl(&["create", "deployment", "control", "--image=first:1", "--replicas=0"])?.success()?;
    nuee.eventually("the control's revision", || Ok(sets("control")? == 1))?;
    nuee.kubectl(&["delete", "deployment", "control"])?.success()?;
    nuee.eventually("the control's revision is collected", || Ok(sets("control")? == 0))?;
    for name in ["one", "two", "three", "four"] {
        assert_eq!(sets(name)?, 2, "{name}");
    }
    nuee.finish()
}

#[test]
fn logs_and_exec_reach_a_pod() -> Result<()> {
    let nuee = with_images()?;
    nuee.kubectl(&[
        "run",
        "talker",
        "--image=busybox:test",
        "--restart=Never",
        "--",
        "sh",
        "-c",
        "echo spoken; sleep 600",
    ])?
    .success()?;
    nuee.kubectl(&["wait", "--for=condition=Ready", "pod/talker", "--timeout=60s"])?.success()?;
    assert_eq!(nuee.kubectl(&["logs", "talker"])?.success()?.stdout, "spoken\n");
    assert_eq!(nuee.kubectl(&["exec", "talker", "--", "echo", "inside"])?.success()?.stdout, "inside\n");
    let fed = testkit::Output::fed(nuee.kubectl_command(&["exec", "-i", "talker", "--", "cat"]), b"by hand")?;
    assert_eq!(fed.success()?.stdout, "by hand");
    nuee.kubectl(&["exec", "talker", "--", "sh", "-c", "exit 9"])?.failure(9, "")?;
    nuee.kubectl(&["delete", "pod", "talker", "--grace-period=1"])?.success()?;
    nuee.finish()
}

#[test]
fn services_have_names() -> Result<()> {
    let nuee = with_images()?;
    nuee.kubectl(&["create", "deployment", "web", "--image=web:test"])?.success()?;
    nuee.kubectl(&["expose", "deployment", "web", "--port=80"])?.success()?;
    nuee.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?.success()?;
    nuee.kubectl(&["run", "asker", "--image=busybox:test", "--restart=Never", "--", "sleep", "600"])?.success()?;
    nuee.kubectl(&["wait", "--for=condition=Ready", "pod/asker", "--timeout=60s"])?.success()?;
    nuee.eventually("the name resolves", || {
        let asked =
            nuee.kubectl(&["exec", "asker", "--", "wget", "-q", "-O", "-", "http://web.default.svc.cluster.local/"])?;
        Ok(asked.stdout == "hello from a cloud\n")
    })?;
    nuee.finish()
}

#[test]
fn a_docker_container_is_an_object_too() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&["run", "-d", "--name", "seen", "busybox:test", "sleep", "600"])?.success()?;
    assert!(nuee.kubectl(&["get", "containers"])?.success()?.stdout.contains("seen"));
    nuee.finish()
}
