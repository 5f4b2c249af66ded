//! `nuee status`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::Format;
use crate::instance::Instance;

/// Exit code when no daemon runs. `Source:` LSB init scripts, action "status".
const NOT_RUNNING: u8 = 3;

/// Flags of `nuee status`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    data: super::DataDirectory,
    #[command(flatten)]
    output: super::Output,
}

/// Shows it. The exit code is 0 when ready, 1 while starting, 3 when it does not run.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let instance = Instance::new(&arguments.data.path)?;
    let pid = instance.daemon_pid();
    let state = instance.read_state();
    let ready = state.as_ref().is_some_and(|state| state.ready);
    match arguments.output.output {
        Format::Json => {
            let value = json!({
                "running": pid.is_some(),
                "pid": pid,
                "version": state.as_ref().map(|state| &state.version),
                "ready": ready,
                "startedAt": state.as_ref().map(|state| &state.started_at),
                "readyAfterMs": state.as_ref().map(|state| state.ready_after_ms),
                "dataDir": instance.directory(),
                "endpoints": state.as_ref().map(|state| &state.endpoints),
            });
            println!("{}", serde_json::to_string_pretty(&value)?);
        }
        Format::Text => match (&state, pid) {
            (Some(state), _) => {
                println!("Nuée {} {}", state.version, if ready { "is ready" } else { "is starting" });
                println!("  pid         {}", state.pid);
                println!("  since       {}", state.started_at);
                println!("  data        {}", instance.directory().display());
                if state.endpoints.docker.is_empty() {
                    println!("  pool        {}", state.endpoints.kubernetes);
                } else {
                    println!("  docker      {}", state.endpoints.docker);
                    println!("  kubernetes  {}", state.endpoints.kubernetes);
                    println!("  kubeconfig  {}", state.endpoints.kubeconfig);
                    println!("  machines    nuee token create    (prints the command that adds one)");
                }
                if let Some(registry) = &state.endpoints.registry {
                    println!("  registry    {registry}");
                }
            }
            (None, Some(pid)) => println!("Nuée is starting (pid {pid})."),
            (None, None) => {
                println!("Nuée is not running on {}; start it with `nuee up`.", instance.directory().display())
            }
        },
    }
    Ok(match (pid, ready) {
        (None, _) => ExitCode::from(NOT_RUNNING),
        (_, false) => ExitCode::FAILURE,
        (_, true) => ExitCode::SUCCESS,
    })
}
