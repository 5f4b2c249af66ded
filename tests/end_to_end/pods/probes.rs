//! Every way to probe, and what each verdict leads to.

use anyhow::Result;

use super::{becomes, pod, ready, told, value};
use crate::with_images;

const FAST: &str = "periodSeconds: 1, failureThreshold: 1";

#[test]
fn every_kind_of_probe_passes_and_fails() -> Result<()> {
    let nuee = with_images()?;
    let api = "host: 10.88.0.1, port: 6443, scheme: HTTPS, path: /livez";
    let serve = "echo ok > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    let port = "    ports: [{name: web, containerPort: 8080}]\n";
    let manifest = [
        pod("exec-ready", "sleep 2; touch /tmp/up; sleep 600", "", &format!("    readinessProbe: {{exec: {{command: [cat, /tmp/up]}}, {FAST}}}")),
        pod("http-ready", serve, "", &format!("{port}    readinessProbe: {{httpGet: {{port: web, path: /index.html}}, {FAST}}}")),
        pod("https-ready", "sleep 600", "", &format!("    readinessProbe: {{httpGet: {{{api}}}, {FAST}}}")),
        pod("tcp-ready", serve, "", &format!("    readinessProbe: {{tcpSocket: {{port: 8080}}, {FAST}}}")),
        // etcd answers gRPC's health checks; it brings its libraries along.
        pod(
            "grpc-ready",
            "exec /usr/bin/etcd --data-dir /tmp/etcd --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://127.0.0.1:2379",
            "  volumes: [{name: etcd, hostPath: {path: /usr/bin/etcd}}, {name: lib, hostPath: {path: /lib/x86_64-linux-gnu}}, {name: lib64, hostPath: {path: /lib64}}]",
            &format!("    volumeMounts: [{{name: etcd, mountPath: /usr/bin/etcd, readOnly: true}}, {{name: lib, mountPath: /lib/x86_64-linux-gnu, readOnly: true}}, {{name: lib64, mountPath: /lib64, readOnly: true}}]\n    readinessProbe: {{grpc: {{port: 2379}}, {FAST}}}"),
        ),
        pod("http-unready", serve, "", &format!("    readinessProbe: {{httpGet: {{port: 8080, path: /nothing}}, {FAST}}}")),
        pod("tcp-unready", "sleep 600", "", &format!("    readinessProbe: {{tcpSocket: {{port: 9}}, {FAST}}}")),
        pod("grpc-unready", serve, "", &format!("    readinessProbe: {{grpc: {{port: 8080}}, {FAST}}}")),
        pod("dead", "touch /tmp/up; sleep 2; rm /tmp/up; sleep 600", "", &format!("    livenessProbe: {{exec: {{command: [cat, /tmp/up]}}, {FAST}}}")),
        pod(
            "http-dead",
            "echo ok > /tmp/page; httpd -p 8080 -h /tmp; sleep 3; rm /tmp/page; sleep 600",
            "",
            &format!("    livenessProbe: {{httpGet: {{port: 8080, path: /page}}, initialDelaySeconds: 1, {FAST}}}"),
        ),
        pod(
            "http-alive",
            "echo ok > /tmp/page; httpd -p 8080 -h /tmp; sleep 600",
            "",
            "    livenessProbe: {httpGet: {port: 8080, path: /page}, initialDelaySeconds: 1, periodSeconds: 1, failureThreshold: 30}",
        ),
        pod(
            "tcp-dead",
            "httpd -p 8080 -h /tmp; sleep 3; killall httpd; sleep 600",
            "",
            &format!("    livenessProbe: {{tcpSocket: {{port: 8080}}, initialDelaySeconds: 1, {FAST}}}"),
        ),
        pod("grpc-dead", serve, "", &format!("    livenessProbe: {{grpc: {{port: 8080}}, initialDelaySeconds: 1, {FAST}}}")),
        // Until the start-up probe has passed, the liveness probe, which would fail, does not run.
        pod(
            "slow",
            "sleep 3; touch /tmp/up; sleep 600",
            "",
            &format!("    startupProbe: {{exec: {{command: [cat, /tmp/up]}}, periodSeconds: 1, failureThreshold: 60}}\n    livenessProbe: {{exec: {{command: [cat, /tmp/up]}}, {FAST}}}"),
        ),
        pod("never-up", "sleep 600", "", "    startupProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1, failureThreshold: 2}"),
    ]
    .concat();
    nuee.apply(&manifest)?.success()?;
    ready(&nuee, &["exec-ready", "http-ready", "https-ready", "tcp-ready", "grpc-ready", "slow"])?;
    assert_eq!(value(&nuee, "pod/slow", ".status.containerStatuses[0].restartCount")?, "0");
    told(&nuee, "http-unready", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404")?;
    told(&nuee, "tcp-unready", "Unhealthy", "Readiness probe failed: dial tcp")?;
    told(&nuee, "grpc-unready", "Unhealthy", "Readiness probe failed")?;
    for name in ["http-unready", "tcp-unready", "grpc-unready"] {
        becomes(
            &nuee,
            &format!("pod/{name}"),
            ".status.conditions[?(@.type=='ContainersReady')].reason",
            "ContainersNotReady",
        )?;
    }
    told(&nuee, "dead", "Killing", "Container c failed liveness probe, will be restarted")?;
    becomes(&nuee, "pod/dead", ".status.containerStatuses[0].restartCount", "1")?;
    // The other ways to look lead to the same: gone from its page, gone from its port, and a port that speaks no gRPC.
    for name in ["http-dead", "tcp-dead", "grpc-dead"] {
        told(&nuee, name, "Killing", "Container c failed liveness probe, will be restarted")?;
        nuee.eventually(&format!("{name} is started again"), || {
            Ok(value(&nuee, &format!("pod/{name}"), ".status.containerStatuses[0].restartCount")?.parse::<u32>()? >= 1)
        })?;
    }
    assert_eq!(value(&nuee, "pod/http-alive", ".status.containerStatuses[0].restartCount")?, "0");
    told(&nuee, "never-up", "Killing", "Container c failed startup probe, will be restarted")?;
    // A pod that was ready is taken out again.
    nuee.kubectl(&["exec", "exec-ready", "--", "rm", "/tmp/up"])?.success()?;
    becomes(&nuee, "pod/exec-ready", ".status.conditions[?(@.type=='Ready')].status", "False")?;
    nuee.finish()
}
