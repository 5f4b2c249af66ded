//! A controller written with the official Python client.

use std::path::PathBuf;
use std::process::Stdio;

use crate::server::Server;

/// The interpreter of the tests' own environment, which `contrib/python-clients.sh` makes when it is not there yet.
async fn interpreter() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let directory = root.join("target/python-clients");
    let made = tokio::process::Command::new(root.join("contrib/python-clients.sh")).arg(&directory).output().await;
    let made = made.expect("contrib/python-clients.sh must run");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    directory.join("bin/python")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_in_python_defines_watches_and_reconciles_a_kind() {
    let server = Server::start().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/controller.py");
    let running = tokio::process::Command::new(interpreter().await)
        .arg(script)
        .arg(server.kubeconfig())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(120), running).await.expect("in time").unwrap();
    let (told, problems) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(
        lines,
        ["established", "422 True", "planted one", "planted two", "told so", "pages True", "version True", "done"],
        "{problems}"
    );
    assert!(output.status.success(), "{problems}");
}
