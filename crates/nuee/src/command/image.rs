//! `nuee image`: disk images from files of this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::virtual_machine::{DiskImageSource, MachineBoot};
use api::{DiskImage, DiskImageSpec, DiskImageStatus};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
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
    /// Make a disk image from a raw or qcow2 file, of this machine or at a URL
    ///
    /// A URL is fetched by the pool's first machine, from public addresses and those that its `diskImageNetworks` names.
    #[command(
        after_help = "Examples:\n  nuee image import debian debian-12-nocloud-amd64.qcow2\n  nuee image import debian https://images.example/debian-12.qcow2 --sha512 $(cut -d' ' -f1 SHA512SUM)"
    )]
    Import {
        /// Name of the disk image
        name: String,
        /// The file, or an http:// or https:// URL
        #[arg(value_name = "FILE|URL")]
        file: String,
        /// What the file must be; without it, its header decides
        #[arg(long, value_parser = ["raw", "qcow2"])]
        format: Option<String>,
        /// SHA-256 that the file must have
        #[arg(long, value_name = "HEXADECIMAL")]
        sha256: Option<String>,
        /// SHA-512 that the file must have
        #[arg(long, value_name = "HEXADECIMAL")]
        sha512: Option<String>,
        /// Return at once; `kubectl get diskimages` shows how it goes
        #[arg(long)]
        no_wait: bool,
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
    /// Credentials to use in place of the administrator's, in one file as kubectl takes them
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

impl Place {
    /// The file with the credentials.
    pub fn credentials(&self) -> Result<PathBuf> {
        match &self.kubeconfig {
            Some(file) => Ok(file.clone()),
            None => Ok(Instance::new(&self.data.path)?.path("kubeconfig")),
        }
    }

    /// The API.
    pub fn client(&self) -> Result<kube::Client> {
        api_client::open(&self.credentials()?)
    }

    /// The API, for this kind in this namespace.
    pub fn api<K>(&self) -> Result<Api<K>>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Ok(Api::namespaced(self.client()?, &self.namespace))
    }
}

/// Does what the command says.
pub fn run(arguments: Arguments) -> Result<()> {
    super::block_on(async {
        match arguments.action {
            Action::BuildTestGuest { output, place } => build_test_guest(&output, &place).await,
            Action::Build(arguments) => super::image_build::run(arguments).await,
            Action::Import { name, file, format, sha256, sha512, no_wait, place } => {
                let is_url = image::web::is_url(&file);
                let source = DiskImageSource {
                    url: if is_url { file.clone() } else { String::new() },
                    format: format.unwrap_or_default(),
                    sha256: sha256.unwrap_or_default(),
                    sha512: sha512.unwrap_or_default(),
                    ..DiskImageSource::default()
                };
                let spec = DiskImageSpec { source, ..DiskImageSpec::default() };
                if is_url {
                    fetch(&name, spec, no_wait, &place).await
                } else {
                    upload(&name, &[(Path::new(&file), "disk")], spec, &place).await
                }
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

/// Has the agent fetch an image, and shows how far it is.
async fn fetch(name: &str, spec: DiskImageSpec, no_wait: bool, place: &Place) -> Result<()> {
    let images = place.api::<DiskImage>()?;
    images.create(&PostParams::default(), &DiskImage::new(name, spec)).await.context("cannot make the disk image")?;
    if no_wait {
        println!("{name}");
        return Ok(());
    }
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message("Fetching");
    let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
    let done = wait_until(&images, name, |status| {
        bar.set_length(bytes(status.total_bytes.max(status.fetched_bytes)));
        bar.set_position(bytes(status.fetched_bytes));
    })
    .await;
    bar.finish_and_clear();
    done?;
    println!("{name}");
    Ok(())
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
    wait_until(images, name, |_| ()).await?;
    println!("{name}");
    Ok(())
}

/// Waits for an image; tells of each state on the way.
pub async fn wait_until(images: &Api<DiskImage>, name: &str, tell: impl Fn(&DiskImageStatus)) -> Result<()> {
    loop {
        let image = images.get_opt(name).await.context("cannot look at the disk image")?;
        let status = image.with_context(|| format!("somebody deleted disk image {name}"))?.status.unwrap_or_default();
        tell(&status);
        match status.phase.as_str() {
            "Ready" => break,
            "Failed" => bail!("disk image {name}: {}", status.message),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
    Ok(())
}
