//! Load on the Kubernetes API, from a client that is no part of what it measures: its own HTTP/1.1 over TLS, its own checker.
//!
//! - `client`: connections and watches; `machine`: processes, namespaces, memory; `serve`: the API alone, in this process
//! - `table`: the figures beside etcd; `soak`: many writers and watchers for minutes, with `checker` for the outcome

pub mod checker;
pub mod client;
pub mod etcd;
pub mod machine;
pub mod serve;
pub mod soak;
pub mod statistics;
pub mod table;

/// Bytes of the body that creates one ConfigMap, and of one value in etcd.
pub const OBJECT_BYTES: usize = 1024;

/// The body of a ConfigMap of [`OBJECT_BYTES`].
pub fn config_map(name: &str, mark: u64) -> String {
    let head = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"mark":"{mark}","filler":""#
    );
    let filler = OBJECT_BYTES.saturating_sub(head.len() + 3);
    format!("{head}{}\"}}}}", "x".repeat(filler))
}
