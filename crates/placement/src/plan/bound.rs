//! A proven lower bound on power: the least that any placement could draw, even one that cuts workloads into pieces.
//!
//! Machines of a class run at points of their power curves; the shares of time or machines at each point are the variables of a
//! linear program with one covering constraint for each of processor time and memory. Its Lagrangian dual, for prices `a` of
//! processor time and `b` of memory, is
//!
//! ```text
//! a·cpu + b·memory + Σ sleep − Σ_classes count · max(0, max_points(a·load·cpu_k + b·memory_k − (watts(load) − sleep_k)))
//! ```
//!
//! Every pair of prices gives a valid bound (weak duality), so a search that stops early loses sharpness, never truth. As power
//! curves need not be convex, this is the bound of their lower hulls.

use super::snapshot::{CPU, MEMORY, Machine, MachineState, Snapshot};
use super::total;
use crate::power::PowerCurve;

/// Rounds of the search for the best price; each leaves two thirds of the interval.
const ROUNDS: usize = 48;

/// Machines that are all alike.
#[derive(Clone, Debug)]
pub struct Class {
    /// How many there are.
    pub count: f64,
    /// Processor time of one.
    pub cpu: f64,
    /// Memory of one.
    pub memory: f64,
    /// What one draws when on.
    pub power: PowerCurve,
    /// What one draws asleep. Units: watts.
    pub sleep_watts: f64,
}

/// The least power that serves so much processor time and memory. Units: watts.
pub fn watts(classes: &[Class], cpu: f64, memory: f64) -> f64 {
    let dearest =
        |per: fn(&Class) -> f64| classes.iter().map(|class| class.power.full() / per(class)).fold(0.0, f64::max);
    let (top_cpu, top_memory) = (2.0 * dearest(|class| class.cpu), 2.0 * dearest(|class| class.memory));
    let best_for =
        |memory_price: f64| maximum(top_cpu, |cpu_price| dual(classes, cpu, memory, cpu_price, memory_price));
    if memory <= 0.0 { best_for(0.0) } else { maximum(top_memory, best_for) }
}

/// The bound for what runs in a snapshot. Units: watts.
pub fn of(snapshot: &Snapshot) -> f64 {
    let mut classes: Vec<Class> = Vec::new();
    for machine in snapshot.machines().iter().filter(|machine| machine.state != MachineState::Failed) {
        match classes.iter_mut().find(|class| is_alike(class, machine)) {
            Some(class) => class.count += 1.0,
            None => classes.push(Class {
                count: 1.0,
                cpu: machine.capacity[CPU],
                memory: machine.capacity[MEMORY],
                power: machine.power.clone(),
                sleep_watts: machine.sleep_watts,
            }),
        }
    }
    let placed = || snapshot.workloads().iter().filter(|workload| workload.machine.is_some());
    let memory = total(placed().map(|workload| workload.memory_min));
    watts(&classes, total(placed().map(|workload| workload.uses[CPU])), memory)
}

fn is_alike(class: &Class, machine: &Machine) -> bool {
    class.cpu == machine.capacity[CPU]
        && class.memory == machine.capacity[MEMORY]
        && class.sleep_watts == machine.sleep_watts
        && class.power == machine.power
}

fn dual(classes: &[Class], cpu: f64, memory: f64, cpu_price: f64, memory_price: f64) -> f64 {
    let mut sum = cpu_price * cpu + memory_price * memory;
    for class in classes {
        let worth = class.power.points().map(|(load, watts)| {
            cpu_price * load * class.cpu + memory_price * class.memory - (watts - class.sleep_watts)
        });
        sum += class.count * (class.sleep_watts - worth.fold(0.0, f64::max));
    }
    sum
}

/// The greatest value of a concave function between 0 and `top`, or a little less.
fn maximum(top: f64, value: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, top);
    for _ in 0..ROUNDS {
        let (left, right) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
        if value(left) < value(right) {
            low = left;
        } else {
            high = right;
        }
    }
    value(f64::midpoint(low, high)).max(value(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(count: f64, idle: f64, full: f64) -> Class {
        let power = PowerCurve::linear(idle, full).expect("a curve");
        Class { count, cpu: 10.0, memory: 100.0, power, sleep_watts: 0.0 }
    }

    #[test]
    fn the_best_machines_at_full_load_are_the_floor() {
        let found = watts(&[class(10.0, 90.0, 120.0), class(3.0, 90.0, 100.0)], 40.0, 0.0);
        assert!((found - 420.0).abs() < 1e-3, "{found}");
    }

    #[test]
    fn memory_can_bind() {
        // Five machines must be on for their memory; they do the work of one.
        let found = watts(&[class(10.0, 90.0, 120.0)], 10.0, 500.0);
        assert!((found - 480.0).abs() < 1e-2, "{found}");
    }

    #[test]
    fn sleep_is_paid_for_by_those_that_sleep() {
        let mut sleepy = class(10.0, 90.0, 120.0);
        sleepy.sleep_watts = 5.0;
        let found = watts(&[sleepy], 20.0, 0.0);
        assert!((found - 280.0).abs() < 1e-3, "{found}");
    }
}
