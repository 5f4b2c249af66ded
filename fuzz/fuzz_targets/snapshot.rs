//! Fuzzes `placement::fuzzing::snapshot`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| placement::fuzzing::snapshot(data));
