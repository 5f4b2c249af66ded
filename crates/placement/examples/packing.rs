//! Prints the table of "Static packing" in `docs/consolidation.md`: bins needed by the bound, by us, and by each greedy rule.
//!
//! `cargo run --release -p placement --example packing [-- ITEMS…]`; with `--no-greedy` ours alone. With `--print SIZES DIMENSIONS
//! ITEMS` it prints an instance instead: a bin's capacity in the first line, an item's sizes in each other.
#![allow(clippy::print_stdout)]

use std::error::Error;

use placement::pack::generator::{Distribution, generate};
use placement::pack::greedy::Greedy;
use placement::pack::pack;

/// Where instances come from.
const SEED: u64 = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, sizes, dimensions, items] = arguments.as_slice()
        && flag == "--print"
    {
        return print(sizes, dimensions.parse()?, items.parse()?);
    }
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
                let begin = processor_seconds();
                let ours = pack(&instance);
                let seconds = processor_seconds() - begin;
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

fn print(sizes: &str, dimensions: usize, items: usize) -> Result<(), Box<dyn Error>> {
    let known = Distribution::ALL.into_iter().find(|distribution| distribution.name() == sizes);
    let instance = generate(known.ok_or("no such sizes")?, dimensions, items, SEED)?;
    for size in std::iter::once(instance.capacity()).chain(instance.sizes()) {
        let words: Vec<String> = size[..dimensions].iter().map(u64::to_string).collect();
        println!("{}", words.join(" "));
    }
    Ok(())
}

/// Time that this thread has had on a processor: other programs do not count. Units: seconds.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e9
}
