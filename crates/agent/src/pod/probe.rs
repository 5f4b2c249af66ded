//! Probes and hooks of pod containers: exec, HTTP, TCP, gRPC. Source: Kubernetes, "Configure Liveness, Readiness and
//! Startup Probes"; gRPC health checking protocol.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::driver::Input;
use crate::context::Context;

/// Output of a probe that is kept for events. Source: kubelet `maxProbeMessageLength`.
const MESSAGE_LIMIT: usize = 1_024;
/// Headers of an answer that are read.
const HEAD_LIMIT: usize = 16 << 10;

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Until it passes nothing else is probed.
    Startup,
    /// Its failure restarts the container.
    Liveness,
    /// Its failure takes the pod out of services.
    Readiness,
}

impl Kind {
    /// The word in events.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// Where a container can be probed.
#[derive(Clone, Debug)]
pub struct Target {
    /// Runtime id.
    pub id: String,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The container, for named ports.
    pub container: Arc<Container>,
    /// Its place in the pod.
    pub index: usize,
}

/// Probes a container until the task is aborted.
pub async fn run(context: Arc<Context>, target: Target, sender: mpsc::Sender<Input>) {
    let container = target.container.clone();
    if let Some(probe) = &container.startup_probe {
        repeat(&context, &target, Kind::Startup, probe, &sender).await;
    }
    let live = async {
        if let Some(probe) = &container.liveness_probe {
            repeat(&context, &target, Kind::Liveness, probe, &sender).await;
        }
    };
    let ready = async {
        if let Some(probe) = &container.readiness_probe {
            repeat(&context, &target, Kind::Readiness, probe, &sender).await;
        }
    };
    tokio::join!(live, ready);
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
}

/// Probes at the period; tells about changes of the verdict. A start-up probe returns when it has passed.
async fn repeat(context: &Arc<Context>, target: &Target, kind: Kind, probe: &Probe, sender: &mpsc::Sender<Input>) {
    let threshold = |value: Option<i32>, default| value.filter(|v| *v > 0).unwrap_or(default);
    let (to_fail, to_pass) = (threshold(probe.failure_threshold, 3), threshold(probe.success_threshold, 1));
    let (period, timeout) = (seconds(probe.period_seconds, 10), seconds(probe.timeout_seconds, 1));
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let (mut passes, mut failures) = (0, 0);
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let result = match tokio::time::timeout(timeout, once(context, target, probe)).await {
            Ok(result) => result,
            Err(_) => Err(format!("probe timed out after {timeout:?}")),
        };
        let input =
            |passed, text: String| Input::Probe { index: target.index, id: target.id.clone(), kind, passed, text };
        let told = match result {
            Ok(()) => {
                (passes, failures) = (passes + 1, 0);
                if passes == to_pass { sender.send(input(Some(true), String::new())).await } else { Ok(()) }
            }
            Err(text) => {
                (passes, failures) = (0, failures + 1);
                let verdict = (failures % to_fail == 0).then_some(false);
                sender.send(input(verdict, text.chars().take(MESSAGE_LIMIT).collect())).await
            }
        };
        if told.is_err() || (kind == Kind::Startup && passes >= to_pass) {
            return;
        }
    }
}

async fn once(context: &Arc<Context>, target: &Target, probe: &Probe) -> Result<(), String> {
    if let Some(action) = &probe.exec {
        return exec(context, &target.id, action).await;
    }
    if let Some(action) = &probe.http_get {
        return http_get(target, action, "kube-probe/1.36").await;
    }
    if let Some(action) = &probe.tcp_socket {
        let address = address(target, action.host.as_deref(), &action.port)?;
        return TcpStream::connect(address).await.map(drop).map_err(|error| format!("dial tcp {address}: {error}"));
    }
    if let Some(action) = &probe.grpc {
        return grpc(target, action).await;
    }
    Ok(())
}

/// Runs a hook.
pub async fn hook(context: &Arc<Context>, target: &Target, handler: &LifecycleHandler) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        return exec(context, &target.id, action).await;
    }
    if let Some(action) = &handler.http_get {
        return http_get(target, action, "kube-lifecycle/1.36").await;
    }
    if let Some(action) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
    }
    Ok(())
}

async fn exec(context: &Context, id: &str, action: &ExecAction) -> Result<(), String> {
    let request =
        node::ExecRequest { command: action.command.clone().unwrap_or_default(), ..node::ExecRequest::default() };
    let mut session = context.runtime.exec(id, request).await.map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    while let Some(piece) = session.output.next().await {
        let room = MESSAGE_LIMIT.saturating_sub(text.len());
        text.extend_from_slice(&piece.data[..piece.data.len().min(room)]);
    }
    match session.exit.await {
        Ok(exit) if exit.code == 0 => Ok(()),
        Ok(exit) if text.is_empty() => Err(format!("command exited with code {}", exit.code)),
        Ok(_) => Err(String::from_utf8_lossy(&text).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn address(target: &Target, host: Option<&str>, port: &IntOrString) -> Result<SocketAddr, String> {
    let number = match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => name.parse().ok().or_else(|| {
            let named = target.container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name));
            named.and_then(|p| u16::try_from(p.container_port).ok())
        }),
    };
    let number = number.filter(|n| *n > 0).ok_or_else(|| format!("couldn't find port: {port:?}"))?;
    let host = match host.filter(|h| !h.is_empty()) {
        Some(text) => text.parse().map_err(|_| format!("{text} is no address"))?,
        None => target.address,
    };
    Ok(SocketAddr::from((host, number)))
}

async fn http_get(target: &Target, action: &HTTPGetAction, agent: &str) -> Result<(), String> {
    let address = address(target, action.host.as_deref(), &action.port)?;
    let path = action.path.as_deref().filter(|p| p.starts_with('/')).unwrap_or("/");
    let secure = action.scheme.as_deref() == Some("HTTPS");
    let scheme = if secure { "https" } else { "http" };
    let failed = |error: &dyn std::fmt::Display| format!("Get \"{scheme}://{address}{path}\": {error}");
    let stream = TcpStream::connect(address).await.map_err(|e| failed(&format!("dial tcp {address}: {e}")))?;
    let (mut client, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_LIMIT)
        .handshake(TokioIo::new(if secure {
            super::probe_tls::wrap(stream, address.ip()).await.map_err(|e| failed(&e))?
        } else {
            Box::new(stream) as Box<dyn node::Duplex>
        }))
        .await
        .map_err(|e| failed(&e))?;
    let connection = tokio::spawn(connection);
    let mut request = http::Request::get(path).header("user-agent", agent).header("accept", "*/*");
    let headers = action.http_headers.iter().flatten();
    let mut host = address.to_string();
    for header in headers {
        if header.name.eq_ignore_ascii_case("host") {
            host.clone_from(&header.value)
        } else {
            request = request.header(&header.name, &header.value)
        }
    }
    let request = request.header("host", host).body(Full::<Bytes>::default()).map_err(|e| failed(&e))?;
    let answer = client.send_request(request).await.map_err(|e| failed(&e));
    connection.abort();
    let status = answer?.status().as_u16();
    if (200..400).contains(&status) { Ok(()) } else { Err(format!("HTTP probe failed with statuscode: {status}")) }
}

/// One call of `grpc.health.v1.Health/Check`, with the two tiny messages written by hand.
async fn grpc(target: &Target, action: &GRPCAction) -> Result<(), String> {
    let address = address(target, None, &IntOrString::Int(action.port))?;
    let failed = |error: &dyn std::fmt::Display| format!("failed to connect service \"{address}\": {error}");
    let stream = TcpStream::connect(address).await.map_err(|e| failed(&e))?;
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    let connection = tokio::spawn(connection);
    let body = Full::new(grpc_request(action.service.as_deref().unwrap_or_default()));
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .map_err(|e| failed(&e))?;
    let answer = async {
        let answer = client.send_request(request).await.map_err(|e| failed(&e))?;
        let body =
            http_body_util::Limited::new(answer.into_body(), HEAD_LIMIT).collect().await.map_err(|e| failed(&e))?;
        Ok::<_, String>(body.to_bytes())
    };
    let answer = answer.await;
    connection.abort();
    if is_serving(&answer?) { Ok(()) } else { Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()) }
}

/// A message of one string, behind the five bytes of gRPC's framing.
fn grpc_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if let (false, Ok(length @ 0..=127)) = (service.is_empty(), u8::try_from(service.len())) {
        message.extend([0x0a, length]);
        message.extend(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
    [&[0][..], &length, &message].concat().into()
}

/// Whether the answer's first field, the status, is 1.
fn is_serving(answer: &[u8]) -> bool {
    answer.len() >= 7 && answer[5] == 0x08 && answer[6] == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grpc_messages_are_as_the_protocol_has_them() {
        assert_eq!(grpc_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(grpc_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert!(is_serving(&[0, 0, 0, 0, 2, 8, 1]));
        assert!(!is_serving(&[0, 0, 0, 0, 2, 8, 2]));
        assert!(!is_serving(&[]));
    }

    #[test]
    fn ports_are_found_by_number_and_name() {
        let container: Container =
            serde_json::from_value(serde_json::json!({"name": "a", "ports": [{"name": "web", "containerPort": 8080}]}))
                .unwrap();
        let target =
            Target { id: String::new(), address: Ipv4Addr::LOCALHOST, container: Arc::new(container), index: 0 };
        let port = |p: IntOrString| address(&target, None, &p).map(|a| a.port());
        assert_eq!(port(IntOrString::Int(1)), Ok(1));
        assert_eq!(port(IntOrString::String("web".into())), Ok(8080));
        assert!(port(IntOrString::String("none".into())).is_err());
        assert!(port(IntOrString::Int(70000)).is_err());
    }
}
