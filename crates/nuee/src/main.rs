//! The `nuee` binary: command line, wiring, set-up of a machine.

use std::process::ExitCode;

mod api_client;
mod backup;
mod command;
mod compose;
mod config;
mod daemon;
mod doctor;
mod instance;
mod revoked;

fn main() -> ExitCode {
    // The shim and the first processes of containers and pods, and the launcher of guests, are this same binary. They come before everything else, as their start is part of
    // the start of every container.
    let mut arguments = std::env::args_os();
    let _program = arguments.next();
    match arguments.next().as_ref().and_then(|word| word.to_str()) {
        Some("shim") => return runtime::shim::main(arguments),
        Some("guest") => return hypervisor::qemu::launch::main(),
        Some("init") => return runtime::init::main(arguments),
        Some("pause") => return runtime::init::pause(),
        _ => {}
    }
    command::run()
}
