//! The fabric with real packets. Every test has a network namespace and a mount namespace of its own, which end with its
//! threads: nothing is left behind, whatever happens.

mod lab;

mod attachments;
mod cost;
mod floating;
mod ipv6;
mod names;
mod outside;
mod published;
mod security_groups;
mod services;
mod spoofing;
