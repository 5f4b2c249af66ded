//! Pull policies, and the errors that users know.

use anyhow::Result;

use super::{becomes, pod, told};
use crate::with_images;

#[test]
fn images_that_cannot_be_had_say_why() -> Result<()> {
    let nuee = with_images()?;
    let image = |name: &str, image: &str, policy: &str| {
        pod(name, "sleep 600", "", &format!("    imagePullPolicy: {policy}")).replace("busybox:test", image)
    };
    let manifest = [
        image("absent", "127.0.0.1:1/none:1", "IfNotPresent"),
        image("never", "127.0.0.1:1/none:1", "Never"),
        image("bad-name", "Bad/Name", "IfNotPresent"),
        image("present", "busybox:test", "Never"),
        // Built here: there is no registry to ask for a fresher one.
        image("always", "busybox:test", "Always"),
    ]
    .concat();
    nuee.apply(&manifest)?.success()?;
    super::ready(&nuee, &["present", "always"])?;
    let waiting = ".status.containerStatuses[0].state.waiting.reason";
    told(&nuee, "absent", "Failed", "Error: ErrImagePull")?;
    becomes(&nuee, "pod/absent", waiting, "ImagePullBackOff")?;
    told(&nuee, "absent", "BackOff", "Back-off pulling image \"127.0.0.1:1/none:1\"")?;
    becomes(&nuee, "pod/never", waiting, "ErrImageNeverPull")?;
    becomes(&nuee, "pod/bad-name", waiting, "InvalidImageName")?;
    told(&nuee, "present", "Pulled", "Container image \"busybox:test\" already present on machine")?;
    nuee.finish()
}
