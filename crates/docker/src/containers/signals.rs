//! Names and numbers of Linux signals, as `docker kill -s` takes them.

use crate::error::{Error, Result};

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// SIGKILL.
pub(crate) const KILL: i32 = 9;
/// First and last real-time signal as programs see them.
const REAL_TIME: (i32, i32) = (34, 64);

/// Reads `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+3`.
///
/// Errors: [`Error::Invalid`] in Docker's words.
pub(crate) fn parse(text: &str) -> Result<i32> {
    let invalid = || Error::Invalid(format!("Invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=REAL_TIME.1).contains(&number) { Ok(number) } else { Err(invalid()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = (1_i32..).zip(NAMES).find_map(|(number, known)| (known == name).then_some(number)) {
        return Ok(number);
    }
    let (base, rest) = if let Some(rest) = name.strip_prefix("RTMIN") {
        (REAL_TIME.0, rest)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        (REAL_TIME.1, rest)
    } else {
        return match name {
            "IOT" => Ok(6),
            "CLD" => Ok(17),
            "POLL" => Ok(29),
            _ => Err(invalid()),
        };
    };
    let offset: i32 = if rest.is_empty() { 0 } else { rest.parse().map_err(|_| invalid())? };
    Some(base + offset).filter(|n| (REAL_TIME.0..=REAL_TIME.1).contains(n)).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_in_all_notations() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)]
        {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["0", "65", "NOPE", "", "RTMIN+99"] {
            assert_eq!(parse(text).unwrap_err().to_string(), format!("Invalid signal: {text}"));
        }
    }
}
