//! A server of its own for each test: own directory, own port, own store.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;

/// A running server; it ends when this is dropped.
pub struct Server {
    dir: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
    /// Its router, for in-process clients.
    pub router: axum::Router,
    /// Its machinery.
    pub api: Arc<apiserver::ApiServer>,
    /// Its store.
    pub store: store::SharedStore,
    /// Where it listens.
    pub address: std::net::SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a client printed and how it ended.
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub code: i32,
}

impl Server {
    /// Starts a server.
    pub async fn start() -> Server {
        Server::start_with(kubernetes::ServeLimits::default(), apiserver::Options::default()).await
    }

    /// Starts a server with other limits, or with tokens.
    pub async fn start_with(limits: kubernetes::ServeLimits, options: apiserver::Options) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bound = listener.local_addr().unwrap();
        let address = bound.to_string();
        let pki = kubernetes::pki::Pki::open(&kubernetes::pki::PkiOptions {
            dir: dir.path().join("pki"),
            kubeconfig: dir.path().join("kubeconfig"),
            server: format!("https://{address}"),
            names: Vec::new(),
            now: jiff::Timestamp::now,
        })
        .unwrap();
        let options = apiserver::Options {
            token_key: Some(pki.token_key.clone()),
            audit_log: Some(dir.path().join("audit.log")),
            webhooks: Some(Arc::new(kubernetes::HttpsWebhooks::default())),
            ..options
        };
        let store: store::SharedStore = store::MemoryStore::new();
        let api = apiserver::ApiServer::open(store.clone(), kubernetes::builtin_kinds(), options).await.unwrap();
        let options = kubernetes::RouterOptions { server_address: address, ..Default::default() };
        let router = kubernetes::router(api.clone(), Arc::new(crate::fake_node::FakeNode), options);
        let (tls, served) = (pki.server_config().unwrap(), router.clone());
        let task = tokio::spawn(async move {
            kubernetes::serve(listener, tls, served, limits).await.unwrap();
        });
        Server { dir, task, router, api, store, address: bound }
    }

    /// The certificate of its authority, PEM.
    pub fn authority(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("pki/ca.crt")).unwrap()
    }

    /// A directory in the server's own.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    /// A file in the server's directory.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// The first record of the audit log that contains `text`, as soon as it is there.
    pub async fn audit_until(&self, text: &str) -> serde_json::Value {
        for _ in 0..600 {
            let log = std::fs::read_to_string(self.dir.path().join("audit.log")).unwrap_or_default();
            if let Some(line) = log.lines().find(|line| line.contains(text) && line.ends_with('}')) {
                return serde_json::from_str(line).unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("the audit log has no record with {text}");
    }

    /// Runs kubectl with the administrator's kubeconfig; words are separated by single spaces.
    pub async fn run(&self, words: &str, input: &str) -> Output {
        let mut child = tokio::process::Command::new("kubectl")
            .args(words.split(' '))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl must be installed");
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        let limit = std::time::Duration::from_secs(60);
        let output = tokio::time::timeout(limit, child.wait_with_output()).await.expect(words).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Output { stdout: text(output.stdout), stderr: text(output.stderr), code: output.status.code().unwrap_or(-1) }
    }

    /// Runs kubectl, which must succeed; its standard output.
    pub async fn kubectl(&self, words: &str) -> String {
        self.kubectl_with(words, "").await
    }

    /// The same with standard input.
    pub async fn kubectl_with(&self, words: &str, input: &str) -> String {
        let output = self.run(words, input).await;
        assert_eq!(output.code, 0, "kubectl {words}: {}{}", output.stdout, output.stderr);
        output.stdout
    }
}
