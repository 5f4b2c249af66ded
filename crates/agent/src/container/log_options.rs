//! What the options of a container's log ask for, whichever its driver: a tag, and labels and variables by their names. Pure.
//!
//! `Source:` moby, `daemon/logger/loginfo.go`.

use api::ContainerSpec;
use api::log_tag::{self, PATTERN_BYTES_MAX, PATTERN_TEXT_BYTES_MAX, Problem};
use regex::{Regex, RegexBuilder};

use super::journal;
use crate::error::{Error, Result};

/// What begins each complaint.
pub const PREFIX: &str = "failed to initialize logging driver";
/// Options that are patterns of names.
const PATTERNS: [&str; 2] = ["labels-regex", "env-regex"];

/// Refuses the options of logs that are read here (`docker logs --details` shows what they name).
///
/// Errors: an option is wrong, in Docker's words. A template that only has more than we fill in is no reason not to start.
pub fn check(spec: &ContainerSpec, id: &str, hostname: &str) -> Result<()> {
    if matches!(spec.log_driver.as_str(), "none" | journal::DRIVER) {
        return Ok(());
    }
    for option in PATTERNS {
        pattern(spec, option)?;
    }
    let template = spec.log_options.get("tag").map_or("", String::as_str);
    match log_tag::expand(template, spec, id, hostname) {
        Err(problem @ (Problem::UnknownField { .. } | Problem::Unclosed { .. })) => {
            Err(Error::Invalid(format!("{PREFIX}: {problem}")))
        }
        Ok(_) | Err(Problem::NotUnderstood | Problem::TooLong) => Ok(()),
    }
}

/// The labels and variables that the options name, in that order; a name may come more than once.
///
/// Errors: a pattern is none, or too large.
pub fn named(spec: &ContainerSpec) -> Result<Vec<(&str, &str)>> {
    let list = |option: &str| spec.log_options.get(option).map_or("", String::as_str).split(',');
    let variables = || spec.environment.iter().filter_map(|line| line.split_once('='));
    let labels = || spec.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut found: Vec<(&str, &str)> = Vec::new();
    found.extend(list("labels").filter_map(|name| labels().find(|(label, _)| *label == name)));
    if let Some(pattern) = pattern(spec, "labels-regex")? {
        found.extend(labels().filter(|(name, _)| pattern.is_match(name)));
    }
    found.extend(list("env").filter_map(|name| variables().find(|(variable, _)| *variable == name)));
    if let Some(pattern) = pattern(spec, "env-regex")? {
        found.extend(variables().filter(|(name, _)| pattern.is_match(name)));
    }
    Ok(found)
}

/// The pattern of an option; `None` when it is not given.
fn pattern(spec: &ContainerSpec, option: &str) -> Result<Option<Regex>> {
    let Some(text) = spec.log_options.get(option).filter(|text| !text.is_empty()) else { return Ok(None) };
    if text.len() > PATTERN_TEXT_BYTES_MAX {
        let why = format!("{PREFIX}: {option} is longer than {PATTERN_TEXT_BYTES_MAX} bytes");
        return Err(Error::Invalid(why));
    }
    let built = RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
    built.map(Some).map_err(|error| Error::Invalid(format!("{PREFIX}: error parsing regexp: `{text}`: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(driver: &str, options: &[(&str, &str)]) -> ContainerSpec {
        ContainerSpec {
            name: "web".into(),
            log_driver: driver.into(),
            log_options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            labels: [("com.shop.tier".to_owned(), "front".to_owned()), ("other".to_owned(), "x".to_owned())].into(),
            environment: vec!["MODE=fast".into(), "MODEL=t".into(), "HOME=/".into()],
            ..ContainerSpec::default()
        }
    }

    #[test]
    fn names_are_given_one_by_one_and_by_patterns() {
        let spec =
            spec("", &[("labels", "other,nosuch"), ("env", "HOME"), ("labels-regex", "^com"), ("env-regex", "ODE")]);
        let names: Vec<_> = named(&spec).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["other", "com.shop.tier", "HOME", "MODE", "MODEL"]);
    }

    #[test]
    fn what_is_wrong_fails_the_start() {
        let check = |driver: &str, option: (&str, &str)| {
            check(&spec(driver, &[option]), "id", "host").map_err(|e| e.to_string())
        };
        for driver in ["", "json-file", "local"] {
            let unknown = check(driver, ("tag", "{{.Nope}}")).unwrap_err();
            assert!(unknown.starts_with("failed to initialize logging driver: template: log-tag:1:2"), "{unknown}");
            assert!(check(driver, ("tag", "{{.Name")).unwrap_err().ends_with("unclosed action"));
            check(driver, ("tag", "{{.Name}}")).unwrap();
            check(driver, ("tag", "{{upper .Name}}")).unwrap();
            assert!(check(driver, ("labels-regex", "(")).unwrap_err().contains("error parsing regexp"));
            check(driver, ("env-regex", "^A|B$")).unwrap();
        }
        check("none", ("tag", "{{.Nope}}")).unwrap();
    }

    #[test]
    fn patterns_are_bounded() {
        let named = |text: &str| named(&spec("", &[("env-regex", text)])).map(|found| found.len());
        assert!(named(&"a".repeat(PATTERN_TEXT_BYTES_MAX + 1)).is_err());
        assert!(named("a{1,20000}b?").is_err(), "one that takes too much once it is compiled");
        // Linear, whatever the pattern: one that engines of another kind never come back from.
        assert_eq!(named("^(M*)*(O*)*(D*)*E$").unwrap(), 1);
    }
}
