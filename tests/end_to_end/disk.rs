//! A disk that workloads fill: who fills it is ended before it is full, and nobody else.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use testkit::Nuee;

/// Size of the disk. Units: bytes. A fifth of it is the reserve.
const DISK_BYTES: u64 = 2 << 30;
/// Writes as long as it may, at a fifth of a processor, so that the disk is not full within the blink of an eye.
const FILL: &str =
    "i=0; while dd if=/dev/zero of=$0/fill-$i bs=64k count=256 2>/dev/null; do i=$((i+1)); done; sleep 600";

/// A file system of its own below the test's directory, here and in the test's namespaces.
struct Disk {
    device: String,
    place: PathBuf,
    _image: tempfile::NamedTempFile,
}

impl Disk {
    fn mount(nuee: &Nuee) -> Result<Self> {
        let image = tempfile::NamedTempFile::new()?;
        image.as_file().set_len(DISK_BYTES)?;
        let path = image.path().display().to_string();
        host("mkfs.ext4", &["-q", "-m", "0", &path])?;
        let device = host("losetup", &["--find", "--show", &path])?;
        let place = nuee.files().to_owned();
        let disk = Self { device, place, _image: image };
        let at = disk.place.display().to_string();
        host("mount", &[&disk.device, &at])?;
        nuee.run("mount", &[&disk.device, &at])?.success()?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The device goes with its last mount.
        for (program, arguments) in
            [("umount", ["--lazy", &self.place.display().to_string()]), ("losetup", ["--detach", &self.device])]
        {
            let _outcome = host(program, &arguments);
        }
        let _outcome = std::fs::remove_dir(&self.place);
    }
}

/// Runs a program outside of the test's namespaces; what it says.
fn host(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn free(path: &Path) -> Result<u64> {
    let disk = nix::sys::statvfs::statvfs(path)?;
    Ok(disk.blocks_available() * disk.fragment_size())
}

#[test]
fn who_fills_the_disk_is_ended_and_the_neighbours_stay() -> Result<()> {
    let nuee = Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))?;
    let disk = Disk::mount(&nuee)?;
    // In this order, so that after a failure Nuée is taken down while its disk is there.
    let (disk, nuee) = (disk, nuee);
    nuee.up()?;
    nuee.build_images()?;
    nuee.docker(&["run", "-d", "--name", "neighbour", "-p", "8080:80", "web:test"])?.success()?;
    // Uses more than anybody else at first, and writes nothing more.
    nuee.docker(&[
        "run",
        "-d",
        "--name",
        "large",
        "busybox:test",
        "sh",
        "-c",
        "dd if=/dev/zero of=/x bs=1M count=300; sleep 600",
    ])?
    .success()?;
    let quiet = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: NAME}\nspec:\n  terminationGracePeriodSeconds: 0\n  volumes: [{name: v, emptyDir: {}}]\n  containers:\n  - {name: c, image: 'busybox:test', command: [sh, -c, SCRIPT, /v], volumeMounts: [{name: v, mountPath: /v}], resources: {limits: {cpu: 200m}}}\n";
    let pod = |name: &str, script: &str| {
        quiet.replace("NAME", name).replace("SCRIPT", &serde_json::Value::from(script).to_string())
    };
    nuee.apply(&pod("quiet", "sleep 600"))?.success()?;
    nuee.kubectl(&["wait", "--for=condition=Ready", "pod/quiet", "--timeout=60s"])?.success()?;
    let daemon = nuee.pid()?;
    let pressure = || -> Result<String> {
        let path = "jsonpath={.items[0].status.conditions[?(@.type=='DiskPressure')].status}";
        Ok(nuee.kubectl(&["get", "nodes", "-o", path])?.success()?.stdout)
    };
    ensure!(pressure()? == "False", "pressure before anybody writes");

    // A pod first: its end frees what it wrote.
    nuee.apply(&pod("filler", FILL))?.success()?;
    let state = |path: &str| nuee.kubectl(&["get", "pod", "filler", "-o", &format!("jsonpath={{.status.{path}}}")]);
    nuee.eventually("the pod that fills the disk is evicted", || Ok(state("reason")?.stdout == "Evicted"))?;
    ensure!(state("message")?.stdout.contains("low on resource: ephemeral-storage"), "{:?}", state("message")?);
    nuee.eventually("there is room again", || Ok(pressure()? == "False" && free(&disk.place)? > DISK_BYTES / 4))?;

    // A step of a build: its end frees what it wrote too, and the client hears why.
    let dockerfile = "FROM busybox:test\nRUN cat /dev/zero > /fill\n";
    let built =
        testkit::Output::fed(nuee.docker_command(&["build", "--cpu-quota", "20000", "-"]), dockerfile.as_bytes())?;
    ensure!(built.status != 0 && format!("{built:?}").contains("low on resource: ephemeral-storage"), "{built:?}");
    nuee.eventually("there is room after the build", || {
        Ok(pressure()? == "False" && free(&disk.place)? > DISK_BYTES / 4)
    })?;

    // A Docker container, which would be started again: it is stopped, and what it wrote is its owner's.
    let fill = [
        "run",
        "-d",
        "--name",
        "filler",
        "--restart",
        "always",
        "--cpus",
        "0.2",
        "busybox:test",
        "sh",
        "-c",
        FILL,
        "/",
    ];
    nuee.docker(&fill)?.success()?;
    nuee.eventually("the container that fills the disk is stopped", || {
        Ok(nuee.docker(&["inspect", "-f", "{{.State.Status}}", "filler"])?.success()?.text() == "exited")
    })?;
    let error = nuee.docker(&["inspect", "-f", "{{.State.Error}}", "filler"])?.success()?.stdout;
    ensure!(error.contains("it was stopped and is kept"), "{error}");
    nuee.eventually("the machine says that its disk is under pressure", || Ok(pressure()? == "True"))?;
    nuee.eventually("no pod is placed here", || {
        let taints = nuee.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].spec.taints[*].key}"])?.success()?;
        Ok(taints.stdout.contains("disk-pressure"))
    })?;
    ensure!(free(&disk.place)? > 0, "the disk is full");

    for name in ["neighbour", "large"] {
        let running = nuee.docker(&["inspect", "-f", "{{.State.Running}} {{.RestartCount}}", name])?.success()?;
        ensure!(running.text() == "true 0", "{name}: {}", running.text());
    }
    let phase = nuee.kubectl(&["get", "pod", "quiet", "-o", "jsonpath={.status.phase}"])?.success()?;
    ensure!(phase.stdout == "Running", "quiet is {}", phase.stdout);
    ensure!(nuee.fetch("http://127.0.0.1:8080/")? == "hello from a cloud\n", "the neighbour suffers");
    ensure!(nuee.pid()? == daemon, "the daemon died");
    nuee.docker(&["rm", "-f", "filler"])?.success()?;
    nuee.eventually("the pressure is over", || Ok(pressure()? == "False"))?;
    nuee.finish()
}

#[test]
fn a_bound_that_nothing_would_hold_is_refused() -> Result<()> {
    let nuee = crate::with_images()?;
    let run = ["run", "--rm", "--storage-opt", "size=1G", "busybox:test", "true"];
    nuee.docker(&run)?
        .failure(125, "--storage-opt is supported only for overlay over xfs with 'pquota' mount option")?;
    nuee.finish()
}
