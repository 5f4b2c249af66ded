//! What it means when the apiserver does not take a container's status. Pure.

/// What came of telling the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// All of it is written, or there is nobody to tell.
    Done,
    /// It is refused for what it says.
    Refused,
    /// It may be written later.
    Later,
}

/// What the code of a write that failed says. Rights and credentials may come back.
pub fn refusal(code: u16) -> Told {
    match code {
        404 => Told::Done,
        401 | 403 | 408 | 409 | 429 => Told::Later,
        400..=499 => Told::Refused,
        _ => Told::Later,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_refused_for_what_it_says_is_not_waited_for() {
        let check = |codes: &[u16], expected: Told| {
            codes.iter().for_each(|code| assert_eq!(refusal(*code), expected, "{code}"))
        };
        check(&[404], Told::Done);
        check(&[400, 413, 415, 422], Told::Refused);
        // No answer, no right or credential now, another write between, too many of them, the machine's own troubles.
        check(&[0, 401, 403, 408, 409, 429, 500, 503, 507], Told::Later);
    }
}
