//! Short names for long ids. Pure.

use crate::error::{Error, Result};
use crate::nft::ruleset::PORT_PREFIX;
use crate::types::{DEFAULT_BRIDGE, DEFAULT_NETWORK};

/// Ids become file names; Docker's are 64 characters, pods' uids 36, and some have a prefix.
const ID_CHARACTERS_MAX: usize = 128;
/// `IFNAMSIZ` less its final zero.
pub(crate) const INTERFACE_CHARACTERS_MAX: usize = 15;

/// FNV-1a with a final mix: 64 bits, the same in every run. Not for security.
pub(crate) fn hash(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The bridge that serves a network: `nuee0` for the default one, `nuee-<8 hex digits>` otherwise.
pub fn bridge_name(network: &str) -> String {
    if network == DEFAULT_NETWORK { DEFAULT_BRIDGE.to_owned() } else { format!("nuee-{:08x}", hash(network) >> 32) }
}

/// Whether a name is one that [`bridge_name`] gives.
pub(crate) fn is_bridge_name(name: &str) -> bool {
    let digits = name.strip_prefix("nuee-").filter(|d| d.len() == 8);
    name == DEFAULT_BRIDGE || digits.is_some_and(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The machine's end of an attachment's veth pair.
pub(crate) fn port_name(owner: &str, network: &str) -> String {
    format!("{PORT_PREFIX}{:012x}", hash(&format!("{owner}/{network}")) >> 16)
}

/// Refuses ids that are no safe file names.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || id.len() > ID_CHARACTERS_MAX || id.starts_with('.') || !id.chars().all(allowed) {
        return Err(Error::Invalid(format!("invalid id {id:?}")));
    }
    Ok(())
}

/// Refuses names that the kernel or nftables would read differently.
pub(crate) fn check_interface(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > INTERFACE_CHARACTERS_MAX || name.starts_with('.') || !name.chars().all(allowed) {
        return Err(Error::Invalid(format!("invalid interface name {name:?}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_the_kernels_fifteen_characters() {
        for id in ["default", "a", &"f".repeat(64)] {
            assert!(bridge_name(id).len() <= INTERFACE_CHARACTERS_MAX);
            assert_eq!(port_name(id, id).len(), INTERFACE_CHARACTERS_MAX);
        }
        assert_eq!(bridge_name("default"), "nuee0");
        assert!(is_bridge_name("nuee0") && is_bridge_name(&bridge_name("x")) && !is_bridge_name("nuee-lan"));
    }

    #[test]
    fn ids_that_would_leave_their_directory_are_refused() {
        for id in ["", ".", "..", "a/b", "../x", "a\0", ".hidden", "a b", &"x".repeat(129)] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        assert!(check_id("pod-0a1b_c.d").is_ok());
    }
}
