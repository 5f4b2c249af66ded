//! Bootstrap tokens: short-lived secrets with which a machine that has no certificate yet asks for one. `Source:` Kubernetes'
//! documentation, "Authenticating with Bootstrap Tokens".

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::sha256;
use crate::cache::Caches;
use crate::keys;
use crate::user::UserInfo;

/// Where the tokens are.
const NAMESPACE: &str = "kube-system";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Group of all that have such a token; further ones begin with it and a colon.
const GROUP: &str = "system:bootstrappers";
/// Most groups that a token names.
const GROUPS_MAX: usize = 16;

/// Identifier and secret of a token of this form: six and sixteen lower-case letters and digits.
fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// Whom the token stands for; `None` when it is none, is not there (any more), or has expired.
pub(super) fn user(token: &str, caches: &Caches, now: Timestamp) -> Option<UserInfo> {
    let (id, secret) = parts(token)?;
    let place = keys::relative(NAMESPACE, &format!("bootstrap-token-{id}"));
    let object = caches.get(&keys::resource("", "secrets")).get(&place)?.to_value();
    let read = |key: &str| -> Option<String> {
        let bytes = STANDARD.decode(object["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    if object["type"] != SECRET_TYPE
        || !object["metadata"]["deletionTimestamp"].is_null()
        || read("token-id")? != id
        || read("usage-bootstrap-authentication").as_deref() != Some("true")
    {
        return None;
    }
    // Hashes are compared, so that the time it takes tells nothing of the secret.
    if sha256(read("token-secret")?.as_bytes()) != sha256(secret.as_bytes()) {
        return None;
    }
    // A time that cannot be read is no licence for ever.
    if let Some(end) = read("expiration")
        && end.parse::<Timestamp>().ok()? <= now
    {
        return None;
    }
    let further = read("auth-extra-groups").unwrap_or_default();
    let mut groups = vec![GROUP];
    groups.extend(further.split(',').filter(|one| one.starts_with(&format!("{GROUP}:"))).take(GROUPS_MAX));
    Some(UserInfo::new(&format!("system:bootstrap:{id}"), &groups))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_known_form_is_looked_up() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for bad in [
            "",
            "abcdef",
            "abcde.0123456789abcdef",
            "abcdef.0123456789abcde",
            "ABCDEF.0123456789abcdef",
            "abcde/.0123456789abcdef",
        ] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }
}
