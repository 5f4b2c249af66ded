//! Fuzzes `apiserver::fuzzing::strategic_patch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| apiserver::fuzzing::strategic_patch(data));
