//! Versions of the Engine API: parsing, the range we serve, and Docker's own words for a version outside of it.

use crate::error::Error;

/// A version `1.minor` of the Engine API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// The part before the point.
    pub major: u16,
    /// The part after the point.
    pub minor: u16,
}

impl ApiVersion {
    /// Version `1.minor`.
    pub const fn new(minor: u16) -> Self {
        Self { major: 1, minor }
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The newest version that we speak, and what a request without a version means.
pub const MAXIMUM_VERSION: ApiVersion = ApiVersion::new(50);
/// The oldest version that we answer.
pub const MINIMUM_VERSION: ApiVersion = ApiVersion::new(24);

/// Splits `/v1.44/containers/json` into the version and the rest.
///
/// Errors: a version outside of the range we serve is refused in Docker's words. A first segment that only resembles a
/// version is left in the path (and then not found), as Docker does.
pub(crate) fn split(path: &str) -> Result<(ApiVersion, &str), Error> {
    let Some(rest) = path.strip_prefix("/v") else { return Ok((MAXIMUM_VERSION, path)) };
    let (version, rest) = match rest.find('/') {
        Some(end) => (&rest[..end], &rest[end..]),
        None => (rest, "/"),
    };
    let Some((major, minor)) = version.split_once('.') else { return Ok((MAXIMUM_VERSION, path)) };
    let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { return Ok((MAXIMUM_VERSION, path)) };
    let version = ApiVersion { major, minor };
    if version < MINIMUM_VERSION {
        return Err(Error::Invalid(format!(
            "client version {version} is too old. Minimum supported API version is {MINIMUM_VERSION}, please upgrade your client to a newer version"
        )));
    }
    if version > MAXIMUM_VERSION {
        return Err(Error::Invalid(format!(
            "client version {version} is too new. Maximum supported API version is {MAXIMUM_VERSION}"
        )));
    }
    Ok((version, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_prefix_is_split_off() {
        assert_eq!(split("/v1.44/containers/json").unwrap(), (ApiVersion::new(44), "/containers/json"));
        assert_eq!(split("/containers/json").unwrap(), (MAXIMUM_VERSION, "/containers/json"));
        assert_eq!(split("/volumes").unwrap(), (MAXIMUM_VERSION, "/volumes"));
        assert_eq!(split("/version").unwrap(), (MAXIMUM_VERSION, "/version"));
    }

    #[test]
    fn versions_outside_the_range_are_refused_in_dockers_words() {
        let old = split("/v1.23/info").unwrap_err().to_string();
        assert!(old.starts_with("client version 1.23 is too old. Minimum supported API version is 1.24"), "{old}");
        let new = split("/v1.99/info").unwrap_err().to_string();
        assert_eq!(new, "client version 1.99 is too new. Maximum supported API version is 1.50");
    }
}
