//! The failures of a test run, gathered so that they can be said once more at its end.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// How much of what a failed test said is repeated: the beginning has the reason, what follows is mostly logs.
const LINES_OF_A_FAILURE: usize = 40;
const FAILURES_REPEATED: usize = 20;

/// What failed tests said, picked from what `cargo test` prints (libtest's "---- NAME stdout ----").
#[derive(Default)]
struct Failures {
    found: Vec<(String, Vec<String>)>,
    inside: bool,
}

impl Failures {
    fn read(&mut self, line: &str) {
        let name = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" ----"));
        if let Some(name) = name.and_then(|name| name.strip_suffix(" stdout")) {
            self.inside = true;
            self.found.push((name.to_owned(), Vec::new()));
        } else if line == "failures:" || line.starts_with("test result:") {
            self.inside = false;
        } else if self.inside
            && let Some((_, lines)) = self.found.last_mut()
            && lines.len() < LINES_OF_A_FAILURE
            && !is_frame_outside(line)
        {
            lines.push(line.to_owned());
        }
    }

    fn told(&self) -> String {
        let mut text = String::new();
        for (name, lines) in self.found.iter().take(FAILURES_REPEATED) {
            text.push_str(&format!("\nfailed: {name}\n{}\n", lines.join("\n").trim()));
        }
        text
    }
}

/// Whether this is a line of a backtrace that says nothing of our own code: `  13: core::ops::…` with its
/// `  at /rustc/…` below it. What is ours stands at a relative path.
fn is_frame_outside(line: &str) -> bool {
    let text = line.trim_start();
    let is_number = |head: &str| !head.is_empty() && head.bytes().all(|byte| byte.is_ascii_digit());
    text.starts_with("at /") || text.split_once(": ").is_some_and(|(head, _)| is_number(head))
}

/// Runs `cargo test` with these arguments and shows what it prints. What failed is printed again at the end, since a
/// reader of a long log, or of its last part alone, looks there.
pub fn test(arguments: &[&str]) -> Result<()> {
    println!("+ cargo test {}", arguments.join(" "));
    let mut child = Command::new("cargo").arg("test").args(arguments).stdout(Stdio::piped()).spawn()?;
    let mut failures = Failures::default();
    if let Some(output) = child.stdout.take() {
        let mut out = std::io::stdout().lock();
        for line in BufReader::new(output).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            writeln!(out, "{line}")?;
            failures.read(&line);
        }
    }
    if child.wait()?.success() {
        return Ok(());
    }
    println!("{}", failures.told());
    bail!("cargo test {} failed", arguments.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_tests_said_is_found_between_what_else_is_printed() {
        let mut failures = Failures::default();
        let long = "log\n".repeat(LINES_OF_A_FAILURE);
        let text = format!(
            "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\nError: too late\n{long}---- m::b stdout ----\n\n\
             thread 'm::b' panicked\n\n\nfailures:\n    a\n    m::b\n\ntest result: FAILED. 0 passed\n"
        );
        text.lines().for_each(|line| failures.read(line));
        let told = failures.told();
        assert!(told.starts_with("\nfailed: a\nError: too late\nlog\n"), "{told}");
        assert!(told.ends_with("\nfailed: m::b\nthread 'm::b' panicked\n"), "{told}");
        assert_eq!(told.matches("log").count(), LINES_OF_A_FAILURE - 1);
    }

    #[test]
    fn of_a_backtrace_only_our_own_places_are_said_again() {
        let mut failures = Failures::default();
        let text = "---- a stdout ----\nError: too late\n\nStack backtrace:\n   0: anyhow::error::new\n\
                    \x20            at /registry/anyhow/src/lib.rs:1:2\n  12: end_to_end::a\n             at ./tests/a.rs:7:9\n";
        text.lines().for_each(|line| failures.read(line));
        assert_eq!(
            failures.told(),
            "\nfailed: a\nError: too late\n\nStack backtrace:\n             at ./tests/a.rs:7:9\n"
        );
    }
}
