//! Where a container's log goes, out of a create request. Pure.

use api::log_tag::TEMPLATE_BYTES_MAX;

use super::wire::LogConfig;
use crate::error::{Error, Result};

/// Log rotation out of the options of the json-file and local drivers.
pub(super) fn log_bounds(log: &LogConfig) -> Result<(i64, i64)> {
    match log.kind.as_str() {
        "" | "json-file" | "local" | "none" => {}
        "journald" => return journald_options(log).map(|()| (0, 0)),
        other => {
            let quoted = crate::text::quote(other);
            return Err(Error::Invalid(format!("error looking up logging plugin {other}: plugin {quoted} not found")));
        }
    }
    check_mode(log)?;
    let mut bounds = (0, 0);
    for (key, value) in &log.config {
        match key.as_str() {
            "max-size" => {
                let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                let factor: i64 = match value[digits.len()..].to_ascii_lowercase().as_str() {
                    "" | "b" => 1,
                    "k" | "kb" => 1 << 10,
                    "m" | "mb" => 1 << 20,
                    "g" | "gb" => 1 << 30,
                    _ => return Err(bad_size(value)),
                };
                let number: Option<i64> = digits.parse().ok().and_then(|n: i64| n.checked_mul(factor));
                bounds.0 = number.ok_or_else(|| bad_size(value))?;
            }
            "max-file" => {
                bounds.1 = value
                    .parse()
                    .ok()
                    .filter(|files| *files >= 1)
                    .ok_or_else(|| Error::Invalid("max-file cannot be less than 1".into()))?;
            }
            "compress" | "labels" | "labels-regex" | "env" | "env-regex" | "tag" | "mode" | "max-buffer-size" => {}
            other => {
                return Err(Error::Invalid(format!("unknown log opt '{other}' for json-file log driver")));
            }
        }
    }
    Ok(bounds)
}

/// How output waits for the log, and how it is tagged. `Source:` moby, `daemon/logger`, `ValidateLogOpts`.
fn check_mode(log: &LogConfig) -> Result<()> {
    let mode = log.config.get("mode").map_or("", String::as_str);
    if !matches!(mode, "" | "blocking" | "non-blocking") {
        return Err(Error::Invalid(format!("logger: logging mode not supported: {mode}")));
    }
    if log.config.contains_key("max-buffer-size") && mode != "non-blocking" {
        return Err(Error::Invalid("logger: max-buffer-size option is only supported with 'mode=non-blocking'".into()));
    }
    if log.config.get("tag").is_some_and(|tag| tag.len() > TEMPLATE_BYTES_MAX) {
        return Err(Error::Invalid(format!("logger: the tag is longer than {TEMPLATE_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// What the driver `journald` takes.
fn journald_options(log: &LogConfig) -> Result<()> {
    check_mode(log)?;
    for key in log.config.keys() {
        match key.as_str() {
            "labels" | "labels-regex" | "env" | "env-regex" | "tag" | "mode" | "max-buffer-size" => {}
            other => return Err(Error::Invalid(format!("unknown log opt '{other}' for journald log driver"))),
        }
    }
    Ok(())
}

fn bad_size(value: &str) -> Error {
    Error::Invalid(format!("failed to initialize logging driver: invalid size: '{value}'"))
}
