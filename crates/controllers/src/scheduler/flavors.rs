//! Sizes that guests take from a flavor: what they do not say themselves. Pure.

use std::collections::HashMap;

use api::{Flavor, FlavorSpec, VirtualMachine};
use kube::ResourceExt;

/// What is known of flavors, and the guests whose size one decides.
#[derive(Default)]
pub struct Flavors {
    known: HashMap<String, FlavorSpec>,
    guests: HashMap<String, VirtualMachine>,
}

/// The id of a flavor.
pub fn id(flavor: &Flavor) -> String {
    format!("flavor/{}", flavor.name_any())
}

impl Flavors {
    /// Takes in a flavor; the guests that it changes.
    pub fn see(&mut self, flavor: &Flavor) -> Vec<VirtualMachine> {
        let name = flavor.name_any();
        if self.known.insert(name.clone(), flavor.spec.clone()).as_ref() == Some(&flavor.spec) {
            return Vec::new();
        }
        self.guests.values().filter(|guest| guest.spec.flavor == name).cloned().collect()
    }

    /// Forgets a flavor or a guest by its id. Guests that have a size from a flavor keep it.
    pub fn forget(&mut self, id: &str) {
        self.guests.remove(id);
        if let Some(name) = id.strip_prefix("flavor/") {
            self.known.remove(name);
        }
    }

    /// The flavor that completes a guest's size; remembers the guest. `None` where there is none, so that its host can say so.
    pub fn of(&mut self, id: &str, guest: &VirtualMachine) -> Option<&FlavorSpec> {
        if guest.spec.flavor.is_empty() || guest.spec.cpus > 0 && guest.spec.memory.is_some() {
            self.guests.remove(id);
            return None;
        }
        self.guests.insert(id.to_owned(), guest.clone());
        self.known.get(&guest.spec.flavor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::convert::guest_workload;
    use super::*;

    fn guest(spec: serde_json::Value) -> VirtualMachine {
        serde_json::from_value(json!({"metadata": {"name": "g", "namespace": "a"}, "spec": spec})).unwrap()
    }

    fn flavor(cpus: u32, memory: &str) -> Flavor {
        serde_json::from_value(json!({"metadata": {"name": "small"}, "spec": {"cpus": cpus, "memory": memory}}))
            .unwrap()
    }

    #[test]
    fn a_flavor_says_what_a_guest_does_not() {
        let mut flavors = Flavors::default();
        let plain = guest(json!({"flavor": "small"}));
        assert_eq!(flavors.of("guest/a/g", &plain), None);
        // It comes after the guest.
        assert_eq!(flavors.see(&flavor(2, "3Gi")).len(), 1);
        assert_eq!(flavors.see(&flavor(2, "3Gi")).len(), 0);
        let size = |flavors: &mut Flavors, guest: &VirtualMachine| {
            let asked = guest_workload(guest, flavors.of("guest/a/g", guest)).requests;
            (asked.cpu_millis, asked.memory_bytes >> 20)
        };
        assert_eq!(size(&mut flavors, &plain), (2000, 3072));
        assert_eq!(size(&mut flavors, &guest(json!({"flavor": "small", "memory": "1Gi"}))), (2000, 1024));
        assert_eq!(size(&mut flavors, &guest(json!({"flavor": "small", "cpus": 1, "memory": "1Gi"}))), (1000, 1024));
        // Who has a size of its own does not care any more.
        assert_eq!(flavors.see(&flavor(4, "3Gi")).len(), 0);
        flavors.forget("flavor/small");
        assert_eq!(size(&mut flavors, &plain), (1000, 512));
    }
}
