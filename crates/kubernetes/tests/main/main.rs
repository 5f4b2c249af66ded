//! The dialect against real clients: `kubectl` over TLS, `kube` in-process. Everything runs on a memory store and a
//! machine that pretends.

mod controllers;
mod every_kind;
mod exchanges;
mod fake_node;
mod hook;
mod http;
mod in_process;
mod kubectl;
mod kubectl_journeys;
mod python;
mod server;
mod webhooks;
mod wire;
