//! From a request to run one more process to an OCI `process` object, on top of the container's own.

use std::path::Path;

use oci_spec::runtime::{Capabilities, LinuxCapabilitiesBuilder, LinuxNamespace, LinuxNamespaceType, Process, Root};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::protocol::{ExecStart, Joining};
use crate::state::read_json;
use crate::{Error, Result, spec};

/// What an exec needs of a container's specification. Its mounts and the names of its filter are most of that, and are skipped.
#[derive(Deserialize)]
struct Base {
    process: Option<Process>,
    root: Option<Root>,
    linux: Option<BaseLinux>,
}

#[derive(Deserialize)]
struct BaseLinux {
    namespaces: Option<Vec<LinuxNamespace>>,
    personality: Option<IgnoredAny>,
    seccomp: Option<BaseFilter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BaseFilter {
    listener_path: Option<IgnoredAny>,
    flags: Option<IgnoredAny>,
}

/// Builds the request for the shim from the container's `config.json`.
pub(crate) fn exec_start(bundle_dir: &Path, request: node::ExecRequest) -> Result<ExecStart> {
    if request.command.is_empty() {
        return Err(Error::Invalid("no command to run".to_owned()));
    }
    let path = bundle_dir.join("config.json");
    let base: Base = read_json(&path)?.ok_or_else(|| Error::NotFound(path.display().to_string()))?;
    let mut process = base.process.unwrap_or_default();
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
    let root = base.root.map(|root| bundle_dir.join(root.path())).unwrap_or_default();
    if !request.user.is_empty() {
        let mut found = spec::users::find(&root, &request.user)?;
        for group in spec::users::find_groups(&root, &request.groups)? {
            if !found.additional_gids.contains(&group) {
                found.additional_gids.push(group);
            }
        }
        // As at the start: a file that denies the group must not be open to a process that left it.
        if !found.additional_gids.contains(&found.gid) {
            found.additional_gids.insert(0, found.gid);
        }
        spec::set_variable(&mut environment, format!("HOME={}", found.home));
        process.set_user(found.to_oci());
    } else if !environment.iter().any(|variable| variable.starts_with("HOME=")) {
        let found = spec::users::find(&root, &process.user().uid().to_string())?;
        environment.push(format!("HOME={}", found.home));
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
    let joining = base.linux.and_then(|linux| joining(&linux, &process));
    let process = serde_json::to_value(&process).map_err(|error| Error::Invalid(error.to_string()))?;
    let (columns, rows) = (size.columns, size.rows);
    Ok(ExecStart { process, terminal: request.terminal, stdin: request.stdin, columns, rows, joining })
}

/// Whether a shim can run `process` in the container by itself: nothing is asked for that [`crate::shim`] does not do.
fn joining(linux: &BaseLinux, process: &Process) -> Option<Joining> {
    let mut namespaces = linux.namespaces.iter().flatten();
    let known =
        namespaces.all(|namespace| !matches!(namespace.typ(), LinuxNamespaceType::User | LinuxNamespaceType::Time));
    let unsaid = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
    let plain = unsaid(process.apparmor_profile())
        && unsaid(process.selinux_label())
        && process.scheduler().is_none()
        && process.io_priority().is_none()
        && process.exec_cpu_affinity().is_none()
        && linux.personality.is_none();
    // Filters with a listener or with flags are the OCI runtime's.
    let filter = linux.seccomp.as_ref();
    let simple = filter.is_none_or(|filter| filter.listener_path.is_none() && filter.flags.is_none());
    (known && plain && simple).then_some(Joining { filtered: filter.is_some() })
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
