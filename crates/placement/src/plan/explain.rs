//! A plan in words.

use std::fmt::Write;

use super::{Plan, Reason, Snapshot, Step};

/// One line for each step, with its reason, and the gap to the bound at the end.
pub fn explain(snapshot: &Snapshot, plan: &Plan) -> String {
    let mut text = String::new();
    for (number, step) in (1..).zip(&plan.steps) {
        let line = words(snapshot, step);
        let _written = writeln!(text, "{number:4}. {line}");
    }
    let Plan { watts_before, watts_after, watts_bound, .. } = plan;
    let _written = writeln!(
        text,
        "power {watts_before:.0} W, after the plan {watts_after:.0} W; no placement can draw less than {watts_bound:.0} W"
    );
    for machine in &plan.overloaded {
        let name = &snapshot.machines()[*machine].name;
        let _written =
            writeln!(text, "{name} has more to do than it can, and nothing that may move has a place elsewhere");
    }
    if plan.given_up > 0 {
        let _written =
            writeln!(text, "{} moves wait for each other and no machine has room to park one", plan.given_up);
    }
    text
}

fn words(snapshot: &Snapshot, step: &Step) -> String {
    let machine = |index: usize| &snapshot.machines()[index].name;
    match step {
        Step::Wake { machine: index } => format!("wake {}", machine(*index)),
        Step::Sleep { machine: index } => format!("send {} to sleep: nothing is left on it", machine(*index)),
        Step::Balloon { workload, memory } => {
            let workload = &snapshot.workloads()[*workload];
            format!("let the balloon take memory from {}, down to {memory:.0}: memory keeps machines on", workload.id)
        }
        Step::Move { workload, from, to, reason } => {
            let why = match reason {
                Reason::Relief => format!("{} has more to do than it can", machine(*from)),
                Reason::Consolidation => format!("the others can do without {}", machine(*from)),
                Reason::Parking => "it steps aside for others".to_owned(),
            };
            format!("move {} from {} to {}: {why}", snapshot.workloads()[*workload].id, machine(*from), machine(*to))
        }
    }
}
