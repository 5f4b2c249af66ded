//! Other containers' mounts are kept from the OCI runtime, and stay where they are.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use oci_spec::runtime::{HookBuilder, HooksBuilder, MountBuilder, Spec};

use crate::place::{Place, shell};

/// Mounts that are taken off again, also after a failed assertion.
struct Crowd(PathBuf);

impl Crowd {
    /// A mount of its own, and on it one that belongs to another container.
    fn new(directory: &Path) -> Self {
        std::fs::create_dir_all(directory.join("other")).unwrap();
        mount(Some(directory), directory, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let crowd = Self(directory.to_owned());
        mount(None::<&str>, directory, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), &crowd.other(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        std::fs::write(crowd.other().join("file"), "theirs").unwrap();
        crowd
    }

    fn other(&self) -> PathBuf {
        self.0.join("other")
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Has the OCI runtime's own mounts written to a file before it changes its root.
fn tell_mounts(spec: &mut Spec, file: &Path) {
    let script = format!("cat /proc/self/mountinfo > {}", file.display());
    let words = ["sh", "-c", script.as_str()].map(str::to_owned);
    let hook = HookBuilder::default().path("/bin/sh").args(words).build().unwrap();
    spec.set_hooks(Some(HooksBuilder::default().create_runtime([hook]).build().unwrap()));
}

#[tokio::test]
async fn the_oci_runtime_sees_no_other_containers_mounts() {
    let mut place = Place::new();
    let crowd = Crowd::new(&place.directory.path().join("bundles"));
    place.set_crowds(vec![crowd.0.clone()]);
    let seen = |name: &str| std::fs::read_to_string(place.directory.path().join(name)).unwrap();
    let other = crowd.other().display().to_string();

    let mut wanted = shell("echo mine");
    let file = place.directory.path().join("apart");
    wanted.change = Box::new(move |spec| tell_mounts(spec, &file));
    assert_eq!(place.run("one", wanted).await, (0, "mine\n".to_owned()));
    let own = place.directory.path().join("bundles/one").display().to_string();
    assert!(seen("apart").contains(&own) && !seen("apart").contains(&other), "{}", seen("apart"));
    assert_eq!(std::fs::read_to_string(crowd.other().join("file")).unwrap(), "theirs");

    // One that is given the others' places sees what is mounted there.
    let mut wanted = shell("cat /all/other/file");
    let (file, source) = (place.directory.path().join("together"), crowd.0.clone());
    wanted.change = Box::new(move |spec| {
        tell_mounts(spec, &file);
        let options = ["rbind".to_owned(), "rprivate".to_owned()];
        let bind = MountBuilder::default().destination("/all").typ("bind").source(source).options(options);
        let mut mounts = spec.mounts().clone().unwrap();
        mounts.push(bind.build().unwrap());
        spec.set_mounts(Some(mounts));
    });
    assert_eq!(place.run("two", wanted).await, (0, "theirs".to_owned()));
    assert!(seen("together").contains(&other));
    drop(crowd);
    place.close().await;
}
