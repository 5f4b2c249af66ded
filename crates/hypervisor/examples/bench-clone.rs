//! Prints the median time of a clone of a 1 GiB template, durable and ready to boot. Units: milliseconds.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use hypervisor::disk::LayerStore;

const CLONES: usize = 50;
const TEMPLATE_BYTES: u64 = 1 << 30;

fn main() -> hypervisor::Result<()> {
    let directory = std::env::temp_dir().join(format!("bench-clone-{}", std::process::id()));
    let store = LayerStore::open(&directory)?;
    let template = store.create(None, Some(TEMPLATE_BYTES), "template")?;
    let mut times = Vec::new();
    for _ in 0..CLONES {
        let begun = Instant::now();
        store.create(Some(&template), None, "clone")?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    println!("{:.3}", times[CLONES / 2]);
    std::fs::remove_dir_all(&directory).map_err(|source| hypervisor::Error::Io {
        action: "remove",
        path: directory,
        source,
    })
}
