//! Nuée held against what dockerd does: the recorded answers of the differential test, docker-py's own suite, a CI runner's job,
//! and what is left after many operations. The scripts are under `tests/docker`; each says how to run it by hand, and beside dockerd.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

/// Runs a script of `tests/docker` with this build of Nuée.
fn script(name: &str, arguments: &[&str]) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/docker").join(name);
    let mut command = Command::new("python3");
    command.arg(&path).args(["--nuee", env!("CARGO_BIN_EXE_nuee")]).args(arguments);
    let output = testkit::Output::of(command)?;
    if output.status != 0 {
        bail!("{name} failed ({}):\n{}\n{}", output.status, output.stdout, output.stderr);
    }
    Ok(())
}

#[test]
fn command_lines_answer_as_dockerd_answered() -> Result<()> {
    script("differential.py", &[])
}

#[test]
fn docker_pys_own_tests_pass_where_they_pass_on_dockerd() -> Result<()> {
    script("suite.py", &["--bounded"])
}

#[test]
fn a_ci_job_compiles_tests_and_reports() -> Result<()> {
    script("ci_job.py", &[])
}

#[test]
fn many_operations_leave_nothing_behind() -> Result<()> {
    script("leaks.py", &["--operations", "120"])
}
