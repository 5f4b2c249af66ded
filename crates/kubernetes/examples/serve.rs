//! A small API server for trying clients by hand: memory store, a machine that only pretends.
//! `cargo run -p kubernetes --example serve -- DIR PORT` writes DIR/kubeconfig and serves until it is stopped.

#[path = "../tests/main/fake_node.rs"]
mod fake_node;

use std::sync::Arc;

use anyhow::Context;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let dir = std::path::PathBuf::from(arguments.next().context("first argument: directory")?);
    let port: u16 = arguments.next().context("second argument: port")?.parse()?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?.to_string();
    let started = std::time::Instant::now();
    let pki = kubernetes::pki::Pki::open(&kubernetes::pki::PkiOptions {
        dir: dir.join("pki"),
        kubeconfig: dir.join("kubeconfig"),
        server: format!("https://{address}"),
        names: Vec::new(),
        now: jiff::Timestamp::now,
    })?;
    tracing::info!("certificates after {:?}", started.elapsed());
    let kinds = kubernetes::builtin_kinds();
    tracing::info!("kinds after {:?}", started.elapsed());
    let options = apiserver::Options { token_key: Some(pki.token_key.clone()), ..apiserver::Options::default() };
    let api = apiserver::ApiServer::open(store::MemoryStore::new(), kinds, options).await?;
    tracing::info!("open after {:?}", started.elapsed());
    let options = kubernetes::RouterOptions { server_address: address, ..kubernetes::RouterOptions::default() };
    let router = kubernetes::router(api, Arc::new(fake_node::FakeNode), options);
    kubernetes::serve(listener, pki.server_config()?, router, kubernetes::ServeLimits::default()).await?;
    Ok(())
}
