//! Clients inside pods: the Service `kubernetes`, the pod's token and the cluster's certificate.

use anyhow::{Context, Result};
use testkit::Nuee;

use crate::with_images;

/// The real kubectl, which is one static file, seen inside a pod.
fn kubectl_path() -> Result<String> {
    let found = std::process::Command::new("sh").args(["-c", "readlink -f $(command -v kubectl)"]).output()?;
    Ok(String::from_utf8(found.stdout).context("no path")?.trim().to_owned())
}

#[test]
fn a_client_in_a_pod_reaches_the_api_as_its_service_account() -> Result<()> {
    let nuee = with_images()?;
    nuee.apply(&format!(
        r#"
apiVersion: v1
kind: ServiceAccount
metadata: {{name: reader}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client}}
spec:
  serviceAccountName: reader
  containers:
  - name: c
    image: busybox:test
    command: [sleep, "3600"]
    volumeMounts: [{{name: kubectl, mountPath: /kubectl, readOnly: true}}]
  volumes: [{{name: kubectl, hostPath: {{path: {}, type: File}}}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: without}}
spec:
  automountServiceAccountToken: false
  containers: [{{name: c, image: busybox:test, command: [sleep, "3600"]}}]
"#,
        kubectl_path()?
    ))?
    .success()?;
    nuee.kubectl(&["create", "role", "reader", "--verb=get,list", "--resource=pods"])?.success()?;
    nuee.kubectl(&["create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:reader"])?
        .success()?;
    nuee.kubectl(&["wait", "--for=condition=Ready", "pod/client", "pod/without", "--timeout=60s"])?.success()?;
    let inside = |arguments: &[&str]| nuee.kubectl(&[&["exec", "client", "--", "/kubectl"], arguments].concat());
    let listed = inside(&["get", "pods", "-o", "name"])?.success()?.stdout;
    assert_eq!(listed, "pod/client\npod/without\n");
    assert!(
        inside(&["auth", "whoami", "-o", "yaml"])?.success()?.stdout.contains("system:serviceaccount:default:reader")
    );
    inside(&["get", "secrets"])?.failure(1, "Forbidden")?;
    // Deleted, the Service comes back with its address.
    let address = |nuee: &Nuee| {
        nuee.kubectl(&["get", "service", "kubernetes", "--ignore-not-found", "-o", "jsonpath={.spec.clusterIP}"])
    };
    assert_eq!(address(&nuee)?.success()?.stdout, "10.96.0.1");
    nuee.kubectl(&["delete", "service", "kubernetes"])?.success()?;
    nuee.eventually("the service is back", || Ok(address(&nuee)?.stdout == "10.96.0.1"))?;
    let token = ["exec", "without", "--", "ls", "/var/run/secrets/kubernetes.io"];
    nuee.kubectl(&token)?.failure(1, "No such file")?;
    // A token dies with its pod.
    let token =
        nuee.kubectl(&["exec", "client", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"])?;
    let token = token.success()?.stdout;
    let ask = |nuee: &Nuee| {
        let header = format!("Authorization: Bearer {token}");
        nuee.run(
            "curl",
            &[
                "-ks",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-H",
                &header,
                "https://127.0.0.1:6443/api/v1/namespaces/default/pods",
            ],
        )
    };
    assert_eq!(ask(&nuee)?.success()?.stdout, "200");
    nuee.kubectl(&["delete", "pod", "client", "--grace-period=0", "--force"])?.success()?;
    nuee.eventually("the token is refused", || Ok(ask(&nuee)?.stdout == "401"))?;
    nuee.finish()
}
