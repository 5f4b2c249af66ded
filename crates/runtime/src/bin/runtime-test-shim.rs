//! Stands in for `nuee` in this crate's tests: `shim DIRECTORY` and `init -- PROGRAM…`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|word| word.to_str()) {
        Some("shim") => runtime::shim::main(args),
        Some("init") => runtime::init::main(args),
        _ => ExitCode::from(2),
    }
}
