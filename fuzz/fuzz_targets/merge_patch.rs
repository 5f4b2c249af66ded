//! Fuzzes `apiserver::fuzzing::merge_patch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| apiserver::fuzzing::merge_patch(data));
