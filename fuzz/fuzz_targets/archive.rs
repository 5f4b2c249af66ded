//! Fuzzes `image::fuzzing::archive`.
#![no_main]

use std::sync::LazyLock;

static SCRATCH: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a directory"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| image::fuzzing::archive(data, SCRATCH.path()));
