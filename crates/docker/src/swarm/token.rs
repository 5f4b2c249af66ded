//! Join tokens. Docker's form, `SWMTKN-1-<authority>-<secret>`, has room for what `nuee join` asks for: the fingerprint of the
//! pool's authority, and the identifier and secret of a bootstrap token. So the token that `docker swarm join-token` shows is the
//! one that a machine joins with. Pure. `Source:` swarmkit, `GenerateJoinToken`.

use api::swarm::id_of;

/// What a token begins with.
const PREFIX: &str = "SWMTKN-1-";
/// Digits of each half of the authority's part, and of the secret.
const DIGITS: usize = 25;
/// Digits of a bootstrap token's identifier, which are the secret's first.
const IDENTIFIER: usize = 6;
/// Digits of a bootstrap token's secret, which are the secret's last.
const SECRET: usize = 16;

/// A join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JoinToken {
    /// SHA-256 of the authority's public key, in hexadecimal.
    pub(super) fingerprint: String,
    /// 25 digits of base 36.
    pub(super) secret: String,
}

impl JoinToken {
    /// A new one, out of 128 random bits in hexadecimal.
    pub(super) fn new(fingerprint: &str, random: &str) -> Self {
        Self { fingerprint: fingerprint.to_owned(), secret: id_of(random) }
    }

    /// Reads one. `None` when it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (authority, secret) = text.strip_prefix(PREFIX)?.split_once('-')?;
        let plain = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        };
        if !plain(authority, 2 * DIGITS) || !plain(secret, DIGITS) {
            return None;
        }
        let (first, second) = authority.split_at(DIGITS);
        let fingerprint = format!("{:032x}{:032x}", number(first)?, number(second)?);
        Some(Self { fingerprint, secret: secret.to_owned() })
    }

    /// As Docker's clients have it.
    pub(super) fn text(&self) -> String {
        let (first, second) = self.fingerprint.split_at_checked(32).unwrap_or((&self.fingerprint, ""));
        format!("{PREFIX}{}{}-{}", id_of(first), id_of(second), self.secret)
    }

    /// Identifier and secret of the bootstrap token.
    pub(super) fn bootstrap(&self) -> (&str, &str) {
        let identifier = self.secret.get(..IDENTIFIER).unwrap_or_default();
        (identifier, self.secret.get(DIGITS - SECRET..).unwrap_or_default())
    }

    /// As `nuee join` takes it.
    pub(super) fn for_join(&self) -> String {
        let (identifier, secret) = self.bootstrap();
        format!("{identifier}.{secret}.{}", self.fingerprint)
    }
}

/// Digits of base 36 as a number; `None` when they are too many.
fn number(digits: &str) -> Option<u128> {
    digits
        .chars()
        .try_fold(0_u128, |number, digit| number.checked_mul(36)?.checked_add(u128::from(digit.to_digit(36)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_and_gives_what_join_asks_for() {
        let fingerprint = "00ff".repeat(16);
        let token = JoinToken::new(&fingerprint, "f0e1d2c3b4a5968778695a4b3c2d1e0f");
        let text = token.text();
        assert_eq!(JoinToken::parse(&text), Some(token.clone()));
        assert_eq!(text.len(), PREFIX.len() + 2 * DIGITS + 1 + DIGITS);
        let (identifier, secret) = token.bootstrap();
        assert_eq!((identifier.len(), secret.len()), (6, 16));
        assert_eq!(token.for_join(), format!("{identifier}.{secret}.{fingerprint}"));
    }

    #[test]
    fn what_is_no_token_is_not_read() {
        let token = JoinToken::new(&"ab".repeat(32), "0123456789abcdef0123456789abcdef").text();
        for bad in [
            "",
            "SWMTKN-1-",
            &token[1..],
            &token[..token.len() - 1],
            &token.replace('-', "_"),
            &token.to_uppercase(),
            &format!("{PREFIX}{}-{}", "z".repeat(50), "0".repeat(25)),
        ] {
            assert_eq!(JoinToken::parse(bad), None, "{bad}");
        }
    }
}
