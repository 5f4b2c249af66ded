//! The experiment on a small pool of our own making, and on the published traces where their folder is named by
//! `PLANETLAB_TRACES` (with `reference-results.csv`, what the reference printed for them).

use std::fmt::Write as _;
use std::io::Read as _;

use simulator::metrics::Outcome;
use simulator::policy::by_name;
use simulator::run::{always_on, run};
use simulator::setting::{Setting, Wake};
use simulator::trace::Trace;

/// A day of so many machines: a level for each, a swell over the day, noise, some that fall silent.
fn trace(machines: u32) -> Trace {
    let mut state = 42_u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    let mut text = String::new();
    for machine in 0..machines {
        let (level, silent) = (random() % 30, random() % 4 == 0);
        let _written = write!(text, "vm{machine}");
        for sample in 0_u32..288 {
            let swell = if (96..216).contains(&sample) { 10 } else { 0 };
            let share = if silent && sample > 150 { 0 } else { (level + swell + random() % 25).min(100) };
            let _written = write!(text, ",{share}");
        }
        text.push('\n');
    }
    Trace::parse(&text).expect("a good trace")
}

fn outcome(policy: &str, trace: &Trace, setting: &Setting) -> Outcome {
    run(trace, setting, by_name(policy).expect("a known policy").as_mut(), |_| ())
}

#[test]
fn ours_takes_less_energy_and_half_the_moves_on_a_small_pool() {
    let (trace, setting) = (trace(200), Setting::default());
    let (ours, mfped) = (outcome("nuee", &trace, &setting), outcome("mfped", &trace, &setting));
    assert!(ours.esv() < mfped.esv(), "{ours:?} {mfped:?}");
    assert!(ours.energy_kwh < mfped.energy_kwh && 2 * ours.migrations < mfped.migrations, "{ours:?} {mfped:?}");
    assert!(ours.unserved_share < 0.001, "{ours:?}");
    assert!(ours.bound_kwh < ours.energy_kwh);
}

#[test]
fn every_policy_runs_and_keeps_to_the_bound() {
    let trace = trace(40);
    let memory = Setting { memory_enforced: true, ..Setting::default() };
    let wake = Setting { wake: Wake::REALISTIC, keep_zero_demand: true, ..Setting::default() };
    for policy in ["dvfs", "thr-mc", "iqr-rs", "mad-mu", "lr-mmt", "lrr-mmt", "lr-weighted-mmt", "mfped", "nuee"] {
        for setting in [&Setting::default(), &memory, &wake] {
            let outcome = outcome(policy, &trace, setting);
            assert!(outcome.energy_kwh > outcome.bound_kwh * 0.95 && outcome.bound_kwh > 0.0, "{policy} {outcome:?}");
            assert!(
                (0.0..1.0).contains(&outcome.slatah) && (0.0..1.0).contains(&outcome.unserved_share),
                "{outcome:?}"
            );
        }
    }
    assert!(by_name("no-such").is_none() && by_name("thr-xy").is_none());
    let npa = always_on(&trace, &Setting::default());
    assert!((npa.energy_kwh - 2419.2).abs() < 0.1, "{npa:?}");
}

#[test]
fn the_reference_is_matched_to_the_last_digit_where_its_traces_are() {
    let Ok(folder) = std::env::var("PLANETLAB_TRACES") else { return };
    let table = std::fs::read_to_string(format!("{folder}/reference-results.csv")).expect("the reference's results");
    for row in table.lines().skip(1) {
        let cells: Vec<&str> = row.split(',').collect();
        let policy = match cells[0] {
            "dvfs" => "dvfs",
            "thr_mmt_0.8" => "thr-mmt",
            "lr_mmt_1.2" | "lr_mmt_1.2_ram_enforced" => "lr-mmt",
            "mfped_mmt_1.2" => "mfped",
            _ => continue,
        };
        let mut text = String::new();
        let file = std::fs::File::open(format!("{folder}/{}.csv.gz", cells[1])).expect("the day's trace");
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("the day's trace");
        let setting = Setting { memory_enforced: cells[0].ends_with("enforced"), ..Setting::default() };
        let ours = outcome(policy, &Trace::parse(&text).expect("a trace"), &setting);
        assert_eq!(ours.migrations.to_string(), cells[4], "{row}");
        assert_eq!(
            format!("{:.4}", ours.energy_kwh),
            format!("{:.4}", cells[3].parse::<f64>().unwrap_or(0.0)),
            "{row}"
        );
    }
}
