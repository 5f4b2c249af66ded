//! A disk in memory that can lose power, fail and lie. It keeps apart what was written and what was made durable:
//! writes per 512-byte sector until the file's sync, names until the directory's sync.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use store::embedded::disk::{Disk, DiskFile};

const SECTOR_BYTES: usize = 512;

/// How the disk misbehaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Syncs claim to work and make nothing durable: the negative control.
    pub skip_sync: bool,
    /// The sync with this number (from 1) fails, and the pages it had are taken as clean.
    pub fail_sync: Option<u64>,
    /// No more bytes than this in all files.
    pub capacity: Option<u64>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, File>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Changes to names since the last directory sync, in order.
    pending_names: Vec<BTreeMap<String, u64>>,
    next: u64,
    syncs: u64,
    faults: Faults,
    locked: bool,
    powered: bool,
}

#[derive(Default)]
struct File {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that differ from what is durable.
    dirty: BTreeSet<usize>,
}

/// The disk; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

struct Handle {
    disk: SimDisk,
    id: u64,
}

/// A small generator, so that a seed names one run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

impl SimDisk {
    pub fn new(faults: Faults) -> Self {
        Self(Arc::new(Mutex::new(State { faults, powered: true, ..State::default() })))
    }

    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }

    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// What a power cut leaves, as a new disk: all that is durable, of the rest any part. Name changes survive in
    /// order, as a journal keeps them; sectors survive in any order and combination.
    pub fn cut(&self, random: &mut Random) -> Self {
        let state = self.0.lock();
        let kept = usize::try_from(random.below(state.pending_names.len() as u64 + 1)).unwrap();
        let names = if kept == 0 { state.durable_names.clone() } else { state.pending_names[kept - 1].clone() };
        let mut files = BTreeMap::new();
        for id in names.values() {
            let file = &state.files[id];
            let mut bytes = file.durable.clone();
            // Sometimes nothing, sometimes all, mostly some of the sectors in flight.
            let share = random.below(5);
            for sector in &file.dirty {
                if random.below(4) < share {
                    copy_sector(&file.bytes, &mut bytes, *sector);
                }
            }
            files.insert(*id, File { durable: bytes.clone(), bytes, dirty: BTreeSet::new() });
        }
        let durable_names = names.clone();
        let next = state.next;
        let faults = Faults { fail_sync: None, ..state.faults };
        Self(Arc::new(Mutex::new(State {
            files,
            names,
            durable_names,
            next,
            faults,
            powered: true,
            ..State::default()
        })))
    }

    /// From here on every operation fails: nothing that the old process still does reaches the disk.
    pub fn power_off(&self) {
        self.0.lock().powered = false;
    }

    /// Flips one bit of one file, also of what is durable.
    pub fn flip(&self, name: &str, byte: usize, bit: u8) {
        let mut state = self.0.lock();
        let id = state.names[name];
        let file = state.files.get_mut(&id).unwrap();
        file.bytes[byte] ^= 1 << bit;
        file.durable[byte] ^= 1 << bit;
    }

    /// The bytes of a file.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.0.lock();
        state.files[&state.names[name]].bytes.clone()
    }

    /// Everything that is on the disk.
    pub fn image(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.0.lock();
        state.names.iter().map(|(name, id)| (name.clone(), state.files[id].bytes.clone())).collect()
    }
}

fn copy_sector(from: &[u8], to: &mut Vec<u8>, sector: usize) {
    let start = sector * SECTOR_BYTES;
    let end = (start + SECTOR_BYTES).min(from.len());
    if to.len() < end {
        to.resize(end, 0);
    }
    to[start..end].copy_from_slice(&from[start..end]);
}

impl State {
    fn check(&self) -> io::Result<()> {
        if self.powered { Ok(()) } else { Err(io::Error::other("no power")) }
    }

    fn renamed(&mut self) {
        self.pending_names.push(self.names.clone());
    }

    fn count_sync(&mut self) -> io::Result<()> {
        self.check()?;
        self.syncs += 1;
        if self.faults.fail_sync == Some(self.syncs) {
            return Err(io::Error::other("injected"));
        }
        Ok(())
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.0.lock();
        let id = *state.names.get(name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Arc::new(Handle { disk: self.clone(), id }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.check()?;
        state.next += 1;
        let id = state.next;
        state.files.insert(id, File::default());
        state.names.insert(name.into(), id);
        state.renamed();
        Ok(Arc::new(Handle { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check()?;
        let id = state.names.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        state.names.insert(to.into(), id);
        state.renamed();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check()?;
        state.names.remove(name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        state.renamed();
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        state.count_sync()?;
        if !state.faults.skip_sync {
            state.durable_names = state.names.clone();
            state.pending_names.clear();
        }
        Ok(())
    }

    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.0.lock();
        if state.locked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.locked = true;
        Ok(Box::new(Guard(self.clone())))
    }
}

struct Guard(SimDisk);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.lock().locked = false;
    }
}

impl DiskFile for Handle {
    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().files[&self.id].bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.0.lock();
        let start = usize::try_from(offset).unwrap();
        let bytes = state.files[&self.id].bytes.get(start..start + buffer.len());
        buffer.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.check()?;
        let start = usize::try_from(offset).unwrap();
        let end = start + bytes.len();
        let used: usize = state.names.values().map(|id| state.files[id].bytes.len()).sum();
        let grows = end.saturating_sub(state.files[&self.id].bytes.len());
        if state.faults.capacity.is_some_and(|capacity| (used + grows) as u64 > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = state.files.get_mut(&self.id).unwrap();
        if file.bytes.len() < end {
            file.bytes.resize(end, 0);
        }
        file.bytes[start..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            file.dirty.extend(start / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        if let Err(error) = state.count_sync() {
            // As Linux does: the pages count as clean and are never written; reads still see them.
            if let Some(file) = state.files.get_mut(&self.id) {
                file.dirty.clear();
            }
            return Err(error);
        }
        if state.faults.skip_sync {
            return Ok(());
        }
        let file = state.files.get_mut(&self.id).unwrap();
        for sector in std::mem::take(&mut file.dirty) {
            let File { bytes, durable, .. } = file;
            copy_sector(bytes, durable, sector);
        }
        Ok(())
    }
}
