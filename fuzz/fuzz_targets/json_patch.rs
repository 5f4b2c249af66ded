//! Fuzzes `apiserver::fuzzing::json_patch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| apiserver::fuzzing::json_patch(data));
