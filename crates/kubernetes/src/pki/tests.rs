//! The certificates of a first start, a later start, and a damaged directory.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn options(dir: &Path, now: fn() -> Timestamp) -> PkiOptions {
    PkiOptions {
        dir: dir.join("pki"),
        kubeconfig: dir.join("kubeconfig"),
        server: "https://127.0.0.1:6443".into(),
        names: vec!["cloud.example".into(), "192.0.2.9".into()],
        now,
    }
}

fn start() -> Timestamp {
    at("2026-01-01T00:00:00Z")
}

#[test]
fn everything_is_private_and_kept_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let first = Pki::open(&options(dir.path(), start)).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let before = (read("pki/server.crt"), read("kubeconfig"));
    let second = Pki::open(&options(dir.path(), start)).unwrap();
    assert_eq!(first.ca_pem, second.ca_pem);
    assert_eq!(first.token_key, second.token_key);
    assert_eq!(before, (read("pki/server.crt"), read("kubeconfig")));
    for name in ["kubeconfig", "pki/ca.key", "pki/server.key", "pki/admin.key", "pki/service-account.key"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    second.server_config().unwrap();
}

#[test]
fn certificates_near_their_end_are_renewed_under_the_same_ca() {
    let dir = tempfile::tempdir().unwrap();
    let first = Pki::open(&options(dir.path(), start)).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let before = (read("pki/server.crt"), read("pki/admin.crt"), read("kubeconfig"));
    let later = Pki::open(&options(dir.path(), || at("2026-12-15T00:00:00Z"))).unwrap();
    assert_eq!(first.ca_pem, later.ca_pem);
    assert_ne!(before.0, read("pki/server.crt"));
    assert_ne!(before.1, read("pki/admin.crt"));
    assert_ne!(before.2, read("kubeconfig"));
}

#[test]
fn the_server_certificate_names_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(&options(dir.path(), start)).unwrap();
    let path = dir.path().join("pki/server.crt");
    let facts = pki.facts(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    for name in ["localhost", "127.0.0.1", "::1", "kubernetes.default.svc", "cloud.example", "192.0.2.9"] {
        assert!(facts.names.iter().any(|one| one == name), "{name}");
    }
}

#[test]
fn a_client_certificate_carries_name_and_group() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(&options(dir.path(), start)).unwrap();
    let day = Duration::from_secs(24 * 3600);
    let (pem, _) = pki.client_certificate("alice", Some("dev"), day).unwrap();
    let remaining = pki.facts(std::path::Path::new("alice.pem"), &pem).unwrap().remaining;
    assert!(remaining <= day && remaining > day / 2, "{remaining:?}");
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let user = crate::identity::certificate_user(&der).unwrap();
    assert_eq!(user.name, "alice");
    assert_eq!(user.groups, ["dev", "system:authenticated"]);
}

#[test]
fn a_damaged_ca_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    Pki::open(&options(dir.path(), start)).unwrap();
    std::fs::write(dir.path().join("pki/ca.key"), "rubbish").unwrap();
    assert!(matches!(Pki::open(&options(dir.path(), start)), Err(Error::Content { .. })));
}
