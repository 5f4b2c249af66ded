//! Prints the table of "Static packing" in `docs/consolidation.md`: bins needed by the bound, by us, and by each greedy rule.
//!
//! `cargo run --release -p placement --example packing [-- ITEMS…]`; with `--no-greedy` ours alone.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use placement::pack::generator::{Distribution, generate};
use placement::pack::greedy::Greedy;
use placement::pack::pack;

/// Where instances come from.
const SEED: u64 = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let with_greedy = !arguments.iter().any(|argument| argument == "--no-greedy");
    let mut counts: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if counts.is_empty() {
        counts = vec![200, 1_000, 5_000, 100_000];
    }
    let names = Greedy::ALL.map(Greedy::name).join(" | ");
    println!("| sizes | d | n | bound | ours | over % | seconds | {names} |");
    println!("|---|---|---|---|---|---|---|{}", "---|".repeat(Greedy::ALL.len()));
    for distribution in Distribution::ALL {
        for dimensions in [2, 3] {
            for &count in &counts {
                let instance = generate(distribution, dimensions, count, SEED)?;
                let begin = Instant::now();
                let ours = pack(&instance);
                let seconds = begin.elapsed().as_secs_f64();
                let over = 100.0 * (ours.bins as f64 / ours.bound as f64 - 1.0);
                let (name, bound, bins) = (distribution.name(), ours.bound, ours.bins);
                print!("| {name} | {dimensions} | {count} | {bound} | {bins} | {over:.2} | {seconds:.2} |");
                if with_greedy {
                    for rule in Greedy::ALL {
                        print!(" {} |", rule.pack(&instance).len());
                    }
                }
                println!();
            }
        }
    }
    Ok(())
}
