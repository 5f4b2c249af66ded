//! What operations cost, in CPU time of this process and of the processes that it starts. The bounds are several times
//! what is measured (printed with `--no-capture`), so that they only catch a change of kind, such as a process per call.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use network::{AttachRequest, DEFAULT_NETWORK, PortMapping, Protocol};
use nix::sys::resource::{UsageWho, getrusage};

use crate::lab;

fn cpu() -> Duration {
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
        .into_iter()
        .map(|who| {
            let usage = getrusage(who).unwrap();
            let times = [usage.user_time(), usage.system_time()];
            times
                .iter()
                .map(|t| {
                    Duration::new(t.tv_sec().unsigned_abs(), 0) + Duration::from_micros(t.tv_usec().unsigned_abs())
                })
                .sum::<Duration>()
        })
        .sum()
}

#[test]
fn an_attachment_costs_a_few_milliseconds_and_a_published_port_far_less() {
    const ROUNDS: u32 = 50;
    lab::run(|lab| async move {
        let report = |what: &str, start: (Instant, Duration)| {
            let (wall, used) = (start.0.elapsed() / ROUNDS, (cpu() - start.1) / ROUNDS);
            eprintln!("{what}: {wall:?} wall, {used:?} CPU");
            used
        };
        let start = (Instant::now(), cpu());
        for round in 0..ROUNDS {
            lab.fabric.create_namespace(&format!("w{round}")).await.unwrap();
        }
        let namespaces = report("create_namespace", start);
        let start = (Instant::now(), cpu());
        for round in 0..ROUNDS {
            let owner = format!("w{round}");
            let namespace = lab.fabric.namespace_path(&owner);
            let request = AttachRequest { owner, namespace, network: DEFAULT_NETWORK.into(), ..Default::default() };
            lab.fabric.attach(request).await.unwrap();
        }
        let attach = report("attach", start);
        let start = (Instant::now(), cpu());
        for round in 0..ROUNDS {
            let mapping = PortMapping {
                host_address: None,
                host_port: 0,
                host_port_end: 0,
                target_port: 80,
                protocol: Protocol::Tcp,
            };
            lab.fabric.publish(&format!("w{round}"), Ipv4Addr::new(10, 88, 0, 2), vec![mapping]).await.unwrap();
        }
        let publish = report("publish", start);
        let start = (Instant::now(), cpu());
        for round in 0..ROUNDS {
            lab.fabric.release(&format!("w{round}")).await.unwrap();
        }
        let release = report("release (interface and port)", start);
        let start = (Instant::now(), cpu());
        for round in 0..ROUNDS {
            lab.fabric.remove_namespace(&format!("w{round}")).await.unwrap();
        }
        let removal = report("remove_namespace", start);
        assert!(namespaces + attach + release + removal < Duration::from_millis(50));
        assert!(publish < Duration::from_millis(10));
    });
}
