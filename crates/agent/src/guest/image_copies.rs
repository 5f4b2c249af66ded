//! Disk images that another machine of the pool has: copied here when the first guest is made from them, and kept until the image goes.

use std::path::Path;
use std::sync::Arc;

use api::DiskImage;
use hypervisor::disk::header;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::moving::wire::{self, Channel, Hello};
use crate::context::{Context, is_path_safe};
use crate::error::{Error, Result};

/// What comes after the disk, in this order.
const KERNEL_FILES: [&str; 2] = ["kernel", "initrd"];
/// Largest kernel or RAM disk. Units: bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Largest file of a disk. Units: bytes.
const DISK_BYTES_MAX: u64 = 1 << 46;

/// What is told before the files follow, each as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    /// Sizes of the disk's file and of each of [`KERNEL_FILES`] that there is. Units: bytes.
    Files(u64, [Option<u64>; 2]),
    /// The image is not given, and why.
    Refused(String),
}

/// The layer of an image on this machine; fetched from the machine that has it the first time.
///
/// `Errors:` that machine is not reached, or does not give it.
pub async fn layer(context: &Context, image: &DiskImage) -> Result<String> {
    let told = image.status.as_ref().map(|status| status.layer.clone()).unwrap_or_default();
    let uid = image.uid().unwrap_or_default();
    let origin = image.spec.node_name.as_deref().filter(|node| *node != context.node_name);
    let Some(origin) = origin else { return Ok(told) };
    // Guests that are made at once wait for one copy.
    let _turn = context.guests.fetching.lock().await;
    let layers = context.guests.layers().await?;
    if let Some(here) = layers.owned_by(&uid).pop() {
        return Ok(here);
    }
    tracing::info!(image = image.name_any(), origin, "fetching a disk image");
    fetch(context, image, &uid, origin).await
}

async fn fetch(context: &Context, image: &DiskImage, uid: &str, origin: &str) -> Result<String> {
    let peers = context.peers.as_ref().ok_or_else(|| Error::Invalid("this machine reaches no others".into()))?;
    let mut connection = peers.open(origin).await.map_err(Error::Invalid)?;
    let hello = Hello {
        namespace: image.namespace().unwrap_or_default(),
        name: image.name_any(),
        uid: uid.to_owned(),
        channel: Channel::Image,
    };
    wire::write(&mut connection, &hello).await?;
    let (disk, kernel) = match wire::read(&mut connection).await? {
        Answer::Files(disk, kernel) => (disk, kernel),
        Answer::Refused(why) => return Err(Error::Invalid(format!("machine {origin} does not give the image: {why}"))),
    };
    let layers = context.guests.layers().await?;
    let (id, part) = layers.scratch();
    let received = receive(&mut connection, &part, disk, DISK_BYTES_MAX).await;
    let checked = received.and_then(|()| {
        let mut file = std::fs::File::open(&part).map_err(Error::io("open", &part))?;
        // As with an upload: whatever the other machine says, its file names no other.
        Ok(header::inspect(&mut file)?)
    });
    let checked = match checked {
        Ok(header) => header,
        Err(error) => {
            let _ = std::fs::remove_file(&part);
            return Err(error);
        }
    };
    let directory = context.guests.image_directory(uid);
    for (name, length) in KERNEL_FILES.iter().zip(kernel) {
        if let Some(length) = length {
            receive_file(&mut connection, &directory, name, length).await?;
        }
    }
    // Last, for whoever finds the layer takes the image to be whole.
    let (store, layer, owner) = (layers.clone(), id.clone(), uid.to_owned());
    let adopted = tokio::task::spawn_blocking(move || store.adopt(&layer, checked.virtual_bytes, &owner)).await;
    adopted.map_err(|_| Error::Timeout("keeping a disk image"))??;
    Ok(id)
}

async fn receive(from: &mut Box<dyn node::Duplex>, path: &Path, length: u64, most: u64) -> Result<()> {
    if length > most {
        return Err(Error::Invalid(format!("a file of {length} bytes")));
    }
    let mut file = tokio::fs::File::create(path).await.map_err(Error::io("create", path))?;
    let copied = tokio::io::copy(&mut AsyncReadExt::take(&mut *from, length), &mut file).await;
    if copied.map_err(Error::io("receive", path))? < length {
        return Err(Error::Invalid(format!("{} did not come whole", path.display())));
    }
    file.sync_all().await.map_err(Error::io("sync", path))
}

/// Takes a file in under its name once it is whole; anybody's hypervisor may read it.
pub async fn receive_file(from: &mut Box<dyn node::Duplex>, directory: &Path, name: &str, length: u64) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    tokio::fs::create_dir_all(directory).await.map_err(Error::io("create", directory))?;
    let (part, path) = (directory.join(format!("{name}.part")), directory.join(name));
    if let Err(error) = receive(from, &part, length, FILE_BYTES_MAX).await {
        let _ = std::fs::remove_file(&part);
        return Err(error);
    }
    std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o644)).map_err(Error::io("protect", &part))?;
    std::fs::rename(&part, &path).map_err(Error::io("name", &path))
}

/// Gives an image to another machine, if a guest on that machine is made from it. `from` is that machine by its certificate; `None`,
/// the pool's first one, may have any.
pub async fn give(
    context: &Arc<Context>,
    from: Option<&str>,
    hello: &Hello,
    mut connection: Box<dyn node::Duplex>,
) -> Result<()> {
    let found = match may(context, from, hello).await {
        Ok(()) => files(context, hello).await,
        Err(error) => Err(error),
    };
    let (disk, kernel) = match found {
        Ok(found) => found,
        Err(error) => {
            wire::write(&mut connection, &Answer::Refused(crate::error::chain(&error))).await?;
            return Err(error);
        }
    };
    let size =
        |file: &std::fs::File| file.metadata().map(|found| found.len()).map_err(Error::io("look at", "an image"));
    let sizes = [kernel[0].as_ref().map(size).transpose()?, kernel[1].as_ref().map(size).transpose()?];
    wire::write(&mut connection, &Answer::Files(size(&disk)?, sizes)).await?;
    for file in std::iter::once(disk).chain(kernel.into_iter().flatten()) {
        let length = size(&file)?;
        let mut file = tokio::fs::File::from_std(file).take(length);
        tokio::io::copy(&mut file, &mut connection).await.map_err(Error::io("send", "a disk image"))?;
    }
    connection.flush().await.map_err(Error::io("send to", "the other machine"))
}

/// Asks the pool, which knows what each machine runs.
async fn may(context: &Context, from: Option<&str>, hello: &Hello) -> Result<()> {
    let Some(from) = from else { return Ok(()) };
    let attributes = ResourceAttributes {
        group: Some("nuee.dev".into()),
        resource: Some("diskimages".into()),
        subresource: Some("content".into()),
        verb: Some("get".into()),
        namespace: Some(hello.namespace.clone()),
        name: Some(hello.name.clone()),
        ..ResourceAttributes::default()
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:node:{from}")),
            groups: Some(vec!["system:nodes".into(), "system:authenticated".into()]),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(context.client.clone());
    let answer =
        reviews.create(&PostParams::default(), &review).await.map_err(Error::api("ask who may have the image"))?;
    let allowed = answer.status.is_some_and(|status| status.allowed);
    if allowed { Ok(()) } else { Err(Error::Invalid(format!("no guest on machine {from} is made from it"))) }
}

type Files = (std::fs::File, [Option<std::fs::File>; 2]);

/// Opened before anything is said, so that an image that goes meanwhile is still given whole.
async fn files(context: &Context, hello: &Hello) -> Result<Files> {
    let missing = || Error::Invalid("there is no such image on this machine".into());
    if !is_path_safe(&hello.uid) {
        return Err(missing());
    }
    let images: Api<DiskImage> = Api::namespaced(context.client.clone(), &hello.namespace);
    let image = images.get_opt(&hello.name).await.map_err(Error::api("read the disk image"))?;
    image.filter(|image| image.uid().as_deref() == Some(hello.uid.as_str())).ok_or_else(missing)?;
    let layers = context.guests.layers().await?;
    let top = layers.owned_by(&hello.uid).pop().ok_or_else(missing)?;
    // An image lies on nothing.
    let [disk] = layers.chain(&top)?.try_into().map_err(|_| missing())?;
    let directory = context.guests.image_directory(&hello.uid);
    let kernel = KERNEL_FILES.map(|name| std::fs::File::open(directory.join(name)).ok());
    Ok((std::fs::File::open(&disk).map_err(Error::io("open", &disk))?, kernel))
}
