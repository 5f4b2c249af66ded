//! What workloads that are no pods ask of the machine that they are placed on: the one reckoning of the scheduler and of what is
//! shown of a machine.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{ContainerSpec, FlavorSpec, VirtualMachineSpec, quantity};

/// Memory of a machine that does not say. Units: bytes.
pub const GUEST_MEMORY_DEFAULT: u64 = 512 << 20;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Units: thousandths of a processor.
    pub cpu_millis: u64,
    /// Units: bytes.
    pub memory_bytes: u64,
}

/// A container asks for what it reserves, as Docker's limits are no requests; a task of a service for what its service says.
pub fn of_container(spec: &ContainerSpec) -> Requests {
    let amount = |number: i64| u64::try_from(number).unwrap_or(0);
    match &spec.task {
        Some(task) => Requests {
            cpu_millis: amount(task.placement.nano_cpus).div_ceil(1_000_000),
            memory_bytes: amount(task.placement.memory_bytes),
        },
        None => Requests { cpu_millis: 0, memory_bytes: amount(spec.resources.memory_reservation_bytes) },
    }
}

/// A guest asks for all that it is given, whether or not it runs. `flavor` says what it does not.
pub fn of_guest(spec: &VirtualMachineSpec, flavor: Option<&FlavorSpec>) -> Requests {
    let memory = spec.memory.as_ref().or(flavor.map(|flavor| &flavor.memory)).and_then(bytes);
    let cpus = if spec.cpus > 0 { spec.cpus } else { flavor.map_or(1, |flavor| flavor.cpus.max(1)) };
    Requests { cpu_millis: u64::from(cpus) * 1000, memory_bytes: memory.unwrap_or(GUEST_MEMORY_DEFAULT) }
}

/// The quantity in bytes; `None` when it says nothing.
fn bytes(quantity: &Quantity) -> Option<u64> {
    quantity::whole(&quantity.0).and_then(|value| u64::try_from(value).ok()).filter(|bytes| *bytes > 0)
}
