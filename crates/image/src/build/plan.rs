//! What a Dockerfile is to do: its stages, what each needs of the others, and the numbers under which its steps are told.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::build::BuildOptions;
use crate::build::evaluate::{Globals, base_image, expand_platform, global_arg};
use crate::build::flags::Dialect;
use crate::build::lines::{Lines, error_at};
use crate::build::parse::{Instruction, Parsed, parse};
use crate::error::{Error, Result};

/// What a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Nothing.
    Scratch,
    /// An earlier stage.
    Stage(usize),
    /// An image.
    Image(String),
}

/// One stage.
#[derive(Clone, Debug)]
pub(super) struct StagePlan {
    /// From 0.
    pub number: usize,
    /// Lower case.
    pub name: Option<String>,
    /// What it starts from.
    pub base: Base,
    /// `os/architecture`; empty for the build's own.
    pub platform: String,
    /// Number of its FROM among all steps, from 0.
    pub first: usize,
    /// FROM and what follows.
    pub steps: Vec<Parsed>,
    /// Stages that its own words refer to; ONBUILD triggers may refer to more.
    pub needs: BTreeSet<usize>,
}

/// The whole.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// In the order of the file, up to the target for the classic builder.
    pub stages: Vec<StagePlan>,
    /// The stage whose image is the result.
    pub target: usize,
    /// Arguments of the whole build.
    pub globals: Globals,
    /// ARG lines before the first FROM.
    pub head: Vec<Parsed>,
    /// Steps in all.
    pub total: usize,
    /// Names that some ARG declares.
    pub declared: BTreeSet<String>,
}

/// Plans a Dockerfile that is cut into lines.
///
/// Errors: `Invalid` with the line.
pub(super) fn plan(lines: &Lines, options: &BuildOptions) -> Result<Plan> {
    let mut parsed = parse(lines, options.dialect)?;
    if parsed.is_empty() {
        return Err(match options.dialect {
            Dialect::Classic => {
                let name = if options.dockerfile.is_empty() { "Dockerfile" } else { &options.dockerfile };
                Error::Invalid(format!("the Dockerfile ({name}) cannot be empty"))
            }
            Dialect::BuildKit => Error::Invalid("the Dockerfile cannot be empty".to_owned()),
        });
    }
    let declared = declared(&parsed);
    let first_from = parsed.iter().position(|step| matches!(step.instruction, Instruction::From { .. }));
    let body = parsed.split_off(first_from.unwrap_or(parsed.len()));
    let head = parsed;
    let mut globals = Globals {
        build_args: options.build_args.clone(),
        args: platform_args(&options.platform),
        escape: lines.escape,
    };
    for step in &head {
        let Instruction::Arg(args) = &step.instruction else {
            return Err(Error::Invalid("no build stage in current context".to_owned()));
        };
        global_arg(&mut globals, args).map_err(|error| at(step.line, error))?;
    }
    if body.is_empty() {
        return Err(match options.dialect {
            Dialect::Classic => Error::Invalid("No image was generated. Is your Dockerfile empty?".to_owned()),
            Dialect::BuildKit => Error::Invalid("dockerfile contains no stages to build".to_owned()),
        });
    }
    let mut stages = cut_stages(body, head.len(), &globals)?;
    let target = target(&stages, &options.target)?;
    if options.dialect == Dialect::Classic {
        stages.truncate(target + 1);
    }
    add_labels(&mut stages[target], options);
    let total = head.len() + stages.iter().map(|stage| stage.steps.len()).sum::<usize>();
    Ok(Plan { stages, target, globals, head, total, declared })
}

/// The stages that must be built for the target.
pub(super) fn needed(plan: &Plan) -> BTreeSet<usize> {
    let mut needed = BTreeSet::from([plan.target]);
    let mut open = vec![plan.target];
    while let Some(number) = open.pop() {
        let Some(stage) = plan.stages.get(number) else { continue };
        open.extend(stage.needs.iter().copied().filter(|need| needed.insert(*need)));
    }
    needed
}

/// The earlier stage that a name or number means, seen from stage `before`.
pub(super) fn stage_named(stages: &[(Option<String>, usize)], before: usize, name: &str) -> Option<usize> {
    let lower = name.to_ascii_lowercase();
    let earlier = &stages[..before.min(stages.len())];
    let named = earlier.iter().rev().find(|(stage, _)| stage.as_deref() == Some(lower.as_str()));
    named.map(|(_, number)| *number)
}

fn cut_stages(body: Vec<Parsed>, head: usize, globals: &Globals) -> Result<Vec<StagePlan>> {
    let mut stages: Vec<StagePlan> = Vec::new();
    let mut names: Vec<(Option<String>, usize)> = Vec::new();
    for (i, step) in body.into_iter().enumerate() {
        let Instruction::From { image, name, platform } = &step.instruction else {
            if let Some(stage) = stages.last_mut() {
                let needs = references(&step.instruction)
                    .filter_map(|name| match name.parse::<usize>() {
                        Ok(number) => Some(number).filter(|number| *number < stage.number),
                        Err(_) => stage_named(&names, stage.number, name),
                    })
                    .collect::<Vec<_>>();
                stage.needs.extend(needs);
                stage.steps.push(step);
            }
            continue;
        };
        let line = step.line;
        let base_name = base_image(image, globals).map_err(|error| at(line, error))?;
        let platform = platform.as_deref().map_or(Ok(String::new()), |text| expand_platform(text, globals));
        let number = stages.len();
        let base = match stage_named(&names, number, &base_name) {
            Some(stage) => Base::Stage(stage),
            None if base_name == "scratch" => Base::Scratch,
            None => Base::Image(base_name),
        };
        let needs = match base {
            Base::Stage(stage) => BTreeSet::from([stage]),
            _ => BTreeSet::new(),
        };
        names.push((name.clone(), number));
        stages.push(StagePlan {
            number,
            name: name.clone(),
            base,
            platform: platform.map_err(|error| at(line, error))?,
            first: head + i,
            steps: vec![step],
            needs,
        });
    }
    Ok(stages)
}

/// Names of stages, images or contexts that an instruction copies or mounts from.
fn references(instruction: &Instruction) -> Box<dyn Iterator<Item = &str> + '_> {
    match instruction {
        Instruction::Copy(spec) => Box::new(spec.from.as_deref().into_iter()),
        Instruction::Run(spec) => Box::new(spec.mounts.iter().filter_map(|mount| mount.from.as_deref())),
        _ => Box::new(std::iter::empty()),
    }
}

fn target(stages: &[StagePlan], wanted: &str) -> Result<usize> {
    let wanted = wanted.to_ascii_lowercase();
    if wanted.is_empty() {
        return Ok(stages.len().saturating_sub(1));
    }
    let named = stages.iter().position(|stage| stage.name.as_deref() == Some(wanted.as_str()));
    named
        .or_else(|| wanted.parse().ok().filter(|number| *number < stages.len()))
        .ok_or_else(|| Error::Invalid(format!("failed to reach build target {wanted} in Dockerfile")))
}

/// `--label` is one more instruction at the end.
fn add_labels(stage: &mut StagePlan, options: &BuildOptions) {
    if options.labels.is_empty() {
        return;
    }
    let quote = |text: &str| format!("'{}'", text.replace('\'', "'\"'\"'"));
    let pairs: Vec<(String, String)> = options.labels.iter().map(|(k, v)| (quote(k), quote(v))).collect();
    let shown: Vec<String> = options.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let (line, last) = stage.steps.last().map_or((1, 1), |step| (step.line, step.last));
    let original = format!("LABEL {}", shown.join(" "));
    stage.steps.push(Parsed { line, last, comment: Vec::new(), original, instruction: Instruction::Label(pairs) });
}

fn declared(parsed: &[Parsed]) -> BTreeSet<String> {
    let args = parsed.iter().filter_map(|step| match &step.instruction {
        Instruction::Arg(args) => Some(args.iter().map(|(name, _)| name.clone())),
        _ => None,
    });
    args.flatten().collect()
}

/// The arguments that say what is built where: `TARGETPLATFORM` and its kin.
fn platform_args(platform: &str) -> BTreeMap<String, Option<String>> {
    let own = crate::types::Platform::default();
    let target = if platform.is_empty() { own.clone() } else { crate::archive::parse_platform(platform) };
    let mut args = BTreeMap::new();
    for (prefix, platform) in [("BUILD", &own), ("TARGET", &target)] {
        let mut whole = format!("{}/{}", platform.os, platform.architecture);
        if !platform.variant.is_empty() {
            whole.push_str(&format!("/{}", platform.variant));
        }
        args.insert(format!("{prefix}PLATFORM"), Some(whole));
        args.insert(format!("{prefix}OS"), Some(platform.os.clone()));
        args.insert(format!("{prefix}ARCH"), Some(platform.architecture.clone()));
        args.insert(format!("{prefix}VARIANT"), Some(platform.variant.clone()));
    }
    args
}

/// Puts the line into an error.
pub(super) fn at(line: usize, error: Error) -> Error {
    match error {
        Error::Invalid(why) => error_at(line, why),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::lines::cut;

    fn planned(text: &str, target: &str, dialect: Dialect) -> Result<Plan> {
        let options = BuildOptions { target: target.to_owned(), dialect, ..BuildOptions::default() };
        plan(&cut(text)?, &options)
    }

    const TEXT: &str = "ARG V=1\nFROM base:$V AS one\nRUN a\nFROM base AS two\nFROM one AS three\nRUN b\n\
        FROM scratch\nCOPY --from=three /a /\nRUN --mount=from=2,target=/x c\nCOPY --from=other /b /\n";

    #[test]
    fn stages_know_what_they_need() {
        let plan = planned(TEXT, "", Dialect::BuildKit).unwrap();
        assert_eq!((plan.stages.len(), plan.target, plan.total), (4, 3, 10));
        assert_eq!(plan.stages[0].base, Base::Image("base:1".to_owned()));
        assert_eq!(plan.stages[2].base, Base::Stage(0));
        assert_eq!(plan.stages[3].needs, BTreeSet::from([2]));
        assert_eq!(needed(&plan), BTreeSet::from([0, 2, 3]));
        assert_eq!(plan.stages[3].first, 6);
    }

    #[test]
    fn a_target_is_found_by_name_or_number() {
        assert_eq!(planned(TEXT, "TWO", Dialect::BuildKit).unwrap().target, 1);
        assert_eq!(planned(TEXT, "2", Dialect::BuildKit).unwrap().target, 2);
        let error = planned(TEXT, "nine", Dialect::BuildKit).unwrap_err().to_string();
        assert_eq!(error, "failed to reach build target nine in Dockerfile");
    }

    #[test]
    fn what_is_built_for_what_is_known_to_from_lines() {
        let plan = planned("FROM --platform=$BUILDPLATFORM base-$TARGETOS\n", "", Dialect::BuildKit).unwrap();
        assert_eq!(plan.stages[0].base, Base::Image("base-linux".to_owned()));
        assert!(plan.stages[0].platform.starts_with("linux/"), "{}", plan.stages[0].platform);
    }
}
