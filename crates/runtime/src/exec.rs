//! From a request to run one more process to an OCI `process` object, on top of the container's own.

use std::path::Path;

use oci_spec::runtime::{Capabilities, LinuxCapabilitiesBuilder, Spec};

use crate::protocol::ExecStart;
use crate::state::read_json;
use crate::{Error, Result, spec};

/// Builds the request for the shim from the container's `config.json`.
pub(crate) fn exec_start(bundle_dir: &Path, request: node::ExecRequest) -> Result<ExecStart> {
    if request.command.is_empty() {
        return Err(Error::Invalid("no command to run".to_owned()));
    }
    let path = bundle_dir.join("config.json");
    let spec: Spec = read_json(&path)?.ok_or_else(|| Error::NotFound(path.display().to_string()))?;
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_terminal(Some(request.terminal));
    let size = request.size.unwrap_or(node::TerminalSize { columns: 0, rows: 0 });
    // Set by the OCI runtime as well as by the shim: the program may look before the shim has the terminal.
    process.set_console_size(console_size(size)?);
    process.set_args(Some(request.command));
    if !request.working_directory.is_empty() {
        spec::check_working_directory(&request.working_directory)?;
        process.set_cwd(request.working_directory.into());
    }
    let mut environment = process.env().clone().unwrap_or_default();
    for variable in request.environment {
        spec::set_variable(&mut environment, variable);
    }
    if request.terminal && !environment.iter().any(|variable| variable.starts_with("TERM=")) {
        environment.push("TERM=xterm".to_owned());
    }
    if !request.user.is_empty() {
        let root = spec.root().as_ref().map(|root| bundle_dir.join(root.path())).unwrap_or_default();
        let mut found = spec::users::find(&root, &request.user)?;
        // As at the start: a file that denies the group must not be open to a process that left it.
        if !found.additional_gids.contains(&found.gid) {
            found.additional_gids.insert(0, found.gid);
        }
        spec::set_variable(&mut environment, format!("HOME={}", found.home));
        process.set_user(found.to_oci());
    }
    process.set_env(Some(environment));
    if request.privileged {
        let all = spec::own_capabilities();
        let capabilities = LinuxCapabilitiesBuilder::default()
            .bounding(all.clone())
            .effective(all.clone())
            .permitted(all.clone())
            .inheritable(Capabilities::new())
            .ambient(Capabilities::new())
            .build()
            .map_err(|error| Error::Invalid(error.to_string()))?;
        process.set_capabilities(Some(capabilities));
    } else if process.user().uid() != 0 {
        spec::drop_effective_capabilities(&mut process);
    }
    let process = serde_json::to_value(&process).map_err(|error| Error::Invalid(error.to_string()))?;
    Ok(ExecStart { process, terminal: request.terminal, stdin: request.stdin, columns: size.columns, rows: size.rows })
}

fn console_size(size: node::TerminalSize) -> Result<Option<oci_spec::runtime::Box>> {
    if size.columns == 0 || size.rows == 0 {
        return Ok(None);
    }
    oci_spec::runtime::BoxBuilder::default()
        .width(size.columns)
        .height(size.rows)
        .build()
        .map(Some)
        .map_err(|error| Error::Invalid(error.to_string()))
}
