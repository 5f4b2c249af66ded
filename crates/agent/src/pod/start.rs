//! One start of a pod's container: image, environment, mounts, process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMap, Container, Pod, PodSpec, SeccompProfile, Secret, SecurityContext, Volume, VolumeMount,
};
use kube::Api;
use runtime::{ContainerConfig, LogConfig};
use rustix::fs::{Mode, OFlags};

use super::environment::{self, Material};
use super::sandbox::Sandbox;
use super::status::qos_class;
use super::{pause, pull, volumes};
use crate::container::start::LOG_FILE;
use crate::context::Context;
use crate::error::{Error, chain};
use crate::hands;
use crate::in_root;
use crate::launch::{Access, Bounds, Identity, Launch, MountPoint, Namespace, Place, Seccomp, capabilities};
use crate::quantity;
use crate::sub_path;

/// Where profiles of type `Localhost` lie, under the data directory. Source: kubelet `seccomp` under its root directory.
const SECCOMP_DIRECTORY: &str = "seccomp";
/// Largest profile. Units: bytes.
const SECCOMP_BYTES_MAX: u64 = 1 << 20;
/// Where a container leaves its last words when the spec names no other file.
const TERMINATION_PATH: &str = "/dev/termination-log";

/// What a start gave.
#[derive(Clone, Debug)]
pub struct Started {
    /// Image id.
    pub image_id: String,
    /// Signal that the image wants for a stop.
    pub stop_signal: Option<i32>,
}

/// Why a start failed.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The image cannot be had; reason and message.
    Image(&'static str, String),
    /// The container cannot be made; reason and message. Tried again soon.
    Config(&'static str, String),
    /// The program cannot be run: counts as a run that ended.
    Run(i32, String),
}

/// Id of one run of a pod's container: the same after a restart of the daemon.
#[must_use]
pub fn run_id(uid: &str, container: &str, attempt: i32) -> String {
    hex::encode(<sha2::Sha256 as sha2::Digest>::digest(format!("pod {uid} {container} {attempt}")))
}

/// Path of the file for a container's last words.
pub fn termination_file(context: &Context, id: &str) -> PathBuf {
    context.container_dir(id).join("termination-log")
}

/// Everything that a start works with.
pub struct Order {
    /// The pod, with its address in the status.
    pub pod: Arc<Pod>,
    /// The container.
    pub container: Container,
    /// What the containers share.
    pub sandbox: Sandbox,
    /// Where volumes lie, by name.
    pub volumes: Arc<BTreeMap<String, PathBuf>>,
    /// Held while the pod's first process is looked for and made: containers start side by side.
    pub first_process: Arc<tokio::sync::Mutex<()>>,
    /// Runtime id of the container whose processes this one sees.
    pub looked_at: Option<String>,
    /// Runtime id.
    pub id: String,
}

/// Starts the container.
pub async fn start(context: &Arc<Context>, order: &Order) -> Result<Started, Failure> {
    let image = pull::ensure(context, &order.pod, &order.container).await?;
    let config_error = |text: String| Failure::Config("CreateContainerConfigError", text);
    let create_error = |error: Error| Failure::Config("CreateContainerError", chain(&error));
    let environment = environment(context, order).await.map_err(config_error)?;
    let directory = context.container_dir(&order.id);
    std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory)).map_err(create_error)?;
    let prepared = context.images.mount(&order.id, &image.id).await.map_err(|e| create_error(e.into()))?;
    let launch = launch(context, order, &image.config, prepared.rootfs, environment).await?;
    let container = &order.container;
    let config = ContainerConfig {
        cgroup_parent: None,
        id: order.id.clone(),
        bundle_dir: directory.clone(),
        spec: launch.specification(&context.machine).map_err(|e| create_error(e.into()))?,
        terminal: container.tty == Some(true),
        open_stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        log: LogConfig::bounded(directory.join(LOG_FILE)),
    };
    context.runtime.create(config).await.map_err(failure)?;
    context.runtime.start(&order.id).await.map_err(failure)?;
    let stop_signal = image.config.config.stop_signal.as_deref().and_then(crate::container::spec::signal);
    Ok(Started { image_id: image.id, stop_signal })
}

fn failure(error: runtime::Error) -> Failure {
    match error {
        runtime::Error::CannotStart { message, .. } => Failure::Run(
            128,
            format!(
                "failed to create containerd task: failed to create shim task: OCI runtime create failed: {message}"
            ),
        ),
        other => Failure::Run(128, chain(&other)),
    }
}

async fn environment(context: &Context, order: &Order) -> Result<Vec<(String, String)>, String> {
    let namespace = order.pod.metadata.namespace.as_deref().unwrap_or_default();
    let (map_names, secret_names) = environment::references(&order.container);
    let (mut maps, mut secrets) = (BTreeMap::new(), BTreeMap::new());
    let map_api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    for name in map_names {
        if let Some(map) = map_api.get_opt(&name).await.map_err(|e| chain(&e))? {
            maps.insert(name, map);
        }
    }
    let secret_api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    for name in secret_names {
        if let Some(secret) = secret_api.get_opt(&name).await.map_err(|e| chain(&e))? {
            secrets.insert(name, secret);
        }
    }
    let services = context.services.state();
    let links = order.pod.spec.as_ref().and_then(|s| s.enable_service_links) != Some(false);
    let services = environment::services(services.iter().map(AsRef::as_ref), namespace, links);
    let material = Material { pod: &order.pod, config_maps: &maps, secrets: &secrets, machine: context.size };
    environment::build(&order.container, &material, services).map_err(|error| error.to_string())
}

async fn launch(
    context: &Arc<Context>,
    order: &Order,
    image: &image::ImageConfig,
    rootfs: PathBuf,
    variables: Vec<(String, String)>,
) -> Result<Launch, Failure> {
    let config_error = |text: String| Failure::Config("CreateContainerConfigError", text);
    let (container, empty) = (&order.container, PodSpec::default());
    let spec = order.pod.spec.as_ref().unwrap_or(&empty);
    let security = container.security_context.clone().unwrap_or_default();
    let (identity, home) = identity(spec, &security, image, &rootfs).map_err(config_error)?;
    let mounts = mounts(context, order, spec, &variables).await.map_err(|e| config_error(chain(&e)))?;
    let mut environment = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    environment.push(format!("HOSTNAME={}", order.sandbox.hostname));
    let set = |list: &mut Vec<String>, text: String| runtime::spec::set_variable(list, text);
    image.config.env.iter().for_each(|v| set(&mut environment, v.clone()));
    variables.iter().for_each(|(k, v)| set(&mut environment, format!("{k}={v}")));
    if !environment.iter().any(|v| v.starts_with("HOME=")) {
        environment.push(format!("HOME={home}"));
    }
    if container.tty == Some(true) && !environment.iter().any(|v| v.starts_with("TERM=")) {
        environment.push("TERM=xterm".to_owned());
    }
    let command = command(container, image, &variables)
        .ok_or_else(|| Failure::Config("CreateContainerError", "no command specified".to_owned()))?;
    let working_directory = container.working_dir.clone().unwrap_or_else(|| image.config.working_dir.clone());
    hands::check_working_directory(&working_directory).map_err(|e| config_error(chain(&e)))?;
    let privileged = security.privileged == Some(true);
    let caps = security.capabilities.clone().unwrap_or_default();
    let Capabilities { add, drop } = caps;
    let pod_security = spec.security_context.clone().unwrap_or_default();
    let requests = container.resources.clone().unwrap_or_default();
    let memory_request =
        requests.requests.as_ref().and_then(|r| r.get("memory")).and_then(|q| quantity::whole(&q.0)).unwrap_or(0);
    let bounds = quantity::bounds(&requests);
    let masked = security.proc_mount.as_deref() != Some("Unmasked");
    let paths = |list: &[&str]| if masked { list.iter().map(|s| (*s).to_owned()).collect() } else { Vec::new() };
    Ok(Launch {
        command,
        environment,
        working_directory,
        identity,
        terminal: container.tty == Some(true),
        rootfs,
        read_only_root: security.read_only_root_filesystem == Some(true),
        hostname: order.sandbox.hostname.clone(),
        mounts,
        network: order.sandbox.network.clone(),
        ipc: order.sandbox.ipc.clone(),
        uts: order.sandbox.uts.clone(),
        pid: processes(context, order, spec).await?,
        capabilities: capabilities(&add.unwrap_or_default(), &drop.unwrap_or_default()),
        privileged,
        no_new_privileges: security.allow_privilege_escalation == Some(false),
        seccomp: seccomp(context, security.seccomp_profile.as_ref().or(pod_security.seccomp_profile.as_ref()))
            .map_err(config_error)?,
        masked_paths: paths(&runtime::spec::MASKED_PATHS),
        readonly_paths: paths(&runtime::spec::READONLY_PATHS),
        bounds: Bounds {
            cpu_shares: bounds.cpu_shares,
            cpu_quota_us: bounds.cpu_quota_us,
            cpu_period_us: if bounds.cpu_quota_us > 0 { quantity::CPU_PERIOD_US } else { 0 },
            memory_bytes: bounds.memory_bytes,
            ..Bounds::default()
        },
        sysctls: pod_security.sysctls.iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
        oom_score_adj: Some(quantity::oom_score_adj(qos_class(spec), memory_request, context.size.memory_bytes)),
        ..Launch::default()
    })
}

/// The process namespace: one of its own, the machine's, the pod's, or that of the container that it is to look at.
async fn processes(context: &Context, order: &Order, spec: &PodSpec) -> Result<Namespace, Failure> {
    if spec.host_pid == Some(true) {
        return Ok(Namespace::Host);
    }
    if pause::wanted(spec) {
        let uid = order.pod.metadata.uid.as_deref().unwrap_or_default();
        let _alone = order.first_process.lock().await;
        return pause::namespace(context, uid, &order.sandbox)
            .await
            .map_err(|e| Failure::Config("CreateContainerError", chain(&e)));
    }
    let Some(id) = &order.looked_at else { return Ok(Namespace::Private) };
    Ok(match context.runtime.state(id).await {
        Ok(state) if state.pid > 0 => Namespace::Path(format!("/proc/{}/ns/pid", state.pid).into()),
        // Ended meanwhile: there is nothing to look at.
        _ => Namespace::Private,
    })
}

/// Kubernetes' rule: `command` replaces the entry point and drops the image's arguments; `args` replace the arguments.
fn command(container: &Container, image: &image::ImageConfig, variables: &[(String, String)]) -> Option<Vec<String>> {
    let expanded = |list: &Vec<String>| list.iter().map(|t| environment::expand(t, variables)).collect::<Vec<_>>();
    let own = container.command.as_ref().filter(|c| !c.is_empty()).map(expanded);
    let arguments = container.args.as_ref().filter(|a| !a.is_empty()).map(expanded);
    let mut words = match (&own, image.config.entrypoint.clone()) {
        (Some(command), _) => command.clone(),
        (None, entry) => entry.unwrap_or_default(),
    };
    match (own, arguments) {
        (_, Some(arguments)) => words.extend(arguments),
        (None, None) => words.extend(image.config.cmd.clone().unwrap_or_default()),
        (Some(_), None) => {}
    }
    (!words.is_empty()).then_some(words)
}

fn seccomp(context: &Context, profile: Option<&SeccompProfile>) -> Result<Seccomp, String> {
    match profile.map(|p| p.type_.as_str()) {
        // Secure by default: a pod that says nothing gets the standard list, as with the kubelet's seccompDefault.
        None | Some("RuntimeDefault") => Ok(Seccomp::Standard),
        Some("Unconfined") => Ok(Seccomp::Unconfined),
        Some("Localhost") => {
            let name = profile.and_then(|p| p.localhost_profile.as_deref()).unwrap_or_default();
            local_profile(&context.data_dir.join(SECCOMP_DIRECTORY), name)
        }
        Some(other) => Err(format!("unknown seccomp profile type {other}")),
    }
}

/// A profile that the machine's operator put there.
fn local_profile(directory: &Path, name: &str) -> Result<Seccomp, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot load seccomp profile {name:?}: {error}");
    let root = in_root::directory(directory).map_err(|e| failed(&e))?;
    let file = in_root::open(&root, Path::new(name), OFlags::RDONLY, Mode::empty()).map_err(|e| failed(&e))?;
    let mut text = String::new();
    let limited = std::io::Read::take(std::fs::File::from(file), SECCOMP_BYTES_MAX);
    std::io::Read::read_to_string(&mut { limited }, &mut text).map_err(|e| failed(&e))?;
    hands::seccomp(&text).map_err(|e| failed(&chain(&e)))
}

fn identity(
    spec: &PodSpec,
    security: &SecurityContext,
    image: &image::ImageConfig,
    rootfs: &Path,
) -> Result<(Identity, String), String> {
    let pod = spec.security_context.clone().unwrap_or_default();
    let number = |n: i64| u32::try_from(n).map_err(|_| format!("{n} is no user or group"));
    let wanted = security.run_as_user.or(pod.run_as_user);
    let user = wanted.map_or_else(|| image.config.user.clone(), |uid| uid.to_string());
    let found = hands::find_user(rootfs, &user).map_err(|e| chain(&e))?;
    let mut identity = found.identity;
    if let Some(group) = security.run_as_group.or(pod.run_as_group) {
        identity.gid = number(group)?;
    }
    identity.groups.extend(pod.fs_group.map(number).transpose()?);
    for group in pod.supplemental_groups.iter().flatten() {
        identity.groups.push(number(*group)?);
    }
    identity.groups.sort_unstable();
    identity.groups.dedup();
    let must_not_be_root = security.run_as_non_root.or(pod.run_as_non_root) == Some(true);
    if must_not_be_root && wanted == Some(0) {
        return Err("container's runAsUser breaks non-root policy".to_owned());
    }
    if must_not_be_root && identity.uid == 0 {
        return Err("container has runAsNonRoot and image will run as root".to_owned());
    }
    Ok((identity, found.home))
}

async fn mounts(
    context: &Arc<Context>,
    order: &Order,
    spec: &PodSpec,
    variables: &[(String, String)],
) -> crate::Result<Vec<MountPoint>> {
    let shared = &order.sandbox.directory;
    let bind = |source: PathBuf, target: &str, read_only: bool, propagation: &str| MountPoint {
        target: target.to_owned(),
        place: Place::Bind { source, propagation: propagation.to_owned() },
        access: Access::read_only(read_only),
    };
    let mut list = vec![
        bind(shared.join("hosts"), "/etc/hosts", false, ""),
        bind(shared.join("hostname"), "/etc/hostname", false, ""),
        bind(shared.join("resolv.conf"), "/etc/resolv.conf", false, ""),
    ];
    if spec.host_ipc != Some(true) {
        list.push(bind(shared.join("shm"), "/dev/shm", false, ""));
    }
    let words = termination_file(context, &order.id);
    std::fs::write(&words, "").map_err(Error::io("create", &words))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&words, mode).map_err(Error::io("change mode of", &words))?;
    list.push(bind(words, order.container.termination_message_path.as_deref().unwrap_or(TERMINATION_PATH), false, ""));
    for (index, wanted) in order.container.volume_mounts.iter().flatten().enumerate() {
        let volume = order
            .volumes
            .get(&wanted.name)
            .ok_or_else(|| Error::Invalid(format!("volume {:?} is not in the pod", wanted.name)))?;
        let sub = match (&wanted.sub_path_expr, &wanted.sub_path) {
            (Some(text), _) => environment::expand(text, variables),
            (None, Some(path)) => path.clone(),
            (None, None) => String::new(),
        };
        let propagation = match wanted.mount_propagation.as_deref() {
            Some("HostToContainer") => "rslave",
            Some("Bidirectional") => "rshared",
            _ => "",
        };
        let source = if sub.is_empty() {
            volume.clone()
        } else {
            let pin = shared.join("subpaths").join(format!("{}-{index}", order.container.name));
            let volume = volume.clone();
            let options = sub_path::Options { make: true, both_ways: propagation == "rshared" };
            let job = move || sub_path::pin(&volume, Path::new(&sub), &pin, options).map(|()| pin);
            tokio::task::spawn_blocking(job).await.map_err(|e| Error::Invalid(e.to_string()))??
        };
        let target = if wanted.mount_path.starts_with('/') {
            wanted.mount_path.clone()
        } else {
            format!("/{}", wanted.mount_path)
        };
        list.retain(|m| m.target != target);
        list.push(bind(source, &target, only_reads(spec, wanted), propagation));
    }
    Ok(list)
}

/// Whether a container only reads a volume: where it asks for that, and what the machine writes.
fn only_reads(spec: &PodSpec, wanted: &VolumeMount) -> bool {
    let ours = |volume: &Volume| volume.name == wanted.name && volumes::is_of_files(volume);
    wanted.read_only == Some(true) || spec.volumes.iter().flatten().any(ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn command_and_arguments_combine_as_kubernetes_says() {
        let image: image::ImageConfig =
            serde_json::from_value(json!({"config": {"Entrypoint": ["/entry"], "Cmd": ["default"]}})).unwrap();
        let check = |spec: serde_json::Value, expected: &[&str]| {
            let container: Container = serde_json::from_value(spec).unwrap();
            assert_eq!(command(&container, &image, &[("A".into(), "1".into())]).unwrap(), expected);
        };
        check(json!({"name": "c"}), &["/entry", "default"]);
        check(json!({"name": "c", "args": ["$(A)"]}), &["/entry", "1"]);
        check(json!({"name": "c", "command": ["x"]}), &["x"]);
        check(json!({"name": "c", "command": ["x"], "args": ["y"]}), &["x", "y"]);
    }

    #[test]
    fn run_ids_are_stable_and_differ_per_attempt() {
        assert_eq!(run_id("u", "c", 1), run_id("u", "c", 1));
        assert_ne!(run_id("u", "c", 1), run_id("u", "c", 2));
        assert_eq!(run_id("u", "c", 1).len(), 64);
    }

    #[test]
    fn what_the_machine_writes_no_container_does_whatever_it_asks_for() {
        let volumes = json!([{"name": "map", "configMap": {"name": "m"}}, {"name": "empty", "emptyDir": {}}]);
        let spec: PodSpec = serde_json::from_value(json!({"containers": [], "volumes": volumes})).unwrap();
        let check = |name: &str, read_only: Option<bool>, expected: bool| {
            let wanted = VolumeMount { name: name.to_owned(), read_only, ..VolumeMount::default() };
            assert_eq!(only_reads(&spec, &wanted), expected, "{name} {read_only:?}");
        };
        check("map", None, true);
        check("map", Some(false), true);
        check("empty", None, false);
        check("empty", Some(true), true);
    }
}
