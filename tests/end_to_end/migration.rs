//! Live migration between two machines: a session into the guest goes on and no acknowledged line is lost; whoever is killed on the way,
//! exactly one guest runs.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::{Nuee, Output, Pool};

use crate::join::{field, pod, ready};

/// How long a guest may take to boot on a machine under load that translates every instruction.
pub const BOOT: &str = "--timeout=300s";
/// Address by which the first machine speaks to workloads wherever they are.
const OWN: &str = "10.88.127.255";

/// Two machines, and a guest `web` on the first.
pub struct Lab {
    pub pool: Pool,
    key: String,
    pub uid: String,
    address: String,
}

impl Lab {
    /// `volumes`: names and sizes of volumes that the guest has.
    pub fn new(volumes: &[(&str, &str)]) -> Result<Self> {
        hypervisor::test_guest::build(std::path::Path::new("/var/cache/nuee"))?;
        let mut pool = Pool::start(env!("CARGO_BIN_EXE_nuee"))?;
        let first = pool.first();
        first.build_images()?;
        first.nuee(&["image", "build-test-guest", "-o", "tiny"])?.success()?;
        let key = first.files().join("key").display().to_string();
        first.run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key])?.success()?;
        let public = std::fs::read_to_string(format!("{key}.pub"))?;
        let disks: Vec<String> = volumes.iter().map(|(name, _)| format!("{{volume: {name}}}")).collect();
        let disks = disks.join(", ");
        for (name, size) in volumes {
            first.nuee(&["volume", "create", name, "--size", size])?.success()?;
        }
        let text = format!(
            "apiVersion: nuee.dev/v1\nkind: KeyPair\nmetadata: {{name: me}}\nspec: {{publicKey: \"{}\"}}\n---\n\
             apiVersion: nuee.dev/v1\nkind: VirtualMachine\nmetadata: {{name: web}}\nspec: {{image: tiny, memory: 224Mi, \
             memoryMaximum: 480Mi, keyPairs: [me], configDrive: OpenStack, disks: [{disks}]}}\n",
            public.trim()
        );
        first.apply(&text)?.success()?;
        let waited = first.kubectl(&["wait", "--for=condition=Ready", "vm/web", BOOT])?;
        waited.success().with_context(|| first.log_end())?;
        pool.join()?;
        let uid = field(pool.first(), &["vm", "web"], ".metadata.uid")?;
        let address = field(pool.first(), &["vm", "web"], ".status.addresses[0].ip")?;
        let lab = Self { pool, key, uid, address };
        lab.first().eventually("the second machine is reached", || {
            Ok(lab.first().run("ip", &["route"])?.stdout.contains("10.88.128.0/24 via"))
        })?;
        Ok(lab)
    }

    pub fn first(&self) -> &Nuee {
        self.pool.first()
    }

    pub fn ssh(&self, line: &str) -> std::process::Command {
        let mut command = self.first().space().command("ssh");
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "BatchMode=yes",
            "ConnectTimeout=10",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=6",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        command.args(["-b", OWN, "-i", &self.key, &format!("root@{}", self.address), line]);
        command
    }

    pub fn guest_says(&self, line: &str) -> Result<String> {
        let mut last = String::new();
        self.first().eventually(&format!("ssh runs {line:?}"), || {
            let output = Output::of(self.ssh(line))?;
            let fine = output.status != 255;
            last = output.stdout;
            Ok(fine)
        })?;
        Ok(last)
    }

    /// Hypervisors of the machine, on either side.
    pub fn hypervisors(&self) -> usize {
        testkit::command_lines(&self.uid).iter().filter(|words| words[0].contains("qemu-system")).count()
    }

    pub fn start_migration(&self, name: &str, to: &str, bandwidth: &str) -> Result<()> {
        let bandwidth = if bandwidth.is_empty() { String::new() } else { format!(", bandwidth: {bandwidth}") };
        let text = format!(
            "apiVersion: nuee.dev/v1\nkind: Migration\nmetadata: {{name: {name}}}\nspec: {{virtualMachine: web, targetNode: {to}{bandwidth}}}\n"
        );
        self.first().apply(&text)?.success().map(drop)
    }

    /// Has the store not take the decision where a machine runs. It says forbidden, as it does of a version that is not the last one any
    /// more, so that the source asks on; what is invalid stays so.
    pub fn hold_decisions(&self) -> Result<()> {
        let deny = "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\nmetadata: {name: hold}\n\
            spec:\n  matchConstraints: {resourceRules: [{apiGroups: [nuee.dev], apiVersions: [v1], operations: [UPDATE], \
            resources: [virtualmachines]}]}\n  validations: [{expression: object.spec.nodeName == oldObject.spec.nodeName, reason: Forbidden}]\n---\n\
            apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\nmetadata: {name: hold}\n\
            spec: {policyName: hold, validationActions: [Deny]}\n";
        self.first().apply(deny)?.success().map(drop)
    }

    pub fn let_decide(&self) -> Result<()> {
        let kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy";
        self.first().kubectl(&["delete", kinds, "hold"])?.success().map(drop)
    }

    pub fn phase(&self, name: &str) -> Result<String> {
        field(self.first(), &["migration", name], ".status.phase")
    }

    /// As [`Self::reaches`], where a silent machine must first be given up.
    fn reaches_late(&self, name: &str, phase: &str) -> Result<()> {
        (0..3).find_map(|_| self.reaches(name, phase).ok()).map_or_else(|| self.reaches(name, phase), Ok)
    }

    pub fn reaches(&self, name: &str, phase: &str) -> Result<()> {
        self.first()
            .eventually(&format!("migration {name} is {phase}"), || Ok(self.phase(name)? == phase))
            .with_context(|| {
                let told = self.first().kubectl(&["get", "migration", name, "-o", "yaml"]).map(|found| found.stdout);
                format!("{}\nsecond: {}", told.unwrap_or_default(), self.pool.machines[1].log_end())
            })
    }
}

/// A session that sends numbers to the guest, which writes each down before it answers.
pub struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    acknowledged: usize,
    file: &'static str,
}

impl Session {
    pub fn open(lab: &Lab, file: &'static str) -> Result<Self> {
        let mut command = lab.ssh(&format!("while read n; do echo $n >> {file} && sync && echo $n; done"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("no input")?;
        let stdout = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, stdin, stdout, acknowledged: 0, file })
    }

    pub fn say_one(&mut self) -> Result<()> {
        writeln!(self.stdin, "{}", self.acknowledged)?;
        let mut line = String::new();
        ensure!(self.stdout.read_line(&mut line)? > 0, "the session ended after {} lines", self.acknowledged);
        ensure!(line.trim() == self.acknowledged.to_string(), "{line:?} instead of {}", self.acknowledged);
        self.acknowledged += 1;
        Ok(())
    }

    /// Talks while the work is done, and for some lines more.
    pub fn talk_during(&mut self, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
        let done = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            let ended = done.clone();
            let worker = scope.spawn(move || {
                let outcome = work();
                ended.store(true, Ordering::Relaxed);
                outcome
            });
            let mut said = Ok(());
            while said.is_ok() && !done.load(Ordering::Relaxed) {
                said = self.say_one();
                std::thread::sleep(Duration::from_millis(10));
            }
            let outcome = worker.join().map_err(|_| anyhow::anyhow!("the work panicked"))?;
            outcome.and(said)
        })?;
        (0..20).try_for_each(|_| self.say_one())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn check_log(lab: &Lab, session: &Session) -> Result<()> {
    let log = lab.guest_says(&format!("cat {}", session.file))?;
    let lines: Vec<&str> = log.lines().collect();
    let expected: Vec<String> = (0..session.acknowledged).map(|number| number.to_string()).collect();
    ensure!(lines == expected, "{} lines acknowledged, the guest has {}", expected.len(), lines.len());
    Ok(())
}

#[test]
fn a_guest_moves_while_a_session_goes_on_and_every_failure_leaves_exactly_one() -> Result<()> {
    let lab = Lab::new(&[])?;
    let (first, second) = (lab.first(), &lab.pool.machines[1]);
    // Whose guests are made from an image may have it, and nobody else.
    for (node, answer) in [("n1", "yes"), ("n2", "no")] {
        let who = format!("system:node:{node}");
        let line = ["auth", "can-i", "get", "diskimages.nuee.dev/tiny", "--subresource=content", "--as", &who];
        let said = first.kubectl(&[&line[..], &["--as-group", "system:nodes"]].concat())?;
        assert_eq!(said.text().split(" - ").next(), Some(answer), "{node}");
    }
    lab.guest_says("rm -f /root/log")?;
    let mut session = Session::open(&lab, "/root/log")?;
    session.say_one()?;

    // Called off.
    session.talk_during(|| {
        lab.start_migration("called-off", "n2", "4Mi")?;
        lab.reaches("called-off", "Copying")?;
        first
            .kubectl(&["patch", "migration", "called-off", "--type=merge", "-p", "{\"spec\":{\"cancel\":true}}"])?
            .success()?;
        lab.reaches("called-off", "Cancelled")?;
        first.eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))
    })?;

    // The target's agent dies.
    session.talk_during(|| {
        lab.start_migration("target-dies", "n2", "4Mi")?;
        lab.reaches("target-dies", "Copying")?;
        second.kill_daemon()?;
        lab.reaches("target-dies", "Failed")?;
        second.up()?;
        first.eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))
    })?;

    // The source's agent dies, and with it the API.
    session.talk_during(|| {
        lab.start_migration("source-dies", "n2", "4Mi")?;
        lab.reaches("source-dies", "Copying")?;
        first.kill_daemon()?;
        first.up()?;
        lab.reaches("source-dies", "Failed")?;
        first.eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))
    })?;
    // The cable breaks. The guest does not wait for the other machine for ever.
    session.talk_during(|| {
        lab.start_migration("cable-breaks", "n2", "4Mi")?;
        lab.reaches("cable-breaks", "Copying")?;
        lab.pool.plug(2, false)?;
        lab.reaches_late("cable-breaks", "Failed")?;
        lab.pool.plug(2, true)?;
        first.eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))?;
        // Nothing is sent to a machine that the pool believes to be silent.
        ready(first, "node/n2")
    })?;
    assert_eq!(field(first, &["vm", "web"], ".spec.nodeName")?, "n1");

    // The target's agent dies when all is there, and the store decides for it: the guest goes on where it stood.
    lab.hold_decisions()?;
    session.talk_during(|| {
        lab.start_migration("target-dies-late", "n2", "")?;
        lab.reaches("target-dies-late", "Handover")?;
        second.kill_daemon()?;
        second.up()?;
        first.eventually("the new agent has found the guest", || {
            Ok(second.log_end().contains("a guest was on its way here when the last agent ended"))
        })?;
        lab.let_decide()?;
        lab.reaches("target-dies-late", "Succeeded")?;
        first.eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))
    })?;
    check_log(&lab, &session)?;

    // The source's agent dies when all is sent, and takes it back.
    lab.hold_decisions()?;
    session.talk_during(|| {
        lab.start_migration("source-dies-late", "n1", "")?;
        lab.reaches("source-dies-late", "Handover")?;
        second.kill_daemon()?;
        second.up()?;
        lab.reaches("source-dies-late", "Failed")?;
        lab.let_decide()?;
        first.eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))
    })?;
    assert_eq!(field(first, &["vm", "web"], ".spec.nodeName")?, "n2");

    // Somebody deletes the migration while the store decides: it is gone only when the guest goes on where it stood.
    lab.hold_decisions()?;
    session.talk_during(|| {
        lab.start_migration("deleted", "n1", "")?;
        lab.reaches("deleted", "Handover")?;
        first.kubectl(&["delete", "migration", "deleted", "--timeout=120s"])?.success()?;
        lab.let_decide()?;
        first.eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))
    })?;
    assert_eq!(field(first, &["vm", "web"], ".spec.nodeName")?, "n2");
    check_log(&lab, &session)?;

    // Nobody but its host gives it away, and that only to where a migration takes it.
    let elsewhere = ["patch", "vm", "web", "--type=merge", "-p", "{\"spec\":{\"nodeName\":\"n1\"}}"];
    first.kubectl(&elsewhere)?.failure(1, "spec.nodeName: Invalid value")?;
    let host = first.kubectl(&[&elsewhere[..], &["--as", "system:node:n2", "--as-group", "system:nodes"]].concat())?;
    host.failure(1, "spec.nodeName: Invalid value")?;
    // Another machine cannot even read it, as a patch does first, so it sends the whole object.
    let taken = first.files().join("taken.json");
    let file = taken.display().to_string();
    let at = "/apis/nuee.dev/v1/namespaces/default/virtualmachines/web";
    let take = ["replace", "--raw", at, "-f", &file, "--as", "system:node:n1", "--as-group", "system:nodes"];
    // Its host may write meanwhile, and then another version is asked for.
    first.eventually("the attempt is judged", || {
        let object = first.kubectl(&["get", "vm", "web", "-o", "json"])?.success()?;
        let mut object: serde_json::Value = serde_json::from_str(&object.stdout)?;
        object["spec"]["nodeName"] = "n1".into();
        std::fs::write(&taken, object.to_string())?;
        let said = first.kubectl(&take)?;
        ensure!(said.status != 0, "n1 has taken it: {}", said.stdout);
        Ok(said.stderr.contains("can only update virtualmachines with spec.nodeName set to itself"))
    })?;

    // It goes through, there and back.
    for target in ["n1", "n2"] {
        session.talk_during(|| {
            let said = first.nuee(&["vm", "migrate", "web", "--to", target])?;
            let told = first.kubectl(&["get", "migrations", "-o", "wide"])?.stdout;
            let said = said.success().with_context(|| format!("{told}\n{}\n{}", first.log_end(), second.log_end()))?;
            ensure!(said.stdout.contains(&format!("web is on {target} now")), "{}", said.stdout);
            first.eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))
        })?;
        assert_eq!(field(first, &["vm", "web"], ".spec.nodeName")?, target);
        assert_eq!(field(first, &["vm", "web"], ".status.addresses[0].ip")?, lab.address);
        first.eventually("the machine is ready", || {
            Ok(field(first, &["vm", "web"], ".status.conditions[0].status")? == "True")
        })?;
        check_log(&lab, &session)?;
        // Pods on either machine reach it.
        let mut text = String::new();
        for node in ["n1", "n2"] {
            text.push_str(&pod(&format!("from-{node}-at-{target}"), node, "busybox:test", "exec sleep 6000"));
        }
        first.apply(&text)?.success()?;
        for node in ["n1", "n2"] {
            let name = format!("from-{node}-at-{target}");
            ready(first, &format!("pod/{name}"))?;
            first.eventually(&format!("{name} reaches the guest"), || {
                let said = first.kubectl(&["exec", &name, "--", "ping", "-c", "1", "-W", "2", &lab.address])?;
                Ok(said.status == 0)
            })?;
        }
    }
    // Its configuration drive went along, and what was plugged in of its memory.
    let drive = "umount /run/seed; echo 3 > /proc/sys/vm/drop_caches; mount -t iso9660 -o ro /dev/vdb /run/seed; \
        cat /run/seed/openstack/latest/meta_data.json";
    assert!(lab.guest_says(drive)?.contains(&lab.uid));
    let memory = || -> Result<u32> {
        let kib = lab.guest_says("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
        Ok(kib.trim().parse()?)
    };
    let before = memory()?;
    first.nuee(&["vm", "resize", "web", "--memory", "352Mi"])?.success()?;
    let grown = (352_u64 << 20).to_string();
    first.eventually("it has grown", || Ok(field(first, &["vm", "web"], ".status.memoryBytes")? == grown))?;
    first.nuee(&["vm", "migrate", "web", "--to", "n1"])?.success()?;
    first.nuee(&["vm", "migrate", "web", "--to", "n2"])?.success()?;
    let after = memory()?;
    assert!(after >= before + (100 << 10), "{before} KiB, then {after}");
    drop(session);

    // One that is being rescued stays where it is, and says why.
    first.nuee(&["vm", "rescue", "web"])?.success()?;
    first.eventually("it is rescued", || Ok(field(first, &["vm", "web"], ".status.rescueImage")? == "tiny"))?;
    first.nuee(&["vm", "migrate", "web", "--to", "n1"])?.failure(1, "it is being rescued")?;

    // A new guest on the second machine has its image from the first.
    let fresh = "apiVersion: nuee.dev/v1\nkind: VirtualMachine\nmetadata: {name: fresh}\nspec: {image: tiny, memory: 96Mi, nodeName: n2}\n";
    first.apply(fresh)?.success()?;
    let waited = first.kubectl(&["wait", "--for=condition=Ready", "vm/fresh", BOOT])?;
    waited.success().with_context(|| second.log_end())?;
    first.kubectl(&["delete", "vm", "fresh", "web", "--timeout=60s"])?.success()?;
    first.kubectl(&["delete", "diskimage", "tiny", "--timeout=60s"])?.success()?;
    first.eventually("no copy of the image is left", || {
        Ok(std::fs::read_dir(second.data().join("disks/layers"))?.next().is_none())
    })?;
    first.eventually("no hypervisor is left", || Ok(lab.hypervisors() == 0))?;
    lab.pool.finish()
}
