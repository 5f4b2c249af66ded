//! `nuee plan`: what would the consolidator do with this pool?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use placement::plan::explain::explain;
use placement::plan::snapshot::{Forecast, Machine, MachineState, Snapshot, Workload};
use placement::plan::{Plan, Policy, Step, When, plan};
use placement::power::PowerCurve;
use serde::Deserialize;
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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pool {
    machines: Vec<MachineRow>,
    #[serde(default)]
    workloads: Vec<WorkloadRow>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MachineRow {
    name: String,
    cpu: f64,
    memory: f64,
    #[serde(default)]
    disk: f64,
    #[serde(default)]
    network: f64,
    core_cpu: Option<f64>,
    power_watts: Vec<f64>,
    #[serde(default)]
    sleep_watts: f64,
    #[serde(default)]
    wake_seconds: f64,
    #[serde(default)]
    state: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    protected: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WorkloadRow {
    id: String,
    machine: Option<String>,
    cpu: f64,
    memory: f64,
    #[serde(default)]
    disk: f64,
    #[serde(default)]
    network: f64,
    expected_cpu: Option<f64>,
    deviation: Option<f64>,
    least_memory: Option<f64>,
    #[serde(default = "yes")]
    movable: bool,
    #[serde(default)]
    move_seconds: f64,
    #[serde(default)]
    selector: BTreeMap<String, String>,
    #[serde(default)]
    apart: Vec<u32>,
}

/// Most that a machine can draw: beyond it someone has mistaken the unit. Units: watts.
const WATTS_MAX: f64 = 1e9;
/// Deviation of a workload that says nothing of it, as a share of what it uses.
const DEVIATION_SHARE: f64 = 0.2;

fn yes() -> bool {
    true
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
    let mut plan = plan(&snapshot, &policy, 0);
    // A sum of nothing is minus zero.
    for watts in [&mut plan.watts_before, &mut plan.watts_after, &mut plan.watts_bound] {
        *watts += 0.0;
    }
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
    let mut text = Vec::new();
    let size = file.take(SNAPSHOT_BYTES_MAX).read_to_end(&mut text);
    if size.with_context(|| format!("cannot read the snapshot {shown}"))? as u64 == SNAPSHOT_BYTES_MAX {
        bail!("the snapshot {shown} is larger than {SNAPSHOT_BYTES_MAX} bytes");
    }
    let pool = serde_json::from_slice(&text).with_context(|| format!("{shown} is no snapshot"))?;
    snapshot(pool).with_context(|| format!("{shown} is refused"))
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

fn snapshot(file: Pool) -> Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    let mut indices = HashMap::new();
    for row in file.machines {
        check_name("machine", &row.name)?;
        let name = row.name.clone();
        let index = snapshot.add_machine(machine(row)?)?;
        if indices.insert(name.clone(), index).is_some() {
            bail!("machine {name} is there twice");
        }
    }
    let mut ids = HashSet::new();
    for row in file.workloads {
        check_name("workload", &row.id)?;
        if !ids.insert(row.id.clone()) {
            bail!("workload {} is there twice", row.id);
        }
        let place = row.machine.as_ref().map(|name| {
            indices.get(name).copied().with_context(|| format!("workload {}: there is no machine {name}", row.id))
        });
        let place = place.transpose()?;
        if let Some(asleep) = place.filter(|&index| snapshot.machines()[index].state == MachineState::Asleep) {
            bail!("workload {}: machine {} is asleep", row.id, snapshot.machines()[asleep].name);
        }
        snapshot.add_workload(workload(row, place))?;
    }
    Ok(snapshot)
}

/// Names are shown on terminals, which obey control characters.
fn check_name(kind: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.chars().any(char::is_control) {
        bail!("{name:?} is no name of a {kind}: it is empty or has control characters");
    }
    Ok(())
}

fn machine(row: MachineRow) -> Result<Machine> {
    let state = match row.state.as_str() {
        "" | "on" => MachineState::On,
        "draining" => MachineState::Draining,
        "asleep" => MachineState::Asleep,
        "failed" => MachineState::Failed,
        other => bail!("machine {}: `{other}` is no state; known are on, draining, asleep, failed", row.name),
    };
    if let Some(watts) = row.power_watts.iter().find(|watts| **watts > WATTS_MAX) {
        bail!("machine {}: it cannot draw {watts:e} W", row.name);
    }
    let power = PowerCurve::new(row.power_watts).with_context(|| format!("machine {}", row.name))?;
    Ok(Machine {
        capacity: [row.cpu, row.memory, row.disk, row.network],
        core_cpu: row.core_cpu.unwrap_or(row.cpu),
        power,
        sleep_watts: row.sleep_watts,
        wake_seconds: row.wake_seconds,
        state,
        labels: row.labels,
        is_protected: row.protected,
        name: row.name,
    })
}

fn workload(row: WorkloadRow, machine: Option<usize>) -> Workload {
    let mean = row.expected_cpu.unwrap_or(row.cpu);
    Workload {
        machine,
        uses: [row.cpu, row.memory, row.disk, row.network],
        forecast: Forecast { mean, deviation: row.deviation.unwrap_or(DEVIATION_SHARE * mean) },
        memory_min: row.least_memory.unwrap_or(row.memory),
        is_movable: row.movable,
        move_seconds: row.move_seconds,
        selector: row.selector,
        apart: row.apart,
        id: row.id,
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
