//! Fuzzes `apiserver::fuzzing::field_selector`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| apiserver::fuzzing::field_selector(data));
