//! The image registry with the unmodified docker and skopeo: log in with a token, push, pull, and what is refused.

use anyhow::Result;
use testkit::{Nuee, Output};

use crate::with_images;

/// The registry of a fresh Nuée.
const REGISTRY: &str = "127.0.0.1:5000";

/// A service account of the namespace `team` with this role there, and a token of it.
fn token(nuee: &Nuee, account: &str, role: &str) -> Result<String> {
    nuee.kubectl(&["create", "serviceaccount", account, "--namespace", "team"])?.success()?;
    let (role, who) = (format!("--clusterrole={role}"), format!("--serviceaccount=team:{account}"));
    nuee.kubectl(&["create", "rolebinding", account, "--namespace", "team", &role, &who])?.success()?;
    Ok(nuee.kubectl(&["create", "token", account, "--namespace", "team"])?.success()?.text().to_owned())
}

fn log_in(nuee: &Nuee, user: &str, secret: &str) -> Result<Output> {
    let command = nuee.docker_command(&["login", "--username", user, "--password-stdin", REGISTRY]);
    Output::fed(command, secret.as_bytes())
}

#[test]
fn docker_and_skopeo_push_and_pull_with_tokens_and_digests_stay() -> Result<()> {
    let nuee = with_images()?;
    nuee.kubectl(&["create", "namespace", "team"])?.success()?;
    let (writer, reader) = (token(&nuee, "writer", "edit")?, token(&nuee, "reader", "view")?);
    let name = format!("{REGISTRY}/team/web:1");
    nuee.docker(&["tag", "web:test", &name])?.success()?;
    let refused = nuee.docker(&["push", &name])?;
    assert!(refused.status != 0 && refused.stderr.contains("authentication required"), "{refused:?}");
    assert_ne!(log_in(&nuee, "writer", "no-such-token")?.status, 0);
    log_in(&nuee, "reader", &reader)?.success()?;
    let denied = nuee.docker(&["push", &name])?;
    assert!(denied.status != 0 && denied.stderr.contains("denied"), "{denied:?}");

    log_in(&nuee, "writer", &writer)?.success()?;
    let pushed = nuee.docker(&["push", &name])?.success()?.stdout;
    let digest = pushed.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap_or_default().to_owned();
    let credentials = format!("reader:{reader}");
    let remote = format!("docker://{name}");
    let inspect =
        ["--insecure-policy", "inspect", "--tls-verify=false", "--creds", &credentials, "--format", "{{.Digest}}"];
    let seen = nuee.run("skopeo", &[&inspect[..], &[&remote]].concat())?.success()?;
    assert_eq!(seen.text(), digest);
    // Out and in again by skopeo, and then by docker: still the same.
    let layout = format!("oci:{}:x", nuee.files().join("layout").display());
    nuee.run(
        "skopeo",
        &["--insecure-policy", "copy", "--src-tls-verify=false", "--src-creds", &credentials, &remote, &layout],
    )?
    .success()?;
    let copy = format!("{REGISTRY}/team/copy:2");
    let (to, owner) = (format!("docker://{copy}"), format!("writer:{writer}"));
    let copied = ["copy", "--preserve-digests", "--dest-tls-verify=false", "--dest-creds", &owner, &layout, &to];
    nuee.run("skopeo", &[&["--insecure-policy"], &copied[..]].concat())?.success()?;
    for image in [&name, &copy, &"web:test".to_owned()] {
        nuee.docker(&["rmi", image])?.success()?;
    }
    let pulled = nuee.docker(&["pull", &copy]);
    // The name is this machine's own registry: once no image has it, it is gone there too, as far as it came by tag.
    if pulled?.status != 0 {
        nuee.run("skopeo", &[&["--insecure-policy"], &copied[..]].concat())?.success()?;
        nuee.docker(&["pull", &copy])?.success()?;
    }
    let digests = nuee.docker(&["image", "inspect", "--format", "{{.RepoDigests}}", &copy])?.success()?.stdout;
    assert!(digests.contains(&digest), "{digests} has no {digest}");
    assert_eq!(
        nuee.docker(&["run", "--rm", &copy, "cat", "/www/index.html"])?.success()?.stdout,
        "hello from a cloud\n"
    );
    // Outside the namespace neither may do anything.
    let foreign = format!("{REGISTRY}/elsewhere/web:1");
    nuee.docker(&["tag", &copy, &foreign])?.success()?;
    assert_ne!(nuee.docker(&["push", &foreign])?.status, 0);
    nuee.finish()
}

/// The lines of the audit log about repositories.
fn audited(nuee: &Nuee) -> Result<Vec<serde_json::Value>> {
    let text = std::fs::read_to_string(nuee.data().join("audit.log"))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    Ok(lines.filter(|line| line["objectRef"]["resource"] == "repositories").collect())
}

#[test]
fn the_registry_speaks_tls_when_it_is_told_to_and_says_who_came() -> Result<()> {
    let nuee = Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))?;
    std::fs::create_dir_all(nuee.data())?;
    std::fs::write(nuee.data().join("config.yaml"), "registryTls: true\n")?;
    nuee.up()?;
    nuee.build_images()?;
    nuee.kubectl(&["create", "namespace", "team"])?.success()?;
    let (writer, reader) = (token(&nuee, "writer", "edit")?, token(&nuee, "reader", "view")?);
    // Docker through the daemon, which trusts its own authority.
    log_in(&nuee, "writer", &writer)?.success()?;
    let name = format!("{REGISTRY}/team/web:1");
    nuee.docker(&["tag", "web:test", &name])?.success()?;
    nuee.docker(&["push", &name])?.success()?;
    // skopeo, as any client elsewhere: with the authority's certificate it trusts the registry, without it does not.
    let certificates = nuee.files().join("certs.d");
    std::fs::create_dir(&certificates)?;
    std::fs::copy(nuee.data().join("pki/ca.crt"), certificates.join("ca.crt"))?;
    let (certificates, layout) =
        (certificates.display().to_string(), format!("oci:{}:x", nuee.files().join("layout").display()));
    let (from, to) = (format!("docker://{name}"), format!("docker://{REGISTRY}/team/copy:1"));
    let (read, write) = (format!("reader:{reader}"), format!("writer:{writer}"));
    let skopeo = |arguments: &[&str]| nuee.run("skopeo", &[&["--insecure-policy"], arguments].concat());
    skopeo(&["copy", "--src-cert-dir", &certificates, "--src-creds", &read, &from, &layout])?.success()?;
    let push = ["copy", "--dest-cert-dir", &certificates, "--dest-creds"];
    skopeo(&[&push[..], &[&write, &layout, &to]].concat())?.success()?;
    assert_ne!(skopeo(&[&push[..], &[&read, &layout, &to]].concat())?.status, 0, "a reader pushed");
    let strange = skopeo(&["inspect", "--creds", &read, &from])?;
    assert!(strange.status != 0 && strange.stderr.contains("certificate"), "{strange:?}");
    // Nothing is said in the clear.
    let plain = nuee.run("curl", &["--silent", "--max-time", "5", &format!("http://{REGISTRY}/v2/")])?;
    assert_ne!(plain.status, 0, "{plain:?}");
    let secure = format!("https://{REGISTRY}/v2/");
    let code = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--cacert"];
    let ca = nuee.data().join("pki/ca.crt").display().to_string();
    assert_eq!(nuee.run("curl", &[&code[..], &[&ca, &secure]].concat())?.stdout, "401");

    let found = |user: &str, verb: &str, name: &str, codes: std::ops::Range<i64>| -> Result<bool> {
        Ok(audited(&nuee)?.iter().any(|line| {
            line["user"]["username"] == user
                && line["verb"] == verb
                && line["objectRef"]["name"].as_str().unwrap_or_default() == name
                && codes.contains(&line["responseStatus"]["code"].as_i64().unwrap_or(0))
                && line["sourceIPs"] == serde_json::json!(["127.0.0.1"])
        }))
    };
    let account = |name: &str| format!("system:serviceaccount:team:{name}");
    nuee.eventually("the audit log has it all", || {
        Ok(found(&account("writer"), "create", "web", 200..300)?
            && found(&account("writer"), "create", "copy", 200..300)?
            && found(&account("reader"), "get", "web", 200..300)?
            && found(&account("reader"), "create", "copy", 403..404)?
            && found("system:anonymous", "login", "", 401..402)?)
    })?;
    let secrets = std::fs::read_to_string(nuee.data().join("audit.log"))?;
    assert!(!secrets.contains(&writer) && !secrets.contains(&reader), "a token was written down");
    nuee.finish()
}
