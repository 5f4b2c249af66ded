//! The registry with real clients (skopeo, our own pull and push) and, request by request, against the specification.

#[path = "cases/clients.rs"]
mod clients;
#[path = "cases/helpers.rs"]
mod helpers;
#[path = "cases/specification.rs"]
mod specification;
