//! The subresources that are streams: `log`, `exec`, `attach`, `portforward` of pods, `log` and `console` of virtual machines. The
//! machine does the work through `node::Node`; this module checks rights and the object, and speaks the wire protocols.

mod log;
mod port_forward;
mod session;
mod spdy;
mod spdy_headers;
mod spdy_pipe;
mod spdy_session;
mod websocket;

use apiserver::{GetOptions, RequestContext, ResourcePath, Status};
use axum::response::Response;
use http::Method;
use node::Workload;
use serde_json::{Value, json};

use crate::resource::{Call, not_allowed};

/// Group of virtual machines.
const MACHINES: &str = "nuee.dev";

/// Which protocol a subresource speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// A text stream.
    Log,
    /// A new process.
    Exec,
    /// The main process.
    Attach,
    /// TCP ports.
    PortForward,
    /// The serial console of a virtual machine, by the protocol of `attach`.
    Console,
}

/// The protocol of a path; `None` for plain resources.
pub(crate) fn protocol(path: &ResourcePath) -> Option<Protocol> {
    match (path.group.as_str(), path.resource.as_str(), path.subresource.as_deref()?) {
        ("", "pods", "log") | (MACHINES, "virtualmachines", "log") => Some(Protocol::Log),
        (MACHINES, "virtualmachines", "console") => Some(Protocol::Console),
        ("", "pods", "exec") => Some(Protocol::Exec),
        ("", "pods", "attach") => Some(Protocol::Attach),
        ("", "pods", "portforward") => Some(Protocol::PortForward),
        _ => None,
    }
}

/// Serves one of the streams.
pub(crate) async fn serve(protocol: Protocol, call: Call) -> Result<Response, Status> {
    // Opening a stream into a container is a write, whatever the HTTP method; a WebSocket can only be opened by GET.
    let (verb, methods): (_, &[Method]) = match protocol {
        Protocol::Log => ("get", &[Method::GET]),
        _ => ("create", &[Method::GET, Method::POST]),
    };
    if !methods.contains(&call.parts.method) {
        return Err(not_allowed(&call));
    }
    let record = (call.state.api.clone(), call.context.clone(), call.path.clone());
    let answer = open(protocol, call, verb).await;
    // Recorded when the stream opens: it may last for days, and who looked must be known before that.
    let code = answer.as_ref().map_or_else(|status| status.code, |response| response.status().as_u16());
    let (api, context, path) = record;
    api.audit(&context, &path, verb, code);
    answer
}

async fn open(protocol: Protocol, call: Call, verb: &str) -> Result<Response, Status> {
    authorize(&call, verb)?;
    let object = object(&call).await?;
    if protocol == Protocol::Log {
        return log::serve(&call, &object).await;
    }
    let warnings = call.state.api.admit_connection(&call.context, &call.path, &options(protocol, &call)).await?;
    let mut response = match protocol {
        Protocol::PortForward => port_forward::serve(call, &object).await,
        _ => session::serve(protocol, call, &object).await,
    }?;
    crate::router::with_warnings(&mut response, warnings);
    Ok(response)
}

/// The object that describes the connection to admission.
fn options(protocol: Protocol, call: &Call) -> Value {
    let flag = |name: &str| call.query.flag(name);
    let kind = match protocol {
        Protocol::PortForward => return json!({"apiVersion": "v1", "kind": "PodPortForwardOptions"}),
        Protocol::Console => {
            return json!({"apiVersion": "nuee.dev/v1", "kind": "VirtualMachineConsoleOptions", "stdin": flag("stdin"),
                "past": flag("past")});
        }
        Protocol::Attach => "PodAttachOptions",
        _ => "PodExecOptions",
    };
    let mut options = json!({"apiVersion": "v1", "kind": kind, "stdin": flag("stdin"), "stdout": flag("stdout"),
        "stderr": flag("stderr"), "tty": flag("tty"), "container": call.query.text("container").unwrap_or_default()});
    if protocol == Protocol::Exec {
        options["command"] = json!(call.query.all("command"));
    }
    options
}

fn authorize(call: &Call, verb: &str) -> Result<(), Status> {
    let user = &call.context.user;
    if call.state.api.authorize(user, &call.path.attributes(verb)).allowed {
        return Ok(());
    }
    let (group, plural) = (call.path.group.as_str(), call.path.resource.as_str());
    let resource = format!("{plural}/{}", call.path.subresource.as_deref().unwrap_or_default());
    let detail = format!(
        "User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" in the namespace \"{}\"",
        user.name,
        call.path.namespace.as_deref().unwrap_or_default()
    );
    Err(Status::forbidden(group, plural, call.path.name.as_deref().unwrap_or_default(), &detail))
}

/// The object. Who may read its log need not have the right to read the object itself.
async fn object(call: &Call) -> Result<Value, Status> {
    let path = ResourcePath { subresource: None, ..call.path.clone() };
    let context = RequestContext::internal("system:apiserver");
    Ok(call.state.api.get(&context, &path, &GetOptions::default()).await?.to_value())
}

/// The container that is meant: named, or the default one, or the only one.
fn container(call: &Call, pod: &Value) -> Result<String, Status> {
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let names = |list: &str| -> Vec<String> {
        let items = pod["spec"][list].as_array().into_iter().flatten();
        items.filter_map(|one| one["name"].as_str().map(str::to_owned)).collect()
    };
    let pod_name = call.path.name.as_deref().unwrap_or_default();
    if let Some(wanted) = call.query.text("container") {
        let known = lists.iter().any(|list| names(list).contains(&wanted));
        return if known {
            Ok(wanted)
        } else {
            Err(Status::bad_request(format!("container {wanted} is not valid for pod {pod_name}")))
        };
    }
    let containers = names("containers");
    let annotation =
        pod.pointer("/metadata/annotations/kubectl.kubernetes.io~1default-container").and_then(Value::as_str);
    if let Some(default) = annotation.filter(|name| containers.iter().any(|one| one == name)) {
        return Ok(default.to_owned());
    }
    match containers.as_slice() {
        [only] => Ok(only.clone()),
        many => {
            let choices = many.join(" ");
            Err(Status::bad_request(format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{choices}]"
            )))
        }
    }
}

/// What the machine is asked about.
fn workload(call: &Call, object: &Value) -> Result<Workload, Status> {
    let namespace = call.path.namespace.clone().unwrap_or_default();
    let name = call.path.name.clone().unwrap_or_default();
    if call.path.resource != "pods" {
        return Ok(Workload::VirtualMachine { namespace, name });
    }
    Ok(in_pod(call, container(call, object)?))
}

fn in_pod(call: &Call, container: String) -> Workload {
    Workload::PodContainer {
        namespace: call.path.namespace.clone().unwrap_or_default(),
        pod: call.path.name.clone().unwrap_or_default(),
        container,
    }
}

/// A machine's error as a status.
fn node_status(error: node::Error) -> Status {
    match error {
        node::Error::NotFound(message) => Status::new(404, apiserver::Reason::NotFound, message),
        node::Error::Conflict(message) | node::Error::Invalid(message) => Status::bad_request(message),
        node::Error::Forbidden(message) => Status::new(403, apiserver::Reason::Forbidden, message),
        node::Error::NotSupported(message) => Status::new(501, apiserver::Reason::Unknown, message),
        node::Error::Unavailable(message) => Status::unavailable(message),
        other => Status::internal(other),
    }
}
