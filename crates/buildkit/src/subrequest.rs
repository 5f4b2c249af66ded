//! What a client may ask of a Dockerfile in place of a build (`docker buildx build --print`): its targets, what they take, and
//! what can be asked. Answers are JSON for clients that lay it out themselves, and text for those that cannot.
//! `Source:` BuildKit, frontend/subrequests.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::Error;
use image::build::BuildOptions;
use image::build::outline::{self, Outline, Place, Target, Wanted};
use serde_json::{Value, json};

/// The form of all answers.
const VERSION: &str = "1.0.0";
/// What can be asked: name and what it tells.
const REQUESTS: [(&str, &str); 3] = [
    ("frontend.outline", "List all parameters current build target supports"),
    ("frontend.targets", "List all targets current build supports"),
    (DESCRIBE, "List available subrequest types"),
];
const DESCRIBE: &str = "frontend.subrequests.describe";

/// What goes with a result.
pub type Metadata = HashMap<String, Vec<u8>>;

/// Whether a question is known.
pub fn is_known(request: &str) -> bool {
    REQUESTS.iter().any(|(name, _)| *name == request)
}

/// Whether a question is about a Dockerfile.
pub fn needs_dockerfile(request: &str) -> bool {
    request != DESCRIBE
}

/// Answers a question that is known.
///
/// Errors: the Dockerfile is malformed, or has no such target.
pub fn answer(request: &str, dockerfile: &str, options: &BuildOptions) -> Result<Metadata, Error> {
    let (value, text) = match request {
        "frontend.outline" => {
            let outline = outline::outline(dockerfile, options)?;
            (outline_value(&outline, dockerfile), outline_text(&outline))
        }
        "frontend.targets" => {
            let targets = outline::targets(dockerfile, options)?;
            (targets_value(&targets, dockerfile), targets_text(&targets))
        }
        _ => described(),
    };
    let value = serde_json::to_vec_pretty(&value).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(HashMap::from([
        ("result.json".to_owned(), value),
        ("result.txt".to_owned(), text.into_bytes()),
        ("version".to_owned(), VERSION.as_bytes().to_vec()),
    ]))
}

fn described() -> (Value, String) {
    let one = |(name, description): &(&str, &str)| {
        let opts = if *name == "frontend.outline" {
            json!([{ "Name": "target", "Description": "Target build stage" }])
        } else {
            json!([])
        };
        let metadata = json!([{ "Name": "result.json" }, { "Name": "result.txt" }]);
        json!({
            "Name": name, "Version": VERSION, "Type": "rpc", "Description": description, "Opts": opts,
            "Inputs": null, "Metadata": metadata, "Refs": null,
        })
    };
    let rows = REQUESTS.map(|(name, description)| {
        let name = name.trim_start_matches("frontend.");
        vec![name.to_owned(), VERSION.to_owned(), description.to_owned()]
    });
    (Value::Array(REQUESTS.iter().map(one).collect()), table(&["NAME", "VERSION", "DESCRIPTION"], &rows))
}

fn location((first, last): Place) -> Value {
    json!({ "ranges": [{ "start": { "line": first }, "end": { "line": last } }] })
}

fn targets_value(targets: &[Target], dockerfile: &str) -> Value {
    let one = |target: &Target| {
        json!({
            "name": target.name, "default": target.default, "description": target.description, "base": target.base,
            "platform": target.platform, "location": location(target.place),
        })
    };
    json!({ "targets": targets.iter().map(one).collect::<Vec<_>>(), "sources": [STANDARD.encode(dockerfile)] })
}

fn targets_text(targets: &[Target]) -> String {
    let row = |target: &Target| {
        let name = match (target.name.as_str(), target.default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        vec![name, target.description.clone()]
    };
    let named = targets.iter().filter(|target| target.default || !target.name.is_empty());
    table(&["TARGET", "DESCRIPTION"], &named.map(row).collect::<Vec<_>>())
}

fn outline_value(outline: &Outline, dockerfile: &str) -> Value {
    let argument = |argument: &outline::Argument| {
        json!({
            "name": argument.name, "description": argument.description, "value": argument.value,
            "location": location(argument.place),
        })
    };
    let wanted = |list: &[Wanted]| {
        let one = |w: &Wanted| json!({ "name": w.name, "required": w.required, "location": location(w.place) });
        list.iter().map(one).collect::<Vec<_>>()
    };
    let cache = |wanted: &Wanted| json!({ "ID": wanted.name, "location": location(wanted.place) });
    json!({
        "name": outline.name,
        "description": outline.description,
        "args": outline.arguments.iter().map(argument).collect::<Vec<_>>(),
        "secrets": wanted(&outline.secrets),
        "ssh": wanted(&outline.agents),
        "cache": outline.caches.iter().map(cache).collect::<Vec<_>>(),
        "sources": [STANDARD.encode(dockerfile)],
    })
}

fn outline_text(outline: &Outline) -> String {
    let mut parts = Vec::new();
    if !outline.name.is_empty() {
        parts.push(format!("TARGET: {}\n", outline.name));
    }
    if !outline.description.is_empty() {
        parts.push(format!("DESCRIPTION: {}\n", outline.description));
    }
    let arguments = outline.arguments.iter().map(|a| vec![a.name.clone(), a.value.clone(), a.description.clone()]);
    parts.push(table(&["BUILD ARG", "VALUE", "DESCRIPTION"], &arguments.collect::<Vec<_>>()));
    for (title, list) in [("SECRET", &outline.secrets), ("SSH", &outline.agents)] {
        let row = |w: &Wanted| vec![w.name.clone(), if w.required { "true" } else { "" }.to_owned()];
        parts.push(table(&[title, "REQUIRED"], &list.iter().map(row).collect::<Vec<_>>()));
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// Rows below titles, in columns; nothing when there are no rows.
/// Most letters to which a cell is filled up; a longer one pushes its neighbours aside.
const CELL_MAX: usize = 60;

fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let titles: Vec<String> = titles.iter().map(|title| (*title).to_owned()).collect();
    let lines = || std::iter::once(&titles).chain(rows);
    let width = |column: usize| {
        lines()
            .filter_map(|row| row.get(column))
            .map(String::len)
            .filter(|length| *length <= CELL_MAX)
            .max()
            .unwrap_or(0)
            + 3
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(request: &str) -> (Value, String) {
        let options = BuildOptions { dialect: image::build::Dialect::BuildKit, ..BuildOptions::default() };
        let text = "# V is new\nARG V=1\nFROM a:$V AS base\nFROM base\nRUN --mount=type=secret,id=s,required x\n";
        let metadata = answer(request, text, &options).unwrap();
        let value = serde_json::from_slice(&metadata["result.json"]).unwrap();
        (value, String::from_utf8(metadata["result.txt"].clone()).unwrap())
    }

    #[test]
    fn questions_are_answered_as_data_and_as_text() {
        let (value, text) = told("frontend.targets");
        assert_eq!(value["targets"][0]["base"], "a:$V");
        assert_eq!(text, "TARGET      DESCRIPTION\nbase\n(default)\n");
        let (value, text) = told("frontend.outline");
        assert_eq!(value["args"][0]["location"]["ranges"][0]["start"]["line"], 2);
        let wanted =
            "BUILD ARG   VALUE   DESCRIPTION\nV           1       is new\n\nSECRET   REQUIRED\ns        true\n";
        assert_eq!(text, wanted);
        let (value, text) = told(DESCRIBE);
        assert_eq!(value.as_array().map(Vec::len), Some(REQUESTS.len()));
        assert!(text.contains("subrequests.describe"), "{text}");
        assert!(!is_known("frontend.other"));
    }
}
