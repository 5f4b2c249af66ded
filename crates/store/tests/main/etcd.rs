//! The etcd engine against Debian's etcd, started here on free ports. Without an `etcd` program there is nothing to
//! test against, and the tests say so.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use store::{Error, EtcdOptions, EtcdStore, EtcdTls, Store};

use crate::conformance::{Engine, run};
use crate::support::{PATIENCE, put, value, write};

/// One etcd of our own; ends with the test.
struct Etcd {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    fn start(more: &[&str], scheme: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (port, peer) = (free_port(), free_port());
        let client_url = format!("{scheme}://127.0.0.1:{port}");
        let peer_url = format!("http://127.0.0.1:{peer}");
        let mut command = Command::new("etcd");
        command.args(["--name", "one", "--data-dir"]).arg(dir.path());
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.args(["--initial-cluster", &format!("one={peer_url}"), "--max-request-bytes", "10485760"]);
        command.args(more).stdout(Stdio::null()).stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => Some(Self { child, port, _dir: dir }),
            Err(error) => {
                eprintln!("not tested: cannot start etcd: {error}");
                None
            }
        }
    }

    async fn connect(&self, scheme: &str, tls: Option<EtcdTls>) -> Arc<EtcdStore> {
        let began = std::time::Instant::now();
        loop {
            let options =
                EtcdOptions { endpoints: vec![format!("{scheme}://127.0.0.1:{}", self.port)], tls: tls.clone() };
            match EtcdStore::connect(options).await {
                Ok(store) => return store,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_the_contract() {
    let Some(etcd) = Etcd::start(&[], "http") else { return };
    let store = etcd.connect("http", None).await;
    run(&Engine { store: Arc::<EtcdStore>::clone(&store), clock: None }).await;
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("snapshot");
    assert!(store.backup(&file).await.unwrap() > 1);
    let status = Command::new("etcdctl").env("ETCDCTL_API", "3").args(["snapshot", "status"]).arg(&file).output();
    if let Ok(status) = status {
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_reached_over_tls_and_strangers_are_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (authority, issuer) = authority();
    let save = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
    let server = certificate(&issuer, "127.0.0.1");
    let client = certificate(&issuer, "nuee");
    save("ca", &authority);
    save("cert", &server.0);
    save("key", &server.1);
    let text = |name: &Path| name.to_str().unwrap().to_owned();
    let (ca, cert, key) = (text(&path("ca")), text(&path("cert")), text(&path("key")));
    let more = ["--cert-file", &cert, "--key-file", &key, "--client-cert-auth", "--trusted-ca-file", &ca];
    let Some(etcd) = Etcd::start(&more, "https") else { return };
    let identity = Some((client.0.into_bytes(), client.1.into_bytes()));
    let tls = EtcdTls { authority: authority.clone().into_bytes(), identity: identity.clone(), server_name: None };
    let store = etcd.connect("https", Some(tls)).await;
    write(store.as_ref(), put("tls", "yes")).await;
    assert_eq!(value(store.as_ref(), "tls").await.as_deref(), Some("yes"));
    let refused = [
        EtcdTls { authority: self::authority().0.into_bytes(), identity, server_name: None },
        EtcdTls { authority: authority.into_bytes(), identity: None, server_name: None },
    ];
    for tls in refused {
        let endpoints = vec![format!("https://127.0.0.1:{}", etcd.port)];
        let refused = EtcdStore::connect(EtcdOptions { endpoints, tls: Some(tls) }).await;
        assert!(matches!(refused, Err(Error::Unavailable(_))));
    }
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_unavailable() {
    let endpoints = vec![format!("http://127.0.0.1:{}", free_port())];
    let refused = EtcdStore::connect(EtcdOptions { endpoints, tls: None }).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))));
    assert!(matches!(EtcdStore::connect(EtcdOptions::default()).await, Err(Error::Invalid(_))));
}

fn authority() -> (String, rcgen::Issuer<'static, rcgen::KeyPair>) {
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), rcgen::Issuer::new(params, key))
}

fn certificate(issuer: &rcgen::Issuer<'static, rcgen::KeyPair>, name: &str) -> (String, String) {
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    (certificate.pem(), key.serialize_pem())
}
