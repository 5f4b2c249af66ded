//! Pull policies, and the errors that users know.

use anyhow::Result;

use super::{becomes, pod, ready, told};
use crate::with_images;

#[test]
fn images_that_cannot_be_had_say_why() -> Result<()> {
    let nuee = with_images()?;
    let image = |name: &str, image: &str, policy: &str| {
        pod(name, "sleep 600", "", &format!("    imagePullPolicy: {policy}")).replace("busybox:test", image)
    };
    let manifest = [
        image("absent", "127.0.0.1:1/none:1", "IfNotPresent"),
        image("never", "127.0.0.1:1/none:1", "Never"),
        image("bad-name", "Bad/Name", "IfNotPresent"),
        image("present", "busybox:test", "Never"),
        // Built here: there is no registry to ask for a fresher one.
        image("always", "busybox:test", "Always"),
    ]
    .concat();
    nuee.apply(&manifest)?.success()?;
    ready(&nuee, &["present", "always"])?;
    let waiting = ".status.containerStatuses[0].state.waiting.reason";
    told(&nuee, "absent", "Failed", "Error: ErrImagePull")?;
    becomes(&nuee, "pod/absent", waiting, "ImagePullBackOff")?;
    told(&nuee, "absent", "BackOff", "Back-off pulling image \"127.0.0.1:1/none:1\"")?;
    becomes(&nuee, "pod/never", waiting, "ErrImageNeverPull")?;
    becomes(&nuee, "pod/bad-name", waiting, "InvalidImageName")?;
    told(&nuee, "present", "Pulled", "Container image \"busybox:test\" already present on machine")?;
    nuee.finish()
}

/// The built-in registry refuses those whom it does not know; a pod shows who it is by a secret.
#[test]
fn pull_secrets_open_the_registry() -> Result<()> {
    let nuee = with_images()?;
    let image = "127.0.0.1:5000/team/busybox:1";
    nuee.kubectl(&["create", "namespace", "team"])?.success()?;
    nuee.kubectl(&["create", "serviceaccount", "robot", "--namespace", "team"])?.success()?;
    let grant = ["create", "rolebinding", "robot", "-n", "team", "--clusterrole=edit", "--serviceaccount=team:robot"];
    nuee.kubectl(&grant)?.success()?;
    let token = nuee.kubectl(&["create", "token", "robot", "--namespace", "team"])?.success()?.text().to_owned();
    nuee.docker(&["tag", "busybox:test", image])?.success()?;
    let login = nuee.docker_command(&["login", "--username", "robot", "--password-stdin", "127.0.0.1:5000"]);
    testkit::Output::fed(login, token.as_bytes())?.success()?;
    nuee.docker(&["push", image])?.success()?;
    let secret = |name: &str, password: &str| {
        let (user, password) = ("--docker-username=robot", format!("--docker-password={password}"));
        let server = "--docker-server=127.0.0.1:5000";
        nuee.kubectl(&["create", "secret", "docker-registry", name, "--namespace", "team", server, user, &password])
    };
    secret("right", &token)?.success()?;
    secret("wrong", "nonsense")?.success()?;
    let asking = |name: &str, secrets: &str| {
        pod(name, "sleep 600", &format!("  imagePullSecrets: [{secrets}]"), "    imagePullPolicy: Always")
            .replace("busybox:test", image)
            .replace(&format!("metadata: {{name: {name}}}"), &format!("metadata: {{name: {name}, namespace: team}}"))
    };
    let manifest =
        [asking("without", ""), asking("wrong", "{name: wrong}"), asking("with", "{name: absent}, {name: right}")]
            .concat();
    nuee.apply(&manifest)?.success()?;
    let team = |arguments: &[&str]| {
        Ok::<_, anyhow::Error>(nuee.kubectl(&[arguments, &["-n", "team"]].concat())?.success()?.stdout)
    };
    nuee.kubectl(&["wait", "-n", "team", "--for=condition=Ready", "--timeout=60s", "pod/with"])?.success()?;
    let said = |name: &str| {
        let about = format!("involvedObject.name={name}");
        team(&["get", "events", "--field-selector", &about, "-o", "jsonpath={.items[*].message}"])
    };
    nuee.eventually("the pull is told", || Ok(said("with")?.contains("Successfully pulled image")))?;
    for name in ["without", "wrong"] {
        nuee.eventually(&format!("the pull of {name} is refused"), || {
            let said = said(name)?;
            Ok(said.contains("Error: ErrImagePull") && said.contains("Failed to pull image"))
        })?;
        let phase = team(&["get", "pod", name, "-o", "jsonpath={.status.phase}"])?;
        assert_eq!(phase, "Pending", "{name}");
    }
    nuee.finish()
}
