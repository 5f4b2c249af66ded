//! `nuee plan`: what would the consolidator do with this pool?

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use placement::plan::explain::explain;
use placement::plan::{Plan, Policy, Snapshot, Step, When, document, plan};
use serde_json::{Value, json};

use super::Format;

/// Largest snapshot that is read. Units: bytes.
const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;

/// Flags of `nuee plan`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The pool: JSON with `machines` and `workloads`
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Say why for each step
    #[arg(long)]
    explain: bool,
    /// Most moves
    #[arg(long, value_name = "COUNT")]
    moves_max: Option<usize>,
    /// Most machines that go to sleep
    #[arg(long, value_name = "COUNT")]
    sleeps_max: Option<usize>,
    /// Let balloons take memory where memory keeps machines on
    #[arg(long)]
    balloon: bool,
    /// Wake machines ahead of forecast load
    #[arg(long)]
    wake_ahead: bool,
    /// Relieve only; empty no machine
    #[arg(long)]
    relief_only: bool,
    #[command(flatten)]
    output: super::Output,
}

/// Makes the plan and prints it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let snapshot = read(&arguments.from)?;
    let mut policy = Policy { use_balloon: arguments.balloon, wake_ahead: arguments.wake_ahead, ..Policy::default() };
    policy.moves_max = arguments.moves_max.unwrap_or(policy.moves_max);
    policy.sleeps_max = arguments.sleeps_max.unwrap_or(policy.sleeps_max);
    if arguments.relief_only {
        policy.when = When::Never;
    }
    let plan = plan(&snapshot, &policy, 0);
    match arguments.output.output {
        Format::Json => {
            let mut value = as_json(&snapshot, &plan);
            if arguments.explain {
                value["explanation"] = explain(&snapshot, &plan).lines().map(str::trim_start).collect();
            }
            println!("{}", serde_json::to_string_pretty(&value)?);
        }
        Format::Text if arguments.explain => print!("{}", explain(&snapshot, &plan)),
        Format::Text => {
            for (number, step) in (1..).zip(&plan.steps) {
                println!("{number:4}. {}", in_words(&snapshot, step));
            }
            let steps = plan.steps.len();
            let Plan { watts_before, watts_after, watts_bound, .. } = &plan;
            println!(
                "{steps} steps; {watts_before:.0} W now, {watts_after:.0} W after, never below {watts_bound:.0} W"
            );
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Snapshot> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open the snapshot {shown}"))?;
    let text = super::read_bounded(file, SNAPSHOT_BYTES_MAX, &format!("the snapshot {shown}"))?;
    document::read(&text).with_context(|| format!("the snapshot {shown} is refused"))
}

/// A step without its reason.
fn in_words(snapshot: &Snapshot, step: &Step) -> String {
    let machine = |index: &usize| snapshot.machines()[*index].name.as_str();
    let id = |index: &usize| snapshot.workloads()[*index].id.as_str();
    match step {
        Step::Balloon { workload, memory } => format!("balloon {} down to {memory:.0}", id(workload)),
        Step::Wake { machine: index } => format!("wake {}", machine(index)),
        Step::Sleep { machine: index } => format!("sleep {}", machine(index)),
        Step::Move { workload, from, to, .. } => {
            format!("move {} from {} to {}", id(workload), machine(from), machine(to))
        }
    }
}

fn as_json(snapshot: &Snapshot, plan: &Plan) -> Value {
    let machine = |index: &usize| snapshot.machines()[*index].name.as_str();
    let id = |index: &usize| snapshot.workloads()[*index].id.as_str();
    let step = |step: &Step| match step {
        Step::Balloon { workload, memory } => json!({ "step": "balloon", "workload": id(workload), "memory": memory }),
        Step::Wake { machine: index } => json!({ "step": "wake", "machine": machine(index) }),
        Step::Sleep { machine: index } => json!({ "step": "sleep", "machine": machine(index) }),
        Step::Move { workload, from, to, reason } => json!({
            "step": "move", "workload": id(workload), "from": machine(from), "to": machine(to),
            "reason": format!("{reason:?}").to_lowercase(),
        }),
    };
    json!({
        "steps": plan.steps.iter().map(step).collect::<Vec<_>>(),
        "watts_before": plan.watts_before,
        "watts_after": plan.watts_after,
        "watts_bound": plan.watts_bound,
        "overloaded": plan.overloaded.iter().map(machine).collect::<Vec<_>>(),
        "given_up": plan.given_up,
    })
}
