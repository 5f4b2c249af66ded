//! Which object a client means by a name, an id or the beginning of an id; and names for containers without one.

use std::sync::Arc;

use api::{Container, Network, Volume};
use kube::ResourceExt;
use rand::Rng as _;

use crate::error::{Error, Result};
use crate::state::Docker;
use crate::text::is_id_prefix;

impl Docker {
    /// Finds a container: full id, then name, then the beginning of an id that only one has.
    ///
    /// Errors: not found, or ambiguous, in Docker's words.
    pub(crate) fn container(&self, reference: &str) -> Result<Arc<Container>> {
        if let Some(found) = self.containers.get(reference) {
            return Ok(found);
        }
        let name = reference.strip_prefix('/').unwrap_or(reference);
        let all = self.containers.all();
        if let Some(found) = all.iter().find(|c| c.spec.name == name) {
            return Ok(found.clone());
        }
        let mut candidates = all.into_iter().filter(|c| is_id_prefix(reference) && c.name_any().starts_with(reference));
        match (candidates.next(), candidates.next()) {
            (Some(found), None) => Ok(found),
            (Some(_), Some(_)) => Err(Error::Invalid(format!("multiple IDs found with provided prefix: {reference}"))),
            (None, _) => Err(Error::NotFound(format!("No such container: {reference}"))),
        }
    }

    /// Finds a network: full id, then name, then the beginning of an id.
    ///
    /// Errors: not found, or ambiguous, in Docker's words.
    pub(crate) fn network(&self, reference: &str) -> Result<Arc<Network>> {
        let all = self.all_networks();
        if let Some(found) = all.iter().find(|n| n.spec.id == reference || n.spec.name == reference) {
            return Ok(found.clone());
        }
        // Ids of a swarm's networks have other letters than hexadecimal digits.
        let could_be = !reference.is_empty() && reference.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let mut candidates = all.into_iter().filter(|n| could_be && n.spec.id.starts_with(reference));
        match (candidates.next(), candidates.next()) {
            (Some(found), None) => Ok(found),
            (Some(_), Some(_)) => {
                Err(Error::Invalid(format!("network {reference} is ambiguous (2 matches found based on ID prefix)")))
            }
            (None, _) => Err(Error::NotFound(format!("network {reference} not found"))),
        }
    }

    /// All networks, with those that every machine has even when no object stands for them.
    pub(crate) fn all_networks(&self) -> Vec<Arc<Network>> {
        let mut all = self.networks.all();
        // Those of a swarm wait for their last task to end, unseen.
        all.retain(|network| network.metadata.deletion_timestamp.is_none() || network.spec.driver != "overlay");
        for name in [api::names::DEFAULT_NETWORK, "host", "none"] {
            if !all.iter().any(|network| network.spec.name == name) {
                all.push(Arc::new(crate::networks::predefined(name)));
            }
        }
        all
    }

    /// A network by the name of its object.
    pub(crate) fn network_of_object(&self, object: &str) -> Option<Arc<Network>> {
        self.networks.get(object).or_else(|| self.all_networks().into_iter().find(|n| n.name_any() == object))
    }

    /// Finds a volume by its name.
    ///
    /// Errors: not found, in Docker's words.
    pub(crate) fn volume(&self, name: &str) -> Result<Arc<Volume>> {
        self.volumes
            .get(&crate::text::object_name(name))
            .filter(|volume| volume.spec.name == name)
            .or_else(|| self.volumes.all().into_iter().find(|volume| volume.spec.name == name))
            .ok_or_else(|| Error::NotFound(format!("get {name}: no such volume")))
    }

    /// A name that no container has.
    pub(crate) fn free_container_name(&self) -> String {
        let taken: std::collections::HashSet<String> =
            self.containers.all().into_iter().map(|c| c.spec.name.clone()).collect();
        let mut random = rand::rng();
        loop {
            let name = random_name(&mut random);
            if !taken.contains(&name) {
                return name;
            }
            let name = format!("{name}{}", random.random_range(0..10_000));
            if !taken.contains(&name) {
                return name;
            }
        }
    }
}

/// An adjective and somebody to remember.
fn random_name(random: &mut impl rand::Rng) -> String {
    let adjective = ADJECTIVES[random.random_range(0..ADJECTIVES.len())];
    let person = PEOPLE[random.random_range(0..PEOPLE.len())];
    format!("{adjective}_{person}")
}

const ADJECTIVES: [&str; 72] = [
    "airy",
    "alert",
    "amber",
    "balmy",
    "blithe",
    "breezy",
    "bright",
    "brisk",
    "calm",
    "candid",
    "cheery",
    "chipper",
    "civil",
    "clear",
    "cosmic",
    "crisp",
    "curious",
    "daring",
    "dapper",
    "deft",
    "dewy",
    "drifting",
    "earnest",
    "fair",
    "feathery",
    "fleet",
    "floating",
    "frosty",
    "gentle",
    "gleaming",
    "hardy",
    "hazy",
    "honest",
    "humble",
    "jaunty",
    "keen",
    "kindly",
    "limpid",
    "lively",
    "lofty",
    "lucid",
    "mellow",
    "merry",
    "misty",
    "neat",
    "nimble",
    "patient",
    "placid",
    "plucky",
    "polite",
    "quick",
    "quiet",
    "radiant",
    "rosy",
    "silver",
    "sincere",
    "snowy",
    "soaring",
    "spry",
    "stormy",
    "sunlit",
    "swift",
    "tender",
    "tidy",
    "tranquil",
    "upbeat",
    "vivid",
    "wandering",
    "warm",
    "windy",
    "witty",
    "zesty",
];

/// People of science, mostly of weather, clouds, numbers and machines.
const PEOPLE: [&str; 80] = [
    "abbe",
    "agnesi",
    "alkhwarizmi",
    "ampere",
    "anning",
    "archimedes",
    "backus",
    "beaufort",
    "bjerknes",
    "bohr",
    "boole",
    "bose",
    "buys_ballot",
    "cannon",
    "cauchy",
    "celsius",
    "charney",
    "chatelet",
    "church",
    "coriolis",
    "curie",
    "dijkstra",
    "eckert",
    "eratosthenes",
    "erdos",
    "euler",
    "fahrenheit",
    "faraday",
    "fermat",
    "fourier",
    "franklin",
    "galois",
    "gauss",
    "germain",
    "godel",
    "halley",
    "hamilton",
    "hertz",
    "hilbert",
    "hopper",
    "howard",
    "hypatia",
    "ibnalhaytham",
    "johnson",
    "joliot",
    "kepler",
    "khayyam",
    "kolmogorov",
    "kovalevskaya",
    "lagrange",
    "lamarck",
    "laplace",
    "leibniz",
    "lorenz",
    "lovelace",
    "magnus",
    "maury",
    "maxwell",
    "meitner",
    "mirzakhani",
    "mitchell",
    "neumann",
    "newton",
    "noether",
    "pascal",
    "perlman",
    "poincare",
    "ramanujan",
    "rayleigh",
    "ride",
    "riemann",
    "rossby",
    "shannon",
    "simpson",
    "somerville",
    "torricelli",
    "turing",
    "volta",
    "wegener",
    "wu",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_names_are_valid_container_names() {
        for adjective in ADJECTIVES {
            for person in PEOPLE {
                assert!(crate::text::is_restricted_name(&format!("{adjective}_{person}")));
            }
        }
        assert!(random_name(&mut rand::rng()).contains('_'));
    }
}
