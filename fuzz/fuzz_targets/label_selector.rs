//! Fuzzes `apiserver::fuzzing::label_selector`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| apiserver::fuzzing::label_selector(data));
