//! Which machines hold the disks that guests name: a guest goes where its disks are. Pure.

use std::collections::HashMap;

use api::{VirtualMachine, Volume};
use kube::ResourceExt;

/// What is known of disks, and of guests without a place that name some.
#[derive(Default)]
pub struct Disks {
    /// Their machines, by namespace and name; `None` while nobody has taken a disk.
    holders: HashMap<(String, String), Option<String>>,
    waiting: HashMap<String, VirtualMachine>,
}

/// Where a guest may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Anywhere; disks that are not there at all do not hold it up, so that its host can say so.
    Anywhere,
    /// Where its disks are.
    On(String),
    /// Nowhere yet: a disk of it is about to be taken.
    Later,
}

/// The id of a disk.
pub fn id(volume: &Volume) -> String {
    format!("volume/{}/{}", volume.namespace().unwrap_or_default(), volume.name_any())
}

impl Disks {
    /// Takes in a volume; the guests without a place that name it.
    pub fn see(&mut self, volume: &Volume) -> Vec<VirtualMachine> {
        if !volume.is_block() {
            return Vec::new();
        }
        let (namespace, name) = (volume.namespace().unwrap_or_default(), volume.name_any());
        let holder = volume.spec.node_name.clone();
        let before = self.holders.insert((namespace.clone(), name.clone()), holder.clone());
        if before == Some(holder) {
            return Vec::new();
        }
        let names = |guest: &&VirtualMachine| {
            guest.namespace().unwrap_or_default() == namespace
                && guest.spec.disks.iter().any(|disk| disk.volume == name)
        };
        self.waiting.values().filter(names).cloned().collect()
    }

    /// Forgets a disk or a guest by its id.
    pub fn forget(&mut self, id: &str) {
        self.waiting.remove(id);
        let mut parts = id.splitn(3, '/');
        if let (Some("volume"), Some(namespace), Some(name)) = (parts.next(), parts.next(), parts.next()) {
            self.holders.remove(&(namespace.to_owned(), name.to_owned()));
        }
    }

    /// Where a guest may go; remembers it while it has no place and names disks.
    pub fn choose(&mut self, id: &str, guest: &VirtualMachine) -> Choice {
        if guest.spec.node_name.is_some() || guest.spec.disks.is_empty() {
            self.waiting.remove(id);
            return Choice::Anywhere;
        }
        self.waiting.insert(id.to_owned(), guest.clone());
        let namespace = guest.namespace().unwrap_or_default();
        let mut choice = Choice::Anywhere;
        for disk in &guest.spec.disks {
            match self.holders.get(&(namespace.clone(), disk.volume.clone())) {
                Some(None) => return Choice::Later,
                // Disks of several machines never come together; the host of the first one says so.
                Some(Some(node)) if choice == Choice::Anywhere => choice = Choice::On(node.clone()),
                _ => {}
            }
        }
        choice
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_guest_goes_where_its_disks_are() {
        let volume = |name: &str, node: Option<&str>| -> Volume {
            serde_json::from_value(json!({"apiVersion": "nuee.dev/v1", "kind": "Volume",
                "metadata": {"name": name, "namespace": "default"}, "spec": {"mode": "Block", "nodeName": node}}))
            .unwrap()
        };
        let guest: VirtualMachine =
            serde_json::from_value(json!({"apiVersion": "nuee.dev/v1", "kind": "VirtualMachine",
            "metadata": {"name": "db", "namespace": "default"}, "spec": {"image": "i", "disks": [{"volume": "a"}]}}))
            .unwrap();
        let mut disks = Disks::default();
        assert_eq!(disks.choose("guest/default/db", &guest), Choice::Anywhere, "nobody made it yet");
        assert_eq!(disks.see(&volume("a", None)).len(), 1);
        assert_eq!(disks.choose("guest/default/db", &guest), Choice::Later);
        assert!(disks.see(&volume("b", Some("n1"))).is_empty());
        assert_eq!(disks.see(&volume("a", Some("n2"))).len(), 1);
        assert_eq!(disks.choose("guest/default/db", &guest), Choice::On("n2".into()));
        assert!(disks.see(&volume("a", Some("n2"))).is_empty(), "nothing new");
        disks.forget("guest/default/db");
        disks.forget("volume/default/a");
        assert_eq!(disks.choose("guest/default/db", &guest), Choice::Anywhere);
    }
}
