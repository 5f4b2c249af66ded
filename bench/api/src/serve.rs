//! The API alone, as `nuee` puts it together: embedded store, certificates, audit log, TLS. No agent, no controllers.

#[path = "../../../crates/kubernetes/tests/main/fake_node.rs"]
mod fake_node;

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

/// A running API; ends when dropped.
pub struct Api {
    task: tokio::task::JoinHandle<()>,
    /// The machinery.
    pub server: Arc<apiserver::ApiServer>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves on a free port of loopback; `dir/kubeconfig` says which, and `dir/ready` appears when it does.
pub async fn start(dir: &Path) -> Result<Api> {
    std::fs::create_dir_all(dir)?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let pki = kubernetes::pki::Pki::open(&kubernetes::pki::PkiOptions {
        dir: dir.join("pki"),
        kubeconfig: dir.join("kubeconfig"),
        server: format!("https://{address}"),
        names: Vec::new(),
        now: jiff::Timestamp::now,
    })?;
    let store = store::EmbeddedStore::open(&dir.join("store"), store::EmbeddedOptions::default())?;
    let options = apiserver::Options {
        token_key: Some(pki.token_key.clone()),
        audit_log: Some(dir.join("audit.log")),
        ..apiserver::Options::default()
    };
    let server = apiserver::ApiServer::open(store, kubernetes::builtin_kinds(), options).await?;
    let options = kubernetes::RouterOptions { server_address: address, ..kubernetes::RouterOptions::default() };
    let router = kubernetes::router(server.clone(), Arc::new(fake_node::FakeNode), options);
    let tls = pki.server_config()?;
    let task = tokio::spawn(async move {
        if let Err(error) = kubernetes::serve(listener, tls, router, kubernetes::ServeLimits::default()).await {
            eprintln!("the API ended: {error}");
        }
    });
    std::fs::write(dir.join("ready"), "")?;
    Ok(Api { task, server })
}
