//! What a backup must refuse, and that a restore is whole or nothing.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use store::{EmbeddedOptions, EmbeddedStore, KeyRange, Operation, RangeRequest, Store, Transaction};

use super::{create, restore, verify};
use crate::instance::Instance;

const PASSPHRASE: Option<&str> = Some("correct horse battery");

fn instance(directory: &Path) -> Result<Instance> {
    let instance = Instance::new(&directory.join("data"))?;
    instance.create()?;
    std::fs::write(instance.path("config.yaml"), "# settings\n")?;
    std::fs::write(instance.path("pki/ca.key"), "the key of the authority")?;
    std::fs::write(instance.path("pki/service-account.key"), "the key of tokens")?;
    let store = EmbeddedStore::open(&instance.path("store"), EmbeddedOptions::default())?;
    let put = Operation::Put("/objects/a".into(), "a secret value".into(), 0);
    block(store.transact(Transaction { then: vec![put], ..Transaction::default() }))?;
    Ok(instance)
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn value(directory: &Path) -> Result<Vec<u8>> {
    let store: Arc<dyn Store> = EmbeddedStore::open(&directory.join("store"), EmbeddedOptions::default())?;
    let range = KeyRange::Key("/objects/a".into());
    let found = block(store.range(RangeRequest { range, revision: None, limit: 0, keys_only: false }))?;
    Ok(found.items[0].value.to_vec())
}

#[test]
fn a_backup_comes_back_with_keys_only_under_a_passphrase_and_without_the_key_of_tokens() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let instance = instance(directory.path())?;
    let (plain, sealed) = (directory.path().join("plain"), directory.path().join("sealed"));
    create(&instance, &plain, None)?;
    create(&instance, &sealed, PASSPHRASE)?;
    assert!(!instance.path("run/backup").exists());
    let holds = |path: &Path, text: &[u8]| std::fs::read(path).unwrap().windows(text.len()).any(|part| part == text);
    assert!(holds(&plain, b"a secret value") && !holds(&plain, b"the key of the authority"));
    assert!(!holds(&sealed, b"a secret value") && !holds(&sealed, b"the key of"));
    let target = directory.path().join("restored");
    assert!(restore(&sealed, &target, None).is_err());
    assert!(restore(&sealed, &target, Some("another long passphrase")).is_err());
    assert!(verify(&sealed, Some("another long passphrase")).is_err());
    verify(&sealed, None)?;
    verify(&sealed, PASSPHRASE)?;
    let restored = restore(&sealed, &target, PASSPHRASE)?;
    assert!(restored.revision.unwrap_or_default() > restored.manifest.revision);
    assert_eq!(value(&target)?, b"a secret value");
    assert_eq!(std::fs::read(target.join("pki/ca.key"))?, b"the key of the authority");
    assert!(!target.join("pki/service-account.key").exists());
    let again = restore(&sealed, &target, PASSPHRASE);
    assert!(again.err().unwrap().to_string().contains("not empty"));
    assert!(create(&instance, &plain, None).err().unwrap().to_string().contains("never overwritten"));
    Ok(())
}

#[test]
fn a_changed_byte_anywhere_or_a_missing_end_is_refused_and_makes_nothing() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("backup");
    create(&instance(directory.path())?, &file, None)?;
    let whole = std::fs::read(&file)?;
    let (bad, target) = (directory.path().join("bad"), directory.path().join("restored"));
    let refused = |bytes: &[u8]| -> Result<()> {
        std::fs::write(&bad, bytes)?;
        assert!(verify(&bad, None).is_err());
        assert!(restore(&bad, &target, None).is_err());
        assert!(!target.exists() && !directory.path().join("restored.restoring").exists());
        Ok(())
    };
    // Every byte of the small file, one bit of each.
    for index in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[index] ^= 1 << (index % 8);
        refused(&bytes)?;
    }
    for length in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        refused(&whole[..length])?;
    }
    refused(&[&whole[..], b"x"].concat())?;
    restore(&file, &target, None).map(drop)
}

/// What a program without the outer digest would let through: the digest is there, and right, over changed content.
#[test]
fn a_part_that_does_not_fit_its_manifest_is_refused() -> Result<()> {
    use sha2::Digest as _;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("backup");
    create(&instance(directory.path())?, &file, None)?;
    let whole = std::fs::read(&file)?;
    let mut bytes = whole[..whole.len() - 32].to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let digest = sha2::Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    std::fs::write(&file, bytes)?;
    let error = verify(&file, None).err().unwrap();
    assert!(format!("{error:#}").contains("does not match the manifest"), "{error:#}");
    Ok(())
}
