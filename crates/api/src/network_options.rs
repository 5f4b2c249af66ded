//! What a network's driver options, as Docker names them, ask for. Pure: who makes a network asks it first, and each machine that has
//! the network asks it again.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Option by which a network chooses the name of its bridge.
pub const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// Option by which what a network sends out keeps its addresses.
pub const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const TALK: &str = "com.docker.network.bridge.enable_icc";
const PUBLISHED_ON: &str = "com.docker.network.bridge.host_binding_ipv4";
const GATEWAY_MODES: [&str; 2] =
    ["com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6"];
const INHIBIT: &str = "com.docker.network.bridge.inhibit_ipv4";
const MTU: &str = "com.docker.network.driver.mtu";
const INTERFACE_PREFIX: &str = "com.docker.network.container_iface_prefix";
/// Addresses that packets leave with; a floating address does that here.
const SOURCES: [&str; 2] = ["com.docker.network.host_ipv4", "com.docker.network.host_ipv6"];
/// The kernel's bound on names of interfaces is 15, of which a number takes one at least. Units: bytes.
const INTERFACE_PREFIX_MAX: usize = 14;
/// What IPv4 allows at least, and the longest packet. Units: bytes.
const MTU_BOUNDS: std::ops::RangeInclusive<i64> = 68..=65_535;

/// What the options ask for; those that none of ours has a meaning for are kept and shown alone, as Docker does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Name of the bridge; empty means the usual one.
    pub bridge: String,
    /// What workloads send out bears the machine's address.
    pub masquerade: bool,
    /// Workloads may talk to each other.
    pub talk: bool,
    /// Address of the machine that ports are published on where none is named; `None` means all.
    pub published_on: Option<Ipv4Addr>,
    /// MTU; `None` means the machine's.
    pub mtu: Option<u32>,
    /// What names of interfaces in containers begin with; empty means the usual.
    pub interface_prefix: String,
}

/// Why options cannot be had. The words are Docker's, where it has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The value is none for this option.
    #[error("failed to parse {option} value: {value} ({why})")]
    Unreadable {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// No packets have this size.
    #[error("invalid MTU number: {0}")]
    Mtu(i64),
    /// There is no way to do it.
    #[error("network option {option}={value} is not available")]
    Missing {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// A network of several machines has nothing that it could mean.
    #[error("network option {0} is one machine's, and the network spans all machines of the pool")]
    OneMachine(&'static str),
}

impl OptionError {
    /// Whether it is an option that is not there, rather than one that makes no sense.
    pub fn is_missing(&self) -> bool {
        matches!(self, OptionError::Missing { .. })
    }
}

impl NetworkOptions {
    /// Reads the options of a network that is one machine's, or `spans` all of them.
    ///
    /// Errors: a value makes no sense; the option is not available, or cannot hold on all machines.
    pub fn read(options: &BTreeMap<String, String>, spans: bool) -> Result<NetworkOptions, OptionError> {
        let text = |option: &str| options.get(option).map(String::as_str);
        for option in GATEWAY_MODES {
            match text(option) {
                None | Some("nat") => {}
                Some(value @ ("nat-unprotected" | "routed" | "isolated")) => {
                    return Err(OptionError::Missing { option, value: value.to_owned() });
                }
                Some(value) => return Err(unreadable(option, value, "unknown gateway mode".to_owned())),
            }
        }
        if boolean(options, INHIBIT)? == Some(true) {
            return Err(OptionError::Missing { option: INHIBIT, value: "true".to_owned() });
        }
        if let Some((option, value)) = SOURCES.into_iter().find_map(|option| Some((option, text(option)?))) {
            return Err(OptionError::Missing { option, value: value.to_owned() });
        }
        let published_on = text(PUBLISHED_ON).map(|value| {
            let why = if value.contains(':') { "not an IPv4 address" } else { "nil ip" };
            value.parse::<Ipv4Addr>().map_err(|_| unreadable(PUBLISHED_ON, value, why.to_owned()))
        });
        let published_on = published_on.transpose()?.filter(|address| !address.is_unspecified());
        if spans && published_on.is_some() {
            return Err(OptionError::OneMachine(PUBLISHED_ON));
        }
        Ok(NetworkOptions {
            bridge: text(BRIDGE_NAME).unwrap_or_default().to_owned(),
            masquerade: masquerades(options)?,
            talk: boolean(options, TALK)?.unwrap_or(true),
            published_on,
            mtu: text(MTU).map(mtu).transpose()?.flatten(),
            interface_prefix: text(INTERFACE_PREFIX).map(interface_prefix).transpose()?.unwrap_or_default(),
        })
    }
}

/// Whether what a network sends out bears the machine's address, whatever its other options say.
///
/// Errors: the option's value makes no sense.
pub fn masquerades(options: &BTreeMap<String, String>) -> Result<bool, OptionError> {
    Ok(boolean(options, MASQUERADE)?.unwrap_or(true))
}

fn unreadable(option: &'static str, value: &str, why: String) -> OptionError {
    OptionError::Unreadable { option, value: value.to_owned(), why }
}

/// A truth as Go's `strconv.ParseBool` reads it, with its words for others.
fn boolean(options: &BTreeMap<String, String>, option: &'static str) -> Result<Option<bool>, OptionError> {
    match options.get(option).map(String::as_str) {
        None => Ok(None),
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
        Some(value) => Err(unreadable(option, value, format!("strconv.ParseBool: parsing {value:?}: invalid syntax"))),
    }
}

/// Zero is no wish.
fn mtu(value: &str) -> Result<Option<u32>, OptionError> {
    let why = || format!("strconv.Atoi: parsing {value:?}: invalid syntax");
    let number: i64 = value.parse().map_err(|_| unreadable(MTU, value, why()))?;
    match u32::try_from(number) {
        Ok(0) => Ok(None),
        Ok(size) if MTU_BOUNDS.contains(&number) => Ok(Some(size)),
        _ => Err(OptionError::Mtu(number)),
    }
}

/// What a name of an interface may begin with: nothing that the kernel, or whoever reads a path with the name in it, trips over.
fn interface_prefix(value: &str) -> Result<String, OptionError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match value.len() <= INTERFACE_PREFIX_MAX && !value.starts_with('.') && value.chars().all(allowed) {
        true => Ok(value.to_owned()),
        false => Err(unreadable(INTERFACE_PREFIX, value, "no interface can have such a name".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)], spans: bool) -> Result<NetworkOptions, String> {
        let options = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        NetworkOptions::read(&options, spans).map_err(|error| error.to_string())
    }

    #[test]
    fn without_options_a_network_is_the_usual_one() {
        let usual = read(&[("other", "x")], false).unwrap();
        assert!(usual.masquerade && usual.talk && usual.published_on.is_none() && usual.mtu.is_none());
        assert!(usual.bridge.is_empty() && usual.interface_prefix.is_empty());
        let same = [(MTU, "0"), (PUBLISHED_ON, "0.0.0.0"), (GATEWAY_MODES[0], "nat"), (INHIBIT, "F")];
        assert_eq!(read(&same, true).unwrap(), usual);
    }

    #[test]
    fn options_are_read_as_docker_reads_them() {
        let all =
            [(MASQUERADE, "F"), (TALK, "0"), (PUBLISHED_ON, "127.0.0.1"), (MTU, "1400"), (INTERFACE_PREFIX, "net")];
        let read_all = read(&all, false).unwrap();
        assert!(!read_all.masquerade && !read_all.talk);
        assert_eq!((read_all.published_on, read_all.mtu), (Some(Ipv4Addr::LOCALHOST), Some(1400)));
        assert_eq!(read_all.interface_prefix, "net");
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_dockers_words() {
        let refused = |option: &str, value: &str| read(&[(option, value)], false).unwrap_err();
        for option in [MASQUERADE, TALK, INHIBIT] {
            let why =
                format!("failed to parse {option} value: yes (strconv.ParseBool: parsing \"yes\": invalid syntax)");
            assert_eq!(refused(option, "yes"), why);
        }
        assert_eq!(refused(PUBLISHED_ON, ""), format!("failed to parse {PUBLISHED_ON} value:  (nil ip)"));
        assert!(refused(PUBLISHED_ON, "::1").ends_with("(not an IPv4 address)"));
        assert!(refused(MTU, "1e3").ends_with("(strconv.Atoi: parsing \"1e3\": invalid syntax)"));
        for size in ["-1", "67", "65536", "99999999999"] {
            assert_eq!(refused(MTU, size), format!("invalid MTU number: {size}"));
        }
        for prefix in ["a/b", "fifteen-letters", ".hidden", "a b"] {
            assert!(refused(INTERFACE_PREFIX, prefix).contains("no interface"), "{prefix}");
        }
        assert!(refused(GATEWAY_MODES[0], "x").ends_with("(unknown gateway mode)"));
    }

    #[test]
    fn what_is_not_there_is_refused_and_so_is_what_holds_on_one_machine_alone() {
        for (option, value) in
            [(GATEWAY_MODES[0], "routed"), (GATEWAY_MODES[1], "isolated"), (INHIBIT, "1"), (SOURCES[0], "192.0.2.1")]
        {
            let error = NetworkOptions::read(&[(option.to_owned(), value.to_owned())].into(), false).unwrap_err();
            assert!(error.is_missing(), "{error}");
        }
        assert!(read(&[(PUBLISHED_ON, "127.0.0.1")], true).unwrap_err().contains("spans all machines"));
        assert!(!read(&[(MASQUERADE, "false")], true).unwrap().masquerade, "each machine can do that");
    }
}
