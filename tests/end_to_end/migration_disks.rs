//! Live migration of a guest with volumes: all that it synced is there on the other machine, whoever was killed on the way; and the volume
//! is a volume of that machine from then on. Guests that stand still or sleep.

use anyhow::{Context, Result, ensure};

use crate::join::{field, ready};
use crate::migration::{Lab, Session, check_log};

/// The guest's device of a volume, by its serial number.
fn device(lab: &Lab, serial: &str) -> Result<String> {
    let line = format!(
        "for d in /sys/block/vd*; do if [ \"$(cat $d/serial)\" = {serial} ]; then echo /dev/${{d##*/}}; fi; done"
    );
    Ok(lab.guest_says(&line)?.trim().to_owned())
}

fn of_volume(lab: &Lab, name: &str, path: &str) -> Result<String> {
    field(lab.first(), &["volume", name], path)
}

/// How many files of layers a machine has.
fn layers(lab: &Lab, machine: usize) -> Result<usize> {
    let directory = lab.pool.machines[machine].data().join("disks/layers");
    let files = std::fs::read_dir(directory).into_iter().flatten();
    Ok(files
        .filter(|file| file.as_ref().is_ok_and(|file| file.file_name().to_string_lossy().ends_with(".qcow2")))
        .count())
}

fn one_is_left(lab: &Lab) -> Result<()> {
    lab.first().eventually("one hypervisor is left", || Ok(lab.hypervisors() == 1))
}

fn is_on(lab: &Lab, node: &str) -> Result<()> {
    ensure!(field(lab.first(), &["vm", "web"], ".spec.nodeName")? == node);
    lab.first()
        .eventually(&format!("the volume is on {node}"), || Ok(of_volume(lab, "data", ".spec.nodeName")? == node))?;
    ensure!(of_volume(lab, "data", ".status.attachedTo.uid")? == lab.uid);
    lab.first().eventually("nothing is left to be said of the move", || {
        Ok(of_volume(lab, "data", ".status.movedTo")?.is_empty()
            && of_volume(lab, "data", ".status.message")?.is_empty())
    })
}

#[test]
fn volumes_move_with_their_machine() -> Result<()> {
    let lab = Lab::new(&[("data", "64Mi"), ("more", "16Mi")])?;
    let (first, second) = (lab.first(), &lab.pool.machines[1]);
    first.kubectl(&["wait", "--for=condition=DisksAttached", "vm/web", "--timeout=60s"])?.success()?;
    let (data, more) = (device(&lab, "data")?, device(&lab, "more")?);
    lab.guest_says(&format!("mke2fs -q {data} && mkdir -p /srv && mount {data} /srv && echo other > {more} && sync"))?;
    let mut session = Session::open(&lab, "/srv/log")?;
    session.say_one()?;

    // The target's disk is full: it says so, and nothing stays there.
    let small = second.data().join("disks").display().to_string();
    std::fs::create_dir_all(&small)?;
    second.run("mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs", &small])?.success()?;
    session.talk_during(|| {
        lab.start_migration("no-space", "n2", "")?;
        lab.reaches("no-space", "Failed")?;
        let why = field(first, &["migration", "no-space"], ".status.message")?;
        ensure!(why.contains("could not be written on the other machine: No space left on device"), "{why}");
        one_is_left(&lab)
    })?;
    let left = second.run("find", &[&small, "-name", "*.qcow2"])?.success()?;
    assert_eq!(left.text(), "");
    // With the disk goes the directory that the daemon had made there.
    second.kill_daemon()?;
    second.run("umount", &[&small])?.success()?;
    second.up()?;
    ready(first, "node/n2")?;
    is_on(&lab, "n1")?;

    // The target's agent dies: the volumes are where they were, and what had come of them goes.
    session.talk_during(|| {
        lab.start_migration("target-dies", "n2", "4Mi")?;
        lab.reaches("target-dies", "Copying")?;
        // Nobody takes a snapshot of disks that move.
        first
            .apply("apiVersion: nuee.dev/v1\nkind: Snapshot\nmetadata: {name: later}\nspec: {volume: data}\n")?
            .success()?;
        second.kill_daemon()?;
        lab.reaches("target-dies", "Failed")?;
        second.up()?;
        one_is_left(&lab)?;
        first.eventually("nothing is left on the target", || Ok(layers(&lab, 1)? == 0))
    })?;
    is_on(&lab, "n1")?;
    let taken = ["wait", "--for=jsonpath={.status.readyToUse}=true", "snapshot/later", "--timeout=60s"];
    first.kubectl(&taken)?.success()?;

    // Its hypervisor on the source dies when all is sent: the guest is on the target, and nowhere else.
    lab.hold_decisions()?;
    session.talk_during(|| {
        lab.start_migration("hypervisor-dies", "n2", "")?;
        lab.reaches("hypervisor-dies", "Handover")?;
        // It waits. Then it is of the disk as it stood, or says that the disk has moved.
        let meanwhile = "apiVersion: nuee.dev/v1\nkind: Snapshot\nmetadata: {name: meanwhile}\nspec: {volume: data}\n";
        first.apply(meanwhile)?.success()?;
        first.run("kill", &["-9", &field(first, &["vm", "web"], ".status.pid")?])?.success()?;
        first.eventually("it is noticed", || Ok(lab.hypervisors() == 1))?;
        lab.let_decide()?;
        lab.reaches("hypervisor-dies", "Succeeded")?;
        one_is_left(&lab)
    })?;
    check_log(&lab, &session)?;
    is_on(&lab, "n2")?;
    assert_eq!(of_volume(&lab, "more", ".spec.nodeName")?, "n2");
    let taken = |path: &str| field(first, &["snapshot", "meanwhile"], path);
    first
        .eventually("the snapshot that waited is decided", || {
            Ok(taken(".status.phase")? == "Ready" || taken(".status.message")?.contains("moved to another machine"))
        })
        .with_context(|| format!("{:?}", first.kubectl(&["get", "snapshot", "meanwhile", "-o", "yaml"])))?;
    first.nuee(&["snapshot", "rm", "meanwhile"])?.success()?;
    // The snapshot alone stays where it was taken.
    first.eventually("the source keeps the image and the snapshot", || Ok(layers(&lab, 0)? == 2))?;

    // What the guest knew its disks by is the same, and they come and go as before.
    assert_eq!((device(&lab, "data")?, device(&lab, "more")?), (data.clone(), more.clone()));
    assert_eq!(lab.guest_says(&format!("head -n 1 {more}"))?.trim(), "other");
    first.nuee(&["vm", "detach", "web", "more"])?.success()?;
    first.eventually("the guest lets go of it", || Ok(device(&lab, "more")?.is_empty()))?;
    assert_eq!(of_volume(&lab, "more", ".status.attachedTo")?, "");
    first.nuee(&["vm", "attach", "web", "more"])?.success()?;
    first.eventually("the guest finds it", || Ok(!device(&lab, "more")?.is_empty()))?;
    let again = device(&lab, "more")?;
    assert_eq!(lab.guest_says(&format!("head -n 1 {again}"))?.trim(), "other");
    first.kubectl(&["patch", "volume", "data", "--type=merge", "-p", "{\"spec\":{\"size\":\"96Mi\"}}"])?.success()?;
    first.eventually("it grows where it is now", || {
        Ok(lab.guest_says(&format!("lsblk -bdno SIZE {data}"))?.trim() == (96 << 20).to_string())
    })?;

    // The source's agent dies when all is sent, and takes it back: with its volumes.
    lab.hold_decisions()?;
    session.talk_during(|| {
        lab.start_migration("source-dies", "n1", "")?;
        lab.reaches("source-dies", "Handover")?;
        second.kill_daemon()?;
        second.up()?;
        lab.reaches("source-dies", "Failed")?;
        lab.let_decide()?;
        one_is_left(&lab)
    })?;
    is_on(&lab, "n2")?;
    first.eventually("nothing of it stays where it did not come", || Ok(layers(&lab, 0)? == 2))?;
    check_log(&lab, &session)?;

    stands_still(&lab, &mut session)?;
    is_refused(&lab)?;
    drop(session);

    // Deleted, nothing is left on either machine.
    first.kubectl(&["delete", "vm", "web", "--timeout=60s"])?.success()?;
    first.eventually("the volume is nobody's", || Ok(of_volume(&lab, "data", ".status.attachedTo")?.is_empty()))?;
    first.kubectl(&["delete", "volumes,snapshots,diskimages", "--all", "--timeout=60s"])?.success()?;
    first.eventually("no layer is left", || Ok(layers(&lab, 0)? + layers(&lab, 1)? == 0))?;
    first.eventually("no hypervisor is left", || Ok(lab.hypervisors() == 0))?;
    lab.pool.finish()
}

/// A guest that stands still moves as it stands.
fn stands_still(lab: &Lab, session: &mut Session) -> Result<()> {
    let first = lab.first();
    let phase = || field(first, &["vm", "web"], ".status.phase");
    first.nuee(&["vm", "pause", "web"])?.success()?;
    first.eventually("it stands still", || Ok(phase()? == "Paused"))?;
    first.nuee(&["vm", "migrate", "web", "--to", "n1"])?.success().with_context(|| first.log_end())?;
    one_is_left(lab)?;
    is_on(lab, "n1")?;
    first.eventually("it stands still there", || Ok(phase()? == "Paused"))?;
    let pid = field(first, &["vm", "web"], ".status.pid")?;
    assert_ne!(pid, "0");
    first.nuee(&["vm", "start", "web"])?.success()?;
    first.eventually("it goes on", || Ok(phase()? == "Running"))?;
    (0..5).try_for_each(|_| session.say_one())?;
    check_log(lab, session)
}

/// What does not move says so before anything begins.
fn is_refused(lab: &Lab) -> Result<()> {
    let first = lab.first();
    first.nuee(&["vm", "suspend", "web"])?.success()?;
    first.eventually("it sleeps", || Ok(field(first, &["vm", "web"], ".status.phase")? == "Suspended"))?;
    first.nuee(&["vm", "migrate", "web", "--to", "n2"])?.failure(1, "the machine sleeps")?;
    first.nuee(&["vm", "start", "web"])?.success()?;
    first.eventually("it is awake", || Ok(field(first, &["vm", "web"], ".status.phase")? == "Running"))?;
    let read_only =
        "{\"spec\":{\"disks\":[{\"volume\":\"data\",\"readOnly\":false},{\"volume\":\"more\",\"readOnly\":true}]}}";
    first.kubectl(&["patch", "vm", "web", "--type=merge", "-p", read_only])?.success()?;
    first.nuee(&["vm", "migrate", "web", "--to", "n2"])?.failure(1, "may only read")?;
    is_on(lab, "n1")
}
