//! The tables of `docs/consolidation.md`: the policies side by side, day by day, in every setting.
//! `cargo run --release -p simulator --example tables -- FILE.csv.gz…`
#![allow(clippy::print_stdout)] // A table for people.

use std::io::Read;

use simulator::policy::by_name;
use simulator::run::run;
use simulator::setting::{Setting, Wake};
use simulator::trace::Trace;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let enforced = Setting { memory_enforced: true, ..Setting::default() };
    let settings = [
        ("standard", Setting::default()),
        ("memory enforced", enforced.clone()),
        ("memory enforced, 16,384 MB", Setting { host_memory_mb: 16_384.0, ..enforced.clone() }),
        ("wake 60 s, sleep 5 W", Setting { wake: Wake::REALISTIC, ..Setting::default() }),
        ("memory enforced, balloon half (nuee alone)", Setting { balloon_share: 0.5, ..enforced.clone() }),
    ];
    for (name, setting) in settings {
        println!(
            "\n{name}\n| trace | policy | energy kWh | bound kWh | migrations | SLATAH % | PDM % | ESV x 1e-3 | unserved % | hosts |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
        for path in std::env::args().skip(1) {
            let mut text = String::new();
            flate2::read::GzDecoder::new(std::fs::File::open(&path)?).read_to_string(&mut text)?;
            let trace = Trace::parse(&text)?;
            let day = path.rsplit('/').next().unwrap_or(&path).trim_end_matches(".csv.gz");
            for policy in ["lr-mmt", "mfped", "nuee"] {
                // The literature's policies have no balloon.
                let setting = Setting {
                    balloon_share: if policy == "nuee" { setting.balloon_share } else { 0.0 },
                    ..setting.clone()
                };
                let mut optimiser = by_name(policy).ok_or("an unknown policy")?;
                let o = run(&trace, &setting, optimiser.as_mut(), |_| ());
                println!(
                    "| {day} | {policy} | {:.1} | {:.1} | {} | {:.2} | {:.4} | {:.4} | {:.4} | {:.1} |",
                    o.energy_kwh,
                    o.bound_kwh,
                    o.migrations,
                    100.0 * o.slatah,
                    100.0 * o.pdm,
                    1000.0 * o.esv(),
                    100.0 * o.unserved_share,
                    o.mean_active_hosts
                );
            }
        }
    }
    Ok(())
}
