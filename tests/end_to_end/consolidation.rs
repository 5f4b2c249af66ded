//! `nuee simulate` and `nuee plan`: what scripts rely on, what people see, and what is refused.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Nuee, Output, Terminal};

/// What the contract names; each must be a number.
const FIELDS: [&str; 10] = [
    "energy_kwh",
    "migrations",
    "slatah",
    "pdm",
    "slav",
    "esv",
    "mean_active_hosts",
    "unserved_share",
    "bound_kwh",
    "plan_seconds_max",
];

/// A Nuée that is not started: both commands need none.
fn prepared() -> Result<Nuee> {
    Nuee::prepare(env!("CARGO_BIN_EXE_nuee"))
}

/// A day of so many virtual machines, two of which fall silent at noon.
fn day(machines: u32) -> String {
    let mut text = String::new();
    for machine in 0..machines {
        let _written = write!(text, "vm{machine}");
        for sample in 0_u32..288 {
            let share = if machine < 2 && sample > 144 { 0 } else { (17 * machine + 13 * sample) % 60 };
            let _written = write!(text, ",{share}");
        }
        text.push('\n');
    }
    text
}

fn gzipped(text: &str) -> Result<Vec<u8>> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes())?;
    Ok(gzip.finish()?)
}

fn file(nuee: &Nuee, name: &str, content: impl AsRef<[u8]>) -> Result<String> {
    let path = nuee.files().join(name);
    std::fs::write(&path, content)?;
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

fn simulate(nuee: &Nuee, trace: &str, more: &[&str]) -> Result<Output> {
    nuee.nuee(&[&["simulate", "--trace", trace], more].concat())
}

fn figures(nuee: &Nuee, trace: &str, more: &[&str]) -> Result<Value> {
    let shown = simulate(nuee, trace, &[more, &["-o", "json"]].concat())?.success()?;
    let mut value: Value = serde_json::from_str(&shown.stdout).with_context(|| shown.stdout.clone())?;
    for field in FIELDS {
        assert!(value[field].as_f64().is_some_and(|number| number >= 0.0), "{field}: {value}");
    }
    // The one that is measured, not computed.
    value["plan_seconds_max"].take();
    Ok(value)
}

#[test]
fn simulate_prints_what_scripts_rely_on() -> Result<()> {
    let nuee = prepared()?;
    let trace = file(&nuee, "day.csv.gz", gzipped(&day(24))?)?;
    let ours = figures(&nuee, &trace, &[])?;
    assert!(ours["migrations"].is_u64(), "{ours}");
    let number = |field: &str| ours[field].as_f64().unwrap_or(f64::NAN);
    assert!((number("slav") - number("slatah") * number("pdm")).abs() < 1e-15, "{ours}");
    assert!((number("esv") - number("slav") * number("energy_kwh")).abs() < 1e-15, "{ours}");
    assert!(number("bound_kwh") <= number("energy_kwh"), "{ours}");
    let spelled = ["--experiment", "planetlab", "--policy", "nuee", "--memory", "ignored", "--zero-demand", "vanish"];
    assert_eq!(figures(&nuee, &trace, &spelled)?, ours, "these are the defaults");
    assert_ne!(figures(&nuee, &trace, &["--zero-demand", "keep"])?, ours);
    for policy in ["npa", "dvfs", "thr-mmt", "iqr-mmt", "mad-mmt", "lr-mmt", "lrr-mmt", "mfped", "nuee"] {
        figures(&nuee, &trace, &["--policy", policy, "--memory", "enforced"])?;
    }
    Ok(())
}

#[test]
fn a_trace_is_read_gzipped_or_not_whatever_its_name() -> Result<()> {
    let nuee = prepared()?;
    let plain = figures(&nuee, &file(&nuee, "day.csv", day(8))?, &[])?;
    assert_eq!(figures(&nuee, &file(&nuee, "packed", gzipped(&day(8))?)?, &[])?, plain);
    let text = day(8);
    let (first, rest) = text.split_at(day(3).len());
    let parts = [gzipped(first)?, gzipped(rest)?].concat();
    assert_eq!(figures(&nuee, &file(&nuee, "parts.csv.gz", parts)?, &[])?, plain, "one gzip after the other");
    Ok(())
}

#[test]
fn simulate_shows_people_a_table_a_report_and_how_far_it_is() -> Result<()> {
    let nuee = prepared()?;
    let trace = file(&nuee, "a<b>.csv", day(40))?;
    let report = nuee.files().join("day.html").display().to_string();
    let shown = simulate(&nuee, &trace, &["--policy", "mfped", "--report", &report])?.success()?;
    for word in ["energy", "least possible energy", "migrations", "SLATAH", "PDM", "ESV", "longest decision"] {
        assert!(shown.stdout.contains(word), "{}", shown.stdout);
    }
    assert_eq!(shown.stderr, "", "no progress where no terminal is");
    let page = std::fs::read_to_string(&report)?;
    assert_eq!(page.matches("<svg").count(), 4, "{page}");
    assert!(page.contains("a&lt;b&gt;.csv") && page.ends_with("</html>\n"), "{page}");
    assert!(!page.contains("<script") && !page.contains("http"), "it loads nothing: {page}");

    let mut command = nuee.space().command(env!("CARGO_BIN_EXE_nuee"));
    command.args(["simulate", "--trace", &trace]);
    let terminal = Terminal::start(&command, 24, 100)?;
    terminal.until("/287 steps")?;
    terminal.until("longest decision")?;
    Ok(())
}

#[test]
fn simulate_says_what_is_wrong_with_its_input() -> Result<()> {
    let nuee = prepared()?;
    let good = file(&nuee, "good.csv", day(2))?;
    let refused = |trace: &str, more: &[&str], text: &str| simulate(&nuee, trace, more)?.failure(1, text);
    refused("/no/such.csv.gz", &[], "cannot open the trace /no/such.csv.gz: No such file")?;
    refused("/tmp", &[], "cannot read the trace /tmp: Is a directory")?;
    refused(&file(&nuee, "empty.csv", "")?, &[], "the trace is empty")?;
    refused(&file(&nuee, "short.csv", "vm0,1,2\n")?, &[], "line 1: 2 samples instead of 288")?;
    let over = format!("{}vm2{}\n", day(2), ",101".repeat(288));
    refused(&file(&nuee, "over.csv", over)?, &[], "line 3: 101 is above 100 percent")?;
    refused(&file(&nuee, "nan.csv", format!("vm{}\n", ",NaN".repeat(288)))?, &[], "`NaN` is no percentage")?;
    let cut = gzipped(&day(9))?;
    refused(&file(&nuee, "cut.csv.gz", &cut[..cut.len() / 2])?, &[], "cannot read the trace")?;
    refused(&good, &["--policy", "no-such"], "there is no policy `no-such`; known are npa, dvfs")?;
    refused(&good, &["--report", "/no/such/day.html"], "cannot write /no/such/day.html")?;
    simulate(&nuee, &good, &["--memory", "maybe"])?.failure(2, "possible values: ignored, enforced")?;
    nuee.nuee(&["simulate"])?.failure(2, "--trace <FILE>")?;
    Ok(())
}

#[test]
fn simulate_warns_of_virtual_machines_that_no_host_has_memory_for() -> Result<()> {
    let nuee = prepared()?;
    let trace = file(&nuee, "many.csv", day(4_000))?;
    let shown = simulate(&nuee, &trace, &["--policy", "dvfs"])?.success()?;
    assert!(shown.stderr.contains("of 4000 virtual machines find no host"), "{}", shown.stderr);
    Ok(())
}

fn machine(name: &str) -> Value {
    json!({ "name": name, "cpu": 10, "memory": 100, "powerWatts": [90, 120] })
}

fn workload(id: &str, machine: &str) -> Value {
    json!({ "id": id, "machine": machine, "cpu": 2, "memory": 10, "moveSeconds": 20 })
}

fn with(mut value: Value, field: &str, changed: Value) -> Value {
    value[field] = changed;
    value
}

fn pool(machines: Vec<Value>, workloads: Vec<Value>) -> String {
    json!({ "machines": machines, "workloads": workloads }).to_string()
}

fn plan(nuee: &Nuee, snapshot: &str, more: &[&str]) -> Result<Output> {
    let from = file(nuee, "snapshot.json", snapshot)?;
    nuee.nuee(&[&["plan", "--from", &from], more].concat())
}

#[test]
fn plan_empties_machines_and_says_why() -> Result<()> {
    let nuee = prepared()?;
    let idle = pool(vec![machine("a"), machine("b")], vec![workload("web", "a"), workload("mail", "b")]);
    let shown = plan(&nuee, &idle, &[])?.success()?.stdout;
    assert!(shown.contains("1. move ") && shown.contains("2. sleep "), "{shown}");
    assert!(shown.contains("2 steps; 192 W now, 102 W after"), "{shown}");
    let why = plan(&nuee, &idle, &["--explain"])?.success()?.stdout;
    assert!(why.contains(": the others can do without") && why.contains("no placement can draw less than"), "{why}");
    let value: Value = serde_json::from_str(&plan(&nuee, &idle, &["--explain", "-o", "json"])?.success()?.stdout)?;
    assert_eq!(value["steps"][0]["step"], "move", "{value}");
    assert_eq!(value["steps"][0]["reason"], "consolidation", "{value}");
    assert_eq!(value["steps"][1]["step"], "sleep", "{value}");
    assert!(value["explanation"][0].as_str().is_some_and(|line| line.starts_with("1. move ")), "{value}");
    assert!(value["watts_bound"].as_f64() <= value["watts_after"].as_f64(), "{value}");

    let busy = with(workload("web", "a"), "cpu", json!(9));
    let asleep = with(machine("b"), "state", json!("asleep"));
    let hot = pool(vec![machine("a"), asleep], vec![busy, workload("mail", "a")]);
    let why = plan(&nuee, &hot, &["--explain"])?.success()?.stdout;
    assert!(why.contains("1. wake b") && why.contains("a has more to do than it can"), "{why}");
    let still = plan(&nuee, &idle, &["--relief-only"])?.success()?.stdout;
    assert!(still.starts_with("0 steps; "), "{still}");
    let nothing = plan(&nuee, &pool(vec![], vec![]), &["--explain"])?.success()?.stdout;
    assert!(nothing.contains("power 0 W"), "{nothing}");
    Ok(())
}

#[test]
fn hostile_snapshots_are_refused_with_their_reason() -> Result<()> {
    let nuee = prepared()?;
    let refused = |snapshot: &str, text: &str| plan(&nuee, snapshot, &["--explain"])?.failure(1, text);
    let bad_machine =
        |field: &str, value: Value, text: &str| refused(&pool(vec![with(machine("a"), field, value)], vec![]), text);
    let bad_workload = |field: &str, value: Value, text: &str| {
        refused(&pool(vec![machine("a")], vec![with(workload("w", "a"), field, value)]), text)
    };
    bad_machine("cpu", json!(-1), "a: cpu is -1; it must be a number from 0")?;
    bad_machine("cpu", json!(0), "a: it has no cpu at all")?;
    bad_machine("memory", json!(1e300), "a: memory is 1")?;
    bad_machine("powerWatts", json!([90]), "at least two points")?;
    bad_machine("powerWatts", json!([-1, 5]), "point 0 of the power curve is negative")?;
    bad_machine("powerWatts", json!([1e308, 1e308]), "machine a: `powerWatts` is no power curve: point 0")?;
    bad_machine("state", json!("tired"), "machine a: `state` must be on, draining, asleep or failed")?;
    bad_machine("name", json!("\u{1b}[31m"), "machine 0: `name` has control characters")?;
    bad_machine("colour", json!("red"), "machine a: `colour` is no field that is known here")?;
    bad_workload("cpu", json!("much"), "workload w: `cpu` must be a number")?;
    bad_workload("deviation", json!(-0.5), "w: forecast deviation is -0.5")?;
    bad_workload("machine", json!("z"), "workload w: `machine` names no machine of this document")?;
    bad_workload("id", json!(""), "workload 0: `id` is missing")?;
    refused(&pool(vec![machine("a"), machine("a")], vec![]), "machine a: `name` is there twice")?;
    let twice = vec![workload("w", "a"), workload("w", "a")];
    refused(&pool(vec![machine("a")], twice), "workload w: `id` is there twice")?;
    let asleep = with(machine("a"), "state", json!("asleep"));
    refused(&pool(vec![asleep], vec![workload("w", "a")]), "workload w: `machine` is asleep")?;
    refused("", "it is no JSON object with `machines` and `workloads`")?;
    refused("[]", "it is no JSON object with `machines` and `workloads`")?;
    refused(&"[".repeat(200_000), "it is no JSON object with `machines` and `workloads`")?;
    refused(r#"{"machines":[{"name":"a","cpu":NaN}]}"#, "it is no JSON object with `machines` and `workloads`")?;
    refused(r#"{"machines":[{"name":"a","cpu":1e999,"memory":1,"powerWatts":[1,2]}]}"#, "number out of range")?;
    nuee.nuee(&["plan", "--from", "/no/such.json"])?.failure(1, "cannot open the snapshot /no/such.json")?;
    nuee.nuee(&["plan", "--from", "/tmp"])?.failure(1, "cannot read the snapshot /tmp")?;
    Ok(())
}
