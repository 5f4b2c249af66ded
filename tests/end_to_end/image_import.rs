//! Disk images from URLs: bounded, checked, taken up again, and never from where the machine alone may ask.

use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use testkit::{Nuee, Output, Space};

/// The machine's address towards the world, and the world's.
const MACHINE: &str = "198.51.100.1";
const WORLD: &str = "198.51.100.2";

/// A web server that notes each request, breaks off, dribbles, and sends clients elsewhere.
const SERVER: &str = r#"
import http.server, os, sys, time
root, log = sys.argv[1], sys.argv[2]
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        asked = self.headers.get("Range", "")
        with open(log, "a") as out: out.write(self.path + " " + asked + "\n")
        if self.path.startswith("/to/"):
            self.send_response(302); self.send_header("Location", self.path[4:]); self.end_headers(); return
        name = self.path.split("/")[-1]
        if not os.path.exists(root + "/" + name):
            self.send_response(404); self.end_headers(); return
        body = open(root + "/" + name, "rb").read()
        start = 0
        if asked and self.headers.get("If-Range") == '"v1"':
            start = int(asked[len("bytes="):].split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", "bytes %d-%d/%d" % (start, len(body) - 1, len(body)))
        else:
            self.send_response(200)
        self.send_header("ETag", '"v1"')
        self.send_header("Content-Length", str(len(body) - start)); self.end_headers()
        body = body[start:]
        if self.path.startswith("/breaks/") and start == 0:
            self.wfile.write(body[:len(body) // 2]); self.wfile.flush(); self.connection.close(); return
        while body and self.path.startswith("/slow/") and not os.path.exists(root + "/go"):
            self.wfile.write(body[:4096]); self.wfile.flush(); body = body[4096:]; time.sleep(0.2)
        self.wfile.write(body)
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64
    def handle_error(self, *_): pass
Server(("0.0.0.0", 8000), Handler).serve_forever()
"#;

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Lab {
    nuee: Nuee,
    world: Space,
    _servers: Vec<Running>,
}

impl Lab {
    fn new() -> Result<Self> {
        let guest = hypervisor::test_guest::build(std::path::Path::new("/var/cache/nuee"))?;
        let nuee = Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))?;
        std::fs::create_dir_all(nuee.data())?;
        std::fs::write(nuee.data().join("config.yaml"), "diskImageNetworks: [127.0.0.9]\n")?;
        let world = Space::new()?;
        let cable = format!(
            "ip link add out0 type veth peer name eth0 netns {} && ip addr add {MACHINE}/24 dev out0 && ip link set out0 up",
            world.pid()
        );
        nuee.run("sh", &["-c", &cable])?.success()?;
        let mut command = world.command("sh");
        command.args(["-c", &format!("ip addr add {WORLD}/24 dev eth0 && ip link set eth0 up")]);
        Output::of(command)?.success()?;
        let mut lab = Self { nuee, world, _servers: Vec::new() };
        let files = lab.nuee.files().to_owned();
        std::fs::create_dir(files.join("www"))?;
        std::fs::copy(&guest.disk, files.join("www/tiny"))?;
        std::fs::write(files.join("www/packed"), b"\xfd7zXZ\0 and so on")?;
        std::fs::write(files.join("server.py"), SERVER)?;
        let evil = files.join("www/evil").display().to_string();
        let make = ["create", "-q", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", &evil, "1M"];
        lab.nuee.run("qemu-img", &make)?.success()?;
        for (space, log) in [(&lab.world, "world.log"), (lab.nuee.space(), "here.log")] {
            let arguments = ["server.py", "www", log].map(|name| files.join(name));
            let child = space.command("python3").args(arguments).stdin(Stdio::null()).spawn()?;
            lab._servers.push(Running(child));
        }
        lab.nuee.up()?;
        lab.nuee.fetch(&format!("http://{WORLD}:8000/packed"))?;
        lab.nuee.fetch("http://127.0.0.1:8000/packed")?;
        Ok(lab)
    }

    fn import(&self, name: &str, url: &str, rest: &[&str]) -> Result<Output> {
        let arguments: Vec<&str> = ["image", "import", name, url].iter().chain(rest).copied().collect();
        self.nuee.nuee(&arguments)
    }

    fn status(&self, name: &str, field: &str) -> Result<String> {
        let asked = ["get", "diskimage", name, "-o", &format!("jsonpath={{.status.{field}}}")];
        Ok(self.nuee.kubectl(&asked)?.success()?.text().to_owned())
    }

    /// What a server was asked for.
    fn asked(&self, log: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.nuee.files().join(log))?)
    }

    fn is_nothing_on_its_way(&self) -> Result<bool> {
        let fetched = self.nuee.data().join("fetched");
        Ok(!fetched.exists() || std::fs::read_dir(fetched)?.next().is_none())
    }
}

#[test]
fn disk_images_come_from_urls() -> Result<()> {
    let lab = Lab::new()?;
    let nuee = &lab.nuee;
    let world = |path: &str| format!("http://{WORLD}:8000{path}");
    let file = nuee.files().join("www/tiny").display().to_string();
    let sum = |program: &str| -> Result<String> {
        Ok(nuee.run(program, &[&file])?.success()?.text().split(' ').next().context("no sum")?.to_owned())
    };
    let (sha256, sha512) = (sum("sha256sum")?, sum("sha512sum")?);
    let bytes = std::fs::metadata(&file)?.len();

    // It breaks off and is taken up where it was; all of it is there, and is what it should be.
    let got = lab.import("tiny", &world("/breaks/tiny"), &["--sha256", &sha256, "--sha512", &sha512])?;
    assert_eq!(got.success()?.text(), "tiny");
    assert_eq!(lab.status("tiny", "fetchedBytes")?, bytes.to_string());
    assert!(lab.asked("world.log")?.contains("/breaks/tiny bytes="), "{}", lab.asked("world.log")?);
    let told = nuee.run("qemu-img", &["info", "--output=json", &file])?.success()?.stdout;
    assert!(told.contains(&format!("\"virtual-size\": {},", lab.status("tiny", "virtualBytes")?)), "{told}");
    lab.import("led", &world("/to//tiny"), &[])?.success()?;

    // What is not what it is said to be, or would read the machine's files, is not taken.
    lab.import("other", &world("/tiny"), &["--sha512", &sha512.replace('0', "1")])?.failure(1, "SHA-512 is")?;
    lab.import("evil", &world("/evil"), &[])?.failure(1, "backing file")?;
    lab.import("packed", &world("/packed"), &[])?.failure(1, "xz images are not taken")?;
    lab.import("raw", &world("/tiny"), &["--format", "raw"])?.failure(1, "qcow2, not what it is said to be")?;
    lab.import("missing", &world("/nowhere"), &[])?.failure(1, "404")?;
    lab.import("secret", "http://me:secret@x/", &[])?.failure(1, "without a password")?;

    // Nobody is asked where the machine alone may ask, not by a redirect either.
    let before = lab.asked("here.log")?;
    for (name, url) in [
        ("l1", "http://127.0.0.1:8000/tiny".to_owned()),
        ("l2", "http://localhost:8000/tiny".to_owned()),
        ("l3", "http://[::ffff:127.0.0.1]:8000/tiny".to_owned()),
        ("l4", "http://169.254.169.254/latest/meta-data/".to_owned()),
        ("l5", "http://10.96.0.1/".to_owned()),
        ("l6", world("/to/http://127.0.0.1:8000/tiny")),
        ("l7", world("/to/http://10.88.0.1:6443/")),
    ] {
        lab.import(name, &url, &[])?.failure(1, "nobody may send us")?;
    }
    assert_eq!(lab.asked("here.log")?, before);
    // The same server, where the operator lets it be asked.
    lab.import("let", "http://127.0.0.9:8000/tiny", &[])?.success()?;
    assert_ne!(lab.asked("here.log")?, before);

    // The daemon is killed meanwhile: half an image is none, and it is begun anew.
    lab.import("slow", &world("/slow/tiny"), &["--no-wait"])?.success()?;
    let is_coming = || Ok(lab.status("slow", "fetchedBytes")?.parse::<u64>().is_ok_and(|bytes| bytes > 0));
    nuee.eventually("some of it is there", is_coming)?;
    assert_eq!(lab.status("slow", "totalBytes")?, bytes.to_string());
    nuee.kill_daemon()?;
    nuee.up()?;
    assert_eq!(lab.status("slow", "phase")?, "Pending");
    lab.nuee.apply(
        "apiVersion: nuee.dev/v1\nkind: VirtualMachine\nmetadata: {name: early}\nspec: {image: slow, cpus: 1, memory: 64Mi}\n",
    )?
    .success()?;
    nuee.eventually("a machine waits for it", || {
        let said = nuee.kubectl(&["get", "vm", "early", "-o", "jsonpath={.status.message}"])?.success()?;
        Ok(said.stdout.contains("disk image slow is not ready yet"))
    })?;
    nuee.kubectl(&["delete", "vm", "early", "--timeout=60s"])?.success()?;
    // One that is deleted is not fetched to its end.
    lab.import("unwanted", &world("/slow/tiny"), &["--no-wait"])?.success()?;
    nuee.eventually("it comes", || {
        Ok(lab.status("unwanted", "fetchedBytes")?.parse::<u64>().is_ok_and(|bytes| bytes > 0))
    })?;
    let uid =
        nuee.kubectl(&["get", "diskimage", "unwanted", "-o", "jsonpath={.metadata.uid}"])?.success()?.text().to_owned();
    nuee.kubectl(&["delete", "diskimage", "unwanted", "--timeout=60s"])?.success()?;
    nuee.eventually("nothing of it is left", || Ok(!nuee.data().join("fetched").join(&uid).exists()))?;
    std::fs::write(nuee.files().join("www/go"), "")?;
    nuee.kubectl(&["wait", "--for=condition=Ready", "diskimage/slow", "--timeout=120s"])?.success()?;
    assert_eq!(lab.status("slow", "fetchedBytes")?, bytes.to_string());
    assert_eq!(lab.status("slow", "virtualBytes")?, lab.status("tiny", "virtualBytes")?);

    nuee.eventually("nothing is on its way", || lab.is_nothing_on_its_way())?;
    nuee.kubectl(&["delete", "diskimages", "--all", "--timeout=60s"])?.success()?;
    let layers = nuee.data().join("disks/layers");
    nuee.eventually("no layer is left", || Ok(std::fs::read_dir(&layers)?.next().is_none()))?;
    nuee.run("ip", &["link", "del", "out0"])?.success()?;
    lab.nuee.finish()
}
