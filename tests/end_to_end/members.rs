//! Members of the group `nuee` use the clients without being root; nobody else does.

use std::os::unix::fs::PermissionsExt;

use anyhow::Result;
use testkit::{Nuee, Output};

/// Numbers that no machine's own users have.
const GROUP: u32 = 61_234;
const MEMBER: u32 = 61_235;
const STRANGER: u32 = 61_236;

/// Runs a program as a user, with the groups that the machine's files give them.
fn as_user(nuee: &Nuee, user: u32, program: &str, arguments: &[&str]) -> Result<Output> {
    let id = user.to_string();
    let mut line = vec!["--reuid", id.as_str(), "--regid", id.as_str(), "--init-groups", "--", program];
    line.extend(arguments);
    nuee.run("setpriv", &line)
}

#[test]
fn a_member_of_the_group_uses_docker_and_kubectl_and_a_stranger_does_not() -> Result<()> {
    let nuee = Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))?;
    std::fs::set_permissions(nuee.files(), std::fs::Permissions::from_mode(0o711))?;
    // The users are known in the test's own mount namespace only.
    for (file, lines) in [
        ("group", format!("nuee:x:{GROUP}:member\nmember:x:{MEMBER}:\nstranger:x:{STRANGER}:\n")),
        ("passwd", format!("member:x:{MEMBER}:{MEMBER}::/:/bin/sh\nstranger:x:{STRANGER}:{STRANGER}::/:/bin/sh\n")),
    ] {
        let (system, own) = (format!("/etc/{file}"), nuee.files().join(file));
        let kept: String = std::fs::read_to_string(&system)?
            .lines()
            .filter(|line| !line.starts_with("nuee:"))
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(&own, kept + &lines)?;
        nuee.run("mount", &["--bind", &own.display().to_string(), &system])?.success()?;
    }
    nuee.up()?;
    let status = nuee.status()?;
    let endpoint = |name: &str| status["endpoints"][name].as_str().unwrap_or_default().to_owned();
    let (docker, kubeconfig) = (endpoint("docker"), endpoint("kubeconfig"));
    let list = ["--host", docker.as_str(), "ps"];
    let pods = ["--kubeconfig", kubeconfig.as_str(), "--cache-dir", "/nonexistent", "get", "namespaces"];
    as_user(&nuee, MEMBER, "docker", &list)?.success()?;
    assert!(as_user(&nuee, MEMBER, "kubectl", &pods)?.success()?.stdout.contains("kube-system"));
    as_user(&nuee, STRANGER, "docker", &list)?.failure(1, "permission denied")?;
    as_user(&nuee, STRANGER, "kubectl", &pods)?.failure(1, "permission denied")?;
    // What only root has stays root's.
    for secret in ["kubeconfig", "pki", "store"] {
        let path = nuee.data().join(secret).display().to_string();
        as_user(&nuee, MEMBER, "ls", &[&format!("{path}/")])?.failure(2, "")?;
        assert_ne!(as_user(&nuee, MEMBER, "cat", &[&path])?.status, 0, "{secret}");
    }
    nuee.finish()
}
