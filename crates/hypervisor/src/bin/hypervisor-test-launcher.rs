//! Stands in for `nuee` in this crate's tests: `guest` reads what to launch from its standard input.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("guest") => hypervisor::qemu::launch::main(),
        _ => ExitCode::from(2),
    }
}
