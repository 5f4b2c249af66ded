//! `docker build --squash`: one layer in place of all that a build put on the base image of its last stage. Nothing is left of files that
//! one step made and a later one removed. The image that is squashed stays, without a name. `Source:` moby, `daemon/images`, `SquashImage`.

use tokio_util::sync::CancellationToken;

use crate::build::engine::Build;
use crate::build::work::{Work, nameless};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::pack_difference;

/// Makes the squashed image of a build's result.
pub(super) async fn squash(build: &Build, image: &Digest) -> Result<Digest> {
    let base = build.base.get();
    let after = Work::mount(&build.store, Some(image), &build.scratch, true).await?;
    let before = Work::mount(&build.store, base, &build.scratch, base.is_some()).await?;
    let trees = (before.snapshot.rootfs.clone(), after.snapshot.rootfs.clone());
    let (store, image, base) = (build.store.clone(), image.clone(), base.cloned());
    let build_ends = CancellationToken::new();
    let _waiting = build_ends.clone().drop_guard();
    let squashed = tokio::task::spawn_blocking(move || {
        let mut layer = nameless(&store, |out| pack_difference(&trees.0, &trees.1, out))?;
        if build_ends.is_cancelled() {
            return Err(Error::Internal("nobody waits for this image any more".to_owned()));
        }
        store.commit_squashed(&image, base.as_ref(), &mut layer)
    });
    let squashed = squashed.await?;
    before.remove().await?;
    after.remove().await?;
    squashed
}
