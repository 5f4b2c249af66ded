//! Empty qcow2 layers, written by us: a clone is one small file, made in microseconds and without a process. The layer
//! below is named nowhere in it; who opens a layer says what it lies on.
//!
//! `Source:` QEMU, docs/interop/qcow2.txt

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};

/// Units: bits. 64 KiB, QEMU's own choice.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: usize = 1 << CLUSTER_BITS;
/// What one entry of the L1 table covers: an L2 table of 8,192 clusters. Units: bytes.
const L1_ENTRY_COVERS: u64 = 1 << (2 * CLUSTER_BITS - 3);
const HEADER_LENGTH: u32 = 104;
/// Reference counts of 16 bits.
const REFCOUNT_ORDER: u32 = 4;
/// Clusters before the L1 table: header, refcount table, refcount block.
const FIXED_CLUSTERS: usize = 3;

/// The bytes of an empty layer for a disk of this size: at most [`super::header::VIRTUAL_SIZE_MAX`].
pub fn empty_layer(virtual_bytes: u64) -> Vec<u8> {
    let l1_entries = u32::try_from(virtual_bytes.div_ceil(L1_ENTRY_COVERS).max(1)).unwrap_or(u32::MAX);
    let l1_clusters = (l1_entries as usize * 8).div_ceil(CLUSTER);
    let mut bytes = vec![0u8; (FIXED_CLUSTERS + l1_clusters) * CLUSTER];
    let cluster = |index: usize| (index as u64 * CLUSTER as u64).to_be_bytes();
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &CLUSTER_BITS.to_be_bytes());
    put(24, &virtual_bytes.to_be_bytes());
    put(36, &l1_entries.to_be_bytes());
    put(40, &cluster(FIXED_CLUSTERS));
    put(48, &cluster(1));
    put(56, &1u32.to_be_bytes());
    put(96, &REFCOUNT_ORDER.to_be_bytes());
    put(100, &HEADER_LENGTH.to_be_bytes());
    put(CLUSTER, &cluster(2));
    for index in 0..FIXED_CLUSTERS + l1_clusters {
        put(2 * CLUSTER + 2 * index, &1u16.to_be_bytes());
    }
    bytes
}

/// Makes the file of an empty layer, durable when this returns.
///
/// Errors: it is there already.
pub fn create_layer(path: &Path, virtual_bytes: u64) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create the layer", path))?;
    file.write_all(&empty_layer(virtual_bytes)).map_err(Error::io("write the layer", path))?;
    file.sync_all().map_err(Error::io("sync the layer", path))?;
    sync_directory(path)
}

/// Makes the entry of a file in its directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(Error::io("sync the directory", parent))
}
