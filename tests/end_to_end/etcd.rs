//! A Nuée whose objects are in an etcd cluster.

use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use testkit::Nuee;

/// An etcd beside one Nuée; ends with the test.
struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_etcd(nuee: &Nuee) -> Result<Etcd> {
    let mut command = nuee.space().command("etcd");
    command.arg("--data-dir").arg(nuee.files().join("etcd")).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Etcd(command.spawn().context("cannot start etcd (Debian's etcd-server)")?))
}

#[test]
fn objects_live_in_etcd_when_the_settings_say_so() -> Result<()> {
    let nuee = Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))?;
    std::fs::create_dir_all(nuee.data())?;
    std::fs::write(nuee.data().join("config.yaml"), "etcd: {endpoints: ['http://127.0.0.1:2379']}\n")?;
    // Without its etcd it says what is wrong, and does not begin an empty store of its own.
    nuee.nuee(&["up", "--detach"])?.failure(1, "etcd at http://127.0.0.1:2379 cannot be used")?;
    let etcd = start_etcd(&nuee)?;
    nuee.eventually("etcd answers", || Ok(nuee.run("etcdctl", &["endpoint", "health"])?.status == 0))?;
    nuee.up()?;
    nuee.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"])?.success()?;
    let keys = |nuee: &Nuee| -> Result<String> {
        let words = ["ETCDCTL_API=3", "etcdctl", "get", "--prefix", "/registry/", "--keys-only"];
        Ok(nuee.run("env", &words)?.success()?.stdout)
    };
    assert!(keys(&nuee)?.contains("/registry/core/configmaps/default/kept"));
    assert_eq!(std::fs::read_dir(nuee.data().join("store"))?.count(), 0, "nothing in the embedded store");
    nuee.kill_daemon()?;
    nuee.up()?;
    nuee.kubectl(&["get", "configmap", "kept"])?.success()?;
    nuee.kubectl(&["create", "deployment", "web", "--image=missing:test", "--replicas=2"])?.success()?;
    nuee.eventually("the controllers made two pods", || {
        Ok(nuee.kubectl(&["get", "pods", "-o", "name"])?.stdout.lines().count() == 2)
    })?;
    let (data, file) = (nuee.data().display().to_string(), nuee.files().join("backup").display().to_string());
    let taken = nuee.nuee(&["backup", "--data-dir", &data, "-o", "json", &file])?.success()?.stdout;
    assert!(taken.contains("etcd-snapshot"), "{taken}");
    nuee.nuee(&["backup", "verify", &file])?.failure(0, "is whole")?;
    // Away for a moment: reads go on from the watch cache, and writes work again when it is back.
    drop(etcd);
    nuee.kubectl(&["get", "configmap", "kept"])?.success()?;
    let _etcd = start_etcd(&nuee)?;
    nuee.eventually("writes work again", || {
        // A write whose outcome was unknown may have been done.
        let outcome = nuee.kubectl(&["create", "configmap", "after"])?;
        Ok(outcome.status == 0 || outcome.stderr.contains("already exists"))
    })?;
    nuee.eventually("the caches follow again", || Ok(nuee.kubectl(&["get", "configmap", "after"])?.status == 0))?;
    nuee.finish()
}
