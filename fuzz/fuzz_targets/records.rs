//! Fuzzes `store::fuzzing::records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::fuzzing::records(data));
