//! nftables. Structure (tables, chains, service chains) goes through nft(8) as text, which a person can read and which is
//! one transaction; what every `docker run` changes (elements of sets and maps) goes straight to the kernel by netlink.
//! Measured: an nft process costs 1.5 to 6 ms of CPU depending on how much is installed, a netlink batch about 30 µs. See
//! docs/decisions/0003-nftables.md.

pub(crate) mod elements;
pub(crate) mod groups;
pub(crate) mod process;
pub(crate) mod ruleset;
pub(crate) mod services;

/// Name of our tables, in the families `inet` and `bridge`.
pub(crate) const TABLE: &str = "nuee";
