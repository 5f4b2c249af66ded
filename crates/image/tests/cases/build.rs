//! Builds from real Dockerfiles, with a runner that changes root and runs the command.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use image::build::{BuildEvent, BuildOptions, RunStep, StepOutput, StepRunner, build};
use image::{Digest, Error, ImageStore, Removal, RemoveOptions};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use crate::helpers::{Item, busybox_layer, count, load, tar_of};

struct Chroot;

#[async_trait]
impl StepRunner for Chroot {
    async fn run(&self, step: RunStep, output: mpsc::Sender<StepOutput>) -> Result<i32, String> {
        let mut child = tokio::process::Command::new("/usr/sbin/chroot")
            .arg(&step.rootfs)
            .args(["/bin/busybox", "sh", "-c", "cd \"$0\" && exec \"$@\"", &step.working_directory])
            .args(&step.command)
            .env_clear()
            .envs(step.environment.iter().filter_map(|line| line.split_once('=')))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut text = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut text).await.map_err(|error| error.to_string())?;
        let _ = output.send(StepOutput { error: false, data: text.into() }).await;
        Ok(child.wait().await.map_err(|error| error.to_string())?.code().unwrap_or(-1))
    }
}

async fn run(store: &Arc<ImageStore>, context: &[Item<'_>], options: BuildOptions) -> (image::Result<Digest>, String) {
    let (sender, mut receiver) = mpsc::channel(16);
    let collect = tokio::spawn(async move {
        let mut text = String::new();
        while let Some(event) = receiver.recv().await {
            if let BuildEvent::Stream(piece) = event {
                text.push_str(&piece);
            }
        }
        text
    });
    let context = std::io::Cursor::new(tar_of(context));
    let result = build(store, context, options, Arc::new(Chroot), sender).await;
    (result, collect.await.unwrap())
}

/// Ids differ from run to run.
fn without_ids(text: &str) -> String {
    let mask = |word: &str| {
        if word.len() == 12 && word.bytes().all(|b| b.is_ascii_hexdigit()) { "ID".to_owned() } else { word.to_owned() }
    };
    text.split_inclusive('\n')
        .map(|line| line.split(' ').map(|w| mask(w.trim_end())).collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("\n")
}

async fn read(store: &Arc<ImageStore>, dir: &Path, image: &Digest, path: &str) -> Option<String> {
    let id = format!("look-{}", path.replace('/', "-"));
    let snapshot = store.prepare(&id, &image.to_string(), &dir.join(&id)).await.unwrap();
    store.mount(&snapshot).await.unwrap();
    let text = std::fs::read_to_string(snapshot.rootfs.join(path)).ok();
    store.remove_snapshot(&id).await.unwrap();
    text
}

fn tagged(tag: &str) -> BuildOptions {
    BuildOptions { tags: vec![tag.to_owned()], ..BuildOptions::default() }
}

#[tokio::test]
async fn a_build_from_scratch_says_what_the_classic_builder_says() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\nENV WHO=world\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo hello $WHO; echo x > /made\"]\nCMD [\"/bin/busybox\"]\n";
    let context = [Item::File("Dockerfile", dockerfile.as_bytes(), 0o644), Item::File("busybox", &busybox, 0o755)];
    let (result, text) = run(&store, &context, tagged("web:1")).await;
    let id = result.unwrap();
    let wanted = "Step 1/5 : FROM scratch\n ---> \nStep 2/5 : COPY busybox /bin/busybox\n ---> ID\nStep 3/5 : ENV WHO=world\n\
        \u{20}---> Running in ID\n ---> Removed intermediate container ID\n ---> ID\n\
        Step 4/5 : RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo hello $WHO; echo x > /made\"]\n ---> Running in ID\nhello world\n\
        \u{20}---> Removed intermediate container ID\n ---> ID\nStep 5/5 : CMD [\"/bin/busybox\"]\n ---> Running in ID\n\
        \u{20}---> Removed intermediate container ID\n ---> ID\nSuccessfully built ID\nSuccessfully tagged web:1";
    assert_eq!(without_ids(&text).trim_end(), wanted);
    assert_eq!(read(&store, dir.path(), &id, "made").await.unwrap(), "x\n");
    let record = store.get("web:1").unwrap();
    assert_eq!((record.layers.len(), record.config.config.env.as_slice()), (2, &["WHO=world".to_owned()][..]));

    // Again: all from the cache. With another file: not from there on.
    let (again, text) = run(&store, &context, tagged("web:2")).await;
    assert_eq!((again.unwrap(), text.matches("Using cache").count()), (id.clone(), 4));
    let changed = [
        Item::File("Dockerfile", dockerfile.replace("ENV WHO=world", "ENV WHO=you").as_bytes(), 0o644),
        Item::File("busybox", &busybox, 0o755),
    ]
    .map(|item| match item {
        Item::File(name, data, mode) => (name.to_owned(), data.to_vec(), mode),
        _ => unreachable!(),
    });
    let items: Vec<Item<'_>> = changed.iter().map(|(name, data, mode)| Item::File(name, data, *mode)).collect();
    let (other, text) = run(&store, &items, tagged("web:3")).await;
    assert_ne!(other.unwrap(), id);
    assert_eq!(text.matches("Using cache").count(), 1);
    assert_eq!(count(&dir.path().join("images/builds")), 0);
    let history = store.history("web:1").unwrap();
    assert_eq!(history.len(), 4);
    assert!(history[3].created_by.starts_with("/bin/sh -c #(nop) COPY file:"), "{history:?}");
    assert!(history.iter().all(|entry| entry.id.is_some()));
    // Removing the image removes the steps that nothing else is built on.
    let removals = store.remove("web:3", &RemoveOptions::default()).unwrap();
    assert_eq!(removals.iter().filter(|r| matches!(r, Removal::Deleted(_))).count(), 3, "{removals:?}");
}

#[tokio::test]
async fn stages_arguments_and_copies_work() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    load(&store, &[busybox_layer()], "base:1").await.unwrap();
    let dockerfile = "ARG BASE=base\nFROM ${BASE}:1 AS Build\nARG VERSION=1\nWORKDIR /src\nCOPY *.txt sub ./\nADD a.tar /unpacked/\n\
        RUN echo $VERSION > version && rm one.txt && mkdir -p /out/deep && cp version /out/deep/\n\
        FROM base:1\nCOPY --from=build /out /app\nCOPY --from=0 --chown=5:6 --chmod=600 /src/two.txt /app/renamed\nUSER 5\n\
        COPY <<EOF /app/inline\nbase is $PATH\nEOF\nEXPOSE 80\nLABEL a=b\n";
    let inner = tar_of(&[Item::File("in/archive", b"from the archive", 0o644)]);
    let context = [
        Item::File("Dockerfile", dockerfile.as_bytes(), 0o644),
        Item::File(".dockerignore", b"*.md\nsub/secret\n", 0o644),
        Item::File("one.txt", b"1", 0o644),
        Item::File("two.txt", b"2", 0o644),
        Item::File("x.md", b"no", 0o644),
        Item::File("sub/inner", b"inner", 0o644),
        Item::File("sub/secret", b"secret", 0o644),
        Item::File("a.tar", &inner, 0o644),
    ];
    let options = BuildOptions {
        build_args: BTreeMap::from([
            ("VERSION".to_owned(), Some("7".to_owned())),
            ("unused".to_owned(), Some(String::new())),
        ]),
        labels: BTreeMap::from([("from".to_owned(), "the command 'line'".to_owned())]),
        ..tagged("app:1")
    };
    let (result, text) = run(&store, &context, options).await;
    let id = result.unwrap_or_else(|error| panic!("{}\n{text}", error.chain()));
    assert!(text.contains("[Warning] One or more build-args [unused] were not consumed\n"), "{text}");
    assert_eq!(read(&store, dir.path(), &id, "app/deep/version").await.unwrap(), "7\n");
    assert_eq!(read(&store, dir.path(), &id, "app/renamed").await.unwrap(), "2");
    assert!(read(&store, dir.path(), &id, "app/inline").await.unwrap().starts_with("base is /bin"));
    let config = store.get("app:1").unwrap().config.config;
    assert_eq!((config.user.as_str(), config.labels["from"].as_str()), ("5", "the command 'line'"));

    let (build, _) =
        run(&store, &context, BuildOptions { target: "build".to_owned(), ..BuildOptions::default() }).await;
    let build = build.unwrap();
    assert_eq!(read(&store, dir.path(), &build, "unpacked/in/archive").await.unwrap(), "from the archive");
    assert_eq!(read(&store, dir.path(), &build, "src/inner").await.unwrap(), "inner");
    for absent in ["src/one.txt", "src/x.md", "src/secret"] {
        assert!(read(&store, dir.path(), &build, absent).await.is_none(), "{absent}");
    }
}

/// Lets nobody go on before two have come.
struct Together(tokio::sync::Barrier);

#[async_trait]
impl StepRunner for Together {
    async fn run(&self, _: RunStep, _: mpsc::Sender<StepOutput>) -> Result<i32, String> {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
        tokio::time::timeout(PATIENCE, self.0.wait()).await.map_err(|_| "one ran alone".to_owned())?;
        Ok(0)
    }
}

#[tokio::test]
async fn stages_that_do_not_need_each_other_run_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    load(&store, &[busybox_layer()], "base:1").await.unwrap();
    let dockerfile = "FROM base:1 AS a\nRUN first\nFROM base:1 AS b\nRUN second\nFROM base:1\nCOPY --from=a /bin/busybox /a\n\
        COPY --from=b /bin/busybox /b\n";
    let context = std::io::Cursor::new(tar_of(&[Item::File("Dockerfile", dockerfile.as_bytes(), 0o644)]));
    let (sender, mut receiver) = mpsc::channel(16);
    tokio::spawn(async move { while receiver.recv().await.is_some() {} });
    let runner = Arc::new(Together(tokio::sync::Barrier::new(2)));
    build(&store, context, tagged("both:1"), runner, sender).await.unwrap_or_else(|error| panic!("{}", error.chain()));
}

/// The only layer of an image over that many others, as an archive.
fn last_layer(store: &ImageStore, name: &str, below: usize) -> String {
    let layers = store.get(name).unwrap().layers;
    assert_eq!(layers.len(), below + 1);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut store.blobs().file(&layers[below]).unwrap(), &mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_squashed_build_is_one_layer_that_keeps_nothing_of_what_it_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    load(&store, &[busybox_layer()], "base:1").await.unwrap();
    let first = "FROM base:1\nRUN mkdir -p /kept /old/sub && echo 1 > /kept/untouched && echo 2 > /kept/mode && echo 3 > /old/sub/file \
        && echo 4 > /was-file && echo 5 > /goes\n";
    let (made, text) = run(&store, &[Item::File("Dockerfile", first.as_bytes(), 0o644)], tagged("under:1")).await;
    made.unwrap_or_else(|error| panic!("{}\n{text}", error.chain()));
    let dockerfile = "FROM under:1\nRUN echo hidden > /password && echo x > /kept/new\nRUN rm /password /goes && chmod 600 /kept/mode\n\
        RUN rm -r /old && mkdir /old && echo y > /old/again\nRUN rm /was-file && mkdir /was-file && echo z > /was-file/in\nENV A=b\n";
    let context = [Item::File("Dockerfile", dockerfile.as_bytes(), 0o644)];
    let squash = |tag: &str| BuildOptions { squash: true, ..tagged(tag) };
    let (result, text) = run(&store, &context, squash("squashed:1")).await;
    let id = result.unwrap_or_else(|error| panic!("{}\n{text}", error.chain()));
    assert!(text.ends_with(&format!("Successfully built {}\nSuccessfully tagged squashed:1\n", id.short())), "{text}");

    let layer = last_layer(&store, "squashed:1", 2);
    for there in ["kept/new", "kept/mode", ".wh.goes", "old/again", "old/.wh.sub", "was-file/in"] {
        assert!(layer.contains(there), "{there}");
    }
    for absent in ["password", "untouched", "bin/busybox"] {
        assert!(!layer.contains(absent), "{absent}");
    }
    for (path, text) in [("kept/untouched", "1\n"), ("kept/mode", "2\n"), ("old/again", "y\n"), ("was-file/in", "z\n")]
    {
        assert_eq!(read(&store, dir.path(), &id, path).await.as_deref(), Some(text), "{path}");
    }
    for path in ["goes", "password", "old/sub/file"] {
        assert_eq!(read(&store, dir.path(), &id, path).await, None, "{path}");
    }
    let config = store.get("squashed:1").unwrap().config;
    assert!(config.config.env.contains(&"A=b".to_owned()));
    let last = config.history.last().unwrap();
    let base = store.get("under:1").unwrap().id;
    assert!(last.comment.as_ref().is_some_and(|text| text.ends_with(&format!(" to {base}"))), "{last:?}");
    assert_eq!(config.history.iter().filter(|entry| !entry.empty_layer).count(), 3);

    // On nothing, and on nothing more than a base image.
    let scratch =
        [Item::File("Dockerfile", b"FROM scratch\nCOPY a /a\nCOPY a /b\n", 0o644), Item::File("a", b"text", 0o644)];
    let (result, _) = run(&store, &scratch, squash("small:1")).await;
    assert!(last_layer(&store, "small:1", 0).matches("text").count() == 2);
    assert_eq!(read(&store, dir.path(), &result.unwrap(), "b").await.as_deref(), Some("text"));
    let (result, _) = run(&store, &[Item::File("Dockerfile", b"FROM under:1\n", 0o644)], squash("same:1")).await;
    assert_eq!(read(&store, dir.path(), &result.unwrap(), "goes").await.as_deref(), Some("5\n"));
    assert_eq!(count(&dir.path().join("images/snapshots")), 0);
}

#[tokio::test]
async fn errors_name_line_and_cause_and_leave_nothing_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    load(&store, &[busybox_layer()], "base:1").await.unwrap();
    for (dockerfile, message) in [
        ("", "the Dockerfile (Dockerfile) cannot be empty"),
        ("FROM base:1\nFOO\n", "dockerfile parse error on line 2: unknown instruction: FOO"),
        ("FROM base:1\nRUN exit 3\n", "The command '/bin/sh -c exit 3' returned a non-zero code: 3"),
        (
            "FROM base:1\nCOPY nothing /\n",
            "COPY failed: file not found in build context or excluded by .dockerignore: stat nothing: file does not exist",
        ),
        (
            "FROM base:1\nCOPY ../../etc/passwd /\n",
            "COPY failed: forbidden path outside the build context: ../../etc/passwd ()",
        ),
        ("RUN x\n", "no build stage in current context"),
        ("FROM base:1\nCOPY Dockerfile Dockerfile b\n", "destination must be a directory and end with a /"),
        ("FROM base:1\nSTOPSIGNAL what\n", "dockerfile parse error on line 2: invalid signal: what"),
        ("FROM base:1\nCOPY --from=3 a b\n", "invalid from flag value 3"),
    ] {
        let context = [Item::File("Dockerfile", dockerfile.as_bytes(), 0o644)];
        let (result, _) =
            run(&store, &context, BuildOptions { dockerfile: "Dockerfile".to_owned(), ..BuildOptions::default() })
                .await;
        let error = result.unwrap_err().to_string();
        assert!(error.contains(message), "{dockerfile:?}: {error}");
    }
    let (result, _) = run(&store, &[Item::File("x", b"", 0o644)], BuildOptions::default()).await;
    assert_eq!(result.unwrap_err().to_string(), "Cannot locate specified Dockerfile: Dockerfile");
    drop(store);
    // What the background has not removed yet, the next start does.
    let _store = ImageStore::open(&dir.path().join("images")).unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*dir.path().to_string_lossy()), "{mounts}");
    assert_eq!(count(&dir.path().join("images/snapshots")), 0);
}

#[tokio::test]
async fn a_hostile_context_reaches_nothing_outside() {
    let dir = tempfile::tempdir().unwrap();
    let canary = dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("secret"), b"secret of the host").unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let outside = canary.to_str().unwrap().to_owned();
    let secret = format!("{outside}/secret");
    // Links in the context and in the image point out; copying follows them inside their roots only.
    let dockerfile = "FROM scratch\nCOPY tree /\nCOPY link /found\nCOPY file /way/out\n";
    let context = [
        Item::File("Dockerfile", dockerfile.as_bytes(), 0o644),
        Item::Symlink("tree/way", &outside),
        Item::Symlink("link", &secret),
        Item::File("file", b"overwritten", 0o644),
    ];
    let (result, _) = run(&store, &context, BuildOptions::default()).await;
    assert!(matches!(result, Err(Error::Invalid(text)) if text.contains("file does not exist")));
    let dockerfile = dockerfile.replace("COPY link /found\n", "");
    let inside = format!("tree{outside}");
    let context = [
        Item::File("Dockerfile", dockerfile.as_bytes(), 0o644),
        Item::Symlink("tree/way", &outside),
        Item::Directory(&inside, 0o755),
        Item::File("file", b"overwritten", 0o644),
    ];
    let (result, text) = run(&store, &context, BuildOptions::default()).await;
    let id = result.unwrap_or_else(|error| panic!("{}\n{text}", error.chain()));
    assert_eq!(count(&canary), 1);
    let inside = format!("{}/out", outside.trim_start_matches('/'));
    assert_eq!(read(&store, dir.path(), &id, &inside).await.unwrap(), "overwritten");
    let escape = [Item::File("Dockerfile", b"FROM scratch\n", 0o644), Item::File("../../escaped", b"x", 0o644)];
    assert!(matches!(run(&store, &escape, BuildOptions::default()).await.0, Err(Error::Hostile(_))));
    let context = [Item::Symlink("Dockerfile", &secret)];
    assert!(run(&store, &context, BuildOptions::default()).await.0.unwrap_err().to_string().contains("Cannot locate"));
}
