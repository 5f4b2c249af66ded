//! What a container costs beyond its own work. The figures are printed (`--no-capture`); the bounds are generous, so that a
//! busy machine and an unoptimised build pass.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::place::{Place, run};

/// Measured runs; the first is left out.
const RUNS: u32 = 20;
/// Containers to adopt.
const MANY: usize = 100;

/// Processor time of this process and of all that it has waited for.
fn processor_time() -> Duration {
    let of = |who| {
        let usage = getrusage(who).unwrap();
        let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(u64::try_from(microseconds).unwrap())
    };
    of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)
}

#[tokio::test]
async fn a_run_and_an_exec_cost_little() {
    let place = Place::new();
    let once = async |id: &str| {
        place.start(id, run(&["/bin/true"])).await;
        place.wait(id).await;
        place.runtime.delete(id).await.unwrap();
    };
    once("warm").await;
    let (time, begin) = (processor_time(), Instant::now());
    for number in 0..RUNS {
        once(&format!("run{number}")).await;
    }
    let (time, wall) = ((processor_time() - time) / RUNS, begin.elapsed() / RUNS);
    eprintln!("create, start, wait, delete: {wall:?} wall, {time:?} processor");
    assert!(time < Duration::from_millis(100), "{time:?}");

    place.start("long", run(&["/bin/sleep", "1000"])).await;
    place.exec("long", &["/bin/true"]).await;
    let begin = Instant::now();
    for _ in 0..RUNS {
        place.exec("long", &["/bin/true"]).await;
    }
    eprintln!("exec: {:?} wall", begin.elapsed() / RUNS);
    let state = std::fs::read_to_string(place.directory.path().join("containers/long/shim/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let memory = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", state["shim_pid"])).unwrap();
    let kilobytes = |key: &str| -> u64 {
        memory.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok()).unwrap()
    };
    let private = kilobytes("Private_Dirty:") + kilobytes("Private_Clean:");
    eprintln!("shim: {} KiB resident, {} proportional, {private} private", kilobytes("Rss:"), kilobytes("Pss:"));
    assert!(kilobytes("Private_Dirty:") < 2_048, "{memory}");
    let before = processor_time();
    place.runtime.delete("long").await.unwrap();
    eprintln!("{} execs: {:?} processor in the shim", RUNS + 1, processor_time() - before);
    place.close().await;
}

#[tokio::test]
async fn a_hundred_containers_are_adopted_in_far_less_than_a_second() {
    let place = Place::new();
    for number in 0..MANY {
        place.start(&format!("c{number}"), run(&["/bin/sleep", "1000"])).await;
    }
    let begin = Instant::now();
    let second = place.reopened();
    let found = second.list().await.unwrap();
    let took = begin.elapsed();
    eprintln!("{MANY} containers adopted in {took:?}");
    assert_eq!(found.iter().filter(|state| state.pid > 0).count(), MANY);
    assert!(took < Duration::from_millis(500), "{took:?}");
    place.close().await;
}
