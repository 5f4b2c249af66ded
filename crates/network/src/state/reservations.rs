//! Addresses that are kept for ports, whether or not anybody is on them. One small file each, named by the port.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result};
use crate::state::files;
use crate::types::{Mac, Reservation};

/// All reservations, by owner.
#[derive(Default)]
pub(crate) struct Reservations {
    directory: PathBuf,
    known: BTreeMap<String, Reservation>,
    /// Owners by network and address: every search for a free address asks for many of them.
    holders: HashMap<String, HashMap<Ipv4Addr, String>>,
}

impl Reservations {
    /// Reads what is on disk.
    pub(crate) fn open(directory: &Path) -> Result<Reservations> {
        let mut all = Reservations { directory: directory.into(), ..Reservations::default() };
        for (_, reservation) in files::read_all::<Reservation>(directory)? {
            all.note(reservation);
        }
        Ok(all)
    }

    fn note(&mut self, reservation: Reservation) {
        let owner = reservation.owner.clone();
        self.holders.entry(reservation.network.clone()).or_default().insert(reservation.address, owner.clone());
        self.known.insert(owner, reservation);
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Reservation> {
        self.known.values()
    }

    /// That of an owner.
    pub(crate) fn of(&self, owner: &str) -> Option<&Reservation> {
        self.known.get(owner)
    }

    /// Who holds an address.
    pub(crate) fn holder(&self, network: &str, address: Ipv4Addr) -> Option<&str> {
        self.holders.get(network)?.get(&address).map(String::as_str)
    }

    /// Who holds a hardware address.
    pub(crate) fn holder_of_mac(&self, network: &str, mac: Mac) -> Option<&str> {
        let found = self.known.values().find(|one| one.network == network && one.mac == mac);
        found.map(|one| one.owner.as_str())
    }

    /// How many a network has.
    pub(crate) fn count_of(&self, network: &str) -> usize {
        self.holders.get(network).map_or(0, HashMap::len)
    }

    /// Notes one, durably.
    pub(crate) fn add(&mut self, reservation: &Reservation) -> Result<()> {
        let path = self.directory.join(&reservation.owner);
        files::replace(&path, reservation)?;
        // What is told of a port holds after a power cut, too.
        for path in [&path, &self.directory] {
            fs::File::open(path).and_then(|file| file.sync_all()).at("sync", path)?;
        }
        self.note(reservation.clone());
        Ok(())
    }

    /// Forgets one; there may be none.
    pub(crate) fn remove(&mut self, owner: &str) -> Result<()> {
        if !self.known.contains_key(owner) {
            return Ok(());
        }
        files::remove(&self.directory.join(owner))?;
        let Some(gone) = self.known.remove(owner) else { return Ok(()) };
        if let Some(holders) = self.holders.get_mut(&gone.network) {
            holders.remove(&gone.address);
            if holders.is_empty() {
                self.holders.remove(&gone.network);
            }
        }
        Ok(())
    }
}
