//! `nuee image`: disk images from files of this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::virtual_machine::{DiskImageSource, MachineBoot};
use api::{DiskImage, DiskImageSpec};
use clap::Subcommand;
use kube::Api;
use kube::api::PostParams;
use ring::rand::{SecureRandom, SystemRandom};

use super::DataDirectory;
use crate::api_client;
use crate::instance::Instance;

/// Where built guests are kept for the next time.
pub const CACHE: &str = "/var/cache/nuee";
/// What of an object's name is in that of its upload.
const NAME_CHARACTERS: usize = 100;
/// How often an image's state is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Flags of `nuee image`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build the tiny test guest from Debian packages, and print its image's name
    BuildTestGuest {
        /// Name of the disk image
        #[arg(short, long, value_name = "NAME", default_value = "test-guest")]
        output: String,
        #[command(flatten)]
        place: Place,
    },
    /// Make a disk image from a container's image: its files under a kernel, its command as the only program
    ///
    /// The machine takes its address and name from the network, runs the command, writes what it says to the console, and
    /// switches itself off when it ends. Example: nuee image build web:1 -o web
    Build(super::image_build::Arguments),
    /// Make a disk image from a raw or qcow2 file
    Import {
        /// Name of the disk image
        name: String,
        /// The file
        file: PathBuf,
        /// What the file must be; without it, its header decides
        #[arg(long, value_parser = ["raw", "qcow2"])]
        format: Option<String>,
        /// SHA-256 that the file must have
        #[arg(long, value_name = "HEXADECIMAL")]
        sha256: Option<String>,
        #[command(flatten)]
        place: Place,
    },
}

/// Where objects are.
#[derive(clap::Args)]
pub struct Place {
    #[command(flatten)]
    pub data: DataDirectory,
    /// Namespace of the object
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

impl Place {
    /// The API, for this kind in this namespace.
    pub fn api<K>(&self) -> Result<Api<K>>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        let instance = Instance::new(&self.data.path)?;
        Ok(Api::namespaced(api_client::open(&instance.path("kubeconfig"))?, &self.namespace))
    }
}

/// Does what the command says.
pub fn run(arguments: Arguments) -> Result<()> {
    super::block_on(async {
        match arguments.action {
            Action::BuildTestGuest { output, place } => build_test_guest(&output, &place).await,
            Action::Build(arguments) => super::image_build::run(arguments).await,
            Action::Import { name, file, format, sha256, place } => {
                let source = DiskImageSource {
                    format: format.unwrap_or_default(),
                    sha256: sha256.unwrap_or_default(),
                    ..DiskImageSource::default()
                };
                let spec = DiskImageSpec { source, ..DiskImageSpec::default() };
                upload(&name, &[(file.as_path(), "disk")], spec, &place).await
            }
        }
    })
}

async fn build_test_guest(name: &str, place: &Place) -> Result<()> {
    let images = place.api::<DiskImage>()?;
    if let Some(found) = images.get_opt(name).await.context("cannot look for the disk image")? {
        if found.spec.command_line != hypervisor::test_guest::COMMAND_LINE {
            bail!("there is another disk image {name}");
        }
        return wait_until_ready(&images, name).await;
    }
    let built = tokio::task::spawn_blocking(|| hypervisor::test_guest::build(Path::new(CACHE))).await?;
    let built = built.context("cannot build the test guest (it needs syslinux, mtools, dosfstools, qemu-utils)")?;
    let spec = DiskImageSpec {
        boot: MachineBoot::Kernel,
        command_line: hypervisor::test_guest::COMMAND_LINE.into(),
        ..DiskImageSpec::default()
    };
    let files = [(built.disk.as_path(), "disk"), (&built.kernel, "kernel"), (&built.initrd, "initrd")];
    upload(name, &files, spec, place).await
}

/// Puts files where the agent takes them from, makes the object, and waits until it is ready.
pub async fn upload(name: &str, files: &[(&Path, &str)], mut spec: DiskImageSpec, place: &Place) -> Result<()> {
    let images = place.api::<DiskImage>()?;
    let instance = Instance::new(&place.data.path)?;
    let upload = random_name(name)?;
    let directory = instance.path("uploads").join(&upload);
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let done = async {
        for (from, to) in files {
            let to = directory.join(to);
            let copied = tokio::fs::copy(from, &to).await;
            copied.with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
        spec.source.upload = upload;
        let object = DiskImage::new(name, spec);
        images.create(&PostParams::default(), &object).await.context("cannot make the disk image")?;
        wait_until_ready(&images, name).await
    };
    let done = done.await;
    if directory.exists() {
        std::fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    done
}

/// A name for an upload that nobody can guess: who names one in an object gets its content.
pub fn random_name(name: &str) -> Result<String> {
    let mut bytes = [0u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("no random bytes"))?;
    let front: String = name.chars().take(NAME_CHARACTERS).collect();
    Ok(format!("{front}-{}", hex::encode(bytes)))
}

/// Waits for an image, and prints its name.
pub async fn wait_until_ready(images: &Api<DiskImage>, name: &str) -> Result<()> {
    wait_until(images, name).await?;
    println!("{name}");
    Ok(())
}

/// Waits for an image.
pub async fn wait_until(images: &Api<DiskImage>, name: &str) -> Result<()> {
    loop {
        let image = images.get(name).await.context("cannot look at the disk image")?;
        let status = image.status.unwrap_or_default();
        match status.phase.as_str() {
            "Ready" => break,
            "Failed" => bail!("disk image {name}: {}", status.message),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
    Ok(())
}
