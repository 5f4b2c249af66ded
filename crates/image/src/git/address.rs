//! What names a repository in a build: `URL#REF:DIRECTORY`. Pure. `Source:` moby `builder/remotecontext/git`, `urlutil.IsGitURL`;
//! docker build reference, "Git repositories".

use crate::error::{Error, Result};
use crate::web::is_url;

/// Longest name of a reference, and of a directory. Units: bytes.
const NAME_BYTES_MAX: usize = 1024;

/// A repository, and what of it is meant.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Where the repository is, without credentials: `http`, `https` or `git`.
    pub url: String,
    /// `user:password` as the text has them.
    pub credentials: Option<String>,
    /// A branch, a tag, a full name, or a commit; empty means what the repository itself says.
    pub reference: String,
    /// The directory that is meant, without slashes at its ends; empty means all.
    pub directory: String,
}

impl std::fmt::Debug for Address {
    /// Credentials are never printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}:{}", self.url, self.reference, self.directory)
    }
}

/// Whether a text names a repository, and no file at a URL.
pub fn is_repository(text: &str) -> bool {
    let url = text.split('#').next().unwrap_or_default();
    ["git://", "ssh://", "github.com/", "git@"].iter().any(|prefix| text.starts_with(prefix))
        || (is_url(text) && url.ends_with(".git"))
}

impl Address {
    /// Reads a text of which [`is_repository`] is true.
    ///
    /// Errors: `NotSupported` for SSH; `Invalid` for what cannot be meant.
    pub fn parse(text: &str) -> Result<Self> {
        let (url, fragment) = text.split_once('#').unwrap_or((text, ""));
        let url = if url.starts_with("github.com/") { format!("https://{url}") } else { url.to_owned() };
        if url.starts_with("git@") || url.starts_with("ssh://") {
            return Err(Error::NotSupported("git repositories over SSH are not supported; use https".to_owned()));
        }
        let bad = || Error::Invalid(format!("invalid address of a git repository: {:?}", without_credentials(text)));
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let (authority, path) = rest.split_once('/').ok_or_else(bad)?;
        let (credentials, host) = match authority.rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials.to_owned()), host),
            None => (None, authority),
        };
        let plain = |text: &str| !text.bytes().any(|byte| byte.is_ascii_control() || byte == b' ');
        if host.is_empty() || !plain(&url) || path.contains('?') || !["http", "https", "git"].contains(&scheme) {
            return Err(bad());
        }
        let (reference, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
        Ok(Self {
            url: format!("{scheme}://{host}/{}", path.trim_end_matches('/')),
            credentials,
            reference: checked_reference(reference)?,
            directory: checked_directory(directory)?,
        })
    }

    /// The address of another repository, as one in this repository has it: absolute, or relative to this one. `Source:`
    /// git-submodule(1), `add`.
    ///
    /// Errors: as for [`Address::parse`].
    pub fn beside(&self, text: &str, commit: &str) -> Result<Self> {
        let mut found = if text.starts_with("./") || text.starts_with("../") {
            let (scheme, rest) = self.url.split_once("://").unwrap_or(("https", &self.url));
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let mut kept: Vec<&str> = path.split('/').collect();
            for part in text.split('/') {
                match part {
                    "" | "." => {}
                    ".." => drop(kept.pop()),
                    part => kept.push(part),
                }
            }
            let url = format!("{scheme}://{host}/{}", kept.join("/"));
            Self { credentials: self.credentials.clone(), ..Self::parse(&url)? }
        } else {
            Self::parse(text)?
        };
        // Whoever wrote the text decides neither about a reference nor about a directory.
        found.reference = commit.to_owned();
        found.directory.clear();
        Ok(found)
    }
}

/// A text that may be an address, for messages: what stands before an `@` in the host's place is not told.
pub(crate) fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// `Source:` git-check-ref-format(1).
fn checked_reference(name: &str) -> Result<String> {
    let forbidden = |byte: u8| byte.is_ascii_control() || b" ~^:?*[\\".contains(&byte);
    let bad = name.len() > NAME_BYTES_MAX
        || name.starts_with(['-', '/'])
        || name.ends_with(['/', '.'])
        || name.contains("..")
        || name.contains("@{")
        || name.bytes().any(forbidden);
    if bad {
        return Err(Error::Invalid(format!("invalid name of a git reference: {name:?}")));
    }
    Ok(name.to_owned())
}

fn checked_directory(path: &str) -> Result<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let bad = path.len() > NAME_BYTES_MAX || parts.contains(&"..") || path.bytes().any(|byte| byte.is_ascii_control());
    if bad {
        return Err(Error::Invalid(format!("invalid directory of a git repository: {path:?}")));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_known() {
        for url in ["https://x/y.git", "https://x/y.git#main:dir", "git://x/y", "git@x:y", "github.com/x/y"] {
            assert!(is_repository(url), "{url}");
        }
        assert!(!is_repository("https://x/y.tar.gz") && !is_repository("file:///etc/passwd"));
        assert!(!is_repository("/srv/x.git") && !is_repository("ext::sh -c id"));
    }

    #[test]
    fn addresses_are_taken_apart() {
        for (text, url, reference, directory) in [
            ("https://h/a.git", "https://h/a.git", "", ""),
            ("https://h/a.git#main", "https://h/a.git", "main", ""),
            ("https://h/a.git#v1/x:some//./dir/", "https://h/a.git", "v1/x", "some/dir"),
            ("http://h:8/a.git#:/dir", "http://h:8/a.git", "", "dir"),
            ("github.com/a/b", "https://github.com/a/b", "", ""),
            ("git://h/a/", "git://h/a", "", ""),
        ] {
            let found = Address::parse(text).unwrap();
            assert_eq!((&*found.url, &*found.reference, &*found.directory), (url, reference, directory), "{text}");
        }
        let secret = Address::parse("https://me:pa@ss@h/a.git").unwrap();
        assert_eq!((&*secret.url, secret.credentials.as_deref()), ("https://h/a.git", Some("me:pa@ss")));
        assert!(!format!("{secret:?}").contains("pa@ss"));
    }

    #[test]
    fn an_address_is_told_without_its_credentials_and_otherwise_as_it_is() {
        for (text, told) in [
            ("https://me:pa@ss@h/a.git#v1:dir", "https://h/a.git#v1:dir"),
            ("https://me:pa#ss@h/a.git", "https://h/a.git"),
            ("https://h/a.git#v1@2", "https://h/a.git#v1@2"),
            ("https://h/a@b/c.git", "https://h/a@b/c.git"),
            ("https://me:pass@h", "https://h"),
            ("git@h:a.git", "git@h:a.git"),
        ] {
            assert_eq!(without_credentials(text), told);
        }
    }

    #[test]
    fn what_could_mean_something_else_is_refused() {
        for text in [
            "https://h/a.git#--upload-pack=x",
            "https://h/a.git#a b",
            "https://h/a.git#a\nwant",
            "https://h/a.git#a..b",
            "https://h/a.git#main:../..",
            "https://h/a.git#main:a\n",
            "https:///a.git",
            "https://h/a b.git",
            "git@h:a",
            "git://h",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
        let told = Address::parse("https://me:secret@h/a b.git").unwrap_err().to_string();
        assert!(!told.contains("secret"), "{told}");
    }

    #[test]
    fn a_repository_within_another_is_found_beside_it() {
        let outer = Address::parse("https://h/group/outer.git#main:dir").unwrap();
        for (text, url) in [
            ("../inner.git", "https://h/group/inner.git"),
            ("./inner.git", "https://h/group/outer.git/inner.git"),
            ("../../../../x.git", "https://h/x.git"),
            ("http://other/x", "http://other/x"),
        ] {
            let found = outer.beside(text, "c0ffee").unwrap();
            assert_eq!((&*found.url, &*found.reference, &*found.directory), (url, "c0ffee", ""), "{text}");
        }
        for text in ["/etc", "file:///etc", "ext::id", "inner", "git@h:x", "--upload-pack=id"] {
            assert!(outer.beside(text, "c0ffee").is_err(), "{text}");
        }
    }
}
