//! A snapshot of all kinds that are served: the built-in ones and those of CustomResourceDefinitions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::kind::Kind;

/// A group and one of its versions.
pub type GroupVersion = (String, String);

/// All kinds at one moment. Versions of a group are in the order of Kubernetes' preference (v1 before v1beta1).
#[derive(Debug, Default)]
pub struct KindTable {
    kinds: Vec<Arc<Kind>>,
    by_resource: HashMap<(String, String, String), Arc<Kind>>,
    by_kind: HashMap<(String, String, String), Arc<Kind>>,
    groups: BTreeMap<String, Vec<String>>,
    generation: u64,
}

impl KindTable {
    /// Builds the table; of two kinds with the same group, version and plural the first wins.
    pub fn new(kinds: impl IntoIterator<Item = Arc<Kind>>, generation: u64) -> KindTable {
        let mut table = KindTable { generation, ..KindTable::default() };
        for kind in kinds {
            let resource = (kind.group.clone(), kind.version.clone(), kind.plural.clone());
            if table.by_resource.contains_key(&resource) {
                continue;
            }
            let versions = table.groups.entry(kind.group.clone()).or_default();
            if !versions.contains(&kind.version) {
                versions.push(kind.version.clone());
            }
            table.by_kind.insert((kind.group.clone(), kind.version.clone(), kind.kind.clone()), kind.clone());
            table.by_resource.insert(resource, kind.clone());
            table.kinds.push(kind);
        }
        for versions in table.groups.values_mut() {
            versions.sort_by(|a, b| version_priority(b).cmp(&version_priority(a)).then_with(|| a.cmp(b)));
        }
        table
    }

    /// The kind served at `group/version/resource`.
    pub fn lookup(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Kind>> {
        self.by_resource.get(&(group.to_owned(), version.to_owned(), resource.to_owned()))
    }

    /// The kind of that name.
    pub fn lookup_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.by_kind.get(&(group.to_owned(), version.to_owned(), kind.to_owned()))
    }

    /// The resource in the group's preferred version that has it.
    pub fn lookup_any_version(&self, group: &str, resource: &str) -> Option<&Arc<Kind>> {
        self.groups.get(group)?.iter().find_map(|version| self.lookup(group, version, resource))
    }

    /// All groups with their versions, the preferred version first; the core group is the empty string.
    pub fn groups(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.groups.iter().map(|(group, versions)| (group.as_str(), versions.as_slice()))
    }

    /// The kinds of one group and version, in order of registration.
    pub fn in_version<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Arc<Kind>> {
        self.kinds.iter().filter(move |kind| kind.group == group && kind.version == version)
    }

    /// All kinds in order of registration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.iter()
    }

    /// Rises with every change of the table; discovery documents may be kept as long as it stays.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// Orders versions as Kubernetes does: stable before beta before alpha, then by numbers; other names last.
fn version_priority(version: &str) -> (u8, u64, u64) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse::<u64>() else { return (0, 0, 0) };
    let stage = &rest[digits..];
    if stage.is_empty() {
        return (3, major, 0);
    }
    for (name, rank) in [("beta", 2), ("alpha", 1)] {
        if let Some(minor) = stage.strip_prefix(name).and_then(|minor| minor.parse::<u64>().ok()) {
            return (rank, major, minor);
        }
    }
    (0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order_of_preference() {
        let kinds = ["v1alpha1", "v2", "v1beta1", "foo", "v1", "v1beta2"];
        let table = KindTable::new(kinds.iter().map(|v| Arc::new(Kind::new("g", v, "K", "ks"))), 1);
        let (_, versions) = table.groups().next().unwrap();
        assert_eq!(versions, ["v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
        assert_eq!(table.lookup_any_version("g", "ks").unwrap().version, "v2");
    }
}
