//! What every source file keeps to: it says what it owns, it is not too long, and decision crates read no clock and do no I/O.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Past this a file hides something. Units: lines.
const MAX_LINES: usize = 700;
/// Words that a crate must not contain, with what to do instead.
const BANNED: &[(&str, &[&str], &str)] = &[
    (
        "crates/placement/src",
        &["std::fs", "std::net", "std::time", "tokio", "async fn"],
        "placement is pure: take it as an argument",
    ),
    ("crates/store/src", &["serde_json"], "the store knows bytes only"),
    ("crates/network/src", &["k8s_openapi", "kube::"], "the network knows no kinds"),
    ("crates/runtime/src", &["k8s_openapi", "kube::"], "the runtime knows no kinds"),
    ("crates/hypervisor/src", &["k8s_openapi", "kube::"], "the hypervisor knows no kinds"),
];

/// The findings.
pub fn check() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for root in ["crates", "bench", "xtask", "tests"] {
        for path in sources(Path::new(root))? {
            let text = fs::read_to_string(&path)?;
            let shown = path.display();
            if !text.starts_with("//!") && !text.starts_with("#!") {
                findings.push(format!("{shown}:1: begin with //! and say what the file owns"));
            }
            let lines = text.lines().count();
            if lines > MAX_LINES {
                findings.push(format!(
                    "{shown}:{lines}: over {MAX_LINES} lines; find what is hiding in it and give it a file"
                ));
            }
            for (place, words, instead) in BANNED {
                if path.starts_with(place) {
                    findings.extend(banned(&shown.to_string(), &text, words, instead));
                }
            }
        }
    }
    Ok(findings)
}

fn banned(shown: &str, text: &str, words: &[&str], instead: &str) -> Vec<String> {
    let code = text.lines().enumerate().take_while(|(_, line)| !line.contains("#[cfg(test)]"));
    code.filter(|(_, line)| !line.trim_start().starts_with("//"))
        .filter_map(|(index, line)| {
            let word = words.iter().find(|word| line.contains(**word))?;
            Some(format!("{shown}:{}: `{word}`: {instead}", index + 1))
        })
        .collect()
}

fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target" && name != "fuzz") {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
