//! Texts of /etc/hosts, /etc/hostname and /etc/resolv.conf. Pure but for reading the machine's own resolv.conf.

use std::net::IpAddr;

/// Most search domains that are written. Source: resolv.conf(5) of glibc 2.26 and later has no limit; Kubernetes allows 32.
const SEARCH_LIMIT: usize = 32;
/// Most name servers that resolvers read. Source: resolv.conf(5), MAXNS.
const SERVERS_LIMIT: usize = 3;

/// The top of every /etc/hosts.
const HOSTS_HEAD: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// Resolver settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options such as `ndots:5`.
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads a resolv.conf.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let keyword = words.next();
            let rest = words.map(str::to_owned);
            match keyword {
                Some("nameserver") => resolver.servers.extend(rest.take(1)),
                Some("search" | "domain") => resolver.searches = rest.collect(),
                Some("options") => resolver.options.extend(rest),
                _ => {}
            }
        }
        resolver
    }

    /// The machine's own settings, as they can be used in a container.
    #[must_use]
    pub fn of_host(text: &str, host_network: bool) -> Self {
        let mut resolver = Self::parse(text);
        if !host_network {
            // A loopback address means another machine's resolver once inside a container.
            resolver.servers.retain(|s| {
                s.split('%').next().and_then(|a| a.parse::<IpAddr>().ok()).is_some_and(|a| !a.is_loopback())
            });
        }
        resolver
    }

    /// Writes a resolv.conf.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for server in self.servers.iter().take(SERVERS_LIMIT) {
            text += &format!("nameserver {}\n", one_word(server));
        }
        let searches: Vec<_> =
            self.searches.iter().take(SEARCH_LIMIT).map(|s| one_word(s)).filter(|s| s != ".").collect();
        if !searches.is_empty() {
            text += &format!("search {}\n", searches.join(" "));
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.iter().map(|o| one_word(o)).collect::<Vec<_>>().join(" "));
        }
        text
    }
}

/// Values come from users: they must not be able to add lines.
fn one_word(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect()
}

/// Writes an /etc/hosts: the head, then lines of address and names.
#[must_use]
pub fn hosts(entries: &[(String, Vec<String>)]) -> String {
    let mut text = HOSTS_HEAD.to_owned();
    for (address, names) in entries {
        let names: Vec<_> = names.iter().map(|n| one_word(n)).filter(|n| !n.is_empty()).collect();
        if !names.is_empty() {
            text += &format!("{}\t{}\n", one_word(address), names.join(" "));
        }
    }
    text
}

/// Names under which a container finds itself.
#[must_use]
pub fn own_names(hostname: &str, domainname: &str) -> Vec<String> {
    match (hostname.split_once('.'), domainname) {
        (_, domain) if !domain.is_empty() => vec![format!("{hostname}.{domain}"), hostname.to_owned()],
        (Some((short, _)), _) => vec![hostname.to_owned(), short.to_owned()],
        _ => vec![hostname.to_owned()],
    }
}

/// Reads `name:address` as Docker's `--add-host` writes it; the address may be an IPv6 one.
#[must_use]
pub fn extra_host(text: &str, host_gateway: &str) -> Option<(String, Vec<String>)> {
    let (name, address) = text.split_once([':', '='])?;
    let address = address.trim_matches(['[', ']']);
    let address = if address == "host-gateway" { host_gateway } else { address };
    (!name.is_empty() && !address.is_empty()).then(|| (address.to_owned(), vec![name.to_owned()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolver_settings_survive_a_round_trip() {
        let text = "nameserver 10.0.0.1\nsearch a.example b.example\noptions ndots:5 timeout:2\n";
        assert_eq!(Resolver::parse(text).text(), text);
    }

    #[test]
    fn a_loopback_name_server_is_of_no_use_in_a_container() {
        let text = "nameserver 127.0.0.53\nnameserver 9.9.9.9\n";
        assert_eq!(Resolver::of_host(text, false).servers, ["9.9.9.9"]);
        assert_eq!(Resolver::of_host(text, true).servers, ["127.0.0.53", "9.9.9.9"]);
    }

    #[test]
    fn a_value_cannot_smuggle_in_a_line() {
        let resolver = Resolver { searches: vec!["x\nnameserver 6.6.6.6".into()], ..Resolver::default() };
        assert_eq!(resolver.text(), "search xnameserver6.6.6.6\n");
        assert!(!hosts(&[("1.2.3.4".into(), vec!["a\n6.6.6.6 b".into()])]).contains("\n6.6.6.6"));
    }

    #[test]
    fn added_hosts_may_have_ipv6_addresses_or_the_gateway() {
        assert_eq!(extra_host("db:10.0.0.5", ""), Some(("10.0.0.5".into(), vec!["db".into()])));
        assert_eq!(extra_host("db:::1", ""), Some(("::1".into(), vec!["db".into()])));
        assert_eq!(extra_host("h:host-gateway", "10.1.0.1"), Some(("10.1.0.1".into(), vec!["h".into()])));
        assert_eq!(extra_host("nonsense", ""), None);
    }

    #[test]
    fn a_container_knows_itself_by_its_short_and_long_name() {
        assert_eq!(own_names("web", ""), ["web"]);
        assert_eq!(own_names("web.example.org", ""), ["web.example.org", "web"]);
        assert_eq!(own_names("web", "example.org"), ["web.example.org", "web"]);
    }
}
