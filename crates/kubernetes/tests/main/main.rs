//! The dialect against real clients: `kubectl` over TLS, `kube` in-process. Everything runs on a memory store and a
//! machine that pretends.

mod fake_node;
mod in_process;
mod kubectl;
mod server;
mod wire;
