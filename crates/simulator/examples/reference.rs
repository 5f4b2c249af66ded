//! Compares the re-implemented policies with the reference's own figures, day by day.
//! `cargo run --release -p simulator --example reference -- FOLDER` where FOLDER holds `DAY.csv.gz` and `reference-results.csv`.
#![allow(clippy::print_stdout)] // A table for people.

use std::io::Read;

use simulator::baseline::{Baseline, Detection, Selection};
use simulator::run::run;
use simulator::setting::Setting;
use simulator::trace::Trace;

type Failure = Box<dyn std::error::Error>;

fn policy(name: &str) -> Option<Baseline> {
    let mmt = |detection| Some(Baseline::of(detection, Selection::MinimumMigrationTime));
    match name {
        "dvfs" => Some(Baseline::dvfs()),
        "thr_mmt_0.8" => mmt(Detection::Threshold(0.8)),
        "iqr_mmt_1.5" => mmt(Detection::InterquartileRange(1.5)),
        "mad_mmt_2.5" => mmt(Detection::MedianDeviation(2.5)),
        "lr_mmt_1.2" | "lrr_mmt_1.2" | "lr_mmt_1.2_ram_enforced" => {
            mmt(Detection::LocalRegression { safety: 1.2, weighted: false })
        }
        "mfped_mmt_1.2" => Some(Baseline::mfped()),
        _ => None,
    }
}

fn main() -> Result<(), Failure> {
    let folder = std::env::args().nth(1).ok_or("name the folder of the traces")?;
    let only = std::env::args().nth(2).unwrap_or_default();
    let table = std::fs::read_to_string(format!("{folder}/reference-results.csv"))?;
    println!("{:24} {:8}   energy    moves   slatah      pdm      esv unserved  (ours / reference)", "policy", "day");
    for row in table.lines().skip(1) {
        let cells: Vec<&str> = row.split(',').collect();
        let Some(mut baseline) = policy(cells[0]).filter(|_| row.starts_with(&only)) else { continue };
        let mut text = String::new();
        flate2::read::GzDecoder::new(std::fs::File::open(format!("{folder}/{}.csv.gz", cells[1]))?)
            .read_to_string(&mut text)?;
        let setting = Setting { memory_enforced: cells[0].ends_with("enforced"), ..Setting::default() };
        let ours = run(&Trace::parse(&text)?, &setting, &mut baseline, |_| ());
        let moves = f64::from(u32::try_from(ours.migrations)?);
        let figures = [
            (ours.energy_kwh, 3),
            (moves, 4),
            (ours.slatah, 6),
            (ours.pdm, 7),
            (ours.esv(), 11),
            (ours.unserved_share, 8),
        ];
        let mut line = format!("{:24} {:8}", cells[0], cells[1]);
        for (value, column) in figures {
            let reference: f64 = cells[column].parse()?;
            line += &format!(" {:8.4}", if reference > 0.0 { value / reference } else { 1.0 + value });
        }
        println!("{line}  {:.4} hosts {:.1} / {}", ours.energy_kwh, ours.mean_active_hosts, cells[9]);
    }
    Ok(())
}
