//! The contract that scripts rely on.

use std::os::unix::fs::PermissionsExt;

use anyhow::Result;
use testkit::Nuee;

#[test]
fn up_makes_the_files_that_scripts_rely_on_and_down_all_leaves_nothing() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    for name in ["docker.sock", "kubeconfig", "config.yaml", "nuee.log"] {
        assert!(nuee.data().join(name).exists(), "{name}");
    }
    let mode = std::fs::metadata(nuee.data().join("kubeconfig"))?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let status = nuee.status()?;
    assert_eq!(status["ready"], true);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["pid"].is_i64() && status["endpoints"]["docker"].is_string(), "{status}");
    nuee.finish()
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    nuee.nuee(&["up"])?.failure(1, "already running")?;
    nuee.finish()
}

#[test]
fn two_nuees_live_side_by_side() -> Result<()> {
    let (one, other) = (crate::with_images()?, Nuee::start(env!("CARGO_BIN_EXE_nuee"))?);
    one.docker(&["run", "-d", "--name", "same", "-p", "8080:80", "web:test"])?.success()?;
    assert_eq!(one.fetch("http://127.0.0.1:8080/")?, "hello from a cloud\n");
    assert_eq!(other.docker(&["ps", "-aq"])?.success()?.text(), "");
    one.finish()?;
    other.finish()
}

#[test]
fn status_says_when_nothing_runs() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    nuee.nuee(&["down"])?.success()?;
    nuee.nuee(&["status"])?.failure(3, "not running")?;
    assert_eq!(nuee.status()?["ready"], false);
    nuee.up()?;
    assert_eq!(nuee.status()?["ready"], true);
    nuee.finish()
}

#[test]
fn doctor_version_and_completion_print() -> Result<()> {
    let nuee = Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))?;
    nuee.nuee(&["version"])?.failure(0, env!("CARGO_PKG_VERSION"))?;
    nuee.nuee(&["completion", "bash"])?.failure(0, "_nuee")?;
    nuee.nuee(&["doctor"])?.failure(0, "OCI runtime")?;
    nuee.nuee(&["--help"])?.failure(0, "Examples:")?;
    Ok(())
}

#[test]
fn the_first_workload_of_make_up_runs() -> Result<()> {
    let nuee = Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../contrib/first-workload.sh");
    let data = format!("DATA_DIR={}", nuee.data().display());
    let program = concat!("NUEE=", env!("CARGO_BIN_EXE_nuee"));
    let shown = nuee.run("env", &[&data, program, script])?.success()?.stdout;
    assert_eq!(shown.matches("Hello from your cloud.").count(), 2, "{shown}");
    assert!(shown.contains("export DOCKER_HOST=unix://") && shown.contains("export KUBECONFIG=/"), "{shown}");
    nuee.finish()
}
