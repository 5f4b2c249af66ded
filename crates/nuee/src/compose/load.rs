//! Reads a project: files merged in order, variables replaced, `include` and `extends` resolved, profiles chosen. Evaluation
//! is pure but for the reader of files, which is given. Source: the Compose specification.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::interpolate::{self, Variables};

/// Deepest chain of `include` or `extends`.
const MAX_DEPTH: usize = 16;
/// Lists that an override replaces instead of adding to them.
const REPLACED: [&str; 4] = ["command", "entrypoint", "test", "healthcheck"];

/// Reads a file by its path.
pub type Reader<'a> = &'a dyn Fn(&Path) -> Result<String>;

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The files, in order.
    pub files: Vec<PathBuf>,
    /// The project's directory.
    pub directory: PathBuf,
    /// Its name, if it was given.
    pub name: Option<String>,
    /// Profiles that are on; `*` means all.
    pub profiles: Vec<String>,
    /// Variables.
    pub variables: Variables,
}

/// A project, whole.
#[derive(Clone, Debug)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Its files.
    pub files: Vec<PathBuf>,
    /// The document: `services`, `networks`, `volumes`, `secrets`, `configs`.
    pub document: Map<String, Value>,
}

impl Project {
    /// A part of the document; empty when it is not there.
    pub fn section(&self, name: &str) -> Map<String, Value> {
        self.document.get(name).and_then(Value::as_object).cloned().unwrap_or_default()
    }
}

/// Loads a project.
///
/// Errors: for what cannot be read, is no Compose file, or refers to what is not there.
pub fn load(request: &Request, read: Reader<'_>) -> Result<Project> {
    let mut document = Value::Object(Map::new());
    for file in &request.files {
        merge(&mut document, one(file, request, read, 0)?, "");
    }
    let Value::Object(mut document) = document else { bail!("a Compose file is a mapping") };
    let given = document.remove("name").and_then(|name| name.as_str().map(str::to_owned));
    let name = match (&request.name, given) {
        (Some(name), _) => name.clone(),
        (None, Some(name)) => name,
        (None, None) => normalised(&request.directory.file_name().unwrap_or_default().to_string_lossy()),
    };
    if name.is_empty() || name != normalised(&name) {
        bail!("invalid project name {name:?}: it must be lower case letters, digits, hyphens and underscores");
    }
    let mut project = Project { name, directory: request.directory.clone(), files: request.files.clone(), document };
    choose_profiles(&mut project, &request.profiles);
    check(&project)?;
    Ok(project)
}

fn normalised(name: &str) -> String {
    let kept = name.to_ascii_lowercase();
    let kept = kept.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect::<String>();
    kept.trim_start_matches(['-', '_']).to_owned()
}

/// Reads one file with what it includes and extends; paths in it become absolute.
fn one(file: &Path, request: &Request, read: Reader<'_>, depth: usize) -> Result<Value> {
    if depth > MAX_DEPTH {
        bail!("files include or extend each other deeper than {MAX_DEPTH} levels");
    }
    let text = read(file)?;
    // As Compose reads it: `y` and `no` are text, only `true` and `false` are not.
    let options = serde_saphyr::options! { strict_booleans: true };
    let mut document: Value = serde_saphyr::from_str_with_options(&text, options)
        .with_context(|| format!("{} is no YAML", file.display()))?;
    if document.is_null() {
        bail!("{} is empty", file.display());
    }
    interpolate::document(&mut document, &request.variables).with_context(|| format!("in {}", file.display()))?;
    let directory = if depth == 0 { request.directory.clone() } else { parent(file) };
    let mut whole = Value::Object(Map::new());
    for include in document.get("include").and_then(Value::as_array).into_iter().flatten() {
        for path in included(include) {
            merge(&mut whole, one(&directory.join(path), request, read, depth + 1)?, "");
        }
    }
    if let Some(map) = document.as_object_mut() {
        map.remove("include");
        map.remove("version");
    }
    absolute_paths(&mut document, &directory);
    extend(&mut document, file, &directory, request, read, depth)?;
    merge(&mut whole, document, "");
    Ok(whole)
}

fn parent(file: &Path) -> PathBuf {
    file.parent().map(Path::to_owned).unwrap_or_default()
}

fn included(include: &Value) -> Vec<String> {
    match include {
        Value::String(path) => vec![path.clone()],
        other => match other.get("path") {
            Some(Value::String(path)) => vec![path.clone()],
            Some(Value::Array(paths)) => paths.iter().filter_map(|p| p.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        },
    }
}

/// Whether a context is none of this machine's directories: the engine fetches it.
pub(super) fn is_remote(context: &str) -> bool {
    context.contains("://") || image::is_repository(context)
}

/// Paths of the host, as seen from the file's directory.
fn absolute_paths(document: &mut Value, directory: &Path) {
    let fix = |value: &mut Value| {
        if let Value::String(path) = value
            && !path.starts_with('/')
            && !is_remote(path)
        {
            *path = clean(&directory.join(&*path));
        }
    };
    let services = document.get_mut("services").and_then(Value::as_object_mut);
    for service in services.into_iter().flat_map(|services| services.values_mut()) {
        match service.get_mut("build") {
            Some(text @ Value::String(_)) => {
                fix(text);
                let context = text.clone();
                *text = json!({ "context": context });
            }
            Some(Value::Object(build)) => fix(build.entry("context").or_insert_with(|| json!("."))),
            _ => {}
        }
        match service.get_mut("env_file") {
            Some(text @ Value::String(_)) => {
                fix(text);
                *text = json!([text.clone()]);
            }
            Some(Value::Array(files)) => files.iter_mut().for_each(|file| match file.get_mut("path") {
                Some(path) => fix(path),
                None => fix(file),
            }),
            _ => {}
        }
        for volume in service.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
            absolute_volume(volume, directory);
        }
    }
    for section in ["secrets", "configs"] {
        let section = document.get_mut(section).and_then(Value::as_object_mut);
        for entry in section.into_iter().flat_map(|section| section.values_mut()) {
            if let Some(file) = entry.get_mut("file") {
                fix(file);
            }
        }
    }
}

fn absolute_volume(volume: &mut Value, directory: &Path) {
    match volume {
        Value::String(text) if text.starts_with('.') || text.starts_with('~') => {
            let (source, rest) = text.split_once(':').unwrap_or((text, ""));
            *text = format!("{}:{rest}", clean(&directory.join(source)));
        }
        Value::Object(map) if map.get("type").and_then(Value::as_str) == Some("bind") => {
            if let Some(Value::String(source)) = map.get_mut("source")
                && !source.starts_with('/')
            {
                *source = clean(&directory.join(&*source));
            }
        }
        _ => {}
    }
}

/// A path without `.` and `..`, by its words alone.
fn clean(path: &Path) -> String {
    let mut parts: Vec<std::ffi::OsString> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => parts.push(name.to_owned()),
            std::path::Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    format!("/{}", parts.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/"))
}

fn extend(
    document: &mut Value,
    file: &Path,
    directory: &Path,
    request: &Request,
    read: Reader<'_>,
    depth: usize,
) -> Result<()> {
    let Some(services) = document.get("services").and_then(Value::as_object).cloned() else { return Ok(()) };
    let mut done = Map::new();
    for name in services.keys() {
        let service = extended(name, &services, (file, directory), request, read, depth)?;
        done.insert(name.clone(), service);
    }
    document["services"] = Value::Object(done);
    Ok(())
}

/// A service with what it extends below it.
fn extended(
    name: &str,
    services: &Map<String, Value>,
    (file, directory): (&Path, &Path),
    request: &Request,
    read: Reader<'_>,
    depth: usize,
) -> Result<Value> {
    if depth > MAX_DEPTH {
        bail!("services extend each other deeper than {MAX_DEPTH} levels");
    }
    let service = services.get(name).with_context(|| format!("no service {name} in {}", file.display()))?;
    let Some(extends) = service.get("extends") else { return Ok(service.clone()) };
    let base_name = extends.as_str().or_else(|| extends.get("service").and_then(Value::as_str));
    let base_name = base_name.with_context(|| format!("service {name} extends nothing"))?;
    let mut base = match extends.get("file").and_then(Value::as_str) {
        Some(other) => {
            let path = directory.join(other);
            let document = one(&path, request, read, depth + 1)?;
            let found = document.get("services").and_then(|services| services.get(base_name)).cloned();
            found.with_context(|| format!("no service {base_name} in {}", path.display()))?
        }
        None => extended(base_name, services, (file, directory), request, read, depth + 1)?,
    };
    let mut own = service.clone();
    if let Some(map) = own.as_object_mut() {
        map.remove("extends");
    }
    merge(&mut base, own, "");
    Ok(base)
}

/// Lays one document over another: mappings are merged, lists added to, all else replaced.
pub fn merge(below: &mut Value, above: Value, key: &str) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                match below.get_mut(&key) {
                    Some(held) => merge(held, value, &key),
                    None => drop(below.insert(key, value)),
                }
            }
        }
        (Value::Array(below), Value::Array(above)) if !REPLACED.contains(&key) => {
            for item in above {
                below.retain(|held| !same_entry(held, &item, key));
                below.push(item);
            }
        }
        // The same thing in its two forms: `A=b` lines and a mapping.
        (below, above) if matches!(key, "environment" | "labels" | "args") => {
            let mut merged = pairs(below);
            merged.extend(pairs(&above));
            *below = Value::Object(merged);
        }
        (below, above) => *below = above,
    }
}

/// Whether a later entry of a list stands for an earlier one.
fn same_entry(held: &Value, item: &Value, key: &str) -> bool {
    if held == item {
        return true;
    }
    match key {
        "environment" | "labels" | "args" => {
            let name = |value: &Value| value.as_str().map(|text| text.split('=').next().unwrap_or(text).to_owned());
            name(held).is_some() && name(held) == name(item)
        }
        "volumes" => super::service::volume_target(held) == super::service::volume_target(item),
        _ => false,
    }
}

/// `NAME=value` lines or a mapping, as a mapping; a name alone has no value.
pub fn pairs(value: &Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), text_or_null(value))).collect(),
        Value::Array(lines) => lines
            .iter()
            .filter_map(Value::as_str)
            .map(|line| match line.split_once('=') {
                Some((name, value)) => (name.to_owned(), json!(value)),
                None => (line.to_owned(), Value::Null),
            })
            .collect(),
        _ => Map::new(),
    }
}

fn text_or_null(value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::String(text) => json!(text),
        other => json!(other.to_string()),
    }
}

fn choose_profiles(project: &mut Project, on: &[String]) {
    let active = |service: &Value| {
        let profiles: Vec<&str> =
            service.get("profiles").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        profiles.is_empty() || on.iter().any(|name| name == "*" || profiles.contains(&name.as_str()))
    };
    if let Some(services) = project.document.get_mut("services").and_then(Value::as_object_mut) {
        services.retain(|_, service| active(service));
    }
}

fn check(project: &Project) -> Result<()> {
    let services = project.section("services");
    if services.is_empty() {
        bail!("no service selected");
    }
    for (name, service) in &services {
        if service.get("image").is_none() && service.get("build").is_none() {
            bail!("service {name:?} has neither an image nor a build context specified: invalid compose project");
        }
        for (dependency, _, required) in super::service::dependencies(service) {
            if required && !services.contains_key(&dependency) {
                bail!("service {name:?} depends on undefined service {dependency:?}: invalid compose project");
            }
        }
        for (section, key) in [("networks", "networks"), ("secrets", "secrets"), ("configs", "configs")] {
            let known = project.section(section);
            for used in super::service::names(service.get(key)) {
                if used != "default" && !known.contains_key(&used) {
                    bail!("service {name:?} refers to undefined {key} {used}: invalid compose project");
                }
            }
        }
    }
    super::service::ordered(&services).map(drop)
}

/// Names of all services that these need, with themselves; all when none are named.
pub fn with_dependencies(services: &Map<String, Value>, wanted: &[String]) -> Result<BTreeSet<String>> {
    if wanted.is_empty() {
        return Ok(services.keys().cloned().collect());
    }
    let mut found = BTreeSet::new();
    let mut open = wanted.to_vec();
    while let Some(name) = open.pop() {
        let service = services.get(&name).with_context(|| format!("no such service: {name}"))?;
        if found.insert(name) {
            open.extend(super::service::dependencies(service).into_iter().map(|(name, ..)| name));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(files: &[(&str, &str)], profiles: &[&str]) -> Result<Project> {
        let read = |path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new("/p").join(name) == path);
            found.map(|(_, text)| (*text).to_owned()).with_context(|| format!("no {}", path.display()))
        };
        let request = Request {
            files: files
                .iter()
                .filter(|(name, _)| name.starts_with('c'))
                .map(|(n, _)| Path::new("/p").join(n))
                .collect(),
            directory: "/p".into(),
            profiles: profiles.iter().map(|p| (*p).to_owned()).collect(),
            variables: Variables::from([("TAG".into(), "7".into())]),
            ..Request::default()
        };
        load(&request, &read)
    }

    #[test]
    fn overrides_are_merged_and_variables_replaced() {
        let base = "services:\n  a:\n    image: x:${TAG}\n    command: [one]\n    environment: [A=1, B=2]\n    ports: ['1:1']\n    build: ./dir\n";
        let over = "services:\n  a:\n    command: [two]\n    environment: {B: 3}\n    ports: ['2:2']\n";
        let project = loaded(&[("c1", base), ("c2", over)], &[]).unwrap();
        let a = &project.section("services")["a"];
        assert_eq!((a["image"].as_str(), a["command"][0].as_str()), (Some("x:7"), Some("two")));
        assert_eq!(a["environment"], json!({ "A": "1", "B": "3" }));
        assert_eq!(a["ports"], json!(["1:1", "2:2"]));
        assert_eq!((a["build"]["context"].as_str(), project.name.as_str()), (Some("/p/dir"), "p"));
    }

    #[test]
    fn extends_include_and_profiles() {
        let files = [
            (
                "c",
                "include: [other]\nservices:\n  a: {extends: {service: base, file: b}, image: y}\n  d: {image: z, profiles: [debug]}\n",
            ),
            ("other", "services: {o: {image: o}}\n"),
            ("b", "services: {base: {image: x, labels: {l: v}}}\n"),
        ];
        let services = loaded(&files, &[]).unwrap().section("services");
        assert_eq!(services.keys().collect::<Vec<_>>(), ["a", "o"]);
        assert_eq!((&services["a"]["image"], &services["a"]["labels"]["l"]), (&json!("y"), &json!("v")));
        assert_eq!(loaded(&files, &["debug"]).unwrap().section("services").len(), 3);
    }

    #[test]
    fn what_makes_no_project_is_refused() {
        for (text, why) in [
            ("services: {}\n", "no service selected"),
            ("services: {a: {command: x}}\n", "neither an image nor a build context"),
            ("services: {a: {image: x, depends_on: [b]}}\n", "undefined service \"b\""),
            ("services: {a: {image: x, networks: [n]}}\n", "undefined networks n"),
            ("services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}\n", "depend on each other"),
            ("services: {a: {image: x, extends: a}}\n", "deeper than"),
            ("services: {a: {image: '${X:?no}'}}\n", "in /p/c"),
        ] {
            let error = format!("{:#}", loaded(&[("c", text)], &[]).unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
