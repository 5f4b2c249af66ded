//! Bad input: a clear error in the protocol's own form, and nothing done.

use std::fs;

use anyhow::Result;
use serde_json::Value;
use testkit::{Nuee, Output};

/// Sends a request to the Docker socket by curl; returns the status code and the body.
fn docker_request(nuee: &Nuee, path: &str, body: &[u8]) -> Result<(u16, Value)> {
    let socket = nuee.data().join("docker.sock").display().to_string();
    let file = nuee.files().join("request-body");
    fs::write(&file, body)?;
    let data = format!("@{}", file.display());
    let url = format!("http://docker{path}");
    let arguments = [
        "-s",
        "-w",
        "\n%{http_code}",
        "-H",
        "Content-Type: application/json",
        "-H",
        "Expect:",
        "--unix-socket",
        &socket,
        "-X",
        "POST",
        "--data-binary",
        &data,
        &url,
    ];
    answer(&nuee.run("curl", &arguments)?)
}

fn answer(output: &Output) -> Result<(u16, Value)> {
    let (body, code) = output.stdout.rsplit_once('\n').unwrap_or_default();
    Ok((code.parse()?, serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// Sends a request to the Kubernetes API as the administrator.
fn kubernetes_request(nuee: &Nuee, path: &str, body: &[u8]) -> Result<(u16, Value)> {
    let pki = nuee.data().join("pki");
    let file = nuee.files().join("request-body");
    fs::write(&file, body)?;
    let part = |name: &str| pki.join(name).display().to_string();
    let (ca, certificate, key) = (part("ca.crt"), part("admin.crt"), part("admin.key"));
    let data = format!("@{}", file.display());
    let url = format!("https://127.0.0.1:6443{path}");
    let arguments = [
        "-s",
        "-w",
        "\n%{http_code}",
        "--cacert",
        &ca,
        "--cert",
        &certificate,
        "--key",
        &key,
        "-H",
        "Content-Type: application/json",
        "-H",
        "Expect:",
        "-X",
        "POST",
        "--data-binary",
        &data,
        &url,
    ];
    answer(&nuee.run("curl", &arguments)?)
}

#[test]
fn malformed_deep_and_huge_bodies_are_refused_by_both_dialects() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let huge = vec![b' '; 32 << 20];
    for body in [b"{\"Image\":".as_slice(), deep.as_bytes()] {
        let (code, answer) = docker_request(&nuee, "/v1.44/containers/create", body)?;
        assert_eq!(code, 400, "{answer}");
        assert!(answer["message"].is_string(), "{answer}");
        let (code, answer) = kubernetes_request(&nuee, "/api/v1/namespaces/default/configmaps", body)?;
        assert_eq!((code, answer["kind"].as_str()), (400, Some("Status")), "{answer}");
        assert_eq!(answer["reason"], "BadRequest");
    }
    let (code, answer) = docker_request(&nuee, "/v1.44/containers/create", &huge)?;
    assert!((400..500).contains(&code) && answer["message"].is_string(), "{code} {answer}");
    let (code, answer) = kubernetes_request(&nuee, "/api/v1/namespaces/default/configmaps", &huge)?;
    assert_eq!((code, answer["reason"].as_str()), (413, Some("RequestEntityTooLarge")), "{answer}");
    assert_eq!(nuee.status()?["ready"], true);
    nuee.finish()
}

#[test]
fn bad_references_are_refused() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    nuee.docker(&["run", "--rm", "lower/UPPER"])?.failure(125, "must be lowercase")?;
    nuee.docker(&["inspect", "nothing"])?.failure(1, "No such object")?;
    nuee.docker(&["rm", "nothing"])?.failure(1, "No such container")?;
    nuee.docker(&["tag", "nothing", "x"])?.failure(1, "No such image")?;
    nuee.kubectl(&["get", "nothings"])?.failure(1, "the server doesn't have a resource type")?;
    nuee.kubectl(&["create", "configmap", "Bad_Name"])?.failure(1, "Invalid value")?;
    nuee.finish()
}

#[test]
fn nobody_gets_in_without_credentials() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    for (path, expected) in [
        ("/api/v1/secrets", "401 403"),
        ("/apis/nuee.dev/v1/containers", "401 403"),
        ("/version", "200"),
        ("/readyz", "200"),
    ] {
        let url = format!("https://127.0.0.1:6443{path}");
        let code = nuee.run("curl", &["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url])?.success()?.stdout;
        assert!(expected.contains(&code), "{path}: {code}");
    }
    let url = "https://127.0.0.1:6443/api/v1/secrets";
    let code = nuee
        .run("curl", &["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Authorization: Bearer wrong", url])?
        .success()?
        .stdout;
    assert_eq!(code, "401");
    nuee.finish()
}
