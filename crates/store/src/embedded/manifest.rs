//! The store's root: which format, which segments. One small file with two places that are written in turn, so that a
//! change needs neither new space nor a rename, and a torn write leaves the one before.

use std::sync::Arc;

use super::disk::{Disk, DiskFile};
use super::log::LogError;
use super::record::{FORMAT_VERSION, read_u32, read_u64};
use crate::error::{Error, Result};

/// Name of the root file; a directory with it holds a store.
pub(crate) const MANIFEST_NAME: &str = "manifest";
/// Name of a root file that is not finished yet.
pub(crate) const MANIFEST_NEW_NAME: &str = "manifest.new";

const MAGIC: &[u8; 8] = b"NUEESTOR";
const PLACE_BYTES: usize = 4096;
const USED_BYTES: usize = 40;

/// The root's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) generation: u64,
    /// The store's secret identity.
    pub(crate) store: u64,
    /// First segment that counts.
    pub(crate) first: u32,
    /// Last segment that counts; 0 when there is none yet.
    pub(crate) last: u32,
}

/// The root and its file.
pub(crate) struct ManifestFile {
    file: Arc<dyn DiskFile>,
    pub(crate) content: Manifest,
}

impl ManifestFile {
    /// Makes the root of a new store.
    pub(crate) fn create(disk: &dyn Disk, store: u64) -> Result<Self> {
        let content = Manifest { generation: 1, store, first: 1, last: 0 };
        let write = || {
            let file = disk.create(MANIFEST_NEW_NAME)?;
            let place = content.encode();
            file.write_at(&place, 0)?;
            file.write_at(&place, PLACE_BYTES as u64)?;
            file.sync()?;
            disk.rename(MANIFEST_NEW_NAME, MANIFEST_NAME)?;
            disk.sync_directory()?;
            Ok(file)
        };
        let file = write().map_err(|error| LogError::from_io("create the manifest", &error))?;
        Ok(Self { file, content })
    }

    /// Reads the root. Changes nothing.
    ///
    /// Errors: `Invalid` when the format is newer than this program; `Corrupt` when neither place is whole.
    pub(crate) fn open(disk: &dyn Disk) -> Result<Self> {
        let unreadable = |error: std::io::Error| Error::Unavailable(format!("cannot read the manifest: {error}"));
        let file = disk.open(MANIFEST_NAME).map_err(unreadable)?;
        let length = usize::try_from(file.length_bytes().map_err(unreadable)?).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length.min(2 * PLACE_BYTES)];
        file.read_at(&mut bytes, 0).map_err(unreadable)?;
        bytes.resize(2 * PLACE_BYTES, 0);
        let (one, two) = bytes.split_at(PLACE_BYTES);
        let newest = [Manifest::decode(one)?, Manifest::decode(two)?].into_iter().flatten();
        let content = newest
            .max_by_key(|manifest| manifest.generation)
            .ok_or_else(|| Error::Corrupt("the manifest does not match its checksum".into()))?;
        Ok(Self { file, content })
    }

    /// Makes a new range of segments durable.
    pub(crate) fn set(&mut self, first: u32, last: u32) -> std::result::Result<(), LogError> {
        let content = Manifest { generation: self.content.generation + 1, first, last, ..self.content };
        let offset = if content.generation.is_multiple_of(2) { 0 } else { PLACE_BYTES as u64 };
        let write = || {
            self.file.write_at(&content.encode(), offset)?;
            self.file.sync()
        };
        // The root's blocks are there already: any error here means a broken disk.
        write().map_err(|error| LogError::Fatal(format!("cannot write the manifest: {error}")))?;
        self.content = content;
        Ok(())
    }
}

impl Manifest {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; PLACE_BYTES];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.generation.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.store.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.first.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.last.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..36]);
        bytes[36..USED_BYTES].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` when the place is torn or rotten.
    fn decode(bytes: &[u8]) -> Result<Option<Self>> {
        if &bytes[0..8] != MAGIC {
            return Ok(None);
        }
        let format = read_u32(bytes, 8);
        if format > FORMAT_VERSION {
            return Err(Error::Invalid(format!(
                "the store has format {format}, this program knows {FORMAT_VERSION}; use a newer program"
            )));
        }
        if crc32fast::hash(&bytes[..36]) != read_u32(bytes, 36) {
            return Ok(None);
        }
        Ok(Some(Self {
            generation: read_u64(bytes, 12),
            store: read_u64(bytes, 20),
            first: read_u32(bytes, 28),
            last: read_u32(bytes, 32),
        }))
    }
}
