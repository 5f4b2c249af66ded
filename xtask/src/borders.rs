//! Who may depend on whom, held against `cargo metadata`. An edge that is not here is a defect.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Each crate with the crates of the house that it may know, as in ARCHITECTURE.md.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("store", &[]),
    ("api", &[]),
    ("node", &[]),
    ("placement", &[]),
    ("simulator", &["placement"]),
    ("apiserver", &["store", "api"]),
    ("controllers", &["api", "placement"]),
    ("runtime", &["node"]),
    ("image", &["node"]),
    ("network", &[]),
    ("hypervisor", &[]),
    ("agent", &["api", "node", "runtime", "image", "network", "hypervisor"]),
    ("kubernetes", &["apiserver", "api", "node"]),
    ("docker", &["api", "node", "image"]),
    ("buildkit", &["image"]),
    ("registry", &["image"]),
    ("testkit", &[]),
    // Serves the API alone, to put load on it.
    ("bench-api", &["store", "apiserver", "kubernetes", "node"]),
    ("xtask", &[]),
];

/// Crates that tests may know on top: a model of the store stands in for a disk.
const TESTS_MAY_KNOW: &[(&str, &[&str])] = &[
    ("store", &["testkit"]),
    ("apiserver", &["testkit"]),
    ("image", &["testkit"]),
    ("placement", &["testkit"]),
    ("hypervisor", &["testkit"]),
    ("kubernetes", &["store", "testkit"]),
    ("docker", &["apiserver", "kubernetes", "store", "testkit"]),
];

/// The findings.
pub fn check() -> Result<Vec<String>> {
    let output = Command::new("cargo").args(["metadata", "--format-version", "1", "--no-deps", "--locked"]).output()?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let ours: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        // The binary wires everything.
        if name == "nuee" {
            continue;
        }
        let Some(allowed) = list(MAY_KNOW, name) else {
            findings.push(format!("xtask/src/borders.rs: crate {name} has no row; say whom it may know"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let in_tests = dependency["kind"] == "dev";
            let fine = allowed.contains(&target)
                || (in_tests && list(TESTS_MAY_KNOW, name).is_some_and(|list| list.contains(&target)));
            if ours.contains(&target) && !fine {
                findings.push(format!("crates/{name}/Cargo.toml: {name} must not know {target}"));
            }
        }
    }
    Ok(findings)
}

fn list(table: &'static [(&str, &'static [&str])], name: &str) -> Option<&'static [&'static str]> {
    table.iter().find(|(row, _)| *row == name).map(|(_, list)| *list)
}
