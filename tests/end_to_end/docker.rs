//! The docker client, unmodified.

use anyhow::Result;

use crate::with_images;

#[test]
fn version_info_and_ping_answer() -> Result<()> {
    let nuee = testkit::Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    nuee.docker(&["version"])?.success()?;
    nuee.docker(&["info"])?.success()?;
    nuee.finish()
}

#[test]
fn an_image_is_built_and_run_with_its_exit_code_environment_and_output() -> Result<()> {
    let nuee = with_images()?;
    assert!(nuee.docker(&["images"])?.success()?.stdout.contains("web"));
    let run = nuee.docker(&[
        "run",
        "--rm",
        "-e",
        "NAME=cloud",
        "busybox:test",
        "sh",
        "-c",
        "echo $GREETING $NAME; echo oops >&2; exit 7",
    ])?;
    assert_eq!((run.status, run.stdout.as_str(), run.stderr.as_str()), (7, "hello cloud\n", "oops\n"));
    assert_eq!(nuee.docker(&["ps", "-aq"])?.success()?.text(), "");
    nuee.docker(&["run", "--rm", "busybox:test", "no-such-program"])?.failure(127, "executable file not found")?;
    nuee.finish()
}

#[test]
fn a_published_port_answers_and_a_stopped_container_keeps_its_files() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&["run", "-d", "--name", "web", "-p", "8080:80", "web:test"])?.success()?;
    assert_eq!(nuee.fetch("http://127.0.0.1:8080/")?, "hello from a cloud\n");
    nuee.docker(&["exec", "web", "sh", "-c", "echo changed > /www/index.html"])?.success()?;
    assert_eq!(nuee.fetch("http://127.0.0.1:8080/")?, "changed\n");
    nuee.docker(&["stop", "-t", "1", "web"])?.success()?;
    nuee.docker(&["start", "web"])?.success()?;
    assert_eq!(nuee.fetch("http://127.0.0.1:8080/")?, "changed\n");
    nuee.docker(&["run", "-d", "-p", "8080:80", "web:test"])?.failure(125, "port is already allocated")?;
    nuee.docker(&["rm", "-f", "web"])?.success()?;
    nuee.finish()
}

#[test]
fn logs_exec_wait_and_inspect_tell_what_happened() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&[
        "run",
        "-d",
        "--name",
        "count",
        "busybox:test",
        "sh",
        "-c",
        "for i in 1 2 3; do echo line $i; done; sleep 600",
    ])?
    .success()?;
    nuee.eventually("three lines are logged", || {
        Ok(nuee.docker(&["logs", "count"])?.stdout == "line 1\nline 2\nline 3\n")
    })?;
    assert_eq!(nuee.docker(&["logs", "--tail", "1", "count"])?.success()?.stdout, "line 3\n");
    assert_eq!(nuee.docker(&["exec", "count", "echo", "inside"])?.success()?.stdout, "inside\n");
    assert_eq!(nuee.docker(&["exec", "count", "sh", "-c", "exit 5"])?.status, 5);
    nuee.docker(&["kill", "count"])?.success()?;
    assert_eq!(nuee.docker(&["wait", "count"])?.success()?.text(), "137");
    assert_eq!(
        nuee.docker(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "count"])?.success()?.text(),
        "exited 137"
    );
    nuee.docker(&["rm", "count"])?.success()?;
    nuee.finish()
}

#[test]
fn standard_input_reaches_the_container() -> Result<()> {
    let nuee = with_images()?;
    let run =
        testkit::Output::fed(nuee.docker_command(&["run", "--rm", "-i", "busybox:test", "cat"]), b"through the cloud")?;
    assert_eq!(run.success()?.stdout, "through the cloud");
    nuee.finish()
}

#[test]
fn volumes_and_binds_keep_data() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&["run", "--rm", "-v", "kept:/data", "busybox:test", "sh", "-c", "echo here > /data/file"])?
        .success()?;
    assert_eq!(
        nuee.docker(&["run", "--rm", "-v", "kept:/data", "busybox:test", "cat", "/data/file"])?.success()?.stdout,
        "here\n"
    );
    let bind = format!("{}:/host:ro", nuee.files().join("web-context").display());
    assert_eq!(
        nuee.docker(&["run", "--rm", "-v", &bind, "busybox:test", "cat", "/host/index.html"])?.success()?.stdout,
        "hello from a cloud\n"
    );
    nuee.finish()
}

#[test]
fn a_saved_image_loads_again() -> Result<()> {
    let nuee = with_images()?;
    let file = nuee.files().join("image.tar").display().to_string();
    nuee.docker(&["save", "-o", &file, "web:test"])?.success()?;
    nuee.docker(&["rmi", "web:test"])?.success()?;
    nuee.docker(&["run", "--rm", "web:test", "true"])?.failure(125, "")?;
    nuee.docker(&["load", "-i", &file])?.success()?;
    nuee.docker(&["run", "--rm", "web:test", "true"])?.success()?;
    nuee.finish()
}
