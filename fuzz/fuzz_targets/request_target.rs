//! Fuzzes `kubernetes::fuzzing::request_target`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kubernetes::fuzzing::request_target(data));
