//! Everything that talks to the kernel by netlink, `/proc/sys` or namespaces. Must not know what networks are for.

pub(crate) mod announce;
pub(crate) mod conntrack;
pub(crate) mod link;
pub(crate) mod namespace;
pub(crate) mod netlink;
pub(crate) mod overlay;
pub(crate) mod sysctl;
pub(crate) mod tap;
