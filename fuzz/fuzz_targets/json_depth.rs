//! Fuzzes `kubernetes::fuzzing::json_depth`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kubernetes::fuzzing::json_depth(data));
