//! Virtual machines, driven by kubectl, docker, ssh and `nuee`. One guest serves all checks, since each costs a boot.

use anyhow::{Context, Result};
use testkit::{Nuee, Output};

use crate::with_images;

/// How long a guest may take to boot on a machine under load that translates every instruction.
const BOOT: &str = "--timeout=300s";

/// A Nuée with the tiny guest's image, and a key that opens it.
pub struct Lab {
    /// The Nuée.
    pub nuee: Nuee,
    key: String,
}

impl Lab {
    pub fn new() -> Result<Self> {
        // Fetched out here: the test's own namespace has no way to the packages. The command then finds it built.
        hypervisor::test_guest::build(std::path::Path::new("/var/cache/nuee"))?;
        let nuee = with_images()?;
        assert_eq!(nuee.nuee(&["image", "build-test-guest", "-o", "tiny"])?.success()?.text(), "tiny");
        let key = nuee.files().join("key").display().to_string();
        nuee.run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key])?.success()?;
        let public = std::fs::read_to_string(format!("{key}.pub"))?;
        let pair = format!(
            "apiVersion: nuee.dev/v1\nkind: KeyPair\nmetadata: {{name: me}}\nspec: {{publicKey: \"{}\"}}\n",
            public.trim()
        );
        nuee.apply(&pair)?.success()?;
        Ok(Self { nuee, key })
    }

    /// The same key for another Nuée.
    pub fn of(&self, nuee: Nuee) -> Self {
        Self { nuee, key: self.key.clone() }
    }

    pub fn machine(&self, name: &str, spec: &str) -> Result<()> {
        let text =
            format!("apiVersion: nuee.dev/v1\nkind: VirtualMachine\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n");
        self.nuee.apply(&text)?.success().map(drop)
    }

    pub fn get(&self, name: &str, path: &str) -> Result<String> {
        Ok(self.nuee.kubectl(&["get", "vm", name, "-o", &format!("jsonpath={{{path}}}")])?.success()?.text().to_owned())
    }

    pub fn ready(&self, name: &str) -> Result<()> {
        let waited = self.nuee.kubectl(&["wait", "--for=condition=Ready", &format!("vm/{name}"), BOOT])?;
        waited.success().with_context(|| self.nuee.log_end()).map(drop)
    }

    /// A client that runs a line in a guest.
    pub fn ssh_command(&self, address: &str, port: &str, line: &str) -> std::process::Command {
        let options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"];
        let target = format!("root@{address}");
        let mut arguments: Vec<&str> = options.to_vec();
        arguments.extend([
            "-o",
            "ConnectTimeout=10",
            "-o",
            "LogLevel=ERROR",
            "-i",
            &self.key,
            "-p",
            port,
            &target,
            line,
        ]);
        let mut command = self.nuee.space().command("ssh");
        command.args(arguments);
        command
    }

    pub fn try_ssh(&self, address: &str, port: &str, line: &str) -> Result<Output> {
        Output::of(self.ssh_command(address, port, line))
    }

    /// Runs a line in the guest, once its ssh server is up.
    pub fn ssh(&self, address: &str, line: &str) -> Result<String> {
        let mut last = None;
        self.nuee.eventually(&format!("ssh runs {line:?}"), || {
            let output = self.try_ssh(address, "22", line)?;
            let fine = output.status != 255;
            last = Some(output);
            Ok(fine)
        })?;
        Ok(last.context("ssh never ran")?.success()?.text().to_owned())
    }
}

#[test]
fn a_virtual_machine_lives_beside_containers() -> Result<()> {
    let lab = Lab::new()?;
    let nuee = &lab.nuee;
    let ports = "ports: [{containerPort: 22, hostPort: 2222, protocol: tcp}]";
    lab.machine("one", &format!("image: tiny, cpus: 1, memory: 128Mi, keyPairs: [me], {ports}"))?;
    lab.ready("one")?;
    let address = lab.get("one", ".status.addresses[0].ip")?;

    // It took its name and key from the metadata service, by which only it is told about itself.
    assert_eq!(lab.ssh(&address, "hostname")?, "one");
    let uid = lab.get("one", ".metadata.uid")?;
    let ask = "wget -q -O - http://169.254.169.254";
    assert_eq!(lab.ssh(&address, &format!("{ask}/latest/meta-data/instance-id"))?, uid);
    assert!(lab.ssh(&address, &format!("{ask}/openstack/latest/meta_data.json"))?.contains(&uid));
    let stranger = ["run", "--rm", "busybox:test", "wget", "-q", "-O", "-", "http://169.254.169.254/latest/meta-data/"];
    nuee.docker(&stranger)?.failure(1, "404")?;

    // A container and a guest on the default network reach each other; the published port leads in.
    nuee.docker(&["run", "-d", "--name", "web", "web:test"])?.success()?;
    let web = nuee.docker(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"])?.success()?.text().to_owned();
    assert_eq!(lab.ssh(&address, &format!("wget -q -O - http://{web}/"))?, "hello from a cloud");
    nuee.docker(&["run", "--rm", "busybox:test", "ping", "-c", "1", "-W", "5", &address])?.success()?;
    assert_eq!(lab.try_ssh("127.0.0.1", "2222", "echo through")?.success()?.text(), "through");

    // It cannot speak with another's address; with its own it can.
    let gateway = lab.ssh(&address, "ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'")?;
    let other = format!("{}.250", address.rsplit_once('.').context("no address")?.0);
    let spoof = format!(
        "ip addr add {other}/32 dev eth0; ping -c 1 -W 2 -I {other} {gateway} >/dev/null && echo heard; ip addr del {other}/32 dev eth0; ping -c 1 -W 5 {gateway} >/dev/null && echo honest"
    );
    assert_eq!(lab.ssh(&address, &spoof)?, "honest");

    // It outlives the daemon, and is the same machine afterwards.
    let pid = lab.get("one", ".status.pid")?;
    lab.ssh(&address, "echo kept > /kept && sync")?;
    nuee.kill_daemon()?;
    assert_eq!(lab.ssh(&address, "cat /kept")?, "kept");
    nuee.up()?;
    assert_eq!(lab.get("one", ".status.phase")?, "Running");
    lab.ready("one")?;
    assert_eq!(lab.get("one", ".status.pid")?, pid);

    // Saved while it runs, and cloned: the clone has what was synced.
    assert_eq!(nuee.nuee(&["vm", "save", "one", "saved"])?.success()?.text(), "saved");

    // Its crash is noticed, and repaired; nothing that was synced is lost.
    nuee.run("kill", &["-9", &pid])?.success()?;
    nuee.eventually("the guest is started again", || {
        let now = lab.get("one", ".status.pid")?;
        Ok(now != pid && now != "0" && lab.get("one", ".status.phase")? == "Running")
    })?;
    assert_eq!(lab.get("one", ".status.restartCount")?, "1");
    lab.ready("one")?;
    assert_eq!(lab.ssh(&address, "cat /kept")?, "kept");
    assert!(nuee.nuee(&["vm", "list"])?.success()?.stdout.contains("one"));
    let said = nuee.nuee(&["vm", "console", "--log", "one"])?.success()?.stdout;
    assert!(said.contains("nuee test guest ready: one"), "{said}");

    // Stopped by its button, it is off and says so.
    nuee.nuee(&["vm", "stop", "one"])?.success()?;
    nuee.eventually("it is off", || Ok(lab.get("one", ".status.phase")? == "Stopped"))?;
    assert_eq!(lab.get("one", ".status.conditions[0].status")?, "False");

    lab.machine("two", "image: saved, cpus: 1, memory: 128Mi, keyPairs: [me]")?;
    lab.ready("two")?;
    let second = lab.get("two", ".status.addresses[0].ip")?;
    assert_eq!(lab.ssh(&second, "cat /kept; hostname")?, "kept\ntwo");

    // The daemon dies on its way to switch it off, and the guest ends meanwhile: the next one says what is so.
    let pid = lab.get("two", ".status.pid")?;
    nuee.nuee(&["vm", "stop", "two"])?.success()?;
    nuee.kill_daemon()?;
    // It may have ended by then.
    nuee.run("kill", &["-9", &pid])?;
    nuee.up()?;
    nuee.eventually("it is said to be off", || {
        Ok(lab.get("two", ".status.phase")? == "Stopped" && lab.get("two", ".status.pid")? == "0")
    })?;

    // Deleted, nothing of them is left.
    nuee.kubectl(&["delete", "vm", "one", "two", "--timeout=60s"])?.success()?;
    assert_eq!(nuee.run("sh", &["-c", "ip -o link | grep -c tun; true"])?.success()?.text(), "0");
    nuee.kubectl(&["delete", "diskimages", "tiny", "saved", "--timeout=60s"])?.success()?;
    let layers = nuee.data().join("disks/layers");
    nuee.eventually("no layer is left", || Ok(std::fs::read_dir(&layers)?.next().is_none()))?;
    lab.nuee.finish()
}

#[test]
fn what_a_virtual_machine_cannot_be_is_refused() -> Result<()> {
    let nuee = Nuee::start(env!("CARGO_BIN_EXE_nuee"))?;
    let object = |kind: &str, spec: &str| {
        format!("apiVersion: nuee.dev/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{{spec}}}\n")
    };
    for (kind, spec, word) in [
        ("VirtualMachine", "cpus: 1", "spec.image"),
        ("VirtualMachine", "image: a, cpus: -1", "spec.cpus"),
        ("VirtualMachine", "image: a, memory: lots", "spec.memory"),
        ("VirtualMachine", "image: a, memory: 64Mi, memoryMinimum: 128Mi", "must not be more than spec.memory"),
        ("VirtualMachine", "image: a, hostname: \"a b\"", "spec.hostname"),
        ("KeyPair", "publicKey: \"command=x ssh-rsa AAAA\"", "spec.publicKey"),
        ("DiskImage", "source: {}", "spec.source"),
    ] {
        nuee.apply(&object(kind, spec))?.failure(1, word)?;
    }
    nuee.apply(&object("VirtualMachine", "image: nowhere, cpus: 1, memory: 64Mi"))?.success()?;
    nuee.eventually("the status says why it does not run", || {
        let said = nuee.kubectl(&["get", "vm", "x", "-o", "jsonpath={.status.message}"])?.success()?;
        Ok(said.stdout.contains("disk image nowhere not found"))
    })?;
    nuee.kubectl(&["delete", "vm", "x", "--timeout=60s"])?.success()?;
    // A flavor's size counts where it is placed.
    nuee.apply("apiVersion: nuee.dev/v1\nkind: Flavor\nmetadata: {name: vast}\nspec: {cpus: 1, memory: 100Ti}\n")?
        .success()?;
    nuee.apply(&object("VirtualMachine", "image: nowhere, flavor: vast"))?.success()?;
    nuee.eventually("no machine is large enough", || {
        let events = nuee.kubectl(&["get", "events", "--field-selector", "involvedObject.name=x"])?.success()?;
        Ok(events.stdout.contains("Insufficient memory"))
    })?;
    nuee.kubectl(&["delete", "vm", "x", "--timeout=60s"])?.success()?;
    // A hostile image reads nothing of the machine.
    let secret = nuee.files().join("secret");
    std::fs::write(&secret, "secret".repeat(100))?;
    let image = nuee.files().join("evil.qcow2").display().to_string();
    let make = ["create", "-q", "-f", "qcow2", "-b", &secret.display().to_string(), "-F", "raw", &image];
    nuee.run("qemu-img", &make)?.success()?;
    nuee.nuee(&["image", "import", "evil", &image])?.failure(1, "backing file")?;
    nuee.finish()
}

/// The same image runs as a container and as a machine.
#[test]
fn a_containers_image_boots_as_a_machine() -> Result<()> {
    let lab = Lab::new()?;
    let nuee = &lab.nuee;
    let file = "FROM web:test\nENV SAYING=\"it's up\"\nUSER 33:34\nWORKDIR /tmp\n\
        CMD [\"/bin/sh\", \"-c\", \"echo $SAYING $(id -u):$(id -g) in $(pwd); exec httpd -f -p 8000 -h /www\"]\n";
    std::fs::write(nuee.files().join("Dockerfile"), file)?;
    nuee.docker(&["build", "-q", "-t", "both:test", &nuee.files().display().to_string()])?.success()?;
    let unknown = nuee.nuee(&["image", "build", "nothing:1", "-o", "nothing"])?;
    unknown.failure(1, "docker pull nothing:1")?;
    assert_eq!(nuee.nuee(&["image", "build", "both:test", "-o", "both"])?.success()?.text(), "both");
    lab.machine(
        "web",
        "image: both, cpus: 1, memory: 128Mi, restartPolicy: Never, ports: [{containerPort: 8000, hostPort: 8000}]",
    )?;
    lab.ready("web")?;
    let address = lab.get("web", ".status.addresses[0].ip")?;
    nuee.eventually("the machine serves", || {
        Ok(nuee
            .docker(&["run", "--rm", "busybox:test", "wget", "-q", "-O", "-", &format!("http://{address}:8000/")])?
            .text()
            == "hello from a cloud")
    })?;
    let said = nuee.nuee(&["vm", "console", "--log", "web"])?.success()?.stdout;
    assert!(said.contains("it's up 33:34 in /tmp"), "{said}");
    // Nothing of the way there is left behind.
    assert!(nuee.docker(&["ps", "-aq"])?.success()?.text().is_empty());
    assert_eq!(std::fs::read_dir(nuee.data().join("uploads"))?.count(), 0);
    // Its button ends the program, and with it the machine.
    nuee.nuee(&["vm", "stop", "web"])?.success()?;
    nuee.eventually("the machine is off", || Ok(lab.get("web", ".status.phase")? == "Stopped"))?;
    nuee.kubectl(&["delete", "vm", "web"])?.success()?;
    lab.nuee.finish()
}
