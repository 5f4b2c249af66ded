//! A backup of a running Nuée comes back on an empty machine, and clients notice that time went on.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use testkit::Nuee;

fn version_of(nuee: &Nuee, name: &str) -> Result<String> {
    let words = ["get", "configmap", name, "-o", "jsonpath={.metadata.resourceVersion}"];
    Ok(nuee.kubectl(&words)?.success()?.stdout)
}

/// What a bearer token is answered.
fn code_with_token(nuee: &Nuee, token: &str) -> Result<String> {
    let header = format!("Authorization: Bearer {token}");
    let words = ["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-H", &header, "https://127.0.0.1:6443/apis"];
    Ok(nuee.run("curl", &words)?.success()?.stdout)
}

#[test]
fn a_backup_under_load_is_restored_on_an_empty_machine() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    // Beside the machine: what is kept on it goes with it.
    let shelf = tempfile::tempdir()?;
    let (file, passphrase) = (shelf.path().join("monday.nuee"), shelf.path().join("passphrase"));
    std::fs::write(&passphrase, "correct horse battery staple\n")?;
    let (file, passphrase) = (file.display().to_string(), passphrase.display().to_string());
    nuee.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"])?.success()?;
    let token = nuee.kubectl(&["create", "token", "default"])?.success()?.text().to_owned();
    assert_eq!(code_with_token(&nuee, &token)?, "200");

    let data = nuee.data().display().to_string();
    let backup = ["backup", "--data-dir", &data, "--passphrase-file", &passphrase, "-o", "json", &file];
    let stop = AtomicBool::new(false);
    let taken = std::thread::scope(|scope| -> Result<serde_json::Value> {
        let writer = scope.spawn(|| -> Result<u32> {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                nuee.kubectl(&["create", "configmap", &format!("load-{count}")])?.success()?;
                count += 1;
            }
            Ok(count)
        });
        let taken = nuee.eventually("there is load", || Ok(nuee.kubectl(&["get", "configmap", "load-1"])?.status == 0));
        let taken = taken.and_then(|()| nuee.nuee(&backup)?.success());
        stop.store(true, Ordering::Relaxed);
        writer.join().ok().context("the writer panicked")??;
        Ok(serde_json::from_str(&taken?.stdout)?)
    })?;
    let revision = taken["revision"].as_u64().context("no revision")?;
    nuee.kubectl(&["create", "configmap", "later"])?.success()?;
    let later = version_of(&nuee, "later")?;
    nuee.nuee(&["backup", "verify", "--passphrase-file", &passphrase, &file])?.failure(0, "is whole")?;
    nuee.nuee(&backup)?.failure(1, "never overwritten")?;
    let authority = std::fs::read(nuee.data().join("pki/ca.crt"))?;
    nuee.finish()?;

    let other = Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))?;
    let data = other.data().display().to_string();
    let restore = ["restore", "--data-dir", &data, "--passphrase-file", &passphrase, &file];
    let mut damaged = std::fs::read(&file)?;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let bad = other.files().join("bad").display().to_string();
    std::fs::write(&bad, damaged)?;
    other.nuee(&["restore", "--data-dir", &data, "--passphrase-file", &passphrase, &bad])?.failure(1, "damaged")?;
    assert!(!other.data().exists());
    other.nuee(&restore)?.success()?;
    other.nuee(&restore)?.failure(1, "not empty")?;
    other.up()?;
    let kept = version_of(&other, "kept")?;
    assert!(kept.parse::<u64>()? <= revision);
    other.kubectl(&["get", "configmap", "later"])?.failure(1, "not found")?;
    let watch = format!("/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=5&resourceVersion={later}");
    let answer = other.kubectl(&["get", "--raw", &watch])?;
    assert!(format!("{}{}", answer.stdout, answer.stderr).contains("too old resource version"), "{answer:?}");
    other.kubectl(&["create", "configmap", "new"])?.success()?;
    assert!(version_of(&other, "new")?.parse::<u64>()? > later.parse()?);
    assert_eq!(std::fs::read(other.data().join("pki/ca.crt"))?, authority, "kubeconfigs stay valid");
    assert_eq!(code_with_token(&other, &token)?, "401", "tokens do not");
    other.finish()
}
