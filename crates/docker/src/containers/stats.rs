//! `GET /containers/{id}/stats`: figures once a second, each with the ones before it, as `docker stats` wants them.

use std::sync::Arc;
use std::time::Duration;

use api::container::{Container, State};
use bytes::Bytes;
use kube::ResourceExt;
use node::Statistics;
use serde_json::{Map, Value, json};

use super::lifecycle::status_of;
use crate::body;
use crate::call::Call;
use crate::operation::Reply;
use crate::state::Docker;
use crate::time;

/// Time between two sets of figures.
const INTERVAL: Duration = Duration::from_secs(1);

/// Figures of one instant, and the machine's processor time then.
#[derive(Clone, Default)]
struct Sample {
    read_ns: i64,
    figures: Statistics,
    system_cpu_ns: u64,
}

async fn sample(docker: &Docker, container: &Container) -> Option<Sample> {
    if !matches!(status_of(container).state, State::Running | State::Paused) {
        return None;
    }
    let figures = docker.state.node.statistics(&docker.workload(&container.name_any())).await.ok()?;
    let system_cpu_ns = tokio::fs::read_to_string("/proc/stat").await.map_or(0, |text| system_cpu_ns(&text));
    Some(Sample { read_ns: time::now_ns(), figures, system_cpu_ns })
}

/// Processor time of the whole machine, out of the first line of /proc/stat (in hundredths of a second).
fn system_cpu_ns(proc_stat: &str) -> u64 {
    const TICK_NS: u64 = 10_000_000;
    let first = proc_stat.lines().next().unwrap_or("");
    first.split_whitespace().skip(1).take(7).filter_map(|n| n.parse::<u64>().ok()).sum::<u64>().saturating_mul(TICK_NS)
}

pub(crate) async fn container_stats(docker: Arc<Docker>, call: Call) -> Reply {
    let container = docker.container(call.parameter("id"))?;
    let stream = call.query.flag_or("stream", true);
    let one_shot = call.query.flag("one-shot");
    if !stream {
        let mut before = Sample::default();
        if !one_shot && let Some(first) = sample(&docker, &container).await {
            before = first;
            tokio::time::sleep(INTERVAL).await;
        }
        let now = sample(&docker, &container).await;
        return body::json(&render(&container, &before, now.as_ref()));
    }
    let id = container.name_any();
    let (sender, pieces) = body::channel();
    tokio::spawn(async move {
        let mut before = Sample::default();
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            let Some(container) = docker.containers.get(&id) else { return };
            let now = sample(&docker, &container).await;
            let mut text = render(&container, &before, now.as_ref()).to_string();
            text.push('\n');
            if sender.send(Bytes::from(text)).await.is_err() {
                return;
            }
            before = now.unwrap_or_default();
        }
    });
    Ok(body::stream("application/json", pieces))
}

fn render(container: &Container, before: &Sample, now: Option<&Sample>) -> Value {
    let (id, name) = (container.name_any(), format!("/{}", container.spec.name));
    let zero = || time::ZERO.to_owned();
    let Some(now) = now else {
        // Docker's answer for a container that does not run: the same shape, without figures.
        return json!({
            "read": zero(), "preread": zero(), "pids_stats": {}, "blkio_stats": {}, "num_procs": 0,
            "storage_stats": {}, "cpu_stats": cpu(&Sample::default()), "precpu_stats": cpu(&Sample::default()),
            "memory_stats": {}, "name": name, "id": id,
        });
    };
    let figures = &now.figures;
    let mut shown = json!({
        "read": time::rfc3339(now.read_ns),
        "preread": if before.read_ns == 0 { zero() } else { time::rfc3339(before.read_ns) },
        "pids_stats": { "current": figures.pids, "limit": if figures.pids_limit == 0 { u64::MAX } else { figures.pids_limit } },
        "blkio_stats": {
            "io_service_bytes_recursive": [
                { "major": 0, "minor": 0, "op": "read", "value": figures.block_read_bytes },
                { "major": 0, "minor": 0, "op": "write", "value": figures.block_write_bytes },
            ],
            "io_serviced_recursive": null, "io_queue_recursive": null, "io_service_time_recursive": null,
            "io_wait_time_recursive": null, "io_merged_recursive": null, "io_time_recursive": null,
            "sectors_recursive": null,
        },
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": cpu(now),
        "precpu_stats": cpu(before),
        "memory_stats": {
            "usage": figures.memory_bytes,
            "limit": memory_limit(figures.memory_limit_bytes),
            // cgroup v1 and v2 name it differently, and clients look for either.
            "stats": { "inactive_file": figures.memory_inactive_file_bytes, "total_inactive_file": figures.memory_inactive_file_bytes },
        },
        "name": name,
        "id": id,
    });
    if !figures.network.is_empty() {
        let networks: Map<String, Value> = figures
            .network
            .iter()
            .map(|(interface, counters)| {
                let row = json!({
                    "rx_bytes": counters.received_bytes, "rx_packets": counters.received_packets, "rx_errors": 0,
                    "rx_dropped": 0, "tx_bytes": counters.sent_bytes, "tx_packets": counters.sent_packets,
                    "tx_errors": 0, "tx_dropped": 0,
                });
                (interface.clone(), row)
            })
            .collect();
        shown["networks"] = Value::Object(networks);
    }
    shown
}

/// Without a bound of its own, a container's bound is the machine's memory.
fn memory_limit(limit_bytes: u64) -> u64 {
    let machine = crate::system::memory_total_bytes();
    if machine == 0 { limit_bytes } else { limit_bytes.min(machine) }
}

fn cpu(sample: &Sample) -> Value {
    let figures = &sample.figures;
    json!({
        "cpu_usage": {
            "total_usage": figures.cpu_ns,
            "usage_in_kernelmode": figures.cpu_kernel_ns,
            "usage_in_usermode": figures.cpu_user_ns,
        },
        "system_cpu_usage": sample.system_cpu_ns,
        "online_cpus": std::thread::available_parallelism().map_or(1, usize::from),
        "throttling_data": { "periods": 0, "throttled_periods": figures.throttled_periods, "throttled_time": 0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_of_the_machine_is_the_sum_of_the_first_seven_columns() {
        assert_eq!(system_cpu_ns("cpu  1 2 3 4 5 6 7 8 9\ncpu0 1"), 28 * 10_000_000);
        assert_eq!(system_cpu_ns(""), 0);
    }
}
