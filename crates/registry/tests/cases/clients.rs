//! Round trips with skopeo, and with our own client.

use std::path::Path;
use std::sync::Arc;

use image::{Error, ImageStore, Progress, ProgressEvent, PullOptions, Reference};

use crate::helpers::{archive, layers, load, serve};

async fn skopeo(arguments: &[&str]) -> String {
    let output =
        tokio::process::Command::new("skopeo").arg("--insecure-policy").args(arguments).output().await.unwrap();
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn open(path: &Path) -> Arc<ImageStore> {
    ImageStore::open(path).unwrap()
}

async fn events(mut receiver: tokio::sync::mpsc::Receiver<ProgressEvent>) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(event) = receiver.recv().await {
        found.push(event.status);
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_in_and_out_and_digests_stay() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(&dir.path().join("registry")).await;
    let tar = dir.path().join("image.tar");
    std::fs::write(&tar, archive(&layers(3, 50_000), "app:1")).unwrap();
    let remote = format!("docker://{}/team/app:1", server.address);
    let from = format!("docker-archive:{}", tar.display());
    skopeo(&["copy", "--dest-tls-verify=false", &from, &remote]).await;
    // At once an image of this machine.
    let name = format!("{}/team/app:1", server.address);
    let record = server.store.get(&name).unwrap();
    let snapshot = server.store.prepare("c", &name, &dir.path().join("c")).await.unwrap();
    assert_eq!(snapshot.lower.len(), 3);
    server.store.remove_snapshot("c").await.unwrap();
    let seen = skopeo(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &remote]).await;
    assert_eq!(server.store.manifest(&record.id).unwrap().digest.to_string(), seen.trim());
    // Out as an OCI layout, back in under another name: the same manifest.
    let layout = format!("oci:{}:x", dir.path().join("layout").display());
    skopeo(&["copy", "--src-tls-verify=false", &remote, &layout]).await;
    let other = format!("docker://{}/team/copy:2", server.address);
    skopeo(&["copy", "--dest-tls-verify=false", "--preserve-digests", &layout, &other]).await;
    skopeo(&["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &remote, &other]).await;
    let copied = skopeo(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &other]).await;
    assert_eq!(copied, seen);
    skopeo(&["delete", "--tls-verify=false", &other]).await;
    assert!(server.store.get(&name).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_push_and_pull_keep_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(&dir.path().join("registry")).await;
    let store = open(&dir.path().join("a"));
    let id = load(&store, &layers(4, 100_000), "app:1").await;
    let name = format!("{}/me/app:1", server.address);
    store.tag("app:1", &name).unwrap();
    let reference = Reference::parse_tagged(&name).unwrap();
    let (progress, receiver) = Progress::channel();
    let (pushed, said) = tokio::join!(
        async {
            let pushed = store.push(&reference, None, &progress).await.unwrap();
            drop(progress);
            pushed
        },
        events(receiver)
    );
    assert_eq!(said.iter().filter(|text| *text == "Pushed").count(), 4, "{said:?}");
    assert!(said[0].starts_with("The push refers to repository"));
    let again = store.push(&reference, None, &Progress::none()).await.unwrap();
    assert_eq!(again, pushed, "the same digest again");
    let pulled_by = open(&dir.path().join("b"));
    let (progress, receiver) = Progress::channel();
    let (pulled, said) = tokio::join!(
        async {
            let pulled = pulled_by.pull(&reference, &PullOptions::default(), &progress).await.unwrap();
            drop(progress);
            pulled
        },
        events(receiver)
    );
    assert_eq!((&pulled.id, &pulled.digest, pulled.up_to_date), (&id, &pushed.digest, false));
    for status in ["Pulling fs layer", "Verifying Checksum", "Download complete", "Pull complete"] {
        assert_eq!(said.iter().filter(|text| *text == status).count(), 4, "{status} in {said:?}");
    }
    assert!(said.last().unwrap().starts_with("Status: Downloaded newer image for"));
    assert_eq!(pulled_by.get(&name).unwrap().layers, store.get("app:1").unwrap().layers);
    assert!(pulled_by.pull(&reference, &PullOptions::default(), &Progress::none()).await.unwrap().up_to_date);
    // Pushed on as it came, it keeps its digest.
    let other = Reference::parse_tagged(&format!("{}/you/app:2", server.address)).unwrap();
    pulled_by.tag(&name, &other.to_string()).unwrap();
    let third = pulled_by.push(&other, None, &Progress::none()).await.unwrap();
    assert_eq!(third.digest, pushed.digest);
    let missing = Reference::parse_tagged(&format!("{}/me/nothing", server.address)).unwrap();
    let error = pulled_by.pull(&missing, &PullOptions::default(), &Progress::none()).await.unwrap_err();
    assert!(matches!(&error, Error::NotFound(text) if text.contains("manifest unknown")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_built_here_is_pulled_under_the_registrys_name_without_a_push() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(&dir.path().join("registry")).await;
    let name = format!("{}/local/app:1", server.address);
    let id = load(&server.store, &layers(2, 1000), &name).await;
    let other = open(&dir.path().join("b"));
    let reference = Reference::parse_tagged(&name).unwrap();
    let pulled = other.pull(&reference, &PullOptions::default(), &Progress::none()).await.unwrap();
    assert_eq!(pulled.id, id);
    // A name without this registry is nobody's business outside.
    load(&server.store, &layers(1, 500), "private:1").await;
    let private = Reference::parse_tagged(&format!("{}/library/private:1", server.address)).unwrap();
    assert!(other.pull(&private, &PullOptions::default(), &Progress::none()).await.is_err());
}
