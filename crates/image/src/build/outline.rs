//! What a Dockerfile says of itself, without building anything: its targets, and what a build of one takes. Pure.
//! `Source:` BuildKit, frontend/dockerfile/dockerfile2llb/outline.go and frontend/subrequests.

use std::collections::{BTreeMap, BTreeSet};

use crate::build::BuildOptions;
use crate::build::evaluate::Globals;
use crate::build::expand::expand;
use crate::build::flags::MountKind;
use crate::build::lines::cut;
use crate::build::parse::{Instruction, Parsed};
use crate::build::plan::{self, Plan};
use crate::error::Result;

/// Where something stands: the first and last line of an instruction, from 1.
pub type Place = (usize, usize);

/// A stage that can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name; empty for a stage without one.
    pub name: String,
    /// Whether it is built when none is named.
    pub default: bool,
    /// The comment above it that begins with its name.
    pub description: String,
    /// What it starts from, as the Dockerfile has it.
    pub base: String,
    /// `--platform`, as the Dockerfile has it.
    pub platform: String,
    /// Where its FROM stands.
    pub place: Place,
}

/// What a build of a target takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target's name.
    pub name: String,
    /// The comment above it that begins with its name.
    pub description: String,
    /// Arguments, in the order of the file.
    pub arguments: Vec<Argument>,
    /// Secrets, by name.
    pub secrets: Vec<Wanted>,
    /// SSH agents, by name.
    pub agents: Vec<Wanted>,
    /// Cache mounts, by name.
    pub caches: Vec<Wanted>,
}

/// An argument of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Its value in this build.
    pub value: String,
    /// The comment above it that begins with its name.
    pub description: String,
    /// Where it is declared.
    pub place: Place,
}

/// Something that steps of a build mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Whether the build fails without it.
    pub required: bool,
    /// Where it is first mounted.
    pub place: Place,
}

/// All targets, in the order of the file.
///
/// Errors: `Invalid` with the line.
pub fn targets(dockerfile: &str, options: &BuildOptions) -> Result<Vec<Target>> {
    let lines = cut(dockerfile)?;
    let plan = plan::plan(&lines, &BuildOptions { target: String::new(), ..options.clone() })?;
    let last = plan.stages.len().saturating_sub(1);
    let target = |stage: &plan::StagePlan| {
        let from = stage.steps.first()?;
        let Instruction::From { image, name, platform } = &from.instruction else { return None };
        let name = name.clone().unwrap_or_default();
        Some(Target {
            default: stage.number == last,
            description: described(from, &name),
            base: image.clone(),
            platform: platform.clone().unwrap_or_default(),
            place: (from.line, from.last),
            name,
        })
    };
    Ok(plan.stages.iter().filter_map(target).collect())
}

/// What the build of the options' target takes.
///
/// Errors: `Invalid` with the line; there is no such target.
pub fn outline(dockerfile: &str, options: &BuildOptions) -> Result<Outline> {
    let lines = cut(dockerfile)?;
    let plan = plan::plan(&lines, options)?;
    let needed = plan::needed(&plan);
    let stages = || plan.stages.iter().filter(|stage| needed.contains(&stage.number));
    let mut outline = Outline { arguments: arguments(&plan, &needed)?, ..Outline::default() };
    for step in stages().flat_map(|stage| &stage.steps) {
        let Instruction::Run(run) = &step.instruction else { continue };
        for mount in &run.mounts {
            let (list, unnamed) = match mount.kind {
                MountKind::Secret => (&mut outline.secrets, last_name(mount.target.as_deref())),
                MountKind::Ssh => (&mut outline.agents, "default"),
                MountKind::Cache => (&mut outline.caches, mount.target.as_deref().unwrap_or_default()),
                _ => continue,
            };
            let name = mount.id.clone().unwrap_or_else(|| unnamed.to_owned());
            match list.iter_mut().find(|wanted| wanted.name == name) {
                Some(wanted) => wanted.required |= mount.required,
                None => list.push(Wanted { name, required: mount.required, place: (step.line, step.last) }),
            }
        }
    }
    if let Some(from) = plan.stages.get(plan.target).and_then(|stage| stage.steps.first())
        && let Instruction::From { name: Some(name), .. } = &from.instruction
    {
        outline.name.clone_from(name);
        outline.description = described(from, name);
    }
    Ok(outline)
}

fn last_name(path: Option<&str>) -> &str {
    path.and_then(|path| path.rsplit('/').next()).unwrap_or_default()
}

/// The words that follow a name in the first comment that begins with it.
fn described(step: &Parsed, name: &str) -> String {
    let rest = |line: &String| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
    if name.is_empty() { String::new() } else { step.comment.iter().find_map(rest).unwrap_or_default() }
}

/// Arguments that the needed stages declare, and those before the first FROM that these or their base images use.
fn arguments(plan: &Plan, needed: &BTreeSet<usize>) -> Result<Vec<Argument>> {
    let mut used = BTreeSet::new();
    let mut found: BTreeMap<String, Argument> = BTreeMap::new();
    for step in plan.stages.iter().filter(|stage| needed.contains(&stage.number)).flat_map(|stage| &stage.steps) {
        match &step.instruction {
            Instruction::From { image, platform, .. } => {
                for text in [Some(image), platform.as_ref()].into_iter().flatten() {
                    used.extend(variables(text, &plan.globals)?);
                }
            }
            Instruction::Arg(args) => {
                for (name, default) in args {
                    used.insert(name.clone());
                    // Without a default it is the one before the first FROM, if that is there.
                    if default.is_some() || !plan.globals.args.contains_key(name) {
                        let given = plan.globals.build_args.get(name).cloned().flatten();
                        let value = given.or_else(|| default.clone()).unwrap_or_default();
                        found.entry(name.clone()).or_insert_with(|| argument(step, name, value));
                    }
                }
            }
            _ => {}
        }
    }
    for step in plan.head.iter().rev() {
        let Instruction::Arg(args) = &step.instruction else { continue };
        for (name, default) in args.iter().rev().filter(|(name, _)| used.contains(name)).cloned().collect::<Vec<_>>() {
            used.extend(variables(default.as_deref().unwrap_or_default(), &plan.globals)?);
            let value = plan.globals.args.get(&name).cloned().flatten().unwrap_or_default();
            found.entry(name.clone()).or_insert_with(|| argument(step, &name, value));
        }
    }
    let mut arguments: Vec<Argument> = found.into_values().collect();
    arguments.sort_by_key(|argument| argument.place);
    Ok(arguments)
}

fn argument(step: &Parsed, name: &str, value: String) -> Argument {
    Argument { name: name.to_owned(), value, description: described(step, name), place: (step.line, step.last) }
}

/// The names that a text refers to.
fn variables(text: &str, globals: &Globals) -> Result<BTreeSet<String>> {
    let names = std::cell::RefCell::new(BTreeSet::new());
    expand(text, globals.escape, &|name| {
        names.borrow_mut().insert(name.to_owned());
        globals.args.get(name).cloned().flatten()
    })?;
    Ok(names.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::flags::Dialect;

    const TEXT: &str = "# syntax=docker/dockerfile:1\n# VERSION is of all\nARG VERSION=1\nARG IMAGE=base:${VERSION}\n\
        ARG IDLE=x\n# tools has what builds\nFROM ${IMAGE} AS tools\n# JOBS run at once\nARG JOBS=2\n\
        RUN --mount=type=secret,id=token,required --mount=type=ssh --mount=type=cache,target=/c \\\n  make\n\
        FROM scratch AS other\nRUN --mount=type=secret,id=never x\n\
        FROM --platform=linux/amd64 tools\nARG VERSION\nRUN --mount=type=secret,target=/run/secrets/plain x\n";

    fn options(target: &str) -> BuildOptions {
        let build_args = BTreeMap::from([("JOBS".to_owned(), Some("9".to_owned()))]);
        BuildOptions { dialect: Dialect::BuildKit, target: target.to_owned(), build_args, ..BuildOptions::default() }
    }

    #[test]
    fn targets_are_told_as_the_file_has_them() {
        let found = targets(TEXT, &options("")).unwrap();
        let told = |t: &Target| (t.name.clone(), t.default, t.description.clone(), t.base.clone(), t.platform.clone());
        let wanted = [
            ("tools", false, "has what builds", "${IMAGE}", ""),
            ("other", false, "", "scratch", ""),
            ("", true, "", "tools", "linux/amd64"),
        ];
        let wanted = wanted.map(|(name, default, description, base, platform)| {
            (name.to_owned(), default, description.to_owned(), base.to_owned(), platform.to_owned())
        });
        assert_eq!(found.iter().map(told).collect::<Vec<_>>(), wanted);
        assert_eq!(found[0].place, (7, 7));
        assert!(targets("FROM a\nFOO\n", &options("")).is_err());
    }

    #[test]
    fn an_outline_has_what_the_needed_stages_take_and_no_more() {
        let found = outline(TEXT, &options("")).unwrap();
        let told: Vec<_> = found.arguments.iter().map(|a| (a.name.as_str(), a.value.as_str(), a.place.0)).collect();
        assert_eq!(told, [("VERSION", "1", 3), ("IMAGE", "base:1", 4), ("JOBS", "9", 9)]);
        assert_eq!(found.arguments[0].description, "is of all");
        let told: Vec<_> = found.secrets.iter().map(|s| (s.name.as_str(), s.required, s.place)).collect();
        assert_eq!(told, [("token", true, (10, 11)), ("plain", false, (16, 16))]);
        assert_eq!((found.agents[0].name.as_str(), found.caches[0].name.as_str()), ("default", "/c"));
        let tools = outline(TEXT, &options("tools")).unwrap();
        assert_eq!((tools.name.as_str(), tools.description.as_str()), ("tools", "has what builds"));
        assert_eq!(tools.secrets.len(), 1);
        assert!(outline(TEXT, &options("nowhere")).is_err());
    }
}
