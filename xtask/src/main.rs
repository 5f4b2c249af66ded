//! Chores of the project: `cargo xtask tidy` checks the house rules, `cargo xtask ci` runs what CI runs.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

mod borders;
mod failures;
mod files;

const USAGE: &str = "usage: cargo xtask tidy|ci";

fn main() -> ExitCode {
    let word = std::env::args().nth(1).unwrap_or_default();
    let done = match word.as_str() {
        "tidy" => tidy(),
        "ci" => ci(),
        _ => Err(anyhow::anyhow!("{USAGE}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tidy() -> Result<()> {
    let mut findings = borders::check()?;
    findings.extend(files::check()?);
    if findings.is_empty() {
        println!("tidy: nothing to mend");
        return Ok(());
    }
    bail!("{}\ntidy: {} to mend", findings.join("\n"), findings.len())
}

fn ci() -> Result<()> {
    run("cargo", &["fmt", "--all", "--check"])?;
    tidy()?;
    run("cargo", &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    failures::test(&["--workspace", "--locked", "--no-fail-fast"])
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    println!("+ {program} {}", arguments.join(" "));
    let status = Command::new(program).args(arguments).status()?;
    if status.success() { Ok(()) } else { bail!("{program} {} failed", arguments.join(" ")) }
}
