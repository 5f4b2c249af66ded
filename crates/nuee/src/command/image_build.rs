//! `nuee image build`: a container's image as the image of virtual machines.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use api::DiskImageSpec;
use api::virtual_machine::MachineBoot;
use hypervisor::test_guest::{self, workload};
use image::layer::{UnpackOptions, unpack};
use serde_json::{Value, json};

use super::image::{CACHE, Place, upload};
use crate::compose::engine::{Engine, escape};
use crate::instance::Instance;

/// Flags of `nuee image build`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The container's image
    image: String,
    /// Name of the disk image
    #[arg(short, long, value_name = "NAME")]
    output: String,
    /// Size of the root file system, such as 2Gi; what the files need and a third more by default
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// What the image says about its command.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    command: Vec<String>,
    environment: Vec<String>,
    directory: String,
    user: String,
    stop_signal: String,
}

/// Builds the disk image and waits until machines can use it.
pub async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { image, output, size, place } = arguments;
    let root_bytes = match &size {
        Some(text) => {
            let bytes = api::quantity::whole(text).and_then(|bytes| u64::try_from(bytes).ok());
            Some(bytes.filter(|bytes| *bytes > 0).with_context(|| format!("{text} is no size (such as 2Gi)"))?)
        }
        None => None,
    };
    let instance = Instance::new(&place.data.path)?;
    let engine = Engine::find(instance.path("docker.sock"))?;
    let Some(found) = engine.find_one(&format!("/images/{}/json", escape(&image))).await? else {
        bail!("no image {image} here; `docker pull {image}` or `docker build -t {image} .` first");
    };
    let wanted = wanted(&found["Config"])?;
    let work = Work::new(instance.path("uploads").join(format!("build-{output}-{}", std::process::id())))?;
    eprintln!("unpacking {image}");
    let archive = work.0.join("root.tar");
    export(&engine, &image, &archive).await?;
    let directory = work.0.clone();
    eprintln!("making the disk");
    let made = tokio::task::spawn_blocking(move || make(&archive, &wanted, root_bytes, &directory)).await??;
    let spec = DiskImageSpec {
        boot: MachineBoot::Kernel,
        command_line: test_guest::COMMAND_LINE.into(),
        ..DiskImageSpec::default()
    };
    let files = [(made.disk.as_path(), "disk"), (&made.kernel, "kernel"), (&made.initrd, "initrd")];
    upload(&output, &files, spec, &place).await
}

/// A directory that is gone when the work ends.
struct Work(PathBuf);

impl Work {
    fn new(path: PathBuf) -> Result<Work> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Work(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Writes the files of an image as one archive.
async fn export(engine: &Engine, image: &str, target: &Path) -> Result<()> {
    // It is never started; images without a command are made with any.
    let created = engine.post("/containers/create", &json!({"Image": image, "Cmd": ["/"]})).await?;
    let id = created["Id"].as_str().context("the engine names no container")?.to_owned();
    let written = async {
        let mut file = std::fs::File::create(target).with_context(|| format!("cannot create {}", target.display()))?;
        let path = format!("/containers/{id}/export");
        engine.stream(hyper::Method::GET, &path, Vec::new(), |bytes| Ok(file.write_all(bytes)?)).await
    };
    let written = written.await;
    engine.delete(&format!("/containers/{id}")).await?;
    written
}

/// Unpacks and makes the guest's files. Blocking.
fn make(archive: &Path, wanted: &Wanted, root_bytes: Option<u64>, work: &Path) -> Result<test_guest::TestGuest> {
    let root = work.join("root");
    std::fs::create_dir(&root)?;
    let directory = std::fs::File::open(&root)?;
    unpack(std::fs::File::open(archive)?, directory.as_fd(), &UnpackOptions::default())
        .context("cannot unpack the image's files")?;
    std::fs::remove_file(archive)?;
    let user = runtime::spec::users::find(&root, &wanted.user)?;
    let guest = workload::Workload {
        root: &root,
        command: &wanted.command,
        environment: &wanted.environment,
        directory: &wanted.directory,
        user: (user.uid, user.gid),
        stop_signal: &wanted.stop_signal,
        root_bytes,
    };
    workload::make(Path::new(CACHE), &guest, work)
        .context("cannot make the disk (it needs syslinux, mtools, dosfstools, e2fsprogs, qemu-utils)")
}

/// Reads what an image's configuration says.
fn wanted(config: &Value) -> Result<Wanted> {
    let list = |name: &str| -> Vec<String> {
        config[name].as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let text = |name: &str| config[name].as_str().unwrap_or_default().to_owned();
    let command = [list("Entrypoint"), list("Cmd")].concat();
    ensure!(!command.is_empty(), "the image names no command; set one with ENTRYPOINT or CMD");
    let mut environment = list("Env");
    environment.retain(|pair| pair.split_once('=').is_some_and(|(name, _)| !name.is_empty() && !name.starts_with('-')));
    let signal = text("StopSignal");
    let signal = signal.strip_prefix("SIG").unwrap_or(&signal);
    ensure!(signal.chars().all(|c| c.is_ascii_alphanumeric()), "the image's stop signal is {signal}");
    Ok(Wanted {
        command,
        environment,
        directory: text("WorkingDir"),
        user: text("User"),
        stop_signal: if signal.is_empty() { "TERM".into() } else { signal.to_owned() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_that_of_the_image() {
        let config = json!({"Entrypoint": ["/srv"], "Cmd": ["-v"], "Env": ["A=1", "-u", "=x"], "WorkingDir": "/w",
            "User": "web", "StopSignal": "SIGQUIT"});
        let expected = Wanted {
            command: vec!["/srv".into(), "-v".into()],
            environment: vec!["A=1".into()],
            directory: "/w".into(),
            user: "web".into(),
            stop_signal: "QUIT".into(),
        };
        assert_eq!(wanted(&config).expect("a command"), expected);
        assert!(wanted(&json!({})).is_err());
        assert!(wanted(&json!({"Cmd": ["a"], "StopSignal": "; reboot"})).is_err());
    }

    #[test]
    fn users_are_found_in_the_image_and_nowhere_else() {
        let root = tempfile::tempdir().expect("a directory");
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).expect("a directory");
        std::fs::write(etc.join("passwd"), "root:x:0:0::/:/bin/sh\nweb:x:33:44::/:/bin/sh\n").expect("a file");
        std::fs::write(etc.join("group"), "staff:x:50:\n").expect("a file");
        let of = |text: &str| runtime::spec::users::find(root.path(), text).ok().map(|user| (user.uid, user.gid));
        assert_eq!(of(""), Some((0, 0)));
        assert_eq!(of("web"), Some((33, 44)));
        assert_eq!(of("33"), Some((33, 44)));
        assert_eq!(of("7"), Some((7, 0)));
        assert_eq!(of("web:staff"), Some((33, 50)));
        assert_eq!(of("nobody"), None);
        std::fs::remove_file(etc.join("passwd")).expect("gone");
        std::os::unix::fs::symlink("/etc/passwd", etc.join("passwd")).expect("a link");
        assert_eq!(of("daemon"), None, "the machine's own users are not looked at");
    }
}
