//! Fuzzes `docker::fuzzing::detach_keys`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| docker::fuzzing::detach_keys(data));
