//! The dialect against real clients: `kubectl` over TLS, `kube` in-process. Everything runs on a memory store and a
//! machine that pretends.

mod controllers;
mod credentials;
mod every_kind;
mod exchanges;
mod fake_node;
mod floods;
mod hook;
mod http;
mod in_process;
mod kubectl;
mod kubectl_journeys;
mod python;
mod raw;
mod server;
mod tenants;
mod webhooks;
mod wire;
