//! A path that a user names lies on a file system whose server is gone: whoever looks at it waits for ever.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use testkit::Nuee;

use crate::with_images;

/// Mounts a file system of which nobody ever answers a question, and keeps it for as long as its input is open.
const SERVER: &str = r#"
import ctypes, os, sys
fd = os.open("/dev/fuse", os.O_RDWR)
options = "fd=%d,rootmode=40000,user_id=0,group_id=0" % fd
if ctypes.CDLL(None).mount(b"dead", sys.argv[1].encode(), b"fuse", 0, options.encode()) != 0:
    sys.exit("cannot mount")
print("mounted", flush=True)
sys.stdin.read()
"#;

/// The file system. When its server goes, so does everybody who waits for it.
struct Dead {
    server: Child,
    path: PathBuf,
}

impl Dead {
    fn mount(nuee: &Nuee) -> Result<Self> {
        let path = nuee.files().join("dead");
        std::fs::create_dir(&path)?;
        let mut command = nuee.space().command("python3");
        command.args(["-c", SERVER]).arg(&path);
        let server = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut dead = Self { server, path };
        let mut line = String::new();
        BufReader::new(dead.server.stdout.take().context("no output")?).read_line(&mut line)?;
        assert_eq!(line, "mounted\n");
        Ok(dead)
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        let _status = self.server.wait();
    }
}

#[test]
fn a_path_on_a_dead_file_system_fails_who_names_it_and_nobody_else() -> Result<()> {
    let nuee = with_images()?;
    nuee.docker(&["run", "-d", "--name", "other", "busybox:test", "sleep", "6000"])?.success()?;
    let dead = Dead::mount(&nuee)?;
    let path = dead.path.display().to_string();
    let (volume, inner) = (format!("{path}:/x"), format!("type=bind,src={path}/inner,dst=/x"));
    // As many as there are threads that serve, and one more.
    let device = format!("{path}/device");
    let wishes: [&[&str]; 3] = [&["-v", &volume], &["--mount", &inner], &["--device", &device]];
    let mut clients = Vec::new();
    for wish in wishes {
        let mut command = nuee.docker_command(&[&["run", "--rm"], wish, &["busybox:test", "true"]].concat());
        clients.push(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
    }
    for number in 0..3 {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{number}}}\nspec:\n  volumes: [{{name: v, hostPath: {{path: {path}}}}}]\n  \
             containers:\n  - {{name: c, image: 'busybox:test', volumeMounts: [{{name: v, mountPath: /v}}]}}\n"
        );
        nuee.apply(&pod)?.success()?;
    }
    for client in clients {
        let output = client.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains("does not answer"), "{text}");
    }
    nuee.eventually("the pods are told why", || {
        let events = nuee.kubectl(&["get", "events", "--output=jsonpath={.items[*].message}"])?.success()?;
        Ok(events.stdout.matches("does not answer").count() >= 3)
    })?;
    assert_eq!(nuee.docker(&["exec", "other", "echo", "here"])?.success()?.text(), "here");
    nuee.kill_daemon()?;
    nuee.up()?;
    assert_eq!(nuee.docker(&["exec", "other", "echo", "here"])?.success()?.text(), "here");
    nuee.kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force"])?.success()?;
    drop(dead);
    nuee.run("umount", &["--lazy", &path])?.success()?;
    nuee.finish()
}
