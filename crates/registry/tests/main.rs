//! The registry with real clients (skopeo, our own pull and push) and, request by request, against the specification.

#[path = "cases/access.rs"]
mod access;
#[path = "cases/clients.rs"]
mod clients;
#[path = "cases/conformance.rs"]
mod conformance;
#[path = "cases/helpers.rs"]
mod helpers;
#[path = "cases/race.rs"]
mod race;
#[path = "cases/specification.rs"]
mod specification;
